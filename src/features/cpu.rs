//! The feature kernel on the CPU: tasks of rows in parallel, eight rows at a time. Their tokens become classes once, which
//! then stay in the first-level cache while entry after entry walks them: a step is a chain of dependent loads, and the
//! chains of eight rows overlap.
//!
//! Classes lie side by side, token t of all eight rows together, so that a walk has one address to keep and not eight. In
//! cycles per token: about 1 to read and check a token, 1 to 1.5 for its class, then 1 for each automaton (two loads, of
//! which a core does two a cycle) and 2 for four words of bits.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::build::{count_value, largest, least, length_value};
use super::substring::NONE;
use super::table::*;
use super::{FeatureKernel, FeatureTable, LONGEST_EDIT_PATTERN};
use crate::backend::Cpu;
use crate::backend::simd::{Isa, Simd, dispatch};
use crate::error::{Error, Result};
use crate::tokens::{Token, TokenId, TokenRows};

/// Rows of one task: enough to drown its cost, and to find eight of about the same length.
const ROWS: usize = 128;

/// Rows that walk at a time.
const LANES: usize = 8;

/// Rows whose bits are in registers at a time.
const BIT_LANES: usize = 4;

/// What a thread keeps from task to task, so that no step allocates.
#[derive(Default)]
struct Scratch {
    /// The class of each token of the rows that walk, `[longest, LANES]`; beyond a row's content what was there before.
    classes: Vec<[u32; LANES]>,
    /// Hidden values, `[LANES, H]`.
    hidden: Vec<f32>,
    /// A bit for each token, none set.
    seen: Vec<u64>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl FeatureKernel for Cpu {
    fn features<T: TokenId>(
        &self,
        table: &FeatureTable,
        batch: TokenRows<'_, Self, T>,
        custom: Option<&[f32]>,
        phi: &mut [f32],
    ) -> Result<()> {
        let first_bad = AtomicUsize::new(usize::MAX);
        phi.par_chunks_mut(ROWS * table.len()).enumerate().for_each(|(task, phi)| {
            let first = task * ROWS;
            let custom = custom.map_or(&[][..], |custom| &custom[first * table.customs.len()..]);
            let bad = SCRATCH.with_borrow_mut(|scratch| rows_of_task(table, &batch, first, custom, phi, scratch));
            if let Some(bad) = bad {
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

impl FeatureTable<Cpu> {
    /// Writes φ of rows to `phi` (`[rows, F]`), on this thread alone: for who has just made the rows, and still has them in
    /// its cache. Rows out of range become NaN. Panics where the table has closures, which want the whole batch, or no
    /// features.
    pub(crate) fn evaluate_here(&self, rows: TokenRows<'_, Cpu, Token>, phi: &mut [f32]) {
        SCRATCH.with_borrow_mut(|scratch| {
            for (task, phi) in phi.chunks_mut(ROWS * self.len()).enumerate() {
                rows_of_task(self, &rows, task * ROWS, &[], phi, scratch);
            }
        });
    }

    /// Whether features need more than the rows: closures, which are given the whole batch on the host.
    pub(crate) fn has_closures(&self) -> bool {
        !self.customs.is_empty()
    }
}

/// The features `phi` (`[rows, F]`) of the rows from `first` on, whose closures' values begin `custom`. Rows out of range
/// become NaN; returns the first of them.
fn rows_of_task<T: TokenId>(
    table: &FeatureTable,
    batch: &TokenRows<'_, Cpu, T>,
    first: usize,
    custom: &[f32],
    phi: &mut [f32],
    scratch: &mut Scratch,
) -> Option<usize> {
    let rows = phi.len() / table.len();
    let lengths = &batch.lengths[first..first + rows];
    let mut order: [usize; ROWS] = std::array::from_fn(|row| row);
    // Rows walk together as far as the shortest goes: those of about the same length belong together.
    if lengths.iter().any(|&length| length != lengths[0]) {
        order[..rows].sort_unstable_by_key(|&row| (lengths[row], row));
    }
    let mut first_bad = None;
    for rows in order[..rows].chunks(LANES) {
        let mut lanes = Lanes::new(table, batch, first, rows, custom, phi, scratch);
        table.entries().iter().for_each(|entry| lanes.entry(entry));
        if let Some(bad) = lanes.spoil() {
            first_bad = Some(first_bad.map_or(bad, |row: usize| row.min(bad)));
        }
    }
    first_bad
}

/// The tokens of a row, where its length is in range and all its tokens are below `vocab`.
fn tokens<'a, T: TokenId>(batch: &TokenRows<'a, Cpu, T>, row: usize, vocab: usize) -> Option<&'a [T]> {
    let stride = batch.space.longest as usize;
    let length = batch.lengths[row] as usize;
    let tokens = &batch.tokens[row * stride..][..length.min(stride)];
    ((1..=stride).contains(&length) && (largest_token(Isa::best(), tokens) as usize) < vocab).then_some(tokens)
}

#[inline(always)]
unsafe fn largest_of<S: Simd, T: TokenId>(tokens: &[T]) -> u32 {
    tokens.iter().fold(T::default(), |largest, &token| largest.max(token)).into()
}
dispatch! {
    /// The largest of some tokens; the compiler makes vectors of it.
    fn largest_token<T: TokenId>(tokens: &[T]) -> u32 = largest_of
}

/// Up to eight rows, and where their features go.
struct Lanes<'a, T> {
    table: &'a FeatureTable,
    /// The rows, counted from the task's first.
    rows: &'a [usize],
    /// The tokens of each row without EOS; none where the row is out of range, or there is no row.
    contents: [&'a [T]; LANES],
    /// Tokens of each row, EOS included; 0 where the row is out of range.
    lengths: [u32; LANES],
    /// How far all rows go: nowhere where there are fewer than eight.
    shortest: usize,
    /// As in [`Scratch`], below C as far as each row's content goes.
    classes: &'a [[u32; LANES]],
    custom: &'a [f32],
    /// `[rows of the task, F]`.
    phi: &'a mut [f32],
    hidden: &'a mut [f32],
    seen: &'a mut [u64],
}

impl<'a, T: TokenId> Lanes<'a, T> {
    fn new<'b: 'a>(
        table: &'a FeatureTable,
        batch: &TokenRows<'b, Cpu, T>,
        first: usize,
        rows: &'a [usize],
        custom: &'a [f32],
        phi: &'a mut [f32],
        scratch: &'a mut Scratch,
    ) -> Self {
        let space = batch.space;
        let Scratch { classes, hidden, seen } = scratch;
        classes.resize(classes.len().max(space.longest as usize), [0; LANES]);
        hidden.resize(LANES * table.hidden(), 0.0);
        seen.resize(seen.len().max((space.vocab as usize).div_ceil(64)), 0);
        let (mut contents, mut lengths) = ([&[][..]; LANES], [0; LANES]);
        for (lane, &row) in rows.iter().enumerate() {
            if let Some(tokens) = tokens(batch, first + row, table.classes().len()) {
                let ended = tokens.last().is_some_and(|&last| last.into() == space.eos);
                contents[lane] = &tokens[..tokens.len() - usize::from(ended)];
                lengths[lane] = tokens.len() as u32;
            }
            classify(contents[lane], table.classes(), lane, classes);
        }
        let shortest = contents.iter().map(|content| content.len()).min().unwrap_or(0);
        Lanes { table, rows, contents, lengths, shortest, classes, custom, phi, hidden, seen }
    }

    /// Rows out of range become NaN; returns the first of them.
    fn spoil(&mut self) -> Option<usize> {
        let bad = (0..self.rows.len()).filter(|&lane| self.lengths[lane] == 0).map(|lane| self.rows[lane]);
        let features = self.table.len();
        bad.inspect(|row| self.phi[row * features..][..features].fill(f32::NAN)).min()
    }

    #[inline]
    fn set(&mut self, lane: usize, target: u32, value: f32) {
        let (features, target) = (self.table.len(), target as usize);
        if target < features {
            self.phi[self.rows[lane] * features + target] = value;
        } else {
            self.hidden[lane * self.table.hidden() + target - features] = value;
        }
    }

    fn get(&self, lane: usize, target: u32) -> f32 {
        let (features, target) = (self.table.len(), target as usize);
        if target < features {
            self.phi[self.rows[lane] * features + target]
        } else {
            self.hidden[lane * self.table.hidden() + target - features]
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let table = self.table;
        let target = table.slice(entry.targets, 1)[0];
        match entry.kind {
            AUTOMATON => self.automaton(entry),
            WORDS => self.words(entry),
            SHIFT if entry.size == 1 => self.shift::<1>(entry),
            SHIFT if entry.size == 2 => self.shift::<2>(entry),
            SHIFT => self.shift::<4>(entry),
            COUNT => self.count(entry, target),
            SPELLED => self.spelled(entry, target),
            _ => {
                for lane in 0..self.rows.len() {
                    let value = self.value(entry, lane);
                    self.set(lane, target, value);
                }
            }
        }
    }

    /// The value of an entry that takes one row at a time.
    fn value(&mut self, entry: &Entry, lane: usize) -> f32 {
        let table = self.table;
        match entry.kind {
            LENGTH => {
                let length = length_value(self.lengths[lane] as usize, table.space().longest as usize);
                if entry.size == 1 { length } else { length * length }
            }
            SUBSTRING => common_substring(table, entry, self.classes_of(lane)) as f32 / entry.size as f32,
            EDIT => (entry.size - edit_distance(table, entry, self.classes_of(lane))) as f32 / entry.size as f32,
            DISTINCT => self.distinct(lane),
            CUSTOM => self.custom[self.rows[lane] * table.customs.len() + entry.size as usize],
            COMBINE => self.combined(entry, lane),
            kind => unreachable!("entry kind {kind} is never compiled"),
        }
    }

    fn combined(&self, entry: &Entry, lane: usize) -> f32 {
        let operands =
            self.table.slice(entry.first, entry.extent as usize).iter().map(|&target| self.get(lane, target));
        match entry.size {
            0 => 1.0 - operands.sum::<f32>(),
            1 => operands.fold(1.0, |a, b| least(&[a, b])),
            2 => operands.fold(0.0, |a, b| largest(&[a, b])),
            _ => f32::from(u8::from(operands.sum::<f32>() >= f32::from_bits(entry.second))),
        }
    }

    fn distinct(&mut self, lane: usize) -> f32 {
        let content = self.contents[lane];
        let mut fresh = 0_u32;
        for &token in content {
            let token: u32 = token.into();
            let (word, bit) = (&mut self.seen[token as usize / 64], 1 << (token % 64));
            fresh += u32::from(*word & bit == 0);
            *word |= bit;
        }
        content.iter().for_each(|&token| self.seen[Into::<u32>::into(token) as usize / 64] = 0);
        fresh as f32 / content.len().max(1) as f32
    }

    /// The classes of one row's content.
    fn classes_of(&self, lane: usize) -> impl Iterator<Item = u32> + use<'a, T> {
        self.classes[..self.contents[lane].len()].iter().map(move |slots| slots[lane])
    }

    /// Takes the states of N lanes from `first` on through the classes of their contents, but for the first `from`: all
    /// as far as the shortest goes, then each alone.
    #[inline(always)]
    fn walk<const N: usize, S: Copy>(
        &self,
        first: usize,
        from: usize,
        mut states: [S; N],
        step: impl Fn(S, u32) -> S,
    ) -> [S; N] {
        for slots in self.classes[..self.shortest].iter().skip(from) {
            let slots: &[u32; N] = slots[first..first + N].try_into().expect("as many lanes");
            states = std::array::from_fn(|lane| step(states[lane], slots[lane]));
        }
        for (lane, state) in states.iter_mut().enumerate() {
            let classes = self.classes_of(first + lane).skip(self.shortest.max(from));
            *state = classes.fold(*state, &step);
        }
        states
    }

    /// Walks a product automaton and writes the values of its last state.
    fn automaton(&mut self, entry: &Entry) {
        let (table, outputs) = (self.table, entry.extent as usize);
        let targets = table.slice(entry.targets, outputs);
        let next = table.transitions(entry);
        // States are stored times C, which takes a multiplication out of the chain of dependent loads.
        // SAFETY: a table's states are multiples of C below S·C, as is the first, 0, and classes are below C.
        let step = |state: u32, class: u32| unsafe { *next.get_unchecked((state + class) as usize) };
        let states = self.walk(0, 0, [0; LANES], step);
        let values = table.slice(entry.second, entry.size as usize * outputs);
        for lane in 0..self.rows.len() {
            let values = &values[states[lane] as usize / table.width() * outputs..][..outputs];
            for (&target, &value) in targets.iter().zip(values) {
                self.set(lane, target, f32::from_bits(value));
            }
        }
    }

    /// Walks the automaton of some features' words, and notes where one ends.
    fn words(&mut self, entry: &Entry) {
        let table = self.table;
        let next = table.transitions(entry);
        let ending = table.slice(entry.second, entry.size as usize);
        // SAFETY: as in `automaton`, for states without the mark, which `note` takes away.
        let step = |state: u32, class: u32| unsafe { *next.get_unchecked((state + class) as usize) };
        let note = |found: &mut u32, state: &mut u32| {
            if *state & ENDS != 0 {
                *state &= !ENDS;
                *found |= ending[*state as usize / table.width()];
            }
        };
        let (mut states, mut found) = ([0; LANES], [0; LANES]);
        for slots in &self.classes[..self.shortest] {
            states = std::array::from_fn(|lane| step(states[lane], slots[lane]));
            // Words rarely end: one branch for all lanes.
            if states.iter().fold(0, |any, state| any | state) & ENDS != 0 {
                found.iter_mut().zip(&mut states).for_each(|(found, state)| note(found, state));
            }
        }
        for lane in 0..self.rows.len() {
            for class in self.classes_of(lane).skip(self.shortest) {
                states[lane] = step(states[lane], class);
                note(&mut found[lane], &mut states[lane]);
            }
            for (bit, &target) in table.slice(entry.targets, entry.extent as usize).iter().enumerate() {
                self.set(lane, target, (found[lane] >> bit & 1) as f32);
            }
        }
    }

    fn count(&mut self, entry: &Entry, target: u32) {
        let next = self.table.transitions(entry);
        let step = |(state, count): (u32, u32), class: u32| {
            // SAFETY: as in `automaton`, the mark being taken away.
            let to = unsafe { *next.get_unchecked((state + class) as usize) };
            (to & !ENDS, count + (to >> 31))
        };
        let ends = self.walk(0, 0, [(0, 0); LANES], step);
        for lane in 0..self.rows.len() {
            self.set(lane, target, count_value(ends[lane].1, entry.extent));
        }
    }

    /// Walks an automaton over what spells the tokens.
    fn spelled(&mut self, entry: &Entry, target: u32) {
        let (table, width, vocab) = (self.table, entry.extent as usize, self.table.space().vocab as usize);
        let next = table.slice(entry.first, entry.size as usize * width);
        let ends = table.slice(entry.third, vocab);
        let packed = table.slice(entry.third + vocab as u32, ends[vocab - 1].div_ceil(4) as usize);
        let symbols: &[u8] = bytemuck::cast_slice(packed);
        let step = |state: u32, token: T| {
            let token: u32 = token.into();
            let start = if token == 0 { 0 } else { ends[token as usize - 1] };
            let symbols = symbols[start as usize..ends[token as usize] as usize].iter();
            symbols.fold(state, |state, &symbol| next[state as usize + usize::from(symbol)])
        };
        let states = walk_tokens(self.contents, self.shortest, step);
        for lane in 0..self.rows.len() {
            let value = table.slice(entry.second + states[lane] / width as u32, 1)[0];
            self.set(lane, target, f32::from_bits(value));
        }
    }

    /// Shift-And on W words at once; see `shift.rs`.
    fn shift<const W: usize>(&mut self, entry: &Entry) {
        let (table, outputs) = (self.table, entry.extent as usize);
        let (masks, _) = table.slice(entry.first, table.width() * W).as_chunks::<W>();
        let (starts, _) = table.slice(entry.second, 3 * W).as_chunks::<W>();
        let [always, first, keep] = [starts[0], starts[1], starts[2]];
        // SAFETY: there are masks for each of the C classes.
        let mask_of = |class: u32| unsafe { masks.get_unchecked(class as usize) };
        let step = |(bits, found): ([u32; W], [u32; W]), class: u32| {
            let mask = mask_of(class);
            let bits: [u32; W] = std::array::from_fn(|w| (bits[w] << 1 & keep[w] | always[w]) & mask[w]);
            (bits, std::array::from_fn(|w| found[w] | bits[w]))
        };
        // The first token alone may also begin an anchored pattern.
        let begin = |class: Option<u32>| {
            let bits =
                class.map_or([0; W], |class| std::array::from_fn(|w| (always[w] | first[w]) & mask_of(class)[w]));
            (bits, bits)
        };
        for from in (0..LANES).step_by(BIT_LANES) {
            let begun = std::array::from_fn(|lane| begin(self.classes_of(from + lane).next()));
            let ends = self.walk::<BIT_LANES, _>(from, 1, begun, step);
            for (lane, (bits, found)) in (from..self.rows.len()).zip(ends) {
                let answers = table.slice(entry.third, outputs).iter().zip(table.slice(entry.targets, outputs));
                for (&answer, &target) in answers {
                    let (bit, words) = (answer as usize / 2, if answer & 1 == 1 { &bits } else { &found });
                    self.set(lane, target, (words[bit / 32] >> (bit % 32) & 1) as f32);
                }
            }
        }
    }
}

/// Writes the classes of a row's content, whose tokens [`tokens`] found below the map's length, to its lane.
fn classify<T: TokenId>(content: &[T], map: &[u32], lane: usize, classes: &mut [[u32; LANES]]) {
    for (slots, &token) in classes.iter_mut().zip(content) {
        let token: u32 = token.into();
        // SAFETY: the token is below the map's length.
        slots[lane] = unsafe { *map.get_unchecked(token as usize) };
    }
}

/// Takes the state of each lane through its content: all lanes at once as far as the shortest goes, then each alone.
#[inline(always)]
fn walk_tokens<T: Copy, S: Copy + Default>(
    contents: [&[T]; LANES],
    shortest: usize,
    step: impl Fn(S, T) -> S,
) -> [S; LANES] {
    let mut states = [S::default(); LANES];
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
fn common_substring(table: &FeatureTable, entry: &Entry, classes: impl Iterator<Item = u32>) -> u32 {
    let width = table.width();
    let next = table.slice(entry.first, entry.extent as usize * width);
    let links = table.slice(entry.second, entry.extent as usize * 2);
    let (mut state, mut matched, mut longest) = (0, 0, 0);
    for class in classes {
        let class = class as usize;
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
fn edit_distance(table: &FeatureTable, entry: &Entry, classes: impl Iterator<Item = u32>) -> u32 {
    let words = entry.extent as usize;
    let masks = table.slice(entry.first, table.width() * words);
    let (mut plus, mut minus) = ([u32::MAX; LONGEST_EDIT_PATTERN / 32], [0; LONGEST_EDIT_PATTERN / 32]);
    let last_bit = (entry.size - 1) % 32;
    let (mut distance, mut smallest) = (entry.size, entry.size);
    for class in classes {
        let mut carry = 0;
        for (word, &mask) in masks[class as usize * words..][..words].iter().enumerate() {
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
