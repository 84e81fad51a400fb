//! The trainer itself on a GPU, against the same calls on the CPU: maximum likelihood, fit, tuning, judgement.
//! Not under the sanitizers, which would take minutes over kernels that the other tests show them one by one.
#![cfg(not(sanitized))]

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::gpu::{Gpu, Launcher};
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet};
use ebm_dpg::fit::{Fit, FitOptions, Targets, fit};
use ebm_dpg::models::{Likelihood, LikelihoodOptions, Lstm, LstmBackend, LstmShape, Markov, Scorer, fit_likelihood};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Contexts, Space, Token};
use ebm_dpg::tune::{
    Baseline, Checkpoint, Checkpoints, Evaluation, Method, Source, SubTrajectories, Swap, Target, TuneData,
    TuneOptions, Tuned, evaluate, tune, tune_with_checkpoints,
};
use ebm_dpg::weights::Estimate;

mod support;
use support::on_every_backend;

on_every_backend!(
    schedules: 2;
    tuning_follows_the_cpu,
    tuning_with_the_baseline_follows_the_cpu,
    tuning_from_a_mixture_follows_the_cpu,
    tuning_on_policy_follows_the_cpu,
    distillation_follows_the_cpu,
    tuning_with_contexts_follows_the_cpu,
    sub_trajectory_balance_follows_the_cpu,
    resumed_tuning_is_the_uninterrupted_one_bit_for_bit,
    fits_are_those_of_the_cpu,
    maximum_likelihood_follows_the_cpu,
);

#[cfg(feature = "cuda")]
mod recorded_steps_are_the_steps_bit_for_bit {
    use super::*;

    /// Eight batches of draws, with a swap to another source and evaluations between.
    #[test]
    fn cuda() {
        let Some(gpu) = ebm_dpg_emulator::driver::first_gpu() else { return };
        let cases = [
            (Method::DpgOffPolicy, Baseline::Mean),
            (Method::Distill, Baseline::None),
            (Method::Reinforce, Baseline::Mean),
            (Method::SubTrajectoryBalance(SubTrajectories::default()), Baseline::None),
        ];
        let off = Method::DpgOffPolicy;
        let mixture = std::iter::once((off, Baseline::None, 0.2));
        for (method, baseline, defensive) in
            cases.map(|(method, baseline)| (method, baseline, 0.0)).into_iter().chain(mixture)
        {
            let mut options = options(method, baseline);
            (options.samples, options.defensive) = (512, defensive);
            let recorded = tuned(&gpu, &options, None);
            assert_eq!(recorded, tuned(&gpu.clone().recording(false), &options, None), "{method:?}");
            // A mixture wants whole rounds of the contexts.
            if defensive > 0.0 {
                continue;
            }
            let behind = tuned(&gpu, &options, Some(&contexts()));
            assert_eq!(behind, tuned(&gpu.clone().recording(false), &options, Some(&contexts())), "{method:?}");
        }
    }

    /// Of the eight of each method, two or three are launched one by one: the first, and those after a swap to another source or after
    /// memory was given back.
    #[test]
    fn but_for_few() {
        let this = "recorded_steps_are_the_steps_bit_for_bit::cuda";
        let output = ebm_dpg_emulator::driver::rerun_with_fake(this, &[("FAKE_GRAPHS", "1")]);
        let told = String::from_utf8_lossy(&output.stderr);
        let graphs = told.lines().filter(|line| line.starts_with("graph of")).count();
        assert!(output.status.success() && (45..=63).contains(&graphs), "{graphs} graphs: {told}");
    }
}

fn space() -> Space {
    Space::new(2, 5).unwrap()
}

/// Every sequence that ends, and every cut one.
fn all_sequences() -> Vec<Vec<Token>> {
    let space = space();
    let content = |length: u32| (0..1u32 << length).map(move |bits| (0..length).map(|t| bits >> t & 1).collect());
    let ended = (0..space.longest).flat_map(content).map(|mut sequence: Vec<Token>| {
        sequence.push(space.eos);
        sequence
    });
    ended.chain(content(space.longest)).collect()
}

