//! Log-probs and gradients from hidden states, against the logits written out in f64 and the stages over logits.

mod oracle;

use ebm_dpg::Error;
use ebm_dpg::backend::Cpu;
use ebm_dpg::gradient::{Coefficient, Divergence, Scores, Sequences, sequence_gradient};
use ebm_dpg::linear::{Head, LinearGradient, Rows, Workspace, linear_gradient, linear_log_prob};
use ebm_dpg::log_prob::{Logit, SoftmaxOptions};
use half::bf16;
use oracle::{assert_block_close, assert_close, log_softmax, random};

const OFFSETS: [u64; 6] = [0, 3, 3, 7, 12, 14];
const ROWS: usize = 15;

struct Case<T> {
    width: usize,
    vocab: usize,
    hidden: Vec<T>,
    weight: Vec<T>,
    tokens: Vec<u32>,
}

/// (log-probs, log π, gradient of the hidden states, of the head).
type Found = (Vec<f32>, Vec<f64>, Vec<f32>, Vec<f32>);

impl<T: Logit> Case<T> {
    fn new(width: usize, vocab: usize) -> Self {
        let narrow = |values: Vec<f32>| values.into_iter().map(T::from_f32).collect();
        Case {
            width,
            vocab,
            hidden: narrow(random(1, ROWS * width, 1.0)),
            weight: narrow(random(2, vocab * width, 0.5)),
            tokens: (0..ROWS as u32).map(|row| row * 7 % vocab as u32).collect(),
        }
    }

    fn head(&self) -> Head<'_, Cpu, T> {
        Head { width: self.width, vocab: self.vocab, weight: &self.weight }
    }

    fn rows(&self) -> Rows<'_, Cpu, T> {
        Rows { hidden: &self.hidden, tokens: &self.tokens }
    }

    fn workspace(&self, rows: usize) -> Workspace<Cpu, T> {
        (0..)
            .flat_map(|bytes| Workspace::new(&Cpu, self.width, self.vocab, bytes * 100))
            .find(|w| w.rows() >= rows)
            .unwrap()
    }

    /// The logits in f64.
    fn logits(&self) -> Vec<f64> {
        let dot = |row: usize, v: usize| -> f64 {
            let (a, b) = (&self.hidden[row * self.width..], &self.weight[v * self.width..]);
            (0..self.width).map(|k| f64::from(a[k].to_f32()) * f64::from(b[k].to_f32())).sum()
        };
        (0..ROWS).flat_map(|row| (0..self.vocab).map(move |v| (row, v))).map(|(row, v)| dot(row, v)).collect()
    }

    fn gradient(&self, coefficient: &Coefficient<'_, Cpu>, rows: usize) -> ebm_dpg::Result<Found> {
        let mut found =
            (vec![7.0; ROWS], vec![7.0; 5], vec![7.0; ROWS * self.width], vec![1.0; self.vocab * self.width]);
        let out = LinearGradient::<Cpu> {
            log_probs: &mut found.0,
            log_pi: &mut found.1,
            hidden: &mut found.2,
            head: &mut found.3,
        };
        let softmax = SoftmaxOptions { scale: 0.75, ..SoftmaxOptions::default() };
        let (head, given, mut workspace) = (self.head(), self.rows(), self.workspace(rows));
        let result = linear_gradient(&Cpu, &softmax, &head, &given, &OFFSETS, coefficient, &mut workspace, out);
        if result.is_err() {
            assert!(found.0.iter().chain(&found.2).all(|&x| x == 7.0), "an error writes nothing");
            assert!(found.1.iter().all(|&x| x == 7.0) && found.3.iter().all(|&x| x == 1.0), "an error writes nothing");
        }
        result.map(|()| found)
    }

    /// Products in f64 around the stage over logits.
    fn expected(&self, coefficient: Coefficient<'_, Cpu>) -> Found {
        let mut logits: Vec<f32> = self.logits().into_iter().map(|x| x as f32).collect();
        let (mut log_probs, mut log_pi) = (vec![f32::NAN; ROWS], vec![0.0; 5]);
        let softmax = SoftmaxOptions { scale: 0.75, ..SoftmaxOptions::default() };
        let scores = Scores::<Cpu> { log_probs: &mut log_probs, log_pi: &mut log_pi };
        let sequences = Sequences::<Cpu> { offsets: &OFFSETS, coefficient };
        sequence_gradient(&Cpu, &softmax, self.vocab, &sequences, &self.tokens, &mut logits[..], scores).unwrap();
        logits[14 * self.vocab..].fill(0.0);
        let mut hidden = vec![0.0; ROWS * self.width];
        let mut head = vec![1.0; self.vocab * self.width];
        for row in 0..ROWS {
            for v in 0..self.vocab {
                let g = logits[row * self.vocab + v];
                for k in 0..self.width {
                    hidden[row * self.width + k] += g * self.weight[v * self.width + k].to_f32();
                    head[v * self.width + k] += g * self.hidden[row * self.width + k].to_f32();
                }
            }
        }
        (log_probs, log_pi, hidden, head)
    }
}

const WEIGHTS: [f32; 5] = [1.5, 2.0, 0.0, -0.5, 3.0];
const LOG_P: [f64; 5] = [-3.0, -1.0, f64::NEG_INFINITY, -9.0, -4.0];
const LOG_Q: [f64; 5] = [-4.0, 0.0, -5.0, -8.0, -5.0];

