//! The products of a linear layer on the CPU, over packed panels of 64 columns ([`crate::backend::product`]).
//!
//! Each value is one chain of fused multiply-adds in the order of its depth, so that nothing depends on threads, chunks or
//! instruction set.

use std::ops::Range;

use rayon::prelude::*;

use super::{Head, LinearKernel, LogitGradient, Rows};
use crate::backend::product::{Operand, PANEL, TILE_ROWS, Tile, multiply_tile};
use crate::backend::simd::{Isa, LANES, Simd, dispatch};
use crate::backend::{Cpu, Element};
use crate::error::{Error, Result};
use crate::log_prob::{Logit, SoftmaxOptions};
use crate::tokens::Token;

/// Panels of logits made together, before they are copied to their rows.
const GROUP: usize = 16;
/// Rows of the head whose products with a panel are added before the next: they stay in the second-level cache.
const DEPTH: usize = 256;
/// Columns that one task multiplies with the same gradients.
const COLUMNS: usize = 4 * PANEL;
/// Rows of the head's gradient of one task.
const HEAD_ROWS: usize = 8 * TILE_ROWS;

/// `out[row, ..columns] (+)= Σ_k a[row, k] · b[k, ..columns]` for one panel `b` of `width` columns, zeros from `columns` on.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a product")]
unsafe fn panel<S: Simd>(
    rows: usize,
    a: Operand<'_>,
    b: &[f32],
    width: usize,
    depth: usize,
    accumulate: bool,
    out: &mut [f32],
    out_stride: usize,
    columns: usize,
) {
    for first in (0..rows).step_by(TILE_ROWS) {
        let count = TILE_ROWS.min(rows - first);
        let mut tile: Tile = [[0.0; PANEL]; TILE_ROWS];
        if accumulate {
            for i in 0..count {
                tile[i][..columns].copy_from_slice(&out[(first + i) * out_stride..][..columns]);
            }
        }
        // SAFETY: the caller's.
        unsafe { multiply_tile::<S>(a, first, count, b, width, width, depth, &mut tile) };
        for i in 0..count {
            out[(first + i) * out_stride..][..columns].copy_from_slice(&tile[i][..columns]);
        }
    }
}
dispatch! {
    fn multiply_panel(
        rows: usize, a: Operand<'_>, b: &[f32], width: usize, depth: usize, accumulate: bool, out: &mut [f32],
        out_stride: usize, columns: usize,
    ) = panel
}

/// The columns of a panel that begins at `at`, and the same in whole vectors.
fn widths(at: usize, columns: usize) -> (usize, usize) {
    let columns = PANEL.min(columns - at);
    (columns, columns.next_multiple_of(LANES))
}

/// `packed[k, j] = matrix[first + j, k]`: the transpose of some rows of `depth` values, zeros beyond `rows` of them.
fn pack_rows<T: Logit>(matrix: &[T], depth: usize, rows: Range<usize>, width: usize, packed: &mut [f32]) {
    packed[..depth * width].fill(0.0);
    // Blocks of 16 × 16, so that both sides stay in the first-level cache.
    for block in (0..depth).step_by(LANES) {
        let ks = block..depth.min(block + LANES);
        for (j, row) in rows.clone().enumerate() {
            let row = &matrix[row * depth..][..depth];
            for k in ks.clone() {
                packed[k * width + j] = row[k].to_f32();
            }
        }
    }
}

/// `packed[k, j] = matrix[rows.start + k, column + j]`, zeros from `columns` on.
fn pack_columns<T: Logit>(
    matrix: &[T],
    stride: usize,
    rows: Range<usize>,
    column: usize,
    (columns, width): (usize, usize),
    packed: &mut [f32],
) {
    for (row, to) in rows.zip(packed.chunks_exact_mut(width)) {
        let from = &matrix[row * stride + column..][..columns];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
        to[columns..].fill(0.0);
    }
}

