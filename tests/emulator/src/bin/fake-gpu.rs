//! Runs a program that was built with feature `cuda` on a fake GPU: `fake-gpu PROGRAM ARGUMENTS...`.

use std::env::args_os;
use std::process::{Command, ExitCode};

use ebm_dpg_emulator::driver::with_fake;

fn main() -> ExitCode {
    let Some(program) = args_os().nth(1) else {
        eprintln!("usage: fake-gpu PROGRAM ARGUMENTS...");
        return ExitCode::from(2);
    };
    match with_fake(Command::new(&program).args(args_os().skip(2))).status() {
        Ok(status) => ExitCode::from(status.code().map_or(1, |code| code as u8)),
        Err(error) => {
            eprintln!("error: {}: expected a program, got: {error}", program.display());
            ExitCode::FAILURE
        }
    }
}
