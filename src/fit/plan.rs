//! Which feature tilts, which is a hard constraint, which is left out, and why.

use super::Sample;
use super::newton::EXTREME_LAMBDA;
use super::targets::Targets;
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::features::FeatureSet;
use crate::potential::{Potential, Role};

/// A constant of the data becomes a hard constraint where luck would explain it with less than this probability.
const LUCK: f64 = 1e-6;

/// Fewest rows that an expectation under the constraints found so far is taken from.
const FEWEST: usize = 100;

/// The role and the target of each feature; λ is kept elsewhere, a tilting role holds the latest one.
pub(super) struct Plan<'a> {
    pub features: &'a FeatureSet,
    wanted: &'a Targets,
    pub roles: Vec<Role>,
    /// The moments to reach: the wanted ones, or what stands for a constant of the data.
    pub targets: Vec<f64>,
    /// Which tilting features the last sample could not tell of, as its proposal's tilt left one value only.
    held: Vec<bool>,
    pub warnings: Vec<String>,
}

impl<'a> Plan<'a> {
    /// Roles from the wanted moments and a sample of the base. Without `constraints` (the papers' schedule) every
    /// feature that varies tilts.
    pub fn new(features: &'a FeatureSet, wanted: &'a Targets, base: &Sample, constraints: bool) -> Result<Self> {
        let mut plan = Plan {
            features,
            wanted,
            roles: vec![Role::Tilt(0.0); features.len()],
            targets: wanted.moments().to_vec(),
            held: vec![false; features.len()],
            warnings: Vec::new(),
        };
        let rows: Vec<usize> = (0..base.rows()).collect();
        let mut constants = Vec::new();
        for i in 0..features.len() {
            match (wanted.rows(), wanted.constant(i)) {
                (None, _) if constraints && is_edge(plan.targets[i]) => plan.require_as_wanted(i)?,
                (Some(_), Some(value)) if base.range(i, &rows) == (value, value) => {
                    plan.ignore(i, format!("is {value} in all data and in all samples of the base"));
                }
                (Some(_), Some(value)) if constraints && plan.is_binary(i) => constants.push((i, value)),
                (Some(data), Some(value)) if constraints => plan.soften(i, value, base.range(i, &rows), data),
                _ => {}
            }
        }
        plan.resolve_constants(base, constants);
        Ok(plan)
    }

    /// Whether the feature is 0 or 1 by its kind.
    fn is_binary(&self, i: usize) -> bool {
        self.features.features()[i].is_binary()
    }

    fn name(&self, i: usize) -> &str {
        &self.features.names()[i]
    }

    /// Indices of the features that tilt and are not held.
    pub fn tilting(&self) -> Vec<usize> {
        (0..self.roles.len()).filter(|&i| matches!(self.roles[i], Role::Tilt(_)) && !self.held[i]).collect()
    }

    /// The potential of the present roles.
    pub fn potential(&self) -> Result<Potential> {
        Potential::new(&Cpu, &self.roles)
    }

    /// Sets λ of the tilting features, in their order.
    pub fn set_lambda(&mut self, lambda: &[f64]) {
        for (i, &lambda) in self.tilting().into_iter().zip(lambda) {
            self.roles[i] = Role::Tilt(lambda);
        }
    }

