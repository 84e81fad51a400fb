//! Those who watch a run: what becomes of the [`Record`]s that tuning makes.
//!
//! [`tune`](fn@crate::tune::tune) calls its caller's closure after every batch of draws; an [`Observer`] is what the closure hands the
//! evaluations to. Who wants a record of every step, for its loss and gradient, has as many
//! [`evaluations`](crate::tune::TuneOptions::evaluations) as batches, and [`evaluation_rows`](crate::tune::TuneOptions::evaluation_rows)
//! small, as the judging is what costs.
//!
//! ```
//! use ebm_dpg::observe::{JsonLines, Observer};
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("tuning.jsonl");
//! # let record = ebm_dpg::tune::Record::default();
//! let mut lines = JsonLines::create(&path)?;
//! lines.record(0.5, &record)?; // in the closure: `if let Some(record) = progress.record { … }`
//! assert!(std::fs::read_to_string(&path).unwrap().starts_with(r#"{"seconds":0.5,"samples":0,"#));
//! # Ok::<(), ebm_dpg::Error>(())
//! ```

use crate::error::Result;
use crate::tune::Record;

mod alarms;
mod json_lines;
mod tensorboard;

pub use alarms::Alarms;
pub use json_lines::JsonLines;
pub use tensorboard::TensorBoard;

/// One who watches a run.
pub trait Observer {
    /// An evaluation was made, `seconds` after the run began.
    ///
    /// # Errors
    /// What keeps the observer from its work, such as a full disk. The run itself is unharmed.
    fn record(&mut self, seconds: f64, record: &Record) -> Result<()>;
}
