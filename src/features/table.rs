//! The compiled features: one flat table of 32-bit words, the same for every backend.
//!
//! ```text
//! words[0]               number of entries E
//! words[1]               number of token classes C
//! words[2 + token]       class of the token, V words
//! words[2 + V ..]        E entries of 6 words: kind, size, extent, first, second, targets
//! then                   the tables; `first`, `second` and `targets` are offsets into the words
//! ```
//!
//! | kind | size | extent | first | second | targets |
//! | --- | --- | --- | --- | --- | --- |
//! | 0 automaton | states S | outputs K | next state × C, `[S, C]` | values as f32 bits, `[S, K]` | features, `[K]` |
//! | 1 length | power, 1 or 2 | | | | feature |
//! | 2 substring | pattern length | states S | next state or `u32::MAX`, `[S, C]` | link and length, `[S, 2]` | feature |
//! | 3 edit | pattern length m | words W = ⌈m/32⌉ | bit i of `[C, W]`: pattern\[i\] is of the class | | feature |
//!
//! Further kinds may be added; a reader skips none, as every feature is the target of exactly one entry.

use super::automaton::Automaton;
use super::substring::SuffixAutomaton;
use super::{Classes, Feature, FeatureSet};
use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::tokens::{Batch, Space, Token};

pub(super) const AUTOMATON: u32 = 0;
pub(super) const LENGTH: u32 = 1;
pub(super) const SUBSTRING: u32 = 2;
pub(super) const EDIT: u32 = 3;

/// Words before the class map.
const HEADER: usize = 2;

/// Automata are multiplied as long as the product's transitions fit this many words (32 KiB, a first-level cache).
const PRODUCT_WORDS: usize = 1 << 13;

/// The largest table, in words: offsets are 32-bit.
const LARGEST_TABLE: usize = 1 << 30;

/// One entry's words; the module's table says what they mean.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Entry {
    pub kind: u32,
    pub size: u32,
    pub extent: u32,
    pub first: u32,
    pub second: u32,
    pub targets: u32,
}

impl Entry {
    /// Words of state between two tokens, as `kernels/features.cu` lays them out.
    fn state_words(&self) -> usize {
        match self.kind {
            AUTOMATON => 1,
            SUBSTRING => 3,
            EDIT => 2 + 2 * self.extent as usize,
            _ => 0,
        }
    }
}

/// The entries of a table's words.
fn entries(words: &[u32], vocab: u32) -> &[Entry] {
    let start = HEADER + vocab as usize;
    bytemuck::cast_slice(&words[start..start + words[0] as usize * (size_of::<Entry>() / 4)])
}

/// A compiled [`FeatureSet`]: one flat table in a backend's memory.
pub struct FeatureTable<B: Memory = Cpu> {
    space: Space,
    len: usize,
    words: B::Buffer<u32>,
    /// Words of state that a walk over one row holds for all entries; what GPU kernels need to know before a launch.
    state_words: usize,
}

impl<B: Memory> FeatureTable<B> {
    /// Words of state per row.
    pub(super) fn state_words(&self) -> usize {
        self.state_words
    }
}

impl<B: Backend> FeatureTable<B> {
    /// Number of features F.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The space of the sequences.
    pub fn space(&self) -> Space {
        self.space
    }

    /// The table's words in the backend's memory.
    pub fn words(&self) -> B::View<'_, u32> {
        B::view(&self.words, B::len(&self.words))
    }

    /// Writes φ of each row of `batch` to `phi` (`[rows, F]`), all features in one pass over the rows.
    ///
    /// # Errors
    /// Another space, another length of `phi`: nothing is written then. A row with a token or a length out of range:
    /// the first such row is named, and all such rows are NaN. An empty batch is a no-op.
    pub fn evaluate(&self, backend: &B, batch: &Batch<B>, phi: B::ViewMut<'_, f32>) -> Result<()> {
        if batch.space != self.space {
            let (expected, got) = (format!("{:?}", self.space), format!("{:?}", batch.space));
            return Err(Error::argument("space of the batch", expected, got));
        }
        expect_len("features of the batch", batch.rows * self.len, B::view_mut_len(&phi))?;
        if batch.rows == 0 || self.len == 0 {
            return Ok(());
        }
        backend.features(self, batch, phi)
    }
}

impl FeatureTable<Cpu> {
    /// The class of each token, `[V]`.
    pub(super) fn classes(&self) -> &[u32] {
        &self.words[HEADER..HEADER + self.space.vocab as usize]
    }

    /// Number of token classes C.
    pub(super) fn width(&self) -> usize {
        self.words[1] as usize
    }

    /// The entries.
    pub(super) fn entries(&self) -> &[Entry] {
        entries(&self.words, self.space.vocab)
    }

    /// `len` words from `offset` on.
    #[inline]
    pub(super) fn slice(&self, offset: u32, len: usize) -> &[u32] {
        &self.words[offset as usize..offset as usize + len]
    }
}

impl FeatureSet {
    /// Compiles the features to one table in the memory of `backend`. Automata are multiplied together while their
    /// product stays small, so that most sets are walked once per sequence.
    ///
    /// # Errors
    /// A table of 2³⁰ words or more (4 GiB), or memory that cannot be had.
    pub fn compile<B: Backend>(&self, backend: &B) -> Result<FeatureTable<B>> {
        let words = self.words()?;
        let mut buffer = backend.zeros(words.len(), "feature table")?;
        backend.upload(&words, &mut buffer)?;
        let state_words = entries(&words, self.space().vocab).iter().map(Entry::state_words).sum();
        Ok(FeatureTable { space: self.space(), len: self.len(), words: buffer, state_words })
    }

