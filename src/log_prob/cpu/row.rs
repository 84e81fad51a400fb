//! A row of 16 logits or more, sixteen at a time.
//!
//! A row is taken in blocks of 512 that stay in the first-level cache: the block's maximum, then its exponentials, added in
//! f32 over at most ten terms and in f64 beyond. A larger maximum rescales the sum so far. What is left behind the last
//! whole vector is the row's last sixteen logits, without those that were there before: no copy, no read beyond the row.

use super::{Logit, Softmax};
use crate::backend::simd::{LANES, Simd};

/// Logits of a block: a multiple of a mask's word.
const BLOCK: usize = 512;

/// The bits of 16 tokens from `at` on.
fn bits(mask: &[u32], at: usize) -> u16 {
    let next = mask.get(at / 32 + 1).copied().unwrap_or(0);
    ((u64::from(mask[at / 32]) | u64::from(next) << 32) >> (at % 32)) as u16
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
            Some(mask) => x.select(bits(mask, at), S::splat(f32::NEG_INFINITY)),
        }
    }
}

/// The last 16 logits, −∞ for those before `from`.
#[inline(always)]
unsafe fn rest<S: Simd, T: Logit>(row: &[T], from: usize, mask: Option<&[u32]>) -> S {
    let at = row.len() - LANES;
    unsafe { whole::<S, T>(row, at, mask).select(u16::MAX << (from - at), S::splat(f32::NEG_INFINITY)) }
}

/// Σ e and, for the entropy, Σ e·d, over the exponentials e of the differences d so far; one sum per lane.
struct Sums<S: Simd> {
    exps: S::Wide,
    products: S::Wide,
}

impl<S: Simd> Sums<S> {
    /// The maximum has grown by `by`.
    #[inline(always)]
    unsafe fn rescale<const ENTROPY: bool>(&mut self, by: f64, scale: f64) {
        // What came before any logit above −∞ is no sum; a NaN among it stays.
        let factor = if by == f64::INFINITY { 0.0 } else { (-by * scale).exp() };
        let by = if by == f64::INFINITY { 0.0 } else { by };
        unsafe {
            let mut exps = S::wide_lanes(self.exps);
            if ENTROPY {
                let mut products = S::wide_lanes(self.products);
                for lane in 0..LANES {
                    products[lane] = factor * (products[lane] - by * exps[lane]);
                }
                self.products = S::wide(&products);
            }
            for lane in 0..LANES {
                exps[lane] *= factor;
            }
            self.exps = S::wide(&exps);
        }
    }
}

/// Of each row that `kept` names (max, Σ exp(scale·(x − max)), Σ (x − max)·exp(scale·(x − max))): the sums are NaN where a
/// logit is NaN or +∞.
#[inline(always)]
pub(super) unsafe fn normalise<S: Simd, T: Logit, const ENTROPY: bool>(
    logits: &[T],
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
    kept: &[bool],
) -> ([f32; LANES], [f64; LANES], [f64; LANES]) {
    let row = |at: usize| &logits[at * softmax.stride..][..softmax.vocab];
    let (mut max, mut total, mut product) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    let rows = || (0..kept.len()).filter(|&at| kept[at]);
    if softmax.vocab > BLOCK {
        for at in rows() {
            // SAFETY: the caller's.
            (max[at], total[at], product[at]) = unsafe { long::<S, T, ENTROPY>(row(at), softmax, exponents) };
        }
        return (max, total, product);
    }
    // Rows of one block go through each step together, so that none waits for another's chain of operations, and their
    // lanes are folded sixteen rows at once.
    // SAFETY: the caller's.
    unsafe {
        let mut found = [S::splat(f32::NEG_INFINITY); LANES];
        for at in rows() {
            found[at] = highest::<S, T>(row(at), 0, softmax.vocab, softmax.mask);
        }
        max = S::max_of_rows(&found).lanes();
        let (mut exps, mut products) = ([S::splat(0.0); LANES], [S::splat(0.0); LANES]);
        for at in rows() {
            let shift = S::splat(shift(max[at]));
            [exps[at], products[at]] =
                block::<S, T, ENTROPY>(row(at), 0, softmax.vocab, softmax.mask, exponents, shift);
        }
        total = S::wide_lanes(S::sums_of_rows(&exps));
        if ENTROPY {
            product = S::wide_lanes(S::sums_of_rows(&products));
        }
    }
    (max, total, product)
}

