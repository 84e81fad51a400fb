//! Fitted coefficients against the exact truth of Markov bases and automaton features, the rules for constraints, and
//! bad input.

use ebm_dpg::Error;
use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::Exact;
use ebm_dpg::features::{Feature, FeatureSet};
use ebm_dpg::fit::*;
use ebm_dpg::models::{Markov, Sampler};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space};
use rayon::prelude::*;

const DRAW: Draw = Draw { seed: 11, purpose: Purpose::Fit, first: 0 };

fn bits(text: &str) -> Vec<u32> {
    text.bytes().map(|byte| u32::from(byte - b'0')).collect()
}

/// Binary strings of up to 14 tokens from a chain that prefers repetition and ends now and then.
fn chain() -> Markov {
    let space = Space::new(2, 14).unwrap();
    let mut table = vec![f32::NEG_INFINITY; 25];
    for (context, row) in [[0.6, 0.35, 0.05], [0.35, 0.55, 0.10], [0.5, 0.5, 0.0]].iter().enumerate() {
        for (token, p) in [0, 1, 3].into_iter().zip(row) {
            table[context * 5 + token] = f32::ln(*p);
        }
    }
    for unused in [3, 4] {
        table[unused * 5 + 3] = 0.0;
    }
    Markov::new(space, 1, 1, table).unwrap()
}

fn features(space: Space) -> FeatureSet {
    let contains = |pattern| Feature::Contains(bits(pattern));
    FeatureSet::new(space)
        .with("motif", contains("1011"))
        .and_then(|set| set.with("first", Feature::StartsWith(bits("1"))))
        .and_then(|set| set.with("zeros", contains("0000")))
        .unwrap()
}

fn exact(base: &Markov, features: &FeatureSet, roles: &[Role]) -> Exact {
    Exact::new(base, features, &Potential::new(&Cpu, roles).unwrap(), 100_000).unwrap()
}

fn phi_of(features: &FeatureSet, batch: &Batch) -> Vec<f32> {
    let mut phi = vec![0.0; batch.rows * features.len()];
    features.compile(&Cpu).unwrap().evaluate(&Cpu, batch, &mut phi).unwrap();
    phi
}

/// Moments of `rows` exact samples.
fn data(exact: &Exact, features: &FeatureSet, seed: u64, rows: usize) -> Targets {
    let mut batch = Batch::with_capacity(&Cpu, features.space(), rows).unwrap();
    exact.sample(Draw::new(seed, Purpose::Data), &mut batch, &mut vec![0.0; rows]).unwrap();
    Targets::from_data(&phi_of(features, &batch), features.len()).unwrap()
}

fn options(change: impl FnOnce(&mut FitOptions)) -> FitOptions {
    let mut options = FitOptions::default();
    change(&mut options);
    options
}

fn fit_chain(features: &FeatureSet, targets: &Targets, options: &FitOptions) -> ebm_dpg::Result<Fit> {
    fit(&Cpu, &mut chain(), features, targets, options, DRAW)
}

fn assert_near(fit: &Fit, truth: &[f64]) {
    for (i, truth) in truth.iter().enumerate() {
        let Some(error) = fit.standard_errors[i] else { continue };
        let difference = (fit.lambda[i] - truth).abs();
        assert!(difference <= 4.0 * error, "λ {i}: {} ± {error} instead of {truth}", fit.lambda[i]);
        assert!(error < 0.5, "λ {i} ± {error}");
    }
}

#[test]
fn wanted_moments_give_the_true_coefficients() {
    let (base, truth) = (chain(), [1.7, -0.8, 0.6]);
    let features = features(space_of(&base));
    let target = exact(&base, &features, &truth.map(Role::Tilt));
    let wanted = Targets::wanted(&target.moments()).unwrap();
    for moments in [Moments::Base, Moments::Guided, Moments::Rejection] {
        let fit = fit_chain(&features, &wanted, &options(|o| o.moments = moments)).unwrap();
        assert!(fit.standard_errors.iter().all(Option::is_some), "{moments:?}");
        assert_near(&fit, &truth);
        assert!(fit.residual <= 1e-8, "{moments:?}: residual {}", fit.residual);
        assert!(fit.iterations <= 15, "{moments:?}: {} iterations", fit.iterations);
        let log_z = exact(&base, &features, &fit.roles).log_z();
        let difference = (fit.log_z.value - log_z).abs();
        assert!(difference <= 4.0 * fit.log_z.standard_error, "{moments:?}: log Z {:?}, {log_z}", fit.log_z);
        assert!(fit.warnings.is_empty(), "{moments:?}: {:?}", fit.warnings);
    }
}

