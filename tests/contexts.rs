//! Contexts, on a space small enough to enumerate: what models say behind them, and tuning towards each context's own
//! distribution.

mod oracle;

use ebm_dpg::Result;
use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::fit::{FitOptions, Moments, Targets, fit_behind};
use ebm_dpg::gradient::Divergence;
use ebm_dpg::models::{Coefficients, Logits, Lstm, LstmShape, Markov, Policy, Prefixes, Sampler, Scorer, Tabular};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::samplers::{Bound, Proposal, SamplerOptions, rejection};
use ebm_dpg::tokens::{Batch, Contexts, Lines, Space, Token, Unit};
use ebm_dpg::tune::{
    Baseline, Checkpoint, Checkpoints, KlControl, Method, Source, SubTrajectories, Swap, Target, TuneData, TuneOptions,
    Tuned, evaluate, tune, tune_with_checkpoints,
};
use oracle::{enumerate, kl, log_sum_exp, normalise, random};

fn space() -> Space {
    Space::new(2, 5).unwrap()
}

/// Of no token, of one that the requirement is far from, and of two that all but meet it.
fn beginnings() -> Vec<Vec<Token>> {
    vec![vec![], vec![0], vec![1, 1]]
}

/// Binary strings of up to 5 tokens under a chain; strings must hold 11, and 01 is tilted.
struct World {
    base: Markov,
    features: FeatureTable,
    potential: Potential,
    guide: Guide,
    /// By contexts.
    continued: Vec<Continued>,
}

/// The strings that continue a context, log P of what follows it in each, and log p.
type Continued = (Vec<Vec<Token>>, Vec<f64>, Vec<f64>);

fn world(requires: bool) -> World {
    let seen = [vec![0, 1, 1, 0, 3], vec![1, 0, 1, 1, 0], vec![0, 0, 1, 3], vec![1, 1, 1, 0, 3]];
    let base = Markov::fit(&Batch::from_sequences(space(), &seen).unwrap(), 1, false, 0.5).unwrap();
    let set = FeatureSet::new(space())
        .with("01", Feature::Contains(vec![0, 1]))
        .and_then(|set| set.with("11", Feature::Contains(vec![1, 1])))
        .unwrap();
    let roles = [Role::Tilt(1.5), if requires { Role::Require(1.0) } else { Role::Tilt(-0.6) }];
    let potential = Potential::new(&Cpu, &roles).unwrap();
    let guide = LookAhead::towards(&base, &set, &potential, 1000).unwrap().guide();
    let features = set.compile(&Cpu).unwrap();
    let continued = |context: &Vec<Token>| {
        let all: Vec<_> =
            enumerate(space()).into_iter().filter(|x| x.len() > context.len() && x.starts_with(context)).collect();
        // By the definition: r of each token behind the context, and φ of the whole.
        let log_p: Vec<f64> = all
            .iter()
            .map(|x| {
                let mut state = base.start_context();
                let mut total = 0.0;
                for (position, &token) in x.iter().enumerate() {
                    if position >= context.len() {
                        total += f64::from(base.row(position, state)[token as usize]);
                    }
                    state = base.next_context(state, token);
                }
                let has = |a: Token, b: Token| x.windows(2).any(|pair| pair == [a, b]);
                let second = match (requires, has(1, 1)) {
                    (true, false) => f64::NEG_INFINITY,
                    (false, true) => -0.6,
                    _ => 0.0,
                };
                total + if has(0, 1) { 1.5 } else { 0.0 } + second
            })
            .collect();
        let normalised = normalise(&log_p).1;
        (all, log_p, normalised)
    };
    let continued = beginnings().iter().map(continued).collect();
    World { base, features, potential, guide, continued }
}

impl World {
    fn contexts(&self, draws: usize) -> Contexts {
        Contexts::new(space(), &beginnings(), draws).unwrap()
    }

