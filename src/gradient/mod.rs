//! The gradient of a weighted sum of log-probs with respect to the logits, in place.

use rayon::prelude::*;

use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::log_prob::{LogSoftmax, Logit, SoftmaxOptions, check_row, check_shape, rows_per_task};
use crate::tokens::Token;

mod gpu;
mod sequences;

pub use sequences::{Scores, Sequences, sequence_gradient};

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
    check_shape(vocab, rows, B::view_mut_len(&logits))?;
    expect_len("weights", rows, B::view_len(&weights))?;
    expect_len("log-probs", rows, B::view_mut_len(&log_probs))?;
    softmax.check(vocab)?;
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
        let least = rows_per_task(vocab);
        let given = || tokens.par_iter().zip(weights).with_min_len(least);
        let fault = |room: &mut Vec<f32>, (at, ((&token, &weight), row)): (usize, ((&Token, &f32), &[T]))| {
            if !weight.is_finite() {
                return Some(Error::not_a_number("weight", format_args!("row {at} ({weight})")));
            }
            let check = |row| check_row(row, token, format_args!("row {at}")).err();
            if weight == 0.0 { None } else { check(softmax.row(row, room)) }
        };
        let rows = given().zip(logits.par_chunks_exact(vocab)).enumerate();
        if let Some(error) = rows.map_init(Vec::new, fault).find_map_first(|error| error) {
            return Err(error);
        }
        given()
            .zip(logits.par_chunks_exact_mut(vocab))
            .zip(log_probs)
            .for_each_init(Vec::new, |room, (((&token, &weight), row), log_prob)| {
                *log_prob = row_gradient(softmax, token, weight, row, room)
            });
        Ok(())
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

/// One row in place; returns its log-prob.
fn row_gradient<T: Logit>(
    softmax: &SoftmaxOptions<'_, Cpu>,
    token: Token,
    weight: f32,
    row: &mut [T],
    room: &mut Vec<f32>,
) -> f32 {
    if weight == 0.0 {
        row.fill(T::default());
        return f32::NAN;
    }
    let logits = softmax.row(row, room);
    let (of, token) = (LogSoftmax::scaled(logits, softmax.scale), token as usize);
    let (log_prob, weight) = (of.at(logits[token]), f64::from(weight) * f64::from(softmax.scale));
    for at in 0..row.len() {
        // A row that is f32 already has no copy in `room`.
        let logit = if room.is_empty() { row[at].to_f32() } else { room[at] };
        row[at] = T::from_f32((-weight * of.at(logit).exp()) as f32);
    }
    // 1 − p without cancellation where p is near 1.
    row[token] = T::from_f32((-weight * log_prob.exp_m1()) as f32);
    log_prob as f32
}
