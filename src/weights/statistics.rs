//! A training step's statistics, from one pass over the rows where they are.

use super::{CHUNK, fold_chunks};
use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};

/// Sums before those of the features; see [`Sums`].
pub(crate) const SUMS: usize = 5;

/// One batch drawn from q, on a backend.
pub struct WeightedRows<'a, B: Memory> {
    /// log w = log P − log q, `[rows]`, as [`weights`](super::weights()) writes it.
    pub log_w: B::View<'a, f64>,
    /// log q, `[rows]`.
    pub log_q: B::View<'a, f64>,
    /// log π, `[rows]`, where the divergences from π are wanted.
    pub log_pi: Option<B::View<'a, f64>>,
    /// Features, `[rows, F]`.
    pub phi: B::View<'a, f32>,
}

/// What a batch says about Z, the weights, the moments and, where log π was given, the distance of π.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Statistics {
    /// Number of rows n.
    pub rows: usize,
    /// log Ẑ = log (Σw/n) of these rows; −∞ where all weights are 0.
    pub log_z: f64,
    /// The largest log w.
    pub largest: f64,
    /// The effective sample size (Σw)²/Σw²; 0 where all weights are 0.
    pub ess: f64,
    /// Σwφ/Σw per feature; NaN where all weights are 0.
    pub moments: Vec<f64>,
    /// KL and TV from π, where log π was given.
    pub divergences: Option<Divergences>,
}

/// Distances of π from p = P/Z, found with the log Ẑ that was given.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Divergences {
    /// KL(p‖π) = E_q\[v log(v/u) − v + u\] in nats, with v = w/Ẑ and u = π/q.
    pub kl: f64,
    /// TV(p, π) = ½ E_q|u − v|.
    pub tv: f64,
}

/// Sums over rows, with v = exp(log w − log Ẑ).
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// max log w.
    pub largest: f64,
    /// Σv.
    pub total: f64,
    /// Σv².
    pub squares: f64,
    /// Σ v log(v/u) − v + u.
    pub kl: f64,
    /// Σ ½|u − v|.
    pub tv: f64,
    /// Σvφ per feature.
    pub features: Vec<f64>,
}

/// The kernel of [`statistics`].
pub trait StatisticsKernel: Memory {
    /// The sums over all rows, in an order that depends on their number alone; lengths are already checked. Without
    /// log π, u is 1.
    fn sums(&self, rows: &WeightedRows<'_, Self>, features: usize, log_z: f64) -> Result<Sums>;
}

/// The statistics of one batch of `features` features per row: only the sums leave the device. Unlike
/// [`ImportanceWeights`](super::ImportanceWeights) it needs no copy of the rows and gives no standard errors.
///
/// With v = exp(log w − log Ẑ) and u = π/q:
///
/// ```text
/// log Z  ≈ log Ẑ + log (Σv/n)          ESS = (Σv)²/Σv²          E_p φ ≈ Σvφ/Σv
/// KL(p‖π) ≈ (Σ v log(v/u) − v + u)/n    TV(p, π) ≈ (Σ ½|u − v|)/n
/// ```
///
/// `log_z` is the log Ẑ of earlier steps, such as [`LogMean::value`](super::LogMean::value); its error enters the KL at
/// second order. Everything else does not depend on it beyond rounding.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::weights::{WeightedRows, statistics};
///
/// let (log_w, log_q) = ([2f64.ln(), 6f64.ln()], [0.5f64.ln(); 2]);
/// let rows = WeightedRows::<Cpu> { log_w: &log_w, log_q: &log_q, log_pi: Some(&log_q), phi: &[0.0, 1.0] };
/// let found = statistics(&Cpu, &rows, 1, 4f64.ln())?;
/// assert!((found.log_z - 4f64.ln()).abs() < 1e-12 && (found.moments[0] - 0.75).abs() < 1e-12);
/// assert!((found.divergences.unwrap().tv - 0.25).abs() < 1e-12);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// No rows, lengths that differ, a `log_z` that is not finite; a log w or log π that is NaN or +∞, named by its row.
pub fn statistics<B: Backend>(
    backend: &B,
    rows: &WeightedRows<'_, B>,
    features: usize,
    log_z: f64,
) -> Result<Statistics> {
    let count = B::view_len(&rows.log_w);
    expect_len("log q", count, B::view_len(&rows.log_q))?;
    expect_len("features of the rows", count.saturating_mul(features), B::view_len(&rows.phi))?;
    if let Some(log_pi) = &rows.log_pi {
        expect_len("log-probs of the policy", count, B::view_len(log_pi))?;
    }
    if !log_z.is_finite() {
        return Err(Error::argument("log Z of the statistics", "a finite logarithm", log_z));
    }
    if count == 0 {
        return Err(Error::no_answer("statistics of the weights", "no rows; at least one is needed"));
    }
    let sums = backend.sums(rows, features, log_z)?;
    let mean = |sum: f64| sum / count as f64;
    Ok(Statistics {
        rows: count,
        log_z: log_z + mean(sums.total).ln(),
        largest: sums.largest,
        ess: if sums.total == 0.0 { 0.0 } else { sums.total * sums.total / sums.squares },
        moments: sums.features.iter().map(|sum| sum / sums.total).collect(),
        divergences: rows.log_pi.as_ref().map(|_| Divergences { kl: mean(sums.kl), tv: mean(sums.tv) }),
    })
}

impl Sums {
    fn none(features: usize) -> Self {
        let features = vec![0.0; features];
        Sums { largest: f64::NEG_INFINITY, total: 0.0, squares: 0.0, kl: 0.0, tv: 0.0, features }
    }

    fn row(&mut self, log_w: f64, log_u: f64, log_z: f64, phi: &[f32]) {
        let log_v = log_w - log_z;
        let (v, u) = (log_v.exp(), log_u.exp());
        self.largest = self.largest.max(log_w);
        self.total += v;
        self.squares += v * v;
        // v log v → 0, and u = 0 gives +∞, as it must.
        self.kl += if v == 0.0 { u } else { (v * (log_v - log_u) - v + u).max(0.0) };
        self.tv += 0.5 * (u - v).abs();
        self.features.iter_mut().zip(phi).for_each(|(sum, &value)| *sum += v * f64::from(value));
    }

    fn plus(mut self, other: Sums) -> Self {
        self.largest = self.largest.max(other.largest);
        self.total += other.total;
        self.squares += other.squares;
        self.kl += other.kl;
        self.tv += other.tv;
        self.features.iter_mut().zip(other.features).for_each(|(sum, other)| *sum += other);
        self
    }
}

impl StatisticsKernel for Cpu {
    fn sums(&self, rows: &WeightedRows<'_, Cpu>, features: usize, log_z: f64) -> Result<Sums> {
        super::check_log_weights(rows.log_w)?;
        let bad = |log_pi: &[f64]| log_pi.iter().position(|&value| value.is_nan() || value == f64::INFINITY);
        if let Some(row) = rows.log_pi.and_then(bad) {
            return Err(Error::not_a_number("log-prob of the policy", format!("row {row}")));
        }
        let part = |range: std::ops::Range<usize>| {
            debug_assert!(range.len() <= CHUNK);
            range.fold(Sums::none(features), |mut sums, row| {
                let log_u = rows.log_pi.map_or(0.0, |log_pi| log_pi[row] - rows.log_q[row]);
                sums.row(rows.log_w[row], log_u, log_z, &rows.phi[row * features..(row + 1) * features]);
                sums
            })
        };
        Ok(fold_chunks(rows.log_w.len(), part, Sums::none(features), Sums::plus))
    }
}