    /// Adds a warning that is not there yet.
    pub fn note(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn ignore(&mut self, i: usize, why: String) {
        self.warnings.push(format!("feature '{}' {why}: it is left out", self.name(i)));
        self.roles[i] = Role::Ignore;
    }

    fn require_as_wanted(&mut self, i: usize) -> Result<()> {
        if !self.is_binary(i) {
            let what = format!("wanted moment of feature '{}'", self.name(i));
            return Err(Error::argument(
                what,
                "strictly between 0 and 1, as its values are fractions",
                self.targets[i],
            ));
        }
        self.roles[i] = Role::Require(self.targets[i] as f32);
        Ok(())
    }

    /// A fraction that is constant in the data: where that is an end of what the base shows, no finite λ reaches it,
    /// and the target moves inwards by half a row's worth of the range.
    fn soften(&mut self, i: usize, value: f64, (low, high): (f64, f64), data: usize) {
        let half = 0.5 / (data as f64 + 1.0) * (high - low);
        if value <= low || value >= high {
            self.targets[i] = if value <= low { low + half } else { high - half };
            let (name, target) = (self.name(i), self.targets[i]);
            self.warnings.push(format!("feature '{name}' is {value} in all data: its target is set to {target:.6}"));
        }
    }

    /// Decides on the 0/1 features that are constant in the data, the least explicable first: each is judged among the
    /// samples that meet the constraints so far, where there are enough of them.
    fn resolve_constants(&mut self, base: &Sample, mut constants: Vec<(usize, f64)>) {
        let data = self.wanted.rows().unwrap_or(0) as f64;
        // log of the chance that all data rows show the constant, when one does with probability `share`.
        let log_luck = |share: f64| data * share.ln();
        let all: Vec<usize> = (0..base.rows()).collect();
        constants.sort_by(|a, b| share(base, &all, *a).total_cmp(&share(base, &all, *b)));
        for (i, value) in constants {
            let met: Vec<usize> = all.iter().copied().filter(|&row| self.meets(base.row(row))).collect();
            let share = share(base, if met.len() >= FEWEST { &met } else { &all }, (i, value));
            if log_luck(share) < LUCK.ln() {
                self.roles[i] = Role::Require(value as f32);
            } else if data * (1.0 - share) < 0.5 {
                self.ignore(i, format!("is {value} in all data, and the base expects nothing else of so few rows"));
            } else {
                // A constraint would give strings probability 0 that were merely not seen.
                self.targets[i] = if value == 0.0 { 0.5 / (data + 1.0) } else { 1.0 - 0.5 / (data + 1.0) };
                let (name, target) = (self.name(i), self.targets[i]);
                self.warnings.push(format!(
                    "feature '{name}' is {value} in all data, which may be chance: its target is set to {target:.6}"
                ));
            }
        }
    }

    fn meets(&self, phi: &[f32]) -> bool {
        self.roles.iter().zip(phi).all(|(role, &value)| !matches!(role, Role::Require(wanted) if *wanted != value))
    }

    /// Holds the tilting features against a sample of the proposal: what is constant among the rows with P > 0 cannot
    /// be tilted. Where it agrees with its target it is left out; but what the proposal itself tilts keeps its λ, since
    /// without it p would have the other value again.
    ///
    /// # Errors
    /// Too few rows with P > 0, or a target that no weighting of the sample reaches.
    pub fn settle(&mut self, sample: &Sample) -> Result<()> {
        let rows = sample.survivors(&self.potential()?);
        if rows.is_empty() {
            let reason = format!(
                "none of {} samples meets the constraints; draw more samples, use the guided proposal, or check that \
                 the wanted moments do not contradict each other",
                sample.rows()
            );
            return Err(Error::no_answer("fit", reason));
        }
        self.held.fill(false);
        for i in self.tilting() {
            let (target, (low, high)) = (self.targets[i], sample.range(i, &rows));
            let edge = is_edge(self.wanted.moments()[i]) && is_edge(target);
            if low == high && self.agrees(i, low) && self.roles[i] != Role::Tilt(0.0) {
                self.held[i] = true;
            } else if low == high && self.agrees(i, low) {
                self.ignore(i, format!("is {low} in all samples that meet the constraints"));
            } else if low == high || !(edge || low < target && target < high) {
                return Err(self.unreachable(&[i], sample, &rows));
            }
        }
        Ok(())
    }

    /// Whether a constant `value` explains the target of feature `i`: exactly for a user's target; within four
    /// standard errors, and a row and a half, for one from data.
    fn agrees(&self, i: usize, value: f64) -> bool {
        let difference = (value - self.targets[i]).abs();
        let data = self.wanted.rows().map_or(f64::INFINITY, |rows| rows as f64);
        difference <= (4.0 * self.wanted.moment_covariance(i, i).sqrt()).max(1.5 / data).max(1e-9)
    }

    /// The error of constraints that no sequence meets together.
    pub fn contradiction(&self) -> Error {
        let require = |(i, role): (usize, &Role)| match role {
            Role::Require(value) => Some(format!("'{}' = {value}", self.name(i))),
            _ => None,
        };
        let constraints: Vec<String> = self.roles.iter().enumerate().filter_map(require).collect();
        Error::no_answer("fit", format!("no sequence meets the constraints {} together", constraints.join(", ")))
    }

    /// The error that names features whose target no finite λ reaches.
    pub fn unreachable(&self, which: &[usize], sample: &Sample, rows: &[usize]) -> Error {
        let names: Vec<String> = which.iter().map(|&i| format!("'{}'", self.name(i))).collect();
        let describe = |&i: &usize| match sample.range(i, rows) {
            (low, high) if low == high => {
                format!("{:.6} (all samples that meet the constraints have {low})", self.targets[i])
            }
            (low, high) => format!("{:.6} (the samples range from {low} to {high})", self.targets[i]),
        };
        let wanted: Vec<String> = which.iter().map(describe).collect();
        let reason = format!(
            "no finite coefficients reach the wanted {}; the targets contradict each other or the constraints, or more \
             samples or the guided proposal are needed",
            wanted.join(" and ")
        );
        Error::no_answer(format!("moments of {}", names.join(", ")), reason)
    }

    /// Leaves out the features that stand for a constant of the data and yet would be tilted away from it: the present
    /// p shows the other value less often than half a row of data, so there is nothing to learn. Whether there were any.
    ///
    /// (The half count is a bound, not a wish; a tilt against the data would be the artefact of having to name a number.)
    pub fn drop_contrary(&mut self) -> bool {
        let contrary = |&i: &usize| match (self.wanted.constant(i), self.roles[i]) {
            (Some(value), Role::Tilt(lambda)) if is_edge(value) && !is_edge(self.targets[i]) => {
                if value == 0.0 {
                    lambda > 0.0
                } else {
                    lambda < 0.0
                }
            }
            _ => false,
        };
        let contrary: Vec<usize> = self.tilting().into_iter().filter(contrary).collect();
        for &i in &contrary {
            let value = self.wanted.moments()[i];
            self.targets[i] = value;
            let about = format!("feature '{}' ", self.name(i));
            self.warnings.retain(|warning| !warning.starts_with(&about));
            self.ignore(i, format!("is {value} in all data, and the target expects nothing else of so few rows"));
        }
        !contrary.is_empty()
    }

    /// Warns of coefficients so large that the moments are at the edge of what is possible, and of those that no sample
    /// could tell of.
    pub fn note_extremes(&mut self) {
        for i in 0..self.roles.len() {
            let Role::Tilt(lambda) = self.roles[i] else { continue };
            let edge = if self.held[i] {
                "that of the guide, as its samples show one value only"
            } else if lambda.abs() > EXTREME_LAMBDA {
                "the wanted moments are at the edge of what the samples can show"
            } else {
                continue;
            };
            let name = self.name(i);
            self.note(format!("the coefficient of feature '{name}' is {lambda:.1}: {edge}"));
        }
    }

    /// Cov_data/|D| of the tilting features, row-major. A target that stands for a constant of the data has the
    /// variance of its own proportion.
    pub fn target_covariance(&self) -> Vec<f64> {
        let tilting = self.tilting();
        let entry = |i: usize, j: usize| match self.wanted.rows() {
            Some(data) if i == j && self.wanted.constant(i).is_some() => {
                self.targets[i] * (1.0 - self.targets[i]) / data as f64
            }
            _ => self.wanted.moment_covariance(i, j),
        };
        tilting.iter().flat_map(|&i| tilting.iter().map(move |&j| entry(i, j))).collect()
    }
}

pub(super) fn is_edge(moment: f64) -> bool {
    moment == 0.0 || moment == 1.0
}

/// The share of `rows` in which feature `i` has `value`.
fn share(sample: &Sample, rows: &[usize], (i, value): (usize, f64)) -> f64 {
    let hits = rows.iter().filter(|&&row| f64::from(sample.row(row)[i]) == value).count();
    hits as f64 / rows.len().max(1) as f64
}
