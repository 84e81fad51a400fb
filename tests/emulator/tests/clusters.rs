//! Gradients by clusters of blocks, each thread with its part of a row in registers, against f64; and when they are chosen.

use ebm_dpg::backend::Memory;
use ebm_dpg::backend::gpu::{Argument, Gpu, Grid, Kernel, Launcher, Limits};
use ebm_dpg::gradient::gradient_with;
use ebm_dpg::log_prob::{Logit, SoftmaxOptions};
use ebm_dpg_emulator::{Emulated, Emulator, Schedule};
use half::{bf16, f16};

mod support;
use support::{bits, download, noise, on_every_backend, upload};

on_every_backend!(
    any_size_alignment_and_type,
    hard_rows,
    temperature_and_mask,
    rows_of_weight_0_are_not_read,
    rows_at_fault_are_nan_and_the_first_is_named,
    more_rows_than_clusters,
    narrowed_gradients_are_the_wide_ones_rounded,
    no_rows,
);

const KERNELS: [Kernel; 3] = [Kernel::GradientClusterF32, Kernel::GradientClusterF16, Kernel::GradientClusterBf16];

/// Rows of logits with gaps of NaN between them.
#[derive(Clone)]
struct Case<T> {
    vocab: usize,
    stride: usize,
    scale: f32,
    mask: Option<Vec<u32>>,
    logits: Vec<T>,
    tokens: Vec<u32>,
    weights: Vec<f32>,
}

/// (gradient, log-probs, the status word).
type Found<T> = (Vec<T>, Vec<f32>, u64);

impl<T: Logit> Case<T> {
    /// A row for each weight.
    fn new(vocab: usize, stride: usize, weights: &[f32]) -> Self {
        let logits = noise(vocab as u64, stride * weights.len());
        let logit = |(i, x): (usize, f32)| if i % stride < vocab { 8.0 * x } else { f32::NAN };
        let logits = logits.into_iter().enumerate().map(|cell| T::from_f32(logit(cell))).collect();
        let tokens = (0..weights.len()).map(|row| ((row * 31 + vocab - 1) % vocab) as u32).collect();
        Case { vocab, stride, scale: 1.0, mask: None, logits, tokens, weights: weights.to_vec() }
    }

    fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.logits[row * self.stride..][..self.vocab]
    }

    /// log softmax of a row.
    fn exact(&self, row: usize) -> Vec<f64> {
        let allowed = |token: usize| self.mask.as_ref().is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1);
        let value = |(token, x): (usize, &T)| {
            if allowed(token) { f64::from(x.to_f32()) * f64::from(self.scale) } else { f64::NEG_INFINITY }
        };
        let row = self.logits[row * self.stride..][..self.vocab].iter().enumerate().map(value);
        let max = row.clone().fold(f64::NEG_INFINITY, f64::max);
        let total = row.clone().map(|x| (x - max).exp()).sum::<f64>().ln();
        row.map(|x| (x - max) - total).collect()
    }

    /// By `clusters` clusters of `size` blocks of 64 threads.
    fn run<L: Launcher>(&self, gpu: &Gpu<L>, clusters: usize, size: usize) -> Found<T> {
        self.run_to::<L, T>(gpu, T::pick(KERNELS), None, clusters, size)
    }

    /// The same, to memory of its own: `out` at first.
    fn run_to<L: Launcher, U: Logit>(
        &self,
        gpu: &Gpu<L>,
        kernel: Kernel,
        out: Option<&[U]>,
        clusters: usize,
        size: usize,
    ) -> Found<U> {
        let (logits, tokens, weights) =
            (upload(gpu, &self.logits), upload(gpu, &self.tokens), upload(gpu, &self.weights));
        let log_probs = upload(gpu, &vec![7.0_f32; self.weights.len()]);
        let out = out.map(|out| upload(gpu, out));
        let (status, mask) = (upload(gpu, &[u64::MAX]), self.mask.as_ref().map(|mask| upload(gpu, mask)));
        let packs = (self.vocab * size_of::<T>() / 16).div_ceil(64 * size).max(1);
        let stages = 4 / size_of::<T>();
        let arguments = [
            Argument::from(&logits),
            out.as_ref().map_or(Argument::from(&logits), Argument::from),
            Argument::from(&tokens),
            Argument::from(&weights),
            Argument::U64(self.weights.len() as u64),
            Argument::U32(self.vocab as u32),
            Argument::U64(self.stride as u64),
            Argument::F32(self.scale),
            mask.as_ref().map_or(Argument::Pointer(0), Argument::from),
            Argument::U32(packs as u32),
            Argument::from(&log_probs),
            Argument::from(&status),
        ];
        let grid =
            Grid::new((clusters * size) as u32, 64).clusters(size as u32).shared(stages * packs * 64 * 16 + size * 64);
        // SAFETY: the kernel's arguments, over buffers of these shapes that outlive the launch.
        unsafe { gpu.launcher().launch(kernel, grid, &arguments) }.unwrap();
        let made = match &out {
            Some(out) => download(gpu, out),
            None => download(gpu, &logits).iter().map(|x| U::from_f32(x.to_f32())).collect(),
        };
        (made, download(gpu, &log_probs), download(gpu, &status)[0])
    }

    /// One row after the other is as it is in f64, and the gaps are as they were.
    fn expect(&self, (got, log_probs, status): &Found<T>) {
        assert_eq!(*status, u64::MAX);
        // Half an ulp of the type on top of the arithmetic's error.
        let ulp = T::pick([1e-7, 5e-4, 4e-3]);
        for (row, got) in got.chunks(self.stride).enumerate() {
            let (exact, token) = (self.exact(row), self.tokens[row] as usize);
            let name = format!("V = {}, row {row}", self.vocab);
            assert!(got[self.vocab..].iter().all(|x| x.to_f32().is_nan()), "{name}: a gap was written");
            close(&format!("log-prob, {name}"), log_probs[row], exact[token], 2e-6);
            let weight = f64::from(self.weights[row]) * f64::from(self.scale);
            for (at, (got, log_prob)) in got[..self.vocab].iter().zip(&exact).enumerate() {
                let want = weight * (f64::from(u8::from(at == token)) - log_prob.exp());
                let tolerance = weight.abs() * 3e-6 + want.abs() * ulp + T::pick([0.0, 6e-8, 0.0]);
                close(&format!("gradient at {at}, {name}"), got.to_f32(), want, tolerance);
            }
            let sum: f64 = got[..self.vocab].iter().map(|x| f64::from(x.to_f32())).sum();
            let rounded = size_of::<T>() < 4; // to 16 bits, value by value
            assert!(rounded || sum.abs() <= 1e-6 * weight.abs(), "{name}: the gradient sums to {sum:e}");
        }
    }

    fn holds<L: Launcher>(&self, gpu: &Gpu<L>, size: usize) {
        self.expect(&self.run(gpu, self.weights.len(), size));
    }
}

#[track_caller]
fn close(name: &str, got: f32, want: f64, tolerance: f64) {
    let ulp = f64::from((want.abs() as f32).next_up()) - f64::from(want.abs() as f32);
    let difference = (f64::from(got) - want).abs();
    assert!(f64::from(got) == want || difference <= tolerance.max(ulp), "{name}: got {got:e}, want {want:e}");
}

/// Before compute capability 9.0 there are no clusters.
fn has_clusters<L: Launcher>(gpu: &Gpu<L>) -> bool {
    gpu.launcher().limits().capability >= 90
}

mod cases {
    use super::*;

    const WEIGHTS: [f32; 4] = [1.0, -2.5, 1e-3, 40.0];

    fn sizes_of<L: Launcher, T: Logit>(gpu: &Gpu<L>) {
        // Fewer packs than blocks; one pack or none for the last block; several passes of its 64 threads.
        for vocab in [1, 2, 7, 40, 129, 1000, 2051] {
            for size in [2, 4, 8] {
                Case::<T>::new(vocab, vocab + size % 3, &WEIGHTS).holds(gpu, size);
            }
        }
    }

