//! Samples of p by rejection: a draw is accepted with probability w / bound.

use super::pool::Pool;
use super::{Draws, Source};
use crate::backend::Backend;
use crate::potential::{Potential, Role};
use crate::rng::{Draw, Purpose};

/// The bound of the weights. From r it is exact: w ≤ exp β, β = Σ max(0, λ) as every φ lies in [0, 1]. From a guided
/// proposal no bound is known: it is the largest weight seen so far (quasi-rejection), and when it rises, those accepted
/// before are thinned, so that the accepted are at any time what this bound would have accepted from the start.
pub(super) struct Rejection {
    log_bound: f64,
    exact: bool,
    /// How often the bound rose.
    raises: u32,
    seed: u64,
}

impl Rejection {
    pub fn new<B: Backend>(source: Source, potential: &Potential<B>, seed: u64) -> Self {
        let tilt = |role: &Role| if let Role::Tilt(lambda) = role { lambda.max(0.0) } else { 0.0 };
        let exact = source == Source::Base;
        let log_bound = if exact { potential.roles().iter().map(tilt).sum() } else { f64::NEG_INFINITY };
        Rejection { log_bound, exact, raises: 0, seed }
    }

    /// Puts the accepted rows of `draws` into `accepted`, after thinning `pool` where the bound had to rise. `draw` is
    /// what the draws were made from.
    pub fn accept<B: Backend>(&mut self, draws: &Draws<B>, draw: Draw, pool: &mut Pool<B>, accepted: &mut Vec<u32>) {
        self.raise(&draws.host_log_w, pool);
        // Lane 0 belongs to the fit's rejection.
        let coin = Draw { purpose: Purpose::Accept, ..draw };
        let is_accepted = |row: &u32| {
            let log_w = draws.host_log_w[*row as usize];
            coin.fine_uniform(u64::from(*row), 0, 1) < (log_w - self.log_bound).exp()
        };
        accepted.clear();
        accepted.extend((0..draws.rows() as u32).filter(is_accepted));
    }

    fn raise<B: Backend>(&mut self, log_w: &[f64], pool: &mut Pool<B>) {
        let largest = log_w.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if self.exact || largest <= self.log_bound {
            return;
        }
        self.raises += 1;
        let coin = Draw::new(self.seed, Purpose::Accept);
        pool.thin(self.log_bound - largest, |slot| coin.fine_uniform(slot as u64, self.raises, 2));
        self.log_bound = largest;
    }

    /// What the user should know.
    pub fn warning(&self) -> Option<String> {
        (!self.exact).then(|| {
            format!(
                "distillation from the guided proposal is quasi-rejection: its bound is the largest weight seen, which \
                 rose in {} batches",
                self.raises
            )
        })
    }
}
