//! Exact inference against enumeration of whole spaces, and the synthetic processes against their published figures.

use ebm_dpg::Error;
use ebm_dpg::backend::Cpu;
use ebm_dpg::data::Process;
use ebm_dpg::exact::{Exact, LookAhead};
use ebm_dpg::features::{Automaton, Feature, FeatureSet};
use ebm_dpg::models::{Markov, Sampler, Scorer};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};

mod strings;

const LIMIT: usize = 1 << 16;

/// A chain with random rows; every sequence of the space is possible, cut ones included.
fn random_chain(space: Space, order: u32, positions: u32, seed: u64) -> Markov {
    let vocab = space.vocab as usize;
    let rows = positions as usize * vocab.pow(order);
    let draw = Draw::new(seed, Purpose::User);
    let row = |row: usize| {
        let weight = |token: u32| 0.05 + f64::from(draw.uniform(row as u64, token));
        let total: f64 = (0..space.vocab).filter(|&token| space.is_output(token)).map(weight).sum();
        let log_prob = move |t| if space.is_output(t) { (weight(t) / total).ln() as f32 } else { f32::NEG_INFINITY };
        (0..space.vocab).map(log_prob).collect::<Vec<_>>()
    };
    Markov::new(space, order, positions, (0..rows).flat_map(row).collect()).unwrap()
}

fn some_features(space: Space) -> FeatureSet {
    FeatureSet::new(space)
        .with("motif", Feature::Contains(vec![1, 0, 1]))
        .and_then(|set| set.with("begin", Feature::StartsWith(vec![1])))
        .and_then(|set| set.with("end", Feature::EndsWith(vec![1, 1])))
        .and_then(|set| set.with("three", Feature::MultipleOf { modulus: 3, zero: 0, one: 1 }))
        .and_then(|set| set.with("length", Feature::Length))
        .and_then(|set| set.with("length^2", Feature::LengthSquared))
        .unwrap()
}

/// The roles that the enumeration tests run over: all kinds of them.
fn some_roles() -> Vec<Vec<Role>> {
    use Role::{Ignore, Require, Tilt};
    vec![
        vec![Tilt(0.0); 6],
        vec![Tilt(2.5), Tilt(-1.0), Tilt(0.3), Tilt(4.0), Tilt(-3.0), Tilt(1.5)],
        vec![Require(1.0), Tilt(0.7), Ignore, Tilt(-0.4), Tilt(2.0), Ignore],
        vec![Tilt(1.0), Require(0.0), Require(1.0), Ignore, Ignore, Tilt(-5.0)],
    ]
}

/// p by enumeration: all sequences, their φ, log chain and normalised p.
struct Enumerated {
    sequences: Vec<Vec<Token>>,
    phi: Vec<Vec<f64>>,
    log_base: Vec<f64>,
    p: Vec<f64>,
    z: f64,
}

fn enumerate(chain: &Markov, features: &FeatureSet, roles: &[Role]) -> Enumerated {
    let sequences = strings::all(features.space());
    let batch = Batch::from_sequences(features.space(), &sequences).unwrap();
    let mut log_base = vec![0.0; batch.rows];
    chain.clone().score(&batch, &mut log_base).unwrap();
    let mut phi = vec![0.0; batch.rows * features.len()];
    features.compile(&Cpu).unwrap().evaluate(&Cpu, &batch, &mut phi).unwrap();
    let phi: Vec<Vec<f64>> =
        phi.chunks(features.len()).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect();
    let factor = |phi: &Vec<f64>| {
        roles.iter().zip(phi).fold(1.0, |factor, (role, &value)| match *role {
            Role::Tilt(lambda) => factor * (lambda * value).exp(),
            Role::Require(wanted) => {
                if value == f64::from(wanted) {
                    factor
                } else {
                    0.0
                }
            }
            _ => factor,
        })
    };
    let weights: Vec<f64> = log_base.iter().zip(&phi).map(|(log_base, phi)| log_base.exp() * factor(phi)).collect();
    let z: f64 = weights.iter().sum();
    Enumerated { sequences, phi, log_base, p: weights.iter().map(|w| w / z).collect(), z }
}

impl Enumerated {
    fn mean(&self, f: impl Fn(usize) -> f64) -> f64 {
        let positive = self.p.iter().enumerate().filter(|(_, p)| **p > 0.0);
        positive.map(|(row, p)| p * f(row)).sum()
    }
}

fn assert_close(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!((got - want).abs() <= tolerance, "{what}: got {got}, want {want}");
}

