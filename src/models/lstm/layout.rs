//! Where each parameter lives: one flat vector in the order the kernels read it.
//!
//! Hidden units come in groups of 16; a panel of 64 columns holds the four gates (i, f, g, o) of one group, so that a
//! tile of the gate product is all a cell update needs. Units beyond `hidden` are padding: their weights are 0, their
//! gradient is 0, and so they stay at h = c = 0.

use std::ops::Range;

use crate::backend::product::{PANEL, Panels};
use crate::backend::simd::LANES;

/// Layers, hidden units and vocabulary, and the offsets that follow from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub layers: usize,
    pub hidden: usize,
    pub vocab: usize,
}

impl Layout {
    /// Hidden units, padded to whole vectors (U).
    pub fn units(self) -> usize {
        self.hidden.next_multiple_of(LANES)
    }

    /// Number of gate panels.
    pub fn panels(self) -> usize {
        self.units() / LANES
    }

    /// Gate columns, 4U.
    pub fn gates(self) -> usize {
        self.panels() * PANEL
    }

    /// Outputs, padded to whole vectors.
    pub fn outputs(self) -> usize {
        self.vocab.next_multiple_of(LANES)
    }

    /// Rows of layer `layer`'s gate matrix: its own state, below it (but for layer 0) the state of the layer under it.
    pub fn depth(self, layer: usize) -> usize {
        if layer == 0 { self.hidden } else { 2 * self.hidden }
    }

    /// Rows of what layer `layer` starts its gates from: a row per input token for layer 0, else one bias.
    fn start_rows(self, layer: usize) -> usize {
        if layer == 0 { self.vocab } else { 1 }
    }

    /// Layer 0: the input table `[V, panels, 64]`, bias included. Above: the bias `[1, panels, 64]`.
    pub fn start(self, layer: usize) -> Range<usize> {
        let begin: usize = (0..layer).map(|l| self.layer_len(l)).sum();
        begin..begin + self.start_rows(layer) * self.gates()
    }

    /// The gate matrix of `layer`, packed: rows 0..H from the layer below (but for layer 0), then H recurrent rows.
    pub fn weight(self, layer: usize) -> Range<usize> {
        let begin = self.start(layer).end;
        begin..begin + self.weight_panels(layer).len()
    }

    /// How [`Layout::weight`] is packed.
    pub fn weight_panels(self, layer: usize) -> Panels {
        Panels::new(self.depth(layer), self.gates())
    }

    /// The head's matrix `[H, outputs]`, packed.
    pub fn head(self) -> Range<usize> {
        let begin: usize = (0..self.layers).map(|l| self.layer_len(l)).sum();
        begin..begin + self.head_panels().len()
    }

    /// How [`Layout::head`] is packed.
    pub fn head_panels(self) -> Panels {
        Panels::new(self.hidden, self.outputs())
    }

    /// The head's bias `[outputs]`.
    pub fn head_bias(self) -> Range<usize> {
        let begin = self.head().end;
        begin..begin + self.outputs()
    }

    /// Number of values, padding included.
    pub fn len(self) -> usize {
        self.head_bias().end
    }

    fn layer_len(self, layer: usize) -> usize {
        self.start_rows(layer) * self.gates() + self.weight_panels(layer).len()
    }

    /// The column of (gate, unit) in a gate row.
    pub fn gate_column(self, gate: usize, unit: usize) -> usize {
        (unit / LANES) * PANEL + gate * LANES + unit % LANES
    }

