//! The target p(x) = chain(x)·b(x)·exp⟨λ, φ(x)⟩ / Z, known exactly.

use rayon::prelude::*;

use super::LookAhead;
use super::lookahead::log_terminal;
use crate::backend::Cpu;
use crate::error::{Error, Result, expect_len};
use crate::features::{Automaton, FeatureSet, explore};
use crate::models::{Markov, Scorer, check_batch};
use crate::potential::{Potential, Role};
use crate::rng::Draw;
use crate::tokens::{Batch, Space, Token};

/// The most transitions of a walk over pairs of states.
const PAIRS: usize = 1 << 26;

/// The normalised target of a chain, automaton features and their roles.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::exact::Exact;
/// use ebm_dpg::features::{Feature, FeatureSet};
/// use ebm_dpg::models::Markov;
/// use ebm_dpg::potential::{Potential, Role};
/// use ebm_dpg::tokens::Space;
///
/// // Three fair coins conditioned on two ones in a row: 110, 011 and 111 of eight strings.
/// let space = Space::new(2, 4)?;
/// let features = FeatureSet::new(space).with("motif", Feature::Contains(vec![1, 1]))?;
/// let potential = Potential::new(&Cpu, &[Role::Require(1.0)])?;
/// let target = Exact::new(&Markov::noise(space, 3)?, &features, &potential, 1000)?;
/// assert!((target.log_z() - (3.0_f64 / 8.0).ln()).abs() < 1e-6);
/// assert!((target.entropy() - 3.0_f64.ln()).abs() < 1e-6);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
#[derive(Clone)]
pub struct Exact {
    pub(super) chain: Markov,
    features: FeatureSet,
    pub(super) automaton: Automaton,
    roles: Vec<Role>,
    ahead: LookAhead,
    /// Probability under p that a content ends in each automaton state, `[automaton.states()]`.
    pub(super) ends: Vec<f64>,
    log_terminal: Vec<f64>,
    entropy: f64,
    expected_log_base: f64,
}

impl Exact {
    /// The target of `chain` under `potential`, whose roles are those of `features` in order; `limit` bounds the
    /// states of their automaton.
    ///
    /// # Errors
    /// A feature that is no automaton, another number of roles, an automaton or a table too large, and
    /// [`Error::NoAnswer`] where no sequence meets the requirements.
    pub fn new(chain: &Markov, features: &FeatureSet, potential: &Potential, limit: usize) -> Result<Self> {
        expect_len("roles", features.len(), potential.roles().len())?;
        let which: Vec<usize> = (0..features.len()).collect();
        let automaton = features.automaton(&which, limit)?;
        Self::with_automaton(chain, features, automaton, potential)
    }

    pub(super) fn with_automaton(
        chain: &Markov,
        features: &FeatureSet,
        automaton: Automaton,
        potential: &Potential,
    ) -> Result<Self> {
        let log_terminal = log_terminal(&automaton, potential);
        let mut this = Exact {
            ahead: LookAhead::new(chain, &automaton, &log_terminal)?,
            chain: chain.clone(),
            features: features.clone(),
            roles: potential.roles().to_vec(),
            ends: vec![0.0; automaton.states()],
            automaton,
            log_terminal,
            entropy: 0.0,
            expected_log_base: 0.0,
        };
        this.forward();
        Ok(this)
    }

    /// The probabilities of all states position by position, and the expectations that are sums over them.
    fn forward(&mut self) {
        let (ahead, eos) = (&self.ahead, self.space().eos);
        let mut mass = vec![0.0; ahead.states()];
        mass[0] = 1.0;
        for position in 0..self.space().longest as usize {
            let mut after = vec![0.0; ahead.states()];
            for state in (0..ahead.states() as u32).filter(|&state| mass[state as usize] > 0.0) {
                let (automaton_state, context) = ahead.states[state as usize];
                let row = self.chain.row(position, context as usize);
                for (token, log_p) in ahead.outcomes(&self.chain, position, state) {
                    let p = mass[state as usize] * log_p.exp();
                    self.entropy -= p * log_p;
                    self.expected_log_base += p * f64::from(row[token as usize]);
                    if token == eos {
                        self.ends[automaton_state as usize] += p;
                    } else {
                        after[ahead.after(state, token) as usize] += p;
                    }
                }
            }
            mass = after;
        }
        for (state, &p) in mass.iter().enumerate() {
            self.ends[ahead.states[state].0 as usize] += p;
        }
    }

