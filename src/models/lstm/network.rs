//! One chunk of sequences through the network: forward steps, scoring, sampling.

use super::cell::{self, Forward, Start};
use super::head::{Softmax, softmax};
use super::layout::{Layout, Transposed};
use super::workspace::Workspace;
use crate::backend::product::{Blocks, multiply_rows};
use crate::backend::simd::Isa;
use crate::exact::Guide;
use crate::rng::Draw;
use crate::tokens::{Batch, Space, Token};

/// Sequences of a chunk: the unit of work of one thread, and of the order in which gradients are added.
pub(crate) const CHUNK: usize = 48;

/// Parameters and what is derived from them. Read-only while chunks run.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub space: Space,
    pub layout: Layout,
    pub dropout: f32,
    pub parameters: Vec<f32>,
    pub transposed: Transposed,
    /// 0 for what may be emitted, −∞ for BOS, PAD and padding, `[outputs]`.
    pub mask: Vec<f32>,
    pub isa: Isa,
}

impl Network {
    pub fn new(space: Space, layout: Layout, dropout: f32) -> Self {
        let allowed = |v| if space.is_output(v as Token) { 0.0 } else { f32::NEG_INFINITY };
        Network {
            space,
            layout,
            dropout,
            parameters: vec![0.0; layout.len()],
            transposed: Transposed::new(layout),
            mask: (0..layout.outputs()).map(allowed).collect(),
            isa: Isa::best(),
        }
    }

    /// Step `t` of all layers for the first `rows` rows, whose input tokens are in `workspace.inputs`; leaves the logits,
    /// head bias included, in `workspace.logits`.
    pub fn advance(&self, workspace: &mut Workspace, t: usize, rows: usize, dropout: Option<Draw>) {
        for layer in 0..self.layout.layers {
            self.advance_layer(workspace, layer, t, rows, dropout.is_some());
            if let Some(draw) = dropout {
                workspace.drop_units(self, layer, t, rows, draw);
            }
        }
        let (outputs, bias) = (self.layout.outputs(), &self.parameters[self.layout.head_bias()]);
        let mut logits = std::mem::take(&mut workspace.logits);
        for row in logits.chunks_exact_mut(outputs).take(rows) {
            row.copy_from_slice(bias);
        }
        let top = workspace.output(self.layout.layers - 1, t, dropout.is_some());
        let top = Blocks::rows(top, self.layout.units(), self.layout.hidden);
        let head = &self.parameters[self.layout.head()];
        multiply_rows(self.isa, rows, top, head, self.layout.head_panels(), true, &mut logits, outputs);
        workspace.logits = logits;
    }

    fn advance_layer(&self, workspace: &mut Workspace, layer: usize, t: usize, rows: usize, dropped: bool) {
        let layout = self.layout;
        let start = &self.parameters[layout.start(layer)];
        let (size, gates_size) = (workspace.slot_size(), workspace.gates_size());
        let (before, after) = (workspace.slot(t), workspace.slot(t + 1));
        let (lower, upper) = workspace.hidden.split_at_mut(layer);
        let (hidden_before, hidden_after) = two(&mut upper[0], size, before, after);
        let (cell_before, cell_after) = two(&mut workspace.cell[layer], size, before, after);
        let below = (layer > 0).then(|| {
            if dropped { &workspace.dropped[layer - 1][t * size..] } else { &lower[layer - 1][after * size..] }
        });
        let kept = workspace.keeps;
        let mut step = Forward {
            rows,
            units: layout.units(),
            hidden: layout.hidden,
            start: if layer == 0 {
                Start::Table { table: start, tokens: &workspace.inputs }
            } else {
                Start::Bias(start)
            },
            below,
            weight: &self.parameters[layout.weight(layer)],
            panels: layout.weight_panels(layer),
            hidden_before,
            cell_before,
            hidden_after,
            cell_after,
            gates: kept.then(|| (&mut workspace.gates[layer][t * gates_size..][..gates_size], CHUNK)),
        };
        cell::forward(self.isa, &mut step);
    }

    /// The masked softmax of row `row`'s logits, in place; exps go to `workspace.exps`.
    pub fn softmax(&self, workspace: &mut Workspace, row: usize) -> Softmax {
        let outputs = self.layout.outputs();
        let logits = &mut workspace.logits[row * outputs..][..outputs];
        softmax(self.isa, logits, &self.mask, &mut workspace.exps)
    }

    /// log π (log q with a guide) of the rows `rows` of `batch`, longest first, into `log_probs`.
    pub fn score(
        &self,
        workspace: &mut Workspace,
        batch: &Batch,
        rows: &[u32],
        guide: Option<&Guide>,
        log_probs: &mut [f64],
    ) {
        workspace.begin();
        workspace.start_rows(rows.len(), self.space.bos);
        log_probs.fill(0.0);
        for t in 0..batch.lengths[rows[0] as usize] as usize {
            let active = workspace.read_inputs(batch, rows, t);
            self.advance(workspace, t, active, None);
            for (row, total) in log_probs.iter_mut().enumerate().take(active) {
                let (token, state) = (batch.token(rows[row] as usize, t), workspace.states[row]);
                if t >= batch.given[rows[row] as usize] as usize {
                    let softmax = match guide {
                        Some(guide) => self.guided_softmax(workspace, row, t, guide),
                        None => self.softmax(workspace, row),
                    };
                    *total += softmax.log_prob(workspace.logits[row * self.layout.outputs() + token as usize]);
                }
                workspace.states[row] = guide.map_or(0, |guide| guide.after(state, token));
            }
        }
    }

