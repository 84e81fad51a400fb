//! Rows of logits on the CPU: one read gives a row's largest logit and the sum of its exponentials.
//!
//! Rows are taken sixteen at a time, or as many as a task has; [`row`], [`tile`] and [`short`] say how a row's logits are.
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

mod gradient;
mod row;
mod short;
mod tile;

pub(crate) use gradient::{gradients, write_gradients};
use row::{BLOCK, Exponents};
use tile::Kept;

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

    /// Whether sixteen rows are so short that their exponentials are kept.
    fn is_short(&self) -> bool {
        self.vocab <= BLOCK
    }

    fn allows(&self, token: usize) -> bool {
        self.mask.is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1)
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

/// Up to 16 rows, one for each token, and which of them are read: those whose weight is not 0, where there are weights.
struct Rows<'a, T> {
    logits: &'a [T],
    vocab: usize,
    stride: usize,
    count: usize,
    /// A bit for each row.
    read: u16,
}

impl<'a, T: Logit> Rows<'a, T> {
    /// None where no row is read.
    #[inline(always)]
    fn new(logits: &'a [T], softmax: &Softmax<'_>, count: usize, weights: Option<&[f32]>) -> Option<Self> {
        let all = u16::MAX >> (LANES - count);
        let bit = |(at, &weight): (usize, &f32)| u16::from(weight != 0.0) << at;
        let read = weights.map_or(all, |weights| weights.iter().enumerate().map(bit).fold(0, |bits, bit| bits | bit));
        (read != 0).then_some(Rows { logits, vocab: softmax.vocab, stride: softmax.stride, count, read })
    }

    fn is_read(&self, at: usize) -> bool {
        self.read >> at & 1 == 1
    }

    /// A row, or one that is read in place of one that is not, and of one that is not there.
    #[inline(always)]
    fn of(&self, at: usize) -> &'a [T] {
        let row = if self.is_read(at) { at } else { self.read.trailing_zeros() as usize };
        &self.logits[row * self.stride..][..self.vocab]
    }

    /// The logits of the rows' tokens: −∞ where the mask forbids one, NaN where it is not in the vocabulary or the row is not read.
    #[inline(always)]
    fn own(&self, softmax: &Softmax<'_>, tokens: &[Token]) -> [f32; LANES] {
        let mut own = [f32::NAN; LANES];
        for at in 0..tokens.len() {
            let token = tokens[at] as usize;
            if self.is_read(at) && token < self.vocab {
                own[at] = self.logits[at * self.stride + token].to_f32();
            }
        }
        if softmax.mask.is_some() {
            for at in (0..tokens.len()).filter(|&at| self.is_read(at)) {
                let token = tokens[at] as usize;
                own[at] = if token >= self.vocab || softmax.allows(token) { own[at] } else { f32::NEG_INFINITY };
            }
        }
        own
    }
}

/// Log-probs of logits in rows of these maxima and totals, from the logarithms of these; NaN where all is −∞, as −∞ less −∞ is.
#[inline(always)]
fn log_probs(softmax: &Softmax<'_>, own: &[f32; LANES], max: &[f32; LANES], lns: &[f64; LANES]) -> [f32; LANES] {
    let (scale, mut log_probs) = (f64::from(softmax.scale), [0.0; LANES]);
    for at in 0..LANES {
        log_probs[at] = ((f64::from(own[at]) - f64::from(max[at])) * scale - lns[at]) as f32;
    }
    log_probs
}

/// Up to 16 rows, one for each token; those whose weight is 0 are left out, where there are weights.
#[inline(always)]
unsafe fn score_rows<S: Simd, T: Logit, const ENTROPY: bool>(
    logits: &[T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: Option<&[f32]>,
) -> Group {
    let none = || Group { max: [0.0; LANES], log_prob: [f32::NAN; LANES], total: [1.0; LANES], entropy: [0.0; LANES] };
    let Some(rows) = Rows::new(logits, softmax, tokens.len(), weights) else { return none() };
    let (mut max, mut total, mut product) = ([0.0; LANES], [1.0; LANES], [0.0; LANES]);
    // SAFETY: the caller's.
    unsafe {
        let exponents = Exponents::<S>::new(softmax);
        if softmax.vocab < LANES {
            let found = short::normalise::<S, T, ENTROPY, 0>(&rows, softmax, exponents, &mut Kept::new());
            (max, total, product) = found;
        } else if softmax.is_short() {
            let found = tile::normalise::<S, T, ENTROPY, 0>(&rows, softmax, exponents, &mut Kept::new());
            (max, total, product) = found;
        } else {
            for at in (0..rows.count).filter(|&at| rows.is_read(at)) {
                let found = row::normalise::<S, T, ENTROPY>(rows.of(at), softmax, exponents);
                (max[at], total[at], product[at]) = found;
            }
        }
    }
    let lns = ln(&total);
    let log_prob = log_probs(softmax, &rows.own(softmax, tokens), &max, &lns);
    let mut entropy = [0.0; LANES];
    if ENTROPY {
        for at in 0..LANES {
            entropy[at] = (lns[at] - f64::from(softmax.scale) * product[at] / total[at]).max(0.0) as f32;
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
            fault = fault.min(first.saturating_add(fault_in(&found, &softmax, tokens.len(), weights)));
        }
        fault
    };
    match runs.enumerate().map(fault).min() {
        None | Some(usize::MAX) => Ok(()),
        Some(row) => Err(fault_of(options, vocab, logits, tokens, weights, row)),
    }
}

/// The first of a group's rows at fault, or `usize::MAX`.
fn fault_in(found: &Group, softmax: &Softmax<'_>, rows: usize, weights: Option<&[f32]>) -> usize {
    let bad = |row: &usize| match weights {
        Some(weights) if weights[*row] == 0.0 => false,
        Some(weights) => !(weights[*row] * softmax.scale).is_finite() || found.log_prob[*row].is_nan(),
        None => found.log_prob[*row].is_nan(),
    };
    // Most often there is none.
    let suspect = (0..rows).fold(false, |any, row| any | bad(&row));
    if suspect { (0..rows).find(bad).unwrap_or(usize::MAX) } else { usize::MAX }
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

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::gradient::{descend_group, descend_kept};
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
            |score: &RowScore| [u64::from(score.max.to_bits()), score.log_prob.to_bits().into(), score.total.to_bits()];
        let (scores, plain) = (scores(&found), scores(&plain));
        for row in (0..tokens.len()).filter(|&row| weights[row] != 0.0) {
            assert_eq!(bits(&scores[row]), bits(&plain[row]), "{isa:?}: row {row}, the same with entropies");
        }
        let mut gradient = logits.to_vec();
        if softmax.is_short() {
            let log_probs = descend_kept(isa, &mut gradient, softmax, tokens, weights);
            assert!((0..tokens.len()).all(|row| log_probs[row].to_bits() == scores[row].log_prob.to_bits()), "{isa:?}");
        } else {
            descend_group(isa, &mut gradient, softmax, tokens, weights, &scores);
        }
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
