//! Tuning from a mixture of proposals on a space small enough to enumerate: Z, KL, swaps, support, bad input.

mod oracle;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::models::{Lstm, LstmShape, Markov, Policy, Sampler, Scorer, Tabular};
use ebm_dpg::observe::{Alarms, Observer};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Contexts, Space, Token};
use ebm_dpg::tune::{Baseline, Method, Record, Source, Swap, Target, TuneData, TuneOptions, Tuned, tune};
use ebm_dpg::weights::Estimate;
use oracle::{enumerate, kl, normalise};

/// Binary strings of up to 7 tokens under a chain, a motif required, a feature tilted.
struct World {
    base: Markov,
    features: FeatureTable,
    potential: Potential,
    /// Looks ahead to the requirement only, so that guided weights are not constant.
    guide: Guide,
    /// Looks ahead to all of P: its states are those of a table that contains p.
    exact: Guide,
    all: Vec<Vec<Token>>,
    log_z: f64,
    log_p: Vec<f64>,
}

fn space() -> Space {
    Space::new(2, 7).unwrap()
}

fn world() -> World {
    let seen = [vec![0, 1, 1, 0, 0, 3], vec![1, 0, 1, 1, 0, 1, 0], vec![0, 0, 1, 3], vec![1, 1, 1, 0, 3]];
    let mut base = Markov::fit(&Batch::from_sequences(space(), &seen).unwrap(), 1, false, 0.5).unwrap();
    let set = FeatureSet::new(space())
        .with("11", Feature::Contains(vec![1, 1]))
        .and_then(|set| set.with("010", Feature::Contains(vec![0, 1, 0])))
        .unwrap();
    let potential = Potential::new(&Cpu, &[Role::Require(1.0), Role::Tilt(1.2)]).unwrap();
    let only = Potential::new(&Cpu, &[Role::Require(1.0), Role::Ignore]).unwrap();
    let guide = |potential| LookAhead::towards(&base, &set, potential, 1000).unwrap().guide();
    let (guide, exact, all) = (guide(&only), guide(&potential), enumerate(space()));
    let has = |x: &Vec<Token>, motif: &[Token]| x.windows(motif.len()).any(|part| part == motif);
    let log_factor = |x: &Vec<Token>| match has(x, &[1, 1]) {
        true => 1.2 * f64::from(u8::from(has(x, &[0, 1, 0]))),
        false => f64::NEG_INFINITY,
    };
    let log_r = score(&mut base, &all);
    let log_potential: Vec<f64> = log_r.iter().zip(&all).map(|(log_r, x)| log_r + log_factor(x)).collect();
    let (log_z, log_p) = normalise(&log_potential);
    World { base, features: set.compile(&Cpu).unwrap(), potential, guide, exact, all, log_z, log_p }
}

impl World {
    fn tune<P: Policy<Cpu>>(&mut self, policy: &mut P, options: &TuneOptions, held_out: Option<&Batch>) -> Tuned {
        let World { base, features, potential, guide, .. } = self;
        let target = &mut Target { base, features, potential, guide: Some(guide), contexts: None };
        tune(&Cpu, target, policy, options, TuneData { held_out, extra: None }, |_| {}).unwrap()
    }

    fn kl_to(&self, policy: &mut impl Scorer<Cpu>) -> f64 {
        kl(&self.log_p, &score(policy, &self.all))
    }

    /// log q₁ of the whole space.
    fn log_first(&mut self, source: Source) -> Vec<f64> {
        if source == Source::Base {
            return score(&mut self.base, &self.all);
        }
        let mut log_q = vec![0.0; self.all.len()];
        let batch = Batch::from_sequences(space(), &self.all).unwrap();
        self.base.score_guided(&self.guide, &batch, &mut log_q).unwrap();
        log_q
    }
}

fn score(model: &mut impl Scorer<Cpu>, sequences: &[Vec<Token>]) -> Vec<f64> {
    let mut log_probs = vec![0.0; sequences.len()];
    model.score(&Batch::from_sequences(space(), sequences).unwrap(), &mut log_probs).unwrap();
    log_probs
}

fn lstm(seed: u64) -> Lstm {
    Lstm::new(space(), LstmShape { layers: 1, hidden: 8, dropout: 0.0 }, seed).unwrap()
}

