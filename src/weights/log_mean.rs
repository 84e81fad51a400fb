//! log Ẑ accumulated over many batches.

use super::{Estimate, check_log_weights};
use crate::error::Result;

/// The running log of the mean of weights given by their logarithms: log Ẑ across steps, without allocating.
///
/// Rows are added one by one in order, so the result does not depend on how they were split into batches. Weights drawn
/// from different proposals may be mixed: each is unbiased for Z.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct LogMean {
    /// The largest log-weight so far; 0 while `total` is 0.
    shift: f64,
    /// Σ exp(log w − shift).
    total: f64,
    /// Σ exp(2·(log w − shift)).
    squares: f64,
    count: u64,
}

impl LogMean {
    /// No weights yet.
    pub fn new() -> Self {
        LogMean { shift: 0.0, total: 0.0, squares: 0.0, count: 0 }
    }

    /// Adds a batch of log-weights; −∞ counts as weight 0. An empty batch is a no-op.
    ///
    /// # Errors
    /// A NaN or +∞, named by its row; the state is then unchanged.
    pub fn push(&mut self, log_w: &[f64]) -> Result<()> {
        if log_w.is_empty() {
            return Ok(());
        }
        check_log_weights(log_w)?;
        self.count += log_w.len() as u64;
        for &log_w in log_w.iter().filter(|log_w| log_w.is_finite()) {
            if self.total == 0.0 || log_w > self.shift {
                // exp(−∞) = 0 on the first weight, whose old total is 0 anyway.
                let rescale = if self.total == 0.0 { 0.0 } else { (self.shift - log_w).exp() };
                self.total *= rescale;
                self.squares *= rescale * rescale;
                self.shift = log_w;
            }
            let weight = (log_w - self.shift).exp();
            self.total += weight;
            self.squares += weight * weight;
        }
        Ok(())
    }

    /// log of the mean weight; −∞ while there is no weight above 0.
    pub fn value(&self) -> f64 {
        if self.total == 0.0 { f64::NEG_INFINITY } else { self.shift + (self.total / self.count as f64).ln() }
    }

    /// Number of weights so far, those of value 0 included.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// (Σw)²/Σw², 0 while there is no weight above 0.
    pub fn ess(&self) -> f64 {
        if self.total == 0.0 { 0.0 } else { self.total * self.total / self.squares }
    }

    /// [`LogMean::value`] with its delta-method error: Var(log Ẑ) ≈ (1/ESS − 1/n)·n/(n − 1).
    pub fn estimate(&self) -> Estimate {
        let rows = self.count as f64;
        let squares = if self.total == 0.0 { 0.0 } else { rows * (rows / self.ess() - 1.0) };
        Estimate::from_influence(self.value(), squares, self.count as usize)
    }

    /// The state as words, for a checkpoint that restores it bit for bit.
    pub fn to_bits(&self) -> [u64; 4] {
        [self.shift.to_bits(), self.total.to_bits(), self.squares.to_bits(), self.count]
    }

    /// The state that [`LogMean::to_bits`] wrote.
    pub fn from_bits([shift, total, squares, count]: [u64; 4]) -> Self {
        let [shift, total, squares] = [shift, total, squares].map(f64::from_bits);
        LogMean { shift, total, squares, count }
    }
}

impl Default for LogMean {
    fn default() -> Self {
        LogMean::new()
    }
}