    /// The strings that continue context `number`, as a batch that says so.
    fn batch(&self, number: usize) -> Batch {
        let (all, ..) = &self.continued[number];
        let mut batch = Batch::with_capacity(&Cpu, space(), all.len()).unwrap();
        let given = beginnings()[number].len();
        all.iter().for_each(|x| batch.push_given(x, given, number as u32).unwrap());
        batch
    }

    fn score(&self, model: &mut impl Scorer<Cpu>, number: usize) -> Vec<f64> {
        let batch = self.batch(number);
        let mut log_probs = vec![0.0; batch.rows];
        model.score(&batch, &mut log_probs).unwrap();
        log_probs
    }
}

fn whole(model: &mut impl Scorer<Cpu>, sequences: &[Vec<Token>]) -> Vec<f64> {
    let mut log_probs = vec![0.0; sequences.len()];
    model.score(&Batch::from_sequences(space(), sequences).unwrap(), &mut log_probs).unwrap();
    log_probs
}

fn lstm() -> Lstm {
    Lstm::new(space(), LstmShape { layers: 2, hidden: 12, dropout: 0.0 }, 7).unwrap()
}

fn table(world: &World) -> Tabular {
    let mut table = Tabular::new(&world.guide).unwrap();
    let logits = random(3, table.logits().len(), 1.0);
    table.set_logits(&logits).unwrap();
    table
}

/// A model whose logits depend on all of the prefix.
fn elsewhere() -> Logits<impl FnMut(Prefixes<'_>, &mut [f32]) -> Result<()>> {
    Logits::new(space(), |prefixes: Prefixes<'_>, logits: &mut [f32]| {
        for (prefix, row) in prefixes.iter().zip(logits.chunks_exact_mut(space().vocab as usize)) {
            let seed = prefix.iter().fold(5, |seed, &token| seed * 7 + u64::from(token));
            row.copy_from_slice(&random(seed, row.len(), 2.0));
        }
        Ok(())
    })
}

// Models

/// log π(x given c) is normalised over what continues c, and log π(x) but for a constant.
#[track_caller]
fn check_conditional(world: &World, name: &str, model: &mut impl Sampler<Cpu>) {
    for (number, (all, ..)) in world.continued.iter().enumerate() {
        let conditional = world.score(model, number);
        assert!(log_sum_exp(&conditional).abs() < 1e-5, "{name}, context {number}: {}", log_sum_exp(&conditional));
        let full = whole(model, all);
        let constant = full[0] - conditional[0];
        let differs = |(full, conditional): (&f64, &f64)| (full - conditional - constant).abs() > 1e-5;
        assert!(!full.iter().zip(&conditional).any(differs), "{name}, context {number}");
        assert_eq!(number == 0, constant == 0.0, "{name}: only the empty context is certain");
    }
}

/// Draws continue their contexts, with the log-probs that a score gives, and as often as those say.
#[track_caller]
fn check_draws(world: &World, name: &str, model: &mut impl Sampler<Cpu>, guide: Option<&Guide>) {
    let (rows, draws) = (30_000, 7);
    let mut batch = Batch::with_capacity(&Cpu, space(), rows).unwrap();
    let draw = Draw::new(4, Purpose::User).skip(5);
    batch.begin(&Cpu, &world.contexts(draws), draw).unwrap();
    let (mut log_q, mut log_model, mut scores) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]);
    model.sample(draw, guide, &mut batch, &mut log_q, &mut log_model).unwrap();
    model.score(&batch, &mut scores).unwrap();
    assert_eq!(log_model, scores, "{name}");
    if let Some(guide) = guide {
        model.score_guided(guide, &batch, &mut scores).unwrap();
    }
    assert_eq!(log_q, scores, "{name}");
    for (number, (all, ..)) in world.continued.iter().enumerate() {
        let mut counts = vec![0u64; all.len()];
        for row in (0..rows).filter(|row| (row + 5) / draws % 3 == number) {
            assert_eq!((batch.given[row] as usize, batch.context[row] as usize), (beginnings()[number].len(), number));
            counts[all.iter().position(|x| x == batch.sequence(row)).expect("continues its context")] += 1;
        }
        let mut log_q = vec![0.0; all.len()];
        match guide {
            Some(guide) => model.score_guided(guide, &world.batch(number), &mut log_q).unwrap(),
            None => log_q = world.score(model, number),
        }
        let (chi_square, freedom) = oracle::chi_square(&counts, &log_q);
        let limit = freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt();
        assert!(chi_square < limit, "{name}, context {number}: χ² {chi_square} of {freedom}");
    }
}

