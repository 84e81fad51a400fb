//! GPU tests by way of the CUDA driver: a real one, or on machines without a GPU a fake one (`driver/fake_cuda.cpp`) that
//! hands its launches to the emulator. The fake is a libcuda.so, so a program uses it if started with it on its path.

use std::ffi::{CStr, c_char, c_void};
use std::process::{Command, Output};
use std::sync::OnceLock;

use ebm_dpg::Result;
use ebm_dpg::backend::Device;
use ebm_dpg::backend::gpu::{Argument, Cuda, Grid};
use ebm_dpg::cudarc::driver::sys;

use crate::{Emulator, Schedule};

/// The first GPU, or none on a machine that has none; `GPU_TESTS=required` makes that a failure.
pub fn first_gpu() -> Option<Cuda> {
    if Device::auto() == Device::Cpu && std::env::var_os("GPU_TESTS").is_none_or(|value| value != "required") {
        return None;
    }
    Some(open(0).unwrap_or_else(|error| panic!("{error}")))
}

/// [`Cuda::open`], with the emulator behind it where the driver is the fake one.
///
/// # Errors
/// As there.
pub fn open(ordinal: usize) -> Result<Cuda> {
    // SAFETY: loads a library of the system, or the fake one.
    if unsafe { sys::is_culib_present() } {
        // SAFETY: only the fake driver has this symbol, and its type is this one.
        if let Ok(install) = unsafe { sys::culib().get::<extern "C" fn(Prepare, Run)>(b"fake_install") } {
            install(prepare, run);
        }
    }
    Cuda::open(ordinal)
}

/// Runs the tests of this very program whose names contain `filter` once more, under the fake driver with its settings.
pub fn rerun_with_fake(filter: &str, settings: &[(&str, &str)]) -> Output {
    let program = std::env::current_exe().expect("a path");
    let mut command = Command::new(program);
    command.args([filter, "--nocapture"]).env("LD_LIBRARY_PATH", env!("OUT_DIR")).env("GPU_TESTS", "required");
    command.envs(settings.iter().copied()).output().expect("started")
}

type Prepare = extern "C" fn(*const c_char, *const [u32; 4], *mut *mut c_void) -> *mut c_void;
type Run = extern "C" fn(*mut c_void) -> i32;

struct Launch {
    kernel: String,
    grid: Grid,
    arguments: Vec<Argument>,
}

fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| Emulator::new(Schedule::Reverse).expect("all kernels"))
}

/// Copies a launch with its arguments; null where there is no such kernel.
extern "C" fn prepare(kernel: *const c_char, grid: *const [u32; 4], parameters: *mut *mut c_void) -> *mut c_void {
    // SAFETY: the fake driver passes a name, a grid, and cuLaunchKernel's parameters.
    let (kernel, [x, y, threads, shared_bytes]) = unsafe { (CStr::from_ptr(kernel).to_string_lossy(), *grid) };
    let Some(signature) = emulator().signature(&kernel) else { return std::ptr::null_mut() };
    // SAFETY: cuLaunchKernel has one pointer for each parameter, to a value of its type.
    let argument = |(at, code)| unsafe {
        let value = *parameters.add(at);
        match code {
            'p' => Argument::Pointer(*value.cast()),
            'I' => Argument::U32(*value.cast()),
            'L' => Argument::U64(*value.cast()),
            'f' => Argument::F32(*value.cast()),
            'd' => Argument::F64(*value.cast()),
            _ => unreachable!("argument of type {code}"),
        }
    };
    let arguments = signature.chars().enumerate().map(argument).collect();
    let grid = Grid { blocks: [x, y], threads, shared_bytes };
    Box::into_raw(Box::new(Launch { kernel: kernel.into_owned(), grid, arguments })).cast()
}

/// Runs what `prepare` made; 0 where it went well.
extern "C" fn run(prepared: *mut c_void) -> i32 {
    // SAFETY: the fake driver runs each launch once.
    let Launch { kernel, grid, arguments } = *unsafe { Box::from_raw(prepared.cast()) };
    // SAFETY: as the caller of the launch vouched for.
    match unsafe { emulator().run(&kernel, grid, &arguments) } {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}
