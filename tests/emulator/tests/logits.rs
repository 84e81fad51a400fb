//! The kernels over rows of logits, against f64: log-probs, their sums, gradients, gradients of whole sequences.

use ebm_dpg::Result;
use ebm_dpg::backend::gpu::{Gpu, GpuView, GpuViewMut, Launcher, Limits};
use ebm_dpg::backend::{Cpu, Memory};
use ebm_dpg::gradient::{Coefficient, Divergence, Scores, Sequences, gradient_with, sequence_gradient};
use ebm_dpg::log_prob::{Logit, SoftmaxOptions, log_prob_entropy, log_prob_with, sequence_sums};
use ebm_dpg_emulator::{Emulator, Schedule};
use half::{bf16, f16};

mod support;
use support::{bits, bits64, download, noise, on_every_backend, upload};

on_every_backend!(
    log_probs_match_f64,
    log_probs_by_temperature_and_mask,
    hard_rows_keep_the_tolerance,
    a_row_does_not_see_its_neighbours_nor_its_alignment,
    rows_without_a_softmax_are_nan_and_the_first_is_named,
    sums_of_sequences,
    gradients_match_f64,
    gradients_of_odd_rows,
    sequences_follow_the_cpu,
    divergences_follow_the_cpu,
    gaps_are_neither_read_nor_written,
    entropies_match_f64,
    nothing_to_do,
);

/// Gradients where shared memory holds little of a row: the rest is read again, or a cluster of blocks shares it.
#[test]
fn gradients_on_small_devices() {
    for schedule in Schedule::all() {
        for capability in [80, 90] {
            let emulator = Emulator::new(schedule).expect("opened").limited(Limits::new(4 << 10, 4, capability));
            let gpu = Gpu::new(emulator).expect("a backend");
            cases::gradients_match_f64(&gpu);
            cases::gradients_of_odd_rows(&gpu);
            cases::gaps_are_neither_read_nor_written(&gpu);
        }
    }
}

/// Warps that take several rows in turn, where rows have parts of them.
#[test]
fn more_rows_than_a_grid_has_lanes_for() {
    let emulator = Emulator::new(Schedule::Random(5)).expect("opened").limited(Limits::new(4 << 10, 1, 90));
    let gpu = Gpu::new(emulator).expect("a backend");
    cases::many_rows(&gpu);
}

mod cases {
    use super::*;

    /// Around a lane, its pieces, the parts of a warp, a warp, a pack and a block; beyond what a warp takes.
    const VOCABS: [usize; 16] = [2, 3, 4, 8, 9, 30, 32, 33, 64, 129, 250, 256, 257, 1000, 1025, 2500];

    struct Case<T> {
        vocab: usize,
        scale: f32,
        mask: Option<Vec<u32>>,
        logits: Vec<T>,
        tokens: Vec<u32>,
    }

    impl<T: Logit> Case<T> {
        fn new(vocab: usize, rows: usize, width: f32) -> Self {
            let logits = noise(vocab as u64, vocab * rows).iter().map(|&x| T::from_f32(x * width)).collect();
            let tokens = (0..rows).map(|row| (row * 31 % vocab) as u32).collect();
            Case { vocab, scale: 1.0, mask: None, logits, tokens }
        }

        fn allowed(&self, token: usize) -> bool {
            self.mask.as_ref().is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1)
        }

        /// log softmax of a row, in f64.
        fn exact(&self, row: usize) -> Vec<f64> {
            let value = |(token, x): (usize, &T)| {
                if self.allowed(token) { f64::from(x.to_f32()) * f64::from(self.scale) } else { f64::NEG_INFINITY }
            };
            let row: Vec<f64> = self.logits[row * self.vocab..][..self.vocab].iter().enumerate().map(value).collect();
            let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total = row.iter().map(|x| (x - max).exp()).sum::<f64>().ln();
            row.iter().map(|x| (x - max) - total).collect()
        }

