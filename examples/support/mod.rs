//! What both examples share: the command line, the report, the curves, the progress bars.
#![allow(dead_code, reason = "each example uses its own part")]

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use ebm_dpg::backend::Opened;
use ebm_dpg::models::LstmBackend;
use ebm_dpg::{Error, Result};

pub mod config;
pub mod estimate;
pub mod experiment;
pub mod options;
pub mod page;
pub mod plot;
pub mod progress;
pub mod report;
pub mod resume;

/// The work of an example, wherever it is done.
pub trait Experiment: options::Options {
    /// Does it, and writes its report.
    ///
    /// # Errors
    /// Whatever went wrong first.
    fn run<B: LstmBackend>(&self, backend: &B) -> Result<()>;

    /// How much work that is.
    ///
    /// # Errors
    /// Input that cannot be read.
    fn plan(&self) -> Result<estimate::Plan>;
}

/// A whole example: options, work on their device, exit status. Bad options exit with 2 before anything is written, failed work with 1;
/// either way the first line on standard error says what was wrong.
pub fn run<E: Experiment>() -> ExitCode {
    let (options, device) = match E::read(std::env::args_os()) {
        Ok(read) => read,
        Err(options::Stop::Help(text)) => return exit(print(&text)),
        Err(options::Stop::Bad(reason)) => {
            say(&format!("error: {reason}\nusage: see --help"));
            return ExitCode::from(2);
        }
    };
    exit(match device {
        Opened::Cpu(cpu) => work(&options, &cpu),
        #[cfg(feature = "cuda")]
        Opened::Cuda(gpu) => work(&options, &gpu),
        other => Err(Error::argument("--device", "cpu or cuda:N", format!("{other:?}"))),
    })
}

/// The run, or what it would take.
fn work<E: Experiment, B: LstmBackend>(options: &E, backend: &B) -> Result<()> {
    if options.common().dry_run {
        print(&estimate::estimate(backend, options.common(), &options.plan()?)?)
    } else {
        options.run(backend)
    }
}

fn exit(result: Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    say(&format!("error: {}", error.to_string().replace('\n', " ")));
    ExitCode::from(1)
}

/// Prints to standard output. A reader that has gone away (`| head`) is no error, and never a panic.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::no_answer("standard output", error)),
        _ => Ok(()),
    }
}

/// Prints a line to standard error, where there is one.
pub fn say(line: &str) {
    // Nobody is left to tell when standard error itself is closed.
    let _ = writeln!(std::io::stderr(), "{line}");
}
