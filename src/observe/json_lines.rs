//! One line of JSON an evaluation.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Observer;
use crate::error::{Error, Result};
use crate::tune::Record;

/// A file with a line for each evaluation, written as it is made: the fields of [`Record`] after `seconds`. What is
/// unknown, infinite or not a number is null.
#[derive(Debug)]
pub struct JsonLines {
    path: PathBuf,
    file: File,
}

#[derive(Serialize)]
struct Line<'a> {
    seconds: f64,
    #[serde(flatten)]
    record: &'a Record,
}

impl JsonLines {
    /// Starts the file, or starts it anew.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::file(path, error))?;
        Ok(JsonLines { path: path.into(), file })
    }
}

impl Observer for JsonLines {
    fn record(&mut self, seconds: f64, record: &Record) -> Result<()> {
        let line = serde_json::to_string(&Line { seconds, record }).map_err(|error| Error::file(&self.path, error))?;
        // In one piece: who follows the file never reads half a line of it.
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(|error| Error::file(&self.path, error))
    }
}
