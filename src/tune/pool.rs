//! Draws kept with their weights, so that each can serve several updates.
//!
//! A draw's weight P/q does not change while r and λ are fixed, whatever q becomes, so sequences from an older proposal
//! stay valid. Sequences of weight 0 have no gradient in plain DPG and are not kept, only counted.

use crate::backend::Backend;
use crate::error::Result;
use crate::rng::Draw;
use crate::tokens::{Batch, Space};
use crate::weights::LogMean;

/// A ring of weighted sequences, and an endless shuffle over it.
pub(super) struct Pool<B: Backend> {
    pub batch: Batch<B>,
    pub log_w: Vec<f64>,
    pub log_q: Vec<f64>,
    /// The slot that the next sequence takes; once the ring is full, that of the oldest.
    next: usize,
    /// The first slots, which never leave.
    pinned: usize,
    /// All slots; those before `cursor` have come up in this pass.
    order: Vec<u32>,
    cursor: usize,
    picks: u64,
    /// Sequences ever kept.
    kept: u64,
    /// The slots that [`Pool::choose`] chose last.
    pub chosen: Vec<u32>,
}

impl<B: Backend> Pool<B> {
    /// Room for `capacity` sequences beside those of `pinned`, which have weight 1 and never leave.
    pub fn new(backend: &B, space: Space, capacity: usize, pinned: Option<&Batch<B>>) -> Result<Self> {
        let fixed = pinned.map_or(0, |batch| batch.rows);
        let capacity = capacity.saturating_add(fixed);
        let mut pool = Pool {
            batch: Batch::with_capacity(backend, space, capacity)?,
            log_w: Vec::with_capacity(capacity),
            log_q: Vec::with_capacity(capacity),
            next: 0,
            pinned: fixed,
            order: Vec::with_capacity(capacity),
            cursor: 0,
            picks: 0,
            kept: 0,
            chosen: Vec::with_capacity(capacity),
        };
        if let Some(batch) = pinned {
            let rows: Vec<u32> = (0..fixed as u32).collect();
            pool.keep(backend, batch, &rows, &vec![0.0; fixed], &vec![0.0; fixed])?;
        }
        Ok(pool)
    }

    pub fn rows(&self) -> usize {
        self.batch.rows
    }

    /// Forgets all sequences. Not for a pool with pinned ones.
    pub fn clear(&mut self) {
        debug_assert_eq!(self.pinned, 0);
        self.batch.rows = 0;
        self.log_w.clear();
        self.log_q.clear();
        self.order.clear();
        self.next = 0;
        self.cursor = 0;
    }

    /// Keeps the rows `rows` of `from`, whose log-weights and log q are `[from.rows]`; the oldest leave where there is
    /// no room.
    pub fn keep(&mut self, backend: &B, from: &Batch<B>, rows: &[u32], log_w: &[f64], log_q: &[f64]) -> Result<()> {
        self.kept += rows.len() as u64;
        let mut rest = rows;
        while !rest.is_empty() {
            if self.next == self.batch.capacity() {
                self.next = self.pinned;
            }
            let run;
            (run, rest) = rest.split_at(rest.len().min(self.batch.capacity() - self.next));
            self.batch.copy_rows(backend, from, run, self.next)?;
            for &row in run {
                self.put(log_w[row as usize], log_q[row as usize]);
            }
        }
        Ok(())
    }

    /// Notes the weight of the sequence in the next slot.
    fn put(&mut self, log_w: f64, log_q: f64) {
        if self.next < self.log_w.len() {
            (self.log_w[self.next], self.log_q[self.next]) = (log_w, log_q);
        } else {
            self.log_w.push(log_w);
            self.log_q.push(log_q);
            self.order.push(self.next as u32);
        }
        self.next += 1;
    }

    /// Lets each sequence that is not pinned keep its weight with probability exp(`log_share`), else sets it to 0;
    /// `coin` gives a uniform per slot.
    pub fn thin(&mut self, log_share: f64, coin: impl Fn(usize) -> f64) {
        for (slot, log_w) in self.log_w.iter_mut().enumerate().skip(self.pinned) {
            if coin(slot) >= log_share.exp() {
                *log_w = f64::NEG_INFINITY;
            }
        }
    }

    /// log of the mean weight of the sequences kept; −∞ where there is none above 0.
    pub fn log_mean_weight(&self) -> Result<f64> {
        let mut mean = LogMean::new();
        mean.push(&self.log_w)?;
        Ok(mean.value())
    }

    /// How often a sequence will have been chosen, on average, after a choice of `count` more.
    pub fn uses_after(&self, count: usize) -> f64 {
        (self.picks + count.min(self.rows()) as u64) as f64 / self.kept as f64
    }

