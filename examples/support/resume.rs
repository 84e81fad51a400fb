//! A run that was killed and goes on: `run.json` says what run a directory's files are of, and how far it has come.
//!
//! | killed | goes on from |
//! | --- | --- |
//! | before base.safetensors was whole | the start |
//! | later | that base; λ is fitted anew, to the same bits, from the same draws |
//! | after an evaluation of π | checkpoint.safetensors, with tuning.jsonl and the events cut to its records |

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;

use ebm_dpg::checkpoint::{remove_leftovers, write_atomically};
use ebm_dpg::models::Lstm;
use ebm_dpg::observe::TensorBoard;
use ebm_dpg::tune::{Checkpoint, Checkpoints};
use ebm_dpg::{Error, Result};
use serde::{Deserialize, Serialize};

use super::options::{Common, Options};
use super::report::Output;
use super::say;

/// The base that a run has trained.
pub const BASE: &str = "base.safetensors";
const RUN: &str = "run.json";
const CHECKPOINT: &str = "checkpoint.safetensors";
/// What a run says of itself. The models are not among these: they may be what the next run starts from.
const RESULTS: [&str; 5] = ["report.json", "report.html", "base.svg", "tuning.svg", "tuning.jsonl"];

/// What run the files are of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Each option as JSON, so that no number loses a bit on its way.
    options: BTreeMap<String, String>,
    /// A fingerprint of what was read from a file.
    data: String,
    /// Whether base.safetensors is of this run.
    base: bool,
}

impl Output {
    /// Starts a run in the directory; with `--resume` goes on with the one that is there. `data` is the fingerprint of what is read from
    /// a file: nothing, where all data follow from the options.
    ///
    /// # Errors
    /// A run of other options or data there; files that cannot be read or written.
    pub fn begin(options: &impl Options, data: &str) -> Result<Self> {
        let common = options.common();
        let run = Run { options: texts(&options.as_json()?), data: data.into(), base: false };
        let there = if common.resume { Run::read(&common.out.join(RUN))? } else { None };
        if let Some(there) = &there {
            there.check(&run, &common.out)?;
        }
        let mut output = Output::create(&common.out)?;
        output.lock()?;
        if common.resume && there.is_none() {
            say(&format!("{}: nothing to resume, from the start", common.out.display()));
        }
        if common.resume {
            output.clean()?;
        }
        match there {
            Some(there) => output.run = Some(there),
            None => {
                // What another run left goes first, so that none of it is ever taken for this one's.
                for name in [CHECKPOINT].iter().chain(&RESULTS) {
                    remove(&common.out.join(name))?;
                }
                TensorBoard::remove(&common.out)?;
                output.set_run(run)?;
            }
        }
        Ok(output)
    }

    /// Makes the directory this process's own until it ends, however it ends: two runs would write over each other's files.
    ///
    /// # Errors
    /// [`Error::File`]: another process has it.
    fn lock(&mut self) -> Result<()> {
        // Elsewhere a directory cannot be opened.
        if cfg!(unix) {
            let directory = self.directory().to_path_buf();
            let bad = |error: std::io::Error| Error::file(&directory, error);
            let lock = File::open(&directory).map_err(bad)?;
            match lock.try_lock() {
                Ok(()) => self.lock = Some(lock),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::file(
                        &directory,
                        "expected a directory of no other run, got one that runs there",
                    ));
                }
                // A file system without locks is no reason not to run.
                Err(TryLockError::Error(_)) => {}
            }
        }
        Ok(())
    }

    /// Removes what killed processes left of files they were writing.
    fn clean(&self) -> Result<()> {
        let files = [RUN, BASE, CHECKPOINT, "policy.safetensors"];
        files.iter().chain(&RESULTS).try_for_each(|name| remove_leftovers(&self.directory().join(name)))
    }

    fn set_run(&mut self, run: Run) -> Result<()> {
        let path = self.directory().join(RUN);
        let json = serde_json::to_vec_pretty(&run).map_err(|error| Error::file(&path, error))?;
        write_atomically(&path, &json)?;
        self.run = Some(run);
        Ok(())
    }

    /// The base that this run has trained before it was killed.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn trained_base(&self) -> Result<Option<Lstm>> {
        match &self.run {
            Some(Run { base: true, .. }) => Lstm::load(&self.directory().join(BASE)).map(Some),
            _ => Ok(None),
        }
    }

    /// base.safetensors is whole now: a run that goes on need not train it again.
    pub fn base_is_trained(&mut self) -> Result<()> {
        match self.run.clone() {
            Some(run) => self.set_run(Run { base: true, ..run }),
            None => Ok(()),
        }
    }

    /// Where tuning writes its checkpoints, and the one it goes on from where there is one.
    ///
    /// # Errors
    /// A checkpoint that cannot be read.
    pub fn checkpoints(&self, common: &Common) -> Result<Checkpoints> {
        let mut checkpoints = Checkpoints::new(&self.directory().join(CHECKPOINT));
        checkpoints.every = common.checkpoint_every;
        if common.resume && checkpoints.path.exists() {
            checkpoints.resume = Some(Checkpoint::load(&checkpoints.path)?);
        }
        Ok(checkpoints)
    }
}

/// Removes a file that may be there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file(path, error)),
        _ => Ok(()),
    }
}

impl Run {
    fn read(path: &Path) -> Result<Option<Self>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Error::file(path, format!("expected a file that can be read, got: {error}")));
            }
        };
        let bad = |error| Error::file(path, format!("expected what a run wrote, got: {error}"));
        serde_json::from_slice(&text).map(Some).map_err(bad)
    }

    /// `Ok` where `own` is the run that is there.
    fn check(&self, own: &Run, directory: &Path) -> Result<()> {
        let none = String::from("none");
        let value = |run: &Run, name: &String| run.options.get(name).unwrap_or(&none).clone();
        let resume = format!("--resume {}", directory.display());
        for name in self.options.keys().chain(own.options.keys()) {
            let (there, here) = (value(self, name), value(own, name));
            if there != here {
                let option = name.replace('_', "-");
                return Err(Error::argument(resume, format!("its run's {option}, {there}"), here));
            }
        }
        if self.data != own.data {
            return Err(Error::argument(resume, "the lines that its run read", "others"));
        }
        Ok(())
    }
}

/// The members of an object as text.
fn texts(options: &serde_json::Value) -> BTreeMap<String, String> {
    options.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.to_string())).collect()
}
