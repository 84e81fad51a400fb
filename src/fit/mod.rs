//! Training-1: the coefficients λ of the potential P(x) = r(x)·b(x)·exp⟨λ, φ(x)⟩, from data or from wanted moments.
//!
//! λ maximises the concave log-likelihood ⟨λ, μ⟩ − log Z(λ), whose gradient is μ − E_p φ: at the optimum the moments
//! match, and p is the distribution closest to r in KL(p‖r) that has them (Csiszár 1975). Expectations come from
//! samples whose features are computed once ([`Moments`] says from where); [`Solver`] says how λ moves.

use nalgebra::{DMatrix, DVector};

use crate::backend::{Backend, Cpu};
use crate::error::{Error, Result, expect_len};
use crate::exact::Guide;
use crate::features::FeatureSet;
use crate::models::Sampler;
use crate::potential::{Potential, Role};
use crate::rng::Draw;
use crate::tokens::{Batch, Contexts};
use crate::weights::{Estimate, ImportanceWeights, MIN_ESS, log_z_by_context, within_contexts};

mod guide;
mod newton;
mod plan;
mod sample;
mod sgd;
mod targets;

pub use newton::NewtonOptions;
pub use sgd::SgdOptions;
pub use targets::Targets;

use guide::Trial;
use newton::{Problem, Solution};
use plan::Plan;
use sample::{Sample, Source};

/// Where expectations under p come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Moments {
    /// Self-normalised importance sampling from the base r.
    Base,
    /// Self-normalised importance sampling from r guided by a look-ahead to the potential.
    #[default]
    Guided,
    /// Samples of r accepted with probability b·exp(⟨λ, φ⟩ − β), β = Σ_i max(λ_i min φ_i, λ_i max φ_i); redrawn as λ
    /// moves.
    Rejection,
}

/// How λ moves.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Solver {
    /// Damped, ridged Newton on cached features, constants of the data as hard constraints.
    Newton(NewtonOptions),
    /// The papers' stochastic gradient schedule, without hard constraints.
    Sgd(SgdOptions),
}

/// Options of [`fit`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct FitOptions {
    /// Where expectations come from.
    pub moments: Moments,
    /// How λ moves.
    pub solver: Solver,
    /// Samples per round that λ is fitted on.
    pub samples: usize,
    /// Samples of the base that decide on constraints and that the guide's Markov chain is fitted to.
    pub base_samples: usize,
    /// Most rounds of sampling and fitting, the sample following λ.
    pub rounds: usize,
    /// Sequences drawn at a time: bounds the memory, does not change the result.
    pub batch: usize,
    /// Most states of the guide's automaton.
    pub states: usize,
}

impl Default for FitOptions {
    fn default() -> Self {
        FitOptions {
            moments: Moments::Guided,
            solver: Solver::Newton(NewtonOptions::default()),
            samples: 20_000,
            base_samples: 10_000,
            rounds: 4,
            batch: 2048,
            states: 1 << 14,
        }
    }
}

impl FitOptions {
    fn check(&self) -> Result<()> {
        let counts = [
            ("samples of the fit", self.samples),
            ("base samples of the fit", self.base_samples),
            ("rounds of the fit", self.rounds),
            ("batch of the fit", self.batch),
            ("states of the guide", self.states),
        ];
        for (what, count) in counts {
            if count == 0 {
                return Err(Error::argument(what, "at least 1", 0));
            }
        }
        match self.solver {
            Solver::Sgd(sgd) => sgd.check(),
            Solver::Newton(newton) if !(newton.ridge > 0.0 && newton.ridge.is_finite()) => {
                Err(Error::argument("ridge of the fit", "a positive number", newton.ridge))
            }
            Solver::Newton(newton) if newton.tolerance > 0.0 && newton.iterations > 0 => Ok(()),
            Solver::Newton(newton) => {
                let got = format!("{} in {} iterations", newton.tolerance, newton.iterations);
                Err(Error::argument("tolerance of the fit", "a positive one and at least one iteration", got))
            }
        }
    }
}

