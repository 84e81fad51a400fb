//! What a compiled table consists of.

use std::fmt;

use super::FeatureTable;
use super::table::*;

/// How one entry of a table is computed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct EntryReport {
    /// "words": one look-up a token for the words of up to 32 features; "shift-and": patterns in the bits of up to four
    /// machine words; "automaton": one look-up a token; "counter": an automaton
    /// and a count; "spelled automaton": one look-up a byte (or digit) of a token; "suffix automaton"; "bit-parallel edit
    /// distance"; "length"; "distinct tokens"; "closure"; "combination".
    pub path: &'static str,
    /// The features whose values it gives; "(part)" for what only combinations read.
    pub features: Vec<String>,
    /// Number of states, or of words of bits.
    pub states: usize,
    /// Bytes of its tables.
    pub bytes: usize,
}

/// What a table consists of, and how large it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct TableReport {
    /// The entries, in the order in which they are walked.
    pub entries: Vec<EntryReport>,
    /// Number of token classes.
    pub classes: usize,
    /// Bytes of the whole table.
    pub bytes: usize,
    /// Bytes that a GPU kernel wants in shared memory: all but the class map and the spelled automata.
    pub hot_bytes: usize,
}

impl FeatureTable {
    /// What the table consists of.
    pub fn report(&self) -> TableReport {
        let entries = self.entries().iter().map(|entry| self.entry_report(entry)).collect();
        let (bytes, hot_bytes) = (self.words.len() * 4, self.hot_words[0] * 4);
        TableReport { entries, classes: self.width(), bytes, hot_bytes }
    }

    fn entry_report(&self, entry: &Entry) -> EntryReport {
        let (size, extent, width) = (entry.size as usize, entry.extent as usize, self.width());
        let (path, states, words) = match entry.kind {
            AUTOMATON => ("automaton", size, size * (width + extent)),
            LENGTH => ("length", 0, 0),
            SUBSTRING => ("suffix automaton", extent, extent * (width + 2)),
            EDIT => ("bit-parallel edit distance", extent, extent * width),
            SHIFT => ("shift-and", size, size * (width + 3) + extent),
            COUNT => ("counter", size, size * width),
            WORDS => ("words", size, size * (width + 1)),
            SPELLED => {
                let ends = self.slice(entry.third, self.space.vocab as usize);
                let symbols = ends.last().copied().unwrap_or(0) as usize;
                ("spelled automaton", size, size * (extent + 1) + ends.len() + symbols.div_ceil(4))
            }
            DISTINCT => ("distinct tokens", 0, 0),
            CUSTOM => ("closure", 0, 0),
            _ => ("combination", 0, extent),
        };
        let name = |&target: &u32| self.names.get(target as usize).cloned().unwrap_or("(part)".into());
        let features: Vec<String> = self.slice(entry.targets, entry.outputs()).iter().map(name).collect();
        EntryReport { path, states, bytes: 4 * (words + ENTRY + features.len()), features }
    }
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} bytes, {} of them hot, {} token classes", self.bytes, self.hot_bytes, self.classes)?;
        for EntryReport { path, features, states, bytes } in &self.entries {
            writeln!(f, "{path}: {states} states, {bytes} bytes: {}", features.join(", "))?;
        }
        Ok(())
    }
}