    fn words(&self) -> Result<Vec<u32>> {
        let classes = self.classes();
        self.check_size(&classes)?;
        let mut tables = Tables::default();
        for (product, features) in self.products(&classes) {
            tables.automaton(&product, &features);
        }
        for (at, feature) in self.features().iter().enumerate() {
            match feature {
                Feature::Length => tables.length(at, 1),
                Feature::LengthSquared => tables.length(at, 2),
                Feature::LongestCommonSubstring(pattern) => tables.substring(at, pattern, &classes),
                Feature::EditDistance(pattern) => tables.edit(at, pattern, &classes),
                _ => {}
            }
        }
        Ok(tables.assemble(&classes))
    }

    /// `Ok` where all tables together stay below [`LARGEST_TABLE`], by the most states that each feature can have.
    fn check_size(&self, classes: &Classes) -> Result<()> {
        let mut total = HEADER + classes.of().len() + size_of::<Entry>() / 4 * self.len();
        for (feature, name) in self.features().iter().zip(self.names()) {
            // Per state the transitions, a link and a length or a value; then one target.
            let words = feature.most_states(&self.space()).saturating_mul(classes.len() + 2);
            total = total.saturating_add(words).saturating_add(PRODUCT_WORDS);
            if total > LARGEST_TABLE {
                let what = format!("feature table with feature '{name}'");
                return Err(Error::argument(what, format!("at most {LARGEST_TABLE} words"), total));
            }
        }
        Ok(())
    }

    /// The automata, multiplied greedily in the features' order, each with the features that its outputs are.
    fn products(&self, classes: &Classes) -> Vec<(Automaton, Vec<usize>)> {
        let limit = PRODUCT_WORDS / classes.len();
        let mut products: Vec<(Automaton, Vec<usize>)> = Vec::new();
        for (at, feature) in self.features().iter().enumerate() {
            if matches!(feature, Feature::Length | Feature::LengthSquared) {
                continue;
            }
            let Some(one) = Automaton::with_classes(self.space(), classes.clone(), feature) else { continue };
            if let Some((last, features)) = products.last_mut()
                && let Some(product) = last.product(&one, limit)
            {
                *last = product;
                features.push(at);
            } else {
                products.push((one, vec![at]));
            }
        }
        products
    }
}

/// The tables under construction: offsets count from the first word behind the entries.
#[derive(Default)]
struct Tables {
    entries: Vec<Entry>,
    words: Vec<u32>,
}

impl Tables {
    fn automaton(&mut self, automaton: &Automaton, features: &[usize]) {
        let width = automaton.classes().len() as u32;
        let targets = self.push(features.iter().map(|&at| at as u32));
        let first = self.push(automaton.transitions().iter().map(|&state| state * width));
        let states = automaton.states() as u32;
        let second = self.push((0..states).flat_map(|state| automaton.values(state)).map(|value| value.to_bits()));
        let extent = automaton.outputs() as u32;
        self.entries.push(Entry { kind: AUTOMATON, size: states, extent, first, second, targets });
    }

    fn length(&mut self, at: usize, power: u32) {
        let targets = self.push([at as u32]);
        self.entries.push(Entry { kind: LENGTH, size: power, targets, ..Entry::default() });
    }

    fn substring(&mut self, at: usize, pattern: &[Token], classes: &Classes) {
        let automaton = SuffixAutomaton::new(pattern, classes);
        let targets = self.push([at as u32]);
        let (first, second) = (self.push(automaton.next), self.push(automaton.links.iter().flatten().copied()));
        let (size, extent) = (pattern.len() as u32, automaton.links.len() as u32);
        self.entries.push(Entry { kind: SUBSTRING, size, extent, first, second, targets });
    }

    fn edit(&mut self, at: usize, pattern: &[Token], classes: &Classes) {
        let words = pattern.len().div_ceil(32);
        let mut masks = vec![0_u32; classes.len() * words];
        for (i, &token) in pattern.iter().enumerate() {
            masks[classes.of()[token as usize] as usize * words + i / 32] |= 1 << (i % 32);
        }
        let (targets, first) = (self.push([at as u32]), self.push(masks));
        let (size, extent) = (pattern.len() as u32, words as u32);
        self.entries.push(Entry { kind: EDIT, size, extent, first, targets, ..Entry::default() });
    }

    /// Appends words; returns their offset.
    fn push(&mut self, words: impl IntoIterator<Item = u32>) -> u32 {
        let offset = self.words.len() as u32;
        self.words.extend(words);
        offset
    }

    /// Header, class map, entries with final offsets, tables.
    fn assemble(mut self, classes: &Classes) -> Vec<u32> {
        let before = (HEADER + classes.of().len() + self.entries.len() * (size_of::<Entry>() / 4)) as u32;
        for entry in &mut self.entries {
            for offset in [&mut entry.first, &mut entry.second, &mut entry.targets] {
                *offset += before;
            }
        }
        let mut words = vec![self.entries.len() as u32, classes.len() as u32];
        words.extend_from_slice(classes.of());
        words.extend_from_slice(bytemuck::cast_slice(&self.entries));
        words.extend(self.words);
        words
    }
}
