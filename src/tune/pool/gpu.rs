//! The pool on a GPU (`kernels/pool.cu`).

use std::mem::offset_of;

use super::{Choice, Chosen, Ledger, NewDraws, Pool, PoolKernel, Unit, Worth};
use crate::backend::gpu::{Argument, Gpu, GpuView, GpuViewMut, Grid, Kernel, Launcher, arguments};
use crate::error::Result;
use crate::models::Weighting;
use crate::rng::{Draw, Purpose};
use crate::tokens::{Contexts, RowsArgument};
use crate::tune::KlControl;
use crate::tune::rejection::Rejection;

/// The one block of the kernels that keep the books.
const ONE: Grid = Grid { blocks: [1, 1], threads: 1024, shared_bytes: 0, cluster: 1 };

/// A warp for each row.
fn warps(rows: usize) -> Grid {
    Grid { threads: 256, ..Grid::over(rows, 8) }
}

impl<L: Launcher> PoolKernel for Gpu<L> {
    fn weigh(
        &self,
        pool: &mut Pool<Self>,
        log_p: GpuView<'_, f64>,
        log_q: GpuView<'_, f64>,
        log_w: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        let (rows, mean) = (log_p.len() as u64, field(pool, offset_of!(Ledger, log_z)));
        // pool_weigh(const double* log_p, const double* log_q, uint64_t rows, double* log_w, Mean* mean,
        //   unsigned long long* status)
        let arguments = arguments![&log_p, &log_q, rows, &log_w, mean, self.status()];
        // SAFETY: all three views have `rows` values.
        unsafe { self.launch(Kernel::PoolWeigh, ONE, arguments) }
    }

    fn weigh_contexts(
        &self,
        pool: &mut Pool<Self>,
        contexts: &Contexts<Self>,
        draw: Draw,
        log_w: GpuView<'_, f64>,
    ) -> Result<()> {
        let Some(books) = &pool.contexts else { return Ok(()) };
        // pool_weigh_contexts(const double* log_w, uint64_t rows, uint64_t first, const uint64_t* skip, uint64_t count,
        //   uint64_t draws, Mean* means, double* log_z)
        let arguments = arguments![
            &log_w,
            log_w.len() as u64,
            draw.first,
            Argument::Pointer(self.skip_address()),
            contexts.len() as u64,
            contexts.draws() as u64,
            &books.means,
            &books.log_z,
        ];
        let grid = Grid { threads: 256, ..Grid::over(contexts.len(), 256) };
        // SAFETY: the view has `rows` values, the books are of `count` contexts.
        unsafe { self.launch(Kernel::PoolWeighContexts, grid, arguments) }
    }

    fn reward(&self, pool: &mut Pool<Self>, log_p: GpuView<'_, f64>) -> Result<()> {
        let (rows, mean, none) =
            (log_p.len() as u64, field(pool, offset_of!(Ledger, log_reward)), Argument::Pointer(0));
        // As above; what is null is not touched.
        // SAFETY: the view has `rows` values.
        unsafe { self.launch(Kernel::PoolWeigh, ONE, arguments![&log_p, none, rows, none, mean, self.status()]) }
    }

    fn accept(
        &self,
        pool: &mut Pool<Self>,
        rejection: &Rejection,
        draw: Draw,
        log_w: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        // pool_accept(double* log_w, uint64_t rows, uint64_t seed, uint64_t first, const uint64_t* skip,
        //   uint64_t thin_seed, uint32_t purpose, uint32_t exact, double* kept, uint64_t pinned, Ledger* ledger)
        let arguments = arguments![
            &log_w,
            log_w.len() as u64,
            draw.seed,
            draw.first,
            Argument::Pointer(self.skip_address()),
            rejection.seed,
            Purpose::Accept as u32,
            u32::from(rejection.exact),
            &pool.log_w,
            pool.pinned as u64,
            &pool.ledger,
        ];
        // SAFETY: the view has `rows` values; the ledger counts at most the pool's slots.
        unsafe { self.launch(Kernel::PoolAccept, ONE, arguments) }
    }

    fn keep(&self, pool: &mut Pool<Self>, draws: &NewDraws<'_, Self>) -> Result<()> {
        let (rows, space) = (draws.batch.rows as u64, draws.batch.space);
        let (all, fresh) = (u32::from(draws.all), u32::from(draws.fresh));
        let (capacity, pinned) = (pool.batch.capacity() as u64, pool.pinned as u64);
        // SAFETY: the draws have `rows` rows and values each, the pool room for as many beside the pinned; the slots that
        // the first kernel gives are below the capacity, and no two draws have the same.
        unsafe {
            // pool_keep(const double* log_w, uint64_t rows, uint32_t all, uint32_t fresh, uint64_t capacity,
            //   uint64_t pinned, uint32_t* slots, uint32_t* order, Ledger* ledger)
            let (slots, order, ledger) = (&pool.slots, &pool.order, &pool.ledger);
            let arguments = arguments![&draws.log_w, rows, all, fresh, capacity, pinned, slots, order, ledger];
            self.launch(Kernel::PoolKeep, ONE, arguments)?;
            // pool_scatter(Rows draws, const double* log_w, const double* log_q, const uint32_t* slots, uint64_t rows,
            //   uint32_t longest, uint32_t pad, Rows ring, double* to_log_w, double* to_log_q)
            let (from, ring) = (RowsArgument::of(draws.batch), RowsArgument::of(&pool.batch));
            let arguments = arguments![
                from.argument(),
                &draws.log_w,
                &draws.log_q,
                slots,
                rows,
                space.longest,
                space.pad,
                ring.argument(),
                &pool.log_w,
                &pool.log_q,
            ];
            self.launch(Kernel::PoolScatter, warps(draws.batch.rows), arguments)
        }
    }

