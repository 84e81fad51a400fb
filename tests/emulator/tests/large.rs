//! Draws from logits and the linear layer on a GPU, against the CPU backend.

use ebm_dpg::backend::gpu::{Gpu, Launcher};
use ebm_dpg::backend::{Backend, Cpu, Element, Memory};
use ebm_dpg::gradient::Coefficient;
use ebm_dpg::linear::{Head, LinearGradient, LinearKernel, Rows, Workspace, linear_gradient, linear_log_prob};
use ebm_dpg::log_prob::{Logit, SoftmaxOptions};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::sampling::{Sampled, SamplingKernel, Truncation, Uniforms, sample};
use half::{bf16, f16};

mod support;
use support::{bits, noise, on_every_backend};

on_every_backend!(
    draws_are_the_cpus,
    draws_under_mask_and_stride,
    rows_that_cannot_be_drawn_from_are_nan,
    the_linear_layer_follows_the_cpu,
    sequences_of_weight_0_are_not_read,
);

mod cases {
    use super::*;

    fn put<B: Memory, T: Element>(backend: &B, values: &[T]) -> B::Buffer<T> {
        let mut buffer = backend.zeros(values.len(), "values").unwrap();
        backend.upload(values, &mut buffer).unwrap();
        buffer
    }

    fn get<B: Memory, T: Element>(backend: &B, buffer: &B::Buffer<T>) -> Vec<T> {
        let mut values = vec![T::default(); B::len(buffer)];
        // A fault is reported after the copy.
        let _ = backend.download(buffer, &mut values);
        values
    }

    struct Case<T> {
        vocab: usize,
        stride: usize,
        scale: f32,
        mask: Option<Vec<u32>>,
        logits: Vec<T>,
    }

    /// Rows of the draws' tests.
    const DRAWN: usize = 6;

    impl<T: Logit> Case<T> {
        fn new(vocab: usize) -> Self {
            let logits = noise(vocab as u64, vocab * DRAWN).iter().map(|&x| T::from_f32(x * 4.0)).collect();
            Case { vocab, stride: vocab, scale: 1.0, mask: None, logits }
        }

        /// (tokens, log q, flags).
        fn drawn<B: Backend + SamplingKernel>(
            &self,
            on: &B,
            truncation: &Truncation,
        ) -> (Vec<u32>, Vec<f32>, Vec<u32>) {
            let (logits, numbers) =
                (put(on, &self.logits), put(on, &(0..DRAWN as u32).map(|i| i * 3).collect::<Vec<_>>()));
            let mask = self.mask.as_ref().map(|mask| put(on, mask));
            let mask = mask.as_ref().map(|mask| B::view(mask, B::len(mask)));
            let softmax = SoftmaxOptions { scale: self.scale, mask, stride: Some(self.stride) };
            let (mut t, mut q) = (put(on, &[7u32; DRAWN]), put(on, &[7.0f32; DRAWN]));
            let mut flags = put(on, &[0u32; DRAWN]);
            let draw = Draw::new(5, Purpose::User).skip(11);
            let uniforms = Uniforms { draw, position: 2, rows: Some(B::view(&numbers, DRAWN)) };
            let out = Sampled {
                tokens: B::view_mut(&mut t, DRAWN),
                log_q: B::view_mut(&mut q, DRAWN),
                unreachable: B::view_mut(&mut flags, DRAWN),
            };
            sample(on, &softmax, truncation, self.vocab, B::view(&logits, self.logits.len()), &uniforms, out).unwrap();
            (get(on, &t), get(on, &q), get(on, &flags))
        }

        fn agrees<L: Launcher>(&self, gpu: &Gpu<L>, truncation: &Truncation) {
            let (got, want) = (self.drawn(gpu, truncation), self.drawn(&Cpu, truncation));
            gpu.check().unwrap();
            assert_eq!((&got.0, &got.2), (&want.0, &want.2), "V = {}, {truncation:?}", self.vocab);
            for (got, want) in got.1.iter().zip(&want.1) {
                assert!((got - want).abs() <= 3e-6, "{got} and {want}, V = {}, {truncation:?}", self.vocab);
            }
        }
    }

