//! Features φ(x) of whole sequences, as data: compiled on the host to one flat table that every backend walks.
//!
//! A [`FeatureSet`] names the features; [`FeatureSet::compile`] makes the [`FeatureTable`] that is evaluated over
//! batches, and [`FeatureSet::automaton`] the [`Automaton`] that exact inference and guided proposals need.

use crate::backend::Memory;
use crate::error::{Error, Result};
use crate::tokens::{Batch, Space, Token};

mod automaton;
mod classes;
mod cpu;
mod flags;
mod gpu;
mod substring;
mod table;

pub use automaton::Automaton;
pub(crate) use automaton::explore;
pub use classes::Classes;
pub use table::FeatureTable;

/// The longest pattern of [`Feature::EditDistance`]: its bit vectors live on the stack of the kernels.
pub const LONGEST_EDIT_PATTERN: usize = 2048;

/// The largest modulus of [`Feature::MultipleOf`]: its automaton has one state per residue.
pub const LARGEST_MODULUS: u32 = 1 << 16;

/// The kernels of this stage.
pub trait FeatureKernel: Memory {
    /// See [`FeatureTable::evaluate`]; shapes are already checked.
    fn features(&self, table: &FeatureTable<Self>, batch: &Batch<Self>, phi: Self::ViewMut<'_, f32>) -> Result<()>;
}

/// One feature of a sequence's content (its tokens without EOS). Values are in [0, 1].
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Feature {
    /// 1 where the pattern occurs anywhere.
    Contains(Vec<Token>),
    /// 1 where the content begins with the pattern.
    StartsWith(Vec<Token>),
    /// 1 where the content ends with the pattern.
    EndsWith(Vec<Token>),
    /// 1 where the content is the pattern.
    Equals(Vec<Token>),
    /// 1 where the content, read as a binary number of the tokens `zero` and `one` (most significant first), is a
    /// positive multiple of `modulus`; 0 where any other token occurs.
    MultipleOf {
        /// The divisor, 1 to [`LARGEST_MODULUS`].
        modulus: u32,
        /// The token of digit 0.
        zero: Token,
        /// The token of digit 1.
        one: Token,
    },
    /// Tokens (EOS included) over the longest length; a cut sequence counts its `longest` tokens, so it has 1.
    Length,
    /// The square of [`Feature::Length`].
    LengthSquared,
    /// Length of the longest common substring with the pattern, over the pattern's length.
    LongestCommonSubstring(Vec<Token>),
    /// 1 − (smallest edit distance of the pattern to any substring) / (the pattern's length); the empty substring
    /// counts, so the value is never negative. Patterns hold at most [`LONGEST_EDIT_PATTERN`] tokens.
    EditDistance(Vec<Token>),
}

impl Feature {
    /// Whether a finite automaton that [`FeatureSet::automaton`] can build computes this feature.
    pub fn is_automaton(&self) -> bool {
        !matches!(self, Feature::LongestCommonSubstring(_) | Feature::EditDistance(_))
    }

    /// The pattern, where the feature has one.
    pub fn pattern(&self) -> Option<&[Token]> {
        match self {
            Feature::Contains(pattern)
            | Feature::StartsWith(pattern)
            | Feature::EndsWith(pattern)
            | Feature::Equals(pattern)
            | Feature::LongestCommonSubstring(pattern)
            | Feature::EditDistance(pattern) => Some(pattern),
            Feature::MultipleOf { .. } | Feature::Length | Feature::LengthSquared => None,
        }
    }

    /// The tokens that this feature tells apart from all others.
    fn named_tokens(&self) -> Vec<Token> {
        match self {
            Feature::MultipleOf { zero, one, .. } => vec![*zero, *one],
            _ => self.pattern().unwrap_or_default().to_vec(),
        }
    }

    /// What kind of feature this is, for errors.
    fn kind(&self) -> &'static str {
        match self {
            Feature::Contains(_) => "contains",
            Feature::StartsWith(_) => "starts with",
            Feature::EndsWith(_) => "ends with",
            Feature::Equals(_) => "equals",
            Feature::MultipleOf { .. } => "multiple of",
            Feature::Length => "length",
            Feature::LengthSquared => "length squared",
            Feature::LongestCommonSubstring(_) => "longest common substring",
            Feature::EditDistance(_) => "edit distance",
        }
    }

    /// The most states that the feature's own automaton can have, the suffix automaton of a substring included.
    fn most_states(&self, space: &Space) -> usize {
        match self {
            Feature::MultipleOf { modulus, .. } => *modulus as usize + 2,
            Feature::Length | Feature::LengthSquared => space.longest as usize,
            _ => 2 * self.pattern().unwrap_or_default().len() + 2,
        }
    }

