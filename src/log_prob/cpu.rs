//! Rows of logits on the CPU: one read gives a row's largest logit and the sum of its exponentials.
//!
//! A row is taken in blocks of 512 that stay in the first-level cache: the block's maximum, then its exponentials, added in
//! f32 over at most ten terms and in f64 beyond. A larger maximum rescales the sum so far. Error of log Σ exp, all
//! roundings against us: the difference logit − max half an ulp (4.8e-7 where it lies in [8, 16)), the exponential 1.6e-7
//! and 1.4e-8 per nat of depth, the sum 6e-7; together 1.4e-6. Lanes and order are fixed, so that all instruction sets and
//! any number of threads give the same bits.

use rayon::prelude::*;

use super::{Logit, SoftmaxOptions, check_row};
use crate::backend::Cpu;
use crate::backend::simd::{Isa, LANES, Simd, dispatch};
use crate::error::{Error, Result};
use crate::tokens::Token;

/// Logits of a block: a multiple of a mask's word.
const BLOCK: usize = 512;

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

    /// Rows of a task of the thread pool: fixed, and enough to be worth it.
    pub(crate) fn rows_per_task(&self) -> usize {
        (1 << 13) / self.vocab + 1
    }
}

/// What one read of a row finds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct RowScore {
    /// The largest logit.
    pub max: f32,
    /// Of the row's token: at most 0, NaN where the row has no softmax or the token is not in it.
    pub log_prob: f64,
    /// Σ exp(scale·(logit − max)): at least 1.
    pub total: f64,
    /// −Σ p log p in nats, where asked for.
    pub entropy: f64,
}

/// The 16 logits from `at` on, −∞ where the mask forbids.
///
/// # Safety
/// They are there; as for [`Simd`].
#[inline(always)]
unsafe fn whole<S: Simd, T: Logit>(row: &[T], at: usize, mask: Option<&[u32]>) -> S {
    unsafe {
        let x = T::load::<S>(row.as_ptr().add(at));
        match mask {
            None => x,
            Some(mask) => x.select((mask[at / 32] >> (at % 32)) as u16, S::splat(f32::NEG_INFINITY)),
        }
    }
}

/// The same of fewer than 16 logits at the end of a row, with −∞ beyond: apart, as its copy is a call, around which a loop
/// would keep nothing in registers.
#[inline(always)]
unsafe fn tail<S: Simd, T: Logit>(row: &[T], at: usize, mask: Option<&[u32]>) -> S {
    let mut lanes = [T::from_f32(f32::NEG_INFINITY); LANES];
    lanes[..row.len() - at].copy_from_slice(&row[at..]);
    // SAFETY: 16 values; the rest is the caller's.
    unsafe {
        let x = T::load::<S>(lanes.as_ptr());
        match mask {
            None => x,
            Some(mask) => x.select((mask[at / 32] >> (at % 32)) as u16, S::splat(f32::NEG_INFINITY)),
        }
    }
}

/// Σ e and, for the entropy, Σ e·d, over the exponentials e of the differences d so far; one sum per lane.
struct Sums {
    exps: [f64; LANES],
    products: [f64; LANES],
}

impl Sums {
    #[inline(always)]
    fn add(to: &mut [f64; LANES], lanes: [f32; LANES]) {
        for lane in 0..LANES {
            to[lane] += f64::from(lanes[lane]);
        }
    }

    /// The maximum has grown by `by`.
    #[inline(always)]
    fn rescale(&mut self, by: f64, scale: f64) {
        // What came before any logit above −∞ is no sum; a NaN among it stays.
        let factor = if by == f64::INFINITY { 0.0 } else { (-by * scale).exp() };
        let by = if by == f64::INFINITY { 0.0 } else { by };
        for lane in 0..LANES {
            self.products[lane] = factor * (self.products[lane] - by * self.exps[lane]);
            self.exps[lane] *= factor;
        }
    }

    /// All lanes, halves first.
    #[inline(always)]
    fn fold(mut lanes: [f64; LANES]) -> f64 {
        for width in [8, 4, 2, 1] {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
        }
        lanes[0]
    }
}