#[test]
fn models_are_conditional_on_contexts() {
    let world = world(true);
    check_conditional(&world, "chain", &mut world.base.clone());
    check_conditional(&world, "table", &mut table(&world));
    check_conditional(&world, "lstm", &mut lstm());
    check_conditional(&world, "elsewhere", &mut elsewhere());
    for guide in [None, Some(&world.guide)] {
        check_draws(&world, "chain", &mut world.base.clone(), guide);
        check_draws(&world, "table", &mut table(&world), guide);
        check_draws(&world, "lstm", &mut lstm(), guide);
        check_draws(&world, "elsewhere", &mut elsewhere(), guide);
    }
}

/// Σ a ∇log π over rows with and without a context, as one flat vector.
fn gradients<P: Policy<Cpu>>(policy: &mut P, batch: &Batch, weights: &[f32], of: impl Fn(&P) -> Vec<f32>) -> Vec<f32> {
    let mut log_probs = vec![0.0; batch.rows];
    policy.gradient(batch, &Coefficients::given(weights), &mut log_probs).unwrap();
    of(policy)
}

/// ∇log π(x given c) is ∇log π(x) less what all x that continue c share, and its mean under π(· given c) is 0.
#[track_caller]
fn check_gradient<P: Policy<Cpu>>(world: &World, name: &str, policy: &mut P, of: impl Fn(&P) -> Vec<f32>) {
    for (number, (all, ..)) in world.continued.iter().enumerate() {
        let (batch, plain) = (world.batch(number), Batch::from_sequences(space(), all).unwrap());
        // Weights that add up to 0 take the shared part out.
        let mut weights = random(number as u64, all.len(), 1.0);
        let mean = weights.iter().sum::<f32>() / weights.len() as f32;
        weights.iter_mut().for_each(|weight| *weight -= mean);
        let (with, without) = (gradients(policy, &batch, &weights, &of), gradients(policy, &plain, &weights, &of));
        let size = without.iter().fold(0f32, |size, value| size.max(value.abs()));
        let differs = |(with, without): (&f32, &f32)| (with - without).abs() > 2e-5 * size;
        assert!(size > 0.0 && !with.iter().zip(&without).any(differs), "{name}, context {number}");
        let own: Vec<f32> = world.score(policy, number).iter().map(|log_pi| log_pi.exp() as f32).collect();
        let scale = gradients(policy, &plain, &own, &of).iter().fold(0f32, |size, value| size.max(value.abs()));
        let rest = gradients(policy, &batch, &own, &of).iter().fold(0f32, |size, value| size.max(value.abs()));
        assert!(rest < 1e-5, "{name}, context {number}: {rest}");
        assert_eq!(number == 0, scale < 1e-5, "{name}, context {number}: the shared part is there without it");
    }
}

#[test]
fn gradients_leave_contexts_out() {
    let world = world(true);
    check_gradient(&world, "table", &mut table(&world), |table| table.gradients().to_vec());
    check_gradient(&world, "lstm", &mut lstm(), |lstm| {
        lstm.gradients().into_iter().flat_map(|(_, _, values)| values).collect()
    });
}

// Training

