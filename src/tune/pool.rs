//! Draws kept with their weights, so that each can serve several updates.
//!
//! A draw's weight P/q does not change while r and λ are fixed, whatever q becomes, so sequences from an older proposal
//! stay valid. Sequences of weight 0 have no gradient in plain DPG and are not kept, only counted.

use super::Draws;
use crate::backend::Backend;
use crate::error::Result;
use crate::rng::Draw;
use crate::tokens::{Batch, Space};
use crate::weights::log_mean_exp;

/// A ring of weighted sequences, and an endless shuffle over it.
pub(super) struct Pool<B: Backend> {
    pub batch: Batch<B>,
    pub log_w: Vec<f64>,
    pub log_q: Vec<f64>,
    /// The slot that the next draw takes once the ring is full.
    oldest: usize,
    order: Vec<u32>,
    cursor: usize,
    picks: u64,
    /// The slots that [`Pool::choose`] chose last.
    pub chosen: Vec<u32>,
}

impl<B: Backend> Pool<B> {
    pub fn new(backend: &B, space: Space, capacity: usize) -> Result<Self> {
        Ok(Pool {
            batch: Batch::with_capacity(backend, space, capacity)?,
            log_w: Vec::with_capacity(capacity),
            log_q: Vec::with_capacity(capacity),
            oldest: 0,
            order: Vec::with_capacity(capacity),
            cursor: 0,
            picks: 0,
            chosen: Vec::with_capacity(capacity),
        })
    }

    pub fn rows(&self) -> usize {
        self.batch.rows
    }

    pub fn clear(&mut self) {
        self.batch.rows = 0;
        self.log_w.clear();
        self.log_q.clear();
        self.order.clear();
        self.oldest = 0;
        self.cursor = 0;
    }

    /// Keeps row `row` of `from` with this log-weight; the oldest leaves when there is no room.
    pub fn keep(&mut self, backend: &B, from: &Batch<B>, row: usize, log_w: f64, log_q: f64) -> Result<()> {
        if self.rows() < self.batch.capacity() {
            let at = self.rows();
            self.batch.copy_rows(backend, from, &[row as u32], at)?;
            self.log_w.push(log_w);
            self.log_q.push(log_q);
            self.order.push(at as u32);
        } else {
            self.batch.copy_rows(backend, from, &[row as u32], self.oldest)?;
            self.log_w[self.oldest] = log_w;
            self.log_q[self.oldest] = log_q;
            self.oldest = (self.oldest + 1) % self.batch.capacity();
        }
        Ok(())
    }

    /// Keeps the draws for which `log_w` is finite, or all of them.
    pub fn keep_draws(&mut self, backend: &B, draws: &Draws<B>, all: bool) -> Result<()> {
        for row in 0..draws.rows() {
            let log_w = draws.host_log_p[row] - draws.host_log_q[row];
            if all || log_w > f64::NEG_INFINITY {
                self.keep(backend, &draws.batch, row, log_w, draws.host_log_q[row])?;
            }
        }
        Ok(())
    }

    /// log of the mean weight of the sequences kept.
    pub fn log_mean_weight(&self) -> f64 {
        log_mean_exp(&self.log_w)
    }

    /// Chooses up to `count` slots without repetition; every slot comes up once before any comes up twice (but for those that
    /// joined meanwhile). `draw` gives the shuffle.
    pub fn choose(&mut self, count: usize, draw: Draw) {
        let count = count.min(self.rows());
        if self.cursor + count > self.order.len() {
            self.cursor = 0;
        }
        self.chosen.clear();
        for at in self.cursor..self.cursor + count {
            let word = draw.words(self.picks, 0, 0)[0];
            self.picks += 1;
            let rest = (self.order.len() - at) as u64;
            self.order.swap(at, at + (u64::from(word) * rest >> 32) as usize);
            self.chosen.push(self.order[at]);
        }
        self.cursor += count;
    }
}