    /// Chooses up to `count` slots without repetition; every slot comes up once before any comes up twice (a sequence
    /// that takes another's slot meanwhile takes its turn too). `draw` gives the shuffle.
    pub fn choose(&mut self, count: usize, draw: Draw) {
        self.chosen.clear();
        // Slots at the end of `order` that this choice took before it began a new pass.
        let mut taken = 0;
        for _ in 0..count.min(self.rows()) {
            if self.cursor == self.order.len() {
                self.cursor = 0;
                taken = self.chosen.len();
            }
            // Position 0 of this purpose: maximum likelihood shuffles at its passes' numbers, from 1 on.
            let word = draw.words(self.picks, 0, 0)[0];
            self.picks += 1;
            let rest = (self.order.len() - taken - self.cursor) as u64;
            let pick = self.cursor + ((u64::from(word) * rest) >> 32) as usize;
            self.order.swap(self.cursor, pick);
            self.chosen.push(self.order[self.cursor]);
            self.cursor += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Cpu;
    use crate::rng::Purpose;

    fn space() -> Space {
        Space::new(9, 2).unwrap()
    }

    /// Sequences "0", "1", … with log-weights −0, −1, …
    fn numbered(count: u32) -> (Batch, Vec<f64>) {
        let sequences: Vec<_> = (0..count).map(|symbol| [symbol, space().eos]).collect();
        (Batch::from_sequences(space(), &sequences).unwrap(), (0..count).map(|symbol| -f64::from(symbol)).collect())
    }

    fn keep(pool: &mut Pool<Cpu>, rows: &[u32]) {
        let (batch, log_w) = numbered(9);
        pool.keep(&Cpu, &batch, rows, &log_w, &log_w).unwrap();
    }

    fn symbols(pool: &Pool<Cpu>) -> Vec<u32> {
        pool.batch.iter().map(|sequence| sequence[0]).collect()
    }

    #[test]
    fn the_oldest_leave_first_and_the_pinned_never() {
        let mut pool = Pool::new(&Cpu, space(), 4, None).unwrap();
        keep(&mut pool, &[0, 1, 2]);
        keep(&mut pool, &[3, 5, 8]);
        assert_eq!(symbols(&pool), [5, 8, 2, 3]);
        assert_eq!(pool.log_w, [-5.0, -8.0, -2.0, -3.0]);
        // More than the whole ring at once: the newest stay.
        keep(&mut pool, &[0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(symbols(&pool), [6, 3, 4, 5]);
        let mut pinned = Pool::new(&Cpu, space(), 2, Some(&numbered(2).0)).unwrap();
        keep(&mut pinned, &[4, 5, 6]);
        assert_eq!(symbols(&pinned), [0, 1, 6, 5]);
        assert_eq!(pinned.log_w, [0.0, 0.0, -6.0, -5.0]);
    }

    #[test]
    fn each_is_chosen_once_before_any_is_chosen_twice() {
        let draw = Draw::new(1, Purpose::Shuffle);
        for (rows, count) in [(9, 4), (9, 9), (7, 5), (8, 1), (3, 100)] {
            let mut pool = Pool::new(&Cpu, space(), 9, None).unwrap();
            keep(&mut pool, &(0..rows).collect::<Vec<_>>());
            let mut all = Vec::new();
            for _ in 0..30 {
                pool.choose(count, draw);
                let mut chosen = pool.chosen.clone();
                chosen.sort_unstable();
                chosen.dedup();
                assert_eq!(chosen.len(), count.min(rows as usize), "no repetition in one choice");
                all.extend_from_slice(&pool.chosen);
            }
            for pass in all.chunks_exact(rows as usize) {
                let mut pass = pass.to_vec();
                pass.sort_unstable();
                assert_eq!(pass, (0..rows).collect::<Vec<_>>(), "{count} of {rows}");
            }
        }
    }

    #[test]
    fn newcomers_join_the_pass_under_way_and_the_shuffle_moves() {
        let draw = Draw::new(1, Purpose::Shuffle);
        let mut pool = Pool::new(&Cpu, space(), 9, None).unwrap();
        keep(&mut pool, &[0, 1, 2, 3]);
        pool.choose(3, draw);
        let mut chosen = pool.chosen.clone();
        keep(&mut pool, &[4, 5]);
        pool.choose(3, draw);
        chosen.extend_from_slice(&pool.chosen);
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2, 3, 4, 5]);
        let mut passes = Vec::new();
        for _ in 0..4 {
            pool.choose(6, draw);
            passes.push(pool.chosen.clone());
        }
        passes.dedup();
        assert!(passes.len() > 1, "each pass has its own order");
    }

    #[test]
    fn uses_are_counted_per_sequence_kept() {
        let mut pool = Pool::new(&Cpu, space(), 2, None).unwrap();
        keep(&mut pool, &[0, 1, 2]);
        pool.choose(5, Draw::new(1, Purpose::Shuffle));
        assert_eq!(pool.uses_after(2), 4.0 / 3.0);
        keep(&mut pool, &[3]);
        assert_eq!(pool.uses_after(9), 1.0);
    }

    #[test]
    fn thinning_spares_the_pinned() {
        let mut pool = Pool::new(&Cpu, space(), 4, Some(&numbered(1).0)).unwrap();
        keep(&mut pool, &[1, 2, 3]);
        pool.thin(0.5f64.ln(), |slot| [0.9, 0.6, 0.4, 0.5][slot]);
        assert_eq!(pool.log_w, [0.0, f64::NEG_INFINITY, -2.0, f64::NEG_INFINITY]);
        assert!((pool.log_mean_weight().unwrap() - ((1.0 + (-2.0f64).exp()) / 4.0).ln()).abs() < 1e-12);
        pool.thin(f64::NEG_INFINITY, |_| 0.0);
        assert_eq!(pool.log_w[1..], [f64::NEG_INFINITY; 3]);
    }
}
