//! The kernels of ebm-dpg on the CPU: the very files that nvcc compiles, each CUDA thread a fiber.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Arc;

use ebm_dpg::backend::gpu::{Argument, Gpu, Grid, Kernel, Launcher, Limits};
use ebm_dpg::{Error, Result};

#[cfg(feature = "cuda")]
pub mod driver;

#[repr(C)]
struct EmuKernel {
    name: *const c_char,
    signature: *const c_char,
    call: *const c_void,
}
// SAFETY: constants of the kernels' library.
unsafe impl Sync for EmuKernel {}

#[repr(C)]
struct EmuConfig {
    grid: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    shared: u32,
    cooperative: u32,
    order: u32,
    asynchronous: u32,
    no_poison: u32,
    seed: u64,
    drop_site: *const c_char,
}

unsafe extern "C" {
    fn emu_launch(
        kernel: *const EmuKernel,
        config: *const EmuConfig,
        parameters: *mut *mut c_void,
        error: *mut c_char,
        room: usize,
    ) -> i32;
}
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The order in which the threads of a block run between two collectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Thread 0 first; asynchronous copies land late.
    Forward,
    /// The last thread first; asynchronous copies land at once.
    Reverse,
    /// Random by this seed.
    Random(u64),
}

impl Schedule {
    /// Both extremes and two random ones.
    pub fn all() -> Vec<Schedule> {
        vec![Schedule::Forward, Schedule::Reverse, Schedule::Random(1), Schedule::Random(2)]
    }
}

/// A launcher that runs kernels on this thread.
#[derive(Clone)]
pub struct Emulator {
    schedule: Schedule,
    kernels: Arc<HashMap<String, &'static EmuKernel>>,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Emulator").field(&self.schedule).finish()
    }
}

/// The GPU backend over the emulator.
pub type Emulated = Gpu<Emulator>;

impl Emulator {
    /// All kernels, under `schedule`.
    ///
    /// # Errors
    /// A [`Kernel`] that the sources do not export.
    pub fn new(schedule: Schedule) -> Result<Self> {
        // SAFETY: names are constant strings of the library.
        let name = |kernel: &EmuKernel| unsafe { CStr::from_ptr(kernel.name) }.to_string_lossy().into_owned();
        let kernels: HashMap<_, _> = table().into_iter().map(|kernel| (name(kernel), kernel)).collect();
        match Kernel::ALL.iter().find(|kernel| !kernels.contains_key(kernel.symbol())) {
            Some(kernel) => Err(Error::argument("kernel", "one that kernels/*.cu export", kernel.symbol())),
            None => Ok(Emulator { schedule, kernels: Arc::new(kernels) }),
        }
    }

    /// The backend over [`Emulator::new`].
    ///
    /// # Errors
    /// As there.
    pub fn open(schedule: Schedule) -> Result<Emulated> {
        Gpu::new(Emulator::new(schedule)?)
    }

    /// The types of a kernel's parameters, as [`Argument::code`] writes them.
    pub fn signature(&self, name: &str) -> Option<String> {
        // SAFETY: a constant string of the library.
        self.kernels.get(name).map(|kernel| unsafe { CStr::from_ptr(kernel.signature) }.to_string_lossy().into_owned())
    }

    /// Runs the kernel of this name, which need not be one of the crate's.
    ///
    /// # Errors
    /// No such kernel, another signature, and whatever the emulation finds wrong.
    ///
    /// # Safety
    /// As [`Launcher::launch`].
    pub unsafe fn run(&self, name: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let Some(kernel) = self.kernels.get(name) else {
            return Err(Error::argument("kernel", "one that kernels/*.cu export", name));
        };
        // SAFETY: a constant string of the library.
        let expected = unsafe { CStr::from_ptr(kernel.signature) }.to_string_lossy();
        let got: String = arguments.iter().map(Argument::code).collect();
        if expected != got {
            return Err(Error::argument(format!("arguments of {name}"), expected, got));
        }
        let config = self.config(grid);
        let mut parameters: Vec<_> = arguments.iter().map(Argument::pointer).collect();
        let mut error = [0u8; 2048];
        // SAFETY: the parameters have the kernel's types; what they point to is the caller's.
        let code =
            unsafe { emu_launch(*kernel, &config, parameters.as_mut_ptr(), error.as_mut_ptr().cast(), error.len()) };
        if code == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&error).map(CStr::to_string_lossy).unwrap_or_default();
        Err(Error::no_answer(format!("kernel {name}"), text))
    }

    fn config(&self, grid: Grid) -> EmuConfig {
        let (order, asynchronous, seed) = match self.schedule {
            Schedule::Forward => (0, 0, 0),
            Schedule::Reverse => (1, 1, 0),
            Schedule::Random(seed) => (2, 2, seed),
        };
        EmuConfig {
            grid: [grid.blocks[0], grid.blocks[1], 1],
            block: [grid.threads, 1, 1],
            cluster: [1; 3],
            shared: grid.shared_bytes,
            cooperative: 0,
            order,
            asynchronous,
            no_poison: 0,
            seed,
            drop_site: dropped_site(),
        }
    }
}

/// `EMULATOR_DROP=file.cu:line` makes the synchronisation there a no-op: mutation testing.
fn dropped_site() -> *const c_char {
    static SITE: std::sync::OnceLock<Option<CString>> = std::sync::OnceLock::new();
    let site = SITE.get_or_init(|| CString::new(std::env::var("EMULATOR_DROP").ok()?).ok());
    site.as_ref().map_or(std::ptr::null(), |site| site.as_ptr())
}

/// As cuMemAlloc aligns, and no larger than asked, so that a sanitizer sees every overrun.
fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), 256).expect("below isize::MAX")
}

impl Launcher for Emulator {
    fn allocate(&self, bytes: usize, what: &str) -> Result<u64> {
        let out_of_memory = || Error::OutOfMemory { what: what.to_string(), bytes: bytes as u128 };
        if bytes > isize::MAX as usize - 256 {
            return Err(out_of_memory());
        }
        // SAFETY: the size is not 0.
        let address = unsafe { alloc_zeroed(layout(bytes)) } as u64;
        if address == 0 { Err(out_of_memory()) } else { Ok(address) }
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        // SAFETY: the caller's.
        unsafe { dealloc(address as *mut u8, layout(bytes)) }
    }

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument]) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.run(kernel.symbol(), grid, arguments) }
    }

    fn limits(&self) -> Limits {
        Limits::new(227 << 10, 4, 90)
    }
}
