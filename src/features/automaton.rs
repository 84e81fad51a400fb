//! Features as finite automata: a feature's value is read at the state in which the content ends.

use std::collections::HashMap;
use std::hash::Hash;

use super::{Classes, Feature};
use crate::error::{Error, Result};
use crate::tokens::{Space, Token};

/// A complete deterministic automaton with values at its states. The start state is 0; EOS, BOS and PAD leave the
/// state as it is, so reading a whole row, padding included, ends in the state of its content.
#[derive(Debug, Clone, PartialEq)]
pub struct Automaton {
    space: Space,
    classes: Classes,
    outputs: usize,
    /// The state after a token of a class, `[S, C]`.
    next: Vec<u32>,
    /// `[S, outputs]`.
    values: Vec<f32>,
}

impl Automaton {
    /// The automaton of one feature.
    ///
    /// # Errors
    /// The feature is no automaton, or makes no sense over `space`.
    pub fn new(space: Space, feature: &Feature) -> Result<Self> {
        feature.check(&space, feature.kind())?;
        Self::with_classes(space, Classes::new(&space, feature.named_tokens()), feature)
            .ok_or_else(|| Error::argument("feature", "one that is an automaton", feature.kind()))
    }

    /// Number of states S.
    pub fn states(&self) -> usize {
        self.next.len() / self.classes.len()
    }

    /// Number of values per state.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// The space of the sequences.
    pub fn space(&self) -> Space {
        self.space
    }

    /// The token classes of the columns of [`Automaton::transitions`].
    pub fn classes(&self) -> &Classes {
        &self.classes
    }

    /// The state after a token of a class, `[S, C]`.
    pub fn transitions(&self) -> &[u32] {
        &self.next
    }

    /// The state after `token`. Panics on a state or token that does not exist.
    #[inline]
    pub fn next(&self, state: u32, token: Token) -> u32 {
        self.next[state as usize * self.classes.len() + self.classes.of()[token as usize] as usize]
    }

    /// The values of a content that ends in `state`, `[outputs]`. Panics on a state that does not exist.
    #[inline]
    pub fn values(&self, state: u32) -> &[f32] {
        &self.values[state as usize * self.outputs..][..self.outputs]
    }

    /// The state after a whole content. Panics on a token that does not exist.
    pub fn run(&self, content: &[Token]) -> u32 {
        content.iter().fold(0, |state, &token| self.next(state, token))
    }

    /// How many contents of exactly `length` tokens have 1 as value of `output`; `None` beyond 2¹²⁸ − 1.
    /// Panics on an output that does not exist.
    pub fn count(&self, length: u32, output: usize) -> Option<u128> {
        let content = || (0..self.space.vocab).filter(|&token| self.space.is_content(token));
        let mut strings = vec![0_u128; self.states()];
        strings[0] = 1;
        for _ in 0..length {
            let mut after = vec![0_u128; self.states()];
            for (state, &count) in strings.iter().enumerate().filter(|(_, count)| **count > 0) {
                for token in content() {
                    let to = &mut after[self.next(state as u32, token) as usize];
                    *to = to.checked_add(count)?;
                }
            }
            strings = after;
        }
        let accepted = |state: &usize| self.values(*state as u32)[output] == 1.0;
        (0..self.states()).filter(accepted).try_fold(0_u128, |total, state| total.checked_add(strings[state]))
    }

    /// One state, no values: the neutral element of the product.
    pub(super) fn unit(space: Space, classes: Classes) -> Self {
        Automaton { space, next: vec![0; classes.len()], classes, outputs: 0, values: Vec::new() }
    }