fn space_of(base: &Markov) -> Space {
    ebm_dpg::models::Scorer::<Cpu>::space(base)
}

/// Data and sample are both finite: the intervals of λ must cover for either source.
#[test]
fn intervals_of_coefficients_cover() {
    let (base, truth) = (chain(), [1.2, -0.8, 0.6]);
    let features = features(space_of(&base));
    let target = exact(&base, &features, &truth.map(Role::Tilt));
    let repetitions = 300;
    let cheap = options(|o| (o.moments, o.samples) = (Moments::Base, 3000));
    let judge = |seed: u64| {
        let data = data(&target, &features, 100 + seed, 1000);
        let fit = fit(&Cpu, &mut chain(), &features, &data, &cheap, Draw::new(seed, Purpose::Fit)).unwrap();
        let covers = |i: usize| (fit.lambda[i] - truth[i]).abs() <= 1.96 * fit.standard_errors[i].unwrap();
        [0, 1, 2].map(covers)
    };
    let judged: Vec<_> = (0..repetitions).into_par_iter().map(judge).collect();
    for i in 0..3 {
        // The error of a coverage over 300 repetitions is .0126.
        let coverage = judged.iter().filter(|covered| covered[i]).count() as f64 / repetitions as f64;
        println!("λ {i}: coverage {coverage:.3}");
        assert!((0.90..=0.99).contains(&coverage), "λ {i}: coverage {coverage}");
    }
}

#[test]
fn motif_in_all_data_becomes_a_constraint() {
    let base = chain();
    let features = features(space_of(&base));
    let roles = [Role::Require(1.0), Role::Tilt(-1.0), Role::Tilt(0.8)];
    let data = data(&exact(&base, &features, &roles), &features, 1, 2000);
    for moments in [Moments::Base, Moments::Guided, Moments::Rejection] {
        let fit = fit_chain(&features, &data, &options(|o| o.moments = moments)).unwrap();
        assert_eq!(fit.roles[0], Role::Require(1.0));
        assert_eq!((fit.lambda[0], fit.standard_errors[0]), (0.0, None));
        assert_eq!(fit.moments_potential[0].value, 1.0);
        assert_near(&fit, &[0.0, -1.0, 0.8]);
        assert_eq!(fit.guide.is_some(), moments == Moments::Guided);
    }
}

/// A motif of 14 bits is in a thousandth of noise: hopeless from r, even weights from the guided proposal.
#[test]
fn guided_proposal_reaches_rare_motifs() {
    let space = Space::new(2, 31).unwrap();
    let mut noise = Markov::noise(space, 30).unwrap();
    let set = FeatureSet::new(space)
        .with("motif", Feature::Contains(bits("10001011111000")))
        .and_then(|set| set.with("first", Feature::StartsWith(bits("1"))))
        .unwrap();
    let wanted = Targets::wanted(&[1.0, 0.7]).unwrap();
    let fit_from = |noise: &mut Markov, moments| {
        let options = options(|o| (o.moments, o.samples, o.base_samples) = (moments, 4000, 4000));
        fit(&Cpu, noise, &set, &wanted, &options, DRAW)
    };
    let guided = fit_from(&mut noise, Moments::Guided).unwrap();
    assert!(guided.ess > 0.9 * 4000.0, "effective sample size {}", guided.ess);
    let truth = exact(&noise, &set, &[Role::Require(1.0), Role::Tilt(0.0)]).fit_moments(&[1.0, 0.7]).unwrap();
    let lambda = Potential::<Cpu>::new(&Cpu, truth.roles()).unwrap().lambda();
    assert_near(&guided, &lambda);
    let log_z = exact(&noise, &set, &guided.roles).log_z();
    let difference = (guided.log_z.value - log_z).abs();
    assert!(difference <= 4.0 * guided.log_z.standard_error + 1e-5, "{:?} {log_z}", guided.log_z);
    let error = fit_from(&mut noise, Moments::Base).err().unwrap();
    assert!(matches!(error, Error::NoAnswer { .. }), "{error}");
    // The guide left behind is a proposal for p.
    let mut batch = Batch::with_capacity(&Cpu, space, 500).unwrap();
    let (mut log_q, mut log_r) = (vec![0.0; 500], vec![0.0; 500]);
    noise.sample(DRAW, guided.guide.as_ref(), &mut batch, &mut log_q, &mut log_r).unwrap();
    assert!(phi_of(&set, &batch).chunks(2).all(|phi| phi[0] == 1.0));
}