    pub fn draws_are_the_cpus<L: Launcher>(gpu: &Gpu<L>) {
        let none = Truncation::default();
        for vocab in [2, 33, 600] {
            for truncation in [
                none,
                Truncation { top_k: Some(1), ..none },
                Truncation { top_k: Some(20), ..none },
                Truncation { top_p: 0.6, ..none },
                Truncation { min_p: 0.3, ..none },
                Truncation { top_k: Some(30), top_p: 0.9, min_p: 0.01 },
            ] {
                Case::<f32>::new(vocab).agrees(gpu, &truncation);
            }
            Case::<bf16>::new(vocab).agrees(gpu, &Truncation { top_k: Some(7), top_p: 0.8, ..none });
        }
        Case::<f16>::new(40).agrees(gpu, &Truncation { top_p: 0.5, ..none });
        // Ties at the thresholds.
        let mut tied = Case::<f32>::new(300);
        tied.logits.iter_mut().for_each(|x| *x = x.round());
        for top_k in [1, 10, 150] {
            tied.agrees(gpu, &Truncation { top_k: Some(top_k), ..none });
        }
    }

    pub fn draws_under_mask_and_stride<L: Launcher>(gpu: &Gpu<L>) {
        let mut case = Case::<f32>::new(300);
        (case.vocab, case.stride, case.scale) = (290, 300, 0.5);
        case.mask = Some((0..10).map(|word| 0x6DB6_DB6D_u32.rotate_left(word)).collect());
        for row in case.logits.chunks_mut(300) {
            row[290..].fill(f32::NAN);
            row[..40].fill(f32::NEG_INFINITY);
        }
        case.agrees(gpu, &Truncation::default());
        case.agrees(gpu, &Truncation { top_k: Some(400), top_p: 0.95, min_p: 0.05 });
        case.agrees(gpu, &Truncation { top_k: Some(200), ..Truncation::default() });
    }

    pub fn rows_that_cannot_be_drawn_from_are_nan<L: Launcher>(gpu: &Gpu<L>) {
        let mut case = Case::<f32>::new(300);
        let want = case.drawn(gpu, &Truncation::default());
        case.logits[5 * 300 + 299] = f32::NAN;
        case.logits[2 * 300..3 * 300].fill(f32::NEG_INFINITY);
        let got = case.drawn(gpu, &Truncation::default());
        for row in 0..DRAWN {
            let bad = row == 5 || row == 2;
            assert_eq!(got.1[row].is_nan(), bad);
            assert!(bad || got.0[row] == want.0[row]);
        }
        // The download has reported the fault.
        gpu.check().unwrap();
    }

    const OFFSETS: [u64; 6] = [0, 3, 3, 7, 12, 14];
    const ROWS: usize = 15;
    const WEIGHTS: [f32; 5] = [1.5, 2.0, 0.0, -0.5, 3.0];
    const LOG_Q: [f64; 5] = [-4.0, 0.0, -9.0, -12.0, -5.0];

    struct Layer<T> {
        width: usize,
        vocab: usize,
        hidden: Vec<T>,
        weight: Vec<T>,
        tokens: Vec<u32>,
    }

    impl<T: Logit> Layer<T> {
        fn new(width: usize, vocab: usize) -> Self {
            let narrow = |values: Vec<f32>| values.into_iter().map(T::from_f32).collect();
            let tokens = (0..ROWS as u32).map(|row| row * 7 % vocab as u32).collect();
            let (hidden, weight) = (narrow(noise(1, ROWS * width)), narrow(noise(2, vocab * width)));
            Layer { width, vocab, hidden, weight, tokens }
        }

        /// Log-probs alone, then (log-probs, log π, gradient of the hidden states, of the head).
        fn run<B: Backend + LinearKernel>(&self, on: &B, baseline: Option<f64>) -> [Vec<f32>; 5] {
            let (hidden, weight, tokens) = (put(on, &self.hidden), put(on, &self.weight), put(on, &self.tokens));
            let (w, q) = (put(on, &WEIGHTS), put(on, &LOG_Q));
            let head = Head { width: self.width, vocab: self.vocab, weight: B::view(&weight, self.weight.len()) };
            let rows = Rows { hidden: B::view(&hidden, self.hidden.len()), tokens: B::view(&tokens, ROWS) };
            let mut workspace = (1..).flat_map(|k| Workspace::<B, T>::new(on, self.width, self.vocab, k * 500));
            let mut workspace = workspace.find(|workspace| workspace.rows() >= 6).unwrap();
            let softmax = SoftmaxOptions { scale: 0.75, ..SoftmaxOptions::default() };
            let mut alone = put(on, &[7.0f32; ROWS]);
            if !self.hidden.iter().any(|x| x.to_f32().is_nan()) {
                linear_log_prob(on, &softmax, &head, &rows, &mut workspace, B::view_mut(&mut alone, ROWS)).unwrap();
            }
            let (mut log_probs, mut log_pi) = (put(on, &[7.0f32; ROWS]), put(on, &[7.0f64; 5]));
            let mut to_hidden = put(on, &vec![7.0f32; self.hidden.len()]);
            let mut to_head = put(on, &vec![1.0f32; self.weight.len()]);
            let out = LinearGradient {
                log_probs: B::view_mut(&mut log_probs, ROWS),
                log_pi: B::view_mut(&mut log_pi, 5),
                hidden: B::view_mut(&mut to_hidden, self.hidden.len()),
                head: B::view_mut(&mut to_head, self.weight.len()),
            };
            let weights = B::view(&w, 5);
            let coefficient = match baseline {
                None => Coefficient::Given { weights },
                Some(baseline) => Coefficient::Baseline { weights, log_q: B::view(&q, 5), baseline },
            };
            linear_gradient(on, &softmax, &head, &rows, &OFFSETS, &coefficient, &mut workspace, out).unwrap();
            let log_pi = get(on, &log_pi).into_iter().map(|x| x as f32).collect();
            [get(on, &alone), get(on, &log_probs), log_pi, get(on, &to_hidden), get(on, &to_head)]
        }

