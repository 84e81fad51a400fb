//! Matrix products on packed panels: the micro-kernel under every dense layer of the CPU backend.
//!
//! A packed matrix `[depth, columns]` is stored as panels of up to four vectors (64 columns): panel p holds rows of
//! `width(p)` contiguous values. A tile is six rows of one panel. Each value of a product is one chain of fused
//! multiply-adds over the depth, in order: it does not depend on the rows around it, nor on the instruction set.

use super::simd::{LANES, Simd, dispatch};

/// Rows of a tile.
pub(crate) const TILE_ROWS: usize = 6;
/// Columns of a full panel.
pub(crate) const PANEL: usize = 4 * LANES;

/// How many rows of a panel are asked for ahead: panels stream from the second-level cache.
const PREFETCH: usize = 4;

/// Six rows of one panel, on the stack.
pub(crate) type Tile = [[f32; PANEL]; TILE_ROWS];

/// The panels of a packed matrix with `depth` rows and `columns` columns, a multiple of 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Panels {
    pub depth: usize,
    pub columns: usize,
}

impl Panels {
    /// `columns` are rounded up to whole vectors.
    pub fn new(depth: usize, columns: usize) -> Self {
        Panels { depth, columns: columns.next_multiple_of(LANES) }
    }

    /// Number of values.
    pub fn len(self) -> usize {
        self.depth * self.columns
    }

    /// Number of panels.
    pub fn count(self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// Columns of panel `panel`.
    pub fn width(self, panel: usize) -> usize {
        (self.columns - panel * PANEL).min(PANEL)
    }

    /// Where panel `panel` begins.
    pub fn start(self, panel: usize) -> usize {
        panel * PANEL * self.depth
    }

    /// Where (row, column) is stored.
    pub fn index(self, row: usize, column: usize) -> usize {
        let panel = column / PANEL;
        self.start(panel) + row * self.width(panel) + column % PANEL
    }
}

/// A strided matrix operand: element (row, k) at `values[row · row_stride + k · depth_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub values: &'a [f32],
    pub row_stride: usize,
    pub depth_stride: usize,
}

impl<'a> Operand<'a> {
    /// Rows of contiguous values, `stride` apart.
    #[inline(always)]
    pub fn rows(values: &'a [f32], stride: usize) -> Self {
        Operand { values, row_stride: stride, depth_stride: 1 }
    }
}

/// `tile[i, ..width] += Σ_k a[first + i, k] · b[k, ..width]` for i below `rows` (1 to 6) and k below `depth`, where row
/// k of `b` begins at `k · b_stride`.
///
/// # Safety
/// As for [`Simd`]; bounds are asserted here.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the micro-kernel's operands, one by one")]
pub(crate) unsafe fn multiply_tile<S: Simd>(
    a: Operand<'_>,
    first: usize,
    rows: usize,
    b: &[f32],
    b_stride: usize,
    width: usize,
    depth: usize,
    tile: &mut Tile,
) {
    if depth == 0 {
        return;
    }
    assert!((1..=TILE_ROWS).contains(&rows) && width.is_multiple_of(LANES) && width <= PANEL);
    assert!((first + rows - 1) * a.row_stride + (depth - 1) * a.depth_stride < a.values.len());
    assert!((depth - 1) * b_stride + width <= b.len());
    unsafe {
        // Missing rows repeat the last one; their results are not used.
        let row = |i: usize| a.values.as_ptr().add((first + i.min(rows - 1)) * a.row_stride);
        let rows = [row(0), row(1), row(2), row(3), row(4), row(5)];
        let run = Run { rows, depth_stride: a.depth_stride, b: b.as_ptr(), b_stride, depth };
        if S::WIDE {
            match width / LANES {
                4 => run.accumulate::<S, 4>(tile, 0),
                3 => run.accumulate::<S, 3>(tile, 0),
                2 => run.accumulate::<S, 2>(tile, 0),
                _ => run.accumulate::<S, 1>(tile, 0),
            }
        } else {
            for column in (0..width).step_by(LANES) {
                run.accumulate::<S, 1>(tile, column);
            }
        }
    }
}

