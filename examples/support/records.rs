//! tuning.jsonl: one line of JSON for each evaluation, as it is made, for those who follow a run or plot it themselves.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use ebm_dpg::tune::Record;
use ebm_dpg::{Error, Result};
use serde::Serialize;

/// A file of records that grows while the policy is tuned.
pub struct Records {
    path: PathBuf,
    file: File,
    started: Instant,
    /// The first write that failed; the run goes on, and hears of it at its end.
    failed: Option<std::io::Error>,
}

/// A line: seconds since tuning began, and the library's record.
#[derive(Serialize)]
struct Line<'a> {
    seconds: f64,
    #[serde(flatten)]
    record: &'a Record,
}

impl Records {
    /// Starts the file; the time runs from here.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn create(path: PathBuf) -> Result<Self> {
        let file = File::create(&path).map_err(|error| Error::file(&path, error))?;
        Ok(Records { path, file, started: Instant::now(), failed: None })
    }

    /// Appends a line.
    pub fn push(&mut self, record: &Record) {
        let line = Line { seconds: self.started.elapsed().as_secs_f64(), record };
        let written = serde_json::to_string(&line).map_err(Into::into).and_then(|line| writeln!(self.file, "{line}"));
        self.failed = self.failed.take().or(written.err());
    }

    /// # Errors
    /// [`Error::File`] where a line could not be written.
    pub fn finish(self) -> Result<()> {
        self.failed.map_or(Ok(()), |error| Err(Error::file(&self.path, error)))
    }
}
