//! The trainer's pool on a GPU: which draws are kept, which are chosen, with what weights, as on the CPU.

use ebm_dpg::backend::gpu::{Gpu, Launcher};
use ebm_dpg::backend::{Backend, Cpu, Element, Memory};
use ebm_dpg::gradient::Divergence;
use ebm_dpg::models::Weighting;
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Contexts, Space};
use ebm_dpg::tune::{Baseline, Choice, Chosen, KlControl, Ledger, NewDraws, Pool, PoolKernel, Rejection, Unit, Worth};

mod support;
use support::{download, noise, on_every_backend, upload};

on_every_backend!(
    the_ring_and_the_shuffle_are_those_of_the_cpu,
    rejection_is_that_of_the_cpu,
    the_mean_reward_is_that_of_the_cpu,
    no_update_without_weights_and_none_too_many,
    bad_weights_are_named_and_not_kept,
    units_baselines_and_shifts_are_those_of_the_cpu,
    returns_are_those_of_the_cpu,
    contexts_are_weighed_as_on_the_cpu,
);

fn space() -> Space {
    Space::new(9, 3).unwrap()
}

/// Sequences of one and two symbols, and cut ones.
fn batch(rows: usize, seed: usize) -> Batch {
    let sequence = |row: usize| {
        let mut sequence: Vec<u32> = (0..(row + seed) % 4).map(|t| ((row * 7 + t + seed) % 9) as u32).collect();
        if sequence.len() < 3 {
            sequence.push(space().eos);
        }
        sequence
    };
    Batch::from_sequences(space(), &(0..rows).map(sequence).collect::<Vec<_>>()).unwrap()
}

/// log P and log q; one P in four is 0.
fn drawn(rows: usize, seed: u64) -> (Vec<f64>, Vec<f64>) {
    let log_q: Vec<f64> = noise(seed, rows).iter().map(|&v| f64::from(v) - 9.0).collect();
    let gap = noise(seed + 100, rows);
    let log_p = |row: usize| if row % 4 == 1 { f64::NEG_INFINITY } else { log_q[row] + 3.0 * f64::from(gap[row]) };
    ((0..rows).map(log_p).collect(), log_q)
}

/// How a pool is used.
#[derive(Clone, Copy)]
struct Use {
    capacity: usize,
    rows: usize,
    pinned: usize,
    update: usize,
    all: bool,
    fresh: bool,
    uses: usize,
    rounds: u64,
    worth: Worth,
    shifted: Option<Weighting>,
    /// 0 where draws have none.
    contexts: usize,
}

const PLAIN: Use = Use {
    capacity: 64,
    rows: 40,
    pinned: 0,
    update: 16,
    all: false,
    fresh: false,
    uses: 1000,
    rounds: 3,
    worth: Worth { unit: Unit::MeanWeight, clip: f64::INFINITY, baseline: Baseline::None },
    shifted: None,
    contexts: 0,
};

/// What can be seen of a pool after some rounds of draws and updates.
#[derive(Debug, Default)]
struct Seen {
    ledgers: Vec<Ledger>,
    order: Vec<Vec<u32>>,
    chosen: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
    lengths: Vec<Vec<u32>>,
    weights: Vec<Vec<f32>>,
    log_q: Vec<Vec<f64>>,
    log_p: Vec<Vec<f64>>,
    shifts: Vec<f64>,
    context: Vec<Vec<u32>>,
    log_z: Vec<f64>,
    rates: Vec<f32>,
}

fn read<B: Backend, T: Element>(backend: &B, buffer: &B::Buffer<T>) -> Vec<T> {
    let mut host = vec![T::default(); B::len(buffer)];
    backend.download(buffer, &mut host).unwrap();
    host
}

