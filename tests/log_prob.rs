//! Log-probs of rows of logits and their gradient, against f64.

mod oracle;

use ebm_dpg::backend::Cpu;
use ebm_dpg::gradient::{Coefficient, Divergence, Scores, Sequences, gradient, gradient_with, sequence_gradient};
use ebm_dpg::log_prob::{Logit, SoftmaxOptions, log_prob, log_prob_entropy, log_prob_with};
use ebm_dpg::{Error, Result};
use oracle::{assert_block_close, assert_close, log_softmax, random};

/// The smallest, odd ones around a SIMD register, GPT-2's, and the largest promised.
const VOCABS: [usize; 8] = [2, 3, 7, 17, 100, 1003, 50257, 262_144];

/// Rows that go wrong in their own ways; `(name, row)`.
fn rows(vocab: usize) -> Vec<(&'static str, Vec<f32>)> {
    let spread = |scale| random(vocab as u64, vocab, scale);
    let shifted = |by: f32| spread(4.0).into_iter().map(|l| l + by).collect();
    let peaked = |peak: f32| (0..vocab).map(|t| if t == vocab / 2 { peak } else { 0.0 }).collect();
    let half = |t: usize, l: f32| if t % 2 == 1 { f32::NEG_INFINITY } else { l };
    vec![
        ("narrow", spread(0.5)),
        ("wide", spread(64.0)),
        ("far above 0", shifted(1e4)),
        ("far below 0", shifted(-1e4)),
        ("all alike", vec![-3.25; vocab]),
        // Many small terms, each near 1/V of the peak: where a sum in f32 loses the most.
        ("peaked", peaked(13.0)),
        ("sure", peaked(200.0)),
        ("at the end of f32", spread(f32::MAX / 2.0)),
        ("half impossible", spread(2.0).into_iter().enumerate().map(|(t, l)| half(t, l)).collect()),
    ]
}

fn exact(row: &[f32]) -> Vec<f64> {
    log_softmax(&row.iter().map(|&l| f64::from(l)).collect::<Vec<_>>())
}

/// Tokens worth asking of a row: the ends, the middle, the most likely.
fn tokens(row: &[f32]) -> Vec<u32> {
    let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    [0, 1, row.len() / 2, row.len() - 1, best].map(|t| t as u32).to_vec()
}

fn score(vocab: usize, logits: &[f32], tokens: &[u32]) -> Result<Vec<f32>> {
    let mut out = vec![7.0; tokens.len()];
    let result = log_prob(&Cpu, vocab, logits, tokens, &mut out);
    assert!(result.is_ok() || out.iter().all(|&o| o == 7.0), "an error writes nothing");
    result.map(|()| out)
}

#[test]
fn log_probs_match_f64_and_never_exceed_0() {
    for vocab in VOCABS {
        for (name, row) in rows(vocab) {
            let (tokens, exact) = (tokens(&row), exact(&row));
            let got = score(vocab, &row.repeat(tokens.len()), &tokens).unwrap();
            let want: Vec<f64> = tokens.iter().map(|&t| exact[t as usize]).collect();
            assert_close(&format!("{name}, V = {vocab}"), &got, &want, 2e-6);
            assert!(got.iter().all(|&l| l <= 0.0), "{name}, V = {vocab}: {got:?}");
        }
    }
}

#[test]
fn a_row_does_not_see_its_neighbours() {
    let (vocab, count) = (257, 300);
    let logits = random(1, vocab * count, 8.0);
    let tokens: Vec<u32> = (0..count as u32).map(|row| row * 31 % vocab as u32).collect();
    let together = score(vocab, &logits, &tokens).unwrap();
    for (row, (logits, token)) in logits.chunks(vocab).zip(&tokens).enumerate() {
        assert_eq!(score(vocab, logits, &[*token]).unwrap()[0].to_bits(), together[row].to_bits());
    }
}

#[test]
fn logits_without_a_softmax_are_errors_that_name_the_first_row() {
    let vocab = 40;
    for bad in [f32::NAN, f32::INFINITY] {
        let mut logits = random(2, vocab * 5, 1.0);
        logits[3 * vocab + 17] = bad;
        logits[4 * vocab] = bad;
        let error = score(vocab, &logits, &[0; 5]).unwrap_err();
        assert_eq!(error, Error::not_a_number("logits", format!("row 3, token 17 ({bad})")));
    }
    let mut logits = random(2, vocab * 5, 1.0);
    logits[vocab..2 * vocab].fill(f32::NEG_INFINITY);
    assert!(score(vocab, &logits, &[0; 5]).unwrap_err().to_string().contains("logits of row 1"));
}

