//! Logits by position and state of an automaton: the policy that contains the exact target of a chain and automaton
//! features, so that what an objective converges to is not blurred by what a network can express.

use std::path::Path;

use rayon::prelude::*;

use super::{
    Coefficients, OptimizerState, Policy, PolicyState, Sampler, Scorer, check_batch, check_guided, check_sample,
    draw_token, token_log_prob,
};
use crate::adam::{AdamKernel, AdamOptions, AdamState, GradientNorms};
use crate::backend::Cpu;
use crate::checkpoint::{Tensor, digest};
use crate::error::{Error, Result, expect_len};
use crate::exact::Guide;
use crate::rng::Draw;
use crate::tokens::{Batch, Space, Token};

/// The name of the one tensor of a saved table.
const TENSOR: &str = "tabular.logits";

/// A table of logits, `[longest, states, V]`, trained by weighted gradients like any policy.
///
/// The states are those of a [`Guide`], of which it takes the transitions and not the values: with the guide of a
/// [`LookAhead`](crate::exact::LookAhead) the states join the chain's context with the automaton's, and the table contains
/// p(x) ∝ chain(x)·b(x)·exp⟨λ, φ(x)⟩.
#[derive(Clone)]
pub struct Tabular {
    space: Space,
    states: usize,
    /// `[states, V]`: the state after each token.
    next: Vec<u32>,
    logits: Vec<f32>,
    gradient: Vec<f32>,
    adam: AdamState<Cpu>,
}

impl Tabular {
    /// The uniform policy over the states of `automaton`.
    ///
    /// # Errors
    /// A table that cannot be counted.
    pub fn new(automaton: &Guide) -> Result<Self> {
        let (space, states) = (automaton.space, automaton.states);
        let after = |state: usize| (0..space.vocab).map(move |token| automaton.after(state as u32, token));
        let next = (0..states).flat_map(after).collect();
        let len = (space.longest as usize)
            .checked_mul(states * space.vocab as usize)
            .filter(|len| *len <= 1 << 32)
            .ok_or_else(|| Error::argument("states of a table", "at most 2^32 logits", states))?;
        let mut this = Tabular {
            space,
            states,
            next,
            logits: vec![0.0; len],
            gradient: vec![0.0; len],
            adam: AdamState::new(&Cpu, len)?,
        };
        for row in this.logits.chunks_exact_mut(space.vocab as usize) {
            (0..space.vocab)
                .filter(|&token| !space.is_output(token))
                .for_each(|token| row[token as usize] = f32::NEG_INFINITY);
        }
        Ok(this)
    }

    /// The logits, `[longest, states, V]`; −∞ for what is no output.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The stored gradient, `[longest, states, V]`.
    pub fn gradients(&self) -> &[f32] {
        &self.gradient
    }

