//! Rows of logits become gradients: all are checked, then each is scored, if it has not been, and rewritten.

use rayon::prelude::*;

use super::row::Exponents;
use super::tile::{Kept, VECTORS};
use super::{RowScore, Rows, Softmax, fault_in, fault_of, ln, log_probs, row, score, score_group, short, tile};
use crate::backend::Cpu;
use crate::backend::simd::{Isa, LANES, Simd, dispatch};
use crate::error::Result;
use crate::log_prob::{Logit, SoftmaxOptions};
use crate::tokens::Token;

/// A run of rows: logits, tokens and weights.
type Weighted<'a, T> = ((&'a [T], &'a [Token]), &'a [f32]);

/// `Ok` where [`score`] with these weights is, which most often costs no more than to read the logits.
///
/// # Errors
/// As there.
fn check<T: Logit>(
    options: &SoftmaxOptions<'_, Cpu>,
    vocab: usize,
    logits: &[T],
    tokens: &[Token],
    weights: &[f32],
) -> Result<()> {
    let (softmax, isa) = (Softmax::new(options, vocab), Isa::best());
    let run = softmax.rows_per_task();
    let runs = logits.par_chunks(run * softmax.stride).zip(tokens.par_chunks(run)).zip(weights.par_chunks(run));
    let fault = |(at, ((logits, tokens), weights)): (usize, Weighted<'_, T>)| {
        if is_sound(isa, logits, &softmax, tokens, weights) {
            return usize::MAX;
        }
        let groups = tokens.chunks(LANES).zip(weights.chunks(LANES)).enumerate();
        let faults = groups.map(|(group, (tokens, weights))| {
            let logits = &logits[group * LANES * softmax.stride..];
            let found = score_group(isa, logits, &softmax, tokens, Some(weights), false);
            (at * run + group * LANES).saturating_add(fault_in(&found, &softmax, tokens.len(), Some(weights)))
        });
        faults.min().unwrap_or(usize::MAX)
    };
    match runs.enumerate().map(fault).min() {
        None | Some(usize::MAX) => Ok(()),
        Some(row) => Err(fault_of(options, vocab, logits, tokens, Some(weights), row)),
    }
}

