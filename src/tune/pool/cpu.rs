//! The pool on the CPU.

use super::{Baseline, Choice, Chosen, ContextBooks, Ledger, NewDraws, Pool, PoolKernel, SHIFT_RATE, Unit, Worth};
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::models::{Weighting, balance};
use crate::rng::{Draw, Purpose};
use crate::tokens::{Batch, Contexts};
use crate::tune::KlControl;
use crate::tune::rejection::Rejection;
use crate::weights::LogMean;

impl PoolKernel for Cpu {
    fn weigh(&self, pool: &mut Pool<Cpu>, log_p: &[f64], log_q: &[f64], log_w: &mut [f64]) -> Result<()> {
        log_w.iter_mut().zip(log_p.iter().zip(log_q)).for_each(|(log_w, (log_p, log_q))| *log_w = log_p - log_q);
        if let Some(row) = log_w.iter().position(|log_w| log_w.is_nan() || *log_w == f64::INFINITY) {
            return Err(Error::not_a_number("log-weight", format!("draw {row}")));
        }
        pool.ledger[0].log_z.push(log_w)
    }

    fn weigh_contexts(&self, pool: &mut Pool<Cpu>, contexts: &Contexts, draw: Draw, log_w: &[f64]) -> Result<()> {
        let Some(books) = &mut pool.contexts else { return Ok(()) };
        for (row, log_w) in log_w.iter().enumerate() {
            let number = contexts.number(draw.first + row as u64);
            books.means[number].push(std::slice::from_ref(log_w))?;
            books.log_z[number] = books.means[number].value();
        }
        Ok(())
    }

    fn reward(&self, pool: &mut Pool<Cpu>, log_p: &[f64]) -> Result<()> {
        pool.ledger[0].log_reward.push(log_p)
    }

    fn accept(&self, pool: &mut Pool<Cpu>, rejection: &Rejection, draw: Draw, log_w: &mut [f64]) -> Result<()> {
        let largest = log_w.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !rejection.exact && largest > pool.ledger[0].log_bound {
            raise(pool, rejection, largest);
        }
        // Lane 0 belongs to the fit's rejection.
        let (coin, log_bound) = (Draw { purpose: Purpose::Accept, ..draw }, pool.ledger[0].log_bound);
        for (row, log_w) in log_w.iter_mut().enumerate() {
            let accepted = coin.fine_uniform(row as u64, 0, 1) < (*log_w - log_bound).exp();
            *log_w = if accepted { 0.0 } else { f64::NEG_INFINITY };
        }
        Ok(())
    }

    fn keep(&self, pool: &mut Pool<Cpu>, draws: &NewDraws<'_, Cpu>) -> Result<()> {
        let (ledger, capacity) = (&mut pool.ledger[0], pool.batch.capacity());
        if draws.fresh {
            (ledger.next, ledger.rows, ledger.cursor) = (pool.pinned as u64, pool.pinned as u64, 0);
        }
        for row in (0..draws.batch.rows).filter(|&row| draws.all || draws.log_w[row] > f64::NEG_INFINITY) {
            if ledger.next as usize == capacity {
                ledger.next = pool.pinned as u64;
            }
            let slot = ledger.next as usize;
            if ledger.next == ledger.rows {
                pool.order[slot] = slot as u32;
                ledger.rows += 1;
            }
            pool.batch.copy_row(slot, draws.batch, row);
            (pool.log_w[slot], pool.log_q[slot]) = (draws.log_w[row], draws.log_q[row]);
            ledger.next += 1;
            ledger.kept += 1;
        }
        Ok(())
    }

    fn returns(
        &self,
        control: &KlControl,
        log_p: &[f64],
        log_base: &[f64],
        log_pi: &[f64],
        returns: &mut [f64],
    ) -> Result<()> {
        let value = |row: usize| control.value(log_p[row], log_base[row], log_pi[row]);
        if let Some(row) = (0..returns.len()).find(|&row| !value(row).is_finite()) {
            return Err(Error::not_a_number("return", format!("draw {row}: {}", value(row))));
        }
        returns.iter_mut().enumerate().for_each(|(row, to)| *to = value(row));
        Ok(())
    }

