//! The feature table and the automata against naive definitions: by enumeration where the space is small, by random
//! patterns and sequences where it is not.

use std::cell::RefCell;
use std::collections::HashMap;

use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Automaton, Custom, Feature, FeatureOutput, FeatureSet, FeatureTable, Spelling};
use ebm_dpg::models::{Lstm, LstmShape, Markov, Sampler};
use ebm_dpg::potential::{Potential, Reward, Role, SampledProduct, model, reward};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use proptest::prelude::*;

mod strings;
use strings::{all, content};

/// φ by definition: no automaton, no bit vectors.
fn naive(feature: &Feature, set: &FeatureSet, sequence: &[Token]) -> f32 {
    let space = set.space();
    let text = content(space, sequence);
    let spelled = || set.spelling().unwrap().text(text).unwrap();
    let truth = |value: bool| f32::from(u8::from(value));
    let contains = |text: &[Token], pattern: &[Token]| text.windows(pattern.len()).any(|window| window == pattern);
    let fits = |window: &[Token], pattern: &[Option<Token>]| {
        window.iter().zip(pattern).all(|(token, wanted)| wanted.is_none_or(|wanted| wanted == *token))
    };
    let places = |of: &Feature| {
        let spelled = spelled();
        let occurs = |end: usize| match of {
            Feature::AnyText(words) => words.iter().any(|word| spelled[..end].ends_with(word.as_bytes())),
            Feature::Regex(pattern) => match_ends(pattern, &spelled, end),
            other => panic!("{other:?} is not counted over text"),
        };
        (1..=spelled.len()).filter(|&end| occurs(end)).count()
    };
    let occurs = |of: &Feature, end: usize| match of {
        Feature::Contains(word) => text[..end].ends_with(word),
        Feature::AnyOf(words) => words.iter().any(|word| text[..end].ends_with(word)),
        Feature::Motif(word) => end >= word.len() && fits(&text[end - word.len()..end], word),
        other => panic!("{other:?} is not counted"),
    };
    match feature {
        Feature::Motif(pattern) => truth(text.windows(pattern.len()).any(|window| fits(window, pattern))),
        Feature::AnyOf(words) => truth(words.iter().any(|word| contains(text, word))),
        Feature::AnyText(words) => {
            let text = spelled();
            truth(words.iter().any(|word| text.windows(word.len()).any(|window| window == word.as_bytes())))
        }
        Feature::Regex(pattern) => truth(regex::bytes::Regex::new(pattern).unwrap().is_match(&spelled())),
        Feature::Count { of, most } => {
            let count = match **of {
                Feature::AnyText(_) | Feature::Regex(_) => places(of),
                _ => (1..=text.len()).filter(|&end| occurs(of, end)).count(),
            };
            count.min(*most as usize) as f32 / *most as f32
        }
        Feature::DistinctFraction => {
            let distinct: std::collections::BTreeSet<_> = text.iter().collect();
            distinct.len() as f32 / text.len().max(1) as f32
        }
        Feature::AtLeast { of, value } => truth(naive(of, set, sequence) >= *value),
        Feature::Not(of) => 1.0 - naive(of, set, sequence),
        Feature::All(parts) => parts.iter().map(|part| naive(part, set, sequence)).fold(1.0, f32::min),
        Feature::Any(parts) => parts.iter().map(|part| naive(part, set, sequence)).fold(0.0, f32::max),
        Feature::Contains(pattern) => truth(contains(text, pattern)),
        Feature::StartsWith(pattern) => truth(text.starts_with(pattern)),
        Feature::EndsWith(pattern) => truth(text.ends_with(pattern)),
        Feature::Equals(pattern) => truth(text == pattern),
        Feature::MultipleOf { modulus, zero, one } => {
            let is_number = text.iter().all(|token| token == zero || token == one);
            let value = text.iter().fold(0_u128, |value, token| value * 2 + u128::from(token == one));
            truth(is_number && value > 0 && value % u128::from(*modulus) == 0)
        }
        Feature::Length => sequence.len() as f32 / space.longest as f32,
        Feature::LengthSquared => (sequence.len() as f32 / space.longest as f32).powi(2),
        Feature::LongestCommonSubstring(pattern) => {
            let substrings = (0..pattern.len()).flat_map(|i| (i + 1..=pattern.len()).map(move |j| &pattern[i..j]));
            let longest = substrings.filter(|part| contains(text, part)).map(<[Token]>::len).max().unwrap_or(0);
            longest as f32 / pattern.len() as f32
        }
        Feature::EditDistance(pattern) => {
            let m = pattern.len();
            let substrings = (0..=text.len()).flat_map(|i| (i..=text.len()).map(move |j| &text[i..j]));
            let smallest = substrings.map(|part| edit_distance(pattern, part)).min().unwrap();
            (m - smallest) as f32 / m as f32
        }
        other => panic!("no definition of {other:?}"),
    }
}