    /// Draws sequences `first..` into the rows of `out`, behind their contexts, until each has ended.
    pub fn sample(&self, workspace: &mut Workspace, draw: Draw, first: u64, guide: Option<&Guide>, out: Samples<'_>) {
        workspace.begin();
        let (stride, mut active) = (self.space.longest as usize, out.lengths.len());
        for (tokens, &given) in out.tokens.chunks_exact_mut(stride).zip(out.given) {
            tokens[given as usize..].fill(self.space.pad);
        }
        out.lengths.fill(0);
        out.log_q.fill(0.0);
        out.log_model.fill(0.0);
        workspace.start_rows(active, self.space.bos);
        for t in 0..stride {
            self.advance(workspace, t, active, None);
            for slot in 0..active {
                let row = workspace.rows[slot] as usize;
                let at = row * stride + t;
                if t >= out.given[row] as usize {
                    let uniform = draw.uniform(first + row as u64, t as u32);
                    let drawn = self.draw(workspace, slot, t, uniform, guide);
                    out.tokens[at] = drawn.token;
                    out.lengths[row] = t as u32 + 1;
                    out.log_q[row] += drawn.log_q;
                    out.log_model[row] += drawn.log_model;
                }
                workspace.inputs[slot] = out.tokens[at];
                if let Some(guide) = guide {
                    workspace.states[slot] = guide.after(workspace.states[slot], out.tokens[at]);
                }
            }
            active = workspace.keep_unfinished(active, t, self.space.eos);
            if active == 0 {
                break;
            }
        }
    }

    /// The softmax of row `row`'s masked logits plus the guide's boosts, in place.
    fn guided_softmax(&self, workspace: &mut Workspace, row: usize, t: usize, guide: &Guide) -> Softmax {
        let (outputs, state) = (self.layout.outputs(), workspace.states[row]);
        for (token, boost) in workspace.boosts[..self.layout.vocab].iter_mut().enumerate() {
            *boost = guide.boost(t, state, token as Token);
        }
        let logits = &mut workspace.logits[row * outputs..][..outputs];
        softmax(self.isa, logits, &workspace.boosts, &mut workspace.exps)
    }

    /// Draws one token for `slot` by inverse CDF from its (guided) logits.
    fn draw(&self, workspace: &mut Workspace, slot: usize, t: usize, uniform: f32, guide: Option<&Guide>) -> Drawn {
        let outputs = self.layout.outputs();
        let model = self.softmax(workspace, slot);
        let Some(guide) = guide else {
            let token = pick(&workspace.exps, uniform, model.sum);
            let log_prob = model.log_prob(workspace.logits[slot * outputs + token]);
            return Drawn { token: token as Token, log_q: log_prob, log_model: log_prob };
        };
        workspace.plain.copy_from_slice(&workspace.logits[slot * outputs..][..outputs]);
        let guided = self.guided_softmax(workspace, slot, t, guide);
        let token = pick(&workspace.exps, uniform, guided.sum);
        Drawn {
            token: token as Token,
            log_q: guided.log_prob(workspace.logits[slot * outputs + token]),
            log_model: model.log_prob(workspace.plain[token]),
        }
    }
}

struct Drawn {
    token: Token,
    log_q: f64,
    log_model: f64,
}

/// The rows of a batch that one chunk of draws fills.
pub(crate) struct Samples<'a> {
    pub tokens: &'a mut [Token],
    pub lengths: &'a mut [u32],
    /// How many tokens of each are there already.
    pub given: &'a [u32],
    pub log_q: &'a mut [f64],
    pub log_model: &'a mut [f64],
}

/// The first token whose cumulated weight exceeds `uniform · sum`; one of weight 0 is never picked.
fn pick(weights: &[f32], uniform: f32, sum: f32) -> usize {
    let threshold = uniform * sum;
    let (mut cumulated, mut picked) = (0.0, 0);
    for (token, &weight) in weights.iter().enumerate() {
        if weight > 0.0 {
            picked = token;
            cumulated += weight;
            if cumulated > threshold {
                break;
            }
        }
    }
    picked
}

/// Slots `before` (to read) and `after` (to write) of a vector of slots of `size`.
fn two(slots: &mut [f32], size: usize, before: usize, after: usize) -> (&[f32], &mut [f32]) {
    if before < after {
        let (left, right) = slots.split_at_mut(after * size);
        (&left[before * size..][..size], &mut right[..size])
    } else {
        let (left, right) = slots.split_at_mut(before * size);
        (&right[..size], &mut left[after * size..][..size])
    }
}
