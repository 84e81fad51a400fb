//! The feature kernel: every kind of entry, tables in shared and in global memory, bit for bit as on the CPU.

use ebm_dpg::backend::gpu::{Gpu, Launcher};
use ebm_dpg::backend::{Cpu, Memory};
use ebm_dpg::features::{Custom, Feature, FeatureSet, Spelling};
use ebm_dpg::tokens::{Batch, Space};

mod support;
use support::{bits, download, noise, on_every_backend, upload};

on_every_backend!(
    all_kinds_have_the_bits_of_the_cpu,
    a_class_map_beyond_shared_memory,
    a_table_beyond_shared_memory,
    words_share_an_automaton,
    texts_are_walked_over_what_spells_their_tokens,
    closures_and_combinations,
    rows_out_of_range_are_nan_and_the_first_is_named,
    rows_without_tokens_leave_no_copy_behind,
    a_warp_takes_more_rows_than_its_own,
    no_rows_are_a_no_op,
);

mod cases {
    use super::*;

    /// Random content over the first tokens, where patterns are likely; every length, some cut.
    fn batch(space: Space, rows: usize) -> Batch {
        let longest = space.longest as usize;
        let random = noise(9, rows * longest);
        let sequence = |row: usize| {
            let length = row * 13 % longest;
            let content = random[row * longest..][..length].iter();
            let mut tokens: Vec<u32> = content.map(|v| u32::from(*v > 0.0) + u32::from(*v > 0.8)).collect();
            tokens.push(if length + 1 == longest && row.is_multiple_of(2) { 1 } else { space.eos });
            tokens
        };
        Batch::from_sequences(space, &(0..rows).map(sequence).collect::<Vec<_>>()).unwrap()
    }

    fn pattern(seed: u64, len: usize) -> Vec<u32> {
        noise(seed, len).iter().map(|&v| u32::from(v > 0.0)).collect()
    }

    fn set(space: Space, features: Vec<Feature>) -> FeatureSet {
        let named = features.into_iter().enumerate();
        named.fold(FeatureSet::new(space), |set, (i, feature)| set.with(i.to_string(), feature).unwrap())
    }

    /// φ on the device, and what the status word said.
    fn evaluate<L: Launcher>(gpu: &Gpu<L>, set: &FeatureSet, batch: &Batch) -> (Vec<f32>, ebm_dpg::Result<()>) {
        let (tokens, lengths) = (upload(gpu, &batch.tokens), upload(gpu, &batch.lengths));
        let (given, context) = (upload(gpu, &batch.given), upload(gpu, &batch.context));
        let device = Batch { space: batch.space, rows: batch.rows, tokens, lengths, given, context };
        let len = batch.rows * set.len();
        let mut phi = upload(gpu, &vec![7.0_f32; len]);
        set.compile(gpu).unwrap().evaluate(gpu, &device, Gpu::<L>::view_mut(&mut phi, len)).unwrap();
        let status = gpu.check();
        (download(gpu, &phi), status)
    }

    /// The same of tokens of 16 bits.
    fn evaluate_compact<L: Launcher>(gpu: &Gpu<L>, set: &FeatureSet, batch: &Batch) -> (Vec<f32>, ebm_dpg::Result<()>) {
        let compact: Vec<u16> = batch.view().tokens.iter().map(|&token| token as u16).collect();
        let (tokens, lengths) = (upload(gpu, &compact), upload(gpu, batch.view().lengths));
        let len = batch.rows * set.len();
        let mut phi = upload(gpu, &vec![7.0_f32; len]);
        let views = (Gpu::<L>::view(&tokens, compact.len()), Gpu::<L>::view(&lengths, batch.rows));
        let table = set.compile(gpu).unwrap();
        table.evaluate_compact(gpu, views.0, views.1, Gpu::<L>::view_mut(&mut phi, len)).unwrap();
        let status = gpu.check();
        (download(gpu, &phi), status)
    }

