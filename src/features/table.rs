//! The compiled features: one flat table of 32-bit words, the same for every backend.
//!
//! ```text
//! words[0]               number of entries E
//! words[1]               number of token classes C
//! words[2]               number of hidden values H
//! words[3]               offset of the class map: where the words end that a GPU keeps in shared memory
//! words[4 ..]            E entries of 8 words: kind, size, extent, first, second, third, targets, 0
//! then                   the tables; `first`, `second`, `third` and `targets` are offsets into the words
//! words[words[3] ..]     class of each token, V words; then the tables of spelled automata
//! ```
//!
//! | kind | size | extent | first | second | third | targets |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | 0 automaton | states S | outputs K | next state × C, `[S, C]` | values as f32 bits, `[S, K]` | | `[K]` |
//! | 1 length | power, 1 or 2 | | | | | `[1]` |
//! | 2 substring | pattern length | states S | next state or `u32::MAX`, `[S, C]` | link and length, `[S, 2]` | | `[1]` |
//! | 3 edit | pattern length m | words W = ⌈m/32⌉ | bit i of `[C, W]`: pattern\[i\] is of the class | | | `[1]` |
//! | 4 shift | words W, 1, 2 or 4 | outputs K | `[C, W]`, a multiple of 4: bits that a class lets through | `[3, W]`: bits set before every token, before the first alone, and never by a shift | `[K]`: 2·(32·word + bit), + 1 where only the end counts | `[K]` |
//! | 5 count | states S | most | next state × C, `[S, C]`, + 2³¹ where an occurrence ends | | | `[1]` |
//! | 6 spelled | states S | symbols B | next state × B, `[S, B]` | values as f32 bits, `[S]` | end of each token's symbols, `[V]`, then the symbols, 4 a word | `[1]` |
//! | 7 distinct | | | | | | `[1]` |
//! | 8 custom | column of the values given from outside | | | | | `[1]` |
//! | 9 combine | 0 not, 1 all, 2 any, 3 at least | operands K | targets of the operands, `[K]` | threshold as f32 bits, itself | | `[1]` |
//! | 10 words | states S | outputs K, at most 32 | next state × C, `[S, C]`, + 2³¹ where a word ends | bit k: a word of output k ends in the state, `[S]` | | `[K]` |
//!
//! A target below F is a feature; F + h is hidden value h, which only later combinations read. Further kinds may be added;
//! a reader skips none, as every target is that of exactly one entry.

use super::Custom;
use crate::backend::{Backend, Cpu, Memory};
use crate::checkpoint::digest;
use crate::error::{Error, Result, expect_len};
use crate::tokens::{Batch, Space, TokenRows};

pub(super) const AUTOMATON: u32 = 0;
pub(super) const LENGTH: u32 = 1;
pub(super) const SUBSTRING: u32 = 2;
pub(super) const EDIT: u32 = 3;
pub(super) const SHIFT: u32 = 4;
pub(super) const COUNT: u32 = 5;
pub(super) const SPELLED: u32 = 6;
pub(super) const DISTINCT: u32 = 7;
pub(super) const CUSTOM: u32 = 8;
pub(super) const COMBINE: u32 = 9;
pub(super) const WORDS: u32 = 10;

/// What marks the end of an occurrence in the transitions of counts and words.
pub(super) const ENDS: u32 = 1 << 31;

/// Words before the entries.
pub(super) const HEADER: usize = 4;

/// The largest table, in words: offsets are 32-bit, and bit 31 marks.
pub(super) const LARGEST_TABLE: usize = 1 << 30;

/// One entry's words; the module's table says what they mean.
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Entry {
    pub kind: u32,
    pub size: u32,
    pub extent: u32,
    pub first: u32,
    pub second: u32,
    pub third: u32,
    pub targets: u32,
    pub unused: u32,
}

/// Words of an entry.
pub(super) const ENTRY: usize = size_of::<Entry>() / 4;

impl Entry {
    /// Words of state between two tokens, as `kernels/features.cu` lays them out.
    pub fn state_words(&self) -> usize {
        match self.kind {
            AUTOMATON | SPELLED => 1,
            COUNT | WORDS => 2,
            SUBSTRING => 3,
            EDIT => 2 + 2 * self.extent as usize,
            SHIFT => 2 * self.size as usize,
            _ => 0,
        }
    }

