//! The phases both examples share: base r, coefficients λ, policy π, judgement.

use std::time::Instant;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::{Cpu, Memory};
use ebm_dpg::exact::Guide;
use ebm_dpg::features::{FeatureSet, FeatureTable};
use ebm_dpg::fit::{self, FitOptions, NewtonOptions, SgdOptions, Solver, Targets};
use ebm_dpg::models::{Likelihood, LikelihoodOptions, Lstm, LstmShape, Policy, Sampler, Scorer, fit_likelihood};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space};
use ebm_dpg::tune::{self, Evaluation, Source, Target, TuneData, TuneOptions, Tuned};
use ebm_dpg::weights::Estimate;
use ebm_dpg::{Error, Result};

use super::options::{self, Common, Init, Method, Moments, Proposal, Swap};
use super::plot::{Chart, Panel, Reference, Series, draw};
use super::progress::Progress;
use super::report::Output;
use super::say;

/// Sequences that judge at the end.
pub const JUDGED: usize = 10_000;

/// A trained or loaded base, and how long its training took.
pub struct Base {
    pub model: Lstm,
    pub seconds: f64,
}

/// The base of `--base`, where that is given.
pub fn load_base(common: &Common, space: Space) -> Result<Option<Lstm>> {
    let Some(path) = &common.base else { return Ok(None) };
    let model = Lstm::load(path)?;
    if model.space() != space {
        let expected = format!("a model over {} tokens up to {} long", space.vocab, space.longest);
        let got = format!("{} and {}", model.space().vocab, model.space().longest);
        return Err(Error::argument(format!("--base {}", path.display()), expected, got));
    }
    Ok(Some(model))
}

/// Trains r on the data, unless it is `loaded` already.
pub fn base(
    common: &Common,
    loaded: Option<Lstm>,
    mut options: LikelihoodOptions,
    (train, validation): (&Batch, &Batch),
    output: &mut Output,
) -> Result<Base> {
    if let Some(model) = loaded {
        return Ok(Base { model, seconds: 0.0 });
    }
    let mut model = Lstm::new(train.space, shape(common, 0.2), common.seed)?;
    options.batch = options.batch.min(train.rows);
    options.seed = common.seed;
    let mut progress = Progress::start("base r", options.epochs as u64, "epochs");
    let training = fit_likelihood(&Cpu, &mut model, train, validation, &options, |now| {
        progress.set(now.epoch as u64, &format!("validation {:.4} nats/token", now.validation));
    })?;
    let (epoch, entropy) = training.best;
    let seconds = progress.finish(&format!("best after {epoch}: {entropy:.4} nats/token"));
    model.save(&output.file("base.safetensors"))?;
    draw_base(output, &training)?;
    Ok(Base { model, seconds })
}

/// An LSTM of the options' size.
fn shape(common: &Common, dropout: f32) -> LstmShape {
    LstmShape { layers: common.layers, hidden: common.hidden, dropout }
}

/// The policy before tuning.
pub fn initial_policy(common: &Common, space: Space, base: Option<&Lstm>) -> Result<Lstm> {
    match (common.init, base) {
        (Init::Base, Some(base)) => {
            let mut policy = base.clone();
            policy.reset_optimizer();
            Ok(policy)
        }
        // Not the seed of r: a fresh policy is another network.
        _ => Lstm::new(space, shape(common, 0.0), common.seed.wrapping_add(1)),
    }
}

/// P_λ = r·b·exp⟨λ, φ⟩ with the moments wanted of it, and the look-ahead that guides r towards it.
pub struct Fitted {
    pub potential: Potential,
    pub guide: Guide,
    pub log_z: Estimate,
    pub warnings: Vec<String>,
    pub seconds: f64,
}

impl Fitted {
    /// What the policy is tuned towards.
    pub fn target<'a, R>(&'a self, base: &'a mut R, features: &'a FeatureTable) -> Target<'a, Cpu, R> {
        Target { base, features, potential: &self.potential, guide: Some(&self.guide) }
    }
}

/// Fits λ over r, on so many draws.
pub fn fit(
    common: &Common,
    samples: usize,
    base: &mut Lstm,
    features: &FeatureSet,
    targets: &Targets,
) -> Result<Fitted> {
    let started = Instant::now();
    let options = fit_options(common, samples);
    let fit = fit::fit(&Cpu, base, features, targets, &options, Draw::new(common.seed, Purpose::Fit))?;
    let potential = fit.potential(&Cpu)?;
    let guide = match fit.guide {
        Some(guide) => guide,
        None => {
            let draw = Draw::new(common.seed, Purpose::Fit).skip(1 << 50);
            fit::guide_towards(&Cpu, base, features, &potential, &options, draw)?
        }
    };
    let (seconds, log_z) = (started.elapsed().as_secs_f64(), fit.log_z);
    say(&format!(
        "fit λ              {} draws, {} iterations in {seconds:.1} s, ESS {:.0}, log Z {:.3} ± {:.3}",
        fit.samples, fit.iterations, fit.ess, log_z.value, log_z.standard_error
    ));
    Ok(Fitted { potential, guide, log_z, warnings: fit.warnings, seconds })
}