    /// The space of sequences.
    pub fn space(&self) -> Space {
        self.automaton.space()
    }

    /// The chain r(x) in p.
    pub fn chain(&self) -> &Markov {
        &self.chain
    }

    /// The features in p.
    pub fn features(&self) -> &FeatureSet {
        &self.features
    }

    /// One role per feature.
    pub fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// The product automaton of all features.
    pub fn automaton(&self) -> &Automaton {
        &self.automaton
    }

    /// The look-ahead behind it; its guide makes the chain sample p.
    pub fn look_ahead(&self) -> &LookAhead {
        &self.ahead
    }

    /// log Z = log Σ_x chain(x)·b(x)·exp⟨λ, φ(x)⟩.
    pub fn log_z(&self) -> f64 {
        self.ahead.log_z()
    }

    /// Entropy −E_p[log p] in nats.
    pub fn entropy(&self) -> f64 {
        self.entropy
    }

    /// E_p[log chain(x)] in nats, −1 times the cross-entropy of the base on p.
    pub fn expected_log_base(&self) -> f64 {
        self.expected_log_base
    }

    /// KL(p‖chain) = E_p[log b + ⟨λ, φ⟩] − log Z in nats.
    pub fn kl_from_base(&self) -> f64 {
        // Forbidden ends have probability 0 and −∞ as value: they contribute nothing.
        let terms = self.ends.iter().zip(&self.log_terminal).filter(|(p, _)| **p > 0.0);
        terms.map(|(p, value)| p * value).sum::<f64>() - self.log_z()
    }

    /// E_p[log model(x)] in nats, so that KL(p‖model) = −entropy − this; −∞ where the model misses a part of p.
    ///
    /// # Errors
    /// Another space, or too many pairs of a state of p and a context of the model.
    pub fn expected_log_prob(&self, model: &Markov) -> Result<f64> {
        check_batch(self.space(), Scorer::<Cpu>::space(model))?;
        let (ahead, eos, vocab) = (&self.ahead, self.space().eos, self.space().vocab as usize);
        let step = |(state, context): (u32, u32), token: usize| {
            let token = token as Token;
            let stays = !self.space().is_content(token);
            if stays {
                (state, context)
            } else {
                (ahead.after(state, token), model.next_context(context as usize, token) as u32)
            }
        };
        let (pairs, next) = explore((0, model.start_context() as u32), vocab, PAIRS / vocab, step)
            .ok_or_else(|| Error::argument("model", format!("at most {} pairs of states", PAIRS / vocab), "more"))?;
        let (mut mass, mut total) = (vec![0.0; pairs.len()], 0.0);
        mass[0] = 1.0;
        for position in 0..self.space().longest as usize {
            let mut after = vec![0.0; pairs.len()];
            for (pair, &(state, context)) in pairs.iter().enumerate().filter(|(pair, _)| mass[*pair] > 0.0) {
                let row = model.row(position, context as usize);
                for (token, log_p) in ahead.outcomes(&self.chain, position, state) {
                    let p = mass[pair] * log_p.exp();
                    // Underflow to 0 must not meet −∞.
                    total += if p > 0.0 { p * f64::from(row[token as usize]) } else { 0.0 };
                    if token != eos {
                        after[next[pair * vocab + token as usize] as usize] += p;
                    }
                }
            }
            mass = after;
        }
        Ok(total)
    }

    /// E_p[f(automaton state in which the content ends)].
    pub fn expectation(&self, f: impl Fn(u32) -> f64) -> f64 {
        let terms = self.ends.iter().enumerate().filter(|(_, p)| **p > 0.0);
        terms.map(|(state, p)| p * f(state as u32)).sum()
    }

    /// `E_p[φ]`, `[F]`.
    pub fn moments(&self) -> Vec<f64> {
        let value = |at| move |state| f64::from(self.automaton.values(state)[at]);
        (0..self.features.len()).map(|at| self.expectation(value(at))).collect()
    }

    /// `Cov_p[φ]`, `[F, F]`.
    pub fn covariance(&self) -> Vec<f64> {
        let mean = self.moments();
        let centred = |state, at: usize| f64::from(self.automaton.values(state)[at]) - mean[at];
        let n = mean.len();
        (0..n * n).map(|ij| self.expectation(|state| centred(state, ij / n) * centred(state, ij % n))).collect()
    }

