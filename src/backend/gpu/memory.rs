//! Device memory: owned buffers and borrowed views of them.

use std::marker::PhantomData;

use super::{Argument, Launcher};
use crate::backend::Element;

/// Memory of a device, freed when dropped.
pub struct GpuBuffer<L: Launcher, T: Element> {
    pub(super) launcher: L,
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) element: PhantomData<T>,
}

impl<L: Launcher, T: Element> GpuBuffer<L, T> {
    /// The address of the first value.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl<L: Launcher, T: Element> Drop for GpuBuffer<L, T> {
    fn drop(&mut self) {
        // SAFETY: address and size are those of the allocation, and all views borrow the buffer.
        unsafe { self.launcher.free(self.address, self.len * size_of::<T>()) }
    }
}

/// A borrowed range of device memory, to be read.
#[derive(Debug)]
pub struct GpuView<'a, T> {
    address: u64,
    len: usize,
    memory: PhantomData<&'a [T]>,
}

impl<T> Clone for GpuView<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for GpuView<'_, T> {}

/// A borrowed range of device memory, to be written.
#[derive(Debug)]
pub struct GpuViewMut<'a, T> {
    address: u64,
    len: usize,
    memory: PhantomData<&'a mut [T]>,
}

macro_rules! view {
    ($view:ident) => {
        impl<T> $view<'_, T> {
            /// A view of memory that others own.
            ///
            /// # Safety
            /// `len` values of `T` from `address` on are memory of the device, aligned for `T`, and stay so for the
            /// lifetime; for a mutable view nothing else uses them meanwhile. What wrote or will read them runs on the
            /// launcher's stream or is ordered with it by the caller.
            pub unsafe fn from_raw(address: u64, len: usize) -> Self {
                $view { address, len, memory: PhantomData }
            }

            /// The address of the first value.
            pub fn address(&self) -> u64 {
                self.address
            }

            /// Number of values.
            pub fn len(&self) -> usize {
                self.len
            }

            /// Whether there are none.
            pub fn is_empty(&self) -> bool {
                self.len == 0
            }
        }

        impl<T> From<&$view<'_, T>> for Argument {
            fn from(view: &$view<'_, T>) -> Self {
                Argument::Pointer(view.address)
            }
        }
    };
}
view!(GpuView);
view!(GpuViewMut);

impl<L: Launcher, T: Element> From<&GpuBuffer<L, T>> for Argument {
    fn from(buffer: &GpuBuffer<L, T>) -> Self {
        Argument::Pointer(buffer.address)
    }
}
