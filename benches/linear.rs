//! Log-probs and gradients from hidden states. Throughput is in multiplications and additions: 2·N·H·V for log-probs, three
//! times as many for the gradient of all rows. The last one has nine of ten sequences of weight 0.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ebm_dpg::Result;
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::gradient::Coefficient;
use ebm_dpg::linear::{Head, LinearGradient, LinearKernel, Rows, Workspace, linear_gradient, linear_log_prob};
use ebm_dpg::log_prob::{Logit, SoftmaxOptions};
use ebm_dpg::rng::{Draw, Purpose};

/// Tokens of a sequence.
const LENGTH: usize = 16;

/// Rows of hidden states, their head, and what the passes write.
struct Layer<'a, B: Backend, T: Logit> {
    backend: &'a B,
    shape: (usize, usize, usize),
    hidden: B::Buffer<T>,
    weight: B::Buffer<T>,
    tokens: B::Buffer<u32>,
    offsets: Vec<u64>,
    workspace: Workspace<B, T>,
    log_probs: B::Buffer<f32>,
    log_pi: B::Buffer<f64>,
    to_hidden: B::Buffer<f32>,
    to_head: B::Buffer<f32>,
}

impl<'a, B: Backend + LinearKernel, T: Logit> Layer<'a, B, T> {
    fn new(
        backend: &'a B,
        shape: (usize, usize, usize),
        workspace_bytes: usize,
        narrow: impl Fn(f32) -> T,
    ) -> Result<Self> {
        let (count, width, vocab) = shape;
        let numbers = |seed: u64, len: usize, scale: f32| -> Result<B::Buffer<T>> {
            let draw = Draw::new(seed, Purpose::Data);
            let some: Vec<T> = (0..1_000_003).map(|i| narrow(scale * (2.0 * draw.uniform(i, 0) - 1.0))).collect();
            let mut buffer = backend.zeros(len, "numbers")?;
            let mut host = vec![some[0]; len];
            host.chunks_mut(some.len()).for_each(|part| part.copy_from_slice(&some[..part.len()]));
            backend.upload(&host, &mut buffer)?;
            Ok(buffer)
        };
        let mut tokens = backend.zeros(count, "tokens")?;
        backend.upload(&(0..count).map(|row| (row * 7919 % vocab) as u32).collect::<Vec<_>>(), &mut tokens)?;
        Ok(Layer {
            backend,
            shape,
            hidden: numbers(0, count * width, 1.0)?,
            weight: numbers(1, vocab * width, 0.1)?,
            tokens,
            offsets: (0..=count).step_by(LENGTH).map(|row| row as u64).collect(),
            workspace: Workspace::new(backend, width, vocab, workspace_bytes)?,
            log_probs: backend.zeros(count, "log-probs")?,
            log_pi: backend.zeros(count / LENGTH, "log π")?,
            to_hidden: backend.zeros(count * width, "gradient")?,
            to_head: backend.zeros(vocab * width, "gradient")?,
        })
    }

    fn log_prob(&mut self) -> Result<()> {
        let (count, width, vocab) = self.shape;
        let head = Head { width, vocab, weight: B::view(&self.weight, vocab * width) };
        let rows = Rows { hidden: B::view(&self.hidden, count * width), tokens: B::view(&self.tokens, count) };
        let to = B::view_mut(&mut self.log_probs, count);
        linear_log_prob(self.backend, &SoftmaxOptions::default(), &head, &rows, &mut self.workspace, to)?;
        self.wait()
    }

    fn gradient(&mut self, weights: &B::Buffer<f32>) -> Result<()> {
        let (count, width, vocab) = self.shape;
        let head = Head { width, vocab, weight: B::view(&self.weight, vocab * width) };
        let rows = Rows { hidden: B::view(&self.hidden, count * width), tokens: B::view(&self.tokens, count) };
        let out = LinearGradient {
            log_probs: B::view_mut(&mut self.log_probs, count),
            log_pi: B::view_mut(&mut self.log_pi, count / LENGTH),
            hidden: B::view_mut(&mut self.to_hidden, count * width),
            head: B::view_mut(&mut self.to_head, vocab * width),
        };
        let given = Coefficient::Given { weights: B::view(weights, count / LENGTH) };
        let (softmax, workspace) = (SoftmaxOptions::default(), &mut self.workspace);
        linear_gradient(self.backend, &softmax, &head, &rows, &self.offsets, &given, workspace, out)?;
        self.wait()
    }

    /// Waits for the device, and sees that the first row, which no pass leaves out, has a log-prob.
    fn wait(&self) -> Result<()> {
        let mut first = [f32::NAN];
        self.backend.download(&self.log_probs, &mut first)?;
        assert!(first[0] < 0.0, "log-prob {}", first[0]);
        Ok(())
    }
}

fn on<B: Backend + LinearKernel, T: Logit>(
    criterion: &mut Criterion,
    device: &str,
    mut layer: Layer<'_, B, T>,
) -> Result<()> {
    let (count, width, vocab) = layer.shape;
    let mut group = criterion.benchmark_group("linear");
    group.sampling_mode(SamplingMode::Flat);
    let operations = (2 * count * width * vocab) as u64;
    group.throughput(Throughput::Elements(operations));
    let id = |what: &str| BenchmarkId::new(format!("{device}/{what}"), format!("{count}x{width}x{vocab}"));
    group.bench_function(id("log_prob"), |bencher| bencher.iter(|| layer.log_prob().expect("a pass")));
    group.throughput(Throughput::Elements(3 * operations));
    for (what, kept) in [("gradient", 1), ("gradient_tenth", 10)] {
        let weights: Vec<f32> = (0..count / LENGTH).map(|s| if s % kept == 0 { 1e-3 } else { 0.0 }).collect();
        let mut on_device = layer.backend.zeros(weights.len(), "weights")?;
        layer.backend.upload(&weights, &mut on_device)?;
        group.bench_function(id(what), |bencher| bencher.iter(|| layer.gradient(&on_device).expect("a pass")));
    }
    group.finish();
    Ok(())
}

fn bench(criterion: &mut Criterion) {
    let cpu = Layer::new(&Cpu, (1280, 512, 32_000), 256 << 20, |x| x).expect("memory");
    on(criterion, "cpu/f32", cpu).expect("measured");
    #[cfg(feature = "cuda")]
    if let Ok(ebm_dpg::backend::Opened::Cuda(gpu)) = ebm_dpg::backend::Device::auto().open() {
        // All rows in one chunk: f32 logits and their gradient in 16 bits.
        let layer = Layer::new(&gpu, (8192, 4096, 128_256), 7 << 30, half::bf16::from_f32).expect("memory");
        on(criterion, "cuda/bf16", layer).expect("measured");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(5));
    targets = bench
}
criterion_main!(benches);
