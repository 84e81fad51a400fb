//! An n-gram table: the next token depends on the last `order` tokens and, if wanted, on the position.

use std::path::Path;

use rayon::prelude::*;

use super::{Sampler, Scorer};
use crate::backend::Cpu;
use crate::checkpoint::Tensor;
use crate::error::{Error, Result, expect_len};
use crate::exact::Guide;
use crate::rng::Draw;
use crate::tokens::{Batch, Space, Token};

/// A Markov chain over tokens. Context c at position t is the number whose base-V digits are the last `order` tokens
/// (BOS before the start); `log_probs[t, c, v]` is the log-probability of token v there. A homogeneous chain has one
/// position for all t.
#[derive(Debug, Clone, PartialEq)]
pub struct Markov {
    space: Space,
    order: u32,
    positions: u32,
    log_probs: Vec<f32>,
}

impl Markov {
    /// A chain from log-probabilities `[positions, V^order, V]`, where BOS and PAD must have −∞ and each row must sum
    /// to 1. `positions` is 1 (homogeneous) or at least `space.longest`.
    ///
    /// # Errors
    /// A table of another size, NaN, or a row that is not normalised to 1e-4.
    pub fn new(space: Space, order: u32, positions: u32, mut log_probs: Vec<f32>) -> Result<Self> {
        if positions != 1 && positions < space.longest {
            return Err(Error::argument("Markov positions", format!("1 or {} and more", space.longest), positions));
        }
        let vocab = space.vocab as usize;
        let rows = contexts(space, order)?.saturating_mul(positions as usize);
        expect_len("Markov table", rows.saturating_mul(vocab), log_probs.len())?;
        for (at, row) in log_probs.chunks_exact_mut(vocab).enumerate() {
            let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            // NaN fails this comparison too.
            if !((total - 1.0).abs() <= 1e-4) {
                return Err(Error::argument(format!("Markov row {at}"), "probabilities summing to 1", total));
            }
            if row[space.bos as usize] != f32::NEG_INFINITY || row[space.pad as usize] != f32::NEG_INFINITY {
                return Err(Error::argument(format!("Markov row {at}"), "−∞ for BOS and PAD", format!("{row:?}")));
            }
            let log_total = total.ln();
            row.iter_mut().for_each(|l| *l = ((f64::from(*l) - log_total) as f32).min(0.0));
        }
        Ok(Markov { space, order, positions, log_probs })
    }

    /// Uniform noise over the content tokens of strings of exactly `length` tokens, then EOS.
    pub fn noise(space: Space, length: u32) -> Result<Self> {
        if length == 0 || length >= space.longest {
            let expected = format!("1 to {} tokens before EOS", space.longest - 1);
            return Err(Error::argument("noise length", expected, length));
        }
        let vocab = space.vocab as usize;
        let mut table = vec![f32::NEG_INFINITY; vocab * space.longest as usize];
        let symbols = (0..space.vocab).filter(|&t| space.is_content(t)).count();
        for (position, row) in table.chunks_exact_mut(vocab).enumerate() {
            for token in 0..space.vocab {
                if position < length as usize && space.is_content(token) {
                    row[token as usize] = -(symbols as f32).ln();
                } else if position >= length as usize && token == space.eos {
                    row[token as usize] = 0.0;
                }
            }
        }
        Markov::new(space, 0, space.longest, table)
    }

