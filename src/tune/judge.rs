//! Draws that only judge: has π become better than q?

use super::checkpoint::Rows;
use super::{Draws, Source, Swap, Target};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::{Policy, Sampler};
use crate::rng::Draw;
use crate::tokens::{Batch, Space};
use crate::weights::{Estimate, ImportanceWeights, MIN_ESS, cross_entropy_difference, within_contexts};

/// The most draws of one proposal that are kept to judge by, in evaluations.
const KEPT_EVALUATIONS: usize = 8;

/// Draws of the current proposal, none of which either model was trained on.
pub(super) struct Judge<B: Backend> {
    draws: Draws<B>,
    held: Batch<B>,
    log_p: Vec<f64>,
    log_q: Vec<f64>,
    log_pi: B::Buffer<f64>,
    host_log_pi: Vec<f64>,
    oldest: usize,
    slots: Vec<u32>,
}

/// How π is compared with q.
#[derive(Clone, Copy)]
pub(super) struct Comparison {
    /// What q is.
    pub source: Source,
    pub swap: Swap,
    /// π(P = 0), where q may not draw all that π does.
    pub outside: Option<Estimate>,
}

/// What the judge found; nothing where no draw has a positive weight.
#[derive(Default)]
pub(super) struct Verdict {
    pub kl: Option<Estimate>,
    pub kl_proposal: Option<Estimate>,
    pub tv: Option<Estimate>,
    pub ess: f64,
    pub superior: bool,
}

impl<B: Backend> Judge<B> {
    pub fn new(backend: &B, space: Space, rows: usize, features: usize) -> Result<Self> {
        let held = rows.saturating_mul(KEPT_EVALUATIONS);
        Ok(Judge {
            draws: Draws::new(backend, space, rows, features)?,
            held: Batch::with_capacity(backend, space, held)?,
            log_p: Vec::with_capacity(held),
            log_q: Vec::with_capacity(held),
            log_pi: backend.zeros(held, "log-probs of the policy")?,
            host_log_pi: vec![0.0; held],
            oldest: 0,
            slots: (0..rows as u32).collect(),
        })
    }

    /// Forgets the draws of a proposal that is no more.
    pub fn forget(&mut self) {
        self.held.rows = 0;
        self.log_p.clear();
        self.log_q.clear();
        self.oldest = 0;
    }

    /// The draws that are kept, in host memory.
    pub fn state(&self, backend: &B) -> Result<Rows> {
        Rows::of(backend, &self.held, self.held.rows, [self.log_p.clone(), self.log_q.clone()])
    }

    /// The place of the oldest draws, which the next ones take.
    pub fn oldest(&self) -> usize {
        self.oldest
    }

    /// Puts back draws that fit, and the place of the oldest.
    pub fn restore(&mut self, backend: &B, rows: &Rows, oldest: usize) -> Result<()> {
        rows.check("draws to judge by", self.held.space, self.held.capacity())?;
        rows.put(backend, &mut self.held)?;
        self.held.rows = rows.len();
        let [log_p, log_q] = &rows.values;
        (self.log_p, self.log_q, self.oldest) = (log_p.clone(), log_q.clone(), oldest);
        Ok(())
    }

    /// Draws afresh from q, scores all held draws under π, and compares; `log_z` are the contexts', if there are any.
    pub fn judge<R: Sampler<B>, P: Policy<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        proposal: Option<&mut P>,
        policy: &mut P,
        comparison: Comparison,
        log_z: &[f64],
        draw: Draw,
    ) -> Result<Verdict> {
        self.draws.fill(backend, target, comparison.source, proposal, draw)?;
        let rows = self.draws.rows();
        if self.held.rows < self.held.capacity() {
            self.held.copy_rows(backend, &self.draws.batch, &self.slots, self.held.rows)?;
            self.log_p.extend_from_slice(&self.draws.host_log_p);
            self.log_q.extend_from_slice(&self.draws.host_log_q);
        } else {
            self.held.copy_rows(backend, &self.draws.batch, &self.slots, self.oldest)?;
            self.log_p[self.oldest..][..rows].copy_from_slice(&self.draws.host_log_p);
            self.log_q[self.oldest..][..rows].copy_from_slice(&self.draws.host_log_q);
            self.oldest = (self.oldest + rows) % self.held.capacity();
        }
        policy.score(&self.held, B::view_mut(&mut self.log_pi, self.held.rows))?;
        let log_pi = &mut self.host_log_pi[..self.held.rows];
        backend.download(&self.log_pi, log_pi)?;
        if log_z.is_empty() {
            return compare(&self.log_p, &self.log_q, log_pi, comparison);
        }
        let mut context = vec![0; self.held.rows];
        backend.download(&self.held.context, &mut context)?;
        compare(&within_contexts(&self.log_p, &context, log_z), &self.log_q, log_pi, comparison)
    }
}

fn compare(log_p: &[f64], log_q: &[f64], log_pi: &[f64], comparison: Comparison) -> Result<Verdict> {
    let weights = match ImportanceWeights::new(log_p, log_q) {
        Ok(weights) => match comparison.outside {
            Some(outside) => weights.with_outside(outside),
            None => weights,
        },
        // Not one draw of positive weight yet: nothing can be said.
        Err(Error::NoAnswer { .. }) => return Ok(Verdict::default()),
        Err(error) => return Err(error),
    };
    let enough = weights.ess() >= MIN_ESS;
    let superior = match comparison.swap {
        Swap::Kl => weights.is_superior(log_pi)?,
        Swap::Tv => enough && weights.tv_difference(log_pi)?.exceeds_zero(2.0),
        _ => false,
    };
    Ok(Verdict {
        kl: enough.then(|| weights.kl_to(log_pi)).transpose()?,
        kl_proposal: enough.then(|| weights.kl_to_proposal()),
        tv: enough.then(|| weights.tv_to(log_pi)).transpose()?,
        ess: weights.ess() / log_p.len() as f64,
        superior,
    })
}

/// The paper's test: lower cross-entropy on held-out data, by more than two standard errors.
pub(super) struct DataJudge<B: Backend> {
    log_pi: B::Buffer<f64>,
    log_q: B::Buffer<f64>,
    host_log_pi: Vec<f64>,
    host_log_q: Vec<f64>,
}

impl<B: Backend> DataJudge<B> {
    pub fn new(backend: &B, rows: usize) -> Result<Self> {
        Ok(DataJudge {
            log_pi: backend.zeros(rows, "held-out log-probs")?,
            log_q: backend.zeros(rows, "held-out log-probs")?,
            host_log_pi: vec![0.0; rows],
            host_log_q: vec![0.0; rows],
        })
    }

    /// Compares π with the proposal that `source` names; `proposal` is the policy that proposes.
    pub fn is_superior<R: Sampler<B>, P: Policy<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        source: Source,
        proposal: Option<&mut P>,
        policy: &mut P,
        data: &Batch<B>,
    ) -> Result<bool> {
        policy.score(data, B::view_mut(&mut self.log_pi, data.rows))?;
        let log_q = B::view_mut(&mut self.log_q, data.rows);
        match (source, proposal, target.guide) {
            (Source::Policy, Some(proposal), _) => proposal.score(data, log_q)?,
            (Source::Guided, _, Some(guide)) => target.base.score_guided(guide, data, log_q)?,
            _ => target.base.score(data, log_q)?,
        }
        backend.download(&self.log_pi, &mut self.host_log_pi)?;
        backend.download(&self.log_q, &mut self.host_log_q)?;
        Ok(cross_entropy_difference(&self.host_log_q, &self.host_log_pi)?.exceeds_zero(2.0))
    }
}
