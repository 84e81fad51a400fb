//! φ of what the LSTM's kernel has just drawn: bit for bit the features of its batch, and the draws those without.

use std::collections::BTreeSet;

use ebm_dpg::backend::gpu::{Gpu, Kernel, Launcher, Limits};
use ebm_dpg::backend::{Cpu, Memory};
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Custom, Feature, FeatureOutput, FeatureSet, Spelling};
use ebm_dpg::models::{GpuLstm, Lstm, LstmShape, Markov, Precision, Sampler, Scorer};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Contexts, Space, Token};
use ebm_dpg::tune::{Draws, Source, Target};
use ebm_dpg_emulator::{Emulator, Schedule};

mod support;
use support::{bits, bits64, download, on_every_backend};

on_every_backend!(
    every_kind_comes_with_the_samples,
    guided_samples_have_their_features,
    continued_contexts_have_their_features,
    words_alone_look_up_their_classes_on_the_way,
    blocks_of_every_size_and_the_last_of_few_rows,
    tables_that_fit_whole_but_for_the_class_map_or_not_at_all,
    more_features_than_leave_through_a_tile,
    plain_samples_have_their_features,
    closures_have_a_pass_of_their_own,
    nothing_to_write_writes_nothing,
    wrong_places_for_the_features_leave_all_as_it_was,
);

fn lstm<L: Launcher>(gpu: &Gpu<L>, space: Space) -> GpuLstm<L> {
    Lstm::new(space, LstmShape { layers: 2, hidden: 16, dropout: 0.0 }, 7).unwrap().to_gpu(gpu).unwrap()
}

fn set(space: Space, features: impl IntoIterator<Item = Feature>) -> FeatureSet {
    // A letter for each token.
    let texts = (0..space.vocab).map(|token| char::from(b'a' + (token % 26) as u8).to_string());
    let set = FeatureSet::new(space).spelled(Spelling::new(texts)).unwrap();
    features.into_iter().enumerate().fold(set, |set, (n, feature)| set.with(n.to_string(), feature).unwrap())
}

fn pattern(seed: u32, len: u32, symbols: u32) -> Vec<Token> {
    (0..len).map(|at| (seed * 7 + at * at + at / 3) % symbols).collect()
}

/// Every kind of entry but closures.
fn every_kind(space: Space) -> FeatureSet {
    let (symbols, most) = (space.vocab - 3, space.longest);
    let pattern = |seed, len: u32| pattern(seed, len.min(most), symbols);
    let mut features = vec![
        Feature::Length,
        Feature::LengthSquared,
        Feature::EditDistance(pattern(1, 5)),
        Feature::EditDistance(pattern(2, 36)),
        Feature::LongestCommonSubstring(pattern(3, 9)),
        Feature::MultipleOf { modulus: 97, zero: 0, one: 1 },
        Feature::Contains(pattern(4, 1)).count(most),
        Feature::AnyOf((5..14).map(|seed| pattern(seed, 4)).collect()).count(most),
        Feature::Regex("[a-d].{9}[a-f]".into()),
        Feature::DistinctFraction,
        !(Feature::DistinctFraction.at_least(0.5) & Feature::EditDistance(pattern(9, 3))),
        Feature::EndsWith(pattern(10, 1)),
        Feature::StartsWith(pattern(11, 2)),
        Feature::Equals(pattern(12, 1)),
    ];
    features.extend((0..20).map(|seed| Feature::Contains(pattern(20 + seed, 1 + seed % 3))));
    let wildcards = |seed| pattern(seed, 3).into_iter().enumerate().map(|(at, token)| (at != 1).then_some(token));
    features.extend((0..12).map(|seed| Feature::Motif(wildcards(seed).collect())));
    set(space, features)
}

/// A guide that demands two neighbouring symbols 1.
fn guide(space: Space) -> Guide {
    let set = FeatureSet::new(space).with("11", Feature::Contains(vec![1, 1])).unwrap();
    let potential = Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap();
    let uniform = Markov::fit(&Batch::with_capacity(&Cpu, space, 0).unwrap(), 0, false, 1.0).unwrap();
    LookAhead::towards(&uniform, &set, &potential, 100).unwrap().guide()
}

/// All that a draw of `rows` rows leaves behind; without a table no φ.
#[derive(Debug, PartialEq)]
struct Drawn {
    tokens: Vec<Token>,
    lengths: Vec<u32>,
    log_q: Vec<u64>,
    log_model: Vec<u64>,
    phi: Vec<u32>,
}