/// Chains of several orders with and without positions, times all roles.
fn cases() -> Vec<(Markov, FeatureSet, Vec<Role>, Exact)> {
    let space = Space::new(2, 7).unwrap();
    let features = some_features(space);
    let mut cases = Vec::new();
    for (order, positions) in [(0, 1), (1, 1), (2, 1), (1, 7), (0, 7)] {
        let chain = random_chain(space, order, positions, 7 + u64::from(order));
        for roles in some_roles() {
            let exact = Exact::new(&chain, &features, &Potential::new(&Cpu, &roles).unwrap(), LIMIT).unwrap();
            cases.push((chain.clone(), features.clone(), roles, exact));
        }
    }
    cases
}

#[test]
fn exact_quantities_equal_enumeration() {
    for (chain, features, roles, exact) in cases() {
        let truth = enumerate(&chain, &features, &roles);
        assert_close("log Z", exact.log_z(), truth.z.ln(), 1e-10);
        let entropy = truth.mean(|row| -truth.p[row].ln());
        assert_close("entropy", exact.entropy(), entropy, 1e-9);
        assert_close("E log r", exact.expected_log_base(), truth.mean(|row| truth.log_base[row]), 1e-9);
        assert_close("KL", exact.kl_from_base(), truth.mean(|row| truth.p[row].ln() - truth.log_base[row]), 1e-9);
        let mean: Vec<f64> = (0..6).map(|i| truth.mean(|row| truth.phi[row][i])).collect();
        let covariance = exact.covariance();
        for (i, moment) in exact.moments().into_iter().enumerate() {
            assert_close("moment", moment, mean[i], 1e-10);
            for j in 0..6 {
                let want = truth.mean(|row| (truth.phi[row][i] - mean[i]) * (truth.phi[row][j] - mean[j]));
                assert_close("covariance", covariance[i * 6 + j], want, 1e-10);
            }
        }
    }
}

#[test]
fn expected_log_prob_of_other_chains_equals_enumeration() {
    for (chain, features, roles, exact) in cases() {
        let truth = enumerate(&chain, &features, &roles);
        for (order, positions) in [(0, 1), (2, 1), (1, 7)] {
            let model = random_chain(features.space(), order, positions, 99);
            let got = exact.expected_log_prob(&model).unwrap();
            let log_model = enumerate(&model, &features, &roles).log_base;
            assert_close("E log model", got, truth.mean(|row| log_model[row]), 1e-9);
        }
        assert_close("of the base", exact.expected_log_prob(&chain).unwrap(), exact.expected_log_base(), 1e-10);
        let narrow = Markov::noise(features.space(), 3).unwrap();
        assert_eq!(exact.expected_log_prob(&narrow).unwrap(), f64::NEG_INFINITY);
        assert!(exact.expected_log_prob(&random_chain(Space::new(2, 6).unwrap(), 0, 1, 1)).is_err());
    }
}

#[test]
fn sequence_and_token_probabilities_equal_enumeration() {
    for (chain, features, roles, mut exact) in cases() {
        let truth = enumerate(&chain, &features, &roles);
        let batch = Batch::from_sequences(features.space(), &truth.sequences).unwrap();
        let mut scores = vec![0.0; batch.rows];
        exact.score(&batch, &mut scores).unwrap();
        for (row, sequence) in truth.sequences.iter().enumerate() {
            let log_p = exact.log_prob(sequence).unwrap();
            assert_close("p(x)", log_p.exp(), truth.p[row], 1e-10);
            assert_eq!(log_p, scores[row]);
        }
        let prefixed = |prefix: &[Token]| {
            let rows = truth.sequences.iter().zip(&truth.p).filter(|(sequence, _)| sequence.starts_with(prefix));
            rows.map(|(_, p)| p).sum::<f64>()
        };
        for prefix in [&[][..], &[1], &[0, 1], &[1, 0, 1, 1, 1, 1]].into_iter().filter(|prefix| prefixed(prefix) > 0.0)
        {
            let log_probs = exact.next_log_probs(prefix).unwrap();
            for token in [0, 1, 3] {
                let want = prefixed(&[prefix, &[token]].concat()) / prefixed(prefix);
                assert_close("p(token)", log_probs[token as usize].exp(), want, 1e-9);
            }
            assert_eq!((log_probs[2], log_probs[4]), (f64::NEG_INFINITY, f64::NEG_INFINITY), "BOS and PAD");
        }
    }
}

