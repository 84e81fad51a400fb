//! Autoregressive models, by what they can do: [`Scorer`] ⊂ [`Sampler`] ⊂ [`Policy`].
//!
//! Base, proposal and policy may be of different types; a frozen base need only score. Methods take `&mut self`
//! because a model owns the workspace of its passes, so that no step allocates; a score never changes a parameter.

use std::path::Path;

use crate::adam::{AdamOptions, GradientNorms};
use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::exact::Guide;
use crate::features::FeatureOutput;
use crate::gradient::Divergence;
use crate::rng::Draw;
use crate::tokens::{Batch, Space, Token};

mod likelihood;
mod logits;
mod lstm;
mod markov;
mod state;
mod steps;
mod tabular;

pub use likelihood::{Likelihood, LikelihoodOptions, LikelihoodProgress, fit_likelihood};
pub use logits::{Logits, Prefixes};
pub use lstm::LstmPrefixes;
pub use lstm::{GpuLstm, Lstm, LstmBackend, LstmShape, Precision};
pub use markov::Markov;
pub use state::{OptimizerState, PolicyState};
pub use steps::{MarkovPrefixes, Stepper};
pub use tabular::Tabular;

/// A model that gives the log-probability of given sequences.
pub trait Scorer<B: Backend> {
    /// The space of sequences it is normalised over.
    fn space(&self) -> Space;

    /// Writes log π(x) in nats for each row of `batch` to `log_probs` (`[rows]`), each ≤ 0; of a row with a context, that of
    /// what follows it, given it.
    ///
    /// A row's value does not depend on the rows around it.
    ///
    /// # Errors
    /// Another space, another number of rows. An empty batch is a no-op.
    fn score(&mut self, batch: &Batch<B>, log_probs: B::ViewMut<'_, f64>) -> Result<()>;
}

/// A model that also draws sequences.
pub trait Sampler<B: Backend>: Scorer<B> {
    /// Fills `batch` to its capacity with sequences drawn by inverse CDF from the uniforms of `draw`; a row that begins with a
    /// context ([`Batch::begin`]) goes on from it.
    ///
    /// With a `guide`, step t draws from q_t(c) ∝ π_t(c)·h(state after c, tokens left). `log_q` (`[capacity]`)
    /// receives the log-prob of the distribution actually drawn from, `log_model` the model's own log π(x), both from
    /// this pass; without a guide they are equal.
    ///
    /// # Errors
    /// Another space (of the batch or the guide), another length of an output. Nothing is written then.
    fn sample(
        &mut self,
        draw: Draw,
        guide: Option<&Guide<B>>,
        batch: &mut Batch<B>,
        log_q: B::ViewMut<'_, f64>,
        log_model: B::ViewMut<'_, f64>,
    ) -> Result<()>;

    /// As [`Sampler::sample`], and writes φ of what was drawn: the same bits as
    /// [`FeatureTable::evaluate`](crate::features::FeatureTable::evaluate) of the batch
    /// (`[capacity, F]`), and the same draws as without.
    ///
    /// That evaluation is what this method does after [`Sampler::sample`] unless a model knows better: an LSTM makes φ of
    /// rows that it has just drawn, in the same pass.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; a table over another space, another length of φ: nothing is written then. What a closure
    /// among the features may do wrong; the rows are drawn then.
    fn sample_features(
        &mut self,
        draw: Draw,
        guide: Option<&Guide<B>>,
        batch: &mut Batch<B>,
        log_q: B::ViewMut<'_, f64>,
        log_model: B::ViewMut<'_, f64>,
        features: FeatureOutput<'_, B>,
    ) -> Result<()> {
        features.check(self.space(), batch.capacity())?;
        self.sample(draw, guide, batch, log_q, log_model)?;
        features.evaluate(batch)
    }

