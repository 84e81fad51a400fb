//! Samples of p = P/Z itself, from draws of a proposal q and their weights w = P/q.
//!
//! | sampler | draws from | cost, in draws a sample |
//! | --- | --- | --- |
//! | [`rejection`] under [`Bound::Exact`] | p, independent | β/Z |
//! | [`rejection`] under [`Bound::Quasi`] | p_β ∝ min(P, β·q), independent; [`QuasiRejection`] says how far from p | β/Z_β |
//! | [`rejection`] under [`Bound::Running`] | as quasi-rejection under the largest weight seen | unknown before |
//! | [`importance_resampling`] | p as the draws grow; repeats a draw of large weight | chosen |
//! | [`metropolis`] | p as the chain grows; repeats what it does not leave | chosen |
//! | [`sequential`] | p as the particles grow; weighted, with an unbiased Ẑ | one particle |
//!
//! A tuned policy samples p nearly, at one draw a sample, and is the best proposal for all of these.
//!
//! Every sampler has a budget of draws. Where it is spent too early, what was found comes back with a warning in plain
//! words; never a sample of something else. The same seed gives the same samples, bit for bit.

use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result};
use crate::models::Sampler;
use crate::rng::Draw;
use crate::tokens::{Batch, Space};
use crate::tune::{Draws, Source, Target};

mod metropolis;
mod quasi;
mod rejection;
mod resampling;
mod sequential;

pub use metropolis::{Chains, metropolis};
pub use quasi::{QuasiRejection, quasi_rejection_curve};
pub use rejection::{Bound, rejection};
pub use resampling::{Resampling, importance_resampling};
pub use sequential::{Particles, SequentialOptions, sequential};

/// The distribution that proposes, and the target whose P it is weighted by.
pub struct Proposal<'a, 't, B: Backend, R, Q> {
    target: &'a mut Target<'t, B, R>,
    source: Source,
    policy: Option<&'a mut Q>,
}

impl<'a, 't, B: Backend, R: Sampler<B>> Proposal<'a, 't, B, R, R> {
    /// r proposes.
    pub fn base(target: &'a mut Target<'t, B, R>) -> Self {
        Proposal { target, source: Source::Base, policy: None }
    }

    /// r with the target's look-ahead proposes.
    ///
    /// # Errors
    /// A target without a guide.
    pub fn guided(target: &'a mut Target<'t, B, R>) -> Result<Self> {
        match target.guide {
            Some(_) => Ok(Proposal { target, source: Source::Guided, policy: None }),
            None => Err(Error::argument("guided proposal", "a guide in the target", "none")),
        }
    }
}

impl<'a, 't, B: Backend, R: Sampler<B>, Q: Sampler<B>> Proposal<'a, 't, B, R, Q> {
    /// A policy proposes. It must cover p: what it cannot draw is missing from the samples.
    pub fn policy(target: &'a mut Target<'t, B, R>, policy: &'a mut Q) -> Self {
        Proposal { target, source: Source::Policy, policy: Some(policy) }
    }

    /// The space of sequences.
    pub fn space(&self) -> Space {
        self.target.base.space()
    }
}

/// How much to draw.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SamplerOptions {
    /// Samples wanted, 1 or more.
    pub samples: usize,
    /// The most draws of the proposal, rounded up to whole batches.
    pub attempts: u64,
    /// Draws at a time.
    pub batch: usize,
    /// Where the draws take their uniforms from; accepting and resampling use other streams of the same seed.
    pub draw: Draw,
}

impl SamplerOptions {
    /// `samples` samples from the uniforms of `draw`, in at most 10⁶ attempts of 1,000 at a time.
    pub fn new(samples: usize, draw: Draw) -> Self {
        SamplerOptions { samples, attempts: 1_000_000, batch: 1_000, draw }
    }

    fn check(&self) -> Result<()> {
        let counts = [("samples", self.samples as u64), ("attempts", self.attempts), ("batch", self.batch as u64)];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((what, _)) => Err(Error::argument(*what, "1 or more", 0)),
            None => Ok(()),
        }
    }
}

/// Samples of p, on the host.
#[derive(Clone)]
pub struct Samples {
    /// The sequences; fewer than wanted where the budget was spent.
    pub batch: Batch,
    /// log P of each, `[rows]`.
    pub log_p: Vec<f64>,
    /// φ of each, `[rows, F]`.
    pub phi: Vec<f32>,
    /// Draws of the proposal that were spent.
    pub attempts: u64,
    /// Share of the draws that were accepted (rejection), moved to (Metropolis), or ESS/N (resampling).
    pub acceptance: f64,
    /// Plain words where the samples are fewer than wanted, or not to be trusted.
    pub warnings: Vec<String>,
}

