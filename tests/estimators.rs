//! The estimators against enumeration of a small discrete space, their intervals' coverage, and the hazards.

use ebm_dpg::Error;
use ebm_dpg::backend::Cpu;
use ebm_dpg::gradient::Divergence;
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::weights::*;
use rayon::prelude::*;

const NONE: f64 = f64::NEG_INFINITY;

/// A space of a few hundred outcomes with proposal q, potential P, policy π, and two features.
struct Outcomes {
    q: Vec<f64>,
    p: Vec<f64>,
    z: f64,
    pi: Vec<f64>,
    phi: Vec<[f32; 2]>,
    /// Cumulated q, and where each of [`CELLS`] equal cells of (0, 1) begins in it.
    cumulated: Vec<f64>,
    starts: Vec<usize>,
}

const CELLS: usize = 1024;

impl Outcomes {
    /// q, P/Z and π differ by log-normal factors; a tenth of the outcomes has P = 0.
    fn new(size: usize, spread: f64, z: f64) -> Self {
        let draw = Draw::new(7, Purpose::User);
        let normal = |row: usize, lane: u32| {
            (0..12).map(|k| f64::from(draw.uniform(row as u64, lane * 12 + k))).sum::<f64>() - 6.0
        };
        let normalised = |values: Vec<f64>| {
            let total: f64 = values.iter().sum();
            values.iter().map(|value| value / total).collect::<Vec<_>>()
        };
        let q = normalised((0..size).map(|k| normal(k, 0).exp()).collect());
        let factor = |k: usize| if k % 10 == 3 { 0.0 } else { (spread * normal(k, 1)).exp() };
        let p = normalised((0..size).map(|k| q[k] * factor(k)).collect());
        let pi = normalised((0..size).map(|k| q[k] * (spread * 0.7 * (normal(k, 1) + normal(k, 2))).exp()).collect());
        let phi = (0..size).map(|k| [f32::from(u8::from(k % 3 == 0)), draw.uniform(k as u64, 99)]).collect();
        let cumulated: Vec<f64> = q.iter().scan(0.0, |sum, q| Some((*sum += q, *sum).1)).collect();
        let start = |cell| cumulated.partition_point(|&sum| sum < cell as f64 / CELLS as f64);
        let starts = (0..CELLS).map(start).collect();
        Outcomes { q, p: p.iter().map(|p| p * z).collect(), z, pi, phi, cumulated, starts }
    }

    fn sum(&self, term: impl Fn(usize) -> f64) -> f64 {
        (0..self.q.len()).map(term).sum()
    }

    fn p(&self, k: usize) -> f64 {
        self.p[k] / self.z
    }

    fn kl(&self, other: &[f64]) -> f64 {
        self.sum(|k| if self.p[k] == 0.0 { 0.0 } else { self.p(k) * (self.p(k) / other[k]).ln() })
    }

    fn tv(&self, other: &[f64]) -> f64 {
        0.5 * self.sum(|k| (self.p(k) - other[k]).abs())
    }

    /// D_f by enumeration, with f(1) = f′(1) = 0.
    fn divergence(&self, f: impl Fn(f64) -> f64, beyond: f64) -> f64 {
        let term = |k: usize| match self.p(k) {
            0.0 => self.pi[k] * beyond,
            p => p * f(self.pi[k] / p),
        };
        self.sum(term)
    }

    fn jensen_shannon(&self) -> f64 {
        let f = |t: f64| 0.5 * (t * t.ln() - (1.0 + t) * (0.5 * (1.0 + t)).ln());
        self.divergence(f, 0.5 * std::f64::consts::LN_2)
    }

    /// α = ½: 4·(1 − Σ √(pπ)) up to the linear terms of f.
    fn half(&self) -> f64 {
        self.divergence(|t| 2.0 * (t.sqrt() - 1.0).powi(2), 2.0)
    }

    fn moment(&self, feature: usize) -> f64 {
        self.sum(|k| self.p(k) * f64::from(self.phi[k][feature]))
    }

