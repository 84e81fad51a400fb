//! Damped, ridged Newton on the concave log-likelihood ⟨λ, μ⟩ − log Ẑ(λ) over cached features.

use nalgebra::{DMatrix, DVector};

use crate::error::{Error, Result};
use crate::weights::{fold_chunks, log_sum_exp};

/// A λ beyond this in some component is on its way to infinity: no finite λ reaches the moments.
const LARGEST_LAMBDA: f64 = 60.0;

/// A λ beyond this in some component is reported: the moments are at the edge of what the samples can show.
pub(super) const EXTREME_LAMBDA: f64 = 15.0;

/// The cached sample of a fit, cut down to what moves: rows of positive weight, features that tilt.
pub(super) struct Problem {
    /// Number of rows drawn, those of weight 0 included.
    pub drawn: usize,
    /// Number of tilting features K.
    pub width: usize,
    /// φ, `[rows, K]`.
    pub phi: Vec<f64>,
    /// log r − log q, `[rows]`.
    pub log_w: Vec<f64>,
    /// Wanted moments μ, `[K]`.
    pub targets: DVector<f64>,
    /// Which rows belong together, `[rows]`, numbered from 0 without a gap: those of one context, whose weights are
    /// normalised by themselves. All are 0 where there are no contexts.
    pub groups: Vec<usize>,
}

/// The model at one λ.
pub(super) struct Moments {
    /// E_p φ, `[K]`.
    pub mean: DVector<f64>,
    /// Cov_p φ, `[K, K]`.
    pub covariance: DMatrix<f64>,
}

/// How Newton's method proceeds.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct NewtonOptions {
    /// Most iterations; convergence takes about ten.
    pub iterations: usize,
    /// Moments are matched to this, on the fitting sample.
    pub tolerance: f64,
    /// Added to the diagonal of the Hessian, times 1 + its trace: it keeps steps finite where features imply each
    /// other, and does not move the optimum.
    pub ridge: f64,
}

impl Default for NewtonOptions {
    fn default() -> Self {
        NewtonOptions { iterations: 60, tolerance: 1e-9, ridge: 1e-9 }
    }
}

/// Where an optimiser stopped.
pub(super) struct Solution {
    pub lambda: DVector<f64>,
    pub iterations: usize,
    /// μ − E_p φ.
    pub gradient: DVector<f64>,
    pub converged: bool,
}

impl Problem {
    /// Number of rows of positive weight.
    pub fn rows(&self) -> usize {
        self.log_w.len()
    }

    /// φ of one row, `[K]`.
    pub fn row(&self, row: usize) -> &[f64] {
        &self.phi[row * self.width..][..self.width]
    }

    /// log w of one row under λ: log r − log q + ⟨λ, φ⟩.
    pub fn log_weight(&self, lambda: &DVector<f64>, row: usize) -> f64 {
        self.log_w[row] + self.row(row).iter().zip(lambda.iter()).map(|(phi, lambda)| phi * lambda).sum::<f64>()
    }

    /// log w of all rows under λ, and log Σw of each group.
    fn log_weights(&self, lambda: &DVector<f64>) -> (Vec<f64>, Vec<f64>) {
        let log_w: Vec<f64> = (0..self.rows()).map(|row| self.log_weight(lambda, row)).collect();
        let count = self.group_count();
        if count == 1 {
            let total = log_sum_exp(&log_w);
            return (log_w, vec![total]);
        }
        let mut of_group = vec![Vec::new(); count];
        self.groups.iter().zip(&log_w).for_each(|(&group, &log_w)| of_group[group].push(log_w));
        let totals = of_group.iter().map(|log_w| log_sum_exp(log_w)).collect();
        (log_w, totals)
    }

    fn group_count(&self) -> usize {
        self.groups.iter().max().map_or(1, |&last| last + 1)
    }

    /// ⟨λ, μ⟩ − log Ẑ(λ), the log-likelihood per data row up to a constant; of contexts the mean of log Ẑ_c(λ).
    pub fn dual(&self, lambda: &DVector<f64>) -> f64 {
        let (_, totals) = self.log_weights(lambda);
        let mean = totals.iter().sum::<f64>() / totals.len() as f64;
        lambda.dot(&self.targets) - (mean - (self.drawn as f64).ln())
    }

    /// v = w/Σw of each row at λ, Σw over its group, times 1/groups: sums to 1.
    fn shares(&self, lambda: &DVector<f64>) -> Vec<f64> {
        let (log_w, totals) = self.log_weights(lambda);
        let groups = totals.len() as f64;
        log_w.iter().zip(&self.groups).map(|(log_w, &group)| (log_w - totals[group]).exp() / groups).collect()
    }

