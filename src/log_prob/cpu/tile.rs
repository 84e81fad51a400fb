//! Rows of 16 to 512 logits: up to sixteen rows go through each step together, so that none waits for another's chain of
//! operations, and their lanes are folded sixteen rows at once. Each exponential is computed once and kept.

use std::mem::MaybeUninit;

use super::row::{APART, BLOCK, Exponents, block, highest, prefetch, vector, vectors};
use super::{Logit, Rows, Softmax};
use crate::backend::simd::{LANES, Simd};

/// The most vectors of sixteen rows.
pub(super) const VECTORS: usize = BLOCK;

/// Exponentials of sixteen rows, in vectors: those of a row follow each other, and those of the next row them. None are kept
/// where there is no room for any.
pub(super) struct Kept<S, const ROOM: usize>([MaybeUninit<S>; ROOM]);

impl<S: Simd, const ROOM: usize> Kept<S, ROOM> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Kept([const { MaybeUninit::uninit() }; ROOM])
    }

    #[inline(always)]
    pub(super) fn set(&mut self, at: usize, e: S) {
        if ROOM > 0 {
            self.0[at] = MaybeUninit::new(e);
        }
    }

    /// # Safety
    /// Set before.
    #[inline(always)]
    pub(super) unsafe fn get(&self, at: usize) -> S {
        unsafe { self.0[at].assume_init() }
    }
}

/// Of each row (max, Σ exp(scale·(x − max)), Σ (x − max)·exp(scale·(x − max))), as in longer rows, and the exponentials where
/// they are kept.
#[inline(always)]
pub(super) unsafe fn normalise<S: Simd, T: Logit, const ENTROPY: bool, const ROOM: usize>(
    rows: &Rows<'_, T>,
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
    kept: &mut Kept<S, ROOM>,
) -> ([f32; LANES], [f64; LANES], [f64; LANES]) {
    // SAFETY: the caller's; 16 rows of 512 logits are 512 vectors.
    unsafe {
        let mut vectors = [S::splat(f32::NEG_INFINITY); LANES];
        for at in 0..rows.count {
            vectors[at] = highest::<S, T>(rows.of(at), 0, softmax.vocab, softmax.mask);
        }
        let max = S::max_of_rows(&vectors);
        // What is taken from each logit: the largest, if there is one above −∞.
        let shifts = max.zero_below(max, S::splat(f32::MIN)).lanes();
        let (all, next) = ((0, softmax.vocab), LANES * softmax.stride);
        let mut products = [S::splat(0.0); LANES];
        for first in (0..if softmax.vocab < ALONE { rows.count } else { 0 }).step_by(FOUR) {
            let found = four::<S, T, ENTROPY, ROOM>(rows, first, softmax, exponents, &shifts, kept);
            for i in 0..FOUR {
                (vectors[first + i], products[first + i]) = (found[i][0], found[i][1]);
            }
        }
        for at in 0..if softmax.vocab < ALONE { 0 } else { rows.count } {
            let (row, shift) = (rows.of(at), S::splat(shifts[at]));
            let kept = kept.0.as_mut_ptr().cast::<S>().wrapping_add(at * softmax.vocab.div_ceil(LANES));
            let found = block::<S, T, ENTROPY, ROOM>(row, all, next, softmax.mask, exponents, shift, kept);
            (vectors[at], products[at]) = (found.exps, found.products);
        }
        let total = S::wide_lanes(S::sums_of_rows(&vectors));
        let product = if ENTROPY { S::wide_lanes(S::sums_of_rows(&products)) } else { [0.0; LANES] };
        (max.lanes(), total, product)
    }
}

/// Logits from which on a row alone fills the steps of an exponential.
const ALONE: usize = 128;

/// Rows that fill them together.
const FOUR: usize = 4;

/// [`block`] of four shorter rows, from row `first` of the group on: [Σ e, Σ e·d] of each.
#[inline(always)]
unsafe fn four<S: Simd, T: Logit, const ENTROPY: bool, const ROOM: usize>(
    rows: &Rows<'_, T>,
    first: usize,
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
    shifts: &[f32; LANES],
    kept: &mut Kept<S, ROOM>,
) -> [[S; 2]; FOUR] {
    let of = [rows.of(first), rows.of(first + 1), rows.of(first + 2), rows.of(first + 3)];
    let per_row = softmax.vocab.div_ceil(LANES);
    // SAFETY: the caller's; no row has fewer than 16 logits.
    unsafe {
        let (mut sums, mut at) = ([[S::splat(0.0); 2]; FOUR], 0);
        while at + 2 * LANES <= softmax.vocab {
            let mut d = [S::splat(0.0); 2 * FOUR];
            for i in 0..FOUR {
                // The same row of the next group.
                prefetch::<S, T>(of[i], at + LANES * softmax.stride, 2);
                let (x, shift) = (vectors::<S, T, 2>(of[i], at, softmax.mask), S::splat(shifts[first + i]));
                (d[2 * i], d[2 * i + 1]) = (x[0].sub(shift), x[1].sub(shift));
            }
            let e = exponents.of(d);
            for i in 0..2 * FOUR {
                exponents.sum::<ENTROPY>(d[i], e[i], &mut sums[i / 2]);
                kept.set((first + i / 2) * per_row + at / LANES + i % 2, e[i]);
            }
            at += 2 * LANES;
        }
        while at < softmax.vocab {
            let mut d = [S::splat(0.0); FOUR];
            for i in 0..FOUR {
                prefetch::<S, T>(of[i], at + LANES * softmax.stride, 1);
                d[i] = vector::<S, T>(of[i], at, softmax.mask).sub(S::splat(shifts[first + i]));
            }
            let e = exponents.of(d);
            for i in 0..FOUR {
                exponents.sum::<ENTROPY>(d[i], e[i], &mut sums[i]);
                kept.set((first + i) * per_row + at / LANES, e[i]);
            }
            at += LANES;
        }
        sums
    }
}

/// Each logit of row `at` of the group becomes `by`·e.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd, T: Logit, const ROOM: usize>(
    row: &mut [T],
    at: usize,
    exponents: Exponents<S>,
    kept: &Kept<S, ROOM>,
    by: f32,
) {
    let (first, whole) = (at * row.len().div_ceil(LANES), row.len() / LANES);
    // SAFETY: the caller's.
    unsafe {
        let by = S::splat(by);
        if whole * LANES < row.len() {
            // Where it reaches back before its own logits, what follows writes over it.
            let last = exponents.scaled(kept.get(first + whole), by);
            T::store(last, row.as_mut_ptr().add(row.len() - LANES));
        }
        // Two by two as they were read.
        let paired = if row.len() < ALONE { whole / 2 * 2 } else { whole / APART * APART };
        for i in (0..paired).step_by(2) {
            let (one, other) = (kept.get(first + i), kept.get(first + i + 1));
            let two = [exponents.scaled(one, by), exponents.scaled(other, by)];
            T::store_two(two, row.as_mut_ptr().add(i * LANES));
        }
        for i in paired..whole {
            T::store(exponents.scaled(kept.get(first + i), by), row.as_mut_ptr().add(i * LANES));
        }
    }
}
