//! GPU tests by way of the CUDA driver: a real one, or on machines without a GPU a fake one (`driver/fake_cuda.cpp`) that
//! holds the emulator. The fake is a libcuda.so, so a program uses it if started with it on its path.

use std::ffi::c_void;
use std::process::{Command, Output};
use std::sync::{Arc, OnceLock};

use ebm_dpg::backend::Device;
use ebm_dpg::backend::gpu::{Argument, Cuda, CudaLauncher, Grid};
use ebm_dpg::cudarc::driver::{CudaFunction, CudaModule, DriverError, sys};
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
    unsafe fn run_by_name(&self, name: &str, grid: Grid, cluster: u32, arguments: &[Argument]) -> Result<()> {
        let failed = |error: DriverError| Error::gpu(name, format!("{error:?}"));
        let function = function(self, name).map_err(failed)?;
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::pointer).collect();
        // SAFETY: plain values, of which 0 is one.
        let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        attribute.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: self.stream().cu_stream(),
            attrs: &mut attribute,
            numAttrs: u32::from(cluster > 1),
        };
        // SAFETY: config, attribute and pointers live through the call, which copies the arguments; they are the
        // kernel's in number and type, and what they point to is as it expects: the caller's.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&config, function.cu_function(), pointers.as_mut_ptr(), std::ptr::null_mut())
        };
        launched.result().map_err(failed)
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
