//! Weights of draws that continue several contexts.

use super::LogMean;
use crate::error::Result;

/// log Ẑ_c, the log of the mean weight, of each context up to the last in `context`; −∞ where it has no row of positive
/// weight. log P, log q and the number of the context are `[rows]`.
///
/// # Errors
/// A log-weight that is NaN or +∞.
pub(crate) fn log_z_by_context(log_p: &[f64], log_q: &[f64], context: &[u32]) -> Result<Vec<f64>> {
    let mut means = vec![LogMean::new(); context.iter().max().map_or(0, |&last| last as usize + 1)];
    for (row, &context) in context.iter().enumerate() {
        means[context as usize].push(&[log_p[row] - log_q[row]])?;
    }
    Ok(means.iter().map(LogMean::value).collect())
}

/// log P less the log Ẑ of its context, so that all contexts weigh alike; −∞ where that is not known.
pub(crate) fn within_contexts(log_p: &[f64], context: &[u32], log_z: &[f64]) -> Vec<f64> {
    let within = |(log_p, &context): (&f64, &u32)| match log_z[context as usize] {
        f64::NEG_INFINITY => f64::NEG_INFINITY,
        log_z => log_p - log_z,
    };
    log_p.iter().zip(context).map(within).collect()
}
