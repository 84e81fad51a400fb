//! The output layer's last step: a masked softmax over the logits of a few rows.

use crate::backend::simd::{LANES, Simd, dispatch};
use crate::models::at_most_zero;

/// Sums of one row: `Σ exp(logit − max)` and the maximum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Softmax {
    pub max: f32,
    pub sum: f32,
}

impl Softmax {
    /// The log-probability of a token with this logit, at most 0; −∞ for a logit of −∞, even where no token is left (a
    /// sequence that a guide forbids). In f64: a sequence adds up hundreds of them.
    #[inline]
    pub fn log_prob(self, logit: f32) -> f64 {
        if logit == f32::NEG_INFINITY {
            return f64::NEG_INFINITY;
        }
        at_most_zero(f64::from(logit) - f64::from(self.max) - f64::from(self.sum).ln())
    }
}

dispatch! {
    /// Adds `added` (0 or −∞ masks, boosts) to the logits in place, writes exp(logit − max) to `exps` and returns their
    /// maximum and sum. All three are of one length, a multiple of 16.
    pub(crate) fn softmax(logits: &mut [f32], added: &[f32], exps: &mut [f32]) -> Softmax = softmax_row
}

#[inline(always)]
unsafe fn softmax_row<S: Simd>(logits: &mut [f32], added: &[f32], exps: &mut [f32]) -> Softmax {
    assert!(logits.len() == added.len() && logits.len() == exps.len() && logits.len().is_multiple_of(LANES));
    unsafe {
        let mut maxima = S::splat(f32::NEG_INFINITY);
        for at in (0..logits.len()).step_by(LANES) {
            let logit = S::load(logits.as_ptr().add(at)).add(S::load(added.as_ptr().add(at)));
            logit.store(logits.as_mut_ptr().add(at));
            maxima = maxima.max(logit);
        }
        let max = maxima.max_lane();
        let mut sums = S::splat(0.0);
        for at in (0..logits.len()).step_by(LANES) {
            let exp = S::load(logits.as_ptr().add(at)).sub(S::splat(max)).exp();
            exp.store(exps.as_mut_ptr().add(at));
            sums = sums.add(exp);
        }
        Softmax { max, sum: sums.sum() }
    }
}