#[test]
fn guided_chain_is_the_target() {
    for (chain, features, roles, exact) in cases() {
        let guide = exact.look_ahead().guide();
        let mut total = 0.0;
        for sequence in strings::all(features.space()) {
            let (mut state, mut context, mut log_q) = (0, chain.start_context(), 0.0);
            for (position, &token) in sequence.iter().enumerate() {
                let logit =
                    |t: usize| f64::from(chain.row(position, context)[t] + guide.boost(position, state, t as Token));
                let sum: f64 = (0..features.space().vocab as usize).map(|t| logit(t).exp()).sum();
                log_q += logit(token as usize) - sum.ln();
                if log_q == f64::NEG_INFINITY {
                    break;
                }
                (state, context) = (guide.after(state, token), chain.next_context(context, token));
            }
            total += log_q.exp();
            let log_p = exact.log_prob(&sequence).unwrap();
            assert!(log_q == log_p || (log_q - log_p).abs() < 1e-5, "{roles:?} {sequence:?}: q {log_q}, p {log_p}");
        }
        assert_close("Σ q", total, 1.0, 1e-6);
    }
}

#[test]
fn samples_of_the_guided_chain_report_both_log_probs() {
    for (mut chain, features, roles, exact) in cases() {
        let mut batch = Batch::with_capacity(&Cpu, features.space(), 200).unwrap();
        let (mut log_q, mut log_model, mut scores) = (vec![0.0; 200], vec![0.0; 200], vec![0.0; 200]);
        let guide = exact.look_ahead().guide();
        chain.sample(Draw::new(5, Purpose::User), Some(&guide), &mut batch, &mut log_q, &mut log_model).unwrap();
        chain.score(&batch, &mut scores).unwrap();
        for (row, sequence) in batch.iter().enumerate() {
            assert_close(&format!("log q {roles:?}"), log_q[row], exact.log_prob(sequence).unwrap(), 1e-5);
            assert_close("log model", log_model[row], scores[row], 1e-6);
        }
    }
}

#[test]
fn exact_samples_have_the_frequencies_of_p() {
    let (chain, features, roles, exact) = cases().swap_remove(6);
    let truth = enumerate(&chain, &features, &roles);
    const N: usize = 100_000;
    let mut batch = Batch::with_capacity(&Cpu, features.space(), N).unwrap();
    let mut log_p = vec![0.0; N];
    exact.sample(Draw::new(3, Purpose::User), &mut batch, &mut log_p).unwrap();
    let mut counts = std::collections::HashMap::new();
    batch.iter().for_each(|sequence| *counts.entry(sequence.to_vec()).or_insert(0.0) += 1.0);
    let mut chi_square = 0.0;
    for (sequence, p) in truth.sequences.iter().zip(&truth.p) {
        let count = counts.get(sequence).copied().unwrap_or(0.0);
        assert!(*p > 0.0 || count == 0.0, "{sequence:?} is impossible");
        if *p > 0.0 {
            chi_square += (count - p * N as f64).powi(2) / (p * N as f64);
        }
    }
    let degrees = truth.p.iter().filter(|p| **p > 0.0).count() as f64 - 1.0;
    assert!((chi_square - degrees).abs() < 5.0 * (2.0 * degrees).sqrt(), "χ² {chi_square} of {degrees}");
    assert!(batch.iter().zip(&log_p).all(|(sequence, log_p)| exact.log_prob(sequence).unwrap() == *log_p));
}

#[test]
fn samples_do_not_depend_on_the_split() {
    let process = Process::motif(&[1, 0, 1, 1], 12).unwrap();
    let draw = Draw::new(9, Purpose::Data);
    let (whole, rest) = (process.sample(draw, 50).unwrap(), process.sample(draw.skip(20), 30).unwrap());
    assert!(whole.iter().skip(20).eq(rest.iter()));
}

#[test]
fn cut_sequences_take_the_terminal_value_of_their_last_state() {
    // No EOS at all: every sequence is cut at 3 tokens.
    let space = Space::new(2, 3).unwrap();
    let half = 0.5_f32.ln();
    let none = f32::NEG_INFINITY;
    let chain = Markov::new(space, 0, 1, vec![half, half, none, none, none]).unwrap();
    let features = FeatureSet::new(space).with("end", Feature::EndsWith(vec![1])).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Tilt(3.0_f64.ln())]).unwrap();
    let exact = Exact::new(&chain, &features, &potential, LIMIT).unwrap();
    assert_close("log Z", exact.log_z(), 2.0_f64.ln(), 1e-6);
    assert_close("moment", exact.moments()[0], 0.75, 1e-6);
}

