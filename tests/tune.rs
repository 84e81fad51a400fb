//! Training-2 on a space small enough to enumerate: expected gradients, convergence, swaps, bad input.

mod oracle;

use std::collections::BTreeMap;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::models::{Coefficients, Lstm, LstmShape, Markov, Policy, Sampler, Scorer, Weighting};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use ebm_dpg::tune::{
    Baseline, Evaluation, KlControl, Method, Source, SubTrajectories, Swap, Target, TuneData, TuneOptions, Tuned,
    evaluate, tune,
};
use ebm_dpg::weights::{Estimate, weights};
use ebm_dpg::{Error, Result};
use oracle::{OracleLstm, Tensors, assert_block_close, entropy, enumerate, kl, moments, normalise, random, tv};

/// Binary strings of up to 7 tokens under a chain, a motif required, two features tilted: everything known by
/// enumeration.
struct World {
    base: Markov,
    features: FeatureTable,
    potential: Potential,
    /// Looks ahead to the requirement only, so that guided weights are not constant.
    guide: Guide,
    /// Looks ahead to all of P: the guided chain samples p.
    exact: Guide,
    all: Vec<Vec<Token>>,
    phi: Vec<Vec<f64>>,
    log_r: Vec<f64>,
    log_z: f64,
    log_p: Vec<f64>,
}

const ROLES: [Role; 3] = [Role::Require(1.0), Role::Tilt(1.2), Role::Tilt(-1.5)];

fn space() -> Space {
    Space::new(2, 7).unwrap()
}

fn world() -> World {
    let seen = [vec![0, 1, 1, 0, 0, 3], vec![1, 0, 1, 1, 0, 1, 0], vec![0, 0, 1, 3], vec![1, 1, 1, 0, 3]];
    let base = Markov::fit(&Batch::from_sequences(space(), &seen).unwrap(), 1, false, 0.5).unwrap();
    let set = FeatureSet::new(space())
        .with("11", Feature::Contains(vec![1, 1]))
        .and_then(|set| set.with("010", Feature::Contains(vec![0, 1, 0])))
        .and_then(|set| set.with("first", Feature::StartsWith(vec![1])))
        .unwrap();
    let potential = Potential::new(&Cpu, &ROLES).unwrap();
    let only = Potential::new(&Cpu, &[ROLES[0], Role::Ignore, Role::Ignore]).unwrap();
    let guide = |potential| LookAhead::towards(&base, &set, potential, 1000).unwrap().guide();
    let (guide, exact) = (guide(&only), guide(&potential));
    let (features, all) = (set.compile(&Cpu).unwrap(), enumerate(space()));
    let (phi, log_r) = (phi_of(&features, &all), score(&mut base.clone(), &all));
    let log_factor = |phi: &Vec<f64>| if phi[0] == 1.0 { 1.2 * phi[1] - 1.5 * phi[2] } else { f64::NEG_INFINITY };
    let log_potential: Vec<f64> = log_r.iter().zip(&phi).map(|(log_r, phi)| log_r + log_factor(phi)).collect();
    let (log_z, log_p) = normalise(&log_potential);
    World { base, features, potential, guide, exact, all, phi, log_r, log_z, log_p }
}

impl World {
    fn target(&mut self) -> Target<'_, Cpu, Markov> {
        let World { base, features, potential, guide, .. } = self;
        Target { base, features, potential, guide: Some(guide), contexts: None }
    }

    /// Tunes a fresh small policy; returns it with what tuning says and KL(p‖π) by enumeration.
    fn tune(&mut self, options: &TuneOptions, data: TuneData<'_, Cpu>) -> Result<(Lstm, Tuned, f64)> {
        let mut policy = lstm(32);
        let tuned = tune(&Cpu, &mut self.target(), &mut policy, options, data, |_| {})?;
        let kl = kl(&self.log_p, &score(&mut policy, &self.all));
        Ok((policy, tuned, kl))
    }

    /// Exact samples of p.
    fn samples(&mut self, rows: usize) -> Batch {
        let mut batch = Batch::with_capacity(&Cpu, space(), rows).unwrap();
        let (mut log_q, mut log_r) = (vec![0.0; rows], vec![0.0; rows]);
        let draw = Draw::new(99, Purpose::User);
        self.base.sample(draw, Some(&self.exact), &mut batch, &mut log_q, &mut log_r).unwrap();
        batch
    }
}

