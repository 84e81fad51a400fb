//! Rows of logits on the CPU: one read gives a row's largest logit and the sum of its exponentials.
//!
//! Rows are taken sixteen at a time, or as many as a task has; [`row`] and [`short`] say how a row's logits are.
//!
//! Error of log Σ exp, all roundings against us: the difference logit − max half an ulp (4.8e-7 where it lies in [8, 16)),
//! the exponential 1.6e-7 and 1.4e-8 per nat of depth, the sum 6e-7; together 1.4e-6. Lanes and order are fixed, so that all
//! instruction sets and any number of threads give the same bits.

use rayon::prelude::*;

use super::{Logit, SoftmaxOptions, check_row};
use crate::backend::Cpu;
use crate::backend::simd::{Isa, LANES, Simd, dispatch};
use crate::error::{Error, Result};
use crate::tokens::Token;

mod row;
mod short;

use row::Exponents;

/// Rows of logits, with what a kernel needs of the options.
#[derive(Clone, Copy)]
pub(crate) struct Softmax<'a> {
    pub vocab: usize,
    pub stride: usize,
    pub scale: f32,
    pub mask: Option<&'a [u32]>,
}

impl<'a> Softmax<'a> {
    pub(crate) fn new(options: &SoftmaxOptions<'a, Cpu>, vocab: usize) -> Self {
        Softmax { vocab, stride: options.stride(vocab), scale: options.scale, mask: options.mask }
    }

    /// exp(scale·x) = 2^(factor·x), above `lowest`.
    #[inline(always)]
    pub(crate) fn exponent(&self) -> (f32, f32) {
        let factor = (f64::from(self.scale) * std::f64::consts::LOG2_E) as f32;
        (factor, -126.0 / factor)
    }

    /// Rows of a task of the thread pool: fixed, and enough to be worth it; whole groups of sixteen where they are short.
    pub(crate) fn rows_per_task(&self) -> usize {
        match (1 << 13) / self.vocab {
            0 => 1,
            few @ ..LANES => few,
            many => many / LANES * LANES,
        }
    }

    fn allows(&self, token: usize) -> bool {
        self.mask.is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1)
    }

    /// The logit of a row's token: −∞ where the mask forbids it, NaN where it is not in the vocabulary.
    #[inline(always)]
    fn logit<T: Logit>(&self, row: &[T], token: Token) -> f32 {
        match row.get(token as usize) {
            None => f32::NAN,
            Some(logit) if self.allows(token as usize) => logit.to_f32(),
            Some(_) => f32::NEG_INFINITY,
        }
    }
}

/// What one read of a row finds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RowScore {
    /// The largest logit.
    pub max: f32,
    /// Of the row's token: at most 0, NaN where the row has no softmax, the token is not in it, or the row was not read.
    pub log_prob: f32,
    /// Σ exp(scale·(logit − max)): at least 1.
    pub total: f64,
}

/// ln of a number from 1 on, to 2e-12 of itself, in few enough operations to be inlined: 2·artanh((m − 1)/(m + 1)) as a series,
/// where total = 2ᵏ·m with m from √½ to √2. A NaN comes through.
#[inline(always)]
fn ln(total: f64) -> f64 {
    const ROOT_OF_HALF: i64 = 0x3FE6_A09E_667F_3BCD;
    let bits = total.to_bits() as i64;
    let exponent = bits.wrapping_sub(ROOT_OF_HALF) >> 52;
    let m = f64::from_bits(bits.wrapping_sub(exponent << 52) as u64);
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let terms = [2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0];
    let series = terms.into_iter().fold(0.0, |sum, term| sum * square + term);
    let ln = exponent as f64 * std::f64::consts::LN_2 + s * series;
    if total.is_nan() { total } else { ln }
}

/// Scores and entropies (−Σ p log p in nats, where asked for) of a group of rows.
type Group = ([RowScore; LANES], [f32; LANES]);

