//! Sums whose bits do not depend on the number of threads: fixed chunks, folded in order.

use std::ops::Range;

use rayon::prelude::*;

/// Rows per chunk. Part of the result's definition: another size gives other roundings.
pub const CHUNK: usize = 4096;

/// Chunks at work at once.
const BLOCK: usize = 64;

/// `part` of each chunk of 0..rows, in parallel, then `fold` over the parts in their order.
pub(crate) fn fold_chunks<T: Send, A>(
    rows: usize,
    part: impl Fn(Range<usize>) -> T + Sync,
    start: A,
    fold: impl Fn(A, T) -> A,
) -> A {
    let range = |chunk: usize| chunk * CHUNK..((chunk + 1) * CHUNK).min(rows);
    if rows <= CHUNK {
        return fold(start, part(0..rows));
    }
    let (chunks, mut total) = (rows.div_ceil(CHUNK), start);
    for first in (0..chunks).step_by(BLOCK) {
        // On the stack: a reduction is part of the step, which allocates nothing.
        let mut parts: [Option<T>; BLOCK] = std::array::from_fn(|_| None);
        let used = &mut parts[..BLOCK.min(chunks - first)];
        used.par_iter_mut().enumerate().for_each(|(at, slot)| *slot = Some(part(range(first + at))));
        total = parts.into_iter().flatten().fold(total, &fold);
    }
    total
}

/// K sums over rows 0..rows at once.
pub(crate) fn sums<const K: usize>(rows: usize, terms: impl Fn(usize) -> [f64; K] + Sync) -> [f64; K] {
    let add = |mut total: [f64; K], terms: [f64; K]| {
        total.iter_mut().zip(terms).for_each(|(total, term)| *total += term);
        total
    };
    fold_chunks(rows, |range| range.map(&terms).fold([0.0; K], add), [0.0; K], add)
}

/// log Σ exp(values), shifted by the largest; −∞ for none or where all are −∞. A NaN in gives NaN.
pub fn log_sum_exp(values: &[f64]) -> f64 {
    // f64::max would drop a NaN; the sum below keeps it.
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_infinite() && !values.iter().any(|value| value.is_nan()) {
        return max;
    }
    let [total] = sums(values.len(), |row| [(values[row] - max).exp()]);
    max + total.ln()
}

/// log of the mean of exp(values); −∞ where all are −∞, NaN for none.
pub fn log_mean_exp(values: &[f64]) -> f64 {
    if values.is_empty() { f64::NAN } else { log_sum_exp(values) - (values.len() as f64).ln() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_of_extremes() {
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f64::NEG_INFINITY; 3]), f64::NEG_INFINITY);
        assert_eq!(log_sum_exp(&[f64::INFINITY, 0.0]), f64::INFINITY);
        assert!(log_sum_exp(&[f64::NAN, 0.0]).is_nan());
        assert!(log_sum_exp(&[f64::NEG_INFINITY, f64::NAN]).is_nan());
        assert!((log_sum_exp(&[1000.0, 1000.0]) - (1000.0 + 2f64.ln())).abs() < 1e-12);
        assert!((log_sum_exp(&[-1000.0, f64::NEG_INFINITY]) + 1000.0).abs() < 1e-12);
        assert!((log_mean_exp(&[-900.0, -900.0]) + 900.0).abs() < 1e-12);
    }

    #[test]
    fn chunks_cover_every_row_once() {
        for rows in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17, (BLOCK + 1) * CHUNK + 1] {
            let [count, total] = sums(rows, |row| [1.0, row as f64]);
            assert_eq!(count, rows as f64);
            assert_eq!(total, (rows as f64) * (rows as f64 - 1.0) / 2.0);
        }
    }
}
