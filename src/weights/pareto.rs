//! How heavy the weights' tail is: the shape k̂ of a generalised Pareto distribution fitted to the largest weights.
//!
//! k̂ by Zhang & Stephens (2009), "A new and efficient estimation method for the generalized Pareto distribution", as
//! used for importance sampling by Vehtari, Simpson, Gelman, Yao & Gabry (2024), "Pareto smoothed importance sampling".

/// Above this k̂ neither an estimate nor its standard error can be trusted at any practical sample size (Vehtari et al.
/// 2024, section 3).
pub const PARETO_LIMIT: f64 = 0.7;

/// Fewest distinct exceedances that k̂ is fitted to.
const FEWEST: usize = 5;

/// k̂ of the weights with these logarithms: fitted to the excess of the min(n/5, 3√n) largest over the next one.
///
/// `None` where fewer than five weights exceed that threshold: few samples, or a largest weight shared by many rows,
/// which then are bounded and have no tail. NaN log-weights are the caller's error.
pub fn pareto_k(log_w: &[f64]) -> Option<f64> {
    let rows = log_w.len();
    let tail = (rows as f64 / 5.0).min(3.0 * (rows as f64).sqrt()).ceil() as usize;
    if tail < FEWEST || tail >= rows {
        return None;
    }
    let mut ordered = log_w.to_vec();
    let (_, &mut threshold, largest) = ordered.select_nth_unstable_by(rows - tail - 1, f64::total_cmp);
    largest.sort_unstable_by(f64::total_cmp);
    let max = *largest.last()?;
    let floor = (threshold - max).exp();
    let excess: Vec<f64> = largest.iter().map(|&log_w| (log_w - max).exp() - floor).filter(|&x| x > 0.0).collect();
    let distinct = 1 + excess.windows(2).filter(|pair| pair[0] < pair[1]).count();
    if excess.len() < FEWEST || distinct < FEWEST { None } else { Some(shape(&excess)) }
}

/// The shape of a generalised Pareto distribution with location 0 from its ordered positive draws.
///
/// The posterior mean of θ = −k/σ under Zhang & Stephens' prior, by quadrature on their grid, then
/// k = mean log(1 − θx), drawn towards ½ by ten pseudo-observations as Vehtari et al. do.
fn shape(ordered: &[f64]) -> f64 {
    let n = ordered.len() as f64;
    let points = 30 + n.sqrt() as usize;
    let quartile = ordered[((n / 4.0 + 0.5) as usize).max(1) - 1];
    let largest = ordered[ordered.len() - 1];
    let grid = |j: usize| 1.0 / largest + (1.0 - (points as f64 / (j as f64 + 0.5)).sqrt()) / (3.0 * quartile);
    let shape_at = |theta: f64| ordered.iter().map(|&x| (-theta * x).ln_1p()).sum::<f64>() / n;
    let log_likelihood = |theta: f64| {
        let k = shape_at(theta);
        let value = n * ((-theta / k).ln() - k - 1.0);
        // θ = 0 is the exponential limit, 0/0 here: a point of measure zero that gets no weight.
        if value.is_nan() { f64::NEG_INFINITY } else { value }
    };
    let thetas: Vec<f64> = (0..points).map(grid).collect();
    let log_likelihoods: Vec<f64> = thetas.iter().map(|&theta| log_likelihood(theta)).collect();
    let total = super::log_sum_exp(&log_likelihoods);
    let theta: f64 = thetas.iter().zip(&log_likelihoods).map(|(theta, l)| theta * (l - total).exp()).sum();
    (shape_at(theta) * n + 10.0 * 0.5) / (n + 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Draw, Purpose};

    /// k̂ of generalised Pareto draws x = ((1 − u)^(−k) − 1)/k, for tails light to heavy.
    #[test]
    fn known_generalised_pareto_draws() {
        for (seed, k) in [(1, -0.3), (2, 0.2), (3, 0.5), (4, 0.9), (5, 1.5)] {
            let draw = Draw::new(seed, Purpose::User);
            let value = |row| {
                let u = (f64::from(draw.words(row, 0, 0)[0]) + 0.5) / 4_294_967_296.0;
                ((1.0 - u).powf(-k) - 1.0) / k
            };
            let log_w: Vec<f64> = (0..100_000).map(|row| f64::ln(value(row))).collect();
            let estimate = pareto_k(&log_w).unwrap();
            // The error of k̂ is about (1 + k)/√tail, tail = 949; the prior's pull is below .01.
            let bound = 4.0 * (1.0 + k) / 949f64.sqrt() + 0.01;
            assert!((estimate - k).abs() <= bound, "k {k}: {estimate}");
        }
    }

    #[test]
    fn no_tail_no_shape() {
        assert_eq!(pareto_k(&[]), None);
        assert_eq!(pareto_k(&[0.0; 4]), None);
        assert_eq!(pareto_k(&[0.0; 1000]), None);
        let mut two_values = vec![f64::NEG_INFINITY; 900];
        two_values.extend([3.0; 100]);
        assert_eq!(pareto_k(&two_values), None);
    }

    #[test]
    fn scale_does_not_matter() {
        let log_w: Vec<f64> = (0..1000).map(|row| -f64::ln(1.0 - (f64::from(row) + 0.5) / 1000.0)).collect();
        let shifted: Vec<f64> = log_w.iter().map(|l| l - 5000.0).collect();
        assert!((pareto_k(&log_w).unwrap() - pareto_k(&shifted).unwrap()).abs() < 1e-6);
    }
}
