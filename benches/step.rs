//! One off-policy DPG step at the papers' scale, and its phases. The same work in PyTorch: `peers/dpg_torch.py`.

use std::time::Duration;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use ebm_dpg::backend::Cpu;
use ebm_dpg::models::LstmBackend;

mod workload;
use workload::{Size, Workload};

type Phase<B> = fn(&mut Workload<B>) -> ebm_dpg::Result<()>;

fn phases<B: LstmBackend>() -> [(&'static str, Phase<B>); 5] {
    [
        ("dpg_step", Workload::step),
        ("sample", Workload::sample),
        ("score", Workload::score),
        ("features", Workload::features),
        ("gradient", Workload::gradient),
    ]
}

/// The CPU, and the first GPU where build and machine have one.
fn step(criterion: &mut Criterion) {
    step_on(criterion, "cpu", &Cpu);
    #[cfg(feature = "cuda")]
    if let Ok(ebm_dpg::backend::Opened::Cuda(gpu)) = ebm_dpg::backend::Device::auto().open() {
        step_on(criterion, "cuda", &gpu);
    }
}

fn step_on<B: LstmBackend>(criterion: &mut Criterion, id: &str, backend: &B) {
    let size = Size::default();
    let mut workload = Workload::new(backend, size).expect("memory for the workload");
    // Each phase needs what those before it leave; the first pass also makes the models' workspaces.
    workload.step().expect("a step");
    workload.check().expect("right answers");
    let mut time = |name, phase: Phase<B>, workload: &mut Workload<B>| {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(size.batch as u64));
        group.sampling_mode(SamplingMode::Flat);
        group.bench_function(id, |bencher| {
            bencher.iter(|| phase(workload).and_then(|()| workload.wait()).expect("a phase"));
        });
        group.finish();
    };
    for (name, phase) in phases() {
        time(name, phase, &mut workload);
    }
    // As the trainer runs it on a GPU: one CUDA graph.
    if workload.record().expect("a recording") {
        time("dpg_step_recorded", Workload::replay, &mut workload);
    }
    workload.check().expect("right answers");
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    targets = step
}
criterion_main!(benches);
