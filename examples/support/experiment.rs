//! The phases both examples share: base r, coefficients λ, policy π, judgement.

use std::time::Instant;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::{Backend, Cpu, Element, Memory};
use ebm_dpg::data::Splits;
use ebm_dpg::exact::Guide;
use ebm_dpg::features::{FeatureSet, FeatureTable};
use ebm_dpg::fit::{self, FitOptions, NewtonOptions, SgdOptions, Solver, Targets};
use ebm_dpg::models::{
    Likelihood, LikelihoodOptions, Lstm, LstmBackend, LstmShape, Policy, Sampler, Scorer, fit_likelihood,
};
use ebm_dpg::observe::{Alarms, JsonLines, Observer, TensorBoard};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Contexts, Space};
use ebm_dpg::tune::{self, Evaluation, KlControl, Source, SubTrajectories, Target, TuneData, TuneOptions, Tuned};
use ebm_dpg::weights::Estimate;
use ebm_dpg::{Error, Result};

use super::options::{self, Baseline, Common, Init, Method, Moments, Proposal, Swap};
use super::plot::{Chart, Panel, Reference, Series, draw};
use super::progress::Progress;
use super::report::Output;
use super::resume::BASE;
use super::say;

/// Updates of π a batch of draws: each draw serves so many times.
pub const UPDATES: usize = 4;

/// Sequences that judge at the end.
pub const JUDGED: usize = 10_000;

/// A trained or loaded base, and how long its training took.
pub struct Base<B: LstmBackend> {
    pub model: B::Lstm,
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

/// Trains r on the data, unless it is `loaded`, or was trained by this run before it was interrupted.
pub fn base<B: LstmBackend>(
    backend: &B,
    common: &Common,
    loaded: Option<Lstm>,
    mut options: LikelihoodOptions,
    data: &Splits<B>,
    output: &mut Output,
) -> Result<Base<B>> {
    if let Some(model) = loaded.map_or_else(|| output.trained_base(), |model| Ok(Some(model)))? {
        return Ok(Base { model: backend.lstm(model)?, seconds: 0.0 });
    }
    let mut model = backend.lstm(Lstm::new(data.train.space, shape(common, 0.2), common.seed)?)?;
    options.batch = options.batch.min(data.train.rows);
    options.seed = common.seed;
    let mut progress = Progress::start("base r", options.epochs as u64, "epochs");
    let training = fit_likelihood(backend, &mut model, &data.train, &data.validation, &options, |now| {
        progress.set(now.epoch as u64, &format!("validation {:.4} nats/token", now.validation));
    })?;
    let (epoch, entropy) = training.best;
    let seconds = progress.finish(&format!("best after {epoch}: {entropy:.4} nats/token"));
    draw_base(output, &training)?;
    model.save(&output.file(BASE))?;
    output.base_is_trained()?;
    Ok(Base { model, seconds })
}

/// An LSTM of the options' size.
fn shape(common: &Common, dropout: f32) -> LstmShape {
    LstmShape { layers: common.layers, hidden: common.hidden, dropout }
}

/// The policy before tuning.
pub fn initial_policy<B: LstmBackend>(
    backend: &B,
    common: &Common,
    space: Space,
    base: Option<&B::Lstm>,
) -> Result<B::Lstm> {
    match (common.init, base) {
        (Init::Base, Some(base)) => {
            let mut policy = base.try_clone()?;
            policy.reset_optimizer()?;
            Ok(policy)
        }
        // Not the seed of r: a fresh policy is another network.
        _ => backend.lstm(Lstm::new(space, shape(common, 0.0), common.seed.wrapping_add(1))?),
    }
}

/// P_λ = r·b·exp⟨λ, φ⟩ with the moments wanted of it, and the look-ahead that guides r towards it.
pub struct Fitted<B: Memory> {
    pub potential: Potential<B>,
    pub guide: Guide<B>,
    pub log_z: Estimate,
    pub warnings: Vec<String>,
    pub seconds: f64,
}

impl<B: Backend> Fitted<B> {
    /// What the policy is tuned towards.
    pub fn target<'a, R>(&'a self, base: &'a mut R, features: &'a FeatureTable<B>) -> Target<'a, B, R> {
        Target { base, features, potential: &self.potential, guide: Some(&self.guide), contexts: None }
    }
}

