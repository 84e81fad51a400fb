//! Rejection: a draw of q is accepted with probability min(1, w/β).

use super::{Attempts, Drawn, Proposal, SamplerOptions, Samples};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::Sampler;
use crate::rng::{Draw, Purpose};

/// What the weights are held against, as log β.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Bound {
    /// No weight is larger: the samples are of p exactly. A larger one is an error.
    Exact(f64),
    /// Weights may be larger: quasi-rejection (Eikema, Kruszewski, Dance, Elsahar & Dymetman 2022, "An approximate sampler
    /// for energy-based models with divergence diagnostics").
    Quasi(f64),
    /// The largest weight seen so far. When it rises, those accepted before are thinned, so that the accepted are at
    /// any time what this bound would have accepted from the start.
    Running,
}

/// Samples by rejection.
///
/// From r, exp Σ max(0, λ) bounds the weights where every φ lies in [0, 1].
///
/// # Errors
/// Counts of zero, a log β that is not finite, a weight above an exact bound (which names its draw), and what the models
/// say.
pub fn rejection<B: Backend, R: Sampler<B>, Q: Sampler<B>>(
    backend: &B,
    proposal: &mut Proposal<'_, '_, B, R, Q>,
    bound: Bound,
    options: &SamplerOptions,
) -> Result<Samples> {
    let mut log_bound = match bound {
        Bound::Exact(log_bound) | Bound::Quasi(log_bound) if !log_bound.is_finite() => {
            return Err(Error::argument("bound of the weights", "a finite logarithm", log_bound));
        }
        Bound::Exact(log_bound) | Bound::Quasi(log_bound) => log_bound,
        Bound::Running => f64::NEG_INFINITY,
    };
    let coin = Draw { purpose: Purpose::Accept, ..options.draw };
    let mut samples = Samples::new(proposal.space(), options.samples)?;
    let mut attempts = Attempts::new(backend, proposal, options)?;
    let mut raises = 0;
    while samples.rows() < options.samples
        && let Some(drawn) = attempts.next()?
    {
        let largest = drawn.log_w.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        match bound {
            Bound::Exact(_) => check_bound(&drawn, log_bound)?,
            Bound::Running if largest > log_bound => {
                raises += 1;
                samples = thinned(&samples, options.samples, |row| {
                    coin.fine_uniform(row as u64, raises, 4) < (log_bound - largest).exp()
                })?;
                log_bound = largest;
            }
            Bound::Quasi(_) | Bound::Running => {}
        }
        accept(&drawn, log_bound, &coin, &mut samples)?;
    }
    samples.attempts = attempts.spent;
    samples.acceptance = samples.rows() as f64 / samples.attempts as f64;
    samples.warn_if_short(options.samples);
    if raises > 0 {
        samples.warnings.push(format!(
            "the bound is the largest weight of {} draws, log β = {log_bound:.3}: the samples lack what larger weights \
             would have added (see quasi-rejection)",
            samples.attempts
        ));
    }
    Ok(samples)
}

/// Appends what `log_bound` accepts of `drawn`, as far as there is room. The draws behind the last sample count as
/// spent: which of a batch come first says nothing about their weights.
fn accept(drawn: &Drawn<'_>, log_bound: f64, coin: &Draw, samples: &mut Samples) -> Result<()> {
    for (row, log_w) in drawn.log_w.iter().enumerate() {
        let accepted = coin.fine_uniform(drawn.first + row as u64, 0, 3) < (log_w - log_bound).exp();
        if accepted && samples.rows() < samples.batch.capacity() {
            samples.push(drawn, row)?;
        }
    }
    Ok(())
}

fn check_bound(drawn: &Drawn<'_>, log_bound: f64) -> Result<()> {
    // Rounding of log P and log q may put an exact bound's own sequences a little above it.
    match drawn.log_w.iter().position(|&log_w| log_w > log_bound + 1e-6) {
        None => Ok(()),
        Some(row) => {
            let got = format!("{} at draw {}", drawn.log_w[row], drawn.first + row as u64);
            Err(Error::argument("log-weight under an exact bound", format!("at most {log_bound}"), got))
        }
    }
}

/// The samples whose rows `stays` keeps, with room for `capacity`.
fn thinned(samples: &Samples, capacity: usize, stays: impl Fn(usize) -> bool) -> Result<Samples> {
    let rows: Vec<u32> = (0..samples.rows()).filter(|&row| stays(row)).map(|row| row as u32).collect();
    let kept = samples.select(&rows)?;
    let mut roomy = Samples::new(samples.batch.space, capacity)?;
    for row in 0..kept.rows() {
        roomy.batch.push_row(&kept.batch, row)?;
    }
    Ok(Samples { batch: roomy.batch, ..kept })
}