fn widened<T: Logit>(values: &[T]) -> Vec<f32> {
    values.iter().map(|value| value.to_f32()).collect()
}

/// `Ok` where all of a row is finite.
fn check_finite<T: Logit>(what: &str, row: usize, values: &[T]) -> Result<()> {
    match values.iter().position(|value| !value.to_f32().is_finite()) {
        None => Ok(()),
        Some(column) => {
            let value = values[column].to_f32();
            Err(Error::not_a_number(what, format_args!("row {row}, column {column} ({value})")))
        }
    }
}

impl LinearKernel for Cpu {
    fn narrow_len<T: Logit>(_logits: usize) -> usize {
        0
    }

    fn reborrow<'a, T: Element>(view: &'a mut &mut [T]) -> &'a mut [T] {
        view
    }

    fn read<T: Element>(&self, from: &[T], to: &mut [T]) -> Result<()> {
        to.copy_from_slice(from);
        Ok(())
    }

    fn fill<T: Element>(&self, value: T, to: &mut [T]) -> Result<()> {
        to.fill(value);
        Ok(())
    }

    fn gather<T: Element>(&self, width: usize, rows: &[u64], from: &[T], to: &mut [T]) -> Result<()> {
        for (to, &row) in to.chunks_exact_mut(width).zip(rows) {
            to.copy_from_slice(&from[row as usize * width..][..width]);
        }
        Ok(())
    }

    fn scatter<T: Element>(&self, width: usize, rows: &[u64], from: &[T], to: &mut [T]) -> Result<()> {
        for (from, &row) in from.chunks_exact(width).zip(rows) {
            to[row as usize * width..][..width].copy_from_slice(from);
        }
        Ok(())
    }

    fn check_rows<T: Logit>(
        &self,
        head: &Head<'_, Cpu, T>,
        rows: &Rows<'_, Cpu, T>,
        range: Range<usize>,
    ) -> Result<()> {
        for row in range {
            let token = rows.tokens[row];
            if token as usize >= head.vocab {
                return Err(Error::argument(format!("token of row {row}"), format!("below {}", head.vocab), token));
            }
            check_finite("hidden states", row, &rows.hidden[row * head.width..][..head.width])?;
        }
        Ok(())
    }

    fn check_head<T: Logit>(&self, head: &Head<'_, Cpu, T>) -> Result<()> {
        if head.width == 0 {
            return Err(Error::argument("width of the hidden states", "1 or more", 0));
        }
        let rows = head.weight.par_chunks_exact(head.width).enumerate();
        let fault = |(row, values): (usize, &[T])| check_finite("weight of the head", row, values).err();
        rows.map(fault).find_map_first(|fault| fault).map_or(Ok(()), Err)
    }

    fn logits<T: Logit>(&self, head: &Head<'_, Cpu, T>, hidden: &[T], logits: &mut [f32]) -> Result<()> {
        let (width, vocab) = (head.width, head.vocab);
        let (rows, hidden) = (hidden.len() / width, widened(hidden));
        let mut made = vec![0.0; GROUP * rows * PANEL];
        for group in (0..vocab).step_by(GROUP * PANEL) {
            let panels = made.par_chunks_mut(rows * PANEL).enumerate().filter(|(at, _)| group + at * PANEL < vocab);
            panels.for_each_init(
                || vec![0.0; width * PANEL],
                |packed, (at, made)| {
                    let first = group + at * PANEL;
                    let (columns, padded) = widths(first, vocab);
                    pack_rows(head.weight, width, first..first + columns, padded, packed);
                    let a = Operand::rows(&hidden, width);
                    multiply_panel(Isa::best(), rows, a, packed, padded, width, false, made, PANEL, columns);
                },
            );
            logits.par_chunks_exact_mut(vocab).enumerate().for_each(|(row, logits)| {
                for (at, logits) in logits[group..].chunks_mut(PANEL).take(GROUP).enumerate() {
                    let columns = logits.len();
                    logits.copy_from_slice(&made[(at * rows + row) * PANEL..][..columns]);
                }
            });
        }
        Ok(())
    }

    fn gradient_by_rows<T: Logit>(
        &self,
        _softmax: &SoftmaxOptions<'_, Cpu>,
        _vocab: usize,
        _rows: (&[Token], &[f32]),
        _logits: &mut [f32],
        _narrow: &mut [T],
        _log_probs: &mut [f32],
    ) -> Result<Option<bool>> {
        Ok(None)
    }

    fn backward<T: Logit>(
        &self,
        head: &Head<'_, Cpu, T>,
        gradient: LogitGradient<'_, Cpu, T>,
        hidden: &[T],
        hidden_gradient: &mut [f32],
        head_gradient: &mut [f32],
    ) -> Result<()> {
        let LogitGradient::Wide(gradient, _) = gradient else { unreachable!("no gradient is narrowed here") };
        backward_hidden(head, gradient, hidden_gradient);
        backward_head(head, gradient, hidden, head_gradient);
        Ok(())
    }
}

