//! One off-policy DPG step at the paper's scale, timed by phase: the crate's side of `benches/peers/dpg_torch.py`.
//! Prints one JSON line.

use std::time::Instant;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::Cpu;
use ebm_dpg::models::{Coefficients, Lstm, LstmShape, Policy, Sampler, Scorer, Weighting};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space};

fn main() {
    let space = Space::new(2, 30).unwrap();
    let shape = LstmShape { layers: 2, hidden: 200, dropout: 0.0 };
    let (mut q, mut r, mut pi) =
        (Lstm::new(space, shape, 0).unwrap(), Lstm::new(space, shape, 1).unwrap(), Lstm::new(space, shape, 2).unwrap());
    let n = 2048;
    let mut batch = Batch::with_capacity(&Cpu, space, n).unwrap();
    let (mut lq, mut lm, mut lr, mut lp) = (vec![0.0; n], vec![0.0; n], vec![0.0; n], vec![0.0; n]);
    let w = vec![1.0f32 / n as f32; n];
    for step in 0..5 {
        let t0 = Instant::now();
        q.sample(Draw::new(0, Purpose::Tune).skip(step * n as u64), None, &mut batch, &mut lq, &mut lm).unwrap();
        let tokens = batch.total_tokens();
        let t1 = Instant::now();
        // full-length strings
        for row in 0..n {
            batch.lengths[row] = 30;
            for t in 0..30 {
                batch.tokens[row * 30 + t] = ((row * 7919 + t * 31) >> (t % 5)) as u32 & 1;
            }
        }
        let t2 = Instant::now();
        r.score(&batch, &mut lr).unwrap();
        let t3 = Instant::now();
        let c =
            Coefficients::<Cpu> { weighting: Weighting::Given, weights: &w, log_q: None, scale: 0.0, dropout: None };
        pi.gradient(&batch, &c, &mut lp).unwrap();
        let t4 = Instant::now();
        pi.update(&AdamOptions::default()).unwrap();
        let t5 = Instant::now();
        let gf = |tok: f64| tok * 0.96e6 / 1e9;
        println!(
            "sample {:?} ({} tokens, {:.0} GF/s) score {:?} ({:.0} GF/s) gradient {:?} ({:.0} GF/s) update {:?} lp {}",
            t1 - t0,
            tokens,
            gf(tokens as f64) / (t1 - t0).as_secs_f64(),
            t3 - t2,
            gf(n as f64 * 30.0) / (t3 - t2).as_secs_f64(),
            t4 - t3,
            gf(n as f64 * 90.0) / (t4 - t3).as_secs_f64(),
            t5 - t4,
            lp[0]
        );
    }
}