        fn with<L: Launcher, R>(&self, gpu: &Gpu<L>, run: impl FnOnce(&SoftmaxOptions<'_, Gpu<L>>) -> R) -> R {
            let mask = self.mask.as_ref().map(|mask| upload(gpu, mask));
            let mask = mask.as_ref().map(|mask| Gpu::<L>::view(mask, Gpu::<L>::len(mask)));
            run(&SoftmaxOptions { scale: self.scale, mask, stride: None })
        }

        /// Log-probs; the logits start `shift` values into their memory.
        fn log_probs<L: Launcher>(&self, gpu: &Gpu<L>, shift: usize) -> (Vec<f32>, Result<()>) {
            let mut shifted = vec![T::from_f32(f32::NAN); shift];
            shifted.extend_from_slice(&self.logits);
            let (logits, tokens) = (upload(gpu, &shifted), upload(gpu, &self.tokens));
            let mut out = upload(gpu, &vec![7.0_f32; self.tokens.len()]);
            let at = Gpu::<L>::view(&logits, shifted.len()).address() + (shift * size_of::<T>()) as u64;
            // SAFETY: within the buffer, which outlives the view.
            let view: GpuView<'_, T> = unsafe { GpuView::from_raw(at, self.logits.len()) };
            let tokens = Gpu::<L>::view(&tokens, self.tokens.len());
            let into = Gpu::<L>::view_mut(&mut out, self.tokens.len());
            self.with(gpu, |softmax| log_prob_with(gpu, softmax, self.vocab, view, tokens, into)).unwrap();
            let status = gpu.check();
            (download(gpu, &out), status)
        }

        fn holds<L: Launcher>(&self, gpu: &Gpu<L>, name: &str) {
            let (got, status) = self.log_probs(gpu, 0);
            status.unwrap();
            for (row, (&got, &token)) in got.iter().zip(&self.tokens).enumerate() {
                let want = self.exact(row)[token as usize];
                close(&format!("{name}, V = {}, row {row}", self.vocab), got, want, 2e-6);
                assert!(got <= 0.0, "{got}");
            }
        }

        /// (gradient, log-probs, status).
        fn gradient<L: Launcher>(&self, gpu: &Gpu<L>, weights: &[f32]) -> (Vec<T>, Vec<f32>, Result<()>) {
            let (rows, len) = (self.tokens.len(), self.logits.len());
            let (mut logits, tokens) = (upload(gpu, &self.logits), upload(gpu, &self.tokens));
            let (weights, mut out) = (upload(gpu, weights), upload(gpu, &vec![7.0_f32; rows]));
            let (t, w) = (Gpu::<L>::view(&tokens, rows), Gpu::<L>::view(&weights, rows));
            let (x, p) = (Gpu::<L>::view_mut(&mut logits, len), Gpu::<L>::view_mut(&mut out, rows));
            self.with(gpu, |softmax| gradient_with(gpu, softmax, self.vocab, t, w, x, p)).unwrap();
            let status = gpu.check();
            (download(gpu, &logits), download(gpu, &out), status)
        }

        fn gradient_holds<L: Launcher>(&self, gpu: &Gpu<L>, weights: &[f32]) {
            let (got, log_probs, status) = self.gradient(gpu, weights);
            status.unwrap();
            let (same, _) = self.log_probs(gpu, 0);
            if self.vocab <= 1024 {
                assert_eq!(bits(&log_probs), bits(&same), "one log-prob, whoever asks");
            }
            for (row, (&got, &token)) in log_probs.iter().zip(&self.tokens).enumerate() {
                close("log-prob", got, self.exact(row)[token as usize], 2e-6);
            }
            // Half an ulp of the type on top of the arithmetic's error.
            let ulp = T::pick([1e-7, 5e-4, 4e-3]);
            for (row, got) in got.chunks(self.vocab).enumerate() {
                let weight = f64::from(weights[row]) * f64::from(self.scale);
                for (token, (got, log_prob)) in got.iter().zip(self.exact(row)).enumerate() {
                    let one = f64::from(u8::from(token == self.tokens[row] as usize));
                    let want = weight * (one - log_prob.exp());
                    let tolerance = weight.abs() * 3e-6 + want.abs() * ulp + T::pick([0.0, 6e-8, 0.0]);
                    close("gradient", got.to_f32(), want, tolerance);
                }
            }
        }
    }

    #[track_caller]
    fn close(name: &str, got: f32, want: f64, tolerance: f64) {
        let ulp = f64::from((want.abs() as f32).next_up()) - f64::from(want.abs() as f32);
        let same = f64::from(got) == want || (got.is_nan() && want.is_nan());
        let difference = (f64::from(got) - want).abs();
        assert!(
            same || !(difference.is_nan() || difference > tolerance.max(ulp)),
            "{name}: got {got:e}, want {want:e}"
        );
    }

