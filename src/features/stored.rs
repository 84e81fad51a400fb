//! Tables as bytes: equal tables have equal bytes, and bytes that are no table are refused.

use super::substring::NONE;
use super::table::*;
use super::{FeatureTable, LONGEST_EDIT_PATTERN};
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::tokens::Space;

/// What the bytes begin with.
const MAGIC: &[u8; 8] = b"ebmfeat1";

#[derive(serde::Serialize, serde::Deserialize)]
struct Head {
    space: Space,
    names: Vec<String>,
}

impl FeatureTable {
    /// The table as bytes: a magic number, the length of a JSON header (u32, little-endian), the header with space and
    /// names, and the words, little-endian.
    ///
    /// # Errors
    /// A table with closures: these cannot be stored.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        if let Some((name, _)) = self.customs.first() {
            return Err(Error::argument("table to store", "features that are data", format!("the closure '{name}'")));
        }
        let head = serde_json::to_vec(&Head { space: self.space, names: self.names.clone() })
            .map_err(|error| Error::no_answer("feature table", error))?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend((head.len() as u32).to_le_bytes());
        bytes.extend(head);
        bytes.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
        Ok(bytes)
    }

    /// The table that [`FeatureTable::to_bytes`] stored; every number in it is checked.
    ///
    /// # Errors
    /// Other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad = |what: &str| Error::argument("stored feature table", "what FeatureTable::to_bytes wrote", what);
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| bad("another beginning"))?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(|| bad("its beginning alone"))?;
        let head = rest.get(..u32::from_le_bytes(*length) as usize).ok_or_else(|| bad("a cut header"))?;
        let words = &rest[head.len()..];
        let Head { space, names } = serde_json::from_slice(head).map_err(|error| bad(&error.to_string()))?;
        if !words.len().is_multiple_of(4) || space.vocab == 0 || space.longest == 0 {
            return Err(bad("cut words, or an empty space"));
        }
        let words: Vec<u32> =
            words.chunks_exact(4).map(|four| u32::from_le_bytes(four.try_into().expect("four"))).collect();
        Check { words: &words, space, features: names.len() }.run().ok_or_else(|| bad("words that are no table"))?;
        FeatureTable::assembled(&Cpu, space, names, &words, Vec::new())
    }
}

/// Walks over a table that may be anything; `None` where it is none.
struct Check<'a> {
    words: &'a [u32],
    space: Space,
    features: usize,
}

fn ensure(condition: bool) -> Option<()> {
    condition.then_some(())
}

impl Check<'_> {
    fn run(&self) -> Option<()> {
        let [count, width, hidden, map] = *self.words.first_chunk::<HEADER>()?;
        ensure(self.words.len() <= LARGEST_TABLE && width >= 1 && hidden as usize <= self.words.len())?;
        ensure(HEADER.checked_add((count as usize).checked_mul(ENTRY)?)? <= map as usize)?;
        let classes = self.slice(map, self.space.vocab as usize)?;
        ensure(classes.iter().all(|&class| class < width))?;
        let mut known = vec![false; self.features + hidden as usize];
        for entry in entries(self.words) {
            self.entry(entry, width as usize, &known)?;
            for &target in self.slice(entry.targets, entry.outputs())? {
                ensure(!std::mem::replace(known.get_mut(target as usize)?, true))?;
            }
        }
        ensure(known.iter().all(|&known| known))
    }

    fn slice(&self, offset: u32, len: usize) -> Option<&[u32]> {
        self.words.get(offset as usize..(offset as usize).checked_add(len)?)
    }

    fn entry(&self, entry: &Entry, width: usize, known: &[bool]) -> Option<()> {
        let (size, extent) = (entry.size as usize, entry.extent as usize);
        match entry.kind {
            AUTOMATON => {
                self.states(self.slice(entry.first, size.checked_mul(width)?)?, size, width, 0)?;
                self.slice(entry.second, size.checked_mul(extent)?).map(drop)
            }
            LENGTH => ensure(size == 1 || size == 2),
            SUBSTRING => self.substring(entry, width),
            EDIT => {
                ensure((1..=LONGEST_EDIT_PATTERN).contains(&size) && extent == size.div_ceil(32))?;
                self.slice(entry.first, width.checked_mul(extent)?).map(drop)
            }
            SHIFT => {
                ensure(matches!(size, 1 | 2 | 4) && entry.first.is_multiple_of(4))?;
                self.slice(entry.first, width.checked_mul(size)?)?;
                self.slice(entry.second, 3 * size)?;
                ensure(self.slice(entry.third, extent)?.iter().all(|&output| (output as usize) < 64 * size))
            }
            COUNT => {
                ensure(extent >= 1)?;
                self.states(self.slice(entry.first, size.checked_mul(width)?)?, size, width, ENDS)
            }
            WORDS => {
                ensure((1..=32).contains(&extent))?;
                self.states(self.slice(entry.first, size.checked_mul(width)?)?, size, width, ENDS)?;
                self.slice(entry.second, size).map(drop)
            }
            SPELLED => self.spelled(entry),
            DISTINCT => Some(()),
            COMBINE => {
                let operands = self.slice(entry.first, extent)?;
                ensure(size <= 3 && extent >= 1)?;
                ensure(operands.iter().all(|&operand| known.get(operand as usize) == Some(&true)))
            }
            _ => None,
        }
    }

    /// Next states, each times `width`, perhaps marked.
    fn states(&self, next: &[u32], size: usize, width: usize, mark: u32) -> Option<()> {
        let valid = |&next: &u32| {
            let at = (next & !mark) as usize;
            at.is_multiple_of(width) && at / width < size
        };
        ensure(size >= 1 && next.iter().all(valid))
    }

    fn substring(&self, entry: &Entry, width: usize) -> Option<()> {
        let (pattern, states) = (entry.size, entry.extent as usize);
        let next = self.slice(entry.first, states.checked_mul(width)?)?;
        let links = self.slice(entry.second, states.checked_mul(2)?)?;
        ensure(pattern >= 1 && states >= 1 && next.iter().all(|&to| to == NONE || (to as usize) < states))?;
        // Lengths shrink along the links, so that following them ends.
        let shrinks = |state: usize| {
            let link = links[2 * state] as usize;
            link < states && links[2 * link + 1] < links[2 * state + 1]
        };
        ensure(links[0] as usize == 0 && (1..states).all(shrinks))
    }

    fn spelled(&self, entry: &Entry) -> Option<()> {
        let (size, width, vocab) = (entry.size as usize, entry.extent as usize, self.space.vocab as usize);
        ensure((1..=256).contains(&width))?;
        self.states(self.slice(entry.first, size.checked_mul(width)?)?, size, width, 0)?;
        self.slice(entry.second, size)?;
        let ends = self.slice(entry.third, vocab)?;
        ensure(ends.is_sorted())?;
        let count = *ends.last()? as usize;
        let symbols = self.slice(entry.third.checked_add(vocab as u32)?, count.div_ceil(4))?;
        ensure((0..count).all(|at| ((symbols[at / 4] >> (at % 4 * 8)) & 255) < width as u32))
    }
}