    fn measure(&self, pool: &mut Pool<Cpu>, worth: &Worth) -> Result<()> {
        let Pool { ledger, log_w, contexts, batch, .. } = pool;
        let ledger = &mut ledger[0];
        let rows = ledger.rows as usize;
        let of = OfContext::new(contexts.as_ref(), batch, worth.unit);
        let kept = || log_w[..rows].iter().enumerate().map(|(slot, log_w)| of.weigh(*log_w, slot));
        let log_mean = match worth.unit {
            Unit::MeanReward => ledger.log_reward.value(),
            // Weights of contexts are p/q already.
            Unit::Partition if contexts.is_some() => 0.0,
            Unit::Partition => ledger.log_z.value(),
            Unit::Return => 0.0,
            Unit::MeanWeight => {
                let mut mean = LogMean::new();
                kept().try_for_each(|log_w| mean.push(&[log_w]))?;
                mean.value()
            }
        };
        ledger.log_mean = log_mean;
        if worth.clip < f64::INFINITY {
            let sum = |clip: f64| kept().map(|log_w| weight(log_w, log_mean, clip)).sum::<f64>();
            ledger.cut = 1.0 - sum(worth.clip) / sum(f64::INFINITY);
        }
        let own_mean = || kept().map(|log_w| worth_of(log_w, log_mean, worth)).sum::<f64>() / rows as f64;
        (ledger.center, ledger.factor) = match (worth.baseline, worth.unit) {
            (Baseline::Mean, Unit::MeanReward) => (1.0, 1.0),
            (Baseline::Mean, Unit::Return) => (own_mean(), 1.0),
            // Of one row alone there is no other.
            (Baseline::LeaveOneOut, _) if rows > 1 => (own_mean(), rows as f64 / (rows - 1) as f64),
            _ => (0.0, 1.0),
        };
        Ok(())
    }

    fn choose(&self, pool: &mut Pool<Cpu>, chosen: &mut Chosen<Cpu>, choice: &Choice<'_, Cpu>) -> Result<()> {
        let rows = chosen.rows();
        let ledger = &mut pool.ledger[0];
        let most = ledger.rows.min(rows as u64);
        let used_up = (ledger.picks + most) as f64 / ledger.kept as f64 > choice.uses as f64;
        let goes_on = ledger.log_mean > f64::NEG_INFINITY && !used_up;
        ledger.chosen = if goes_on { most } else { 0 };
        ledger.updates += u64::from(goes_on);
        chosen.rate[0] = if goes_on { choice.rate[0] } else { 0.0 };
        let count = ledger.chosen as usize;
        shuffle(ledger, &mut pool.order, choice.draw, &mut chosen.slots[..count]);
        chosen.shift[0] = ledger.shift;
        let scale = scale(count, chosen.batch.space.longest);
        let of = OfContext::new(pool.contexts.as_ref(), &pool.batch, choice.worth.unit);
        for row in 0..count {
            let slot = chosen.slots[row] as usize;
            chosen.batch.copy_row(row, &pool.batch, slot);
            let log_w = of.weigh(pool.log_w[slot], slot);
            let weight = worth_of(log_w, ledger.log_mean, &choice.worth) as f32;
            chosen.weights[row] = (weight - ledger.center as f32) * ledger.factor as f32 * scale;
            chosen.log_q[row] = pool.log_q[slot];
            chosen.log_p[row] = log_w + pool.log_q[slot] - ledger.log_mean;
        }
        for row in count..rows {
            chosen.batch.set(row, &[chosen.batch.space.eos]);
            (chosen.weights[row], chosen.log_q[row], chosen.log_p[row]) = (0.0, f64::INFINITY, f64::INFINITY);
        }
        Ok(())
    }

    fn note_update(
        &self,
        pool: &mut Pool<Cpu>,
        chosen: &Chosen<Cpu>,
        log_pi: &[f64],
        worth: &Worth,
        shifted: Option<Weighting>,
    ) -> Result<()> {
        let (ledger, longest) = (&mut pool.ledger[0], chosen.batch.space.longest);
        let count = ledger.chosen as usize;
        // What the weights are short of: the loss is weighted by w alone, which is never negative.
        let (factor, short) = (ledger.factor as f32, ledger.center as f32 * scale(count, longest));
        for (weight, log_pi) in chosen.weights[..count].iter().zip(log_pi) {
            let weight = if worth.unit == Unit::Return { 1.0 } else { f64::from(weight / factor + short) };
            // A row of weight 0 may have been skipped, and has no log π then.
            if weight > 0.0 {
                ledger.loss -= weight * log_pi;
                ledger.loss_weight += weight * f64::from(longest);
            }
        }
        if let Some(weighting) = shifted.filter(|_| count > 0) {
            let target = balanced(weighting, &chosen.log_p[..count], &chosen.log_q[..count], log_pi);
            let rate = if ledger.updates == 1 { 1.0 } else { SHIFT_RATE };
            // Where π is 0 at all rows, nothing can be said.
            ledger.shift += if target.is_finite() { rate * (target - ledger.shift) } else { 0.0 };
        }
        Ok(())
    }
}

/// Divides weights by the Ẑ of their contexts, where there are any and the unit is one of p.
struct OfContext<'a> {
    log_z: Option<&'a [f64]>,
    context: &'a [u32],
}