/// What is taken from each logit: the largest, if there is one above −∞.
#[inline(always)]
fn shift(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// The same of one row of several blocks.
#[inline(always)]
unsafe fn long<S: Simd, T: Logit, const ENTROPY: bool>(
    row: &[T],
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
) -> (f32, f64, f64) {
    // SAFETY: the caller's.
    unsafe {
        let mut max = f32::NEG_INFINITY;
        let mut sums = Sums::<S> { exps: S::wide(&[0.0; LANES]), products: S::wide(&[0.0; LANES]) };
        for first in (0..row.len()).step_by(BLOCK) {
            let last = row.len().min(first + BLOCK);
            let high = highest::<S, T>(row, first, last, softmax.mask);
            // Rare, but for the first block.
            if high.any_above(S::splat(max)) {
                let high = high.max_lane();
                sums.rescale::<ENTROPY>(f64::from(high) - f64::from(max), f64::from(softmax.scale));
                max = high;
            }
            let shift = S::splat(shift(max));
            let [exps, products] = block::<S, T, ENTROPY>(row, first, last, softmax.mask, exponents, shift);
            sums.exps = exps.add_wide(sums.exps);
            if ENTROPY {
                sums.products = products.add_wide(sums.products);
            }
        }
        (max, S::wide_sum(sums.exps), if ENTROPY { S::wide_sum(sums.products) } else { 0.0 })
    }
}

/// [Σ e, Σ e·d] of a block, by lane.
#[inline(always)]
unsafe fn block<S: Simd, T: Logit, const ENTROPY: bool>(
    row: &[T],
    first: usize,
    last: usize,
    mask: Option<&[u32]>,
    of: Exponents<S>,
    shift: S,
) -> [S; 2] {
    unsafe {
        let [mut a, mut b, mut c, mut d] = [[S::splat(0.0); 2]; 4];
        let mut at = first;
        while at + 4 * LANES <= last {
            // The block after the next.
            let ahead = row.as_ptr().wrapping_add(at + 2 * BLOCK).cast::<f32>();
            for line in 0..size_of::<T>() {
                S::prefetch(ahead.wrapping_add(line * LANES));
            }
            a = of.add::<ENTROPY>(whole::<S, T>(row, at, mask).sub(shift), a);
            b = of.add::<ENTROPY>(whole::<S, T>(row, at + LANES, mask).sub(shift), b);
            c = of.add::<ENTROPY>(whole::<S, T>(row, at + 2 * LANES, mask).sub(shift), c);
            d = of.add::<ENTROPY>(whole::<S, T>(row, at + 3 * LANES, mask).sub(shift), d);
            at += 4 * LANES;
        }
        while at + LANES <= last {
            a = of.add::<ENTROPY>(whole::<S, T>(row, at, mask).sub(shift), a);
            at += LANES;
        }
        if at < last {
            b = of.add::<ENTROPY>(rest::<S, T>(row, at, mask).sub(shift), b);
        }
        [a[0].add(b[0]).add(c[0].add(d[0])), a[1].add(b[1]).add(c[1].add(d[1]))]
    }
}

/// What turns differences from the largest logit into exponentials. No closures around SIMD: they are functions without
/// the instruction set.
#[derive(Clone, Copy)]
pub(super) struct Exponents<S> {
    factor: S,
    lowest: S,
}

impl<S: Simd> Exponents<S> {
    /// exp(scale·d) = 2^(factor·d), above `lowest`.
    #[inline(always)]
    pub(super) unsafe fn new(softmax: &Softmax<'_>) -> Self {
        let (factor, lowest) = softmax.exponent();
        unsafe { Exponents { factor: S::splat(factor), lowest: S::splat(lowest) } }
    }

    /// Sixteen differences more in the sums of e and of e·d.
    #[inline(always)]
    pub(super) unsafe fn add<const ENTROPY: bool>(self, d: S, sums: [S; 2]) -> [S; 2] {
        unsafe {
            let e = d.exp2_product(self.factor, self.lowest);
            [sums[0].add(e), if ENTROPY { e.fma(self.lowest.max(d), sums[1]) } else { sums[1] }]
        }
    }

    /// `by`·e, 0 where e is.
    #[inline(always)]
    pub(super) unsafe fn times(self, d: S, by: S) -> S {
        unsafe { by.mul(d.exp2_product(self.factor, self.lowest)).zero_below(d, self.lowest) }
    }
}

/// The largest logits of a block by lane, NaNs left out.
#[inline(always)]
unsafe fn highest<S: Simd, T: Logit>(row: &[T], first: usize, last: usize, mask: Option<&[u32]>) -> S {
    unsafe {
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
            b = rest::<S, T>(row, at, mask).max(b);
        }
        a.max(b).max(c.max(d))
    }
}

/// Each logit x of `row` becomes `by`·exp(scale·(x − max)).
#[inline(always)]
pub(super) unsafe fn scale<S: Simd, T: Logit>(
    row: &mut [T],
    mask: Option<&[u32]>,
    exponents: Exponents<S>,
    max: f32,
    by: f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let (max, by) = (S::splat(max), S::splat(by));
        let last = row.len() - LANES;
        // Read before anything is written, as the last vectors may overlap: both write the same there.
        let rest = exponents.times(whole::<S, T>(row, last, mask).sub(max), by);
        let mut at = 0;
        while at < last {
            S::prefetch(row.as_ptr().wrapping_add(at + 2 * BLOCK).cast());
            let value = exponents.times(whole::<S, T>(row, at, mask).sub(max), by);
            T::store(value, row.as_mut_ptr().add(at));
            at += LANES;
        }
        T::store(rest, row.as_mut_ptr().add(last));
    }
}