/// Checked pointers of one [`multiply_tile`].
struct Run {
    rows: [*const f32; TILE_ROWS],
    depth_stride: usize,
    b: *const f32,
    b_stride: usize,
    depth: usize,
}

impl Run {
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const VECTORS: usize>(&self, tile: &mut Tile, column: usize) {
        unsafe {
            let tile = tile.as_mut_ptr().cast::<f32>().add(column);
            let mut sums = [[S::splat(0.0); VECTORS]; TILE_ROWS];
            for i in 0..TILE_ROWS {
                for v in 0..VECTORS {
                    sums[i][v] = S::load(tile.add(i * PANEL + v * LANES));
                }
            }
            let mut b = self.b.add(column);
            let mut offset = 0;
            for _ in 0..self.depth {
                let mut row = [S::splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    row[v] = S::load(b.add(v * LANES));
                    S::prefetch(b.wrapping_add(PREFETCH * self.b_stride + v * LANES));
                }
                for i in 0..TILE_ROWS {
                    let a = S::splat(*self.rows[i].add(offset));
                    for v in 0..VECTORS {
                        sums[i][v] = a.fma(row[v], sums[i][v]);
                    }
                }
                b = b.add(self.b_stride);
                offset += self.depth_stride;
            }
            for i in 0..TILE_ROWS {
                for v in 0..VECTORS {
                    sums[i][v].store(tile.add(i * PANEL + v * LANES));
                }
            }
        }
    }
}

/// The left operand of [`multiply`]: `count` blocks of `depth` columns each, block i beginning at `i · block_stride`,
/// its rows `row_stride` apart. An ordinary matrix is one block.
#[derive(Clone, Copy)]
pub(crate) struct Blocks<'a> {
    pub values: &'a [f32],
    pub row_stride: usize,
    pub depth: usize,
    pub count: usize,
    pub block_stride: usize,
}

impl<'a> Blocks<'a> {
    /// Rows of `depth` contiguous values, `stride` apart.
    pub fn rows(values: &'a [f32], stride: usize, depth: usize) -> Self {
        Blocks { values, row_stride: stride, depth, count: 1, block_stride: 0 }
    }
}

/// `out[row, column] (+)= Σ_k a[row, k] · b[k, column]` for a packed `b`; rows of `out` are `out_stride` apart.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd>(
    rows: usize,
    a: Blocks<'_>,
    b: &[f32],
    panels: Panels,
    accumulate: bool,
    out: &mut [f32],
    out_stride: usize,
) {
    assert_eq!(a.depth * a.count, panels.depth);
    for panel in 0..panels.count() {
        let (width, column) = (panels.width(panel), panel * PANEL);
        let b = &b[panels.start(panel)..][..panels.depth * width];
        for first in (0..rows).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(rows - first);
            let mut tile: Tile = [[0.0; PANEL]; TILE_ROWS];
            if accumulate {
                for i in 0..count {
                    tile[i][..width].copy_from_slice(&out[(first + i) * out_stride + column..][..width]);
                }
            }
            for block in 0..a.count {
                let part = Operand::rows(&a.values[block * a.block_stride..], a.row_stride);
                let b = &b[block * a.depth * width..];
                unsafe { multiply_tile::<S>(part, first, count, b, width, width, a.depth, &mut tile) };
            }
            for i in 0..count {
                out[(first + i) * out_stride + column..][..width].copy_from_slice(&tile[i][..width]);
            }
        }
    }
}

dispatch! {
    /// Runs [`multiply`].
    pub(crate) fn multiply_rows(
        rows: usize, a: Blocks<'_>, b: &[f32], panels: Panels, accumulate: bool, out: &mut [f32], out_stride: usize,
    ) = multiply
}

/// The terms of [`add_outer`]: at step t, `rows[t]` rows of `a` (`stride` values each, `a_step` per step) meet as many
/// rows of `b` (`b_stride` values each, `b_step` per step).
#[derive(Clone, Copy)]
pub(crate) struct Outer<'a> {
    pub rows: &'a [u32],
    pub a: &'a [f32],
    pub a_stride: usize,
    pub a_step: usize,
    pub b: &'a [f32],
    pub b_stride: usize,
    pub b_step: usize,
}