/// Fits λ over r, on so many draws.
pub fn fit<B: LstmBackend>(
    backend: &B,
    common: &Common,
    samples: usize,
    base: &mut B::Lstm,
    features: &FeatureSet,
    targets: &Targets,
    contexts: Option<&Contexts<B>>,
) -> Result<Fitted<B>> {
    let started = Instant::now();
    let options = fit_options(common, samples);
    let draw = Draw::new(common.seed, Purpose::Fit);
    let fit = fit::fit_behind(backend, base, features, targets, contexts, &options, draw)?;
    let guide = match &fit.guide {
        Some(guide) => guide.upload(backend)?,
        None => {
            let draw = Draw::new(common.seed, Purpose::Fit).skip(1 << 50);
            fit::guide_towards(backend, base, features, &fit.potential(&Cpu)?, &options, draw)?.upload(backend)?
        }
    };
    let (seconds, log_z) = (started.elapsed().as_secs_f64(), fit.log_z);
    say(&format!(
        "fit λ              {} draws, {} iterations in {seconds:.1} s, ESS {:.0}, log Z {:.3} ± {:.3}",
        fit.samples, fit.iterations, fit.ess, log_z.value, log_z.standard_error
    ));
    Ok(Fitted { potential: fit.potential(backend)?, guide, log_z, warnings: fit.warnings, seconds })
}

/// The options of the fit.
fn fit_options(common: &Common, samples: usize) -> FitOptions {
    let mut options = FitOptions::default();
    options.samples = common.bounded(samples);
    options.base_samples = common.bounded(options.base_samples);
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
        Method::Balance => tune::Method::TrajectoryBalance,
        Method::SubBalance => {
            let SubTrajectories { lambda, prefixes } = SubTrajectories::default();
            tune::Method::SubTrajectoryBalance(SubTrajectories {
                lambda: common.sub_lambda.unwrap_or(lambda),
                prefixes: common.sub_prefixes.unwrap_or(prefixes),
            })
        }
        Method::Reinforce => tune::Method::Reinforce,
        Method::KlControl => {
            let control = KlControl::default();
            tune::Method::KlControl(KlControl { beta: common.beta.unwrap_or(control.beta), ..control })
        }
    };
    options.divergence = common.divergence.0;
    options.clip_weights = common.clip_weights.unwrap_or(f64::INFINITY);
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
    options.defensive = common.defensive.unwrap_or(0.0);
    options.baseline = match common.baseline {
        Baseline::None => tune::Baseline::None,
        Baseline::Mean => tune::Baseline::Mean,
        Baseline::LeaveOneOut => tune::Baseline::LeaveOneOut,
    };
    options.samples = common.samples;
    options.batch = common.batch;
    options.updates = UPDATES;
    options.adam = AdamOptions { learning_rate: common.learning_rate as f32, ..options.adam };
    options.seed = common.seed;
    options
}

/// Tunes the policy by [`UPDATES`] a batch of draws; the cache makes each draw serve as often. `validation` judges
/// the swap by cross-entropy. Returns the seconds, too. tuning.jsonl and an event file for TensorBoard receive every
/// evaluation as it is made; a run that goes on from a checkpoint cuts both behind the checkpoint's last evaluation, and
/// counts seconds from there. What alarmed, and what clipping cost, is among the warnings in the end.
pub fn tune_policy<B: LstmBackend, R: Sampler<B>>(
    backend: &B,
    common: &Common,
    target: &mut Target<'_, B, R>,
    policy: &mut B::Lstm,
    validation: Option<&Batch<B>>,
    names: &[String],
    output: &mut Output,
) -> Result<(Tuned, f64)> {
    let (options, checkpoints) = (tune_options(common), output.checkpoints(common)?);
    let before = checkpoints.resume.as_ref().map_or(&[][..], |checkpoint| checkpoint.history());
    let path = output.file("tuning.jsonl");
    let (mut records, mut board) = if common.resume {
        (JsonLines::resume(&path, before)?, TensorBoard::resume(output.directory(), names, before)?)
    } else {
        (JsonLines::create(&path)?, TensorBoard::create(output.directory(), names)?)
    };
    let (started, seconds_before) = (Instant::now(), records.seconds());
    let (mut alarms, mut failed) = (Alarms::new(), None);
    before.iter().try_for_each(|record| alarms.record(0.0, record))?;
    // These have been told of already, and belong to the report all the same.
    let mut alarmed = alarms.take();
    let mut progress = Progress::start("policy π", options.samples as u64, "draws");
    let mut note = String::new();
    let data = TuneData { held_out: validation, extra: None };
    let mut tuned = tune::tune_with_checkpoints(backend, target, policy, &options, data, &checkpoints, |now| {
        if let Some(record) = now.record {
            let kl = record.kl.map_or("KL unknown".into(), |kl| format!("KL(p‖π) {:.3}", kl.value));
            note = format!("{kl}, {} swaps", record.swaps);
            let seconds = seconds_before + started.elapsed().as_secs_f64();
            let observers: [&mut dyn Observer; 3] = [&mut records, &mut board, &mut alarms];
            // A disk that is full is no reason to lose the run: it is told at the end.
            let error = observers.into_iter().find_map(|observer| observer.record(seconds, record).err());
            failed = failed.take().or(error);
            let new = alarms.take();
            new.iter().for_each(|alarm| progress.say(&format!("alarm: {alarm}")));
            alarmed.extend(new);
        }
        progress.set(now.samples as u64, &note);
    })
    .map_err(about_requirements)?;
    let seconds = progress.finish(&note);
    tuned.warnings.extend(alarmed);
    tuned.warnings.extend(bias_of_clipping(&options, &tuned));
    failed.map_or(Ok((tuned, seconds)), Err)
}