/// The options of the fit.
fn fit_options(common: &Common, samples: usize) -> FitOptions {
    let mut options = FitOptions::default();
    options.samples = samples;
    options.moments = match common.moments {
        Moments::Rs => fit::Moments::Rejection,
        Moments::Snis => fit::Moments::Base,
        Moments::Guided => fit::Moments::Guided,
    };
    options.solver = match common.fit {
        options::Fit::Newton => Solver::Newton(NewtonOptions::default()),
        options::Fit::Sgd => Solver::Sgd(SgdOptions::default()),
    };
    options
}

/// The options of the tuning.
fn tune_options(common: &Common, updates: usize) -> TuneOptions {
    let mut options = TuneOptions::default();
    options.method = match common.method {
        Method::DpgOff => tune::Method::DpgOffPolicy,
        Method::DpgOn => tune::Method::DpgOnPolicy,
        Method::Distill => tune::Method::Distill,
        Method::Reinforce => tune::Method::Reinforce,
    };
    options.proposal = match common.proposal {
        Proposal::Base => Source::Base,
        Proposal::Guided => Source::Guided,
    };
    options.swap = match common.swap {
        Swap::Kl => tune::Swap::Kl,
        Swap::Tv => tune::Swap::Tv,
        Swap::Ce => tune::Swap::CrossEntropy,
        Swap::Every(n) => tune::Swap::Every(n),
        Swap::Never => tune::Swap::Never,
    };
    options.baseline = common.baseline;
    options.samples = common.samples;
    options.batch = common.batch;
    options.updates = updates;
    options.adam = AdamOptions { learning_rate: common.learning_rate as f32, ..options.adam };
    options.seed = common.seed;
    options
}

/// Tunes the policy by so many updates a batch of draws; the cache makes each draw serve as often. `validation` judges
/// the swap by cross-entropy. Returns the seconds, too.
pub fn tune_policy<R: Sampler<Cpu>>(
    common: &Common,
    updates: usize,
    target: &mut Target<'_, Cpu, R>,
    policy: &mut Lstm,
    validation: Option<&Batch>,
) -> Result<(Tuned, f64)> {
    let options = tune_options(common, updates);
    let mut progress = Progress::start("policy π", options.samples as u64, "draws");
    let mut note = String::new();
    let data = TuneData { held_out: validation, extra: None };
    let tuned = tune::tune(&Cpu, target, policy, &options, data, |now| {
        if let Some(record) = now.record {
            let kl = record.kl.map_or("KL unknown".into(), |kl| format!("KL(p‖π) {:.3}", kl.value));
            note = format!("{kl}, {} swaps", record.swaps);
        }
        progress.set(now.samples as u64, &note);
    })?;
    let seconds = progress.finish(&note);
    Ok((tuned, seconds))
}

/// The final judgement: from the guided proposal where there is one, else from π itself.
pub fn judge<R: Sampler<Cpu>>(seed: u64, target: &mut Target<'_, Cpu, R>, policy: &mut Lstm) -> Result<Evaluation> {
    let source = if target.guide.is_some() { Source::Guided } else { Source::Policy };
    let draw = Draw::new(seed, Purpose::Evaluate).skip(1 << 50);
    tune::evaluate(&Cpu, target, policy, source, JUDGED, draw)
}

/// log-probs of a batch.
pub fn score(model: &mut impl Scorer<Cpu>, batch: &Batch) -> Result<Vec<f64>> {
    let mut log_probs = vec![0.0; batch.rows];
    model.score(batch, &mut log_probs)?;
    Ok(log_probs)
}

/// Cross-entropy of a model on data, nats per token.
pub fn cross_entropy(model: &mut impl Scorer<Cpu>, data: &Batch) -> Result<f64> {
    Ok(-score(model, data)?.iter().sum::<f64>() / data.total_tokens() as f64)
}

/// Cross-entropy of p = P/Z on data, nats per token; infinite where a sequence has P = 0.
pub fn potential_cross_entropy(
    base: &mut impl Scorer<Cpu>,
    features: &FeatureTable,
    potential: &Potential,
    log_z: f64,
    data: &Batch,
) -> Result<f64> {
    let phi = evaluate(features, data)?;
    let mut log_p = vec![0.0; data.rows];
    potential.log_potential(&Cpu, &score(base, data)?, &phi, &mut log_p)?;
    let total: f64 = log_p.iter().map(|log_p| log_z - log_p).sum();
    Ok(total / data.total_tokens() as f64)
}