    /// The true values, in the order of [`estimates`].
    fn truths(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("log Z", self.z.ln()),
            ("KL(p‖π)", self.kl(&self.pi)),
            ("KL(p‖q)", self.kl(&self.q)),
            ("TV(p, π)", self.tv(&self.pi)),
            ("TV(p, q)", self.tv(&self.q)),
            ("moment of a 0/1 feature", self.moment(0)),
            ("moment of a fraction", self.moment(1)),
            ("KL difference", self.kl(&self.q) - self.kl(&self.pi)),
            ("TV difference", self.tv(&self.q) - self.tv(&self.pi)),
            ("JS(p, π)", self.jensen_shannon()),
            ("α-divergence, α = ½", self.half()),
        ]
    }

    fn rows(&self, outcomes: &[usize]) -> Rows {
        let column = |values: &[f64]| {
            let logs: Vec<f64> = values.iter().map(|value| value.ln()).collect();
            outcomes.iter().map(|&k| logs[k]).collect()
        };
        Rows {
            log_p: column(&self.p),
            log_q: column(&self.q),
            log_pi: column(&self.pi),
            phi: outcomes.iter().flat_map(|&k| self.phi[k]).collect(),
        }
    }

    /// `count` draws from q by inverse CDF.
    fn draw(&self, seed: u64, count: usize) -> Vec<usize> {
        let draw = Draw::new(seed, Purpose::User);
        let one = |word: u32| {
            let uniform = f64::from(word) / 4_294_967_296.0;
            let start = self.starts[(uniform * CELLS as f64) as usize];
            (start..self.q.len()).find(|&k| uniform < self.cumulated[k]).unwrap_or(self.q.len() - 1)
        };
        (0..count.div_ceil(4)).flat_map(|row| draw.words(row as u64, 0, 0).map(one)).take(count).collect()
    }
}

struct Rows {
    log_p: Vec<f64>,
    log_q: Vec<f64>,
    log_pi: Vec<f64>,
    phi: Vec<f32>,
}

fn estimates(rows: &Rows) -> (Vec<Estimate>, f64) {
    let weights = ImportanceWeights::new(&rows.log_p, &rows.log_q).unwrap();
    let moments = weights.moments(&rows.phi, 2).unwrap();
    let all = vec![
        weights.log_z(),
        weights.kl_to(&rows.log_pi).unwrap(),
        weights.kl_to_proposal(),
        weights.tv_to(&rows.log_pi).unwrap(),
        weights.tv_to_proposal(),
        moments[0],
        moments[1],
        weights.kl_difference(&rows.log_pi).unwrap(),
        weights.tv_difference(&rows.log_pi).unwrap(),
        weights.divergence_to(Divergence::JensenShannon, &rows.log_pi).unwrap(),
        weights.divergence_to(Divergence::Alpha(0.5), &rows.log_pi).unwrap(),
    ];
    (all, weights.ess())
}

/// With every outcome present exactly q·n times, each estimate is the enumerated truth.
#[test]
fn exact_when_the_sample_is_the_proposal() {
    let mut outcomes = Outcomes::new(200, 1.0, 1e-8);
    let counts: Vec<usize> = outcomes.q.iter().map(|q| (q * 20_000.0).ceil() as usize).collect();
    let total: usize = counts.iter().sum();
    outcomes.q = counts.iter().map(|&count| count as f64 / total as f64).collect();
    let sample: Vec<usize> = counts.iter().enumerate().flat_map(|(k, &count)| vec![k; count]).collect();
    let (estimates, _) = estimates(&outcomes.rows(&sample));
    for (estimate, (name, truth)) in estimates.iter().zip(outcomes.truths()) {
        let difference = (estimate.value - truth).abs();
        assert!(difference <= 1e-9 * (1.0 + truth.abs()), "{name}: {} instead of {truth}", estimate.value);
    }
}

/// 95 % intervals over 2500 repetitions of 10,000 rows. The measured coverage has an error of .0044, so that a correct
/// standard error leaves .93–.97 with odds below 1e-5; one that is 15 % off has a coverage of .91 or .976.
#[test]
fn intervals_cover_95_percent() {
    let (repetitions, size) = (2500, 10_000);
    let outcomes = Outcomes::new(300, 0.7, 1e-40);
    let truths = outcomes.truths();
    let judged: Vec<Vec<bool>> = (0..repetitions)
        .into_par_iter()
        .map(|seed| {
            let (estimates, ess) = estimates(&outcomes.rows(&outcomes.draw(1000 + seed, size)));
            assert!(ess > size as f64 / 10.0, "effective sample size {ess}");
            let covers = |(estimate, (name, truth)): (&Estimate, &(&str, f64))| {
                let positive = ["KL(", "TV(", "JS(", "α"].iter().any(|kind| name.starts_with(kind));
                assert!(!positive || *truth > 5.0 * estimate.standard_error, "{name} is near its boundary");
                (estimate.value - truth).abs() <= 1.96 * estimate.standard_error
            };
            estimates.iter().zip(&truths).map(covers).collect()
        })
        .collect();
    for (at, (name, truth)) in truths.iter().enumerate() {
        let coverage = judged.iter().filter(|covered| covered[at]).count() as f64 / repetitions as f64;
        println!("{name} = {truth:.4}: coverage {coverage:.4}");
        assert!((0.93..=0.97).contains(&coverage), "{name}: coverage {coverage}");
    }
}

