//! The f-divergences that a policy may descend, and the coefficient of a sampled sequence (f-DPG; Go et al. 2023,
//! "Aligning Language Models with Preferences through f-divergence Minimization").

use crate::error::{Error, Result};

/// D_f = Σ_x p f(π/p) between the target p and the policy π.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub enum Divergence {
    /// KL(p‖π): f′(t) = −1/t. The coefficient is p/q, that of plain DPG.
    ForwardKl,
    /// KL(π‖p): f′(t) = log t.
    ReverseKl,
    /// TV(p, π): f′(t) = ½ sgn(t − 1).
    TotalVariation,
    /// JS(p, π): f′(t) = ½ log(2t/(1 + t)).
    JensenShannon,
    /// χ²(p‖π): f′(t) = −t⁻².
    ForwardChiSquare,
    /// χ²(π‖p): f′(t) = 2t.
    ReverseChiSquare,
    /// f′(t) = (t^(α−1) − 1)/(α − 1), for α other than 1, where it is [`Divergence::ReverseKl`].
    Alpha(f64),
}

impl Divergence {
    /// f′(∞) is finite: sequences outside of the support of p have coefficient 0. Elsewhere they are errors.
    pub fn is_bounded(self) -> bool {
        use Divergence::*;
        match self {
            ForwardKl | TotalVariation | JensenShannon | ForwardChiSquare => true,
            ReverseKl | ReverseChiSquare => false,
            Alpha(alpha) => alpha < 1.0,
        }
    }

    /// The coefficient a of the ascent a·∇log π(x), x sampled from q:
    ///
    /// ```text
    /// a = −(π/q)·(f′(t) − c),  t = π/p
    /// ```
    ///
    /// with c = f′(∞) where that is finite and 0 elsewhere, from log π, log p = log P − log Z and log q. A NaN where p is 0
    /// and f′(∞) infinite.
    pub fn coefficient(self, log_pi: f64, log_p: f64, log_q: f64) -> f64 {
        use Divergence::*;
        if log_p == f64::NEG_INFINITY {
            return if self.is_bounded() { 0.0 } else { f64::NAN };
        }
        let (ratio, log_t) = ((log_pi - log_q).exp(), log_pi - log_p);
        match self {
            ForwardKl => (log_p - log_q).exp(),
            // 0 log 0 is 0.
            ReverseKl | JensenShannon if ratio == 0.0 => 0.0,
            ReverseKl => -ratio * log_t,
            TotalVariation if log_t < 0.0 => ratio,
            TotalVariation => ratio * if log_t == 0.0 { 0.5 } else { 0.0 },
            // log(1 + 1/t), from the side that does not overflow.
            JensenShannon => 0.5 * ratio * ((-log_t).max(0.0) + (-log_t.abs()).exp().ln_1p()),
            ForwardChiSquare => (2.0 * log_p - log_pi - log_q).exp(),
            ReverseChiSquare => -2.0 * (2.0 * log_pi - log_p - log_q).exp(),
            Alpha(alpha) => {
                let power = (alpha * log_pi + (1.0 - alpha) * log_p - log_q).exp();
                if alpha < 1.0 { power / (1.0 - alpha) } else { (ratio - power) / (alpha - 1.0) }
            }
        }
    }

    /// [`Divergence::coefficient`] + shift·π/q: with c − f′(∞) for the shift, c stands in the place of f′(∞). 0 where log q
    /// is +∞, which takes a row out.
    pub fn shifted(self, log_pi: f64, log_p: f64, log_q: f64, shift: f64) -> f64 {
        if log_q == f64::INFINITY {
            return 0.0;
        }
        let coefficient = self.coefficient(log_pi, log_p, log_q);
        // Without a shift π/q may be beyond all bounds.
        if shift == 0.0 { coefficient } else { coefficient + shift * (log_pi - log_q).exp() }
    }

    pub(crate) fn check(self) -> Result<()> {
        match self {
            Divergence::Alpha(alpha) if !alpha.is_finite() || alpha == 1.0 => {
                Err(Error::argument("α of the divergence", "a finite number other than 1", alpha))
            }
            _ => Ok(()),
        }
    }

    /// Its number and parameter in `kernels/common/coefficient.cuh`.
    pub(crate) fn code(self) -> (u32, f64) {
        use Divergence::*;
        match self {
            ForwardKl => (2, 0.0),
            ReverseKl => (3, 0.0),
            TotalVariation => (4, 0.0),
            JensenShannon => (5, 0.0),
            ForwardChiSquare => (6, 0.0),
            ReverseChiSquare => (7, 0.0),
            Alpha(alpha) => (8, alpha),
        }
    }
}