/// The papers' main job: mode m, features 1001111, 1000 strings. The motif becomes a constraint, what it implies is
/// dropped, and the rest is fitted.
#[test]
fn features_of_the_papers_in_mode_m() {
    let space = Space::new(2, 31).unwrap();
    let noise = Markov::noise(space, 30).unwrap();
    let set = FeatureSet::from_flags(space, &bits("10001011111000"), "1001111", None).unwrap();
    let motif = FeatureSet::new(space).with("motif", Feature::Contains(bits("10001011111000"))).unwrap();
    let target = exact(&noise, &motif, &[Role::Require(1.0)]);
    let mut batch = Batch::with_capacity(&Cpu, space, 1000).unwrap();
    target.sample(Draw::new(2, Purpose::Data), &mut batch, &mut [0.0; 1000]).unwrap();
    let data = Targets::from_data(&phi_of(&set, &batch), set.len()).unwrap();
    let fit = fit(&Cpu, &mut noise.clone(), &set, &data, &FitOptions::default(), DRAW).unwrap();
    println!("{:?}\n{:?}\n{:?}\n{:?}", set.names(), fit.roles, fit.standard_errors, fit.warnings);
    assert!(fit.roles.contains(&Role::Require(1.0)) && fit.ess > 10_000.0 && fit.iterations <= 15);
    // No distractor that the data never show is tilted towards.
    for (i, moment) in data.moments().iter().enumerate().filter(|(_, moment)| **moment == 0.0) {
        assert!(fit.lambda[i] <= 0.0, "λ {i} = {} for a moment of {moment}", fit.lambda[i]);
    }
    // log Z is that of the motif alone, moved a little by features that the data tilt by chance.
    assert!((fit.log_z.value - target.log_z()).abs() < 0.3, "{:?} {}", fit.log_z, target.log_z());
}

#[test]
fn far_targets_are_reached_from_the_guided_start() {
    let base = chain();
    let set = features(space_of(&base)).with("rare", Feature::Contains(bits("10101010"))).unwrap();
    let wanted = Targets::wanted(&[0.9, 0.5, 0.05, 0.5]).unwrap();
    let fit = fit_chain(&set, &wanted, &FitOptions::default()).unwrap();
    let truth = exact(&base, &set, &[Role::Tilt(0.0); 4]).fit_moments(wanted.moments()).unwrap();
    assert_near(&fit, &Potential::<Cpu>::new(&Cpu, truth.roles()).unwrap().lambda());
    assert!(fit.iterations <= 15 && fit.ess > 0.5 * 20_000.0, "{} iterations, {}", fit.iterations, fit.ess);
}

#[test]
fn features_that_are_no_automata_are_fitted_too() {
    let base = chain();
    let set = features(space_of(&base)).with("common", Feature::LongestCommonSubstring(bits("110011"))).unwrap();
    let wanted = Targets::wanted(&[1.0, 0.5, 0.1, 0.75]).unwrap();
    let fit = fit_chain(&set, &wanted, &FitOptions::default()).unwrap();
    assert!(fit.residual < 1e-8 && matches!(fit.roles[3], Role::Tilt(lambda) if lambda != 0.0));
    assert!(fit.ess > 1000.0);
}

