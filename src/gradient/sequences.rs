//! Gradients whose coefficient is a function of the log-prob of the whole sequence: baselines and f-divergences.

use super::{Divergence, GradientKernel};
use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::log_prob::{Logit, RowScore, Softmax, SoftmaxOptions, check_offsets, score, write_gradients};
use crate::tokens::Token;

/// Sequences as ranges of rows, with what the coefficient of each is made of.
pub struct Sequences<'a, B: Memory> {
    /// Sequence s has rows `offsets[s]..offsets[s + 1]`, `[sequences + 1]`.
    pub offsets: B::View<'a, u64>,
    /// The coefficient of each.
    pub coefficient: Coefficient<'a, B>,
}

/// The coefficient a of a sequence's gradient a·∇log π: a constant of the step, no gradient flows through it.
#[non_exhaustive]
pub enum Coefficient<'a, B: Memory> {
    /// The weight. A sequence of weight 0 is not read: its gradient is 0, its log-probs NaN.
    Given {
        /// `[sequences]`.
        weights: B::View<'a, f32>,
    },
    /// weight − baseline·π/q.
    Baseline {
        /// Such as P/(q·Ẑ), `[sequences]`.
        weights: B::View<'a, f32>,
        /// log q, `[sequences]`.
        log_q: B::View<'a, f64>,
        /// What π/q is multiplied by: 1 for the baseline of importance-weighted DPG.
        baseline: f64,
    },
    /// −(π/q)·(f′(π/p) − c), see [`Divergence::coefficient`]. A sequence of log p = −∞ is not read where that makes the
    /// coefficient 0, and an error where it does not.
    Divergence {
        /// Which.
        divergence: Divergence,
        /// log p = log P − log Z, `[sequences]`.
        log_p: B::View<'a, f64>,
        /// log q, `[sequences]`.
        log_q: B::View<'a, f64>,
    },
}

impl<B: Memory> Coefficient<'_, B> {
    /// Number of sequences.
    pub(crate) fn count(&self) -> usize {
        match self {
            Coefficient::Given { weights } | Coefficient::Baseline { weights, .. } => B::view_len(weights),
            Coefficient::Divergence { log_p, .. } => B::view_len(log_p),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Coefficient::Given { .. } => Ok(()),
            Coefficient::Baseline { weights, log_q, baseline } => {
                expect_len("log q", B::view_len(weights), B::view_len(log_q))?;
                if baseline.is_finite() {
                    Ok(())
                } else {
                    Err(Error::argument("baseline", "a finite number", baseline))
                }
            }
            Coefficient::Divergence { divergence, log_p, log_q } => {
                expect_len("log q", B::view_len(log_p), B::view_len(log_q))?;
                divergence.check()
            }
        }
    }
}

impl Coefficient<'_, Cpu> {
    /// Whether the coefficient of sequence `s` is 0 whatever its log π.
    fn is_zero(&self, s: usize) -> bool {
        match self {
            Coefficient::Given { weights } => weights[s] == 0.0,
            Coefficient::Baseline { .. } => false,
            Coefficient::Divergence { divergence, log_p, .. } => {
                log_p[s] == f64::NEG_INFINITY && divergence.is_bounded()
            }
        }
    }

    fn of(&self, s: usize, log_pi: f64) -> f64 {
        match self {
            Coefficient::Given { weights } => weights[s].into(),
            // Without a baseline π/q may be beyond all bounds.
            Coefficient::Baseline { weights, baseline, .. } if *baseline == 0.0 => weights[s].into(),
            Coefficient::Baseline { weights, log_q, baseline } => {
                f64::from(weights[s]) - baseline * (log_pi - log_q[s]).exp()
            }
            Coefficient::Divergence { divergence, log_p, log_q } => divergence.coefficient(log_pi, log_p[s], log_q[s]),
        }
    }
}

/// Where the log-probs go.
pub struct Scores<'a, B: Memory> {
    /// log π of each token, `[rows]`; rows that belong to no sequence are left as they are.
    pub log_probs: B::ViewMut<'a, f32>,
    /// log π of each sequence, `[sequences]`.
    pub log_pi: B::ViewMut<'a, f64>,
}

