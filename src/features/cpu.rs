//! The feature kernel on the CPU: blocks of rows in parallel, and in a block entry after entry while its tokens are in the
//! cache. Automata walk several rows at a time: a step is a chain of dependent loads, and the chains overlap.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::build::{count_value, largest, least, length_value};
use super::substring::NONE;
use super::table::*;
use super::{FeatureKernel, FeatureTable, LONGEST_EDIT_PATTERN};
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::tokens::{Batch, Token};

/// Rows of one block: enough to drown the cost of a task, few enough for their tokens to stay in a second-level cache.
const ROWS: usize = 128;

/// Rows that an automaton walks at a time.
const LANES: usize = 8;

impl FeatureKernel for Cpu {
    fn features(&self, table: &FeatureTable, batch: &Batch, custom: Option<&[f32]>, phi: &mut [f32]) -> Result<()> {
        let first_bad = AtomicUsize::new(usize::MAX);
        phi.par_chunks_mut(ROWS * table.len()).enumerate().for_each(|(block, phi)| {
            let first = block * ROWS;
            let mut block = Block::new(table, batch, first, custom, phi);
            table.entries().iter().for_each(|entry| block.entry(entry));
            if let Some(bad) = block.spoil() {
                first_bad.fetch_min(first + bad, Ordering::Relaxed);
            }
        });
        match first_bad.into_inner() {
            usize::MAX => Ok(()),
            row => {
                let space = batch.space;
                let expected = format!("1 to {} tokens below {}", space.longest, space.vocab);
                Err(Error::argument(format!("row {row} of the batch"), expected, "others"))
            }
        }
    }
}

/// Some neighbouring rows, and where their features go.
struct Block<'a> {
    table: &'a FeatureTable,
    /// The tokens of each row without EOS; none where the row is out of range.
    contents: [&'a [Token]; ROWS],
    /// Tokens of each row, EOS included; 0 where the row is out of range.
    lengths: [u32; ROWS],
    rows: usize,
    custom: &'a [f32],
    /// `[rows, F]`.
    phi: &'a mut [f32],
    /// Hidden values, `[rows, H]`.
    hidden: Vec<f32>,
}

impl<'a> Block<'a> {
    fn new(
        table: &'a FeatureTable,
        batch: &'a Batch,
        first: usize,
        custom: Option<&'a [f32]>,
        phi: &'a mut [f32],
    ) -> Self {
        let rows = phi.len() / table.len();
        let custom = custom.map_or(&[][..], |custom| &custom[first * table.customs.len()..]);
        let mut this = Block {
            table,
            contents: [&[]; ROWS],
            lengths: [0; ROWS],
            rows,
            custom,
            phi,
            hidden: vec![0.0; rows * table.hidden()],
        };
        for row in 0..rows {
            if let Some(tokens) = tokens(batch, first + row) {
                let ended = tokens.last() == Some(&batch.space.eos);
                this.contents[row] = &tokens[..tokens.len() - usize::from(ended)];
                this.lengths[row] = tokens.len() as u32;
            }
        }
        this
    }

    /// Rows out of range become NaN; returns the first of them.
    fn spoil(&mut self) -> Option<usize> {
        let bad = |row: &usize| self.lengths[*row] == 0;
        let first = (0..self.rows).find(bad)?;
        for row in (first..self.rows).filter(bad) {
            self.phi[row * self.table.len()..][..self.table.len()].fill(f32::NAN);
        }
        Some(first)
    }

    #[inline]
    fn set(&mut self, row: usize, target: u32, value: f32) {
        let (features, target) = (self.table.len(), target as usize);
        if target < features {
            self.phi[row * features + target] = value;
        } else {
            self.hidden[row * self.table.hidden() + target - features] = value;
        }
    }

