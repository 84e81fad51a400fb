//! The moments that a fit should reach: those of data, or those a user asks for.

use crate::error::{Error, Result, expect_len};
use crate::weights::sums;

/// One wanted moment E_p φ_i per feature, and where the moments come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Targets {
    moments: Vec<f64>,
    data: Option<Data>,
}

/// What is kept of the data behind the moments.
#[derive(Debug, Clone, PartialEq)]
struct Data {
    rows: usize,
    /// Smallest and largest value of each feature.
    ranges: Vec<(f32, f32)>,
    /// Cov_data φ, `[F, F]`.
    covariance: Vec<f64>,
}

impl Targets {
    /// The means of the data's features, from φ `[rows, features]` as a feature table evaluates it.
    ///
    /// # Errors
    /// No rows, no features, a φ that is no whole number of rows, a value outside [0, 1] or NaN.
    pub fn from_data(phi: &[f32], features: usize) -> Result<Self> {
        if features == 0 {
            return Err(Error::argument("features", "at least one", 0));
        }
        let rows = phi.len() / features;
        expect_len("features of the data", rows * features, phi.len())?;
        if rows == 0 {
            return Err(Error::no_answer("moments of the data", "no data rows; at least one is needed"));
        }
        if let Some(at) = phi.iter().position(|value| !(0.0..=1.0).contains(value)) {
            let what = format!("feature {} of data row {}", at % features, at / features);
            return Err(Error::argument(what, "a value in [0, 1]", phi[at]));
        }
        let value = |row: usize, i: usize| f64::from(phi[row * features + i]);
        let mean = |i: usize| sums(rows, |row| [value(row, i)])[0] / rows as f64;
        let moments: Vec<f64> = (0..features).map(mean).collect();
        let centred = |row: usize, i: usize| value(row, i) - moments[i];
        let covariance = (0..features * features)
            .map(|at| sums(rows, |row| [centred(row, at / features) * centred(row, at % features)])[0] / rows as f64)
            .collect();
        let range = |i: usize| {
            let values = (0..rows).map(|row| phi[row * features + i]);
            values.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
        };
        let ranges = (0..features).map(range).collect();
        Ok(Targets { moments, data: Some(Data { rows, ranges, covariance }) })
    }

    /// Moments that a user wants, one per feature. Exactly 0 or 1 asks for a hard constraint.
    ///
    /// # Errors
    /// No moments, one outside [0, 1] or NaN.
    pub fn wanted(moments: &[f64]) -> Result<Self> {
        if moments.is_empty() {
            return Err(Error::argument("wanted moments", "at least one", 0));
        }
        match moments.iter().position(|moment| !(0.0..=1.0).contains(moment)) {
            Some(at) => Err(Error::argument(format!("wanted moment {at}"), "a number in [0, 1]", moments[at])),
            None => Ok(Targets { moments: moments.to_vec(), data: None }),
        }
    }

    /// The moments, one per feature.
    pub fn moments(&self) -> &[f64] {
        &self.moments
    }

    /// Number of data rows behind the moments; `None` for a user's moments.
    pub fn rows(&self) -> Option<usize> {
        self.data.as_ref().map(|data| data.rows)
    }

    /// The value of feature `i` in every data row, where it is the same in all.
    pub(super) fn constant(&self, i: usize) -> Option<f64> {
        let (low, high) = self.data.as_ref()?.ranges[i];
        (low == high).then_some(f64::from(low))
    }

    /// Cov_data(φ_i, φ_j)/|D|, the covariance of the moments themselves; 0 for a user's.
    pub(super) fn moment_covariance(&self, i: usize, j: usize) -> f64 {
        let Some(data) = &self.data else { return 0.0 };
        data.covariance[i * self.moments.len() + j] / data.rows as f64
    }
}