/// (max, Σ exp(scale·(x − max)), Σ (x − max)·exp(scale·(x − max))): the sums are NaN where a logit is NaN or +∞.
#[inline(always)]
unsafe fn normalise<S: Simd, T: Logit, const ENTROPY: bool>(row: &[T], softmax: &Softmax<'_>) -> (f32, f64, f64) {
    let (factor, lowest) = softmax.exponent();
    let mut max = f32::NEG_INFINITY;
    let mut sums = Sums { exps: [0.0; LANES], products: [0.0; LANES] };
    for first in (0..row.len()).step_by(BLOCK) {
        let last = row.len().min(first + BLOCK);
        // SAFETY of both: only whole vectors of the row, and its tail.
        let high = unsafe { highest::<S, T>(row, first, last, softmax.mask) };
        if high > max {
            sums.rescale(f64::from(high) - f64::from(max), f64::from(softmax.scale));
            max = high;
        }
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        unsafe {
            let of = Exponents { shift: S::splat(shift), factor: S::splat(factor), lowest: S::splat(lowest) };
            let [mut a, mut b, mut c, mut d] = [[S::splat(0.0); 2]; 4];
            let mut at = first;
            while at + 4 * LANES <= last {
                a = of.add::<T, ENTROPY>(row, whole(row, at, softmax.mask), at, a);
                b = of.add::<T, ENTROPY>(row, whole(row, at + LANES, softmax.mask), at + LANES, b);
                c = of.add::<T, ENTROPY>(row, whole(row, at + 2 * LANES, softmax.mask), at + 2 * LANES, c);
                d = of.add::<T, ENTROPY>(row, whole(row, at + 3 * LANES, softmax.mask), at + 3 * LANES, d);
                at += 4 * LANES;
            }
            while at + LANES <= last {
                a = of.add::<T, ENTROPY>(row, whole(row, at, softmax.mask), at, a);
                at += LANES;
            }
            if at < last {
                a = of.add::<T, ENTROPY>(row, tail(row, at, softmax.mask), at, a);
            }
            Sums::add(&mut sums.exps, a[0].add(b[0]).add(c[0].add(d[0])).lanes());
            if ENTROPY {
                Sums::add(&mut sums.products, a[1].add(b[1]).add(c[1].add(d[1])).lanes());
            }
        }
    }
    (max, Sums::fold(sums.exps), Sums::fold(sums.products))
}

/// What turns logits into exponentials. No closures around SIMD: they are functions without the instruction set.
#[derive(Clone, Copy)]
struct Exponents<S> {
    shift: S,
    factor: S,
    lowest: S,
}

impl<S: Simd> Exponents<S> {
    /// Sixteen logits more, those at `at`, in the sums of e and of e·d.
    #[inline(always)]
    unsafe fn add<T: Logit, const ENTROPY: bool>(self, row: &[T], logits: S, at: usize, sums: [S; 2]) -> [S; 2] {
        unsafe {
            // The block after the next.
            S::prefetch(row.as_ptr().wrapping_add(at + 2 * BLOCK).cast());
            let d = self.lowest.max(logits.sub(self.shift));
            let e = d.exp2_product(self.factor, self.lowest);
            [sums[0].add(e), if ENTROPY { e.fma(d, sums[1]) } else { sums[1] }]
        }
    }
}

/// The largest logit of a block, NaNs left out.
#[inline(always)]
unsafe fn highest<S: Simd, T: Logit>(row: &[T], first: usize, last: usize, mask: Option<&[u32]>) -> f32 {
    let mut lanes = unsafe {
        let [mut a, mut b, mut c, mut d] = [S::splat(f32::NEG_INFINITY); 4];
        let mut at = first;
        while at + 4 * LANES <= last {
            a = whole::<S, T>(row, at, mask).max(a);
            b = whole::<S, T>(row, at + LANES, mask).max(b);
            c = whole::<S, T>(row, at + 2 * LANES, mask).max(c);
            d = whole::<S, T>(row, at + 3 * LANES, mask).max(d);
            at += 4 * LANES;
        }
        while at + LANES <= last {
            a = whole::<S, T>(row, at, mask).max(a);
            at += LANES;
        }
        if at < last {
            a = tail::<S, T>(row, at, mask).max(a);
        }
        a.max(b).max(c.max(d)).lanes()
    };
    // In halves, as a chain of 16 would take as long as half a block.
    for width in [8, 4, 2, 1] {
        for lane in 0..width {
            if lanes[lane + width] > lanes[lane] {
                lanes[lane] = lanes[lane + width];
            }
        }
    }
    lanes[0]
}

/// A run of rows: `tokens` and `scores` one per row; rows whose weight is 0 are left out, where there are weights.
#[inline(always)]
unsafe fn score_run<S: Simd, T: Logit>(
    logits: &[T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: Option<&[f32]>,
    entropy: bool,
    scores: &mut [RowScore],
) {
    let scale = f64::from(softmax.scale);
    for (at, (&token, score)) in tokens.iter().zip(scores).enumerate() {
        if weights.is_some_and(|weights| weights[at] == 0.0) {
            continue;
        }
        let row = &logits[at * softmax.stride..][..softmax.vocab];
        // SAFETY: the caller's.
        let (max, total, product) = unsafe {
            if entropy { normalise::<S, T, true>(row, softmax) } else { normalise::<S, T, false>(row, softmax) }
        };
        let log_total = total.ln();
        let allowed = |token: usize| softmax.mask.is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1);
        let log_prob = match row.get(token as usize) {
            _ if max == f32::NEG_INFINITY => f64::NAN,
            None => f64::NAN,
            Some(logit) if allowed(token as usize) => (f64::from(logit.to_f32()) - f64::from(max)) * scale - log_total,
            // A NaN total is still to be seen.
            Some(_) => f64::NEG_INFINITY - log_total,
        };
        *score = RowScore { max, log_prob, total, entropy: (log_total - scale * product / total).max(0.0) };
    }
}
dispatch! {
    fn score_rows<T: Logit>(
        logits: &[T], softmax: &Softmax<'_>, tokens: &[Token], weights: Option<&[f32]>, entropy: bool,
        scores: &mut [RowScore],
    ) = score_run
}

