//! The guided proposal of a fit: a Markov chain in place of the base, looking ahead to the potential.

use super::plan::{Plan, is_edge};
use super::sample::{Sample, Source};
use crate::backend::{Backend, Cpu};
use crate::error::{Error, Result};
use crate::exact::{Exact, Guide, LookAhead};
use crate::features::FeatureSet;
use crate::models::{Markov, Sampler};
use crate::potential::{Potential, Role};
use crate::tokens::Batch;

/// Cells of the chain's table; past this it gives up positions, then its context.
const LARGEST_CHAIN: usize = 1 << 22;

/// Pseudo-count per token: the chain must support all that the base may emit.
const SMOOTHING: f64 = 0.1;

/// A starting λ beyond this in some component is not believed.
const LARGEST_START: f64 = 25.0;

/// A chain of first order by position fitted to samples of the base, coarser where its table would be too large.
pub(super) fn surrogate(batch: &Batch) -> Result<Markov> {
    let (vocab, longest) = (batch.space.vocab as usize, batch.space.longest as usize);
    let fits = |order: u32, positions: usize| {
        vocab.checked_pow(order + 1).is_some_and(|cells| cells.saturating_mul(positions) <= LARGEST_CHAIN)
    };
    let (order, by_position) = match () {
        () if fits(1, longest) => (1, true),
        () if fits(1, 1) => (1, false),
        () => (0, fits(0, longest)),
    };
    Markov::fit(batch, order, by_position, SMOOTHING)
}

/// A guide is doubted only on so many base samples that meet the constraints.
const FEWEST: usize = 100;

/// Samples of the base, unguided, and the chain fitted to them: what guides are made from and tried on.
pub(super) struct Trial {
    pub chain: Markov,
    pub tokens: Batch,
    pub sample: Sample,
}

/// The guide towards the plan's potential; where only the hard constraints could guide, that is noted.
///
/// # Errors
/// Constraints that exceed the limit as well, or that no sequence meets.
pub(super) fn guide<B: Backend, S: Sampler<B>>(
    trial: &Trial,
    source: &mut Source<'_, B, S>,
    plan: &mut Plan,
    limit: usize,
) -> Result<Guide> {
    let (guide, all) = match trial.towards(source, plan.features, &plan.potential()?, limit) {
        Err(Error::NoAnswer { .. }) => return Err(plan.contradiction()),
        guide => guide?,
    };
    if !all {
        plan.note(format!(
            "the automaton of all features has more than {limit} states: only hard constraints guide the proposal"
        ));
    }
    Ok(guide)
}

impl Trial {
    /// The guide over all features that are automata where their product has at most `limit` states, else over the hard
    /// constraints only; and whether it is the latter for that reason.
    ///
    /// A chain stands in for the base, so that a guide can be worse than none. The second moment of the weights, which is
    /// what divides the effective sample size, is compared on the same samples of the base r with and without the guide
    /// q, E_q[(P/q)²] = E_r[(P/r)²·r/q]; where the guide loses, constraints alone are tried, then none.
    pub fn towards<B: Backend, S: Sampler<B>>(
        &self,
        source: &mut Source<'_, B, S>,
        features: &FeatureSet,
        potential: &Potential,
        limit: usize,
    ) -> Result<(Guide, bool)> {
        let (guide, all) = towards(&self.chain, features, potential, limit)?;
        let rows = self.sample.survivors(potential);
        if rows.len() < FEWEST {
            return Ok((guide, all));
        }
        let log_w = |row: usize| potential.log_factor(self.sample.row(row));
        let unguided = log_sum(rows.iter().map(|&row| 2.0 * log_w(row)));
        let mut wins = |guide: &Guide| -> Result<bool> {
            let log_q = source.guided_log_q(guide, &self.tokens)?;
            let log_ratio = |row: usize| self.sample.log_base[row] - log_q[row];
            Ok(log_sum(rows.iter().map(|&row| 2.0 * log_w(row) + log_ratio(row))) <= unguided)
        };
        if wins(&guide)? {
            return Ok((guide, all));
        }
        let constraints = constraints(&self.chain, features, potential, limit)?;
        if potential.is_constrained() && wins(&constraints)? {
            return Ok((constraints, true));
        }
        let nothing = vec![Role::Ignore; features.len()];
        Ok((LookAhead::towards(&self.chain, features, &Potential::new(&Cpu, &nothing)?, limit)?.guide(), true))
    }
}

/// log Σ exp, shifted by the largest.
fn log_sum(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    largest + values.map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// The guide over all features that are automata where their product has at most `limit` states, else over the hard
/// constraints only; and which of the two it is.
fn towards(chain: &Markov, features: &FeatureSet, potential: &Potential, limit: usize) -> Result<(Guide, bool)> {
    match LookAhead::towards(chain, features, potential, limit) {
        Err(Error::Argument { .. }) => Ok((constraints(chain, features, potential, limit)?, false)),
        ahead => Ok((ahead?.guide(), true)),
    }
}

/// The guide over the hard constraints only.
fn constraints(chain: &Markov, features: &FeatureSet, potential: &Potential, limit: usize) -> Result<Guide> {
    let constrain = |role: &Role| if matches!(role, Role::Tilt(_)) { Role::Ignore } else { *role };
    let roles: Vec<Role> = potential.roles().iter().map(constrain).collect();
    Ok(LookAhead::towards(chain, features, &Potential::new(&Cpu, &roles)?, limit)?.guide())
}

/// λ of the plan's tilting automaton features, fitted exactly under the chain: a start from which the first guided
/// sample already shows what is wanted. Leaves λ at 0 where the chain has no answer; the fit itself will tell.
///
/// A moment at the edge has no finite λ, and one that is merely large would hide the other value from every sample: such
/// features start where a tenth of the sequences have it.
pub(super) fn start(chain: &Markov, plan: &mut Plan, limit: usize) {
    let matters = |&i: &usize| plan.features.is_automaton(i) && plan.roles[i] != Role::Ignore;
    let which: Vec<usize> = (0..plan.roles.len()).filter(matters).collect();
    if let Ok(exact) = fit_under(chain, plan, &which, limit) {
        let sane = |role: &Role| if let Role::Tilt(lambda) = role { lambda.abs() <= LARGEST_START } else { true };
        if exact.roles().iter().all(sane) {
            which.iter().zip(exact.roles()).for_each(|(&i, &role)| plan.roles[i] = role);
        }
    }
}

fn fit_under(chain: &Markov, plan: &Plan, which: &[usize], limit: usize) -> Result<Exact> {
    let features = plan.features.subset(which);
    let pick = |i: &usize| plan.roles[*i];
    let potential = Potential::new(&Cpu, &which.iter().map(pick).collect::<Vec<_>>())?;
    let start = |&i: &usize| if is_edge(plan.targets[i]) { plan.targets[i].clamp(0.1, 0.9) } else { plan.targets[i] };
    let targets: Vec<f64> = which.iter().map(start).collect();
    Exact::new(chain, &features, &potential, limit)?.fit_moments(&targets)
}