/// The divergences that are infinite where π leaves the support of p, and χ², whose tails leave no room for a coverage: the
/// estimate from a large sample against enumeration, and the hazards.
#[test]
fn divergences_of_both_directions() {
    let mut outcomes = Outcomes::new(200, 0.4, 1e3);
    let log_pi_everywhere = outcomes.pi.clone();
    for k in (0..200).filter(|k| k % 10 == 3) {
        outcomes.pi[k] = 0.0;
    }
    let total: f64 = outcomes.pi.iter().sum();
    outcomes.pi.iter_mut().for_each(|pi| *pi /= total);
    let rows = outcomes.rows(&outcomes.draw(77, 200_000));
    let weights = ImportanceWeights::new(&rows.log_p, &rows.log_q).unwrap();
    let truths: [(Divergence, f64); 6] = [
        (Divergence::ReverseKl, outcomes.divergence(|t| t * t.ln() - t + 1.0, 0.0)),
        (Divergence::ForwardChiSquare, outcomes.divergence(|t| (1.0 - t).powi(2) / t, 1.0)),
        (Divergence::ReverseChiSquare, outcomes.divergence(|t| (1.0 - t).powi(2), 0.0)),
        (Divergence::Alpha(2.0), outcomes.divergence(|t| (1.0 - t).powi(2) / 2.0, 0.0)),
        (Divergence::Alpha(-1.0), outcomes.divergence(|t| (1.0 - t).powi(2) / t / 2.0, 0.5)),
        (Divergence::Alpha(0.0), outcomes.kl(&outcomes.pi)),
    ];
    for (divergence, truth) in truths {
        let found = weights.divergence_to(divergence, &rows.log_pi).unwrap();
        let (off, error) = ((found.value - truth).abs(), found.standard_error);
        assert!(off < 4.0 * error && error < 0.05 * truth, "{divergence:?}: {found:?} instead of {truth}");
    }
    // π with mass where P = 0.
    let beyond: Vec<f64> = outcomes.draw(77, 200_000).iter().map(|&k| log_pi_everywhere[k].ln()).collect();
    for divergence in [Divergence::ReverseKl, Divergence::ReverseChiSquare, Divergence::Alpha(2.0)] {
        assert_eq!(weights.divergence_to(divergence, &beyond).unwrap().value, f64::INFINITY);
    }
    let within = weights.clone().with_outside(Estimate::exact(0.0));
    assert!(within.divergence_to(Divergence::ReverseKl, &rows.log_pi).unwrap().value.is_finite());
    let part = weights.clone().with_outside(Estimate { value: 0.1, standard_error: 0.01 });
    let (more, less) = (
        part.divergence_to(Divergence::JensenShannon, &rows.log_pi).unwrap(),
        within.divergence_to(Divergence::JensenShannon, &rows.log_pi).unwrap(),
    );
    assert!((more.value - less.value - 0.05 * 2f64.ln()).abs() < 1e-12 && more.standard_error > less.standard_error);
    assert_eq!(part.divergence_to(Divergence::ReverseKl, &rows.log_pi).unwrap().value, f64::INFINITY);
    assert!(weights.divergence_to(Divergence::Alpha(1.0), &rows.log_pi).is_err());
    assert!(weights.divergence_to(Divergence::JensenShannon, &rows.log_pi[1..]).is_err());
}