fn lstm(hidden: usize) -> Lstm {
    Lstm::new(space(), LstmShape { layers: 1, hidden, dropout: 0.0 }, 5).unwrap()
}

fn score(model: &mut impl Scorer<Cpu>, sequences: &[Vec<Token>]) -> Vec<f64> {
    let mut log_probs = vec![0.0; sequences.len()];
    model.score(&Batch::from_sequences(space(), sequences).unwrap(), &mut log_probs).unwrap();
    log_probs
}

fn phi_of(features: &FeatureTable, sequences: &[Vec<Token>]) -> Vec<Vec<f64>> {
    let mut phi = vec![0.0; sequences.len() * features.len()];
    features.evaluate(&Cpu, &Batch::from_sequences(space(), sequences).unwrap(), &mut phi).unwrap();
    phi.chunks(features.len()).map(|row| row.iter().map(|&value| f64::from(value)).collect()).collect()
}

/// A quick run that converges on this space, with a change to its options.
fn with(method: Method, proposal: Source, change: impl FnOnce(&mut TuneOptions)) -> TuneOptions {
    let mut options = options(method, proposal);
    change(&mut options);
    options
}

fn options(method: Method, proposal: Source) -> TuneOptions {
    let mut options = TuneOptions::default();
    (options.method, options.proposal) = (method, proposal);
    (options.samples, options.batch, options.updates) = (256 * 120, 256, 8);
    (options.evaluations, options.evaluation_rows) = (6, 256);
    options.adam = AdamOptions { learning_rate: 2e-2, clip: 1.0, ..AdamOptions::default() };
    options.seed = 3;
    options
}

// Expected gradients

/// Σ_x a(x) ∇log π(x) over the whole space by the backend.
fn gradient(policy: &mut Lstm, world: &World, coefficients: &Coefficients<'_, Cpu>) -> Tensors {
    let batch = Batch::from_sequences(space(), &world.all).unwrap();
    policy.gradient(&batch, coefficients, &mut vec![0.0; batch.rows]).unwrap();
    wide(policy.gradients())
}

fn wide(tensors: Vec<(String, Vec<usize>, Vec<f32>)>) -> BTreeMap<String, Vec<f64>> {
    tensors.into_iter().map(|(name, _, values)| (name, values.into_iter().map(f64::from).collect())).collect()
}

fn oracle_of(policy: &Lstm) -> OracleLstm {
    OracleLstm::new(space(), policy.shape().hidden, policy.shape().layers, wide(policy.tensors()))
}

/// Each block agrees with the oracle's Σ_x want(x) ∇log π(x), and the whole with the difference quotient of
/// `objective`, a function of log π over the space, along a random direction.
fn assert_expected(
    name: &str,
    got: &Tensors,
    policy: &Lstm,
    world: &World,
    want: &[f64],
    objective: impl Fn(&[f64]) -> f64,
) {
    let oracle = oracle_of(policy);
    let weighted: Vec<_> = world.all.iter().cloned().zip(want.iter().copied()).collect();
    let exact = oracle.gradient(&weighted);
    exact.iter().for_each(|(block, exact)| assert_block_close(&format!("{name} {block}"), &got[block], exact, 2e-4));
    let direction = |at: usize, len: usize| random(100 + at as u64, len, 1.0);
    let moved = |step: f64| {
        let mut oracle = oracle.clone();
        for (at, block) in oracle.tensors.values_mut().enumerate() {
            let direction = direction(at, block.len());
            block.iter_mut().zip(direction).for_each(|(value, d)| *value += step * f64::from(d));
        }
        objective(&world.all.iter().map(|x| oracle.log_prob(x)).collect::<Vec<_>>())
    };
    let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
    let along = |(at, block): (usize, &Vec<f64>)| -> f64 {
        block.iter().zip(direction(at, block.len())).map(|(g, d)| g * f64::from(d)).sum()
    };
    let along: f64 = got.values().enumerate().map(along).sum();
    assert!((along - slope).abs() < 2e-4 * slope.abs(), "{name}: {along} along a direction, difference {slope}");
}

