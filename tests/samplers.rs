//! The samplers of p against a small space whose every probability is known.

use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::{Exact, Guide, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::models::{Lstm, LstmShape, Markov, Scorer, Stepper};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::samplers::*;
use ebm_dpg::tokens::{Batch, Space};
use ebm_dpg::tune::Target;
use ebm_dpg::weights::{Estimate, ImportanceWeights};

mod strings;

/// Binary strings of up to 6 symbols; half of them contain 101 after the tilt, all of them a 1.
struct World {
    space: Space,
    chain: Markov,
    features: FeatureSet,
    table: FeatureTable,
    potential: Potential,
    /// Looks ahead to the requirement alone, so that weights still differ.
    guide: Guide,
    /// log Z of r under the requirement: what the guide adds to the log-weights.
    log_met: f64,
    /// The same under a rougher chain than r, so that particles' weights differ on the way.
    rough: Guide,
    exact: Exact,
    /// All members of the space with p(x), p > 0.
    members: Vec<(Vec<u32>, f64)>,
}

const LAMBDA: [f64; 2] = [1.7, -0.8];

fn world() -> World {
    let space = Space::new(2, 6).unwrap();
    let data: Vec<Vec<u32>> = strings::all(space).into_iter().filter(|s| s.len() > 3).step_by(3).collect();
    let chain = Markov::fit(&Batch::from_sequences(space, &data).unwrap(), 1, false, 1.0).unwrap();
    let features = FeatureSet::new(space)
        .with("101", Feature::Contains(vec![1, 0, 1]))
        .and_then(|set| set.with("^0", Feature::StartsWith(vec![0])))
        .and_then(|set| set.with("1", Feature::Contains(vec![1])))
        .unwrap();
    let roles = [Role::Tilt(LAMBDA[0]), Role::Tilt(LAMBDA[1]), Role::Require(1.0)];
    let potential = Potential::new(&Cpu, &roles).unwrap();
    let exact = Exact::new(&chain, &features, &potential, 1000).unwrap();
    let partial = Potential::new(&Cpu, &[Role::Ignore, Role::Ignore, Role::Require(1.0)]).unwrap();
    let ahead = LookAhead::towards(&chain, &features, &partial, 1000).unwrap();
    let rough = Markov::fit(&Batch::from_sequences(space, &data[..2]).unwrap(), 0, false, 0.3).unwrap();
    let rough = LookAhead::towards(&rough, &features, &potential, 1000).unwrap().guide();
    let all = strings::all(space);
    let mut log_p = vec![0.0; all.len()];
    let mut scorer = exact.clone();
    scorer.score(&Batch::from_sequences(space, &all).unwrap(), &mut log_p).unwrap();
    let members = all.into_iter().zip(log_p).filter(|(_, log_p)| log_p.is_finite());
    let members: Vec<_> = members.map(|(sequence, log_p)| (sequence, log_p.exp())).collect();
    assert!((members.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-9);
    let (table, guide, log_met) = (features.compile(&Cpu).unwrap(), ahead.guide(), ahead.log_z());
    World { space, chain, table, features, potential, guide, log_met, rough, exact, members }
}

impl World {
    fn target<'a>(&'a self, base: &'a mut Markov) -> Target<'a, Cpu, Markov> {
        Target { base, features: &self.table, potential: &self.potential, guide: Some(&self.guide), contexts: None }
    }

    /// Pearson's χ² of the samples against p over the members with at least 5 expected, the rest pooled, as a number of
    /// standard deviations of its distribution. `independent` samples among them: repeats of a chain count less.
    fn deviation(&self, batch: &Batch, independent: f64) -> f64 {
        let n = batch.rows as f64;
        let (mut chi, mut cells, mut rest) = (0.0, 0, (0.0, 0.0));
        let mut seen = 0.0;
        for (sequence, p) in &self.members {
            let count = batch.iter().filter(|row| row == sequence).count() as f64;
            seen += count;
            if n * p < 5.0 {
                rest = (rest.0 + count, rest.1 + n * p);
            } else {
                chi += (count - n * p).powi(2) / (n * p);
                cells += 1;
            }
        }
        assert_eq!(seen, n, "nothing of P = 0 is drawn");
        if rest.1 > 0.0 {
            chi += (rest.0 - rest.1).powi(2) / rest.1;
            cells += 1;
        }
        let freedom = f64::from(cells - 1);
        (chi * independent / n - freedom) / (2.0 * freedom).sqrt()
    }
}

fn options(samples: usize, seed: u64) -> SamplerOptions {
    SamplerOptions::new(samples, Draw::new(seed, Purpose::User))
}

/// log of the largest weight under r.
fn bound() -> f64 {
    LAMBDA.iter().map(|lambda| lambda.max(0.0)).sum()
}

#[test]
fn rejection_draws_p_from_every_proposal() {
    let world = world();
    let (mut chain, mut policy) = (world.chain.clone(), world.exact.clone().chain().clone());
    let mut target = world.target(&mut chain);
    let options = options(20_000, 1);
    let base = rejection(&Cpu, &mut Proposal::base(&mut target), Bound::Exact(bound()), &options).unwrap();
    // Sequences that meet the requirement are likelier under the guided proposal by 1/r(met): its bound is as much lower.
    let tight = Bound::Exact(bound() + world.log_met);
    let guided = rejection(&Cpu, &mut Proposal::guided(&mut target).unwrap(), tight, &options).unwrap();
    let policy =
        rejection(&Cpu, &mut Proposal::policy(&mut target, &mut policy), Bound::Exact(bound()), &options).unwrap();
    for samples in [&base, &guided, &policy] {
        assert_eq!(samples.rows(), 20_000);
        assert!(samples.warnings.is_empty(), "{:?}", samples.warnings);
        let deviation = world.deviation(&samples.batch, 20_000.0);
        assert!(deviation.abs() < 4.0, "{deviation} standard deviations");
    }
    // β/Z draws a sample.
    let expected = (world.exact.log_z() - bound()).exp();
    assert!((base.acceptance / expected - 1.0).abs() < 0.05, "{} against {expected}", base.acceptance);
    assert!((guided.acceptance / base.acceptance * world.log_met.exp() - 1.0).abs() < 0.05);
    assert_eq!(base.batch.tokens, policy.batch.tokens, "the same model, the same samples");
}

#[test]
fn a_bound_that_weights_exceed_is_an_error_that_names_the_draw() {
    let world = world();
    let mut chain = world.chain.clone();
    let mut target = world.target(&mut chain);
    let error = rejection(&Cpu, &mut Proposal::base(&mut target), Bound::Exact(0.5), &options(100, 1)).err().unwrap();
    assert!(error.to_string().contains("at most 0.5") && error.to_string().contains("at draw"), "{error}");
    let error =
        rejection(&Cpu, &mut Proposal::base(&mut target), Bound::Quasi(f64::NAN), &options(1, 1)).err().unwrap();
    assert!(error.to_string().contains("finite"), "{error}");
}

#[test]
fn the_running_bound_ends_at_the_largest_weight_and_draws_p() {
    let world = world();
    let mut chain = world.chain.clone();
    let mut target = world.target(&mut chain);
    let mut options = options(20_000, 2);
    options.batch = 3;
    let samples = rejection(&Cpu, &mut Proposal::base(&mut target), Bound::Running, &options).unwrap();
    assert!(world.deviation(&samples.batch, 20_000.0).abs() < 4.0);
    assert!(samples.warnings[0].contains("log β = 1.7"), "{:?}", samples.warnings);
}

#[test]
fn a_spent_budget_is_told_and_what_was_found_comes_back() {
    let world = world();
    let mut chain = world.chain.clone();
    let mut target = world.target(&mut chain);
    let mut options = options(20_000, 3);
    (options.attempts, options.batch) = (150, 100);
    let samples = rejection(&Cpu, &mut Proposal::base(&mut target), Bound::Exact(bound()), &options).unwrap();
    assert_eq!(samples.attempts, 200, "whole batches");
    assert!(samples.rows() > 0 && samples.rows() < 200);
    assert_eq!(samples.log_p.len(), samples.rows());
    assert_eq!(samples.phi.len(), 3 * samples.rows());
    let expected = format!("{} of 20000 samples after 200 draws", samples.rows());
    assert!(samples.warnings[0].starts_with(&expected), "{:?}", samples.warnings);
    for (set, what) in [(|o: &mut SamplerOptions| o.samples = 0) as fn(&mut _), |o| o.attempts = 0, |o| o.batch = 0]
        .into_iter()
        .zip(["samples", "attempts", "batch"])
    {
        let mut options = options;
        set(&mut options);
        let error =
            rejection(&Cpu, &mut Proposal::base(&mut target), Bound::Running, &options).err().unwrap().to_string();
        assert!(error.contains(what) && error.contains("1 or more"), "{error}");
    }
}

/// Acceptance, TV and KL of quasi-rejection under log β, by enumeration with r as the proposal.
fn exact_quasi(world: &World, log_bound: f64) -> [f64; 3] {
    let all = strings::all(world.space);
    let batch = Batch::from_sequences(world.space, &all).unwrap();
    let (mut log_r, mut chain) = (vec![0.0; all.len()], world.chain.clone());
    chain.score(&batch, &mut log_r).unwrap();
    let mut phi = vec![0.0; 3 * all.len()];
    world.table.evaluate(&Cpu, &batch, &mut phi).unwrap();
    let w: Vec<f64> = phi.chunks(3).map(|phi| world.potential.log_factor(phi).exp()).collect();
    let r: Vec<f64> = log_r.iter().map(|log_r| log_r.exp()).collect();
    let beta = log_bound.exp();
    let sum = |term: &dyn Fn(usize) -> f64| (0..w.len()).map(term).sum::<f64>();
    let (z, z_beta) = (sum(&|k| r[k] * w[k]), sum(&|k| r[k] * w[k].min(beta)));
    let (p, p_beta) = (|k: usize| r[k] * w[k] / z, |k: usize| r[k] * w[k].min(beta) / z_beta);
    let kl = sum(&|k| if w[k] == 0.0 { 0.0 } else { p(k) * (p(k) / p_beta(k)).ln() });
    [z_beta / beta, 0.5 * sum(&|k| (p(k) - p_beta(k)).abs()), kl]
}

fn weights_of_base(world: &World, rows: usize, seed: u64) -> (Vec<f64>, Vec<f64>) {
    use ebm_dpg::models::Sampler;
    let mut batch = Batch::with_capacity(&Cpu, world.space, rows).unwrap();
    let (mut log_q, mut log_model, mut log_p) = (vec![0.0; rows], vec![0.0; rows], vec![0.0; rows]);
    let mut phi = vec![0.0; 3 * rows];
    let draw = Draw::new(seed, Purpose::User);
    world.chain.clone().sample(draw, None, &mut batch, &mut log_q, &mut log_model).unwrap();
    world.table.evaluate(&Cpu, &batch, &mut phi).unwrap();
    world.potential.log_potential(&Cpu, &log_q, &phi, &mut log_p).unwrap();
    (log_p, log_q)
}

#[test]
fn quasi_rejection_is_as_far_from_p_as_it_says() {
    let world = world();
    let log_bound = 0.6;
    let truth = exact_quasi(&world, log_bound);
    let mut chain = world.chain.clone();
    let mut target = world.target(&mut chain);
    let samples =
        rejection(&Cpu, &mut Proposal::base(&mut target), Bound::Quasi(log_bound), &options(20_000, 4)).unwrap();
    assert!((samples.acceptance - truth[0]).abs() < 0.01, "{} against {}", samples.acceptance, truth[0]);
    let share = |batch: &Batch, sequence: &[u32]| {
        batch.iter().filter(|row| *row == sequence).count() as f64 / batch.rows as f64
    };
    let tv: f64 = world.members.iter().map(|(sequence, p)| 0.5 * (share(&samples.batch, sequence) - p).abs()).sum();
    // The counts' own noise adds to the measured distance.
    assert!((tv - truth[1]).abs() < 0.02, "{tv} against {}", truth[1]);
    let (log_p, log_q) = weights_of_base(&world, 20_000, 5);
    let found = QuasiRejection::new(&ImportanceWeights::new(&log_p, &log_q).unwrap(), log_bound).unwrap();
    for (found, truth) in [found.acceptance, found.tv, found.kl].iter().zip(truth) {
        assert!((found.value - truth).abs() < 4.0 * found.standard_error, "{found:?} against {truth}");
    }
}

#[test]
fn quasi_rejection_intervals_cover() {
    let world = world();
    let truth = exact_quasi(&world, 0.75);
    const REPETITIONS: u64 = 2000;
    let mut covered = [0; 3];
    for seed in 0..REPETITIONS {
        let (log_p, log_q) = weights_of_base(&world, 2000, 1000 + seed);
        let found = QuasiRejection::new(&ImportanceWeights::new(&log_p, &log_q).unwrap(), 0.75).unwrap();
        for (k, found) in [found.acceptance, found.tv, found.kl].iter().enumerate() {
            covered[k] += u32::from((found.value - truth[k]).abs() < 1.96 * found.standard_error);
        }
    }
    let shares = covered.map(|count| f64::from(count) / REPETITIONS as f64);
    println!("coverage of acceptance, TV, KL: {shares:?}");
    assert!(shares.iter().all(|share| (0.93..0.97).contains(share)), "{shares:?}");
}

#[test]
fn the_curve_falls_from_cheap_and_far_to_dear_and_near() {
    let world = world();
    let (log_p, log_q) = weights_of_base(&world, 5000, 6);
    let weights = ImportanceWeights::new(&log_p, &log_q).unwrap();
    let curve = quasi_rejection_curve(&weights, 9).unwrap();
    assert!(curve.windows(2).all(|pair| {
        let falls = |value: fn(&QuasiRejection) -> Estimate| value(&pair[1]).value <= value(&pair[0]).value + 1e-12;
        pair[0].log_bound < pair[1].log_bound && falls(|q| q.acceptance) && falls(|q| q.tv) && falls(|q| q.kl)
    }));
    let last = curve.last().unwrap();
    assert!((last.log_bound - bound()).abs() < 1e-5 && last.tv.value < 1e-12 && last.kl.value < 1e-12, "{last:?}");
    assert!(quasi_rejection_curve(&weights, 1).is_err());
}

#[test]
fn resampled_draws_and_metropolis_chains_follow_p() {
    let world = world();
    let mut chain = world.chain.clone();
    let mut target = world.target(&mut chain);
    let mut proposal = Proposal::base(&mut target);
    let mut options = options(2_000, 7);
    options.attempts = 200_000;
    for scheme in [Resampling::Multinomial, Resampling::Stratified, Resampling::Systematic, Resampling::Residual] {
        let samples = importance_resampling(&Cpu, &mut proposal, scheme, &options).unwrap();
        let deviation = world.deviation(&samples.batch, 2000.0);
        // Less noise than independent samples have is what the schemes are for.
        assert!(samples.warnings.is_empty() && deviation < 4.0, "{scheme:?}: {deviation}, {:?}", samples.warnings);
    }
    (options.samples, options.attempts) = (20_000, 400_000);
    let mut chains = Chains::default();
    chains.thin = 15;
    let samples = metropolis(&Cpu, &mut proposal, chains, &options).unwrap();
    assert_eq!(samples.rows(), 20_000);
    let deviation = world.deviation(&samples.batch, 20_000.0);
    assert!(deviation.abs() < 4.0, "{deviation}");
    assert!(samples.acceptance > 0.1 && samples.acceptance < 0.9);
}

#[test]
fn too_few_draws_to_resample_from_are_told() {
    let world = world();
    let mut chain = world.chain.clone();
    let mut target = world.target(&mut chain);
    let mut proposal = Proposal::base(&mut target);
    let mut options = options(1000, 8);
    (options.attempts, options.batch) = (100, 10);
    let samples = importance_resampling(&Cpu, &mut proposal, Resampling::Systematic, &options).unwrap();
    assert_eq!(samples.rows(), 1000);
    assert!(samples.warnings.iter().any(|warning| warning.contains("repeat each other")), "{:?}", samples.warnings);
    let too_many = metropolis(&Cpu, &mut proposal, Chains::default(), &options).map(|samples| samples.rows());
    assert_eq!(too_many.unwrap(), 0, "all burnt in");
    let mut chains = Chains::default();
    chains.chains = 11;
    let error = metropolis(&Cpu, &mut proposal, chains, &options).err().unwrap().to_string();
    assert!(error.contains("at most the batch, 10"), "{error}");
}

#[test]
fn every_scheme_is_unbiased_and_none_picks_the_dead() {
    let log_w: Vec<f64> = [0.5f64, 0.0, 2.5, 1.0, 0.0, 0.01].iter().map(|w| w.ln()).collect();
    let total = 4.01;
    for scheme in [Resampling::Multinomial, Resampling::Stratified, Resampling::Systematic, Resampling::Residual] {
        let (count, repetitions) = (7, 40_000u32);
        let mut survived = [0u32; 6];
        for seed in 0..repetitions {
            let rows = scheme.survivors(&log_w, count, Draw::new(seed.into(), Purpose::Resample), 3).unwrap();
            assert_eq!(rows.len(), count);
            assert!(rows.is_sorted());
            rows.iter().for_each(|&row| survived[row as usize] += 1);
        }
        for (row, log_w) in log_w.iter().enumerate() {
            let expected = count as f64 * log_w.exp() / total;
            let mean = f64::from(survived[row]) / f64::from(repetitions);
            // The variance of a count is at most that of a multinomial one.
            let error = (expected / f64::from(repetitions)).sqrt();
            assert!((mean - expected).abs() <= 4.0 * error, "{scheme:?}, row {row}: {mean} against {expected}");
        }
    }
    let draw = Draw::new(0, Purpose::Resample);
    assert!(Resampling::Systematic.survivors(&[f64::NEG_INFINITY; 3], 2, draw, 0).is_err());
    let error = Resampling::Residual.survivors(&[0.0, f64::NAN], 2, draw, 0).unwrap_err().to_string();
    assert!(error.contains("row 1"), "{error}");
    assert!(Resampling::Systematic.survivors(&[0.0], 0, draw, 0).unwrap().is_empty());
}

#[test]
fn sequential_z_is_unbiased_with_and_without_a_guide() {
    let world = world();
    for (guide, particles, threshold) in
        [(Some(&world.rough), 12, 0.99), (None, 40, 0.5), (Some(&world.rough), 30, 0.0)]
    {
        let mut resamplings = 0;
        let z = |seed: u64| {
            let mut options = SequentialOptions::new(particles, Draw::new(seed, Purpose::User));
            options.threshold = threshold;
            let found = sequential(&world.chain, &world.table, &world.potential, guide, &options).unwrap();
            resamplings += found.resamplings;
            found.log_z.exp()
        };
        let values: Vec<f64> = (0..1000).map(z).collect();
        assert_eq!(resamplings > 100, threshold > 0.5, "{resamplings}");
        let mean = Estimate::mean(&values).unwrap();
        let truth = world.exact.log_z().exp();
        assert!((mean.value - truth).abs() < 4.0 * mean.standard_error, "{mean:?} against {truth}");
    }
}

#[test]
fn particles_stand_for_p() {
    let world = world();
    let options = SequentialOptions::new(20_000, Draw::new(3, Purpose::User));
    let found = sequential(&world.chain, &world.table, &world.potential, Some(&world.rough), &options).unwrap();
    let moments = world.exact.moments();
    for (found, truth) in found.moments().iter().zip(&moments) {
        assert!((found - truth).abs() < 0.02, "{:?} against {moments:?}", found);
    }
    assert!(found.ess > 5_000.0);
    let rows = found.survivors(Resampling::Systematic, 5000, options.draw).unwrap();
    let mut batch = Batch::with_capacity(&Cpu, world.space, 5000).unwrap();
    batch.gather(&Cpu, &found.batch, &rows).unwrap();
    assert!(world.deviation(&batch, 5000.0) < 4.0);
    // A guide towards all of p leaves equal weights.
    let full = world.exact.look_ahead().guide();
    let perfect = sequential(&world.chain, &world.table, &world.potential, Some(&full), &options).unwrap();
    assert!((perfect.log_z - world.exact.log_z()).abs() < 1e-5 && perfect.ess > 19_999.0 && perfect.resamplings == 0);
}

#[test]
fn no_particle_left_and_bad_options_are_errors() {
    let world = world();
    let never = Potential::new(&Cpu, &[Role::Require(1.0), Role::Ignore, Role::Require(0.0)]).unwrap();
    let options = SequentialOptions::new(50, Draw::new(3, Purpose::User));
    let error = sequential(&world.chain, &world.table, &never, None, &options).err().unwrap().to_string();
    assert!(error.contains("not one of 50 particles"), "{error}");
    for (particles, threshold, what) in [(0, 0.5, "particles"), (5, f64::NAN, "threshold"), (5, 1.5, "threshold")] {
        let mut options = options;
        (options.particles, options.threshold) = (particles, threshold);
        let error = sequential(&world.chain, &world.table, &never, None, &options).err().unwrap().to_string();
        assert!(error.contains(what), "{error}");
    }
}

/// Log-probs of a batch, token by token, with the prefixes shuffled before each token.
fn stepped<M: Stepper>(model: &M, batch: &Batch) -> Vec<f64> {
    let (vocab, rows) = (batch.space.vocab as usize, batch.rows);
    let mut log_probs = vec![0.0; rows * vocab];
    let mut prefixes = model.begin(rows, &mut log_probs).unwrap();
    // Prefix i follows sequence order[i].
    let mut order: Vec<usize> = (0..rows).collect();
    let mut totals = vec![0.0; rows];
    for t in 0..batch.space.longest as usize {
        for (slot, &row) in order.iter().enumerate() {
            if t < batch.lengths[row] as usize {
                totals[row] += f64::from(log_probs[slot * vocab + batch.token(row, t) as usize]);
            }
        }
        let ancestors: Vec<u32> = (0..rows as u32).map(|slot| (slot * 7 + 3) % rows as u32).collect();
        order = ancestors.iter().map(|&slot| order[slot as usize]).collect();
        model.select(&mut prefixes, &ancestors).unwrap();
        let tokens: Vec<u32> = order.iter().map(|&row| batch.token(row, t)).collect();
        model.step(&mut prefixes, &tokens, &mut log_probs).unwrap();
    }
    totals
}

#[test]
fn steppers_score_as_scorers_do_whatever_prefixes_are_beside() {
    let world = world();
    let batch = Batch::from_sequences(world.space, &strings::all(world.space)).unwrap();
    assert!(batch.rows > 100 && !batch.rows.is_multiple_of(7));
    let mut lstm = Lstm::new(world.space, LstmShape { layers: 2, hidden: 9, dropout: 0.0 }, 5).unwrap();
    let mut whole = vec![0.0; batch.rows];
    for (stepped, scored) in [
        (stepped(&world.chain, &batch), {
            world.chain.clone().score(&batch, &mut whole).unwrap();
            whole.clone()
        }),
        (stepped(&lstm, &batch), {
            lstm.score(&batch, &mut whole).unwrap();
            whole.clone()
        }),
    ] {
        for (row, (stepped, scored)) in stepped.iter().zip(&scored).enumerate() {
            assert!((stepped - scored).abs() <= 1e-6, "row {row}: {stepped} against {scored}");
        }
    }
    let (mut short, log_probs) = (vec![0.0; 3], &mut vec![0.0; 10]);
    assert!(lstm.begin(2, &mut short).is_err());
    let mut prefixes = lstm.begin(2, log_probs).unwrap();
    assert!(lstm.step(&mut prefixes, &[0], log_probs).is_err() && lstm.select(&mut prefixes, &[0]).is_err());
}

#[test]
fn the_same_seed_gives_the_same_samples_on_one_thread_and_on_three() {
    let world = world();
    let run = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut lstm = Lstm::new(world.space, LstmShape { layers: 1, hidden: 8, dropout: 0.0 }, 5).unwrap();
            let options = SequentialOptions::new(300, Draw::new(3, Purpose::User));
            let particles = sequential(&lstm, &world.table, &world.potential, Some(&world.guide), &options).unwrap();
            let mut target = Target {
                base: &mut lstm,
                features: &world.table,
                potential: &world.potential,
                guide: Some(&world.guide),
                contexts: None,
            };
            let mut proposal = Proposal::guided(&mut target).unwrap();
            let samples = rejection(&Cpu, &mut proposal, Bound::Running, &self::options(500, 2)).unwrap();
            (particles.batch.tokens, particles.log_shares, samples.batch.tokens, samples.log_p)
        })
    };
    assert!(run(1) == run(3));
}

#[test]
fn features_of_the_samples_are_theirs() {
    let world = world();
    let mut chain = world.chain.clone();
    let mut target = world.target(&mut chain);
    let mut options = options(500, 9);
    options.attempts = 10_000;
    let mut proposal = Proposal::base(&mut target);
    for samples in [
        rejection(&Cpu, &mut proposal, Bound::Running, &options).unwrap(),
        importance_resampling(&Cpu, &mut proposal, Resampling::Residual, &options).unwrap(),
        metropolis(&Cpu, &mut proposal, Chains::default(), &options).unwrap(),
    ] {
        let mut phi = vec![0.0; samples.rows() * world.features.len()];
        world.table.evaluate(&Cpu, &samples.batch, &mut phi).unwrap();
        assert_eq!(samples.phi, phi);
        let mut log_r = vec![0.0; samples.rows()];
        world.chain.clone().score(&samples.batch, &mut log_r).unwrap();
        for (row, log_r) in log_r.iter().enumerate() {
            assert!((log_r + world.potential.log_factor(&phi[row * 3..][..3]) - samples.log_p[row]).abs() < 1e-9);
        }
    }
}
