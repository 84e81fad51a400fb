//! Independent Metropolis–Hastings: chains that move to a fresh draw of q with probability min(1, w'/w).

use super::{Attempts, Drawn, Proposal, SamplerOptions, Samples, room};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::Sampler;
use crate::rng::{Draw, Purpose};

/// How the chains run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Chains {
    /// Chains side by side, 1 or more, at most the batch.
    pub chains: usize,
    /// Moves before the first sample of a chain.
    pub burn_in: u64,
    /// Moves between two samples of a chain, 1 or more.
    pub thin: u64,
}

impl Default for Chains {
    fn default() -> Self {
        Chains { chains: 10, burn_in: 100, thin: 10 }
    }
}

/// Samples by independent Metropolis–Hastings (Hastings 1970; Tierney 1994): a chain at x moves to a draw x' of q with
/// probability min(1, w(x')/w(x)), and its stationary distribution is p. The farther q is from p, the longer it stays where
/// it is. Draw k of the budget belongs to chain k mod `chains`. Samples come move by move, chain by chain.
///
/// # Errors
/// Counts of zero, more chains than a batch, and what the models say.
pub fn metropolis<B: Backend, R: Sampler<B>, Q: Sampler<B>>(
    backend: &B,
    proposal: &mut Proposal<'_, '_, B, R, Q>,
    chains: Chains,
    options: &SamplerOptions,
) -> Result<Samples> {
    if chains.chains == 0 || chains.thin == 0 {
        return Err(Error::argument("chains and moves between samples", "1 or more each", 0));
    }
    if chains.chains > options.batch {
        return Err(Error::argument("chains", format!("at most the batch, {}", options.batch), chains.chains));
    }
    // Whole moves of all chains.
    let options = SamplerOptions { batch: options.batch / chains.chains * chains.chains, ..*options };
    let coin = Draw { purpose: Purpose::Accept, ..options.draw };
    let mut samples = Samples::new(proposal.space(), options.samples)?;
    let mut state = Chain::all(&chains, proposal.space().longest as usize)?;
    let (mut attempts, mut accepted) = (Attempts::new(backend, proposal, &options)?, 0u64);
    while samples.rows() < options.samples
        && let Some(drawn) = attempts.next()?
    {
        for row in 0..drawn.log_w.len() {
            let number = drawn.first + row as u64;
            let (chain, step) = (&mut state[row % chains.chains], number / chains.chains as u64);
            // Where the chain has not begun, any draw of positive weight begins it.
            if drawn.log_w[row] > f64::NEG_INFINITY
                && coin.fine_uniform(number, 0, 6) < (drawn.log_w[row] - chain.log_w).exp()
            {
                chain.move_to(&drawn, row);
                accepted += 1;
            }
            let due = step >= chains.burn_in && (step - chains.burn_in).is_multiple_of(chains.thin);
            if due && chain.log_w > f64::NEG_INFINITY && samples.rows() < options.samples {
                samples.batch.push_given(&chain.tokens, chain.given, 0)?;
                samples.log_p.push(chain.log_p);
                samples.phi.extend_from_slice(&chain.phi);
            }
        }
    }
    samples.attempts = attempts.spent;
    samples.acceptance = accepted as f64 / samples.attempts as f64;
    samples.warn_if_short(options.samples);
    Ok(samples)
}

/// Where one chain is.
struct Chain {
    tokens: Vec<u32>,
    /// Tokens of the context.
    given: usize,
    phi: Vec<f32>,
    log_p: f64,
    /// −∞ before the first draw of positive weight.
    log_w: f64,
}

impl Chain {
    fn all(chains: &Chains, longest: usize) -> Result<Vec<Chain>> {
        let one = || {
            let mut tokens: Vec<u32> = room(longest, "chain")?;
            tokens.clear();
            Ok(Chain { tokens, given: 0, phi: Vec::new(), log_p: f64::NEG_INFINITY, log_w: f64::NEG_INFINITY })
        };
        (0..chains.chains).map(|_| one()).collect()
    }

    fn move_to(&mut self, drawn: &Drawn<'_>, row: usize) {
        let features = drawn.phi.len() / drawn.log_p.len();
        self.tokens.clear();
        self.tokens.extend_from_slice(drawn.batch.sequence(row));
        self.given = drawn.batch.given[row] as usize;
        self.phi.clear();
        self.phi.extend_from_slice(&drawn.phi[row * features..][..features]);
        (self.log_p, self.log_w) = (drawn.log_p[row], drawn.log_w[row]);
    }
}
