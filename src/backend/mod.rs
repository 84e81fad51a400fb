//! Where work runs. A [`Backend`] owns [`Memory`] and runs the stages' kernels on it; buffers are associated types, so
//! that mixing host and device memory is a compile error.

use crate::adam::AdamKernel;
use crate::error::{Error, Result};
use crate::features::FeatureKernel;
use crate::potential::PotentialKernel;
use crate::tokens::TokenKernel;
use crate::tune::{PoolKernel, SubTrajectoryKernel};
use crate::weights::{StatisticsKernel, WeightKernel};

mod cpu;
pub mod gpu;
pub(crate) mod product;
pub(crate) mod simd;
pub use cpu::Cpu;

/// A plain value that may live in a backend's buffer.
pub trait Element: bytemuck::Pod + Default + PartialEq + Send + Sync + std::fmt::Debug {}
impl Element for f32 {}
impl Element for f64 {}
impl Element for u32 {}
impl Element for i32 {}
impl Element for u16 {}
impl Element for u64 {}
impl Element for half::f16 {}
impl Element for half::bf16 {}

/// Where values live: the memory that a backend's stages work on.
pub trait Memory: Clone + std::fmt::Debug + Send + Sync + Sized + 'static {
    /// Memory owned by the backend.
    type Buffer<T: Element>: Send + Sync;
    /// A borrowed range of such memory.
    type View<'a, T: Element>: Copy + Send + Sync;
    /// A borrowed range of such memory, to be written.
    type ViewMut<'a, T: Element>: Send;

    /// A buffer of `len` zeros; `what` names it in the error.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn zeros<T: Element>(&self, len: usize, what: &str) -> Result<Self::Buffer<T>>;

    /// Number of elements of a buffer.
    fn len<T: Element>(buffer: &Self::Buffer<T>) -> usize;

    /// The first `len` elements. Panics where the buffer is shorter: callers size their buffers.
    fn view<T: Element>(buffer: &Self::Buffer<T>, len: usize) -> Self::View<'_, T>;

    /// The first `len` elements, to be written. Panics where the buffer is shorter.
    fn view_mut<T: Element>(buffer: &mut Self::Buffer<T>, len: usize) -> Self::ViewMut<'_, T>;

    /// Number of elements of a view.
    fn view_len<T: Element>(view: &Self::View<'_, T>) -> usize;

    /// Number of elements of a mutable view.
    fn view_mut_len<T: Element>(view: &Self::ViewMut<'_, T>) -> usize;

    /// Copies host values to the front of `to`.
    fn upload<T: Element>(&self, from: &[T], to: &mut Self::Buffer<T>) -> Result<()>;

    /// Copies the front of `from` to the host; waits for the work that writes it.
    fn download<T: Element>(&self, from: &Self::Buffer<T>, to: &mut [T]) -> Result<()>;
}

/// Work on this memory that is put down once and run again and again, with nothing left to do on the host.
pub trait Record: Memory {
    /// A sequence of launches and copies.
    type Recording;

    /// Puts down what `work` launches without running it; `None`, and `work` is not called, where this backend gains
    /// nothing by that.
    ///
    /// # Errors
    /// Those of `work`, which may neither ask for memory nor move data from or to the host.
    fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Self::Recording>>;

    /// Runs what was recorded, every [`Draw`](crate::rng::Draw) of sequences `skip` sequences later. `false`, and nothing
    /// has run, where memory has been given back since, which the recording may use.
    ///
    /// # Errors
    /// What the device reports.
    fn replay(&self, recording: &Self::Recording, skip: u64) -> Result<bool>;
}

/// A place where the stages run: its memory, and each stage's kernel over it.
pub trait Backend:
    Record
    + TokenKernel
    + FeatureKernel
    + PotentialKernel
    + WeightKernel
    + StatisticsKernel
    + AdamKernel
    + PoolKernel
    + SubTrajectoryKernel
{
}

impl<B> Backend for B where
    B: Record
        + TokenKernel
        + FeatureKernel
        + PotentialKernel
        + WeightKernel
        + StatisticsKernel
        + AdamKernel
        + PoolKernel
        + SubTrajectoryKernel
{
}

/// `Ok` where `wanted` values fit into `room`.
fn check_room(wanted: usize, room: usize) -> Result<()> {
    if wanted <= room { Ok(()) } else { Err(Error::argument("copy", format!("at most {room} values"), wanted)) }
}

/// The user's choice at the edge of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The rayon backend.
    Cpu,
    /// A GPU by its ordinal; needs a build with GPU kernels.
    Cuda(usize),
}

/// The backend of a [`Device`]: what a program matches on, once, to call code that is generic over [`Backend`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Opened {
    /// The rayon backend.
    Cpu(Cpu),
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(gpu::Cuda),
}

impl Device {
    /// The best device of this build and machine: the first GPU if both have one, else the CPU.
    pub fn auto() -> Self {
        #[cfg(feature = "cuda")]
        if gpu::cuda_count("GPU").is_ok() {
            return Device::Cuda(0);
        }
        Device::Cpu
    }

    /// The device's backend.
    ///
    /// # Errors
    /// A GPU that this build, or this machine, does not have: never a silent fallback.
    pub fn open(self) -> Result<Opened> {
        match self {
            Device::Cpu => Ok(Opened::Cpu(Cpu)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => gpu::Cuda::open(ordinal).map(Opened::Cuda),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(ordinal) => Err(Error::argument(
                "device",
                "cpu or auto (this build holds no GPU kernels)",
                format!("cuda:{ordinal}"),
            )),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    /// `auto`, `cpu` or `cuda:N`.
    fn from_str(text: &str) -> Result<Self> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Device::auto()),
            ("cpu", _) => Ok(Device::Cpu),
            (_, Some(Ok(ordinal))) => Ok(Device::Cuda(ordinal)),
            _ => Err(Error::argument("device", "auto, cpu or cuda:N", text)),
        }
    }
}
