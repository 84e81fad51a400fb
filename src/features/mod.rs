//! Features φ(x) of whole sequences, as data: compiled on the host to one flat table that every backend walks.
//!
//! A [`FeatureSet`] names the features; [`FeatureSet::compile`] makes the [`FeatureTable`] that is evaluated over
//! batches, and [`FeatureSet::automaton`] the [`Automaton`] that exact inference and guided proposals need, and that
//! evaluates prefixes token by token.

use crate::backend::{Backend, Memory};
use crate::error::Result;
use crate::tokens::{Batch, Space, TokenId, TokenRows};

mod automaton;
mod build;
mod classes;
mod compile;
mod cpu;
mod custom;
mod feature;
mod flags;
mod gpu;
mod matches;
mod report;
mod set;
mod shift;
mod spelled;
mod stored;
mod substring;
mod table;
mod text;
mod words;

pub use automaton::Automaton;
pub(crate) use automaton::explore;
pub use classes::Classes;
pub use compile::TABLE_BYTES;
pub use custom::Custom;
pub use feature::{Feature, LARGEST_MODULUS, LARGEST_TEXT_COUNT, LONGEST_EDIT_PATTERN, LONGEST_MOTIF};
pub(crate) use gpu::DrawnRows;
pub use report::{EntryReport, TableReport};
pub use set::FeatureSet;
pub use table::FeatureTable;
pub use text::Spelling;

/// The kernels of this stage.
pub trait FeatureKernel: Memory {
    /// See [`FeatureTable::evaluate`]; shapes are already checked. `custom` are the values of the closures, `[rows,
    /// closures]`, where there are any.
    fn features<T: TokenId>(
        &self,
        table: &FeatureTable<Self>,
        batch: TokenRows<'_, Self, T>,
        custom: Option<Self::View<'_, f32>>,
        phi: Self::ViewMut<'_, f32>,
    ) -> Result<()>;
}

/// A table, and where φ of a batch goes that is still to be made: what
/// [`Sampler::sample_features`](crate::models::Sampler::sample_features) is given.
pub struct FeatureOutput<'a, B: Backend> {
    /// Where the table is.
    pub backend: &'a B,
    /// The table.
    pub table: &'a FeatureTable<B>,
    /// φ, `[rows, F]`.
    pub phi: B::ViewMut<'a, f32>,
}

impl<B: Backend> FeatureOutput<'_, B> {
    /// Writes φ of `batch`, as [`FeatureTable::evaluate`].
    ///
    /// # Errors
    /// As there.
    pub fn evaluate(self, batch: &Batch<B>) -> Result<()> {
        self.table.evaluate(self.backend, batch, self.phi)
    }

    /// `Ok` where a batch of `rows` rows of `space` can be evaluated into it.
    pub(crate) fn check(&self, space: Space, rows: usize) -> Result<()> {
        self.table.check(space, rows, B::view_mut_len(&self.phi))
    }
}
