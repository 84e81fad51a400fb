//! Sequences drawn from a proposal, with everything the weights need.

use super::Target;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::features::FeatureOutput;
use crate::models::Sampler;
use crate::rng::Draw;
use crate::tokens::{Batch, Space};
use crate::weights::Estimate;

/// Which distribution proposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub enum Source {
    /// r.
    Base,
    /// r with the target's look-ahead.
    Guided,
    /// A policy: a frozen copy of π, or π itself.
    Policy,
}

/// A batch of draws: tokens, log q, log r, φ and log P of each row, on the backend and, but for tokens and where asked for,
/// also on the host.
pub struct Draws<B: Backend> {
    /// The sequences.
    pub batch: Batch<B>,
    pub(super) log_q: B::Buffer<f64>,
    pub(super) log_base: B::Buffer<f64>,
    pub(super) log_p: B::Buffer<f64>,
    phi: B::Buffer<f32>,
    /// log q per row.
    pub host_log_q: Vec<f64>,
    /// log r per row.
    pub host_log_base: Vec<f64>,
    /// log P per row.
    pub host_log_p: Vec<f64>,
    /// log w = log P − log q per row.
    pub host_log_w: Vec<f64>,
    /// φ, `[rows, F]`.
    pub host_phi: Vec<f32>,
}

impl<B: Backend> Draws<B> {
    /// Room for `rows` draws with `features` features.
    pub fn new(backend: &B, space: Space, rows: usize, features: usize) -> Result<Self> {
        Ok(Draws {
            batch: Batch::with_capacity(backend, space, rows)?,
            log_q: backend.zeros(rows, "log q")?,
            log_base: backend.zeros(rows, "log r")?,
            log_p: backend.zeros(rows, "log P")?,
            phi: backend.zeros(rows * features, "features")?,
            host_log_q: vec![0.0; rows],
            host_log_base: vec![0.0; rows],
            host_log_p: vec![0.0; rows],
            host_log_w: vec![0.0; rows],
            host_phi: vec![0.0; rows * features],
        })
    }

    /// Number of draws.
    pub fn rows(&self) -> usize {
        self.batch.rows
    }

    /// log q per row, on the backend.
    pub fn log_q(&self) -> B::View<'_, f64> {
        B::view(&self.log_q, self.batch.rows)
    }

    /// log r per row, on the backend.
    pub fn log_base(&self) -> B::View<'_, f64> {
        B::view(&self.log_base, self.batch.rows)
    }

    /// log P per row, on the backend.
    pub fn log_p(&self) -> B::View<'_, f64> {
        B::view(&self.log_p, self.batch.rows)
    }

    /// As [`Draws::draw`], and brings all but the tokens to the host.
    ///
    /// # Errors
    /// As there; a log w that is NaN or +∞.
    pub fn fill<R: Sampler<B>, P: Sampler<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        source: Source,
        policy: Option<&mut P>,
        draw: Draw,
    ) -> Result<()> {
        self.draw(backend, target, source, policy, draw)?;
        self.fetch(backend)
    }

    /// Brings all but the tokens to the host.
    pub(super) fn fetch(&mut self, backend: &B) -> Result<()> {
        backend.download(&self.log_q, &mut self.host_log_q)?;
        backend.download(&self.log_base, &mut self.host_log_base)?;
        backend.download(&self.log_p, &mut self.host_log_p)?;
        backend.download(&self.phi, &mut self.host_phi)?;
        self.weigh()
    }

    /// Fills all rows on the backend from `source`: sequence, log q, log r, φ, log P. φ comes from the pass that samples, and
    /// so does log r where r itself does.
    ///
    /// # Errors
    /// A guided source without a guide, a policy source without a policy.
    pub fn draw<R: Sampler<B>, P: Sampler<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        source: Source,
        policy: Option<&mut P>,
        draw: Draw,
    ) -> Result<()> {
        let (rows, table) = (self.batch.capacity(), target.features);
        if let Some(contexts) = target.contexts {
            self.batch.begin(backend, contexts, draw)?;
        }
        let (batch, log_q) = (&mut self.batch, B::view_mut(&mut self.log_q, rows));
        let log_base = B::view_mut(&mut self.log_base, rows);
        let features = FeatureOutput { backend, table, phi: B::view_mut(&mut self.phi, rows * table.len()) };
        match source {
            Source::Base => target.base.sample_features(draw, None, batch, log_q, log_base, features)?,
            Source::Guided => {
                let guide = target.guide.ok_or_else(|| Error::argument("guided proposal", "a guide", "none"))?;
                target.base.sample_features(draw, Some(guide), batch, log_q, log_base, features)?;
            }
            Source::Policy => {
                let policy = policy.ok_or_else(|| Error::argument("proposal", "a policy", "none"))?;
                let log_policy = B::view_mut(&mut self.log_p, rows);
                policy.sample_features(draw, None, batch, log_q, log_policy, features)?;
                target.base.score(batch, log_base)?;
            }
        }
        target.potential.log_potential(
            backend,
            B::view(&self.log_base, rows),
            B::view(&self.phi, rows * table.len()),
            B::view_mut(&mut self.log_p, rows),
        )
    }

    /// log w = log P − log q.
    fn weigh(&mut self) -> Result<()> {
        let rows = self.host_log_p.iter().zip(&self.host_log_q);
        self.host_log_w.iter_mut().zip(rows).for_each(|(log_w, (log_p, log_q))| *log_w = log_p - log_q);
        match self.host_log_w.iter().position(|log_w| log_w.is_nan() || *log_w == f64::INFINITY) {
            Some(row) => Err(Error::not_a_number("log-weight", format!("draw {row}"))),
            None => Ok(()),
        }
    }

    /// π(P = 0) from these draws of π, where `source` may not draw all that π does: a guided proposal draws only what
    /// meets the requirements, a base such as noise has tokens of probability 0. `None` where it draws everything.
    pub fn outside(&self, source: Source) -> Result<Option<Estimate>> {
        let is_zero = |log_prob: &&f64| **log_prob == f64::NEG_INFINITY;
        let covers = match source {
            Source::Base => !self.host_log_base.iter().any(|log_prob| is_zero(&log_prob)),
            Source::Guided => false,
            Source::Policy => true,
        };
        let hits = self.host_log_p.iter().filter(is_zero).count();
        if covers { Ok(None) } else { Estimate::frequency(hits, self.host_log_p.len()).map(Some) }
    }

    /// The mean of each feature over the draws: E_q φ.
    pub fn moments(&self) -> Result<Vec<Estimate>> {
        let features = self.host_phi.len() / self.host_log_q.len().max(1);
        let column = |i: usize| self.host_phi.iter().skip(i).step_by(features).map(|&value| f64::from(value));
        (0..features).map(|i| Estimate::mean(&column(i).collect::<Vec<_>>())).collect()
    }
}