    /// Writes log q(x) of the guided model, as [`Sampler::sample`] with this `guide` draws from it, for each row of
    /// `batch` to `log_q` (`[rows]`); −∞ where the guide forbids a sequence.
    ///
    /// # Errors
    /// Another space (of the batch or the guide), another number of rows. An empty batch is a no-op.
    fn score_guided(&mut self, guide: &Guide<B>, batch: &Batch<B>, log_q: B::ViewMut<'_, f64>) -> Result<()>;
}

/// How the coefficient a_b of Σ_b a_b ∇log π(x_b) arises. All but the first need the whole sequence's log π first.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Weighting {
    /// a_b is the given weight; rows of weight 0 are skipped, and their log π is reported as NaN.
    Given,
    /// a_b = weight − scale·π(x_b)/q(x_b): the Ẑ·π/q baseline.
    Baseline,
    /// a_b = scale·(a + shift·π/q) with a = −(π/q)·(f′(π/p) − c), see [`Divergence::coefficient`]: the descent of an
    /// f-divergence. As `E_q[π/q ∇log π]` = 0, the shift is a control variate that changes no expectation.
    Divergence(Divergence),
    /// a_b = scale·(log p − log π + shift): the descent of ½(log Z_θ + log π − log P)², trajectory balance (Malkin et al.
    /// 2022), log Z_θ = log Ẑ − shift. x may come from any q.
    Balance,
}

impl Weighting {
    /// Its number and parameter in `kernels/common/coefficient.cuh`.
    pub(crate) fn code(self) -> (u32, f64) {
        match self {
            Weighting::Given => (0, 0.0),
            Weighting::Baseline => (1, 0.0),
            Weighting::Divergence(divergence) => divergence.code(),
            Weighting::Balance => (9, 0.0),
        }
    }
}

/// The coefficients of a weighted gradient.
pub struct Coefficients<'a, B: Memory> {
    /// The kind.
    pub weighting: Weighting,
    /// One weight per row, `[rows]`; a constant of the step, no gradient flows through it.
    pub weights: B::View<'a, f32>,
    /// log q per row, `[rows]`; +∞ takes a row out. Read by [`Weighting::Baseline`] and [`Weighting::Divergence`].
    pub log_q: Option<B::View<'a, f64>>,
    /// log p = log P − log Z per row, `[rows]`; +∞ takes a row out of a balance. Read by [`Weighting::Divergence`] and
    /// [`Weighting::Balance`].
    pub log_p: Option<B::View<'a, f64>>,
    /// The shift, one value; 0 where there is none. Read by [`Weighting::Divergence`] and [`Weighting::Balance`].
    pub shift: Option<B::View<'a, f64>>,
    /// The factor of π/q, of a divergence's and of a balance's coefficient.
    pub scale: f32,
    /// Where dropout masks are drawn from; `None` leaves dropout out (everywhere but in maximum likelihood).
    pub dropout: Option<Draw>,
}

impl<'a, B: Memory> Coefficients<'a, B> {
    /// The weights themselves, [`Weighting::Given`].
    pub fn given(weights: B::View<'a, f32>) -> Self {
        let weighting = Weighting::Given;
        Coefficients { weighting, weights, log_q: None, log_p: None, shift: None, scale: 0.0, dropout: None }
    }

    /// Checks lengths and options.
    pub(crate) fn check(&self, rows: usize, log_probs: usize) -> Result<()> {
        expect_len("weights", rows, B::view_len(&self.weights))?;
        expect_len("log-probs", rows, log_probs)?;
        let needed = |what: &str, values: &Option<B::View<'_, f64>>| match values {
            Some(values) => expect_len(what, rows, B::view_len(values)),
            None => Err(Error::argument(what, format!("one value per row for {:?}", self.weighting), "none")),
        };
        if let Some(shift) = &self.shift {
            expect_len("shift", 1, B::view_len(shift))?;
        }
        match self.weighting {
            Weighting::Given => Ok(()),
            Weighting::Baseline => needed("log q", &self.log_q),
            Weighting::Divergence(divergence) => {
                divergence.check()?;
                needed("log q", &self.log_q)?;
                needed("log p", &self.log_p)
            }
            Weighting::Balance => needed("log p", &self.log_p),
        }
    }
}

