//! A GPU as a [`Backend`](super::Backend): device memory, and launches of the kernels in `kernels/*.cu`.
//!
//! What runs the kernels is a [`Launcher`]: the CUDA driver, or the emulator that the tests run on machines without a
//! GPU. Nothing but downloads and [`Gpu::check`] waits for the device. Data on the device is validated there: a kernel
//! notes the first row at fault in a status word, that row becomes NaN, and the next download or check returns the error.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use super::{Element, Memory, Record};
use crate::error::{Error, Result, expect_len};

#[cfg(feature = "cuda")]
mod cublas;
#[cfg(feature = "cuda")]
mod cuda;
mod launcher;
mod memory;
mod status;

#[cfg(feature = "cuda")]
pub(super) use cuda::count as cuda_count;
#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaLauncher, CudaRecording};
pub(crate) use launcher::arguments;
pub use launcher::{Argument, Grid, Kernel, Launcher, Limits, Matrix, Product, Scalar};
pub use memory::{GpuBuffer, GpuView, GpuViewMut};

/// A GPU behind a [`Launcher`]. Clones share the device's status word.
#[derive(Clone)]
pub struct Gpu<L: Launcher> {
    launcher: L,
    shared: Arc<Shared<L>>,
    /// Whether sequences of launches are recorded.
    records: bool,
}

struct Shared<L: Launcher> {
    /// The first fault noted by a kernel; see [`status`].
    status: GpuBuffer<L, u64>,
    /// Room for row numbers and partial sums of a launch, grown to the most that was ever needed.
    scratch: Mutex<Option<GpuBuffer<L, u64>>>,
    /// How many sequences later than they say all draws of kernels begin; 0 but while a recording runs.
    skip: GpuBuffer<L, u64>,
}

impl<L: Launcher> std::fmt::Debug for Gpu<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Gpu").field(&self.launcher).finish()
    }
}

impl<L: Launcher> Gpu<L> {
    /// A backend over `launcher`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], or what the launcher's device reports.
    pub fn new(launcher: L) -> Result<Self> {
        let status = allocate(&launcher, 1, "status word")?;
        let skip = allocate(&launcher, 1, "number of sequences")?;
        let shared = Arc::new(Shared { status, scratch: Mutex::new(None), skip });
        let gpu = Gpu { launcher, shared, records: true };
        gpu.reset_status()?;
        Ok(gpu)
    }

    /// What runs the kernels.
    pub fn launcher(&self) -> &L {
        &self.launcher
    }

    /// The same backend, which records repeated sequences of launches (as CUDA graphs) or launches each anew, for tools
    /// that see launches alone. Results are the same bits.
    pub fn recording(self, records: bool) -> Self {
        Gpu { records, ..self }
    }

    /// Waits for all work so far, and returns the first fault that a kernel noted since the last check.
    ///
    /// # Errors
    /// That fault; the status word is then clear again.
    pub fn check(&self) -> Result<()> {
        let mut word = [status::CLEAR];
        // SAFETY: the status word is one value of 8 bytes that this backend owns.
        unsafe { self.launcher.download(self.shared.status.address, bytemuck::cast_slice_mut(&mut word))? };
        match status::fault(word[0]) {
            None => Ok(()),
            Some(error) => {
                self.reset_status()?;
                Err(error)
            }
        }
    }

    fn reset_status(&self) -> Result<()> {
        // SAFETY: as in `check`.
        unsafe { self.launcher.upload(bytemuck::cast_slice(&[status::CLEAR]), self.shared.status.address) }
    }

