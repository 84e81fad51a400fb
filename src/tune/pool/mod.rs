//! Draws kept with their weights, so that each can serve several updates.
//!
//! A draw's weight P/q does not change while r and λ are fixed, whatever q becomes, so sequences from an older proposal
//! stay valid. Sequences of weight 0 have no gradient in plain DPG and are not kept, only counted.
//!
//! How many draws are kept, which are chosen and whether there is an update at all follows from their weights. All of it
//! is decided where the weights are: the host only reads the [`Ledger`], now and then.

use super::rejection::Rejection;
use crate::backend::{Backend, Element, Memory};
use crate::error::{Error, Result};
use crate::rng::Draw;
use crate::tokens::{Batch, Space};
use crate::weights::LogMean;

mod cpu;
mod gpu;

/// The books of training: what the host would have to wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Ledger {
    /// log Ẑ over all draws so far.
    pub log_z: LogMean,
    /// The running log of the mean reward, for REINFORCE.
    pub log_reward: LogMean,
    /// log of what updates divide their weights by; −∞ while there is no weight above 0.
    pub log_mean: f64,
    /// Rejection's bound of log w.
    pub log_bound: f64,
    /// Σ w·(−log π) over the rows of updates.
    pub loss: f64,
    /// Σ w·T over the same rows.
    pub loss_weight: f64,
    /// The slot that the next sequence takes; once the ring is full, that of the oldest.
    pub next: u64,
    /// Slots in use.
    pub rows: u64,
    /// Sequences ever kept.
    pub kept: u64,
    /// Slots of the shuffle that have come up in this pass.
    pub cursor: u64,
    /// Slots ever chosen.
    pub picks: u64,
    /// Rows of the last update.
    pub chosen: u64,
    /// Updates made.
    pub updates: u64,
    /// How often rejection's bound rose.
    pub raises: u64,
}

impl Element for Ledger {}

/// A ring of weighted sequences, an endless shuffle over it, and the books.
pub struct Pool<B: Memory> {
    /// The sequences by slot; those that the ledger does not count are not yet in use.
    pub batch: Batch<B>,
    /// log w and log q by slot.
    pub log_w: B::Buffer<f64>,
    /// See `log_w`.
    pub log_q: B::Buffer<f64>,
    /// All slots in use; those before the ledger's cursor have come up in this pass.
    pub order: B::Buffer<u32>,
    /// The slot that each new draw takes.
    pub slots: B::Buffer<u32>,
    /// The books, one value.
    pub ledger: B::Buffer<Ledger>,
    /// The first slots, which never leave.
    pub pinned: usize,
}

/// New draws, `[rows]`.
pub struct NewDraws<'a, B: Memory> {
    /// The sequences.
    pub batch: &'a Batch<B>,
    /// Their log-weights; those of −∞ are not kept, unless all are.
    pub log_w: B::View<'a, f64>,
    /// log q.
    pub log_q: B::View<'a, f64>,
    /// Whether all are kept.
    pub all: bool,
    /// Whether those before leave first.
    pub fresh: bool,
}

/// The rows of one update.
pub struct Chosen<B: Memory> {
    /// The sequences; beyond those that were chosen, an EOS each.
    pub batch: Batch<B>,
    /// The coefficient of each row, 0 beyond those that were chosen.
    pub weights: B::Buffer<f32>,
    /// log q of each row, +∞ beyond those that were chosen.
    pub log_q: B::Buffer<f64>,
    /// The slot of each row that was chosen.
    pub slots: B::Buffer<u32>,
    /// The learning rate's factor, one value: 0 where there is to be no update.
    pub rate: B::Buffer<f32>,
}

/// How an update chooses its rows and makes their coefficients.
pub struct Choice<'a, B: Memory> {
    /// The most updates that a sequence takes part in, on average.
    pub uses: usize,
    /// What the shuffle is drawn from.
    pub draw: Draw,
    /// Subtracted from w / mean w.
    pub reward_baseline: f32,
    /// The learning rate's factor, one value.
    pub rate: &'a B::Buffer<f32>,
}

/// The kernels of the pool. Lengths are already checked.
pub trait PoolKernel: Memory {
    /// log w = log P − log q of new draws, `[rows]` each; their mean joins the ledger's log Ẑ.
    ///
    /// # Errors
    /// A log w that is NaN or +∞, named by its row.
    fn weigh(
        &self,
        pool: &mut Pool<Self>,
        log_p: Self::View<'_, f64>,
        log_q: Self::View<'_, f64>,
        log_w: Self::ViewMut<'_, f64>,
    ) -> Result<()>;

