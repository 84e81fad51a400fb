//! Draws from rows of logits under truncation, against the definitions in f64.

mod oracle;

use ebm_dpg::Result;
use ebm_dpg::backend::Cpu;
use ebm_dpg::log_prob::{Logit, SoftmaxOptions};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::sampling::{Sampled, Truncation, Uniforms, sample};
use oracle::{assert_close, chi_square, log_softmax, random};

const DRAW: Draw = Draw { seed: 42, purpose: Purpose::User, first: 0 };

fn truncations() -> Vec<Truncation> {
    let none = Truncation::default();
    vec![
        none,
        Truncation { top_k: Some(1), ..none },
        Truncation { top_k: Some(5), ..none },
        Truncation { top_k: Some(u32::MAX), ..none },
        Truncation { top_p: 1e-9, ..none },
        Truncation { top_p: 0.7, ..none },
        Truncation { min_p: 0.2, ..none },
        Truncation { min_p: 1.0, ..none },
        Truncation { top_k: Some(6), top_p: 0.9, min_p: 0.02 },
    ]
}

/// Log-probs of what truncation leaves, from its definition: sorted, cut, renormalised.
fn exact(row: &[f32], scale: f32, truncation: &Truncation) -> Vec<f64> {
    let p: Vec<f64> = log_softmax(&row.iter().map(|&x| f64::from(x) * f64::from(scale)).collect::<Vec<_>>())
        .iter()
        .map(|l| l.exp())
        .collect();
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    let mut kept = order.len().min(truncation.top_k.map_or(usize::MAX, |k| k as usize));
    // Ties stay together.
    let widen = |kept: usize| (kept..order.len()).take_while(|&i| row[order[i]] == row[order[kept - 1]]).count() + kept;
    kept = widen(kept);
    if truncation.top_p < 1.0 {
        let left: f64 = order[..kept].iter().map(|&t| p[t]).sum();
        let mut mass = 0.0;
        let reached = |&&t: &&usize| {
            let before = mass;
            mass += p[t];
            before < f64::from(truncation.top_p) * left
        };
        kept = widen(order[..kept].iter().take_while(reached).count());
    }
    let least = f64::from(truncation.min_p) * p[order[0]] * (1.0 - 1e-7);
    kept = order[..kept].iter().take_while(|&&t| p[t] >= least).count();
    let total: f64 = order[..kept].iter().map(|&t| p[t]).sum();
    let mut log_q = vec![f64::NEG_INFINITY; row.len()];
    order[..kept].iter().for_each(|&t| log_q[t] = (p[t] / total).ln());
    log_q
}

/// (tokens, log q, unreachable).
type Found = (Vec<u32>, Vec<f32>, Vec<u32>);

fn draw<T: Logit>(
    vocab: usize,
    logits: &[T],
    softmax: &SoftmaxOptions<'_, Cpu>,
    truncation: &Truncation,
    uniforms: &Uniforms<'_, Cpu>,
    rows: usize,
) -> Result<Found> {
    let (mut tokens, mut log_q, mut unreachable) = (vec![7; rows], vec![7.0; rows], vec![0; rows]);
    let out = Sampled::<Cpu> { tokens: &mut tokens, log_q: &mut log_q, unreachable: &mut unreachable };
    let result = sample(&Cpu, softmax, truncation, vocab, logits, uniforms, out);
    assert!(
        result.is_ok() || tokens.iter().all(|&t| t == 7) && log_q.iter().all(|&l| l == 7.0),
        "an error writes nothing"
    );
    result.map(|()| (tokens, log_q, unreachable))
}

fn uniforms(position: u32) -> Uniforms<'static, Cpu> {
    Uniforms { draw: DRAW, position, rows: None }
}

#[test]
fn draws_follow_the_truncated_distribution() {
    // Ties, an impossible token, and a mass that no other comes near.
    let row = [0.5, 1.0, 1.0, -0.5, f32::NEG_INFINITY, 2.0, 0.25, 1.5, -3.0, 1.0, -0.0, 0.0];
    let rows = 6000;
    for truncation in truncations() {
        for scale in [1.0, 0.5, 3.0] {
            let want = exact(&row, scale, &truncation);
            let softmax = SoftmaxOptions { scale, ..SoftmaxOptions::default() };
            let found = draw(row.len(), &row.repeat(rows), &softmax, &truncation, &uniforms(3), rows).unwrap();
            let mut counts = vec![0; row.len()];
            found.0.iter().for_each(|&t| counts[t as usize] += 1);
            for (count, want) in counts.iter().zip(&want) {
                assert!(*count == 0 || *want > f64::NEG_INFINITY, "{truncation:?}: {counts:?} {want:?}");
            }
            let log_q: Vec<f64> = found.0.iter().map(|&t| want[t as usize]).collect();
            assert_close(&format!("{truncation:?}"), &found.1, &log_q, 2e-6);
            let (statistic, degrees) = chi_square(&counts, &want);
            let bound = degrees as f64 + 5.0 * (2.0 * degrees as f64).sqrt();
            assert!(statistic <= bound, "{truncation:?}: χ² = {statistic} of {degrees}: {counts:?}");
            let dropped = want.iter().zip(row).any(|(l, x)| *l == f64::NEG_INFINITY && x > f32::NEG_INFINITY);
            assert!(found.2.iter().all(|&flag| flag == u32::from(dropped)), "{truncation:?}");
        }
    }
}