impl Coefficients<'_, Cpu> {
    /// No weight is NaN or infinite.
    pub(crate) fn check_weights(&self) -> Result<()> {
        match self.weights.iter().position(|weight| !weight.is_finite()) {
            Some(row) => Err(Error::not_a_number("weight", format!("row {row}: {}", self.weights[row]))),
            None => Ok(()),
        }
    }

    /// Whether the coefficient of row `row` is 0 whatever its log π.
    #[inline]
    pub(crate) fn skips(&self, row: usize) -> bool {
        self.weighting == Weighting::Given && self.weights[row] == 0.0
    }

    /// a_b of row `row`, whose finished log π is `log_prob`.
    #[inline]
    pub(crate) fn of(&self, row: usize, log_prob: f64) -> f32 {
        let at = |values: Option<&[f64]>| values.map_or(0.0, |values| values[row]);
        let (log_q, log_p) = (at(self.log_q), at(self.log_p));
        let (shift, scale) = (self.shift.map_or(0.0, |shift| shift[0]), f64::from(self.scale));
        match self.weighting {
            Weighting::Given => self.weights[row],
            Weighting::Baseline => self.weights[row] - self.scale * (log_prob - log_q).exp() as f32,
            Weighting::Divergence(divergence) => (scale * divergence.shifted(log_prob, log_p, log_q, shift)) as f32,
            Weighting::Balance => (scale * balance(log_prob, log_p, shift)) as f32,
        }
    }
}

/// log p − log π + shift; 0 where log p is +∞, which takes a row out.
pub(crate) fn balance(log_pi: f64, log_p: f64, shift: f64) -> f64 {
    if log_p == f64::INFINITY { 0.0 } else { log_p - log_pi + shift }
}

/// A trainable model.
pub trait Policy<B: Backend>: Sampler<B> + Send + Sized {
    /// Replaces the stored gradient by Σ_b a_b ∇log π(x_b), and writes log π(x_b) to `log_probs` (`[rows]`) from the
    /// same pass. Summed over fixed chunks of sequences folded in order: the same bits for any thread count.
    ///
    /// # Errors
    /// Another space, another length, a NaN weight (which names the row). An empty batch gives a zero gradient.
    fn gradient(
        &mut self,
        batch: &Batch<B>,
        coefficients: &Coefficients<'_, B>,
        log_probs: B::ViewMut<'_, f64>,
    ) -> Result<()>;

    /// One Adam step *up* the stored gradient.
    ///
    /// # Errors
    /// A gradient that is not finite: [`crate::Error::NotANumber`], parameters unchanged.
    fn update(&mut self, adam: &AdamOptions) -> Result<()>;