    fn log_probs_of<L: Launcher, T: Logit>(gpu: &Gpu<L>) {
        for vocab in VOCABS {
            Case::<T>::new(vocab, if vocab < 40 { 70 } else { 5 }, 8.0).holds(gpu, "wide");
        }
    }

    pub fn log_probs_match_f64<L: Launcher>(gpu: &Gpu<L>) {
        log_probs_of::<L, f32>(gpu);
        log_probs_of::<L, f16>(gpu);
        log_probs_of::<L, bf16>(gpu);
    }

    fn options_of<L: Launcher, T: Logit>(gpu: &Gpu<L>) {
        for vocab in [3_usize, 33, 131, 1501] {
            for scale in [0.3, 1.0, 4.0] {
                let mask = (0..vocab.div_ceil(32)).map(|word| 0x9249_2493_u32.rotate_left(word as u32)).collect();
                let case = Case::<T> { scale, mask: Some(mask), ..Case::new(vocab, 9, 8.0) };
                case.holds(gpu, "masked");
                case.gradient_holds(gpu, &[1.0, -2.0, 0.5, 1e-3, 30.0, 1.0, 1.0, 1.0, 1.0]);
                Case::<T> { mask: None, ..case }.holds(gpu, "scaled");
            }
        }
    }

    pub fn log_probs_by_temperature_and_mask<L: Launcher>(gpu: &Gpu<L>) {
        options_of::<L, f32>(gpu);
        options_of::<L, bf16>(gpu);
    }

    pub fn hard_rows_keep_the_tolerance<L: Launcher>(gpu: &Gpu<L>) {
        for vocab in [2, 37, 1000, 20_011] {
            let spread = noise(3, vocab);
            let rows: Vec<(&str, Vec<f32>)> = vec![
                ("far above 0", spread.iter().map(|x| x * 4.0 + 1e4).collect()),
                ("far below 0", spread.iter().map(|x| x * 4.0 - 1e4).collect()),
                ("all alike", vec![-3.25; vocab]),
                // Many small terms beside a large one.
                ("peaked", (0..vocab).map(|t| if t == vocab / 2 { 10.0 } else { 0.0 }).collect()),
                ("sure", (0..vocab).map(|t| if t == vocab / 2 { 200.0 } else { 0.0 }).collect()),
                ("rising", (0..vocab).map(|t| t as f32 * (20.0 / vocab as f32)).collect()),
                ("at the end of f32", spread.iter().map(|x| x * (f32::MAX / 2.0)).collect()),
                ("half impossible", (0..vocab).map(|t| [spread[t], f32::NEG_INFINITY][t % 2]).collect()),
            ];
            for (name, row) in rows {
                let tokens = vec![0, 1, vocab as u32 / 2, vocab as u32 - 1];
                let case = Case { vocab, scale: 1.0, mask: None, logits: row.repeat(4), tokens };
                case.holds(gpu, name);
            }
        }
    }

    pub fn a_row_does_not_see_its_neighbours_nor_its_alignment<L: Launcher>(gpu: &Gpu<L>) {
        for vocab in [2, 64, 255, 320, 1029] {
            let case = Case::<f32>::new(vocab, 12, 8.0);
            let together = case.log_probs(gpu, 0).0;
            for row in [0, 5, 11] {
                let logits = case.logits[row * vocab..][..vocab].to_vec();
                let alone = Case { logits, tokens: vec![case.tokens[row]], mask: None, ..case };
                if vocab < 1029 {
                    assert_eq!(bits(&alone.log_probs(gpu, 0).0), bits(&together[row..=row]));
                }
                for shift in 0..4 {
                    close("shifted", alone.log_probs(gpu, shift).0[0], alone.exact(0)[alone.tokens[0] as usize], 2e-6);
                }
            }
        }
        for vocab in [2, 30, 33, 100] {
            let case = Case::<bf16>::new(vocab, 40, 8.0);
            let aligned = bits(&case.log_probs(gpu, 0).0);
            (1..8).for_each(|shift| assert_eq!(bits(&case.log_probs(gpu, shift).0), aligned, "V = {vocab}"));
        }
        let case = Case::<bf16>::new(1031, 2, 8.0);
        for shift in 0..8 {
            close("bf16", case.log_probs(gpu, shift).0[1], case.exact(1)[case.tokens[1] as usize], 2e-6);
        }
    }

