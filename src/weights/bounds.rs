//! Bounds of log Z from both sides, where there are exact samples of p.

use super::{Estimate, check_log_weights, log_mean_exp};
use crate::error::{Error, Result};

/// log Z between a lower and an upper bound in expectation; see [`log_z_bounds`].
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct LogZBounds {
    /// At most log Z in expectation.
    pub lower: Estimate,
    /// At least log Z in expectation, where q draws all that p does.
    pub upper: Estimate,
}

/// Stochastic bounds of log Z (Grosse, Ghahramani & Adams 2015, "Sandwiching the marginal likelihood using bidirectional
/// Monte Carlo"), from log w = log P − log q of draws of q and of exact samples of p, such as rejection accepts:
///
/// ```text
/// E_q log (1/K) Σ w  ≤  log Z  ≤  −E_p log (1/K) Σ 1/w      (Jensen; K draws to a group)
/// ```
///
/// The gap closes as `group` = K grows, but for −log q(P > 0) where q draws what p cannot; of draws that do not fill a group
/// the last are left out. The upper bound needs p's support within q's, which samples alone cannot show.
///
/// ```
/// use ebm_dpg::weights::log_z_bounds;
///
/// // Weights that do not vary leave no gap.
/// let bounds = log_z_bounds(&[-1.5; 8], &[-1.5; 8], 4)?;
/// assert!((bounds.lower.value + 1.5).abs() < 1e-12 && (bounds.upper.value + 1.5).abs() < 1e-12);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// A group of 0, fewer draws than a group, a NaN or +∞; a log w of −∞ among p's samples, which p cannot draw.
pub fn log_z_bounds(log_w_of_q: &[f64], log_w_of_p: &[f64], group: usize) -> Result<LogZBounds> {
    let least = log_w_of_q.len().min(log_w_of_p.len());
    if group == 0 || least < group {
        let expected = format!("1 to {least} draws, those that there are of q and of p");
        return Err(Error::argument("group of the bounds", expected, group));
    }
    check_log_weights(log_w_of_q)?;
    check_log_weights(log_w_of_p)?;
    if let Some(row) = log_w_of_p.iter().position(|log_w| *log_w == f64::NEG_INFINITY) {
        return Err(Error::argument(format!("log-weight {row} of p's samples"), "a sequence that p can draw", "P = 0"));
    }
    let lower: Vec<f64> = log_w_of_q.chunks_exact(group).map(log_mean_exp).collect();
    let inverse: Vec<f64> = log_w_of_p.iter().map(|log_w| -log_w).collect();
    let upper: Vec<f64> = inverse.chunks_exact(group).map(|group| -log_mean_exp(group)).collect();
    Ok(LogZBounds { lower: Estimate::mean(&lower)?, upper: Estimate::mean(&upper)? })
}