/// φ of a batch, `[rows, F]`.
pub fn evaluate(features: &FeatureTable, batch: &Batch) -> Result<Vec<f32>> {
    let mut phi = Cpu.zeros(batch.rows * features.len(), "features")?;
    features.evaluate(&Cpu, batch, &mut phi)?;
    Ok(phi)
}

/// E φ under a model, from its own samples: one estimate a feature.
pub fn moments(model: &mut impl Sampler<Cpu>, features: &FeatureTable, seed: u64) -> Result<Vec<Estimate>> {
    let mut batch = Batch::with_capacity(&Cpu, model.space(), JUDGED)?;
    let (mut log_q, mut log_model) = (vec![0.0; JUDGED], vec![0.0; JUDGED]);
    model.sample(Draw::new(seed, Purpose::Evaluate).skip(1 << 51), None, &mut batch, &mut log_q, &mut log_model)?;
    let phi = evaluate(features, &batch)?;
    let column = |i: usize| phi.iter().skip(i).step_by(features.len()).map(|&v| f64::from(v)).collect::<Vec<_>>();
    (0..features.len()).map(|i| Estimate::mean(&column(i))).collect()
}

/// base.svg: cross-entropy over the passes.
fn draw_base(output: &mut Output, training: &Likelihood) -> Result<()> {
    let line = |name: &str, value: fn(&ebm_dpg::models::LikelihoodProgress) -> f64| {
        Series::new(name, training.history.iter().map(|now| (now.epoch as f64, value(now))).collect())
    };
    let chart = Chart {
        title: "Base r: maximum likelihood".into(),
        x_label: "passes over the data".into(),
        panels: vec![Panel {
            y_label: "cross-entropy, nats per token".into(),
            series: vec![line("training", |now| now.train), line("validation", |now| now.validation)],
            references: vec![Reference { name: "best".into(), y: training.best.1, series: Some(1) }],
            ..Panel::default()
        }],
    };
    draw(&output.file("base.svg"), &chart)
}

/// tuning.svg: loss, KL, ESS, and moments against the wanted ones.
pub fn draw_tuning(output: &mut Output, tuned: &Tuned, names: &[String], wanted: &[f64]) -> Result<()> {
    let line = |name: &str, value: &dyn Fn(&tune::Record) -> f64| {
        Series::new(name, tuned.history.iter().map(|now| (now.samples as f64, value(now))).collect())
    };
    let kl = |name: &str, value: fn(&tune::Record) -> Option<Estimate>| Series {
        band: tuned.history.iter().map(|now| value(now).map_or(f64::NAN, |kl| kl.standard_error)).collect(),
        ..line(name, &|now| value(now).map_or(f64::NAN, |kl| kl.value))
    };
    let moments = names.iter().enumerate().map(|(i, name)| line(name, &|now| now.moments[i].value)).collect();
    let levels = wanted.iter().enumerate().map(|(i, &y)| Reference { name: String::new(), y, series: Some(i) });
    let panel = |y_label: &str, log_y: bool, series: Vec<Series>| Panel {
        y_label: y_label.into(),
        log_y,
        series,
        ..Panel::default()
    };
    let chart = Chart {
        title: "Policy π: towards the energy-based model".into(),
        x_label: "sequences drawn for training".into(),
        panels: vec![
            panel("loss, nats per token", false, vec![line("weighted −log π", &|now| now.loss)]),
            panel("KL, nats", true, vec![kl("KL(p‖π)", |now| now.kl), kl("KL(p‖q)", |now| now.kl_proposal)]),
            Panel { y_range: Some(0.0..1.0), ..panel("ESS of q, share", false, vec![line("ESS/N", &|now| now.ess)]) },
            Panel {
                y_label: "moments of π; wanted: dashed".into(),
                y_range: Some(0.0..1.0),
                series: moments,
                references: levels.filter(|level| level.y.is_finite()).collect(),
                ..Panel::default()
            },
        ],
    };
    draw(&output.file("tuning.svg"), &chart)
}

/// λ of each feature; NaN where the feature is a hard constraint or was left out.
pub fn lambda(potential: &Potential) -> Vec<f64> {
    let lambda = |role: &Role| if let Role::Tilt(lambda) = role { *lambda } else { f64::NAN };
    potential.roles().iter().map(lambda).collect()
}

/// The values without their errors.
pub fn values(estimates: &[Estimate]) -> Vec<f64> {
    estimates.iter().map(|estimate| estimate.value).collect()
}

/// The estimate of the smaller error.
pub fn sharper(a: Estimate, b: Estimate) -> Estimate {
    if a.standard_error < b.standard_error { a } else { b }
}

/// A library estimate as the report writes it.
pub fn reported(estimate: Estimate) -> super::report::Estimate {
    super::report::Estimate { estimate: estimate.value, standard_error: estimate.standard_error }
}
