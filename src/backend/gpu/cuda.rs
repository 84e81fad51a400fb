//! The CUDA driver as a [`Launcher`]: one stream, on which everything happens in the order of the calls.

use std::ffi::CStr;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute, CUpointer_attribute, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::cublas::Cublas;
use super::{Argument, Gpu, Grid, Kernel, Launcher, Limits, Product};
use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The driver's name for the calling thread's default stream: `CU_STREAM_PER_THREAD`.
const PER_THREAD: sys::CUstream = std::ptr::without_provenance_mut(2);

/// An NVIDIA GPU as a [`Backend`](crate::backend::Backend).
pub type Cuda = Gpu<CudaLauncher>;

impl Cuda {
    /// The GPU of this ordinal, on a stream of its own.
    ///
    /// # Errors
    /// [`Error::Gpu`] where driver, device or kernels are missing or too old, [`Error::Argument`] where the machine has
    /// fewer GPUs.
    pub fn open(ordinal: usize) -> Result<Self> {
        let name = format!("cuda:{ordinal}");
        let count = count(&name)?;
        if ordinal >= count {
            return Err(Error::argument("device", format!("cuda:N with N below {count}"), name));
        }
        let stream = CudaContext::new(ordinal).and_then(|context| context.new_stream());
        Self::on_stream(stream.map_err(failed(name))?)
    }

    /// A caller's stream: kernels and copies run in order with the caller's own work on it.
    ///
    /// # Errors
    /// As [`Cuda::open`]; [`Error::Argument`] for the per-thread stream, which would be another on each thread.
    pub fn on_stream(stream: Arc<CudaStream>) -> Result<Self> {
        Gpu::new(CudaLauncher::new(stream)?)
    }

    /// The stream on which everything happens.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.launcher().stream()
    }
}

/// The number of GPUs: at least one, behind a driver that runs this build's kernels. `what` names the one wanted.
pub(in crate::backend) fn count(what: &str) -> Result<usize> {
    check_driver(what)?;
    result::init().map_err(failed(what))?;
    match result::device::get_count().map_err(failed(what))? {
        0 => Err(Error::gpu(what, "the driver finds no GPU on this machine")),
        count => Ok(count as usize),
    }
}

/// `Ok` where there is a driver that runs the kernels and has the functions called here. To be asked before any other
/// call: without the library, or a function in it, cudarc panics.
fn check_driver(what: &str) -> Result<()> {
    // SAFETY: loads and unloads the driver's library, which may be done at any time.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::gpu(what, "no NVIDIA driver on this machine: libcuda was not found"));
    }
    let mut version = 0;
    // SAFETY: the driver writes one int; this function needs no initialisation.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(failed(what))?;
    let (major, minor) = (version / 1000, version % 1000 / 10);
    // A driver runs all machine code of its major version. CUDA 12 has all functions called here.
    let needed = BUILT_WITH.0.max(12);
    if major as u32 >= needed {
        return Ok(());
    }
    let needs = format!("this build's kernels need one of CUDA {needed}.0 or later");
    Err(Error::gpu(what, format!("the driver is one of CUDA {major}.{minor}, but {needs}")))
}

/// Runs the kernels by the CUDA driver. Clones share the stream and the kernels' code.
#[derive(Clone)]
pub struct CudaLauncher {
    loaded: Arc<Loaded>,
}

struct Loaded {
    stream: Arc<CudaStream>,
    /// By the number of the [`Kernel`].
    functions: Vec<CudaFunction>,
    limits: Limits,
    /// Whether the device reads the host's pageable memory itself (Grace Hopper), so that copies from it are not staged.
    shares_page_tables: bool,
    /// Made by the first product.
    cublas: Mutex<Option<Cublas>>,
    /// The thread whose calls are being recorded, and where to.
    recorder: Mutex<Option<(ThreadId, Recorder)>>,
    /// How often memory has been given back. Held while it is, and while a recording is launched.
    freed: Mutex<u64>,
}

/// A stream that records what is put on it.
#[derive(Clone, Copy)]
struct Recorder(sys::CUstream);

// SAFETY: the driver's streams may be used from any thread; only the recording one does.
unsafe impl Send for Recorder {}

impl Drop for Loaded {
    /// Waits, as no kernel may lose its code while it runs; also after an earlier error that nobody has asked for yet.
    fn drop(&mut self) {
        let context = self.stream.context();
        let earlier = context.check_err();
        context.record_err(self.stream.synchronize());
        context.record_err(earlier);
        *self.cublas.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }
}

