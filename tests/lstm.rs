//! The LSTM of the CPU backend against the f64 oracle.

mod oracle;

use std::collections::BTreeMap;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::LookAhead;
use ebm_dpg::features::{Feature, FeatureSet};
use ebm_dpg::models::{Coefficients, Lstm, LstmShape, Markov, Policy, Sampler, Scorer, Weighting};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use oracle::{OracleLstm, assert_block_close, assert_close, chi_square, enumerate};

/// Sizes by hazard: one unit; a full vector; one unit more; three layers; more than four vectors.
const SHAPES: [(usize, usize); 6] = [(1, 1), (1, 16), (2, 17), (3, 5), (2, 40), (1, 70)];

fn lstm(space: Space, layers: usize, hidden: usize) -> Lstm {
    Lstm::new(space, LstmShape { layers, hidden, dropout: 0.0 }, 7).unwrap()
}

fn oracle_of(lstm: &Lstm) -> OracleLstm {
    let tensors: BTreeMap<String, Vec<f64>> = lstm
        .tensors()
        .into_iter()
        .map(|(name, _, values)| (name, values.into_iter().map(f64::from).collect()))
        .collect();
    OracleLstm::new(lstm.space(), lstm.shape().hidden, lstm.shape().layers, tensors)
}

/// Ragged sequences of every length, more than one chunk of them, cut ones included.
fn sequences(space: Space, count: usize) -> Vec<Vec<Token>> {
    let (longest, symbols) = (space.longest as usize, space.vocab - 3);
    (0..count)
        .map(|row| {
            let length = 1 + row * 7 % longest;
            let mut sequence: Vec<Token> = (0..length).map(|t| ((row * 31 + t * t + t / 2) as u32) % symbols).collect();
            if length < longest || row % 2 == 0 {
                sequence[length - 1] = space.eos;
            }
            sequence
        })
        .collect()
}

fn score(lstm: &mut Lstm, batch: &Batch) -> Vec<f64> {
    let mut log_probs = vec![0.0; batch.rows];
    lstm.score(batch, &mut log_probs).unwrap();
    log_probs
}

fn given(weights: &[f32]) -> Coefficients<'_, Cpu> {
    Coefficients::given(weights)
}

#[test]
fn log_probs_agree_with_the_oracle() {
    for (layers, hidden) in SHAPES {
        let space = Space::new(3, 9).unwrap();
        let mut lstm = lstm(space, layers, hidden);
        let sequences = sequences(space, 101);
        let got = score(&mut lstm, &Batch::from_sequences(space, &sequences).unwrap());
        let oracle = oracle_of(&lstm);
        let want: Vec<f64> = sequences.iter().map(|x| oracle.log_prob(x)).collect();
        assert_close(&format!("{layers}x{hidden}"), &got, &want, 5e-6);
        assert!(got.iter().all(|&l| l <= 0.0));
    }
}

/// The contract of the default precision: 128 tokens within 1e-4.
#[test]
fn a_sequence_of_128_tokens_is_within_1e_4() {
    let space = Space::new(20, 128).unwrap();
    let mut lstm = lstm(space, 2, 64);
    let sequences: Vec<Vec<Token>> = (0..8).map(|row| (0..128).map(|t| (row * 5 + t * t) % 20).collect()).collect();
    let got = score(&mut lstm, &Batch::from_sequences(space, &sequences).unwrap());
    let oracle = oracle_of(&lstm);
    assert_close("128 tokens", &got, &sequences.iter().map(|x| oracle.log_prob(x)).collect::<Vec<_>>(), 1e-4);
}