    /// Replaces all logits; those of what is no output stay −∞.
    ///
    /// # Errors
    /// Another number, a NaN or +∞.
    pub fn set_logits(&mut self, logits: &[f32]) -> Result<()> {
        expect_len("logits", self.logits.len(), logits.len())?;
        if let Some(at) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(Error::not_a_number("logit", at.to_string()));
        }
        for (at, (to, &from)) in self.logits.iter_mut().zip(logits).enumerate() {
            if self.space.is_output((at % self.space.vocab as usize) as Token) {
                *to = from;
            }
        }
        Ok(())
    }

    /// What a state says of the table.
    fn description(&self) -> serde_json::Value {
        let transitions = format!("{:016x}", digest(0, bytemuck::cast_slice(&self.next)));
        serde_json::json!({ "kind": "tabular", "space": self.space, "states": self.states, "transitions": transitions })
    }

    fn start(&self, position: usize, state: u32) -> usize {
        (position * self.states + state as usize) * self.space.vocab as usize
    }

    fn row(&self, position: usize, state: u32) -> &[f32] {
        &self.logits[self.start(position, state)..][..self.space.vocab as usize]
    }

    fn after(&self, state: u32, token: Token) -> u32 {
        self.next[state as usize * self.space.vocab as usize + token as usize]
    }

    /// log q and log π of what follows the first `given` tokens of a sequence; with a guide its own state is followed
    /// beside the table's.
    fn log_probs(&self, guide: Option<&Guide>, sequence: &[Token], given: usize) -> (f64, f64) {
        let (mut state, mut guided) = self.states_after(guide, &sequence[..given]);
        let (mut log_q, mut log_model) = (0.0, 0.0);
        for (position, &token) in sequence.iter().enumerate().skip(given) {
            let row = self.row(position, state);
            log_model += token_log_prob(row.len(), |token| row[token], token);
            if let Some(guide) = guide {
                let boosted = |token: usize| row[token] + guide.boost(position, guided, token as Token);
                log_q += token_log_prob(row.len(), boosted, token);
                guided = guide.after(guided, token);
            }
            state = self.after(state, token);
        }
        (if guide.is_some() { log_q } else { log_model }, log_model)
    }

    /// The table's state after `tokens`, and the guide's.
    fn states_after(&self, guide: Option<&Guide>, tokens: &[Token]) -> (u32, u32) {
        let own = tokens.iter().fold(0, |state, &token| self.after(state, token));
        (own, guide.map_or(0, |guide| guide.state_after(tokens)))
    }

    /// Draws what follows the first `given` tokens of one sequence; returns its length, log q and log π.
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
        let (mut state, mut guided) = self.states_after(guide, context);
        let (mut log_q, mut log_model) = (0.0, 0.0);
        for position in given..tokens.len() {
            let row = self.row(position, state);
            let boost = |token: usize| guide.map_or(0.0, |guide| guide.boost(position, guided, token as Token));
            let uniform = draw.uniform(index, position as u32);
            let (token, log_prob) = draw_token(uniform, row.len(), |token| row[token] + boost(token));
            log_q += log_prob;
            log_model += match guide {
                Some(_) => token_log_prob(row.len(), |token| row[token], token),
                None => log_prob,
            };
            tokens[position] = token;
            if token == self.space.eos {
                return (position as u32 + 1, log_q, log_model);
            }
            guided = guide.map_or(0, |guide| guide.after(guided, token));
            state = self.after(state, token);
        }
        (tokens.len() as u32, log_q, log_model)
    }
}

impl Scorer<Cpu> for Tabular {
    fn space(&self) -> Space {
        self.space
    }

    fn score(&mut self, batch: &Batch, log_probs: &mut [f64]) -> Result<()> {
        check_batch(self.space, batch.space)?;
        expect_len("log-probs", batch.rows, log_probs.len())?;
        let this = &*self;
        let given = |row: usize| batch.given[row] as usize;
        let score = |(row, out): (usize, &mut f64)| *out = this.log_probs(None, batch.sequence(row), given(row)).1;
        log_probs.par_iter_mut().enumerate().for_each(score);
        Ok(())
    }
}

impl Sampler<Cpu> for Tabular {
    fn sample(
        &mut self,
        draw: Draw,
        guide: Option<&Guide>,
        batch: &mut Batch,
        log_q: &mut [f64],
        log_model: &mut [f64],
    ) -> Result<()> {
        check_sample(self.space, guide, batch, log_q.len(), log_model.len())?;
        batch.rows = batch.capacity();
        let this = &*self;
        let rows = batch.tokens.par_chunks_exact_mut(self.space.longest as usize).zip(&mut batch.lengths);
        let rows = rows.zip(&batch.given).zip(log_q.par_iter_mut().zip(log_model)).enumerate();
        rows.for_each(|(row, (((tokens, length), &given), (log_q, log_model)))| {
            (*length, *log_q, *log_model) = this.draw(draw, row as u64, guide, tokens, given as usize);
        });
        Ok(())
    }

    fn score_guided(&mut self, guide: &Guide, batch: &Batch, log_q: &mut [f64]) -> Result<()> {
        check_guided(self.space, guide, batch, log_q.len())?;
        let this = &*self;
        let given = |row: usize| batch.given[row] as usize;
        let score =
            |(row, out): (usize, &mut f64)| *out = this.log_probs(Some(guide), batch.sequence(row), given(row)).0;
        log_q.par_iter_mut().enumerate().for_each(score);
        Ok(())
    }
}

