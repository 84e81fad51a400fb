//! Potentials as people write them: products of models, constraints, exponentials of features, rewards.

use std::collections::BTreeMap;
use std::ops::{Add, Mul, Neg, Sub};
use std::path::Path;

use super::{Potential, Role};
use crate::backend::Backend;
use crate::checkpoint::write_atomically;
use crate::error::{Error, Result};
use crate::features::{Feature, FeatureSet};

/// One factor of a [`Formula`].
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Factor {
    /// A model's probability of the sequence: [`model`].
    Model(String),
    /// That to some power: [`Formula::pow`].
    Power {
        /// The model.
        model: String,
        /// The power.
        exponent: f64,
    },
    /// 1 where the feature is 1, else 0: [`require`].
    Require(String),
    /// 1 where the feature is 0, else 0: [`forbid`].
    Forbid(String),
    /// The exponential of a sum of features, each times its coefficient λ: [`exp`].
    Exp(BTreeMap<String, f64>),
    /// exp(reward / temperature): [`reward`].
    Reward {
        /// The scorer whose scores are rewards.
        name: String,
        /// The lower, the more the reward counts; above 0.
        temperature: f64,
        /// What no reward exceeds, where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at_most: Option<f64>,
    },
}

/// A potential P(x) as a product of factors, by the names of models and features. It is data: it serialises as a list of
/// its factors, to be read and edited.
///
/// ```
/// use ebm_dpg::potential::{Formula, exp, forbid, model, phi, require, reward};
///
/// let p = model("base") * require("motif") * exp(0.7 * phi("length") - phi("ing")) * reward("kind", 0.5);
/// let json = serde_json::to_string(&p)?;
/// let want = r#"[{"model":"base"},{"require":"motif"},{"exp":{"ing":-1.0,"length":0.7}},
///     {"reward":{"name":"kind","temperature":0.5}}]"#;
/// assert_eq!(serde_json::from_str::<Formula>(want)?, p);
/// assert_eq!((model("base").pow(2.0) * forbid("motif")).factors().len(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Formula {
    factors: Vec<Factor>,
}

/// A weighted sum of features: [`phi`], sums, and products with numbers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Linear(BTreeMap<String, f64>);

/// A model's probability of the sequence.
pub fn model(name: &str) -> Formula {
    Factor::Model(name.into()).into()
}

/// Probability 0 for all sequences but those whose feature is 1.
pub fn require(feature: &str) -> Formula {
    Factor::Require(feature.into()).into()
}

/// Probability 0 for all sequences but those whose feature is 0.
pub fn forbid(feature: &str) -> Formula {
    Factor::Forbid(feature.into()).into()
}

/// exp⟨λ, φ⟩.
pub fn exp(sum: Linear) -> Formula {
    Factor::Exp(sum.0).into()
}

/// exp(reward / temperature): the target of KL-controlled reinforcement learning is base · reward.
pub fn reward(name: &str, temperature: f64) -> Formula {
    Factor::Reward { name: name.into(), temperature, at_most: None }.into()
}

/// The value of a feature.
pub fn phi(feature: &str) -> Linear {
    Linear(BTreeMap::from([(feature.into(), 1.0)]))
}

impl Formula {
    /// The factors, in order.
    pub fn factors(&self) -> &[Factor] {
        &self.factors
    }

    /// This formula to some power: of models, of exponentials and of rewards. Constraints are 0 or 1, and stay as they are.
    pub fn pow(self, exponent: f64) -> Formula {
        let factor = |factor: Factor| match factor {
            Factor::Model(model) => Factor::Power { model, exponent },
            Factor::Power { model, exponent: own } => Factor::Power { model, exponent: own * exponent },
            Factor::Exp(sum) => Factor::Exp((exponent * Linear(sum)).0),
            Factor::Reward { name, temperature, at_most } => {
                Factor::Reward { name, temperature: temperature / exponent, at_most }
            }
            constraint @ (Factor::Require(_) | Factor::Forbid(_)) => constraint,
        };
        Formula { factors: self.factors.into_iter().map(factor).collect() }
    }

    /// This formula, its rewards promised not to exceed `bound`: [`Formula::log_bound`] counts on it, and
    /// [`Reward::at_most`](super::Reward::at_most) sees to it.
    pub fn at_most(mut self, bound: f64) -> Formula {
        for factor in &mut self.factors {
            if let Factor::Reward { at_most, .. } = factor {
                *at_most = Some(bound);
            }
        }
        self
    }

    /// The role that each feature of `features` plays, in their order; those that are not named are ignored.
    ///
    /// # Errors
    /// A feature that is not among them, one that is required and forbidden, or required and in an exponent; a coefficient
    /// that is not finite.
    pub fn roles(&self, features: &FeatureSet) -> Result<Vec<Role>> {
        let mut roles = vec![Role::Ignore; features.len()];
        let find = |name: &str| {
            features.names().iter().position(|other| other == name).ok_or_else(|| {
                Error::argument(
                    "feature of the potential",
                    format!("one of {:?}", features.names()),
                    format!("'{name}'"),
                )
            })
        };
        let mut add = |name: &str, role: Role| -> Result<()> {
            let at = &mut roles[find(name)?];
            *at = match (*at, role) {
                (Role::Ignore, role) => role,
                (Role::Tilt(a), Role::Tilt(b)) => Role::Tilt(a + b),
                (Role::Require(a), Role::Require(b)) if a == b => role,
                (one, other) => {
                    let what = format!("feature '{name}' of the potential");
                    return Err(Error::argument(what, format!("{one:?} alone"), format!("{other:?} too")));
                }
            };
            Ok(())
        };
        for factor in &self.factors {
            match factor {
                Factor::Require(name) => add(name, Role::Require(1.0))?,
                Factor::Forbid(name) => add(name, Role::Require(0.0))?,
                Factor::Exp(sum) => sum.iter().try_for_each(|(name, &lambda)| add(name, Role::Tilt(lambda)))?,
                Factor::Model(_) | Factor::Power { .. } | Factor::Reward { .. } => {}
            }
        }
        match roles.iter().zip(features.names()).find(|(role, _)| matches!(role, Role::Tilt(l) if !l.is_finite())) {
            Some((role, name)) => {
                Err(Error::argument(format!("coefficient of '{name}'"), "a finite number", format!("{role:?}")))
            }
            None => Ok(roles),
        }
    }

