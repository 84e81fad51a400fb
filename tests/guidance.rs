//! The guided proposal for every kind of automaton feature, over bases that the chain inside it does not capture; and exact
//! inference as truth for random sets of patterns.

use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::{Exact, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet, Spelling};
use ebm_dpg::fit::{FitOptions, guide_towards};
use ebm_dpg::models::{Lstm, LstmShape, Markov, Sampler, Scorer};
use ebm_dpg::potential::{Formula, Potential, Role, exp, forbid, phi, require};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use ebm_dpg::weights::ImportanceWeights;
use proptest::prelude::*;

mod strings;

const ROWS: usize = 8000;
const DRAW: Draw = Draw { seed: 5, purpose: Purpose::User, first: 0 };

/// A homogeneous chain whose rows differ a lot.
fn random_chain(space: Space, order: u32, seed: u64) -> Markov {
    let draw = Draw::new(seed, Purpose::User);
    let rows = (space.vocab as usize).pow(order);
    let row = |row: usize| {
        let weight = |token: u32| {
            let end = if token == space.eos { 0.3 } else { 1.0 };
            end * (3.0 * f64::from(draw.uniform(row as u64, token))).exp()
        };
        let total: f64 = (0..space.vocab).filter(|&token| space.is_output(token)).map(weight).sum();
        let log_prob = move |t| if space.is_output(t) { (weight(t) / total).ln() as f32 } else { f32::NEG_INFINITY };
        (0..space.vocab).map(log_prob).collect::<Vec<_>>()
    };
    Markov::new(space, order, 1, (0..rows).flat_map(row).collect()).unwrap()
}

fn features(space: Space) -> FeatureSet {
    FeatureSet::new(space)
        .spelled(Spelling::new(["a", "b", "ba", "", "", ""]))
        .and_then(|set| {
            set.with("motif", Feature::Motif([Some(0), None, Some(1), Some(1), None, Some(2), Some(0)].into()))
        })
        .and_then(|set| set.with("regex", Feature::Regex("^(?:ab)+a*b*$".into())))
        .and_then(|set| set.with("count", Feature::AnyOf(vec![vec![0, 1], vec![2, 2]]).count(6)))
        .and_then(|set| set.with("close", Feature::EditDistance(vec![2, 1, 0, 2, 1, 0, 2]).at_least(0.8)))
        .and_then(|set| set.with("text", Feature::AnyText(vec!["bbab".into(), "aaaa".into()])))
        .and_then(|set| set.with("length", Feature::Length))
        .and_then(|set| set.with("ends", Feature::EndsWith(vec![1, 1]) & !Feature::StartsWith(vec![2])))
        .and_then(|set| set.with("distinct", Feature::DistinctFraction))
        .and_then(|set| set.with("none", Feature::Contains(vec![0])))
        .unwrap()
}

/// Effective sample size over samples of q, guided or not.
fn ess<S: Sampler<Cpu>>(base: &mut S, set: &FeatureSet, formula: &Formula, guided: bool) -> f64 {
    let potential = formula.potential(&Cpu, set).unwrap();
    let mut options = FitOptions::default();
    options.base_samples = 4000;
    let guide = guided.then(|| guide_towards(&Cpu, base, set, &potential, &options, DRAW.skip(1 << 40)).unwrap());
    let mut batch = Batch::with_capacity(&Cpu, set.space(), ROWS).unwrap();
    let (mut log_q, mut log_base, mut log_p) = (vec![0.0; ROWS], vec![0.0; ROWS], vec![0.0; ROWS]);
    base.sample(DRAW, guide.as_ref(), &mut batch, &mut log_q, &mut log_base).unwrap();
    let mut phi = vec![0.0; ROWS * set.len()];
    set.compile(&Cpu).unwrap().evaluate(&Cpu, &batch, &mut phi).unwrap();
    potential.log_potential(&Cpu, &log_base, &phi, &mut log_p).unwrap();
    ImportanceWeights::new(&log_p, &log_q).map_or(0.0, |weights| weights.ess()) / ROWS as f64
}

