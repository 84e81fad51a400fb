//! A number with its standard error.

use crate::error::{Error, Result};

/// An estimate with its standard error, both in the same unit. An error of ∞ means that the sample says nothing about
/// it (one row only, or an infinite value).
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Its standard error, ≥ 0.
    pub standard_error: f64,
}

impl Estimate {
    /// A number known exactly.
    pub fn exact(value: f64) -> Self {
        Estimate { value, standard_error: 0.0 }
    }

    /// A value whose influence function has the sum of squares `squares` over `rows` rows: by the delta method its
    /// variance is Var(influence)/rows, estimated by squares/(rows·(rows − 1)).
    pub(crate) fn from_influence(value: f64, squares: f64, rows: usize) -> Self {
        let rows = rows as f64;
        let variance = squares / (rows * (rows - 1.0));
        let standard_error = if rows > 1.0 && value.is_finite() { variance.max(0.0).sqrt() } else { f64::INFINITY };
        Estimate { value, standard_error }
    }

    /// The mean of independent values with its standard error s/√n.
    ///
    /// # Errors
    /// No values; a NaN (named by its row). An infinite value gives an infinite mean.
    pub fn mean(values: &[f64]) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::no_answer("mean", "no values; at least one is needed"));
        }
        if let Some(row) = values.iter().position(|value| value.is_nan()) {
            return Err(Error::not_a_number("value", format!("row {row}")));
        }
        let rows = values.len();
        let [total] = super::sums(rows, |row| [values[row]]);
        let mean = total / rows as f64;
        let [squares] = super::sums(rows, |row| [(values[row] - mean).powi(2)]);
        Ok(Estimate::from_influence(mean, squares, rows))
    }

    /// The frequency hits/rows of an event in independent rows. The error is that of the proportion
    /// (hits + ½)/(rows + 1), so that 0 of n and n of n do not pass for certainty.
    ///
    /// # Errors
    /// No rows, more hits than rows.
    pub fn frequency(hits: usize, rows: usize) -> Result<Self> {
        if rows == 0 {
            return Err(Error::no_answer("frequency", "no rows; at least one is needed"));
        }
        if hits > rows {
            return Err(Error::argument("hits", format!("at most {rows}"), hits));
        }
        let (hits, rows) = (hits as f64, rows as f64);
        let smoothed = (hits + 0.5) / (rows + 1.0);
        Ok(Estimate { value: hits / rows, standard_error: (smoothed * (1.0 - smoothed) / rows).sqrt() })
    }

    /// The estimate in another unit, for example `scaled(1.0 / 31.0)` for nats per token.
    pub fn scaled(self, factor: f64) -> Self {
        Estimate { value: self.value * factor, standard_error: self.standard_error * factor.abs() }
    }

    /// The sum of two independent estimates.
    pub fn plus(self, other: Estimate) -> Self {
        let standard_error = self.standard_error.hypot(other.standard_error);
        Estimate { value: self.value + other.value, standard_error }
    }

    /// Whether the value exceeds zero by more than `errors` standard errors.
    pub fn exceeds_zero(self, errors: f64) -> bool {
        self.value > errors * self.standard_error
    }
}