#[test]
fn misfits_are_errors() {
    let logits = [0.0; 12];
    assert!(score(4, &logits, &[0, 4, 9]).unwrap_err().to_string().starts_with("token of row 1: expected below 4"));
    assert!(score(4, &logits, &[0; 2]).is_err() && score(5, &logits, &[0; 3]).is_err());
    assert!(score(0, &[], &[]).is_err() && score(usize::MAX, &logits, &[0; 3]).is_err());
    assert!(log_prob(&Cpu, 4, &logits, &[0; 3], &mut [0.0; 2]).is_err());
    assert!(score(4, &[], &[]).unwrap().is_empty());
}

fn by_temperature_and_mask<T: Logit>(vocab: usize) {
    let logits: Vec<T> = random(9, vocab, 16.0).into_iter().map(T::from_f32).collect();
    let mask: Vec<u32> = (0..vocab.div_ceil(32)).map(|word| 0xB6DB_6DB7_u32.rotate_left(word as u32)).collect();
    let allowed = |t: usize| mask[t / 32] >> (t % 32) & 1 == 1;
    let scaled = |t: usize| if allowed(t) { f64::from(logits[t].to_f32()) * 0.75 } else { f64::NEG_INFINITY };
    let exact = log_softmax(&(0..vocab).map(scaled).collect::<Vec<_>>());
    let softmax = SoftmaxOptions::<Cpu> { scale: 0.75, mask: Some(&mask), stride: None };
    let tokens: Vec<u32> = (0..vocab as u32).step_by(vocab / 2).collect();
    let mut out = vec![7.0; tokens.len()];
    let (mut rows, weights) = (logits.repeat(tokens.len()), vec![2.0; tokens.len()]);
    log_prob_with(&Cpu, &softmax, vocab, &rows[..], &tokens, &mut out).unwrap();
    let want: Vec<f64> = tokens.iter().map(|&t| exact[t as usize]).collect();
    assert_close("log-probs", &out, &want, 2e-6);
    gradient_with(&Cpu, &softmax, vocab, &tokens, &weights, &mut rows[..], &mut out).unwrap();
    assert_close("log-probs of the gradient", &out, &want, 2e-6);
    for (row, &token) in rows.chunks(vocab).zip(&tokens) {
        let onehot = |t: usize| f64::from(u8::from(t == token as usize));
        let want: Vec<f64> = (0..vocab).map(|t| 1.5 * (onehot(t) - exact[t].exp())).collect();
        let got: Vec<f32> = row.iter().map(|value| value.to_f32()).collect();
        assert_close("gradient", &got, &want, T::pick([1e-6, 1e-3, 8e-3]));
    }
}

#[test]
fn temperature_and_mask_in_every_precision() {
    for vocab in [2, 33, 1003] {
        by_temperature_and_mask::<f32>(vocab);
        by_temperature_and_mask::<half::f16>(vocab);
        by_temperature_and_mask::<half::bf16>(vocab);
    }
    for scale in [0.0, -1.0, 1e-31, 1e31, f32::NAN, f32::INFINITY] {
        let softmax = SoftmaxOptions { scale, ..SoftmaxOptions::default() };
        assert!(log_prob_with(&Cpu, &softmax, 2, &[0.0_f32; 2][..], &[0], &mut [0.0]).is_err());
    }
    let short = SoftmaxOptions::<Cpu> { mask: Some(&[1]), ..SoftmaxOptions::default() };
    assert!(log_prob_with(&Cpu, &short, 33, &[0.0_f32; 33][..], &[0], &mut [0.0]).is_err());
}

/// (gradient, log-probs).
fn ascend(vocab: usize, logits: &[f32], tokens: &[u32], weights: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
    let (mut out, mut log_probs) = (logits.to_vec(), vec![7.0; tokens.len()]);
    let result = gradient(&Cpu, vocab, tokens, weights, &mut out, &mut log_probs);
    if result.is_err() {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&out) == bits(logits) && log_probs.iter().all(|&l| l == 7.0), "an error writes nothing");
    }
    result.map(|()| (out, log_probs))
}

