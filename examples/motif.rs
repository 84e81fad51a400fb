//! The papers' experiment: few strings with a motif → base r → features φ and λ → policy π.

use std::process::ExitCode;

use ebm_dpg::Result;

mod support;
use support::options::Motif;
use support::report::Output;

fn main() -> ExitCode {
    support::run(experiment)
}

fn experiment(options: &Motif) -> Result<()> {
    let _output = Output::create(&options.common.out)?;
    Ok(())
}
