//! One update: sequences of the pool → weights → gradient → policy.

use super::pool::Pool;
use crate::adam::AdamOptions;
use crate::backend::Backend;
use crate::error::Result;
use crate::models::{Coefficients, Policy, Weighting};
use crate::tokens::{Batch, Space};

/// The memory of an update; made once, so that none allocates.
pub(super) struct Step<B: Backend> {
    batch: Batch<B>,
    weights: B::Buffer<f32>,
    log_q: B::Buffer<f64>,
    log_pi: B::Buffer<f64>,
    host_weights: Vec<f32>,
    host_log_q: Vec<f64>,
    host_log_pi: Vec<f64>,
    /// Σ w·(−log π) and Σ w·T since the last [`Step::take_loss`].
    loss: (f64, f64),
}

/// How an update makes coefficients of weights.
pub(super) struct Update {
    pub weighting: Weighting,
    /// log of the mean weight, which is divided out.
    pub log_mean: f64,
    /// Subtracted from w / mean w.
    pub reward_baseline: f32,
    pub adam: AdamOptions,
}

impl<B: Backend> Step<B> {
    pub fn new(backend: &B, space: Space, rows: usize) -> Result<Self> {
        Ok(Step {
            batch: Batch::with_capacity(backend, space, rows)?,
            weights: backend.zeros(rows, "step weights")?,
            log_q: backend.zeros(rows, "step log q")?,
            log_pi: backend.zeros(rows, "step log-probs")?,
            host_weights: vec![0.0; rows],
            host_log_q: vec![0.0; rows],
            host_log_pi: vec![0.0; rows],
            loss: (0.0, 0.0),
        })
    }

    /// Updates `policy` on the chosen sequences of the pool, each with the coefficient w / mean w per row and token.
    pub fn run<P: Policy<B>>(&mut self, backend: &B, pool: &Pool<B>, policy: &mut P, update: &Update) -> Result<()> {
        let rows = pool.chosen.len();
        let scale = 1.0 / (rows as f32 * self.batch.space.longest as f32);
        self.batch.gather(backend, &pool.batch, &pool.chosen)?;
        for (at, &slot) in pool.chosen.iter().enumerate() {
            let weight = (pool.log_w[slot as usize] - update.log_mean).exp() as f32;
            self.host_weights[at] = (weight - update.reward_baseline) * scale;
            self.host_log_q[at] = pool.log_q[slot as usize];
        }
        backend.upload(&self.host_weights[..rows], &mut self.weights)?;
        backend.upload(&self.host_log_q[..rows], &mut self.log_q)?;
        let coefficients = Coefficients {
            weighting: update.weighting,
            weights: B::view(&self.weights, rows),
            log_q: Some(B::view(&self.log_q, rows)),
            scale,
            dropout: None,
        };
        policy.gradient(&self.batch, &coefficients, B::view_mut(&mut self.log_pi, rows))?;
        policy.update(&update.adam)?;
        self.note_loss(backend, rows, update.reward_baseline * scale)
    }

    /// `baseline` is what the weights are short of: the loss is weighted by w alone, which is never negative.
    fn note_loss(&mut self, backend: &B, rows: usize, baseline: f32) -> Result<()> {
        backend.download(&self.log_pi, &mut self.host_log_pi[..rows])?;
        let tokens = f64::from(self.batch.space.longest);
        for (weight, log_pi) in self.host_weights.iter().zip(&self.host_log_pi[..rows]) {
            let weight = f64::from(weight + baseline);
            // A row of weight 0 may have been skipped, and has no log π then.
            if weight > 0.0 {
                self.loss.0 -= weight * log_pi;
                self.loss.1 += weight * tokens;
            }
        }
        Ok(())
    }

    /// The weighted mean of −log π per token of the longest length since the last call; NaN where there was no update.
    pub fn take_loss(&mut self) -> f64 {
        let (total, weight) = std::mem::take(&mut self.loss);
        total / weight
    }
}
