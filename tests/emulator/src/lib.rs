//! The kernels of ebm-dpg on the CPU: the very files that nvcc compiles, each CUDA thread a fiber.
//!
//! [`Emulator`] is a [`Launcher`], so that the crate's GPU backend runs on it unchanged; README.md says what it finds.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::{Arc, Mutex, OnceLock};

use ebm_dpg::backend::gpu::{Argument, Gpu, Grid, Kernel, Launcher, Limits, Matrix, Product, Scalar};
use ebm_dpg::{Error, Result};

#[cfg(feature = "cuda")]
pub mod driver;
pub mod results;

/// `EmulatorKernel` of host/runtime.h.
#[repr(C)]
struct ExportedKernel {
    name: *const c_char,
    signature: *const c_char,
    call: *const c_void,
}
// SAFETY: a constant whose pointers lead to constants.
unsafe impl Sync for ExportedKernel {}

/// `EmulatorConfig` of host/runtime.h.
#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    cluster: u32,
    shared_bytes: u32,
    order: u32,
    copies: u32,
    seed: u64,
    dropped: *const c_char,
}

unsafe extern "C" {
    fn emulator_launch(
        kernel: *const ExportedKernel,
        config: *const Config,
        arguments: *mut *mut c_void,
        error: *mut c_char,
        room: usize,
    ) -> c_int;
}
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl ExportedKernel {
    fn name(&self) -> String {
        // SAFETY: EXPORT_KERNEL stores a string literal.
        unsafe { CStr::from_ptr(self.name) }.to_string_lossy().into_owned()
    }

    fn signature(&self) -> String {
        // SAFETY: EXPORT_KERNEL stores a constant array that ends with 0.
        unsafe { CStr::from_ptr(self.signature) }.to_string_lossy().into_owned()
    }
}

/// The order in which the threads of a block run between two collectives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Thread 0 first; asynchronous copies land as late as they may.
    Forward,
    /// The last thread first; asynchronous copies land at once.
    Backward,
    /// Both random by this seed.
    Random(u64),
}

impl Schedule {
    /// Both extremes and two random ones; `EMULATOR_SCHEDULES=1` takes one random schedule only, for slow sanitizers.
    pub fn all() -> Vec<Schedule> {
        if std::env::var_os("EMULATOR_SCHEDULES").is_some_and(|value| value == "1") {
            return vec![Schedule::Random(1)];
        }
        vec![Schedule::Forward, Schedule::Backward, Schedule::Random(1), Schedule::Random(2)]
    }
}

impl Schedule {
    /// A device for each schedule: launches choose their blocks by it.
    fn limits(self) -> Limits {
        match self {
            Schedule::Backward => Limits::new(227 << 10, 1, 90),
            _ => Limits::new(227 << 10, 4, 90),
        }
    }

    /// The same device without what compute capability 9.0 brought.
    pub fn older(self) -> Limits {
        Limits::new(163 << 10, self.limits().multiprocessors, 80)
    }
}

/// A launcher that runs kernels on the thread that launches them.
#[derive(Clone)]
pub struct Emulator {
    schedule: Schedule,
    limits: Limits,
    kernels: Arc<HashMap<String, &'static ExportedKernel>>,
    launched: Arc<Mutex<Vec<Kernel>>>,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Emulator").field(&self.schedule).finish()
    }
}

/// The GPU backend over the emulator.
pub type Emulated = Gpu<Emulator>;

/// A launcher that also runs kernels which are not the crate's own: those that test it.
pub trait RunByName: Launcher {
    /// Runs the kernel of this name.
    ///
    /// # Errors
    /// No such kernel, a launch that the device refuses; of an emulator also another signature than the arguments' and
    /// whatever it finds wrong.
    ///
    /// # Safety
    /// As [`Launcher::launch`].
    unsafe fn run_by_name(&self, name: &str, grid: Grid, arguments: &[Argument]) -> Result<()>;
}

impl RunByName for Emulator {
    unsafe fn run_by_name(&self, name: &str, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let kernel = *self.kernels.get(name).ok_or_else(|| unknown(name))?;
        let got: String = arguments.iter().map(Argument::code).collect();
        if kernel.signature() != got {
            return Err(Error::argument(format!("arguments of {name}"), kernel.signature(), got));
        }
        let config = self.config(grid);
        let mut pointers: Vec<_> = arguments.iter().map(Argument::pointer).collect();
        let mut error = [0u8; 2048];
        // SAFETY: kernel, config and arguments live through the call, the error has `room` bytes, and the arguments have
        // the kernel's types, as their codes agree. By this function's own contract its pointers span what it uses.
        let code =
            unsafe { emulator_launch(kernel, &config, pointers.as_mut_ptr(), error.as_mut_ptr().cast(), error.len()) };
        if code == 0 {
            return Ok(());
        }
        let text = CStr::from_bytes_until_nul(&error).map(CStr::to_string_lossy).unwrap_or_default();
        Err(Error::no_answer(format!("kernel {name}"), text))
    }
}

