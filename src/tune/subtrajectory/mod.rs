//! Sub-trajectory balance: what the policy says of the pieces of a sequence, held against each other.
//!
//! Every prefix s_t = x_0 … x_{t−1} may be ended, so the flow through it is known, and none has to be learnt:
//! F(s_t) = P(s_t⊤) / π(⊤|s_t) (modified sub-trajectory balance: Deleu et al. 2022, "Bayesian structure learning with
//! generative flow networks"; Hu et al. 2024, "Amortizing intractable inference in large language models"). A sequence cut
//! at the longest length is an end of its own, of flow P(x). The balance of the piece from s_i to s_j is
//!
//! F(s_i) · Π_{i≤k<j} π(x_k|s_k) = F(s_j), which, divided by Π_{k<j} π(x_k|s_k), is P(s_i⊤) / π(s_i⊤) = P(s_j⊤) / π(s_j⊤):
//!
//! A_i = A_j with A_t = log P(s_t⊤) − log π(s_t⊤), log-weights of whole, ended sequences. The loss of a sequence x with M
//! ended prefixes, itself the longest, is SubTB(λ) (Madan et al. 2023, "Learning GFlowNets from partial episodes"),
//!
//! L(x) = ½ Σ_{i<j} λ^{j−i} (A_i − A_j)² / S_M, S_M = Σ_{i<j} λ^{j−i}, so −∇L = Σ_i a_i ∇log π(s_i⊤) with
//! a_i = Σ_j λ^{|i−j|} (A_i − A_j) / S_M:
//!
//! the weighted gradient of ordinary sequences. Z is in all A alike and cancels; behind a context that is the context's own
//! Z, and the prefixes are those that hold the context.
//!
//! **Estimator.** Of the M ended prefixes K' = min(K, M) are drawn, all sets alike. A pair is among them with probability
//! K'(K' − 1) / (M(M − 1)) and counts by the inverse of that (Horvitz & Thompson 1952), so that the expectation over the
//! draw is −∇L(x); a sequence that is nothing but its end has no pair and no gradient.

use super::{Chosen, Pool, Target};
use crate::backend::{Backend, Memory};
use crate::error::{Error, Result};
use crate::models::{Coefficients, Policy, Scorer};
use crate::rng::{Draw, Purpose};
use crate::tokens::{Batch, Space};

mod cpu;
mod gpu;

/// How sub-trajectory balance weighs the pieces of a sequence, and how many of them it looks at.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct SubTrajectories {
    /// The λ of SubTB(λ), above 0 (none of the potential's): a piece of n tokens counts λⁿ. Near 0 neighbours alone count,
    /// at 1 all pieces alike, beyond it the longest most.
    pub lambda: f64,
    /// K: ended prefixes drawn from each sequence of an update, 2 or more; all of a sequence that has no more. Each is
    /// scored and differentiated like a sequence, so an update costs K times its sequences, half of them shorter.
    pub prefixes: usize,
}

impl Default for SubTrajectories {
    /// λ of 1, one pair of prefixes.
    fn default() -> Self {
        SubTrajectories { lambda: 1.0, prefixes: 2 }
    }
}

impl SubTrajectories {
    pub(super) fn check(&self) -> Result<()> {
        if !(self.lambda > 0.0 && self.lambda.is_finite()) {
            return Err(Error::argument("λ of sub-trajectory balance", "a positive number", self.lambda));
        }
        if self.prefixes < 2 {
            return Err(Error::argument("prefixes of sub-trajectory balance", "2 or more", self.prefixes));
        }
        Ok(())
    }

