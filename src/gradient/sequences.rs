//! Gradients whose coefficient depends on the log-prob of the whole sequence: baselines.

use super::{GradientKernel, gradient_with};
use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::log_prob::{Logit, SoftmaxOptions, check_offsets, check_shape, log_prob_with, sequence_sums};
use crate::tokens::Token;

/// Sequences as ranges of rows, with what the coefficient of each is made of.
pub struct Sequences<'a, B: Memory> {
    /// Sequence s has rows `offsets[s]..offsets[s + 1]`, `[sequences + 1]`.
    pub offsets: B::View<'a, u64>,
    /// Weights, such as P/(q·Ẑ), `[sequences]`.
    pub weights: B::View<'a, f32>,
    /// log q, `[sequences]`.
    pub log_q: B::View<'a, f64>,
    /// What π/q is multiplied by: 1 for the baseline of importance-weighted DPG, 0 for none.
    pub baseline: f64,
}

/// Where the log-probs go.
pub struct Scores<'a, B: Memory> {
    /// log π of each token, `[rows]`; rows that belong to no sequence are left as they are.
    pub log_probs: B::ViewMut<'a, f32>,
    /// log π of each sequence, `[sequences]`.
    pub log_pi: B::ViewMut<'a, f64>,
}

/// Replaces the rows of `logits` (`[rows, vocab]`) that belong to a sequence by a·scale·(onehot(token) − softmax) with
/// the sequence's coefficient
///
/// ```text
/// a = weight − baseline · exp(log π − log q)
/// ```
///
/// a constant of the step: no gradient flows through it. log π is the sum of the sequence's log-probs, found on the
/// device between two passes over its rows.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::gradient::{Scores, Sequences, sequence_gradient};
/// use ebm_dpg::log_prob::SoftmaxOptions;
///
/// let sequences = Sequences::<Cpu> { offsets: &[0, 2], weights: &[3.0], log_q: &[0.5f64.ln()], baseline: 1.0 };
/// let (mut logits, mut log_probs, mut log_pi) = ([0.0f32; 4], [0.0; 2], [0.0]);
/// let scores = Scores::<Cpu> { log_probs: &mut log_probs, log_pi: &mut log_pi };
/// sequence_gradient(&Cpu, &SoftmaxOptions::default(), 2, &sequences, &[0, 1], &mut logits, scores)?;
/// // π = ¼ and q = ½: a = 3 − ½.
/// assert!(logits.iter().zip([1.25, -1.25, -1.25, 1.25]).all(|(got, want)| (got - want).abs() < 1e-6));
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit, a baseline that is not finite; on the host also rows without a softmax, offsets that fall or
/// go beyond the rows, a coefficient that is not finite: nothing is written then.
pub fn sequence_gradient<B: Backend + GradientKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    vocab: usize,
    sequences: &Sequences<'_, B>,
    tokens: B::View<'_, Token>,
    logits: B::ViewMut<'_, T>,
    scores: Scores<'_, B>,
) -> Result<()> {
    let (rows, count) = (B::view_len(&tokens), B::view_len(&sequences.weights));
    check_shape(vocab, rows, B::view_mut_len(&logits))?;
    expect_len("offsets of the sequences", count + 1, B::view_len(&sequences.offsets))?;
    expect_len("log q", count, B::view_len(&sequences.log_q))?;
    expect_len("log-probs", rows, B::view_mut_len(&scores.log_probs))?;
    expect_len("log-probs of the sequences", count, B::view_mut_len(&scores.log_pi))?;
    softmax.check(vocab)?;
    if !sequences.baseline.is_finite() {
        return Err(Error::argument("baseline", "a finite number", sequences.baseline));
    }
    if count == 0 { Ok(()) } else { backend.sequence_gradient(softmax, vocab, sequences, tokens, logits, scores) }
}

/// One stage after the other.
pub(super) fn on_the_cpu<T: Logit>(
    softmax: &SoftmaxOptions<'_, Cpu>,
    vocab: usize,
    sequences: &Sequences<'_, Cpu>,
    tokens: &[Token],
    logits: &mut [T],
    scores: Scores<'_, Cpu>,
) -> Result<()> {
    check_offsets(sequences.offsets, tokens.len())?;
    let (first, last) = (sequences.offsets[0] as usize, sequences.offsets[sequences.weights.len()] as usize);
    let (tokens, logits) = (&tokens[first..last], &mut logits[first * vocab..last * vocab]);
    let (mut log_probs, mut log_pi) = (vec![0.0; tokens.len()], vec![0.0; sequences.weights.len()]);
    let offsets: Vec<u64> = sequences.offsets.iter().map(|offset| offset - sequences.offsets[0]).collect();
    log_prob_with(&Cpu, softmax, vocab, &*logits, tokens, &mut log_probs)?;
    sequence_sums(&Cpu, &offsets, &log_probs, &mut log_pi)?;
    let mut coefficients = vec![0.0; tokens.len()];
    for (s, rows) in offsets.windows(2).enumerate() {
        // Without a baseline π/q may be beyond all bounds.
        let ratio = if sequences.baseline == 0.0 { 0.0 } else { (log_pi[s] - sequences.log_q[s]).exp() };
        let coefficient = (f64::from(sequences.weights[s]) - sequences.baseline * ratio) as f32;
        if !coefficient.is_finite() {
            return Err(Error::not_a_number("weight", format!("row {s}")));
        }
        coefficients[rows[0] as usize..rows[1] as usize].fill(coefficient);
    }
    gradient_with(&Cpu, softmax, vocab, tokens, &coefficients, logits, &mut vec![0.0; tokens.len()])?;
    scores.log_probs[first..last].copy_from_slice(&log_probs);
    scores.log_pi.copy_from_slice(&log_pi);
    Ok(())
}
