//! 16 patterns over a batch of tokens in one pass: the work of `peers/features_torch.py`; the same with tokens of 16 bits, as
//! bits of machine words, and as automata of any kind; reading the tokens and nothing else; and compiling a word list over a
//! large vocabulary.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ebm_dpg::Result;
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable, Spelling};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use rayon::prelude::*;

#[path = "workload/pipelined.rs"]
mod timing;
use timing::pipelined;

const SYMBOLS: u32 = 27;
const LENGTH: u32 = 128;
const PATTERNS: u64 = 16;

/// Token `at` of sequence `row`.
fn token(draw: Draw, row: u64, at: u32) -> Token {
    (draw.uniform(row, at) * SYMBOLS as f32) as Token
}

fn patterns() -> impl Iterator<Item = Vec<Token>> {
    let draw = Draw::new(1, Purpose::Init);
    (0..PATTERNS).map(move |i| (0..5).map(|at| token(draw, i, at)).collect())
}

fn features(feature: impl Fn(Vec<Token>) -> Feature) -> Result<FeatureSet> {
    let set = FeatureSet::new(Space::new(SYMBOLS, LENGTH)?);
    patterns().enumerate().try_fold(set, |set, (i, pattern)| set.with(i.to_string(), feature(pattern)))
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
}

/// The same of tokens of 16 bits, `[rows, LENGTH]`.
fn evaluate_compact<B: Backend>(
    backend: &B,
    table: &FeatureTable<B>,
    tokens: &B::Buffer<u16>,
    lengths: &B::Buffer<u32>,
    phi: &mut B::Buffer<f32>,
) {
    let rows = B::len(lengths);
    let (tokens, lengths) = (B::view(tokens, rows * LENGTH as usize), B::view(lengths, rows));
    table.evaluate_compact(backend, tokens, lengths, B::view_mut(phi, rows * table.len())).expect("a pass");
}

/// A pattern whose third token may be any.
fn with_wildcard(pattern: Vec<Token>) -> Feature {
    Feature::Motif(pattern.into_iter().enumerate().map(|(at, token)| (at != 2).then_some(token)).collect())
}

fn on<B: Backend>(criterion: &mut Criterion, id: &str, backend: &B, rows: usize) -> Result<()> {
    let host = batch(rows)?;
    let device = host.upload(backend)?;
    let mut group = criterion.benchmark_group("features_16");
    group.throughput(Throughput::Elements(rows as u64 * u64::from(LENGTH)));
    group.sampling_mode(SamplingMode::Flat);
    let wait = |phi: &B::Buffer<f32>| backend.download(phi, &mut [0.0]).expect("waited for");
    let named = |kind: &str| BenchmarkId::new(format!("{id}{kind}"), format!("{rows}x{LENGTH}"));
    let mut phi = backend.zeros(rows * PATTERNS as usize, "features")?;
    let sets = [("", features(Feature::Contains)?), ("_bits", features(with_wildcard)?)];
    // To the compiler the absence of a word is an automaton like any other.
    let sets = sets.into_iter().chain([("_automata", features(|pattern| !Feature::Contains(pattern))?)]);
    for (kind, set) in sets {
        let table = set.compile(backend)?;
        println!("{}", set.compile(&Cpu)?.report());
        evaluate(backend, &table, &device, &mut phi);
        check(backend, &phi, &host, &set)?;
        group.bench_function(named(kind), |bencher| {
            pipelined(bencher, &mut phi, |phi| evaluate(backend, &table, &device, phi), wait);
        });
    }
    let (set, compact) =
        (features(Feature::Contains)?, host.tokens.iter().map(|&token| token as u16).collect::<Vec<_>>());
    let (table, mut tokens) = (set.compile(backend)?, backend.zeros(compact.len(), "tokens")?);
    backend.upload(&compact, &mut tokens)?;
    evaluate_compact(backend, &table, &tokens, &device.lengths, &mut phi);
    check(backend, &phi, &host, &set)?;
    group.bench_function(named("_u16"), |bencher| {
        let launch = |phi: &mut _| evaluate_compact(backend, &table, &tokens, &device.lengths, phi);
        pipelined(bencher, &mut phi, launch, wait);
    });
    Ok(())
}

/// What no evaluation can be faster than: the largest token of the batch.
fn read(criterion: &mut Criterion, rows: usize) -> Result<()> {
    let batch = batch(rows)?;
    let mut group = criterion.benchmark_group("features_16");
    group.throughput(Throughput::Elements(rows as u64 * u64::from(LENGTH)));
    group.sampling_mode(SamplingMode::Flat);
    let largest = || batch.tokens.par_chunks(1 << 14).map(|part| part.iter().fold(0, |a, &b| a.max(b))).max();
    group.bench_function(BenchmarkId::new("read", format!("{rows}x{LENGTH}")), |bencher| bencher.iter(largest));
    Ok(())
}

/// 5,000 words of two of the first 7,000 tokens each, against 50,000 tokens of one to three syllables.
fn word_list(criterion: &mut Criterion) -> Result<()> {
    const TOKENS: u32 = 50_000;
    const WORDS: u64 = 5_000;
    let syllable = |n: u32| [b"bcdfghjklmnprstvz"[n as usize % 17], b"aeiou"[n as usize / 17 % 5]];
    let spell =
        |n: u32| (0..3).map(|k| n / 85_u32.pow(k)).take_while(|&rest| rest > 0).flat_map(syllable).collect::<Vec<_>>();
    let draw = Draw::new(2, Purpose::Init);
    let part = |word, at| String::from_utf8(spell((draw.uniform(word, at) * 7000.0) as u32)).expect("letters");
    let words = (0..WORDS).map(|word| part(word, 0) + "i" + &part(word, 1)).collect();
    let spelling = Spelling::new((0..TOKENS + 3).map(spell));
    let set = FeatureSet::new(Space::new(TOKENS, LENGTH)?).spelled(spelling)?.with("list", Feature::AnyText(words))?;
    println!("{}", set.compile(&Cpu)?.report());
    let mut group = criterion.benchmark_group("compile");
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function("5000_words_50000_tokens", |bencher| bencher.iter(|| set.compile(&Cpu).expect("a table")));
    Ok(())
}

/// The first rows, searched naively.
fn check<B: Backend>(backend: &B, phi: &B::Buffer<f32>, batch: &Batch, set: &FeatureSet) -> Result<()> {
    let mut got = vec![0.0; 1000 * PATTERNS as usize];
    backend.download(phi, &mut got)?;
    for row in 0..1000 {
        for (i, pattern) in patterns().enumerate() {
            let any = |at: usize| at == 2 && matches!(set.features()[i], Feature::Motif(_));
            let fits = |window: &[Token]| (0..pattern.len()).all(|at| any(at) || window[at] == pattern[at]);
            let found = batch.sequence(row).windows(pattern.len()).any(fits);
            let wanted = found != matches!(set.features()[i], Feature::Not(_));
            assert_eq!(got[row * PATTERNS as usize + i] == 1.0, wanted, "row {row}, pattern {i}");
        }
    }
    Ok(())
}

fn bench(criterion: &mut Criterion) {
    read(criterion, 100_000).expect("the tokens");
    on(criterion, "cpu", &Cpu, 100_000).expect("the CPU's features");
    word_list(criterion).expect("the word list");
    #[cfg(feature = "cuda")]
    if let Ok(ebm_dpg::backend::Opened::Cuda(gpu)) = ebm_dpg::backend::Device::auto().open() {
        on(criterion, "cuda", &gpu, 1_000_000).expect("the GPU's features");
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    targets = bench
}
criterion_main!(benches);
