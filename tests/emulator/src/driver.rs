//! GPU tests by way of the CUDA driver: a real one, or on machines without a GPU a fake one (`driver/fake_cuda.cpp`) that
//! holds the emulator. The fake is a libcuda.so, so a program uses it if started with it on its path.

use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};

use ebm_dpg::backend::Device;
use ebm_dpg::backend::gpu::{Argument, Cuda, CudaLauncher, Grid};
use ebm_dpg::cudarc::driver::{CudaFunction, CudaModule, DriverError};
use ebm_dpg::cudarc::nvrtc::Ptx;
use ebm_dpg::{Error, Result};

use crate::RunByName;

/// `kernels/conformance.cu` for a GPU.
static CONFORMANCE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/conformance.fatbin"));

/// The first GPU, or none on a machine that has none; `GPU_TESTS=required` makes that a failure.
pub fn first_gpu() -> Option<Cuda> {
    if Device::auto() == Device::Cpu && std::env::var_os("GPU_TESTS").is_none_or(|value| value != "required") {
        return None;
    }
    Some(Cuda::open(0).unwrap_or_else(|error| panic!("{error}")))
}

impl RunByName for CudaLauncher {
    unsafe fn run_by_name(&self, name: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let failed = |error: DriverError| Error::gpu(name, format!("{error:?}"));
        let function = function(self, name).map_err(failed)?;
        // SAFETY: the module is never unloaded; the arguments are the caller's.
        unsafe { self.run(&function, grid, arguments) }.map_err(failed)
    }
}

/// A kernel of [`CONFORMANCE`], loaded once: all tests share the first GPU's context.
fn function(launcher: &CudaLauncher, name: &str) -> std::result::Result<CudaFunction, DriverError> {
    static MODULE: OnceLock<std::result::Result<Arc<CudaModule>, DriverError>> = OnceLock::new();
    let context = launcher.stream().context();
    context.bind_to_thread()?;
    let load = || context.load_module(Ptx::from_binary(CONFORMANCE.to_vec()));
    MODULE.get_or_init(load).clone()?.load_function(name)
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
