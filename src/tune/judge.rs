//! Draws that only judge: has π become better than q?
//!
//! No sequence that trained π or q is among them: they have numbers of their own under [`Purpose::Evaluate`]. Those of the
//! last few evaluations are kept while q stays what it is, since their weights P/q stay exact: the oldest leave, and all of
//! them when q ← π.
//!
//! [`Purpose::Evaluate`]: crate::rng::Purpose::Evaluate

use super::checkpoint::Rows;
use super::proposed::{Proposed, Split, score};
use super::{Source, Swap, Target};
use crate::backend::Backend;
use crate::error::{Error, Result, expect_len};
use crate::models::{Policy, Sampler};
use crate::rng::Draw;
use crate::tokens::{Batch, Space};
use crate::weights::{Estimate, ImportanceWeights, MIN_ESS, cross_entropy_difference, within_contexts};

/// Draws of the current proposal, none of which either model was trained on.
pub(super) struct Judge<B: Backend> {
    draws: Proposed<B>,
    held: Batch<B>,
    log_p: Vec<f64>,
    log_q: Vec<f64>,
    /// log q₁ where the proposal is to be a mixture, else empty.
    log_first: Vec<f64>,
    log_pi: B::Buffer<f64>,
    host_log_pi: Vec<f64>,
    oldest: usize,
    slots: Vec<u32>,
}

/// How π is compared with q.
#[derive(Clone, Copy)]
pub(super) struct Comparison<'a> {
    /// What q is.
    pub source: Source,
    pub swap: Swap,
    /// π(P = 0), where q may not draw all that π does.
    pub outside: Option<Estimate>,
    /// log Ẑ of each context; empty where there are none.
    pub log_z: &'a [f64],
}

/// What the judge found; nothing where no draw has a positive weight.
#[derive(Default)]
pub(super) struct Verdict {
    pub kl: Option<Estimate>,
    pub kl_proposal: Option<Estimate>,
    pub tv: Option<Estimate>,
    pub ess: f64,
    /// log Ẑ of the draws; with contexts of weights that are divided by each context's own.
    pub log_z: Option<Estimate>,
    pub superior: bool,
}