    /// Number of targets.
    pub fn outputs(&self) -> usize {
        if matches!(self.kind, AUTOMATON | SHIFT | WORDS) { self.extent as usize } else { 1 }
    }
}

/// The entries of a table's words.
pub(super) fn entries(words: &[u32]) -> &[Entry] {
    bytemuck::cast_slice(&words[HEADER..HEADER + words[0] as usize * ENTRY])
}

/// Closures with the names of their features.
pub(super) type Customs = Vec<(String, Custom)>;

/// A compiled [`FeatureSet`](super::FeatureSet): one flat table in a backend's memory.
pub struct FeatureTable<B: Memory = Cpu> {
    pub(super) space: Space,
    pub(super) names: Vec<String>,
    pub(super) words: B::Buffer<u32>,
    /// The closures, and their features' names.
    pub(super) customs: Customs,
    /// Words of state that a walk over one row holds for all entries, hidden values included; what GPU kernels need to
    /// know before a launch.
    pub(super) state_words: usize,
    /// Words before the class map, and before the spelled automata.
    pub(super) hot_words: [usize; 2],
}

impl<B: Memory> FeatureTable<B> {
    /// The table of checked words.
    pub(super) fn assembled(
        backend: &B,
        space: Space,
        names: Vec<String>,
        words: &[u32],
        customs: Customs,
    ) -> Result<Self> {
        let mut buffer = backend.zeros(words.len(), "feature table")?;
        backend.upload(words, &mut buffer)?;
        let state_words = entries(words).iter().map(Entry::state_words).sum::<usize>() + words[2] as usize;
        let hot_words = [words[3] as usize, words[3] as usize + space.vocab as usize];
        Ok(FeatureTable { space, names, words: buffer, customs, state_words, hot_words })
    }

    /// Number of features F.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The features' names, in order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The space of the sequences.
    pub fn space(&self) -> Space {
        self.space
    }

    /// The table's words in the backend's memory.
    pub fn words(&self) -> B::View<'_, u32> {
        B::view(&self.words, B::len(&self.words))
    }
}

impl<B: Backend> FeatureTable<B> {
    /// Writes φ of each row of `batch` to `phi` (`[rows, F]`), all features in one pass over the rows.
    ///
    /// # Errors
    /// Another space, another length of `phi`: nothing is written then. A row with a token or a length out of range:
    /// the first such row is named, and all such rows are NaN. A closure that returns another number of values than rows,
    /// a NaN, or a value outside [0, 1]; nothing is written then. An empty batch is a no-op.
    pub fn evaluate(&self, backend: &B, batch: &Batch<B>, phi: B::ViewMut<'_, f32>) -> Result<()> {
        self.check(batch.space, batch.rows, B::view_mut_len(&phi))?;
        if batch.rows == 0 || self.is_empty() {
            return Ok(());
        }
        if self.customs.is_empty() {
            return backend.features(self, batch.view(), None, phi);
        }
        let values = self.custom_values(&batch.download(backend)?)?;
        let mut given = backend.zeros(values.len(), "custom features")?;
        backend.upload(&values, &mut given)?;
        backend.features(self, batch.view(), Some(B::view(&given, values.len())), phi)
    }

