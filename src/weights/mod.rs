//! Importance weights w(x) = P(x)/q(x) in log space, and what is estimated from them.
//!
//! [`weights`] is the kernel of the training step, and [`mix`] that of a proposal with two components;
//! [`ImportanceWeights`] estimates log Z, divergences and moments with their standard errors from one sample of q; [`statistics`](fn@statistics) says less, but of rows that stay on the device;
//! [`LogMean`] accumulates log Ẑ across steps.

use rayon::prelude::*;

use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};

mod bounds;
mod contexts;
mod divergences;
mod estimate;
mod estimates;
mod gpu;
mod log_mean;
mod mixture;
mod pareto;
mod reduce;
mod statistics;

pub use bounds::{LogZBounds, log_z_bounds};
pub(crate) use contexts::{log_z_by_context, within_contexts};
pub use estimate::Estimate;
pub use estimates::{ImportanceWeights, MIN_ESS, cross_entropy, cross_entropy_difference};
pub use log_mean::LogMean;
pub(crate) use mixture::log_mixture;
pub use mixture::mix;
pub use pareto::{PARETO_LIMIT, pareto_k};
pub use reduce::{CHUNK, log_mean_exp, log_sum_exp};
pub(crate) use reduce::{fold_chunks, sums};
pub use statistics::{Divergences, Statistics, StatisticsKernel, Sums, WeightedRows, statistics};

/// The kernels of this stage.
pub trait WeightKernel: Memory {
    /// See [`weights`]; shapes are already checked.
    fn weights(
        &self,
        log_p: Self::View<'_, f64>,
        log_q: Self::View<'_, f64>,
        log_scale: f64,
        log_w: Self::ViewMut<'_, f64>,
        weights: Self::ViewMut<'_, f32>,
    ) -> Result<()>;

    /// See [`mix`]; shapes and shares are already checked.
    fn mix(&self, log_q: Self::ViewMut<'_, f64>, log_other: Self::View<'_, f64>, log_shares: [f64; 2]) -> Result<()>;
}

/// Writes log w = log P − log q and weights = exp(log w − `log_scale`), all `[rows]`.
///
/// A log P of −∞ gives log w = −∞ and weight 0, whatever the finite log q. `log_scale` is usually the running log Ẑ,
/// so that weights are near 1.
///
/// # Errors
/// Lengths that differ, a `log_scale` that is not finite: nothing is written. A row whose log w is NaN or +∞ (q = 0 for
/// a row said to be drawn from q), or whose weight is beyond f32: [`Error::NotANumber`] names the first such row, whose
/// outputs are NaN.
pub fn weights<B: Backend>(
    backend: &B,
    log_p: B::View<'_, f64>,
    log_q: B::View<'_, f64>,
    log_scale: f64,
    log_w: B::ViewMut<'_, f64>,
    weights: B::ViewMut<'_, f32>,
) -> Result<()> {
    let rows = B::view_len(&log_p);
    expect_len("log q", rows, B::view_len(&log_q))?;
    expect_len("log-weights", rows, B::view_mut_len(&log_w))?;
    expect_len("weights", rows, B::view_mut_len(&weights))?;
    if !log_scale.is_finite() {
        return Err(Error::argument("scale of the weights", "a finite logarithm", log_scale));
    }
    backend.weights(log_p, log_q, log_scale, log_w, weights)
}

impl WeightKernel for Cpu {
    fn weights(
        &self,
        log_p: &[f64],
        log_q: &[f64],
        log_scale: f64,
        log_w: &mut [f64],
        weights: &mut [f32],
    ) -> Result<()> {
        let rows = (log_p, log_q).into_par_iter().with_min_len(CHUNK);
        rows.zip(log_w.par_iter_mut().zip(weights.par_iter_mut())).for_each(|((&log_p, &log_q), (log_w, weight))| {
            *log_w = log_p - log_q;
            *weight = (*log_w - log_scale).exp() as f32;
            if !(weight.is_finite() && log_q > f64::NEG_INFINITY) {
                (*log_w, *weight) = (f64::NAN, f32::NAN);
            }
        });
        match log_w.iter().position(|log_w| log_w.is_nan()) {
            None => Ok(()),
            Some(row) => {
                let at = format!("row {row} (log P = {}, log q = {}, scale {log_scale})", log_p[row], log_q[row]);
                Err(Error::not_a_number("importance weight", at))
            }
        }
    }

    fn mix(&self, log_q: &mut [f64], log_other: &[f64], log_shares: [f64; 2]) -> Result<()> {
        mixture::on_cpu(log_q, log_other, log_shares);
        Ok(())
    }
}

/// `Ok` where every log-weight is finite or −∞ and there is at least one.
pub(crate) fn check_log_weights(log_w: &[f64]) -> Result<()> {
    if log_w.is_empty() {
        return Err(Error::no_answer("estimate from importance weights", "no samples; at least one is needed"));
    }
    match log_w.iter().position(|&log_w| log_w.is_nan() || log_w == f64::INFINITY) {
        None => Ok(()),
        Some(row) => Err(Error::not_a_number("log-weight", format!("row {row} ({})", log_w[row]))),
    }
}
