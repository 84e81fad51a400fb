//! The LSTM cell on one panel layout: gates by matrix product with the update fused behind it, and its derivative.
//!
//! c' = σ(f)·c + σ(i)·tanh(g), h = σ(o)·tanh(c'): Hochreiter & Schmidhuber 1997, with forget gates (Gers et al. 2000).

use crate::backend::product::{Operand, PANEL, Panels, TILE_ROWS, Tile, multiply_tile};
use crate::backend::simd::{LANES, Simd, dispatch};

/// What a row's gates start from, before the products.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// Layer 0: the table row of the row's input token; a one-hot product is a look-up.
    Table { table: &'a [f32], tokens: &'a [u32] },
    /// Above: one bias.
    Bias(&'a [f32]),
}

/// One step of one layer for `rows` sequences; matrices `[rows, U]` unless said otherwise.
pub(crate) struct Forward<'a> {
    pub rows: usize,
    pub units: usize,
    pub hidden: usize,
    pub start: Start<'a>,
    /// The state of the layer below, if there is one.
    pub below: Option<&'a [f32]>,
    /// The gate matrix, packed: rows from below, then recurrent ones.
    pub weight: &'a [f32],
    pub panels: Panels,
    pub hidden_before: &'a [f32],
    pub cell_before: &'a [f32],
    pub hidden_after: &'a mut [f32],
    pub cell_after: &'a mut [f32],
    /// σ(i), σ(f), tanh(g), σ(o) per panel, `[panels, gate_rows, 64]`, where back-propagation needs them.
    pub gates: Option<(&'a mut [f32], usize)>,
}

dispatch! {
    /// Runs one [`Forward`].
    pub(crate) fn forward(step: &mut Forward<'_>) = forward_step
}

#[inline(always)]
unsafe fn forward_step<S: Simd>(step: &mut Forward<'_>) {
    for panel in 0..step.units / LANES {
        for first in (0..step.rows).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(step.rows - first);
            let mut tile: Tile = [[0.0; PANEL]; TILE_ROWS];
            // SAFETY: the caller's instruction set; slices check their bounds.
            unsafe {
                gate_products::<S>(step, panel, first, count, &mut tile);
                // Two passes: the long chain exp → divide → c → exp → divide → h of one row would leave the units idle.
                for (i, gates) in tile.iter_mut().enumerate().take(count) {
                    update_cell::<S>(step, panel, first + i, gates);
                }
                for (i, gates) in tile.iter().enumerate().take(count) {
                    let at = (first + i) * step.units + panel * LANES;
                    let cell = S::load(step.cell_after[at..][..LANES].as_ptr());
                    let output = S::load(gates[3 * LANES..].as_ptr());
                    output.mul(cell.tanh()).store(step.hidden_after[at..][..LANES].as_mut_ptr());
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn gate_products<S: Simd>(step: &Forward<'_>, panel: usize, first: usize, count: usize, tile: &mut Tile) {
    let gates = step.units * 4;
    for (i, row) in tile.iter_mut().enumerate().take(count) {
        let from = match step.start {
            Start::Table { table, tokens } => &table[tokens[first + i] as usize * gates + panel * PANEL..],
            Start::Bias(bias) => &bias[panel * PANEL..],
        };
        row.copy_from_slice(&from[..PANEL]);
    }
    let weight = &step.weight[step.panels.start(panel)..][..step.panels.depth * PANEL];
    let (input, recurrent) = weight.split_at((step.panels.depth - step.hidden) * PANEL);
    unsafe {
        if let Some(below) = step.below {
            let below = Operand::rows(below, step.units);
            multiply_tile::<S>(below, first, count, input, PANEL, PANEL, step.hidden, tile);
        }
        let before = Operand::rows(step.hidden_before, step.units);
        multiply_tile::<S>(before, first, count, recurrent, PANEL, PANEL, step.hidden, tile);
    }
}

/// c' = f·c + i·g for one row; leaves σ(o) in its place for h, and keeps all gates where back-propagation wants them.
#[inline(always)]
unsafe fn update_cell<S: Simd>(step: &mut Forward<'_>, panel: usize, row: usize, gates: &mut [f32; PANEL]) {
    unsafe {
        let gate = |at: usize| S::load(gates.as_ptr().add(at * LANES));
        let (i, f, g, o) = (gate(0).sigmoid(), gate(1).sigmoid(), gate(2).tanh(), gate(3).sigmoid());
        let at = row * step.units + panel * LANES;
        let before = S::load(step.cell_before[at..][..LANES].as_ptr());
        f.fma(before, i.mul(g)).store(step.cell_after[at..][..LANES].as_mut_ptr());
        o.store(gates.as_mut_ptr().add(3 * LANES));
        if let Some((kept, gate_rows)) = &mut step.gates {
            let kept = kept[(panel * *gate_rows + row) * PANEL..][..PANEL].as_mut_ptr();
            i.store(kept);
            f.store(kept.add(LANES));
            g.store(kept.add(2 * LANES));
            o.store(kept.add(3 * LANES));
        }
    }
}

/// The derivative of one step of one layer for `rows` sequences.
pub(crate) struct Backward<'a> {
    pub rows: usize,
    pub units: usize,
    /// c_{t−1} and c_t, `[rows, U]`.
    pub cell_before: &'a [f32],
    pub cell_after: &'a [f32],
    /// ∂/∂h_t, `[rows, U]`.
    pub hidden_gradient: &'a [f32],
    /// In: ∂/∂c_t from the step after. Out: ∂/∂c_{t−1}. `[rows, U]`.
    pub cell_gradient: &'a mut [f32],
    /// In: the kept gates. Out: the gradient of their pre-activations. `[panels, gate_rows, 64]`.
    pub gates: &'a mut [f32],
    pub gate_rows: usize,
}

dispatch! {
    /// Runs one [`Backward`].
    pub(crate) fn backward(step: &mut Backward<'_>) = backward_step
}

#[inline(always)]
unsafe fn backward_step<S: Simd>(step: &mut Backward<'_>) {
    for panel in 0..step.units / LANES {
        for row in 0..step.rows {
            // SAFETY: the caller's instruction set; slices check their bounds.
            unsafe { backward_row::<S>(step, panel, row) }
        }
    }
}

#[inline(always)]
unsafe fn backward_row<S: Simd>(step: &mut Backward<'_>, panel: usize, row: usize) {
    unsafe {
        let at = row * step.units + panel * LANES;
        let load = |values: &[f32]| S::load(values[at..][..LANES].as_ptr());
        let gates = step.gates[(panel * step.gate_rows + row) * PANEL..][..PANEL].as_mut_ptr();
        let gate = |at: usize| S::load(gates.add(at * LANES));
        let (i, f, g, o) = (gate(0), gate(1), gate(2), gate(3));
        let one = S::splat(1.0);
        let squashed = load(step.cell_after).tanh();
        let hidden = load(step.hidden_gradient);
        // ∂c = ∂h·o·(1 − tanh²c) + what the next step sent back.
        let slope = one.sub(squashed.mul(squashed));
        let cell = hidden.mul(o).fma(slope, load(step.cell_gradient));
        let logistic = |gradient: S, gate: S| gradient.mul(gate).mul(one.sub(gate));
        logistic(cell.mul(g), i).store(gates);
        logistic(cell.mul(load(step.cell_before)), f).store(gates.add(LANES));
        cell.mul(i).mul(one.sub(g.mul(g))).store(gates.add(2 * LANES));
        logistic(hidden.mul(squashed), o).store(gates.add(3 * LANES));
        cell.mul(f).store(step.cell_gradient[at..][..LANES].as_mut_ptr());
    }
}
