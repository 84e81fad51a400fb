//! Log-probs of rows of logits and their gradient, against f64.

mod oracle;

use ebm_dpg::backend::Cpu;
use ebm_dpg::gradient::{gradient, gradient_with};
use ebm_dpg::log_prob::{Logit, SoftmaxOptions, log_prob, log_prob_with};
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
    let softmax = SoftmaxOptions::<Cpu> { scale: 0.75, mask: Some(&mask) };
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
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let softmax = SoftmaxOptions { scale, mask: None };
        assert!(log_prob_with(&Cpu, &softmax, 2, &[0.0_f32; 2][..], &[0], &mut [0.0]).is_err());
    }
    let short = SoftmaxOptions::<Cpu> { scale: 1.0, mask: Some(&[1]) };
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
                assert_close(&name, got, &want, 1e-7 * weight.abs());
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
