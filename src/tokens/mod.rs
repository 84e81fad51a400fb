//! Tokens: the space of sequences, batches of them, vocabularies and lines files.
//!
//! A sequence is a string of content tokens ended by EOS, or one cut at the longest length; the cut ones are members
//! of the space in their own right, so that Σₓ π(x) = 1. BOS and PAD never occur inside a sequence.

use crate::backend::{Backend, Cpu, Element, Memory};
use crate::error::{Error, Result};
use crate::rng::Draw;

mod contexts;
mod gpu;
mod lines;
mod vocab;

pub use contexts::Contexts;
pub(crate) use gpu::RowsArgument;
pub use lines::Lines;
pub use vocab::{Unit, Vocab};

/// A token id, an index into the vocabulary.
pub type Token = u32;

/// A token id as it lies in memory: a [`Token`], or 16 bits of one where the vocabulary has at most 2¹⁶ ids.
pub trait TokenId: Element + Ord + Into<Token> {}
impl TokenId for Token {}
impl TokenId for u16 {}

/// The space of sequences over a vocabulary: which ids exist, what three of them mean, and the longest length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Space {
    /// Number of ids, the three special ones included (V).
    pub vocab: u32,
    /// What a model reads before the first token; never emitted.
    pub bos: Token,
    /// Ends a sequence; counts in log-probs.
    pub eos: Token,
    /// Fills the rest of a row; never emitted.
    pub pad: Token,
    /// The largest number of tokens of a sequence, EOS included (T). A sequence of this many tokens without EOS is cut.
    pub longest: u32,
}

impl Space {
    /// A space of `symbols` content tokens with ids 0..symbols, then BOS, EOS and PAD.
    ///
    /// # Errors
    /// No symbols, or `longest` of zero.
    pub fn new(symbols: u32, longest: u32) -> Result<Self> {
        if symbols == 0 || symbols > u32::MAX - 3 {
            return Err(Error::argument("number of symbols", "1 or more", symbols));
        }
        if longest == 0 {
            return Err(Error::argument("longest sequence", "1 token or more", longest));
        }
        Ok(Space { vocab: symbols + 3, bos: symbols, eos: symbols + 1, pad: symbols + 2, longest })
    }

    /// Whether `token` may stand inside a sequence before its end.
    #[inline]
    pub fn is_content(&self, token: Token) -> bool {
        token < self.vocab && token != self.bos && token != self.eos && token != self.pad
    }

    /// Whether a model may emit `token`: content or EOS.
    #[inline]
    pub fn is_output(&self, token: Token) -> bool {
        token < self.vocab && token != self.bos && token != self.pad
    }

    /// `Ok` where `sequence` is a member of the space.
    pub fn check(&self, sequence: &[Token]) -> Result<()> {
        let longest = self.longest as usize;
        if sequence.is_empty() || sequence.len() > longest {
            return Err(Error::argument("sequence length", format!("1 to {longest} tokens"), sequence.len()));
        }
        let (last, body) = sequence.split_last().expect("not empty");
        if let Some(at) = body.iter().position(|&t| !self.is_content(t)) {
            let expected = format!("a content token below {} at position {at}", self.vocab);
            return Err(Error::argument("sequence", expected, body[at]));
        }
        let cut = sequence.len() == longest && self.is_content(*last);
        if *last != self.eos && !cut {
            let expected = format!("EOS ({}) at the end of a sequence shorter than {longest}", self.eos);
            return Err(Error::argument("sequence", expected, last));
        }
        Ok(())
    }
}

/// The kernel of this stage.
pub trait TokenKernel: Memory {
    /// See [`Batch::copy_rows`]; shapes are already checked.
    fn copy_rows(&self, from: &Batch<Self>, rows: &[u32], at: usize, to: &mut Batch<Self>) -> Result<()>;

    /// See [`Batch::begin`]; spaces are already checked.
    fn begin(&self, contexts: &Contexts<Self>, draw: Draw, batch: &mut Batch<Self>) -> Result<()>;
}

impl TokenKernel for Cpu {
    fn copy_rows(&self, from: &Batch, rows: &[u32], at: usize, to: &mut Batch) -> Result<()> {
        rows.iter().enumerate().for_each(|(i, &row)| to.copy_row(at + i, from, row as usize));
        Ok(())
    }

    fn begin(&self, contexts: &Contexts, draw: Draw, batch: &mut Batch) -> Result<()> {
        for row in 0..batch.capacity() {
            let number = contexts.number(draw.first + row as u64);
            batch.set(row, contexts.context(number));
            (batch.given[row], batch.context[row]) = (contexts.lengths[number], number as u32);
        }
        Ok(())
    }
}