    /// `Ok` where the feature makes sense over `space`; `name` is for the error.
    fn check(&self, space: &Space, name: &str) -> Result<()> {
        if let Some(pattern) = self.pattern() {
            let is_edit = matches!(self, Feature::EditDistance(_));
            let most = (space.longest as usize).min(if is_edit { LONGEST_EDIT_PATTERN } else { usize::MAX });
            if pattern.is_empty() || pattern.len() > most {
                let what = format!("pattern of feature '{name}'");
                return Err(Error::argument(what, format!("1 to {most} tokens"), pattern.len()));
            }
        }
        if let Feature::MultipleOf { modulus, zero, one } = *self {
            if modulus == 0 || modulus > LARGEST_MODULUS {
                let what = format!("modulus of feature '{name}'");
                return Err(Error::argument(what, format!("1 to {LARGEST_MODULUS}"), modulus));
            }
            if zero == one {
                return Err(Error::argument(format!("digits of feature '{name}'"), "two different tokens", zero));
            }
        }
        match self.named_tokens().into_iter().find(|&token| !space.is_content(token)) {
            Some(token) => {
                let expected = format!("content tokens of a vocabulary of {}", space.vocab);
                Err(Error::argument(format!("tokens of feature '{name}'"), expected, token))
            }
            None => Ok(()),
        }
    }
}

/// Named features over one space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureSet {
    space: Space,
    names: Vec<String>,
    features: Vec<Feature>,
}

impl FeatureSet {
    /// No features yet.
    pub fn new(space: Space) -> Self {
        FeatureSet { space, names: Vec::new(), features: Vec::new() }
    }

    /// This set and one more feature, the last in order.
    ///
    /// ```
    /// use ebm_dpg::features::{Feature, FeatureSet};
    /// use ebm_dpg::tokens::Space;
    ///
    /// let space = Space::new(2, 31)?;
    /// let features = FeatureSet::new(space)
    ///     .with("motif", Feature::Contains(vec![1, 0, 1]))?
    ///     .with("first bit", Feature::StartsWith(vec![1]))?;
    /// assert_eq!(features.len(), 2);
    /// assert!(features.with("empty", Feature::Contains(vec![])).is_err());
    /// # Ok::<(), ebm_dpg::Error>(())
    /// ```
    ///
    /// # Errors
    /// A pattern that is empty or longer than the longest sequence, a token that is no content token, a modulus or
    /// digits out of range.
    pub fn with(mut self, name: impl Into<String>, feature: Feature) -> Result<Self> {
        let name = name.into();
        feature.check(&self.space, &name)?;
        self.names.push(name);
        self.features.push(feature);
        Ok(self)
    }

    /// Number of features F.
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// The names, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The features, in order.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// The space of the sequences.
    pub fn space(&self) -> Space {
        self.space
    }

    /// Whether feature `at` can be part of [`FeatureSet::automaton`]. Panics where there is no such feature.
    pub fn is_automaton(&self, at: usize) -> bool {
        self.features[at].is_automaton()
    }

    /// The minimised product automaton of the features `which`; output k of a state is the value of feature
    /// `which[k]`.
    ///
    /// `limit` bounds the states of each intermediate product: the features are multiplied in one after the other,
    /// only reachable states count, and the product is minimised after each.
    ///
    /// # Errors
    /// No such feature, a feature that is no automaton, or the feature that takes the product over the limit.
    pub fn automaton(&self, which: &[usize], limit: usize) -> Result<Automaton> {
        let classes = self.classes();
        let mut product = Automaton::unit(self.space, classes.clone());
        for &at in which {
            let Some(feature) = self.features.get(at) else {
                return Err(Error::argument("feature", format!("an index below {}", self.len()), at));
            };
            let name = &self.names[at];
            let Some(one) = Automaton::with_classes(self.space, classes.clone(), feature) else {
                return Err(Error::argument(format!("feature '{name}'"), "one that is an automaton", feature.kind()));
            };
            product = product.product(&one, limit).ok_or_else(|| {
                let what = format!("automaton with feature '{name}'");
                Error::argument(what, format!("at most {limit} states"), "more")
            })?;
        }
        Ok(product)
    }

    /// The token classes that all features of this set share.
    pub(crate) fn classes(&self) -> Classes {
        Classes::new(&self.space, self.features.iter().flat_map(Feature::named_tokens))
    }
}
