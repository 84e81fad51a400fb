//! Models that are followed token by token: what sequential Monte Carlo needs of them.

use rayon::prelude::*;

use super::Markov;
use crate::backend::Cpu;
use crate::error::{Result, expect_len};
use crate::tokens::{Space, Token};

/// A model that extends a set of prefixes side by side, each of which can be dropped or doubled on the way.
///
/// Values of a prefix do not depend on those beside it.
pub trait Stepper {
    /// The states of the prefixes.
    type Prefixes;

    /// The space of sequences.
    fn space(&self) -> Space;

    /// `rows` empty prefixes; writes log π(· | empty) of each to `log_probs` (`[rows, V]`, nats; −∞ for BOS and PAD).
    ///
    /// # Errors
    /// Another length of `log_probs`.
    fn begin(&self, rows: usize, log_probs: &mut [f32]) -> Result<Self::Prefixes>;

    /// Appends one token to each prefix (`[rows]`; what follows EOS is of no meaning, and may be any token) and writes
    /// log π(· | prefix).
    ///
    /// # Errors
    /// Another length.
    fn step(&self, prefixes: &mut Self::Prefixes, tokens: &[Token], log_probs: &mut [f32]) -> Result<()>;

    /// Replaces prefix i by what prefix `ancestors[i]` was, `[rows]`. The caller moves the log-probs itself.
    ///
    /// # Errors
    /// Another length. Panics where an ancestor is no row.
    fn select(&self, prefixes: &mut Self::Prefixes, ancestors: &[u32]) -> Result<()>;
}

/// Contexts of a chain, and how many tokens they have seen.
#[derive(Debug, Clone)]
pub struct MarkovPrefixes {
    contexts: Vec<usize>,
    position: usize,
}

impl Markov {
    fn write_rows(&self, prefixes: &MarkovPrefixes, log_probs: &mut [f32]) -> Result<()> {
        let vocab = self.width();
        expect_len("log-probs", prefixes.contexts.len() * vocab, log_probs.len())?;
        let rows = log_probs.par_chunks_exact_mut(vocab).zip(&prefixes.contexts);
        rows.for_each(|(out, &context)| out.copy_from_slice(self.row(prefixes.position, context)));
        Ok(())
    }

    fn width(&self) -> usize {
        super::Scorer::<Cpu>::space(self).vocab as usize
    }
}

impl Stepper for Markov {
    type Prefixes = MarkovPrefixes;

    fn space(&self) -> Space {
        super::Scorer::<Cpu>::space(self)
    }

    fn begin(&self, rows: usize, log_probs: &mut [f32]) -> Result<MarkovPrefixes> {
        let prefixes = MarkovPrefixes { contexts: vec![self.start_context(); rows], position: 0 };
        self.write_rows(&prefixes, log_probs)?;
        Ok(prefixes)
    }

    fn step(&self, prefixes: &mut MarkovPrefixes, tokens: &[Token], log_probs: &mut [f32]) -> Result<()> {
        expect_len("tokens", prefixes.contexts.len(), tokens.len())?;
        expect_len("log-probs", prefixes.contexts.len() * self.width(), log_probs.len())?;
        for (context, &token) in prefixes.contexts.iter_mut().zip(tokens) {
            *context = self.next_context(*context, token);
        }
        prefixes.position += 1;
        self.write_rows(prefixes, log_probs)
    }

    fn select(&self, prefixes: &mut MarkovPrefixes, ancestors: &[u32]) -> Result<()> {
        expect_len("ancestors", prefixes.contexts.len(), ancestors.len())?;
        prefixes.contexts = ancestors.iter().map(|&row| prefixes.contexts[row as usize]).collect();
        Ok(())
    }
}
