//! The phases both examples share: base r, coefficients λ, policy π, judgement.

use std::time::Instant;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::features::{FeatureSet, FeatureTable};
use ebm_dpg::fit::{self, FitOptions, NewtonOptions, SgdOptions, Solver};
use ebm_dpg::models::{Likelihood, LikelihoodOptions, Lstm, LstmShape, Policy, Sampler, Scorer, fit_likelihood};
use ebm_dpg::potential::Potential;
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space};
use ebm_dpg::tune::{self, Evaluation, Source, Target, TuneData, TuneOptions, Tuned};
use ebm_dpg::weights::Estimate;
use ebm_dpg::{Error, Result};

use super::options::{self, Common, Init, Method, Moments, Proposal, Swap};
use super::plot::{Chart, Panel, Reference, Series, draw};
use super::progress::Progress;
use super::report::Output;

/// Sequences that judge at the end.
pub const JUDGED: usize = 10_000;
/// Updates of the base at most; training stops earlier where the validation data say so.
const BASE_UPDATES: usize = 1000;
/// Updates of the policy per batch of draws: the cache makes each draw serve so many times.
const UPDATES: usize = 4;

/// A trained or loaded base, and how its training went.
pub struct Base {
    pub model: Lstm,
    pub training: Option<Likelihood>,
    pub seconds: f64,
}

/// Trains r on the data, or loads it.
pub fn base(common: &Common, train: &Batch, validation: &Batch, output: &mut Output) -> Result<Base> {
    let started = Instant::now();
    let space = train.space;
    if let Some(path) = &common.base {
        let model = Lstm::load(path)?;
        if model.space() != space {
            let expected = format!("a model over {} tokens up to {} long", space.vocab, space.longest);
            let got = format!("{} and {}", model.space().vocab, model.space().longest);
            return Err(Error::argument(format!("--base {}", path.display()), expected, got));
        }
        return Ok(Base { model, training: None, seconds: started.elapsed().as_secs_f64() });
    }
    let mut model = Lstm::new(space, shape(common, 0.2), common.seed)?;
    let mut options = LikelihoodOptions::default();
    // Four updates a pass at least, where the data allow, and a bound on updates that holds for any amount of data.
    options.batch = (train.rows / 4).clamp(50, 250);
    options.epochs = (BASE_UPDATES * options.batch).div_ceil(train.rows).clamp(1, options.epochs);
    options.seed = common.seed;
    let mut progress = Progress::start("base r", options.epochs as u64, "epochs");
    let training = fit_likelihood(&Cpu, &mut model, train, validation, &options, |now| {
        progress.set(now.epoch as u64, &format!("validation {:.4} nats/token", now.validation));
    })?;
    let (epoch, entropy) = training.best;
    let seconds = progress.finish(&format!("best after {epoch}: {entropy:.4} nats/token"));
    model.save(&output.file("base.safetensors"))?;
    Ok(Base { model, training: Some(training), seconds })
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

/// The options of the fit.
pub fn fit_options(common: &Common) -> FitOptions {
    let mut options = FitOptions::default();
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
pub fn tune_options(common: &Common) -> TuneOptions {
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
    options.updates = std::env::var("UPD").ok().and_then(|v| v.parse().ok()).unwrap_or(UPDATES);
    if let Some(c) = std::env::var("CLIP").ok().and_then(|v| v.parse().ok()) {
        options.adam.clip = c;
    }
    options.adam = AdamOptions { learning_rate: common.learning_rate as f32, ..options.adam };
    options.seed = common.seed;
    options
}

/// Tunes the policy; `validation` judges the swap by cross-entropy.
pub fn tune_policy<R: Sampler<Cpu>>(
    common: &Common,
    target: &mut Target<'_, Cpu, R>,
    policy: &mut Lstm,
    validation: Option<&Batch>,
) -> Result<(Tuned, f64)> {
    let options = tune_options(common);
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

/// The look-ahead towards a potential over a base that was fitted without one.
pub fn guide<R: Sampler<Cpu>>(
    common: &Common,
    base: &mut R,
    features: &FeatureSet,
    potential: &Potential,
) -> Result<ebm_dpg::exact::Guide> {
    let draw = Draw::new(common.seed, Purpose::Fit).skip(1 << 50);
    fit::guide_towards(&Cpu, base, features, potential, &fit_options(common), draw)
}

/// base.svg: cross-entropy over the passes.
pub fn draw_base(output: &mut Output, training: &Likelihood) -> Result<()> {
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

/// A library estimate as the report writes it.
pub fn reported(estimate: Estimate) -> super::report::Estimate {
    super::report::Estimate { estimate: estimate.value, standard_error: estimate.standard_error }
}