/// Whether some match of the pattern, wherever it begins, ends at byte `end` of the text: the regex crate is asked for the
/// whole text, with so many bytes behind the match.
fn match_ends(pattern: &str, text: &[u8], end: usize) -> bool {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, regex::bytes::Regex>> = RefCell::default();
    }
    let whole = format!(r"\A(?s-u:.*)(?:{pattern})(?s-u:.{{{}}})\z", text.len() - end);
    let compiled = |whole: &String| regex::bytes::Regex::new(whole).unwrap();
    KNOWN.with_borrow_mut(|known| known.entry(whole.clone()).or_insert_with(|| compiled(&whole)).is_match(text))
}

/// Levenshtein's recurrence, the whole matrix.
fn edit_distance(a: &[Token], b: &[Token]) -> usize {
    let mut d = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            d[i][j] = match (i, j) {
                (0, _) => j,
                (_, 0) => i,
                _ => {
                    let replaced = d[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    replaced.min(d[i - 1][j] + 1).min(d[i][j - 1] + 1)
                }
            };
        }
    }
    d[a.len()][b.len()]
}

/// φ, which does not depend on how wide tokens are.
fn evaluate(features: &FeatureSet, batch: &Batch) -> Vec<f32> {
    let table = features.compile(&Cpu).unwrap();
    let (mut phi, mut compact) = (vec![f32::NAN; batch.rows * features.len()], vec![7.0; batch.rows * features.len()]);
    table.evaluate(&Cpu, batch, &mut phi).unwrap();
    let tokens: Vec<u16> = batch.view().tokens.iter().map(|&token| token as u16).collect();
    table.evaluate_compact(&Cpu, &tokens, batch.view().lengths, &mut compact).unwrap();
    assert_eq!(phi, compact);
    phi
}

/// The automaton of one feature; `None` where it has more states than are allowed here, which only random regular expressions
/// (repeated, counted) and random compounds may.
fn automaton_alone(features: &FeatureSet, at: usize) -> Option<Automaton> {
    let feature = &features.features()[at];
    let refused = match features.automaton(&[at], 1 << 16) {
        Ok(automaton) => return Some(automaton),
        Err(refused) => refused.to_string(),
    };
    let may_be_large = matches!(feature, Feature::All(_) | Feature::Any(_)) || format!("{feature:?}").contains("Regex");
    assert!(may_be_large && refused.contains("at most 65536 states"), "{refused}: {feature:?}");
    None
}

/// Table, stored table, single automata and product automaton against the definition, on every sequence.
fn check_all(features: &FeatureSet, sequences: &[Vec<Token>]) {
    let space = features.space();
    let batch = Batch::from_sequences(space, sequences).unwrap();
    let phi = evaluate(features, &batch);
    let which: Vec<usize> = (0..features.len()).filter(|&at| features.is_automaton(at)).collect();
    let single: Vec<_> = which.iter().map(|&at| automaton_alone(features, at)).collect();
    // Many features may have too many states together.
    let product = features.automaton(&which, 1 << 14).ok();
    for (row, sequence) in sequences.iter().enumerate() {
        let text = content(space, sequence);
        for (at, feature) in features.features().iter().enumerate() {
            let want = naive(feature, features, sequence);
            assert_eq!(phi[row * features.len() + at], want, "table: {feature:?} of {sequence:?}");
            if let Some(output) = which.iter().position(|&other| other == at) {
                if let Some(one) = &single[output] {
                    assert_eq!(one.values(one.run(text))[0], want, "automaton: {feature:?} of {sequence:?}");
                    assert_eq!(one.run(text), one.run(sequence), "EOS must not move the state");
                }
                let values = product.as_ref().map(|product| product.values(product.run(text))[output]);
                assert!(values.is_none_or(|value| value == want), "product: {feature:?} of {sequence:?}");
            }
        }
    }
}

fn every_kind(space: Space) -> FeatureSet {
    let multiple = |modulus| Feature::MultipleOf { modulus, zero: 0, one: 1 };
    [
        Feature::Contains(vec![0, 1, 0]),
        Feature::Contains(vec![1, 1]),
        Feature::StartsWith(vec![1, 0]),
        Feature::EndsWith(vec![0, 1, 0]),
        Feature::EndsWith(vec![1, 1]),
        Feature::Equals(vec![1, 0, 1]),
        multiple(1),
        multiple(2),
        multiple(3),
        multiple(5),
        Feature::Length,
        Feature::LengthSquared,
        Feature::LongestCommonSubstring(vec![0, 1, 1, 0, 1, 0]),
        Feature::EditDistance(vec![1, 0, 0, 1]),
        Feature::EditDistance(vec![1]),
        Feature::Motif(vec![Some(1), None, Some(0), Some(0)]),
        Feature::Motif(vec![None, None, None]),
        Feature::AnyOf(vec![vec![0, 0, 1], vec![1, 1, 1], vec![1, 1, 1, 0]]),
        Feature::Contains(vec![1, 1]).count(3),
        Feature::Motif(vec![Some(1), None, Some(1)]).count(2),
        Feature::AnyOf(vec![vec![0], vec![0, 1]]).count(space.longest),
        Feature::DistinctFraction,
        Feature::DistinctFraction.at_least(0.5),
        Feature::LongestCommonSubstring(vec![0, 1, 1, 0, 1, 0]).at_least(0.6),
        Feature::EditDistance(vec![1, 0, 0, 1]).at_least(0.75),
        !Feature::Length.at_least(0.6) & Feature::Contains(vec![1, 1]),
        Feature::EndsWith(vec![0]) | Feature::StartsWith(vec![0]) | Feature::DistinctFraction,
        !(Feature::Length & Feature::LongestCommonSubstring(vec![1, 0, 1])),
    ]
    .into_iter()
    .fold(FeatureSet::new(space), |set, feature| set.with(format!("{feature:?}"), feature).unwrap())
}

