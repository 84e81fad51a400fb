//! Samples of p by rejection: a draw is accepted with probability w / bound.

use super::Source;
use crate::backend::Backend;
use crate::potential::{Potential, Role};

/// The bound of the weights. From r it is exact: w ≤ exp β, β = Σ max(0, λ) as every φ lies in [0, 1]. From a guided
/// proposal no bound is known: it is the largest weight seen so far (quasi-rejection), and when it rises, those accepted
/// before are thinned, so that the accepted are at any time what this bound would have accepted from the start.
#[derive(Debug, Clone, Copy)]
pub struct Rejection {
    /// The log of the bound at the start; −∞ where none is known.
    pub log_bound: f64,
    /// Whether it is the bound for good.
    pub exact: bool,
    /// Seed of what thins.
    pub seed: u64,
}

impl Rejection {
    /// The bound for draws from `source`.
    pub fn new<B: Backend>(source: Source, potential: &Potential<B>, seed: u64) -> Self {
        let tilt = |role: &Role| if let Role::Tilt(lambda) = role { lambda.max(0.0) } else { 0.0 };
        let exact = source == Source::Base;
        let log_bound = if exact { potential.roles().iter().map(tilt).sum() } else { f64::NEG_INFINITY };
        Rejection { log_bound, exact, seed }
    }

    /// What the user should know once the bound rose so often.
    pub fn warning(&self, raises: u64) -> Option<String> {
        (!self.exact).then(|| {
            format!(
                "distillation from the guided proposal is quasi-rejection: its bound is the largest weight seen, which \
                 rose in {raises} batches"
            )
        })
    }
}