/// A fitted energy-based model, with what should be known about the fit.
#[derive(serde::Serialize)]
#[non_exhaustive]
pub struct Fit {
    /// One role per feature.
    pub roles: Vec<Role>,
    /// λ per feature, 0 where it does not tilt.
    pub lambda: Vec<f64>,
    /// Standard errors of λ, where a feature tilts: H⁻¹(Cov_data/|D| + Cov_IS/N)H⁻¹, both the data and the sample being
    /// finite. A user's moments have no error of their own.
    pub standard_errors: Vec<Option<f64>>,
    /// Largest |E_p φ − target| over the tilting features, on the fitting sample.
    pub residual: f64,
    /// Steps of the solver, over all rounds.
    pub iterations: usize,
    /// Effective sample size of the last round.
    pub ess: f64,
    /// Sequences drawn from the base, guided or not, over all rounds.
    pub samples: usize,
    /// log Z of the potential.
    pub log_z: Estimate,
    /// The moments aimed at, per feature: the wanted ones but where a warning says otherwise.
    pub moments_target: Vec<f64>,
    /// E_p φ per feature.
    pub moments_potential: Vec<Estimate>,
    /// Pareto k̂ of the last round's weights.
    pub pareto_k: Option<f64>,
    /// What a user should know, one line each.
    pub warnings: Vec<String>,
    /// The guide of the last round: with it, the base is a proposal close to p.
    #[serde(skip)]
    pub guide: Option<Guide>,
}

impl Fit {
    /// The fitted potential in a backend's memory.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn potential<B: Backend>(&self, backend: &B) -> Result<Potential<B>> {
        Potential::new(backend, &self.roles)
    }
}

/// Fits λ so that p has the moments of `targets`.
///
/// The roles of the features come out as follows. A user's moment of exactly 0 or 1 is a hard constraint. A 0/1 feature
/// that is constant in the data is one where chance would explain it with less than 10⁻⁶ under the base; otherwise its
/// target is the half count ½/(|D| + 1) from the end, so that λ stays finite, or it is left out where the base
/// expects nothing else. Features that do not vary are left out. The SGD schedule knows no constraints.
///
/// Draws sequences `draw.first` and following of the stream `draw`; the same bits for any thread count and batch.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::features::{Feature, FeatureSet};
/// use ebm_dpg::fit::{FitOptions, Targets, fit};
/// use ebm_dpg::models::Markov;
/// use ebm_dpg::rng::{Draw, Purpose};
/// use ebm_dpg::tokens::Space;
///
/// // Ten fair coins; wanted: 111 in all strings, and three quarters of them beginning with 1.
/// let space = Space::new(2, 11)?;
/// let features = FeatureSet::new(space)
///     .with("motif", Feature::Contains(vec![1, 1, 1]))?
///     .with("first", Feature::StartsWith(vec![1]))?;
/// let targets = Targets::wanted(&[1.0, 0.75])?;
/// let draw = Draw::new(1, Purpose::Fit);
/// let fit = fit(&Cpu, &mut Markov::noise(space, 10)?, &features, &targets, &FitOptions::default(), draw)?;
/// assert!((fit.moments_potential[1].value - 0.75).abs() < 1e-6);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// Options out of range, another number of targets or another space, a failing model; [`Error::NoAnswer`] where no
/// finite λ reaches the moments, or where fewer than ten effective samples are left.
pub fn fit<B: Backend, S: Sampler<B>>(
    backend: &B,
    base: &mut S,
    features: &FeatureSet,
    targets: &Targets,
    options: &FitOptions,
    draw: Draw,
) -> Result<Fit> {
    fit_behind(backend, base, features, targets, None, options, draw)
}