fn expectation(log_p: &[f64], of: &[f64]) -> f64 {
    log_p.iter().zip(of).map(|(p, value)| if *p == f64::NEG_INFINITY { 0.0 } else { p.exp() * value }).sum()
}

/// Weights of the kernel under q, each times q(x): what one draw of each sequence contributes in expectation.
fn expected_weights(world: &World, log_q: &[f64]) -> Vec<f32> {
    let log_potential: Vec<f64> = world.log_p.iter().map(|log_p| log_p + world.log_z).collect();
    let (mut log_w, mut w) = (vec![0.0; log_q.len()], vec![0.0; log_q.len()]);
    weights(&Cpu, &log_potential, log_q, world.log_z, &mut log_w, &mut w).unwrap();
    w.iter().zip(log_q).map(|(&w, log_q)| (f64::from(w) * log_q.exp()) as f32).collect()
}

#[test]
fn the_expected_gradient_of_dpg_is_that_of_the_cross_entropy_to_p() {
    let (world, mut policy) = (world(), lstm(8));
    let weights = expected_weights(&world, &world.log_r);
    let got = gradient(&mut policy, &world, &Coefficients::given(&weights[..]));
    let p: Vec<f64> = world.log_p.iter().map(|log_p| log_p.exp()).collect();
    assert_expected("DPG", &got, &policy, &world, &p, |log_pi| expectation(&world.log_p, log_pi));
}

/// With q uniform over the space, one `scale` serves all rows.
#[test]
fn the_baseline_leaves_the_expected_gradient_as_it_is() {
    let (world, mut policy) = (world(), lstm(8));
    let log_q = vec![-(world.all.len() as f64).ln(); world.all.len()];
    let weights = expected_weights(&world, &log_q);
    let scale = 1.0 / world.all.len() as f32;
    let (weighting, log_q) = (Weighting::Baseline, Some(&log_q[..]));
    let coefficients = Coefficients { weighting, log_q, scale, ..Coefficients::given(&weights[..]) };
    let got = gradient(&mut policy, &world, &coefficients);
    let p: Vec<f64> = world.log_p.iter().map(|log_p| log_p.exp()).collect();
    assert_expected("baseline", &got, &policy, &world, &p, |log_pi| expectation(&world.log_p, log_pi));
}

#[test]
fn the_expected_gradient_of_reinforce_is_that_of_the_mean_reward() {
    let (world, mut policy) = (world(), lstm(8));
    let log_pi = score(&mut policy, &world.all);
    let reward: Vec<f64> = world.log_p.iter().map(|log_p| (log_p + world.log_z).exp()).collect();
    let want: Vec<f64> = reward.iter().zip(&log_pi).map(|(reward, log_pi)| reward * log_pi.exp()).collect();
    let weights: Vec<f32> = want.iter().map(|&weight| weight as f32).collect();
    let got = gradient(&mut policy, &world, &Coefficients::given(&weights[..]));
    assert_expected("REINFORCE", &got, &policy, &world, &want, |log_pi| expectation(log_pi, &reward));
}

// Convergence

#[test]
fn off_policy_dpg_reaches_p_from_base_and_guided_with_and_without_baseline() {
    use Baseline::{Mean, None};
    for (proposal, baseline) in
        [(Source::Base, None), (Source::Guided, None), (Source::Base, Mean), (Source::Guided, Mean)]
    {
        let options = with(Method::DpgOffPolicy, proposal, |o| o.baseline = baseline);
        let (_, tuned, kl) = world().tune(&options, TuneData::default()).unwrap();
        assert!(kl < 0.02, "{proposal:?}, baseline {baseline:?}: KL {kl}");
        assert_eq!(tuned.samples, options.samples);
        assert_eq!(tuned.updates, 120 * 8);
    }
}

