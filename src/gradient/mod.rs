//! The gradient of a weighted sum of log-probs with respect to the logits, in place.

use rayon::prelude::*;

use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::log_prob::{LogSoftmax, check_row, check_shape, rows_per_task};
use crate::tokens::Token;

/// The kernel of this stage.
pub trait GradientKernel: Memory {
    /// See [`gradient`]; shapes are already checked, values are not.
    fn gradient(
        &self,
        vocab: usize,
        tokens: Self::View<'_, Token>,
        weights: Self::View<'_, f32>,
        logits: Self::ViewMut<'_, f32>,
        log_probs: Self::ViewMut<'_, f32>,
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
pub fn gradient<B: Backend + GradientKernel>(
    backend: &B,
    vocab: usize,
    tokens: B::View<'_, Token>,
    weights: B::View<'_, f32>,
    logits: B::ViewMut<'_, f32>,
    log_probs: B::ViewMut<'_, f32>,
) -> Result<()> {
    let rows = B::view_len(&tokens);
    check_shape(vocab, rows, B::view_mut_len(&logits))?;
    expect_len("weights", rows, B::view_len(&weights))?;
    expect_len("log-probs", rows, B::view_mut_len(&log_probs))?;
    if rows == 0 { Ok(()) } else { backend.gradient(vocab, tokens, weights, logits, log_probs) }
}

impl GradientKernel for Cpu {
    fn gradient(
        &self,
        vocab: usize,
        tokens: &[Token],
        weights: &[f32],
        logits: &mut [f32],
        log_probs: &mut [f32],
    ) -> Result<()> {
        let least = rows_per_task(vocab);
        let given = || tokens.par_iter().zip(weights).with_min_len(least);
        let fault = |(at, ((&token, &weight), row)): (usize, ((&Token, &f32), &[f32]))| {
            if !weight.is_finite() {
                return Some(Error::not_a_number("weight", format_args!("row {at} ({weight})")));
            }
            if weight == 0.0 { None } else { check_row(row, token, format_args!("row {at}")).err() }
        };
        if let Some(error) = given().zip(logits.par_chunks_exact(vocab)).enumerate().find_map_first(fault) {
            return Err(error);
        }
        given()
            .zip(logits.par_chunks_exact_mut(vocab))
            .zip(log_probs)
            .for_each(|(((&token, &weight), row), log_prob)| *log_prob = row_gradient(token, weight, row));
        Ok(())
    }
}

/// One row in place; returns its log-prob.
fn row_gradient(token: Token, weight: f32, row: &mut [f32]) -> f32 {
    if weight == 0.0 {
        row.fill(0.0);
        return f32::NAN;
    }
    let (softmax, weight, token) = (LogSoftmax::of(row), f64::from(weight), token as usize);
    let log_prob = softmax.at(row[token]);
    row.iter_mut().for_each(|value| *value = (-weight * softmax.at(*value).exp()) as f32);
    // 1 − p without cancellation where p is near 1.
    row[token] = (-weight * log_prob.exp_m1()) as f32;
    log_prob as f32
}