/// `out` = `gradient` · head: each task has some columns of `out`, and takes the head in blocks of rows.
fn backward_hidden<T: Logit>(head: &Head<'_, Cpu, T>, gradient: &[f32], out: &mut [f32]) {
    let (width, vocab, rows) = (head.width, head.vocab, gradient.len() / head.vocab);
    let mut made = vec![0.0; width.div_ceil(COLUMNS) * rows * COLUMNS];
    made.par_chunks_mut(rows * COLUMNS).enumerate().for_each_init(
        || vec![0.0; DEPTH * PANEL],
        |packed, (task, made)| {
            for first in (0..vocab).step_by(DEPTH) {
                let depth = DEPTH.min(vocab - first);
                let a = Operand::rows(&gradient[first..], vocab);
                for column in (task * COLUMNS..width.min((task + 1) * COLUMNS)).step_by(PANEL) {
                    let widths = widths(column, width);
                    pack_columns(head.weight, width, first..first + depth, column, widths, packed);
                    let out = &mut made[column - task * COLUMNS..];
                    multiply_panel(Isa::best(), rows, a, packed, widths.1, depth, true, out, COLUMNS, widths.0);
                }
            }
        },
    );
    out.par_chunks_exact_mut(width).enumerate().for_each(|(row, out)| {
        for (task, out) in out.chunks_mut(COLUMNS).enumerate() {
            let columns = out.len();
            out.copy_from_slice(&made[(task * rows + row) * COLUMNS..][..columns]);
        }
    });
}

/// `out` += `gradient`ᵀ · `hidden`: each task has some rows of `out`.
fn backward_head<T: Logit>(head: &Head<'_, Cpu, T>, gradient: &[f32], hidden: &[T], out: &mut [f32]) {
    let (width, vocab, rows) = (head.width, head.vocab, gradient.len() / head.vocab);
    let panels: Vec<Vec<f32>> = (0..width.div_ceil(PANEL))
        .into_par_iter()
        .map(|panel| {
            let widths = widths(panel * PANEL, width);
            let mut packed = vec![0.0; rows * widths.1];
            pack_columns(hidden, width, 0..rows, panel * PANEL, widths, &mut packed);
            packed
        })
        .collect();
    out.par_chunks_mut(HEAD_ROWS * width).enumerate().for_each_init(
        || vec![0.0; rows * HEAD_ROWS],
        |packed, (task, out)| {
            let count = out.len() / width;
            pack_columns(gradient, vocab, 0..rows, task * HEAD_ROWS, (count, HEAD_ROWS), packed);
            let a = Operand { values: packed, row_stride: 1, depth_stride: HEAD_ROWS };
            for (panel, b) in panels.iter().enumerate() {
                let (columns, padded) = widths(panel * PANEL, width);
                let out = &mut out[panel * PANEL..];
                multiply_panel(Isa::best(), count, a, b, padded, rows, true, out, width, columns);
            }
        },
    );
}