#[test]
fn an_automaton_too_large_falls_back_to_constraints() {
    let features = features(space_of(&chain()));
    let wanted = Targets::wanted(&[1.0, 0.5, 0.1]).unwrap();
    let fit = fit_chain(&features, &wanted, &options(|o| o.states = 6)).unwrap();
    assert!(fit.warnings.iter().any(|warning| warning.contains("only hard constraints")), "{:?}", fit.warnings);
    assert!(fit.residual < 1e-8);
    assert!(fit_chain(&features, &wanted, &options(|o| o.states = 1)).is_err());
}

/// 500 strings without a distractor of .1 % do not make it impossible; without one of 30 % they do.
#[test]
fn an_unseen_distractor_is_not_forbidden() {
    let base = chain();
    let set = FeatureSet::new(space_of(&base))
        .with("first", Feature::StartsWith(bits("1")))
        .and_then(|set| set.with("rare", Feature::Contains(bits("00100"))))
        .and_then(|set| set.with("common", Feature::Contains(bits("11"))))
        .and_then(|set| set.with("unheard of", Feature::Contains(bits("010101010101"))))
        .unwrap();
    let truth = exact(&base, &set, &[Role::Tilt(0.0); 4]);
    let rare = truth.moments()[1];
    assert!(rare > 0.01 && truth.moments()[2] > 0.3 && truth.moments()[3] < 1e-3, "{:?}", truth.moments());
    let roles = [Role::Tilt(0.5), Role::Require(0.0), Role::Require(0.0), Role::Require(0.0)];
    // So few rows that the rare one may be missing by chance.
    let rows = (5.0 / rare) as usize;
    let data = data(&exact(&base, &set, &roles), &set, 3, rows);
    let fit = fit_chain(&set, &data, &FitOptions::default()).unwrap();
    assert!(matches!(fit.roles[1], Role::Tilt(lambda) if lambda < 0.0 && lambda > -10.0), "{:?}", fit.roles);
    assert!((fit.moments_target[1] - 0.5 / (rows as f64 + 1.0)).abs() < 1e-12);
    assert_eq!(fit.roles[2], Role::Require(0.0));
    assert_eq!(fit.roles[3], Role::Ignore);
    assert!(fit.warnings.len() >= 2 && fit.warnings.iter().any(|w| w.contains("'rare'")), "{:?}", fit.warnings);
}

#[test]
fn constants_and_implied_features_are_left_out() {
    let space = Space::new(2, 13).unwrap();
    let mut noise = Markov::noise(space, 12).unwrap();
    let set = FeatureSet::new(space)
        .with("motif", Feature::Contains(bits("1011")))
        .and_then(|set| set.with("submotif", Feature::Contains(bits("10"))))
        .and_then(|set| set.with("length", Feature::Length))
        .and_then(|set| set.with("same", Feature::Contains(bits("1011"))))
        .and_then(|set| set.with("first", Feature::StartsWith(bits("1"))))
        .unwrap();
    let roles = [Role::Require(1.0), Role::Ignore, Role::Ignore, Role::Ignore, Role::Tilt(0.7)];
    let target = exact(&noise, &set, &roles);
    let data = data(&target, &set, 5, 1000);
    let fit = fit(&Cpu, &mut noise, &set, &data, &FitOptions::default(), DRAW).unwrap();
    assert_eq!(fit.roles.iter().filter(|role| **role == Role::Require(1.0)).count(), 1, "{:?}", fit.roles);
    assert_eq!(fit.roles.iter().filter(|role| **role == Role::Ignore).count(), 3, "{:?}", fit.roles);
    assert_near(&fit, &[0.0, 0.0, 0.0, 0.0, 0.7]);
    assert_eq!(fit.warnings.len(), 3, "{:?}", fit.warnings);
    // A user's moment for an implied feature must be the implied one.
    let wanted = Targets::wanted(&[1.0, 0.5, 1.0 - 1e-12, 1.0, 0.7]).unwrap();
    let error = ebm_dpg::fit::fit(&Cpu, &mut noise, &set, &wanted, &FitOptions::default(), DRAW).err().unwrap();
    assert!(error.to_string().contains("'submotif'") && !error.to_string().contains('\n'), "{error}");
}

