//! A row of any number of logits from 16 on, sixteen at a time.
//!
//! A row is taken in blocks of 512: exponentials of the differences from the largest logit so far, added in f32 over at most
//! ten terms and in f64 beyond. A block that has a larger one rescales the sum so far and is read once more. What is left
//! behind the last whole vector is the row's last sixteen logits, without those that were there before: no copy, no read
//! beyond the row.

use super::{Logit, Softmax};
use crate::backend::simd::{LANES, Simd};

/// Logits of a block: a multiple of a mask's word.
pub(super) const BLOCK: usize = 512;

/// Vectors that go through each step of an exponential together.
const TOGETHER: usize = 8;

/// Sums and maxima of a block that are kept apart, so that no addition waits for another.
pub(super) const APART: usize = 4;

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

/// The vector from `at` on, or what is left of it.
#[inline(always)]
pub(super) unsafe fn vector<S: Simd, T: Logit>(row: &[T], at: usize, mask: Option<&[u32]>) -> S {
    unsafe { if at + LANES <= row.len() { whole::<S, T>(row, at, mask) } else { rest::<S, T>(row, at, mask) } }
}

/// `N` vectors one after the other, or two by two as their type has them.
#[inline(always)]
pub(super) unsafe fn vectors<S: Simd, T: Logit, const N: usize>(row: &[T], at: usize, mask: Option<&[u32]>) -> [S; N] {
    unsafe {
        let mut x = [S::splat(0.0); N];
        for i in (1..N).step_by(2) {
            [x[i - 1], x[i]] = T::load_two::<S>(row.as_ptr().add(at + (i - 1) * LANES));
        }
        if let Some(mask) = mask {
            for i in (1..N).step_by(2) {
                let from = at + (i - 1) * LANES;
                let bits = T::lanes_of_two(u32::from(bits(mask, from)) | u32::from(bits(mask, from + LANES)) << 16);
                x[i - 1] = x[i - 1].select(bits[0], S::splat(f32::NEG_INFINITY));
                x[i] = x[i].select(bits[1], S::splat(f32::NEG_INFINITY));
            }
        }
        x
    }
}