#[test]
fn weighted_gradients_agree_with_the_oracle_per_block() {
    for (layers, hidden) in SHAPES {
        let space = Space::new(3, 9).unwrap();
        let mut lstm = lstm(space, layers, hidden);
        let sequences = sequences(space, 101);
        let batch = Batch::from_sequences(space, &sequences).unwrap();
        // Zero, negative and mixed weights.
        let weights: Vec<f32> = (0..batch.rows).map(|row| ((row % 5) as f32 - 1.0) / 8.0).collect();
        let mut log_probs = vec![0.0; batch.rows];
        lstm.gradient(&batch, &given(&weights), &mut log_probs).unwrap();
        let weighted: Vec<_> = sequences.iter().cloned().zip(weights.iter().map(|&w| f64::from(w))).collect();
        let want = oracle_of(&lstm).gradient(&weighted);
        for (name, _, values) in lstm.gradients() {
            assert_block_close(&format!("{layers}x{hidden} {name}"), &values, &want[&name], 2e-4);
        }
        let scores = score(&mut lstm, &batch);
        for row in 0..batch.rows {
            match weights[row] {
                0.0 => assert!(log_probs[row].is_nan(), "a skipped row has no log-prob"),
                _ => assert_eq!(log_probs[row].to_bits(), scores[row].to_bits()),
            }
        }
    }
}

#[test]
fn the_baseline_subtracts_pi_over_q() {
    let space = Space::new(2, 6).unwrap();
    let mut lstm = lstm(space, 2, 8);
    let sequences = sequences(space, 60);
    let batch = Batch::from_sequences(space, &sequences).unwrap();
    let weights: Vec<f32> = (0..60).map(|row| (row % 3) as f32).collect();
    let log_q: Vec<f64> = (0..60).map(|row| -3.0 - row as f64 / 20.0).collect();
    let coefficients = Coefficients::<Cpu> {
        weighting: Weighting::Baseline,
        log_q: Some(&log_q),
        scale: 0.5,
        ..Coefficients::given(&weights[..])
    };
    let mut log_probs = vec![0.0; 60];
    lstm.gradient(&batch, &coefficients, &mut log_probs).unwrap();
    let oracle = oracle_of(&lstm);
    let coefficient = |row: usize| f64::from(weights[row]) - 0.5 * (log_probs[row] - log_q[row]).exp();
    let weighted: Vec<_> = sequences.iter().cloned().enumerate().map(|(row, x)| (x, coefficient(row))).collect();
    let want = oracle.gradient(&weighted);
    lstm.gradients().iter().for_each(|(name, _, values)| assert_block_close(name, values, &want[name], 2e-4));
}

#[test]
fn probabilities_sum_to_one_over_the_space() {
    let space = Space::new(2, 7).unwrap();
    let all = enumerate(space);
    let log_probs = score(&mut lstm(space, 2, 12), &Batch::from_sequences(space, &all).unwrap());
    let total: f64 = log_probs.iter().map(|l| l.exp()).sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
}

#[test]
fn samples_follow_the_model_and_carry_its_log_prob() {
    let space = Space::new(2, 4).unwrap();
    let mut lstm = lstm(space, 2, 12);
    let all = enumerate(space);
    let log_p = score(&mut lstm, &Batch::from_sequences(space, &all).unwrap());
    let mut batch = Batch::with_capacity(&Cpu, space, 20_000).unwrap();
    let (mut log_q, mut log_model) = (vec![0.0; 20_000], vec![0.0; 20_000]);
    lstm.sample(Draw::new(3, Purpose::User), None, &mut batch, &mut log_q, &mut log_model).unwrap();
    // The same kernels: the same bits, whoever asks.
    let scores = score(&mut lstm, &batch);
    assert_eq!(log_q, log_model);
    assert!(scores.iter().zip(&log_q).all(|(a, b)| a.to_bits() == b.to_bits()));
    let mut counts = vec![0; all.len()];
    batch.iter().for_each(|x| counts[all.iter().position(|y| y == x).unwrap()] += 1);
    let (statistic, freedom) = chi_square(&counts, &log_p);
    let bound = freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt();
    assert!(statistic < bound, "chi-square {statistic} of {freedom}");
}