#[test]
fn the_papers_schedule_stays_finite_and_takes_longer() {
    let base = chain();
    let features = features(space_of(&base));
    let roles = [Role::Require(1.0), Role::Tilt(-1.0), Role::Tilt(0.8)];
    let data = data(&exact(&base, &features, &roles), &features, 1, 2000);
    for moments in [Moments::Base, Moments::Rejection] {
        let sgd = options(|o| (o.moments, o.solver) = (moments, Solver::Sgd(SgdOptions::default())));
        let fit = fit_chain(&features, &data, &sgd).unwrap();
        assert!(matches!(fit.roles[0], Role::Tilt(lambda) if lambda > 2.0), "{moments:?}: {:?}", fit.roles);
        assert!(fit.iterations > 500 && fit.residual < 0.2, "{moments:?}: {} {}", fit.iterations, fit.residual);
    }
}

/// A motif that r has in a thousandth and the data always: without constraints the guide must not hide the other value.
#[test]
fn the_papers_schedule_keeps_a_rare_motif_with_the_guide() {
    let space = Space::new(2, 31).unwrap();
    let noise = Markov::noise(space, 30).unwrap();
    let set = FeatureSet::from_flags(space, &bits("10001011111000"), "1001111", None).unwrap();
    let motif = FeatureSet::new(space).with("motif", Feature::Contains(bits("10001011111000"))).unwrap();
    let mut batch = Batch::with_capacity(&Cpu, space, 500).unwrap();
    exact(&noise, &motif, &[Role::Require(1.0)])
        .sample(Draw::new(3, Purpose::Data), &mut batch, &mut [0.0; 500])
        .unwrap();
    let data = Targets::from_data(&phi_of(&set, &batch), set.len()).unwrap();
    let sgd = options(|o| {
        (o.moments, o.solver, o.samples) = (Moments::Guided, Solver::Sgd(SgdOptions::default()), 10_000);
    });
    let fit = fit(&Cpu, &mut noise.clone(), &set, &data, &sgd, DRAW).unwrap();
    assert!(matches!(fit.roles[0], Role::Tilt(lambda) if (7.0..15.0).contains(&lambda)), "{:?}", fit.roles);
    let p = exact(&noise, &set, &fit.roles);
    assert!(p.moments()[0] > 0.9, "{:?} of {:?}", p.moments(), fit.roles);
    assert!((fit.log_z.value - p.log_z()).abs() <= 4.0 * fit.log_z.standard_error, "{:?} {}", fit.log_z, p.log_z());
}

/// One row of 4,000 lacks the feature: of 200 draws guided towards that probably none, which is no reason to leave it out.
#[test]
fn what_only_the_guide_makes_constant_keeps_its_coefficient() {
    let space = Space::new(2, 11).unwrap();
    let noise = Markov::noise(space, 10).unwrap();
    let set = FeatureSet::new(space).with("first", Feature::StartsWith(bits("1"))).unwrap();
    let mut phi = vec![1.0; 4_000];
    phi[0] = 0.0;
    let data = Targets::from_data(&phi, 1).unwrap();
    let few = options(|o| (o.moments, o.samples) = (Moments::Guided, 200));
    let fit = fit(&Cpu, &mut noise.clone(), &set, &data, &few, DRAW).unwrap();
    let p = exact(&noise, &set, &fit.roles);
    assert!((p.moments()[0] - 0.99975).abs() < 1e-3, "{:?} of {:?}, {:?}", p.moments(), fit.roles, fit.warnings);
    assert!(fit.warnings.iter().any(|warning| warning.contains("'first'") && warning.contains("one value only")));
}

#[test]
fn fit_does_not_depend_on_threads_or_batches() {
    let features = features(space_of(&chain()));
    let wanted = Targets::wanted(&[0.6, 0.4, 0.2]).unwrap();
    let lambda = |threads: usize, batch: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let fit = pool.install(|| fit_chain(&features, &wanted, &options(|o| o.batch = batch)).unwrap());
        (fit.lambda.iter().map(|l| l.to_bits()).collect::<Vec<_>>(), fit.log_z.value.to_bits())
    };
    assert_eq!(lambda(1, 2048), lambda(2, 2048));
    assert_eq!(lambda(1, 2048), lambda(2, 333));
}