/// Some batches of draws with three updates each.
fn used<B: Backend>(backend: &B, how: Use, rejection: Option<&Rejection>) -> Seen {
    let pinned = batch(how.pinned, 50).upload(backend).unwrap();
    let bound = rejection.map_or(0.0, |rejection| rejection.log_bound);
    let pinned = (how.pinned > 0).then_some(&pinned);
    let mut pool = Pool::new(backend, space(), how.capacity, how.rows, bound, pinned).unwrap();
    let contexts = Contexts::new(space(), &vec![[0]; how.contexts.max(1)], 7).unwrap();
    let contexts_there = contexts.upload(backend).unwrap();
    if how.contexts > 0 {
        pool = pool.with_contexts(backend, how.contexts).unwrap();
    }
    let mut chosen = Chosen::new(backend, space(), how.update).unwrap();
    let mut rate = backend.zeros(1, "rate").unwrap();
    backend.upload(&[0.5f32], &mut rate).unwrap();
    let column = |values: &[f64]| {
        let mut buffer = backend.zeros(values.len(), "column").unwrap();
        backend.upload(values, &mut buffer).unwrap();
        buffer
    };
    let (mut seen, rows) = (Seen::default(), how.rows);
    let mut log_w = backend.zeros(rows, "log w").unwrap();
    for round in 0..how.rounds {
        let (log_p, log_q) = drawn(rows, round);
        let (log_p, log_q) = (column(&log_p), column(&log_q));
        let (log_p, log_q) = (B::view(&log_p, rows), B::view(&log_q, rows));
        backend.weigh(&mut pool, log_p, log_q, B::view_mut(&mut log_w, rows)).unwrap();
        let draw = Draw::new(7, Purpose::Tune).skip(round * rows as u64);
        backend.weigh_contexts(&mut pool, &contexts_there, draw, B::view(&log_w, rows)).unwrap();
        if let Some(rejection) = rejection {
            backend.accept(&mut pool, rejection, draw, B::view_mut(&mut log_w, rows)).unwrap();
        }
        let mut batch = batch(rows, round as usize);
        if how.contexts > 0 {
            (0..rows).for_each(|row| batch.context[row] = contexts.number(draw.first + row as u64) as u32);
        }
        let batch = batch.upload(backend).unwrap();
        let log_w = B::view(&log_w, rows);
        let draws = NewDraws { batch: &batch, log_w, log_q, all: how.all, fresh: how.fresh };
        backend.keep(&mut pool, &draws).unwrap();
        backend.measure(&mut pool, &how.worth).unwrap();
        for _ in 0..3 {
            let draw = Draw::new(5, Purpose::Shuffle);
            let choice = Choice { uses: how.uses, draw, worth: how.worth, rate: &rate };
            backend.choose(&mut pool, &mut chosen, &choice).unwrap();
            let log_pi = column(&(0..how.update).map(|row| -2.5 - 0.1 * row as f64).collect::<Vec<_>>());
            let log_pi = B::view(&log_pi, how.update);
            backend.note_update(&mut pool, &chosen, log_pi, &how.worth, how.shifted).unwrap();
            let ledger = pool.ledger(backend).unwrap();
            seen.order.push(read(backend, &pool.order)[..ledger.rows as usize].to_vec());
            seen.chosen.push(read(backend, &chosen.slots)[..ledger.chosen as usize].to_vec());
            seen.ledgers.push(ledger);
            seen.tokens.push(read(backend, &chosen.batch.tokens));
            seen.lengths.push(read(backend, &chosen.batch.lengths));
            seen.context.push(read(backend, &chosen.batch.context));
            seen.log_z.extend(pool.contexts.iter().flat_map(|books| read::<B, f64>(backend, &books.log_z)));
            seen.log_z.extend(pool.context_means(backend).unwrap().iter().map(|mean| mean.ess()));
            seen.weights.push(read(backend, &chosen.weights));
            seen.log_q.push(read(backend, &chosen.log_q));
            seen.log_p.push(read(backend, &chosen.log_p));
            seen.shifts.push(read(backend, &chosen.shift)[0]);
            seen.rates.push(read(backend, &chosen.rate)[0]);
        }
    }
    seen
}