fn options(method: Method, source: Source, baseline: Baseline) -> TuneOptions {
    let mut options = TuneOptions::default();
    (options.method, options.proposal, options.baseline, options.swap) = (method, source, baseline, Swap::Kl);
    options.batch = 480;
    options.samples = options.batch * 800;
    options.updates = 4;
    (options.uses, options.evaluations, options.evaluation_rows) = (1000, 4, 600);
    // What fails the requirement must lose all its probability, which takes long steps.
    options.adam = AdamOptions { learning_rate: 0.2, clip: 1.0, ..AdamOptions::default() };
    options.seed = 5;
    options
}

fn tuned(world: &mut World, options: &TuneOptions) -> (Tabular, Tuned) {
    let contexts = world.contexts(8);
    let World { base, features, potential, guide, .. } = world;
    let mut policy = Tabular::new(guide).unwrap();
    let mut target = Target { base, features, potential, guide: Some(guide), contexts: Some(&contexts) };
    let tuned = tune(&Cpu, &mut target, &mut policy, options, TuneData::default(), |_| {}).unwrap();
    (policy, tuned)
}

/// π is p_c in every context, and each Ẑ_c is Z_c.
#[track_caller]
fn assert_reaches(world: &World, policy: &mut Tabular, tuned: &Tuned, what: &str) {
    for (number, (_, log_potential, log_p)) in world.continued.iter().enumerate() {
        let kl = kl(log_p, &world.score(policy, number));
        println!("{what}, context {number}: KL {kl:.2e}");
        assert!(kl < 1e-3, "{what}, context {number}: KL {kl}");
        let (log_z, got) = (log_sum_exp(log_potential), tuned.contexts[number]);
        let error = (got.value - log_z).abs();
        assert!(error < 4.0 * got.standard_error + 1e-9, "{what}, context {number}: {got:?} for {log_z}");
    }
    let last = tuned.history.last().unwrap();
    assert!(last.kl.is_none_or(|kl| kl.value < 5e-3), "{what}: {:?}", last.kl);
}

#[test]
fn every_context_gets_its_own_target() {
    let mut hard = world(true);
    let log_z: Vec<f64> = hard.continued.iter().map(|(_, log_potential, _)| log_sum_exp(log_potential)).collect();
    assert!(log_z[2] - log_z[1] > 0.5, "contexts far apart, or there is nothing to see: {log_z:?}");
    let cases = [
        (Method::DpgOffPolicy, Source::Guided, Baseline::None),
        (Method::DpgOffPolicy, Source::Base, Baseline::Mean),
        (Method::DpgOnPolicy, Source::Base, Baseline::Mean),
        (Method::Distill, Source::Base, Baseline::None),
    ];
    for (method, source, baseline) in cases {
        let mut options = options(method, source, baseline);
        // All that rejection accepts: π is as far from p as the sample that it learns by.
        (options.samples, options.cache) = (2 * options.samples, 2 * options.samples);
        let (mut policy, tuned) = tuned(&mut hard, &options);
        assert_reaches(&hard, &mut policy, &tuned, &format!("{method:?} from {source:?}"));
    }
    let mut soft = world(false);
    for divergence in [Divergence::ReverseKl, Divergence::JensenShannon] {
        let mut options = options(Method::DpgOffPolicy, Source::Base, Baseline::Mean);
        options.divergence = divergence;
        let (mut policy, tuned) = tuned(&mut soft, &options);
        assert_reaches(&soft, &mut policy, &tuned, &format!("{divergence:?}"));
    }
    // The optimum of KL-control at β = 1 is p_c.
    let control = (Method::KlControl(KlControl::default()), Baseline::LeaveOneOut);
    let pieces = (Method::SubTrajectoryBalance(SubTrajectories::default()), Baseline::None);
    for (method, baseline) in [(Method::TrajectoryBalance, Baseline::None), pieces, control] {
        let (mut policy, tuned) = tuned(&mut soft, &options(method, Source::Base, baseline));
        assert_reaches(&soft, &mut policy, &tuned, &format!("{method:?}"));
    }
}