#[test]
fn every_kind_on_all_binary_sequences() {
    let space = Space::new(2, 9).unwrap();
    check_all(&every_kind(space), &all(space));
}

#[test]
fn every_kind_on_all_ternary_sequences() {
    // Token 2 is in no pattern: the class of other tokens, and no digit.
    let space = Space::new(3, 6).unwrap();
    check_all(&every_kind(space), &all(space));
}

#[test]
fn special_tokens_in_front_of_the_content_tokens() {
    let space = Space { vocab: 5, pad: 0, bos: 1, eos: 2, longest: 6 };
    let set = FeatureSet::new(space);
    let set = set.with("motif", Feature::Contains(vec![3, 4, 3])).unwrap().with("m", Feature::Length).unwrap();
    let set = set.with("s", Feature::LongestCommonSubstring(vec![4, 3])).unwrap();
    check_all(&set.with("e", Feature::EditDistance(vec![4, 3])).unwrap(), &all(space));
}

fn pattern(symbols: u32, longest: usize) -> impl Strategy<Value = Vec<Token>> {
    prop::collection::vec(0..symbols, 1..=longest)
}

/// Symbols of one byte and of several, and one that begins with another.
fn spelling(space: Space) -> Spelling {
    let texts = ["a", "b", "ba", "\u{e9}", "a\u{e9}b"].map(String::from);
    Spelling::new(texts.into_iter().chain((5..space.vocab).map(|_| "x".into())))
}

fn regex() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec!["a", "b", "\u{e9}", ".", "[^a]", "[ab]", "ab", r"\w", r"(?-u:\b)", "^", "$"]);
    leaf.prop_map(String::from).prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(|parts| parts.concat()),
            prop::collection::vec(inner.clone(), 2..3).prop_map(|parts| format!("(?:{})", parts.join("|"))),
            (inner, prop::sample::select(vec!["*", "+", "?", "{2}", "{1,3}"])).prop_map(|(r, n)| format!("(?:{r}){n}")),
        ]
    })
}

fn any_feature(symbols: u32) -> impl Strategy<Value = Feature> {
    let words = || prop::collection::vec(pattern(symbols, 4), 1..5);
    let motif = || prop::collection::vec(prop::option::weighted(0.7, 0..symbols), 1..6);
    let countable = prop_oneof![
        pattern(symbols, 4).prop_map(Feature::Contains),
        words().prop_map(Feature::AnyOf),
        motif().prop_map(Feature::Motif),
    ];
    let text = "[ab\u{e9}]{1,4}";
    let leaf = prop_oneof![
        pattern(symbols, 6).prop_map(Feature::Contains),
        motif().prop_map(Feature::Motif),
        pattern(symbols, 6).prop_map(Feature::StartsWith),
        pattern(symbols, 6).prop_map(Feature::EndsWith),
        pattern(symbols, 6).prop_map(Feature::Equals),
        words().prop_map(Feature::AnyOf),
        prop::collection::vec(text, 1..5).prop_map(Feature::AnyText),
        regex().prop_map(Feature::Regex),
        (prop::collection::vec(text, 1..5).prop_map(Feature::AnyText), 1..40_u32).prop_map(|(of, most)| of.count(most)),
        (regex().prop_map(Feature::Regex), 1..40_u32).prop_map(|(of, most)| of.count(most)),
        (1..20_u32).prop_map(|modulus| Feature::MultipleOf { modulus, zero: 1, one: 0 }),
        (countable, 1..6_u32).prop_map(|(of, most)| of.count(most)),
        Just(Feature::Length),
        Just(Feature::DistinctFraction),
        pattern(symbols, 6).prop_map(Feature::LongestCommonSubstring),
        pattern(symbols, 6).prop_map(Feature::EditDistance),
    ];
    leaf.prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a & b),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a | b),
            inner.clone().prop_map(|a| !a),
            (inner, prop::sample::select(vec![0.2, 0.5, 0.75, 1.0])).prop_map(|(a, value)| a.at_least(value)),
        ]
    })
}

