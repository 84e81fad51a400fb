//! Features φ(x) of whole sequences, as data: compiled on the host to one flat table that every backend walks.
//!
//! A [`FeatureSet`] names the features; [`FeatureSet::compile`] makes the [`FeatureTable`] that is evaluated over
//! batches, and [`FeatureSet::automaton`] the [`Automaton`] that exact inference and guided proposals need, and that
//! evaluates prefixes token by token.

use crate::backend::Memory;
use crate::error::Result;
use crate::tokens::{TokenId, TokenRows};

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
