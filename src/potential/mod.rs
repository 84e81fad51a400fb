//! The potential P(x) = r(x)·b(x)·exp⟨λ, φ(x)⟩, in log space.
//!
//! [`Potential`] is what follows from the features, a [`Role`] for each; a [`Formula`] says by name what all of P is, with
//! products of several models and rewards for r ([`Product`], [`SampledProduct`], [`Reward`]).

use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};

mod formula;
mod gpu;
mod product;

pub use formula::{Factor, Formula, Linear, exp, forbid, model, phi, require, reward};
pub use product::{Product, Reward, SampledProduct};

/// What the potential does with one feature.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Role {
    /// Enters as λ·φ(x), with this finite λ.
    Tilt(f64),
    /// Enters b(x): P(x) = 0 unless φ(x) equals this value (0 or 1).
    Require(f32),
    /// Left out: the feature is computed and reported, but does not enter.
    Ignore,
}

impl Role {
    /// What this feature at most adds to log P, φ being in [0, 1].
    pub fn log_bound(&self) -> f64 {
        if let Role::Tilt(lambda) = self { lambda.max(0.0) } else { 0.0 }
    }
}

/// The kernels of this stage.
pub trait PotentialKernel: Memory {
    /// See [`Potential::log_potential`]; shapes are already checked.
    fn log_potential(
        &self,
        potential: &Potential<Self>,
        log_base: Self::View<'_, f64>,
        phi: Self::View<'_, f32>,
        log_p: Self::ViewMut<'_, f64>,
    ) -> Result<()>;

    /// `to` = `before` + `factor`·`scores`, each product and sum rounded by itself; all of one length, `before` being zeros
    /// where there are none.
    fn add_scaled(
        &self,
        before: Option<Self::View<'_, f64>>,
        factor: f64,
        scores: Self::View<'_, f64>,
        to: Self::ViewMut<'_, f64>,
    ) -> Result<()>;
}

/// log P(x) − log r(x) as a function of φ(x): a [`Role`] for each feature.
pub struct Potential<B: Memory = Cpu> {
    /// One role per feature, in the features' order.
    roles: Vec<Role>,
    /// λ per feature, `[F]`; −0 where the feature does not tilt, which tells it from a λ of 0: 0·NaN is NaN.
    coefficients: B::Buffer<f64>,
    /// The required value per feature, NaN where none is, `[F]`.
    required: B::Buffer<f32>,
}

impl<B: Backend> Potential<B> {
    /// A potential from one role per feature.
    ///
    /// # Errors
    /// A λ that is not finite, a required value other than 0 and 1.
    pub fn new(backend: &B, roles: &[Role]) -> Result<Self> {
        for (at, role) in roles.iter().enumerate() {
            match *role {
                Role::Tilt(lambda) if !lambda.is_finite() => {
                    return Err(Error::argument(format!("coefficient {at}"), "a finite number", lambda));
                }
                Role::Require(value) if value != 0.0 && value != 1.0 => {
                    return Err(Error::argument(format!("required value of feature {at}"), "0 or 1", value));
                }
                _ => {}
            }
        }
        // Adding 0 leaves every λ as it is but −0.
        let lambda = |role: &Role| if let Role::Tilt(lambda) = role { *lambda + 0.0 } else { -0.0 };
        let value = |role: &Role| if let Role::Require(value) = role { *value } else { f32::NAN };
        let mut coefficients = backend.zeros(roles.len(), "coefficients")?;
        let mut required = backend.zeros(roles.len(), "required values")?;
        backend.upload(&roles.iter().map(lambda).collect::<Vec<_>>(), &mut coefficients)?;
        backend.upload(&roles.iter().map(value).collect::<Vec<_>>(), &mut required)?;
        Ok(Potential { roles: roles.to_vec(), coefficients, required })
    }

    /// The roles, one per feature.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// λ per feature on the host, 0 where the feature does not tilt.
    pub fn lambda(&self) -> Vec<f64> {
        self.roles.iter().map(|role| if let Role::Tilt(lambda) = role { *lambda } else { 0.0 }).collect()
    }

    /// What log P − log r never exceeds: Σ max(0, λ), φ being in [0, 1].
    pub fn log_bound(&self) -> f64 {
        self.roles.iter().map(Role::log_bound).sum()
    }

