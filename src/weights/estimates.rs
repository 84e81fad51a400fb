//! What one sample of the proposal q says about the target p = P/Z, each number with its standard error.
//!
//! Notation: v = w/Ẑ, u = π/q, n rows. Every estimate is a smooth function of means over rows; its variance is that of
//! the mean of its influence function (delta method, n → ∞), which accounts for Ẑ being estimated from the same rows.
//! For a mean of g(w, Z) with Ẑ put for Z, the influence function is g − E g + (∂/∂Z E g)·(w − Z).

use super::{Estimate, PARETO_LIMIT, check_log_weights, fold_chunks, log_mean_exp, pareto_k, sums};
use crate::error::{Error, Result, expect_len};

/// Below this effective sample size neither a value nor its standard error means much.
pub const MIN_ESS: f64 = 100.0;

/// The importance weights of one sample of q, normalised, and the estimators over them.
///
/// ```
/// use ebm_dpg::weights::ImportanceWeights;
///
/// // Two outcomes, q fair, P = (1, 3): Z = 4 is found from one row of each.
/// let (log_p, log_q) = ([0.0, 3f64.ln()], [0.5f64.ln(); 2]);
/// let weights = ImportanceWeights::new(&log_p, &log_q)?;
/// assert!((weights.log_z().value - 4f64.ln()).abs() < 1e-12);
/// assert!((weights.moments(&[0.0, 1.0], 1)?[0].value - 0.75).abs() < 1e-12);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ImportanceWeights<'a> {
    log_q: &'a [f64],
    /// log v = log w − log Ẑ, −∞ where P = 0.
    pub(super) log_v: Vec<f64>,
    /// v, with mean 1.
    pub(super) v: Vec<f64>,
    log_z: Estimate,
    ess: f64,
    pareto_k: Option<f64>,
    /// π(P = 0), where it is known from elsewhere.
    pub(super) outside: Option<Estimate>,
}

impl<'a> ImportanceWeights<'a> {
    /// From log P and log q of rows drawn from q, both `[rows]`; log P may be −∞.
    ///
    /// # Errors
    /// No rows, lengths that differ, a NaN or infinite weight (named by its row), every weight zero.
    pub fn new(log_p: &[f64], log_q: &'a [f64]) -> Result<Self> {
        expect_len("log q", log_p.len(), log_q.len())?;
        let mut log_v: Vec<f64> = log_p.iter().zip(log_q).map(|(log_p, log_q)| log_p - log_q).collect();
        check_log_weights(&log_v)?;
        let rows = log_v.len();
        let log_z = log_mean_exp(&log_v);
        if log_z == f64::NEG_INFINITY {
            let reason =
                format!("all {rows} weights are zero; draw more samples, or from a proposal nearer the target");
            return Err(Error::no_answer("estimate from importance weights", reason));
        }
        let pareto_k = pareto_k(&log_v);
        log_v.iter_mut().for_each(|log_w| *log_w -= log_z);
        let v: Vec<f64> = log_v.iter().map(|log_v| log_v.exp()).collect();
        // log Ẑ = log mean w; influence (w − Z)/Z = v − 1.
        let [total, squares, deviations] = sums(rows, |row| [v[row], v[row] * v[row], (v[row] - 1.0).powi(2)]);
        let log_z = Estimate::from_influence(log_z, deviations, rows);
        Ok(ImportanceWeights { log_q, log_v, v, log_z, ess: total * total / squares, pareto_k, outside: None })
    }