/// Whether rows are without fault at first sight: no gaps and no mask, weights that can be multiplied by the scale, tokens in
/// the vocabulary, and logits that are finite. Rows that are not may be without fault all the same.
#[inline(always)]
unsafe fn sound<S: Simd, T: Logit>(logits: &[T], softmax: &Softmax<'_>, tokens: &[Token], weights: &[f32]) -> bool {
    let known = tokens.iter().fold(true, |all, &token| all & ((token as usize) < softmax.vocab));
    let usable = |&weight: &f32| (weight * softmax.scale).is_finite() & (weight != 0.0);
    let usable = weights.iter().fold(true, |all, weight| all & usable(weight));
    let plain = softmax.stride == softmax.vocab && softmax.mask.is_none() && logits.len() >= 2 * LANES;
    // SAFETY: the caller's, and there are 32 logits or more.
    known && usable && plain && unsafe { are_finite::<S, T>(logits) }
}
dispatch! {
    fn is_sound<T: Logit>(logits: &[T], softmax: &Softmax<'_>, tokens: &[Token], weights: &[f32]) -> bool = sound
}

/// Whether all of 32 logits or more are finite: 0 times another is NaN.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
unsafe fn are_finite<S: Simd, T: Logit>(logits: &[T]) -> bool {
    let last = logits.len() - 2 * LANES;
    unsafe {
        let zero = S::splat(0.0);
        let mut sums = [zero; 2];
        for at in (0..last).step_by(2 * LANES).chain([last]) {
            let x = T::load_two::<S>(logits.as_ptr().add(at));
            sums = [x[0].fma(zero, sums[0]), x[1].fma(zero, sums[1])];
        }
        sums[0].add(sums[1]).lanes() == [0.0; LANES]
    }
}

/// What makes a gradient of a group's rows: each exponential times `by`, and the token's own value.
struct Descent {
    by: [f32; LANES],
    of_token: [f32; LANES],
}

/// Of rows of these weights, tokens' logits, maxima and totals.
#[inline(always)]
unsafe fn descent<S: Simd>(
    softmax: &Softmax<'_>,
    weights: &[f32],
    own: &[f32; LANES],
    max: &[f32; LANES],
    total: &[f64; LANES],
) -> Descent {
    let (mut weight, mut by, mut of_token) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
    for at in 0..weights.len() {
        weight[at] = f64::from(weights[at]) * f64::from(softmax.scale);
    }
    // The token's own exponential, by the very operations that are in the total.
    // SAFETY: the caller's.
    let own = unsafe {
        let d = S::load(own.as_ptr()).sub(S::load(max.as_ptr()));
        let [e] = Exponents::<S>::new(softmax).times([d], S::splat(1.0));
        e.lanes()
    };
    for at in 0..LANES {
        by[at] = (-weight[at] / total[at]) as f32;
        // 1 − p without cancellation where p is near 1: the largest logit's exponential is exactly 1.
        of_token[at] = (weight[at] * ((total[at] - f64::from(own[at])) / total[at])) as f32;
    }
    Descent { by, of_token }
}

/// Writes what the rows' tokens get, and 0 to the rows that were not read.
#[inline(always)]
fn finish<T: Logit>(
    logits: &mut [T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: &[f32],
    of_token: &[f32; LANES],
) {
    for at in 0..tokens.len() {
        let row = &mut logits[at * softmax.stride..][..softmax.vocab];
        if weights[at] == 0.0 {
            row.fill(T::default());
        } else {
            row[tokens[at] as usize] = T::from_f32(of_token[at]);
        }
    }
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
    let Some(rows) = Rows::new(logits, softmax, tokens.len(), Some(weights)) else {
        return finish(logits, softmax, tokens, weights, &[0.0; LANES]);
    };
    let own = rows.own(softmax, tokens);
    let (mut max, mut total) = ([0.0; LANES], [1.0; LANES]);
    for at in 0..scores.len() {
        (max[at], total[at]) = (scores[at].max, scores[at].total);
    }
    // SAFETY: the caller's.
    unsafe {
        let exponents = Exponents::<S>::new(softmax);
        let Descent { by, of_token } = descent::<S>(softmax, weights, &own, &max, &total);
        for at in (0..weights.len()).filter(|&at| weights[at] != 0.0) {
            let row = &mut logits[at * softmax.stride..][..softmax.vocab];
            row::scale::<S, T>(row, softmax.mask, exponents, max[at], by[at]);
        }
        finish(logits, softmax, tokens, weights, &of_token);
    }
}
dispatch! {
    pub(super) fn descend_group<T: Logit>(
        logits: &mut [T], softmax: &Softmax<'_>, tokens: &[Token], weights: &[f32], scores: &[RowScore],
    ) = descend
}

/// The same of rows of at most 512 logits, whose exponentials have ROOM vectors to be kept in: they are scored once more, or for
/// the first time; their log-probs.
#[inline(always)]
unsafe fn descend_keeping<S: Simd, T: Logit, const ROOM: usize>(
    logits: &mut [T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: &[f32],
) -> [f32; LANES] {
    let Some(rows) = Rows::new(logits, softmax, tokens.len(), Some(weights)) else {
        finish(logits, softmax, tokens, weights, &[0.0; LANES]);
        return [f32::NAN; LANES];
    };
    // SAFETY: the caller's.
    unsafe {
        let (exponents, mut kept) = (Exponents::<S>::new(softmax), Kept::<S, ROOM>::new());
        let (max, total, _) = if ROOM == LANES {
            short::normalise::<S, T, false, ROOM>(&rows, softmax, exponents, &mut kept)
        } else {
            tile::normalise::<S, T, false, ROOM>(&rows, softmax, exponents, &mut kept)
        };
        let own = rows.own(softmax, tokens);
        let Descent { by, of_token } = descent::<S>(softmax, weights, &own, &max, &total);
        if ROOM == LANES {
            short::scale::<S, T, ROOM>(logits, softmax, weights, exponents, &kept, &by);
        } else {
            for at in (0..weights.len()).filter(|&at| weights[at] != 0.0) {
                let row = &mut logits[at * softmax.stride..][..softmax.vocab];
                tile::scale::<S, T, ROOM>(row, at, exponents, &kept, by[at]);
            }
        }
        finish(logits, softmax, tokens, weights, &of_token);
        log_probs(softmax, &own, &max, &ln(&total))
    }
}

/// Of rows of fewer than 16 logits, a vector for each token.
#[inline(always)]
unsafe fn descend_short<S: Simd, T: Logit>(
    logits: &mut [T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: &[f32],
) -> [f32; LANES] {
    // SAFETY: the caller's.
    unsafe { descend_keeping::<S, T, LANES>(logits, softmax, tokens, weights) }
}
dispatch! {
    fn descend_short_group<T: Logit>(
        logits: &mut [T], softmax: &Softmax<'_>, tokens: &[Token], weights: &[f32],
    ) -> [f32; LANES] = descend_short
}

/// Of rows of 16 to 512 logits: apart, as what they keep is more than a frame should be for those that do not.
#[inline(always)]
unsafe fn descend_tile<S: Simd, T: Logit>(
    logits: &mut [T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: &[f32],
) -> [f32; LANES] {
    // SAFETY: the caller's.
    unsafe { descend_keeping::<S, T, VECTORS>(logits, softmax, tokens, weights) }
}
dispatch! {
    fn descend_tile_group<T: Logit>(
        logits: &mut [T], softmax: &Softmax<'_>, tokens: &[Token], weights: &[f32],
    ) -> [f32; LANES] = descend_tile
}

/// Either, by the length of the rows.
pub(super) fn descend_kept<T: Logit>(
    isa: Isa,
    logits: &mut [T],
    softmax: &Softmax<'_>,
    tokens: &[Token],
    weights: &[f32],
) -> [f32; LANES] {
    let descend = if softmax.vocab < LANES { descend_short_group } else { descend_tile_group };
    descend(isa, logits, softmax, tokens, weights)
}

/// Replaces each row of logits by a·scale·(onehot − softmax), with the weights a, and writes the rows' log-probs, NaN of
/// those of weight 0, which are not read.
///
/// # Errors
/// As for [`score`]; nothing is written then.
pub(crate) fn gradients<T: Logit>(
    options: &SoftmaxOptions<'_, Cpu>,
    vocab: usize,
    logits: &mut [T],
    tokens: &[Token],
    weights: &[f32],
    log_probs: &mut [f32],
) -> Result<()> {
    let (softmax, isa) = (Softmax::new(options, vocab), Isa::best());
    if !softmax.is_short() {
        // Few rows: their scores are nothing beside the logits.
        let mut scores = vec![RowScore::default(); tokens.len()];
        score(options, vocab, logits, tokens, Some(weights), false, &mut scores, |score, _| score)?;
        write_gradients(&softmax, logits, tokens, weights, &scores);
        log_probs.iter_mut().zip(&scores).for_each(|(to, score)| *to = score.log_prob);
        return Ok(());
    }
    check(options, vocab, logits, tokens, weights)?;
    let run = softmax.rows_per_task();
    let runs = logits.par_chunks_mut(run * softmax.stride).zip(tokens.par_chunks(run)).zip(weights.par_chunks(run));
    runs.zip(log_probs.par_chunks_mut(run)).rev().for_each(|(((logits, tokens), weights), log_probs)| {
        let groups = tokens.chunks(LANES).zip(weights.chunks(LANES)).zip(log_probs.chunks_mut(LANES));
        for (at, ((tokens, weights), log_probs)) in groups.enumerate() {
            let logits = &mut logits[at * LANES * softmax.stride..];
            let found = descend_kept(isa, logits, &softmax, tokens, weights);
            log_probs.copy_from_slice(&found[..tokens.len()]);
        }
    });
    Ok(())
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
                if softmax.is_short() {
                    descend_kept(isa, logits, softmax, tokens, weights);
                } else {
                    descend_group(isa, logits, softmax, tokens, weights, scores);
                }
            }
        });
}