    pub fn any_size_alignment_and_type<L: Launcher>(gpu: &Gpu<L>) {
        if !has_clusters(gpu) {
            return;
        }
        sizes_of::<L, f32>(gpu);
        sizes_of::<L, f16>(gpu);
        sizes_of::<L, bf16>(gpu);
        // Rows that begin at each place within 16 bytes.
        Case::<bf16>::new(1031, 1033, &[1.0; 8]).holds(gpu, 4);
    }

    fn hard_rows_of<L: Launcher, T: Logit>(gpu: &Gpu<L>, vocab: usize, largest: f32) {
        let spread = noise(3, vocab);
        let rows: Vec<Vec<f32>> = vec![
            vec![-3.25; vocab],
            (0..vocab).map(|t| if t == vocab / 2 { largest } else { 0.0 }).collect(),
            (0..vocab).map(|t| if t == vocab - 1 { largest } else { spread[t] }).collect(),
            (0..vocab).map(|t| t as f32 * (20.0 / vocab as f32)).collect(),
            (0..vocab).map(|t| [spread[t], f32::NEG_INFINITY][t % 2]).collect(),
            // Whole parts without a possible token, before and behind the others.
            (0..vocab).map(|t| if t < vocab / 4 { 0.0 } else { f32::NEG_INFINITY }).collect(),
            (0..vocab).map(|t| if t == vocab - 1 { -1e4 } else { f32::NEG_INFINITY }).collect(),
            spread.iter().map(|x| 4.0 * x - 1e4).collect(),
            // Where products with the scale are no longer exact, or infinite.
            (0..vocab).map(|t| if t % 3 == 0 { largest } else { 0.5 * largest }).collect(),
            (0..vocab).map(|t| -largest * (1 + t) as f32 / vocab as f32).collect(),
            (0..vocab).map(|t| T::pick([1e7, 2048.0, 256.0]) + (t % 5 * T::pick([1, 2, 2])) as f32).collect(),
        ];
        for (token, scale) in [(0, 1.0), (vocab / 2, 1.0), (vocab - 1, 1.0), ((vocab - 1) / 3 * 3, 8.0)] {
            let mut case = Case::<T>::new(vocab, vocab + 1, &[1.5; 11]);
            case.tokens.fill(token as u32);
            case.scale = scale;
            for (row, values) in rows.iter().enumerate() {
                case.row_mut(row).iter_mut().zip(values).for_each(|(to, &x)| *to = T::from_f32(x));
            }
            case.holds(gpu, 4);
        }
    }

    pub fn hard_rows<L: Launcher>(gpu: &Gpu<L>) {
        if !has_clusters(gpu) {
            return;
        }
        hard_rows_of::<L, f32>(gpu, 1027, 4e37);
        hard_rows_of::<L, f16>(gpu, 333, 6e4);
        hard_rows_of::<L, bf16>(gpu, 333, 4e37);
    }

    fn options_of<L: Launcher, T: Logit>(gpu: &Gpu<L>) {
        for vocab in [33, 1501] {
            for scale in [0.3, 4.0] {
                let mut case = Case::<T>::new(vocab, vocab + 1, &WEIGHTS);
                let words = (0..vocab.div_ceil(32)).map(|word| 0x9249_2493_u32.rotate_left(word as u32));
                (case.scale, case.mask) = (scale, Some(words.collect()));
                case.holds(gpu, 4);
            }
        }
    }

    pub fn temperature_and_mask<L: Launcher>(gpu: &Gpu<L>) {
        if !has_clusters(gpu) {
            return;
        }
        options_of::<L, f32>(gpu);
        options_of::<L, bf16>(gpu);
    }

