//! Rows of fewer than 16 logits: sixteen rows at once, a row to a lane.

use super::row::Exponents;
use super::{Logit, Softmax};
use crate::backend::simd::{LANES, Simd};

/// `columns[t][r]` is logit t of row r.
type Columns<T> = [[T; LANES]; LANES];

/// The logits of up to 16 rows. A lane without a row repeats the last: what it finds is not used.
#[inline(always)]
fn transposed<T: Logit>(logits: &[T], softmax: &Softmax<'_>, rows: usize) -> Columns<T> {
    let mut starts = [0; LANES];
    for lane in 0..LANES {
        starts[lane] = lane.min(rows - 1) * softmax.stride;
    }
    let mut columns = [[T::default(); LANES]; LANES];
    for token in 0..softmax.vocab {
        for lane in 0..LANES {
            columns[token][lane] = logits[starts[lane] + token];
        }
    }
    columns
}

/// Of each row (max, Σ exp(scale·(x − max)), Σ (x − max)·exp(scale·(x − max))), as in rows of more logits.
#[inline(always)]
pub(super) unsafe fn normalise<S: Simd, T: Logit, const ENTROPY: bool>(
    logits: &[T],
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
    rows: usize,
) -> ([f32; LANES], [f64; LANES], [f64; LANES]) {
    let columns = transposed(logits, softmax, rows);
    // SAFETY: the caller's, and columns have 16 values.
    unsafe {
        let mut max = S::splat(f32::NEG_INFINITY);
        for token in (0..softmax.vocab).filter(|&token| softmax.allows(token)) {
            max = T::load::<S>(columns[token].as_ptr()).max(max);
        }
        let shift = max.zero_below(max, S::splat(f32::MIN));
        let mut sums = [S::wide(&[0.0; LANES]); 2];
        for token in (0..softmax.vocab).filter(|&token| softmax.allows(token)) {
            let d = T::load::<S>(columns[token].as_ptr()).sub(shift);
            let [exps, products] = exponents.add::<ENTROPY>(d, [S::splat(0.0); 2]);
            sums[0] = exps.add_wide(sums[0]);
            if ENTROPY {
                sums[1] = products.add_wide(sums[1]);
            }
        }
        (max.lanes(), S::wide_lanes(sums[0]), S::wide_lanes(sums[1]))
    }
}

/// Each logit x of the rows that `kept` names becomes by·exp(scale·(x − max)), with a max and a factor per row.
#[inline(always)]
pub(super) unsafe fn scale<S: Simd, T: Logit>(
    logits: &mut [T],
    softmax: &Softmax<'_>,
    exponents: Exponents<S>,
    kept: &[bool],
    max: &[f32; LANES],
    by: &[f32; LANES],
) {
    let mut columns = transposed(logits, softmax, kept.len());
    for token in 0..softmax.vocab {
        let column = columns[token].as_mut_ptr();
        // SAFETY: the caller's, and columns have 16 values.
        unsafe {
            let x = if softmax.allows(token) { T::load::<S>(column) } else { S::splat(f32::NEG_INFINITY) };
            T::store(exponents.times(x.sub(S::load(max.as_ptr())), S::load(by.as_ptr())), column);
        }
    }
    for lane in (0..kept.len()).filter(|&lane| kept[lane]) {
        for (column, logit) in columns.iter().zip(&mut logits[lane * softmax.stride..][..softmax.vocab]) {
            *logit = column[lane];
        }
    }
}