#[test]
fn on_policy_dpg_reaches_p() {
    for baseline in [Baseline::None, Baseline::Mean, Baseline::LeaveOneOut] {
        let mut options = with(Method::DpgOnPolicy, Source::Base, |o| o.baseline = baseline);
        options.samples = 256 * 800;
        let (_, tuned, kl) = world().tune(&options, TuneData::default()).unwrap();
        assert!(kl < 0.02, "baseline {baseline:?}: KL {kl}");
        assert_eq!((tuned.swaps, tuned.updates), (0, 800));
    }
}

#[test]
fn distillation_reaches_p_by_rejection_from_base_and_guided() {
    for proposal in [Source::Base, Source::Guided] {
        let (_, tuned, kl) = world()
            .tune(&with(Method::Distill, proposal, |o| (o.samples, o.updates) = (256 * 240, 4)), TuneData::default())
            .unwrap();
        assert!(kl < 0.02, "{proposal:?}: KL {kl}");
        assert_eq!(tuned.warnings.len(), usize::from(proposal == Source::Guided), "{:?}", tuned.warnings);
    }
}

/// Few draws of its own are not enough; the extra samples make it.
#[test]
fn distillation_learns_from_extra_data_and_not_from_held_out_data() {
    let mut world = world();
    let data = world.samples(5000);
    let mut options = options(Method::Distill, Source::Base);
    (options.samples, options.batch, options.updates) = (64, 256, 400);
    let mut kl_with = |held_out, extra| world.tune(&options, TuneData { held_out, extra }).unwrap().2;
    let (alone, held_out, extra) = (kl_with(None, None), kl_with(Some(&data), None), kl_with(None, Some(&data)));
    assert_eq!(alone, held_out);
    assert!(alone > 0.5 && extra < 0.05, "alone {alone}, with the data {extra}");
}

#[test]
fn reinforce_raises_the_reward_and_does_not_match_p() {
    for baseline in [Baseline::None, Baseline::Mean, Baseline::LeaveOneOut] {
        let mut world = world();
        let mut options = with(Method::Reinforce, Source::Base, |o| o.baseline = baseline);
        options.samples = 256 * 300;
        let reward = |log_pi: &[f64], world: &World| {
            expectation(log_pi, &world.log_p.iter().map(|log_p| log_p.exp()).collect::<Vec<_>>())
        };
        let before = reward(&score(&mut lstm(32), &world.all), &world);
        let (mut policy, _, kl) = world.tune(&options, TuneData::default()).unwrap();
        let log_pi = score(&mut policy, &world.all);
        let (after, most) = (reward(&log_pi, &world), log_pi.iter().copied().fold(f64::MIN, f64::max).exp());
        assert!(after > 5.0 * before && after > reward(&world.log_p, &world), "E[P]/Z {before} to {after}");
        assert!(kl > 1.0 && most > 0.5, "KL {kl}, most frequent string {most}");
        assert!(entropy(&log_pi) < 0.5 * entropy(&world.log_p));
    }
}

// Swaps

#[test]
fn every_rule_swaps_where_the_policy_is_clearly_better() {
    let mut world = world();
    let held_out = world.samples(2000);
    for swap in [Swap::Kl, Swap::Tv, Swap::CrossEntropy] {
        let options = with(Method::DpgOffPolicy, Source::Base, |o| o.swap = swap);
        let (_, tuned, kl) = world.tune(&options, TuneData { held_out: Some(&held_out), extra: None }).unwrap();
        assert!(tuned.swaps >= 1, "{swap:?} never swapped");
        assert!(kl < 0.02, "{swap:?}: KL {kl}");
        // From the guided or base proposal's effective sample to nearly all of the policy's.
        let (first, last) = (&tuned.history[0], tuned.history.last().unwrap());
        assert!(first.swaps == 0 && last.ess > 0.9 && last.ess > first.ess, "{swap:?}: {} to {}", first.ess, last.ess);
    }
}

