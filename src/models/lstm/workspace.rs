//! The memory one chunk works in. It is made once per thread and kept, so that no step allocates.

use std::sync::Mutex;

use super::layout::Layout;
use super::network::{CHUNK, Network};
use crate::backend::product::PANEL;
use crate::rng::Draw;
use crate::tokens::{Batch, Token};

/// States, gates and logits of up to [`CHUNK`] sequences. Values per kept step and sequence: 6U a layer (8U where
/// dropout is on) and the outputs; a workspace that keeps nothing holds two steps.
pub(crate) struct Workspace {
    layout: Layout,
    /// Whether every step is kept, for back-propagation, or two take turns.
    pub keeps: bool,
    /// Per layer, h: `[steps + 1, CHUNK, U]`; slot 0 is the zero state.
    pub hidden: Vec<Vec<f32>>,
    /// Per layer, c, likewise.
    pub cell: Vec<Vec<f32>>,
    /// Per layer, `[steps, panels, CHUNK, 64]`: the gates, then the gradients of their pre-activations.
    pub gates: Vec<Vec<f32>>,
    /// Per layer, h after dropout: `[steps, CHUNK, U]`; empty until dropout is used.
    pub dropped: Vec<Vec<f32>>,
    /// Per layer, 0 or 1 / (1 − rate), likewise.
    pub masks: Vec<Vec<f32>>,
    /// `[steps, CHUNK, outputs]`: coefficient · (onehot − softmax).
    pub residual: Vec<f32>,
    /// Rows in use per step, `[steps]`.
    pub active: Vec<u32>,
    /// `[CHUNK, outputs]`.
    pub logits: Vec<f32>,
    /// `[outputs]` each: exponentials, the guide's boosts, logits before them.
    pub exps: Vec<f32>,
    pub boosts: Vec<f32>,
    pub plain: Vec<f32>,
    /// Input token per row.
    pub inputs: Vec<Token>,
    /// Row of the chunk per slot, and the guide's state, while sampling.
    pub rows: Vec<u32>,
    pub states: Vec<u32>,
    /// Per layer, ∂/∂h and ∂/∂c of the step under way, `[CHUNK, U]`, and one for the layer below a dropout.
    pub hidden_gradient: Vec<Vec<f32>>,
    pub cell_gradient: Vec<Vec<f32>>,
    pub below_gradient: Vec<f32>,
}

impl Workspace {
    /// Room for `steps` kept steps, or for two that take turns where `steps` is `None`.
    pub fn new(layout: Layout, steps: Option<usize>) -> Self {
        let (slots, kept) = (steps.map_or(2, |steps| steps + 1), steps.unwrap_or(0));
        let state = CHUNK * layout.units();
        let per_layer = |len: usize| vec![vec![0.0; len]; layout.layers];
        let gradients = if steps.is_some() { state } else { 0 };
        Workspace {
            layout,
            keeps: steps.is_some(),
            hidden: per_layer(slots * state),
            cell: per_layer(slots * state),
            gates: per_layer(kept * CHUNK * layout.gates()),
            dropped: per_layer(0),
            masks: per_layer(0),
            residual: vec![0.0; kept * CHUNK * layout.outputs()],
            active: Vec::with_capacity(kept),
            logits: vec![0.0; CHUNK * layout.outputs()],
            exps: vec![0.0; layout.outputs()],
            boosts: vec![f32::NEG_INFINITY; layout.outputs()],
            plain: vec![0.0; layout.outputs()],
            inputs: vec![0; CHUNK],
            rows: Vec::with_capacity(CHUNK),
            states: Vec::with_capacity(CHUNK),
            hidden_gradient: per_layer(gradients),
            cell_gradient: per_layer(gradients),
            below_gradient: vec![0.0; gradients],
        }
    }

    /// Values of one slot of h or c.
    pub fn slot_size(&self) -> usize {
        CHUNK * self.layout.units()
    }

    /// Values of one step's gates.
    pub fn gates_size(&self) -> usize {
        CHUNK * self.layout.gates()
    }

    /// The slot of the state that step `t` reads.
    pub fn slot(&self, t: usize) -> usize {
        if self.keeps { t } else { t % 2 }
    }

    /// Zero states for a new chunk.
    pub fn begin(&mut self) {
        let size = self.slot_size();
        self.hidden.iter_mut().chain(&mut self.cell).for_each(|slots| slots[..size].fill(0.0));
        self.active.clear();
    }