    /// The automaton of a checked feature whose named tokens `classes` tells apart; `None` where it is none.
    pub(super) fn with_classes(space: Space, classes: Classes, feature: &Feature) -> Option<Self> {
        let build = |states: usize, step: &dyn Fn(usize, Token) -> usize, value: &dyn Fn(usize) -> f32| {
            Self::build(space, &classes, states, step, value)
        };
        // State n of a pattern of m tokens: n of them matched. State m + 1 of an anchored pattern: no match any more.
        let matched = |m: usize| move |state: usize| f32::from(u8::from(state == m));
        let anchored = |pattern: &[Token], state: usize, token: Token| {
            if pattern.get(state) == Some(&token) { state + 1 } else { pattern.len() + 1 }
        };
        let longest = space.longest as usize;
        Some(match feature {
            Feature::Contains(pattern) => {
                let (m, borders) = (pattern.len(), borders(pattern));
                let step = |state, token| if state == m { m } else { advance(pattern, &borders, state, token) };
                build(m + 1, &step, &matched(m))
            }
            Feature::EndsWith(pattern) => {
                let (m, borders) = (pattern.len(), borders(pattern));
                build(m + 1, &|state, token| advance(pattern, &borders, state, token), &matched(m))
            }
            Feature::StartsWith(pattern) => {
                let m = pattern.len();
                let step = |state, token| if state == m { m } else { anchored(pattern, state, token) };
                build(m + 2, &step, &matched(m))
            }
            Feature::Equals(pattern) => {
                build(pattern.len() + 2, &|state, token| anchored(pattern, state, token), &matched(pattern.len()))
            }
            Feature::MultipleOf { modulus, zero, one } => {
                let modulus = *modulus as usize;
                build(modulus + 2, &|state, token| residue(modulus, state, token, *zero, *one), &matched(1))
            }
            // State n: n content tokens. EOS is one more, and a content of `longest` tokens was cut before it, so
            // both n = longest − 1 and n = longest mean `longest` tokens: one state.
            Feature::Length => build(longest, &|n, _| (n + 1).min(longest - 1), &|n| length_value(n + 1, longest)),
            Feature::LengthSquared => build(longest, &|n, _| (n + 1).min(longest - 1), &|n| {
                length_value(n + 1, longest) * length_value(n + 1, longest)
            }),
            Feature::LongestCommonSubstring(_) | Feature::EditDistance(_) => return None,
        })
    }

    /// One output, from functions of the state's number; content tokens step, others stay.
    fn build(
        space: Space,
        classes: &Classes,
        states: usize,
        step: &dyn Fn(usize, Token) -> usize,
        value: &dyn Fn(usize) -> f32,
    ) -> Self {
        let mut next = Vec::with_capacity(states * classes.len());
        for state in 0..states {
            let step = |&token: &Token| if space.is_content(token) { step(state, token) } else { state } as u32;
            next.extend(classes.representatives().iter().map(step));
        }
        let values = (0..states).map(value).collect();
        Automaton { space, classes: classes.clone(), outputs: 1, next, values }
    }

    /// The minimised automaton of both, the values of `self` first; `None` where more than `limit` pairs of states
    /// are reachable. Both must share their classes.
    pub(super) fn product(&self, other: &Automaton, limit: usize) -> Option<Self> {
        debug_assert_eq!(self.classes, other.classes);
        let width = self.classes.len();
        let step = |(a, b): (u32, u32), class: usize| {
            (self.next[a as usize * width + class], other.next[b as usize * width + class])
        };
        let (states, next) = explore((0, 0), width, limit, step)?;
        let values = states.iter().flat_map(|&(a, b)| [self.values(a), other.values(b)].concat()).collect();
        let (space, classes, outputs) = (self.space, self.classes.clone(), self.outputs + other.outputs);
        Some(Automaton { space, classes, outputs, next, values }.minimised())
    }

