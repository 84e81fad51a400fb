//! Log-probs of given tokens from rows of logits: log-softmax, gathered at the token.

use std::fmt::Display;

use rayon::prelude::*;

use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::tokens::Token;

mod cpu;
mod gpu;
mod logit;
mod sequences;

pub(crate) use cpu::{RowScore, Softmax, gradients, score, write_gradients};
pub(crate) use gpu::Team;
pub use logit::{Logit, SoftmaxOptions};
pub(crate) use sequences::check_offsets;
pub use sequences::sequence_sums;

/// Rows that one task of the thread pool is worth where each is a number or two.
const ROWS_PER_TASK: usize = 4096;

/// The kernels of this stage.
pub trait LogProbKernel: Memory {
    /// See [`log_prob_with`] and [`log_prob_entropy`]; shapes and options are already checked, values are not.
    fn log_prob<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Self>,
        vocab: usize,
        logits: Self::View<'_, T>,
        tokens: Self::View<'_, Token>,
        log_probs: Self::ViewMut<'_, f32>,
        entropies: Option<Self::ViewMut<'_, f32>>,
    ) -> Result<()>;

    /// See [`sequence_sums`]; shapes are already checked, values are not.
    fn sequence_sums(
        &self,
        offsets: Self::View<'_, u64>,
        log_probs: Self::View<'_, f32>,
        sums: Self::ViewMut<'_, f64>,
    ) -> Result<()>;
}

/// The log-prob of one token per row, log softmax(logits) at the token, in nats: `logits` is `[rows, vocab]`, `tokens`
/// and `log_probs` are `[rows]`.
///
/// Within max(2e-6, 1 ulp) of exact arithmetic on the same logits, never above 0, and independent of the other rows. A
/// logit of −∞ is a token of probability 0; a log-prob below the range of f32 becomes −∞ too.
///
/// ```
/// use ebm_dpg::{backend::Cpu, log_prob::log_prob};
///
/// let mut log_probs = [0.0];
/// log_prob(&Cpu, 2, &[0.0, 3f32.ln()], &[1], &mut log_probs)?;
/// assert!((log_probs[0] - 0.75f32.ln()).abs() < 1e-6);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit; on the host also a NaN or +∞ logit, a row of −∞ only, a token outside the vocabulary, each
/// naming the first such row. Nothing is written then. No rows are a no-op.
pub fn log_prob<B: Backend + LogProbKernel, T: Logit>(
    backend: &B,
    vocab: usize,
    logits: B::View<'_, T>,
    tokens: B::View<'_, Token>,
    log_probs: B::ViewMut<'_, f32>,
) -> Result<()> {
    log_prob_with(backend, &SoftmaxOptions::default(), vocab, logits, tokens, log_probs)
}

/// [`log_prob`] of softmax(scale·logits) over the tokens that a mask allows, of rows that may have gaps between them.
///
/// # Errors
/// As there, and options outside their range. A row whose allowed logits are all −∞ counts as one of −∞ only.
pub fn log_prob_with<B: Backend + LogProbKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    vocab: usize,
    logits: B::View<'_, T>,
    tokens: B::View<'_, Token>,
    log_probs: B::ViewMut<'_, f32>,
) -> Result<()> {
    let rows = B::view_len(&tokens);
    softmax.check(vocab, rows, B::view_len(&logits))?;
    expect_len("log-probs", rows, B::view_mut_len(&log_probs))?;
    if rows == 0 { Ok(()) } else { backend.log_prob(softmax, vocab, logits, tokens, log_probs, None) }
}

/// [`log_prob_with`], and from the same pass the entropy −Σ p log p of each row's softmax in nats, `[rows]`: within 2e-6
/// (1 + H) of exact arithmetic, from 0 to log V.
///
/// ```
/// use ebm_dpg::{backend::Cpu, log_prob::{SoftmaxOptions, log_prob_entropy}};
///
/// let (mut log_probs, mut entropies) = ([0.0], [0.0]);
/// let options = SoftmaxOptions::default();
/// log_prob_entropy(&Cpu, &options, 4, &[1.0f32; 4][..], &[2], &mut log_probs, &mut entropies)?;
/// assert!((entropies[0] - 4f32.ln()).abs() < 1e-6);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// As there; the entropies' length.
pub fn log_prob_entropy<B: Backend + LogProbKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    vocab: usize,
    logits: B::View<'_, T>,
    tokens: B::View<'_, Token>,
    log_probs: B::ViewMut<'_, f32>,
    entropies: B::ViewMut<'_, f32>,
) -> Result<()> {
    let rows = B::view_len(&tokens);
    softmax.check(vocab, rows, B::view_len(&logits))?;
    expect_len("log-probs", rows, B::view_mut_len(&log_probs))?;
    expect_len("entropies", rows, B::view_mut_len(&entropies))?;
    if rows == 0 { Ok(()) } else { backend.log_prob(softmax, vocab, logits, tokens, log_probs, Some(entropies)) }
}