    /// What layer `layer` hands upwards at step `t`.
    pub fn output(&self, layer: usize, t: usize, dropped: bool) -> &[f32] {
        let size = self.slot_size();
        if dropped {
            &self.dropped[layer][t * size..][..size]
        } else {
            &self.hidden[layer][self.slot(t + 1) * size..][..size]
        }
    }

    /// Reads the input tokens of step `t` for the sequences that have one; `sequences` is sorted, longest first.
    /// Returns their number.
    pub fn read_inputs(&mut self, batch: &Batch, sequences: &[u32], t: usize) -> usize {
        let active = sequences.partition_point(|&row| batch.lengths[row as usize] as usize > t);
        for (input, &row) in self.inputs.iter_mut().zip(&sequences[..active]) {
            *input = if t == 0 { batch.space.bos } else { batch.token(row as usize, t - 1) };
        }
        active
    }

    /// Slots 0..`count` for as many new sequences.
    pub fn start_rows(&mut self, count: usize, bos: Token) {
        self.rows.clear();
        self.rows.extend(0..count as u32);
        self.states.clear();
        self.states.resize(count, 0);
        self.inputs[..count].fill(bos);
    }

    /// Moves the slots whose last token is not `eos` to the front, in order, with their states after step `t`.
    /// Returns their number.
    pub fn keep_unfinished(&mut self, active: usize, t: usize, eos: Token) -> usize {
        let (units, size, slot) = (self.layout.units(), self.slot_size(), self.slot(t + 1));
        let mut kept = 0;
        for from in 0..active {
            if self.inputs[from] == eos {
                continue;
            }
            if kept != from {
                self.inputs[kept] = self.inputs[from];
                self.rows[kept] = self.rows[from];
                self.states[kept] = self.states[from];
                for state in self.hidden.iter_mut().chain(&mut self.cell) {
                    let begin = slot * size + from * units;
                    state.copy_within(begin..begin + units, slot * size + kept * units);
                }
            }
            kept += 1;
        }
        kept
    }

    /// Drops units of layer `layer`'s output at step `t`: each with the network's rate, the rest scaled up by
    /// 1 / (1 − rate) (Srivastava et al. 2014). Eight 16-bit uniforms come out of one Philox call.
    pub fn drop_units(&mut self, network: &Network, layer: usize, t: usize, rows: usize, draw: Draw) {
        let (units, size) = (self.layout.units(), self.slot_size());
        let begin = t * size;
        if self.masks[layer].is_empty() {
            let steps = self.hidden[layer].len() / size - 1;
            self.masks[layer].resize(steps * size, 0.0);
            self.dropped[layer].resize(steps * size, 0.0);
        }
        let limit = (network.dropout * 65_536.0) as u32;
        let scale = 1.0 / (1.0 - network.dropout);
        let hidden = &self.hidden[layer][(t + 1) * size..];
        for row in 0..rows {
            let sequence = u64::from(self.rows[row]);
            for unit in (0..units).step_by(8) {
                let words = draw.words(sequence, t as u32, (layer * units + unit) as u32);
                for (k, at) in (begin + row * units + unit..).take(8).enumerate() {
                    let half = words[k / 2] >> (16 * (k % 2)) & 0xFFFF;
                    let mask = if half < limit { 0.0 } else { scale };
                    self.masks[layer][at] = mask;
                    self.dropped[layer][at] = mask * hidden[at - begin];
                }
            }
        }
    }

    /// The values of one step's panel of gates or gate gradients: (begin of step 0, stride between steps).
    pub fn panel(&self, panel: usize) -> (usize, usize) {
        (panel * CHUNK * PANEL, self.gates_size())
    }
}

/// Workspaces that wait for the next chunk. There are never more of them than threads that worked at once.
pub(crate) struct Pool {
    free: Mutex<Vec<Workspace>>,
    layout: Layout,
    steps: Option<usize>,
}

impl Pool {
    pub fn new(layout: Layout, steps: Option<usize>) -> Self {
        Pool { free: Mutex::new(Vec::new()), layout, steps }
    }

    /// Runs `work` in a workspace; makes one where none is free.
    pub fn with<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let lock = || self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let free = lock().pop();
        let mut workspace = free.unwrap_or_else(|| Workspace::new(self.layout, self.steps));
        let result = work(&mut workspace);
        lock().push(workspace);
        result
    }
}
