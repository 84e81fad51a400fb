//! 16 patterns over a batch of tokens in one pass: the work of `peers/features_torch.py`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ebm_dpg::Result;
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};

const SYMBOLS: u32 = 27;
const LENGTH: u32 = 128;
const PATTERNS: u64 = 16;

/// Token `at` of sequence `row`.
fn token(draw: Draw, row: u64, at: u32) -> Token {
    (draw.uniform(row, at) * SYMBOLS as f32) as Token
}

fn features() -> Result<FeatureSet> {
    let draw = Draw::new(1, Purpose::Init);
    let pattern = |i| Feature::Contains((0..5).map(|at| token(draw, i, at)).collect());
    let set = FeatureSet::new(Space::new(SYMBOLS, LENGTH)?);
    (0..PATTERNS).try_fold(set, |set, i| set.with(i.to_string(), pattern(i)))
}

/// Sequences cut at the longest length, as the peer's are.
fn batch(rows: usize) -> Result<Batch> {
    let (space, draw) = (Space::new(SYMBOLS, LENGTH)?, Draw::new(0, Purpose::Data));
    let mut batch = Batch::with_capacity(&Cpu, space, rows)?;
    let mut sequence = [0; LENGTH as usize];
    for row in 0..rows as u64 {
        // One uniform makes four tokens; making them would otherwise take longer than the bench.
        for (at, four) in sequence.chunks_mut(4).enumerate() {
            let words = draw.words(row, at as u32, 0);
            four.iter_mut().zip(words).for_each(|(token, word)| *token = word % SYMBOLS);
        }
        batch.push(&sequence)?;
    }
    Ok(batch)
}

fn evaluate<B: Backend>(backend: &B, table: &FeatureTable<B>, batch: &Batch<B>, phi: &mut B::Buffer<f32>) {
    table.evaluate(backend, batch, B::view_mut(phi, batch.rows * table.len())).expect("a pass");
    backend.download(phi, &mut [0.0]).expect("waited for");
}

fn on<B: Backend>(criterion: &mut Criterion, id: &str, backend: &B, rows: usize) -> Result<()> {
    let (set, host) = (features()?, batch(rows)?);
    let (table, device) = (set.compile(backend)?, host.upload(backend)?);
    let mut phi = backend.zeros(rows * table.len(), "features")?;
    evaluate(backend, &table, &device, &mut phi);
    check(backend, &phi, &host, &set)?;
    let mut group = criterion.benchmark_group("features_16");
    group.throughput(Throughput::Elements(rows as u64 * u64::from(LENGTH)));
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(5));
    let id = BenchmarkId::new(id, format!("{rows}x{LENGTH}"));
    group.bench_function(id, |bencher| bencher.iter(|| evaluate(backend, &table, &device, &mut phi)));
    group.finish();
    Ok(())
}

/// The first rows, searched naively.
fn check<B: Backend>(backend: &B, phi: &B::Buffer<f32>, batch: &Batch, set: &FeatureSet) -> Result<()> {
    let mut got = vec![0.0; 1000 * set.len()];
    backend.download(phi, &mut got)?;
    for row in 0..1000 {
        for (i, feature) in set.features().iter().enumerate() {
            let Feature::Contains(pattern) = feature else { unreachable!("all are patterns") };
            let found = batch.sequence(row).windows(pattern.len()).any(|window| window == &pattern[..]);
            assert_eq!(got[row * set.len() + i] == 1.0, found, "row {row}, pattern {i}");
        }
    }
    Ok(())
}

fn bench(criterion: &mut Criterion) {
    on(criterion, "cpu", &Cpu, 100_000).expect("the CPU's features");
    #[cfg(feature = "cuda")]
    if let Ok(ebm_dpg::backend::Opened::Cuda(gpu)) = ebm_dpg::backend::Device::auto().open() {
        on(criterion, "cuda", &gpu, 1_000_000).expect("the GPU's features");
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
