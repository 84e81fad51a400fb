//! Features as finite automata: a feature's value is read at the state in which the content ends.

use std::collections::HashMap;
use std::hash::Hash;

use super::{Classes, Feature};
use crate::error::Result;
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
    /// The automaton of one feature; text features need a [`FeatureSet`](super::FeatureSet).
    ///
    /// # Errors
    /// The feature is no automaton, or makes no sense over `space`.
    pub fn new(space: Space, feature: &Feature) -> Result<Self> {
        super::FeatureSet::new(space).with(feature.kind(), feature.clone())?.automaton(&[0], 1 << 20)
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

    /// The automaton whose states are the keys reachable from `start`; content tokens step, others stay. `None` where
    /// there are more than `limit`.
    pub(super) fn explored<K: Hash + Eq + Clone>(
        space: Space,
        classes: &Classes,
        limit: usize,
        start: K,
        step: impl Fn(&K, Token) -> K,
        value: impl Fn(&K) -> f32,
    ) -> Option<Self> {
        let step = |state: K, class: usize| {
            let token = classes.representatives()[class];
            if space.is_content(token) { step(&state, token) } else { state }
        };
        let (states, next) = explore(start, classes.len(), limit, step)?;
        let values = states.iter().map(value).collect();
        Some(Automaton { space, classes: classes.clone(), outputs: 1, next, values })
    }

    /// One output in place of all, a function of them; minimised.
    pub(super) fn mapped(self, value: impl Fn(&[f32]) -> f32) -> Self {
        let values = (0..self.states() as u32).map(|state| value(self.values(state))).collect();
        Automaton { values, outputs: 1, ..self }.minimised()
    }

    /// Whether some content of at most `longest` tokens ends in a state that `accepts`.
    pub(super) fn reaches(&self, accepts: impl Fn(&[f32]) -> bool) -> bool {
        let (mut seen, mut level) = (vec![false; self.states()], vec![0_u32]);
        seen[0] = true;
        for length in 0..=self.space.longest {
            if level.iter().any(|&state| accepts(self.values(state))) {
                return true;
            }
            if length == self.space.longest || level.is_empty() {
                break;
            }
            let mut after = Vec::new();
            for state in level {
                for &to in &self.next[state as usize * self.classes.len()..][..self.classes.len()] {
                    if !std::mem::replace(&mut seen[to as usize], true) {
                        after.push(to);
                    }
                }
            }
            level = after;
        }
        false
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

    /// The smallest automaton with the same values.
    pub(super) fn minimised(self) -> Self {
        let bits = |state: usize| self.values(state as u32).iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let (block, blocks) = partition(&self.next, self.classes.len(), number((0..self.states()).map(bits)));
        self.quotient(&block, blocks)
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
pub(super) fn number<K: Hash + Eq>(values: impl Iterator<Item = K>) -> (Vec<u32>, usize) {
    let mut known = HashMap::new();
    let mut number = |value| {
        let fresh = known.len() as u32;
        *known.entry(value).or_insert(fresh)
    };
    let numbers = values.map(&mut number).collect();
    (numbers, known.len())
}

/// The coarsest refinement of a numbering of states under which equivalent states step to equivalent ones (Moore's
/// partition refinement): a block is split as long as some column leads its states to different blocks.
pub(super) fn partition(next: &[u32], width: usize, start: (Vec<u32>, usize)) -> (Vec<u32>, usize) {
    let (mut block, mut blocks) = start;
    let mut rows = vec![0; block.len() * (width + 1)];
    loop {
        for (state, row) in rows.chunks_exact_mut(width + 1).enumerate() {
            row[0] = block[state];
            let next = next[state * width..][..width].iter();
            row[1..].iter_mut().zip(next).for_each(|(to, &state)| *to = block[state as usize]);
        }
        let before = blocks;
        (block, blocks) = number(rows.chunks_exact(width + 1));
        if blocks == before {
            return (block, blocks);
        }
    }
}

/// All states reachable from `start` in breadth-first order, and the transitions `[states, columns]` among them;
/// `None` where there are more than `limit`.
pub(crate) fn explore<K: Hash + Eq + Clone>(
    start: K,
    columns: usize,
    limit: usize,
    step: impl Fn(K, usize) -> K,
) -> Option<(Vec<K>, Vec<u32>)> {
    let limit = limit.min(u32::MAX as usize);
    let (mut states, mut next) = (vec![start.clone()], Vec::new());
    let mut known = HashMap::from([(start, 0)]);
    let mut from = 0;
    while from < states.len() {
        if states.len() > limit {
            return None;
        }
        for column in 0..columns {
            let to = step(states[from].clone(), column);
            let fresh = states.len() as u32;
            match known.get(&to) {
                Some(&to) => next.push(to),
                None => {
                    states.push(to.clone());
                    known.insert(to, fresh);
                    next.push(fresh);
                }
            }
        }
        from += 1;
    }
    Some((states, next))
}