/// Rows of tokens as kernels read them, borrowed.
pub struct TokenRows<'a, B: Memory, T: TokenId> {
    /// The space all rows belong to.
    pub space: Space,
    /// Number of rows.
    pub rows: usize,
    /// Tokens, `[rows, space.longest]`.
    pub tokens: B::View<'a, T>,
    /// Lengths in tokens, EOS included, `[rows]`.
    pub lengths: B::View<'a, u32>,
}

/// A ragged batch: `rows` sequences, row-major with a stride of `space.longest` tokens, the rest of a row PAD.
///
/// A row may begin with a context, see [`Contexts`]: samplers go on from it, and log-probs are those of what follows it.
pub struct Batch<B: Memory = Cpu> {
    /// The space all rows belong to.
    pub space: Space,
    /// Number of rows in use.
    pub rows: usize,
    /// Tokens, `[capacity, space.longest]`.
    pub tokens: B::Buffer<Token>,
    /// Lengths in tokens, EOS included, `[capacity]`.
    pub lengths: B::Buffer<u32>,
    /// How many tokens of each row are its context, below its length, `[capacity]`; 0 where there is none.
    pub given: B::Buffer<u32>,
    /// The number of each row's context, `[capacity]`.
    pub context: B::Buffer<u32>,
}

impl<B: Backend> Batch<B> {
    /// Room for `capacity` sequences, none in use.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the room cannot be had.
    pub fn with_capacity(backend: &B, space: Space, capacity: usize) -> Result<Self> {
        let tokens = capacity.checked_mul(space.longest as usize).ok_or_else(|| Error::OutOfMemory {
            what: "token batch".into(),
            bytes: capacity as u128 * u128::from(space.longest) * 4,
        })?;
        Ok(Batch {
            space,
            rows: 0,
            tokens: backend.zeros(tokens, "token batch")?,
            lengths: backend.zeros(capacity, "token batch lengths")?,
            given: backend.zeros(capacity, "context lengths of a batch")?,
            context: backend.zeros(capacity, "contexts of a batch")?,
        })
    }

    /// How many sequences fit.
    pub fn capacity(&self) -> usize {
        B::len(&self.lengths)
    }

    /// Writes rows `rows` of `from` to the rows from `at` on, which may be the next free ones.
    ///
    /// # Errors
    /// Another space, a row that `from` has not, more rows than fit, a gap before `at`. Nothing is written then.
    pub fn copy_rows(&mut self, backend: &B, from: &Batch<B>, rows: &[u32], at: usize) -> Result<()> {
        if self.space != from.space {
            return Err(Error::argument("batch space", format!("{:?}", self.space), format!("{:?}", from.space)));
        }
        if at > self.rows || at + rows.len() > self.capacity() {
            let expected = format!("rows after {} of {}", self.rows, self.capacity());
            return Err(Error::argument("batch rows", expected, format!("{at}..{}", at + rows.len())));
        }
        if let Some(row) = rows.iter().find(|&&row| row as usize >= from.rows) {
            return Err(Error::argument("batch row", format!("below {}", from.rows), row));
        }
        backend.copy_rows(from, rows, at, self)?;
        self.rows = self.rows.max(at + rows.len());
        Ok(())
    }

    /// Replaces the contents by rows `rows` of `from`, in that order.
    ///
    /// # Errors
    /// As [`Batch::copy_rows`].
    pub fn gather(&mut self, backend: &B, from: &Batch<B>, rows: &[u32]) -> Result<()> {
        let before = std::mem::take(&mut self.rows);
        self.copy_rows(backend, from, rows, 0).inspect_err(|_| self.rows = before)
    }
}

impl<B: Memory> Batch<B> {
    /// The rows in use, borrowed.
    pub fn view(&self) -> TokenRows<'_, B, Token> {
        let (space, rows) = (self.space, self.rows);
        let tokens = B::view(&self.tokens, rows * space.longest as usize);
        TokenRows { space, rows, tokens, lengths: B::view(&self.lengths, rows) }
    }

    /// The same rows on the host.
    ///
    /// # Errors
    /// What the device reports.
    pub fn download(&self, backend: &B) -> Result<Batch<Cpu>> {
        let mut batch = Batch::with_capacity(&Cpu, self.space, B::len(&self.lengths))?;
        backend.download(&self.tokens, &mut batch.tokens)?;
        backend.download(&self.lengths, &mut batch.lengths)?;
        backend.download(&self.given, &mut batch.given)?;
        backend.download(&self.context, &mut batch.context)?;
        batch.rows = self.rows;
        Ok(batch)
    }
}