/// log π of every sequence: the whole of what a model says.
fn log_probs<B: LstmBackend>(backend: &B, model: &mut B::Lstm) -> Vec<f64> {
    let batch = Batch::from_sequences(space(), &all_sequences()).unwrap().upload(backend).unwrap();
    let mut log_probs = backend.zeros(batch.rows, "log-probs").unwrap();
    model.score(&batch, B::view_mut(&mut log_probs, batch.rows)).unwrap();
    let mut host = vec![0.0; batch.rows];
    backend.download(&log_probs, &mut host).unwrap();
    host
}

fn lstm<B: LstmBackend>(backend: &B, seed: u64, dropout: f32) -> B::Lstm {
    backend.lstm(Lstm::new(space(), LstmShape { layers: 1, hidden: 8, dropout }, seed).unwrap()).unwrap()
}

/// Two neighbouring symbols 1 always, a first symbol 0 more often.
fn features() -> FeatureSet {
    let features = FeatureSet::new(space()).with("11", Feature::Contains(vec![1, 1])).unwrap();
    features.with("^0", Feature::StartsWith(vec![0])).unwrap()
}

fn potential<B: Backend>(backend: &B) -> Potential<B> {
    Potential::new(backend, &[Role::Require(1.0), Role::Tilt(0.7)]).unwrap()
}

fn guide() -> Guide {
    let noise = Markov::noise(space(), 4).unwrap();
    LookAhead::towards(&noise, &features(), &potential(&Cpu), 100).unwrap().guide()
}

/// As [`potential`], but for methods that cannot have a requirement.
fn potential_for<B: Backend>(backend: &B, method: Method) -> Potential<B> {
    match method {
        Method::SubTrajectoryBalance(_) => Potential::new(backend, &[Role::Tilt(1.0), Role::Tilt(0.7)]).unwrap(),
        _ => potential(backend),
    }
}

/// A few batches; q ← π on the way.
fn options(method: Method, baseline: Baseline) -> TuneOptions {
    let mut options = TuneOptions::default();
    (options.method, options.baseline, options.swap) = (method, baseline, Swap::Every(3));
    (options.samples, options.batch, options.updates, options.cache) = (256, 64, 2, 128);
    (options.evaluations, options.evaluation_rows) = (2, 200);
    options.adam = AdamOptions { learning_rate: 2e-3, ..options.adam };
    options
}

/// Two contexts and none, ten draws of each in a row.
fn contexts() -> Contexts {
    Contexts::new(space(), &[vec![1, 0], vec![], vec![0]], 10).unwrap()
}

/// What came of it, behind contexts where there are any, the judgement of the policy, and the policy.
fn tuned<B: LstmBackend>(
    backend: &B,
    options: &TuneOptions,
    contexts: Option<&Contexts>,
) -> (Tuned, Evaluation, Vec<f64>) {
    let contexts = contexts.map(|contexts| contexts.upload(backend).unwrap());
    let (mut base, mut policy) = (lstm(backend, 1, 0.0), lstm(backend, 2, 0.0));
    let (table, potential) = (features().compile(backend).unwrap(), potential_for(backend, options.method));
    let guide = guide().upload(backend).unwrap();
    let mut target = Target {
        base: &mut base,
        features: &table,
        potential: &potential,
        guide: Some(&guide),
        contexts: contexts.as_ref(),
    };
    let tuned = tune(backend, &mut target, &mut policy, options, TuneData::default(), |_| {}).unwrap();
    let draw = Draw::new(5, Purpose::Evaluate);
    let judged = evaluate(backend, &mut target, &mut policy, Source::Guided, 300, draw).unwrap();
    (tuned, judged, log_probs(backend, &mut policy))
}

/// A run that writes checkpoints, and its policy; `watch` is called after each batch of draws.
fn checkpointed<B: LstmBackend>(
    backend: &B,
    options: &TuneOptions,
    how: &Checkpoints,
    mut watch: impl FnMut(),
) -> (Tuned, Vec<f64>) {
    let (mut base, mut policy) = (lstm(backend, 1, 0.0), lstm(backend, 2, 0.0));
    let (table, potential) = (features().compile(backend).unwrap(), potential(backend));
    let guide = guide().upload(backend).unwrap();
    let mut target =
        Target { base: &mut base, features: &table, potential: &potential, guide: Some(&guide), contexts: None };
    let data = TuneData::default();
    let tuned = tune_with_checkpoints(backend, &mut target, &mut policy, options, data, how, |_| watch()).unwrap();
    (tuned, log_probs(backend, &mut policy))
}

