//! The LSTM's kernels against the CPU backend and the f64 oracle.

#[path = "../../oracle/mod.rs"]
mod oracle;

use std::collections::BTreeMap;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::gpu::{Gpu, Kernel, Launcher, Limits};
use ebm_dpg::backend::{Cpu, Memory};
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet};
use ebm_dpg::gradient::Divergence;
use ebm_dpg::models::{Coefficients, GpuLstm, Lstm, LstmShape, Markov, Policy, Precision, Sampler, Scorer, Weighting};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Contexts, Space, Token};
use ebm_dpg_emulator::{Emulator, Schedule};
use oracle::{OracleLstm, assert_block_close, assert_close};

mod support;
use support::{noise, on_every_backend, upload as upload_values};

on_every_backend!(
    older too:
    log_probs_agree_with_the_oracle,
    a_sequence_of_128_tokens_is_within_1e_4,
    gradients_agree_with_the_oracle_per_block,
    the_baseline_needs_the_whole_log_prob,
    divergences_and_balances_are_those_of_the_cpu,
    samples_are_those_of_the_cpu,
    guided_samples_are_those_of_the_cpu,
    plain_samples_have_the_log_q_they_were_drawn_with,
    training_follows_the_cpu,
    dropout_drops_what_the_cpu_drops,
    few_rows_of_many_have_a_gradient,
    contexts_are_those_of_the_cpu,
    bad_rows_are_named,
);

/// Sizes by hazard: less than one tile of units; exactly one; several groups and layers.
const SHAPES: [(usize, usize); 3] = [(1, 5), (2, 16), (3, 20)];

fn lstm(space: Space, layers: usize, hidden: usize) -> Lstm {
    Lstm::new(space, LstmShape { layers, hidden, dropout: 0.0 }, 7).unwrap()
}

fn oracle_of(lstm: &Lstm) -> OracleLstm {
    let tensors = lstm.tensors().into_iter();
    let tensors: BTreeMap<String, Vec<f64>> =
        tensors.map(|(name, _, values)| (name, values.into_iter().map(f64::from).collect())).collect();
    OracleLstm::new(lstm.space(), lstm.shape().hidden, lstm.shape().layers, tensors)
}

/// Ragged sequences of every length, cut ones included.
fn sequences(space: Space, count: usize) -> Vec<Vec<Token>> {
    let (longest, symbols) = (space.longest as usize, space.vocab - 3);
    let sequence = |row: usize| {
        let length = 1 + row * 7 % longest;
        let mut sequence: Vec<Token> = (0..length).map(|t| ((row * 31 + t * t + t / 2) as u32) % symbols).collect();
        if length < longest || row.is_multiple_of(2) {
            sequence[length - 1] = space.eos;
        }
        sequence
    };
    (0..count).map(sequence).collect()
}

fn upload<L: Launcher>(gpu: &Gpu<L>, space: Space, sequences: &[Vec<Token>]) -> Batch<Gpu<L>> {
    Batch::from_sequences(space, sequences).unwrap().upload(gpu).unwrap()
}

fn score<L: Launcher>(gpu: &Gpu<L>, lstm: &mut GpuLstm<L>, batch: &Batch<Gpu<L>>) -> Vec<f64> {
    let mut out = gpu.zeros(batch.rows, "log-probs").unwrap();
    lstm.score(batch, Gpu::<L>::view_mut(&mut out, batch.rows)).unwrap();
    read(gpu, &out)
}

fn read<L: Launcher>(gpu: &Gpu<L>, buffer: &<Gpu<L> as Memory>::Buffer<f64>) -> Vec<f64> {
    let mut host = vec![0.0; Gpu::<L>::len(buffer)];
    gpu.download(buffer, &mut host).unwrap();
    host
}