/// log Ẑ over several batches, cross-entropies and frequencies: the intervals of the sums of two sources.
#[test]
fn intervals_of_cross_entropy_and_frequency_cover() {
    let (repetitions, size) = (2500, 2000);
    let outcomes = Outcomes::new(300, 0.5, 3.0);
    let log_z = outcomes.z.ln();
    let frequency = outcomes.sum(|k| outcomes.q[k] * f64::from(outcomes.phi[k][0]));
    // Data from q restricted to P > 0, so that the cross-entropy is finite.
    let mass = outcomes.sum(|k| if outcomes.p[k] > 0.0 { outcomes.q[k] } else { 0.0 });
    let term = |k: usize| if outcomes.p[k] > 0.0 { outcomes.q[k] / mass * outcomes.p[k].ln() } else { 0.0 };
    let truth = log_z - outcomes.sum(term);
    let judge = |seed: u64| {
        let drawn = outcomes.draw(9000 + seed, size);
        let rows = outcomes.rows(&drawn);
        let log_w: Vec<f64> = rows.log_p.iter().zip(&rows.log_q).map(|(p, q)| p - q).collect();
        let mut running = LogMean::new();
        log_w.chunks(300).for_each(|batch| running.push(batch).unwrap());
        let data = outcomes.draw(90_000 + seed, size);
        let log_data: Vec<f64> = data.iter().map(|&k| outcomes.p[k].ln()).filter(|l| l.is_finite()).collect();
        let hits = drawn.iter().filter(|&&k| outcomes.phi[k][0] == 1.0).count();
        let covers = |estimate: Estimate, truth: f64| (estimate.value - truth).abs() <= 1.96 * estimate.standard_error;
        [
            covers(running.estimate(), log_z),
            covers(cross_entropy(&log_data, running.estimate()).unwrap(), truth),
            covers(Estimate::frequency(hits, size).unwrap(), frequency),
        ]
    };
    let judged: Vec<[bool; 3]> = (0..repetitions).into_par_iter().map(judge).collect();
    for (at, name) in ["log Z over batches", "cross-entropy", "frequency"].iter().enumerate() {
        let coverage = judged.iter().filter(|covered| covered[at]).count() as f64 / repetitions as f64;
        println!("{name}: coverage {coverage:.4}");
        assert!((0.93..=0.97).contains(&coverage), "{name}: coverage {coverage}");
    }
}

/// The same bits on one thread and on several.
#[test]
fn reductions_do_not_depend_on_the_number_of_threads() {
    let outcomes = Outcomes::new(300, 1.0, 1.0);
    let rows = outcomes.rows(&outcomes.draw(5, 3 * CHUNK + 77));
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let bits = |estimate: Estimate| [estimate.value.to_bits(), estimate.standard_error.to_bits()];
        pool.install(|| estimates(&rows).0.into_iter().map(bits).collect::<Vec<_>>())
    };
    assert_eq!(on(1), on(2));
    assert_eq!(on(1), on(3));
}

#[test]
fn zero_weights_are_fine() {
    let weights = ImportanceWeights::new(&[NONE, 0.0, NONE, 0.0], &[-1.0; 4]).unwrap();
    assert!((weights.log_z().value - (1.0 - 2f64.ln())).abs() < 1e-12);
    assert!((weights.ess() - 2.0).abs() < 1e-12);
    assert!((weights.largest_share() - 0.5).abs() < 1e-12);
    // π = 0 on a row of weight 0 is no difference at all.
    let kl = weights.kl_to(&[NONE, -0.5, NONE, -0.5]).unwrap();
    assert!(kl.value.is_finite() && kl.standard_error.is_finite());
    assert!(weights.kl_difference(&[NONE, -0.5, -2.0, -0.5]).unwrap().value.is_finite());
}

#[test]
fn policy_without_support_is_infinitely_far() {
    let weights = ImportanceWeights::new(&[0.0, 0.0, NONE], &[-1.0; 3]).unwrap();
    let log_pi = [-1.0, NONE, -1.0];
    let kl = weights.kl_to(&log_pi).unwrap();
    assert_eq!((kl.value, kl.standard_error), (f64::INFINITY, f64::INFINITY));
    let delta = weights.kl_difference(&log_pi).unwrap();
    assert_eq!((delta.value, delta.standard_error), (NONE, f64::INFINITY));
    assert!(!weights.is_superior(&log_pi).unwrap());
    assert!(weights.tv_to(&log_pi).unwrap().value.is_finite());
}

