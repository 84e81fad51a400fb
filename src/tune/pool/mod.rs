//! Draws kept with their weights, so that each can serve several updates.
//!
//! A draw's weight P/q does not change while r and λ are fixed, whatever q becomes, so sequences from an older proposal
//! stay valid. Sequences of weight 0 have no gradient in plain DPG and are not kept, only counted.
//!
//! How many draws are kept, which are chosen and whether there is an update at all follows from their weights. All of it
//! is decided where the weights are: the host only reads the [`Ledger`], now and then.

use super::KlControl;
use super::rejection::Rejection;
use crate::backend::{Backend, Element, Memory};
use crate::error::{Error, Result};
use crate::models::Weighting;
use crate::rng::Draw;
use crate::tokens::{Batch, Contexts, Space};
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
    /// Subtracted from each weight.
    pub center: f64,
    /// What each weight is multiplied by then: leaving a row out of the mean that it is held against.
    pub factor: f64,
    /// The share of all weight that clipping took away.
    pub cut: f64,
    /// The shift of coefficients that are functions of log π, learnt from the updates before.
    pub shift: f64,
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
impl Element for LogMean {}

/// What is known of each context's Z.
pub struct ContextBooks<B: Memory> {
    /// The running mean of the weights of its draws, `[contexts]`.
    pub means: B::Buffer<LogMean>,
    /// log Ẑ of it, −∞ while none of its draws had a positive weight, `[contexts]`.
    pub log_z: B::Buffer<f64>,
}

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
    /// Those of the contexts, where there are any.
    pub contexts: Option<ContextBooks<B>>,
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
    /// log P of each row less the log of the unit, +∞ beyond those that were chosen.
    pub log_p: B::Buffer<f64>,
    /// The shift of the coefficients, one value.
    pub shift: B::Buffer<f64>,
    /// The slot of each row that was chosen.
    pub slots: B::Buffer<u32>,
    /// The learning rate's factor, one value: 0 where there is to be no update.
    pub rate: B::Buffer<f32>,
}

/// What updates measure the weights of the sequences kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Unit {
    /// The mean weight of those kept.
    MeanWeight = 0,
    /// The mean reward of all draws so far.
    MeanReward = 1,
    /// Ẑ over all draws so far, or each context's over its own, so that weights are p/q.
    Partition = 2,
    /// 1: not logarithms of weights are kept but returns, of either sign.
    Return = 3,
}

/// What is held against the weights or returns of an update, so that less of the gradient is noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
#[repr(u32)]
pub enum Baseline {
    /// Nothing.
    None = 0,
    /// What they are in the mean: Ẑ·π/q for importance weights (GDC++ of Korbak et al. 2022, "On reinforcement learning
    /// and distribution matching"), the mean slope f′ for other divergences, the mean reward for rewards.
    Mean = 1,
    /// The mean of the update's other rows (Kool, van Hoof & Welling 2019), which biases nothing however few they are; on
    /// policy only.
    LeaveOneOut = 2,
}

impl Unit {
    /// Whether weights are divided by the Ẑ of their contexts first: P/Ẑ_c of each context c stands for p_c, while rewards
    /// and returns are what they are.
    pub(super) fn is_per_context(self) -> bool {
        matches!(self, Unit::MeanWeight | Unit::Partition)
    }
}

/// How what is kept becomes the weights of an update.
#[derive(Debug, Clone, Copy)]
pub struct Worth {
    /// What weights are measured by.
    pub unit: Unit,
    /// Weights are cut to so many units; infinite where they are not.
    pub clip: f64,
    /// What is subtracted from them: the mean of rewards and returns only, as a divergence shifts its coefficients instead.
    pub baseline: Baseline,
}

