//! Features φ(x) of whole sequences, as data: compiled on the host to one flat table that every backend walks.

use crate::backend::{Backend, Cpu};
use crate::error::{Error, Result, expect_len};
use crate::tokens::{Batch, Space, Token};

/// The kernels of this stage.
pub trait FeatureKernel {
    /// See [`FeatureTable::evaluate`]; shapes are already checked.
    fn features(&self, table: &FeatureTable<Self>, batch: &Batch<Self>, phi: Self::ViewMut<'_, f32>) -> Result<()>
    where
        Self: Backend;
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
    /// positive multiple of `modulus`.
    MultipleOf {
        /// The divisor.
        modulus: u32,
        /// The token of digit 0.
        zero: Token,
        /// The token of digit 1.
        one: Token,
    },
    /// Tokens (EOS included) over the longest length.
    Length,
    /// The square of [`Feature::Length`].
    LengthSquared,
    /// Length of the longest common substring with the pattern, over the pattern's length.
    LongestCommonSubstring(Vec<Token>),
    /// 1 − (smallest edit distance of the pattern to any substring) / (the pattern's length).
    EditDistance(Vec<Token>),
}

/// Named features over one space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureSet {
    space: Space,
    names: Vec<String>,
    features: Vec<Feature>,
}

/// A compiled [`FeatureSet`]: one flat table in a backend's memory.
pub struct FeatureTable<B: Backend = Cpu> {
    space: Space,
    len: usize,
    words: B::Buffer<u32>,
}

impl FeatureKernel for Cpu {
    fn features(&self, _table: &FeatureTable, _batch: &Batch, _phi: &mut [f32]) -> Result<()> {
        unimplemented!("written next")
    }
}