    fn returns(
        &self,
        control: &KlControl,
        log_p: GpuView<'_, f64>,
        log_base: GpuView<'_, f64>,
        log_pi: GpuView<'_, f64>,
        returns: GpuViewMut<'_, f64>,
    ) -> Result<()> {
        let rows = log_p.len();
        // pool_returns(const double* log_p, const double* log_base, const double* log_pi, uint64_t rows, double beta,
        //   double floor, double* returns, unsigned long long* status)
        let (beta, floor) = (control.beta, control.floor);
        let arguments = arguments![&log_p, &log_base, &log_pi, rows as u64, beta, floor, &returns, self.status()];
        // SAFETY: all four views have `rows` values.
        unsafe { self.launch(Kernel::PoolReturns, Grid { threads: 256, ..Grid::over(rows, 256) }, arguments) }
    }

    fn measure(&self, pool: &mut Pool<Self>, worth: &Worth) -> Result<()> {
        // pool_measure(Kept log_w, uint32_t unit, double clip, uint32_t baseline, Ledger* ledger)
        let kept = Kept::of(pool, worth.unit);
        let arguments = arguments![kept.argument(), worth.unit as u32, worth.clip, worth.baseline as u32, &pool.ledger];
        // SAFETY: the ledger counts at most the pool's slots.
        unsafe { self.launch(Kernel::PoolMeasure, ONE, arguments) }
    }

    fn choose(&self, pool: &mut Pool<Self>, chosen: &mut Chosen<Self>, choice: &Choice<'_, Self>) -> Result<()> {
        let (rows, space) = (chosen.rows() as u64, chosen.batch.space);
        // SAFETY: `chosen` has room for `rows` rows; the ledger counts at most the pool's slots, and the order holds each of
        // them once. The rates are one value each.
        unsafe {
            // pool_choose(uint32_t* order, uint32_t* chosen, uint64_t count, uint64_t uses, uint64_t seed,
            //   uint32_t purpose, const float* wanted_rate, float* rate, Ledger* ledger)
            let arguments = arguments![
                &pool.order,
                &chosen.slots,
                rows,
                choice.uses as u64,
                choice.draw.seed,
                choice.draw.purpose as u32,
                choice.rate,
                &chosen.rate,
                &pool.ledger,
            ];
            self.launch(Kernel::PoolChoose, ONE, arguments)?;
            // pool_gather(Rows ring, Kept log_w, const double* log_q, const uint32_t* chosen, uint64_t rows,
            //   uint32_t longest, uint32_t eos, uint32_t pad, uint32_t unit, double clip, const Ledger* ledger, Rows to,
            //   float* weights, double* to_log_q, double* to_log_p, double* shift)
            let (ring, to) = (RowsArgument::of(&pool.batch), RowsArgument::of(&chosen.batch));
            let kept = Kept::of(pool, choice.worth.unit);
            let arguments = arguments![
                ring.argument(),
                kept.argument(),
                &pool.log_q,
                &chosen.slots,
                rows,
                space.longest,
                space.eos,
                space.pad,
                choice.worth.unit as u32,
                choice.worth.clip,
                &pool.ledger,
                to.argument(),
                &chosen.weights,
                &chosen.log_q,
                &chosen.log_p,
                &chosen.shift,
            ];
            self.launch(Kernel::PoolGather, warps(chosen.rows()), arguments)
        }
    }

    fn note_update(
        &self,
        pool: &mut Pool<Self>,
        chosen: &Chosen<Self>,
        log_pi: GpuView<'_, f64>,
        worth: &Worth,
        shifted: Option<Weighting>,
    ) -> Result<()> {
        let (kind, alpha) = shifted.map_or((0, 0.0), Weighting::code);
        let (longest, unit) = (chosen.batch.space.longest, worth.unit as u32);
        // pool_note(const float* weights, const double* log_pi, const double* log_p, const double* log_q, uint32_t longest,
        //   uint32_t unit, uint32_t kind, double alpha, Ledger* ledger)
        let Chosen { weights, log_p, log_q, .. } = chosen;
        let arguments = arguments![weights, &log_pi, log_p, log_q, longest, unit, kind, alpha, &pool.ledger];
        // SAFETY: weights, log π, log p and log q have a value for each row, of which the ledger counts no more.
        unsafe { self.launch(Kernel::PoolNote, Grid { threads: ONE.threads / 2, ..ONE }, arguments) }
    }
}

/// The weights kept as `pool.cu` reads them.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Kept {
    log_w: u64,
    context: u64,
    log_z: u64,
}

impl Kept {
    fn of<L: Launcher>(pool: &Pool<Gpu<L>>, unit: Unit) -> Self {
        let log_z = pool.contexts.as_ref().filter(|_| unit.is_per_context()).map_or(0, |books| books.log_z.address());
        Kept { log_w: pool.log_w.address(), context: pool.batch.context.address(), log_z }
    }

    fn argument(&self) -> Argument<'_> {
        Argument::Struct(bytemuck::bytes_of(self))
    }
}

/// The address of a field of the ledger.
fn field<L: Launcher>(pool: &Pool<Gpu<L>>, offset: usize) -> Argument<'static> {
    Argument::Pointer(pool.ledger.address() + offset as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::pool::SHIFT_RATE;

    #[test]
    fn the_ledger_has_the_kernels_size() {
        assert_eq!(size_of::<Ledger>(), 192);
        assert_eq!(offset_of!(Ledger, next), 128);
        assert_eq!(SHIFT_RATE, 0.1);
    }
}