    /// As [`Policy::update`], with the learning rate times `rate`, one value on the backend; at 0 there is no step, and
    /// nothing changes. So whether to step can be decided without the host.
    ///
    /// # Errors
    /// As [`Policy::update`].
    fn update_at(&mut self, adam: &AdamOptions, rate: B::View<'_, f32>) -> Result<()>;

    /// Copies the parameters of `from` (q ← π) into this model's own memory, without allocating.
    ///
    /// # Errors
    /// Another shape.
    fn copy_from(&mut self, from: &Self) -> Result<()>;

    /// A copy with memory of its own: parameters and optimiser.
    ///
    /// # Errors
    /// Memory that cannot be had.
    fn try_clone(&self) -> Result<Self>;

    /// Forgets Adam's moments: for a policy that starts from another model's parameters.
    ///
    /// # Errors
    /// Memory that cannot be had.
    fn reset_optimizer(&mut self) -> Result<()>;

    /// The norms of the gradients that updates have used since the last call, before clipping.
    ///
    /// # Errors
    /// Those of the work that makes them, which it waits for.
    fn take_norms(&mut self) -> Result<GradientNorms>;

    /// Writes the parameters as safetensors: to a temporary file, synced, then renamed.
    fn save(&self, path: &Path) -> Result<()>;

    /// What training has made of this model, in host memory: its parameters, and with `optimizer` all that the next
    /// update depends on beside its gradient.
    ///
    /// # Errors
    /// What the device reports; a kind of model that cannot tell its state, which is what this method says of itself
    /// unless it is implemented.
    fn state(&self, optimizer: bool) -> Result<PolicyState> {
        let _ = optimizer;
        Err(state::missing::<Self>())
    }

    /// Puts back what [`Policy::state`] returned, bit for bit; where that was without the optimiser, the optimiser is
    /// left as it is.
    ///
    /// # Errors
    /// The state of another model or size: nothing is changed then. What the device reports. A kind of model that cannot
    /// be given a state, as with [`Policy::state`].
    fn restore(&mut self, state: &PolicyState) -> Result<()> {
        let _ = state;
        Err(state::missing::<Self>())
    }
}

/// `Ok` where a batch belongs to a model's space.
pub(crate) fn check_batch(model: Space, batch: Space) -> Result<()> {
    if model == batch {
        Ok(())
    } else {
        Err(Error::argument("space of the batch", format!("{model:?}"), format!("{batch:?}")))
    }
}

/// The checks of [`Sampler::sample`], for all backends; `log_q` and `log_model` are the outputs' lengths.
pub(crate) fn check_sample<B: Backend>(
    space: Space,
    guide: Option<&Guide<B>>,
    batch: &Batch<B>,
    log_q: usize,
    log_model: usize,
) -> Result<()> {
    check_batch(space, batch.space)?;
    if let Some(guide) = guide {
        check_batch(space, guide.space)?;
    }
    expect_len("log q", batch.capacity(), log_q)?;
    expect_len("log-probs of the model", batch.capacity(), log_model)
}

/// The checks of [`Sampler::score_guided`], for all backends; `log_q` is the output's length.
pub(crate) fn check_guided<B: Backend>(space: Space, guide: &Guide<B>, batch: &Batch<B>, log_q: usize) -> Result<()> {
    check_batch(space, batch.space)?;
    check_batch(space, guide.space)?;
    expect_len("log q", batch.rows, log_q)
}

/// Draws a token from the log-softmax of `logits(0..vocab)` by inverse CDF: the first whose cumulated probability
/// exceeds `uniform`. Returns it with its log-probability. A logit of −∞ is never drawn.
#[inline]
pub(crate) fn draw_token(uniform: f32, vocab: usize, logits: impl Fn(usize) -> f32) -> (Token, f64) {
    let max = (0..vocab).map(&logits).fold(f32::NEG_INFINITY, f32::max);
    let weight = |token: usize| (f64::from(logits(token)) - f64::from(max)).exp();
    let total: f64 = (0..vocab).map(weight).sum();
    let threshold = f64::from(uniform) * total;
    let (mut cumulated, mut drawn) = (0.0, 0);
    for token in 0..vocab {
        let weight = weight(token);
        if weight > 0.0 {
            drawn = token;
            cumulated += weight;
            if cumulated > threshold {
                break;
            }
        }
    }
    (drawn as Token, at_most_zero(f64::from(logits(drawn)) - f64::from(max) - total.ln()))
}

/// The log-probability of `token` under the log-softmax of `logits(0..vocab)`; −∞ where no token has a finite logit.
#[inline]
pub(crate) fn token_log_prob(vocab: usize, logits: impl Fn(usize) -> f32, token: Token) -> f64 {
    let max = f64::from((0..vocab).map(&logits).fold(f32::NEG_INFINITY, f32::max));
    let logit = f64::from(logits(token as usize));
    if logit == f64::NEG_INFINITY {
        return logit;
    }
    let total: f64 = (0..vocab).map(|token| (f64::from(logits(token)) - max).exp()).sum();
    at_most_zero(logit - max - total.ln())
}

/// A log-probability that rounding may have put above 0. Unlike `min`, it lets a NaN through: where a guide leaves no
/// token at all, the log-prob must not look like certainty.
#[inline]
pub(crate) fn at_most_zero(log_prob: f64) -> f64 {
    if log_prob > 0.0 { 0.0 } else { log_prob }
}
