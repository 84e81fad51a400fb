//! Rows of 16 to 512 logits: up to sixteen rows go through each step together, so that none waits for another's chain of
//! operations, and their lanes are folded sixteen rows at once. Each exponential is computed once and kept.

use std::mem::MaybeUninit;

use super::row::{BLOCK, Exponents, block, highest};
use super::{Logit, Rows, Softmax};
use crate::backend::simd::{LANES, Simd};

/// Exponentials of sixteen rows, in vectors: those of a row follow each other, and those of the next row them.
pub(super) struct Kept<S>([MaybeUninit<S>; BLOCK]);

impl<S: Simd> Kept<S> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Kept([const { MaybeUninit::uninit() }; BLOCK])
    }

    #[inline(always)]
    pub(super) fn set(&mut self, at: usize, e: S) {
        self.0[at] = MaybeUninit::new(e);
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
pub(super) unsafe fn normalise<S: Simd, T: Logit, const ENTROPY: bool, const KEEP: bool>(
    rows: &Rows<'_, T>,
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
    kept: &mut Kept<S>,
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
        for at in 0..rows.count {
            let (row, shift) = (rows.of(at), S::splat(shifts[at]));
            let kept = kept.0.as_mut_ptr().cast::<S>().add(at * softmax.vocab.div_ceil(LANES));
            let found = block::<S, T, ENTROPY, KEEP>(row, all, next, softmax.mask, exponents, shift, kept);
            (vectors[at], products[at]) = (found.exps, found.products);
        }
        let total = S::wide_lanes(S::sums_of_rows(&vectors));
        let product = if ENTROPY { S::wide_lanes(S::sums_of_rows(&products)) } else { [0.0; LANES] };
        (max.lanes(), total, product)
    }
}

/// Each logit of row `at` of the group becomes `by`·e.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd, T: Logit>(
    row: &mut [T],
    at: usize,
    exponents: Exponents<S>,
    kept: &Kept<S>,
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
        for i in 0..whole {
            T::store(exponents.scaled(kept.get(first + i), by), row.as_mut_ptr().add(i * LANES));
        }
    }
}