/// Up to 16 rows, one for each token; those whose weight is 0 are left out, where there are weights.
#[inline(always)]
unsafe fn score_rows<S: Simd, T: Logit, const ENTROPY: bool>(
    logits: &[T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: Option<&[f32]>,
) -> Group {
    let mut kept = [false; LANES];
    (0..tokens.len()).for_each(|at| kept[at] = weights.is_none_or(|weights| weights[at] != 0.0));
    let kept = &kept[..tokens.len()];
    let row = |at: usize| &logits[at * softmax.stride..][..softmax.vocab];
    // SAFETY: the caller's.
    let (max, total, product) = unsafe {
        let exponents = Exponents::<S>::new(softmax);
        if softmax.vocab < LANES {
            short::normalise::<S, T, ENTROPY>(logits, softmax, exponents, kept)
        } else {
            row::normalise::<S, T, ENTROPY>(logits, softmax, exponents, kept)
        }
    };
    let (scale, mut scores) =
        (f64::from(softmax.scale), [RowScore { log_prob: f32::NAN, ..RowScore::default() }; LANES]);
    let (log_total, mut entropies) = (total.map(ln), [0.0; LANES]);
    for at in 0..kept.len() {
        if kept[at] {
            let (max, total, log_total) = (max[at], total[at], log_total[at]);
            let logit = softmax.logit(row(at), tokens[at]);
            // NaN where all is −∞, as −∞ less −∞ is.
            let log_prob = (f64::from(logit) - f64::from(max)) * scale - log_total;
            scores[at] = RowScore { max, log_prob: log_prob as f32, total };
            if ENTROPY {
                entropies[at] = (log_total - scale * product[at] / total).max(0.0) as f32;
            }
        }
    }
    (scores, entropies)
}

#[inline(always)]
unsafe fn group<S: Simd, T: Logit>(
    logits: &[T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: Option<&[f32]>,
    entropy: bool,
) -> Group {
    // SAFETY: the caller's.
    unsafe {
        if entropy {
            score_rows::<S, T, true>(logits, softmax, tokens, weights)
        } else {
            score_rows::<S, T, false>(logits, softmax, tokens, weights)
        }
    }
}
dispatch! {
    fn score_group<T: Logit>(
        logits: &[T], softmax: &Softmax<'_>, tokens: &[Token], weights: Option<&[f32]>, entropy: bool,
    ) -> Group = group
}

/// A run of rows: logits, tokens, and where the scores go.
type Run<'a, T, O> = ((&'a [T], &'a [Token]), &'a mut [O]);

/// Reads all rows, or those whose weight is not 0, and puts what `keep` makes of each row's score and entropy into `out`;
/// the score of a row that is not read is the default one, its log-prob NaN.
///
/// # Errors
/// The first row at fault, by weight, token or logits.
#[expect(clippy::too_many_arguments, reason = "the inputs of a stage, one by one")]
pub(crate) fn score<T: Logit, O: Send>(
    options: &SoftmaxOptions<'_, Cpu>,
    vocab: usize,
    logits: &[T],
    tokens: &[Token],
    weights: Option<&[f32]>,
    entropy: bool,
    out: &mut [O],
    keep: impl Fn(RowScore, f32) -> O + Sync,
) -> Result<()> {
    let (softmax, isa) = (Softmax::new(options, vocab), Isa::best());
    let run = softmax.rows_per_task();
    let runs = logits.par_chunks(run * softmax.stride).zip(tokens.par_chunks(run)).zip(out.par_chunks_mut(run));
    // All runs are read, whatever is found: of several faults the first is named.
    let fault = |(at, ((logits, tokens), out)): (usize, Run<'_, T, O>)| {
        let mut fault = usize::MAX;
        for (group, (tokens, out)) in tokens.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate() {
            let first = at * run + group * LANES;
            let weights = weights.map(|weights| &weights[first..][..tokens.len()]);
            let logits = &logits[group * LANES * softmax.stride..];
            let (scores, entropies) = score_group(isa, logits, &softmax, tokens, weights, entropy);
            for row in 0..tokens.len() {
                out[row] = keep(scores[row], entropies[row]);
                let bad = match weights {
                    Some(weights) if weights[row] == 0.0 => false,
                    Some(weights) => !(weights[row] * softmax.scale).is_finite() || scores[row].log_prob.is_nan(),
                    None => scores[row].log_prob.is_nan(),
                };
                if bad {
                    fault = fault.min(first + row);
                }
            }
        }
        fault
    };
    match runs.enumerate().map(fault).min() {
        None | Some(usize::MAX) => Ok(()),
        Some(row) => Err(fault_of(options, vocab, logits, tokens, weights, row)),
    }
}

/// What is wrong with a row.
fn fault_of<T: Logit>(
    options: &SoftmaxOptions<'_, Cpu>,
    vocab: usize,
    logits: &[T],
    tokens: &[Token],
    weights: Option<&[f32]>,
    row: usize,
) -> Error {
    let bad = |weight: &f32| !(weight * options.scale).is_finite();
    if let Some(weight) = weights.map(|weights| weights[row]).filter(bad) {
        return Error::not_a_number("weight", format_args!("row {row} ({weight})"));
    }
    let logits = options.row(&logits[row * options.stride(vocab)..][..vocab]);
    let fault = check_row(&logits, tokens[row], format_args!("row {row}"));
    fault.expect_err("a row without a softmax")
}

/// Up to 16 rows become a·scale·(onehot − softmax), with the scores of [`score`] and the weights a; those of weight 0
/// become 0.
#[inline(always)]
unsafe fn descend<S: Simd, T: Logit>(
    logits: &mut [T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: &[f32],
    scores: &[RowScore],
) {
    let (mut kept, rows) = ([false; LANES], tokens.len());
    let (mut own, mut max, mut by) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for at in 0..rows {
        kept[at] = weights[at] != 0.0;
        let row = &mut logits[at * softmax.stride..][..softmax.vocab];
        if kept[at] {
            (own[at], max[at]) = (softmax.logit(row, tokens[at]), scores[at].max);
            by[at] = (-f64::from(weights[at]) * f64::from(softmax.scale) / scores[at].total) as f32;
        } else {
            row.fill(T::default());
        }
    }
    // SAFETY: the caller's.
    unsafe {
        let exponents = Exponents::<S>::new(softmax);
        // The token's own exponential, by the very operations that are in the total.
        let d = S::load(own.as_ptr()).sub(S::load(max.as_ptr()));
        own = exponents.times(d, S::splat(1.0)).lanes();
        if softmax.vocab < LANES {
            short::scale::<S, T>(logits, softmax, exponents, &kept[..rows], &max, &by);
        } else {
            for at in (0..rows).filter(|&at| kept[at]) {
                let row = &mut logits[at * softmax.stride..][..softmax.vocab];
                row::scale::<S, T>(row, softmax.mask, exponents, max[at], by[at]);
            }
        }
    }
    for at in (0..rows).filter(|&at| kept[at]) {
        // 1 − p without cancellation where p is near 1: the largest logit's exponential is exactly 1.
        let rest = (scores[at].total - f64::from(own[at])) / scores[at].total;
        let value = f64::from(weights[at]) * f64::from(softmax.scale) * rest;
        logits[at * softmax.stride + tokens[at] as usize] = T::from_f32(value as f32);
    }
}
dispatch! {
    fn descend_group<T: Logit>(
        logits: &mut [T], softmax: &Softmax<'_>, tokens: &[Token], weights: &[f32], scores: &[RowScore],
    ) = descend
}

/// Replaces rows of logits, whose scores are those of [`score`], by their gradients.
pub(crate) fn write_gradients<T: Logit>(
    softmax: &Softmax<'_>,
    logits: &mut [T],
    tokens: &[Token],
    weights: &[f32],
    scores: &[RowScore],
) {
    let (run, isa) = (softmax.rows_per_task(), Isa::best());
    logits
        .par_chunks_mut(run * softmax.stride)
        .zip(tokens.par_chunks(run))
        .zip(weights.par_chunks(run))
        .zip(scores.par_chunks(run))
        // Backwards: what was read last is still in the caches.
        .rev()
        .for_each(|(((logits, tokens), weights), scores)| {
            let groups = tokens.chunks(LANES).zip(weights.chunks(LANES)).zip(scores.chunks(LANES));
            for (at, ((tokens, weights), scores)) in groups.enumerate() {
                let logits = &mut logits[at * LANES * softmax.stride..];
                descend_group(isa, logits, softmax, tokens, weights, scores);
            }
        });
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::rng::{Draw, Purpose};

    /// Bits of the scores, entropies and gradients of some rows.
    fn run<T: Logit>(
        isa: Isa,
        logits: &[T],
        softmax: &Softmax<'_>,
        tokens: &[Token],
        weights: &[f32],
    ) -> (Vec<u64>, Vec<u32>) {
        let (scores, entropies) = score_group(isa, logits, softmax, tokens, Some(weights), true);
        let (plain, _) = score_group(isa, logits, softmax, tokens, Some(weights), false);
        let bits =
            |score: &RowScore| [score.max.to_bits().into(), score.log_prob.to_bits().into(), score.total.to_bits()];
        assert!(scores.iter().flat_map(bits).eq(plain.iter().flat_map(bits)), "{isa:?}: the same with entropies");
        let mut gradient = logits.to_vec();
        descend_group(isa, &mut gradient, softmax, tokens, weights, &scores[..tokens.len()]);
        let found = scores.iter().flat_map(bits).chain(entropies.map(|entropy| entropy.to_bits().into()));
        (found.collect(), gradient.iter().map(|x| x.to_f32().to_bits()).collect())
    }

    fn agree<T: Logit>(vocab: usize, rows: usize, masked: bool) {
        let (stride, draw) = (vocab + 3, Draw::new(vocab as u64, Purpose::User));
        let logit = |i: usize| match (i / stride % 7, i % 5) {
            (3, 0..3) => f32::NEG_INFINITY,
            (row, _) => 8.0 * draw.uniform(i as u64, 0) + 100.0 * row as f32,
        };
        let logits: Vec<T> = (0..rows * stride).map(|i| T::from_f32(logit(i))).collect();
        let mask: Vec<u32> = (0..vocab.div_ceil(32)).map(|word| 0xB6DB_6DB7_u32.rotate_left(word as u32)).collect();
        let softmax = Softmax { vocab, stride, scale: 0.75, mask: masked.then_some(&mask) };
        let tokens: Vec<Token> = (0..rows).map(|row| (row * 7919 % vocab) as Token).collect();
        let weights: Vec<f32> = (0..rows).map(|row| row as f32 - 5.0).collect();
        let want = run(Isa::Scalar, &logits, &softmax, &tokens, &weights);
        for isa in Isa::all() {
            let got = run(isa, &logits, &softmax, &tokens, &weights);
            assert!(got == want, "{isa:?}, V = {vocab}, {rows} rows, masked: {masked}");
        }
    }

    #[test]
    fn logarithms_of_totals() {
        let near = (0..52).map(|bit| 1.0 + 2f64.powi(-bit));
        let spread = (0..100_000).map(|i| (f64::from(i) * 3e-4).exp());
        for total in near.chain(spread).chain([1.0, std::f64::consts::SQRT_2, 262_144.0, f64::from(u32::MAX)]) {
            assert!((ln(total) - total.ln()).abs() <= 2e-12 * total.ln(), "{total}: {}", ln(total));
        }
        assert!(ln(1.0) == 0.0 && ln(f64::NAN).is_nan());
    }

    #[test]
    fn all_instruction_sets_give_the_same_bits() {
        // Around a vector, four of them, and a block.
        for vocab in [1, 2, 3, 15, 16, 17, 31, 64, 100, 511, 512, 513, 530, 1603] {
            for (rows, masked) in [(1, false), (LANES, false), (7, true)] {
                agree::<f32>(vocab, rows, masked);
                agree::<bf16>(vocab, rows, masked);
            }
        }
    }
}
