//! Features that no automaton computes: a closure on the host, called for a whole batch at a time.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tokens::Batch;

type Closure = dyn Fn(&Batch) -> Vec<f32> + Send + Sync;

/// A feature of the user's own: one value in [0, 1] for each row of a batch. On a GPU the batch is brought to the host for
/// it. Two are equal where they share their closure.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::features::{Custom, Feature, FeatureSet};
/// use ebm_dpg::tokens::{Batch, Space};
///
/// let even = Custom::new(|batch: &Batch| batch.iter().map(|x| f32::from(x.len() % 2 == 0)).collect());
/// let space = Space::new(2, 4)?;
/// let features = FeatureSet::new(space).with("even", Feature::Custom(even))?;
/// let (mut phi, batch) = ([0.0; 2], Batch::from_sequences(space, &[&[0, 3][..], &[0, 1, 3]])?);
/// features.compile(&Cpu)?.evaluate(&Cpu, &batch, &mut phi)?;
/// assert_eq!(phi, [1.0, 0.0]);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
#[derive(Clone)]
pub struct Custom(Arc<Closure>);

impl Custom {
    /// The feature of a closure. Its rows are members of the batch's space.
    pub fn new(closure: impl Fn(&Batch) -> Vec<f32> + Send + Sync + 'static) -> Self {
        Custom(Arc::new(closure))
    }

    /// Writes the values of all rows to every `stride`th of `out`, the first at `at`.
    ///
    /// # Errors
    /// Another number of values than rows, or one outside [0, 1].
    pub(super) fn evaluate(&self, batch: &Batch, name: &str, at: usize, stride: usize, out: &mut [f32]) -> Result<()> {
        let values = (self.0)(batch);
        if values.len() != batch.rows {
            return Err(Error::argument(format!("feature '{name}'"), format!("{} values", batch.rows), values.len()));
        }
        for (row, &value) in values.iter().enumerate() {
            if value.is_nan() {
                return Err(Error::not_a_number(format!("feature '{name}'"), format!("row {row}")));
            }
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::argument(format!("feature '{name}' of row {row}"), "a value in [0, 1]", value));
            }
            out[row * stride + at] = value;
        }
        Ok(())
    }
}

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Custom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Custom(closure)")
    }
}