fn gradient<L: Launcher>(
    gpu: &Gpu<L>,
    lstm: &mut GpuLstm<L>,
    batch: &Batch<Gpu<L>>,
    weights: &[f32],
    baseline: Option<(&[f64], f32)>,
) -> Vec<f64> {
    let rows = batch.rows;
    let (weights, log_q) =
        (upload_values(gpu, weights), upload_values(gpu, baseline.map_or(&[0.0][..], |(log_q, _)| log_q)));
    let mut out = gpu.zeros(rows, "log-probs").unwrap();
    let coefficients = Coefficients {
        weighting: if baseline.is_some() { Weighting::Baseline } else { Weighting::Given },
        log_q: baseline.map(|_| Gpu::<L>::view(&log_q, rows)),
        scale: baseline.map_or(0.0, |(_, scale)| scale),
        ..Coefficients::given(Gpu::<L>::view(&weights, rows))
    };
    lstm.gradient(batch, &coefficients, Gpu::<L>::view_mut(&mut out, rows)).unwrap();
    read(gpu, &out)
}

struct Drawn {
    batch: Batch,
    log_q: Vec<f64>,
    log_model: Vec<f64>,
}

fn sample<L: Launcher>(gpu: &Gpu<L>, lstm: &mut GpuLstm<L>, guide: Option<&Guide>, rows: usize) -> Drawn {
    let mut batch = Batch::with_capacity(gpu, lstm.space(), rows).unwrap();
    let (mut log_q, mut log_model) = (gpu.zeros(rows, "log q").unwrap(), gpu.zeros(rows, "log π").unwrap());
    let guide = guide.map(|guide| guide.upload(gpu).unwrap());
    let (q, model) = (Gpu::<L>::view_mut(&mut log_q, rows), Gpu::<L>::view_mut(&mut log_model, rows));
    lstm.sample(Draw::new(3, Purpose::User).skip(5), guide.as_ref(), &mut batch, q, model).unwrap();
    Drawn { batch: batch.download(gpu).unwrap(), log_q: read(gpu, &log_q), log_model: read(gpu, &log_model) }
}

fn sample_on_cpu(lstm: &mut Lstm, guide: Option<&Guide>, rows: usize) -> Drawn {
    let mut batch = Batch::with_capacity(&Cpu, lstm.space(), rows).unwrap();
    let (mut log_q, mut log_model) = (vec![0.0; rows], vec![0.0; rows]);
    lstm.sample(Draw::new(3, Purpose::User).skip(5), guide, &mut batch, &mut log_q, &mut log_model).unwrap();
    Drawn { batch, log_q, log_model }
}

/// A guide that demands two neighbouring symbols 1.
fn guide(space: Space) -> Guide {
    let set = FeatureSet::new(space).with("11", Feature::Contains(vec![1, 1])).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap();
    LookAhead::towards(&Markov::noise(space, 4).unwrap(), &set, &potential, 100).unwrap().guide()
}

/// One tile of rows a block, two for two blocks, two and four a block: as many rows as make each of them the choice.
#[test]
fn a_sequence_has_the_same_bits_in_every_batch() {
    use ebm_dpg::backend::gpu::Kernel::*;
    let space = Space::new(3, 3).unwrap();
    // Fourteen groups of units: one for each of eight warps, and six left over; three and a half times four warps.
    let (lstm, all) = (lstm(space, 2, 100), sequences(space, 70));
    let kernels = |schedule: Schedule, capability: u32, expected: &[(usize, Kernel)]| {
        let score = |rows: usize| {
            let emulator = Emulator::new(schedule).unwrap().limited(Limits::new(227 << 10, 4, capability));
            let gpu = Gpu::new(emulator.clone()).unwrap();
            let mut lstm = lstm.to_gpu(&gpu).unwrap();
            let batch = upload(&gpu, space, &all[..rows]);
            emulator.take_launches();
            let log_probs = score(&gpu, &mut lstm, &batch);
            (support::bits64(&log_probs[..5]), emulator.take_launches()[0])
        };
        let alone = score(expected[0].0).0;
        for &(rows, kernel) in expected {
            assert_eq!(score(rows), (alone.clone(), kernel), "{rows} rows, {schedule:?}");
        }
    };
    for schedule in Schedule::all() {
        kernels(schedule, 80, &[(16, LstmForwardSplit1), (40, LstmForwardSplit2), (70, LstmForwardSplit4)]);
        let pair = (20, LstmWarpgroupPairSplit);
        kernels(schedule, 90, &[(16, LstmWarpgroupSplit1), pair, (40, LstmWarpgroupSplit2), (70, LstmWarpgroupSplit4)]);
    }
}

