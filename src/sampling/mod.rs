//! Tokens drawn from rows of logits under temperature, top-k, top-p and min-p, with the log q of what was actually drawn
//! from, so that P/q stays right.
//!
//! A row keeps the tokens whose logit is at least a threshold; tokens with equal logits are kept or left out together. The
//! threshold is the highest of three:
//!
//! * top-k: the k-th largest logit;
//! * top-p: the logit at which the most probable of what top-k left reach the share p of it (Holtzman et al. 2020, "The
//!   Curious Case of Neural Text Degeneration");
//! * min-p: the logit whose probability is `min_p` times that of the largest (Nguyen et al. 2024, "Turning Up the Heat").
//!
//! Weights exp(scale·(logit − max)) are counted as multiples of 2⁻⁴⁰, integers whose sums have no order: the same draw for
//! any number of threads, on CPU and GPU, unless a uniform or a threshold falls within rounding of a boundary. The token is
//! the first whose cumulated weight exceeds the uniform's share of the total; a token below 2⁻⁴⁰ of the largest, far beyond
//! the 24 bits of a uniform, is never drawn.

use crate::backend::{Backend, Memory};
use crate::error::{Error, Result, expect_len};
use crate::log_prob::{Logit, SoftmaxOptions};
use crate::rng::Draw;
use crate::tokens::Token;

mod cpu;
mod gpu;

/// 1 in the integers that weights are counted in.
pub(crate) const ONE: f32 = (1u64 << 40) as f32;

/// Which tokens are left out; the temperature is the inverse of [`SoftmaxOptions::scale`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truncation {
    /// Keep the k tokens of largest logit; none: all.
    pub top_k: Option<u32>,
    /// Keep the most probable tokens up to this share of what top-k left, in (0, 1]; 1: all.
    pub top_p: f32,
    /// Keep tokens of at least this share of the largest probability, in [0, 1]; 0: all.
    pub min_p: f32,
}

impl Default for Truncation {
    /// Nothing is left out.
    fn default() -> Self {
        Truncation { top_k: None, top_p: 1.0, min_p: 0.0 }
    }
}

impl Truncation {
    fn check(&self) -> Result<()> {
        if self.top_k == Some(0) {
            return Err(Error::argument("top-k", "1 token or more", 0));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::argument("top-p", "above 0, up to 1", self.top_p));
        }
        if (0.0..=1.0).contains(&self.min_p) { Ok(()) } else { Err(Error::argument("min-p", "0 to 1", self.min_p)) }
    }

    /// What min-p asks of logit − max: computed once for both backends.
    pub(crate) fn lowest(&self, scale: f32) -> f32 {
        (f64::from(self.min_p).ln() / f64::from(scale)) as f32
    }

    /// Whether anything may be left out.
    pub(crate) fn is_some(&self, vocab: usize) -> bool {
        self.top_k.is_some_and(|k| (k as usize) < vocab) || self.top_p < 1.0 || self.min_p > 0.0
    }
}

/// Where the rows' uniforms come from: row i is at `position` of sequence `draw.first + i`, or, with `rows`, of sequence
/// `draw.first + rows[i]`, as where finished sequences have left the batch.
pub struct Uniforms<'a, B: Memory> {
    /// Key, purpose and first sequence.
    pub draw: Draw,
    /// The position within all sequences.
    pub position: u32,
    /// `[rows]`.
    pub rows: Option<B::View<'a, u32>>,
}

/// What [`sample`] writes.
pub struct Sampled<'a, B: Memory> {
    /// The tokens, `[rows]`.
    pub tokens: B::ViewMut<'a, Token>,
    /// Log-probs of the tokens under the truncated and renormalised distribution, `[rows]`.
    pub log_q: B::ViewMut<'a, f32>,
    /// 1 where truncation left out a token that the mask allows and whose logit is above −∞: part of P's support may then
    /// be out of reach of q. Other rows' flags are left as they are, so that they gather over the steps. `[rows]`.
    pub unreachable: B::ViewMut<'a, u32>,
}

/// The kernel of this stage.
pub trait SamplingKernel: Memory {
    /// See [`sample`]; shapes and options are already checked, values are not.
    fn sample<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        truncation: &Truncation,
        vocab: usize,
        logits: Self::View<'_, T>,
        uniforms: &Uniforms<'_, Self>,
        out: Sampled<'_, Self>,
    ) -> Result<()>;
}

/// Draws one token for each row of `logits` (`[rows, vocab]`) from its softmax with what `truncation` leaves.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::log_prob::SoftmaxOptions;
/// use ebm_dpg::rng::{Draw, Purpose};
/// use ebm_dpg::sampling::{Sampled, Truncation, Uniforms, sample};
///
/// let logits = [0.0f32, 1.0, 3.0, 3.0];
/// let truncation = Truncation { top_k: Some(2), ..Truncation::default() };
/// let uniforms = Uniforms::<Cpu> { draw: Draw::new(1, Purpose::User), position: 0, rows: None };
/// let (mut tokens, mut log_q, mut unreachable) = ([0], [0.0], [0]);
/// let out = Sampled::<Cpu> { tokens: &mut tokens, log_q: &mut log_q, unreachable: &mut unreachable };
/// sample(&Cpu, &SoftmaxOptions::default(), &truncation, 4, &logits[..], &uniforms, out)?;
/// assert!(tokens[0] >= 2 && (log_q[0] - 0.5f32.ln()).abs() < 1e-6 && unreachable == [1]);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit, options outside their ranges; on the host also a row without a softmax, which is named: nothing
/// is written then. On a device such a row's log q is NaN and its token 0. No rows are a no-op.
pub fn sample<B: Backend + SamplingKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    truncation: &Truncation,
    vocab: usize,
    logits: B::View<'_, T>,
    uniforms: &Uniforms<'_, B>,
    out: Sampled<'_, B>,
) -> Result<()> {
    let rows = B::view_mut_len(&out.tokens);
    softmax.check(vocab, rows, B::view_len(&logits))?;
    truncation.check()?;
    expect_len("log q", rows, B::view_mut_len(&out.log_q))?;
    expect_len("flags of what is unreachable", rows, B::view_mut_len(&out.unreachable))?;
    uniforms.rows.as_ref().map_or(Ok(()), |numbers| expect_len("numbers of the rows", rows, B::view_len(numbers)))?;
    if rows == 0 { Ok(()) } else { backend.sample(softmax, truncation, vocab, logits, uniforms, out) }
}