    /// The rewards P of new draws join the ledger's mean reward.
    ///
    /// # Errors
    /// A log P that is NaN or +∞, named by its row.
    fn reward(&self, pool: &mut Pool<Self>, log_p: Self::View<'_, f64>) -> Result<()>;

    /// Rejection: log w of a draw that is accepted becomes 0, of another −∞. Where the bound is not exact and rises, the
    /// sequences kept so far are thinned first. `draw` is what the draws were made from.
    fn accept(
        &self,
        pool: &mut Pool<Self>,
        rejection: &Rejection,
        draw: Draw,
        log_w: Self::ViewMut<'_, f64>,
    ) -> Result<()>;

    /// Keeps new draws, in order; the oldest leave where there is no room.
    fn keep(&self, pool: &mut Pool<Self>, draws: &NewDraws<'_, Self>) -> Result<()>;

    /// Finds what updates divide their weights by: the mean weight of the sequences kept, or the mean reward.
    fn mean(&self, pool: &mut Pool<Self>, rewards: bool) -> Result<()>;

    /// Fills `chosen`, up to its capacity, with sequences of the pool without repetition; each comes up once before any
    /// comes up twice (one that takes another's slot meanwhile takes its turn too). None, and a rate of 0, where no
    /// sequence has a weight or all have been used often enough.
    fn choose(&self, pool: &mut Pool<Self>, chosen: &mut Chosen<Self>, choice: &Choice<'_, Self>) -> Result<()>;

    /// The update's weighted −log π join the ledger's loss; log π is `[rows]`.
    fn note_loss(
        &self,
        pool: &mut Pool<Self>,
        chosen: &Chosen<Self>,
        log_pi: Self::View<'_, f64>,
        reward_baseline: f32,
    ) -> Result<()>;
}

impl<B: Backend> Pool<B> {
    /// Room for `capacity` sequences beside those of `pinned`, which have weight 1 and never leave; `rows` new ones come at
    /// a time, at most `capacity`.
    pub fn new(
        backend: &B,
        space: Space,
        capacity: usize,
        rows: usize,
        log_bound: f64,
        pinned: Option<&Batch<B>>,
    ) -> Result<Self> {
        if rows > capacity {
            return Err(Error::argument("draws kept at a time", format!("at most {capacity}"), rows));
        }
        let fixed = pinned.map_or(0, |batch| batch.rows);
        let capacity = capacity.saturating_add(fixed);
        let mut pool = Pool {
            batch: Batch::with_capacity(backend, space, capacity)?,
            log_w: backend.zeros(capacity, "log-weights kept")?,
            log_q: backend.zeros(capacity, "log q kept")?,
            order: backend.zeros(capacity, "order of the draws kept")?,
            slots: backend.zeros(rows, "slots of draws")?,
            ledger: backend.zeros(1, "books of training")?,
            pinned: fixed,
        };
        if let Some(batch) = pinned {
            let rows: Vec<u32> = (0..fixed as u32).collect();
            pool.batch.copy_rows(backend, batch, &rows, 0)?;
            backend.upload(&rows, &mut pool.order)?;
        }
        pool.batch.rows = capacity;
        let fixed = fixed as u64;
        let ledger = Ledger { log_bound, next: fixed, rows: fixed, kept: fixed, ..Ledger::default() };
        backend.upload(&[ledger], &mut pool.ledger)?;
        Ok(pool)
    }

    /// The books; waits for the work that keeps them.
    pub fn ledger(&self, backend: &B) -> Result<Ledger> {
        let mut ledger = [Ledger::default()];
        backend.download(&self.ledger, &mut ledger)?;
        Ok(ledger[0])
    }

    /// The books, from which the loss is then struck out.
    pub fn take_loss(&mut self, backend: &B) -> Result<Ledger> {
        let ledger = self.ledger(backend)?;
        backend.upload(&[Ledger { loss: 0.0, loss_weight: 0.0, ..ledger }], &mut self.ledger)?;
        Ok(ledger)
    }
}

impl Ledger {
    /// The weighted mean of −log π per token of the longest length; NaN where there was no update.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.loss_weight
    }
}

impl<B: Backend> Chosen<B> {
    /// Room for updates of `rows` sequences.
    pub fn new(backend: &B, space: Space, rows: usize) -> Result<Self> {
        let mut batch = Batch::with_capacity(backend, space, rows)?;
        batch.rows = rows;
        Ok(Chosen {
            batch,
            weights: backend.zeros(rows, "step weights")?,
            log_q: backend.zeros(rows, "step log q")?,
            slots: backend.zeros(rows, "step rows")?,
            rate: backend.zeros(1, "learning rate")?,
        })
    }

    /// Rows of an update, those beyond the chosen ones included.
    pub fn rows(&self) -> usize {
        self.batch.rows
    }
}
