//! Bit-parallel patterns: Shift-And (Baeza-Yates and Gonnet 1992). Bit i of a pattern is set where the text so far ends
//! with its first i + 1 tokens; one shift, one or and one and take all patterns of a word a token further.

use super::{Classes, Feature};
use crate::tokens::Token;

/// Bits of a word.
const BITS: usize = 32;

/// The most words of one entry.
const WORDS: usize = 4;

/// A pattern in place.
struct Placed {
    /// The tokens; `None` is any.
    pattern: Vec<Option<Token>>,
    /// Bit of its first token, in bits of all words.
    at: usize,
    /// Whether it begins where the text begins.
    anchored: bool,
    /// Whether only an occurrence at the end counts.
    at_end: bool,
    target: u32,
}

/// The patterns of one entry.
#[derive(Default)]
pub(super) struct Words {
    placed: Vec<Placed>,
    /// Bits taken of each word.
    taken: Vec<usize>,
}

/// Whether a feature is one pattern that fits a word.
pub(super) fn fits(feature: &Feature) -> bool {
    pattern(feature).is_some_and(|(pattern, ..)| pattern.len() <= BITS)
}

/// The pattern of a feature, whether it is anchored, and whether only its end counts.
fn pattern(feature: &Feature) -> Option<(Vec<Option<Token>>, bool, bool)> {
    let (anchored, at_end) = match feature {
        Feature::Motif(pattern) => return Some((pattern.clone(), false, false)),
        Feature::Contains(_) => (false, false),
        Feature::StartsWith(_) => (true, false),
        Feature::EndsWith(_) => (false, true),
        Feature::Equals(_) => (true, true),
        _ => return None,
    };
    Some((feature.pattern()?.iter().copied().map(Some).collect(), anchored, at_end))
}

/// Packs patterns into words, in their order, each into the first word with room.
pub(super) fn pack<'a>(features: impl Iterator<Item = (&'a Feature, u32)>) -> Vec<Words> {
    let mut packed: Vec<Words> = Vec::new();
    for (feature, target) in features {
        let Some((pattern, anchored, at_end)) = pattern(feature) else { continue };
        let room =
            |last: &Words| (0..WORDS).find(|&word| last.taken.get(word).copied().unwrap_or(0) + pattern.len() <= BITS);
        let word = packed.last().and_then(room).unwrap_or_else(|| {
            packed.push(Words::default());
            0
        });
        let words = packed.last_mut().expect("one with room");
        if word == words.taken.len() {
            words.taken.push(0);
        }
        let at = word * BITS + words.taken[word];
        words.taken[word] += pattern.len();
        words.placed.push(Placed { pattern, at, anchored, at_end, target });
    }
    packed
}

impl Words {
    /// Number of words: 1, 2 or 4.
    pub fn len(&self) -> usize {
        self.taken.len().next_power_of_two()
    }

    /// The bits that each class lets through, `[C, W]`.
    pub fn masks(&self, classes: &Classes) -> Vec<u32> {
        let mut masks = vec![0; classes.len() * self.len()];
        for Placed { pattern, at, .. } in &self.placed {
            for (i, wanted) in pattern.iter().enumerate() {
                for (class, &token) in classes.representatives().iter().enumerate() {
                    if wanted.is_none_or(|wanted| wanted == token) {
                        masks[class * self.len() + (at + i) / BITS] |= 1 << ((at + i) % BITS);
                    }
                }
            }
        }
        masks
    }

    /// The first bits of patterns that may begin anywhere; of those that begin the text; and all but the latter, as the
    /// last bit of a neighbour must not be shifted into them, `[3, W]`.
    pub fn starts(&self) -> Vec<u32> {
        let mut starts = vec![0; 3 * self.len()];
        for Placed { at, anchored, .. } in &self.placed {
            starts[usize::from(*anchored) * self.len() + at / BITS] |= 1 << (at % BITS);
        }
        for word in 0..self.len() {
            starts[2 * self.len() + word] = !starts[self.len() + word];
        }
        starts
    }

    /// Where each answer is, and its target.
    pub fn outputs(&self) -> Vec<(u32, u32)> {
        let output = |p: &Placed| (2 * (p.at + p.pattern.len() - 1) as u32 + u32::from(p.at_end), p.target);
        self.placed.iter().map(output).collect()
    }
}