/// q draws hardly any of what π does, but p has P > 0 there: the rows show nothing of π, and it must not pass for half way.
#[test]
fn a_policy_where_the_proposal_hardly_draws_is_far_and_said_to_be() {
    let rows = 2_000;
    let (log_p, log_q, log_pi) = (vec![-1.0; rows], vec![-2.0; rows], vec![-40.0; rows]);
    let weights = ImportanceWeights::new(&log_p, &log_q).unwrap();
    let (kl, tv) = (weights.kl_to(&log_pi).unwrap(), weights.tv_to(&log_pi).unwrap());
    assert!((tv.value - 1.0).abs() < 1e-9 && (kl.value - 38.0).abs() < 1e-9, "{kl:?} {tv:?}");
    assert!(weights.reach(&log_pi).unwrap().value < 1e-9);
    assert!(weights.warning_of(&log_pi).unwrap().is_some_and(|warning| warning.contains("hardly draws")));
    // One row of π's, which q was lucky to draw: the sum over q's rows is 1, and no TV is above 1.
    let mut lucky = log_pi.clone();
    lucky[0] = -2.0 + (rows as f64).ln();
    let tv = weights.tv_to(&lucky).unwrap();
    assert!((tv.value - (1.0 - 1.0 / rows as f64)).abs() < 1e-9, "{tv:?}");
    let mut many = log_pi;
    many[0] = -2.0 + (6.0 * rows as f64).ln();
    assert!(weights.tv_to(&many).unwrap().value <= 1.0 && weights.kl_to(&many).unwrap().value < 38.0);
    // What q draws all of is shown whole.
    assert!(weights.warning_of(&log_q).unwrap().is_none());
    assert_eq!(weights.reach(&log_q).unwrap(), Estimate::exact(1.0));
}

#[test]
fn equal_distributions_are_at_distance_zero() {
    let log_q: Vec<f64> = (0..500).map(|row| -1.0 - 0.01 * f64::from(row)).collect();
    let log_p: Vec<f64> = log_q.iter().map(|log_q| log_q + 800.0).collect();
    let weights = ImportanceWeights::new(&log_p, &log_q).unwrap();
    assert!((weights.log_z().value - 800.0).abs() < 1e-9);
    assert!(weights.kl_to(&log_q).unwrap().value < 1e-12);
    assert!(weights.tv_to_proposal().value < 1e-12);
    assert!((weights.ess() - 500.0).abs() < 1e-6);
    assert_eq!(weights.warning(), None);
}

#[test]
fn nan_and_infinite_weights_name_their_row() {
    for (log_p, log_q) in [([0.0, f64::NAN], [0.0; 2]), ([0.0; 2], [0.0, NONE]), ([0.0, NONE], [0.0, NONE])] {
        let error = ImportanceWeights::new(&log_p, &log_q).unwrap_err();
        assert!(matches!(error, Error::NotANumber { .. }) && error.to_string().contains("row 1"), "{error}");
        let (mut log_w, mut w) = ([0.0; 2], [0.0f32; 2]);
        let error = weights(&Cpu, &log_p, &log_q, 0.0, &mut log_w, &mut w).unwrap_err();
        assert!(error.to_string().contains("row 1"), "{error}");
        assert!(w[1].is_nan() && !w[0].is_nan());
    }
    let weights = ImportanceWeights::new(&[0.0; 2], &[0.0; 2]).unwrap();
    assert!(weights.kl_to(&[0.0, f64::NAN]).unwrap_err().to_string().contains("row 1"));
    let error = weights.moments(&[0.0, 0.0, f32::NAN, 0.0], 2).unwrap_err();
    assert!(error.to_string().contains("row 1, feature 0"), "{error}");
}

#[test]
fn weights_beyond_f32_are_errors() {
    let (mut log_w, mut w) = ([0.0; 1], [0.0f32; 1]);
    assert!(weights(&Cpu, &[0.0], &[-100.0], 0.0, &mut log_w, &mut w).is_err());
    weights(&Cpu, &[0.0], &[-100.0], 99.0, &mut log_w, &mut w).unwrap();
}