    pub fn rows_without_a_softmax_are_nan_and_the_first_is_named<L: Launcher>(gpu: &Gpu<L>) {
        for vocab in [40, 1100] {
            let good = Case::<f32>::new(vocab, 9, 1.0);
            let want = good.log_probs(gpu, 0).0;
            let weights = [1.0; 9];
            for (bad, says) in
                [(f32::NAN, "logits: not a number at row 3"), (f32::INFINITY, "logits: not a number at row 3")]
            {
                let mut case = Case::<f32>::new(vocab, 9, 1.0);
                case.logits[3 * vocab + vocab - 3] = bad;
                case.logits[7 * vocab..8 * vocab].fill(f32::NEG_INFINITY);
                case.tokens[5] = vocab as u32;
                let (got, status) = case.log_probs(gpu, 0);
                assert_eq!(status.unwrap_err().to_string(), says);
                let (gradient, log_probs, status) = case.gradient(gpu, &weights);
                assert_eq!(status.unwrap_err().to_string(), says);
                for row in 0..9 {
                    let faulty = [3, 5, 7].contains(&row);
                    assert!(faulty == got[row].is_nan() && (faulty || got[row] == want[row]), "row {row}");
                    assert!(faulty == log_probs[row].is_nan() && (faulty || (log_probs[row] - got[row]).abs() < 4e-6));
                    let row = &gradient[row * vocab..][..vocab];
                    assert!(row.iter().all(|x| x.is_nan() == faulty));
                }
            }
            let mut case = Case::<f32>::new(vocab, 9, 1.0);
            case.logits[2 * vocab..3 * vocab].fill(f32::NEG_INFINITY);
            assert!(case.log_probs(gpu, 0).1.unwrap_err().to_string().starts_with("logits of row 2"));
            case.tokens[1] = u32::MAX;
            assert!(case.log_probs(gpu, 0).1.unwrap_err().to_string().starts_with("token of row 1"));
        }
    }

    pub fn sums_of_sequences<L: Launcher>(gpu: &Gpu<L>) {
        let log_probs = noise(1, 500);
        let mut offsets: Vec<u64> = vec![0, 0, 1, 34, 34, 100, 499, 500];
        let mut want = vec![0.0; 7];
        sequence_sums(&Cpu, &offsets, &log_probs, &mut want).unwrap();
        let run = |offsets: &[u64]| {
            let (device, p, mut out) = (upload(gpu, offsets), upload(gpu, &log_probs), upload(gpu, &[7.0_f64; 7]));
            let (o, p) = (Gpu::<L>::view(&device, 8), Gpu::<L>::view(&p, 500));
            sequence_sums(gpu, o, p, Gpu::<L>::view_mut(&mut out, 7)).unwrap();
            let status = gpu.check();
            (download(gpu, &out), status)
        };
        let (got, status) = run(&offsets);
        status.unwrap();
        got.iter().zip(&want).for_each(|(a, b)| assert!((a - b).abs() <= 1e-13, "{a} and {b}"));
        (offsets[5], offsets[7]) = (30, 501);
        let (got, status) = run(&offsets);
        assert!(status.unwrap_err().to_string().starts_with("row 4 "));
        assert!(got[4].is_nan() && got[6].is_nan() && got[2] == want[2]);
    }

    pub fn gradients_match_f64<L: Launcher>(gpu: &Gpu<L>) {
        let weights = [1.0, -2.5, 1e-3, 40.0, 0.7];
        for vocab in VOCABS {
            Case::<f32>::new(vocab, 5, 8.0).gradient_holds(gpu, &weights);
            Case::<f16>::new(vocab, 5, 8.0).gradient_holds(gpu, &weights);
            Case::<bf16>::new(vocab, 5, 8.0).gradient_holds(gpu, &weights);
        }
        // More than two blocks' shared memory holds: part of the row is read again, or a cluster shares it.
        Case::<f32>::new(40_003, 2, 8.0).gradient_holds(gpu, &weights[..2]);
    }

