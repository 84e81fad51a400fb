//! The judge of every backend: naive, sequential, f64. Nothing here is fast or clever, and nothing is shared with the
//! library beyond `Space` and the Philox uniforms that make inputs reproducible.
// Each test file uses its own part of the judge.
#![allow(dead_code, unused_imports)]

mod compare;
mod exact;
mod lstm;

pub use compare::{assert_block_close, assert_close};
pub use exact::{
    chi_square, effective_sample_size, entropy, enumerate, kl, log_softmax, log_sum_exp, log_weights, moments,
    normalise, tv,
};
pub use lstm::{OracleLstm, Tensors};

use ebm_dpg::rng::{Draw, Purpose};

/// `len` reproducible values in [-scale, scale), each exact in f32 where `scale` is a power of two.
pub fn random(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let draw = Draw::new(seed, Purpose::User);
    (0..len).map(|i| scale * (2.0 * draw.uniform(i as u64, 0) - 1.0)).collect()
}
