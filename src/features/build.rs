//! From features to automata over token classes.

use std::collections::HashMap;

use super::spelled::Spelled;
use super::words::AhoCorasick;
use super::{Automaton, Classes, Feature, Spelling};
use crate::error::{Error, Result};
use crate::tokens::{Space, Token};

/// The largest edit distance that an automaton tracks: it is kept in bytes.
const LARGEST_DISTANCE: usize = 200;

/// Why a feature has no automaton here.
pub(super) enum Refusal {
    /// None computes it: the kind of the part at fault.
    None(&'static str),
    /// It has more states than the limit.
    TooLarge,
}

/// An automaton, or why there is none.
pub(super) type Built = std::result::Result<Automaton, Refusal>;

/// The automata of the text features of a set, by where these are.
#[derive(Default)]
pub(super) struct Texts(HashMap<*const Feature, Spelled>);

impl Texts {
    /// Builds the automaton of each text feature within `feature`.
    pub fn add(
        &mut self,
        space: &Space,
        spelling: Option<&Spelling>,
        feature: &Feature,
        name: &str,
        limit: usize,
    ) -> Result<()> {
        let mut result = Ok(());
        feature.walk(&mut |part| {
            if part.is_text() && result.is_ok() {
                let spelled = spelling.ok_or_else(|| no_spelling(name));
                match spelled.and_then(|spelling| spelling.automaton(space, part, name, limit)) {
                    Ok(spelled) => drop(self.0.insert(std::ptr::from_ref(part), spelled)),
                    Err(error) => result = Err(error),
                }
            }
        });
        result
    }

    pub fn get(&self, feature: &Feature) -> &Spelled {
        &self.0[&std::ptr::from_ref(feature)]
    }

    pub fn take(&mut self, feature: &Feature) -> Option<Spelled> {
        self.0.remove(&std::ptr::from_ref(feature))
    }
}

pub(super) fn no_spelling(name: &str) -> Error {
    Error::argument(format!("feature '{name}'"), "a set that knows the text of tokens (FeatureSet::spelled)", "none")
}

/// What the automata of a set share.
pub(super) struct Builder<'a> {
    pub space: Space,
    /// Tells apart what the features do.
    pub classes: &'a Classes,
    pub texts: &'a Texts,
    /// Most states of any automaton on the way.
    pub limit: usize,
}