proptest! {
    // 300 sets × 40 sequences: 12,000 pairs.
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_pattern_sets((features, contents) in (2..5_u32).prop_flat_map(|symbols| (
        prop::collection::vec(any_feature(symbols), 1..6),
        prop::collection::vec(prop::collection::vec(0..symbols, 0..=12), 40),
    ))) {
        let space = Space::new(5, 12).unwrap();
        let add = |set: FeatureSet, feature: Feature| match set.clone().with("", feature) {
            Ok(set) => set,
            Err(error) => {
                let expected = ["threshold", "what feature"];
                assert!(expected.iter().any(|start| error.to_string().starts_with(start)), "{error}");
                set
            }
        };
        let set = features.into_iter().fold(FeatureSet::new(space).spelled(spelling(space)).unwrap(), add);
        let sequences: Vec<_> = contents.iter().map(|content| strings::sequence(space, content)).collect();
        check_all(&set, &sequences);
    }

    /// So many that they are no product: words of up to 32 features share an automaton, the rest are bits.
    #[test]
    fn many_words_at_once((symbols, features, contents) in (2..6_u32).prop_flat_map(|symbols| (
        Just(symbols),
        prop::collection::vec(prop_oneof![
            pattern(symbols, 7).prop_map(Feature::Contains),
            prop::collection::vec(pattern(symbols, 5), 1..4).prop_map(Feature::AnyOf),
            pattern(symbols, 4).prop_map(Feature::EndsWith),
        ], 20..70),
        prop::collection::vec(prop::collection::vec(0..symbols, 0..=20), 20),
    ))) {
        let space = Space::new(symbols, 20).unwrap();
        let add = |set: FeatureSet, feature| set.with("", feature).unwrap();
        let set = features.into_iter().fold(FeatureSet::new(space), add);
        let report = set.compile(&Cpu).unwrap().report();
        prop_assert!(report.entries.iter().any(|entry| entry.path == "words"), "{report}");
        let sequences: Vec<_> = contents.iter().map(|content| strings::sequence(space, content)).collect();
        let phi = evaluate(&set, &Batch::from_sequences(space, &sequences).unwrap());
        for (sequence, phi) in sequences.iter().zip(phi.chunks(set.len())) {
            for (feature, &got) in set.features().iter().zip(phi) {
                prop_assert_eq!(got, naive(feature, &set, sequence), "{:?} of {:?}", feature, sequence);
            }
        }
    }

    #[test]
    fn long_patterns(
        pattern in pattern(3, 100),
        contents in prop::collection::vec(prop::collection::vec(0..3_u32, 0..=100), 3),
        at in 0..100_usize,
    ) {
        // Over 64 tokens: several words of bits. Every text gets a damaged piece of the pattern.
        let space = Space::new(3, 101).unwrap();
        let set = FeatureSet::new(space).with("s", Feature::LongestCommonSubstring(pattern.clone())).unwrap();
        let set = set.with("e", Feature::EditDistance(pattern.clone())).unwrap();
        let damaged = |mut text: Vec<Token>| {
            let start = at % text.len().max(1);
            let end = (start + pattern.len()).min(text.len());
            text[start..end].copy_from_slice(&pattern[..end - start]);
            if let Some(token) = text.get_mut(at / 2) { *token = (*token + 1) % 3 }
            text
        };
        for text in contents.into_iter().map(damaged) {
            let sequence = strings::sequence(space, &text);
            let phi = evaluate(&set, &Batch::from_sequences(space, &[&sequence]).unwrap());
            prop_assert_eq!(phi[0], naive(&set.features()[0], &set, &sequence));
            prop_assert_eq!(phi[1], sellers(&pattern, &text));
        }
    }
}

/// The feature of the smallest edit distance to any substring, by the recurrence of Sellers (1980).
fn sellers(pattern: &[Token], text: &[Token]) -> f32 {
    let m = pattern.len();
    let mut column: Vec<usize> = (0..=m).collect();
    let mut smallest = m;
    for token in text {
        let mut diagonal = 0;
        for i in 1..=m {
            let replaced = diagonal + usize::from(pattern[i - 1] != *token);
            diagonal = column[i];
            column[i] = replaced.min(column[i] + 1).min(column[i - 1] + 1);
        }
        smallest = smallest.min(column[m]);
    }
    (m - smallest) as f32 / m as f32
}

#[test]
fn word_boundaries_of_the_bit_vectors() {
    for m in [31, 32, 33, 63, 64, 65, 96, 97, 128, 200] {
        let pattern: Vec<Token> = (0..m).map(|i| (i * i / 3 + i / 7) % 2).collect();
        let space = Space::new(2, 201).unwrap();
        let set = FeatureSet::new(space).with("e", Feature::EditDistance(pattern.clone())).unwrap();
        let mut missing = pattern.clone();
        missing.remove(m as usize / 2);
        for text in [pattern.clone(), missing, vec![1; 200], vec![0], vec![]] {
            let batch = Batch::from_sequences(space, &[strings::sequence(space, &text)]).unwrap();
            assert_eq!(evaluate(&set, &batch), [sellers(&pattern, &text)], "m = {m}, text {text:?}");
        }
    }
}

#[test]
fn empty_batch_and_no_features_are_no_ops() {
    let space = Space::new(2, 4).unwrap();
    let empty = Batch::from_sequences::<&[Token]>(space, &[]).unwrap();
    assert!(
        evaluate(
            &every_kind(Space::new(2, 9).unwrap()),
            &Batch::with_capacity(&Cpu, Space::new(2, 9).unwrap(), 3).unwrap()
        )
        .is_empty()
    );
    assert!(evaluate(&FeatureSet::new(space), &empty).is_empty());
    assert!(evaluate(&FeatureSet::new(space), &Batch::from_sequences(space, &[[0, 3]]).unwrap()).is_empty());
}

