//! Automata over symbols that spell the tokens, for patterns whose automaton over tokens would be too large: a token is
//! walked symbol by symbol.
//!
//! Text is spelled in (classes of) bytes. Words of very many different tokens are spelled in digits of the token's number,
//! each digit from an alphabet of its own so that no match can begin in the middle of a token.

use std::collections::{BTreeSet, HashMap};

use super::words::AhoCorasick;
use super::{Classes, automaton};
use crate::tokens::{Space, Token};

/// The most different symbols: they are stored as bytes.
const SYMBOLS: usize = 256;

/// Each token as a string of symbols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Symbols {
    /// Where each token's symbols end, `[V]`; they start where those of the token before end.
    pub ends: Vec<u32>,
    pub symbols: Vec<u8>,
}

impl Symbols {
    pub fn new<S: Iterator<Item = u8>>(tokens: impl Iterator<Item = S>) -> Self {
        let mut this = Symbols { ends: Vec::new(), symbols: Vec::new() };
        for token in tokens {
            this.symbols.extend(token);
            this.ends.push(this.symbols.len() as u32);
        }
        this
    }

    pub fn of(&self, token: Token) -> &[u8] {
        let start = if token == 0 { 0 } else { self.ends[token as usize - 1] as usize };
        &self.symbols[start..self.ends[token as usize] as usize]
    }
}

/// A complete automaton over symbols; the start state is 0.
pub(super) struct Spelled {
    /// Number of symbols.
    pub width: usize,
    /// The state after a symbol, `[S, symbols]`.
    pub next: Vec<u32>,
    /// The value of a content that ends in each state, `[S]`.
    pub values: Vec<f32>,
    /// The tokens.
    pub symbols: Symbols,
}

impl Spelled {
    /// Contents in which any of `words` occurs.
    pub fn any_of(space: &Space, words: &[Vec<Token>]) -> Option<Self> {
        let named: BTreeSet<Token> = words.iter().flatten().copied().collect();
        // Number 0: content tokens in no word.
        let number: HashMap<Token, usize> = named.into_iter().zip(1..).collect();
        let places = (1..=4).find(|&places| (SYMBOLS / places).pow(places as u32) > number.len())?;
        let base = (2..).find(|base: &usize| base.pow(places as u32) > number.len())?;
        let digits = |token: Token| {
            let number = number.get(&token).copied().unwrap_or(0);
            (0..places).map(move |place| place * base + number / base.pow(place as u32) % base)
        };
        let spelled = words.iter().map(|word| word.iter().flat_map(|&token| digits(token)).map(|digit| digit as u32));
        let (next, values) = AhoCorasick::new(spelled, base * places)?.containing();
        let symbols = Symbols::new((0..space.vocab).map(|token| {
            let places = if space.is_content(token) { places } else { 0 };
            digits(token).take(places).map(|digit| digit as u8)
        }));
        Some(Spelled { width: base * places, next, values, symbols }.minimised())
    }

    pub fn states(&self) -> usize {
        self.values.len()
    }

    /// The state after `token`.
    pub fn step(&self, state: u32, token: Token) -> u32 {
        let symbols = self.symbols.of(token).iter();
        symbols.fold(state, |state, &symbol| self.next[state as usize * self.width + symbol as usize])
    }

    pub(super) fn minimised(self) -> Self {
        let labels = self.values.iter().map(|value| value.to_bits());
        let (block, blocks) = automaton::partition(&self.next, self.width, automaton::number(labels));
        let (mut next, mut values) = (Vec::with_capacity(blocks * self.width), Vec::with_capacity(blocks));
        for (state, &number) in block.iter().enumerate() {
            if number as usize == values.len() {
                next.extend(self.next[state * self.width..][..self.width].iter().map(|&to| block[to as usize]));
                values.push(self.values[state]);
            }
        }
        Spelled { next, values, ..self }
    }

    /// `classes` refined until tokens of one class do the same in every state; `None` where that takes more than `most`.
    ///
    /// Tokens are taken in the order of their spelling, so that what a common beginning does is computed once.
    pub fn refine(&self, classes: &Classes, most: usize) -> Option<Classes> {
        let mut order: Vec<Token> = (0..self.symbols.ends.len() as Token).collect();
        order.sort_unstable_by(|&a, &b| self.symbols.of(a).cmp(self.symbols.of(b)));
        // What the first n symbols of the present token do in each state, one after the other.
        let states = self.states();
        let mut after: Vec<u32> = (0..states as u32).collect();
        let mut actions: HashMap<Vec<u32>, u32> = HashMap::new();
        let (mut action_of, mut pairs) = (vec![0; order.len()], std::collections::HashSet::new());
        let mut before: &[u8] = &[];
        for token in order {
            let symbols = self.symbols.of(token);
            let common = before.iter().zip(symbols).take_while(|(a, b)| a == b).count();
            after.truncate((common + 1) * states);
            for &symbol in &symbols[common..] {
                let last = after.len() - states;
                after.extend_from_within(last..);
                after[last + states..]
                    .iter_mut()
                    .for_each(|at| *at = self.next[*at as usize * self.width + symbol as usize]);
            }
            let last = &after[after.len() - states..];
            let fresh = actions.len() as u32;
            let action = match actions.get(last) {
                Some(&action) => action,
                None => *actions.entry(last.to_vec()).or_insert(fresh),
            };
            action_of[token as usize] = action;
            pairs.insert((classes.of()[token as usize], action));
            if pairs.len() > most {
                return None;
            }
            before = symbols;
        }
        Some(classes.refined(|token| action_of[token as usize]))
    }
}
