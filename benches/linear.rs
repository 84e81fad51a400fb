//! Log-probs and gradients from hidden states. Throughput is in multiplications and additions: 2·N·H·V for log-probs, three
//! times as many for the gradient of all rows. The last one has nine of ten sequences of weight 0.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ebm_dpg::backend::Cpu;
use ebm_dpg::gradient::Coefficient;
use ebm_dpg::linear::{Head, LinearGradient, Rows, Workspace, linear_gradient, linear_log_prob};
use ebm_dpg::log_prob::SoftmaxOptions;
use ebm_dpg::rng::{Draw, Purpose};

/// Tokens of a sequence.
const LENGTH: usize = 16;

fn numbers(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let draw = Draw::new(seed, Purpose::Data);
    let some: Vec<f32> = (0..1_000_003).map(|i| scale * (2.0 * draw.uniform(i, 0) - 1.0)).collect();
    some.into_iter().cycle().take(len).collect()
}

fn on(criterion: &mut Criterion, (count, width, vocab): (usize, usize, usize)) {
    let (hidden, weight) = (numbers(0, count * width, 1.0), numbers(1, vocab * width, 0.1));
    let tokens: Vec<u32> = (0..count).map(|row| (row * 7919 % vocab) as u32).collect();
    let offsets: Vec<u64> = (0..=count).step_by(LENGTH).map(|row| row as u64).collect();
    let head = Head::<Cpu, f32> { width, vocab, weight: &weight };
    let rows = Rows::<Cpu, f32> { hidden: &hidden, tokens: &tokens };
    let mut workspace = Workspace::new(&Cpu, width, vocab, 256 << 20).expect("memory");
    let (softmax, mut log_probs) = (SoftmaxOptions::default(), vec![0.0; count]);
    let (mut log_pi, mut to_hidden, mut to_head) =
        (vec![0.0; count / LENGTH], vec![0.0; count * width], vec![0.0; vocab * width]);
    let mut group = criterion.benchmark_group("linear");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(5));
    let operations = (2 * count * width * vocab) as u64;
    group.throughput(Throughput::Elements(operations));
    let id = |what| BenchmarkId::new(what, format!("{count}x{width}x{vocab}"));
    group.bench_function(id("log_prob"), |bencher| {
        bencher.iter(|| linear_log_prob(&Cpu, &softmax, &head, &rows, &mut workspace, &mut log_probs).expect("a pass"));
    });
    group.throughput(Throughput::Elements(3 * operations));
    for (what, kept) in [("gradient", 1), ("gradient_tenth", 10)] {
        let weights: Vec<f32> = (0..count / LENGTH).map(|s| if s % kept == 0 { 1e-3 } else { 0.0 }).collect();
        let coefficient: Coefficient<'_, Cpu> = Coefficient::Given { weights: &weights };
        group.bench_function(id(what), |bencher| {
            bencher.iter(|| {
                let out = LinearGradient::<Cpu> {
                    log_probs: &mut log_probs,
                    log_pi: &mut log_pi,
                    hidden: &mut to_hidden,
                    head: &mut to_head,
                };
                linear_gradient(&Cpu, &softmax, &head, &rows, &offsets, &coefficient, &mut workspace, out)
                    .expect("a pass");
            });
        });
    }
    group.finish();
    assert!(log_pi[0] < 0.0 && to_head.iter().all(|x| x.is_finite()));
}

fn bench(criterion: &mut Criterion) {
    on(criterion, (1280, 512, 32_000));
}

criterion_group!(benches, bench);
criterion_main!(benches);
