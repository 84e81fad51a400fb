//! Log-probs of tokens from rows of logits, and their weighted gradient in place: the work of `peers/logits_torch.py`.
//! Throughput is over the fewest bytes: the logits read once, for the gradient also written once. Group `machine` is what
//! bounds it: reading and rewriting as many bytes, and exponentials of logits that stay in the caches.

use std::time::Duration;

use criterion::{Bencher, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::gradient::GradientKernel;
use ebm_dpg::log_prob::{LogProbKernel, Logit};

#[path = "workload/logits.rs"]
mod workload;
use workload::{Rows, exponentials, read, rewrite};
#[path = "workload/pipelined.rs"]
mod timing;
use timing::pipelined;

fn measure(
    criterion: &mut Criterion,
    group: &str,
    id: BenchmarkId,
    throughput: Throughput,
    work: impl FnMut(&mut Bencher),
) {
    let mut group = criterion.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat).throughput(throughput).bench_function(id, work);
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
    let wait = |rows: &Rows<B, T>| rows.wait(backend);
    measure(criterion, "log_prob", id(), Throughput::Bytes(bytes), |bencher| {
        pipelined(bencher, &mut rows, |rows| rows.forward(backend), wait);
    });
    measure(criterion, "log_prob_gradient", id(), Throughput::Bytes(2 * bytes), |bencher| {
        pipelined(bencher, &mut rows, |rows| rows.gradient(backend), wait);
    });
}

/// The floor: bytes read and bytes rewritten by all threads, and exponentials of rows in each core's caches.
fn machine(criterion: &mut Criterion) {
    let mut words: Vec<u64> = (0..8_208_384).collect();
    let bytes = size_of_val(&words[..]) as u64;
    let id = |what| BenchmarkId::new(what, bytes);
    measure(criterion, "machine", id("read"), Throughput::Bytes(bytes), |bencher| bencher.iter(|| read(&words)));
    measure(criterion, "machine", id("copy"), Throughput::Bytes(2 * bytes), |bencher| {
        bencher.iter(|| rewrite(&mut words));
    });
    let count = 1 << 24;
    measure(criterion, "machine", BenchmarkId::new("exp", count), Throughput::Elements(count as u64), |bencher| {
        bencher.iter(|| exponentials(count, |x| x));
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

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = bench
}
criterion_main!(benches);