/// As [`fit`], for sequences that continue contexts: one λ for all of them, with which the mean over the contexts of
/// E_{p_c} φ is that of `targets`.
///
/// # Errors
/// As [`fit`]; the SGD schedule and rejection, which know of one Z only.
pub fn fit_behind<B: Backend, S: Sampler<B>>(
    backend: &B,
    base: &mut S,
    features: &FeatureSet,
    targets: &Targets,
    contexts: Option<&Contexts<B>>,
    options: &FitOptions,
    draw: Draw,
) -> Result<Fit> {
    options.check()?;
    expect_len("target moments", features.len(), targets.moments().len())?;
    let apart = matches!(options.solver, Solver::Newton(_)) && options.moments != Moments::Rejection;
    if contexts.is_some() && !apart {
        let got = format!("{:?} and {:?}", options.solver, options.moments);
        return Err(Error::argument("fit behind contexts", "Newton and importance sampling", got));
    }
    let table = features.compile(backend)?;
    let mut source = Source::new(backend, base, table, options.batch, draw).behind(contexts);
    let rows = if options.moments == Moments::Guided { options.base_samples } else { options.samples };
    let mut tokens = match options.moments {
        Moments::Guided => Some(Batch::with_capacity(&Cpu, features.space(), rows)?),
        _ => None,
    };
    let sample = source.sample(rows, None, tokens.as_mut())?;
    let constraints = matches!(options.solver, Solver::Newton(_));
    let mut run = Run { plan: Plan::new(features, targets, &sample, constraints)?, options, draw, iterations: 0 };
    let (sample, guide) = match tokens {
        Some(tokens) => {
            let trial = Trial { chain: guide::surrogate(&tokens)?, tokens, sample };
            run.guided(&mut source, &trial)?
        }
        None if options.moments == Moments::Rejection => (run.rejection(&mut source, sample)?, None),
        None => (run.solve(&sample).map(|()| sample)?, None),
    };
    run.report(&sample, guide, source.drawn)
}

/// A guide towards `potential` for a base that was not fitted with one: draws `options.base_samples` sequences, fits the
/// Markov chain that stands in for the base, and looks ahead over all automaton features, or over the hard constraints
/// alone where the product has more than `options.states` states, or where on those sequences this makes the weights more
/// even; a guide that would make them less even than the base's own is replaced by one that changes nothing.
///
/// # Errors
/// Options out of range, another space, a constraint that no sequence meets.
pub fn guide_towards<B: Backend, S: Sampler<B>>(
    backend: &B,
    base: &mut S,
    features: &FeatureSet,
    potential: &Potential,
    options: &FitOptions,
    draw: Draw,
) -> Result<Guide> {
    options.check()?;
    let mut tokens = Batch::with_capacity(&Cpu, features.space(), options.base_samples)?;
    let mut source = Source::new(backend, base, features.compile(backend)?, options.batch, draw);
    let sample = source.sample(options.base_samples, None, Some(&mut tokens))?;
    let trial = Trial { chain: guide::surrogate(&tokens)?, tokens, sample };
    trial.towards(&mut source, features, potential, options.states).map(|(guide, _)| guide)
}

/// A fit under way.
struct Run<'a> {
    plan: Plan<'a>,
    options: &'a FitOptions,
    draw: Draw,
    iterations: usize,
}

