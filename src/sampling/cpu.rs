//! Draws on the CPU: weights by SIMD, thresholds by one histogram of the logits and a sort of the bin that it leaves.

use rayon::prelude::*;

use super::{ONE, Sampled, SamplingKernel, Truncation, Uniforms};
use crate::backend::Cpu;
use crate::backend::simd::{Isa, LANES, Simd, dispatch};
use crate::error::Result;
use crate::log_prob::{Logit, Softmax, SoftmaxOptions, check_logits};
use crate::tokens::Token;

/// Bins of the histogram: sign, exponent and two bits more.
const BINS: usize = 1 << 11;

/// A row's workspace.
#[derive(Default)]
struct Room {
    logits: Vec<f32>,
    weights: Vec<u64>,
    bin: Vec<(u32, u64)>,
}

/// One row's draw.
#[derive(Clone, Copy, Default)]
struct Drawn {
    token: Token,
    log_q: f32,
    unreachable: bool,
    good: bool,
}

/// `weights[i]` = exp(scale·(logits[i] − max)) in multiples of 2⁻⁴⁰, rounded down.
#[inline(always)]
unsafe fn weigh<S: Simd>(logits: &[f32], softmax: &Softmax<'_>, max: f32, weights: &mut [u64]) {
    let (factor, lowest) = softmax.exponent();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for (logits, weights) in logits.chunks(LANES).zip(weights.chunks_mut(LANES)) {
        lanes[..logits.len()].copy_from_slice(logits);
        // SAFETY: 16 values each way; the instruction set is the caller's.
        let exps = unsafe {
            let exps = S::load(lanes.as_ptr()).sub(S::splat(max)).exp2_product(S::splat(factor), S::splat(lowest));
            exps.mul(S::splat(ONE)).lanes()
        };
        weights.iter_mut().zip(exps).for_each(|(weight, exp)| *weight = exp as u64);
    }
}
dispatch! { fn weigh_row(logits: &[f32], softmax: &Softmax<'_>, max: f32, weights: &mut [u64]) = weigh }

/// Bits that order as the numbers do; −0 is 0.
fn key(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// What a threshold is to leave.
#[derive(Clone, Copy)]
enum Least {
    /// So many tokens.
    Tokens(u64),
    /// So much weight.
    Weight(u64),
}

impl Room {
    /// The highest of the logits at which those from it on are enough; `above` is a bound on it. The largest logit where
    /// nothing is asked, the smallest where all are not enough.
    fn threshold(&mut self, above: u32, least: Least) -> u32 {
        let enough = |tokens: u64, weight: u64| match least {
            Least::Tokens(wanted) => tokens >= wanted,
            Least::Weight(wanted) => weight >= wanted,
        };
        let (mut tokens, mut weights) = ([0u64; BINS], [0u64; BINS]);
        for (&logit, &weight) in self.logits.iter().zip(&self.weights).filter(|&(&logit, _)| key(logit) >= above) {
            let bin = key(logit) as usize / (1 << 21);
            tokens[bin] += 1;
            weights[bin] += weight;
        }
        let (mut token, mut weight) = (0, 0);
        let fits = |&bin: &usize| {
            if tokens[bin] > 0 && enough(token + tokens[bin], weight + weights[bin]) {
                return true;
            }
            (token, weight) = (token + tokens[bin], weight + weights[bin]);
            false
        };
        let Some(bin) = (0..BINS).rev().find(fits) else { return above };
        let within = |&(key, _): &(u32, u64)| key as usize / (1 << 21) == bin && key >= above;
        self.bin.clear();
        let pairs = self.logits.iter().zip(&self.weights).map(|(&logit, &weight)| (key(logit), weight));
        self.bin.extend(pairs.filter(within));
        self.bin.sort_unstable_by_key(|&(key, _)| std::cmp::Reverse(key));
        for &(key, its) in &self.bin {
            (token, weight) = (token + 1, weight + its);
            if enough(token, weight) {
                return key;
            }
        }
        above
    }

    /// Draws from a row in `logits`, masked.
    fn draw(&mut self, softmax: &Softmax<'_>, truncation: &Truncation, uniform: f32) -> Drawn {
        let max = self.logits.iter().copied().fold(f32::NEG_INFINITY, |max, x| if x > max { x } else { max });
        if self.logits.iter().any(|x| x.is_nan()) || !max.is_finite() {
            return Drawn::default();
        }
        self.weights.resize(self.logits.len(), 0);
        weigh_row(Isa::best(), &self.logits, softmax, max, &mut self.weights);
        let possible = |logits: &[f32], least: u32| logits.iter().any(|&x| x > f32::NEG_INFINITY && key(x) < least);
        let mut least = key(f32::NEG_INFINITY);
        if let Some(k) = truncation.top_k.filter(|&k| (k as usize) < self.logits.len()) {
            least = self.threshold(least, Least::Tokens(k.into()));
        }
        if truncation.top_p < 1.0 {
            let left: u64 = self.kept(least).map(|(_, weight)| weight).sum();
            least = self.threshold(least, Least::Weight(share(truncation.top_p, left).max(1)));
        }
        if truncation.min_p > 0.0 {
            let lowest = truncation.lowest(softmax.scale);
            let kept = self.logits.iter().filter(|&&x| x - max >= lowest).map(|&x| key(x)).min();
            least = least.max(kept.expect("the largest"));
        }
        let total: u64 = self.kept(least).map(|(_, weight)| weight).sum();
        let target = share(uniform, total);
        let mut cumulated = 0;
        let reached = |&(_, weight): &(usize, u64)| {
            cumulated += weight;
            cumulated > target
        };
        let (token, _) = self.kept(least).find(reached).expect("a uniform is below 1");
        let depth = (f64::from(self.logits[token]) - f64::from(max)) * f64::from(softmax.scale);
        let log_q = (depth - (total as f64 / f64::from(ONE)).ln()).min(0.0) as f32;
        let unreachable = truncation.is_some(self.logits.len()) && possible(&self.logits, least);
        Drawn { token: token as Token, log_q, unreachable, good: true }
    }

    /// Tokens and weights from a threshold on.
    fn kept(&self, least: u32) -> impl Iterator<Item = (usize, u64)> {
        let rows = self.logits.iter().zip(&self.weights).enumerate();
        rows.filter(move |(_, (logit, _))| key(**logit) >= least).map(|(token, (_, &weight))| (token, weight))
    }
}

/// ⌊share·total⌋ for a share in [0, 1] of at most 40 bits behind the point and a total below 2⁶⁴.
fn share(share: f32, total: u64) -> u64 {
    ((u128::from((share * ONE) as u64) * u128::from(total)) >> 40) as u64
}

impl SamplingKernel for Cpu {
    fn sample<T: Logit>(
        &self,
        options: &SoftmaxOptions<'_, Cpu>,
        truncation: &Truncation,
        vocab: usize,
        logits: &[T],
        uniforms: &Uniforms<'_, Cpu>,
        out: Sampled<'_, Cpu>,
    ) -> Result<()> {
        let softmax = Softmax::new(options, vocab);
        let draw = |room: &mut Room, (at, row): (usize, &[T])| {
            room.logits.clear();
            let logit = |(token, x): (usize, &T)| if options.allows(token) { x.to_f32() } else { f32::NEG_INFINITY };
            room.logits.extend(row[..vocab].iter().enumerate().map(logit));
            let number = uniforms.rows.map_or(at as u64, |rows| rows[at].into());
            room.draw(&softmax, truncation, uniforms.draw.uniform(number, uniforms.position))
        };
        let rows = logits.par_chunks(softmax.stride).enumerate().with_min_len(softmax.rows_per_task());
        let mut drawn = Vec::with_capacity(out.tokens.len());
        rows.map_init(Room::default, draw).collect_into_vec(&mut drawn);
        if let Some(at) = drawn.iter().position(|drawn| !drawn.good) {
            let row = options.row(&logits[at * softmax.stride..][..vocab]);
            return check_logits("logits", &row, format_args!("row {at}"));
        }
        for (at, drawn) in drawn.into_iter().enumerate() {
            (out.tokens[at], out.log_q[at]) = (drawn.token, drawn.log_q);
            if drawn.unreachable {
                out.unreachable[at] = 1;
            }
        }
        Ok(())
    }
}
