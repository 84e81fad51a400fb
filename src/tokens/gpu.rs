//! Token batches on a GPU (`kernels/tokens.cu`).

use super::{Batch, Contexts, TokenKernel};
use crate::backend::gpu::{Argument, Gpu, Grid, Kernel, Launcher, arguments};
use crate::error::Result;
use crate::rng::Draw;

/// Rows of one block: a warp each.
const ROWS_PER_BLOCK: usize = 8;

impl<L: Launcher> TokenKernel for Gpu<L> {
    fn copy_rows(&self, from: &Batch<Self>, rows: &[u32], at: usize, to: &mut Batch<Self>) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let grid = Grid::over(rows.len(), ROWS_PER_BLOCK as u32);
        let grid = Grid { threads: 32 * ROWS_PER_BLOCK as u32, ..grid };
        let (count, at, space) = (rows.len() as u64, at as u64, from.space);
        self.with_uploaded(rows, |rows| {
            // copy_rows(Rows from, const uint32_t* rows, uint64_t count, uint64_t at, uint32_t longest, uint32_t pad, Rows to)
            let (from, to) = (RowsArgument::of(from), RowsArgument::of(to));
            let arguments = arguments![from.argument(), &*rows, count, at, space.longest, space.pad, to.argument()];
            // SAFETY: the caller checked that `from` has each of the rows and `to` room for all of them, and that both
            // are of one space; the scratch memory holds the row numbers, and `to` is borrowed alone.
            unsafe { self.launch(Kernel::CopyRows, grid, arguments) }
        })
    }

    fn begin(&self, contexts: &Contexts<Self>, draw: Draw, batch: &mut Batch<Self>) -> Result<()> {
        if batch.capacity() == 0 {
            return Ok(());
        }
        let grid = Grid { threads: 32 * ROWS_PER_BLOCK as u32, ..Grid::over(batch.capacity(), ROWS_PER_BLOCK as u32) };
        let (to, space) = (RowsArgument::of(batch), batch.space);
        // begin_rows(const uint32_t* contexts, const uint32_t* context_lengths, uint64_t count, uint64_t draws,
        //   uint64_t first, const uint64_t* skip, uint64_t rows, uint32_t longest, uint32_t pad, Rows to)
        let arguments = arguments![
            &contexts.tokens,
            &contexts.lengths,
            contexts.len() as u64,
            contexts.draws() as u64,
            draw.first,
            Argument::Pointer(self.skip_address()),
            batch.capacity() as u64,
            space.longest,
            space.pad,
            to.argument(),
        ];
        // SAFETY: the batch has as many rows, and the contexts `count`; both are of one space, as the caller checked.
        unsafe { self.launch(Kernel::BeginRows, grid, arguments) }
    }
}

/// A batch as kernels that move whole rows take it: `Rows` of `kernels/common/rows.cuh`.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct RowsArgument {
    tokens: u64,
    lengths: u64,
    given: u64,
    context: u64,
}

impl RowsArgument {
    pub fn of<L: Launcher>(batch: &Batch<Gpu<L>>) -> Self {
        let Batch { tokens, lengths, given, context, .. } = batch;
        let [tokens, lengths, given, context] =
            [tokens.address(), lengths.address(), given.address(), context.address()];
        RowsArgument { tokens, lengths, given, context }
    }

    pub fn argument(&self) -> Argument<'_> {
        Argument::Struct(bytemuck::bytes_of(self))
    }
}