impl Run<'_> {
    /// Rounds of guided sampling and fitting, until the weights are even or λ stands still.
    fn guided<B: Backend, S: Sampler<B>>(
        &mut self,
        source: &mut Source<'_, B, S>,
        trial: &Trial,
    ) -> Result<(Sample, Option<Guide>)> {
        guide::start(&trial.chain, &mut self.plan, self.options.states);
        let mut round = 1;
        loop {
            let guide = guide::guide(trial, source, &mut self.plan, self.options.states)?;
            let sample = source.sample(self.options.samples, Some(&guide), None)?;
            let before = self.plan.potential()?.lambda();
            self.solve(&sample)?;
            let after = self.plan.potential()?;
            let moved = before.iter().zip(after.lambda()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let ess = ImportanceWeights::new(&sample.log_potential(&after), &sample.log_q)?.ess();
            let even = ess >= 0.3 * sample.rows() as f64;
            if even || moved < 0.25 || round >= self.options.rounds {
                return Ok((sample, Some(guide)));
            }
            round += 1;
        }
    }

    /// Rounds of rejection at the present λ and fitting on what is kept: exact samples of p under that λ, which weights
    /// exp⟨λ′ − λ, φ⟩ carry to another λ′.
    fn rejection<B: Backend, S: Sampler<B>>(&mut self, source: &mut Source<'_, B, S>, first: Sample) -> Result<Sample> {
        if let Solver::Sgd(_) = self.options.solver {
            return self.solve(&first).map(|()| first);
        }
        let mut kept = reject(&first, &self.plan.potential()?, self.draw, 0)?;
        self.solve(&kept)?;
        for round in 1..self.options.rounds {
            let from = self.draw.skip(source.drawn as u64);
            let sample = source.sample(self.options.samples, None, None)?;
            kept = reject(&sample, &self.plan.potential()?, from, round)?;
            self.solve(&kept)?;
        }
        Ok(kept)
    }

    /// Moves λ to the optimum of one sample.
    fn solve(&mut self, sample: &Sample) -> Result<()> {
        self.plan.settle(sample)?;
        let tilting = self.plan.tilting();
        let problem = self.problem(sample)?;
        let solution = match self.options.solver {
            _ if tilting.is_empty() => return Ok(()),
            Solver::Newton(options) => problem.newton(&options, self.start(&tilting))?,
            Solver::Sgd(options) => {
                let accept = (self.options.moments == Moments::Rejection).then_some(self.draw);
                problem.sgd(&options, accept)
            }
        };
        self.iterations += solution.iterations;
        if !solution.converged {
            let rows = sample.survivors(&self.plan.potential()?);
            return Err(self.plan.unreachable(&culprits(&tilting, &solution), sample, &rows));
        }
        self.plan.set_lambda(solution.lambda.as_slice());
        // Each time one feature less, so this ends.
        if self.plan.drop_contrary() { self.solve(sample) } else { Ok(()) }
    }

    fn start(&self, tilting: &[usize]) -> DVector<f64> {
        let lambda = |&i: &usize| if let Role::Tilt(lambda) = self.plan.roles[i] { lambda } else { 0.0 };
        DVector::from_iterator(tilting.len(), tilting.iter().map(lambda))
    }

    /// The sample cut down to rows with P > 0 and features that tilt.
    fn problem(&self, sample: &Sample) -> Result<Problem> {
        let tilting = self.plan.tilting();
        let rows = sample.survivors(&self.plan.potential()?);
        let phi = rows.iter().flat_map(|&row| tilting.iter().map(move |&i| f64::from(sample.row(row)[i]))).collect();
        let targets = DVector::from_iterator(tilting.len(), tilting.iter().map(|&i| self.plan.targets[i]));
        let log_w = rows.iter().map(|&row| sample.log_base[row] - sample.log_q[row]).collect();
        let groups = groups(sample, &rows);
        Ok(Problem { drawn: sample.rows(), width: tilting.len(), phi, log_w, targets, groups })
    }

    fn report(mut self, sample: &Sample, guide: Option<Guide>, samples: usize) -> Result<Fit> {
        let potential = self.plan.potential()?;
        let log_p = sample.log_potential(&potential);
        let mut weights = ImportanceWeights::new(&log_p, &sample.log_q)?;
        let log_z = weights.log_z();
        if !sample.context.is_empty() {
            let known = log_z_by_context(&log_p, &sample.log_q, &sample.context)?;
            weights = ImportanceWeights::new(&within_contexts(&log_p, &sample.context, &known), &sample.log_q)?;
        }
        let ess = weights.ess();
        if ess < 10.0 {
            let reason = format!(
                "only {ess:.1} effective samples of {}; draw more samples, or use the guided proposal",
                sample.rows()
            );
            return Err(Error::no_answer("fit", reason));
        }
        let tilting = self.plan.tilting();
        let moments_potential = weights.moments(&sample.phi, sample.features)?;
        let miss = |&i: &usize| (moments_potential[i].value - self.plan.targets[i]).abs();
        let residual = tilting.iter().map(miss).fold(0.0, f64::max);
        let mut standard_errors = vec![None; sample.features];
        if !tilting.is_empty() {
            let of_targets = DMatrix::from_row_slice(tilting.len(), tilting.len(), &self.plan.target_covariance());
            let errors = self.problem(sample)?.standard_errors(&self.start(&tilting), &of_targets);
            tilting.iter().zip(errors).for_each(|(&i, error)| standard_errors[i] = Some(error));
        }
        self.plan.note_extremes();
        self.plan.warnings.extend(weights.warning());
        Ok(Fit {
            lambda: potential.lambda(),
            standard_errors,
            residual,
            iterations: self.iterations,
            ess,
            samples,
            log_z: log_z.plus(Estimate { value: 0.0, standard_error: sample.log_q_error }),
            moments_target: self.plan.targets,
            moments_potential,
            pareto_k: weights.pareto_k(),
            warnings: self.plan.warnings,
            roles: self.plan.roles,
            guide,
        })
    }
}

