//! Sub-trajectory balance on a GPU: which prefixes are drawn, what they become, with what coefficients, as on the CPU.

use ebm_dpg::backend::gpu::{Gpu, Launcher};
use ebm_dpg::backend::{Backend, Cpu, Element};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use ebm_dpg::tune::{Baseline, Choice, Chosen, EndedPrefixes, Ledger, NewDraws, Pool, SubTrajectories, Unit, Worth};

mod support;
use support::{bits, noise, on_every_backend};

on_every_backend!(
    prefixes_and_coefficients_are_those_of_the_cpu,
    many_prefixes_of_long_sequences,
    every_set_of_prefixes_is_as_likely,
    a_prefix_without_a_potential_is_named_and_its_sequence_left_out,
);

fn space(longest: u32) -> Space {
    Space::new(9, longest).unwrap()
}

/// Sequences of all lengths, cut ones among them.
fn batch(space: Space, rows: usize, seed: usize) -> Batch {
    let longest = space.longest as usize;
    let sequence = |row: usize| {
        let mut sequence: Vec<Token> =
            (0..(row * 5 + seed) % (longest + 1)).map(|t| ((row * 7 + t * 3 + seed) % 9) as Token).collect();
        if sequence.len() < longest {
            sequence.push(space.eos);
        }
        sequence
    };
    let mut batch = Batch::with_capacity(&Cpu, space, rows).unwrap();
    for row in 0..rows {
        // A context of up to two tokens, one token at least behind it.
        let sequence = sequence(row);
        batch.push_given(&sequence, (row % 3).min(sequence.len() - 1), row as u32).unwrap();
    }
    batch
}

fn read<B: Backend, T: Element>(backend: &B, buffer: &B::Buffer<T>) -> Vec<T> {
    let mut host = vec![T::default(); B::len(buffer)];
    backend.download(buffer, &mut host).unwrap();
    host
}

fn column<B: Backend, T: Element>(backend: &B, values: &[T]) -> B::Buffer<T> {
    let mut buffer = backend.zeros(values.len(), "column").unwrap();
    backend.upload(values, &mut buffer).unwrap();
    buffer
}

/// How many sequences there are, and how many an update has room for.
#[derive(Clone, Copy)]
struct Use {
    longest: u32,
    rows: usize,
    update: usize,
    how: SubTrajectories,
    updates: usize,
}

const SMALL: Use =
    Use { longest: 6, rows: 20, update: 8, how: SubTrajectories { lambda: 0.8, prefixes: 3 }, updates: 3 };

/// What can be seen of a few updates.
#[derive(Debug, Default)]
struct Seen {
    candidates: Vec<u32>,
    positions: Vec<u32>,
    tokens: Vec<u32>,
    lengths: Vec<u32>,
    contexts: Vec<u32>,
    weights: Vec<f32>,
    losses: Vec<f64>,
    given: Vec<u32>,
}

/// Updates on sequences of a pool; log P and log π are noise.
fn used<B: Backend>(backend: &B, of: Use) -> Seen {
    let space = space(of.longest);
    let mut pool = Pool::new(backend, space, of.rows, of.rows, 0.0, None).unwrap();
    let mut chosen = Chosen::new(backend, space, of.update).unwrap();
    let mut ended = EndedPrefixes::new(backend, space, of.update, &of.how).unwrap();
    let rows = ended.batch.rows;
    let worth = Worth { unit: Unit::Return, clip: f64::INFINITY, baseline: Baseline::None };
    let (zeros, rate) = (column(backend, &vec![0.0f64; of.rows]), column(backend, &[1.0f32]));
    let draws = batch(space, of.rows, 1).upload(backend).unwrap();
    let log_w = B::view(&zeros, of.rows);
    let new = NewDraws { batch: &draws, log_w, log_q: log_w, all: true, fresh: false };
    backend.keep(&mut pool, &new).unwrap();
    backend.measure(&mut pool, &worth).unwrap();
    let mut seen = Seen::default();
    for at in 0..of.updates {
        let choice = Choice { uses: 1000, draw: Draw::new(5, Purpose::Shuffle), worth, rate: &rate };
        backend.choose(&mut pool, &mut chosen, &choice).unwrap();
        backend.end_prefixes(&pool, &chosen, &mut ended, Draw::new(5, Purpose::Prefix)).unwrap();
        let noise = |seed: u64| noise(seed, rows).iter().map(|&v| 3.0 * f64::from(v) - 9.0).collect::<Vec<_>>();
        let (log_p, log_pi) = (column(backend, &noise(2 * at as u64)), column(backend, &noise(2 * at as u64 + 1)));
        let (log_p, log_pi) = (B::view(&log_p, rows), B::view(&log_pi, rows));
        backend.balance_prefixes(&mut pool, &mut ended, log_p, log_pi).unwrap();
        seen.candidates.extend(read(backend, &ended.candidates));
        seen.positions.extend(read(backend, &ended.positions));
        seen.tokens.extend(read(backend, &ended.batch.tokens));
        seen.lengths.extend(read(backend, &ended.batch.lengths));
        seen.weights.extend(read(backend, &ended.weights));
        seen.contexts.extend(read(backend, &ended.batch.context));
        seen.contexts.extend(read(backend, &ended.batch.given));
        seen.given.extend(read(backend, &chosen.batch.given));
        let Ledger { loss, loss_weight, .. } = pool.ledger(backend).unwrap();
        seen.losses.extend([loss, loss_weight]);
    }
    seen
}