/// What the sampler says, and the batch; φ begins as sevens.
fn draw<L: Launcher>(
    gpu: &Gpu<L>,
    lstm: &mut GpuLstm<L>,
    guide: Option<&Guide>,
    set: Option<&FeatureSet>,
    rows: usize,
) -> (Drawn, Batch<Gpu<L>>) {
    draw_into(gpu, lstm, guide, set, Batch::with_capacity(gpu, lstm.space(), rows).unwrap())
}

/// The same into a batch whose rows may begin with contexts.
fn draw_into<L: Launcher>(
    gpu: &Gpu<L>,
    lstm: &mut GpuLstm<L>,
    guide: Option<&Guide>,
    set: Option<&FeatureSet>,
    mut batch: Batch<Gpu<L>>,
) -> (Drawn, Batch<Gpu<L>>) {
    let rows = batch.capacity();
    let (mut log_q, mut log_model) = (gpu.zeros(rows, "log q").unwrap(), gpu.zeros(rows, "log π").unwrap());
    let guide = guide.map(|guide| guide.upload(gpu).unwrap());
    let (q, model) = (Gpu::<L>::view_mut(&mut log_q, rows), Gpu::<L>::view_mut(&mut log_model, rows));
    let draw = Draw::new(3, Purpose::User).skip(5);
    let values = set.map_or(0, |set| rows * set.len());
    let mut phi = support::upload(gpu, &vec![7.0_f32; values]);
    match set {
        None => lstm.sample(draw, guide.as_ref(), &mut batch, q, model).unwrap(),
        Some(set) => {
            let table = set.compile(gpu).unwrap();
            let phi = Gpu::<L>::view_mut(&mut phi, values);
            let output = FeatureOutput { backend: gpu, table: &table, phi };
            lstm.sample_features(draw, guide.as_ref(), &mut batch, q, model, output).unwrap();
        }
    }
    gpu.check().unwrap();
    let drawn = Drawn {
        tokens: download(gpu, &batch.tokens),
        lengths: download(gpu, &batch.lengths),
        log_q: bits64(&download(gpu, &log_q)),
        log_model: bits64(&download(gpu, &log_model)),
        phi: bits(&download(gpu, &phi)),
    };
    (drawn, batch)
}

/// The draws are those without features, and φ is what both backends say of them. Returns the draws.
fn check<L: Launcher>(
    gpu: &Gpu<L>,
    lstm: &mut GpuLstm<L>,
    guide: Option<&Guide>,
    set: &FeatureSet,
    rows: usize,
) -> Batch {
    let empty = || Batch::with_capacity(gpu, set.space(), rows).unwrap();
    check_into(gpu, lstm, guide, set, empty)
}

/// The same in batches as `begun` makes them.
fn check_into<L: Launcher>(
    gpu: &Gpu<L>,
    lstm: &mut GpuLstm<L>,
    guide: Option<&Guide>,
    set: &FeatureSet,
    begun: impl Fn() -> Batch<Gpu<L>>,
) -> Batch {
    let (plain, _) = draw_into(gpu, lstm, guide, None, begun());
    let (mut drawn, batch) = draw_into(gpu, lstm, guide, Some(set), begun());
    let values = batch.rows * set.len();
    let mut want = gpu.zeros(values, "features").unwrap();
    set.compile(gpu).unwrap().evaluate(gpu, &batch, Gpu::<L>::view_mut(&mut want, values)).unwrap();
    let phi = std::mem::take(&mut drawn.phi);
    assert_eq!(drawn, plain, "{} rows", batch.rows);
    assert_eq!(phi, bits(&download(gpu, &want)), "{} rows", batch.rows);
    let (host, mut want) = (batch.download(gpu).unwrap(), vec![0.0; values]);
    set.compile(&Cpu).unwrap().evaluate(&Cpu, &host, &mut want).unwrap();
    assert_eq!(phi, bits(&want), "{} rows", batch.rows);
    host
}

/// States of four edit distances of 512 tokens: 17 KiB beside the tiles of a warp; the shared memory of this device is
/// enough for the network.
#[test]
fn states_beyond_shared_memory_have_a_pass_of_their_own() {
    for bytes in [20_000, 60_000] {
        let small = Emulator::new(Schedule::Random(3)).unwrap().limited(Limits::new(bytes, 4, 80));
        let gpu = Gpu::new(small).unwrap();
        let space = Space::new(12, 520).unwrap();
        let features = (0..4).map(|seed| Feature::EditDistance(pattern(seed, 512, 12)));
        check(&gpu, &mut lstm(&gpu, space), None, &set(space, features), 20);
    }
}

