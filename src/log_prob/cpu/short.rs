//! Rows of fewer than 16 logits: sixteen rows at once, a row to a lane.

use super::row::Exponents;
use super::tile::Kept;
use super::{Logit, Rows, Softmax};
use crate::backend::simd::{LANES, Simd};

/// `columns[t][r]` is logit t of row r.
type Columns<T> = [[T; LANES]; LANES];

/// The logits of up to 16 rows. A lane without a row repeats another: what it finds is not used.
#[inline(always)]
fn transpose<T: Logit>(rows: &Rows<'_, T>, columns: &mut Columns<T>) {
    match rows.vocab {
        2 => transpose_of::<T, 2>(rows, columns),
        3 => transpose_of::<T, 3>(rows, columns),
        4 => transpose_of::<T, 4>(rows, columns),
        _ => {
            for lane in 0..LANES {
                for (column, &logit) in columns.iter_mut().zip(rows.of(lane)) {
                    column[lane] = logit;
                }
            }
        }
    }
}

/// The same of rows whose length the compiler knows.
#[inline(always)]
fn transpose_of<T: Logit, const VOCAB: usize>(rows: &Rows<'_, T>, columns: &mut Columns<T>) {
    for lane in 0..LANES {
        let row: &[T; VOCAB] = rows.of(lane).first_chunk().expect("a row of this length");
        for token in 0..VOCAB {
            columns[token][lane] = row[token];
        }
    }
}

/// Of each row (max, Σ exp(scale·(x − max)), Σ (x − max)·exp(scale·(x − max))), as in rows of more logits, and the
/// exponentials by token.
#[inline(always)]
pub(super) unsafe fn normalise<S: Simd, T: Logit, const ENTROPY: bool, const ROOM: usize>(
    rows: &Rows<'_, T>,
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
    kept: &mut Kept<S, ROOM>,
) -> ([f32; LANES], [f64; LANES], [f64; LANES]) {
    let mut columns = [[T::default(); LANES]; LANES];
    transpose(rows, &mut columns);
    // SAFETY: the caller's, and columns have 16 values.
    unsafe {
        let none = S::splat(f32::NEG_INFINITY);
        let mut x = [none; LANES];
        let mut max = none;
        for token in 0..softmax.vocab {
            x[token] = if softmax.allows(token) { T::load::<S>(columns[token].as_ptr()) } else { none };
            max = x[token].max(max);
        }
        let shift = max.zero_below(max, S::splat(f32::MIN));
        let mut sums = [S::wide(&[0.0; LANES]); 2];
        for token in 0..softmax.vocab {
            let d = x[token].sub(shift);
            let [e] = exponents.of([d]);
            kept.set(token, e);
            sums[0] = e.add_wide(sums[0]);
            if ENTROPY && softmax.allows(token) {
                sums[1] = exponents.product(d, e).add_wide(sums[1]);
            }
        }
        (max.lanes(), S::wide_lanes(sums[0]), S::wide_lanes(sums[1]))
    }
}

/// Each logit of the rows whose weight is not 0 becomes by·e, with a factor per row.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd, T: Logit, const ROOM: usize>(
    logits: &mut [T],
    softmax: &Softmax<'_>,
    weights: &[f32],
    exponents: Exponents<S>,
    kept: &Kept<S, ROOM>,
    by: &[f32; LANES],
) {
    let mut columns = [[T::default(); LANES]; LANES];
    for token in 0..softmax.vocab {
        // SAFETY: the caller's, and columns have 16 values.
        unsafe {
            let value = exponents.scaled(kept.get(token), S::load(by.as_ptr()));
            T::store(value, columns[token].as_mut_ptr());
        }
    }
    for lane in (0..weights.len()).filter(|&lane| weights[lane] != 0.0) {
        for (column, logit) in columns.iter().zip(&mut logits[lane * softmax.stride..][..softmax.vocab]) {
            *logit = column[lane];
        }
    }
}