/// A guided proposal is scored on the data too.
#[test]
fn cross_entropy_swaps_from_a_guided_proposal() {
    let mut world = world();
    let held_out = world.samples(2000);
    // Guided by the requirement alone, r misses what λ tilts, which the policy learns.
    let options = with(Method::DpgOffPolicy, Source::Guided, |o| o.swap = Swap::CrossEntropy);
    let (_, tuned, kl) = world.tune(&options, TuneData { held_out: Some(&held_out), extra: None }).unwrap();
    assert!(kl < 0.02 && tuned.samples == options.samples, "KL {kl}");
}

#[test]
fn a_fixed_interval_swaps_every_so_often_and_never_never() {
    for (swap, swaps) in [(Swap::Every(7), 20 / 7), (Swap::Every(1000), 0), (Swap::Never, 0)] {
        let options = with(Method::DpgOffPolicy, Source::Guided, |o| (o.swap, o.samples) = (swap, 256 * 20));
        assert_eq!(world().tune(&options, TuneData::default()).unwrap().1.swaps, swaps, "{swap:?}");
    }
}

/// The same run swaps with more rows to judge by.
#[test]
fn no_swap_on_an_effective_sample_below_100() {
    for swap in [Swap::Kl, Swap::Tv] {
        // Kept for 8 evaluations: 96 rows at most.
        let few =
            with(Method::DpgOffPolicy, Source::Base, |o| (o.swap, o.evaluation_rows, o.evaluations) = (swap, 12, 60));
        let (_, tuned, kl) = world().tune(&few, TuneData::default()).unwrap();
        assert_eq!((tuned.swaps, kl < 0.02), (0, true), "{swap:?}");
        assert!(tuned.history.iter().all(|record| record.kl.is_none()));
    }
}

/// A learning rate that moves no parameter leaves π = q = r for good.
#[test]
fn noise_does_not_swap() {
    let mut world = world();
    let held_out = world.samples(500);
    let mut base = lstm(8);
    for swap in [Swap::Kl, Swap::Tv, Swap::CrossEntropy] {
        let mut options = with(Method::DpgOffPolicy, Source::Base, |o| o.swap = swap);
        (options.evaluations, options.adam.learning_rate) = (60, 1e-30);
        let mut policy = base.clone();
        let World { features, potential, .. } = &world;
        let mut target = Target { base: &mut base, features, potential, guide: None, contexts: None };
        let data = TuneData { held_out: Some(&held_out), extra: None };
        let tuned = tune(&Cpu, &mut target, &mut policy, &options, data, |_| {}).unwrap();
        assert_eq!(policy.tensors(), base.tensors());
        assert_eq!(tuned.swaps, 0, "{swap:?}");
        assert!(tuned.history.last().unwrap().kl.is_some());
    }
}

// Determinism

#[test]
fn the_same_seed_gives_the_same_bits_for_any_thread_count() {
    let cases = [
        (Method::DpgOffPolicy, Source::Base, Baseline::Mean),
        (Method::DpgOnPolicy, Source::Base, Baseline::None),
        (Method::Distill, Source::Guided, Baseline::None),
        (Method::Reinforce, Source::Base, Baseline::Mean),
        (Method::TrajectoryBalance, Source::Guided, Baseline::None),
        (Method::SubTrajectoryBalance(SubTrajectories::default()), Source::Guided, Baseline::None),
        (Method::KlControl(KlControl::default()), Source::Base, Baseline::LeaveOneOut),
    ];
    for (method, proposal, baseline) in cases {
        let run = |threads: usize, seed: u64| {
            let mut options = with(method, proposal, |o| (o.baseline, o.seed) = (baseline, seed));
            (options.samples, options.cache) = (256 * 12, 700);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut world = world();
            if let Method::SubTrajectoryBalance(_) = method {
                // It cannot have a requirement.
                world.potential = Potential::new(&Cpu, &[Role::Ignore, ROLES[1], ROLES[2]]).unwrap();
            }
            let (policy, tuned, _) = pool.install(|| world.tune(&options, TuneData::default()).unwrap());
            (policy.tensors(), tuned)
        };
        let one = run(1, 3);
        assert_eq!(one, run(3, 3), "{method:?}");
        assert_ne!(one.0, run(1, 4).0, "{method:?}");
    }
}

