//! A final judgement of a policy, on draws that nothing was trained on.

use super::{Draws, Source, Target};
use crate::backend::Backend;
use crate::error::Result;
use crate::models::{Policy, Sampler};
use crate::rng::Draw;
use crate::weights::{Estimate, ImportanceWeights};

/// Estimates from one independent sample of a proposal and one of π.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// log Z in nats.
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
    let weights = ImportanceWeights::new(&draws.host_log_p, &draws.host_log_q)?;
    let weights = match outside {
        Some(outside) => weights.with_outside(outside),
        None => weights,
    };
    Ok(Evaluation {
        log_z: weights.log_z(),
        kl_policy: weights.kl_to(&host_log_pi)?,
        tv_policy: weights.tv_to(&host_log_pi)?,
        kl_proposal: weights.kl_to_proposal(),
        kl_policy_base,
        ess: weights.ess(),
        rows,
        pareto_k: weights.pareto_k(),
        moments_target: weights.moments(&draws.host_phi, features)?,
        moments_policy,
        warnings: weights.warning().into_iter().collect(),
    })
}
