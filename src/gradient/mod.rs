//! The gradient of a weighted sum of log-probs with respect to the logits, in place.

use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Result, expect_len};
use crate::log_prob::{Logit, SoftmaxOptions, gradients};
use crate::tokens::Token;

mod divergence;
mod gpu;
mod sequences;

pub use divergence::Divergence;
pub use sequences::{Coefficient, Scores, Sequences, sequence_gradient};

/// The kernels of this stage.
pub trait GradientKernel: Memory {
    /// See [`gradient_with`]; shapes and options are already checked, values are not.
    fn gradient<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        tokens: Self::View<'_, Token>,
        weights: Self::View<'_, f32>,
        logits: Self::ViewMut<'_, T>,
        log_probs: Self::ViewMut<'_, f32>,
    ) -> Result<()>;

    /// See [`sequence_gradient`]; shapes and options are already checked, values are not.
    fn sequence_gradient<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        sequences: &Sequences<'_, Self>,
        tokens: Self::View<'_, Token>,
        logits: Self::ViewMut<'_, T>,
        scores: Scores<'_, Self>,
    ) -> Result<()>;
}

/// Replaces each row of `logits` (`[rows, vocab]`) by w·(onehot(token) − softmax), the direction in which w·log-prob
/// ascends, and writes the row's log-prob, as [`log_prob`](crate::log_prob::log_prob) gives it, to `log_probs`
/// (`[rows]`) from the same pass. `tokens` and `weights` are `[rows]`; a weight is a constant, no gradient flows
/// through it.
///
/// A row of weight 0 is not read, neither its logits nor its token: its gradient is 0, its log-prob NaN.
///
/// On a GPU a row of more than 1024 logits is added up in another order than there: its log-prob is as accurate, but not
/// always the same bits.
///
/// ```
/// use ebm_dpg::{backend::Cpu, gradient::gradient};
///
/// let mut logits = [0.0, 0.0, 5.0, 6.0];
/// let mut log_probs = [0.0; 2];
/// gradient(&Cpu, 2, &[1, 0], &[3.0, 0.0], &mut logits, &mut log_probs)?;
/// assert_eq!(logits, [-1.5, 1.5, 0.0, 0.0]);
/// assert!(log_probs[0] == 0.5f32.ln() && log_probs[1].is_nan());
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit; on the host also a weight that is not finite, and in a row of another weight a NaN or +∞
/// logit, −∞ only, a token outside the vocabulary, each naming the first such row. Nothing is written then. No rows
/// are a no-op.
pub fn gradient<B: Backend + GradientKernel, T: Logit>(
    backend: &B,
    vocab: usize,
    tokens: B::View<'_, Token>,
    weights: B::View<'_, f32>,
    logits: B::ViewMut<'_, T>,
    log_probs: B::ViewMut<'_, f32>,
) -> Result<()> {
    gradient_with(backend, &SoftmaxOptions::default(), vocab, tokens, weights, logits, log_probs)
}

/// [`gradient`] of the log-probs that [`log_prob_with`](crate::log_prob::log_prob_with) gives with the same options:
/// w·scale·(onehot − softmax).
///
/// # Errors
/// As there, and options outside their range.
pub fn gradient_with<B: Backend + GradientKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    vocab: usize,
    tokens: B::View<'_, Token>,
    weights: B::View<'_, f32>,
    logits: B::ViewMut<'_, T>,
    log_probs: B::ViewMut<'_, f32>,
) -> Result<()> {
    let rows = B::view_len(&tokens);
    softmax.check(vocab, rows, B::view_mut_len(&logits))?;
    expect_len("weights", rows, B::view_len(&weights))?;
    expect_len("log-probs", rows, B::view_mut_len(&log_probs))?;
    if rows == 0 { Ok(()) } else { backend.gradient(softmax, vocab, tokens, weights, logits, log_probs) }
}

impl GradientKernel for Cpu {
    fn gradient<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Cpu>,
        vocab: usize,
        tokens: &[Token],
        weights: &[f32],
        logits: &mut [T],
        log_probs: &mut [f32],
    ) -> Result<()> {
        // Two reads of the logits: nothing is written before all rows are known to be good.
        gradients(softmax, vocab, logits, tokens, weights, log_probs)
    }

    fn sequence_gradient<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Cpu>,
        vocab: usize,
        sequences: &Sequences<'_, Cpu>,
        tokens: &[Token],
        logits: &mut [T],
        scores: Scores<'_, Cpu>,
    ) -> Result<()> {
        sequences::on_the_cpu(softmax, vocab, sequences, tokens, logits, scores)
    }
}