/// One λ for all contexts, with which the mean of their moments is what was wanted; without them it is another.
#[test]
fn a_fit_behind_contexts_has_the_wanted_moments_over_them() {
    let world = world(false);
    let set = FeatureSet::new(space())
        .with("01", Feature::Contains(vec![0, 1]))
        .and_then(|set| set.with("11", Feature::Contains(vec![1, 1])))
        .unwrap();
    let wanted = [0.3, 0.6];
    let has = |x: &[Token], a, b| f64::from(u8::from(x.windows(2).any(|pair| pair == [a, b])));
    // By enumeration: the mean over the contexts of E_{p_c} φ.
    let moments = |lambda: &[f64]| {
        let mut mean = [0.0; 2];
        for (number, (all, ..)) in world.continued.iter().enumerate() {
            let phi: Vec<_> = all.iter().map(|x| [has(x, 0, 1), has(x, 1, 1)]).collect();
            let log_r = world.score(&mut world.base.clone(), number);
            let log_p: Vec<f64> =
                log_r.iter().zip(&phi).map(|(log_r, phi)| log_r + lambda[0] * phi[0] + lambda[1] * phi[1]).collect();
            for (phi, log_p) in phi.iter().zip(normalise(&log_p).1) {
                (0..2).for_each(|i| mean[i] += phi[i] * log_p.exp() / 3.0);
            }
        }
        mean
    };
    let contexts = world.contexts(6);
    let targets = Targets::wanted(&wanted).unwrap();
    for moments_from in [Moments::Base, Moments::Guided] {
        let mut options = FitOptions::default();
        (options.moments, options.samples) = (moments_from, 60_000);
        let draw = Draw::new(9, Purpose::Fit);
        let fit = |contexts| fit_behind(&Cpu, &mut world.base.clone(), &set, &targets, contexts, &options, draw);
        let behind = fit(Some(&contexts)).unwrap();
        let got = moments(&behind.lambda);
        assert!((0..2).all(|i| (got[i] - wanted[i]).abs() < 0.01), "{moments_from:?}: {got:?}");
        // Errors of λ̂ are those of the moments, through the Hessian.
        let error = behind.standard_errors.iter().map(|error| error.unwrap()).fold(0.0, f64::max);
        assert!(error > 0.001 && error < 0.1, "{error}");
        let plain = moments(&fit(None).unwrap().lambda);
        assert!((0..2).any(|i| (plain[i] - wanted[i]).abs() > 0.05), "{moments_from:?}: {plain:?}");
    }
    let mut options = FitOptions::default();
    options.moments = Moments::Rejection;
    let refused = fit_behind(
        &Cpu,
        &mut world.base.clone(),
        &set,
        &targets,
        Some(&contexts),
        &options,
        Draw::new(9, Purpose::Fit),
    );
    assert!(refused.err().unwrap().to_string().contains("fit behind contexts"));
}

#[test]
fn the_judgement_is_made_context_by_context() {
    let world = world(true);
    let contexts = world.contexts(10);
    let World { base, features, potential, guide, .. } = &world;
    for source in [Source::Guided, Source::Base, Source::Policy] {
        let (mut base, mut policy) = (base.clone(), table(&world));
        let mut target = Target { base: &mut base, features, potential, guide: Some(guide), contexts: Some(&contexts) };
        let draw = Draw::new(2, Purpose::Evaluate);
        let found = evaluate(&Cpu, &mut target, &mut policy, source, 30_000, draw).unwrap();
        assert_eq!(found.contexts.len(), 3);
        let mut mean = 0.0;
        for (number, (_, log_potential, log_p)) in world.continued.iter().enumerate() {
            let (got, want) = (&found.contexts[number], kl(log_p, &world.score(&mut policy, number)));
            assert_eq!((got.context, got.rows), (number, 10_000));
            let within =
                |got: ebm_dpg::weights::Estimate, want: f64| (got.value - want).abs() < 4.5 * got.standard_error;
            assert!(within(got.log_z, log_sum_exp(log_potential)), "{source:?} {number}: {:?}", got.log_z);
            assert!(within(got.kl_policy, want), "{source:?} {number}: {:?} for {want}", got.kl_policy);
            mean += want / 3.0;
        }
        let off = (found.kl_policy.value - mean).abs();
        assert!(off < 5.0 * found.kl_policy.standard_error, "{source:?}: {:?} for {mean}", found.kl_policy);
    }
}