/// Asks for `count` vectors from logit `at` on, which need not be in the row.
#[inline(always)]
pub(super) unsafe fn prefetch<S: Simd, T: Logit>(row: &[T], at: usize, count: usize) {
    let from = row.as_ptr().wrapping_add(at).cast::<f32>();
    for line in 0..(count * size_of::<T>()).div_ceil(size_of::<f32>()) {
        unsafe { S::prefetch(from.wrapping_add(line * LANES)) };
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

/// What is taken from each logit: the largest, if there is one above −∞.
#[inline(always)]
fn shift(max: f32) -> f32 {
    if max == f32::NEG_INFINITY { 0.0 } else { max }
}

/// Of a row (max, Σ exp(scale·(x − max)), Σ (x − max)·exp(scale·(x − max))): the sums are NaN where a logit is NaN or +∞.
#[inline(always)]
pub(super) unsafe fn normalise<S: Simd, T: Logit, const ENTROPY: bool>(
    row: &[T],
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
) -> (f32, f64, f64) {
    // SAFETY: the caller's.
    unsafe {
        let mut max = highest::<S, T>(row, 0, row.len().min(BLOCK), softmax.mask).max_lane();
        let mut sums = Sums::<S> { exps: S::wide(&[0.0; LANES]), products: S::wide(&[0.0; LANES]) };
        let mut first = 0;
        while first < row.len() {
            let last = row.len().min(first + BLOCK);
            let (range, shift) = ((first, last), S::splat(shift(max)));
            let nowhere = std::ptr::null_mut();
            // The block after the next.
            let found = block::<S, T, ENTROPY, 0>(row, range, 2 * BLOCK, softmax.mask, exponents, shift, nowhere);
            // Rare, and not so twice.
            if found.high.any_above(S::splat(max)) {
                let high = found.high.max_lane();
                sums.rescale::<ENTROPY>(f64::from(high) - f64::from(max), f64::from(softmax.scale));
                max = high;
                continue;
            }
            sums.exps = found.exps.add_wide(sums.exps);
            if ENTROPY {
                sums.products = found.products.add_wide(sums.products);
            }
            first = last;
        }
        (max, S::wide_sum(sums.exps), if ENTROPY { S::wide_sum(sums.products) } else { 0.0 })
    }
}

/// Of a block by lane: the largest logits, NaNs left out, Σ e and Σ e·d.
pub(super) struct Block<S> {
    high: S,
    pub exps: S,
    pub products: S,
}

/// Logits `first` to `last` of a row, above `shift`. What is needed next is `ahead` logits further on. Their exponentials go
/// to `kept`, if there is `ROOM`.
///
/// # Safety
/// As many vectors fit there; as for [`Simd`].
#[inline(always)]
pub(super) unsafe fn block<S: Simd, T: Logit, const ENTROPY: bool, const ROOM: usize>(
    row: &[T],
    (first, last): (usize, usize),
    ahead: usize,
    mask: Option<&[u32]>,
    of: Exponents<S>,
    shift: S,
    kept: *mut S,
) -> Block<S> {
    unsafe {
        let (mut high, mut sums) = ([S::splat(f32::NEG_INFINITY); APART], [[S::splat(0.0); 2]; APART]);
        let mut at = first;
        while at + TOGETHER * LANES <= last {
            prefetch::<S, T>(row, at + ahead, TOGETHER);
            let x = vectors::<S, T, TOGETHER>(row, at, mask);
            let e = of.add::<ENTROPY, TOGETHER>(x, 0, shift, &mut high, &mut sums);
            if ROOM > 0 {
                keep(e, kept.add((at - first) / LANES));
            }
            at += TOGETHER * LANES;
        }
        if at + APART * LANES <= last {
            prefetch::<S, T>(row, at + ahead, APART);
            let x = vectors::<S, T, APART>(row, at, mask);
            let e = of.add::<ENTROPY, APART>(x, 0, shift, &mut high, &mut sums);
            if ROOM > 0 {
                keep(e, kept.add((at - first) / LANES));
            }
            at += APART * LANES;
        }
        for to in 0..APART {
            if at < last {
                let x = vector::<S, T>(row, at, mask);
                prefetch::<S, T>(row, at + ahead, 1);
                let e = of.add::<ENTROPY, 1>([x], to, shift, &mut high, &mut sums);
                if ROOM > 0 {
                    keep(e, kept.add((at - first) / LANES));
                }
                at += LANES;
            }
        }
        let [a, b, c, d] = sums;
        Block {
            high: high[0].max(high[1]).max(high[2].max(high[3])),
            exps: a[0].add(b[0]).add(c[0].add(d[0])),
            products: a[1].add(b[1]).add(c[1].add(d[1])),
        }
    }
}

/// # Safety
/// Room for them at `to`.
#[inline(always)]
unsafe fn keep<S: Simd, const N: usize>(e: [S; N], to: *mut S) {
    for i in 0..N {
        unsafe { to.add(i).write(e[i]) };
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

    /// `N` vectors of logits more in the maxima and in the sums of e and of e·d, where d is what they are above `shift`; the
    /// first in maximum and sum `to`, the others in those that follow in turn. Their e.
    #[inline(always)]
    unsafe fn add<const ENTROPY: bool, const N: usize>(
        self,
        x: [S; N],
        to: usize,
        shift: S,
        high: &mut [S; APART],
        sums: &mut [[S; 2]; APART],
    ) -> [S; N] {
        unsafe {
            let mut d = x;
            for i in 0..N {
                let high = &mut high[(to + i) % APART];
                *high = x[i].max(*high);
                d[i] = x[i].sub(shift);
            }
            let e = self.of(d);
            for i in 0..N {
                self.sum::<ENTROPY>(d[i], e[i], &mut sums[(to + i) % APART]);
            }
            e
        }
    }

    /// One more of a difference d and its e in the sums of e and of e·d.
    #[inline(always)]
    pub(super) unsafe fn sum<const ENTROPY: bool>(self, d: S, e: S, [exps, products]: &mut [S; 2]) {
        unsafe {
            *exps = exps.add(e);
            if ENTROPY {
                *products = e.fma(self.lowest.max(d), *products);
            }
        }
    }

    /// e of differences.
    #[inline(always)]
    pub(super) unsafe fn of<const N: usize>(self, d: [S; N]) -> [S; N] {
        unsafe { S::exp2_products(d, self.factor, self.lowest) }
    }

    /// `by`·e of exponentials, 0 where nothing but `lowest` bounds them.
    #[inline(always)]
    pub(super) unsafe fn scaled(self, e: S, by: S) -> S {
        // e of what lies below `lowest`, and no e is between that and twice as much but of what lies next to it.
        unsafe { by.mul(e).zero_below(e, S::splat(2.0 * f32::MIN_POSITIVE)) }
    }

    /// e·d of a difference and its e.
    #[inline(always)]
    pub(super) unsafe fn product(self, d: S, e: S) -> S {
        unsafe { e.mul(self.lowest.max(d)) }
    }

    /// `by`·e, 0 where e is.
    #[inline(always)]
    pub(super) unsafe fn times<const N: usize>(self, d: [S; N], by: S) -> [S; N] {
        unsafe {
            let mut value = self.of(d);
            for i in 0..N {
                value[i] = by.mul(value[i]).zero_below(d[i], self.lowest);
            }
            value
        }
    }
}

/// The largest logits of a block by lane, NaNs left out.
#[inline(always)]
pub(super) unsafe fn highest<S: Simd, T: Logit>(row: &[T], first: usize, last: usize, mask: Option<&[u32]>) -> S {
    unsafe {
        let mut high = [S::splat(f32::NEG_INFINITY); APART];
        let mut at = first;
        while at + APART * LANES <= last {
            let x = vectors::<S, T, APART>(row, at, mask);
            for i in 0..APART {
                high[i] = x[i].max(high[i]);
            }
            at += APART * LANES;
        }
        while at + LANES <= last {
            high[0] = whole::<S, T>(row, at, mask).max(high[0]);
            at += LANES;
        }
        if at < last {
            high[1] = rest::<S, T>(row, at, mask).max(high[1]);
        }
        high[0].max(high[1]).max(high[2].max(high[3]))
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
        let [rest] = exponents.times([whole::<S, T>(row, last, mask).sub(max)], by);
        let mut at = 0;
        while mask.is_none() && at + TOGETHER * LANES <= last {
            prefetch::<S, T>(row, at + 2 * BLOCK, TOGETHER);
            together::<S, T>(row.as_mut_ptr().add(at), exponents, max, by);
            at += TOGETHER * LANES;
        }
        while at < last {
            let [value] = exponents.times([whole::<S, T>(row, at, mask).sub(max)], by);
            T::store(value, row.as_mut_ptr().add(at));
            at += LANES;
        }
        T::store(rest, row.as_mut_ptr().add(last));
    }
}

/// [`scale`] of the `TOGETHER` vectors at `at`.
///
/// # Safety
/// They are there; as for [`Simd`].
#[inline(always)]
unsafe fn together<S: Simd, T: Logit>(at: *mut T, exponents: Exponents<S>, max: S, by: S) {
    unsafe {
        let mut d = [max; TOGETHER];
        for two in 0..TOGETHER / 2 {
            let x = T::load_two::<S>(at.add(2 * two * LANES));
            (d[2 * two], d[2 * two + 1]) = (x[0].sub(max), x[1].sub(max));
        }
        let value = exponents.times(d, by);
        for two in 0..TOGETHER / 2 {
            T::store_two([value[2 * two], value[2 * two + 1]], at.add(2 * two * LANES));
        }
    }
}
