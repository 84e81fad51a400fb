//! Token batches on a GPU (`kernels/tokens.cu`).

use super::{Batch, TokenKernel};
use crate::backend::gpu::{Gpu, Grid, Kernel, Launcher, arguments};
use crate::error::Result;

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
            // copy_rows(const uint32_t* from, const uint32_t* from_lengths, const uint32_t* rows, uint64_t count,
            //   uint64_t at, uint32_t longest, uint32_t pad, uint32_t* to, uint32_t* to_lengths)
            let arguments = arguments![
                &from.tokens,
                &from.lengths,
                &*rows,
                count,
                at,
                space.longest,
                space.pad,
                &to.tokens,
                &to.lengths
            ];
            // SAFETY: the caller checked that `from` has each of the rows and `to` room for all of them, and that both
            // are of one space; the scratch memory holds the row numbers, and `to` is borrowed alone.
            unsafe { self.launch(Kernel::CopyRows, grid, arguments) }
        })
    }
}
