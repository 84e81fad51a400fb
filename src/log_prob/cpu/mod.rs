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

/// Of each lane the ln of a number from 1 on, to 2e-12 of itself, in operations that all instruction sets have as vectors:
/// 2·artanh((m − 1)/(m + 1)) as a series, where total = 2ᵏ·m with m from √½ to √2. A NaN comes through.
#[inline(always)]
fn ln(totals: &[f64; LANES]) -> [f64; LANES] {
    const ROOT_OF_HALF: u64 = 0x3FE6_A09E_667F_3BCD;
    // Where a number's last bits count ones.
    const ONES: f64 = (1u64 << 52) as f64;
    let mut lns = [0.0; LANES];
    for lane in 0..LANES {
        let total = totals[lane];
        let bits = total.to_bits();
        // 0 or more, as no total is below 1 but where there is no log-prob: NaN whatever this is.
        let exponent = bits.wrapping_sub(ROOT_OF_HALF) >> 52;
        let m = f64::from_bits(bits.wrapping_sub(exponent << 52));
        let s = (m - 1.0) / (m + 1.0);
        let square = s * s;
        let fourth = square * square;
        // By pairs of terms, which is a chain of half the length.
        let series = (2.0 / 9.0 + 2.0 / 11.0 * square) + 2.0 / 13.0 * fourth;
        let series = (2.0 / 5.0 + 2.0 / 7.0 * square) + series * fourth;
        let series = (2.0 + 2.0 / 3.0 * square) + series * fourth;
        let exponent = f64::from_bits(ONES.to_bits() | exponent) - ONES;
        let ln = exponent * std::f64::consts::LN_2 + s * series;
        lns[lane] = if total.is_nan() { total } else { ln };
    }
    lns
}

/// What one read of a group of rows finds of each, as in [`RowScore`], and its entropy, −Σ p log p in nats, where asked for.
struct Group {
    max: [f32; LANES],
    log_prob: [f32; LANES],
    total: [f64; LANES],
    entropy: [f32; LANES],
}

impl Group {
    #[inline(always)]
    fn score(&self, row: usize) -> RowScore {
        RowScore { max: self.max[row], log_prob: self.log_prob[row], total: self.total[row] }
    }
}

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
    // SAFETY: the caller's.
    let (max, total, product) = unsafe {
        let exponents = Exponents::<S>::new(softmax);
        if softmax.vocab < LANES {
            short::normalise::<S, T, ENTROPY>(logits, softmax, exponents, kept.len())
        } else {
            row::normalise::<S, T, ENTROPY>(logits, softmax, exponents, kept)
        }
    };
    let mut own = [f32::NAN; LANES];
    for at in (0..kept.len()).filter(|&at| kept[at]) {
        own[at] = softmax.logit(&logits[at * softmax.stride..][..softmax.vocab], tokens[at]);
    }
    let (scale, log_total) = (f64::from(softmax.scale), ln(&total));
    let (mut log_prob, mut entropy) = ([0.0; LANES], [0.0; LANES]);
    for at in 0..LANES {
        // NaN where all is −∞, as −∞ less −∞ is.
        log_prob[at] = ((f64::from(own[at]) - f64::from(max[at])) * scale - log_total[at]) as f32;
        if ENTROPY {
            entropy[at] = (log_total[at] - scale * product[at] / total[at]).max(0.0) as f32;
        }
    }
    Group { max, log_prob, total, entropy }
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
/// the log-prob of a row that is not read is NaN, and nothing else of it means anything.
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
            let found = score_group(isa, logits, &softmax, tokens, weights, entropy);
            for row in 0..tokens.len() {
                out[row] = keep(found.score(row), found.entropy[row]);
            }
            let bad = |row: &usize| match weights {
                Some(weights) if weights[*row] == 0.0 => false,
                Some(weights) => !(weights[*row] * softmax.scale).is_finite() || found.log_prob[*row].is_nan(),
                None => found.log_prob[*row].is_nan(),
            };
            if let Some(row) = (0..tokens.len()).find(bad) {
                fault = fault.min(first + row);
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
    let (mut own, mut max, mut total, mut weight) = ([0.0; LANES], [0.0; LANES], [1.0; LANES], [0.0; LANES]);
    for at in 0..rows {
        kept[at] = weights[at] != 0.0;
        let row = &mut logits[at * softmax.stride..][..softmax.vocab];
        if kept[at] {
            (own[at], max[at], total[at]) = (softmax.logit(row, tokens[at]), scores[at].max, scores[at].total);
            weight[at] = f64::from(weights[at]) * f64::from(softmax.scale);
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
        let (mut by, mut of_token) = ([0.0; LANES], [0.0; LANES]);
        for at in 0..LANES {
            by[at] = (-weight[at] / total[at]) as f32;
            // 1 − p without cancellation where p is near 1: the largest logit's exponential is exactly 1.
            of_token[at] = (weight[at] * ((total[at] - f64::from(own[at])) / total[at])) as f32;
        }
        if softmax.vocab < LANES {
            short::scale::<S, T>(logits, softmax, exponents, &kept[..rows], &max, &by);
        } else {
            for at in (0..rows).filter(|&at| kept[at]) {
                let row = &mut logits[at * softmax.stride..][..softmax.vocab];
                row::scale::<S, T>(row, softmax.mask, exponents, max[at], by[at]);
            }
        }
        for at in (0..rows).filter(|&at| kept[at]) {
            logits[at * softmax.stride + tokens[at] as usize] = T::from_f32(of_token[at]);
        }
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
        let found = score_group(isa, logits, softmax, tokens, Some(weights), true);
        let plain = score_group(isa, logits, softmax, tokens, Some(weights), false);
        let scores = |group: &Group| (0..tokens.len()).map(|row| group.score(row)).collect::<Vec<_>>();
        let bits =
            |score: &RowScore| [score.max.to_bits().into(), score.log_prob.to_bits().into(), score.total.to_bits()];
        let (scores, plain) = (scores(&found), scores(&plain));
        assert!(scores.iter().flat_map(bits).eq(plain.iter().flat_map(bits)), "{isa:?}: the same with entropies");
        let mut gradient = logits.to_vec();
        descend_group(isa, &mut gradient, softmax, tokens, weights, &scores);
        let entropies = found.entropy[..tokens.len()].iter().map(|entropy| entropy.to_bits().into());
        let found = scores.iter().flat_map(bits).chain(entropies);
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
        let ln = |total| ln(&[total; LANES])[LANES - 1];
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