/// 128 slots in blocks of 16, 32 and, by warpgroups, 64, as the device has more or fewer multiprocessors.
#[test]
fn a_gradient_has_the_same_bits_on_every_device() {
    use ebm_dpg::backend::gpu::Kernel::*;
    let space = Space::new(3, 3).unwrap();
    // Seven tiles of 16 units and as many of the layer below: three and a half times four warps.
    let (lstm, all) = (lstm(space, 2, 100), sequences(space, 70));
    let weights: Vec<f32> = (0..70).map(|row| (row % 5) as f32 - 1.0).collect();
    let gradients = |schedule: Schedule, capability: u32, multiprocessors: usize| {
        let limits = Limits::new(227 << 10, multiprocessors, capability);
        let emulator = Emulator::new(schedule).unwrap().limited(limits);
        let gpu = Gpu::new(emulator.clone()).unwrap();
        let mut lstm = lstm.to_gpu(&gpu).unwrap();
        emulator.take_launches();
        gradient(&gpu, &mut lstm, &upload(&gpu, space, &all), &weights, None);
        let launches = emulator.take_launches();
        (lstm.gradients().unwrap(), launches)
    };
    let bits = |gradients: &[(String, Vec<f32>)]| {
        gradients.iter().map(|(_, values)| support::bits(values)).collect::<Vec<_>>()
    };
    let weighted: Vec<_> = all.iter().cloned().zip(weights.iter().map(|&weight| f64::from(weight))).collect();
    let want = oracle_of(&lstm).gradient(&weighted);
    let older = [(8, LstmBackward1), (4, LstmBackward2)];
    let by_warpgroups = [(8, LstmWarpgroupBackward1), (4, LstmWarpgroupBackward2), (2, LstmWarpgroupBackward4)];
    for schedule in Schedule::all().into_iter().rev().take(2) {
        for (capability, devices) in [(80, &older[..]), (90, &by_warpgroups[..])] {
            let (first, _) = gradients(schedule, capability, devices[0].0);
            for (name, values) in &first {
                assert_block_close(name, values, &want[name], 2e-4);
            }
            for &(multiprocessors, kernel) in devices {
                let (got, launches) = gradients(schedule, capability, multiprocessors);
                assert!(launches.contains(&kernel), "{multiprocessors} multiprocessors: {launches:?}");
                assert!(bits(&got) == bits(&first), "{multiprocessors} multiprocessors, {schedule:?}");
            }
        }
    }
}

/// The parameter sums' blocks of 64 and of 208 units; others have those of 128, or of a few rows.
#[test]
fn sums_of_outer_products_in_blocks_of_every_size() {
    use ebm_dpg::backend::gpu::Kernel::*;
    let space = Space::new(3, 2).unwrap();
    for (hidden, kernel) in [(40, LstmWarpgroupWeights64), (200, LstmWarpgroupWeights208)] {
        // 17 rows: an odd number of slabs.
        let (lstm, all) = (lstm(space, 1, hidden), sequences(space, 17));
        let emulator = Emulator::new(Schedule::Random(1)).unwrap();
        let gpu = Gpu::new(emulator.clone()).unwrap();
        let mut on_gpu = lstm.to_gpu(&gpu).unwrap();
        gradient(&gpu, &mut on_gpu, &upload(&gpu, space, &all), &[0.5; 17], None);
        assert!(emulator.take_launches().contains(&kernel), "{hidden} units");
        let want = oracle_of(&lstm).gradient(&all.into_iter().map(|sequence| (sequence, 0.5)).collect::<Vec<_>>());
        for (name, values) in on_gpu.gradients().unwrap() {
            assert_block_close(&format!("{hidden} units, {name}"), &values, &want[&name], 2e-4);
        }
    }
}

