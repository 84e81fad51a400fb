//! A final judgement of a policy, on draws that nothing was trained on.

use super::{Draws, Source, Target};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::{Policy, Sampler};
use crate::rng::Draw;
use crate::weights::{Estimate, ImportanceWeights, within_contexts};

/// Estimates of one context.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct ContextEvaluation {
    /// Its number.
    pub context: usize,
    /// Draws from the proposal that continue it.
    pub rows: usize,
    /// log Z of it in nats.
    pub log_z: Estimate,
    /// KL(p_c‖π) in nats.
    pub kl_policy: Estimate,
    /// Effective sample size of the proposal's weights.
    pub ess: f64,
}

/// Estimates from one independent sample of a proposal and one of π. With contexts, those of divergences and moments are
/// means over them: each weight is divided by the Ẑ_c of its context, whose error, being of second order, they leave out.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// log Z in nats, of all contexts together.
    pub log_z: Estimate,
    /// KL(p‖π) in nats.
    pub kl_policy: Estimate,
    /// TV(p, π).
    pub tv_policy: Estimate,
    /// KL(p‖q) in nats.
    pub kl_proposal: Estimate,
    /// KL(π‖r) in nats.
    pub kl_policy_base: Estimate,
    /// Effective sample size of the proposal's weights.
    pub ess: f64,
    /// Sequences drawn from the proposal.
    pub rows: usize,
    /// Pareto k̂ of the weights, where there are enough of them.
    pub pareto_k: Option<f64>,
    /// E_p φ per feature.
    pub moments_target: Vec<Estimate>,
    /// E_π φ per feature.
    pub moments_policy: Vec<Estimate>,
    /// Of each context that had a draw of positive weight, none where there are no contexts.
    pub contexts: Vec<ContextEvaluation>,
    /// Plain words where the weights do not bear these estimates.
    pub warnings: Vec<String>,
}

/// Draws `rows` sequences from `source` (π itself for [`Source::Policy`]) and as many from π, and estimates.
///
/// # Errors
/// No draw of positive weight, a guided source without a guide.
pub fn evaluate<B: Backend, R: Sampler<B>, P: Policy<B>>(
    backend: &B,
    target: &mut Target<'_, B, R>,
    policy: &mut P,
    source: Source,
    rows: usize,
    draw: Draw,
) -> Result<Evaluation> {
    let features = target.features.len();
    let space = target.base.space();
    let mut from_policy = Draws::new(backend, space, rows, features)?;
    from_policy.fill(backend, target, Source::Policy, Some(policy), draw)?;
    let Draws { host_log_q, host_log_base, .. } = &from_policy;
    let log_ratio = host_log_q.iter().zip(host_log_base).map(|(log_pi, log_r)| log_pi - log_r);
    let kl_policy_base = Estimate::mean(&log_ratio.collect::<Vec<_>>())?;
    let (moments_policy, outside) = (from_policy.moments()?, from_policy.outside(source)?);
    let missing = outside.map(|_| Missing::of(backend, &from_policy)).transpose()?;
    let draws = if source == Source::Policy {
        from_policy
    } else {
        let mut draws = Draws::new(backend, space, rows, features)?;
        draws.fill(backend, target, source, None::<&mut P>, draw.skip(rows as u64))?;
        draws
    };
    // What π itself drew carries log π already.
    let mut host_log_pi = draws.host_log_q.clone();
    if source != Source::Policy {
        let mut log_pi = backend.zeros(rows, "log-probs of the policy")?;
        policy.score(&draws.batch, B::view_mut(&mut log_pi, rows))?;
        backend.download(&log_pi, &mut host_log_pi)?;
    }
    let mut weights = ImportanceWeights::new(&draws.host_log_p, &draws.host_log_q)?;
    let log_z = weights.log_z();
    let (mut contexts, mut unknown) = (Vec::new(), None);
    if let Some(count) = target.contexts.map(|contexts| contexts.len()) {
        let of = context_numbers(backend, &draws)?;
        contexts = evaluate_contexts(&draws, &host_log_pi, &of, count, missing.as_ref())?;
        let mut known = vec![f64::NEG_INFINITY; count];
        contexts.iter().for_each(|context| known[context.context] = context.log_z.value);
        weights = ImportanceWeights::new(&within_contexts(&draws.host_log_p, &of, &known), &draws.host_log_q)?;
        unknown = (contexts.len() < count).then(|| {
            format!(
                "{} of {count} contexts had no draw of positive weight: nothing is known of them",
                count - contexts.len()
            )
        });
    }
    let weights = match outside {
        Some(outside) => weights.with_outside(outside),
        None => weights,
    };
    Ok(Evaluation {
        log_z,
        kl_policy: weights.kl_to(&host_log_pi)?,
        tv_policy: weights.tv_to(&host_log_pi)?,
        kl_proposal: weights.kl_to_proposal(),
        kl_policy_base,
        ess: weights.ess(),
        rows,
        pareto_k: weights.pareto_k(),
        moments_target: weights.moments(&draws.host_phi, features)?,
        moments_policy,
        contexts,
        warnings: weights.warning().into_iter().chain(weights.warning_of(&host_log_pi)?).chain(unknown).collect(),
    })
}

/// The context of each draw.
fn context_numbers<B: Backend>(backend: &B, draws: &Draws<B>) -> Result<Vec<u32>> {
    let mut numbers = vec![0; draws.rows()];
    backend.download(&draws.batch.context, &mut numbers)?;
    Ok(numbers)
}

/// What π drew, by contexts: whether P was 0.
struct Missing {
    context: Vec<u32>,
    zero: Vec<bool>,
}

impl Missing {
    fn of<B: Backend>(backend: &B, from_policy: &Draws<B>) -> Result<Self> {
        let zero = from_policy.host_log_p.iter().map(|log_p| *log_p == f64::NEG_INFINITY).collect();
        Ok(Missing { context: context_numbers(backend, from_policy)?, zero })
    }

    /// π(P = 0) in a context; none where π drew nothing there.
    fn share(&self, context: usize) -> Option<Estimate> {
        let of = || self.context.iter().zip(&self.zero).filter(|(number, _)| **number as usize == context);
        Estimate::frequency(of().filter(|(_, zero)| **zero).count(), of().count()).ok()
    }
}

/// Estimates of each of `count` contexts that has a draw of positive weight; `of` is the context of each draw.
fn evaluate_contexts<B: Backend>(
    draws: &Draws<B>,
    log_pi: &[f64],
    of: &[u32],
    count: usize,
    missing: Option<&Missing>,
) -> Result<Vec<ContextEvaluation>> {
    let mut rows = vec![Vec::new(); count];
    of.iter().enumerate().for_each(|(row, &context)| rows[context as usize].push(row));
    let mut found = Vec::new();
    for (context, rows) in rows.iter().enumerate() {
        let values = |from: &[f64]| rows.iter().map(|&row| from[row]).collect::<Vec<_>>();
        let (log_p, log_q, log_pi) = (values(&draws.host_log_p), values(&draws.host_log_q), values(log_pi));
        let weights = match ImportanceWeights::new(&log_p, &log_q) {
            Ok(weights) => weights,
            Err(Error::NoAnswer { .. }) => continue,
            Err(error) => return Err(error),
        };
        let weights = match missing.and_then(|missing| missing.share(context)) {
            Some(share) => weights.with_outside(share),
            None => weights,
        };
        found.push(ContextEvaluation {
            context,
            rows: rows.len(),
            log_z: weights.log_z(),
            kl_policy: weights.kl_to(&log_pi)?,
            ess: weights.ess(),
        });
    }
    Ok(found)
}