mod cases {
    use super::*;

    fn follows_the_cpu<L: Launcher>(gpu: &Gpu<L>, of: Use) -> Seen {
        let (got, want) = (used(gpu, of), used(&Cpu, of));
        assert_eq!(got.candidates, want.candidates);
        assert_eq!(got.positions, want.positions);
        assert_eq!(got.tokens, want.tokens);
        assert_eq!(got.lengths, want.lengths);
        assert_eq!(got.contexts, want.contexts);
        // No product is fused with a sum, on a GPU neither.
        assert_eq!(bits(&got.weights), bits(&want.weights));
        for (got, want) in got.losses.iter().zip(&want.losses) {
            assert!((got - want).abs() <= 1e-13 * want.abs(), "loss: {got} and {want}");
        }
        got
    }

    pub fn prefixes_and_coefficients_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let seen = follows_the_cpu(gpu, SMALL);
        for (at, group) in seen.positions.chunks(3).enumerate() {
            let (of, longest, given) = (seen.candidates[at], SMALL.longest, seen.given[at]);
            let held = 3.min(of as usize);
            let mut set: Vec<u32> = group[..held].to_vec();
            set.sort_unstable();
            set.dedup();
            assert!(set.len() == held && set.iter().all(|t| (given..given + of).contains(t)), "{group:?} of {of}");
            let lengths = &seen.lengths[at * 3..][..3];
            assert!(group.iter().zip(lengths).all(|(t, &length)| length == (t + 1).min(longest)), "{group:?}");
            let weights = &seen.weights[at * 3..][..3];
            // What is added to one prefix is taken from another.
            assert!(weights.iter().sum::<f32>().abs() < 1e-6 && (held < 2) == (weights == [0.0; 3]), "{weights:?}");
        }
        assert!(seen.candidates.contains(&1) && seen.candidates.contains(&7), "all lengths, the cut one too");
        assert!(seen.losses[1] > 0.0);
        // Fewer sequences than rows; all prefixes of each; one.
        let more = follows_the_cpu(gpu, Use { rows: 5, ..SMALL });
        assert!(more.candidates[5..8] == [0; 3] && more.weights[15..24].iter().all(|&weight| weight == 0.0));
        follows_the_cpu(gpu, Use { how: SubTrajectories { lambda: 1.5, prefixes: 99 }, ..SMALL });
        follows_the_cpu(gpu, Use { rows: 1, update: 1, longest: 1, updates: 1, ..SMALL });
    }

    /// More draws than a warp has lanes, more rows than a block has threads.
    pub fn many_prefixes_of_long_sequences<L: Launcher>(gpu: &Gpu<L>) {
        let how = SubTrajectories { lambda: 0.95, prefixes: 40 };
        follows_the_cpu(gpu, Use { longest: 70, rows: 30, update: 30, how, updates: 1 });
    }

    /// Two of four prefixes: six sets, 3000 draws, each number of them within four standard errors of 500.
    pub fn every_set_of_prefixes_is_as_likely<L: Launcher>(gpu: &Gpu<L>) {
        fn counts<B: Backend>(backend: &B) -> [i32; 6] {
            let space = space(9);
            let rows = 3000;
            let sequences = vec![[0, 1, 2, space.eos]; rows];
            let sequences = Batch::from_sequences(space, &sequences).unwrap().upload(backend).unwrap();
            let mut pool = Pool::new(backend, space, 1, 1, 0.0, None).unwrap();
            let mut chosen = Chosen::new(backend, space, rows).unwrap();
            backend.copy_rows(&sequences, &(0..rows as u32).collect::<Vec<_>>(), 0, &mut chosen.batch).unwrap();
            let books = Ledger { chosen: rows as u64, picks: rows as u64, ..Ledger::default() };
            backend.upload(&[books], &mut pool.ledger).unwrap();
            let how = SubTrajectories { lambda: 1.0, prefixes: 2 };
            let mut ended = EndedPrefixes::new(backend, space, rows, &how).unwrap();
            backend.end_prefixes(&pool, &chosen, &mut ended, Draw::new(3, Purpose::Prefix)).unwrap();
            let mut counts = [0; 6];
            for pair in read(backend, &ended.positions).chunks(2) {
                let (low, high) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
                counts[[0, 0, 1, 3][high as usize] + low as usize] += 1;
            }
            counts
        }
        let counts = counts(gpu);
        let error = (3000.0f64 / 6.0 * 5.0 / 6.0).sqrt();
        assert!(counts.iter().all(|&count| f64::from(count - 500).abs() < 4.0 * error), "{counts:?}");
    }

    pub fn a_prefix_without_a_potential_is_named_and_its_sequence_left_out<L: Launcher>(gpu: &Gpu<L>) {
        fn balanced<B: Backend>(backend: &B, bad: f64) -> (ebm_dpg::Result<()>, Vec<f32>) {
            let space = space(6);
            let mut pool = Pool::new(backend, space, 1, 1, 0.0, None).unwrap();
            let books = Ledger { chosen: 3, picks: 3, ..Ledger::default() };
            backend.upload(&[books], &mut pool.ledger).unwrap();
            let mut ended = EndedPrefixes::new(backend, space, 4, &SMALL.how).unwrap();
            backend.upload(&[3, 5, 2, 0], &mut ended.candidates).unwrap();
            backend.upload(&[2, 1, 0, 4, 0, 2, 1, 0, 0, 0, 0, 0], &mut ended.positions).unwrap();
            backend.upload(&[7.0f32; 12], &mut ended.weights).unwrap();
            let mut log_p = vec![-1.0, -2.5, -3.0, -4.0, -5.7, -6.0, -7.0, -8.5, bad, bad, bad, bad];
            let mut balance = |log_p: &[f64]| {
                let (log_p, log_pi) = (column(backend, log_p), column(backend, &[-2.0; 12]));
                let (log_p, log_pi) = (B::view(&log_p, 12), B::view(&log_pi, 12));
                let done = backend.balance_prefixes(&mut pool, &mut ended, log_p, log_pi);
                let mut weights = vec![0.0; 12];
                done.and(backend.download(&ended.weights, &mut weights)).map(|()| weights)
            };
            // Rows that are not in use do not matter.
            let good = balance(&log_p).unwrap();
            assert!(good[8..] == [0.0; 4] && good[..8].iter().all(|weight| weight.is_finite() && *weight != 0.0));
            (log_p[4], log_p[5]) = (bad, bad);
            let error = balance(&log_p).map(|_| ());
            (error, read(backend, &ended.weights))
        }
        for bad in [f64::NEG_INFINITY, f64::NAN, f64::INFINITY] {
            let (error, weights) = balanced(gpu, bad);
            assert!(error.unwrap_err().to_string().contains("ended prefix in row 4: expected P and π above 0"));
            assert!(weights[3..6] == [0.0; 3] && weights[0] != 0.0 && weights[6] != 0.0, "{weights:?}");
            let (error, _) = balanced(&Cpu, bad);
            assert!(error.unwrap_err().to_string().contains("ended prefix in row 4: expected P and π above 0"));
        }
    }
}