    pub fn many_rows<L: Launcher>(gpu: &Gpu<L>) {
        for (vocab, rows) in [(2, 4500), (250, 600)] {
            let weights: Vec<f32> = (0..rows).map(|row| (row % 5) as f32 - 1.0).collect();
            let case = Case::<bf16>::new(vocab, rows, 8.0);
            case.holds(gpu, "many rows");
            let (got, log_probs, status) = case.gradient(gpu, &weights);
            status.unwrap();
            for (row, (got, log_prob)) in got.chunks(vocab).zip(log_probs).enumerate() {
                assert_eq!(log_prob.is_nan(), weights[row] == 0.0);
                let sum = got.iter().map(|x| f64::from(x.to_f32())).sum::<f64>();
                close("sum of a gradient", sum as f32, 0.0, f64::from(weights[row].abs()) * 0.01);
            }
        }
    }

    pub fn gradients_of_odd_rows<L: Launcher>(gpu: &Gpu<L>) {
        for vocab in [7, 1027] {
            let mut case = Case::<f32>::new(vocab, 4, 2.0);
            // Weight 0: not even the token is read.
            (case.logits[0], case.tokens[0]) = (f32::NAN, u32::MAX);
            case.logits[vocab + 1] = 300.0;
            case.tokens[1] = 1;
            let (got, log_probs, status) = case.gradient(gpu, &[0.0, 2.0, f32::INFINITY, -0.0]);
            assert_eq!(status.unwrap_err().to_string(), "weight: not a number at row 2");
            assert!(got[..vocab].iter().chain(&got[3 * vocab..]).all(|&x| x == 0.0));
            assert!(got[2 * vocab..3 * vocab].iter().all(|x| x.is_nan()));
            assert!(got[vocab..2 * vocab].iter().all(|x| x.abs() < 1e-30), "a sure token has no gradient");
            assert_eq!((log_probs[1], log_probs[0].is_nan(), log_probs[3].is_nan()), (0.0, true, true));
        }
    }

    /// (gradient, log-probs, log π).
    type Found<T> = (Vec<T>, Vec<f32>, Vec<f64>);

    /// What the coefficients of [`sequences_of`] are made of.
    #[derive(Clone, Copy)]
    enum Kind {
        Given,
        Baseline(f64),
        Divergence(Divergence),
    }

    /// The columns of four sequences, on a backend.
    struct Columns<B: Memory> {
        offsets: B::Buffer<u64>,
        weights: B::Buffer<f32>,
        log_p: B::Buffer<f64>,
        log_q: B::Buffer<f64>,
    }

    impl<B: Memory> Columns<B> {
        fn new(backend: &B, log_q: &[f64]) -> Self {
            fn put<B: Memory, T: ebm_dpg::backend::Element>(backend: &B, values: &[T]) -> B::Buffer<T> {
                let mut buffer = backend.zeros(values.len(), "values").unwrap();
                backend.upload(values, &mut buffer).unwrap();
                buffer
            }
            let log_p: Vec<f64> = log_q.iter().zip([0.5, -0.25, 1.0, 0.0]).map(|(q, by)| q + by).collect();
            Columns {
                offsets: put(backend, &[1, 1, 4, 14, 24]),
                weights: put(backend, &[1.0, 2.0, 0.0, -0.5]),
                log_p: put(backend, &log_p),
                log_q: put(backend, log_q),
            }
        }