/// Shared memory that holds the states of one tile, but not its cells.
#[test]
fn cells_beyond_shared_memory() {
    let small = Emulator::new(Schedule::Random(3)).unwrap().limited(Limits::new(13_000, 1, 80));
    let gpu = Gpu::new(small).unwrap();
    cases::log_probs_agree_with_the_oracle(&gpu);
    cases::gradients_agree_with_the_oracle_per_block(&gpu);
}

#[test]
fn a_network_beyond_shared_memory_is_an_error() {
    let gpu = Gpu::new(Emulator::new(Schedule::Forward).unwrap().limited(Limits::new(1 << 10, 1, 80))).unwrap();
    let space = Space::new(2, 4).unwrap();
    let mut lstm = lstm(space, 1, 8).to_gpu(&gpu).unwrap();
    let batch = upload(&gpu, space, &sequences(space, 2));
    let mut out = gpu.zeros(2, "log-probs").unwrap();
    let error = lstm.score(&batch, Gpu::<Emulator>::view_mut(&mut out, 2)).unwrap_err();
    assert!(error.to_string().contains("1024 bytes of shared memory"), "{error}");
}

mod cases {
    use super::*;

    pub fn log_probs_agree_with_the_oracle<L: Launcher>(gpu: &Gpu<L>) {
        for (layers, hidden) in SHAPES {
            let space = Space::new(3, 5).unwrap();
            let lstm = lstm(space, layers, hidden);
            let sequences = sequences(space, 21);
            let got = score(gpu, &mut lstm.to_gpu(gpu).unwrap(), &upload(gpu, space, &sequences));
            let oracle = oracle_of(&lstm);
            let want: Vec<f64> = sequences.iter().map(|x| oracle.log_prob(x)).collect();
            assert_close(&format!("{layers}x{hidden}"), &got, &want, 5e-6);
            assert!(got.iter().all(|&l| l <= 0.0));
        }
    }