    /// The smallest automaton with the same values (Moore's partition refinement): states start in blocks of equal
    /// values, and a block is split as long as some class leads its states to different blocks.
    fn minimised(self) -> Self {
        let (states, width) = (self.states(), self.classes.len());
        let bits = |state: usize| self.values(state as u32).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (mut block, mut blocks) = number((0..states).map(bits));
        loop {
            let before = blocks;
            for class in 0..width {
                let pair = |state: usize| (block[state], block[self.next[state * width + class] as usize]);
                (block, blocks) = number((0..states).map(pair));
            }
            if blocks == before {
                return self.quotient(&block, blocks);
            }
        }
    }

    /// One state per block, the blocks being numbered by their first state.
    fn quotient(self, block: &[u32], blocks: usize) -> Self {
        let width = self.classes.len();
        let (mut next, mut values) = (Vec::with_capacity(blocks * width), Vec::new());
        for (state, &number) in block.iter().enumerate() {
            if number as usize * width == next.len() {
                next.extend(self.next[state * width..][..width].iter().map(|&to| block[to as usize]));
                values.extend_from_slice(self.values(state as u32));
            }
        }
        Automaton { next, values, ..self }
    }
}

/// Numbers values by first appearance; returns the number of each and how many there are.
fn number<K: Hash + Eq>(values: impl Iterator<Item = K>) -> (Vec<u32>, usize) {
    let mut known = HashMap::new();
    let mut number = |value| {
        let fresh = known.len() as u32;
        *known.entry(value).or_insert(fresh)
    };
    let numbers = values.map(&mut number).collect();
    (numbers, known.len())
}

/// All states reachable from `start` in breadth-first order, and the transitions `[states, columns]` among them;
/// `None` where there are more than `limit`.
pub(crate) fn explore<K: Hash + Eq + Copy>(
    start: K,
    columns: usize,
    limit: usize,
    step: impl Fn(K, usize) -> K,
) -> Option<(Vec<K>, Vec<u32>)> {
    let limit = limit.min(u32::MAX as usize);
    let (mut states, mut next) = (vec![start], Vec::new());
    let mut known = HashMap::from([(start, 0)]);
    let mut from = 0;
    while from < states.len() {
        if states.len() > limit {
            return None;
        }
        for column in 0..columns {
            let to = step(states[from], column);
            let fresh = states.len() as u32;
            next.push(*known.entry(to).or_insert(fresh));
            if known.len() > states.len() {
                states.push(to);
            }
        }
        from += 1;
    }
    Some((states, next))
}

/// Length of the longest proper border of each prefix of the pattern (Knuth, Morris, Pratt), `[m + 1]`.
fn borders(pattern: &[Token]) -> Vec<usize> {
    let mut borders = vec![0; pattern.len() + 1];
    for end in 1..pattern.len() {
        borders[end + 1] = advance(&pattern[..end], &borders, borders[end], pattern[end]);
    }
    borders
}

/// Length of the longest prefix of the pattern that ends with `token`, where `matched` tokens matched before it.
fn advance(pattern: &[Token], borders: &[usize], mut matched: usize, token: Token) -> usize {
    while pattern.get(matched) != Some(&token) {
        if matched == 0 {
            return 0;
        }
        matched = borders[matched];
    }
    matched + 1
}

/// States of MultipleOf: 0 is the value zero (the empty content too), r + 1 a positive value of residue r, and
/// modulus + 1 a content that is no number. (So 0 itself is no positive multiple.)
fn residue(modulus: usize, state: usize, token: Token, zero: Token, one: Token) -> usize {
    let digit = match token {
        _ if state == modulus + 1 => return state,
        _ if token == zero => 0,
        _ if token == one => 1,
        _ => return modulus + 1,
    };
    match (state, digit) {
        (0, 0) => 0,
        (0, 1) => 1 % modulus + 1,
        _ => ((state - 1) * 2 + digit) % modulus + 1,
    }
}

/// The value of [`Feature::Length`] for a sequence of `tokens` tokens, EOS included.
#[inline]
pub(super) fn length_value(tokens: usize, longest: usize) -> f32 {
    tokens as f32 / longest as f32
}