#[test]
fn a_run_with_contexts_resumes_bit_for_bit() {
    let world = world(true);
    let directory = tempfile::tempdir().unwrap();
    let mut checkpoints = Checkpoints::new(&directory.path().join("checkpoint.safetensors"));
    let run = |contexts: Contexts, checkpoints: &Checkpoints, stop: Option<usize>| {
        let (mut base, mut policy) = (world.base.clone(), Tabular::new(&world.guide).unwrap());
        let World { features, potential, guide, .. } = &world;
        let mut target = Target { base: &mut base, features, potential, guide: Some(guide), contexts: Some(&contexts) };
        let mut options = options(Method::DpgOffPolicy, Source::Guided, Baseline::Mean);
        options.samples = 12 * options.batch;
        options.swap = Swap::Every(4);
        // The run's first part is a run of its own: what stops it is a full disk, so to say.
        let kept = directory.path().join("kept");
        let mut evaluations = 0;
        let result =
            tune_with_checkpoints(&Cpu, &mut target, &mut policy, &options, TuneData::default(), checkpoints, |now| {
                evaluations += usize::from(now.record.is_some());
                if now.record.is_some() && stop.is_some_and(|stop| evaluations == stop + 1) {
                    std::fs::copy(&checkpoints.path, &kept).unwrap();
                }
            });
        result.map(|tuned| (policy.logits().to_vec(), tuned))
    };
    let (logits, tuned) = run(world.contexts(8), &checkpoints, Some(2)).unwrap();
    checkpoints.resume = Some(Checkpoint::load(&directory.path().join("kept")).unwrap());
    assert!(checkpoints.resume.as_ref().unwrap().samples() < tuned.samples);
    let again = run(world.contexts(8), &checkpoints, None).unwrap();
    assert_eq!((logits, tuned), again);
    let other = run(world.contexts(9), &checkpoints, None).unwrap_err().to_string();
    assert!(other.contains("contexts"), "{other}");
}

#[test]
fn one_context_can_be_sampled_exactly() {
    let world = world(true);
    let World { base, features, potential, guide, continued, .. } = &world;
    let sample = |contexts: &Contexts| {
        let mut base = base.clone();
        let mut target = Target { base: &mut base, features, potential, guide: Some(guide), contexts: Some(contexts) };
        let options = SamplerOptions::new(4000, Draw::new(6, Purpose::User));
        rejection(&Cpu, &mut Proposal::base(&mut target), Bound::Exact(1.5), &options)
    };
    let found = sample(&Contexts::new(space(), &[&beginnings()[1]], 1).unwrap()).unwrap();
    let (all, _, log_p) = &continued[1];
    let mut counts = vec![0u64; all.len()];
    for row in 0..found.rows() {
        assert_eq!(found.batch.given[row], 1);
        counts[all.iter().position(|x| x == found.batch.sequence(row)).unwrap()] += 1;
    }
    let (chi_square, freedom) = oracle::chi_square(&counts, log_p);
    assert!(chi_square < freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt(), "χ² {chi_square} of {freedom}");
    let refused = sample(&world.contexts(1)).err().unwrap().to_string();
    assert!(refused.contains("one at a time") && refused.contains("got 3"), "{refused}");
}

// Bad input