impl<'a> OfContext<'a> {
    fn new(books: Option<&'a ContextBooks<Cpu>>, batch: &'a Batch, unit: Unit) -> Self {
        let log_z = books.filter(|_| unit.is_per_context()).map(|books| &books.log_z[..]);
        OfContext { log_z, context: &batch.context }
    }

    /// log w of a slot; a positive weight is one of those that its context's Ẑ is made of, which is then positive too.
    fn weigh(&self, log_w: f64, slot: usize) -> f64 {
        match self.log_z {
            Some(log_z) if log_w > f64::NEG_INFINITY => log_w - log_z[self.context[slot] as usize],
            _ => log_w,
        }
    }
}

/// The shift that makes the coefficients of these rows 0 in the mean.
fn balanced(weighting: Weighting, log_p: &[f64], log_q: &[f64], log_pi: &[f64]) -> f64 {
    let (mut total, mut count) = (0.0, 0.0);
    for (row, &log_pi) in log_pi.iter().enumerate().take(log_p.len()) {
        if let Weighting::Divergence(divergence) = weighting {
            total += divergence.coefficient(log_pi, log_p[row], log_q[row]);
            count += (log_pi - log_q[row]).exp();
        } else {
            total += balance(log_pi, log_p[row], 0.0);
            count += 1.0;
        }
    }
    -total / count
}

/// A weight in units, cut to `clip`.
fn weight(log_w: f64, log_mean: f64, clip: f64) -> f64 {
    (log_w - log_mean).exp().min(clip)
}

/// What is kept of a sequence, as the weight or the return that it stands for.
fn worth_of(kept: f64, log_mean: f64, worth: &Worth) -> f64 {
    if worth.unit == Unit::Return { kept } else { weight(kept, log_mean, worth.clip) }
}

/// The factor of a row's weight: the gradient is per row and token.
fn scale(rows: usize, longest: u32) -> f32 {
    1.0 / (rows as f32 * longest as f32)
}

/// Raises rejection's bound: each sequence that is not pinned keeps its weight with the probability by which the bound's
/// inverse falls.
fn raise(pool: &mut Pool<Cpu>, rejection: &Rejection, log_bound: f64) {
    let ledger = &mut pool.ledger[0];
    ledger.raises += 1;
    let (coin, log_share) = (Draw::new(rejection.seed, Purpose::Accept), ledger.log_bound - log_bound);
    for slot in pool.pinned..ledger.rows as usize {
        if coin.fine_uniform(slot as u64, ledger.raises as u32, 2) >= log_share.exp() {
            pool.log_w[slot] = f64::NEG_INFINITY;
        }
    }
    ledger.log_bound = log_bound;
}