    /// The chain fitted to the sequences of `batch` by counting, with `smoothing` added to the count of every token a
    /// model may emit (more than 0, so that the support is complete). With `by_position`, each position has its own
    /// table.
    ///
    /// # Errors
    /// A smoothing that is not positive, a table too large.
    pub fn fit(batch: &Batch, order: u32, by_position: bool, smoothing: f64) -> Result<Self> {
        if !(smoothing > 0.0 && smoothing.is_finite()) {
            return Err(Error::argument("Markov smoothing", "a positive number", smoothing));
        }
        let space = batch.space;
        let (vocab, contexts) = (space.vocab as usize, contexts(space, order)?);
        let positions = if by_position { space.longest } else { 1 };
        let mut counts =
            crate::backend::Memory::zeros::<f64>(&Cpu, positions as usize * contexts * vocab, "Markov counts")?;
        for sequence in batch.iter() {
            let mut context = start_context(space, order);
            for (position, &token) in sequence.iter().enumerate() {
                let slot = if by_position { position } else { 0 };
                counts[(slot * contexts + context) * vocab + token as usize] += 1.0;
                context = next_context(space, order, context, token);
            }
        }
        let mut log_probs = vec![f32::NEG_INFINITY; counts.len()];
        for (row, out) in counts.chunks_exact(vocab).zip(log_probs.chunks_exact_mut(vocab)) {
            let outputs = || (0..space.vocab).filter(|&t| space.is_output(t)).map(|t| t as usize);
            let total: f64 = outputs().map(|t| row[t] + smoothing).sum();
            outputs().for_each(|t| out[t] = ((row[t] + smoothing) / total).ln() as f32);
        }
        Markov::new(space, order, positions, log_probs)
    }

    /// How many previous tokens the next one depends on.
    pub fn order(&self) -> u32 {
        self.order
    }

    /// Number of position tables: 1 for a homogeneous chain.
    pub fn positions(&self) -> u32 {
        self.positions
    }

    /// The context before the first token.
    pub fn start_context(&self) -> usize {
        start_context(self.space, self.order)
    }

    /// The context after `token` was read in `context`.
    #[inline]
    pub fn next_context(&self, context: usize, token: Token) -> usize {
        next_context(self.space, self.order, context, token)
    }

    /// Number of contexts, V^order.
    pub fn contexts(&self) -> usize {
        (self.space.vocab as usize).pow(self.order)
    }

    /// log p(· | context) at `position`, `[V]`.
    #[inline]
    pub fn row(&self, position: usize, context: usize) -> &[f32] {
        let vocab = self.space.vocab as usize;
        let slot = if self.positions == 1 { 0 } else { position };
        &self.log_probs[(slot * self.contexts() + context) * vocab..][..vocab]
    }

    /// The table `[positions, V^order, V]`.
    pub fn log_probs(&self) -> &[f32] {
        &self.log_probs
    }

    /// log π of what follows the first `given` tokens.
    fn log_prob(&self, sequence: &[Token], given: usize) -> f64 {
        let mut context = self.start_context();
        let mut total = 0.0;
        for (position, &token) in sequence.iter().enumerate() {
            if position >= given {
                total += f64::from(self.row(position, context)[token as usize]);
            }
            context = self.next_context(context, token);
        }
        total
    }

    fn guided_log_prob(&self, guide: &Guide, sequence: &[Token], given: usize) -> f64 {
        let (mut context, mut state, mut total) = (self.start_context(), 0, 0.0);
        for (position, &token) in sequence.iter().enumerate() {
            let row = self.row(position, context);
            let guided = |token: usize| row[token] + guide.boost(position, state, token as Token);
            if position >= given {
                total += super::token_log_prob(row.len(), guided, token);
            }
            state = guide.after(state, token);
            context = self.next_context(context, token);
        }
        total
    }

    /// Draws what follows the first `given` tokens of one sequence; returns (length, log q, log π).
    fn draw(
        &self,
        draw: Draw,
        index: u64,
        guide: Option<&Guide>,
        tokens: &mut [Token],
        given: usize,
    ) -> (u32, f64, f64) {
        let (context, drawn) = tokens.split_at_mut(given);
        drawn.fill(self.space.pad);
        let mut state = guide.map_or(0, |guide| guide.state_after(context));
        let mut context =
            context.iter().fold(self.start_context(), |context, &token| self.next_context(context, token));
        let (mut log_q, mut log_model) = (0.0, 0.0);
        for position in given..tokens.len() {
            let row = self.row(position, context);
            let uniform = draw.uniform(index, position as u32);
            let guided = |token: usize| match guide {
                Some(guide) => row[token] + guide.boost(position, state, token as Token),
                None => row[token],
            };
            let (token, log_prob) = super::draw_token(uniform, row.len(), guided);
            let own = f64::from(row[token as usize]);
            log_q += if guide.is_some() { log_prob } else { own };
            log_model += own;
            tokens[position] = token;
            if token == self.space.eos {
                return (position as u32 + 1, log_q, log_model);
            }
            state = guide.map_or(0, |guide| guide.after(state, token));
            context = self.next_context(context, token);
        }
        (tokens.len() as u32, log_q, log_model)
    }
}