#[test]
fn large_rows_are_drawn_by_inverse_cdf() {
    let (vocab, rows) = (50_257, 40);
    let logits = random(5, vocab * rows, 8.0);
    for truncation in [
        Truncation::default(),
        Truncation { top_k: Some(50), ..Truncation::default() },
        Truncation { top_p: 0.9, ..Truncation::default() },
        Truncation { min_p: 0.05, ..Truncation::default() },
    ] {
        let (tokens, log_q, _) =
            draw(vocab, &logits, &SoftmaxOptions::default(), &truncation, &uniforms(0), rows).unwrap();
        for (at, row) in logits.chunks(vocab).enumerate() {
            let (want, token) = (exact(row, 1.0, &truncation), tokens[at] as usize);
            // A token at top-p's very boundary may be counted or not: that shifts all log q by its mass.
            let slack = if truncation.top_p < 1.0 { 1e-3 } else { 2e-6 };
            assert_close(&format!("row {at}, {truncation:?}"), &[log_q[at]], &[want[token]], slack);
            let below: f64 = want[..token].iter().map(|l| l.exp()).sum();
            let uniform = f64::from(DRAW.uniform(at as u64, 0));
            assert!((below - slack - 1e-6..below + want[token].exp() + slack + 1e-6).contains(&uniform), "row {at}");
        }
    }
}

#[test]
fn masks_strides_and_16_bits() {
    let (vocab, stride, rows) = (70, 75, 200);
    let wide: Vec<f32> = random(6, stride * rows, 4.0);
    let narrow: Vec<half::bf16> = wide.iter().map(|&x| half::bf16::from_f32(x)).collect();
    let mask = [0x0F0F_0F0F_u32, 0xFFFF_0000, 0x3F];
    let softmax = SoftmaxOptions::<Cpu> { scale: 0.5, mask: Some(&mask), stride: Some(stride) };
    let truncation = Truncation { top_k: Some(9), ..Truncation::default() };
    let (tokens, log_q, unreachable) = draw(vocab, &narrow, &softmax, &truncation, &uniforms(1), rows).unwrap();
    for at in 0..rows {
        let allowed = |t: usize| mask[t / 32] >> (t % 32) & 1 == 1;
        let logit = |t: usize| if allowed(t) { narrow[at * stride + t].to_f32() } else { f32::NEG_INFINITY };
        let want = exact(&(0..vocab).map(logit).collect::<Vec<_>>(), 0.5, &truncation);
        assert_close("log q", &[log_q[at]], &[want[tokens[at] as usize]], 2e-6);
        assert_eq!(unreachable[at], 1);
    }
}

#[test]
fn a_draw_does_not_depend_on_the_batch_or_the_threads() {
    let (vocab, rows) = (300, 64);
    let logits = random(7, vocab * rows, 4.0);
    let (softmax, truncation) = (SoftmaxOptions::default(), Truncation { top_p: 0.8, ..Truncation::default() });
    let all = draw(vocab, &logits, &softmax, &truncation, &uniforms(9), rows).unwrap();
    let numbers: Vec<u32> = (0..rows as u32).filter(|row| row % 3 == 1).collect();
    let some: Vec<f32> = numbers.iter().flat_map(|&row| logits[row as usize * vocab..][..vocab].to_vec()).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let by_number = Uniforms::<Cpu> { draw: DRAW, position: 9, rows: Some(&numbers) };
    let got = pool.install(|| draw(vocab, &some, &softmax, &truncation, &by_number, numbers.len())).unwrap();
    for (at, &row) in numbers.iter().enumerate() {
        assert_eq!((got.0[at], got.1[at].to_bits()), (all.0[row as usize], all.1[row as usize].to_bits()));
    }
    let later = draw(vocab, &logits, &softmax, &truncation, &uniforms(10), rows).unwrap();
    assert_ne!(all.0, later.0, "another position, other uniforms");
}

#[test]
fn bad_input_is_named() {
    let (softmax, none) = (SoftmaxOptions::default(), Truncation::default());
    let mut logits = random(8, 12, 1.0);
    let with = |truncation: Truncation, logits: &[f32]| draw(4, logits, &softmax, &truncation, &uniforms(0), 3);
    let error = |truncation| with(truncation, &[0.0; 12]).unwrap_err().to_string();
    assert_eq!(error(Truncation { top_k: Some(0), ..none }), "top-k: expected 1 token or more, got 0");
    assert_eq!(error(Truncation { top_p: 0.0, ..none }), "top-p: expected above 0, up to 1, got 0");
    assert_eq!(error(Truncation { top_p: f32::NAN, ..none }), "top-p: expected above 0, up to 1, got NaN");
    assert_eq!(error(Truncation { min_p: 1.5, ..none }), "min-p: expected 0 to 1, got 1.5");
    logits[6] = f32::NAN;
    assert_eq!(with(none, &logits).unwrap_err().to_string(), "logits: not a number at row 1, token 2 (NaN)");
    logits[4..8].fill(f32::NEG_INFINITY);
    assert!(with(none, &logits).unwrap_err().to_string().starts_with("logits of row 1: expected one above −∞"));
    assert!(with(none, &logits[1..]).is_err());
    assert!(draw::<f32>(4, &[], &softmax, &none, &uniforms(0), 0).unwrap().0.is_empty());
}
