//! The memory of a chunk, bounded by the caller.

use std::ops::Range;

use super::{Columns, Head, LinearKernel, Rows};
use crate::backend::Memory;
use crate::error::{Error, Result};
use crate::log_prob::Logit;
use crate::tokens::Token;

/// What one chunk of rows needs; kept between calls.
pub struct Workspace<B: Memory, T: Logit> {
    pub(super) width: usize,
    pub(super) vocab: usize,
    /// The most rows of a chunk.
    pub(super) rows: usize,
    pub(super) chunk: Chunk,
    pub(super) row_numbers: B::Buffer<u64>,
    pub(super) sequence_numbers: B::Buffer<u64>,
    pub(super) offsets: B::Buffer<u64>,
    pub(super) weights: B::Buffer<f32>,
    /// The weight of each row's sequence.
    pub(super) row_weights: B::Buffer<f32>,
    pub(super) log_p: B::Buffer<f64>,
    pub(super) log_q: B::Buffer<f64>,
    pub(super) tokens: B::Buffer<Token>,
    pub(super) log_probs: B::Buffer<f32>,
    pub(super) log_pi: B::Buffer<f64>,
    pub(super) hidden: B::Buffer<T>,
    pub(super) hidden_gradient: B::Buffer<f32>,
    pub(super) logits: B::Buffer<f32>,
    pub(super) narrow: B::Buffer<T>,
}

/// The rows and sequences of a chunk, on the host.
#[derive(Default)]
pub(super) struct Chunk {
    pub rows: Vec<u64>,
    sequences: Vec<u64>,
    offsets: Vec<u64>,
    weights: Vec<f32>,
    row_weights: Vec<f32>,
    log_p: Vec<f64>,
    log_q: Vec<f64>,
}

impl Chunk {
    pub fn clear(&mut self) {
        self.rows.clear();
        self.sequences.clear();
        self.offsets.clear();
        self.offsets.push(0);
    }

    /// Adds a sequence.
    pub fn push(&mut self, s: usize, rows: Range<usize>) {
        self.rows.extend(rows.map(|row| row as u64));
        self.sequences.push(s as u64);
        self.offsets.push(self.rows.len() as u64);
    }
}

/// Bytes of a row and of what comes with a sequence, of which a chunk has no more than rows.
fn bytes_per_row<B: LinearKernel, T: Logit>(width: usize, vocab: usize) -> usize {
    let logits = vocab * size_of::<f32>() + B::narrow_len::<T>(vocab) * size_of::<T>();
    logits + width * (size_of::<T>() + size_of::<f32>()) + 4 * size_of::<f32>() + 6 * size_of::<f64>()
}

impl<B: LinearKernel, T: Logit> Workspace<B, T> {
    /// A workspace of at most `bytes` bytes of the backend's memory for hidden states of `width` values and `vocab`
    /// outputs: chunks of as many rows as fit. Products are the faster the more rows; from 512 on little is gained.
    ///
    /// # Errors
    /// Too few bytes for one row; memory that cannot be had.
    pub fn new(backend: &B, width: usize, vocab: usize, bytes: usize) -> Result<Self> {
        let row = bytes_per_row::<B, T>(width, vocab);
        // One offset more than sequences.
        let rows = bytes.saturating_sub(size_of::<u64>()) / row;
        if rows == 0 {
            return Err(Error::argument("workspace", format!("{} bytes or more", row + size_of::<u64>()), bytes));
        }
        let what = "workspace of the linear layer";
        Ok(Workspace {
            width,
            vocab,
            rows,
            chunk: Chunk::default(),
            row_numbers: backend.zeros(rows, what)?,
            sequence_numbers: backend.zeros(rows, what)?,
            offsets: backend.zeros(rows + 1, what)?,
            weights: backend.zeros(rows, what)?,
            row_weights: backend.zeros(rows, what)?,
            log_p: backend.zeros(rows, what)?,
            log_q: backend.zeros(rows, what)?,
            tokens: backend.zeros(rows, what)?,
            log_probs: backend.zeros(rows, what)?,
            log_pi: backend.zeros(rows, what)?,
            hidden: backend.zeros(rows * width, what)?,
            hidden_gradient: backend.zeros(rows * width, what)?,
            logits: backend.zeros(rows * vocab, what)?,
            narrow: backend.zeros(B::narrow_len::<T>(rows * vocab), what)?,
        })
    }

    /// The most rows of a chunk, and so of a sequence that has a gradient.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn check_room(&self, s: usize, len: usize) -> Result<()> {
        if len <= self.rows {
            return Ok(());
        }
        let bytes = len * bytes_per_row::<B, T>(self.width, self.vocab) + size_of::<u64>();
        let got = format!("room for {}", self.rows);
        Err(Error::argument("workspace", format!("room for sequence {s}: {len} rows, {bytes} bytes"), got))
    }

    /// Gathers the chunk's hidden states and tokens, and makes its logits; returns its rows.
    pub(super) fn load(&mut self, backend: &B, head: &Head<'_, B, T>, rows: &Rows<'_, B, T>) -> Result<usize> {
        let (len, width) = (self.chunk.rows.len(), self.width);
        backend.upload(&self.chunk.rows, &mut self.row_numbers)?;
        let numbers = B::view(&self.row_numbers, len);
        backend.gather(1, numbers, rows.tokens, B::view_mut(&mut self.tokens, len))?;
        backend.gather(width, numbers, rows.hidden, B::view_mut(&mut self.hidden, len * width))?;
        let logits = B::view_mut(&mut self.logits, len * self.vocab);
        backend.logits(head, B::view(&self.hidden, len * width), logits)?;
        Ok(len)
    }

    /// Brings the chunk's columns; returns its sequences.
    pub(super) fn load_columns(&mut self, backend: &B, columns: &Columns) -> Result<usize> {
        fn pick<V: Copy>(from: &[V], sequences: &[u64], to: &mut Vec<V>) {
            to.clear();
            to.extend(sequences.iter().filter_map(|&s| from.get(s as usize)));
        }
        let Chunk { sequences, offsets, weights, row_weights, log_p, log_q, .. } = &mut self.chunk;
        pick(&columns.weights, sequences, weights);
        row_weights.clear();
        for (&weight, range) in weights.iter().zip(offsets.windows(2)) {
            row_weights.extend((range[0]..range[1]).map(|_| weight));
        }
        pick(&columns.log_p, sequences, log_p);
        pick(&columns.log_q, sequences, log_q);
        backend.upload(sequences, &mut self.sequence_numbers)?;
        backend.upload(offsets, &mut self.offsets)?;
        backend.upload(weights, &mut self.weights)?;
        backend.upload(row_weights, &mut self.row_weights)?;
        backend.upload(log_p, &mut self.log_p)?;
        backend.upload(log_q, &mut self.log_q)?;
        Ok(self.chunk.sequences.len())
    }
}