#[test]
fn contexts_that_cannot_be_are_refused() {
    let refused = |contexts: &[Vec<Token>], draws| Contexts::new(space(), contexts, draws).err().unwrap().to_string();
    assert!(refused(&[], 1).contains("contexts"));
    assert!(refused(&[vec![0]], 0).contains("1 or more"));
    assert!(refused(&[vec![0], vec![0; 5]], 1).contains("context 1: expected at most 4 tokens"));
    for token in [space().bos, space().eos, space().pad, 99] {
        let message = refused(&[vec![0, token]], 1);
        assert!(message.contains("position 1") && message.contains(&format!("got {token}")), "{message}");
    }
    let mut batch = Batch::with_capacity(&Cpu, space(), 1).unwrap();
    assert!(batch.push_given(&[0, space().eos], 2, 0).unwrap_err().to_string().contains("less than the sequence's 2"));
    assert_eq!(batch.rows, 0);
    let other = Contexts::new(Space::new(2, 6).unwrap(), &[vec![0]], 1).unwrap();
    assert!(
        batch.begin(&Cpu, &other, Draw::new(0, Purpose::User)).unwrap_err().to_string().contains("space of contexts")
    );
    // Tuning refuses them before it draws.
    let world = world(false);
    let (mut base, mut policy) = (world.base.clone(), Tabular::new(&world.guide).unwrap());
    let World { features, potential, guide, .. } = &world;
    let data = world.batch(0);
    let own = world.contexts(1);
    for (contexts, extra, expected) in [(&other, None, "space of the contexts"), (&own, Some(&data), "extra data")] {
        let mut target = Target { base: &mut base, features, potential, guide: Some(guide), contexts: Some(contexts) };
        let options = options(Method::DpgOffPolicy, Source::Base, Baseline::None);
        let data = TuneData { held_out: None, extra };
        let error = tune(&Cpu, &mut target, &mut policy, &options, data, |_| {}).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// A context that no string with a weight continues is told of, and does not disturb the others.
#[test]
fn a_context_without_hope_is_named() {
    let world = world(true);
    let contexts = Contexts::new(space(), &[vec![1, 1], vec![0, 0, 0, 0]], 8).unwrap();
    let (mut base, mut policy) = (world.base.clone(), Tabular::new(&world.guide).unwrap());
    let World { features, potential, continued, .. } = &world;
    let mut target = Target { base: &mut base, features, potential, guide: None, contexts: Some(&contexts) };
    let options = options(Method::DpgOffPolicy, Source::Base, Baseline::Mean);
    let tuned = tune(&Cpu, &mut target, &mut policy, &options, TuneData::default(), |_| {}).unwrap();
    assert!(
        tuned.warnings[0].contains("1 of 2 contexts") && tuned.warnings[0].contains("number 1"),
        "{:?}",
        tuned.warnings
    );
    assert_eq!(tuned.contexts[1].value, f64::NEG_INFINITY);
    let draw = Draw::new(2, Purpose::Evaluate);
    let found = evaluate(&Cpu, &mut target, &mut policy, Source::Base, 2000, draw).unwrap();
    assert_eq!(found.contexts.len(), 1);
    assert!(found.warnings.iter().any(|warning| warning.contains("1 of 2 contexts")), "{:?}", found.warnings);
    let kl = kl(&continued[2].2, &world.score(&mut policy, 2));
    assert!(kl < 1e-3, "{kl}");
}

#[test]
fn contexts_come_from_a_file() {
    let words = Lines::from_text("abba\nba\n", Unit::Characters, None, Some(6)).unwrap();
    let lines = Lines::from_text("ab\n\nb\n", Unit::Characters, Some(&words.vocab), None).unwrap();
    let contexts = Contexts::from_lines(words.batch.space, &lines, 4).unwrap();
    assert_eq!((contexts.len(), contexts.context(0), contexts.context(1)), (2, &[0, 1][..], &[1][..]));
    let cut = Lines::from_text("abab\nb\n", Unit::Characters, Some(&words.vocab), Some(3)).unwrap();
    assert!(Contexts::from_lines(words.batch.space, &cut, 4).err().unwrap().to_string().contains("line 1"));
    let other = Lines::from_text("abc\n", Unit::Characters, None, None).unwrap();
    assert!(Contexts::from_lines(words.batch.space, &other, 4).err().unwrap().to_string().contains("symbols"));
}