/// What the command line can do where an objective has no requirements.
fn about_requirements(error: Error) -> Error {
    match error {
        Error::Argument { what, expected, got } if what == "objective" => {
            Error::argument(what, format!("{expected} (--fit sgd makes none of what the data always have)"), got)
        }
        error => error,
    }
}

/// What a user who cuts weights has to know.
fn bias_of_clipping(options: &TuneOptions, tuned: &Tuned) -> Option<String> {
    // NaN where there was no weight to cut.
    let clipped = tuned.history.iter().rev().map(|record| record.clipped).find(|clipped| !clipped.is_nan())?;
    (options.clip_weights < f64::INFINITY).then(|| {
        format!("weights were cut: what π was trained towards is up to {clipped:.4} from p in total variation")
    })
}

/// The final judgement: from the guided proposal where there is one, else from π itself.
pub fn judge<B: LstmBackend, R: Sampler<B>>(
    backend: &B,
    common: &Common,
    target: &mut Target<'_, B, R>,
    policy: &mut B::Lstm,
) -> Result<Evaluation> {
    let source = if target.guide.is_some() { Source::Guided } else { Source::Policy };
    let draw = Draw::new(common.seed, Purpose::Evaluate).skip(1 << 50);
    tune::evaluate(backend, target, policy, source, common.bounded(JUDGED), draw)
}

/// Cross-entropy of a model on data, nats per token.
pub fn cross_entropy<B: Backend>(backend: &B, model: &mut impl Scorer<B>, data: &Batch<B>) -> Result<f64> {
    let log_probs = score(backend, model, data)?;
    let total: f64 = read(backend, &log_probs)?.iter().sum();
    Ok(-total / total_tokens(backend, data)? as f64)
}

/// Cross-entropy of p = P/Z on data, nats per token; infinite where a sequence has P = 0.
pub fn potential_cross_entropy<B: Backend>(
    backend: &B,
    target: &mut Target<'_, B, impl Scorer<B>>,
    log_z: f64,
    data: &Batch<B>,
) -> Result<f64> {
    let phi = features(backend, target.features, data)?;
    let log_base = score(backend, target.base, data)?;
    let mut log_p = backend.zeros(data.rows, "log-potentials")?;
    let (view_base, view_phi) = (B::view(&log_base, data.rows), B::view(&phi, B::len(&phi)));
    target.potential.log_potential(backend, view_base, view_phi, B::view_mut(&mut log_p, data.rows))?;
    let total: f64 = read(backend, &log_p)?.iter().map(|log_p| log_z - log_p).sum();
    Ok(total / total_tokens(backend, data)? as f64)
}

/// log-probs of a batch.
fn score<B: Backend>(backend: &B, model: &mut impl Scorer<B>, batch: &Batch<B>) -> Result<B::Buffer<f64>> {
    let mut log_probs = backend.zeros(batch.rows, "log-probs")?;
    model.score(batch, B::view_mut(&mut log_probs, batch.rows))?;
    Ok(log_probs)
}

fn total_tokens<B: Memory>(backend: &B, batch: &Batch<B>) -> Result<usize> {
    Ok(read(backend, &batch.lengths)?[..batch.rows].iter().map(|&length| length as usize).sum())
}