#[test]
fn gradient_is_w_times_onehot_minus_softmax() {
    for vocab in VOCABS {
        for (name, row) in rows(vocab) {
            let (tokens, exact) = (tokens(&row), exact(&row));
            let weights = [1.0, -2.5, 1e-3, 40.0, 0.7];
            let logits = row.repeat(tokens.len());
            let (got, log_probs) = ascend(vocab, &logits, &tokens, &weights).unwrap();
            let name = format!("{name}, V = {vocab}");
            for ((got, &token), weight) in got.chunks(vocab).zip(&tokens).zip(weights.map(f64::from)) {
                let onehot = |t: usize| if t == token as usize { 1.0 } else { 0.0 };
                let want: Vec<f64> = (0..vocab).map(|t| weight * (onehot(t) - exact[t].exp())).collect();
                assert_close(&name, got, &want, 1e-6 * weight.abs());
                let total: f64 = got.iter().map(|&g| f64::from(g)).sum();
                assert_close(&name, &[total], &[0.0], 1e-6 * weight.abs());
            }
            assert_eq!(log_probs, score(vocab, &logits, &tokens).unwrap(), "{name}: the same log-probs");
        }
    }
}

#[test]
fn gradient_is_the_central_difference() {
    let (vocab, token, weight) = (9, 4, -1.75);
    let logits = random(3, vocab, 2.0);
    let objective = |at: usize, by: f64| {
        let row = logits.iter().enumerate().map(|(t, &l)| f64::from(l) + if t == at { by } else { 0.0 });
        f64::from(weight) * log_softmax(&row.collect::<Vec<_>>())[token as usize]
    };
    let step = 1e-5;
    let want: Vec<f64> = (0..vocab).map(|at| (objective(at, step) - objective(at, -step)) / (2.0 * step)).collect();
    assert_block_close("gradient", &ascend(vocab, &logits, &[token], &[weight]).unwrap().0, &want, 1e-6);
}

#[test]
fn gradient_of_a_sure_token_does_not_cancel() {
    // 1 − p = 2e-9 is lost to f32 if formed from p.
    let logits = [20.0, 0.0];
    let (got, _) = ascend(2, &logits, &[0], &[1.0]).unwrap();
    assert_block_close("gradient", &got, &[(-20f64).exp(), -(-20f64).exp()], 1e-6);
}

#[test]
fn rows_of_weight_0_are_not_read() {
    let (nan, none) = (f32::NAN, u32::MAX);
    let (got, log_probs) = ascend(2, &[nan, nan, 0.0, 0.0, 1.0, nan], &[none, 1, 0], &[0.0, 2.0, -0.0]).unwrap();
    assert_eq!(got, [0.0, 0.0, -1.0, 1.0, 0.0, 0.0]);
    assert_close("log-probs", &log_probs, &[f64::NAN, 0.5f64.ln(), f64::NAN], 1e-7);
}

#[test]
fn bad_weights_tokens_and_logits_are_errors() {
    let logits = [0.0f32, 1.0, 2.0, 3.0];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = ascend(2, &logits, &[0, 0], &[1.0, bad]).unwrap_err();
        assert_eq!(error, Error::not_a_number("weight", format!("row 1 ({bad})")));
    }
    assert!(ascend(2, &logits, &[0, 2], &[1.0, 1.0]).unwrap_err().to_string().contains("token of row 1"));
    assert!(ascend(2, &[0.0, 1.0, f32::NAN, 0.0], &[0, 1], &[1.0; 2]).unwrap_err().to_string().contains("row 1"));
    assert!(ascend(2, &logits, &[0; 2], &[1.0; 3]).is_err() && ascend(3, &logits, &[0; 2], &[1.0; 2]).is_err());
}

#[test]
fn one_thread_or_many_the_same_bits() {
    let (vocab, count) = (5003, 40);
    let logits = random(4, vocab * count, 8.0);
    let tokens: Vec<u32> = (0..count as u32).map(|row| row * 97 % vocab as u32).collect();
    let weights: Vec<f32> = (0..count).map(|row| row as f32 - 7.0).collect();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| ascend(vocab, &logits, &tokens, &weights).unwrap())
    };
    let bits = |(gradient, log_probs): &(Vec<f32>, Vec<f32>)| -> Vec<u32> {
        gradient.iter().chain(log_probs).map(|x| x.to_bits()).collect()
    };
    assert_eq!(bits(&with(1)), bits(&with(3)));
}

