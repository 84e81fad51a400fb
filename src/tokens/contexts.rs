//! Contexts: what sequences continue, for models that are tuned for each of them at once.

use super::{Batch, Lines, Space, Token};
use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result};
use crate::rng::Draw;

/// A list of contexts, the beginnings that sequences continue, and how draws take turns over it: draw i, by its global
/// number, continues context ⌊i / draws⌋ mod count, so that what is drawn depends neither on the split into batches nor on the
/// backend.
///
/// A context is a run of content tokens at the front of the sequence. Models read it and give it no probability: log π(x) is
/// then log π(x given the context). Features see the whole sequence, so that they may depend on the context too.
///
/// ```
/// use ebm_dpg::tokens::{Contexts, Space};
///
/// let space = Space::new(2, 6)?;
/// // Continued 16 times in a row: [0], [0], …, [1, 1], [1, 1], …, [0], …
/// let contexts = Contexts::new(space, &[vec![0], vec![1, 1]], 16)?;
/// assert_eq!((contexts.len(), contexts.context(1)), (2, &[1, 1][..]));
/// assert_eq!((contexts.number(15), contexts.number(16), contexts.number(32)), (0, 1, 0));
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
pub struct Contexts<B: Memory = Cpu> {
    /// The space of the sequences, contexts included.
    pub space: Space,
    /// Tokens, `[count, space.longest]`, PAD behind a context.
    pub tokens: B::Buffer<Token>,
    /// Tokens of each context, `[count]`.
    pub lengths: B::Buffer<u32>,
    draws: usize,
}

impl<B: Memory> Contexts<B> {
    /// Number of contexts, at least 1.
    pub fn len(&self) -> usize {
        B::len(&self.lengths)
    }

    /// Whether there are none: never, by construction.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Draws in a row that continue the same context.
    pub fn draws(&self) -> usize {
        self.draws
    }

    /// The number of the context that the draw of this global number continues.
    pub fn number(&self, draw: u64) -> usize {
        (draw / self.draws as u64 % self.len() as u64) as usize
    }
}

impl Contexts<Cpu> {
    /// Contexts of `space`, each to be continued `draws` times in a row.
    ///
    /// # Errors
    /// No contexts, no draws, a context that holds what is no content token or leaves no room for another token.
    pub fn new<S: AsRef<[Token]>>(space: Space, contexts: &[S], draws: usize) -> Result<Self> {
        if contexts.is_empty() || contexts.len() > u32::MAX as usize {
            return Err(Error::argument("contexts", "1 to 2^32 − 1", contexts.len()));
        }
        if draws == 0 {
            return Err(Error::argument("draws of a context in a row", "1 or more", draws));
        }
        let stride = space.longest as usize;
        let mut tokens: Vec<Token> = Cpu.zeros(contexts.len() * stride, "contexts")?;
        tokens.fill(space.pad);
        for (number, (context, row)) in contexts.iter().zip(tokens.chunks_exact_mut(stride)).enumerate() {
            let context = context.as_ref();
            if context.len() >= stride {
                let expected = format!("at most {} tokens, as sequences have at most {stride}", stride - 1);
                return Err(Error::argument(format!("context {number}"), expected, context.len()));
            }
            if let Some(at) = context.iter().position(|&token| !space.is_content(token)) {
                let expected = format!("a content token below {} at position {at}", space.vocab);
                return Err(Error::argument(format!("context {number}"), expected, context[at]));
            }
            row[..context.len()].copy_from_slice(context);
        }
        let lengths = contexts.iter().map(|context| context.as_ref().len() as u32).collect();
        Ok(Contexts { space, tokens, lengths, draws })
    }

    /// The lines of a file as contexts of `space`, which may be longer than the lines; see [`Lines::read`].
    ///
    /// # Errors
    /// As [`Contexts::new`]; a line that had to be cut, or is of another vocabulary than `space`.
    pub fn from_lines(space: Space, lines: &Lines, draws: usize) -> Result<Self> {
        if let Some(line) = lines.truncated.first() {
            let expected = format!("at most {} tokens", lines.batch.space.longest - 1);
            return Err(Error::argument(format!("context of line {line}"), expected, "more"));
        }
        if (Space { longest: space.longest, ..lines.batch.space }) != space {
            return Err(Error::argument("symbols of the contexts", space.vocab - 3, lines.vocab.len()));
        }
        let contexts: Vec<_> = (0..lines.batch.rows).map(|row| lines.batch.content(row)).collect();
        Contexts::new(space, &contexts, draws)
    }

    /// The same contexts in the memory of `backend`.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn upload<B: Backend>(&self, backend: &B) -> Result<Contexts<B>> {
        let mut tokens = backend.zeros(self.tokens.len(), "contexts")?;
        let mut lengths = backend.zeros(self.lengths.len(), "context lengths")?;
        backend.upload(&self.tokens, &mut tokens)?;
        backend.upload(&self.lengths, &mut lengths)?;
        Ok(Contexts { space: self.space, tokens, lengths, draws: self.draws })
    }

    /// All contexts in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[Token]> {
        (0..self.len()).map(|number| self.context(number))
    }

    /// Context `number`.
    pub fn context(&self, number: usize) -> &[Token] {
        &self.tokens[number * self.space.longest as usize..][..self.lengths[number] as usize]
    }
}

impl<B: Backend> Batch<B> {
    /// Puts before each row of the capacity the context that the draw of its number continues, for a sampler to go on from.
    ///
    /// # Errors
    /// Another space.
    pub fn begin(&mut self, backend: &B, contexts: &Contexts<B>, draw: Draw) -> Result<()> {
        if self.space != contexts.space {
            return Err(Error::argument(
                "space of contexts",
                format!("{:?}", self.space),
                format!("{:?}", contexts.space),
            ));
        }
        backend.begin(contexts, draw, self)
    }
}