// Budget

#[test]
fn whole_batches_are_drawn_and_counted() {
    for (samples, batch, used) in [(1000, 256, 1024), (100, 256, 100), (256, 256, 256), (1, 1, 1)] {
        let mut options = options(Method::DpgOffPolicy, Source::Guided);
        (options.samples, options.batch) = (samples, batch);
        let (mut policy, mut told) = (lstm(8), Vec::new());
        let tuned = tune(&Cpu, &mut world().target(), &mut policy, &options, TuneData::default(), |now| {
            told.push((now.samples, now.record.is_some()));
        })
        .unwrap();
        let batches = samples.div_ceil(batch);
        assert_eq!((tuned.samples, tuned.updates), (used, batches * 8), "{samples} by {batch}");
        assert_eq!(told.len(), batches);
        assert_eq!(told.iter().filter(|(_, record)| *record).count(), tuned.history.len());
        assert_eq!((tuned.history.len(), *told.last().unwrap()), (batches.min(6), (used, true)));
    }
}

#[test]
fn a_cache_smaller_than_a_batch_and_too_many_evaluations_do_no_harm() {
    let mut options = options(Method::DpgOffPolicy, Source::Guided);
    (options.cache, options.evaluations, options.samples) = (1, usize::MAX, 1024);
    let (_, tuned, _) = world().tune(&options, TuneData::default()).unwrap();
    assert_eq!(tuned.history.len(), 4);
}

// Bad input

#[track_caller]
fn assert_refused(options: &TuneOptions, data: TuneData<'_, Cpu>, words: &[&str]) {
    let error = world().tune(options, data).err().expect("an error").to_string();
    assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
}

#[test]
fn zero_counts_and_bad_rates_are_errors() {
    let refused = |change: fn(&mut TuneOptions), word: &str| {
        let options = with(Method::DpgOffPolicy, Source::Guided, change);
        assert_refused(&options, TuneData::default(), &[word, "expected", "got"]);
    };
    refused(|o| o.samples = 0, "training samples");
    refused(|o| o.batch = 0, "batch");
    refused(|o| o.updates = 0, "updates");
    refused(|o| o.cache = 0, "cached draws");
    refused(|o| o.evaluations = 0, "evaluations");
    refused(|o| o.evaluation_rows = 0, "evaluation rows");
    refused(|o| o.swap = Swap::Every(0), "swap interval");
    refused(|o| o.proposal = Source::Policy, "first proposal");
    refused(|o| o.adam.learning_rate = f32::NAN, "learning rate");
    refused(|o| o.adam.clip = f32::NAN, "clip");
}

#[test]
fn unallocatable_counts_are_out_of_memory_before_work_starts() {
    let refused = |change: fn(&mut TuneOptions)| {
        let options = with(Method::DpgOffPolicy, Source::Guided, change);
        assert_refused(&options, TuneData::default(), &["out of memory"]);
    };
    refused(|o| o.cache = usize::MAX);
    refused(|o| o.evaluation_rows = usize::MAX);
    refused(|o| (o.batch, o.samples) = (usize::MAX, usize::MAX));
}

#[test]
fn missing_guides_and_missing_data_are_errors() {
    let mut world = world();
    let guided = options(Method::DpgOffPolicy, Source::Guided);
    let target = &mut Target { guide: None, ..world.target() };
    let error = tune(&Cpu, target, &mut lstm(8), &guided, TuneData::default(), |_| {}).unwrap_err();
    assert!(error.to_string().contains("guided proposal"), "{error}");
    let (data, empty) = (world.samples(10), Batch::with_capacity(&Cpu, space(), 1).unwrap());
    let base = with(Method::DpgOffPolicy, Source::Base, |o| o.swap = Swap::CrossEntropy);
    assert_refused(&base, TuneData::default(), &["held-out data"]);
    assert_refused(&base, TuneData { held_out: Some(&empty), extra: Some(&data) }, &["held-out data"]);
}

