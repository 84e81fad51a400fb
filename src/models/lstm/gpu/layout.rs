//! Sizes and parameter layout on the device; `kernels/common/lstm.cuh` has the same.

use crate::models::LstmShape;
use crate::rng::Draw;
use crate::tokens::Space;

/// Rows of one mma tile; slots and units come in multiples of it.
pub(super) const TILE: usize = 16;

/// Layers, padded units, vocabulary and padded outputs, as the kernels take them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Size {
    pub layers: u32,
    pub units: u32,
    pub vocab: u32,
    pub outputs: u32,
}

/// Where a kernel draws dropout masks from; a limit of 0 is no dropout.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Dropout {
    seed: u64,
    first: u64,
    purpose: u32,
    limit: u32,
    scale: f32,
    unused: u32,
}

impl Dropout {
    /// The masks that the CPU backend draws.
    pub fn new(draw: Option<Draw>, rate: f32) -> Self {
        match draw {
            Some(Draw { seed, first, purpose }) if rate > 0.0 => Dropout {
                seed,
                first,
                purpose: purpose as u32,
                limit: (rate * 65_536.0) as u32,
                scale: 1.0 / (1.0 - rate),
                unused: 0,
            },
            _ => bytemuck::Zeroable::zeroed(),
        }
    }

    /// Whether anything is dropped.
    pub fn is_some(&self) -> bool {
        self.limit > 0
    }
}

impl Size {
    pub fn new(space: Space, shape: LstmShape) -> Self {
        Size {
            layers: shape.layers as u32,
            units: shape.hidden.next_multiple_of(TILE) as u32,
            vocab: space.vocab,
            outputs: (space.vocab as usize).next_multiple_of(TILE) as u32,
        }
    }

    pub fn layers(self) -> usize {
        self.layers as usize
    }

    pub fn units(self) -> usize {
        self.units as usize
    }

    pub fn gates(self) -> usize {
        4 * self.units as usize
    }

    pub fn outputs(self) -> usize {
        self.outputs as usize
    }

    fn matrices(self) -> usize {
        2 * self.layers() - 1
    }

    /// Layer 0's input table `[V, U, 4]`, or a higher layer's bias `[U, 4]`.
    pub fn start(self, layer: usize) -> usize {
        if layer == 0 { 0 } else { self.matrix(2 * layer - 2) + self.units() * self.gates() }
    }

    /// Matrix `number`, `[U, U, 4]`: 0 is layer 0's recurrent one, 2l − 1 and 2l are layer l's input and recurrent ones.
    pub fn matrix(self, number: usize) -> usize {
        (self.vocab as usize + number.div_ceil(2)) * self.gates() + number * self.units() * self.gates()
    }

    /// The head's weight `[U, outputs]`.
    pub fn head(self) -> usize {
        self.start(self.layers())
    }

    /// The head's bias `[outputs]`.
    pub fn head_bias(self) -> usize {
        self.head() + self.units() * self.outputs()
    }

    /// Number of parameters, padding included.
    pub fn parameters(self) -> usize {
        self.head_bias() + self.outputs()
    }

    /// Words of 32 bits that the packed weights take.
    pub fn packed_words(self) -> usize {
        let (groups, steps) = (self.units() / 8, self.units() / TILE);
        let heads = self.outputs() / 8 * steps + groups * (self.outputs() / TILE);
        4 * (2 * self.matrices() * groups * steps * 128 + heads * 32)
    }

    /// The parameters by the names of [`Lstm::tensors`](crate::models::Lstm::tensors): for each, the index in the flat
    /// vector of its elements in row-major order.
    pub fn tensors(self, hidden: usize) -> Vec<(String, Vec<usize>)> {
        let gates =
            move |row: usize| (0..4 * hidden).map(move |at| row + at % hidden * 4 + at / hidden).collect::<Vec<_>>();
        let rows = |start: usize, count: usize| (0..count).flat_map(|row| gates(start + row * self.gates())).collect();
        let mut tensors = Vec::new();
        for layer in 0..self.layers() {
            if layer == 0 {
                tensors.push(("lstm.0.input".to_string(), rows(0, self.vocab as usize)));
            } else {
                tensors.push((format!("lstm.{layer}.bias"), rows(self.start(layer), 1)));
                tensors.push((format!("lstm.{layer}.input"), rows(self.matrix(2 * layer - 1), hidden)));
            }
            tensors.push((format!("lstm.{layer}.recurrent"), rows(self.matrix(2 * layer), hidden)));
        }
        let vocab = self.vocab as usize;
        let head = (0..hidden * vocab).map(|at| self.head() + at / vocab * self.outputs() + at % vocab).collect();
        tensors.push(("head.weight".into(), head));
        tensors.push(("head.bias".into(), (self.head_bias()..self.head_bias() + vocab).collect()));
        tensors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_do_not_overlap_and_stay_inside() {
        for (symbols, hidden, layers) in [(2, 5, 1), (2, 16, 2), (30, 20, 3)] {
            let space = Space::new(symbols, 4).unwrap();
            let size = Size::new(space, LstmShape { layers, hidden, dropout: 0.0 });
            let mut all: Vec<usize> = size.tensors(hidden).into_iter().flat_map(|(_, indices)| indices).collect();
            let count = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len(), count);
            assert!(*all.last().unwrap() < size.parameters());
        }
    }
}
