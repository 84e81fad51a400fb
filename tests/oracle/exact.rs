//! Exact answers by enumeration of a small space. Distributions are slices of log-values in the order of
//! [`enumerate`].

use ebm_dpg::tokens::{Space, Token};

/// Every member of the space: all strings ended by EOS, and all cut at the longest length. Depth first: a prefix ended
/// by EOS, then its extensions by token id.
pub fn enumerate(space: Space) -> Vec<Vec<Token>> {
    fn extend(space: Space, prefix: &mut Vec<Token>, members: &mut Vec<Vec<Token>>) {
        if prefix.len() == space.longest as usize {
            members.push(prefix.clone());
            return;
        }
        members.push([prefix.as_slice(), &[space.eos]].concat());
        for token in (0..space.vocab).filter(|&token| ![space.bos, space.eos, space.pad].contains(&token)) {
            prefix.push(token);
            extend(space, prefix, members);
            prefix.pop();
        }
    }
    let mut members = Vec::new();
    extend(space, &mut Vec::new(), &mut members);
    members
}

/// log Σ exp; −∞ for no values or all −∞.
pub fn log_sum_exp(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_infinite() { max } else { max + values.iter().map(|v| (v - max).exp()).sum::<f64>().ln() }
}

/// log softmax of one row.
pub fn log_softmax(row: &[f64]) -> Vec<f64> {
    let total = log_sum_exp(row);
    row.iter().map(|v| v - total).collect()
}

/// (log Z, log p) of log-potentials.
pub fn normalise(log_potential: &[f64]) -> (f64, Vec<f64>) {
    (log_sum_exp(log_potential), log_softmax(log_potential))
}

/// log w = log P − log q; −∞ where P is 0, whatever q is.
pub fn log_weights(log_potential: &[f64], log_q: &[f64]) -> Vec<f64> {
    let weight = |(&p, &q): (&f64, &f64)| if p == f64::NEG_INFINITY { p } else { p - q };
    log_potential.iter().zip(log_q).map(weight).collect()
}

/// (Σ w)² / Σ w².
pub fn effective_sample_size(log_weights: &[f64]) -> f64 {
    let doubled: Vec<f64> = log_weights.iter().map(|w| 2.0 * w).collect();
    (2.0 * log_sum_exp(log_weights) - log_sum_exp(&doubled)).exp()
}

/// KL(p‖q) in nats; 0 log 0 = 0, infinite where q lacks support.
pub fn kl(log_p: &[f64], log_q: &[f64]) -> f64 {
    let term = |(&p, &q): (&f64, &f64)| if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) };
    log_p.iter().zip(log_q).map(term).sum()
}

/// Total variation ½ Σ |p − q|.
pub fn tv(log_p: &[f64], log_q: &[f64]) -> f64 {
    0.5 * log_p.iter().zip(log_q).map(|(p, q)| (p.exp() - q.exp()).abs()).sum::<f64>()
}

/// −Σ p log p in nats.
pub fn entropy(log_p: &[f64]) -> f64 {
    log_p.iter().map(|&p| if p == f64::NEG_INFINITY { 0.0 } else { -p.exp() * p }).sum()
}

/// E_p[φ], where `phi` holds one row of features per sequence.
pub fn moments(log_p: &[f64], phi: &[Vec<f64>]) -> Vec<f64> {
    let mut total = vec![0.0; phi.first().map_or(0, Vec::len)];
    for (p, row) in log_p.iter().zip(phi) {
        total.iter_mut().zip(row).for_each(|(total, value)| *total += p.exp() * value);
    }
    total
}

/// Pearson's χ² of `counts` against `log_p`, cells expecting less than 5 pooled: (statistic, degrees of freedom).
/// A count where p is 0 gives an infinite statistic.
pub fn chi_square(counts: &[u64], log_p: &[f64]) -> (f64, usize) {
    assert_eq!(counts.len(), log_p.len(), "one count per sequence");
    let total = counts.iter().sum::<u64>() as f64;
    let (mut statistic, mut cells, mut pooled) = (0.0, 0, (0.0, 0.0));
    let mut add = |count: f64, expected: f64| {
        if expected > 0.0 {
            statistic += (count - expected).powi(2) / expected;
            cells += 1;
        } else if count > 0.0 {
            statistic = f64::INFINITY;
        }
    };
    for (&count, log_p) in counts.iter().zip(log_p) {
        let expected = total * log_p.exp();
        if expected > 0.0 && expected < 5.0 {
            pooled = (pooled.0 + count as f64, pooled.1 + expected);
        } else {
            add(count as f64, expected);
        }
    }
    add(pooled.0, pooled.1);
    (statistic, cells - 1)
}