    /// The parameters by their public names: (name, shape, index in the flat vector of each element in row-major order).
    ///
    /// `lstm.0.input` `[V, 4, H]`; `lstm.l.input` `[H, 4, H]` and `lstm.l.bias` `[4, H]` for l ≥ 1; `lstm.l.recurrent`
    /// `[H, 4, H]`; `head.weight` `[H, V]`; `head.bias` `[V]`. Gates are in the order i, f, g, o.
    pub fn tensors(self) -> Vec<(String, Vec<usize>, Vec<usize>)> {
        let hidden = self.hidden;
        let mut tensors = Vec::new();
        for layer in 0..self.layers {
            let (start, weight, panels) =
                (self.start(layer).start, self.weight(layer).start, self.weight_panels(layer));
            let start_row = |row: usize| self.gate_row(move |column| start + row * self.gates() + column);
            let weight_row = |row: usize| self.gate_row(move |column| weight + panels.index(row, column));
            if layer == 0 {
                let indices = (0..self.vocab).flat_map(start_row).collect();
                tensors.push(("lstm.0.input".into(), vec![self.vocab, 4, hidden], indices));
            } else {
                tensors.push((format!("lstm.{layer}.bias"), vec![4, hidden], start_row(0)));
                let indices = (0..hidden).flat_map(weight_row).collect();
                tensors.push((format!("lstm.{layer}.input"), vec![hidden, 4, hidden], indices));
            }
            let recurrent = self.depth(layer) - hidden;
            let indices = (recurrent..recurrent + hidden).flat_map(weight_row).collect();
            tensors.push((format!("lstm.{layer}.recurrent"), vec![hidden, 4, hidden], indices));
        }
        let (head, panels, bias) = (self.head().start, self.head_panels(), self.head_bias().start);
        let indices = (0..hidden).flat_map(|row| (0..self.vocab).map(move |v| head + panels.index(row, v))).collect();
        tensors.push(("head.weight".into(), vec![hidden, self.vocab], indices));
        tensors.push(("head.bias".into(), vec![self.vocab], (bias..bias + self.vocab).collect()));
        tensors
    }

    fn gate_row(self, index: impl Fn(usize) -> usize) -> Vec<usize> {
        let columns = (0..4).flat_map(|gate| (0..self.hidden).map(move |unit| self.gate_column(gate, unit)));
        columns.map(index).collect()
    }
}

/// Transposed copies for back-propagation, packed: they are made anew after each update.
#[derive(Debug, Clone)]
pub(crate) struct Transposed {
    /// Per layer, the recurrent rows: `[gates, U]`.
    pub recurrent: Vec<Vec<f32>>,
    /// Per layer above 0, the input rows: `[gates, U]`; empty for layer 0.
    pub input: Vec<Vec<f32>>,
    /// The head: `[V, U]`.
    pub head: Vec<f32>,
}

impl Transposed {
    /// How each gate transpose is packed.
    pub fn gate_panels(layout: Layout) -> Panels {
        Panels::new(layout.gates(), layout.units())
    }

    /// How the head's transpose is packed.
    pub fn head_panels(layout: Layout) -> Panels {
        Panels::new(layout.vocab, layout.units())
    }

    /// Room for the transposes of `layout`'s parameters, zero.
    pub fn new(layout: Layout) -> Self {
        let gates = |_| vec![0.0; Self::gate_panels(layout).len()];
        Transposed {
            recurrent: (0..layout.layers).map(gates).collect(),
            input: (0..layout.layers).map(|layer| if layer == 0 { Vec::new() } else { gates(layer) }).collect(),
            head: vec![0.0; Self::head_panels(layout).len()],
        }
    }

    /// Copies from the flat parameters.
    pub fn refresh(&mut self, layout: Layout, parameters: &[f32]) {
        for layer in 0..layout.layers {
            let (weight, panels) = (&parameters[layout.weight(layer)], layout.weight_panels(layer));
            let recurrent = layout.depth(layer) - layout.hidden;
            transpose(weight, panels, recurrent, layout.hidden, &mut self.recurrent[layer], Self::gate_panels(layout));
            if layer > 0 {
                transpose(weight, panels, 0, layout.hidden, &mut self.input[layer], Self::gate_panels(layout));
            }
        }
        let (head, to) = (&parameters[layout.head()], Self::head_panels(layout));
        transpose(head, layout.head_panels(), 0, layout.hidden, &mut self.head, to);
    }
}

/// `to[column, i] = from[first + i, column]` for i below `rows` and every row of `to`.
fn transpose(from: &[f32], panels: Panels, first: usize, rows: usize, to: &mut [f32], to_panels: Panels) {
    for column in 0..to_panels.depth {
        for row in 0..rows {
            to[to_panels.index(column, row)] = from[panels.index(first + row, column)];
        }
    }
}