    /// E_p φ and Cov_p φ at λ; of contexts the mean over them of E_{p_c} φ and of Cov_{p_c} φ, which are gradient and Hessian
    /// of the dual all the same.
    pub fn moments(&self, lambda: &DVector<f64>) -> Moments {
        let v = self.shares(lambda);
        let (mean, second) = self.weighted(|row| v[row], |v| v);
        let means = self.group_means(&v);
        let between = |total: DMatrix<f64>, mean: &DVector<f64>| total + mean * mean.transpose() / means.len() as f64;
        let covariance = second - means.iter().fold(DMatrix::zeros(self.width, self.width), between);
        Moments { mean, covariance }
    }

    /// Σ c φ over the rows of each group.
    fn sums_by_group(&self, c: &[f64]) -> Vec<DVector<f64>> {
        let groups = self.group_count();
        if groups == 1 {
            return vec![self.weighted(|row| c[row], |c| c).0];
        }
        let mut sums = vec![DVector::zeros(self.width); groups];
        for (row, (&group, c)) in self.groups.iter().zip(c).enumerate() {
            sums[group].iter_mut().zip(self.row(row)).for_each(|(sum, phi)| *sum += c * phi);
        }
        sums
    }

    /// E_{p_c} φ of each group, from shares that sum to 1 over all groups.
    fn group_means(&self, v: &[f64]) -> Vec<DVector<f64>> {
        let sums = self.sums_by_group(v);
        let groups = sums.len() as f64;
        sums.into_iter().map(|sum| sum * groups).collect()
    }

    /// Σ c over the rows of each group.
    fn totals_by_group(&self, c: &[f64]) -> Vec<f64> {
        if self.group_count() == 1 {
            return vec![fold_chunks(self.rows(), |rows| c[rows].iter().sum::<f64>(), 0.0, |a, b| a + b)];
        }
        let mut totals = vec![0.0; self.group_count()];
        self.groups.iter().zip(c).for_each(|(&group, c)| totals[group] += c);
        totals
    }

    /// The covariance of the SNIS moments, Σ v²(φ − m)(φ − m)ᵀ/(n(n − 1)) with v of mean 1 over the n rows drawn, and m the
    /// mean of the row's context.
    pub fn sampling_covariance(&self, lambda: &DVector<f64>) -> DMatrix<f64> {
        let v = self.shares(lambda);
        let squares: Vec<f64> = v.iter().map(|v| v * v).collect();
        let (_, mut centred) = self.weighted(|row| squares[row], |square| square);
        let (firsts, totals) = (self.sums_by_group(&squares), self.totals_by_group(&squares));
        for ((mean, first), total) in self.group_means(&v).iter().zip(&firsts).zip(totals) {
            centred = centred - first * mean.transpose() - mean * first.transpose() + mean * mean.transpose() * total;
        }
        // v here sums to 1 instead of n: the factor n² cancels one n of the denominator.
        let drawn = self.drawn as f64;
        centred * (drawn / (drawn - 1.0).max(1.0))
    }

    /// Σ c φ and Σ c φφᵀ with c = `power`(v(row)), over fixed chunks.
    fn weighted(&self, v: impl Fn(usize) -> f64 + Sync, power: fn(f64) -> f64) -> (DVector<f64>, DMatrix<f64>) {
        let zeros = || (DVector::zeros(self.width), DMatrix::zeros(self.width, self.width));
        let part = |rows: std::ops::Range<usize>| {
            let (mut first, mut second) = zeros();
            for row in rows {
                let (c, phi) = (power(v(row)), self.row(row));
                for (i, &a) in phi.iter().enumerate() {
                    first[i] += c * a;
                    phi.iter().enumerate().for_each(|(j, &b)| second[(i, j)] += c * a * b);
                }
            }
            (first, second)
        };
        fold_chunks(self.rows(), part, zeros(), |total, part| (total.0 + part.0, total.1 + part.1))
    }

    /// The maximum of the dual from `start`. `converged` is false where λ runs away or iterations run out: the wanted
    /// moments are then outside the hull of the sampled features, or on its edge.
    pub fn newton(&self, options: &NewtonOptions, start: DVector<f64>) -> Result<Solution> {
        let mut lambda = start;
        for iterations in 0.. {
            let moments = self.moments(&lambda);
            let gradient = &self.targets - &moments.mean;
            let converged = gradient.amax() <= options.tolerance;
            let sane = lambda.amax() <= LARGEST_LAMBDA;
            if converged || iterations == options.iterations || !sane {
                return Ok(Solution { lambda, iterations, gradient, converged });
            }
            let ridge = options.ridge * (1.0 + moments.covariance.trace());
            let hessian = moments.covariance + DMatrix::identity(self.width, self.width) * ridge;
            let cholesky = hessian.cholesky().ok_or_else(|| {
                Error::no_answer("Newton step", "the covariance of the features is not positive; raise the ridge")
            })?;
            match self.line_search(&lambda, cholesky.solve(&gradient), &gradient) {
                Some(moved) => lambda = moved,
                // Rounding leaves nothing to gain.
                None => return Ok(Solution { converged: gradient.amax() <= 1e-6, lambda, iterations, gradient }),
            }
        }
        unreachable!("the loop above has no end but its returns")
    }