impl Samples {
    fn new(space: Space, capacity: usize) -> Result<Self> {
        Ok(Samples {
            batch: Batch::with_capacity(&Cpu, space, capacity)?,
            log_p: Vec::new(),
            phi: Vec::new(),
            attempts: 0,
            acceptance: 0.0,
            warnings: Vec::new(),
        })
    }

    /// Number of samples.
    pub fn rows(&self) -> usize {
        self.batch.rows
    }

    /// Appends row `row` of `from`.
    fn push(&mut self, from: &Drawn<'_>, row: usize) -> Result<()> {
        let features = from.phi.len() / from.log_p.len();
        self.batch.push_row(&from.batch, row)?;
        self.log_p.push(from.log_p[row]);
        self.phi.extend_from_slice(&from.phi[row * features..][..features]);
        Ok(())
    }

    /// The rows `rows` of these samples, in that order; a row may come up more than once.
    fn select(&self, rows: &[u32]) -> Result<Self> {
        let features = self.phi.len() / self.log_p.len().max(1);
        let mut chosen = Samples {
            warnings: self.warnings.clone(),
            attempts: self.attempts,
            ..Samples::new(self.batch.space, rows.len())?
        };
        for row in rows.iter().map(|&row| row as usize) {
            chosen.batch.push_row(&self.batch, row)?;
            chosen.log_p.push(self.log_p[row]);
            chosen.phi.extend_from_slice(&self.phi[row * features..][..features]);
        }
        Ok(chosen)
    }

    /// Notes that the budget was too small.
    fn warn_if_short(&mut self, wanted: usize) {
        let (found, attempts) = (self.rows(), self.attempts);
        if found < wanted {
            self.warnings.push(format!(
                "{found} of {wanted} samples after {attempts} draws: allow more attempts, or draw from a proposal nearer \
                 the target"
            ));
        }
    }
}

/// A batch of weighted draws, on the host.
struct Drawn<'a> {
    /// Global number of the first.
    first: u64,
    batch: Batch,
    log_w: &'a [f64],
    log_p: &'a [f64],
    phi: &'a [f32],
}

/// Batches of draws until the budget is spent.
struct Attempts<'p, 'a, 't, B: Backend, R, Q> {
    backend: &'p B,
    proposal: &'p mut Proposal<'a, 't, B, R, Q>,
    draws: Draws<B>,
    options: SamplerOptions,
    spent: u64,
}

impl<'p, 'a, 't, B: Backend, R: Sampler<B>, Q: Sampler<B>> Attempts<'p, 'a, 't, B, R, Q> {
    fn new(backend: &'p B, proposal: &'p mut Proposal<'a, 't, B, R, Q>, options: &SamplerOptions) -> Result<Self> {
        options.check()?;
        // Of several contexts those that weigh more would be sampled more often.
        if let Some(contexts) = proposal.target.contexts.filter(|contexts| contexts.len() > 1) {
            return Err(Error::argument("contexts to sample from", "one at a time", contexts.len()));
        }
        let draws = Draws::new(backend, proposal.space(), options.batch, proposal.target.features.len())?;
        Ok(Attempts { backend, proposal, draws, options: *options, spent: 0 })
    }

    /// The next batch; `None` where the budget is spent.
    fn next(&mut self) -> Result<Option<Drawn<'_>>> {
        if self.spent >= self.options.attempts {
            return Ok(None);
        }
        let (first, draw) = (self.spent, self.options.draw.skip(self.spent));
        let Proposal { target, source, policy } = &mut *self.proposal;
        self.draws.fill(self.backend, target, *source, policy.as_deref_mut(), draw)?;
        self.spent += self.draws.rows() as u64;
        let Draws { batch, host_log_w, host_log_p, host_phi, .. } = &self.draws;
        let batch = batch.download(self.backend)?;
        Ok(Some(Drawn { first, batch, log_w: host_log_w, log_p: host_log_p, phi: host_phi }))
    }
}

/// Storage for `count` values, or an error that names them.
fn room<T: crate::backend::Element>(count: usize, what: &str) -> Result<Vec<T>> {
    Cpu.zeros(count, what)
}
