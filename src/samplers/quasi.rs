//! How far quasi-rejection is from p, and what it costs, for each bound: from one sample of weights.

use crate::error::{Error, Result};
use crate::weights::{Estimate, ImportanceWeights, sums};

/// Quasi-rejection under β draws from p_β = min(P, β·q)/Z_β: what that means, estimated from weights of q, before a
/// single sample is drawn (Eikema et al. 2022, equations 3 to 6).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct QuasiRejection {
    /// log β.
    pub log_bound: f64,
    /// The share of draws accepted, Z_β/β = `E_q[min(1, w/β)]`.
    pub acceptance: Estimate,
    /// TV(p, p_β).
    pub tv: Estimate,
    /// KL(p‖p_β) in nats.
    pub kl: Estimate,
}

impl QuasiRejection {
    /// The estimates for one bound; their errors account for Ẑ and Ẑ_β being found on the same rows.
    ///
    /// With a = w/Z and c = min(w, β)/Z_β, both of mean 1 under q: TV = ½ E|a − c|, with influence
    /// t − TV − ½E\[s·a\](a − 1) + ½E\[s·c\](c − 1), s = sgn(a − c); KL = E\[a·ℓ\] + log Z_β − log Z with
    /// ℓ = log w − log min(w, β), with influence a(ℓ − E\[a·ℓ\]) + (c − 1) − (a − 1).
    ///
    /// # Errors
    /// A log β that is not finite.
    pub fn new(weights: &ImportanceWeights<'_>, log_bound: f64) -> Result<Self> {
        if !log_bound.is_finite() {
            return Err(Error::argument("bound of the weights", "a finite logarithm", log_bound));
        }
        let (a, rows) = (weights.normalised(), weights.rows());
        let n = rows as f64;
        // β in units of Ẑ, as the weights are.
        let bound = (log_bound - weights.log_z().value).exp();
        let [total] = sums(rows, |row| [a[row].min(bound)]);
        let mean = total / n;
        let c = |row: usize| a[row].min(bound) / mean;
        let acceptance = total / n / bound;
        let [acceptance_squares] = sums(rows, |row| [((a[row] / bound).min(1.0) - acceptance).powi(2)]);

        let distance = |row: usize| 0.5 * (a[row] - c(row)).abs();
        let sign = |row: usize| if a[row] > c(row) { 1.0 } else { -f64::from(u8::from(a[row] < c(row))) };
        let excess = |row: usize| if a[row] > bound { (a[row] / bound).ln() } else { 0.0 };
        let [tv, slope_a, slope_c, lost] =
            sums(rows, |row| [distance(row), sign(row) * a[row], sign(row) * c(row), a[row] * excess(row)])
                .map(|total| total / n);
        let [tv_squares, kl_squares] = sums(rows, |row| {
            let (a, c) = (a[row], c(row));
            let tv = distance(row) - tv - 0.5 * slope_a * (a - 1.0) + 0.5 * slope_c * (c - 1.0);
            let kl = a * (excess(row) - lost) + c - a;
            [tv * tv, kl * kl]
        });
        Ok(QuasiRejection {
            log_bound,
            acceptance: Estimate::from_influence(acceptance, acceptance_squares, rows),
            tv: Estimate::from_influence(tv.clamp(0.0, 1.0), tv_squares, rows),
            kl: Estimate::from_influence((lost + mean.ln()).max(0.0), kl_squares, rows),
        })
    }
}

/// The trade between cost and distance: `points` bounds with log β evenly spaced from that of the median positive weight
/// to that of the largest, where quasi-rejection is rejection as far as these draws can tell.
///
/// # Errors
/// Fewer than 2 points.
pub fn quasi_rejection_curve(weights: &ImportanceWeights<'_>, points: usize) -> Result<Vec<QuasiRejection>> {
    if points < 2 {
        return Err(Error::argument("points of the curve", "2 or more", points));
    }
    let mut positive: Vec<f64> = weights.normalised().iter().copied().filter(|&v| v > 0.0).collect();
    positive.sort_unstable_by(f64::total_cmp);
    let log_z = weights.log_z().value;
    let (low, high) = (positive[positive.len() / 2].ln() + log_z, positive[positive.len() - 1].ln() + log_z);
    let bound = |point: usize| low + (high - low) * point as f64 / (points - 1) as f64;
    (0..points).map(|point| QuasiRejection::new(weights, bound(point))).collect()
}