/// Steps whose operands stay in the second-level cache together.
const OUTER_STEPS: usize = 8;

/// `out[k, ..width] += Σ_t Σ_row a[t, row, k] · b[t, row, ..width]` for k below `depth`: one panel of a weight gradient.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn add_outer<S: Simd>(terms: Outer<'_>, depth: usize, width: usize, out: &mut [f32]) {
    for steps in (0..terms.rows.len()).step_by(OUTER_STEPS) {
        let last = terms.rows.len().min(steps + OUTER_STEPS);
        for first in (0..depth).step_by(TILE_ROWS) {
            let count = TILE_ROWS.min(depth - first);
            let mut tile: Tile = [[0.0; PANEL]; TILE_ROWS];
            for i in 0..count {
                tile[i][..width].copy_from_slice(&out[(first + i) * width..][..width]);
            }
            for step in steps..last {
                let a =
                    Operand { values: &terms.a[step * terms.a_step..], row_stride: 1, depth_stride: terms.a_stride };
                let (b, rows) = (&terms.b[step * terms.b_step..], terms.rows[step] as usize);
                unsafe { multiply_tile::<S>(a, first, count, b, terms.b_stride, width, rows, &mut tile) };
            }
            for i in 0..count {
                out[(first + i) * width..][..width].copy_from_slice(&tile[i][..width]);
            }
        }
    }
}

dispatch! {
    /// Runs [`add_outer`].
    pub(crate) fn add_outer_rows(terms: Outer<'_>, depth: usize, width: usize, out: &mut [f32]) = add_outer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::simd::Isa;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        (0..count).map(|i| crate::rng::to_unit(crate::rng::philox(seed, i as u64, 0, 0)[0]) - 0.5).collect()
    }

    #[test]
    fn agrees_with_a_plain_product_on_every_instruction_set() {
        for (rows, depth, columns) in [(1, 1, 16), (5, 3, 48), (6, 7, 64), (7, 200, 208), (48, 33, 80)] {
            let panels = Panels::new(depth, columns);
            let (a, b) = (numbers(rows * depth, 1), numbers(panels.len(), 2));
            let start = numbers(rows * columns, 3);
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::all() {
                let mut out = start.clone();
                multiply_rows(isa, rows, Blocks::rows(&a, depth, depth), &b, panels, true, &mut out, columns);
                for row in 0..rows {
                    for column in 0..columns {
                        let product = |k: usize| f64::from(a[row * depth + k] * b[panels.index(k, column)]);
                        let want = f64::from(start[row * columns + column]) + (0..depth).map(product).sum::<f64>();
                        let got = f64::from(out[row * columns + column]);
                        assert!((got - want).abs() <= 1e-5, "{isa:?} {row},{column}: {got} {want}");
                    }
                }
                assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "{isa:?}");
            }
        }
    }

    #[test]
    fn an_outer_sum_is_the_product_with_the_transpose() {
        let (steps, rows, depth, width) = (19, [4u32, 4, 3, 1], 9, 32);
        let rows: Vec<u32> = (0..steps).map(|t| rows[t % 4]).collect();
        let (a, b) = (numbers(steps * 4 * depth, 1), numbers(steps * 4 * width, 2));
        let terms =
            Outer { rows: &rows, a: &a, a_stride: depth, a_step: 4 * depth, b: &b, b_stride: width, b_step: 4 * width };
        for isa in Isa::all() {
            let mut got = vec![1.0; depth * width];
            add_outer_rows(isa, terms, depth, width, &mut got);
            for (at, got) in got.iter().enumerate() {
                let (k, column) = (at / width, at % width);
                let mut want = 1.0;
                for (t, &rows) in rows.iter().enumerate() {
                    for row in 0..rows as usize {
                        want += f64::from(a[(t * 4 + row) * depth + k]) * f64::from(b[(t * 4 + row) * width + column]);
                    }
                }
                assert!((f64::from(*got) - want).abs() < 1e-5, "{isa:?} {k},{column}: {got} {want}");
            }
        }
    }
}