#[test]
fn draws_do_not_depend_on_the_batch_split_or_threads() {
    let space = Space::new(2, 12).unwrap();
    let draw = Draw::new(11, Purpose::User);
    let sample = |threads: usize, first: u64, count: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut lstm = lstm(space, 2, 20);
        let mut batch = Batch::with_capacity(&Cpu, space, count).unwrap();
        let (mut log_q, mut log_model) = (vec![0.0; count], vec![0.0; count]);
        pool.install(|| lstm.sample(draw.skip(first), None, &mut batch, &mut log_q, &mut log_model).unwrap());
        (batch.iter().map(<[Token]>::to_vec).collect::<Vec<_>>(), log_q)
    };
    let (whole, whole_q) = sample(1, 0, 150);
    let ((mut parts, mut parts_q), (rest, rest_q)) = (sample(3, 0, 67), sample(2, 67, 83));
    parts.extend(rest);
    parts_q.extend(rest_q);
    assert_eq!(whole, parts);
    assert_eq!(whole_q, parts_q);
}

#[test]
fn training_is_the_same_bits_for_any_thread_count() {
    let space = Space::new(2, 10).unwrap();
    let batch = Batch::from_sequences(space, &sequences(space, 1000)).unwrap();
    let weights = vec![1e-3; 1000];
    let train = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let shape = LstmShape { layers: 2, hidden: 20, dropout: 0.3 };
        let mut lstm = Lstm::new(space, shape, 1).unwrap();
        let mut log_probs = vec![0.0; 1000];
        pool.install(|| {
            for step in 0..3 {
                let dropout = Some(Draw::new(5, Purpose::Dropout).skip(step * 1000));
                let coefficients = Coefficients { dropout, ..given(&weights) };
                lstm.gradient(&batch, &coefficients, &mut log_probs).unwrap();
                lstm.update(&AdamOptions::default()).unwrap();
            }
        });
        lstm.tensors()
    };
    assert_eq!(train(1), train(3));
}

/// With the masks fixed by the draw, the objective is a function of the parameters: central differences apply.
#[test]
fn gradients_through_dropout_agree_with_differences() {
    let space = Space::new(2, 6).unwrap();
    let batch = Batch::from_sequences(space, &sequences(space, 40)).unwrap();
    let weights = vec![1.0; 40];
    let coefficients = || Coefficients { dropout: Some(Draw::new(5, Purpose::Dropout)), ..given(&weights) };
    let mut lstm = Lstm::new(space, LstmShape { layers: 2, hidden: 9, dropout: 0.4 }, 3).unwrap();
    let mut log_probs = vec![0.0; 40];
    lstm.gradient(&batch, &coefficients(), &mut log_probs).unwrap();
    let (gradients, start) = (lstm.gradients(), log_probs.iter().sum::<f64>());
    let norm2: f64 = gradients.iter().flat_map(|(_, _, g)| g).map(|&g| f64::from(g).powi(2)).sum();
    // The change along Adam's first step, α·sign(g), is α·‖g‖₁ to first order.
    let rate = 1e-4f32;
    lstm.update(&AdamOptions { learning_rate: rate, ..Default::default() }).unwrap();
    lstm.gradient(&batch, &coefficients(), &mut log_probs).unwrap();
    let norm1: f64 = gradients.iter().flat_map(|(_, _, g)| g).map(|&g| f64::from(g).abs()).sum();
    let (change, want) = (log_probs.iter().sum::<f64>() - start, f64::from(rate) * norm1);
    assert!((change / want - 1.0).abs() < 0.02, "change {change}, first order {want}, norm {}", norm2.sqrt());
}