impl LogProbKernel for Cpu {
    fn log_prob<T: Logit>(
        &self,
        softmax: &SoftmaxOptions<'_, Cpu>,
        vocab: usize,
        logits: &[T],
        tokens: &[Token],
        log_probs: &mut [f32],
        entropies: Option<&mut [f32]>,
    ) -> Result<()> {
        // Nothing is written before all rows are known to be good.
        let Some(entropies) = entropies else {
            let mut found = vec![0.0; tokens.len()];
            score(softmax, vocab, logits, tokens, None, false, &mut found, |row, _| row.log_prob)?;
            log_probs.par_chunks_mut(ROWS_PER_TASK).zip(found.par_chunks(ROWS_PER_TASK)).for_each(|(to, found)| {
                to.copy_from_slice(found);
            });
            return Ok(());
        };
        let mut found = vec![[0.0; 2]; tokens.len()];
        let keep = |row: RowScore, entropy| [row.log_prob, entropy];
        score(softmax, vocab, logits, tokens, None, true, &mut found, keep)?;
        log_probs.iter_mut().zip(&found).for_each(|(to, found)| *to = found[0]);
        entropies.iter_mut().zip(&found).for_each(|(to, found)| *to = found[1]);
        Ok(())
    }

    fn sequence_sums(&self, offsets: &[u64], log_probs: &[f32], sums: &mut [f64]) -> Result<()> {
        sequences::check_offsets(offsets, log_probs.len())?;
        for (rows, sum) in offsets.windows(2).zip(sums) {
            *sum = log_probs[rows[0] as usize..rows[1] as usize].iter().copied().map(f64::from).sum();
        }
        Ok(())
    }
}

/// What a row's log-softmax subtracts from a logit, in f64 throughout: for models that sum log-probs in f64.
#[derive(Clone, Copy)]
pub(crate) struct LogSoftmax {
    max: f64,
    /// log Σ exp(logit − max): at least 0, since the largest logit adds exactly 1.
    log_total: f64,
}

impl LogSoftmax {
    /// The log-softmax of a row that [`check_logits`] accepts, summed in order in f64.
    pub(crate) fn of(row: &[f32]) -> Self {
        let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total: f64 = row.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        LogSoftmax { max, log_total: total.ln() }
    }

    /// The log-prob of a token with this logit, never above 0.
    #[inline]
    pub(crate) fn at(self, logit: f32) -> f64 {
        f64::from(logit) - self.max - self.log_total
    }
}

/// `Ok` where a row of logits has a softmax and `token` is in it; `place` names the row.
pub(crate) fn check_row(row: &[f32], token: Token, place: impl Display) -> Result<()> {
    if token as usize >= row.len() {
        return Err(Error::argument(format!("token of {place}"), format!("below {}", row.len()), token));
    }
    check_logits("logits", row, place)
}

/// `Ok` where a row of logits has a softmax: no NaN, no +∞, not all −∞. `what` and `place` name it.
pub(crate) fn check_logits(what: &str, row: &[f32], place: impl Display) -> Result<()> {
    // No early exit, so that the good case is one vectorised sweep; NaN fails the first comparison.
    let (below, above) = row.iter().fold((true, false), |(below, above), &logit| {
        (below & (logit < f32::INFINITY), above | (logit > f32::NEG_INFINITY))
    });
    if !below {
        let token = row.iter().position(|&logit| logit.is_nan() || logit == f32::INFINITY).expect("not below +∞");
        return Err(Error::not_a_number(what, format!("{place}, token {token} ({})", row[token])));
    }
    if !above {
        return Err(Error::argument(format!("{what} of {place}"), "one above −∞", "−∞ for all tokens"));
    }
    Ok(())
}