fn formulas() -> Vec<(Formula, bool)> {
    // Whether the constraint is met less than once in a thousand is checked where the chain's truth is known.
    vec![
        (exp(2.0 * phi("count")), false),
        (exp(-4.0 * phi("count") + 2.0 * phi("text") - phi("length")), false),
        (exp(0.05 * phi("ends")), false),
        (exp(3.0 * phi("distinct")), false),
        (exp(2.0 * phi("distinct") + 1.5 * phi("close")), false),
        (forbid("none"), true),
        (require("motif"), true),
        (require("regex") * exp(2.0 * phi("length")), true),
        (require("close") * require("ends") * exp(phi("count")), true),
        (require("motif") * forbid("text") * exp(-2.0 * phi("length") + 3.0 * phi("ends")), true),
    ]
}

#[test]
fn guidance_never_hurts_and_finds_what_is_rare() {
    let space = Space::new(3, 14).unwrap();
    let set = features(space);
    let (mut rare, mut least) = (0, f64::INFINITY);
    for (order, seed) in [(2, 1), (2, 2), (3, 3)] {
        let mut chain = random_chain(space, order, seed);
        for (formula, hard) in formulas() {
            let (base, guided) = (ess(&mut chain, &set, &formula, false), ess(&mut chain, &set, &formula, true));
            // Both are estimates: of 8000 draws, to a few per cent.
            assert!(guided >= 0.97 * base, "order {order}, {formula:?}: {base} → {guided}");
            let which: Vec<usize> = (0..set.len()).filter(|&at| set.is_automaton(at)).collect();
            let only: Vec<Role> = which.iter().map(|&at| formula.roles(&set).unwrap()[at]).collect();
            let constraint = |role: &Role| if let Role::Require(_) = role { *role } else { Role::Ignore };
            let constraints: Vec<Role> = only.iter().map(constraint).collect();
            if !hard {
                continue;
            }
            let used: Vec<usize> = (0..which.len()).filter(|&k| constraints[k] != Role::Ignore).collect();
            let used_set = set.subset(&used.iter().map(|&k| which[k]).collect::<Vec<_>>());
            let roles: Vec<Role> = used.iter().map(|&k| constraints[k]).collect();
            let met =
                Exact::new(&chain, &used_set, &Potential::new(&Cpu, &roles).unwrap(), 1 << 12).unwrap().log_z().exp();
            if met < 1e-3 {
                // Without a guide the share of draws that count is no more than that of those which meet the constraint.
                assert!(guided >= 100.0 * met, "order {order}, {formula:?}: {met} → {guided}");
                (rare, least) = (rare + 1, least.min(guided / met));
            }
        }
    }
    println!("{rare} rare constraints, effective share at least {least:.0} times the base's");
    assert!(rare >= 4, "{rare} of the constraints are rare");
}

#[test]
fn guidance_of_a_network() {
    let space = Space::new(3, 14).unwrap();
    let set = features(space);
    let mut lstm = Lstm::new(space, LstmShape { layers: 1, hidden: 16, dropout: 0.0 }, 3).unwrap();
    for (formula, _) in formulas() {
        let (base, guided) = (ess(&mut lstm, &set, &formula, false), ess(&mut lstm, &set, &formula, true));
        assert!(guided >= 0.97 * base, "{formula:?}: {base} → {guided}");
    }
}

/// A vocabulary of 40,000: the tables grow with the classes of tokens, not with tokens.
#[test]
fn guides_of_large_vocabularies_are_small() {
    let space = Space::new(40_000, 12).unwrap();
    let set = FeatureSet::new(space).with("motif", Feature::Contains(vec![7, 8, 9])).unwrap();
    let uniform = (1.0 / 40_001.0_f64).ln() as f32;
    let row = |token| if space.is_output(token) { uniform } else { f32::NEG_INFINITY };
    let mut chain = Markov::new(space, 0, 1, (0..space.vocab).map(row).collect()).unwrap();
    let ahead = LookAhead::towards(&chain, &set, &Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap(), 100).unwrap();
    let guide = ahead.guide();
    assert_eq!((guide.states, guide.width, guide.next.len()), (4, 5, 20));
    let mut batch = Batch::with_capacity(&Cpu, space, 50).unwrap();
    let (mut log_q, mut log_r) = ([0.0; 50], [0.0; 50]);
    chain.sample(DRAW, Some(&guide), &mut batch, &mut log_q, &mut log_r).unwrap();
    for row in 0..50 {
        assert!(batch.content(row).windows(3).any(|window| window == [7, 8, 9]));
        assert!(
            (log_r[row] - ahead.log_z() - log_q[row]).abs() < 1e-3,
            "{} {}",
            log_r[row] - ahead.log_z(),
            log_q[row]
        );
    }
}