        fn sequences(&self, kind: Kind) -> Sequences<'_, B> {
            let (weights, log_q) = (B::view(&self.weights, 4), B::view(&self.log_q, 4));
            let coefficient = match kind {
                Kind::Given => Coefficient::Given { weights },
                Kind::Baseline(baseline) => Coefficient::Baseline { weights, log_q, baseline },
                Kind::Divergence(divergence) => {
                    Coefficient::Divergence { divergence, log_p: B::view(&self.log_p, 4), log_q }
                }
            };
            Sequences { offsets: B::view(&self.offsets, 5), coefficient }
        }
    }

    fn sequences_of<L: Launcher, T: Logit>(gpu: &Gpu<L>, vocab: usize, kind: Kind) -> (Found<T>, Found<T>) {
        let mut case = Case::<T>::new(vocab, 24, 2.0);
        case.scale = 0.75;
        let mut host: Found<T> = (case.logits.clone(), vec![7.0; 24], vec![7.0; 4]);
        let mut log_q: Vec<f64> = [0, 3, 10, 10].iter().map(|n| -f64::from(*n) * (vocab as f64).ln()).collect();
        if matches!(kind, Kind::Divergence(divergence) if divergence.is_bounded()) {
            // log p is −∞ there.
            log_q[2] = f64::NEG_INFINITY;
        }
        let options = SoftmaxOptions { scale: case.scale, ..SoftmaxOptions::default() };
        let scores = Scores::<Cpu> { log_probs: &mut host.1, log_pi: &mut host.2 };
        let on_cpu = Columns::new(&Cpu, &log_q);
        sequence_gradient(&Cpu, &options, vocab, &on_cpu.sequences(kind), &case.tokens, &mut host.0, scores).unwrap();

        let (mut logits, tokens) = (upload(gpu, &case.logits), upload(gpu, &case.tokens));
        let (mut log_probs, mut log_pi) = (upload(gpu, &[7.0_f32; 24]), upload(gpu, &[7.0_f64; 4]));
        let columns = Columns::new(gpu, &log_q);
        let into = Gpu::<L>::view_mut(&mut log_probs, 24);
        let scores = Scores { log_probs: into, log_pi: Gpu::<L>::view_mut(&mut log_pi, 4) };
        let (t, x) = (Gpu::<L>::view(&tokens, 24), Gpu::<L>::view_mut(&mut logits, case.logits.len()));
        case.with(gpu, |softmax| sequence_gradient(gpu, softmax, vocab, &columns.sequences(kind), t, x, scores))
            .unwrap();
        gpu.check().unwrap();
        (host, (download(gpu, &logits), download(gpu, &log_probs), download(gpu, &log_pi)))
    }

    fn sequences_agree<T: Logit>((want, got): (Found<T>, Found<T>)) {
        let ulp = T::pick([1e-7, 1e-3, 8e-3]);
        for (at, (got, want)) in got.0.iter().zip(&want.0).enumerate() {
            let want = f64::from(want.to_f32());
            close(&format!("logit {at}"), got.to_f32(), want, 1e-5 + want.abs() * (4e-5 + ulp));
        }
        assert_eq!(got.1[0], 7.0, "a row of no sequence");
        got.1.iter().zip(&want.1).for_each(|(got, want)| close("log-prob", *got, f64::from(*want), 4e-6));
        let near = |a: f64, b: f64| (a - b).abs() < 4e-5 || (a.is_nan() && b.is_nan());
        got.2.iter().zip(&want.2).for_each(|(&a, &b)| assert!(near(a, b), "{a} and {b}"));
    }

    pub fn sequences_follow_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        for vocab in [2, 33, 1100] {
            for kind in [Kind::Given, Kind::Baseline(0.0), Kind::Baseline(0.5)] {
                sequences_agree(sequences_of::<L, f32>(gpu, vocab, kind));
                sequences_agree(sequences_of::<L, bf16>(gpu, vocab, kind));
            }
        }
        sequences_agree(sequences_of::<L, f16>(gpu, 5, Kind::Baseline(1.0)));
        let twice = [0, 1].map(|_| sequences_of::<L, f32>(gpu, 33, Kind::Baseline(0.5)).1);
        assert_eq!(bits64(&twice[0].2), bits64(&twice[1].2));
        assert_eq!(bits(&twice[0].0), bits(&twice[1].0));
    }

    pub fn divergences_follow_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        use Divergence::*;
        let all = [ForwardKl, ReverseKl, TotalVariation, JensenShannon, ForwardChiSquare, ReverseChiSquare];
        for divergence in all.into_iter().chain([Alpha(0.5), Alpha(2.0)]) {
            sequences_agree(sequences_of::<L, f32>(gpu, 2, Kind::Divergence(divergence)));
        }
        sequences_agree(sequences_of::<L, bf16>(gpu, 1100, Kind::Divergence(JensenShannon)));
    }

    pub fn gaps_are_neither_read_nor_written<L: Launcher>(gpu: &Gpu<L>) {
        for (vocab, stride) in [(2, 3), (2, 4), (6, 8), (33, 35), (60, 64), (250, 252), (300, 303), (1100, 1101)] {
            let case = Case::<bf16>::new(vocab, 5, 4.0);
            let mut gappy = vec![bf16::from_f32(f32::NAN); 4 * stride + vocab];
            gappy.chunks_mut(stride).zip(case.logits.chunks(vocab)).for_each(|(to, x)| to[..vocab].copy_from_slice(x));
            let softmax = SoftmaxOptions { stride: Some(stride), ..SoftmaxOptions::default() };
            let (mut logits, tokens) = (upload(gpu, &gappy), upload(gpu, &case.tokens));
            let weights = upload(gpu, &[1.0_f32, 0.0, 2.0, -1.0, 3.0]);
            let mut found = upload(gpu, &[7.0_f32; 5]);
            let (t, w) = (Gpu::<L>::view(&tokens, 5), Gpu::<L>::view(&weights, 5));
            let (x, p) = (Gpu::<L>::view(&logits, gappy.len()), Gpu::<L>::view_mut(&mut found, 5));
            log_prob_with(gpu, &softmax, vocab, x, t, p).unwrap();
            for (row, got) in download(gpu, &found).into_iter().enumerate() {
                close("log-prob", got, case.exact(row)[case.tokens[row] as usize], 2e-6);
            }
            let (x, p) = (Gpu::<L>::view_mut(&mut logits, gappy.len()), Gpu::<L>::view_mut(&mut found, 5));
            gradient_with(gpu, &softmax, vocab, t, w, x, p).unwrap();
            gpu.check().unwrap();
            for (row, got) in download(gpu, &logits).chunks(stride).enumerate() {
                assert!(got[..vocab].iter().all(|x| !x.is_nan()), "row {row}");
                assert!(got[vocab..].iter().all(|x| x.is_nan()), "a gap was written");
                assert!(row != 1 || got[..vocab].iter().all(|x| x.to_f32() == 0.0));
            }
        }
    }

    pub fn entropies_match_f64<L: Launcher>(gpu: &Gpu<L>) {
        fn check<L: Launcher, T: Logit>(gpu: &Gpu<L>, case: &Case<T>) {
            let rows = case.tokens.len();
            let (logits, tokens) = (upload(gpu, &case.logits), upload(gpu, &case.tokens));
            let (mut p, mut h) = (upload(gpu, &vec![7.0_f32; rows]), upload(gpu, &vec![7.0_f32; rows]));
            let (x, t) = (Gpu::<L>::view(&logits, case.logits.len()), Gpu::<L>::view(&tokens, rows));
            let (into, entropies) = (Gpu::<L>::view_mut(&mut p, rows), Gpu::<L>::view_mut(&mut h, rows));
            case.with(gpu, |softmax| log_prob_entropy(gpu, softmax, case.vocab, x, t, into, entropies)).unwrap();
            gpu.check().unwrap();
            assert_eq!(bits(&download(gpu, &p)), bits(&case.log_probs(gpu, 0).0));
            for (row, got) in download(gpu, &h).into_iter().enumerate() {
                let term = |l: f64| if l == f64::NEG_INFINITY { 0.0 } else { -l.exp() * l };
                let want = case.exact(row).into_iter().map(term).sum::<f64>();
                close("entropy", got, want, 2e-6 * (1.0 + want));
            }
        }
        for vocab in [2, 7, 33, 256, 1000, 1100] {
            let mut case = Case::<f32>::new(vocab, 3, 8.0);
            case.scale = 0.5;
            check(gpu, &case);
            check(gpu, &Case::<bf16>::new(vocab, 3, 8.0));
            case.mask = Some((0..vocab.div_ceil(32)).map(|_| 0x5555_5555).collect());
            // The running maximum rises, from −∞ on.
            case.logits.iter_mut().enumerate().for_each(|(i, x)| *x = (i % vocab) as f32 * 0.01);
            case.logits[..vocab / 4 * 2].fill(f32::NEG_INFINITY);
            case.tokens.fill(vocab as u32 / 4 * 2);
            check(gpu, &case);
        }
        check(gpu, &Case::<f16>::new(40, 3, 8.0));
    }

    pub fn nothing_to_do<L: Launcher>(gpu: &Gpu<L>) {
        let case = Case::<f32>::new(33, 0, 1.0);
        assert!(case.log_probs(gpu, 0).0.is_empty());
        assert!(case.gradient(gpu, &[]).1.is_empty());
        let wrong = Case::<f32> { scale: f32::NAN, ..Case::new(3, 1, 1.0) };
        let (tokens, x) = (upload(gpu, &wrong.tokens), upload(gpu, &wrong.logits));
        let (tokens, x) = (Gpu::<L>::view(&tokens, 1), Gpu::<L>::view(&x, 3));
        let mut out = upload(gpu, &[0.0_f32]);
        let into: GpuViewMut<'_, f32> = Gpu::<L>::view_mut(&mut out, 1);
        assert!(wrong.with(gpu, |softmax| log_prob_with(gpu, softmax, 3, x, tokens, into)).is_err());
    }
}
