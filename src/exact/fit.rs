//! λ from wanted moments by Newton's method on exact expectations: the truth that fitted λ are held against.

use nalgebra::{DMatrix, DVector};

use super::Exact;
use crate::backend::Cpu;
use crate::error::{Error, Result, expect_len};
use crate::potential::{Potential, Role};

/// Newton steps before giving up; convergence is quadratic, so a reachable target needs far fewer.
const STEPS: usize = 200;

/// Moments are matched to this.
const TOLERANCE: f64 = 1e-11;

impl Exact {
    /// The target with λ moved so that E_p φ_i = `targets[i]` for every feature i that tilts; requirements and ignored
    /// features stay as they are, and their entries of `targets` (`[F]`) are not read.
    ///
    /// Changing λ re-weights the ends of sequences, so it is enough to know how often each automaton state is one.
    ///
    /// # Errors
    /// Another number of targets, NaN, and [`Error::NoAnswer`] where no λ reaches them.
    pub fn fit_moments(&self, targets: &[f64]) -> Result<Exact> {
        expect_len("target moments", self.roles().len(), targets.len())?;
        let tilts = |at: &usize| matches!(self.roles()[*at], Role::Tilt(_));
        let tilted: Vec<usize> = (0..targets.len()).filter(tilts).collect();
        if let Some(at) = tilted.iter().find(|&&at| !targets[at].is_finite()) {
            return Err(Error::argument(format!("target moment {at}"), "a finite number", targets[*at]));
        }
        let wanted = DVector::from_iterator(tilted.len(), tilted.iter().map(|&at| targets[at]));
        let shift = self.newton(&tilted, &wanted)?;
        let mut roles = self.roles().to_vec();
        for (&at, shift) in tilted.iter().zip(&shift) {
            if let Role::Tilt(lambda) = &mut roles[at] {
                *lambda += shift;
            }
        }
        let potential = Potential::new(&Cpu, &roles)?;
        Exact::with_automaton(&self.chain, self.features(), self.automaton.clone(), &potential)
    }

    /// The maximum of the concave ⟨δ, wanted⟩ − log E_p exp⟨δ, φ⟩.
    fn newton(&self, tilted: &[usize], wanted: &DVector<f64>) -> Result<DVector<f64>> {
        let mut shift = DVector::zeros(tilted.len());
        for _ in 0..STEPS {
            let (value, mean, covariance) = self.tilt(tilted, &shift);
            let gradient = wanted - mean;
            if gradient.amax() < TOLERANCE {
                return Ok(shift);
            }
            // The ridge keeps features that imply each other solvable; it shortens steps, never moves the optimum.
            let ridge = 1e-12 * (1.0 + covariance.trace());
            let hessian = covariance + DMatrix::identity(tilted.len(), tilted.len()) * ridge;
            let Some(cholesky) = hessian.cholesky() else { break };
            let value = shift.dot(wanted) - value;
            let mut step = cholesky.solve(&gradient);
            let improves = |step: &DVector<f64>| {
                let moved = &shift + step;
                moved.dot(wanted) - self.tilt(tilted, &moved).0 >= value - 1e-13 * value.abs()
            };
            for _ in 0..50 {
                if improves(&step) {
                    break;
                }
                step *= 0.5;
            }
            shift += step;
        }
        Err(Error::no_answer("exact fit", format!("no λ reaches the moments {:?}", wanted.as_slice())))
    }

    /// log E_p exp⟨δ, φ⟩, and mean and covariance of φ under p tilted by δ.
    fn tilt(&self, tilted: &[usize], shift: &DVector<f64>) -> (f64, DVector<f64>, DMatrix<f64>) {
        let phi = |state: usize| {
            let values = self.automaton.values(state as u32);
            DVector::from_iterator(tilted.len(), tilted.iter().map(|&at| f64::from(values[at])))
        };
        let ends = || self.ends.iter().enumerate().filter(|(_, p)| **p > 0.0);
        let log_weight = |(state, p): (usize, &f64)| p.ln() + phi(state).dot(shift);
        let largest = ends().map(log_weight).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = ends().map(|end| (log_weight(end) - largest).exp()).sum();
        let log_z = largest + total.ln();
        let mut mean = DVector::zeros(tilted.len());
        for end in ends() {
            mean += phi(end.0) * (log_weight(end) - log_z).exp();
        }
        let mut covariance = DMatrix::zeros(tilted.len(), tilted.len());
        for end in ends() {
            let centred = phi(end.0) - &mean;
            covariance += &centred * centred.transpose() * (log_weight(end) - log_z).exp();
        }
        (log_z, mean, covariance)
    }
}