/// φ of a batch, `[rows, F]`.
fn features<B: Backend>(backend: &B, table: &FeatureTable<B>, batch: &Batch<B>) -> Result<B::Buffer<f32>> {
    let len = batch.rows * table.len();
    let mut phi = backend.zeros(len, "features")?;
    table.evaluate(backend, batch, B::view_mut(&mut phi, len))?;
    Ok(phi)
}

/// φ of a batch on the host, `[rows, F]`.
pub fn evaluate<B: Backend>(backend: &B, table: &FeatureTable<B>, batch: &Batch<B>) -> Result<Vec<f32>> {
    read(backend, &features(backend, table, batch)?)
}

/// A buffer's values on the host.
fn read<B: Memory, T: Element>(backend: &B, buffer: &B::Buffer<T>) -> Result<Vec<T>> {
    let mut values = Cpu.zeros(B::len(buffer), "copy")?;
    backend.download(buffer, &mut values)?;
    Ok(values)
}

/// So many sequences of a model's own, behind contexts where there are any.
pub fn sample<B: Backend>(
    backend: &B,
    model: &mut impl Sampler<B>,
    contexts: Option<&Contexts<B>>,
    rows: usize,
    draw: Draw,
) -> Result<Batch<B>> {
    let mut batch = Batch::with_capacity(backend, model.space(), rows)?;
    if let Some(contexts) = contexts {
        batch.begin(backend, contexts, draw)?;
    }
    let (mut log_q, mut log_model) = (backend.zeros(rows, "log q")?, backend.zeros(rows, "log-probs")?);
    model.sample(draw, None, &mut batch, B::view_mut(&mut log_q, rows), B::view_mut(&mut log_model, rows))?;
    Ok(batch)
}

/// E φ under a model, from its own samples: one estimate a feature.
pub fn moments<B: Backend>(
    backend: &B,
    common: &Common,
    model: &mut impl Sampler<B>,
    contexts: Option<&Contexts<B>>,
    table: &FeatureTable<B>,
) -> Result<Vec<Estimate>> {
    let draw = Draw::new(common.seed, Purpose::Evaluate).skip(1 << 51);
    let phi = evaluate(backend, table, &sample(backend, model, contexts, common.bounded(JUDGED), draw)?)?;
    let column = |i: usize| phi.iter().skip(i).step_by(table.len()).map(|&v| f64::from(v)).collect::<Vec<_>>();
    (0..table.len()).map(|i| Estimate::mean(&column(i))).collect()
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

/// tuning.svg: loss, gradient, KL, TV, ESS, log Ẑ, and moments against the wanted ones.
pub fn draw_tuning(output: &mut Output, tuned: &Tuned, names: &[String], wanted: &[f64]) -> Result<()> {
    let line = |name: &str, value: &dyn Fn(&tune::Record) -> f64| {
        Series::new(name, tuned.history.iter().map(|now| (now.samples as f64, value(now))).collect())
    };
    let unsure = |name: &str, value: fn(&tune::Record) -> Option<Estimate>| Series {
        band: tuned.history.iter().map(|now| value(now).map_or(f64::NAN, |found| found.standard_error)).collect(),
        ..line(name, &|now| value(now).map_or(f64::NAN, |found| found.value))
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
            panel(
                "norm of the gradient",
                true,
                vec![Series {
                    band: tuned.history.iter().map(|now| now.gradient_norm_deviation).collect(),
                    ..line("mean ± deviation", &|now| now.gradient_norm)
                }],
            ),
            panel("KL, nats", true, vec![unsure("KL(p‖π)", |now| now.kl), unsure("KL(p‖q)", |now| now.kl_proposal)]),
            panel("TV", true, vec![unsure("TV(p, π)", |now| now.tv)]),
            panel(
                "log Ẑ, nats",
                false,
                vec![
                    Series {
                        band: tuned.history.iter().map(|now| now.log_z_error).collect(),
                        ..line("all draws", &|now| now.log_z)
                    },
                    unsure("draws of q that judge", |now| now.log_z_now),
                ],
            ),
            Panel { y_range: Some(0.0..1.0), ..panel("ESS of q, share", false, vec![line("ESS/N", &|now| now.ess)]) },
            Panel {
                // A run without swaps has an axis all the same.
                y_range: Some(0.0..tuned.swaps.max(1) as f64),
                ..panel("swaps", false, vec![line("q ← π", &|now| now.swaps as f64)])
            },
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
pub fn lambda<B: Backend>(potential: &Potential<B>) -> Vec<f64> {
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