/// How an update chooses its rows and makes their coefficients.
pub struct Choice<'a, B: Memory> {
    /// The most updates that a sequence takes part in, on average.
    pub uses: usize,
    /// What the shuffle is drawn from.
    pub draw: Draw,
    /// What the weights are.
    pub worth: Worth,
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

    /// The weights of new draws join the means of their contexts. `draw` is what the draws were made from.
    fn weigh_contexts(
        &self,
        pool: &mut Pool<Self>,
        contexts: &Contexts<Self>,
        draw: Draw,
        log_w: Self::View<'_, f64>,
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

    /// The returns of new draws of the policy under control by KL(π‖r), `[rows]` each:
    /// max(log P − log r, floor) − β·(log π − log r).
    ///
    /// # Errors
    /// A return that is not finite, named by its row.
    fn returns(
        &self,
        control: &KlControl,
        log_p: Self::View<'_, f64>,
        log_base: Self::View<'_, f64>,
        log_pi: Self::View<'_, f64>,
        returns: Self::ViewMut<'_, f64>,
    ) -> Result<()>;

    /// Finds what updates divide their weights by and subtract from them, and what clipping takes away.
    fn measure(&self, pool: &mut Pool<Self>, worth: &Worth) -> Result<()>;

    /// Fills `chosen`, up to its capacity, with sequences of the pool without repetition; each comes up once before any
    /// comes up twice (one that takes another's slot meanwhile takes its turn too). None, and a rate of 0, where no
    /// sequence has a weight or all have been used often enough.
    fn choose(&self, pool: &mut Pool<Self>, chosen: &mut Chosen<Self>, choice: &Choice<'_, Self>) -> Result<()>;

    /// The update's weighted −log π join the ledger's loss; log π is `[rows]`. Where coefficients are shifted, the shift
    /// moves to where it would have balanced those of this update: all the way at first, then a tenth of it.
    fn note_update(
        &self,
        pool: &mut Pool<Self>,
        chosen: &Chosen<Self>,
        log_pi: Self::View<'_, f64>,
        worth: &Worth,
        shifted: Option<Weighting>,
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
            contexts: None,
            pinned: fixed,
        };
        if let Some(batch) = pinned {
            let rows: Vec<u32> = (0..fixed as u32).collect();
            pool.batch.copy_rows(backend, batch, &rows, 0)?;
            backend.upload(&rows, &mut pool.order)?;
        }
        pool.batch.rows = capacity;
        let fixed = fixed as u64;
        let ledger = Ledger { log_bound, factor: 1.0, next: fixed, rows: fixed, kept: fixed, ..Ledger::default() };
        backend.upload(&[ledger], &mut pool.ledger)?;
        Ok(pool)
    }

    /// The same with books of so many contexts.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn with_contexts(mut self, backend: &B, contexts: usize) -> Result<Self> {
        let (mut means, mut log_z) = (backend.zeros(contexts, "books of contexts")?, backend.zeros(contexts, "log Z")?);
        backend.upload(&vec![LogMean::new(); contexts], &mut means)?;
        backend.upload(&vec![f64::NEG_INFINITY; contexts], &mut log_z)?;
        self.contexts = Some(ContextBooks { means, log_z });
        Ok(self)
    }

    /// The books of the contexts, none where there are no contexts; waits for the work that keeps them.
    pub fn context_means(&self, backend: &B) -> Result<Vec<LogMean>> {
        let Some(books) = &self.contexts else { return Ok(Vec::new()) };
        let mut means = vec![LogMean::new(); B::len(&books.means)];
        backend.download(&books.means, &mut means)?;
        Ok(means)
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

/// How far the shift moves in one update: all the way in the first.
const SHIFT_RATE: f64 = 0.1;

impl<B: Backend> Chosen<B> {
    /// Room for updates of `rows` sequences.
    pub fn new(backend: &B, space: Space, rows: usize) -> Result<Self> {
        let mut batch = Batch::with_capacity(backend, space, rows)?;
        batch.rows = rows;
        Ok(Chosen {
            batch,
            weights: backend.zeros(rows, "step weights")?,
            log_q: backend.zeros(rows, "step log q")?,
            log_p: backend.zeros(rows, "step log p")?,
            shift: backend.zeros(1, "shift")?,
            slots: backend.zeros(rows, "step rows")?,
            rate: backend.zeros(1, "learning rate")?,
        })
    }

    /// Rows of an update, those beyond the chosen ones included.
    pub fn rows(&self) -> usize {
        self.batch.rows
    }
}