#[test]
fn cut_sequences_keep_their_last_token() {
    let space = Space::new(2, 3).unwrap();
    let set = FeatureSet::new(space).with("end", Feature::EndsWith(vec![1])).unwrap();
    let set = set.with("whole", Feature::Contains(vec![0, 1, 1])).unwrap().with("M", Feature::Length).unwrap();
    let batch = Batch::from_sequences(space, &[&[0, 1, 1], &[0, 1, 3][..], &[3]]).unwrap();
    assert_eq!(evaluate(&set, &batch), [1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0 / 3.0]);
}

#[test]
fn zero_and_the_empty_string_are_no_multiples() {
    let space = Space::new(2, 5).unwrap();
    let set = FeatureSet::new(space).with("3", Feature::MultipleOf { modulus: 3, zero: 0, one: 1 }).unwrap();
    let batch = Batch::from_sequences(space, &[&[3][..], &[0, 0, 3], &[0, 1, 1, 3], &[1, 0, 0, 1, 0]]).unwrap();
    assert_eq!(evaluate(&set, &batch), [0.0, 0.0, 1.0, 1.0]);
}

#[test]
fn rows_beyond_one_block_are_written_in_order() {
    let space = Space::new(2, 12).unwrap();
    let set = every_kind(space);
    check_all(&set, &all(space)[3000..4500]);
}

#[test]
fn features_deterministic_across_thread_counts() {
    let space = Space::new(2, 10).unwrap();
    let (set, batch) = (every_kind(space), Batch::from_sequences(space, &all(space)).unwrap());
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| evaluate(&set, &batch))
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn out_of_range_rows_become_nan_and_the_first_is_named() {
    let space = Space::new(2, 4).unwrap();
    let set = FeatureSet::new(space).with("motif", Feature::Contains(vec![1])).unwrap();
    let mut batch = Batch::from_sequences(space, &[[1, 3], [1, 3], [0, 3], [1, 3]]).unwrap();
    batch.tokens[4] = 17;
    batch.lengths[3] = 0;
    let mut phi = [0.5; 4];
    let error = set.compile(&Cpu).unwrap().evaluate(&Cpu, &batch, &mut phi).unwrap_err();
    assert!(error.to_string().contains("row 1 "), "{error}");
    assert!(phi[0] == 1.0 && phi[1].is_nan() && phi[2] == 0.0 && phi[3].is_nan(), "{phi:?}");
}

#[test]
fn tokens_of_16_bits_are_checked_too() {
    let space = Space::new(2, 4).unwrap();
    let table = FeatureSet::new(space).with("motif", Feature::Contains(vec![1])).unwrap().compile(&Cpu).unwrap();
    let mut phi = [7.0; 2];
    let tokens = [1, 3, 4, 4, 0, 0, 3, 4_u16];
    assert!(table.evaluate_compact(&Cpu, &tokens[..7], &[2, 3], &mut phi).is_err());
    assert!(table.evaluate_compact(&Cpu, &tokens, &[2, 3, 1], &mut phi).is_err());
    assert!(table.evaluate_compact(&Cpu, &tokens, &[2, 3], &mut phi[..1]).is_err());
    let large = Space::new(65_534, 4).unwrap();
    let large = FeatureSet::new(large).with("motif", Feature::Contains(vec![1])).unwrap().compile(&Cpu).unwrap();
    let error = large.evaluate_compact(&Cpu, &tokens, &[2, 3], &mut phi).unwrap_err().to_string();
    assert!(error.contains("65537"), "{error}");
    let custom = Feature::Custom(ebm_dpg::features::Custom::new(|batch| vec![0.0; batch.rows]));
    let custom = FeatureSet::new(space).with("mine", custom).unwrap().compile(&Cpu).unwrap();
    let error = custom.evaluate_compact(&Cpu, &tokens, &[2, 3], &mut phi).unwrap_err().to_string();
    assert!(error.contains("'mine'"), "{error}");
    assert_eq!(phi, [7.0; 2]);
    let error = table.evaluate_compact(&Cpu, &[1, 3, 4, 4, 0, 65_535, 3, 4], &[2, 3], &mut phi).unwrap_err();
    assert!(error.to_string().contains("row 1") && phi[0] == 1.0 && phi[1].is_nan(), "{error}");
    table.evaluate_compact(&Cpu, &[], &[], &mut []).unwrap();
}

#[test]
fn wrong_shapes_are_errors_and_write_nothing() {
    let space = Space::new(2, 4).unwrap();
    let table = FeatureSet::new(space).with("motif", Feature::Contains(vec![1])).unwrap().compile(&Cpu).unwrap();
    let batch = Batch::from_sequences(space, &[[1, 3]]).unwrap();
    let mut phi = [7.0; 2];
    assert!(table.evaluate(&Cpu, &batch, &mut phi).is_err());
    let other = Batch::from_sequences(Space::new(2, 5).unwrap(), &[[1, 3]]).unwrap();
    assert!(table.evaluate(&Cpu, &other, &mut phi[..1]).is_err());
    assert_eq!(phi, [7.0; 2]);
}