    /// Whether b(x) can be 0.
    pub fn is_constrained(&self) -> bool {
        self.roles.iter().any(|role| matches!(role, Role::Require(_)))
    }

    /// λ per feature in the backend's memory, −0 where the feature does not tilt, `[F]`.
    pub fn coefficients(&self) -> B::View<'_, f64> {
        B::view(&self.coefficients, self.roles.len())
    }

    /// Required values in the backend's memory, NaN where none is, `[F]`.
    pub fn required(&self) -> B::View<'_, f32> {
        B::view(&self.required, self.roles.len())
    }

    /// log P = log r + Σ λφ where all required values are met, else −∞; `log_base` and `log_p` are `[rows]`, `phi` is
    /// `[rows, F]`. Summed over features in order, in f64. A NaN in stays a NaN out.
    ///
    /// # Errors
    /// Lengths that do not fit.
    pub fn log_potential(
        &self,
        backend: &B,
        log_base: B::View<'_, f64>,
        phi: B::View<'_, f32>,
        log_p: B::ViewMut<'_, f64>,
    ) -> Result<()> {
        let rows = B::view_len(&log_base);
        expect_len("features of the batch", rows * self.roles.len(), B::view_len(&phi))?;
        expect_len("log-potentials", rows, B::view_mut_len(&log_p))?;
        backend.log_potential(self, log_base, phi, log_p)
    }
}

impl Potential<Cpu> {
    /// log b(x) + ⟨λ, φ⟩ of one sequence's features (f64 sums in order; −∞ where a requirement fails).
    pub fn log_factor(&self, phi: &[f32]) -> f64 {
        debug_assert_eq!(phi.len(), self.roles.len());
        let mut total = 0.0;
        for (role, &value) in self.roles.iter().zip(phi) {
            match *role {
                Role::Tilt(lambda) => total += lambda * f64::from(value),
                Role::Require(wanted) if value.is_nan() || wanted.is_nan() => return f64::NAN,
                Role::Require(wanted) if value != wanted => return f64::NEG_INFINITY,
                Role::Require(_) | Role::Ignore => {}
            }
        }
        total
    }
}

impl PotentialKernel for Cpu {
    fn log_potential(
        &self,
        potential: &Potential<Cpu>,
        log_base: &[f64],
        phi: &[f32],
        log_p: &mut [f64],
    ) -> Result<()> {
        let features = potential.roles.len();
        for (row, out) in log_p.iter_mut().enumerate() {
            *out = log_base[row] + potential.log_factor(&phi[row * features..(row + 1) * features]);
        }
        Ok(())
    }

    fn add_scaled(&self, before: Option<&[f64]>, factor: f64, scores: &[f64], to: &mut [f64]) -> Result<()> {
        for (row, out) in to.iter_mut().enumerate() {
            *out = before.map_or(0.0, |before| before[row]) + factor * scores[row];
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_p(roles: &[Role], base: f64, phi: &[f32]) -> f64 {
        let mut out = [0.0];
        Potential::new(&Cpu, roles).unwrap().log_potential(&Cpu, &[base], phi, &mut out).unwrap();
        out[0]
    }

    #[test]
    fn tilts_requirements_and_ignored_features() {
        let roles = [Role::Tilt(0.5), Role::Require(1.0), Role::Ignore];
        assert_eq!(log_p(&roles, -3.0, &[1.0, 1.0, 7.0]), -2.5);
        assert_eq!(log_p(&roles, -3.0, &[1.0, 0.0, 7.0]), f64::NEG_INFINITY);
    }

    #[test]
    fn nan_and_minus_infinity_survive() {
        assert!(log_p(&[Role::Tilt(1.0)], f64::NAN, &[0.0]).is_nan());
        assert!(log_p(&[Role::Require(1.0)], 0.0, &[f32::NAN]).is_nan());
        assert_eq!(log_p(&[Role::Tilt(1.0)], f64::NEG_INFINITY, &[1.0]), f64::NEG_INFINITY);
    }

    #[test]
    fn bad_roles_are_errors() {
        assert!(Potential::new(&Cpu, &[Role::Tilt(f64::NAN)]).is_err());
        assert!(Potential::new(&Cpu, &[Role::Require(0.5)]).is_err());
    }
}
