//! An LSTM language model in f64: forward pass, log-probs, and the gradient of Σ a_b log π(x_b) by back-propagation
//! through time. One sequence, one token at a time.
//!
//! Parameters, row-major (V ids, H hidden units; gates in the order input, forget, cell, output):
//! `lstm.0.input` `[V, 4, H]` the one-hot input as a table, bias included; `lstm.l.input` `[H, 4, H]` and
//! `lstm.l.bias` `[4, H]` for l ≥ 1; `lstm.l.recurrent` `[H, 4, H]`; `head.weight` `[H, V]`; `head.bias` `[V]`.

use std::collections::BTreeMap;

use ebm_dpg::tokens::{Space, Token};

use super::{log_softmax, random};

/// Parameter blocks, or their gradients, by name.
pub type Tensors = BTreeMap<String, Vec<f64>>;

#[derive(Debug, Clone)]
pub struct OracleLstm {
    pub space: Space,
    pub hidden: usize,
    pub layers: usize,
    pub tensors: Tensors,
}

/// What one layer leaves behind at one position.
struct Cell {
    /// The layer's input `[H]`; empty in layer 0, which reads a token.
    input: Vec<f64>,
    /// h and c before the step, `[H]`.
    h_before: Vec<f64>,
    c_before: Vec<f64>,
    /// i, f, g, o after their nonlinearities, `[4, H]`.
    gates: Vec<f64>,
    /// h and c after the step, `[H]`.
    h: Vec<f64>,
    c: Vec<f64>,
}

impl OracleLstm {
    /// A model of the given parameters.
    pub fn new(space: Space, hidden: usize, layers: usize, tensors: Tensors) -> Self {
        let shapes = Self::shapes(space, hidden, layers);
        assert_eq!(shapes.len(), tensors.len(), "parameter blocks: {:?}", tensors.keys());
        for (name, shape) in shapes {
            assert_eq!(tensors[&name].len(), shape.iter().product::<usize>(), "size of {name}");
        }
        OracleLstm { space, hidden, layers, tensors }
    }

    /// Parameters uniform in [-scale, scale), exact in f32 where `scale` is a power of two.
    pub fn random(space: Space, hidden: usize, layers: usize, scale: f32, seed: u64) -> Self {
        let blocks = Self::shapes(space, hidden, layers).into_iter().enumerate();
        let tensors = blocks.map(|(at, (name, shape))| {
            let values = random(seed + at as u64, shape.iter().product(), scale);
            (name, values.into_iter().map(f64::from).collect())
        });
        Self::new(space, hidden, layers, tensors.collect())
    }

    /// Names and shapes of the parameter blocks.
    pub fn shapes(space: Space, hidden: usize, layers: usize) -> Vec<(String, Vec<usize>)> {
        let vocab = space.vocab as usize;
        let mut shapes = Vec::new();
        for layer in 0..layers {
            let width = if layer == 0 { vocab } else { hidden };
            shapes.push((format!("lstm.{layer}.input"), vec![width, 4, hidden]));
            shapes.push((format!("lstm.{layer}.recurrent"), vec![hidden, 4, hidden]));
            if layer > 0 {
                shapes.push((format!("lstm.{layer}.bias"), vec![4, hidden]));
            }
        }
        shapes.push(("head.weight".into(), vec![hidden, vocab]));
        shapes.push(("head.bias".into(), vec![vocab]));
        shapes
    }

    /// log π(x), EOS included.
    pub fn log_prob(&self, sequence: &[Token]) -> f64 {
        let (_, rows) = self.forward(sequence);
        sequence.iter().zip(rows).map(|(&token, row)| row[token as usize]).sum()
    }

    /// log π(· | prefix), `[V]`; −∞ for BOS and PAD.
    pub fn next_log_probs(&self, prefix: &[Token]) -> Vec<f64> {
        // The token after the prefix is never read: any will do.
        let (_, mut rows) = self.forward(&[prefix, &[self.space.eos]].concat());
        rows.pop().expect("one row per token")
    }

    /// Σ_b a_b ∇log π(x_b), by block.
    pub fn gradient(&self, weighted: &[(Vec<Token>, f64)]) -> Tensors {
        let mut gradient: Tensors =
            self.tensors.iter().map(|(name, block)| (name.clone(), vec![0.0; block.len()])).collect();
        for (sequence, weight) in weighted {
            self.backward(sequence, *weight, &mut gradient);
        }
        gradient
    }

    fn tensor(&self, name: &str) -> &[f64] {
        &self.tensors[name]
    }

    /// What the model reads at each position: BOS, then the tokens but the last.
    fn inputs(&self, sequence: &[Token]) -> Vec<Token> {
        std::iter::once(self.space.bos).chain(sequence.iter().copied()).take(sequence.len()).collect()
    }

    /// (cells `[T][layers]`, log-softmax rows `[T][V]`).
    fn forward(&self, sequence: &[Token]) -> (Vec<Vec<Cell>>, Vec<Vec<f64>>) {
        let zeros = vec![0.0; self.hidden];
        let (mut cells, mut rows): (Vec<Vec<Cell>>, _) = (Vec::new(), Vec::new());
        for token in self.inputs(sequence) {
            let mut step: Vec<Cell> = Vec::new();
            for layer in 0..self.layers {
                let (h, c) = match cells.last() {
                    Some(before) => (before[layer].h.clone(), before[layer].c.clone()),
                    None => (zeros.clone(), zeros.clone()),
                };
                let below = step.last().map_or(Vec::new(), |below| below.h.clone());
                step.push(self.cell(layer, token, below, h, c));
            }
            rows.push(self.head(&step[self.layers - 1].h));
            cells.push(step);
        }
        (cells, rows)
    }

