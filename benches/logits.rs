//! Log-probs of tokens from rows of logits, and their weighted gradient in place: the work of `peers/logits_torch.py`.
//! Throughput is over the fewest bytes: the logits read once, for the gradient also written once.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ebm_dpg::Result;
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::gradient::{GradientKernel, gradient};
use ebm_dpg::log_prob::{LogProbKernel, Logit, log_prob};
use ebm_dpg::rng::{Draw, Purpose};

/// What one shape's passes work in.
struct Rows<B: Backend, T: Logit> {
    vocab: usize,
    count: usize,
    logits: B::Buffer<T>,
    tokens: B::Buffer<u32>,
    weights: B::Buffer<f32>,
    log_probs: B::Buffer<f32>,
}

impl<B: Backend + LogProbKernel + GradientKernel, T: Logit> Rows<B, T> {
    /// Logits in [−4, 4) that repeat after a million, as making them all would take longer than the bench.
    fn new(backend: &B, count: usize, vocab: usize, narrow: impl Fn(f32) -> T) -> Result<Self> {
        let draw = Draw::new(0, Purpose::Data);
        let some: Vec<T> = (0..1_000_003).map(|i| narrow(8.0 * draw.uniform(i, 0) - 4.0)).collect();
        let host: Vec<T> = some.iter().copied().cycle().take(count * vocab).collect();
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

    fn forward(&mut self, backend: &B) {
        let (logits, tokens) = (B::view(&self.logits, self.count * self.vocab), B::view(&self.tokens, self.count));
        log_prob(backend, self.vocab, logits, tokens, B::view_mut(&mut self.log_probs, self.count)).expect("a pass");
        self.wait(backend);
    }

    fn gradient(&mut self, backend: &B) {
        let (tokens, weights) = (B::view(&self.tokens, self.count), B::view(&self.weights, self.count));
        let logits = B::view_mut(&mut self.logits, self.count * self.vocab);
        let log_probs = B::view_mut(&mut self.log_probs, self.count);
        gradient(backend, self.vocab, tokens, weights, logits, log_probs).expect("a pass");
        self.wait(backend);
    }

    /// Waits for the device, and sees that the first row has a log-prob.
    fn wait(&self, backend: &B) {
        let mut first = [f32::NAN];
        backend.download(&self.log_probs, &mut first).expect("waited for");
        assert!(first[0] < 0.0, "log-prob {}", first[0]);
    }
}

fn on<B: Backend + LogProbKernel + GradientKernel, T: Logit>(
    criterion: &mut Criterion,
    id: &str,
    backend: &B,
    (count, vocab): (usize, usize),
    narrow: impl Fn(f32) -> T,
) {
    let mut rows = Rows::new(backend, count, vocab, narrow).expect("memory for the logits");
    let bytes = (count * vocab * size_of::<T>()) as u64;
    let id = || BenchmarkId::new(id, format!("{count}x{vocab}"));
    let mut group = criterion.benchmark_group("log_prob");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function(id(), |bencher| bencher.iter(|| rows.forward(backend)));
    group.finish();
    let mut group = criterion.benchmark_group("log_prob_gradient");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Bytes(2 * bytes));
    group.bench_function(id(), |bencher| bencher.iter(|| rows.gradient(backend)));
    group.finish();
}

fn bench(criterion: &mut Criterion) {
    for shape in [(4096, 256), (128, 32_000), (128, 128_256)] {
        on(criterion, "cpu/f32", &Cpu, shape, |x| x);
    }
    #[cfg(feature = "cuda")]
    if let Ok(ebm_dpg::backend::Opened::Cuda(gpu)) = ebm_dpg::backend::Device::auto().open() {
        for shape in [(1 << 20, 64), (65_536, 256), (8192, 32_000), (8192, 128_256)] {
            on(criterion, "cuda/f32", &gpu, shape, |x| x);
            on(criterion, "cuda/bf16", &gpu, shape, half::bf16::from_f32);
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