/// 60 batches, a tenth from the first proposal.
fn options(proposal: Source, swap: Swap) -> TuneOptions {
    let mut options = TuneOptions::default();
    (options.proposal, options.swap, options.defensive) = (proposal, swap, 0.1);
    (options.samples, options.batch, options.updates, options.seed) = (250 * 60, 250, 4, 3);
    (options.evaluations, options.evaluation_rows) = (12, 250);
    options
}

/// A learning rate that moves no parameter.
fn frozen(mut options: TuneOptions) -> TuneOptions {
    options.adam.learning_rate = 1e-30;
    options
}

#[track_caller]
fn assert_covers(what: &str, estimate: Estimate, truth: f64) {
    let Estimate { value, standard_error } = estimate;
    assert!(standard_error > 0.0 && standard_error < 0.1, "{what}: {estimate:?}");
    assert!((value - truth).abs() <= 4.0 * standard_error, "{what}: {estimate:?}, exactly {truth}");
}

/// π is an untrained network all along, so that everything is known: from the second batch on
/// q = .1·q₁ + .9·π, but for whole rows: 25 of 250.
#[test]
fn estimates_from_a_mixture_cover_what_enumeration_gives() {
    for (source, share) in [(Source::Base, 0.1), (Source::Guided, 0.1), (Source::Guided, 0.6), (Source::Base, 0.9)] {
        let mut world = world();
        let mut options = frozen(options(source, Swap::Every(1)));
        (options.defensive, options.evaluation_rows) = (share, 4000);
        options.evaluations = 3;
        let (log_first, mut policy) = (world.log_first(source), lstm(1));
        let log_pi = score(&mut policy, &world.all);
        let log_mixture: Vec<f64> =
            log_first.iter().zip(&log_pi).map(|(a, b)| (share * a.exp() + (1.0 - share) * b.exp()).ln()).collect();
        let what = format!("{source:?}, {share}");
        // An interval of one batch has the judge forget its draws after each.
        let tuned = world.tune(&mut policy, &options, None);
        let Record { log_z, log_z_error, kl: to_policy, kl_proposal, swaps, .. } =
            tuned.history.last().unwrap().clone();
        assert!(swaps == 59 && log_z_error < 0.04, "{what}: {swaps} swaps, error {log_z_error}");
        assert_covers(&format!("{what}: log Z"), Estimate { value: log_z, standard_error: log_z_error }, world.log_z);
        assert_covers(&format!("{what}: KL(p‖π)"), to_policy.unwrap(), kl(&world.log_p, &log_pi));
        assert_covers(&format!("{what}: KL(p‖q)"), kl_proposal.unwrap(), kl(&world.log_p, &log_mixture));
    }
}

/// Ẑ itself, not its logarithm: the mean over many small runs, whose batches are too small for the shares to be exact.
#[test]
fn the_estimate_of_z_is_unbiased_for_shares_rounded_to_rows() {
    let mut world = world();
    let mut estimates = Vec::new();
    for seed in 0..300 {
        let mut options = frozen(options(Source::Base, Swap::Every(1)));
        // .24 of 5 rows is one row.
        (options.defensive, options.batch, options.samples, options.seed) = (0.24, 5, 50, seed);
        (options.updates, options.evaluations, options.evaluation_rows) = (1, 1, 5);
        estimates.push(world.tune(&mut lstm(1), &options, None).history[0].log_z.exp());
    }
    assert_covers("Z", Estimate::mean(&estimates).unwrap(), world.log_z.exp());
}

/// Of each context the mixture draws its share, so each one's own Ẑ is right.
#[test]
fn contexts_each_have_their_own_z_from_a_mixture() {
    let mut world = world();
    let contexts: [&[Token]; 3] = [&[0], &[1, 0], &[1, 1]];
    let turns = Contexts::new(space(), &contexts, 2).unwrap();
    let mut options = frozen(options(Source::Base, Swap::Every(1)));
    // 42 rounds of three contexts with two draws each: 4 of them from the base.
    (options.batch, options.samples, options.evaluation_rows) = (252, 252 * 60, 252);
    let (log_r, log_potential) = (score(&mut world.base, &world.all), world.log_p.clone());
    let World { base, features, potential, all, log_z: whole, .. } = &mut world;
    let target = &mut Target { base, features, potential, guide: None, contexts: Some(&turns) };
    let run = |options: &TuneOptions, target: &mut Target<'_, Cpu, Markov>| {
        tune(&Cpu, target, &mut lstm(1), options, TuneData::default(), |_| {})
    };
    let tuned = run(&options, target).unwrap();
    for (context, estimate) in contexts.iter().zip(&tuned.contexts) {
        let sum = |log: &[f64]| -> f64 {
            let inside = all.iter().zip(log).filter(|(x, _)| x.len() > context.len() && x.starts_with(context));
            inside.map(|(_, log)| log.exp()).sum()
        };
        let log_z = (sum(&log_potential) / sum(&log_r)).ln() + *whole;
        assert_covers(&format!("log Z of {context:?}"), *estimate, log_z);
    }
    options.batch = 250;
    let error = run(&options, target).unwrap_err().to_string();
    assert!(error.contains("expected a multiple of 6") && error.contains("got 250"), "{error}");
}

