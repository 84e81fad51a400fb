//! Log-probs under a mixture s·q + s′·q′ of two distributions.

use crate::backend::Backend;
use crate::error::{Error, Result, expect_len};
use crate::models::at_most_zero;

/// Replaces log q by log(s·q + s′·q′), both `[rows]`, with `log_shares` = [log s, log s′], s + s′ = 1: what weighs the draws
/// of either component where both have drawn, the s-th part of the rows q and the rest q′ (the balance heuristic of Veach &
/// Guibas 1995, "Optimally combining sampling techniques for Monte Carlo rendering").
///
/// With n of N rows drawn by q, s must be n/N exactly for Σ f/(s·q + s′·q′)/N to be unbiased. Each weight is then at most
/// 1/s of what it would be under q alone, and 1/s′ of what it would be under q′ alone. A row that one component cannot draw
/// (−∞) has the other's share alone; a NaN stays one.
///
/// # Errors
/// Lengths that differ, shares that are not below 1 and above 0: nothing is written.
pub fn mix<B: Backend>(
    backend: &B,
    log_q: B::ViewMut<'_, f64>,
    log_other: B::View<'_, f64>,
    log_shares: [f64; 2],
) -> Result<()> {
    expect_len("log-probs of the other component", B::view_mut_len(&log_q), B::view_len(&log_other))?;
    if let Some(log_share) = log_shares.into_iter().find(|share| !(share.is_finite() && *share < 0.0)) {
        return Err(Error::argument("share of a mixture", "above 0 and below 1", log_share.exp()));
    }
    backend.mix(log_q, log_other, log_shares)
}

/// log(s·q + s′·q′) of one row, shifted by the larger.
pub(crate) fn log_mixture(log_q: f64, log_other: f64, [log_share, log_other_share]: [f64; 2]) -> f64 {
    let (a, b) = (log_share + log_q, log_other_share + log_other);
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    // Neither −∞ − −∞ nor a NaN that a maximum would drop.
    let log_prob = if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() };
    at_most_zero(log_prob)
}

/// The CPU's [`WeightKernel::mix`](super::WeightKernel::mix).
pub(super) fn on_cpu(log_q: &mut [f64], log_other: &[f64], log_shares: [f64; 2]) {
    log_q.iter_mut().zip(log_other).for_each(|(log_q, other)| *log_q = log_mixture(*log_q, *other, log_shares));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Cpu;

    const NONE: f64 = f64::NEG_INFINITY;

    #[test]
    fn far_and_near_log_probs_add() {
        let shares = [0.1_f64.ln(), 0.9_f64.ln()];
        let cases = [(-3.0, -3.0), (-1.0, -40.0), (-40.0, -1.0), (-2.5, -2.4), (0.0, -1.0)];
        for (a, b) in cases {
            let want = (0.1 * f64::exp(a) + 0.9 * f64::exp(b)).ln();
            assert!((log_mixture(a, b, shares) - want).abs() <= 1e-15 * want.abs().max(1.0), "{a} and {b}");
        }
        // Where a plain exponential is 0: log(.1·e⁻²⁰⁰⁰ + .9·e⁻²⁰⁰¹).
        let want = -2000.0 + (0.1 + 0.9 * f64::exp(-1.0)).ln();
        assert!((log_mixture(-2000.0, -2001.0, shares) - want).abs() < 1e-12);
        assert!(log_mixture(0.0, 0.0, shares) <= 0.0);
    }

    #[test]
    fn what_one_component_cannot_draw_and_nan() {
        let shares = [0.25_f64.ln(), 0.75_f64.ln()];
        assert_eq!(log_mixture(NONE, -1.0, shares), 0.75_f64.ln() - 1.0);
        assert_eq!(log_mixture(-1.0, NONE, shares), 0.25_f64.ln() - 1.0);
        assert_eq!(log_mixture(NONE, NONE, shares), NONE);
        for other in [-1.0, NONE, f64::NAN] {
            assert!(log_mixture(f64::NAN, other, shares).is_nan() && log_mixture(other, f64::NAN, shares).is_nan());
        }
    }

    #[test]
    fn bad_shares_and_lengths_write_nothing() {
        let mut log_q = [-1.0, -2.0];
        let half = 0.5_f64.ln();
        for shares in [[0.0, half], [half, NONE], [f64::NAN, half], [half, 0.1]] {
            let error = mix(&Cpu, &mut log_q, &[-1.0, -1.0], shares).unwrap_err().to_string();
            assert!(error.contains("share of a mixture: expected above 0 and below 1"), "{error}");
        }
        assert!(mix(&Cpu, &mut log_q, &[-1.0], [half, half]).is_err());
        assert_eq!(log_q, [-1.0, -2.0]);
        mix(&Cpu, &mut log_q, &[-1.0, NONE], [half, half]).unwrap();
        assert_eq!(log_q, [-1.0, half - 2.0]);
    }
}