fn small_set(space: Space) -> FeatureSet {
    set(space, [Feature::Contains(vec![1, 1]), Feature::Length, Feature::EditDistance(vec![2, 0, 2])])
}

#[test]
fn the_launch_that_draws_makes_the_features() {
    let gpu = Emulator::open(Schedule::Random(1)).unwrap();
    let space = Space::new(3, 5).unwrap();
    let mut lstm = lstm(&gpu, space);
    let closure = Custom::new(|batch| vec![0.5; batch.rows]);
    for (set, kernels) in [
        (small_set(space), &[Kernel::LstmWarpgroupSplit2][..]),
        (set(space, [Feature::Custom(closure)]), &[Kernel::LstmWarpgroupSplit2, Kernel::FeaturesShared]),
    ] {
        gpu.launcher().take_launches();
        draw(&gpu, &mut lstm, None, Some(&set), 40);
        assert_eq!(gpu.launcher().take_launches(), kernels);
    }
}

#[test]
fn draws_of_no_source_have_a_pass_of_features() {
    let gpu = Emulator::open(Schedule::Random(2)).unwrap();
    let space = Space::new(3, 5).unwrap();
    let (mut base, mut policy) = (lstm(&gpu, space), lstm(&gpu, space));
    let features = small_set(space).compile(&gpu).unwrap();
    let potential = Potential::new(&gpu, &[Role::Require(1.0), Role::Tilt(0.5), Role::Ignore]).unwrap();
    let guide = guide(space).upload(&gpu).unwrap();
    let guide = Some(&guide);
    let mut target = Target { base: &mut base, features: &features, potential: &potential, guide, contexts: None };
    let mut draws = Draws::new(&gpu, space, 40, 3).unwrap();
    let (sampled, score) = (Kernel::LstmWarpgroupSplit2, Kernel::LogPotential);
    for (source, kernels) in [
        (Source::Base, &[sampled, score][..]),
        (Source::Guided, &[sampled, score]),
        (Source::Policy, &[sampled, sampled, score]),
    ] {
        gpu.launcher().take_launches();
        draws.draw(&gpu, &mut target, source, Some(&mut policy), Draw::new(4, Purpose::User)).unwrap();
        assert_eq!(gpu.launcher().take_launches(), kernels, "{source:?}");
    }
}

mod cases {
    use super::*;

    /// Around the tile of 32 tokens; rows of 16 bytes and others.
    pub fn every_kind_comes_with_the_samples<L: Launcher>(gpu: &Gpu<L>) {
        let mut cut = BTreeSet::new();
        for (longest, rows) in [(1, 3), (33, 17), (36, 40)] {
            let space = Space::new(30, longest).unwrap();
            let set = every_kind(space);
            let report = set.compile(&Cpu).unwrap().report();
            let paths: BTreeSet<&str> = report.entries.iter().map(|entry| entry.path).collect();
            let all = [
                "automaton",
                "bit-parallel edit distance",
                "combination",
                "counter",
                "distinct tokens",
                "length",
                "shift-and",
                "spelled automaton",
                "suffix automaton",
                "words",
            ];
            assert!(longest == 1 || paths == BTreeSet::from(all), "{report}");
            let drawn = check(gpu, &mut lstm(gpu, space), None, &set, rows);
            cut.extend((0..rows).map(|row| (longest, drawn.is_cut(row))));
        }
        assert!(cut.contains(&(36, true)) && cut.contains(&(36, false)), "{cut:?}");
    }