/// Replaces the rows of `logits` (`[rows, vocab]`) that belong to a sequence by a·scale·(onehot(token) − softmax) with
/// the sequence's [`Coefficient`] a. log π is the sum of the sequence's log-probs, found on the device between two passes
/// over its rows.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::gradient::{Coefficient, Scores, Sequences, sequence_gradient};
/// use ebm_dpg::log_prob::SoftmaxOptions;
///
/// let coefficient: Coefficient<'_, Cpu> = Coefficient::Baseline { weights: &[3.0], log_q: &[0.5f64.ln()], baseline: 1.0 };
/// let sequences = Sequences::<Cpu> { offsets: &[0, 2], coefficient };
/// let (mut logits, mut log_probs, mut log_pi) = ([0.0f32; 4], [0.0; 2], [0.0]);
/// let scores = Scores::<Cpu> { log_probs: &mut log_probs, log_pi: &mut log_pi };
/// sequence_gradient(&Cpu, &SoftmaxOptions::default(), 2, &sequences, &[0, 1], &mut logits, scores)?;
/// // π = ¼ and q = ½: a = 3 − ½.
/// assert!(logits.iter().zip([1.25, -1.25, -1.25, 1.25]).all(|(got, want)| (got - want).abs() < 1e-6));
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit, a baseline or an α outside its range; on the host also rows without a softmax, offsets that
/// fall or go beyond the rows, a coefficient that is not finite: nothing is written then.
pub fn sequence_gradient<B: Backend + GradientKernel, T: Logit>(
    backend: &B,
    softmax: &SoftmaxOptions<'_, B>,
    vocab: usize,
    sequences: &Sequences<'_, B>,
    tokens: B::View<'_, Token>,
    logits: B::ViewMut<'_, T>,
    scores: Scores<'_, B>,
) -> Result<()> {
    let (rows, count) = (B::view_len(&tokens), sequences.coefficient.count());
    softmax.check(vocab, rows, B::view_mut_len(&logits))?;
    expect_len("offsets of the sequences", count + 1, B::view_len(&sequences.offsets))?;
    sequences.coefficient.check()?;
    expect_len("log-probs", rows, B::view_mut_len(&scores.log_probs))?;
    expect_len("log-probs of the sequences", count, B::view_mut_len(&scores.log_pi))?;
    if count == 0 { Ok(()) } else { backend.sequence_gradient(softmax, vocab, sequences, tokens, logits, scores) }
}

/// All rows are scored, then all sequences get their coefficients, then all rows are written.
pub(super) fn on_the_cpu<T: Logit>(
    options: &SoftmaxOptions<'_, Cpu>,
    vocab: usize,
    sequences: &Sequences<'_, Cpu>,
    tokens: &[Token],
    logits: &mut [T],
    scores: Scores<'_, Cpu>,
) -> Result<()> {
    let (offsets, coefficient) = (sequences.offsets, &sequences.coefficient);
    check_offsets(offsets, tokens.len())?;
    let rows = |s: usize| offsets[s] as usize..offsets[s + 1] as usize;
    let softmax = Softmax::new(options, vocab);
    // A row outside of all sequences, or in one without a gradient, is not read.
    let mut weights = vec![0.0; tokens.len()];
    (0..coefficient.count()).filter(|&s| !coefficient.is_zero(s)).for_each(|s| weights[rows(s)].fill(1.0));
    let mut found = vec![RowScore::default(); tokens.len()];
    score(options, vocab, logits, tokens, Some(&weights), false, &mut found, |score, _| score)?;
    let log_pi = |s: usize| found[rows(s)].iter().map(|row| f64::from(row.log_prob)).sum();
    let log_pi: Vec<f64> = (0..coefficient.count()).map(log_pi).collect();
    for s in (0..coefficient.count()).filter(|&s| !coefficient.is_zero(s)) {
        let coefficient = coefficient.of(s, log_pi[s]) as f32;
        if !(coefficient * options.scale).is_finite() {
            return Err(Error::not_a_number("coefficient", format!("sequence {s} ({coefficient})")));
        }
        weights[rows(s)].fill(coefficient);
    }
    let all = offsets[0] as usize..offsets[coefficient.count()] as usize;
    if !all.is_empty() {
        let (first, last) = (all.start * softmax.stride, (all.end - 1) * softmax.stride + vocab);
        let logits = &mut logits[first..last];
        write_gradients(&softmax, logits, &tokens[all.clone()], &weights[all.clone()], &found[all.clone()]);
    }
    scores.log_probs[all.clone()].iter_mut().zip(&found[all]).for_each(|(to, row)| *to = row.log_prob);
    scores.log_pi.copy_from_slice(&log_pi);
    Ok(())
}