    /// λ^{n−1} by the length n of a piece, `[longest + 1]`, and by the number M of ended prefixes what the sums over the
    /// pairs that were drawn are multiplied by, `[longest + 2]`.
    ///
    /// # Errors
    /// A λ whose powers are beyond f64.
    fn tables(&self, longest: u32) -> Result<(Vec<f64>, Vec<f64>)> {
        let longest = longest as usize;
        // A prefix and itself are no pair.
        let mut powers = vec![0.0; longest + 1];
        (1..=longest).for_each(|n| powers[n] = if n == 1 { 1.0 } else { powers[n - 1] * self.lambda });
        let mut shares = vec![0.0; longest + 2];
        // S_M = S_{M−1} + Σ_{n<M} λⁿ: the new prefix ends one piece of each length.
        let (mut ends, mut total) = (0.0, 0.0);
        for candidates in 2..=longest + 1 {
            ends += powers[candidates - 1];
            total += ends;
            let pairs = |of: usize| of as f64 * (of - 1) as f64;
            shares[candidates] = pairs(candidates) / pairs(candidates.min(self.prefixes)) / total;
        }
        if total.is_finite() {
            Ok((powers, shares))
        } else {
            let expected = format!("a number whose power of {longest} is finite");
            Err(Error::argument("λ of sub-trajectory balance", expected, self.lambda))
        }
    }
}

/// The ended prefixes of the sequences of an update: K rows for each, one after another.
pub struct EndedPrefixes<B: Memory> {
    /// The prefixes, each with its EOS, `[sequences · K]`; an EOS alone where a sequence was not chosen or has fewer.
    pub batch: Batch<B>,
    /// K.
    pub prefixes: usize,
    /// M: how many ended prefixes hold the context of each sequence, `[sequences]`; 0 where none was chosen. Of its rows the first
    /// min(K, M) are in use.
    pub candidates: B::Buffer<u32>,
    /// t of each row in use: how many tokens stand before the end, the context's too, `[sequences · K]`.
    pub positions: B::Buffer<u32>,
    /// The coefficient of each row, `[sequences · K]`; 0 where it is not in use.
    pub weights: B::Buffer<f32>,
    /// λ^{n−1} by the length n of a piece.
    powers: B::Buffer<f64>,
    /// M(M − 1) / (K'(K' − 1) S_M λ⁻¹) by M.
    shares: B::Buffer<f64>,
}

impl<B: Backend> EndedPrefixes<B> {
    /// Room for the prefixes of `sequences` sequences.
    ///
    /// # Errors
    /// Options outside their range, a λ whose powers are beyond f64, memory that cannot be had.
    pub fn new(backend: &B, space: Space, sequences: usize, how: &SubTrajectories) -> Result<Self> {
        how.check()?;
        // None has more.
        let prefixes = how.prefixes.min(space.longest as usize + 1);
        let (powers, shares) = SubTrajectories { prefixes, ..*how }.tables(space.longest)?;
        let rows = sequences.saturating_mul(prefixes);
        let table = |values: &[f64]| {
            let mut buffer = backend.zeros(values.len(), "weights of pieces")?;
            backend.upload(values, &mut buffer)?;
            Ok::<_, Error>(buffer)
        };
        let mut batch = Batch::with_capacity(backend, space, rows)?;
        batch.rows = rows;
        Ok(EndedPrefixes {
            batch,
            prefixes,
            candidates: backend.zeros(sequences, "numbers of prefixes")?,
            positions: backend.zeros(rows, "positions of prefixes")?,
            weights: backend.zeros(rows, "weights of prefixes")?,
            powers: table(&powers)?,
            shares: table(&shares)?,
        })
    }
}

/// The kernels of sub-trajectory balance. Lengths are already checked.
pub trait SubTrajectoryKernel: Memory {
    /// Draws K of the ended prefixes of each sequence of `chosen`, all sets alike, and writes them to `ended`. A sequence's
    /// draw depends on `draw` and on how many were chosen before it, in this update and in all others.
    fn end_prefixes(
        &self,
        pool: &Pool<Self>,
        chosen: &Chosen<Self>,
        ended: &mut EndedPrefixes<Self>,
        draw: Draw,
    ) -> Result<()>;

