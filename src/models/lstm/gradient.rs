//! One chunk's weighted gradient: forward with everything kept, then back-propagation through time.

use super::cell::{self, Backward};
use super::layout::Transposed;
use super::network::{CHUNK, Network};
use super::workspace::Workspace;
use crate::backend::product::{Blocks, Outer, PANEL, add_outer_rows, multiply_rows};
use crate::rng::Draw;
use crate::tokens::Batch;

/// The weighted rows of one chunk.
pub(crate) struct Weighted<'a> {
    pub batch: &'a Batch,
    /// Rows of the batch, longest first; at most [`CHUNK`].
    pub rows: &'a [u32],
    /// The coefficient of a row of the batch, given its finished log π.
    pub coefficient: &'a (dyn Fn(u32, f64) -> f32 + Sync),
    pub dropout: Option<Draw>,
}

/// A weighted residual below this is taken for 0: some 20 digits below what an update can show. A policy that has all but
/// lost a token would otherwise fill the back-propagation with subnormal products, for which processors take many times as
/// long.
const NOTHING: f32 = 1e-30;

impl Network {
    /// Adds Σ_b a_b ∇log π(x_b) over the chunk's rows to `gradient` and writes their log π to `log_probs`.
    pub fn add_gradient(
        &self,
        workspace: &mut Workspace,
        chunk: &Weighted<'_>,
        log_probs: &mut [f64],
        gradient: &mut [f32],
    ) {
        self.forward(workspace, chunk, log_probs);
        self.apply_coefficients(workspace, chunk, log_probs);
        for t in (0..workspace.active.len()).rev() {
            self.back_step(workspace, t, chunk.dropout.is_some());
        }
        self.add_head_gradient(workspace, chunk.dropout.is_some(), gradient);
        for layer in 0..self.layout.layers {
            self.add_start_gradient(workspace, layer, chunk, gradient);
            self.add_weight_gradient(workspace, layer, chunk.dropout.is_some(), gradient);
        }
    }

    /// Scores the rows, keeping every step; `residual` becomes onehot − softmax, and 0 in a context.
    fn forward(&self, workspace: &mut Workspace, chunk: &Weighted<'_>, log_probs: &mut [f64]) {
        let outputs = self.layout.outputs();
        workspace.begin();
        workspace.rows.clear();
        workspace.rows.extend_from_slice(chunk.rows);
        log_probs.fill(0.0);
        for t in 0..chunk.batch.lengths[chunk.rows[0] as usize] as usize {
            let active = workspace.read_inputs(chunk.batch, chunk.rows, t);
            workspace.active.push(active as u32);
            self.advance(workspace, t, active, chunk.dropout);
            for row in 0..active {
                let residual = (t * CHUNK + row) * outputs;
                if t < chunk.batch.given[chunk.rows[row] as usize] as usize {
                    workspace.residual[residual..][..outputs].fill(0.0);
                    continue;
                }
                let softmax = self.softmax(workspace, row);
                let token = chunk.batch.token(chunk.rows[row] as usize, t) as usize;
                log_probs[row] += softmax.log_prob(workspace.logits[row * outputs + token]);
                let residual = &mut workspace.residual[residual..][..outputs];
                residual.iter_mut().zip(&workspace.exps).for_each(|(out, exp)| *out = -exp / softmax.sum);
                residual[token] += 1.0;
            }
        }
    }

    fn apply_coefficients(&self, workspace: &mut Workspace, chunk: &Weighted<'_>, log_probs: &[f64]) {
        let outputs = self.layout.outputs();
        for (row, (&sequence, &log_prob)) in chunk.rows.iter().zip(log_probs).enumerate() {
            let coefficient = (chunk.coefficient)(sequence, log_prob);
            for t in 0..chunk.batch.lengths[sequence as usize] as usize {
                let begin = (t * CHUNK + row) * outputs;
                for residual in &mut workspace.residual[begin..begin + outputs] {
                    let weighted = *residual * coefficient;
                    *residual = if weighted.abs() < NOTHING { 0.0 } else { weighted };
                }
            }
        }
        workspace.hidden_gradient.iter_mut().chain(&mut workspace.cell_gradient).for_each(|g| g.fill(0.0));
    }