impl Batch<Cpu> {
    /// The same rows in the memory of `backend`.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn upload<B: Backend>(&self, backend: &B) -> Result<Batch<B>> {
        let mut batch = Batch::with_capacity(backend, self.space, self.capacity())?;
        backend.upload(&self.tokens, &mut batch.tokens)?;
        backend.upload(&self.lengths, &mut batch.lengths)?;
        backend.upload(&self.given, &mut batch.given)?;
        backend.upload(&self.context, &mut batch.context)?;
        batch.rows = self.rows;
        Ok(batch)
    }

    /// A batch of the given sequences, each checked to be a member of `space`.
    pub fn from_sequences<S: AsRef<[Token]>>(space: Space, sequences: &[S]) -> Result<Self> {
        let mut batch = Batch::with_capacity(&Cpu, space, sequences.len())?;
        for sequence in sequences {
            batch.push(sequence.as_ref())?;
        }
        Ok(batch)
    }

    /// Appends a sequence.
    ///
    /// # Errors
    /// The sequence is no member of the space, or the batch is full; the batch is then unchanged.
    pub fn push(&mut self, sequence: &[Token]) -> Result<()> {
        self.space.check(sequence)?;
        if self.rows == self.capacity() {
            return Err(Error::argument("batch", format!("at most {} sequences", self.rows), self.rows + 1));
        }
        self.rows += 1;
        self.set(self.rows - 1, sequence);
        Ok(())
    }

    /// Appends a sequence whose first `given` tokens are context `context`.
    ///
    /// # Errors
    /// As [`Batch::push`]; a context that is the whole sequence.
    pub fn push_given(&mut self, sequence: &[Token], given: usize, context: u32) -> Result<()> {
        if given >= sequence.len() {
            let expected = format!("less than the sequence's {}", sequence.len());
            return Err(Error::argument("tokens of the context", expected, given));
        }
        self.push(sequence)?;
        (self.given[self.rows - 1], self.context[self.rows - 1]) = (given as u32, context);
        Ok(())
    }

    /// Appends a row of another batch of this space, its context included.
    pub(crate) fn push_row(&mut self, from: &Batch, row: usize) -> Result<()> {
        self.push_given(from.sequence(row), from.given[row] as usize, from.context[row])
    }

    /// Sequence `row`, EOS included.
    #[inline]
    pub fn sequence(&self, row: usize) -> &[Token] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let stride = self.space.longest as usize;
        &self.tokens[row * stride..row * stride + self.lengths[row] as usize]
    }

    /// Token `at` of sequence `row`.
    #[inline]
    pub fn token(&self, row: usize, at: usize) -> Token {
        self.tokens[row * self.space.longest as usize + at]
    }

    /// Sequence `row` without its EOS.
    #[inline]
    pub fn content(&self, row: usize) -> &[Token] {
        let sequence = self.sequence(row);
        if self.is_cut(row) { sequence } else { &sequence[..sequence.len() - 1] }
    }

    /// Whether `row` was cut at the longest length: it has no EOS.
    #[inline]
    pub fn is_cut(&self, row: usize) -> bool {
        self.sequence(row).last() != Some(&self.space.eos)
    }

    /// All sequences in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[Token]> {
        (0..self.rows).map(|row| self.sequence(row))
    }

    /// Number of tokens over all rows, EOS included.
    pub fn total_tokens(&self) -> usize {
        self.lengths[..self.rows].iter().map(|&n| n as usize).sum()
    }

    /// Puts a sequence without a context into `row`.
    pub(crate) fn set(&mut self, row: usize, sequence: &[Token]) {
        let stride = self.space.longest as usize;
        let slot = &mut self.tokens[row * stride..(row + 1) * stride];
        slot[..sequence.len()].copy_from_slice(sequence);
        slot[sequence.len()..].fill(self.space.pad);
        self.lengths[row] = sequence.len() as u32;
        (self.given[row], self.context[row]) = (0, 0);
    }

    /// Puts row `from_row` of another batch into `row`.
    pub(crate) fn copy_row(&mut self, row: usize, from: &Batch, from_row: usize) {
        self.set(row, from.sequence(from_row));
        (self.given[row], self.context[row]) = (from.given[from_row], from.context[from_row]);
    }
}

impl Clone for Batch<Cpu> {
    fn clone(&self) -> Self {
        let Batch { space, rows, tokens, lengths, given, context } = self;
        let (tokens, lengths, given, context) = (tokens.clone(), lengths.clone(), given.clone(), context.clone());
        Batch { space: *space, rows: *rows, tokens, lengths, given, context }
    }
}