#[test]
fn large_lambda_keeps_the_support() {
    let space = Space::new(2, 7).unwrap();
    let features = some_features(space);
    let mut roles = vec![Role::Ignore; 6];
    roles[0] = Role::Tilt(5000.0);
    let potential = Potential::new(&Cpu, &roles).unwrap();
    let exact = Exact::new(&random_chain(space, 1, 1, 3), &features, &potential, LIMIT).unwrap();
    let log_p = exact.log_prob(&[0, space.eos]).unwrap();
    assert!(log_p < -4000.0 && log_p.is_finite(), "{log_p}");
    // Rounding at log weights of size 5000 is 1e-12.
    assert_close("moment", exact.moments()[0], 1.0, 1e-10);
    assert!(exact.look_ahead().guide().log_h.iter().all(|h| h.is_finite()));
}

#[test]
fn infeasible_requirements_are_errors() {
    let space = Space::new(2, 4).unwrap();
    let features = FeatureSet::new(space).with("motif", Feature::Contains(vec![1, 1, 1])).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap();
    let got = Exact::new(&Markov::noise(space, 2).unwrap(), &features, &potential, LIMIT);
    assert!(matches!(got.err(), Some(Error::NoAnswer { .. })));
    assert!(Exact::new(&Markov::noise(space, 3).unwrap(), &features, &potential, LIMIT).is_ok());
}

#[test]
fn bad_look_ahead_inputs_are_errors() {
    let space = Space::new(2, 4).unwrap();
    let (chain, automaton) = (Markov::noise(space, 3).unwrap(), Automaton::new(space, &Feature::Length).unwrap());
    assert!(LookAhead::new(&chain, &automaton, &[0.0; 3]).is_err());
    assert!(LookAhead::new(&chain, &automaton, &[0.0, f64::NAN, 0.0, 0.0]).is_err());
    assert!(LookAhead::new(&chain, &automaton, &[0.0, f64::INFINITY, 0.0, 0.0]).is_err());
    let other = Markov::noise(Space::new(2, 5).unwrap(), 3).unwrap();
    assert!(LookAhead::new(&other, &automaton, &[0.0; 4]).is_err());
    let exact = Exact::new(&chain, &FeatureSet::new(space), &Potential::new(&Cpu, &[]).unwrap(), 1).unwrap();
    assert_close("log Z of the base", exact.log_z(), 0.0, 1e-6);
    assert!(exact.next_log_probs(&[0; 4]).is_err() && exact.next_log_probs(&[3]).is_err());
    assert!(exact.log_prob(&[0, 1]).is_err());
    let fuzzy = FeatureSet::new(space).with("fuzzy", Feature::EditDistance(vec![1])).unwrap();
    assert!(Exact::new(&chain, &fuzzy, &Potential::new(&Cpu, &[Role::Ignore]).unwrap(), LIMIT).is_err());
}

#[test]
fn look_ahead_towards_leaves_out_what_is_no_automaton() {
    let space = Space::new(2, 6).unwrap();
    let (chain, motif) = (random_chain(space, 1, 1, 2), Feature::Contains(vec![1, 0]));
    let features = FeatureSet::new(space).with("e", Feature::EditDistance(vec![1])).unwrap();
    let features = features.with("m", motif.clone()).unwrap().with("M", Feature::Length).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Tilt(2.0), Role::Require(1.0), Role::Ignore]).unwrap();
    let towards = LookAhead::towards(&chain, &features, &potential, LIMIT).unwrap();
    let alone =
        LookAhead::new(&chain, &Automaton::new(space, &motif).unwrap(), &[f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0]);
    assert_close("log Z", towards.log_z(), alone.unwrap().log_z(), 1e-12);
}

#[test]
fn fit_recovers_lambda_from_its_moments() {
    for (chain, features, roles, exact) in cases() {
        let blank: Vec<Role> = roles.iter().map(|r| if let Role::Tilt(_) = r { Role::Tilt(0.0) } else { *r }).collect();
        let start = Exact::new(&chain, &features, &Potential::new(&Cpu, &blank).unwrap(), LIMIT).unwrap();
        let fitted = start.fit_moments(&exact.moments()).unwrap();
        assert_close("KL is least at the truth", fitted.kl_from_base(), exact.kl_from_base(), 1e-8);
        for (role, truth) in fitted.roles().iter().zip(&roles) {
            match (role, truth) {
                (Role::Tilt(lambda), Role::Tilt(truth)) => assert_close("λ", *lambda, *truth, 1e-5),
                _ => assert_eq!(role, truth),
            }
        }
    }
}

