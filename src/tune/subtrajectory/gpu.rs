//! Sub-trajectory balance on a GPU (`kernels/subtrajectory.cu`).

use std::mem::offset_of;

use super::{EndedPrefixes, SubTrajectoryKernel};
use crate::backend::gpu::{Argument, Gpu, GpuView, Grid, Kernel, Launcher, arguments};
use crate::error::Result;
use crate::rng::Draw;
use crate::tokens::RowsArgument;
use crate::tune::{Chosen, Ledger, Pool};

impl<L: Launcher> SubTrajectoryKernel for Gpu<L> {
    fn end_prefixes(
        &self,
        pool: &Pool<Self>,
        chosen: &Chosen<Self>,
        ended: &mut EndedPrefixes<Self>,
        draw: Draw,
    ) -> Result<()> {
        let (sequences, space) = (chosen.rows(), chosen.batch.space);
        let (from, to) = (RowsArgument::of(&chosen.batch), RowsArgument::of(&ended.batch));
        // end_prefixes(Rows from, uint64_t sequences, uint32_t prefixes, uint32_t longest, uint32_t eos, uint32_t pad,
        //   uint64_t seed, uint32_t purpose, const uint64_t* picks, const uint64_t* chosen, uint32_t* candidates,
        //   uint32_t* positions, Rows to)
        let arguments = arguments![
            from.argument(),
            sequences as u64,
            ended.prefixes as u32,
            space.longest,
            space.eos,
            space.pad,
            draw.seed,
            draw.purpose as u32,
            field(pool, offset_of!(Ledger, picks)),
            field(pool, offset_of!(Ledger, chosen)),
            &ended.candidates,
            &ended.positions,
            to.argument(),
        ];
        // SAFETY: `chosen` has `sequences` rows of sequences of its space, `ended`, which is borrowed alone, room for
        // `prefixes` rows of the same space and as many positions for each of them.
        unsafe { self.launch(Kernel::EndPrefixes, Grid { threads: 256, ..Grid::over(sequences, 8) }, arguments) }
    }

    fn balance_prefixes(
        &self,
        pool: &mut Pool<Self>,
        ended: &mut EndedPrefixes<Self>,
        log_p: GpuView<'_, f64>,
        log_pi: GpuView<'_, f64>,
    ) -> Result<()> {
        // balance_prefixes(const uint32_t* candidates, const uint32_t* positions, const double* log_p,
        //   const double* log_pi, const double* powers, const double* shares, uint64_t rows, uint32_t prefixes,
        //   uint32_t longest, const uint64_t* chosen, float* weights, double* loss, double* loss_weight,
        //   unsigned long long* status)
        let arguments = arguments![
            &ended.candidates,
            &ended.positions,
            &log_p,
            &log_pi,
            &ended.powers,
            &ended.shares,
            ended.batch.rows as u64,
            ended.prefixes as u32,
            ended.batch.space.longest,
            field(pool, offset_of!(Ledger, chosen)),
            &ended.weights,
            field(pool, offset_of!(Ledger, loss)),
            field(pool, offset_of!(Ledger, loss_weight)),
            self.status(),
        ];
        // SAFETY: positions, weights and both views have a value for each row, of which there are `prefixes` for each
        // number of candidates; no number exceeds the longest length and 1, for which the tables have an entry, and no
        // difference of positions the longest length.
        unsafe { self.launch(Kernel::BalancePrefixes, Grid::new(1, 1024), arguments) }
    }
}

/// The address of a field of the ledger.
fn field<L: Launcher>(pool: &Pool<Gpu<L>>, offset: usize) -> Argument<'static> {
    Argument::Pointer(pool.ledger.address() + offset as u64)
}