    pub fn guided_samples_have_their_features<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(12, 34).unwrap();
        let drawn = check(gpu, &mut lstm(gpu, space), Some(&guide(space)), &every_kind(space), 21);
        assert!(drawn.iter().all(|x| x.windows(2).any(|pair| pair == [1, 1])));
    }

    /// Features are of the whole row, its context included.
    pub fn continued_contexts_have_their_features<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(12, 12).unwrap();
        let contexts = [vec![], vec![1, 1, 4], vec![7; 11]];
        let contexts = Contexts::new(space, &contexts, 2).unwrap().upload(gpu).unwrap();
        let begun = || {
            let mut batch = Batch::with_capacity(gpu, space, 20).unwrap();
            batch.begin(gpu, &contexts, Draw::new(3, Purpose::User)).unwrap();
            batch
        };
        let drawn = check_into(gpu, &mut lstm(gpu, space), None, &every_kind(space), begun);
        assert!(drawn.sequence(2).starts_with(&[1, 1, 4]) && drawn.sequence(5).starts_with(&[7; 11]));
    }

    pub fn words_alone_look_up_their_classes_on_the_way<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(12, 35).unwrap();
        let set = set(space, (0..30).map(|seed| Feature::Contains(pattern(seed, 1 + seed % 4, 12))));
        let report = set.compile(&Cpu).unwrap().report();
        assert!(report.entries.iter().all(|entry| entry.path == "words"), "{report}");
        check(gpu, &mut lstm(gpu, space), None, &set, 30);
    }

    /// One, two and four tiles of 16 rows, full and not.
    pub fn blocks_of_every_size_and_the_last_of_few_rows<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(3, 5).unwrap();
        for rows in [1, 16, 33, 64, 65, 97, 130] {
            check(gpu, &mut lstm(gpu, space), None, &small_set(space), rows);
        }
    }

    /// What a block has beside the table are the tiles and states of one warp, or, for 64 rows, of two.
    pub fn tables_that_fit_whole_but_for_the_class_map_or_not_at_all<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(37, 5).unwrap();
        let limits = gpu.launcher().limits();
        let walking = (9216 + 128) * if limits.multiprocessors == 1 { 2 } else { 1 };
        let room = limits.shared_bytes / 4 - walking;
        let fits = |bytes: usize| bytes.next_multiple_of(16) <= room;
        let mut seen = BTreeSet::new();
        // An odd modulus has as many states, of 20 bytes each; the class map has 160 bytes.
        for modulus in (0..12).map(|less| (room / 20 - 2 * less) as u32 | 1) {
            let set = set(space, [Feature::MultipleOf { modulus, zero: 0, one: 1 }]);
            let report = set.compile(&Cpu).unwrap().report();
            if seen.insert((fits(report.bytes), fits(report.hot_bytes))) {
                check(gpu, &mut lstm(gpu, space), None, &set, 20);
            }
        }
        assert_eq!(seen, BTreeSet::from([(true, true), (false, true), (false, false)]));
    }

    pub fn more_features_than_leave_through_a_tile<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(3, 5).unwrap();
        check(gpu, &mut lstm(gpu, space), None, &set(space, vec![Feature::EndsWith(vec![1]); 80]), 40);
    }

    pub fn plain_samples_have_their_features<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(12, 20).unwrap();
        check(gpu, &mut lstm(gpu, space).sampling(Precision::Half), None, &every_kind(space), 18);
    }

    pub fn closures_have_a_pass_of_their_own<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(3, 6).unwrap();
        let first = Custom::new(|batch| batch.iter().map(|x| x[0] as f32 / 8.0).collect());
        let features = [Feature::Contains(vec![1]), Feature::Custom(first)];
        check(gpu, &mut lstm(gpu, space), None, &set(space, features), 20);
    }

    pub fn nothing_to_write_writes_nothing<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(3, 6).unwrap();
        check(gpu, &mut lstm(gpu, space), None, &set(space, []), 20);
        check(gpu, &mut lstm(gpu, space), None, &set(space, [Feature::Length]), 0);
    }

    pub fn wrong_places_for_the_features_leave_all_as_it_was<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(3, 6).unwrap();
        let mut lstm = lstm(gpu, space);
        let tables =
            [space, Space::new(3, 7).unwrap()].map(|space| set(space, [Feature::Length]).compile(gpu).unwrap());
        for (table, len, message) in [(&tables[0], 19, "expected 20"), (&tables[1], 20, "space of the batch")] {
            let mut batch = Batch::with_capacity(gpu, space, 20).unwrap();
            let (mut log_q, mut log_model) = (gpu.zeros(20, "log q").unwrap(), gpu.zeros(20, "log π").unwrap());
            let mut phi = gpu.zeros(len, "features").unwrap();
            let (q, model) = (Gpu::<L>::view_mut(&mut log_q, 20), Gpu::<L>::view_mut(&mut log_model, 20));
            let output = FeatureOutput { backend: gpu, table, phi: Gpu::<L>::view_mut(&mut phi, len) };
            let draw = Draw::new(3, Purpose::User);
            let error = lstm.sample_features(draw, None, &mut batch, q, model, output).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
            assert_eq!((batch.rows, download(gpu, &batch.lengths)), (0, vec![0; 20]));
            assert!(download(gpu, &log_q).iter().chain(&download(gpu, &log_model)).all(|&value| value == 0.0));
            assert!(download(gpu, &phi).iter().all(|&value| value == 0.0));
        }
    }
}