#[test]
fn bad_features_are_errors_that_name_them() {
    let space = Space::new(2, 4).unwrap();
    let multiple = |modulus, zero, one| Feature::MultipleOf { modulus, zero, one };
    let bad = [
        Feature::Contains(vec![]),
        Feature::Contains(vec![0; 5]),
        Feature::StartsWith(vec![2]),
        Feature::EndsWith(vec![3]),
        Feature::Equals(vec![9]),
        Feature::LongestCommonSubstring(vec![]),
        Feature::EditDistance(vec![0; 5]),
        multiple(0, 0, 1),
        multiple(u32::MAX, 0, 1),
        multiple(3, 1, 1),
        multiple(3, 0, 2),
    ];
    for feature in bad {
        let error = FeatureSet::new(space).with("ding", feature.clone()).unwrap_err().to_string();
        assert!(error.contains("'ding'") && !error.contains('\n'), "{feature:?}: {error}");
    }
    let huge = Space::new(2, 10_000).unwrap();
    assert!(FeatureSet::new(huge).with("e", Feature::EditDistance(vec![0; 2049])).is_err());
    // As long as the sequence fits: only a cut sequence can have it.
    assert!(FeatureSet::new(space).with("whole", Feature::Contains(vec![0; 4])).is_ok());
}

#[test]
fn products_are_minimal() {
    let space = Space::new(2, 31).unwrap();
    let set = FeatureSet::new(space).with("a", Feature::Contains(vec![1, 0, 0])).unwrap();
    let set = set.with("b", Feature::Contains(vec![1, 0, 0])).unwrap();
    // Twice the same, and implied by a longer one: nothing to remember beside the progress.
    assert_eq!(set.automaton(&[0], 100).unwrap().states(), 4);
    assert_eq!(set.automaton(&[0, 1], 100).unwrap().states(), 4);
    assert_eq!(set.automaton(&[], 1).unwrap().states(), 1);
    let even = Feature::MultipleOf { modulus: 2, zero: 0, one: 1 };
    let ends = set.with("even", even).unwrap().automaton(&[2], 100).unwrap();
    assert_eq!(ends.states(), 3, "zero, odd, even");
    let equals = Automaton::new(space, &Feature::Equals(vec![1, 0])).unwrap();
    assert_eq!((equals.states(), equals.count(2, 0), equals.count(3, 0)), (4, Some(1), Some(0)));
}

#[test]
fn product_over_the_limit_names_the_feature() {
    let space = Space::new(2, 31).unwrap();
    let set = FeatureSet::new(space).with("small", Feature::StartsWith(vec![1])).unwrap();
    let set = set.with("large", Feature::MultipleOf { modulus: 997, zero: 0, one: 1 }).unwrap();
    let error = set.automaton(&[0, 1], 500).unwrap_err().to_string();
    assert!(error.contains("'large'") && error.contains("500"), "{error}");
    let set = set.with("fuzzy", Feature::EditDistance(vec![1, 0])).unwrap();
    assert!(set.automaton(&[2], 500).unwrap_err().to_string().contains("'fuzzy'"));
    assert!(set.automaton(&[3], 500).is_err());
    assert!(Automaton::new(space, &Feature::Length).is_ok() && Automaton::new(space, &set.features()[2]).is_err());
}

#[test]
fn features_too_large_for_one_product_get_entries_of_their_own() {
    let space = Space::new(2, 11).unwrap();
    let multiple = |set: FeatureSet, modulus| {
        set.with(format!("{modulus}"), Feature::MultipleOf { modulus, zero: 0, one: 1 }).unwrap()
    };
    // 61·67 residues are more than one product may hold, and so are 3001 of one feature.
    for moduli in [&[61, 67, 5][..], &[3001, 5]] {
        let set = moduli.iter().fold(FeatureSet::new(space), |set, &modulus| multiple(set, modulus));
        check_all(&set, &all(space));
    }
}

#[test]
fn flags_of_the_papers() {
    let bits = |text: &str| text.bytes().map(|b| u32::from(b - b'0')).collect::<Vec<_>>();
    let (space, motif) = (Space::new(2, 31).unwrap(), bits("10001011111000"));
    let all = FeatureSet::from_flags(space, &motif, "Mvse1111111", None).unwrap();
    let contains = |text: &str| Feature::Contains(bits(text));
    let expected = [
        ("length", Feature::Length),
        ("length^2", Feature::LengthSquared),
        ("substring", Feature::LongestCommonSubstring(motif.clone())),
        ("edit", Feature::EditDistance(motif.clone())),
        ("motif", contains("10001011111000")),
        ("supermotif", contains("100010111110000")),
        ("submotif", contains("1000101")),
        ("first bit", Feature::StartsWith(vec![1])),
        ("distractor 10101…", contains("10101101011010")),
        ("distractor 1001001…", contains("1001001100100110")),
        ("distractor 00110011…", contains("0011001")),
    ];
    let got: Vec<_> = all.names().iter().map(String::as_str).zip(all.features().iter().cloned()).collect();
    assert_eq!(got, expected);
    let some = FeatureSet::from_flags(space, &motif, "vM1001000", Some(17)).unwrap();
    assert_eq!(some.names(), ["length^2", "length", "multiple of 17", "first bit"]);
    assert_eq!(FeatureSet::from_flags(space, &motif, "0000000", None).unwrap().len(), 0);
}

