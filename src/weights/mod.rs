//! Importance weights w(x) = P(x)/q(x) in log space, and what is estimated from them.

use crate::backend::{Backend, Cpu};
use crate::error::{Error, Result, expect_len};

/// The kernels of this stage.
pub trait WeightKernel {
    /// log w = log P − log q per row, and weights = exp(log w − `log_scale`) as f32; sums in a fixed order.
    fn weights(
        &self,
        log_p: Self::View<'_, f64>,
        log_q: Self::View<'_, f64>,
        log_scale: f64,
        log_w: Self::ViewMut<'_, f64>,
        weights: Self::ViewMut<'_, f32>,
    ) -> Result<()>
    where
        Self: Backend;
}

impl WeightKernel for Cpu {
    fn weights(
        &self,
        log_p: &[f64],
        log_q: &[f64],
        log_scale: f64,
        log_w: &mut [f64],
        weights: &mut [f32],
    ) -> Result<()> {
        for row in 0..log_w.len() {
            log_w[row] = log_p[row] - log_q[row];
            weights[row] = (log_w[row] - log_scale).exp() as f32;
        }
        Ok(())
    }
}