    /// Step `t`: from the head down through the layers, leaving ∂/∂h_{t−1} and ∂/∂c_{t−1} for step t − 1.
    fn back_step(&self, workspace: &mut Workspace, t: usize, dropped: bool) {
        let (layout, rows) = (self.layout, workspace.active[t] as usize);
        let (units, size, gates_size) = (layout.units(), workspace.slot_size(), workspace.gates_size());
        let residual = &workspace.residual[t * CHUNK * layout.outputs()..];
        let residual = Blocks::rows(residual, layout.outputs(), layout.vocab);
        let below = &mut workspace.below_gradient;
        let head = (&self.transposed.head, Transposed::head_panels(layout));
        multiply_rows(self.isa, rows, residual, head.0, head.1, false, below, units);
        for layer in (0..layout.layers).rev() {
            let mask = dropped.then(|| &workspace.masks[layer][t * size..]);
            add_masked(&mut workspace.hidden_gradient[layer], &workspace.below_gradient, mask, rows * units);
            let gates = &mut workspace.gates[layer][t * gates_size..][..gates_size];
            cell::backward(
                self.isa,
                &mut Backward {
                    rows,
                    units,
                    cell_before: &workspace.cell[layer][t * size..][..size],
                    cell_after: &workspace.cell[layer][(t + 1) * size..][..size],
                    hidden_gradient: &workspace.hidden_gradient[layer],
                    cell_gradient: &mut workspace.cell_gradient[layer],
                    gates,
                    gate_rows: CHUNK,
                },
            );
            let panels = Transposed::gate_panels(layout);
            let gates = Blocks {
                values: gates,
                row_stride: PANEL,
                depth: PANEL,
                count: layout.panels(),
                block_stride: CHUNK * PANEL,
            };
            let recurrent = &self.transposed.recurrent[layer];
            let before = &mut workspace.hidden_gradient[layer];
            multiply_rows(self.isa, rows, gates, recurrent, panels, false, before, units);
            if layer > 0 {
                let input = &self.transposed.input[layer];
                multiply_rows(self.isa, rows, gates, input, panels, false, &mut workspace.below_gradient, units);
            }
        }
    }

    fn add_head_gradient(&self, workspace: &Workspace, dropped: bool, gradient: &mut [f32]) {
        let (layout, outputs, size) = (self.layout, self.layout.outputs(), workspace.slot_size());
        let panels = layout.head_panels();
        let head = &mut gradient[layout.head()];
        for panel in 0..panels.count() {
            let terms = Outer {
                rows: &workspace.active,
                a: top_outputs(workspace, layout.layers - 1, dropped),
                a_stride: layout.units(),
                a_step: size,
                b: &workspace.residual[panel * PANEL..],
                b_stride: outputs,
                b_step: CHUNK * outputs,
            };
            let (start, width) = (panels.start(panel), panels.width(panel));
            add_outer_rows(self.isa, terms, panels.depth, width, &mut head[start..][..panels.depth * width]);
        }
        let bias = &mut gradient[layout.head_bias()];
        for (t, &rows) in workspace.active.iter().enumerate() {
            for row in workspace.residual[t * CHUNK * outputs..].chunks_exact(outputs).take(rows as usize) {
                add(bias, row);
            }
        }
    }

    /// The input table's gradient (layer 0: a row's gates go to its token's row) or the bias's.
    fn add_start_gradient(&self, workspace: &Workspace, layer: usize, chunk: &Weighted<'_>, gradient: &mut [f32]) {
        let layout = self.layout;
        let start = &mut gradient[layout.start(layer)];
        for (t, &rows) in workspace.active.iter().enumerate() {
            for panel in 0..layout.panels() {
                let (begin, step) = workspace.panel(panel);
                let gates = workspace.gates[layer][begin + t * step..].chunks_exact(PANEL);
                for (gates, &sequence) in gates.zip(&chunk.rows[..rows as usize]) {
                    let token = match (layer, t) {
                        (0, 0) => self.space.bos,
                        (0, _) => chunk.batch.token(sequence as usize, t - 1),
                        _ => 0,
                    };
                    add(&mut start[token as usize * layout.gates() + panel * PANEL..][..PANEL], gates);
                }
            }
        }
    }

    fn add_weight_gradient(&self, workspace: &Workspace, layer: usize, dropped: bool, gradient: &mut [f32]) {
        let (layout, size) = (self.layout, workspace.slot_size());
        let panels = layout.weight_panels(layer);
        let weight = &mut gradient[layout.weight(layer)];
        for panel in 0..panels.count() {
            let (begin, b_step) = workspace.panel(panel);
            let out = &mut weight[panels.start(panel)..][..panels.depth * PANEL];
            let (input, recurrent) = out.split_at_mut((panels.depth - layout.hidden) * PANEL);
            let terms = Outer {
                rows: &workspace.active,
                a: &workspace.hidden[layer],
                a_stride: layout.units(),
                a_step: size,
                b: &workspace.gates[layer][begin..],
                b_stride: PANEL,
                b_step,
            };
            add_outer_rows(self.isa, terms, layout.hidden, PANEL, recurrent);
            if layer > 0 {
                let terms = Outer { a: top_outputs(workspace, layer - 1, dropped), ..terms };
                add_outer_rows(self.isa, terms, layout.hidden, PANEL, input);
            }
        }
    }
}

/// What layer `layer` handed upwards, from step 0 on.
fn top_outputs(workspace: &Workspace, layer: usize, dropped: bool) -> &[f32] {
    if dropped { &workspace.dropped[layer] } else { &workspace.hidden[layer][workspace.slot_size()..] }
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

fn add_masked(to: &mut [f32], from: &[f32], mask: Option<&[f32]>, len: usize) {
    match mask {
        None => add(&mut to[..len], &from[..len]),
        Some(mask) => {
            to[..len].iter_mut().zip(from).zip(mask).for_each(|((to, from), mask)| *to += from * mask);
        }
    }
}