    fn get(&self, row: usize, target: u32) -> f32 {
        let (features, target) = (self.table.len(), target as usize);
        if target < features {
            self.phi[row * features + target]
        } else {
            self.hidden[row * self.table.hidden() + target - features]
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let table = self.table;
        let target = table.slice(entry.targets, 1)[0];
        match entry.kind {
            AUTOMATON => self.automaton(entry),
            SHIFT if entry.size == 1 => self.shift::<1>(entry),
            SHIFT if entry.size == 2 => self.shift::<2>(entry),
            SHIFT => self.shift::<4>(entry),
            COUNT => self.count(entry, target),
            SPELLED => self.spelled(entry, target),
            DISTINCT => self.distinct(target),
            _ => {
                for row in 0..self.rows {
                    self.set(row, target, self.value(entry, row));
                }
            }
        }
    }

    /// The value of an entry that takes one row at a time.
    fn value(&self, entry: &Entry, row: usize) -> f32 {
        let (table, content) = (self.table, self.contents[row]);
        match entry.kind {
            LENGTH => {
                let length = length_value(self.lengths[row] as usize, table.space().longest as usize);
                if entry.size == 1 { length } else { length * length }
            }
            SUBSTRING => common_substring(table, entry, content) as f32 / entry.size as f32,
            EDIT => (entry.size - edit_distance(table, entry, content)) as f32 / entry.size as f32,
            CUSTOM => self.custom[row * table.customs.len() + entry.size as usize],
            COMBINE => self.combined(entry, row),
            kind => unreachable!("entry kind {kind} is never compiled"),
        }
    }

    fn combined(&self, entry: &Entry, row: usize) -> f32 {
        let operands = self.table.slice(entry.first, entry.extent as usize).iter().map(|&target| self.get(row, target));
        match entry.size {
            0 => 1.0 - operands.sum::<f32>(),
            1 => operands.fold(1.0, |a, b| least(&[a, b])),
            2 => operands.fold(0.0, |a, b| largest(&[a, b])),
            _ => f32::from(u8::from(operands.sum::<f32>() >= f32::from_bits(entry.second))),
        }
    }

    /// Walks a product automaton and writes the values of its last state.
    fn automaton(&mut self, entry: &Entry) {
        let (table, outputs) = (self.table, entry.extent as usize);
        let (width, targets) = (table.width(), table.slice(entry.targets, outputs));
        let next = table.slice(entry.first, entry.size as usize * width);
        let values = table.slice(entry.second, entry.size as usize * outputs);
        let classes = table.classes();
        // States are stored times C, which takes a multiplication out of the chain of dependent loads.
        let step = |state: u32, token: Token| next[state as usize + classes[token as usize] as usize];
        for first in (0..self.rows).step_by(LANES) {
            let states = walk(self.lanes(first), 0, step);
            for (row, state) in (first..self.rows).zip(states) {
                let values = &values[state as usize / width * outputs..][..outputs];
                for (&target, &value) in targets.iter().zip(values) {
                    self.set(row, target, f32::from_bits(value));
                }
            }
        }
    }

    fn count(&mut self, entry: &Entry, target: u32) {
        let table = self.table;
        let next = table.slice(entry.first, entry.size as usize * table.width());
        let classes = table.classes();
        let step = |(state, count): (u32, u32), token: Token| {
            let to = next[(state & !ENDS) as usize + classes[token as usize] as usize];
            (to, count + (to >> 31))
        };
        for first in (0..self.rows).step_by(LANES) {
            let ends = walk(self.lanes(first), (0, 0), step);
            for (row, (_, count)) in (first..self.rows).zip(ends) {
                self.set(row, target, count_value(count, entry.extent));
            }
        }
    }

    fn spelled(&mut self, entry: &Entry, target: u32) {
        let (table, width, vocab) = (self.table, entry.extent as usize, self.table.space().vocab as usize);
        let next = table.slice(entry.first, entry.size as usize * width);
        let ends = table.slice(entry.third, vocab);
        let packed = table.slice(entry.third + vocab as u32, ends[vocab - 1].div_ceil(4) as usize);
        let symbols: &[u8] = bytemuck::cast_slice(packed);
        let step = |state: u32, token: Token| {
            let start = if token == 0 { 0 } else { ends[token as usize - 1] };
            let symbols = symbols[start as usize..ends[token as usize] as usize].iter();
            symbols.fold(state, |state, &symbol| next[state as usize + usize::from(symbol)])
        };
        for first in (0..self.rows).step_by(LANES) {
            let states = walk(self.lanes(first), 0, step);
            for (row, state) in (first..self.rows).zip(states) {
                let value = table.slice(entry.second + state / width as u32, 1)[0];
                self.set(row, target, f32::from_bits(value));
            }
        }
    }

    /// Shift-And on W words at once; see `shift.rs`.
    fn shift<const W: usize>(&mut self, entry: &Entry) {
        let (table, outputs) = (self.table, entry.extent as usize);
        let (masks, _) = table.slice(entry.first, table.width() * W).as_chunks::<W>();
        let (starts, _) = table.slice(entry.second, 3 * W).as_chunks::<W>();
        let [always, first, keep] = [starts[0], starts[1], starts[2]];
        let classes = table.classes();
        for row in 0..self.rows {
            let (mut bits, mut found) = ([0; W], [0; W]);
            // The first token alone may also begin an anchored pattern.
            if let Some(&token) = self.contents[row].first() {
                let mask = masks[classes[token as usize] as usize];
                bits = std::array::from_fn(|w| (always[w] | first[w]) & mask[w]);
                found = bits;
            }
            for &token in self.contents[row].iter().skip(1) {
                let mask = masks[classes[token as usize] as usize];
                bits = std::array::from_fn(|w| (bits[w] << 1 & keep[w] | always[w]) & mask[w]);
                found = std::array::from_fn(|w| found[w] | bits[w]);
            }
            let answers = table.slice(entry.third, outputs).iter().zip(table.slice(entry.targets, outputs));
            for (&answer, &target) in answers {
                let (bit, from) = (answer as usize / 2, if answer & 1 == 1 { &bits } else { &found });
                self.set(row, target, (from[bit / 32] >> (bit % 32) & 1) as f32);
            }
        }
    }

    /// Rows that walk together; what is beyond the last row has no tokens.
    fn lanes(&self, first: usize) -> [&'a [Token]; LANES] {
        std::array::from_fn(|lane| self.contents.get(first + lane).copied().unwrap_or(&[]))
    }

    fn distinct(&mut self, target: u32) {
        let mut seen = vec![0_u64; (self.table.space().vocab as usize).div_ceil(64)];
        for row in 0..self.rows {
            let content = self.contents[row];
            let mut fresh = 0_u32;
            for &token in content {
                let (word, bit) = (&mut seen[token as usize / 64], 1 << (token % 64));
                fresh += u32::from(*word & bit == 0);
                *word |= bit;
            }
            content.iter().for_each(|&token| seen[token as usize / 64] = 0);
            self.set(row, target, fresh as f32 / content.len().max(1) as f32);
        }
    }
}

/// The tokens of a row, where its length and all its tokens are in range.
fn tokens(batch: &Batch, row: usize) -> Option<&[Token]> {
    let stride = batch.space.longest as usize;
    let length = batch.lengths[row] as usize;
    let tokens = &batch.tokens[row * stride..][..length.min(stride)];
    let largest = tokens.iter().fold(0, |largest, &token| largest.max(token));
    ((1..=stride).contains(&length) && largest < batch.space.vocab).then_some(tokens)
}

/// Takes the state of each lane through its content: all lanes at once as far as the shortest goes, then each alone.
#[inline(always)]
fn walk<S: Copy>(contents: [&[Token]; LANES], start: S, step: impl Fn(S, Token) -> S) -> [S; LANES] {
    let shortest = contents.iter().map(|content| content.len()).min().unwrap_or(0);
    let mut states = [start; LANES];
    let together = contents.map(|content| &content[..shortest]);
    for at in 0..shortest {
        for lane in 0..LANES {
            states[lane] = step(states[lane], together[lane][at]);
        }
    }
    for lane in 0..LANES {
        states[lane] = contents[lane][shortest..].iter().fold(states[lane], |state, &token| step(state, token));
    }
    states
}

/// Length of the longest common substring of the content and the pattern: `matched` is the length of the longest
/// suffix of the text so far that is a substring of the pattern, which lies in `state`.
fn common_substring(table: &FeatureTable, entry: &Entry, content: &[Token]) -> u32 {
    let width = table.width();
    let next = table.slice(entry.first, entry.extent as usize * width);
    let links = table.slice(entry.second, entry.extent as usize * 2);
    let classes = table.classes();
    let (mut state, mut matched, mut longest) = (0, 0, 0);
    for &token in content {
        let class = classes[token as usize] as usize;
        while next[state * width + class] == NONE && state != 0 {
            state = links[2 * state] as usize;
            matched = links[2 * state + 1];
        }
        let to = next[state * width + class];
        if to != NONE {
            (state, matched) = (to as usize, matched + 1);
            longest = longest.max(matched);
        }
    }
    longest
}

/// The smallest edit distance of the pattern to any substring of the content (Myers 1999, in blocks of 32 bits as in
/// Hyyrö 2003). Bit i of `plus`/`minus`: the distance grows/shrinks by one from pattern prefix i to i + 1.
fn edit_distance(table: &FeatureTable, entry: &Entry, content: &[Token]) -> u32 {
    let words = entry.extent as usize;
    let masks = table.slice(entry.first, table.width() * words);
    let (mut plus, mut minus) = ([u32::MAX; LONGEST_EDIT_PATTERN / 32], [0; LONGEST_EDIT_PATTERN / 32]);
    let last_bit = (entry.size - 1) % 32;
    let (mut distance, mut smallest) = (entry.size, entry.size);
    for &token in content {
        let class = table.classes()[token as usize] as usize;
        let mut carry = 0;
        for (word, &mask) in masks[class * words..][..words].iter().enumerate() {
            let out = if word + 1 == words { last_bit } else { 31 };
            carry = edit_block(&mut plus[word], &mut minus[word], mask, carry, out);
        }
        distance = distance.wrapping_add_signed(carry);
        smallest = smallest.min(distance);
    }
    smallest
}

/// One column of one block: `carry` is the change of the distance (−1, 0, 1) at the row above the block, the return
/// value that at row `out` of it.
#[inline]
fn edit_block(plus: &mut u32, minus: &mut u32, equal: u32, carry: i32, out: u32) -> i32 {
    let (down, up) = (u32::from(carry < 0), u32::from(carry > 0));
    let vertical = equal | *minus;
    let equal = equal | down;
    let horizontal = ((equal & *plus).wrapping_add(*plus) ^ *plus) | equal;
    let grows = *minus | !(horizontal | *plus);
    let shrinks = *plus & horizontal;
    let change = (grows >> out & 1) as i32 - (shrinks >> out & 1) as i32;
    let (grows, shrinks) = (grows << 1 | up, shrinks << 1 | down);
    *plus = shrinks | !(vertical | grows);
    *minus = grows & vertical;
    change
}