#[test]
fn contradictory_and_unreachable_moments_are_one_line_errors() {
    let space = space_of(&chain());
    let contains = |pattern| Feature::Contains(bits(pattern));
    let set =
        FeatureSet::new(space).with("long", contains("1011")).and_then(|s| s.with("short", contains("10"))).unwrap();
    // A string with the long pattern has the short one.
    for wanted in [[1.0, 0.0], [0.8, 0.4], [0.5, 0.0], [1.0, 0.5]] {
        for moments in [Moments::Base, Moments::Guided] {
            let targets = Targets::wanted(&wanted).unwrap();
            let error = fit_chain(&set, &targets, &options(|o| o.moments = moments)).err();
            let error = error.unwrap_or_else(|| panic!("{wanted:?} {moments:?} was fitted")).to_string();
            assert!(!error.contains('\n'), "{error}");
            println!("{wanted:?} {moments:?}: {error}");
        }
    }
    // On the very edge (every string with the short pattern has the long one) there is an answer, with a warning.
    let edge = fit_chain(&set, &Targets::wanted(&[0.5, 0.5]).unwrap(), &FitOptions::default()).unwrap();
    assert!(edge.warnings.iter().any(|warning| warning.contains("edge")), "{:?}", edge.warnings);
    let length = FeatureSet::new(space).with("length", Feature::Length).unwrap();
    for moment in [0.01, 1.0] {
        let error = fit_chain(&length, &Targets::wanted(&[moment]).unwrap(), &FitOptions::default()).err().unwrap();
        assert!(error.to_string().contains("'length'"), "{error}");
    }
}

#[test]
fn bad_targets_are_errors() {
    for moment in [f64::NAN, -0.1, 1.1, f64::INFINITY] {
        let error = Targets::wanted(&[0.5, moment]).unwrap_err();
        assert!(error.to_string().contains("wanted moment 1"), "{error}");
    }
    assert!(Targets::wanted(&[]).is_err());
    assert!(matches!(Targets::from_data(&[], 2), Err(Error::NoAnswer { .. })));
    assert!(Targets::from_data(&[0.0; 3], 2).is_err() && Targets::from_data(&[0.0], 0).is_err());
    assert!(Targets::from_data(&[0.0, f32::NAN], 2).unwrap_err().to_string().contains("feature 1 of data row 0"));
    let features = features(space_of(&chain()));
    assert!(fit_chain(&features, &Targets::wanted(&[0.5]).unwrap(), &FitOptions::default()).is_err());
}

#[test]
fn bad_options_are_errors() {
    let features = features(space_of(&chain()));
    let wanted = Targets::wanted(&[0.6, 0.4, 0.2]).unwrap();
    let sgd = |change: fn(&mut SgdOptions)| {
        let mut sgd = SgdOptions::default();
        change(&mut sgd);
        options(|o| o.solver = Solver::Sgd(sgd))
    };
    let bad = [
        options(|o| o.samples = 0),
        options(|o| o.base_samples = 0),
        options(|o| o.rounds = 0),
        options(|o| o.batch = 0),
        options(|o| (o.samples, o.moments) = (usize::MAX / 16, Moments::Base)),
        sgd(|o| o.rate = f64::NAN),
        sgd(|o| o.decay = -1.0),
        sgd(|o| o.epochs = 0),
    ];
    for options in bad {
        let error = fit_chain(&features, &wanted, &options).err().unwrap_or_else(|| panic!("{options:?} was accepted"));
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn few_effective_samples_warn() {
    let features = features(space_of(&chain()));
    let wanted = Targets::wanted(&[0.95, 0.5, 0.2]).unwrap();
    let few = options(|o| (o.samples, o.moments) = (200, Moments::Base));
    let fit = fit_chain(&features, &wanted, &few).unwrap();
    assert!(fit.ess < 100.0 && fit.warnings.iter().any(|w| w.contains("effective sample size")), "{:?}", fit.warnings);
}