/// A policy that hardly ever begins with 0, as half of p does, takes over after the first batch. What it does not draw is
/// never heard of again, unless the base goes on.
#[test]
fn what_the_policy_has_lost_comes_back_from_a_defensive_mixture_only() {
    for source in [Source::Base, Source::Guided] {
        let run = |defensive: f64| {
            let (mut world, mut options) = (world(), options(source, Swap::Every(1)));
            (options.defensive, options.samples) = (defensive, 250 * 160);
            // Judged from the first batch on, which is the first proposal's.
            options.evaluations = 160;
            // No draw of the first batch is left when the second comes.
            (options.cache, options.updates) = (250, 8);
            options.adam = AdamOptions { learning_rate: 0.1, ..options.adam };
            let mut policy = Tabular::new(&world.exact).unwrap();
            let mut logits = policy.logits().to_vec();
            logits[0] = -20.0;
            policy.set_logits(&logits).unwrap();
            let tuned = world.tune(&mut policy, &options, None);
            let last = tuned.history.last().unwrap().clone();
            let mut alarms = Alarms::new();
            tuned.history.iter().for_each(|record| alarms.record(0.0, record).unwrap());
            let lost = alarms.take().iter().any(|alarm| alarm.contains("of the mass of p"));
            ((last.log_z - world.log_z) / last.log_z_error, world.kl_to(&mut policy), lost)
        };
        let (off, kl, lost) = run(0.0);
        assert!(off < -10.0 && kl > 1.0 && lost, "{source:?}, plain: {off} errors from log Z, KL {kl}");
        let (off, kl, lost) = run(0.1);
        assert!(off.abs() < 4.0 && kl < 0.02 && !lost, "{source:?}, defensive: {off} errors, KL {kl}");
    }
}

/// A good policy takes over once. Then π is the frozen policy itself: nearer to p than the mixture is, which is no reason to
/// swap.
#[test]
fn a_mixture_is_replaced_by_the_better_mixture_not_by_a_policy_that_beats_the_mixture() {
    let mut world = world();
    let mut good = Tabular::new(&world.exact).unwrap();
    let mut plain = options(Source::Guided, Swap::Never);
    (plain.defensive, plain.adam.learning_rate) = (0.0, 0.1);
    world.tune(&mut good, &plain, None);
    assert!(world.kl_to(&mut good) < 0.02);
    let mut held_out = Batch::with_capacity(&Cpu, space(), 2000).unwrap();
    let mut log_q = vec![0.0; 4000];
    let (first, second) = log_q.split_at_mut(2000);
    world.base.sample(Draw::new(9, Purpose::User), Some(&world.exact), &mut held_out, first, second).unwrap();
    for swap in [Swap::Kl, Swap::Tv, Swap::CrossEntropy] {
        for share in [0.1, 0.5] {
            let mut options = frozen(options(Source::Base, swap));
            (options.defensive, options.evaluations) = (share, 60);
            let tuned = world.tune(&mut good.clone(), &options, Some(&held_out));
            assert_eq!(tuned.swaps, 1, "{swap:?}, {share}");
            let last = tuned.history.last().unwrap();
            let (to_policy, to_mixture) = (last.kl.unwrap(), last.kl_proposal.unwrap());
            let between = to_mixture.value - to_policy.value;
            assert!(between > 3.0 * to_policy.standard_error, "{swap:?}, {share}: {to_policy:?} and {to_mixture:?}");
        }
    }
}

