//! Sub-trajectory balance on the CPU.

use std::ops::Range;

use super::{EndedPrefixes, SubTrajectoryKernel};
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::rng::Draw;
use crate::tokens::{Batch, Token};
use crate::tune::{Chosen, Pool};

impl SubTrajectoryKernel for Cpu {
    fn end_prefixes(
        &self,
        pool: &Pool<Cpu>,
        chosen: &Chosen<Cpu>,
        ended: &mut EndedPrefixes<Cpu>,
        draw: Draw,
    ) -> Result<()> {
        let (count, picks, prefixes) = (pool.ledger[0].chosen as usize, pool.ledger[0].picks, ended.prefixes);
        for at in 0..chosen.rows() {
            let (content, given) = (chosen.batch.content(at), chosen.batch.given[at]);
            let all = given..if at < count { content.len() as u32 + 1 } else { given };
            let held = prefixes.min(all.len());
            let positions = &mut ended.positions[at * prefixes..][..prefixes];
            positions.fill(0);
            draw_positions(&mut positions[..held], all.clone(), draw, picks - count as u64 + at as u64);
            for (k, &position) in positions.iter().enumerate() {
                let row = at * prefixes + k;
                end(&mut ended.batch, row, &content[..position as usize]);
                if k < held {
                    (ended.batch.given[row], ended.batch.context[row]) = (given, chosen.batch.context[at]);
                }
            }
            ended.candidates[at] = all.len() as u32;
        }
        Ok(())
    }

    fn balance_prefixes(
        &self,
        pool: &mut Pool<Cpu>,
        ended: &mut EndedPrefixes<Cpu>,
        log_p: &[f64],
        log_pi: &[f64],
    ) -> Result<()> {
        let (ledger, longest, prefixes) = (&mut pool.ledger[0], ended.batch.space.longest, ended.prefixes);
        let log_weight = |row: usize| log_p[row] - log_pi[row];
        let held = |at: usize| at * prefixes..at * prefixes + prefixes.min(ended.candidates[at] as usize);
        let used = || (0..ended.candidates.len()).flat_map(held);
        if let Some(row) = used().find(|&row| !log_weight(row).is_finite()) {
            let got = format!("log P {}, log π {}", log_p[row], log_pi[row]);
            return Err(Error::argument(format!("ended prefix in row {row}"), "P and π above 0 and finite", got));
        }
        ledger.loss -= used().map(|row| log_pi[row]).sum::<f64>();
        ledger.loss_weight += used().count() as f64 * f64::from(longest);
        let scale = 1.0 / (ledger.chosen as f32 * longest as f32);
        ended.weights.fill(0.0);
        for (at, &candidates) in ended.candidates.iter().enumerate() {
            for row in held(at) {
                let term = |other: usize| {
                    let length = ended.positions[row].abs_diff(ended.positions[other]);
                    ended.powers[length as usize] * (log_weight(row) - log_weight(other))
                };
                let sum = held(at).map(term).sum::<f64>() * ended.shares[candidates as usize];
                ended.weights[row] = sum as f32 * scale;
            }
        }
        Ok(())
    }
}

/// Fills `positions` with numbers of `all`, of which there are no fewer, without repetition and all sets alike (Floyd's
/// algorithm: Bentley & Floyd 1987, "A sample of brilliance").
fn draw_positions(positions: &mut [u32], all: Range<u32>, draw: Draw, index: u64) {
    let count = positions.len() as u32;
    for k in 0..count {
        let (last, word) = (all.end - count + k, draw.words(index, k, 0)[0]);
        let picked = all.start + ((u64::from(word) * u64::from(last - all.start + 1)) >> 32) as u32;
        let taken = positions[..k as usize].contains(&picked);
        positions[k as usize] = if taken { last } else { picked };
    }
}

/// Row `row` becomes `prefix` with its EOS, but for one that is cut at the longest length.
fn end(batch: &mut Batch, row: usize, prefix: &[Token]) {
    let (length, longest, eos) = (prefix.len(), batch.space.longest as usize, batch.space.eos);
    batch.set(row, prefix);
    if length < longest {
        batch.tokens[row * longest + length] = eos;
        batch.lengths[row] += 1;
    }
}