impl<B: Backend> Judge<B> {
    /// Room for the draws of `kept` evaluations, of which each adds the rows of `split`.
    pub fn new(backend: &B, space: Space, split: Split, kept: usize, features: usize) -> Result<Self> {
        let rows = split.first + split.rest;
        let held = rows.saturating_mul(kept);
        Ok(Judge {
            draws: Proposed::new(backend, space, split, features)?,
            held: Batch::with_capacity(backend, space, held)?,
            log_p: Vec::with_capacity(held),
            log_q: Vec::with_capacity(held),
            log_first: Vec::with_capacity(if split.is_mixture() { held } else { 0 }),
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
        self.log_first.clear();
        self.oldest = 0;
    }

    /// The draws that are kept, in host memory.
    pub fn state(&self, backend: &B) -> Result<Rows> {
        Rows::of(backend, &self.held, self.held.rows, [self.log_p.clone(), self.log_q.clone()])
    }

    /// log q₁ of the draws that are kept, where the proposal is to be a mixture.
    pub fn log_first(&self) -> &[f64] {
        &self.log_first
    }

    /// The place of the oldest draws, which the next ones take.
    pub fn oldest(&self) -> usize {
        self.oldest
    }

    /// Puts back draws that fit, and the place of the oldest.
    pub fn restore(&mut self, backend: &B, rows: &Rows, log_first: &[f64], oldest: usize) -> Result<()> {
        rows.check("draws to judge by", self.held.space, self.held.capacity())?;
        let expected = if self.draws.split.is_mixture() { rows.len() } else { 0 };
        expect_len("log q of the first proposal", expected, log_first.len())?;
        rows.put(backend, &mut self.held)?;
        self.held.rows = rows.len();
        let [log_p, log_q] = &rows.values;
        (self.log_p, self.log_q, self.oldest) = (log_p.clone(), log_q.clone(), oldest);
        self.log_first = log_first.to_vec();
        Ok(())
    }

    /// Draws afresh from q, scores all held draws under π, and compares.
    pub fn judge<R: Sampler<B>, P: Policy<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        proposal: Option<&mut P>,
        policy: &mut P,
        comparison: Comparison<'_>,
        draw: Draw,
    ) -> Result<Verdict> {
        self.draws.fill(backend, target, comparison.source, proposal, draw)?;
        let mut at = self.held.rows;
        if at == self.held.capacity() {
            at = self.oldest;
            self.oldest = (at + self.draws.rows()) % self.held.capacity();
        }
        put(&mut self.log_first, at, self.draws.host_log_first());
        for draws in self.draws.parts() {
            self.held.copy_rows(backend, &draws.batch, &self.slots[..draws.rows()], at)?;
            put(&mut self.log_p, at, &draws.host_log_p);
            put(&mut self.log_q, at, &draws.host_log_q);
            at += draws.rows();
        }
        policy.score(&self.held, B::view_mut(&mut self.log_pi, self.held.rows))?;
        let log_pi = &mut self.host_log_pi[..self.held.rows];
        backend.download(&self.log_pi, log_pi)?;
        let after_swap = self.draws.split.mixed(&self.log_first, log_pi);
        let compare = |log_p: &[f64]| compare(log_p, &self.log_q, log_pi, &after_swap, self.draws.split, comparison);
        if comparison.log_z.is_empty() {
            return compare(&self.log_p);
        }
        let mut context = vec![0; self.held.rows];
        backend.download(&self.held.context, &mut context)?;
        compare(&within_contexts(&self.log_p, &context, comparison.log_z))
    }
}

/// Writes `values` from `at` on, which may be the end.
fn put(to: &mut Vec<f64>, at: usize, values: &[f64]) {
    if !values.is_empty() {
        to.resize(to.len().max(at + values.len()), 0.0);
        to[at..][..values.len()].copy_from_slice(values);
    }
}

/// Estimates of π, and whether q′ (`after_swap`), which is what π would propose with, is nearer to p than q is.
fn compare(
    log_p: &[f64],
    log_q: &[f64],
    log_pi: &[f64],
    after_swap: &[f64],
    split: Split,
    comparison: Comparison<'_>,
) -> Result<Verdict> {
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
    let mut verdict = Verdict {
        kl: enough.then(|| weights.kl_to(log_pi)).transpose()?,
        kl_proposal: enough.then(|| weights.kl_to_proposal()),
        tv: enough.then(|| weights.tv_to(log_pi)).transpose()?,
        ess: weights.ess() / log_p.len() as f64,
        log_z: Some(weights.log_z()),
        superior: false,
    };
    verdict.superior = match comparison.swap {
        Swap::Kl => weights.is_superior(after_swap)?,
        Swap::Tv if enough => {
            let weights = match comparison.outside {
                Some(outside) => weights.with_outside(outside_after_swap(outside, log_p, split)?),
                None => weights,
            };
            weights.tv_difference(after_swap)?.exceeds_zero(2.0)
        }
        _ => false,
    };
    Ok(verdict)
}

/// q′(P = 0) from π(P = 0) and the rows of the first proposal, which draws all of them where `outside` is needed.
fn outside_after_swap(outside: Estimate, log_p: &[f64], split: Split) -> Result<Estimate> {
    if !split.is_mixture() {
        return Ok(outside);
    }
    let [first, rest] = split.shares();
    let misses = log_p.iter().filter(|&&log_p| log_p == f64::NEG_INFINITY).count();
    Ok(outside.scaled(rest).plus(Estimate::frequency(misses, log_p.len())?.scaled(first)))
}

/// The paper's test: lower cross-entropy on held-out data, by more than two standard errors.
pub(super) struct DataJudge<B: Backend> {
    split: Split,
    log_probs: B::Buffer<f64>,
    /// log q₁ of the data.
    log_first: Vec<f64>,
    /// log-probs under the frozen policy.
    log_frozen: Vec<f64>,
    log_pi: Vec<f64>,
}

impl<B: Backend> DataJudge<B> {
    /// Room for `rows` sequences of data; `split` says what proposes.
    pub fn new(backend: &B, split: Split, rows: usize) -> Result<Self> {
        let log_probs = backend.zeros(rows, "held-out log-probs")?;
        let [log_first, log_frozen, log_pi] = [(); 3].map(|()| vec![0.0; rows]);
        Ok(DataJudge { split, log_probs, log_first, log_frozen, log_pi })
    }

    /// Compares what would propose if q ← π with what does: what `source` names, or from the first swap on `proposal`, each
    /// policy in its mixture with the first proposal where there is one.
    pub fn is_superior<R: Sampler<B>, P: Policy<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        source: Source,
        proposal: Option<&mut P>,
        policy: &mut P,
        data: &Batch<B>,
    ) -> Result<bool> {
        let DataJudge { split, log_probs, log_first, log_frozen, log_pi } = self;
        policy.score(data, B::view_mut(log_probs, data.rows))?;
        backend.download(log_probs, log_pi)?;
        if source != Source::Policy || split.is_mixture() {
            score(target, split.source, data, B::view_mut(log_probs, data.rows))?;
            backend.download(log_probs, log_first)?;
        }
        let before = match proposal.filter(|_| source == Source::Policy) {
            Some(proposal) => {
                proposal.score(data, B::view_mut(log_probs, data.rows))?;
                backend.download(log_probs, log_frozen)?;
                split.mixed(log_first, log_frozen)
            }
            None => log_first.clone(),
        };
        Ok(cross_entropy_difference(&before, &split.mixed(log_first, log_pi))?.exceeds_zero(2.0))
    }
}