/// Equal to the last digits, both infinities included.
fn assert_close(what: &str, got: f64, want: f64) {
    assert!(got == want || (got - want).abs() <= 1e-12 * want.abs().max(1.0), "{what}: {got} and {want}");
}

#[track_caller]
fn assert_books(got: &Ledger, want: &Ledger) {
    let counts = |l: &Ledger| [l.next, l.rows, l.kept, l.cursor, l.picks, l.chosen, l.updates, l.raises];
    assert_eq!(counts(got), counts(want));
    assert_eq!((got.log_z.count(), got.log_reward.count()), (want.log_z.count(), want.log_reward.count()));
    assert_close("log Z", got.log_z.value(), want.log_z.value());
    assert_close("ESS", got.log_z.ess(), want.log_z.ess());
    assert_close("log reward", got.log_reward.value(), want.log_reward.value());
    assert_close("log mean", got.log_mean, want.log_mean);
    assert_close("log bound", got.log_bound, want.log_bound);
    assert_close("center", got.center, want.center);
    assert_close("factor", got.factor, want.factor);
    assert_close("clipped", got.cut, want.cut);
    assert_close("shift", got.shift, want.shift);
    // Weights are of single precision.
    assert!((got.loss - want.loss).abs() <= 1e-6 * want.loss.abs(), "loss: {} and {}", got.loss, want.loss);
    assert!((got.loss_weight - want.loss_weight).abs() <= 1e-6 * want.loss_weight);
}

mod cases {
    use super::*;

    fn follows_the_cpu<L: Launcher>(gpu: &Gpu<L>, how: Use, rejection: Option<&Rejection>) -> Seen {
        let (got, want) = (used(gpu, how, rejection), used(&Cpu, how, rejection));
        assert_eq!(got.order, want.order);
        assert_eq!(got.chosen, want.chosen);
        assert_eq!(got.tokens, want.tokens);
        assert_eq!(got.lengths, want.lengths);
        assert_eq!(got.context, want.context);
        got.log_z.iter().zip(&want.log_z).for_each(|(&got, &want)| assert_close("log Z of a context", got, want));
        assert_eq!(got.log_z.len(), want.log_z.len());
        assert_eq!(got.log_q, want.log_q);
        assert_eq!(got.rates, want.rates);
        got.ledgers.iter().zip(&want.ledgers).for_each(|(got, want)| assert_books(got, want));
        let columns = |seen: &Seen| seen.log_p.iter().flatten().chain(&seen.shifts).copied().collect::<Vec<_>>();
        columns(&got).iter().zip(columns(&want)).for_each(|(&got, want)| assert_close("log p or shift", got, want));
        for (got, want) in got.weights.iter().flatten().zip(want.weights.iter().flatten()) {
            assert!((got - want).abs() <= 1e-6 * want.abs().max(1e-3), "{got} and {want}");
        }
        got
    }