    /// c' = σ(f)·c + σ(i)·tanh(g), h' = σ(o)·tanh(c').
    fn cell(&self, layer: usize, token: Token, input: Vec<f64>, h_before: Vec<f64>, c_before: Vec<f64>) -> Cell {
        let (width, hidden) = (4 * self.hidden, self.hidden);
        let table = self.tensor(&format!("lstm.{layer}.input"));
        let mut gates = if layer == 0 {
            table[token as usize * width..][..width].to_vec()
        } else {
            let mut gates = self.tensor(&format!("lstm.{layer}.bias")).to_vec();
            add_product(&mut gates, &input, table);
            gates
        };
        add_product(&mut gates, &h_before, self.tensor(&format!("lstm.{layer}.recurrent")));
        for (at, gate) in gates.iter_mut().enumerate() {
            *gate = if at / hidden == 2 { gate.tanh() } else { 1.0 / (1.0 + (-*gate).exp()) };
        }
        let gate = |k: usize, j: usize| gates[k * hidden + j];
        let c: Vec<f64> = (0..hidden).map(|j| gate(1, j) * c_before[j] + gate(0, j) * gate(2, j)).collect();
        let h = (0..hidden).map(|j| gate(3, j) * c[j].tanh()).collect();
        Cell { input, h_before, c_before, gates, h, c }
    }

    /// Log-softmax of the head's logits, BOS and PAD masked.
    fn head(&self, h: &[f64]) -> Vec<f64> {
        let mut logits = self.tensor("head.bias").to_vec();
        add_product(&mut logits, h, self.tensor("head.weight"));
        logits[self.space.bos as usize] = f64::NEG_INFINITY;
        logits[self.space.pad as usize] = f64::NEG_INFINITY;
        log_softmax(&logits)
    }

    fn backward(&self, sequence: &[Token], weight: f64, gradient: &mut Tensors) {
        let (cells, rows) = self.forward(sequence);
        let inputs = self.inputs(sequence);
        // What flows back from the next position, per layer.
        let mut dh = vec![vec![0.0; self.hidden]; self.layers];
        let mut dc = dh.clone();
        for position in (0..sequence.len()).rev() {
            let mut dlogits: Vec<f64> = rows[position].iter().map(|log_prob| -weight * log_prob.exp()).collect();
            dlogits[sequence[position] as usize] += weight;
            let mut above = transposed_product(self.tensor("head.weight"), &dlogits, self.hidden);
            add_outer(block(gradient, "head.weight"), &cells[position][self.layers - 1].h, &dlogits);
            add(block(gradient, "head.bias"), &dlogits);
            for layer in (0..self.layers).rev() {
                add(&mut dh[layer], &above);
                let cell = &cells[position][layer];
                let dgates = self.cell_backward(cell, &dh[layer], &mut dc[layer]);
                let recurrent = format!("lstm.{layer}.recurrent");
                add_outer(block(gradient, &recurrent), &cell.h_before, &dgates);
                dh[layer] = transposed_product(self.tensor(&recurrent), &dgates, self.hidden);
                let input = format!("lstm.{layer}.input");
                if layer == 0 {
                    let width = 4 * self.hidden;
                    add(&mut block(gradient, &input)[inputs[position] as usize * width..][..width], &dgates);
                } else {
                    add_outer(block(gradient, &input), &cell.input, &dgates);
                    add(block(gradient, &format!("lstm.{layer}.bias")), &dgates);
                    above = transposed_product(self.tensor(&input), &dgates, self.hidden);
                }
            }
        }
    }

    /// Gradient with respect to the gates before their nonlinearities, `[4, H]`; `dc` goes from c' to c.
    fn cell_backward(&self, cell: &Cell, dh: &[f64], dc: &mut [f64]) -> Vec<f64> {
        let hidden = self.hidden;
        let mut dgates = vec![0.0; 4 * hidden];
        for j in 0..hidden {
            let [i, f, g, o] = [0, 1, 2, 3].map(|k| cell.gates[k * hidden + j]);
            let tanh = cell.c[j].tanh();
            let d = dc[j] + dh[j] * o * (1.0 - tanh * tanh);
            dgates[j] = d * g * i * (1.0 - i);
            dgates[hidden + j] = d * cell.c_before[j] * f * (1.0 - f);
            dgates[2 * hidden + j] = d * i * (1.0 - g * g);
            dgates[3 * hidden + j] = dh[j] * tanh * o * (1.0 - o);
            dc[j] = d * f;
        }
        dgates
    }
}

fn block<'a>(tensors: &'a mut Tensors, name: &str) -> &'a mut [f64] {
    tensors.get_mut(name).expect("a parameter block")
}

fn add(to: &mut [f64], values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
}

/// out[n] += Σ_m x[m]·matrix[m, n].
fn add_product(out: &mut [f64], x: &[f64], matrix: &[f64]) {
    for (x, row) in x.iter().zip(matrix.chunks_exact(out.len())) {
        out.iter_mut().zip(row).for_each(|(out, m)| *out += x * m);
    }
}

/// Σ_n matrix[m, n]·x[n], for m in 0..rows.
fn transposed_product(matrix: &[f64], x: &[f64], rows: usize) -> Vec<f64> {
    (0..rows).map(|m| x.iter().zip(&matrix[m * x.len()..]).map(|(x, m)| x * m).sum()).collect()
}

/// matrix[m, n] += x[m]·y[n].
fn add_outer(matrix: &mut [f64], x: &[f64], y: &[f64]) {
    for (x, row) in x.iter().zip(matrix.chunks_exact_mut(y.len())) {
        row.iter_mut().zip(y).for_each(|(m, y)| *m += x * y);
    }
}
