//! GPU tests by way of the CUDA driver: a real one, or on machines without a GPU a fake one (`driver/fake_cuda.cpp`) that
//! hands its launches to the emulator. The fake is a libcuda.so, so a program uses it if started with it on its path.

use std::ffi::{CStr, c_char, c_void};
use std::process::{Command, Output};
use std::sync::OnceLock;

use ebm_dpg::Result;
use ebm_dpg::backend::Device;
use ebm_dpg::backend::gpu::{Argument, Cuda, Grid};
use ebm_dpg::cudarc::driver::sys;

use crate::{Emulator, RunByName, Schedule};

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
    arguments: Vec<Value>,
}

/// An argument that outlives its launch.
enum Value {
    Plain(Argument<'static>),
    /// Words, as structs are aligned to 8 bytes.
    Struct(Vec<u64>),
}

impl Value {
    /// The value at `from`, whose code [`Argument::code`] writes.
    ///
    /// # Safety
    /// There is a value of this type.
    unsafe fn read(code: &str, from: *const c_void) -> Self {
        // SAFETY: the caller's.
        unsafe {
            Value::Plain(match code.split_at(1) {
                ("p", _) => Argument::Pointer(*from.cast()),
                ("I", _) => Argument::U32(*from.cast()),
                ("L", _) => Argument::U64(*from.cast()),
                ("f", _) => Argument::F32(*from.cast()),
                ("d", _) => Argument::F64(*from.cast()),
                ("s", bytes) => {
                    let words = bytes.parse::<usize>().expect("a size") / 8;
                    return Value::Struct(std::slice::from_raw_parts(from.cast::<u64>(), words).to_vec());
                }
                _ => unreachable!("argument of type {code}"),
            })
        }
    }

    fn argument(&self) -> Argument<'_> {
        match self {
            Value::Plain(argument) => *argument,
            Value::Struct(words) => Argument::Struct(bytemuck::cast_slice(words)),
        }
    }
}

fn emulator() -> &'static Emulator {
    static EMULATOR: OnceLock<Emulator> = OnceLock::new();
    EMULATOR.get_or_init(|| Emulator::new(Schedule::Backward).expect("all kernels"))
}

/// Copies a launch with its arguments; null where there is no such kernel.
extern "C" fn prepare(kernel: *const c_char, grid: *const [u32; 4], parameters: *mut *mut c_void) -> *mut c_void {
    // SAFETY: the fake driver passes a name, a grid, and cuLaunchKernel's parameters.
    let (kernel, [x, y, threads, shared_bytes]) = unsafe { (CStr::from_ptr(kernel).to_string_lossy(), *grid) };
    let Some(signature) = emulator().signature(&kernel) else { return std::ptr::null_mut() };
    // SAFETY: cuLaunchKernel has one pointer for each parameter, to a value of its type.
    let value = |(at, code): (usize, &str)| unsafe { Value::read(code, *parameters.add(at)) };
    let arguments = codes(&signature).into_iter().enumerate().map(value).collect();
    let grid = Grid { blocks: [x, y], threads, shared_bytes };
    Box::into_raw(Box::new(Launch { kernel: kernel.into_owned(), grid, arguments })).cast()
}

/// The codes of a signature: a letter each, and the digits behind it.
fn codes(signature: &str) -> Vec<&str> {
    let mut starts: Vec<usize> =
        signature.char_indices().filter(|(_, c)| c.is_alphabetic()).map(|(at, _)| at).collect();
    starts.push(signature.len());
    starts.windows(2).map(|pair| &signature[pair[0]..pair[1]]).collect()
}

/// Runs what `prepare` made; 0 where it went well.
extern "C" fn run(prepared: *mut c_void) -> i32 {
    // SAFETY: the fake driver runs each launch once.
    let Launch { kernel, grid, arguments } = *unsafe { Box::<Launch>::from_raw(prepared.cast()) };
    let arguments: Vec<Argument<'_>> = arguments.iter().map(Value::argument).collect();
    // SAFETY: as the caller of the launch vouched for.
    match unsafe { emulator().run_by_name(&kernel, grid, 1, &arguments) } {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}
