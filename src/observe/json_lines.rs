//! One line of JSON an evaluation.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, Write};
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
    /// Those of the last line.
    seconds: f64,
}

/// What a line says first.
#[derive(serde::Deserialize)]
struct Beginning {
    seconds: f64,
    samples: usize,
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
        Ok(JsonLines { path: path.into(), file, seconds: 0.0 })
    }

    /// Goes on with the file of a run that was interrupted, from a checkpoint with this history: lines behind it, half
    /// ones too, are cut off, and where the file lacks some of it they are added, with the seconds of the line before.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn resume(path: &Path, history: &[Record]) -> Result<Self> {
        let bad = |error: io::Error| Error::file(path, error);
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            text => text.map_err(bad)?,
        };
        let (mut kept, mut seconds, mut bytes) = (0, 0.0, 0);
        for (line, record) in text.split_inclusive(|&byte| byte == b'\n').zip(history) {
            match serde_json::from_slice::<Beginning>(line) {
                Ok(beginning) if line.ends_with(b"\n") && beginning.samples == record.samples => {
                    (kept, seconds, bytes) = (kept + 1, beginning.seconds, bytes + line.len());
                }
                _ => break,
            }
        }
        let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(bad)?;
        file.set_len(bytes as u64).and_then(|()| file.seek(io::SeekFrom::End(0))).map_err(bad)?;
        let mut lines = JsonLines { path: path.into(), file, seconds };
        history[kept..].iter().try_for_each(|record| lines.record(seconds, record))?;
        Ok(lines)
    }

    /// The seconds of the last line; 0 where there is none.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }
}

impl Observer for JsonLines {
    fn record(&mut self, seconds: f64, record: &Record) -> Result<()> {
        let line = serde_json::to_string(&Line { seconds, record }).map_err(|error| Error::file(&self.path, error))?;
        self.seconds = seconds;
        // In one piece: who follows the file never reads half a line of it.
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(|error| Error::file(&self.path, error))
    }
}