    pub fn the_ring_and_the_shuffle_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let uses = [
            // More rows to an update than a block has threads; a second pass begins within an update.
            Use { capacity: 1500, rows: 1500, update: 1030, rounds: 1, ..PLAIN },
            // The ring ends within a batch of draws.
            Use { capacity: 41, update: 30, ..PLAIN },
            Use { pinned: 5, update: 11, ..PLAIN },
            PLAIN,
            Use { all: true, ..PLAIN },
            Use { all: true, fresh: true, capacity: 40, update: 40, ..PLAIN },
            // More rows to an update than there are.
            Use { update: 100, ..PLAIN },
            Use { capacity: 1, rows: 1, update: 1, ..PLAIN },
        ];
        // Blocks of 1024 threads are slow under the sanitizers.
        let most = if cfg!(sanitized) { 3 } else { uses.len() };
        for how in uses.into_iter().take(most) {
            follows_the_cpu(gpu, how, None);
        }
    }

    pub fn rejection_is_that_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let exact = Rejection { log_bound: 3.0, exact: true, seed: 4 };
        let seen = follows_the_cpu(gpu, Use { pinned: 3, ..PLAIN }, Some(&exact));
        assert_eq!(seen.ledgers.last().unwrap().raises, 0);
        let rising = Rejection { log_bound: f64::NEG_INFINITY, exact: false, seed: 4 };
        let seen = follows_the_cpu(gpu, Use { pinned: 3, ..PLAIN }, Some(&rising));
        assert!(seen.ledgers.last().unwrap().raises > 1);
        let before = f64::exp(seen.ledgers[0].log_mean);
        assert!(before == 1.0 && seen.ledgers.last().unwrap().log_mean < 0.0, "some were thinned");
    }

    pub fn the_mean_reward_is_that_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        fn books<B: Backend>(backend: &B) -> Ledger {
            let mut pool = Pool::new(backend, space(), 2, 2, 0.0, None).unwrap();
            for rewards in
                [vec![f64::NEG_INFINITY; 3], vec![-900.0, f64::NEG_INFINITY], vec![-901.0; 1500], vec![-898.0]]
            {
                let mut buffer = backend.zeros(rewards.len(), "rewards").unwrap();
                backend.upload(&rewards, &mut buffer).unwrap();
                backend.reward(&mut pool, B::view(&buffer, rewards.len())).unwrap();
            }
            backend.measure(&mut pool, &Worth { unit: Unit::MeanReward, ..PLAIN.worth }).unwrap();
            pool.ledger(backend).unwrap()
        }
        let (got, want) = (books(gpu), books(&Cpu));
        assert_books(&got, &want);
        assert_close("log mean", got.log_mean, want.log_reward.value());
    }

    pub fn no_update_without_weights_and_none_too_many<L: Launcher>(gpu: &Gpu<L>) {
        let seen = follows_the_cpu(gpu, Use { uses: 1, ..PLAIN }, None);
        // 30 of 40 draws have a weight: one update of 16, and with the next two batches of draws two each.
        assert_eq!(seen.ledgers.iter().map(|l| l.updates).collect::<Vec<_>>(), [1, 1, 1, 2, 3, 3, 4, 5, 5]);
        assert_eq!(seen.rates, [0.5, 0.0, 0.0, 0.5, 0.5, 0.0, 0.5, 0.5, 0.0]);
        let none = Rejection { log_bound: 1e6, exact: true, seed: 4 };
        let seen = follows_the_cpu(gpu, PLAIN, Some(&none));
        assert_eq!(seen.ledgers.last().unwrap().updates, 0);
        assert!(seen.rates.iter().chain(seen.weights.iter().flatten()).all(|&value| value == 0.0));
    }

    pub fn bad_weights_are_named_and_not_kept<L: Launcher>(gpu: &Gpu<L>) {
        for bad in [f64::NAN, f64::INFINITY] {
            let (mut log_p, log_q) = drawn(40, 1);
            log_p[22] = bad;
            let (log_p, log_q) = (upload(gpu, &log_p), upload(gpu, &log_q));
            let mut log_w = upload(gpu, &vec![0.0f64; 40]);
            let mut pool = Pool::new(gpu, space(), 40, 40, 0.0, None).unwrap();
            let (p, q) = (Gpu::<L>::view(&log_p, 40), Gpu::<L>::view(&log_q, 40));
            gpu.weigh(&mut pool, p, q, Gpu::<L>::view_mut(&mut log_w, 40)).unwrap();
            let batch = batch(40, 0).upload(gpu).unwrap();
            let log_w_of = Gpu::<L>::view(&log_w, 40);
            let draws = NewDraws { batch: &batch, log_w: log_w_of, log_q: q, all: false, fresh: false };
            gpu.keep(&mut pool, &draws).unwrap();
            assert_eq!(gpu.check().unwrap_err().to_string(), "importance weight: not a number at row 22");
            assert!(download(gpu, &log_w)[22].is_nan());
            let ledger = pool.ledger(gpu).unwrap();
            assert!(ledger.kept == 29 && ledger.log_z.value().is_finite());
        }
    }

    pub fn units_baselines_and_shifts_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let fresh = Use { all: true, fresh: true, capacity: 40, update: 40, ..PLAIN };
        let worth = |unit, clip, baseline| Worth { unit, clip, baseline };
        let none = f64::INFINITY;
        let seen = follows_the_cpu(gpu, Use { worth: worth(Unit::MeanWeight, 1.5, Baseline::None), ..PLAIN }, None);
        assert!(seen.ledgers.iter().all(|ledger| ledger.cut > 0.0 && ledger.cut < 1.0));
        follows_the_cpu(gpu, Use { worth: worth(Unit::MeanWeight, none, Baseline::LeaveOneOut), ..fresh }, None);
        for divergence in [Divergence::JensenShannon, Divergence::Alpha(0.5), Divergence::ForwardKl] {
            let (worth, shifted) = (worth(Unit::Partition, none, Baseline::None), Weighting::Divergence(divergence));
            let seen = follows_the_cpu(gpu, Use { all: true, worth, shifted: Some(shifted), ..PLAIN }, None);
            assert!(seen.shifts[0] == 0.0 && seen.shifts[1] != 0.0);
        }
        let worth = worth(Unit::Partition, none, Baseline::None);
        follows_the_cpu(gpu, Use { worth, shifted: Some(Weighting::Balance), ..PLAIN }, None);
    }

    /// Fewer contexts than a batch takes up; more, so that some have no draw yet; more than a block has threads.
    pub fn contexts_are_weighed_as_on_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let worth = |unit, clip, baseline| Worth { unit, clip, baseline };
        let uses = [
            Use { contexts: 3, worth: worth(Unit::MeanWeight, 1.5, Baseline::None), ..PLAIN },
            Use { contexts: 30, worth: worth(Unit::Partition, f64::INFINITY, Baseline::None), ..PLAIN },
            Use {
                contexts: 1,
                worth: worth(Unit::MeanWeight, f64::INFINITY, Baseline::LeaveOneOut),
                all: true,
                ..PLAIN
            },
            Use { contexts: 300, worth: worth(Unit::MeanReward, f64::INFINITY, Baseline::Mean), ..PLAIN },
            // Rejection leaves weights of 1, which its context's Z still divides.
            Use { contexts: 4, ..PLAIN },
        ];
        let rejection = Rejection { log_bound: 3.0, exact: true, seed: 4 };
        for how in uses {
            let seen = follows_the_cpu(gpu, how, (how.contexts == 4).then_some(&rejection));
            assert_eq!(seen.log_z.len(), 9 * 2 * how.contexts);
        }
    }

    pub fn returns_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        fn returns<B: Backend>(backend: &B, log_base: &[f64]) -> ebm_dpg::Result<Vec<f64>> {
            let (log_p, log_pi) = drawn(300, 3);
            let [log_p, log_pi, log_base, mut out] = [&log_p, &log_pi, log_base, &vec![0.0; 300]].map(|values| {
                let mut buffer = backend.zeros(values.len(), "column").unwrap();
                backend.upload(values, &mut buffer).unwrap();
                buffer
            });
            let view = |buffer| B::view(buffer, 300);
            let control = KlControl { beta: 0.3, floor: -2.0 };
            let out_view = B::view_mut(&mut out, 300);
            backend.returns(&control, view(&log_p), view(&log_base), view(&log_pi), out_view).unwrap();
            let mut returns = vec![0.0; 300];
            backend.download(&out, &mut returns)?;
            Ok(returns)
        }
        let mut log_base: Vec<f64> = noise(9, 300).iter().map(|&v| f64::from(v) - 9.0).collect();
        assert_eq!(returns(gpu, &log_base).unwrap(), returns(&Cpu, &log_base).unwrap());
        log_base[17] = f64::NEG_INFINITY;
        assert!(returns(gpu, &log_base).unwrap_err().to_string().contains("row 17"));
    }
}