impl std::fmt::Debug for CudaLauncher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaLauncher(cuda:{})", self.context().ordinal())
    }
}

impl CudaLauncher {
    /// Loads all kernels into the stream's context.
    ///
    /// # Errors
    /// [`Error::Gpu`] where the driver is too old, or has no code for this device, or a kernel is missing.
    pub fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let name = format!("cuda:{}", context.ordinal());
        check_driver(&name)?;
        if stream.cu_stream() == PER_THREAD {
            return Err(Error::argument(name, "a stream that all threads share", "the per-thread stream"));
        }
        let mut limits = limits(context).map_err(failed(&name))?;
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS_USES_HOST_PAGE_TABLES;
        let shares_page_tables = context.attribute(attribute).map_err(failed(&name))? != 0;
        let load = |image: &&[u8]| context.load_module(Ptx::from_binary(image.to_vec()));
        let modules: std::result::Result<Vec<_>, _> = FATBINS.iter().map(load).collect();
        let modules = modules.map_err(failed(format!("{name}: kernels for capability {}", limits.capability)))?;
        let functions = Kernel::ALL.iter().map(|&kernel| function(kernel, &modules, limits.shared_bytes));
        let functions: Vec<_> = functions.collect::<Result<_>>()?;
        // What the driver has compiled from PTX of another capability lacks what that one lacks.
        let compiled_for = functions[0].ptx_version().map_err(failed(&name))?;
        limits.capability = limits.capability.min(compiled_for as u32);
        // A kernel whose code only says that there is none needs next to no registers; one that multiplies more than a hundred.
        let registers = functions[Kernel::LstmWarpgroupBackward1 as usize].num_regs().map_err(failed(&name))?;
        limits.warpgroups = registers > 32;
        let (cublas, recorder, freed) = (Mutex::new(None), Mutex::new(None), Mutex::new(0));
        let loaded = Loaded { stream, functions, limits, shares_page_tables, cublas, recorder, freed };
        Ok(CudaLauncher { loaded: Arc::new(loaded) })
    }

    /// The stream on which everything happens.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.loaded.stream
    }

    fn context(&self) -> &Arc<CudaContext> {
        self.loaded.stream.context()
    }

    /// The stream, its context made the calling thread's.
    fn bound_stream(&self) -> std::result::Result<sys::CUstream, DriverError> {
        self.context().bind_to_thread()?;
        Ok(self.loaded.stream.cu_stream())
    }

    /// Where this thread records, if it does.
    fn recorder(&self) -> Option<sys::CUstream> {
        let recorder = lock(&self.loaded.recorder);
        recorder.filter(|(thread, _)| *thread == thread::current().id()).map(|(_, Recorder(stream))| stream)
    }

    /// For what may be recorded: the recorder, or the stream.
    fn bound_recorder(&self) -> std::result::Result<sys::CUstream, DriverError> {
        let stream = self.bound_stream()?;
        Ok(self.recorder().unwrap_or(stream))
    }

    /// Runs any kernel of this launcher's context, on its stream. It does not wait for the end.
    ///
    /// # Errors
    /// What the driver says of the launch.
    ///
    /// # Safety
    /// The function's module stays loaded until the kernel has ended. The arguments are those of its declaration in number and
    /// type, and each pointer among them spans the memory that the kernel uses.
    pub unsafe fn run(
        &self,
        function: &CudaFunction,
        grid: Grid,
        arguments: &[Argument],
    ) -> std::result::Result<(), DriverError> {
        let stream = self.bound_recorder()?;
        let mut pointers: Vec<_> = arguments.iter().map(Argument::pointer).collect();
        // SAFETY: plain values, of which 0 is one.
        let mut cluster: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
        cluster.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        cluster.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: grid.cluster, y: 1, z: 1 };
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks[0],
            gridDimY: grid.blocks[1],
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared_bytes,
            hStream: stream,
            attrs: &mut cluster,
            numAttrs: u32::from(grid.cluster > 1),
        };
        // SAFETY:
        // 1. The context is current, and the stream and the function are of it.
        // 2. The arguments are the kernel's in number and type, and what they point to is as it expects: the caller's.
        // 3. Config and pointers live through the call; the driver has copied the arguments when it returns, and writes none.
        unsafe { sys::cuLaunchKernelEx(&config, function.cu_function(), pointers.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
    }

    /// For what may not be recorded: the stream, unless this thread records.
    fn bound_host_stream(&self) -> std::result::Result<sys::CUstream, DriverError> {
        match self.recorder() {
            None => self.bound_stream(),
            Some(_) => Err(DriverError(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)),
        }
    }
}