/// The context of each of `rows`, numbered without a gap; all 0 where there are none.
fn groups(sample: &Sample, rows: &[usize]) -> Vec<usize> {
    let of = |&row: &usize| sample.context.get(row).copied().unwrap_or(0);
    let mut numbers: Vec<u32> = rows.iter().map(of).collect();
    numbers.sort_unstable();
    numbers.dedup();
    rows.iter().map(|row| numbers.partition_point(|&number| number < of(row))).collect()
}

/// The rows of a sample of q (r, or what draws in its place) that rejection keeps under `potential`, as a sample of
/// q·b·exp⟨λ, φ⟩/Ẑ, where Ẑ = exp(β)·(share kept) has the relative error √((1 − share)/(share·rows)).
fn reject(sample: &Sample, potential: &Potential, draw: Draw, round: usize) -> Result<Sample> {
    let rows: Vec<usize> = (0..sample.rows()).collect();
    let ranges: Vec<_> = (0..sample.features).map(|i| sample.range(i, &rows)).collect();
    let bound = sgd::envelope(&potential.lambda(), &ranges);
    let log_p = sample.log_potential(potential);
    let log_odds: Vec<f64> = rows.iter().map(|&row| log_p[row] - sample.log_base[row] - bound).collect();
    let accepted = sgd::accepted(draw, round, &log_odds);
    let kept: Vec<usize> = rows.into_iter().filter(|&row| accepted[row] == 1.0).collect();
    let share = kept.len() as f64 / sample.rows() as f64;
    if (kept.len() as f64) < MIN_ESS {
        let reason =
            format!("rejection keeps {} of {} samples; draw more, or do not reject", kept.len(), sample.rows());
        return Err(Error::no_answer("fit", reason));
    }
    let mut kept_sample = sample.take(&kept);
    kept_sample.log_q = kept.iter().map(|&row| sample.log_q[row] + log_odds[row] - share.ln()).collect();
    kept_sample.log_q_error = ((1.0 - share) / (share * sample.rows() as f64)).sqrt();
    Ok(kept_sample)
}

/// The features behind a fit that ran away: those with the largest part of the remaining gradient.
fn culprits(tilting: &[usize], solution: &Solution) -> Vec<usize> {
    let largest = solution.gradient.amax();
    let counts = |(at, _): &(usize, &usize)| solution.gradient[*at].abs() >= 0.25 * largest;
    tilting.iter().enumerate().filter(counts).map(|(_, &i)| i).collect()
}
