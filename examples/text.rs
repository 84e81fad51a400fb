//! Real text with wanted moments: lines → base r → patterns φ and λ → policy π, with samples before and after.

use std::process::ExitCode;

use ebm_dpg::Result;

mod support;
use support::options::Text;
use support::report::Output;

fn main() -> ExitCode {
    support::run(experiment)
}

fn experiment(options: &Text) -> Result<()> {
    let _output = Output::create(&options.common.out)?;
    Ok(())
}
