//! The one error type of the crate: what was wrong, what was expected, what was got.

use std::fmt::Display;
use std::path::Path;

/// Everything that can go wrong in this crate. Each message is one line.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument outside its domain: wrong shape, wrong range, contradictory request.
    #[error("{what}: expected {expected}, got {got}")]
    Argument {
        /// The argument or quantity at fault.
        what: String,
        /// What would have been accepted.
        expected: String,
        /// What came instead.
        got: String,
    },
    /// A NaN (or an infinity that has no meaning there) in an input or a result.
    #[error("{what}: not a number at {at}")]
    NotANumber {
        /// The quantity that holds it.
        what: String,
        /// Where in it.
        at: String,
    },
    /// Memory that could not be had.
    #[error("{what}: out of memory, {bytes} bytes wanted")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// How much was asked for.
        bytes: u128,
    },
    /// A GPU that cannot be used, or that failed.
    #[error("{what}: {reason}")]
    Gpu {
        /// The device, or the kernel or copy on it.
        what: String,
        /// What is missing, or what the driver reports.
        reason: String,
    },
    /// A file that could not be read, written or understood.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What went wrong with it, what was expected and what was got.
        reason: String,
    },
    /// A computation that cannot give an answer: an estimator without samples, a fit without a solution.
    #[error("{what}: {reason}")]
    NoAnswer {
        /// The computation.
        what: String,
        /// Why, and what to do next.
        reason: String,
    },
}

/// `Result` with the crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Argument`].
    pub fn argument(what: impl Display, expected: impl Display, got: impl Display) -> Self {
        Error::Argument { what: what.to_string(), expected: expected.to_string(), got: got.to_string() }
    }

    /// An [`Error::NotANumber`].
    pub fn not_a_number(what: impl Display, at: impl Display) -> Self {
        Error::NotANumber { what: what.to_string(), at: at.to_string() }
    }

    /// An [`Error::Gpu`].
    pub fn gpu(what: impl Display, reason: impl Display) -> Self {
        Error::Gpu { what: what.to_string(), reason: reason.to_string() }
    }

    /// An [`Error::File`].
    pub fn file(path: &Path, reason: impl Display) -> Self {
        Error::File { path: path.display().to_string(), reason: reason.to_string() }
    }

    /// An [`Error::NoAnswer`].
    pub fn no_answer(what: impl Display, reason: impl Display) -> Self {
        Error::NoAnswer { what: what.to_string(), reason: reason.to_string() }
    }
}

/// `Ok` where `got == expected`, else an [`Error::Argument`]; the shape check of every stage.
pub(crate) fn expect_len(what: &str, expected: usize, got: usize) -> Result<()> {
    if expected == got { Ok(()) } else { Err(Error::argument(what, format!("{expected} values"), got)) }
}