#[test]
fn unreachable_moments_are_errors() {
    let space = Space::new(2, 8).unwrap();
    let features = FeatureSet::new(space).with("motif", Feature::Contains(vec![1, 0, 1])).unwrap();
    let features = features.with("supermotif", Feature::Contains(vec![1, 0, 1, 0])).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Tilt(0.0); 2]).unwrap();
    let exact = Exact::new(&Markov::noise(space, 7).unwrap(), &features, &potential, LIMIT).unwrap();
    for targets in [[0.2, 0.5], [1.5, 0.1], [-0.1, 0.0]] {
        assert!(matches!(exact.fit_moments(&targets).err(), Some(Error::NoAnswer { .. })), "{targets:?}");
    }
    assert!(exact.fit_moments(&[f64::NAN, 0.1]).is_err() && exact.fit_moments(&[0.1]).is_err());
    let fitted = exact.fit_moments(&[0.8, 0.6]).unwrap();
    assert_close("moment", fitted.moments()[1], 0.6, 1e-9);
}

fn bits(text: &str) -> Vec<Token> {
    text.bytes().map(|bit| Token::from(bit - b'0')).collect()
}

/// The published table: strings of 2³⁰ with the motif, and entropies per token over 31 tokens.
#[test]
fn published_counts_and_entropies() {
    let table = [
        ("10001011111000", 1_113_640, 0.44913, 0.48178),
        ("001001100111", 4_978_944, 0.49744, 0.52525),
        ("01011101101", 10_462_980, 0.52140, 0.54679),
    ];
    for (motif, count, m, mam) in table {
        let process = Process::motif(&bits(motif), 30).unwrap();
        assert_eq!(process.exact().automaton().count(30, 0), Some(count));
        assert_close("entropy of counts", process.entropy(), (count as f64).ln(), 1e-6);
        assert_close(motif, process.entropy_per_token(), m, 5e-6);
        let mixture = Process::mixture(&bits(motif), 30, 0.9).unwrap();
        assert_close(motif, mixture.entropy_per_token(), mam, 5e-6);
        assert_close("share", mixture.exact().moments()[0], 0.9, 1e-9);
    }
    let noise = Potential::new(&Cpu, &[]).unwrap();
    let space = Process::space(30).unwrap();
    let exact = Exact::new(&Markov::noise(space, 30).unwrap(), &FeatureSet::new(space), &noise, 1).unwrap();
    assert_close("noise", exact.entropy() / 31.0, 0.67079, 5e-6);
}

#[test]
fn multiples_are_counted_and_drawn() {
    for modulus in [3, 17] {
        let process = Process::multiple(modulus, 20).unwrap();
        let multiples = ((1_u32 << 20) - 1) / modulus;
        assert_eq!(process.exact().automaton().count(20, 0), Some(u128::from(multiples)));
        assert_close("entropy", process.entropy(), f64::from(multiples).ln(), 1e-6);
        let batch = process.sample(Draw::new(1, Purpose::Data), 500).unwrap();
        for row in 0..batch.rows {
            let value = batch.content(row).iter().fold(0, |value, bit| value * 2 + bit);
            assert!(value > 0 && value % modulus == 0 && batch.content(row).len() == 20, "{value}");
        }
    }
    // Of one bit only 0 and 1: no multiple of 3.
    assert!(matches!(Process::multiple(3, 1).err(), Some(Error::NoAnswer { .. })));
}

#[test]
fn splits_are_disjoint_streams_and_prefixes_of_larger_ones() {
    let motif = bits("10110");
    let process = Process::mixture(&motif, 20, 0.9).unwrap();
    let small = process.splits(4, 100, 10, 2000).unwrap();
    let large = process.splits(4, 200, 50, 2000).unwrap();
    assert!(small.train.iter().eq(large.train.iter().take(100)) && small.test.iter().eq(large.test.iter()));
    assert!(!small.train.iter().take(10).eq(small.validation.iter()));
    let with = small.test.iter().filter(|x| x.windows(motif.len()).any(|w| w == motif)).count() as f64;
    // Five standard errors of a share of .9 in 2000.
    assert_close("share", with / 2000.0, 0.9, 5.0 * (0.09_f64 / 2000.0).sqrt());
    assert_eq!(process.splits(4, 0, 0, 0).unwrap().train.rows, 0, "empty sets are allowed");
}

#[test]
fn bad_processes_are_errors() {
    assert!(Process::motif(&[], 30).is_err());
    assert!(Process::motif(&[1; 31], 30).is_err(), "would only fit a cut sequence");
    assert!(Process::motif(&[2], 30).is_err());
    assert!(Process::motif(&[1], 0).is_err());
    assert!(Process::motif(&[1], u32::MAX).is_err());
    assert!(Process::multiple(0, 30).is_err());
    for share in [0.0, 1.0, f64::NAN, -0.5] {
        assert!(Process::mixture(&[1], 30, share).is_err());
    }
}