    /// The part of the potential that features decide: b(x)·exp⟨λ, φ(x)⟩.
    ///
    /// # Errors
    /// As [`Formula::roles`], and memory that cannot be had.
    pub fn potential<B: Backend>(&self, backend: &B, features: &FeatureSet) -> Result<Potential<B>> {
        Potential::new(backend, &self.roles(features)?)
    }

    /// The scorers in the potential, each with the factor of its score in log P and what no score exceeds.
    ///
    /// # Errors
    /// An exponent or a temperature that is out of range.
    pub(super) fn scores(&self) -> Result<Vec<(&str, f64, Option<f64>)>> {
        let mut scores = Vec::new();
        for factor in &self.factors {
            scores.push(match factor {
                Factor::Model(name) => (name.as_str(), 1.0, Some(0.0)),
                Factor::Power { model, exponent } if exponent.is_finite() && *exponent != 0.0 => {
                    (model.as_str(), *exponent, Some(0.0))
                }
                Factor::Power { model, exponent } => {
                    return Err(Error::argument(format!("exponent of '{model}'"), "finite and not 0", exponent));
                }
                Factor::Reward { name, temperature, at_most } if *temperature > 0.0 && temperature.is_finite() => {
                    (name.as_str(), 1.0 / temperature, *at_most)
                }
                Factor::Reward { name, temperature, .. } => {
                    return Err(Error::argument(format!("temperature of '{name}'"), "a positive number", temperature));
                }
                Factor::Require(_) | Factor::Forbid(_) | Factor::Exp(_) => continue,
            });
        }
        Ok(scores)
    }

    /// What log P never exceeds: models are probabilities and φ is in [0, 1]. `None` where no bound is known, as a reward
    /// has none or a model has a negative exponent. A sample of proposal q can be accepted with probability P / (q · bound)
    /// where q is among the models.
    ///
    /// # Errors
    /// As [`Formula::roles`]; an exponent or a temperature that is out of range.
    pub fn log_bound(&self, features: &FeatureSet) -> Result<Option<f64>> {
        let of_roles: f64 = self.roles(features)?.iter().map(Role::log_bound).sum();
        let of_score =
            |(_, factor, at_most): (&str, f64, Option<f64>)| at_most.filter(|_| factor > 0.0).map(|m| factor * m);
        let of_scores: Option<f64> = self.scores()?.into_iter().map(of_score).sum();
        Ok(of_scores.map(|of_scores| of_roles + of_scores))
    }
}

/// A potential and the features it speaks of, as a file.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stated {
    features: Vec<Named>,
    potential: Formula,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    is: Feature,
}

impl Formula {
    /// Writes the formula and the features as JSON, to a temporary file that is synced, then renamed.
    ///
    /// # Errors
    /// A feature that is a closure, [`Error::File`].
    pub fn save(&self, path: &Path, features: &FeatureSet) -> Result<()> {
        let named = features.names().iter().zip(features.features());
        let features = named.map(|(name, is)| Named { name: name.clone(), is: is.clone() }).collect();
        let mut json = serde_json::to_vec_pretty(&Stated { features, potential: self.clone() })
            .map_err(|error| Error::file(path, format!("cannot be written: {error}")))?;
        json.push(b'\n');
        write_atomically(path, &json)
    }

    /// Reads what [`Formula::save`] wrote, or a person did: the formula, and its features added to `features`, which bring
    /// the space and what tokens are in text.
    ///
    /// # Errors
    /// [`Error::File`] naming line and column, or the feature at fault.
    pub fn load(path: &Path, features: FeatureSet) -> Result<(Formula, FeatureSet)> {
        let bytes = std::fs::read(path).map_err(|error| Error::file(path, format!("cannot be read: {error}")))?;
        let stated: Stated = serde_json::from_slice(&bytes).map_err(|error| Error::file(path, error))?;
        let add = |set: FeatureSet, named: Named| set.with(named.name, named.is);
        let features = stated.features.into_iter().try_fold(features, add).map_err(|error| Error::file(path, error))?;
        stated.potential.roles(&features).map_err(|error| Error::file(path, error))?;
        Ok((stated.potential, features))
    }
}

impl From<Factor> for Formula {
    fn from(factor: Factor) -> Self {
        Formula { factors: vec![factor] }
    }
}

impl Mul for Formula {
    type Output = Formula;

    fn mul(mut self, mut other: Formula) -> Formula {
        self.factors.append(&mut other.factors);
        self
    }
}

impl Mul<Linear> for f64 {
    type Output = Linear;

    fn mul(self, mut sum: Linear) -> Linear {
        sum.0.values_mut().for_each(|lambda| *lambda *= self);
        sum
    }
}

impl Add for Linear {
    type Output = Linear;

    fn add(mut self, other: Linear) -> Linear {
        other.0.into_iter().for_each(|(name, lambda)| *self.0.entry(name).or_default() += lambda);
        self
    }
}

impl Sub for Linear {
    type Output = Linear;

    fn sub(self, other: Linear) -> Linear {
        self + -other
    }
}

impl Neg for Linear {
    type Output = Linear;

    fn neg(self) -> Linear {
        -1.0 * self
    }
}