#[test]
fn gaps_between_rows_are_neither_read_nor_written() {
    for (vocab, stride) in [(3, 5), (600, 601), (20, 20)] {
        let softmax = SoftmaxOptions::<Cpu> { stride: Some(stride), ..SoftmaxOptions::default() };
        let dense = random(5, vocab * 4, 4.0);
        // The last row has no gap behind it.
        let mut gappy = vec![f32::NAN; stride * 3 + vocab];
        gappy.chunks_mut(stride).zip(dense.chunks(vocab)).for_each(|(to, row)| to[..vocab].copy_from_slice(row));
        let (tokens, weights) = ([0, 1, 2, 0], [1.0, 0.0, -2.0, 3.0]);
        let mut got = [0.0; 4];
        log_prob_with(&Cpu, &softmax, vocab, &gappy[..], &tokens, &mut got).unwrap();
        assert_eq!(got.to_vec(), score(vocab, &dense, &tokens).unwrap());
        let (want, _) = ascend(vocab, &dense, &tokens, &weights).unwrap();
        gradient_with(&Cpu, &softmax, vocab, &tokens, &weights, &mut gappy[..], &mut got).unwrap();
        for (row, want) in gappy.chunks(stride).zip(want.chunks(vocab)) {
            assert_eq!(&row[..vocab], want);
            assert!(row[vocab..].iter().all(|x| x.is_nan()), "a gap was written");
        }
    }
    let misfit = |stride, len| {
        let softmax = SoftmaxOptions::<Cpu> { stride: Some(stride), ..SoftmaxOptions::default() };
        log_prob_with(&Cpu, &softmax, 4, &vec![0.0_f32; len][..], &[0; 3], &mut [0.0; 3]).unwrap_err().to_string()
    };
    assert_eq!(misfit(3, 9), "stride of the logits: expected 4 values or more, got 3");
    assert_eq!(misfit(6, 15), "logits: expected 18 values, got 15");
    assert_eq!(misfit(6, 19), "logits: expected 18 values, got 19");
}

#[test]
fn entropies_match_f64() {
    for vocab in [2, 17, 1003, 50257] {
        for (name, row) in rows(vocab) {
            let exact = exact(&row);
            let term = |l: f64| if l == f64::NEG_INFINITY { 0.0 } else { -l.exp() * l };
            let want: f64 = exact.iter().copied().map(term).sum();
            let (mut log_probs, mut entropies) = ([7.0], [7.0]);
            log_prob_entropy(&Cpu, &SoftmaxOptions::default(), vocab, &row[..], &[1], &mut log_probs, &mut entropies)
                .unwrap();
            assert_close(&format!("{name}, V = {vocab}"), &entropies, &[want], 2e-6 * (1.0 + want));
            assert!(entropies[0] >= 0.0);
            assert_eq!(log_probs.to_vec(), score(vocab, &row, &[1]).unwrap());
        }
    }
}

#[test]
fn sequences_longer_than_65536_tokens() {
    let (vocab, rows) = (3, 70_000);
    let (mut logits, tokens) = (random(6, vocab * rows, 0.01), vec![1; rows]);
    let want: f64 = score(vocab, &logits, &tokens).unwrap().into_iter().map(f64::from).sum();
    let sequences =
        Sequences::<Cpu> { offsets: &[0, rows as u64], coefficient: Coefficient::Given { weights: &[2.0] } };
    let (mut log_probs, mut log_pi) = (vec![0.0; rows], [0.0]);
    let scores = Scores::<Cpu> { log_probs: &mut log_probs, log_pi: &mut log_pi };
    sequence_gradient(&Cpu, &SoftmaxOptions::default(), vocab, &sequences, &tokens, &mut logits[..], scores).unwrap();
    assert_close("log π", &log_pi, &[want], 1e-9);
    assert!(logits.chunks(vocab).all(|row| row[1] > 0.0 && row.iter().sum::<f32>().abs() < 1e-6));
}

const DIVERGENCES: [Divergence; 9] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::TotalVariation,
    Divergence::JensenShannon,
    Divergence::ForwardChiSquare,
    Divergence::ReverseChiSquare,
    Divergence::Alpha(0.5),
    Divergence::Alpha(2.0),
    Divergence::Alpha(-1.0),
];

/// f of D_f = Σ p f(π/p), written down from its definition.
fn f(divergence: Divergence, t: f64) -> f64 {
    match divergence {
        Divergence::ForwardKl => -t.ln(),
        Divergence::ReverseKl => t * t.ln(),
        Divergence::TotalVariation => 0.5 * (t - 1.0).abs(),
        Divergence::JensenShannon => 0.5 * (t * t.ln() - (1.0 + t) * ((1.0 + t) / 2.0).ln()),
        Divergence::ForwardChiSquare => 1.0 / t - 1.0,
        Divergence::ReverseChiSquare => t * t - 1.0,
        Divergence::Alpha(alpha) => (t.powf(alpha) - 1.0 - alpha * (t - 1.0)) / (alpha * (alpha - 1.0)),
        _ => unreachable!(),
    }
}