    /// The contract of the default precision.
    pub fn a_sequence_of_128_tokens_is_within_1e_4<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(20, 128).unwrap();
        let lstm = lstm(space, 2, 16);
        let sequences: Vec<Vec<Token>> = (0..4).map(|row| (0..128).map(|t| (row * 5 + t * t) % 20).collect()).collect();
        let got = score(gpu, &mut lstm.to_gpu(gpu).unwrap(), &upload(gpu, space, &sequences));
        let oracle = oracle_of(&lstm);
        assert_close("128 tokens", &got, &sequences.iter().map(|x| oracle.log_prob(x)).collect::<Vec<_>>(), 1e-4);
    }

    pub fn gradients_agree_with_the_oracle_per_block<L: Launcher>(gpu: &Gpu<L>) {
        for (layers, hidden) in SHAPES {
            let space = Space::new(3, 5).unwrap();
            let lstm = lstm(space, layers, hidden);
            let sequences = sequences(space, 37);
            let batch = upload(gpu, space, &sequences);
            let weights: Vec<f32> = (0..batch.rows).map(|row| ((row % 5) as f32 - 1.0) / 8.0).collect();
            let mut on_gpu = lstm.to_gpu(gpu).unwrap();
            let log_probs = gradient(gpu, &mut on_gpu, &batch, &weights, None);
            let weighted: Vec<_> = sequences.iter().cloned().zip(weights.iter().map(|&w| f64::from(w))).collect();
            let want = oracle_of(&lstm).gradient(&weighted);
            for (name, values) in on_gpu.gradients().unwrap() {
                assert_block_close(&format!("{layers}x{hidden} {name}"), &values, &want[&name], 2e-4);
            }
            let scores = score(gpu, &mut on_gpu, &batch);
            for row in 0..batch.rows {
                match weights[row] {
                    0.0 => assert!(log_probs[row].is_nan(), "a skipped row has no log-prob"),
                    _ => assert_eq!(log_probs[row].to_bits(), scores[row].to_bits(), "row {row}"),
                }
            }
        }
    }

    pub fn the_baseline_needs_the_whole_log_prob<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(2, 4).unwrap();
        let lstm = lstm(space, 2, 8);
        let sequences = sequences(space, 20);
        let weights: Vec<f32> = (0..20).map(|row| (row % 3) as f32).collect();
        let log_q: Vec<f64> = (0..20).map(|row| -3.0 - row as f64 / 20.0).collect();
        let mut on_gpu = lstm.to_gpu(gpu).unwrap();
        gradient(gpu, &mut on_gpu, &upload(gpu, space, &sequences), &weights, Some((&log_q, 0.5)));
        let oracle = oracle_of(&lstm);
        let coefficient =
            |row: usize| f64::from(weights[row]) - 0.5 * (oracle.log_prob(&sequences[row]) - log_q[row]).exp();
        let weighted: Vec<_> = sequences.iter().cloned().enumerate().map(|(row, x)| (x, coefficient(row))).collect();
        let want = oracle.gradient(&weighted);
        for (name, values) in on_gpu.gradients().unwrap() {
            assert_block_close(&name, &values, &want[&name], 2e-4);
        }
    }

    pub fn samples_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        for (symbols, rows) in [(2, 40), (37, 17)] {
            let space = Space::new(symbols, 6).unwrap();
            let mut lstm = lstm(space, 2, 16);
            let want = sample_on_cpu(&mut lstm, None, rows);
            let got = sample(gpu, &mut lstm.to_gpu(gpu).unwrap(), None, rows);
            assert_eq!(got.batch.tokens, want.batch.tokens);
            assert_eq!(got.batch.lengths, want.batch.lengths);
            assert_close("log q", &got.log_q, &want.log_q, 5e-6);
            assert_eq!(got.log_q, got.log_model);
        }
    }

    pub fn guided_samples_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(3, 6).unwrap();
        let mut lstm = lstm(space, 1, 16);
        let guide = guide(space);
        let want = sample_on_cpu(&mut lstm, Some(&guide), 24);
        let mut on_gpu = lstm.to_gpu(gpu).unwrap();
        let got = sample(gpu, &mut on_gpu, Some(&guide), 24);
        assert_eq!(got.batch.tokens, want.batch.tokens);
        assert!(got.batch.iter().all(|x| x.windows(2).any(|pair| pair == [1, 1])));
        assert_close("log q", &got.log_q, &want.log_q, 5e-6);
        assert_close("log model", &got.log_model, &want.log_model, 5e-6);
        // Scored again under the guide: what the sampler said; a forbidden sequence has −∞.
        let mut batch = got.batch;
        batch.tokens[..2].copy_from_slice(&[0, space.eos]);
        batch.lengths[0] = 2;
        let on_device = batch.upload(gpu).unwrap();
        let mut out = gpu.zeros(24, "log q").unwrap();
        let guide = guide.upload(gpu).unwrap();
        on_gpu.score_guided(&guide, &on_device, Gpu::<L>::view_mut(&mut out, 24)).unwrap();
        let scores = read(gpu, &out);
        assert_eq!(scores[0], f64::NEG_INFINITY);
        assert_close("scored again", &scores[1..], &got.log_q[1..], 1e-9);
    }

    pub fn plain_samples_have_the_log_q_they_were_drawn_with<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(2, 6).unwrap();
        let lstm = lstm(space, 2, 16);
        let mut plain = lstm.to_gpu(gpu).unwrap().sampling(Precision::Half);
        let drawn = sample(gpu, &mut plain, None, 33);
        // Another precision, so another distribution, but a close one.
        let exact = score(gpu, &mut plain, &drawn.batch.upload(gpu).unwrap());
        assert_close("log q", &drawn.log_q, &exact, 5e-3);
        assert!(drawn.log_q != exact);
    }

    pub fn training_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(2, 4).unwrap();
        let mut on_cpu = lstm(space, 1, 8);
        let mut on_gpu = on_cpu.to_gpu(gpu).unwrap();
        let sequences = sequences(space, 18);
        let (host, device) = (Batch::from_sequences(space, &sequences).unwrap(), upload(gpu, space, &sequences));
        let (weights, adam) = (vec![1.0f32; 18], AdamOptions { learning_rate: 0.01, clip: 5.0, ..Default::default() });
        for _ in 0..3 {
            on_cpu.gradient(&host, &Coefficients::given(&weights[..]), &mut [0.0; 18]).unwrap();
            on_cpu.update(&adam).unwrap();
            gradient(gpu, &mut on_gpu, &device, &weights, None);
            on_gpu.update(&adam).unwrap();
        }
        for ((name, _, got), (_, _, want)) in on_gpu.to_cpu().unwrap().tensors().iter().zip(on_cpu.tensors()) {
            // Adam divides by the gradient's own size, so that a tiny one moves a parameter by its rounding error.
            for (a, b) in got.iter().zip(&want) {
                assert!((a - b).abs() <= 2e-3, "{name}: {a} and {b}");
            }
        }
        let mut copy = on_gpu.try_clone().unwrap();
        assert_eq!(score(gpu, &mut copy, &device), score(gpu, &mut on_gpu, &device));
    }

    pub fn dropout_drops_what_the_cpu_drops<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(2, 4).unwrap();
        let mut on_cpu = Lstm::new(space, LstmShape { layers: 3, hidden: 20, dropout: 0.4 }, 7).unwrap();
        let mut on_gpu = on_cpu.to_gpu(gpu).unwrap();
        let sequences = sequences(space, 19);
        let (host, device) = (Batch::from_sequences(space, &sequences).unwrap(), upload(gpu, space, &sequences));
        let (weights, dropout) = (vec![0.5f32; 19], Some(Draw::new(9, Purpose::Dropout).skip(40)));
        let given = Coefficients::<Cpu> { dropout, ..Coefficients::given(&weights[..]) };
        let mut want = vec![0.0; 19];
        on_cpu.gradient(&host, &given, &mut want).unwrap();
        let weights = upload_values(gpu, &weights);
        let mut out = gpu.zeros(19, "log-probs").unwrap();
        let given = Coefficients { dropout, ..Coefficients::given(Gpu::<L>::view(&weights, 19)) };
        on_gpu.gradient(&device, &given, Gpu::<L>::view_mut(&mut out, 19)).unwrap();
        assert_close("log-probs", &read(gpu, &out), &want, 5e-6);
        for ((name, got), (_, _, want)) in on_gpu.gradients().unwrap().iter().zip(on_cpu.gradients()) {
            let want: Vec<f64> = want.into_iter().map(f64::from).collect();
            assert_block_close(name, got, &want, 2e-4);
        }
    }

    /// More rows than the block that picks them out, most of weight 0.
    pub fn few_rows_of_many_have_a_gradient<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(2, 2).unwrap();
        let lstm = lstm(space, 1, 5);
        let sequences = sequences(space, 2100);
        let weights: Vec<f32> = (0..2100).map(|row| if row % 97 == 60 { 0.5 } else { 0.0 }).collect();
        let mut on_gpu = lstm.to_gpu(gpu).unwrap();
        let log_probs = gradient(gpu, &mut on_gpu, &upload(gpu, space, &sequences), &weights, None);
        let weighted = || sequences.iter().zip(&weights).filter(|(_, weight)| **weight != 0.0);
        let weighted: Vec<_> = weighted().map(|(x, &weight)| (x.clone(), f64::from(weight))).collect();
        let oracle = oracle_of(&lstm);
        let want = oracle.gradient(&weighted);
        for (name, values) in on_gpu.gradients().unwrap() {
            assert_block_close(&name, &values, &want[&name], 2e-4);
        }
        for (row, log_prob) in log_probs.iter().enumerate() {
            let want = if weights[row] == 0.0 { f64::NAN } else { oracle.log_prob(&sequences[row]) };
            assert_close(&format!("row {row}"), &[*log_prob], &[want], 5e-6);
        }
    }

    /// Contexts of no token, of some, and of all but one: drawn behind, scored, and back-propagated through.
    pub fn contexts_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let (space, rows) = (Space::new(3, 6).unwrap(), 37);
        let contexts = Contexts::new(space, &[vec![], vec![2, 0], vec![1, 0, 2, 1, 1]], 3).unwrap();
        let (mut lstm, guide, draw) = (lstm(space, 2, 16), guide(space), Draw::new(3, Purpose::User).skip(4));
        let mut on_gpu = lstm.to_gpu(gpu).unwrap();
        for guide in [None, Some(&guide)] {
            let mut want = Batch::with_capacity(&Cpu, space, rows).unwrap();
            let mut got = Batch::with_capacity(gpu, space, rows).unwrap();
            want.begin(&Cpu, &contexts, draw).unwrap();
            got.begin(gpu, &contexts.upload(gpu).unwrap(), draw).unwrap();
            let (mut want_q, mut want_model) = (vec![0.0; rows], vec![0.0; rows]);
            let (mut got_q, mut got_model) = (gpu.zeros(rows, "log q").unwrap(), gpu.zeros(rows, "log π").unwrap());
            lstm.sample(draw, guide, &mut want, &mut want_q, &mut want_model).unwrap();
            let there = guide.map(|guide| guide.upload(gpu).unwrap());
            let (q, model) = (Gpu::<L>::view_mut(&mut got_q, rows), Gpu::<L>::view_mut(&mut got_model, rows));
            on_gpu.sample(draw, there.as_ref(), &mut got, q, model).unwrap();
            let host = got.download(gpu).unwrap();
            assert_eq!((&host.tokens, &host.lengths), (&want.tokens, &want.lengths));
            assert_eq!((&host.given, &host.context), (&want.given, &want.context));
            assert_close("log q", &read(gpu, &got_q), &want_q, 5e-6);
            assert_close("log model", &read(gpu, &got_model), &want_model, 5e-6);
            assert_close("scored again", &score(gpu, &mut on_gpu, &got), &read(gpu, &got_model), 1e-9);
            let (weights, mut log_probs) = (noise(8, rows), vec![0.0; rows]);
            lstm.gradient(&want, &Coefficients::given(&weights[..]), &mut log_probs).unwrap();
            assert_close("log π of the gradient", &gradient(gpu, &mut on_gpu, &got, &weights, None), &log_probs, 5e-6);
            for ((name, got), (_, _, want)) in on_gpu.gradients().unwrap().iter().zip(lstm.gradients()) {
                let want: Vec<f64> = want.into_iter().map(f64::from).collect();
                assert_block_close(name, got, &want, 2e-4);
            }
        }
        // A context that is the whole sequence.
        let mut bad = Batch::from_sequences(space, &sequences(space, 4)).unwrap();
        bad.given[2] = bad.lengths[2];
        let bad = bad.upload(gpu).unwrap();
        let mut out = gpu.zeros(4, "log-probs").unwrap();
        on_gpu.score(&bad, Gpu::<L>::view_mut(&mut out, 4)).unwrap();
        let error = gpu.download(&out, &mut [0.0; 4]).unwrap_err();
        assert!(error.to_string().contains("row 2"), "{error}");
    }

    pub fn bad_rows_are_named<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(2, 4).unwrap();
        let mut lstm = lstm(space, 1, 8).to_gpu(gpu).unwrap();
        for (token, length) in [(99, 3), (0, 0), (0, 5)] {
            let mut batch = Batch::from_sequences(space, &sequences(space, 20)).unwrap();
            batch.tokens[4 * 18] = token;
            batch.lengths[18] = length;
            let batch = batch.upload(gpu).unwrap();
            let mut out = gpu.zeros(20, "log-probs").unwrap();
            lstm.score(&batch, Gpu::<L>::view_mut(&mut out, 20)).unwrap();
            let mut host = vec![0.0; 20];
            let error = gpu.download(&out, &mut host).unwrap_err();
            assert!(error.to_string().contains("row 18"), "{error}");
            assert!(host[18].is_nan() && host[17].is_finite() && host[19].is_finite());
        }
        assert!(gpu.check().is_ok(), "the fault was reported once");
    }

    pub fn divergences_and_balances_are_those_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(2, 5).unwrap();
        let mut on_cpu = Lstm::new(space, LstmShape { layers: 1, hidden: 12, dropout: 0.0 }, 7).unwrap();
        let mut on_gpu = on_cpu.to_gpu(gpu).unwrap();
        let sequences = sequences(space, 19);
        let (host, device) = (Batch::from_sequences(space, &sequences).unwrap(), upload(gpu, space, &sequences));
        let weights = vec![0.0f32; 19];
        let mut log_q: Vec<f64> = (0..19).map(|row| -2.0 - 0.1 * f64::from(row)).collect();
        let mut log_p: Vec<f64> = (0..19).map(|row| -1.0 - 0.2 * f64::from(row)).collect();
        // A row that is taken out, and one outside of p's support.
        (log_q[3], log_p[3]) = (f64::INFINITY, f64::INFINITY);
        let mut kinds: Vec<_> = [Divergence::ForwardKl, Divergence::TotalVariation, Divergence::JensenShannon]
            .into_iter()
            .chain([Divergence::ForwardChiSquare, Divergence::Alpha(0.5)])
            .map(|divergence| (Weighting::Divergence(divergence), f64::NEG_INFINITY))
            .collect();
        let unbounded = [Divergence::ReverseKl, Divergence::ReverseChiSquare, Divergence::Alpha(2.0)];
        kinds.extend(unbounded.map(|divergence| (Weighting::Divergence(divergence), -1.0)));
        kinds.push((Weighting::Balance, -1.0));
        for (weighting, outside) in kinds {
            log_p[5] = outside;
            for shift in [None, Some(vec![0.5f64])] {
                let given = Coefficients {
                    weighting,
                    log_q: Some(&log_q[..]),
                    log_p: Some(&log_p[..]),
                    shift: shift.as_deref(),
                    scale: 0.1,
                    ..Coefficients::<Cpu>::given(&weights[..])
                };
                let mut want = vec![0.0; 19];
                on_cpu.gradient(&host, &given, &mut want).unwrap();
                let (w, q, p) = (upload_values(gpu, &weights), upload_values(gpu, &log_q), upload_values(gpu, &log_p));
                let shift = shift.map(|shift| upload_values(gpu, &shift));
                let given = Coefficients {
                    weighting,
                    log_q: Some(Gpu::<L>::view(&q, 19)),
                    log_p: Some(Gpu::<L>::view(&p, 19)),
                    shift: shift.as_ref().map(|shift| Gpu::<L>::view(shift, 1)),
                    scale: 0.1,
                    ..Coefficients::given(Gpu::<L>::view(&w, 19))
                };
                let mut out = gpu.zeros(19, "log-probs").unwrap();
                on_gpu.gradient(&device, &given, Gpu::<L>::view_mut(&mut out, 19)).unwrap();
                assert_close("log-probs", &read(gpu, &out), &want, 5e-6);
                for ((name, got), (_, _, want)) in on_gpu.gradients().unwrap().iter().zip(on_cpu.gradients()) {
                    let want: Vec<f64> = want.into_iter().map(f64::from).collect();
                    assert_block_close(&format!("{weighting:?} {name}"), got, &want, 2e-4);
                }
            }
        }
    }
}