fn coefficients() -> Vec<fn() -> Coefficient<'static, Cpu>> {
    vec![
        || Coefficient::Given { weights: &WEIGHTS },
        || Coefficient::Baseline { weights: &WEIGHTS, log_q: &LOG_Q, baseline: 0.5 },
        || Coefficient::Divergence { divergence: Divergence::JensenShannon, log_p: &LOG_P, log_q: &LOG_Q },
    ]
}

#[test]
fn log_probs_are_those_of_the_products() {
    // Around a vector, a panel, and the panels that are made together.
    for (width, vocab) in [(1, 2), (5, 17), (16, 64), (33, 130), (70, 1100)] {
        let case = Case::<f32>::new(width, vocab);
        let logits = case.logits();
        let want: Vec<f64> =
            logits.chunks(vocab).zip(&case.tokens).map(|(row, &t)| log_softmax(row)[t as usize]).collect();
        for rows in [1, 4, 100] {
            let mut got = vec![0.0; ROWS];
            let mut workspace = case.workspace(rows);
            let softmax = SoftmaxOptions::default();
            linear_log_prob(&Cpu, &softmax, &case.head(), &case.rows(), &mut workspace, &mut got).unwrap();
            assert_close(&format!("[{width}, {vocab}]"), &got, &want, 1e-5);
        }
    }
}

#[test]
fn gradients_are_those_of_the_products() {
    for (width, vocab) in [(1, 2), (5, 17), (33, 130), (300, 1100)] {
        for coefficient in coefficients() {
            let case = Case::<f32>::new(width, vocab);
            let (got, want) = (case.gradient(&coefficient(), 6).unwrap(), case.expected(coefficient()));
            assert_close("log-probs", &got.0[..14], &want.0[..14], 1e-5);
            assert!(got.0[14].is_nan(), "a row of no sequence");
            assert_block_close("hidden", &got.2, &want.2, 1e-5);
            assert_block_close("head", &got.3, &want.3, 1e-5);
            let case = Case::<bf16>::new(width, vocab);
            let (got, want) = (case.gradient(&coefficient(), 6).unwrap(), case.expected(coefficient()));
            assert_block_close("hidden of bf16", &got.2, &want.2, 1e-5);
            assert_block_close("head of bf16", &got.3, &want.3, 1e-5);
        }
    }
}

#[test]
fn bits_depend_on_neither_workspace_nor_threads() {
    let case = Case::<f32>::new(33, 130);
    let bits = |found: Found| -> Vec<u32> {
        found
            .0
            .iter()
            .chain(&found.2)
            .chain(&found.3)
            .map(|x| x.to_bits())
            .chain(found.1.iter().map(|x| x.to_bits() as u32))
            .collect()
    };
    let run = |rows, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        bits(pool.install(|| case.gradient(&coefficients()[0](), rows)).unwrap())
    };
    assert_eq!(run(5, 1), run(100, 3));
}

#[test]
fn sequences_of_weight_0_are_not_read() {
    let mut case = Case::<f32>::new(4, 9);
    let clean = case.gradient(&coefficients()[0](), 6).unwrap();
    case.hidden[3 * 4..7 * 4].fill(f32::NAN);
    case.tokens[3] = u32::MAX;
    let got = case.gradient(&coefficients()[0](), 6).unwrap();
    assert_eq!((&got.2, &got.3), (&clean.2, &clean.3));
    assert!(got.2[3 * 4..7 * 4].iter().all(|&x| x == 0.0) && got.0[3..7].iter().all(|x| x.is_nan()));
    assert!(got.1[2].is_nan() && got.1[1].is_nan(), "weight 0, and empty");
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let good = Case::<f32>::new(4, 9);
    let given = coefficients()[0];
    let mut case = Case::<f32>::new(4, 9);
    case.hidden[8 * 4 + 2] = f32::NAN;
    assert_eq!(case.gradient(&given(), 6).unwrap_err(), Error::not_a_number("hidden states", "row 8, column 2 (NaN)"));
    let mut case = Case::<f32>::new(4, 9);
    case.weight[5 * 4 + 1] = f32::INFINITY;
    assert_eq!(
        case.gradient(&given(), 6).unwrap_err(),
        Error::not_a_number("weight of the head", "row 5, column 1 (inf)")
    );
    let mut case = Case::<f32>::new(4, 9);
    case.tokens[13] = 9;
    assert_eq!(case.gradient(&given(), 6).unwrap_err().to_string(), "token of row 13: expected below 9, got 9");
    let error = good.gradient(&given(), 4).unwrap_err().to_string();
    assert!(error.starts_with("workspace: expected room for sequence 3: 5 rows, "), "{error}");
    assert!(
        Workspace::<Cpu, f32>::new(&Cpu, 4, 9, 100)
            .is_err_and(|error| error.to_string().starts_with("workspace: expected "))
    );
    let mut other = Workspace::<Cpu, f32>::new(&Cpu, 4, 8, 10_000).unwrap();
    let softmax = SoftmaxOptions::default();
    let error = linear_log_prob(&Cpu, &softmax, &good.head(), &good.rows(), &mut other, &mut [0.0; ROWS]).unwrap_err();
    assert_eq!(error.to_string(), "workspace: expected one for [H, V] = [4, 9], got [4, 8]");
    let short = Rows::<Cpu, f32> { hidden: &good.hidden[1..], tokens: &good.tokens };
    assert!(linear_log_prob(&Cpu, &softmax, &good.head(), &short, &mut good.workspace(2), &mut [0.0; ROWS]).is_err());
    let none = Rows::<Cpu, f32> { hidden: &[], tokens: &[] };
    linear_log_prob(&Cpu, &softmax, &good.head(), &none, &mut good.workspace(2), &mut []).unwrap();
}