    /// log p(x), exactly normalised; −∞ where the sequence is impossible.
    ///
    /// # Errors
    /// The sequence is no member of the space.
    pub fn log_prob(&self, sequence: &[Token]) -> Result<f64> {
        self.space().check(sequence)?;
        Ok(self.log_prob_of(sequence))
    }

    fn log_prob_of(&self, sequence: &[Token]) -> f64 {
        let (mut context, mut state, mut log_base) = (self.chain.start_context(), 0, 0.0);
        for (position, &token) in sequence.iter().enumerate() {
            log_base += f64::from(self.chain.row(position, context)[token as usize]);
            (context, state) = (self.chain.next_context(context, token), self.automaton.next(state, token));
        }
        log_base + self.log_terminal[state as usize] - self.log_z()
    }

    /// log p(token | prefix) for every token, `[V]`; the prefix holds content tokens only.
    ///
    /// # Errors
    /// A prefix that is no proper prefix of any sequence, or one of probability 0.
    pub fn next_log_probs(&self, prefix: &[Token]) -> Result<Vec<f64>> {
        let space = self.space();
        if prefix.len() >= space.longest as usize {
            return Err(Error::argument("prefix", format!("fewer than {} tokens", space.longest), prefix.len()));
        }
        if let Some(&token) = prefix.iter().find(|&&token| !space.is_content(token)) {
            return Err(Error::argument("prefix", "content tokens", token));
        }
        let mut state = 0;
        for (position, &token) in prefix.iter().enumerate() {
            if self.ahead.log_conditional(&self.chain, position, state, token) == f64::NEG_INFINITY {
                return Err(Error::argument("prefix", "one of positive probability", format!("{prefix:?}")));
            }
            state = self.ahead.after(state, token);
        }
        let log_prob = |token| self.ahead.log_conditional(&self.chain, prefix.len(), state, token);
        Ok((0..space.vocab).map(log_prob).collect())
    }

    /// Fills `batch` to its capacity with exact samples of p, by inverse CDF from the uniforms of `draw`; `log_p`
    /// (`[capacity]`) receives their log p(x).
    ///
    /// # Errors
    /// Another space, another length of `log_p`. Nothing is written then.
    pub fn sample(&self, draw: Draw, batch: &mut Batch, log_p: &mut [f64]) -> Result<()> {
        check_batch(self.space(), batch.space)?;
        expect_len("log-probs", batch.capacity(), log_p.len())?;
        batch.rows = batch.capacity();
        let rows = batch.tokens.par_chunks_exact_mut(self.space().longest as usize);
        rows.zip(&mut batch.lengths).zip(log_p).enumerate().for_each(|(row, ((tokens, length), log_p))| {
            *length = self.draw(|position| f64::from(draw.uniform(row as u64, position as u32)), tokens);
            *log_p = self.log_prob_of(&tokens[..*length as usize]);
        });
        Ok(())
    }

    /// Draws one sequence into `tokens`, the rest PAD; returns its length.
    fn draw(&self, uniform: impl Fn(usize) -> f64, tokens: &mut [Token]) -> u32 {
        let space = self.space();
        tokens.fill(space.pad);
        let mut state = 0;
        for (position, slot) in tokens.iter_mut().enumerate() {
            let (threshold, mut cumulated) = (uniform(position), 0.0);
            for (token, log_p) in self.ahead.outcomes(&self.chain, position, state) {
                // Rounding may leave the sum below the threshold: the last possible token stands then.
                *slot = token;
                cumulated += log_p.exp();
                if cumulated > threshold {
                    break;
                }
            }
            if *slot == space.eos {
                return position as u32 + 1;
            }
            state = self.ahead.after(state, *slot);
        }
        tokens.len() as u32
    }
}

impl Scorer<Cpu> for Exact {
    fn space(&self) -> Space {
        self.automaton.space()
    }

    fn score(&mut self, batch: &Batch, log_probs: &mut [f64]) -> Result<()> {
        check_batch(Exact::space(self), batch.space)?;
        expect_len("log-probs", batch.rows, log_probs.len())?;
        let this = &*self;
        log_probs.par_iter_mut().enumerate().for_each(|(row, out)| *out = this.log_prob_of(batch.sequence(row)));
        Ok(())
    }
}