/// λ and the rest from wanted moments.
fn fitted<B: LstmBackend>(backend: &B) -> Fit {
    let mut options = FitOptions::default();
    (options.samples, options.base_samples, options.rounds, options.batch) = (1200, 1000, 2, 400);
    let wanted = Targets::wanted(&[1.0, 0.6]).unwrap();
    fit(backend, &mut lstm(backend, 1, 0.0), &features(), &wanted, &options, Draw::new(3, Purpose::Fit)).unwrap()
}

/// Three passes with dropout over sequences that contain 11.
fn learnt<B: LstmBackend>(backend: &B) -> (Likelihood, Vec<f64>) {
    let with_motif = |sequence: &Vec<Token>| sequence.windows(2).any(|pair| pair == [1, 1]);
    let sequences: Vec<_> = all_sequences().into_iter().filter(with_motif).collect();
    let data = Batch::from_sequences(space(), &sequences).unwrap().upload(backend).unwrap();
    let mut options = LikelihoodOptions::default();
    (options.batch, options.epochs, options.seed) = (16, 3, 4);
    let mut model = lstm(backend, 3, 0.3);
    let likelihood = fit_likelihood(backend, &mut model, &data, &data, &options, |_| {}).unwrap();
    (likelihood, log_probs(backend, &mut model))
}

#[track_caller]
fn assert_close(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!(got == want || (got - want).abs() <= tolerance, "{what}: {got} and {want}");
}

#[track_caller]
fn assert_all_close(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    got.iter().zip(want).enumerate().for_each(|(at, (a, b))| assert_close(&format!("{what} {at}"), *a, *b, tolerance));
}

#[track_caller]
fn assert_estimates_close(what: &str, got: &[Estimate], want: &[Estimate], tolerance: f64) {
    let columns =
        |estimates: &[Estimate]| estimates.iter().flat_map(|e| [e.value, e.standard_error]).collect::<Vec<_>>();
    assert_all_close(what, &columns(got), &columns(want), tolerance);
}

mod cases {
    use super::*;

    fn follows_the_cpu<L: Launcher>(gpu: &Gpu<L>, options: &TuneOptions, contexts: Option<&Contexts>) {
        let (got, got_judged, got_policy) = tuned(gpu, options, contexts);
        let (want, want_judged, want_policy) = tuned(&Cpu, options, contexts);
        assert_estimates_close("log Z of contexts", &got.contexts, &want.contexts, 1e-6);
        assert_eq!(got.contexts.len(), contexts.map_or(0, |contexts| contexts.len()));
        assert_eq!((got.samples, got.updates, got.swaps), (want.samples, want.updates, want.swaps));
        assert_eq!((&got.warnings, got.history.len()), (&want.warnings, want.history.len()));
        for (got, want) in got.history.iter().zip(&want.history) {
            assert_eq!((got.samples, got.updates, got.swaps), (want.samples, want.updates, want.swaps));
            assert_close("log Z", got.log_z, want.log_z, 1e-6);
            assert_close("loss", got.loss, want.loss, 1e-4);
            assert_close("ESS", got.ess, want.ess, 1e-4);
            assert_eq!((got.kl.is_some(), got.kl_proposal.is_some()), (want.kl.is_some(), want.kl_proposal.is_some()));
            let kl = |record: &ebm_dpg::tune::Record| [record.kl, record.kl_proposal].into_iter().flatten().collect();
            let (got_kl, want_kl): (Vec<_>, Vec<_>) = (kl(got), kl(want));
            assert_estimates_close("KL", &got_kl, &want_kl, 1e-4);
            // One draw of another token moves a moment by a two-hundredth.
            assert_estimates_close("moments", &got.moments, &want.moments, 6e-3);
        }
        assert_estimates_close("judgement", &summary(&got_judged), &summary(&want_judged), 2e-3);
        assert_all_close("log π", &got_policy, &want_policy, 2e-3);
    }

    fn summary(judged: &Evaluation) -> [Estimate; 4] {
        [judged.log_z, judged.kl_policy, judged.tv_policy, judged.kl_policy_base]
    }