#[test]
fn empty_and_mismatched_inputs_are_errors() {
    assert!(matches!(ImportanceWeights::new(&[], &[]), Err(Error::NoAnswer { .. })));
    assert!(matches!(ImportanceWeights::new(&[NONE; 3], &[0.0; 3]), Err(Error::NoAnswer { .. })));
    assert!(ImportanceWeights::new(&[0.0; 3], &[0.0; 2]).is_err());
    assert!(Estimate::mean(&[]).is_err() && Estimate::frequency(0, 0).is_err() && Estimate::frequency(2, 1).is_err());
    assert!(cross_entropy(&[], Estimate::exact(0.0)).is_err());
    assert!(cross_entropy_difference(&[0.0], &[0.0, 0.0]).is_err());
    assert!(cross_entropy_difference(&[NONE], &[NONE]).is_err());
    let (mut log_w, mut w) = ([9.0; 2], [9.0f32; 2]);
    assert!(weights(&Cpu, &[0.0; 2], &[0.0; 2], f64::NAN, &mut log_w, &mut w).is_err());
    assert_eq!((log_w, w), ([9.0; 2], [9.0; 2]));
    weights(&Cpu, &[], &[], 0.0, &mut [], &mut []).unwrap();
}

#[test]
fn a_single_sample_has_no_error_to_speak_of() {
    let weights = ImportanceWeights::new(&[-3.0], &[-4.0]).unwrap();
    assert_eq!(weights.log_z(), Estimate { value: 1.0, standard_error: f64::INFINITY });
    assert_eq!(weights.moments(&[1.0], 1).unwrap()[0].value, 1.0);
    assert!(weights.kl_to(&[-4.0]).unwrap().standard_error.is_infinite());
    assert!(weights.warning().unwrap().contains("effective sample size"));
    assert_eq!(weights.pareto_k(), None);
}

#[test]
fn weights_of_the_step() {
    let (mut log_w, mut w) = ([0.0; 3], [0.0f32; 3]);
    weights(&Cpu, &[-1.0, NONE, -700.0], &[-2.0, -2.0, -2.0], 1.0, &mut log_w, &mut w).unwrap();
    assert_eq!(log_w, [1.0, NONE, -698.0]);
    assert_eq!(w, [1.0, 0.0, 0.0]);
}

#[test]
fn heavy_tails_warn() {
    // w = u^(-1.5): infinite mean.
    let draw = Draw::new(3, Purpose::User);
    let log_w: Vec<f64> = (0..5000).map(|row| -1.5 * (f64::from(draw.uniform(row, 0)) + 1e-8).ln()).collect();
    let log_q = vec![0.0; log_w.len()];
    let weights = ImportanceWeights::new(&log_w, &log_q).unwrap();
    let warning = weights.warning().unwrap();
    assert!(weights.pareto_k().unwrap() > 0.9 && warning.contains("Pareto") && !warning.contains('\n'));
}

#[test]
fn paired_difference_finds_the_better_policy() {
    let outcomes = Outcomes::new(300, 0.7, 1.0);
    let drawn = outcomes.draw(11, 10_000);
    let rows = outcomes.rows(&drawn);
    let weights = ImportanceWeights::new(&rows.log_p, &rows.log_q).unwrap();
    let mixed = |share: f64| -> Vec<f64> {
        drawn.iter().map(|&k| (share * outcomes.p(k) + (1.0 - share) * outcomes.q[k]).ln()).collect()
    };
    assert!(weights.is_superior(&mixed(0.3)).unwrap());
    assert!(weights.tv_difference(&mixed(0.3)).unwrap().exceeds_zero(2.0));
    assert!(!weights.is_superior(&rows.log_q).unwrap());
}

#[test]
fn log_mean_does_not_depend_on_the_batches() {
    let log_w: Vec<f64> =
        (0..1000).map(|row| if row % 7 == 0 { NONE } else { f64::from(row * 37 % 101) * 3.0 - 900.0 }).collect();
    let mut whole = LogMean::new();
    whole.push(&log_w).unwrap();
    let mut parts = LogMean::default();
    log_w.chunks(13).for_each(|batch| parts.push(batch).unwrap());
    assert_eq!(whole, parts);
    assert_eq!(whole.count(), 1000);
    assert!((whole.value() - log_mean_exp(&log_w)).abs() < 1e-12);
    let one_sample = ImportanceWeights::new(&log_w, &[0.0; 1000]).unwrap();
    assert!((whole.ess() - one_sample.ess()).abs() < 1e-9 * one_sample.ess());
    let (a, b) = (whole.estimate().standard_error, one_sample.log_z().standard_error);
    assert!((a - b).abs() < 1e-9 * b, "{a} {b}");
    assert_eq!(LogMean::from_bits(whole.to_bits()), whole);
}