#[test]
fn bad_flags_are_errors() {
    let space = Space::new(2, 31).unwrap();
    for flags in ["", "101", "11111111", "1001112", "M", "1001111M", "x1001111", "é001111", "10011é1"] {
        let error = FeatureSet::from_flags(space, &[1, 0, 1], flags, None).unwrap_err().to_string();
        assert!(error.contains("[Mvse]*[01]{7}") && !error.contains('\n'), "{flags}: {error}");
    }
    let long = vec![1; 30];
    let distractor = FeatureSet::from_flags(space, &long, "0000010", None).unwrap_err().to_string();
    assert!(distractor.contains("distractor 1001001…"), "{distractor}");
    let empty = FeatureSet::from_flags(space, &[1], "0000001", None).unwrap_err().to_string();
    assert!(empty.contains("distractor 00110011…"), "{empty}");
    assert!(FeatureSet::from_flags(space, &[], "1000000", None).is_err());
    assert!(FeatureSet::from_flags(space, &[1], "1000000", Some(0)).is_err());
}

/// The work of `benches/features.rs` on a fifth of its rows, beside reading their tokens, the best of 100, for the record:
/// `cargo test --release --test features -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn throughput_of_sixteen_patterns() {
    use rayon::prelude::*;
    let (space, rows) = (Space::new(27, 128).unwrap(), 2000_u32);
    let word = |at: u32| at.wrapping_mul(2_654_435_761) >> 7;
    let sequence = |row: u32| (0..128).map(|at| word(row * 128 + at) % 27).collect::<Vec<_>>();
    let batch = |n: u32| Batch::from_sequences(space, &(n..n + rows).map(sequence).collect::<Vec<_>>()).unwrap();
    // Beyond any second-level cache together; each is done before a busy machine takes the processor away.
    let batches: Vec<Batch> = (0..50).map(|n| batch(n * rows)).collect();
    let patterns: Vec<Vec<Token>> = (0..16).map(|i| (0..5).map(|at| word(i * 5 + at + 1) % 27).collect()).collect();
    let best = |work: &mut dyn FnMut(&Batch)| {
        let time = |batch| {
            let start = std::time::Instant::now();
            work(batch);
            start.elapsed().as_secs_f64()
        };
        let best = (0..20).flat_map(|_| &batches).map(time).fold(f64::INFINITY, f64::min);
        f64::from(rows) * 128.0 / best / 1e6
    };
    let read = best(&mut |batch| {
        let largest = batch.tokens.par_chunks(1 << 14).map(|part| part.iter().fold(0, |a, &b| a.max(b))).max();
        std::hint::black_box(largest);
    });
    println!("read alone: {read:.0} million tokens/s");
    for name in ["as words", "as bits", "as automata"] {
        // A wildcard makes bits; to the compiler the absence of a word is an automaton like any other.
        let feature = |p: &Vec<Token>| match name {
            "as words" => Feature::Contains(p.clone()),
            "as bits" => Feature::Motif(p.iter().map(|&token| Some(token)).collect()),
            _ => !Feature::Contains(p.clone()),
        };
        let set = patterns.iter().fold(FeatureSet::new(space), |set, p| set.with("", feature(p)).unwrap());
        let (table, mut phi) = (set.compile(&Cpu).unwrap(), vec![0.0; rows as usize * 16]);
        let rate = best(&mut |batch| table.evaluate(&Cpu, batch, &mut phi).unwrap());
        println!("16 patterns {name}: {rate:.0} million tokens/s\n{}", table.report());
    }
}

/// Throughput, for the record: `cargo test --release --test features -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn throughput() {
    let space = Space::new(2, 31).unwrap();
    let motif: Vec<Token> = "10001011111000".bytes().map(|b| u32::from(b - b'0')).collect();
    for flags in ["1111111", "1001111", "Mv1001111", "s0000000", "e0000000", "Mvse1111111"] {
        let set = FeatureSet::from_flags(space, &motif, flags, None).unwrap();
        let table = set.compile(&Cpu).unwrap();
        let noise = ebm_dpg::models::Markov::noise(space, 30).unwrap();
        let mut batch = Batch::with_capacity(&Cpu, space, 100_000).unwrap();
        let draw = ebm_dpg::rng::Draw::new(1, ebm_dpg::rng::Purpose::User);
        let (mut q, mut p) = (vec![0.0; 100_000], vec![0.0; 100_000]);
        ebm_dpg::models::Sampler::sample(&mut { noise }, draw, None, &mut batch, &mut q, &mut p).unwrap();
        let mut phi = vec![0.0; batch.rows * set.len()];
        let time = |phi: &mut [f32]| {
            let start = std::time::Instant::now();
            table.evaluate(&Cpu, &batch, phi).unwrap();
            start.elapsed().as_secs_f64()
        };
        let best = (0..20).map(|_| time(&mut phi)).fold(f64::INFINITY, f64::min);
        println!(
            "{flags}: {:.0} million tokens/s, {} words",
            batch.total_tokens() as f64 / best / 1e6,
            table.words().len()
        );
    }
}

