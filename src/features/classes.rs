//! Token classes: tokens that no feature tells apart share a column of every table, so that table sizes follow the
//! patterns and not the vocabulary.

use std::collections::BTreeSet;

use crate::tokens::{Space, Token};

/// A partition of the vocabulary: one class per named token, one for all other content tokens, one for EOS, BOS and
/// PAD. Numbered by first appearance, so that no class is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    of: Vec<u32>,
    representatives: Vec<Token>,
}

impl Classes {
    /// The coarsest partition that tells the `named` tokens apart.
    pub(crate) fn new(space: &Space, named: impl IntoIterator<Item = Token>) -> Self {
        let named: BTreeSet<Token> = named.into_iter().collect();
        let mut classes = Classes { of: Vec::with_capacity(space.vocab as usize), representatives: Vec::new() };
        let (mut special, mut other) = (None, None);
        for token in 0..space.vocab {
            let fresh = classes.representatives.len() as u32;
            let class = match (space.is_content(token), named.contains(&token)) {
                (false, _) => *special.get_or_insert(fresh),
                (true, false) => *other.get_or_insert(fresh),
                (true, true) => fresh,
            };
            if class == fresh {
                classes.representatives.push(token);
            }
            classes.of.push(class);
        }
        classes
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