#[test]
fn another_space_is_an_error() {
    let mut world = world();
    let shape = LstmShape { layers: 1, hidden: 4, dropout: 0.0 };
    let mut other = Lstm::new(Space::new(2, 9).unwrap(), shape, 0).unwrap();
    let options = options(Method::Distill, Source::Base);
    assert!(tune(&Cpu, &mut world.target(), &mut other, &options, TuneData::default(), |_| {}).is_err());
    let data = Batch::from_sequences(Space::new(2, 9).unwrap(), &[[0, 3]]).unwrap();
    assert_refused(&options, TuneData { held_out: None, extra: Some(&data) }, &["space"]);
}

/// Six ones in a row from a base that all but never writes one.
#[test]
fn no_positive_draw_in_the_whole_budget_says_what_to_do() {
    let zeros = vec![vec![0, 0, 0, 0, 0, 0, 0]; 1000];
    let mut base = Markov::fit(&Batch::from_sequences(space(), &zeros).unwrap(), 0, false, 1e-3).unwrap();
    let set = FeatureSet::new(space()).with("ones", Feature::Contains(vec![1; 6])).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap();
    let features = set.compile(&Cpu).unwrap();
    for method in [Method::DpgOffPolicy, Method::Distill] {
        let mut target =
            Target { base: &mut base, features: &features, potential: &potential, guide: None, contexts: None };
        let options = with(method, Source::Base, |o| o.samples = 1024);
        let error = tune(&Cpu, &mut target, &mut lstm(8), &options, TuneData::default(), |_| {}).unwrap_err();
        assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
        assert!(error.to_string().contains("1024 draws") && error.to_string().contains("guided"), "{error}");
    }
}

// Evaluation

#[test]
fn an_evaluation_agrees_with_enumeration() {
    for source in [Source::Base, Source::Guided, Source::Policy] {
        let (mut world, mut policy) = (world(), lstm(8));
        let log_pi = score(&mut policy, &world.all);
        let draw = Draw::new(21, Purpose::Evaluate);
        let found = evaluate(&Cpu, &mut world.target(), &mut policy, source, 40_000, draw).unwrap();
        assert_true(&world, &log_pi, source, &found);
    }
}

fn assert_true(world: &World, log_pi: &[f64], source: Source, found: &Evaluation) {
    let close = |name: &str, found: Estimate, truth: f64| {
        // Tables and log-probs are f32.
        let allowed = 4.0 * found.standard_error + 1e-5;
        assert!((found.value - truth).abs() <= allowed, "{source:?} {name}: {found:?}, truth {truth}");
    };
    close("log Z", found.log_z, world.log_z);
    close("KL(p‖π)", found.kl_policy, kl(&world.log_p, log_pi));
    close("TV(p, π)", found.tv_policy, tv(&world.log_p, log_pi));
    close("KL(π‖r)", found.kl_policy_base, kl(log_pi, &world.log_r));
    match source {
        Source::Base => close("KL(p‖r)", found.kl_proposal, kl(&world.log_p, &world.log_r)),
        Source::Policy => close("KL(p‖π) as q", found.kl_proposal, kl(&world.log_p, log_pi)),
        _ => assert!(found.kl_proposal.value < kl(&world.log_p, &world.log_r)),
    }
    for (i, (p, pi)) in moments(&world.log_p, &world.phi).into_iter().zip(moments(log_pi, &world.phi)).enumerate() {
        close(&format!("E_p φ{i}"), found.moments_target[i], p);
        close(&format!("E_π φ{i}"), found.moments_policy[i], pi);
    }
    assert_eq!((found.rows, found.warnings.len()), (40_000, 0), "{:?}", found.warnings);
}