#[test]
fn trained_from_a_mixture_pi_reaches_p_by_every_off_policy_method() {
    for (method, proposal, baseline) in [
        (Method::DpgOffPolicy, Source::Base, Baseline::None),
        (Method::DpgOffPolicy, Source::Guided, Baseline::Mean),
        (Method::TrajectoryBalance, Source::Guided, Baseline::None),
    ] {
        let mut world = world();
        let mut options = options(proposal, Swap::Kl);
        (options.method, options.baseline, options.samples) = (method, baseline, 250 * 200);
        options.adam.learning_rate = if method == Method::DpgOffPolicy { 0.1 } else { 0.3 };
        let mut policy = Tabular::new(&world.exact).unwrap();
        let tuned = world.tune(&mut policy, &options, None);
        let kl = world.kl_to(&mut policy);
        assert!(kl < 0.02 && tuned.swaps > 0, "{method:?}: KL {kl}, {} swaps", tuned.swaps);
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_for_any_thread_count() {
    for swap in [Swap::Kl, Swap::Every(3)] {
        let run = |threads: usize, seed: u64| {
            let (mut options, mut policy) = (options(Source::Guided, swap), lstm(2));
            (options.samples, options.evaluations, options.seed) = (250 * 12, 6, seed);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let tuned = pool.install(|| world().tune(&mut policy, &options, None));
            (policy.tensors(), tuned)
        };
        let one = run(1, 3);
        assert_eq!(one, run(3, 3), "{swap:?}");
        assert_ne!(one.0, run(1, 4).0, "{swap:?}");
    }
}

/// π never moves and q never changes: what one evaluation judges by is a sample of its own, what eight do is eight of them.
#[test]
fn the_draws_of_so_many_evaluations_judge_and_no_others() {
    let run = |kept: usize, evaluations: usize| {
        let mut options = frozen(options(Source::Base, Swap::Never));
        (options.defensive, options.kept_evaluations, options.evaluations) = (0.0, kept, evaluations);
        (options.samples, options.evaluation_rows) = (250 * 20, 400);
        world().tune(&mut lstm(1), &options, None).history
    };
    let (one, eight) = (run(1, 20), run(8, 20));
    let error = |record: &Record| record.kl.unwrap().standard_error;
    let ratio = error(&one[19]) / error(&eight[19]);
    assert!((2.4..3.3).contains(&ratio), "√8 is 2.83, got {ratio}");
    // Once full it grows no better, and the draws that have left are forgotten.
    assert_eq!(one[0].kl, eight[0].kl);
    assert!((error(&eight[7]) / error(&eight[19]) - 1.0).abs() < 0.2);
    let differ = |a: &Record, b: &Record| (a.kl.unwrap().value - b.kl.unwrap().value).abs();
    assert!(one.windows(2).all(|pair| differ(&pair[0], &pair[1]) > 0.0));
    let (steps, first) = (|h: &[Record]| h.windows(2).map(|pair| differ(&pair[0], &pair[1])).sum::<f64>(), &eight[8..]);
    assert!(steps(&one[8..]) > 2.0 * steps(first), "a window moves slowly");
}

#[test]
fn shares_that_cannot_be_are_errors() {
    let refused = |change: &dyn Fn(&mut TuneOptions), words: &[&str]| {
        let mut options = options(Source::Guided, Swap::Kl);
        change(&mut options);
        let error = options.check().unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
    };
    for share in [1.0, 1.5, -0.1, f64::NAN, f64::INFINITY] {
        refused(
            &|o| o.defensive = share,
            &["defensive share: expected 0 or more and below 1, got", &share.to_string()],
        );
    }
    for method in [Method::DpgOnPolicy, Method::Distill, Method::Reinforce] {
        refused(
            &|o| o.method = method,
            &["defensive share: expected 0 for a method", "never swaps", &format!("{method:?}")],
        );
    }
    refused(&|o| o.swap = Swap::Never, &["defensive share: expected 0", "DpgOffPolicy with Never"]);
    refused(&|o| o.batch = 1, &["defensive share: expected 2 sequences", "got 1"]);
    refused(&|o| o.evaluation_rows = 1, &["defensive share: expected 2 sequences", "got 1"]);
    refused(&|o| o.kept_evaluations = 0, &["evaluations kept: expected 1 or more, got 0"]);
    options(Source::Guided, Swap::Every(2)).check().unwrap();
}
