//! Token classes: tokens that no feature tells apart share a column of every table, so that table sizes follow the
//! patterns and not the vocabulary.

use std::collections::{BTreeSet, HashMap};

use crate::tokens::{Space, Token};

/// A partition of the vocabulary. EOS, BOS and PAD are apart from content tokens. Numbered by first appearance, so that
/// no class is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    of: Vec<u32>,
    representatives: Vec<Token>,
}

impl Classes {
    /// The coarsest partition that tells the `named` tokens apart: one class for each, one for all other content tokens,
    /// one for EOS, BOS and PAD.
    pub(crate) fn new(space: &Space, named: impl IntoIterator<Item = Token>) -> Self {
        let named: BTreeSet<Token> = named.into_iter().collect();
        // Any number does for those: tokens are no larger than u32::MAX − 1 in a space.
        Classes::by(space.vocab, |token| match (space.is_content(token), named.contains(&token)) {
            (false, _) => (0, 0),
            (true, false) => (1, 0),
            (true, true) => (2, token),
        })
    }

    /// Tokens with the same key share a class.
    pub(crate) fn by<K: std::hash::Hash + Eq>(vocab: u32, key: impl Fn(Token) -> K) -> Self {
        let mut known = HashMap::new();
        let mut classes = Classes { of: Vec::with_capacity(vocab as usize), representatives: Vec::new() };
        for token in 0..vocab {
            let fresh = classes.representatives.len() as u32;
            let class = *known.entry(key(token)).or_insert(fresh);
            if class == fresh {
                classes.representatives.push(token);
            }
            classes.of.push(class);
        }
        classes
    }

    /// The coarsest partition that tells apart what this one does, and tokens with different keys.
    pub(crate) fn refined(&self, key: impl Fn(Token) -> u32) -> Self {
        Classes::by(self.of.len() as u32, |token| (self.of[token as usize], key(token)))
    }

    /// The class of each token, `[V]`.
    pub fn of(&self) -> &[u32] {
        &self.of
    }

    /// One token of each class, `[C]`.
    pub fn representatives(&self) -> &[Token] {
        &self.representatives
    }

    /// Number of classes C.
    pub fn len(&self) -> usize {
        self.representatives.len()
    }

    /// Whether there are none; never true, as every space has EOS.
    pub fn is_empty(&self) -> bool {
        self.representatives.is_empty()
    }
}
