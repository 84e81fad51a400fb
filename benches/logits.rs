//! Log-probs of tokens from rows of logits, and their weighted gradient in place: the work of `peers/logits_torch.py`.
//! Throughput is over the fewest bytes: the logits read once, for the gradient also written once. Group `machine` is what
//! bounds it: reading and rewriting as many bytes, and exponentials of logits that stay in the caches.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ebm_dpg::Result;
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::gradient::{GradientKernel, gradient};
use ebm_dpg::log_prob::{LogProbKernel, Logit, log_prob};
use ebm_dpg::rng::{Draw, Purpose};
use rayon::prelude::*;

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

fn measure(criterion: &mut Criterion, group: &str, id: BenchmarkId, throughput: Throughput, mut work: impl FnMut()) {
    let mut group = criterion.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    group.throughput(throughput).bench_function(id, |bencher| bencher.iter(&mut work));
    group.finish();
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
    measure(criterion, "log_prob", id(), Throughput::Bytes(bytes), || rows.forward(backend));
    measure(criterion, "log_prob_gradient", id(), Throughput::Bytes(2 * bytes), || rows.gradient(backend));
}

/// The floor: bytes read and bytes rewritten by all threads, and exponentials of rows in the second-level cache.
fn machine(criterion: &mut Criterion) {
    let mut words: Vec<u64> = (0..8_208_384).collect();
    let bytes = size_of_val(&words[..]) as u64;
    let id = |what| BenchmarkId::new(what, bytes);
    let sum = |words: &[u64]| words.iter().fold(0, |sum: u64, &word| sum.wrapping_add(word));
    measure(criterion, "machine", id("read"), Throughput::Bytes(bytes), || {
        std::hint::black_box(words.par_chunks(1 << 14).map(sum).reduce(|| 0, u64::wrapping_add));
    });
    measure(criterion, "machine", id("copy"), Throughput::Bytes(2 * bytes), || {
        words.par_chunks_mut(1 << 14).for_each(|words| words.iter_mut().for_each(|word| *word ^= 1));
    });
    let mut rows = Rows::new(&Cpu, 64, 4096, |x| x).expect("memory for the logits");
    measure(criterion, "machine", BenchmarkId::new("exp", 64 * 4096), Throughput::Elements(64 * 4096), || {
        rows.forward(&Cpu);
    });
}

fn bench(criterion: &mut Criterion) {
    machine(criterion);
    let shapes =
        [(1 << 20, 2), (65_536, 64), (16_384, 256), (512, 32_000), (256, 50_257), (128, 128_256), (64, 262_144)];
    for shape in shapes {
        on(criterion, "cpu/f32", &Cpu, shape, |x| x);
        on(criterion, "cpu/bf16", &Cpu, shape, half::bf16::from_f32);
    }
    #[cfg(feature = "cuda")]
    if let Ok(ebm_dpg::backend::Opened::Cuda(gpu)) = ebm_dpg::backend::Device::auto().open() {
        let large = [(32_768, 32_000), (16_384, 50_257), (8192, 128_256), (4096, 262_144)];
        for shape in [(1 << 24, 2), (1 << 20, 64), (1 << 20, 256)].into_iter().chain(large) {
            on(criterion, "cuda/f32", &gpu, shape, |x| x);
            on(criterion, "cuda/bf16", &gpu, shape, half::bf16::from_f32);
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