fn any_feature() -> impl Strategy<Value = Feature> {
    let pattern = || prop::collection::vec(0..2_u32, 1..5);
    let leaf = prop_oneof![
        pattern().prop_map(Feature::Contains),
        prop::collection::vec(prop::option::of(0..2_u32), 1..5).prop_map(Feature::Motif),
        prop::collection::vec(pattern(), 1..4).prop_map(Feature::AnyOf),
        prop::sample::select(vec!["a+b", "^(?:ab)*$", "ba?b", "a.a$", "bba|^a"]).prop_map(|r| Feature::Regex(r.into())),
        (pattern(), 1..4_u32).prop_map(|(p, most)| Feature::Contains(p).count(most)),
        Just(Feature::Length),
        pattern().prop_map(|p| Feature::LongestCommonSubstring(p).at_least(0.5)),
    ];
    leaf.prop_recursive(2, 4, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a & b),
            (inner.clone(), inner).prop_map(|(a, b)| a | !b)
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    /// Z, moments, next-token distributions and probabilities against enumeration.
    #[test]
    fn exact_inference_of_random_pattern_sets(
        features in prop::collection::vec((any_feature(), -2.0..2.0_f64), 1..5),
        required in prop::option::of(0..4_usize),
        (order, seed) in (0..3_u32, 0..1000_u64),
    ) {
        let space = Space::new(2, 6).unwrap();
        let chain = random_chain(space, order, seed);
        let mut set = FeatureSet::new(space).spelled(Spelling::new(["a", "b", "", "", ""])).unwrap();
        let mut roles = Vec::new();
        for (at, (feature, lambda)) in features.into_iter().enumerate() {
            roles.push(if required == Some(at) && feature.is_binary() { Role::Require(1.0) } else { Role::Tilt(lambda) });
            set = set.with(at.to_string(), feature).unwrap();
        }
        let potential = Potential::new(&Cpu, &roles).unwrap();
        let sequences = strings::all(space);
        let batch = Batch::from_sequences(space, &sequences).unwrap();
        let (mut phi, mut log_r) = (vec![0.0; batch.rows * set.len()], vec![0.0; batch.rows]);
        set.compile(&Cpu).unwrap().evaluate(&Cpu, &batch, &mut phi).unwrap();
        chain.clone().score(&batch, &mut log_r).unwrap();
        let rows = phi.chunks(set.len()).zip(&log_r);
        let p: Vec<f64> = rows.map(|(phi, log_r)| (log_r + potential.log_factor(phi)).exp()).collect();
        let z: f64 = p.iter().sum();
        let Ok(exact) = Exact::new(&chain, &set, &potential, 1 << 16) else {
            prop_assert_eq!(z, 0.0);
            return Ok(());
        };
        prop_assert!((exact.log_z() - z.ln()).abs() < 1e-9);
        for (at, moment) in exact.moments().into_iter().enumerate() {
            let want: f64 = p.iter().enumerate().map(|(row, p)| p / z * f64::from(phi[row * set.len() + at])).sum();
            prop_assert!((moment - want).abs() < 1e-9, "moment {}: {} {}", at, moment, want);
        }
        let prefixed = |prefix: &[Token]| {
            sequences.iter().zip(&p).filter(|(x, _)| x.starts_with(prefix)).map(|(_, p)| p).sum::<f64>()
        };
        for prefix in [&[][..], &[0], &[1, 0], &[0, 0, 1]].into_iter().filter(|prefix| prefixed(prefix) > 1e-12 * z) {
            let next = exact.next_log_probs(prefix).unwrap();
            for token in [0, 1, space.eos] {
                let want = prefixed(&[prefix, &[token]].concat()) / prefixed(prefix);
                prop_assert!((next[token as usize].exp() - want).abs() < 1e-8);
            }
        }
        let mut drawn = Batch::with_capacity(&Cpu, space, 20).unwrap();
        let mut log_p = [0.0; 20];
        exact.sample(DRAW, &mut drawn, &mut log_p).unwrap();
        for (x, log_p) in drawn.iter().zip(log_p) {
            let row = sequences.iter().position(|other| other == x).unwrap();
            prop_assert!((log_p.exp() - p[row] / z).abs() < 1e-9 && p[row] > 0.0);
        }
    }
}