/// Takes the next `chosen.len()` slots of the endless shuffle: at most all in use.
fn shuffle(ledger: &mut Ledger, order: &mut [u32], draw: Draw, chosen: &mut [u32]) {
    // Slots at the end of `order` that this choice took before it began a new pass.
    let mut taken = 0;
    for at in 0..chosen.len() {
        if ledger.cursor == ledger.rows {
            ledger.cursor = 0;
            taken = at as u64;
        }
        // Position 0 of this purpose: maximum likelihood shuffles at its passes' numbers, from 1 on.
        let word = draw.words(ledger.picks, 0, 0)[0];
        ledger.picks += 1;
        let (cursor, rest) = (ledger.cursor as usize, ledger.rows - taken - ledger.cursor);
        order.swap(cursor, cursor + ((u64::from(word) * rest) >> 32) as usize);
        chosen[at] = order[cursor];
        ledger.cursor += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Space;

    const PLAIN: Worth = Worth { unit: Unit::MeanWeight, clip: f64::INFINITY, baseline: Baseline::None };

    fn space() -> Space {
        Space::new(9, 2).unwrap()
    }

    /// Sequences "0", "1", … with log-weights −0, −1, …
    fn numbered(symbols: &[u32]) -> (Batch, Vec<f64>) {
        let sequences: Vec<_> = symbols.iter().map(|&symbol| [symbol, space().eos]).collect();
        let log_w = symbols.iter().map(|&symbol| -f64::from(symbol)).collect();
        (Batch::from_sequences(space(), &sequences).unwrap(), log_w)
    }

    fn pool(capacity: usize, pinned: Option<&Batch>) -> Pool<Cpu> {
        Pool::new(&Cpu, space(), capacity, capacity, f64::NEG_INFINITY, pinned).unwrap()
    }

    fn keep(pool: &mut Pool<Cpu>, symbols: &[u32]) {
        let (batch, log_w) = numbered(symbols);
        let draws = NewDraws { batch: &batch, log_w: &log_w[..], log_q: &log_w[..], all: false, fresh: false };
        Cpu.keep(pool, &draws).unwrap();
        Cpu.measure(pool, &PLAIN).unwrap();
    }

    fn held(pool: &Pool<Cpu>) -> (Vec<u32>, Vec<f64>) {
        let rows = pool.ledger[0].rows as usize;
        (pool.batch.iter().take(rows).map(|sequence| sequence[0]).collect(), pool.log_w[..rows].to_vec())
    }

    /// The next `count` slots of the shuffle, fewer where there are no more.
    fn choose(pool: &mut Pool<Cpu>, count: usize, uses: usize) -> Vec<u32> {
        let mut chosen = Chosen::new(&Cpu, space(), count).unwrap();
        let draw = Draw::new(1, Purpose::Shuffle);
        let choice = Choice { uses, draw, worth: PLAIN, rate: &vec![1.0] };
        Cpu.choose(pool, &mut chosen, &choice).unwrap();
        chosen.slots[..pool.ledger[0].chosen as usize].to_vec()
    }

    #[test]
    fn the_oldest_leave_first_and_the_pinned_never() {
        let mut ring = pool(4, None);
        keep(&mut ring, &[0, 1, 2]);
        keep(&mut ring, &[3, 5, 8]);
        assert_eq!(held(&ring), (vec![5, 8, 2, 3], vec![-5.0, -8.0, -2.0, -3.0]));
        let mut ring = pool(2, Some(&numbered(&[0, 1]).0));
        keep(&mut ring, &[4, 5]);
        keep(&mut ring, &[6]);
        assert_eq!(held(&ring), (vec![0, 1, 6, 5], vec![0.0, 0.0, -6.0, -5.0]));
        assert!(Pool::new(&Cpu, space(), 4, 5, 0.0, None).is_err(), "more at a time than there is room for");
    }

    #[test]
    fn each_is_chosen_once_before_any_is_chosen_twice() {
        for (rows, count) in [(9, 4), (9, 9), (7, 5), (8, 1), (3, 100)] {
            let mut ring = pool(9, None);
            keep(&mut ring, &(0..rows).collect::<Vec<_>>());
            let mut all = Vec::new();
            for _ in 0..30 {
                let chosen = choose(&mut ring, count, usize::MAX);
                let mut once = chosen.clone();
                once.sort_unstable();
                once.dedup();
                assert_eq!(once.len(), count.min(rows as usize), "no repetition in one choice");
                all.extend(chosen);
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
        let mut ring = pool(9, None);
        keep(&mut ring, &[0, 1, 2, 3]);
        let mut chosen = choose(&mut ring, 3, usize::MAX);
        keep(&mut ring, &[4, 5]);
        chosen.extend(choose(&mut ring, 3, usize::MAX));
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2, 3, 4, 5]);
        let mut passes: Vec<_> = (0..4).map(|_| choose(&mut ring, 6, usize::MAX)).collect();
        passes.dedup();
        assert!(passes.len() > 1, "each pass has its own order");
    }

    /// Three sequences and two chosen at a time: after three updates each has been used twice.
    #[test]
    fn no_sequence_is_used_more_often_than_allowed() {
        let mut ring = pool(9, None);
        keep(&mut ring, &[0, 1, 2]);
        let chosen = (0..5).map(|_| choose(&mut ring, 2, 2).len()).collect::<Vec<_>>();
        assert_eq!((chosen, ring.ledger[0].updates), (vec![2, 2, 2, 0, 0], 3));
        keep(&mut ring, &[3]);
        assert_eq!(choose(&mut ring, 2, 2).len(), 2);
    }

    #[test]
    fn a_higher_bound_thins_all_but_the_pinned() {
        let mut ring = pool(4, Some(&numbered(&[1]).0));
        let rejection = Rejection { log_bound: f64::NEG_INFINITY, exact: false, seed: 2 };
        let mut accepted = |largest: f64| {
            let mut log_w = [largest, f64::NEG_INFINITY, largest];
            Cpu.accept(&mut ring, &rejection, Draw::new(2, Purpose::Tune), &mut log_w).unwrap();
            let (batch, _) = numbered(&[2, 3, 4]);
            let draws = NewDraws { batch: &batch, log_w: &log_w[..], log_q: &log_w[..], all: false, fresh: false };
            Cpu.keep(&mut ring, &draws).unwrap();
            (held(&ring), ring.ledger[0].raises)
        };
        // Weights as large as the bound are accepted for sure.
        assert_eq!(accepted(0.0), ((vec![1, 2, 4], vec![0.0, 0.0, 0.0]), 1));
        let ((_, log_w), raises) = accepted(50.0);
        assert_eq!((log_w, raises), (vec![0.0, f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0, 0.0], 2));
    }
}