/// The expected gradient under q is that of the divergence: exact enumeration of one token of four, central differences.
#[test]
fn the_gradient_of_every_divergence_is_its_derivative() {
    let (vocab, logits) = (4, [0.3, -0.4, 0.9, -1.0]);
    let (p, q) = ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]);
    for divergence in DIVERGENCES {
        let mut mean = vec![0.0; vocab];
        for token in 0..vocab {
            let (log_p, log_q) = (f64::ln(p[token]), f64::ln(q[token]));
            let coefficient: Coefficient<'_, Cpu> =
                Coefficient::Divergence { divergence, log_p: &[log_p], log_q: &[log_q] };
            let sequences = Sequences::<Cpu> { offsets: &[0, 1], coefficient };
            let (mut row, mut log_probs, mut log_pi) = (logits, [0.0], [0.0]);
            let scores = Scores::<Cpu> { log_probs: &mut log_probs, log_pi: &mut log_pi };
            let softmax = SoftmaxOptions::default();
            sequence_gradient(&Cpu, &softmax, vocab, &sequences, &[token as u32], &mut row[..], scores).unwrap();
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += q[token] * f64::from(x));
        }
        let loss = |at: usize, by: f64| -> f64 {
            let row: Vec<f64> = (0..vocab).map(|t| f64::from(logits[t]) + if t == at { by } else { 0.0 }).collect();
            log_softmax(&row).iter().zip(p).map(|(l, p)| p * f(divergence, l.exp() / p)).sum()
        };
        let want: Vec<f64> = (0..vocab).map(|at| -(loss(at, 1e-5) - loss(at, -1e-5)) / 2e-5).collect();
        assert_block_close(&format!("{divergence:?}"), &mean, &want, 1e-5);
    }
}

#[test]
fn outside_of_the_support_a_divergence_is_0_or_an_error() {
    for divergence in DIVERGENCES {
        let log_p = [f64::NEG_INFINITY, -1.0];
        let coefficient: Coefficient<'_, Cpu> =
            Coefficient::Divergence { divergence, log_p: &log_p, log_q: &[-1.0; 2] };
        let sequences = Sequences::<Cpu> { offsets: &[0, 1, 2], coefficient };
        // The first sequence is not read where its coefficient is 0.
        let first = if divergence.is_bounded() { f32::NAN } else { 0.0 };
        let mut row = [first, 0.0, 0.0, 0.0];
        let (mut log_probs, mut log_pi) = ([7.0; 2], [7.0; 2]);
        let scores = Scores::<Cpu> { log_probs: &mut log_probs, log_pi: &mut log_pi };
        let softmax = SoftmaxOptions::default();
        let result = sequence_gradient(&Cpu, &softmax, 2, &sequences, &[0, 0], &mut row[..], scores);
        assert_eq!(result.is_ok(), divergence.is_bounded(), "{divergence:?}");
        match result {
            Ok(()) => assert!(row[..2] == [0.0; 2] && log_pi[0].is_nan() && log_pi[1] == f64::from(0.5f32.ln())),
            Err(error) => {
                assert_eq!(error, Error::not_a_number("coefficient", "sequence 0 (NaN)"));
                assert!(row == [0.0; 4] && log_probs == [7.0; 2] && log_pi == [7.0; 2], "an error writes nothing");
            }
        }
    }
    for alpha in [1.0, f64::NAN, f64::INFINITY] {
        let coefficient: Coefficient<'_, Cpu> =
            Coefficient::Divergence { divergence: Divergence::Alpha(alpha), log_p: &[0.0], log_q: &[0.0] };
        let sequences = Sequences::<Cpu> { offsets: &[0, 1], coefficient };
        let scores = Scores::<Cpu> { log_probs: &mut [0.0], log_pi: &mut [0.0] };
        let softmax = SoftmaxOptions::default();
        assert!(sequence_gradient(&Cpu, &softmax, 2, &sequences, &[0], &mut [0.0f32; 2][..], scores).is_err());
    }
}

#[test]
fn gradients_in_16_bits_are_the_rounded_ones() {
    fn check<T: Logit>() {
        let vocab = 777;
        let narrow: Vec<T> = random(7, vocab * 2, 4.0).into_iter().map(T::from_f32).collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        let (want, _) = ascend(vocab, &wide, &[5, 776], &[1.5, -3.0]).unwrap();
        let mut got = narrow.clone();
        gradient(&Cpu, vocab, &[5, 776], &[1.5, -3.0], &mut got[..], &mut [0.0; 2]).unwrap();
        assert_eq!(got, want.into_iter().map(T::from_f32).collect::<Vec<_>>());
    }
    check::<half::f16>();
    check::<half::bf16>();
}
