//! The feature kernel on the CPU: rows in parallel, all features of a row while its tokens are in the cache.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::automaton::length_value;
use super::substring::NONE;
use super::table::{AUTOMATON, EDIT, Entry, LENGTH, SUBSTRING};
use super::{FeatureKernel, FeatureTable, LONGEST_EDIT_PATTERN};
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::tokens::{Batch, Token};

/// Rows of one parallel task: enough to drown its cost, few enough to balance.
const ROWS: usize = 256;

impl FeatureKernel for Cpu {
    fn features(&self, table: &FeatureTable, batch: &Batch, phi: &mut [f32]) -> Result<()> {
        let first_bad = AtomicUsize::new(usize::MAX);
        phi.par_chunks_mut(ROWS * table.len()).enumerate().for_each(|(block, phi)| {
            for (i, phi) in phi.chunks_exact_mut(table.len()).enumerate() {
                let row = block * ROWS + i;
                match tokens(batch, row) {
                    Some(tokens) => evaluate(table, tokens, phi),
                    None => {
                        phi.fill(f32::NAN);
                        first_bad.fetch_min(row, Ordering::Relaxed);
                    }
                }
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

/// The tokens of a row, where its length and all its tokens are in range.
fn tokens(batch: &Batch, row: usize) -> Option<&[Token]> {
    let stride = batch.space.longest as usize;
    let length = batch.lengths[row] as usize;
    let tokens = &batch.tokens[row * stride..][..length.min(stride)];
    let largest = tokens.iter().fold(0, |largest, &token| largest.max(token));
    ((1..=stride).contains(&length) && largest < batch.space.vocab).then_some(tokens)
}

/// All features of one sequence.
fn evaluate(table: &FeatureTable, tokens: &[Token], phi: &mut [f32]) {
    let ended = tokens.last() == Some(&table.space().eos);
    let content = &tokens[..tokens.len() - usize::from(ended)];
    for entry in table.entries() {
        let target = table.slice(entry.targets, 1)[0] as usize;
        match entry.kind {
            AUTOMATON => automaton(table, entry, content, phi),
            LENGTH => {
                let length = length_value(tokens.len(), table.space().longest as usize);
                phi[target] = if entry.size == 1 { length } else { length * length };
            }
            SUBSTRING => phi[target] = common_substring(table, entry, content) as f32 / entry.size as f32,
            EDIT => phi[target] = (entry.size - edit_distance(table, entry, content)) as f32 / entry.size as f32,
            kind => unreachable!("entry kind {kind} is never compiled"),
        }
    }
}

/// Walks a product automaton and writes the values of its last state. States are stored times C, which takes a
/// multiplication out of the chain of dependent loads.
fn automaton(table: &FeatureTable, entry: &Entry, content: &[Token], phi: &mut [f32]) {
    let (width, outputs) = (table.width(), entry.extent as usize);
    let next = table.slice(entry.first, entry.size as usize * width);
    let classes = table.classes();
    let step = |state: u32, &token: &Token| next[state as usize + classes[token as usize] as usize];
    let state = content.iter().fold(0, step) as usize / width;
    let values = &table.slice(entry.second, entry.size as usize * outputs)[state * outputs..][..outputs];
    for (&target, &value) in table.slice(entry.targets, outputs).iter().zip(values) {
        phi[target as usize] = f32::from_bits(value);
    }
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
