//! The step allocates nothing. Measured on a pool of one thread, by an allocator that counts per thread.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::LookAhead;
use ebm_dpg::features::{Feature, FeatureSet};
use ebm_dpg::models::{Lstm, LstmShape, Markov};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::tokens::{Batch, Space};
use ebm_dpg::tune::{Baseline, KlControl, Method, Source, SubTrajectories, Swap, Target, TuneData, TuneOptions, tune};

#[path = "../benches/workload/mod.rs"]
mod workload;
use workload::{Size, Workload};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // The thread's storage may be gone while the thread ends.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn on_one_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(work)
}

fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![0u8; 100]))), 1);
}

#[test]
fn a_step_by_hand_allocates_nothing() {
    on_one_thread(|| {
        // More rows than a chunk of any stage.
        let mut workload =
            Workload::new(&Cpu, Size { batch: 5000, hidden: 20, layers: 2, length: 8, vocab: 4 }).unwrap();
        workload.step().unwrap();
        let made = allocations(|| (0..3).for_each(|_| workload.step().unwrap()));
        workload.check().unwrap();
        assert_eq!(made, 0);
    });
}

/// A run of more steps allocates no more than a run of few: both have one evaluation and fill the cache.
#[test]
fn the_steps_of_tuning_allocate_nothing() {
    let cases = [
        (Method::DpgOffPolicy, Source::Guided, Baseline::None),
        (Method::DpgOffPolicy, Source::Base, Baseline::Mean),
        (Method::DpgOnPolicy, Source::Base, Baseline::Mean),
        (Method::Distill, Source::Guided, Baseline::None),
        (Method::Reinforce, Source::Base, Baseline::Mean),
        (Method::TrajectoryBalance, Source::Guided, Baseline::None),
        (Method::SubTrajectoryBalance(SubTrajectories::default()), Source::Guided, Baseline::None),
        (Method::KlControl(KlControl::default()), Source::Base, Baseline::LeaveOneOut),
    ];
    for (method, proposal, baseline) in cases {
        let mixture = matches!(method, Method::DpgOffPolicy | Method::TrajectoryBalance);
        for defensive in [0.0, 0.2].into_iter().filter(|&share| mixture || share == 0.0) {
            let (few, many) = on_one_thread(|| {
                // A thread's first features make the scratch memory that it keeps.
                of_tuning(method, proposal, baseline, defensive, 1);
                let of = |batches| of_tuning(method, proposal, baseline, defensive, batches);
                (of(4), of(24))
            });
            assert_eq!(few, many, "{method:?}, {defensive}: allocations of 4 and of 24 steps");
        }
    }
}

/// Where a share of the draws is to stay the first proposal's, q ← π after every second batch.
fn of_tuning(method: Method, proposal: Source, baseline: Baseline, defensive: f64, batches: usize) -> usize {
    let space = Space::new(2, 6).unwrap();
    let seen = Batch::from_sequences(space, &[vec![0, 1, 1, 0, 0, 3], vec![1, 0, 1, 3]]).unwrap();
    let mut base = Markov::fit(&seen, 1, false, 0.5).unwrap();
    let set = FeatureSet::new(space).with("11", Feature::Contains(vec![1, 1])).unwrap();
    let set = set.with("first", Feature::StartsWith(vec![1])).unwrap();
    let ends_anywhere = matches!(method, Method::SubTrajectoryBalance(_));
    let first = if ends_anywhere { Role::Tilt(1.0) } else { Role::Require(1.0) };
    let potential = Potential::new(&Cpu, &[first, Role::Tilt(1.0)]).unwrap();
    let features = set.compile(&Cpu).unwrap();
    let guide = LookAhead::towards(&base, &set, &potential, 100).unwrap().guide();
    let mut target =
        Target { base: &mut base, features: &features, potential: &potential, guide: Some(&guide), contexts: None };
    let mut policy = Lstm::new(space, LstmShape { layers: 1, hidden: 8, dropout: 0.0 }, 0).unwrap();
    let mut options = TuneOptions::default();
    (options.method, options.proposal, options.baseline, options.swap) = (method, proposal, baseline, Swap::Never);
    // The pool comes to hold more than a chunk of the reductions.
    (options.batch, options.samples, options.cache, options.updates) = (2000, 2000 * batches, 5000, 2);
    // Too few rows to judge by: what judging allocates depends on whether their weights are even enough.
    (options.evaluations, options.evaluation_rows) = (1, 50);
    if defensive > 0.0 {
        (options.defensive, options.swap) = (defensive, Swap::Every(2));
    }
    allocations(|| {
        tune(&Cpu, &mut target, &mut policy, &options, TuneData::default(), |_| {}).unwrap();
    })
}
