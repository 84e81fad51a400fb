//! A linear layer on a GPU: plain products by the launcher's library, the crate's kernels around them (`kernels/linear.cu`).

use std::ops::Range;

use super::{Head, LinearKernel, LogitGradient, Rows};
use crate::backend::Element;
use crate::backend::gpu::{Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, Matrix, Product, Scalar, arguments};
use crate::error::{Result, expect_len};
use crate::gradient::gradient_with;
use crate::log_prob::{Logit, SoftmaxOptions};
use crate::tokens::Token;

impl<L: Launcher> LinearKernel for Gpu<L> {
    fn narrow_len<T: Logit>(logits: usize) -> usize {
        T::pick([0, logits, logits])
    }

    fn reborrow<'a, T: Element>(view: &'a mut GpuViewMut<'_, T>) -> GpuViewMut<'a, T> {
        // SAFETY: the same memory, borrowed from the view for as long as this one lives.
        unsafe { GpuViewMut::from_raw(view.address(), view.len()) }
    }

    fn read<T: Element>(&self, from: GpuView<'_, T>, to: &mut [T]) -> Result<()> {
        expect_len("copy to the host", to.len(), from.len())?;
        // SAFETY: the view's own memory.
        unsafe { self.launcher().download(from.address(), bytemuck::cast_slice_mut(to))? };
        self.check()
    }

    fn fill<T: Element>(&self, value: T, to: GpuViewMut<'_, T>) -> Result<()> {
        // SAFETY of both: the view's own memory, borrowed alone.
        if bytemuck::bytes_of(&value).iter().all(|&byte| byte == 0) {
            return unsafe { self.launcher().clear(to.address(), to.len() * size_of::<T>()) };
        }
        unsafe { self.launcher().upload(bytemuck::cast_slice(&vec![value; to.len()]), to.address()) }
    }

    fn gather<T: Element>(
        &self,
        width: usize,
        rows: GpuView<'_, u64>,
        from: GpuView<'_, T>,
        to: GpuViewMut<'_, T>,
    ) -> Result<()> {
        self.move_rows::<T>(width, rows, (from.address(), to.address()), 0)
    }

    fn scatter<T: Element>(
        &self,
        width: usize,
        rows: GpuView<'_, u64>,
        from: GpuView<'_, T>,
        to: GpuViewMut<'_, T>,
    ) -> Result<()> {
        self.move_rows::<T>(width, rows, (from.address(), to.address()), 1)
    }

    fn check_rows<T: Logit>(
        &self,
        _head: &Head<'_, Self, T>,
        _rows: &Rows<'_, Self, T>,
        _range: Range<usize>,
    ) -> Result<()> {
        Ok(())
    }

    fn check_head<T: Logit>(&self, _head: &Head<'_, Self, T>) -> Result<()> {
        Ok(())
    }

    fn logits<T: Logit>(
        &self,
        head: &Head<'_, Self, T>,
        hidden: GpuView<'_, T>,
        logits: GpuViewMut<'_, f32>,
    ) -> Result<()> {
        let a = Matrix { address: hidden.address(), columns: head.width, transposed: false };
        let b = Matrix { address: head.weight.address(), columns: head.width, transposed: true };
        self.product::<T>([hidden.len() / head.width, head.vocab, head.width], a, b, logits.address(), false)
    }

    fn gradient_by_rows<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        (tokens, weights): (GpuView<'_, Token>, GpuView<'_, f32>),
        logits: GpuViewMut<'_, f32>,
        narrow: GpuViewMut<'_, T>,
        log_probs: GpuViewMut<'_, f32>,
    ) -> Result<Option<bool>> {
        // One read of the logits, and one write of what the products take.
        if self.narrow_gradient(softmax, vocab, (&tokens, &weights), &logits, &narrow, &log_probs)? {
            return Ok(Some(true));
        }
        gradient_with(self, softmax, vocab, tokens, weights, logits, log_probs)?;
        Ok(Some(false))
    }

    fn backward<T: Logit>(
        &self,
        head: &Head<'_, Self, T>,
        gradient: LogitGradient<'_, Self, T>,
        hidden: GpuView<'_, T>,
        hidden_gradient: GpuViewMut<'_, f32>,
        head_gradient: GpuViewMut<'_, f32>,
    ) -> Result<()> {
        let rows = hidden.len() / head.width;
        let gradient = match gradient {
            LogitGradient::Wide(gradient, narrow) => self.narrowed(gradient, narrow)?,
            LogitGradient::Narrow(gradient) => gradient.address(),
        };
        let gradient = |transposed| Matrix { address: gradient, columns: head.vocab, transposed };
        let plain = |address| Matrix { address, columns: head.width, transposed: false };
        let weight = plain(head.weight.address());
        self.product::<T>([rows, head.width, head.vocab], gradient(false), weight, hidden_gradient.address(), false)?;
        let hidden = plain(hidden.address());
        self.product::<T>([head.vocab, head.width, rows], gradient(true), hidden, head_gradient.address(), true)
    }
}

impl<L: Launcher> Gpu<L> {
    fn move_rows<T: Element>(
        &self,
        width: usize,
        rows: GpuView<'_, u64>,
        (from, to): (u64, u64),
        scatter: u32,
    ) -> Result<()> {
        let (count, bytes) = (rows.len(), (width * size_of::<T>()) as u64);
        if count == 0 {
            return Ok(());
        }
        use crate::backend::gpu::Argument::Pointer;
        // move_rows(const void* from, void* to, const uint64_t* rows, uint64_t count, uint64_t bytes, uint32_t scatter)
        let arguments = arguments![Pointer(from), Pointer(to), &rows, count as u64, bytes, scatter];
        // SAFETY: both sides hold rows of `width` values, the packed one `count` of them, and the row numbers were made
        // from ranges that the caller checked.
        unsafe { self.launch(Kernel::MoveRows, Grid::over(count, 8).threads(256), arguments) }
    }

    /// The gradient in the type of the products.
    fn narrowed<T: Logit>(&self, gradient: GpuView<'_, f32>, to: GpuViewMut<'_, T>) -> Result<u64> {
        let Some(kernel) = T::pick([None, Some(Kernel::NarrowF16), Some(Kernel::NarrowBf16)]) else {
            return Ok(gradient.address());
        };
        let count = gradient.len();
        expect_len("room for the narrowed gradient", count, to.len())?;
        // narrow_*(const float* from, T* to, uint64_t count)
        let arguments = arguments![&gradient, &to, count as u64];
        // SAFETY: as many values on both sides.
        unsafe { self.launch(kernel, Grid::over(count, 256), arguments)? };
        Ok(to.address())
    }

    fn product<T: Logit>(&self, shape: [usize; 3], a: Matrix, b: Matrix, to: u64, add: bool) -> Result<()> {
        let scalar = T::pick([Scalar::F32, Scalar::F16, Scalar::Bf16]);
        if shape.contains(&0) {
            return Ok(());
        }
        // SAFETY: the callers' views have these shapes, as the stage has checked.
        unsafe { self.launcher().product(&Product { shape, scalar, a, b, to, add }) }
    }
}