fn contexts(space: Space, order: u32) -> Result<usize> {
    (space.vocab as usize)
        .checked_pow(order)
        .filter(|&n| n <= 1 << 28)
        .ok_or_else(|| Error::argument("Markov order", format!("{}^order contexts up to 2^28", space.vocab), order))
}

fn start_context(space: Space, order: u32) -> usize {
    (0..order).fold(0, |context, _| next_context(space, order, context, space.bos))
}

fn next_context(space: Space, order: u32, context: usize, token: Token) -> usize {
    let vocab = space.vocab as usize;
    if order == 0 { 0 } else { (context % vocab.pow(order - 1)) * vocab + token as usize }
}

impl Scorer<Cpu> for Markov {
    fn space(&self) -> Space {
        self.space
    }

    fn score(&mut self, batch: &Batch, log_probs: &mut [f64]) -> Result<()> {
        super::check_batch(self.space, batch.space)?;
        expect_len("log-probs", batch.rows, log_probs.len())?;
        let this = &*self;
        let score =
            |(row, out): (usize, &mut f64)| *out = this.log_prob(batch.sequence(row), batch.given[row] as usize);
        log_probs.par_iter_mut().enumerate().for_each(score);
        Ok(())
    }
}

impl Sampler<Cpu> for Markov {
    fn sample(
        &mut self,
        draw: Draw,
        guide: Option<&Guide>,
        batch: &mut Batch,
        log_q: &mut [f64],
        log_model: &mut [f64],
    ) -> Result<()> {
        super::check_sample(self.space, guide, batch, log_q.len(), log_model.len())?;
        batch.rows = batch.capacity();
        let this = &*self;
        batch
            .tokens
            .par_chunks_exact_mut(self.space.longest as usize)
            .zip(&mut batch.lengths)
            .zip(&batch.given)
            .zip(log_q.par_iter_mut().zip(log_model))
            .enumerate()
            .for_each(|(row, (((tokens, length), &given), (log_q, log_model)))| {
                (*length, *log_q, *log_model) = this.draw(draw, row as u64, guide, tokens, given as usize);
            });
        Ok(())
    }

    fn score_guided(&mut self, guide: &Guide, batch: &Batch, log_q: &mut [f64]) -> Result<()> {
        super::check_guided(self.space, guide, batch, log_q.len())?;
        let this = &*self;
        let score = |(row, out): (usize, &mut f64)| {
            *out = this.guided_log_prob(guide, batch.sequence(row), batch.given[row] as usize);
        };
        log_q.par_iter_mut().enumerate().for_each(score);
        Ok(())
    }
}

/// The name of the one tensor in a saved chain.
const TENSOR: &str = "markov.log_probs";

impl Markov {
    /// Writes the table as safetensors: to a temporary file, synced, then renamed.
    pub fn save(&self, path: &Path) -> Result<()> {
        let shape = [self.positions as usize, self.contexts(), self.space.vocab as usize];
        let metadata = serde_json::json!({ "kind": "markov", "space": self.space, "order": self.order });
        crate::checkpoint::save(path, &metadata, vec![Tensor::new(TENSOR, &shape, &self.log_probs)])
    }

    /// Reads what [`Markov::save`] wrote.
    pub fn load(path: &Path) -> Result<Self> {
        let file = crate::checkpoint::load(path)?;
        let space: Space = file.field("space")?;
        let order: u32 = file.field("order")?;
        file.expect_kind("markov")?;
        let (shape, log_probs) = file.tensor(TENSOR)?;
        Markov::new(space, order, shape.first().copied().unwrap_or(0) as u32, log_probs)
            .map_err(|error| Error::file(path, error))
    }
}