        /// `error` is what rounding gradients to 16 bits may add, relative to the largest.
        fn agrees<L: Launcher>(&self, gpu: &Gpu<L>, baseline: Option<f64>, error: f32) {
            let (got, want) = (self.run(gpu, baseline), self.run(&Cpu, baseline));
            gpu.check().unwrap();
            for (part, (got, want)) in got.iter().zip(&want).enumerate() {
                let largest = want.iter().fold(1.0f32, |largest, x| if x.abs() > largest { x.abs() } else { largest });
                let tolerance = if part < 3 { 4e-5 } else { (2e-5 + error) * largest };
                for (at, (got, want)) in got.iter().zip(want).enumerate() {
                    let close = (got - want).abs() <= tolerance || (got.is_nan() && want.is_nan());
                    assert!(close, "[{}, {}], part {part}, value {at}: {got} and {want}", self.width, self.vocab);
                }
            }
        }
    }

    pub fn the_linear_layer_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        if without_products(gpu) {
            return;
        }
        for (width, vocab) in [(1, 2), (5, 17), (32, 130)] {
            for baseline in [None, Some(0.5)] {
                Layer::<f32>::new(width, vocab).agrees(gpu, baseline, 0.0);
                Layer::<bf16>::new(width, vocab).agrees(gpu, baseline, 8e-3);
            }
        }
        Layer::<f16>::new(7, 9).agrees(gpu, None, 1e-3);
        // Rows of more than a warp: where there are clusters, gradients narrowed as they are made.
        Layer::<f32>::new(3, 1101).agrees(gpu, None, 0.0);
        Layer::<bf16>::new(3, 1101).agrees(gpu, None, 8e-3);
        Layer::<f16>::new(3, 1101).agrees(gpu, None, 1e-3);
        let twice = [0, 1].map(|_| Layer::<f32>::new(5, 17).run(gpu, None).map(|part| bits(&part)));
        assert_eq!(twice[0], twice[1]);
    }

    pub fn sequences_of_weight_0_are_not_read<L: Launcher>(gpu: &Gpu<L>) {
        if without_products(gpu) {
            return;
        }
        let mut layer = Layer::<f32>::new(4, 9);
        let clean = layer.run(gpu, None);
        layer.hidden[3 * 4..7 * 4].fill(f32::NAN);
        layer.tokens[3] = u32::MAX;
        let got = layer.run(gpu, None);
        assert_eq!((&got[3], &got[4]), (&clean[3], &clean[4]));
        assert!(got[3][3 * 4..7 * 4].iter().all(|&x| x == 0.0) && got[1][3..7].iter().all(|x| x.is_nan()));
    }

    /// Whether this machine lacks the library of products: the fake driver has none.
    fn without_products<L: Launcher>(gpu: &Gpu<L>) -> bool {
        use ebm_dpg::backend::gpu::{Matrix, Product, Scalar};
        let one = put(gpu, &[1.0f32; 64]);
        let matrix = Matrix { address: one.address(), columns: 4, transposed: false };
        let to = put(gpu, &[0.0f32; 16]);
        let product =
            Product { shape: [4; 3], scalar: Scalar::F32, a: matrix, b: matrix, to: to.address(), add: false };
        // SAFETY: 16 values and more on all sides.
        match unsafe { gpu.launcher().product(&product) } {
            Ok(()) => {
                assert_eq!(get(gpu, &to), [4.0; 16]);
                false
            }
            Err(error) => {
                assert!(error.to_string().starts_with("cuBLASLt: not found"), "{error}");
                true
            }
        }
    }
}