    pub fn rows_of_weight_0_are_not_read<L: Launcher>(gpu: &Gpu<L>) {
        if !has_clusters(gpu) {
            return;
        }
        for weights in [[0.0, 2.0, -0.0, -1.0, 0.0], [0.0; 5], [1.0, 0.0, 0.0, 0.0, 1.0]] {
            let clean = Case::<bf16>::new(700, 701, &weights);
            let mut case = clean.clone();
            for row in (0..5).filter(|&row| weights[row] == 0.0) {
                case.row_mut(row).fill(bf16::NAN);
                case.tokens[row] = u32::MAX;
            }
            let (got, log_probs, status) = case.run(gpu, 2, 4);
            let want = clean.run(gpu, 2, 4);
            assert_eq!((status, bits(&log_probs)), (u64::MAX, bits(&want.1)));
            for row in 0..5 {
                let (got, want) = (&got[row * 701..][..700], &want.0[row * 701..][..700]);
                assert_eq!(got, want, "row {row}");
                assert_eq!(log_probs[row].is_nan(), weights[row] == 0.0);
                assert_eq!(got.iter().all(|x| x.to_f32() == 0.0), weights[row] == 0.0);
            }
        }
    }

    pub fn rows_at_fault_are_nan_and_the_first_is_named<L: Launcher>(gpu: &Gpu<L>) {
        if !has_clusters(gpu) {
            return;
        }
        const GOOD: [f32; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let clean = Case::<f32>::new(601, 603, &GOOD);
        let want = clean.run(gpu, 6, 8);
        let break_row = |case: &mut Case<f32>, row: usize, fault: u64| match fault {
            2 => case.row_mut(row)[600] = f32::NAN,
            3 => case.row_mut(row).fill(f32::NEG_INFINITY),
            4 => case.tokens[row] = 601,
            _ => case.weights[row] = f32::INFINITY,
        };
        for (first, second) in [(2, 3), (3, 4), (4, 5), (5, 2)] {
            let mut case = clean.clone();
            break_row(&mut case, 1, first);
            break_row(&mut case, 4, second);
            let (got, log_probs, status) = case.run(gpu, 3, 8);
            assert_eq!(status, 1 << 8 | first);
            for row in 0..6 {
                let bad = row == 1 || row == 4;
                let (got, want) = (&got[row * 603..][..601], &want.0[row * 603..][..601]);
                assert!(if bad { got.iter().all(|x| x.is_nan()) } else { got == want }, "row {row}");
                assert_eq!(log_probs[row].is_nan(), bad);
            }
        }
        let mut case = clean;
        case.row_mut(0)[3] = f32::INFINITY;
        assert_eq!(case.run(gpu, 1, 2).2, 2);
    }

    pub fn more_rows_than_clusters<L: Launcher>(gpu: &Gpu<L>) {
        if !has_clusters(gpu) {
            return;
        }
        // Rows of weight 0 between the others, with no barrier of their own.
        let case = Case::<f32>::new(1029, 1031, &[1.0, 0.0, -2.0, 0.0, 0.0, 0.5, 3.0]);
        let want = case.run(gpu, 7, 4);
        for clusters in [1, 2, 3] {
            let got = case.run(gpu, clusters, 4);
            assert_eq!((bits(&got.0), bits(&got.1)), (bits(&want.0), bits(&want.1)), "{clusters} clusters");
        }
        let case = Case::<f16>::new(300, 301, &[1.0, -1.0, 2.0, 0.5, 1e-2]);
        case.expect(&case.run(gpu, 1, 2));
    }

    pub fn narrowed_gradients_are_the_wide_ones_rounded<L: Launcher>(gpu: &Gpu<L>) {
        fn check<L: Launcher, U: Logit>(gpu: &Gpu<L>, kernel: Kernel) {
            for (vocab, stride, size) in [(3, 3, 2), (601, 603, 2), (1504, 1504, 3), (2051, 2053, 8)] {
                let mut case = Case::<f32>::new(vocab, stride, &[1.0, 0.0, -2.5, 40.0, 1e-3, f32::NAN]);
                case.tokens[4] = vocab as u32;
                let want = case.run(gpu, 2, size);
                let gaps = vec![U::from_f32(f32::NAN); case.logits.len()];
                let got = case.run_to(gpu, kernel, Some(&gaps), 3, size);
                assert_eq!((bits(&got.1), got.2), (bits(&want.1), want.2));
                let same = |(got, want): (&U, &f32)| {
                    let want = U::from_f32(*want).to_f32();
                    got.to_f32() == want || (got.to_f32().is_nan() && want.is_nan())
                };
                assert!(got.0.iter().zip(&want.0).all(same), "V = {vocab}");
            }
        }
        if has_clusters(gpu) {
            check::<L, f16>(gpu, Kernel::GradientClusterF32F16);
            check::<L, bf16>(gpu, Kernel::GradientClusterF32Bf16);
        }
    }

    pub fn no_rows<L: Launcher>(gpu: &Gpu<L>) {
        if has_clusters(gpu) {
            let (logits, log_probs, status) = Case::<f32>::new(40, 40, &[]).run(gpu, 1, 4);
            assert!(logits.is_empty() && log_probs.is_empty() && status == u64::MAX);
        }
    }
}

fn device(schedule: Schedule, capability: u32, shared_bytes: usize) -> Emulated {
    let limits = Limits::new(shared_bytes, 4, capability);
    Gpu::new(Emulator::new(schedule).expect("opened").limited(limits)).expect("a backend")
}

/// By the crate's own launch.
fn gradient_of<T: Logit>(gpu: &Emulated, case: &Case<T>) -> Found<T> {
    let rows = case.weights.len();
    let (mut logits, tokens) = (upload(gpu, &case.logits), upload(gpu, &case.tokens));
    let (weights, mut log_probs) = (upload(gpu, &case.weights), upload(gpu, &vec![7.0_f32; rows]));
    let options = SoftmaxOptions { stride: Some(case.stride), ..SoftmaxOptions::default() };
    let (t, w) = (Emulated::view(&tokens, rows), Emulated::view(&weights, rows));
    let (x, p) = (Emulated::view_mut(&mut logits, case.logits.len()), Emulated::view_mut(&mut log_probs, rows));
    gradient_with(gpu, &options, case.vocab, t, w, x, p).expect("launched");
    gpu.check().expect("no fault");
    (download(gpu, &logits), download(gpu, &log_probs), u64::MAX)
}

#[test]
fn the_device_and_the_row_choose_the_kernel() {
    let weights = [1.0, -2.0, 0.5];
    for schedule in Schedule::all() {
        let (old, new) = (device(schedule, 80, 227 << 10), device(schedule, 90, 227 << 10));
        let narrow = device(schedule, 90, 6 << 10); // in shared memory
        let launched = |gpu: &Emulated| gpu.launcher().take_launches();
        let case = Case::<f32>::new(2501, 2503, &weights);
        for (gpu, kernel) in
            [(&new, Kernel::GradientClusterF32), (&old, Kernel::GradientBlockF32), (&narrow, Kernel::GradientBlockF32)]
        {
            case.expect(&gradient_of(gpu, &case));
            assert_eq!(launched(gpu), [kernel]);
        }
        // More than a block keeps; what it keeps; what a warp does.
        for (vocab, kernel) in
            [(60_011, Kernel::GradientClusterBf16), (1025, Kernel::GradientBlockBf16), (1024, Kernel::GradientWarpBf16)]
        {
            let case = Case::<bf16>::new(vocab, vocab, &weights[..2]);
            case.expect(&gradient_of(&new, &case));
            assert_eq!(launched(&new), [kernel], "V = {vocab}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_every_batch() {
    let gpu = device(Schedule::Random(3), 90, 227 << 10);
    let case = Case::<f32>::new(1504, 1504, &[1.0, -2.0, 0.5]);
    let together = gradient_of(&gpu, &case);
    let mut alone = case.clone();
    (alone.logits, alone.tokens, alone.weights) = (case.logits[1504..3008].to_vec(), vec![case.tokens[1]], vec![-2.0]);
    let alone = gradient_of(&gpu, &alone);
    assert_eq!((bits(&alone.0), bits(&alone.1)), (bits(&together.0[1504..3008]), bits(&together.1[1..2])));
    gpu.launcher().take_launches();
    gradient_of(&gpu, &Case::<f32>::new(1501, 1501, &[]));
    assert!(gpu.launcher().take_launches().is_empty(), "no rows, no launch");
}
