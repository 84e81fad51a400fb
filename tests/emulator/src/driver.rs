//! GPU tests by way of the CUDA driver: a real one, or on machines without a GPU a fake one (`driver/fake_cuda.cpp`) that
//! holds the emulator. The fake is a libcuda.so, so a program uses it if started with it on its path.

use std::process::{Command, Output};

use ebm_dpg::backend::Device;
use ebm_dpg::backend::gpu::Cuda;

/// The first GPU, or none on a machine that has none; `GPU_TESTS=required` makes that a failure.
pub fn first_gpu() -> Option<Cuda> {
    if Device::auto() == Device::Cpu && std::env::var_os("GPU_TESTS").is_none_or(|value| value != "required") {
        return None;
    }
    Some(Cuda::open(0).unwrap_or_else(|error| panic!("{error}")))
}

/// The same command under the fake driver.
pub fn with_fake(command: &mut Command) -> &mut Command {
    command.env("LD_LIBRARY_PATH", env!("OUT_DIR"))
}

/// Runs the tests of this very program whose names contain `filter` once more, under the fake driver with its settings.
pub fn rerun_with_fake(filter: &str, settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args([filter, "--nocapture"]).env("GPU_TESTS", "required").envs(settings.iter().copied());
    with_fake(&mut command).output().expect("started")
}
