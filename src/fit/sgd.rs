//! The papers' schedule: stochastic gradient ascent λ ← λ + α_t (μ − Ê_p φ), kept for reproduction.
//!
//! Parshakova, Andreoli & Dymetman (2019), "Global Autoregressive Models for Data-Efficient Sequence Learning",
//! section "Training-1". Its λ stays finite where a moment is 0 or 1, only because it stops.

use nalgebra::DVector;

use super::newton::{Problem, Solution};
use crate::error::{Error, Result};
use crate::rng::{Draw, Purpose};

/// Step sizes and lengths of the schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SgdOptions {
    /// α of the first epoch, positive.
    pub rate: f64,
    /// In epoch e (from 0) the step size is `rate`/(1 + `decay`·e), decay ≥ 0.
    pub decay: f64,
    /// Passes over the sample, at least one.
    pub epochs: usize,
    /// Rows behind one step's Ê_p φ, at least one.
    pub batch: usize,
}

impl Default for SgdOptions {
    fn default() -> Self {
        SgdOptions { rate: 0.05, decay: 0.05, epochs: 50, batch: 500 }
    }
}

impl SgdOptions {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(Error::argument("learning rate of the fit", "a positive number", self.rate));
        }
        if !(self.decay >= 0.0 && self.decay.is_finite()) {
            return Err(Error::argument("decay of the fit", "zero or a positive number", self.decay));
        }
        if self.epochs == 0 || self.batch == 0 {
            let got = format!("{} epochs of batches of {}", self.epochs, self.batch);
            return Err(Error::argument("schedule of the fit", "at least one epoch and one row", got));
        }
        Ok(())
    }
}

impl Problem {
    /// Runs the schedule from λ = 0. With `accept`, a step's expectation is the mean over the rows of its batch that
    /// rejection keeps, drawn afresh in each epoch; otherwise it is self-normalised importance sampling. A batch
    /// that leaves no row to go by makes no step.
    pub fn sgd(&self, options: &SgdOptions, accept: Option<Draw>) -> Solution {
        let ranges = self.ranges();
        let mut lambda = DVector::zeros(self.width);
        let mut iterations = 0;
        for epoch in 0..options.epochs {
            let rate = options.rate / (1.0 + options.decay * epoch as f64);
            for start in (0..self.rows()).step_by(options.batch) {
                let rows = start..(start + options.batch).min(self.rows());
                let log_w: Vec<f64> = rows.clone().map(|row| self.log_weight(&lambda, row)).collect();
                let weights = match accept {
                    None => {
                        let largest = log_w.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        log_w.iter().map(|log_w| (log_w - largest).exp()).collect()
                    }
                    Some(draw) => {
                        let bound = envelope(lambda.as_slice(), &ranges);
                        let log_odds: Vec<f64> = rows.clone().map(|row| self.tilt(&lambda, row) - bound).collect();
                        accepted(draw.skip(start as u64), epoch, &log_odds)
                    }
                };
                if let Some(mean) = self.weighted_mean(rows.start, &weights) {
                    lambda += (&self.targets - mean) * rate;
                    iterations += 1;
                }
            }
        }
        let gradient = &self.targets - self.moments(&lambda).mean;
        Solution { lambda, iterations, gradient, converged: true }
    }

    /// ⟨λ, φ⟩ of one row.
    fn tilt(&self, lambda: &DVector<f64>, row: usize) -> f64 {
        self.log_weight(lambda, row) - self.log_w[row]
    }

    /// Smallest and largest value of each feature.
    fn ranges(&self) -> Vec<(f64, f64)> {
        let range = |i: usize| {
            let values = (0..self.rows()).map(|row| self.row(row)[i]);
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
        };
        (0..self.width).map(range).collect()
    }

    /// Σcφ/Σc over the rows from `first` on; `None` where all c are 0.
    fn weighted_mean(&self, first: usize, weights: &[f64]) -> Option<DVector<f64>> {
        let total: f64 = weights.iter().sum();
        let mut mean = DVector::zeros(self.width);
        for (at, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            mean += DVector::from_row_slice(self.row(first + at)) * (weight / total);
        }
        (total > 0.0).then_some(mean)
    }
}

/// β = Σ_i max(λ_i min φ_i, λ_i max φ_i), the least bound on ⟨λ, φ⟩ that looks at one feature at a time.
pub(super) fn envelope(lambda: &[f64], ranges: &[(f64, f64)]) -> f64 {
    lambda.iter().zip(ranges).map(|(lambda, &(low, high))| (lambda * low).max(lambda * high)).sum()
}

/// 1 where a row is kept, with probability exp(`log_odds`), else 0; `round` separates repeated judgements of a row.
pub(super) fn accepted(draw: Draw, round: usize, log_odds: &[f64]) -> Vec<f64> {
    let draw = Draw { purpose: Purpose::Accept, ..draw };
    let keep = |(row, log_odds): (usize, &f64)| f64::from(draw.uniform(row as u64, round as u32)) < log_odds.exp();
    log_odds.iter().enumerate().map(keep).map(|keep| f64::from(u8::from(keep))).collect()
}