    pub fn tuning_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        follows_the_cpu(gpu, &options(Method::DpgOffPolicy, Baseline::None), None);
    }

    pub fn tuning_with_the_baseline_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        follows_the_cpu(gpu, &options(Method::DpgOffPolicy, Baseline::Mean), None);
    }

    /// From r, guided and not.
    pub fn tuning_from_a_mixture_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let mut options = options(Method::DpgOffPolicy, Baseline::None);
        (options.defensive, options.swap) = (0.2, Swap::Every(2));
        for proposal in [Source::Guided, Source::Base] {
            options.proposal = proposal;
            follows_the_cpu(gpu, &options, None);
        }
    }

    pub fn tuning_on_policy_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        follows_the_cpu(gpu, &options(Method::DpgOnPolicy, Baseline::None), None);
    }

    pub fn distillation_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        follows_the_cpu(gpu, &options(Method::Distill, Baseline::None), None);
    }

    pub fn tuning_with_contexts_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        follows_the_cpu(gpu, &options(Method::DpgOffPolicy, Baseline::Mean), Some(&contexts()));
    }

    pub fn sub_trajectory_balance_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let mut options = options(Method::SubTrajectoryBalance(SubTrajectories::default()), Baseline::None);
        // From π's own support: the guide would draw what has 11 alone.
        options.proposal = Source::Base;
        follows_the_cpu(gpu, &options, None);
    }

    /// From the checkpoint before q ← π and from the one after it.
    pub fn resumed_tuning_is_the_uninterrupted_one_bit_for_bit<L: Launcher>(gpu: &Gpu<L>) {
        let mut options = options(Method::DpgOffPolicy, Baseline::Mean);
        (options.evaluations, options.evaluation_rows, options.samples) = (5, 50, 320);
        let room = tempfile::tempdir().unwrap();
        let how = Checkpoints::new(&room.path().join("checkpoint"));
        let mut copies = Vec::new();
        let whole = checkpointed(gpu, &options, &how, || copies.extend(Checkpoint::load(&how.path).ok()));
        assert_eq!((whole.0.swaps, copies.len()), (1, 4));
        let on = Checkpoints::new(&room.path().join("on"));
        for copy in [&copies[1], &copies[3]] {
            let how = Checkpoints { resume: Some(copy.clone()), ..on.clone() };
            assert_eq!(checkpointed(gpu, &options, &how, || {}), whole);
        }
        // A run of the CPU would go on with other bits.
        let refused = Checkpoints { resume: Some(copies[0].clone()), ..on };
        let mut base = lstm(&Cpu, 1, 0.0);
        let (table, potential, guide) = (features().compile(&Cpu).unwrap(), potential(&Cpu), guide());
        let mut target =
            Target { base: &mut base, features: &table, potential: &potential, guide: Some(&guide), contexts: None };
        let (mut policy, data) = (lstm(&Cpu, 2, 0.0), TuneData::default());
        let error =
            tune_with_checkpoints(&Cpu, &mut target, &mut policy, &options, data, &refused, |_| {}).unwrap_err();
        assert!(error.to_string().contains("of another run: backend: expected"), "{error}");
    }

    pub fn fits_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let (got, want) = (fitted(gpu), fitted(&Cpu));
        assert_eq!((got.samples, got.iterations, &got.warnings), (want.samples, want.iterations, &want.warnings));
        assert_all_close("λ", &got.lambda, &want.lambda, 1e-5);
        assert_estimates_close("log Z", &[got.log_z], &[want.log_z], 1e-5);
        assert_estimates_close("moments", &got.moments_potential, &want.moments_potential, 1e-5);
        assert_close("ESS", got.ess, want.ess, 1e-2);
    }

    pub fn maximum_likelihood_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let ((got, got_model), (want, want_model)) = (learnt(gpu), learnt(&Cpu));
        assert_eq!((got.best.0, got.history.len()), (want.best.0, want.history.len()));
        let entropies = |likelihood: &Likelihood| -> Vec<f64> {
            likelihood.history.iter().flat_map(|now| [now.train, now.validation]).collect()
        };
        assert_all_close("cross-entropy", &entropies(&got), &entropies(&want), 1e-5);
        assert_all_close("log π", &got_model, &want_model, 1e-4);
    }
}