impl Policy<Cpu> for Tabular {
    /// Row by row, in order: a table has too little work to share.
    fn gradient(&mut self, batch: &Batch, coefficients: &Coefficients<'_, Cpu>, log_probs: &mut [f64]) -> Result<()> {
        check_batch(self.space, batch.space)?;
        coefficients.check(batch.rows, log_probs.len())?;
        coefficients.check_weights()?;
        self.gradient.fill(0.0);
        for (row, log_prob) in log_probs.iter_mut().enumerate() {
            if coefficients.skips(row) {
                *log_prob = f64::NAN;
                continue;
            }
            let (sequence, given) = (batch.sequence(row), batch.given[row] as usize);
            *log_prob = self.log_probs(None, sequence, given).1;
            let coefficient = coefficients.of(row, *log_prob);
            let (mut state, _) = self.states_after(None, &sequence[..given]);
            for (position, &token) in sequence.iter().enumerate().skip(given) {
                let start = self.start(position, state);
                let logits = &self.logits[start..][..self.space.vocab as usize];
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let total: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
                let gradient = &mut self.gradient[start..][..logits.len()];
                for (gradient, logit) in gradient.iter_mut().zip(logits) {
                    *gradient -= coefficient * ((logit - max).exp() / total);
                }
                gradient[token as usize] += coefficient;
                state = self.after(state, token);
            }
        }
        Ok(())
    }

    fn update(&mut self, adam: &AdamOptions) -> Result<()> {
        self.update_at(adam, &[1.0])
    }

    fn update_at(&mut self, adam: &AdamOptions, rate: &[f32]) -> Result<()> {
        Cpu.adam(adam, Some(rate), &mut self.adam, &self.gradient, &mut self.logits)
    }

    fn copy_from(&mut self, from: &Self) -> Result<()> {
        check_batch(self.space, from.space)?;
        expect_len("states of the table", self.states, from.states)?;
        self.next.copy_from_slice(&from.next);
        self.logits.copy_from_slice(&from.logits);
        Ok(())
    }

    fn try_clone(&self) -> Result<Self> {
        Ok(self.clone())
    }

    fn reset_optimizer(&mut self) -> Result<()> {
        self.adam = AdamState::new(&Cpu, self.logits.len())?;
        Ok(())
    }

    fn take_norms(&mut self) -> Result<GradientNorms> {
        self.adam.take_norms(&Cpu)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let shape = [self.space.longest as usize, self.states, self.space.vocab as usize];
        let metadata = serde_json::json!({ "kind": "tabular", "space": self.space, "next": self.next });
        crate::checkpoint::save(path, &metadata, vec![Tensor::new(TENSOR, &shape, &self.logits)])
    }

    fn state(&self, optimizer: bool) -> Result<PolicyState> {
        let named = |values: &[f32]| vec![(TENSOR.to_string(), values.to_vec())];
        let AdamState { first, second, steps, norms } = &self.adam;
        let optimizer = optimizer.then(|| OptimizerState {
            first: named(first),
            second: named(second),
            steps: steps[0],
            norms: norms[0],
        });
        Ok(PolicyState { model: self.description().to_string(), parameters: named(&self.logits), optimizer })
    }

    fn restore(&mut self, state: &PolicyState) -> Result<()> {
        state.check(&self.description(), || std::iter::once((TENSOR, self.logits.len())))?;
        self.logits.copy_from_slice(&state.parameters[0].1);
        if let Some(OptimizerState { first, second, steps, norms }) = &state.optimizer {
            self.adam.first.copy_from_slice(&first[0].1);
            self.adam.second.copy_from_slice(&second[0].1);
            (self.adam.steps[0], self.adam.norms[0]) = (*steps, *norms);
        }
        Ok(())
    }
}

impl Tabular {
    /// Reads what [`Policy::save`] wrote.
    ///
    /// # Errors
    /// A file that cannot be read or is no such table.
    pub fn load(path: &Path) -> Result<Self> {
        let file = crate::checkpoint::load(path)?;
        file.expect_kind("tabular")?;
        let (space, next): (Space, Vec<u32>) = (file.field("space")?, file.field("next")?);
        let (_, logits) = file.tensor(TENSOR)?;
        let states = next.len() / (space.vocab as usize).max(1);
        let (log_h, log_end) = (vec![0.0; (space.longest as usize + 1) * states], vec![0.0; states]);
        let automaton = Guide::new(space, &next, log_h, log_end).map_err(|error| Error::file(path, error))?;
        let mut this = Tabular::new(&automaton)?;
        this.set_logits(&logits).map_err(|error| Error::file(path, error))?;
        Ok(this)
    }
}
