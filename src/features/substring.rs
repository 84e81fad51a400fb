//! The suffix automaton of a pattern (Blumer et al. 1985): the longest common substring in one pass over the text.

use super::Classes;
use crate::tokens::Token;

/// What marks a transition that does not exist.
pub(super) const NONE: u32 = u32::MAX;

/// A state is a set of substrings of the pattern that end at the same places.
pub(super) struct SuffixAutomaton {
    /// The state after a token of a class, or [`NONE`], `[S, C]`.
    pub next: Vec<u32>,
    /// Per state, the state of its longest suffix outside it, and the length of its longest substring, `[S, 2]`.
    pub links: Vec<[u32; 2]>,
}

impl SuffixAutomaton {
    /// The automaton of `pattern`: at most two states per token.
    pub(super) fn new(pattern: &[Token], classes: &Classes) -> Self {
        let width = classes.len();
        let mut this = SuffixAutomaton { next: vec![NONE; width], links: vec![[NONE, 0]] };
        let mut last = 0;
        for &token in pattern {
            last = this.extend(last, classes.of()[token as usize] as usize, width);
        }
        // The root's link is followed by nobody; a valid state keeps every table entry in range.
        this.links[0][0] = 0;
        this
    }

    /// Appends one token of `class` to the pattern, whose whole is state `last`; returns the new whole.
    fn extend(&mut self, last: usize, class: usize, width: usize) -> usize {
        let whole = self.push(vec![NONE; width], [0, self.links[last][1] + 1]);
        let from = self.redirect(last as u32, class, width, NONE, whole as u32);
        if from == NONE {
            return whole;
        }
        let to = self.next[from as usize * width + class];
        let length = self.links[from as usize][1] + 1;
        if self.links[to as usize][1] == length {
            self.links[whole][0] = to;
            return whole;
        }
        // `to` also holds longer substrings, which do not end here: its shorter ones get a state of their own.
        let row = self.next[to as usize * width..][..width].to_vec();
        let shorter = self.push(row, [self.links[to as usize][0], length]) as u32;
        self.redirect(from, class, width, to, shorter);
        self.links[to as usize][0] = shorter;
        self.links[whole][0] = shorter;
        whole
    }

    /// Along the links from `state`, as long as `class` leads to `old`, leads it to `new`; returns where it stopped.
    fn redirect(&mut self, mut state: u32, class: usize, width: usize, old: u32, new: u32) -> u32 {
        while state != NONE && self.next[state as usize * width + class] == old {
            self.next[state as usize * width + class] = new;
            state = self.links[state as usize][0];
        }
        state
    }

    fn push(&mut self, row: Vec<u32>, link: [u32; 2]) -> usize {
        self.next.extend(row);
        self.links.push(link);
        self.links.len() - 1
    }
}