#[test]
fn log_mean_hazards() {
    let mut mean = LogMean::new();
    assert_eq!((mean.value(), mean.count()), (NONE, 0));
    mean.push(&[]).unwrap();
    mean.push(&[NONE; 2]).unwrap();
    assert_eq!((mean.value(), mean.count()), (NONE, 2));
    assert!(mean.push(&[0.0, f64::NAN]).unwrap_err().to_string().contains("row 1"));
    assert!(mean.push(&[f64::INFINITY]).is_err());
    assert_eq!(mean.count(), 2);
    mean.push(&[700.0, -700.0]).unwrap();
    assert!((mean.value() - (700.0 - 4f64.ln())).abs() < 1e-12);
}

// Bounds

/// Exact samples of p: draws of q accepted with probability w over the largest.
fn accepted(outcomes: &Outcomes, seed: u64, count: usize) -> Vec<usize> {
    let weight = |k: usize| outcomes.p[k] / outcomes.q[k];
    let largest = (0..outcomes.q.len()).map(weight).fold(0.0, f64::max);
    let coin = Draw::new(seed + 1, Purpose::User);
    let drawn = outcomes.draw(seed, 60 * count);
    let accepts = |(row, k): &(usize, usize)| f64::from(coin.uniform(*row as u64, 0)) * largest < weight(*k);
    let accepted: Vec<usize> = drawn.into_iter().enumerate().filter(accepts).map(|(_, k)| k).take(count).collect();
    assert_eq!(accepted.len(), count);
    accepted
}

#[test]
fn bounds_hold_log_z_between_them_and_close_in() {
    let outcomes = Outcomes::new(300, 0.8, 1e-300);
    let rows = 20_000;
    let (of_q, of_p) = (outcomes.rows(&outcomes.draw(5, rows)), outcomes.rows(&accepted(&outcomes, 6, rows)));
    let log_w = |rows: &Rows| rows.log_p.iter().zip(&rows.log_q).map(|(p, q)| p - q).collect::<Vec<_>>();
    let (of_q, of_p, log_z) = (log_w(&of_q), log_w(&of_p), outcomes.z.ln());
    // What q draws and p cannot is never among p's samples.
    let rest = -outcomes.sum(|k| if outcomes.p[k] > 0.0 { outcomes.q[k] } else { 0.0 }).ln();
    let mut gap = f64::INFINITY;
    for group in [1, 10, 100, 1000] {
        let LogZBounds { lower, upper } = log_z_bounds(&of_q, &of_p, group).unwrap();
        println!("groups of {group}: {:.4} ≤ 0 ≤ {:.4}", lower.value - log_z, upper.value - log_z);
        // A draw of weight 0 is a bound too, if none to be glad of.
        assert!(lower.value == NONE || lower.value < log_z + 4.0 * lower.standard_error);
        assert!(upper.value > log_z - 4.0 * upper.standard_error && upper.value.is_finite());
        let now = upper.value - lower.value - rest;
        let error = lower.standard_error.hypot(upper.standard_error);
        match group {
            1000 => assert!(now.abs() < 4.0 * error && error < 0.02 && rest > 0.05, "{now} ± {error} beyond {rest}"),
            _ => assert!(gap == f64::INFINITY || now < 0.7 * gap, "groups of {group}: {now} after {gap}"),
        }
        gap = now;
    }
    assert_eq!(log_z_bounds(&of_q, &of_p, 1).unwrap().lower.value, NONE);
}

#[test]
fn bounds_refuse_what_is_no_sample() {
    let refused = |q: &[f64], p: &[f64], group: usize, words: &str| {
        let error = log_z_bounds(q, p, group).unwrap_err().to_string();
        assert!(error.contains(words) && !error.contains('\n'), "{error}");
    };
    refused(&[0.0], &[0.0], 0, "group");
    refused(&[0.0], &[0.0, 0.0], 2, "group");
    refused(&[], &[], 1, "group");
    refused(&[f64::NAN], &[0.0], 1, "row 0");
    refused(&[0.0], &[0.0, f64::INFINITY], 1, "row 1");
    refused(&[0.0], &[NONE], 1, "P = 0");
}