    /// The first of λ + step, λ + step/2, … that raises the dual by a ten-thousandth of what its slope promises.
    fn line_search(&self, lambda: &DVector<f64>, step: DVector<f64>, gradient: &DVector<f64>) -> Option<DVector<f64>> {
        let (before, slope) = (self.dual(lambda), gradient.dot(&step));
        let mut size = 1.0;
        while size > 1e-12 {
            let moved = lambda + &step * size;
            // Near the optimum the gain, quadratic in the gradient, is below the rounding of the dual itself.
            let slack = 1e-12 * (1.0 + before.abs());
            if self.dual(&moved) >= before + 1e-4 * size * slope - slack {
                return Some(moved);
            }
            size *= 0.5;
        }
        None
    }

    /// Standard errors of λ̂, `[K]`: the square roots of the diagonal of H⁻¹(Cov_data/|D| + Cov_IS/N)H⁻¹, where
    /// H = Cov_p φ (its pseudo-inverse where features imply each other) and `of_targets` is Cov_data/|D|.
    pub fn standard_errors(&self, lambda: &DVector<f64>, of_targets: &DMatrix<f64>) -> Vec<f64> {
        let hessian = self.moments(lambda).covariance;
        let cutoff = 1e-10 * (1e-300 + hessian.trace());
        let Ok(inverse) = hessian.pseudo_inverse(cutoff) else { return vec![f64::INFINITY; self.width] };
        let covariance = &inverse * (of_targets + self.sampling_covariance(lambda)) * &inverse;
        covariance.diagonal().iter().map(|variance| variance.max(0.0).sqrt()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 rows from a uniform q over three 0/1 features: every combination in proportion 1, 2, … 8.
    fn problem(targets: [f64; 3]) -> Problem {
        let (mut phi, mut log_w) = (Vec::new(), Vec::new());
        for k in 0..8 {
            phi.extend([0, 1, 2].map(|i| f64::from(k >> i & 1)));
            log_w.push(f64::from(k + 1).ln());
        }
        let groups = vec![0; log_w.len()];
        Problem { drawn: 8, width: 3, phi, log_w, targets: DVector::from_row_slice(&targets), groups }
    }

    #[test]
    fn newton_takes_few_steps_where_gradient_ascent_takes_many() {
        let problem = problem([0.9, 0.15, 0.03]);
        let solution = problem.newton(&NewtonOptions::default(), DVector::zeros(3)).unwrap();
        assert!(solution.converged && solution.iterations <= 10, "{} iterations", solution.iterations);
        assert!(solution.gradient.amax() <= 1e-9);
        let mut lambda = DVector::zeros(3);
        for _ in 0..1000 {
            let gradient = &problem.targets - problem.moments(&lambda).mean;
            lambda += gradient * 0.05;
        }
        let left = (&problem.targets - problem.moments(&lambda).mean).amax();
        assert!(left > 1e-3, "gradient ascent has reached {left}");
    }

    #[test]
    fn unreachable_moments_run_away() {
        // On the edge of the hull λ grows until the tolerance is met, past what a report lets pass silently.
        let edge = problem([0.5, 0.5, 1.0]).newton(&NewtonOptions::default(), DVector::zeros(3)).unwrap();
        assert!(!edge.converged || edge.lambda[2] > EXTREME_LAMBDA);
        let mut never = problem([0.5, 0.5, 1.1]);
        assert!(!never.newton(&NewtonOptions::default(), DVector::zeros(3)).unwrap().converged);
        // The first two features made equal, their moments not.
        never = problem([0.5, 0.6, 0.5]);
        never.phi.chunks_exact_mut(3).for_each(|row| row[1] = row[0]);
        assert!(!never.newton(&NewtonOptions::default(), DVector::zeros(3)).unwrap().converged);
        // Equal moments of equal features are no contradiction.
        never.targets[1] = 0.5;
        let solution = never.newton(&NewtonOptions::default(), DVector::zeros(3)).unwrap();
        assert!(solution.converged && solution.lambda.amax() < 10.0);
        let errors = never.standard_errors(&solution.lambda, &DMatrix::zeros(3, 3));
        assert!(errors.iter().all(|error| error.is_finite()));
    }

    #[test]
    fn derivatives_by_differences() {
        let problem = problem([0.3, 0.5, 0.7]);
        let lambda = DVector::from_row_slice(&[0.4, -1.0, 2.0]);
        let moments = problem.moments(&lambda);
        for i in 0..3 {
            let mut step = DVector::zeros(3);
            step[i] = 1e-5;
            let slope = (problem.dual(&(&lambda + &step)) - problem.dual(&(&lambda - &step))) / 2e-5;
            assert!((slope - (problem.targets[i] - moments.mean[i])).abs() <= 1e-8);
            let means = (problem.moments(&(&lambda + &step)).mean - problem.moments(&(&lambda - &step)).mean) / 2e-5;
            assert!((means - moments.covariance.column(i)).amax() <= 1e-8);
        }
    }
}