/// What a sampler leaves behind with a table, or without.
fn drawn(
    sampler: &mut impl Sampler<Cpu>,
    guide: Option<&Guide>,
    table: Option<&FeatureTable>,
    rows: usize,
) -> (Vec<Vec<Token>>, [Vec<f64>; 2], Vec<f32>) {
    let mut batch = Batch::with_capacity(&Cpu, sampler.space(), rows).unwrap();
    let (mut log_q, mut log_model) = (vec![0.0; rows], vec![0.0; rows]);
    let mut phi = vec![7.0; table.map_or(0, |table| rows * table.len())];
    let draw = Draw::new(5, Purpose::User);
    match table {
        None => sampler.sample(draw, guide, &mut batch, &mut log_q, &mut log_model).unwrap(),
        Some(table) => {
            let output = FeatureOutput { backend: &Cpu, table, phi: &mut phi };
            sampler.sample_features(draw, guide, &mut batch, &mut log_q, &mut log_model, output).unwrap();
        }
    }
    (batch.iter().map(<[Token]>::to_vec).collect(), [log_q, log_model], phi)
}

/// The draws are those without features, φ what `evaluate` says of them; a wrong place for φ leaves all as it was.
fn check_sampler(name: &str, sampler: &mut impl Sampler<Cpu>, sets: &[FeatureSet], guide: &Guide) {
    let space = sampler.space();
    for (set, guide, rows) in sets.iter().flat_map(|set| [(set, None, 100), (set, Some(guide), 37), (set, None, 0)]) {
        let table = set.compile(&Cpu).unwrap();
        let plain = drawn(sampler, guide, None, rows);
        let (sequences, log_probs, phi) = drawn(sampler, guide, Some(&table), rows);
        assert_eq!((&sequences, log_probs), (&plain.0, plain.1), "{name}");
        let mut want = vec![0.0; rows * set.len()];
        table.evaluate(&Cpu, &Batch::from_sequences(space, &sequences).unwrap(), &mut want).unwrap();
        assert_eq!(phi, want, "{name}, {rows} rows");
    }
    let other = FeatureSet::new(Space::new(4, 21).unwrap()).with("length", Feature::Length).unwrap();
    for (set, len) in [(&sets[0], 59), (&other, 10)] {
        let (mut batch, table) = (Batch::with_capacity(&Cpu, space, 10).unwrap(), set.compile(&Cpu).unwrap());
        let (mut log_q, mut log_model, mut phi) = ([9.0; 10], [9.0; 10], vec![9.0; len]);
        let output = FeatureOutput { backend: &Cpu, table: &table, phi: &mut phi };
        let draw = Draw::new(5, Purpose::User);
        assert!(sampler.sample_features(draw, None, &mut batch, &mut log_q, &mut log_model, output).is_err());
        assert!(batch.rows == 0 && log_q == [9.0; 10] && log_model == [9.0; 10] && phi.iter().all(|&v| v == 9.0));
    }
}

/// A model that takes the features along, for any number of threads; one that does not; and a product of both kinds.
#[test]
fn samplers_give_the_features_of_what_they_draw() {
    let space = Space::new(4, 20).unwrap();
    let first = Custom::new(|batch| batch.iter().map(|x| x[0] as f32 / 8.0).collect());
    let data = FeatureSet::new(space)
        .with("word", Feature::Contains(vec![1, 0]))
        .and_then(|set| set.with("motif", Feature::Motif(vec![Some(2), None, Some(1)])))
        .and_then(|set| set.with("count", Feature::Contains(vec![3]).count(20)))
        .and_then(|set| set.with("edits", Feature::EditDistance(vec![1, 2, 3, 0])))
        .and_then(|set| set.with("distinct", Feature::DistinctFraction))
        .and_then(|set| set.with("length", Feature::Length))
        .unwrap();
    let sets = [data.clone(), data.with("closure", Feature::Custom(first)).unwrap(), FeatureSet::new(space)];
    let mut uniform = Markov::fit(&Batch::with_capacity(&Cpu, space, 0).unwrap(), 0, false, 1.0).unwrap();
    let wanted = FeatureSet::new(space).with("11", Feature::Contains(vec![1, 1])).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap();
    let guide = LookAhead::towards(&uniform, &wanted, &potential, 100).unwrap().guide();
    let lstm = || Lstm::new(space, LstmShape { layers: 1, hidden: 8, dropout: 0.0 }, 3).unwrap();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| check_sampler(&format!("LSTM, {threads} threads"), &mut lstm(), &sets, &guide));
    }
    check_sampler("chain", &mut uniform, &sets, &guide);
    let formula = model("base") * reward("ones", 2.0);
    let (mut factor, mut ones) = (lstm(), Reward::new(&Cpu, space, |batch| vec![-1.0; batch.rows]));
    let product = SampledProduct::new(&Cpu, &formula, ("base", &mut factor), vec![("ones", &mut ones)]);
    check_sampler("product", &mut product.unwrap(), &sets, &guide);
}