    fn as_on_the_cpu<L: Launcher>(gpu: &Gpu<L>, set: &FeatureSet, batch: &Batch) {
        let mut want = vec![0.0; batch.rows * set.len()];
        set.compile(&Cpu).unwrap().evaluate(&Cpu, batch, &mut want).unwrap();
        let (got, status) = evaluate(gpu, set, batch);
        status.unwrap();
        assert_eq!(bits(&got), bits(&want), "T = {}, {} rows", batch.space.longest, batch.rows);
        if !set.features().iter().any(has_closure) {
            let (got, status) = evaluate_compact(gpu, set, batch);
            status.unwrap();
            assert_eq!(bits(&got), bits(&want), "16 bits, T = {}, {} rows", batch.space.longest, batch.rows);
        }
    }

    fn has_closure(feature: &Feature) -> bool {
        matches!(feature, Feature::Custom(_)) || feature.parts().iter().any(has_closure)
    }

    pub fn all_kinds_have_the_bits_of_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        // Around the tile of 32 tokens and the 16-byte copies; rows around a warp and a block.
        for (longest, rows) in [(1, 3), (31, 33), (32, 1), (33, 300), (36, 64), (70, 40), (136, 33)] {
            let space = Space::new(4, longest).unwrap();
            let longest = longest as usize;
            let mut features = vec![Feature::Length, Feature::LengthSquared];
            for length in [1, 2, 5, 31, 32, 33, 65].into_iter().filter(|&length| length <= longest) {
                features.push(Feature::EditDistance(pattern(length as u64, length)));
                features.push(Feature::LongestCommonSubstring(pattern(length as u64 + 1, length)));
                features.push(Feature::Contains(pattern(7, length.min(4))));
            }
            features.push(Feature::StartsWith(pattern(3, longest.min(2))));
            features.push(Feature::EndsWith(vec![1]));
            features.push(Feature::Equals(vec![0]));
            features.push(Feature::MultipleOf { modulus: 3, zero: 0, one: 1 });
            as_on_the_cpu(gpu, &set(space, features), &batch(space, rows));
        }
    }

    /// What the kernels read from their tables besides: bits of one to four words, anchored ones next to others, marks of
    /// counts, classes in global memory.
    fn more_kinds(longest: usize) -> Vec<Feature> {
        let mut features: Vec<Feature> = (0..12)
            .map(|n| {
                Feature::Motif(
                    (0..longest.min(3 + n % 5)).map(|at| (at != 1).then_some(((n / 2) >> at & 1) as u32)).collect(),
                )
            })
            .collect();
        features.push(Feature::StartsWith(vec![1; longest.min(3)]));
        features.push(Feature::Equals(vec![0; longest.min(3)]));
        features.push(Feature::EndsWith(vec![1; longest.min(2)]));
        features.push(Feature::Contains(vec![1, 0][..longest.min(2)].to_vec()).count(longest as u32));
        features.push(Feature::AnyOf(vec![vec![1], vec![0; longest.min(2)]]).count(longest as u32));
        features
    }

    pub fn a_class_map_beyond_shared_memory<L: Launcher>(gpu: &Gpu<L>) {
        for longest in [1, 33, 70] {
            let space = Space::new(60_000, longest).unwrap();
            let mut features = more_kinds(longest as usize);
            features.push(Feature::EditDistance(pattern(5, longest.min(37) as usize)));
            as_on_the_cpu(gpu, &set(space, features), &batch(space, 150));
        }
    }

    pub fn a_table_beyond_shared_memory<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(4, 40).unwrap();
        let mut features = more_kinds(40);
        features.push(Feature::MultipleOf { modulus: 40_000, zero: 0, one: 1 });
        features.push(Feature::LongestCommonSubstring(pattern(6, 20)));
        features.push(Feature::EditDistance(pattern(5, 37)));
        as_on_the_cpu(gpu, &set(space, features.clone()), &batch(space, 300));
        // More features than leave through a tile.
        for len in [71, 72] {
            features.resize(len, Feature::EndsWith(vec![1]));
            as_on_the_cpu(gpu, &set(space, features.clone()), &batch(space, 40));
        }
    }

    /// Alone, where they look up their own classes, and beside others; more features than bits; each token its own class;
    /// classes and states in global memory.
    pub fn words_share_an_automaton<L: Launcher>(gpu: &Gpu<L>) {
        let words = |features: usize, longest: usize| {
            (0..features).map(move |n| match n % 5 {
                0 => Feature::AnyOf(vec![
                    pattern(n as u64, longest.min(3)),
                    pattern(n as u64 + 90, longest.min(5)),
                    vec![2],
                ]),
                _ => Feature::Contains(pattern(n as u64 + 40, longest.min(3 + n % 7))),
            })
        };
        // Every token by name.
        let all = || Feature::AnyOf((0..14).map(|token| vec![token; 2]).collect());
        let shapes = [(4, 1, 20), (4, 70, 20), (4, 136, 40), (14, 70, 20), (14, 31, 20), (60_000, 33, 36)];
        for (symbols, longest, features) in shapes {
            let space = Space::new(symbols, longest).unwrap();
            let mut alone: Vec<Feature> = words(features, longest as usize).collect();
            if symbols == 14 {
                alone[1] = all();
            }
            let report = set(space, alone.clone()).compile(&Cpu).unwrap().report();
            assert_eq!(report.classes == space.vocab as usize, symbols == 14, "{report}");
            let entries = features.div_ceil(32);
            assert!(longest == 1 || report.entries.iter().filter(|e| e.path == "words").count() == entries, "{report}");
            as_on_the_cpu(gpu, &set(space, alone.clone()), &batch(space, 90));
            let beside = [Feature::Length, Feature::EndsWith(vec![1]), Feature::EditDistance(vec![1])];
            as_on_the_cpu(gpu, &set(space, alone.iter().cloned().chain(beside).collect()), &batch(space, 90));
            let large = Feature::MultipleOf { modulus: 40_000, zero: 0, one: 1 };
            as_on_the_cpu(gpu, &set(space, alone.into_iter().chain([large]).collect()), &batch(space, 90));
        }
        // A token outside the vocabulary, where classes are looked up on the way.
        for (symbols, named) in [(4, words(1, 70).next()), (14, Some(all()))] {
            let space = Space::new(symbols, 70).unwrap();
            let mut batch = batch(space, 40);
            batch.lengths[9] = 70;
            batch.tokens[9 * 70 + 66] = u32::MAX;
            let set = set(space, words(19, 70).chain(named).collect());
            for (phi, status) in [evaluate(gpu, &set, &batch), evaluate_compact(gpu, &set, &batch)] {
                assert!(status.unwrap_err().to_string().contains("row 9"));
                assert!(phi[180..200].iter().all(|value| value.is_nan()) && !phi[179].is_nan() && !phi[200].is_nan());
            }
        }
    }

    pub fn texts_are_walked_over_what_spells_their_tokens<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(2000, 40).unwrap();
        let texts = (0..2003).map(|n: u32| if n < 3 { ["a", "bc", ""][n as usize].into() } else { format!("{n}") });
        let add = |features: FeatureSet| {
            features
                .with("regex", Feature::Regex("(?:ab)+c.*(?:b|ca)$".into()))
                .and_then(|set| set.with("list", Feature::AnyText(["abca", "cbcb", "aaa"].map(String::from).to_vec())))
                .and_then(|set| {
                    let words = (0..500).map(|n| vec![n % 3, 1 + n % 7, n + 1]).chain([vec![0, 1, 1], vec![2, 0, 1]]);
                    set.with("tokens", Feature::AnyOf(words.collect()))
                })
        };
        let features = FeatureSet::new(space).spelled(Spelling::new(texts)).unwrap();
        let features = add(features.with("length", Feature::Length).unwrap()).unwrap();
        let report = features.compile(&Cpu).unwrap().report();
        assert!(report.entries.iter().any(|entry| entry.path == "spelled automaton"), "{report}");
        as_on_the_cpu(gpu, &features, &batch(space, 300));
        // A token outside the vocabulary has no spelling.
        let mut batch = batch(space, 40);
        batch.tokens[7 * 40] = u32::MAX;
        let (phi, status) = evaluate(gpu, &features, &batch);
        assert!(status.unwrap_err().to_string().contains("row 7"));
        assert!(phi[28..32].iter().all(|value| value.is_nan()) && !phi[27].is_nan());
    }

    pub fn closures_and_combinations<L: Launcher>(gpu: &Gpu<L>) {
        for longest in [33, 40] {
            let space = Space::new(4, longest).unwrap();
            let ends = Custom::new(|batch| (0..batch.rows).map(|row| (row % 5) as f32 / 4.0).collect());
            let size =
                Custom::new(|batch| (0..batch.rows).map(|row| 1.0 / (1 + batch.content(row).len()) as f32).collect());
            let close = || Feature::EditDistance(pattern(5, 20));
            let features = vec![
                Feature::Custom(ends.clone()),
                Feature::DistinctFraction,
                !(Feature::Custom(size) & close()) | Feature::Contains(vec![1, 0, 1]),
                Feature::Custom(ends).at_least(0.5) & !Feature::DistinctFraction.at_least(0.3),
                Feature::Length,
            ];
            as_on_the_cpu(gpu, &set(space, features), &batch(space, 100));
        }
    }

    pub fn rows_out_of_range_are_nan_and_the_first_is_named<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(4, 40).unwrap();
        let set = set(space, vec![Feature::Contains(vec![1, 0]), Feature::Length]);
        let mut batch = batch(space, 90);
        let mut want = vec![0.0; 180];
        set.compile(&Cpu).unwrap().evaluate(&Cpu, &batch, &mut want).unwrap();
        batch.lengths[70] = 0;
        batch.lengths[41] = 41;
        batch.lengths[80] = u32::MAX;
        batch.tokens[60 * 40..][..8].copy_from_slice(&[0, 1, 0, u32::MAX, 0, 1, 0, space.eos]);
        batch.lengths[60] = 8;
        for row in [70, 41, 80, 60] {
            want[2 * row..2 * row + 2].fill(f32::NAN);
        }
        // A token behind the end is nobody's business.
        batch.tokens[5 * 40 + 39] = u32::MAX;
        batch.lengths[5] = batch.lengths[5].min(39);
        for (got, status) in [evaluate(gpu, &set, &batch), evaluate_compact(gpu, &set, &batch)] {
            assert!(status.unwrap_err().to_string().starts_with("row 41 of the batch"));
            assert_eq!(bits(&got), bits(&want));
        }
    }

    /// The first tile is on its way when a warp finds that none of its rows has a length.
    pub fn rows_without_tokens_leave_no_copy_behind<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(4, 40).unwrap();
        let mut batch = batch(space, 3000);
        batch.lengths.fill(0);
        let (phi, status) = evaluate(gpu, &set(space, vec![Feature::Contains(pattern(7, 3)); 3]), &batch);
        assert!(status.unwrap_err().to_string().contains("row 0"));
        assert!(phi.iter().all(|value| value.is_nan()));
    }

    pub fn a_warp_takes_more_rows_than_its_own<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(4, 3).unwrap();
        let rows = gpu.launcher().limits().multiprocessors.min(4) * 64 * 32 + 100;
        as_on_the_cpu(gpu, &set(space, vec![Feature::Contains(pattern(7, 1)), Feature::Length]), &batch(space, rows));
    }

    pub fn no_rows_are_a_no_op<L: Launcher>(gpu: &Gpu<L>) {
        let space = Space::new(4, 40).unwrap();
        let set = set(space, vec![Feature::Length]);
        assert_eq!(evaluate(gpu, &set, &batch(space, 0)).0.len(), 0);
    }
}