#[test]
fn saving_and_loading_keeps_every_bit() {
    let space = Space::new(4, 8).unwrap();
    let (folder, mut lstm) = (tempfile::tempdir().unwrap(), lstm(space, 2, 17));
    let path = folder.path().join("policy.safetensors");
    lstm.save(&path).unwrap();
    let mut loaded = Lstm::load(&path).unwrap();
    assert_eq!(loaded.tensors(), lstm.tensors());
    let batch = Batch::from_sequences(space, &sequences(space, 20)).unwrap();
    assert_eq!(score(&mut loaded, &batch), score(&mut lstm, &batch));
    let mut copy = self::lstm(space, 2, 17);
    copy.update(&AdamOptions::default()).unwrap();
    copy.copy_from(&lstm).unwrap();
    assert_eq!(score(&mut copy, &batch), score(&mut lstm, &batch));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn truncated_foreign_and_missing_files_are_one_line_errors() {
    let (folder, space) = (tempfile::tempdir().unwrap(), Space::new(2, 5).unwrap());
    let path = folder.path().join("policy.safetensors");
    lstm(space, 1, 4).save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 4, 40, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = Lstm::load(&path).err().expect("truncated").to_string();
        assert!(error.contains("policy.safetensors") && !error.contains('\n'), "{error}");
    }
    assert!(Lstm::load(&folder.path().join("none")).is_err());
}

#[test]
fn bad_arguments_are_errors_and_write_nothing() {
    let space = Space::new(2, 5).unwrap();
    for (layers, hidden, dropout) in [(0, 4, 0.0), (1, 0, 0.0), (1, 4, 1.0), (1, 4, f32::NAN), (1, usize::MAX, 0.0)] {
        assert!(Lstm::new(space, LstmShape { layers, hidden, dropout }, 0).is_err(), "{layers} {hidden} {dropout}");
    }
    let mut lstm = lstm(space, 1, 4);
    let batch = Batch::from_sequences(space, &sequences(space, 3)).unwrap();
    let mut out = vec![9.0; 3];
    assert!(lstm.score(&batch, &mut out[..2]).is_err());
    assert!(lstm.gradient(&batch, &given(&[1.0, f32::NAN, 1.0]), &mut out).is_err());
    assert!(lstm.gradient(&batch, &given(&[1.0, 1.0]), &mut out).is_err());
    let other = Batch::from_sequences(Space::new(3, 5).unwrap(), &[vec![0, 4]]).unwrap();
    assert!(lstm.score(&other, &mut out[..1]).is_err());
    assert_eq!(out, vec![9.0; 3]);
}

#[test]
fn an_empty_batch_is_a_no_op() {
    let space = Space::new(2, 5).unwrap();
    let mut lstm = lstm(space, 1, 4);
    let batch = Batch::from_sequences::<Vec<Token>>(space, &[]).unwrap();
    lstm.score(&batch, &mut []).unwrap();
    lstm.gradient(&batch, &given(&[]), &mut []).unwrap();
    assert!(lstm.gradients().iter().all(|(_, _, g)| g.iter().all(|&g| g == 0.0)));
}

/// A guide that wants the motif 1 0 1: what it draws is scored alike, by the same bits, and sums to one.
#[test]
fn guided_draws_and_guided_scores_agree() {
    let space = Space::new(2, 7).unwrap();
    let features = FeatureSet::new(space).with("motif", Feature::Contains(vec![1, 0, 1])).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap();
    let uniform = Markov::fit(&Batch::with_capacity(&Cpu, space, 0).unwrap(), 0, false, 1.0).unwrap();
    let guide = LookAhead::towards(&uniform, &features, &potential, 1000).unwrap().guide();
    let mut lstm = lstm(space, 2, 12);
    let mut batch = Batch::with_capacity(&Cpu, space, 300).unwrap();
    let (mut log_q, mut log_model, mut scored) = (vec![0.0; 300], vec![0.0; 300], vec![0.0; 300]);
    lstm.sample(Draw::new(3, Purpose::User), Some(&guide), &mut batch, &mut log_q, &mut log_model).unwrap();
    lstm.score_guided(&guide, &batch, &mut scored).unwrap();
    assert_eq!(scored, log_q);
    assert_eq!(score(&mut lstm, &batch), log_model);
    assert!(batch.iter().all(|x| x.windows(3).any(|w| w == [1, 0, 1])), "the constraint is met by every draw");
    let all = enumerate(space);
    let mut log_q = vec![0.0; all.len()];
    lstm.score_guided(&guide, &Batch::from_sequences(space, &all).unwrap(), &mut log_q).unwrap();
    let total: f64 = log_q.iter().map(|l| l.exp()).sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
}
