//! Rows of logits, the two passes over them, and what bounds both: the rates at which the machine reads and rewrites memory,
//! and at which it computes exponentials.

use ebm_dpg::Result;
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::gradient::{GradientKernel, gradient};
use ebm_dpg::log_prob::{LogProbKernel, Logit, log_prob};
use ebm_dpg::rng::{Draw, Purpose};
use rayon::prelude::*;

/// What one shape's passes work in.
pub struct Rows<B: Backend, T: Logit> {
    vocab: usize,
    count: usize,
    logits: B::Buffer<T>,
    tokens: B::Buffer<u32>,
    weights: B::Buffer<f32>,
    log_probs: B::Buffer<f32>,
}

impl<B: Backend + LogProbKernel + GradientKernel, T: Logit> Rows<B, T> {
    /// Logits in [−4, 4) that repeat after a million, as making them all would take longer than the bench.
    pub fn new(backend: &B, count: usize, vocab: usize, narrow: impl Fn(f32) -> T) -> Result<Self> {
        let draw = Draw::new(0, Purpose::Data);
        let some: Vec<T> = (0..1_000_003).map(|i| narrow(8.0 * draw.uniform(i, 0) - 4.0)).collect();
        let mut host = vec![some[0]; count * vocab];
        host.chunks_mut(some.len()).for_each(|part| part.copy_from_slice(&some[..part.len()]));
        let mut rows = Rows {
            vocab,
            count,
            logits: backend.zeros(host.len(), "logits")?,
            tokens: backend.zeros(count, "tokens")?,
            weights: backend.zeros(count, "weights")?,
            log_probs: backend.zeros(count, "log-probs")?,
        };
        backend.upload(&host, &mut rows.logits)?;
        let tokens: Vec<u32> = (0..count).map(|row| (row * 7919 % vocab) as u32).collect();
        backend.upload(&tokens, &mut rows.tokens)?;
        // So small that the repeated passes leave logits of the same size, only fewer of them far from 0.
        backend.upload(&vec![1e-3; count], &mut rows.weights)?;
        Ok(rows)
    }

    pub fn forward(&mut self, backend: &B) {
        let (logits, tokens) = (B::view(&self.logits, self.count * self.vocab), B::view(&self.tokens, self.count));
        log_prob(backend, self.vocab, logits, tokens, B::view_mut(&mut self.log_probs, self.count)).expect("a pass");
    }

    pub fn gradient(&mut self, backend: &B) {
        let (tokens, weights) = (B::view(&self.tokens, self.count), B::view(&self.weights, self.count));
        let logits = B::view_mut(&mut self.logits, self.count * self.vocab);
        let log_probs = B::view_mut(&mut self.log_probs, self.count);
        gradient(backend, self.vocab, tokens, weights, logits, log_probs).expect("a pass");
    }

    #[allow(dead_code, reason = "on the CPU alone a pass ends before it returns")]
    /// Waits for the device, and sees that the first row has a log-prob.
    pub fn wait(&self, backend: &B) {
        let mut first = [f32::NAN];
        backend.download(&self.log_probs, &mut first).expect("waited for");
        assert!(first[0] < 0.0, "log-prob {}", first[0]);
    }
}

/// Words of a task of the thread pool.
const RUN: usize = 1 << 14;

/// Reads all words.
pub fn read(words: &[u64]) {
    let sum = |words: &[u64]| words.iter().fold(0, |sum: u64, &word| sum.wrapping_add(word));
    std::hint::black_box(words.par_chunks(RUN).map(sum).reduce(|| 0, u64::wrapping_add));
}

/// Reads and writes all words.
pub fn rewrite(words: &mut [u64]) {
    words.par_chunks_mut(RUN).for_each(|words| words.iter_mut().for_each(|word| *word ^= 1));
}

/// Logits of a row that stays in a core's own caches, and is long enough that what a pass does once does not count.
const CACHED: usize = 1 << 14;

/// `count` exponentials, rounded up to whole rows, on all threads: log-probs of one row for each thread to read from its
/// caches again and again. The first logit is the largest, so that no sum is rescaled. An exponential thus comes with the
/// least that a softmax adds to it: the logit's conversion to f32, the row's maximum so far, and the sum.
pub fn exponentials<T: Logit>(count: usize, narrow: impl Fn(f32) -> T) {
    let mut row = vec![narrow(-1.0); CACHED];
    row[0] = narrow(1.0);
    (0..count.div_ceil(CACHED)).into_par_iter().for_each(|_| {
        let mut found = [0.0];
        log_prob(&Cpu, CACHED, &row, &[1], &mut found).expect("a pass");
        std::hint::black_box(found);
    });
}
