//! Vocabularies and lines files.

/// What one token of a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Unicode scalar values.
    Characters,
    /// Whitespace-separated words.
    Words,
}

/// The symbols of a text, in order of their ids.
pub struct Vocab {}

/// A lines file, tokenised.
pub struct Lines {}
