//! The judge judged: by hand-computed values, by enumeration and by central differences.

mod oracle;

use ebm_dpg::tokens::{Space, Token};
use oracle::*;

fn space(symbols: u32, longest: u32) -> Space {
    Space::new(symbols, longest).unwrap()
}

/// Sequences with weights of both signs: some ended by EOS at different lengths, some cut.
fn weighted(space: Space) -> Vec<(Vec<Token>, f64)> {
    let sequences = [vec![0, 1, 1, 0, space.eos], vec![1, 0, 0, 1, 1, 0], vec![space.eos], vec![1, 1, space.eos]];
    sequences.into_iter().zip([0.7, -1.3, 2.0, 0.25]).collect()
}

#[test]
fn lstm_forward_by_hand() {
    // One symbol, one unit: V = 4 ids 0, BOS 1, EOS 2, PAD 3. Only BOS's gates are not 0, and only EOS's head weight.
    let space = space(1, 3);
    let mut tensors: Tensors =
        OracleLstm::shapes(space, 1, 1).into_iter().map(|(n, s)| (n, vec![0.0; s.iter().product()])).collect();
    tensors.get_mut("lstm.0.input").unwrap()[4..8].copy_from_slice(&[1.0, 5.0, 0.5, -1.0]);
    tensors.get_mut("head.weight").unwrap()[2] = 2.0;
    let model = OracleLstm::new(space, 1, 1, tensors);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let c = sigmoid(1.0) * 0.5f64.tanh();
    let logit = 2.0 * sigmoid(-1.0) * c.tanh();
    assert_close("first EOS", &[model.log_prob(&[space.eos])], &[-(1.0 + (-logit).exp()).ln()], 1e-15);
    // At the second step every gate is 0: c halves, o is ½.
    let logit = 2.0 * 0.5 * (0.5 * c).tanh();
    let after = model.next_log_probs(&[0]);
    let want = [-(1.0 + logit.exp()).ln(), f64::NEG_INFINITY, -(1.0 + (-logit).exp()).ln(), f64::NEG_INFINITY];
    assert_close("second step", &after, &want, 1e-15);
}

#[test]
fn lstm_sums_to_one_over_the_space() {
    for layers in [1, 2, 3] {
        let model = OracleLstm::random(space(2, 5), 4, layers, 1.0, 11);
        let log_probs: Vec<f64> = enumerate(model.space).iter().map(|x| model.log_prob(x)).collect();
        assert_close("log Σ π", &[log_sum_exp(&log_probs)], &[0.0], 1e-13);
    }
}

#[test]
fn lstm_gradient_is_the_central_difference() {
    for layers in [1, 2, 3] {
        let mut model = OracleLstm::random(space(2, 6), 5, layers, 1.0, 5);
        let batch = weighted(model.space);
        let gradient = model.gradient(&batch);
        for (name, analytic) in &gradient {
            let differences: Vec<f64> =
                (0..analytic.len()).map(|at| central_difference(&mut model, name, at, &batch)).collect();
            assert_block_close(&format!("{layers} layers, {name}"), analytic, &differences, 1e-6);
        }
    }
}

fn central_difference(model: &mut OracleLstm, name: &str, at: usize, batch: &[(Vec<Token>, f64)]) -> f64 {
    const STEP: f64 = 1e-5;
    let centre = model.tensors[name][at];
    let mut objective = |value: f64| {
        model.tensors.get_mut(name).unwrap()[at] = value;
        batch.iter().map(|(sequence, weight)| weight * model.log_prob(sequence)).sum::<f64>()
    };
    let difference = (objective(centre + STEP) - objective(centre - STEP)) / (2.0 * STEP);
    objective(centre);
    difference
}

#[test]
fn expected_score_is_zero() {
    // Σ_x π(x) ∇log π(x) = ∇ Σ_x π(x) = 0, cut sequences included.
    let model = OracleLstm::random(space(2, 4), 4, 2, 1.0, 3);
    let all = enumerate(model.space).into_iter().map(|x| (x.clone(), model.log_prob(&x).exp())).collect::<Vec<_>>();
    for (name, block) in model.gradient(&all) {
        assert_close(&name, &block, &vec![0.0; block.len()], 1e-14);
    }
}

#[test]
fn enumeration_counts_every_member_once() {
    let space = space(3, 4);
    let members = enumerate(space);
    assert_eq!(members.len(), 1 + 3 + 9 + 27 + 81);
    members.iter().for_each(|x| space.check(x).unwrap());
    let distinct: std::collections::BTreeSet<_> = members.iter().collect();
    assert_eq!(distinct.len(), members.len());
}

#[test]
fn exact_quantities_by_hand() {
    let ln = |v: &[f64]| v.iter().map(|p: &f64| p.ln()).collect::<Vec<_>>();
    let (log_z, p) = normalise(&ln(&[1.0, 3.0, 0.0]));
    let q = ln(&[0.5, 0.25, 0.25]);
    assert_close(
        "log Z, KL, TV, H",
        &[log_z, kl(&p, &q), tv(&p, &q), entropy(&p)],
        &[4f64.ln(), 0.25 * 0.5f64.ln() + 0.75 * 3f64.ln(), 0.5, 0.25 * 4f64.ln() + 0.75 * (4.0 / 3.0f64).ln()],
        1e-15,
    );
    assert_eq!(kl(&q, &p), f64::INFINITY);
    assert_close("moments", &moments(&p, &[vec![1.0, 0.0], vec![2.0, 1.0], vec![9.0, 9.0]]), &[1.75, 0.75], 1e-15);
    let log_w = log_weights(&ln(&[1.0, 3.0, 0.0]), &ln(&[0.5, 0.25, 0.0]));
    assert_close("weights", &log_w, &[2f64.ln(), 12f64.ln(), f64::NEG_INFINITY], 1e-15);
    assert_close("ESS", &[effective_sample_size(&log_w)], &[196.0 / 148.0], 1e-14);
    assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
    let (statistic, degrees) = chi_square(&[30, 70, 0], &ln(&[0.25, 0.75, 0.0]));
    assert_close("χ²", &[statistic], &[4.0 / 3.0], 1e-12);
    assert_eq!(degrees, 1);
    assert_eq!(chi_square(&[30, 69, 1], &ln(&[0.25, 0.75, 0.0])).0, f64::INFINITY);
}

#[test]
fn comparator_knows_nan_infinities_and_ulps() {
    let close = |got: f32, want: f64, tolerance: f64| {
        std::panic::catch_unwind(|| assert_close("pair", &[got], &[want], tolerance)).is_ok()
    };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    assert!(close(nan, f64::NAN, 0.0) && close(inf, f64::INFINITY, 0.0) && close(-inf, f64::NEG_INFINITY, 0.0));
    assert!(!close(nan, 1.0, 1e9) && !close(1.0, f64::NAN, 1e9) && !close(inf, f64::NEG_INFINITY, 1e9));
    assert!(!close(inf, 1.0, 1e9) && !close(1e30, f64::INFINITY, 1e9));
    assert!(close(100.0f32.next_up(), 100.0, 0.0), "one ulp passes");
    assert!(!close(100.0f32.next_up().next_up(), 100.0, 0.0), "two do not");
    let block =
        |got: &[f64], want: &[f64]| std::panic::catch_unwind(|| assert_block_close("b", got, want, 1e-3)).is_ok();
    assert!(block(&[1.0, 1e-4], &[1.0, 0.0]) && block(&[0.0], &[0.0]));
    assert!(!block(&[1.0, 1e-2], &[1.0, 0.0]) && !block(&[1e-9], &[0.0]) && !block(&[f64::NAN], &[1.0]));
}