/// What is behind a lock is never left half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A recording under way, on a stream of its own: the caller's may be one that cannot be captured. Ends when dropped.
struct Capture<'a> {
    launcher: &'a CudaLauncher,
    stream: sys::CUstream,
}

impl<'a> Capture<'a> {
    fn begin(launcher: &'a CudaLauncher) -> std::result::Result<Self, DriverError> {
        launcher.context().bind_to_thread()?;
        let mut recorder = lock(&launcher.loaded.recorder);
        if recorder.is_some() {
            return Err(DriverError(CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)); // one at a time
        }
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        // Calls of other threads, on other streams, go on meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: a stream just made, which nobody else knows.
        if let Err(error) = unsafe { result::stream::begin_capture(stream, mode) } {
            // SAFETY: as above.
            launcher.context().record_err(unsafe { result::stream::destroy(stream) });
            return Err(error);
        }
        *recorder = Some((thread::current().id(), Recorder(stream)));
        Ok(Capture { launcher, stream })
    }

    /// What was recorded.
    fn end(self) -> std::result::Result<sys::CUgraph, DriverError> {
        // SAFETY: the stream records since `begin`, on this thread.
        unsafe { result::stream::end_capture(self.stream) }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        *lock(&self.launcher.loaded.recorder) = None;
        // SAFETY: made by `begin` and known to nobody else; the driver drops what it still records.
        self.launcher.context().record_err(unsafe { result::stream::destroy(self.stream) });
    }
}

/// A recorded sequence of launches: a CUDA graph.
pub struct CudaRecording {
    launcher: CudaLauncher,
    graph: sys::CUgraphExec,
    /// How often memory had been given back.
    freed: u64,
}

impl CudaRecording {
    /// Takes the graph and makes it ready.
    fn new(launcher: &CudaLauncher, graph: sys::CUgraph, freed: u64) -> std::result::Result<Self, DriverError> {
        // SAFETY: the graph is whole, and after this call no longer needed.
        let made = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        // SAFETY: as above.
        launcher.context().record_err(unsafe { result::graph::destroy(graph) });
        made.map(|graph| CudaRecording { launcher: launcher.clone(), graph, freed })
    }
}

impl Drop for CudaRecording {
    /// Waits, as the graph may be running.
    fn drop(&mut self) {
        let context = self.launcher.context();
        context.record_err(self.launcher.stream().synchronize());
        // SAFETY: no longer running, and owned by this recording alone.
        context.record_err(unsafe { result::graph::exec_destroy(self.graph) });
    }
}

fn limits(context: &CudaContext) -> std::result::Result<Limits, DriverError> {
    let shared = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let multiprocessors = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let (major, minor) = context.compute_capability()?;
    Ok(Limits::new(shared as usize, multiprocessors as usize, (10 * major + minor) as u32))
}

/// A kernel of these modules, allowed all the shared memory of a block that it does not declare itself.
fn function(kernel: Kernel, modules: &[Arc<CudaModule>], shared_bytes: usize) -> Result<CudaFunction> {
    let what = format!("kernel {}", kernel.symbol());
    let Some(function) = modules.iter().find_map(|module| module.load_function(kernel.symbol()).ok()) else {
        return Err(Error::gpu(what, "not among the kernels of this build"));
    };
    let allow = |declared| {
        let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(attribute, shared_bytes as i32 - declared)
    };
    function.shared_size_bytes().and_then(allow).map_err(failed(what))?;
    Ok(function)
}

/// The driver's error as ours.
fn failed(what: impl Display) -> impl Fn(DriverError) -> Error {
    move |error| {
        let text = error.error_string().map(CStr::to_string_lossy).unwrap_or_default();
        Error::gpu(&what, format!("{:?} ({text})", error.0))
    }
}

/// Whether the driver knows this host memory, as it does pinned and managed memory: copies from it are not staged.
fn is_pinned(memory: &[u8]) -> bool {
    let (mut kind, attribute) = (0u32, CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE);
    // SAFETY: the driver writes a value of 32 bits, and may be asked about any address.
    unsafe { sys::cuPointerGetAttribute((&raw mut kind).cast(), attribute, memory.as_ptr() as u64) }.result().is_ok()
}

