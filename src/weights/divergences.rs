//! f-divergences between the target and a policy, from one sample of q.

use super::{Estimate, ImportanceWeights};
use crate::error::Result;
use crate::gradient::Divergence;

impl ImportanceWeights<'_> {
    /// D_f between p and π, see [`Divergence`], from log π of the same rows: E_q[v·f(u/v)] with f(1) = f′(1) = 0, so that
    /// every term is ≥ 0 and the error of Ẑ enters at second order. JS is in 0..=ln 2.
    ///
    /// Its influence function is term − D − E\[v·∂term/∂v\]·(v − 1). Where π leaves the support of p, D is +∞ for the
    /// divergences that are not bounded; [`ImportanceWeights::with_outside`] puts π(P = 0)·f(∞)/∞ in the place of rows with
    /// P = 0.
    ///
    /// # Errors
    /// A bad α, another number of rows, a log π that is NaN or +∞.
    pub fn divergence_to(&self, divergence: Divergence, log_pi: &[f64]) -> Result<Estimate> {
        divergence.check()?;
        match divergence {
            Divergence::ForwardKl | Divergence::Alpha(0.0) => return self.kl_to(log_pi),
            Divergence::TotalVariation => return self.tv_to(log_pi),
            _ => {}
        }
        let log_u = self.log_ratio(log_pi)?;
        let outside = self.outside;
        let of = |row: usize| {
            let v = self.v[row];
            if v == 0.0 && outside.is_some() { (0.0, 0.0) } else { term(divergence, v, log_u[row], self.log_v[row]) }
        };
        let inside = self.plug_in(|row| of(row).0, |row| of(row).1);
        Ok(match outside {
            // 0·∞: nothing outside costs nothing.
            Some(outside) if outside.value == 0.0 && beyond(divergence).is_infinite() => inside,
            Some(outside) => inside.plus(outside.scaled(beyond(divergence))),
            None => inside,
        })
    }
}

/// lim f(t)/t for t → ∞: what a unit of π's mass outside of p's support adds.
fn beyond(divergence: Divergence) -> f64 {
    match divergence {
        Divergence::JensenShannon => 0.5 * std::f64::consts::LN_2,
        Divergence::ForwardChiSquare => 1.0,
        Divergence::Alpha(alpha) if alpha < 1.0 => 1.0 / (1.0 - alpha),
        _ => f64::INFINITY,
    }
}

/// v·f(u/v) and its slope v·∂/∂v, for v ≥ 0 and u ≥ 0.
fn term(divergence: Divergence, v: f64, log_u: f64, log_v: f64) -> (f64, f64) {
    let u = log_u.exp();
    if v == 0.0 {
        return (if u == 0.0 { 0.0 } else { beyond(divergence) * u }, 0.0);
    }
    // x log y with 0 log 0 = 0.
    let times_log = |x: f64, y: f64| if x == 0.0 { 0.0 } else { x * y };
    match divergence {
        // u log(u/v) − u + v.
        Divergence::ReverseKl => ((times_log(u, log_u - log_v) - u + v).max(0.0), v - u),
        // ½ v log(v/m) + ½ u log(u/m), m = (u + v)/2.
        Divergence::JensenShannon => {
            let log_m = (0.5 * (u + v)).ln();
            let (of_v, of_u) = (0.5 * v * (log_v - log_m), 0.5 * times_log(u, log_u - log_m));
            ((of_v + of_u).max(0.0), of_v)
        }
        // (v − u)²/u; +∞ where u = 0.
        Divergence::ForwardChiSquare => ((v - u) * (v - u) / u, 2.0 * v * (v - u) / u),
        // (u − v)²/v.
        Divergence::ReverseChiSquare => ((u - v) * (u - v) / v, (v - u) * (v + u) / v),
        // (u^α v^(1−α) − α u − (1 − α) v)/(α(α − 1)).
        Divergence::Alpha(alpha) => {
            let power = (alpha * log_u + (1.0 - alpha) * log_v).exp();
            let value = (power - alpha * u - (1.0 - alpha) * v) / (alpha * (alpha - 1.0));
            (value.max(0.0), (v - power) / alpha)
        }
        Divergence::ForwardKl | Divergence::TotalVariation => unreachable!("estimated by functions of their own"),
    }
}