impl Emulator {
    /// All kernels, under `schedule`.
    ///
    /// # Errors
    /// A [`Kernel`] that the sources do not export.
    pub fn new(schedule: Schedule) -> Result<Self> {
        let kernels: HashMap<_, _> = EXPORTED.iter().map(|kernel| (kernel.name(), *kernel)).collect();
        match Kernel::ALL.iter().find(|kernel| !kernels.contains_key(kernel.symbol())) {
            Some(kernel) => Err(unknown(kernel.symbol())),
            None => {
                let (kernels, launched) = (Arc::new(kernels), Arc::default());
                Ok(Emulator { schedule, limits: schedule.limits(), kernels, launched })
            }
        }
    }

    /// The same on a device of other limits.
    pub fn limited(self, limits: Limits) -> Self {
        Emulator { limits, ..self }
    }

    /// The crate's kernels that were launched since the last call, in their order.
    pub fn take_launches(&self) -> Vec<Kernel> {
        std::mem::take(&mut self.launched.lock().expect("no launch panics"))
    }

    /// The backend over [`Emulator::new`].
    ///
    /// # Errors
    /// As there.
    pub fn open(schedule: Schedule) -> Result<Emulated> {
        Gpu::new(Emulator::new(schedule)?)
    }

    fn config(&self, grid: Grid) -> Config {
        let (order, copies, seed) = match self.schedule {
            Schedule::Forward => (0, 0, 0),
            Schedule::Backward => (1, 1, 0),
            Schedule::Random(seed) => (2, 2, seed),
        };
        Config {
            grid: [grid.blocks[0], grid.blocks[1], 1],
            block: [grid.threads, 1, 1],
            cluster: grid.cluster,
            shared_bytes: grid.shared_bytes,
            order,
            copies,
            seed,
            dropped: dropped(),
        }
    }
}

fn unknown(name: &str) -> Error {
    Error::argument("kernel", "one that the .cu files export", name)
}

/// `EMULATOR_DROP=file.cu:line` leaves the synchronisation there out; mutate.py sets it.
fn dropped() -> *const c_char {
    static SITE: OnceLock<Option<CString>> = OnceLock::new();
    let site = SITE.get_or_init(|| CString::new(std::env::var("EMULATOR_DROP").ok()?).ok());
    site.as_ref().map_or(std::ptr::null(), |site| site.as_ptr())
}

/// As cuMemAlloc aligns, and no larger than asked, so that the address sanitizer sees every overrun.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), 256).ok()
}

// "Device" addresses are those of the host.
impl Launcher for Emulator {
    fn allocate(&self, bytes: usize, what: &str) -> Result<u64> {
        // SAFETY: the size is not 0.
        let address = layout(bytes).map_or(0, |layout| unsafe { alloc_zeroed(layout) } as u64);
        match address {
            0 => Err(Error::OutOfMemory { what: what.to_string(), bytes: bytes as u128 }),
            _ => Ok(address),
        }
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        let layout = layout(bytes).expect("that of the allocation");
        // SAFETY: `allocate` made it with this layout, and by contract it is no longer used.
        unsafe { dealloc(address as *mut u8, layout) }
    }

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        // SAFETY: by contract `to` spans as many bytes that no one else borrows, so the slice is none of them.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        // SAFETY: by contract `from` spans as many bytes of device memory; `to` is borrowed alone.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: by contract both ranges are device memory and do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: by contract the range is device memory that no one else borrows.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument]) -> Result<()> {
        self.launched.lock().expect("no launch panics").push(kernel);
        // SAFETY: the same contract.
        unsafe { self.run_by_name(kernel.symbol(), grid, arguments) }
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        let Product { shape: [m, n, k], scalar, a, b, to, add } = *product;
        for row in 0..m {
            for column in 0..n {
                // SAFETY: the caller's matrices have these shapes.
                let term = |i: usize| unsafe { element(scalar, a, row, i) * element(scalar, b, i, column) };
                let sum: f64 = (0..k).map(term).sum();
                // SAFETY: as above.
                let to = unsafe { &mut *(to as *mut f32).add(row * n + column) };
                *to = (sum + if add { f64::from(*to) } else { 0.0 }) as f32;
            }
        }
        Ok(())
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    type Recording = Infallible;

    fn record(&self, _: impl FnOnce() -> Result<()>) -> Result<Option<Infallible>> {
        Ok(None)
    }

    fn replay(&self, recording: &Infallible) -> Result<bool> {
        match *recording {}
    }
}

/// One value of a matrix.
///
/// # Safety
/// It is there.
unsafe fn element(scalar: Scalar, matrix: Matrix, row: usize, column: usize) -> f64 {
    let (row, column) = if matrix.transposed { (column, row) } else { (row, column) };
    let at = row * matrix.columns + column;
    // SAFETY: the caller's.
    unsafe {
        match scalar {
            Scalar::F32 => f64::from(*(matrix.address as *const f32).add(at)),
            Scalar::F16 => (*(matrix.address as *const half::f16).add(at)).to_f64(),
            Scalar::Bf16 => (*(matrix.address as *const half::bf16).add(at)).to_f64(),
        }
    }
}