impl Builder<'_> {
    /// The automaton of a checked feature, with one output.
    pub fn automaton(&self, feature: &Feature) -> Built {
        let longest = self.space.longest as usize;
        match feature {
            Feature::Contains(pattern) => self.linear(pattern, Ends::Anywhere),
            Feature::EndsWith(pattern) => self.linear(pattern, Ends::AtEnd),
            Feature::StartsWith(pattern) => self.anchored(pattern, true),
            Feature::Equals(pattern) => self.anchored(pattern, false),
            Feature::Motif(pattern) => self.motif(pattern, Ends::Anywhere),
            Feature::AnyOf(words) => self.any_of(words, Ends::Anywhere),
            text if text.is_text() => {
                let spelled = self.texts.get(feature);
                self.explore(0, |&state, token| spelled.step(state, token), |&state| spelled.values[state as usize])
            }
            Feature::MultipleOf { modulus, zero, one } => {
                let step = |&state: &usize, token| residue(*modulus as usize, state, token, *zero, *one);
                self.explore(0, step, |&state| truth(state == 1))
            }
            Feature::Count { of, most } => self.count(of, *most),
            // State n: n content tokens. EOS is one more, and a content of `longest` tokens was cut before it, so
            // both n = longest − 1 and n = longest mean `longest` tokens: one state.
            Feature::Length => self.length(|n| length_value(n, longest)),
            Feature::LengthSquared => self.length(|n| length_value(n, longest) * length_value(n, longest)),
            Feature::AtLeast { of, value } => self.at_least(of, *value),
            Feature::Not(of) => Ok(self.automaton(of)?.mapped(|values| 1.0 - values[0])),
            Feature::All(parts) => Ok(self.product(parts)?.mapped(least)),
            Feature::Any(parts) => Ok(self.product(parts)?.mapped(largest)),
            // The guard above is nothing to the compiler.
            other => Err(Refusal::None(other.kind())),
        }
    }

    fn explore<K: std::hash::Hash + Eq + Clone>(
        &self,
        start: K,
        step: impl Fn(&K, Token) -> K,
        value: impl Fn(&K) -> f32,
    ) -> Built {
        let (space, classes) = (self.space, self.classes);
        Automaton::explored(space, classes, self.limit, start, step, value).ok_or(Refusal::TooLarge)
    }

    fn length(&self, value: impl Fn(usize) -> f32) -> Built {
        let last = self.space.longest as usize - 1;
        self.explore(0_usize, |n, _| (n + 1).min(last), |n| value(n + 1))
    }

    /// State n of a pattern: n of its tokens matched.
    fn linear(&self, pattern: &[Token], ends: Ends) -> Built {
        let (m, borders) = (pattern.len(), borders(pattern));
        let stays = ends == Ends::Anywhere;
        let step = |&n: &usize, token| if stays && n == m { m } else { advance(pattern, &borders, n, token) };
        self.explore(0, step, |&n| truth(n == m))
    }

    /// State m + 1: no match any more.
    fn anchored(&self, pattern: &[Token], open: bool) -> Built {
        let m = pattern.len();
        let step = |&n: &usize, token| match pattern.get(n) {
            None if open && n == m => m,
            Some(&wanted) if wanted == token => n + 1,
            _ => m + 1,
        };
        self.explore(0, step, |&n| truth(n == m))
    }

    /// A state is the set of prefixes that the text so far ends with (bit n: the first n + 1 tokens); all bits: matched.
    fn motif(&self, pattern: &[Option<Token>], ends: Ends) -> Built {
        let last = 1_u128 << (pattern.len() - 1);
        let fits = |token: Token| {
            let fits = pattern.iter().enumerate().filter(|(_, wanted)| wanted.is_none_or(|wanted| wanted == token));
            fits.fold(0_u128, |mask, (n, _)| mask | 1 << n)
        };
        let mask: HashMap<Token, u128> = self.classes.representatives().iter().map(|&t| (t, fits(t))).collect();
        let stays = ends == Ends::Anywhere;
        let step = |&set: &u128, token| {
            let after = (set << 1 | 1) & mask[&token];
            if stays && (set | after) & last != 0 { last } else { after }
        };
        self.explore(0, step, |&set| truth(set & last != 0))
    }

    fn any_of(&self, words: &[Vec<Token>], ends: Ends) -> Built {
        let of = self.classes.of();
        let cells = words.iter().map(Vec::len).sum::<usize>().saturating_mul(self.classes.len());
        if cells > self.limit.saturating_mul(self.classes.len()).saturating_mul(4) {
            return Err(Refusal::TooLarge);
        }
        let words = words.iter().map(|word| word.iter().map(|&token| of[token as usize]));
        let ac = AhoCorasick::new(words, self.classes.len()).ok_or(Refusal::TooLarge)?;
        // The state after a word that makes it stay.
        let step = |&state: &Option<u32>, token: Token| {
            let to = ac.step(state?, of[token as usize] as usize);
            (ends == Ends::AtEnd || !ac.ends_in(to)).then_some(to)
        };
        let ended = |state: &Option<u32>| state.is_none_or(|state| ac.ends_in(state));
        self.explore(Some(0), step, |state| truth(ended(state)))
    }

    /// Contents at whose end an occurrence of a countable pattern ends.
    pub fn ends(&self, of: &Feature) -> Built {
        match of {
            Feature::Contains(pattern) => self.linear(pattern, Ends::AtEnd),
            Feature::Motif(pattern) => self.motif(pattern, Ends::AtEnd),
            Feature::AnyOf(words) => self.any_of(words, Ends::AtEnd),
            other => Err(Refusal::None(other.kind())),
        }
    }

    fn count(&self, of: &Feature, most: u32) -> Built {
        let ends = self.ends(of)?;
        let step = |&(state, count): &(u32, u32), token| {
            let to = ends.next(state, token);
            (to, most.min(count + u32::from(ends.values(to)[0] == 1.0)))
        };
        self.explore((0, 0), step, |&(_, count)| count_value(count, most))
    }

    fn at_least(&self, of: &Feature, value: f32) -> Built {
        match of {
            // As long a common substring means: one of the pattern's substrings of that length occurs.
            Feature::LongestCommonSubstring(pattern) => {
                let fewest = (1..=pattern.len()).find(|&n| n as f32 / pattern.len() as f32 >= value);
                let parts =
                    pattern.windows(fewest.ok_or(Refusal::TooLarge)?).map(<[Token]>::to_vec).collect::<Vec<_>>();
                self.any_of(&parts, Ends::Anywhere)
            }
            Feature::EditDistance(pattern) => {
                let similarity = |distance: usize| (pattern.len() - distance) as f32 / pattern.len() as f32;
                let most = (0..pattern.len()).rev().find(|&distance| similarity(distance) >= value);
                self.within_distance(pattern, most.ok_or(Refusal::TooLarge)?)
            }
            _ => Ok(self.automaton(of)?.mapped(|values| truth(values[0] >= value))),
        }
    }

    /// Contents with a substring at most `distance` edits from the pattern. A state is the column of Sellers (1980):
    /// for each prefix of the pattern the least distance to a suffix of the text, cut at `distance` + 1. Empty: found.
    fn within_distance(&self, pattern: &[Token], distance: usize) -> Built {
        if distance > LARGEST_DISTANCE {
            return Err(Refusal::TooLarge);
        }
        let most = distance as u8 + 1;
        let step = |column: &Vec<u8>, token: Token| {
            let mut after = Vec::with_capacity(column.len());
            for (i, wanted) in pattern.iter().enumerate().take(column.len()) {
                let above = after.last().copied().unwrap_or(0);
                let diagonal = if i == 0 { 0 } else { column[i - 1] };
                let replaced = diagonal + u8::from(*wanted != token);
                after.push(replaced.min(column[i] + 1).min(above + 1).min(most));
            }
            if after.last().is_some_and(|&last| last < most) { Vec::new() } else { after }
        };
        let start: Vec<u8> = (1..=pattern.len()).map(|i| i.min(most as usize) as u8).collect();
        self.explore(start, step, |column| truth(column.is_empty())).map(Automaton::minimised)
    }

    fn product(&self, parts: &[Feature]) -> Built {
        parts.iter().try_fold(Automaton::unit(self.space, self.classes.clone()), |product, part| {
            product.product(&self.automaton(part)?, self.limit).ok_or(Refusal::TooLarge)
        })
    }
}

/// Where an occurrence counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Anywhere: once found, found.
    Anywhere,
    /// At the end of the content.
    AtEnd,
}

fn truth(value: bool) -> f32 {
    f32::from(u8::from(value))
}

/// The value of [`Feature::All`].
pub(super) fn least(values: &[f32]) -> f32 {
    values.iter().copied().fold(1.0, f32::min)
}

/// The value of [`Feature::Any`].
pub(super) fn largest(values: &[f32]) -> f32 {
    values.iter().copied().fold(0.0, f32::max)
}

/// The value of [`Feature::Count`].
#[inline]
pub(super) fn count_value(count: u32, most: u32) -> f32 {
    count.min(most) as f32 / most as f32
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