    /// The status word as a kernel's argument.
    pub(crate) fn status(&self) -> Argument<'static> {
        Argument::Pointer(self.status_address())
    }

    /// Where the status word is.
    pub(crate) fn status_address(&self) -> u64 {
        self.shared.status.address
    }

    /// Where kernels read how many sequences later their draws begin.
    pub(crate) fn skip_address(&self) -> u64 {
        self.shared.skip.address
    }

    /// Copies one buffer over another of the same length.
    ///
    /// # Errors
    /// Another length.
    pub fn copy<T: Element>(&self, from: &GpuBuffer<L, T>, to: &mut GpuBuffer<L, T>) -> Result<()> {
        expect_len("copy on the device", to.len, from.len)?;
        // SAFETY: both are buffers of this length, and the second is borrowed alone.
        unsafe { self.launcher.copy(from.address, to.address, from.len * size_of::<T>()) }
    }

    /// Runs `work` with `len` words of scratch memory that no other launch uses meanwhile.
    pub(crate) fn with_scratch<T>(
        &self,
        len: usize,
        work: impl FnOnce(&mut GpuBuffer<L, u64>) -> Result<T>,
    ) -> Result<T> {
        let mut scratch = self.shared.scratch.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if scratch.as_ref().is_none_or(|scratch| scratch.len < len) {
            *scratch = Some(allocate(&self.launcher, len.next_power_of_two(), "scratch memory of a launch")?);
        }
        work(scratch.as_mut().expect("just made"))
    }

    /// Runs `work` with `values` in scratch memory.
    pub(crate) fn with_uploaded<T>(
        &self,
        values: &[u32],
        work: impl FnOnce(&mut GpuBuffer<L, u64>) -> Result<T>,
    ) -> Result<T> {
        self.with_scratch(values.len().div_ceil(2), |scratch| {
            // SAFETY: two values fit a word of the scratch memory, which no one else uses meanwhile.
            unsafe { self.launcher.upload(bytemuck::cast_slice(values), scratch.address)? };
            work(scratch)
        })
    }

    /// Launches one kernel.
    ///
    /// # Safety
    /// As [`Launcher::launch`].
    pub(crate) unsafe fn launch(&self, kernel: Kernel, grid: Grid, arguments: &[Argument]) -> Result<()> {
        // SAFETY: the caller's.
        unsafe { self.launcher.launch(kernel, grid, arguments) }
    }
}

fn allocate<L: Launcher, T: Element>(launcher: &L, len: usize, what: &str) -> Result<GpuBuffer<L, T>> {
    let bytes = len
        .checked_mul(size_of::<T>())
        .ok_or_else(|| Error::OutOfMemory { what: what.to_string(), bytes: len as u128 * size_of::<T>() as u128 })?;
    let address = launcher.allocate(bytes, what)?;
    Ok(GpuBuffer { launcher: launcher.clone(), address, len, element: PhantomData })
}

impl<L: Launcher> Record for Gpu<L> {
    type Recording = L::Recording;

    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<L::Recording>> {
        if self.records { self.launcher.record(work) } else { Ok(None) }
    }

    fn replay(&self, recording: &L::Recording, skip: u64) -> Result<bool> {
        let at = self.skip_address();
        // SAFETY: one value of 8 bytes that this backend owns; what reads it runs in the order of these calls.
        unsafe {
            self.launcher.upload(bytemuck::cast_slice(&[skip]), at)?;
            let done = self.launcher.replay(recording);
            self.launcher.clear(at, size_of::<u64>())?;
            done
        }
    }
}

impl<L: Launcher> Memory for Gpu<L> {
    type Buffer<T: Element> = GpuBuffer<L, T>;
    type View<'a, T: Element> = GpuView<'a, T>;
    type ViewMut<'a, T: Element> = GpuViewMut<'a, T>;

    fn zeros<T: Element>(&self, len: usize, what: &str) -> Result<GpuBuffer<L, T>> {
        allocate(&self.launcher, len, what)
    }

    fn len<T: Element>(buffer: &GpuBuffer<L, T>) -> usize {
        buffer.len
    }

    fn view<T: Element>(buffer: &GpuBuffer<L, T>, len: usize) -> GpuView<'_, T> {
        assert!(len <= buffer.len, "a view of {len} values of {}", buffer.len);
        // SAFETY: within the buffer, which the view borrows.
        unsafe { GpuView::from_raw(buffer.address, len) }
    }

    fn view_mut<T: Element>(buffer: &mut GpuBuffer<L, T>, len: usize) -> GpuViewMut<'_, T> {
        assert!(len <= buffer.len, "a view of {len} values of {}", buffer.len);
        // SAFETY: within the buffer, which the view borrows alone.
        unsafe { GpuViewMut::from_raw(buffer.address, len) }
    }

    fn view_len<T: Element>(view: &GpuView<'_, T>) -> usize {
        view.len()
    }

    fn view_mut_len<T: Element>(view: &GpuViewMut<'_, T>) -> usize {
        view.len()
    }

    fn upload<T: Element>(&self, from: &[T], to: &mut GpuBuffer<L, T>) -> Result<()> {
        super::check_room(from.len(), to.len)?;
        // SAFETY: within the buffer, which is borrowed alone.
        unsafe { self.launcher.upload(bytemuck::cast_slice(from), to.address) }
    }

    fn download<T: Element>(&self, from: &GpuBuffer<L, T>, to: &mut [T]) -> Result<()> {
        super::check_room(to.len(), from.len)?;
        // SAFETY: within the buffer.
        unsafe { self.launcher.download(from.address, bytemuck::cast_slice_mut(to))? };
        self.check()
    }
}