    /// The coefficients of the ended prefixes from their log P and log π, `[sequences · K]`, per sequence chosen and per
    /// token of the longest length: a_i, or 0 for all of a sequence in which there is an error. Their −log π join the
    /// ledger's loss, each with weight 1.
    ///
    /// # Errors
    /// A log P or log π of a row in use that is not finite, named by its row.
    fn balance_prefixes(
        &self,
        pool: &mut Pool<Self>,
        ended: &mut EndedPrefixes<Self>,
        log_p: Self::View<'_, f64>,
        log_pi: Self::View<'_, f64>,
    ) -> Result<()>;
}

/// What an update by sub-trajectory balance works in.
pub(super) struct Balancing<B: Backend> {
    ended: EndedPrefixes<B>,
    draw: Draw,
    log_base: B::Buffer<f64>,
    phi: B::Buffer<f32>,
    log_p: B::Buffer<f64>,
    log_pi: B::Buffer<f64>,
}

impl<B: Backend> Balancing<B> {
    /// For updates of `sequences` sequences; `features` is F.
    pub fn new(
        backend: &B,
        space: Space,
        sequences: usize,
        features: usize,
        how: &SubTrajectories,
        seed: u64,
    ) -> Result<Self> {
        let ended = EndedPrefixes::new(backend, space, sequences, how)?;
        let rows = ended.batch.rows;
        Ok(Balancing {
            ended,
            draw: Draw::new(seed, Purpose::Prefix),
            log_base: backend.zeros(rows, "log r of prefixes")?,
            phi: backend.zeros(rows.saturating_mul(features), "features of prefixes")?,
            log_p: backend.zeros(rows, "log P of prefixes")?,
            log_pi: backend.zeros(rows, "log-probs of prefixes")?,
        })
    }

    /// The gradient of the chosen sequences: ended prefixes, their log P by the target and log π by the policy, then the
    /// one weighted gradient.
    pub fn gradient<R: Scorer<B>, P: Policy<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        policy: &mut P,
        pool: &mut Pool<B>,
        chosen: &Chosen<B>,
    ) -> Result<()> {
        let Balancing { ended, log_base, phi, log_p, log_pi, .. } = self;
        backend.end_prefixes(pool, chosen, ended, self.draw)?;
        let (rows, values) = (ended.batch.rows, ended.batch.rows * target.features.len());
        target.base.score(&ended.batch, B::view_mut(log_base, rows))?;
        target.features.evaluate(backend, &ended.batch, B::view_mut(phi, values))?;
        let (view_base, view_phi) = (B::view(log_base, rows), B::view(phi, values));
        target.potential.log_potential(backend, view_base, view_phi, B::view_mut(log_p, rows))?;
        policy.score(&ended.batch, B::view_mut(log_pi, rows))?;
        backend.balance_prefixes(pool, ended, B::view(log_p, rows), B::view(log_pi, rows))?;
        policy.gradient(&ended.batch, &Coefficients::given(B::view(&ended.weights, rows)), B::view_mut(log_pi, rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_what_the_sums_say() {
        for (lambda, prefixes) in [(1.0, 2), (0.3, 3), (1.7, 2), (1e-40, 5), (0.9, 100)] {
            let (powers, shares) = SubTrajectories { lambda, prefixes }.tables(6).unwrap();
            assert_eq!((powers[0], shares[0], shares[1]), (0.0, 0.0, 0.0), "no pair");
            for m in 2..=7usize {
                let total: f64 = (0..m).flat_map(|j| (0..j).map(move |i| lambda.powi((j - i) as i32))).sum();
                let k = prefixes.min(m);
                let inverse = (m * (m - 1)) as f64 / (k * (k - 1)) as f64;
                for n in 1..m {
                    let want = lambda.powi(n as i32) / total * inverse;
                    let got = powers[n] * shares[m];
                    assert!(
                        (got - want).abs() <= 1e-14 * want,
                        "λ {lambda}, K {prefixes}, M {m}, n {n}: {got}, {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn powers_beyond_f64_are_refused() {
        let how = SubTrajectories { lambda: 1e100, prefixes: 2 };
        assert!(how.tables(3).is_ok());
        let error = how.tables(9).unwrap_err().to_string();
        assert!(error.contains("λ of sub-trajectory balance: expected a number whose power of 9"), "{error}");
    }
}