// True of all calls below: `self` owns the stream, and the stream's context is current.
impl Launcher for CudaLauncher {
    fn allocate(&self, bytes: usize, what: &str) -> Result<u64> {
        let failed = |error: DriverError| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { what: what.into(), bytes: bytes as u128 },
            _ => failed(what)(error),
        };
        let stream = self.bound_host_stream().map_err(failed)?;
        let bytes = bytes.max(1); // the driver refuses 0
        // SAFETY: zeroed next.
        let address = unsafe { result::malloc_async(stream, bytes) }.map_err(failed)?;
        // SAFETY: just allocated on this stream.
        if let Err(error) = unsafe { result::memset_d8_async(address, 0, bytes, stream) } {
            // SAFETY: the same, and nobody else knows the address.
            unsafe { self.free(address, bytes) };
            return Err(failed(error));
        }
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        let mut count = lock(&self.loaded.freed);
        *count += 1;
        // SAFETY: allocated on this stream, and not used by later calls: the caller's, and a recording sees the count.
        let freed = self.bound_stream().and_then(|stream| unsafe { result::free_async(address, stream) });
        // The next call returns it.
        self.context().record_err(freed);
    }

    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the range is the caller's. Pageable memory is staged before the call returns; where nothing is staged
        // we wait.
        let copy = |stream| unsafe {
            result::memcpy_htod_async(to, from, stream)?;
            if self.loaded.shares_page_tables || is_pinned(from) { result::stream::synchronize(stream) } else { Ok(()) }
        };
        self.bound_host_stream().and_then(copy).map_err(failed(format_args!("upload of {} bytes", from.len())))
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        let bytes = to.len();
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range is the caller's; `to` stays borrowed until the copy has ended.
        let copy = |stream| unsafe {
            result::memcpy_dtoh_async(to, from, stream)?;
            result::stream::synchronize(stream)
        };
        self.bound_host_stream().and_then(copy).map_err(failed(format_args!("download of {bytes} bytes")))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the ranges are the caller's.
        let copy = |stream| unsafe { result::memcpy_dtod_async(to, from, bytes, stream) };
        self.bound_recorder().and_then(copy).map_err(failed(format_args!("copy of {bytes} bytes")))
    }

    unsafe fn clear(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: the range is the caller's.
        let clear = |stream| unsafe { result::memset_d8_async(at, 0, bytes, stream) };
        self.bound_recorder().and_then(clear).map_err(failed(format_args!("clearing of {bytes} bytes")))
    }

    unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument]) -> Result<()> {
        let function = &self.loaded.functions[kernel as usize];
        let Grid { blocks: [x, y], threads, shared_bytes, cluster } = grid;
        let shape = || {
            let clusters = if cluster > 1 { format!(" in clusters of {cluster}") } else { String::new() };
            format!("kernel {}, {x} × {y} blocks of {threads} threads{clusters}, {shared_bytes} B", kernel.symbol())
        };
        // SAFETY: the function's module stays loaded as long as `self`, which waits for the stream before it goes; the
        // arguments are the caller's.
        unsafe { self.run(function, grid, arguments) }.map_err(|error| failed(shape())(error))
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        let mut cublas = self.loaded.cublas.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.context().bind_to_thread().map_err(failed("cuBLASLt"))?;
        if cublas.is_none() {
            *cublas = Some(Cublas::new(&self.loaded.stream)?);
        }
        // SAFETY: the matrices are the caller's; the stream is the one on which everything happens.
        unsafe { cublas.as_mut().expect("just made").run(&self.loaded.stream, product) }
    }

    fn limits(&self) -> Limits {
        self.loaded.limits
    }

    type Recording = CudaRecording;

    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<CudaRecording>> {
        let failed = failed("recording of launches");
        let freed = *lock(&self.loaded.freed);
        let capture = Capture::begin(self).map_err(&failed)?;
        let done = work();
        let graph = capture.end().map_err(&failed);
        done?;
        CudaRecording::new(self, graph?, freed).map(Some).map_err(failed)
    }

    fn replay(&self, recording: &CudaRecording) -> Result<bool> {
        let stream = self.bound_host_stream().map_err(failed("recorded launches"))?;
        let freed = lock(&self.loaded.freed);
        if *freed != recording.freed || !Arc::ptr_eq(&self.loaded, &recording.launcher.loaded) {
            return Ok(false);
        }
        // SAFETY: the recording's kernels are loaded, and no memory that they use has been given back: all launches that
        // were recorded had the caller's word that it was theirs to use then.
        unsafe { result::graph::launch(recording.graph, stream) }.map_err(failed("recorded launches"))?;
        Ok(true)
    }
}