    /// As [`FeatureTable::evaluate`], for data sets that are kept at 16 bits a token, which are half the bytes to read:
    /// `tokens` is `[rows, space.longest]`, `lengths` `[rows]`, EOS included.
    ///
    /// ```
    /// use ebm_dpg::backend::Cpu;
    /// use ebm_dpg::features::{Feature, FeatureSet};
    /// use ebm_dpg::tokens::Space;
    ///
    /// let space = Space::new(2, 4)?;
    /// let features = FeatureSet::new(space).with("motif", Feature::Contains(vec![1, 0]))?;
    /// let (eos, pad, mut phi) = (space.eos as u16, space.pad as u16, [0.0; 2]);
    /// let tokens = [1, 0, eos, pad, 0, 1, 1, eos];
    /// features.compile(&Cpu)?.evaluate_compact(&Cpu, &tokens, &[3, 4], &mut phi)?;
    /// assert_eq!(phi, [1.0, 0.0]);
    /// # Ok::<(), ebm_dpg::Error>(())
    /// ```
    ///
    /// # Errors
    /// A vocabulary of more than 2¹⁶ ids, other lengths of `tokens` or `phi`, a table with closures (these take a
    /// [`Batch`]): nothing is written then. Rows out of range as there. No rows are a no-op.
    pub fn evaluate_compact<'a>(
        &self,
        backend: &B,
        tokens: B::View<'a, u16>,
        lengths: B::View<'a, u32>,
        phi: B::ViewMut<'_, f32>,
    ) -> Result<()> {
        let (space, rows) = (self.space, B::view_len(&lengths));
        if space.vocab > 1 << 16 {
            return Err(Error::argument("vocabulary of 16-bit tokens", "at most 65536 ids", space.vocab));
        }
        if let Some((name, _)) = self.customs.first() {
            let got = format!("the closure '{name}'");
            return Err(Error::argument("features of 16-bit tokens", "features that are data", got));
        }
        expect_len("tokens", rows * space.longest as usize, B::view_len(&tokens))?;
        expect_len("features of the batch", rows * self.len(), B::view_mut_len(&phi))?;
        if rows == 0 || self.is_empty() {
            return Ok(());
        }
        backend.features(self, TokenRows { space, rows, tokens, lengths }, None, phi)
    }

    /// `Ok` where a batch of `rows` rows of `space` has its features in `len` values.
    pub(super) fn check(&self, space: Space, rows: usize, len: usize) -> Result<()> {
        if space != self.space {
            let (expected, got) = (format!("{:?}", self.space), format!("{space:?}"));
            return Err(Error::argument("space of the batch", expected, got));
        }
        expect_len("features of the batch", rows * self.len(), len)
    }

    /// A fingerprint of names and table; of closures, their names alone.
    pub(crate) fn digest(&self, backend: &B) -> Result<u64> {
        let mut words: Vec<u32> = Cpu.zeros(B::len(&self.words), "feature table")?;
        backend.download(&self.words, &mut words)?;
        let names = self.names.iter().fold(0, |before, name| digest(before, name.as_bytes()));
        Ok(digest(names, bytemuck::cast_slice(&words)))
    }

    /// What the closures say, `[rows, closures]`.
    fn custom_values(&self, batch: &Batch) -> Result<Vec<f32>> {
        let bad = |row: &usize| {
            let length = batch.lengths[*row] as usize;
            length > self.space.longest as usize || self.space.check(batch.sequence(*row)).is_err()
        };
        if let Some(row) = (0..batch.rows).find(bad) {
            return Err(Error::argument(format!("row {row} of the batch"), "a member of its space", "another"));
        }
        let stride = self.customs.len();
        let mut values = Cpu.zeros(batch.rows * stride, "custom features")?;
        for (at, (name, custom)) in self.customs.iter().enumerate() {
            custom.evaluate(batch, name, at, stride, &mut values)?;
        }
        Ok(values)
    }
}

impl FeatureTable<Cpu> {
    /// The class of each token, `[V]`.
    pub(super) fn classes(&self) -> &[u32] {
        &self.words[self.hot_words[0]..self.hot_words[1]]
    }

    /// Number of token classes C.
    pub(super) fn width(&self) -> usize {
        self.words[1] as usize
    }

    /// The next states of an automaton over classes, `[S, C]`.
    pub(super) fn transitions(&self, entry: &Entry) -> &[u32] {
        self.slice(entry.first, entry.size as usize * self.width())
    }

    /// Number of hidden values H.
    pub(super) fn hidden(&self) -> usize {
        self.words[2] as usize
    }

    /// The entries.
    pub(super) fn entries(&self) -> &[Entry] {
        entries(&self.words)
    }

    /// `len` words from `offset` on.
    #[inline]
    pub(super) fn slice(&self, offset: u32, len: usize) -> &[u32] {
        &self.words[offset as usize..offset as usize + len]
    }

    /// The same table in the memory of `backend`.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn upload<B: Backend>(&self, backend: &B) -> Result<FeatureTable<B>> {
        FeatureTable::assembled(backend, self.space, self.names.clone(), &self.words, self.customs.clone())
    }
}