/// A run of rows: logits, tokens, and where the scores go.
type Run<'a, T, O> = ((&'a [T], &'a [Token]), &'a mut [O]);

/// Reads all rows, or those whose weight is not 0, and puts what `keep` makes of each into `out`; the score of a row that
/// is not read is the default one, its log-prob NaN.
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
    keep: impl Fn(RowScore) -> O + Sync,
) -> Result<()> {
    let softmax = Softmax::new(options, vocab);
    let run = softmax.rows_per_task();
    let runs = logits.par_chunks(run * softmax.stride).zip(tokens.par_chunks(run)).zip(out.par_chunks_mut(run));
    // All runs are read, whatever is found: of several faults the first is named.
    let fault = |scores: &mut Vec<RowScore>, (at, ((logits, tokens), out)): (usize, Run<'_, T, O>)| {
        let first = at * run;
        let weights = weights.map(|weights| &weights[first..][..tokens.len()]);
        scores.clear();
        scores.resize(tokens.len(), RowScore { log_prob: f64::NAN, ..RowScore::default() });
        score_rows(Isa::best(), logits, &softmax, tokens, weights, entropy, scores);
        out.iter_mut().zip(&*scores).for_each(|(out, score)| *out = keep(*score));
        let bad = |&at: &usize| match weights {
            Some(weights) if weights[at] == 0.0 => false,
            Some(weights) => !(weights[at] * softmax.scale).is_finite() || scores[at].log_prob.is_nan(),
            None => scores[at].log_prob.is_nan(),
        };
        (0..tokens.len()).find(bad).map_or(usize::MAX, |at| first + at)
    };
    match runs.enumerate().map_init(Vec::new, fault).min() {
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

/// `row` becomes coefficient·(onehot − softmax), where the coefficient is weight·scale and `log_prob` the token's.
#[inline(always)]
unsafe fn descend<S: Simd, T: Logit>(
    row: &mut [T],
    softmax: &Softmax<'_>,
    score: RowScore,
    token: usize,
    coefficient: f64,
) {
    let (factor, lowest) = softmax.exponent();
    let of_exp = (-coefficient / score.total) as f32;
    unsafe {
        let (factor, lowest, of_exp) = (S::splat(factor), S::splat(lowest), S::splat(of_exp));
        let max = S::splat(score.max);
        let full = row.len() / LANES * LANES;
        for at in (0..full).step_by(LANES) {
            S::prefetch(row.as_ptr().wrapping_add(at + 2 * BLOCK).cast());
            let d = whole::<S, T>(row, at, softmax.mask).sub(max);
            let value = of_exp.mul(d.exp2_product(factor, lowest).zero_below(d, lowest));
            T::store(value, row.as_mut_ptr().add(at));
        }
        if full < row.len() {
            let d = tail::<S, T>(row, full, softmax.mask).sub(max);
            let value = of_exp.mul(d.exp2_product(factor, lowest).zero_below(d, lowest));
            let mut lanes = [T::default(); LANES];
            T::store(value, lanes.as_mut_ptr());
            let rest = row.len() - full;
            row[full..].copy_from_slice(&lanes[..rest]);
        }
    }
    // 1 − p without cancellation where p is near 1.
    row[token] = T::from_f32((-coefficient * score.log_prob.exp_m1()) as f32);
}

/// A run of rows that [`score`] accepted; a row of weight 0 becomes 0.
#[inline(always)]
unsafe fn gradient_run<S: Simd, T: Logit>(
    logits: &mut [T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: &[f32],
    scores: &[RowScore],
) {
    for (at, (&token, &weight)) in tokens.iter().zip(weights).enumerate() {
        let row = &mut logits[at * softmax.stride..][..softmax.vocab];
        if weight == 0.0 {
            row.fill(T::default());
            continue;
        }
        let coefficient = f64::from(weight) * f64::from(softmax.scale);
        // SAFETY: the caller's.
        unsafe { descend::<S, T>(row, softmax, scores[at], token as usize, coefficient) };
    }
}
dispatch! {
    fn gradient_rows<T: Logit>(
        logits: &mut [T], softmax: &Softmax<'_>, tokens: &[Token], weights: &[f32], scores: &[RowScore],
    ) = gradient_run
}

/// Replaces rows of logits, whose scores are those of [`score`], by their gradients.
pub(crate) fn write_gradients<T: Logit>(
    softmax: &Softmax<'_>,
    logits: &mut [T],
    tokens: &[Token],
    weights: &[f32],
    scores: &[RowScore],
) {
    let run = softmax.rows_per_task();
    logits
        .par_chunks_mut(run * softmax.stride)
        .zip(tokens.par_chunks(run))
        .zip(weights.par_chunks(run))
        .zip(scores.par_chunks(run))
        .for_each(|(((logits, tokens), weights), scores)| {
            gradient_rows(Isa::best(), logits, softmax, tokens, weights, scores);
        });
}