    /// The same rows for a π that may leave the support of q, such as a guided proposal, which only draws what meets
    /// the requirements: E_q[π/q] is then less than 1, and KL(p‖π), TV(p, π) and their differences would be found too
    /// small. `outside` is π(P = 0), estimated from draws of π itself; rows of weight 0 then say nothing about π.
    pub fn with_outside(self, outside: Estimate) -> Self {
        ImportanceWeights { outside: Some(outside), ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.v.len()
    }

    /// v = w/Ẑ per row; their mean is 1.
    pub fn normalised(&self) -> &[f64] {
        &self.v
    }

    /// log Ẑ = log mean w.
    pub fn log_z(&self) -> Estimate {
        self.log_z
    }

    /// The effective sample size (Σw)²/Σw², in 1..=rows (Kong 1992).
    pub fn ess(&self) -> f64 {
        self.ess
    }

    /// The largest weight's share of Σw, in 1/rows..=1.
    pub fn largest_share(&self) -> f64 {
        self.v.iter().copied().fold(0.0, f64::max) / self.rows() as f64
    }

    /// k̂ of the weights' tail; see [`pareto_k`].
    pub fn pareto_k(&self) -> Option<f64> {
        self.pareto_k
    }

    /// One plain line where the weights are too few or too heavy-tailed for the estimates to mean anything.
    pub fn warning(&self) -> Option<String> {
        let (rows, ess) = (self.rows(), self.ess);
        match self.pareto_k {
            Some(k) if k > PARETO_LIMIT => Some(format!(
                "the importance weights are heavy-tailed (Pareto k {k:.2} > {PARETO_LIMIT}, effective sample size \
                 {ess:.0} of {rows}): the estimates and their errors cannot be trusted"
            )),
            _ if ess < MIN_ESS => Some(format!(
                "the effective sample size is only {ess:.0} of {rows} rows: the estimates and their errors mean little"
            )),
            _ => None,
        }
    }

    /// KL(p‖π) in nats, from log π of the same rows; +∞ where π = 0 on a row with P > 0.
    ///
    /// E_q[v log(v/u) − v + u]: every term is ≥ 0 and the error of Ẑ enters at second order. With dv/dZ = −v/Z,
    /// ∂/∂Z E[v log(v/u) − v + u] = −E[v log(v/u)]/Z = −KL/Z, so the influence function is
    /// g − E g − KL·(v − 1). [`ImportanceWeights::with_outside`] makes it E_q[v log(v/u) − v + u·1(v > 0)] + π(P = 0).
    ///
    /// Where these rows miss a part of π ([`ImportanceWeights::reach`]) u is left to itself: E_q[v log(v/u)], with
    /// v·∂/∂v of v log(v/u) + v.
    ///
    /// # Errors
    /// Another number of rows, a log π that is NaN or +∞.
    pub fn kl_to(&self, log_pi: &[f64]) -> Result<Estimate> {
        let log_u = self.log_ratio(log_pi)?;
        if self.misses(self.reach_of(&log_u)) {
            let term = |row: usize| {
                let v = self.v[row];
                if v == 0.0 { 0.0 } else { v * (self.log_v[row] - log_u[row]) }
            };
            let kl = self.plug_in(term, |row| term(row) + self.v[row]);
            return Ok(Estimate { value: kl.value.max(0.0), ..kl });
        }
        Ok(self.kl(|row| log_u[row], self.outside))
    }

    /// What these rows show of π: E_q[π/q], and π(P = 0) where that is known from elsewhere. It is 1 but for noise where q
    /// draws all that π does. Where it is less, or too noisy to say, a part of π is hardly ever drawn by q: KL(p‖π) and
    /// TV(p, π) are then estimated without it, with larger errors, and other divergences are found too small.
    ///
    /// # Errors
    /// Another number of rows, a log π that is NaN or +∞.
    pub fn reach(&self, log_pi: &[f64]) -> Result<Estimate> {
        Ok(self.reach_of(&self.log_ratio(log_pi)?))
    }

    fn reach_of(&self, log_u: &[f64]) -> Estimate {
        let rows = self.rows();
        let u = |row: usize| if self.v[row] == 0.0 && self.outside.is_some() { 0.0 } else { log_u[row].exp() };
        let [total] = sums(rows, |row| [u(row)]);
        let mean = total / rows as f64;
        let [squares] = sums(rows, |row| [(u(row) - mean).powi(2)]);
        let inside = Estimate::from_influence(mean, squares, rows);
        self.outside.map_or(inside, |outside| inside.plus(outside))
    }

    /// Whether the rows miss a part of π: its whole is not 1, or is far less sure than that of p, which is.
    fn misses(&self, reach: Estimate) -> bool {
        let Estimate { value, standard_error } = reach;
        value + 4.0 * standard_error < 1.0 || standard_error > 0.1 + 2.0 * self.log_z.standard_error
    }

    /// One plain line where these rows miss a part of π.
    ///
    /// # Errors
    /// As [`ImportanceWeights::reach`].
    pub fn warning_of(&self, log_pi: &[f64]) -> Result<Option<String>> {
        let reach = self.reach(log_pi)?;
        Ok(self.misses(reach).then(|| {
            let Estimate { value, standard_error } = reach;
            format!(
                "the proposal hardly draws a part of what π draws (E[π/q] is {value:.3} ± {standard_error:.3}, not 1): \
                 KL(p‖π) and TV(p, π) are estimated from p's side alone"
            )
        }))
    }

    /// KL(p‖q) in nats: [`ImportanceWeights::kl_to`] with π = q, u = 1.
    pub fn kl_to_proposal(&self) -> Estimate {
        self.kl(|_| 0.0, None)
    }

    /// TV(p, π) = ½ Σ|p − π|, in 0..=1, from log π of the same rows.
    ///
    /// ½ E_q|u − v|. With s = E_q[v·sgn(v − u)], ∂/∂Z E = −s/(2Z), so the influence function is
    /// ½|u − v| − TV − ½ s (v − 1). [`ImportanceWeights::with_outside`] makes it ½ E_q|u − v|·1(v > 0) + ½ π(P = 0).
    ///
    /// Where these rows miss a part of π ([`ImportanceWeights::reach`]) it is E_q[max(v − u, 0)], which reads u where p is
    /// the larger alone.
    ///
    /// # Errors
    /// Another number of rows, a log π that is NaN or +∞.
    pub fn tv_to(&self, log_pi: &[f64]) -> Result<Estimate> {
        let log_u = self.log_ratio(log_pi)?;
        if self.misses(self.reach_of(&log_u)) {
            let excess = |row: usize| self.v[row] - log_u[row].exp();
            let slope = |row: usize| if excess(row) > 0.0 { self.v[row] } else { 0.0 };
            return Ok(self.plug_in(|row| excess(row).max(0.0), slope));
        }
        let slope = |row: usize| half_slope(self.v[row], log_u[row].exp());
        let inside = self.plug_in(|row| self.distance(row, log_u[row]), slope);
        Ok(self.outside.map_or(inside, |outside| inside.plus(outside.scaled(0.5))))
    }

    /// TV(p, q): [`ImportanceWeights::tv_to`] with π = q, u = 1.
    pub fn tv_to_proposal(&self) -> Estimate {
        self.plug_in(|row| half_distance(self.v[row], 1.0), |row| half_slope(self.v[row], 1.0))
    }

    /// E_p φ of each feature, from φ `[rows, features]`: Σwφ/Σw, influence v·(φ − m).
    ///
    /// # Errors
    /// A φ of another size, a NaN in it (named by row and feature).
    pub fn moments(&self, phi: &[f32], features: usize) -> Result<Vec<Estimate>> {
        let rows = self.rows();
        expect_len("features of the rows", rows * features, phi.len())?;
        if let Some(at) = phi.iter().position(|value| value.is_nan()) {
            return Err(Error::not_a_number("feature", format!("row {}, feature {}", at / features, at % features)));
        }
        let over_rows = |term: &(dyn Fn(usize, usize) -> f64 + Sync)| {
            let part = |range: std::ops::Range<usize>| {
                let mut sums = vec![0.0; features];
                range.for_each(|row| sums.iter_mut().enumerate().for_each(|(i, sum)| *sum += term(row, i)));
                sums
            };
            let add = |total: Vec<f64>, part: Vec<f64>| total.iter().zip(part).map(|(a, b)| a + b).collect();
            fold_chunks(rows, part, vec![0.0; features], add)
        };
        let value = |row: usize, i: usize| f64::from(phi[row * features + i]);
        // Σv = n only up to rounding; dividing by it keeps the moment of a constant exact.
        let [total] = sums(rows, |row| [self.v[row]]);
        let means: Vec<f64> = over_rows(&|row, i| self.v[row] * value(row, i)).iter().map(|sum| sum / total).collect();
        let squares = over_rows(&|row, i| (self.v[row] * (value(row, i) - means[i])).powi(2));
        Ok(means.iter().zip(squares).map(|(&mean, squares)| Estimate::from_influence(mean, squares, rows)).collect())
    }

    /// KL(p‖q) − KL(p‖π) = E_p[log π − log q], paired on these rows: Δ = Σw(log π − log q)/Σw, where Ẑ cancels.
    /// Positive where π is nearer to p; −∞ where π = 0 on a row with P > 0. Influence v·(log u − Δ).
    ///
    /// # Errors
    /// Another number of rows, a log π that is NaN or +∞.
    pub fn kl_difference(&self, log_pi: &[f64]) -> Result<Estimate> {
        let log_u = self.log_ratio(log_pi)?;
        let rows = self.rows();
        // A row of weight 0 adds nothing, even where log u = −∞ (0·∞ would be NaN).
        let weighted = |row: usize, value: f64| if self.v[row] == 0.0 { 0.0 } else { self.v[row] * value };
        let [total, sum] = sums(rows, |row| [self.v[row], weighted(row, log_u[row])]);
        let delta = sum / total;
        let [squares] = sums(rows, |row| [weighted(row, log_u[row] - delta).powi(2)]);
        Ok(Estimate::from_influence(delta, squares, rows))
    }

    /// TV(p, q) − TV(p, π), paired on these rows; positive where π is nearer to p. The influence function is the
    /// difference of the two, see [`ImportanceWeights::tv_to`].
    ///
    /// # Errors
    /// Another number of rows, a log π that is NaN or +∞.
    pub fn tv_difference(&self, log_pi: &[f64]) -> Result<Estimate> {
        let log_u = self.log_ratio(log_pi)?;
        let distance = |row: usize| half_distance(self.v[row], 1.0) - self.distance(row, log_u[row]);
        let slope = |row: usize| half_slope(self.v[row], 1.0) - half_slope(self.v[row], log_u[row].exp());
        let inside = self.plug_in(distance, slope);
        Ok(self.outside.map_or(inside, |outside| inside.plus(outside.scaled(-0.5))))
    }

    /// Whether the proposal should be replaced by π: Δ of [`ImportanceWeights::kl_difference`] beyond two standard
    /// errors, from an effective sample of at least [`MIN_ESS`].
    ///
    /// # Errors
    /// Another number of rows, a log π that is NaN or +∞.
    pub fn is_superior(&self, log_pi: &[f64]) -> Result<bool> {
        Ok(self.ess >= MIN_ESS && self.kl_difference(log_pi)?.exceeds_zero(2.0))
    }

    /// log u = log π − log q.
    pub(super) fn log_ratio(&self, log_pi: &[f64]) -> Result<Vec<f64>> {
        expect_len("log-probs of the policy", self.rows(), log_pi.len())?;
        if let Some(row) = log_pi.iter().position(|&log_pi| log_pi.is_nan() || log_pi == f64::INFINITY) {
            return Err(Error::not_a_number("log-prob of the policy", format!("row {row} ({})", log_pi[row])));
        }
        Ok(log_pi.iter().zip(self.log_q).map(|(log_pi, log_q)| log_pi - log_q).collect())
    }

    /// ½|u − v| of a row; 0 where another estimate accounts for P = 0.
    fn distance(&self, row: usize, log_u: f64) -> f64 {
        if self.v[row] == 0.0 && self.outside.is_some() { 0.0 } else { half_distance(self.v[row], log_u.exp()) }
    }

    fn kl(&self, log_u: impl Fn(usize) -> f64 + Sync, outside: Option<Estimate>) -> Estimate {
        let rows = self.rows();
        let term = |row: usize| {
            let (v, u) = (self.v[row], log_u(row).exp());
            match v {
                0.0 if outside.is_some() => 0.0,
                // v log v → 0.
                0.0 => u,
                // u = 0 gives +∞, as it must.
                _ => (v * (self.log_v[row] - log_u(row)) - v + u).max(0.0),
            }
        };
        let [total] = sums(rows, |row| [term(row)]);
        let inside = total / rows as f64;
        let kl = inside + outside.map_or(0.0, |outside| outside.value);
        let [squares] = sums(rows, |row| [(term(row) - inside - kl * (self.v[row] - 1.0)).powi(2)]);
        let estimate = Estimate::from_influence(inside, squares, rows);
        outside.map_or(estimate, |outside| estimate.plus(outside))
    }

    /// The mean of `term`, which depends on Ẑ through v alone with v·∂term/∂v = `slope`. As dv/dZ = −v/Z, its
    /// influence function is term − mean − E[slope]·(v − 1).
    pub(super) fn plug_in(&self, term: impl Fn(usize) -> f64 + Sync, slope: impl Fn(usize) -> f64 + Sync) -> Estimate {
        let rows = self.rows();
        let [mean, slope] = sums(rows, |row| [term(row), slope(row)]).map(|total| total / rows as f64);
        let [squares] = sums(rows, |row| [(term(row) - mean - slope * (self.v[row] - 1.0)).powi(2)]);
        Estimate::from_influence(mean, squares, rows)
    }
}

/// ½|u − v|.
fn half_distance(v: f64, u: f64) -> f64 {
    0.5 * (u - v).abs()
}

/// v·∂/∂v of ½|u − v|; 0 at the kink.
fn half_slope(v: f64, u: f64) -> f64 {
    if v > u {
        0.5 * v
    } else if v < u {
        -0.5 * v
    } else {
        0.0
    }
}

/// Cross-entropy of p = P/Z on data in nats per sequence: −mean(log P) + log Z, from log P of the data rows. The data
/// and the sample behind `log_z` are independent, so their variances add. +∞ where some row has P = 0.
///
/// # Errors
/// No rows, a NaN.
pub fn cross_entropy(log_p: &[f64], log_z: Estimate) -> Result<Estimate> {
    Ok(Estimate::mean(log_p)?.scaled(-1.0).plus(log_z))
}

/// The cross-entropy of q minus that of π on held-out data, in nats per sequence, paired row by row; positive where π
/// is better.
///
/// # Errors
/// No rows, lengths that differ, a NaN, a row on which both are −∞.
pub fn cross_entropy_difference(log_q: &[f64], log_pi: &[f64]) -> Result<Estimate> {
    expect_len("log-probs of the policy", log_q.len(), log_pi.len())?;
    Estimate::mean(&log_pi.iter().zip(log_q).map(|(log_pi, log_q)| log_pi - log_q).collect::<Vec<_>>())
}
