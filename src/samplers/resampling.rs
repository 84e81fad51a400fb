//! Which of weighted samples live on, and how often.

use super::{Attempts, Proposal, SamplerOptions, Samples, room};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::Sampler;
use crate::rng::{Draw, Purpose};
use crate::weights::{ImportanceWeights, log_sum_exp};

/// How `count` survivors are drawn in proportion to weights. Every scheme is unbiased: row i survives count·v_i times in
/// the mean, v = w/Σw. (Douc & Cappé 2005, "Comparison of resampling schemes for particle filtering".)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resampling {
    /// Independent draws.
    Multinomial,
    /// One draw in each of `count` equal strata.
    Stratified,
    /// One uniform for all strata: the least noise, count·v_i rounded down or up.
    Systematic,
    /// ⌊count·v_i⌋ times each for certain, the rest multinomial over what is left.
    Residual,
}

impl Resampling {
    /// The survivors' rows, ascending, `[count]`. `log_w` may hold −∞; the uniforms come from rows 0.. of `draw` at
    /// `position`.
    ///
    /// # Errors
    /// A NaN or +∞ among the weights, all of them zero.
    pub fn survivors(self, log_w: &[f64], count: usize, draw: Draw, position: u32) -> Result<Vec<u32>> {
        if let Some(row) = log_w.iter().position(|log_w| log_w.is_nan() || *log_w == f64::INFINITY) {
            return Err(Error::not_a_number("log-weight", format!("row {row} ({})", log_w[row])));
        }
        let total = log_sum_exp(log_w);
        if total == f64::NEG_INFINITY {
            return Err(Error::no_answer("resampling", format!("all {} weights are zero", log_w.len())));
        }
        let uniform = |at: usize| draw.fine_uniform(at as u64, position, 5);
        let shares = log_w.iter().map(|log_w| (log_w - total).exp());
        let n = count as f64;
        let points: Vec<f64> = match self {
            Resampling::Stratified => (0..count).map(|at| (at as f64 + uniform(at)) / n).collect(),
            Resampling::Systematic => (0..count).map(|at| (at as f64 + uniform(0)) / n).collect(),
            Resampling::Multinomial => sorted(count, uniform),
            Resampling::Residual => {
                let certain: Vec<f64> = shares.clone().map(|share| (n * share).floor()).collect();
                let rest = count - certain.iter().sum::<f64>() as usize;
                let left: Vec<f64> = shares.zip(&certain).map(|(share, certain)| n * share - certain).collect();
                let mut survivors: Vec<u32> = invert(left.into_iter(), &sorted(rest, uniform));
                let repeated =
                    certain.iter().enumerate().flat_map(|(row, &k)| (0..k as usize).map(move |_| row as u32));
                survivors.extend(repeated);
                survivors.sort_unstable();
                return Ok(survivors);
            }
        };
        Ok(invert(shares, &points))
    }
}

fn sorted(count: usize, uniform: impl Fn(usize) -> f64) -> Vec<f64> {
    let mut points: Vec<f64> = (0..count).map(uniform).collect();
    points.sort_unstable_by(f64::total_cmp);
    points
}

/// The row in whose part of the cumulated weights each of the ascending `points` in [0, 1) falls.
fn invert(weights: impl Iterator<Item = f64> + Clone, points: &[f64]) -> Vec<u32> {
    let total: f64 = weights.clone().sum();
    let (mut rows, mut cumulated) = (Vec::with_capacity(points.len()), 0.0);
    let mut last = 0;
    for (row, weight) in weights.enumerate() {
        // A row of weight 0 is never chosen, not even by a point that rounding left over.
        if weight > 0.0 {
            last = row as u32;
            cumulated += weight;
            while rows.len() < points.len() && points[rows.len()] * total < cumulated {
                rows.push(last);
            }
        }
    }
    rows.resize(points.len(), last);
    rows
}

/// Sampling-importance-resampling (Rubin 1987): all of the budget is drawn, and `samples` of the draws survive in
/// proportion to their weights. A draw may come up more than once; the more draws beside samples, the rarer. The
/// samples come in the order of their draws.
///
/// # Errors
/// Counts of zero, no draw of positive weight, and what the models say.
pub fn importance_resampling<B: Backend, R: Sampler<B>, Q: Sampler<B>>(
    backend: &B,
    proposal: &mut Proposal<'_, '_, B, R, Q>,
    resampling: Resampling,
    options: &SamplerOptions,
) -> Result<Samples> {
    options.check()?;
    let whole = options.attempts.div_ceil(options.batch as u64) as usize * options.batch;
    let mut pool = Samples::new(proposal.space(), whole)?;
    let mut log_w: Vec<f64> = room(whole, "log-weights of the draws")?;
    log_w.clear();
    let mut attempts = Attempts::new(backend, proposal, options)?;
    while let Some(drawn) = attempts.next()? {
        for (row, &weight) in drawn.log_w.iter().enumerate().filter(|(_, weight)| **weight > f64::NEG_INFINITY) {
            pool.push(&drawn, row)?;
            log_w.push(weight);
        }
    }
    pool.attempts = attempts.spent;
    if log_w.is_empty() {
        let reason = format!("not one of {} draws has a positive weight", pool.attempts);
        return Err(Error::no_answer("importance resampling", reason));
    }
    let zeros = vec![0.0; log_w.len()];
    let weights = ImportanceWeights::new(&log_w, &zeros)?;
    let draw = Draw { purpose: Purpose::Resample, ..options.draw };
    let mut samples = pool.select(&resampling.survivors(&log_w, options.samples, draw, 0)?)?;
    samples.acceptance = weights.ess() / pool.attempts as f64;
    samples.warnings.extend(weights.warning());
    if weights.ess() < options.samples as f64 {
        samples.warnings.push(format!(
            "the effective sample size {:.0} is below the {} samples: they repeat each other",
            weights.ess(),
            options.samples
        ));
    }
    Ok(samples)
}
