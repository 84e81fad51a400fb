//! The look-ahead h: what is still to be gained from a prefix, by backward dynamic programming.

use rayon::prelude::*;

use super::Guide;
use crate::backend::Cpu;
use crate::error::{Error, Result, expect_len};
use crate::features::{Automaton, FeatureSet, explore};
use crate::models::{Markov, Scorer};
use crate::potential::{Potential, Role};
use crate::tokens::{Space, Token};

/// The most cells of a table: `[longest + 1, states]` values of 8 bytes, `[states, V]` transitions of 4.
const LARGEST_TABLE: usize = 1 << 26;

/// log h_t(s) = log E_chain[exp terminal | t tokens consumed, state s], where a state joins the automaton's state with
/// the chain's context, and `terminal` is a function of the automaton's state at the end of the content:
///
/// h_T(s) = exp terminal(s), h_t(s) = p_t(EOS | s)·exp terminal(s) + Σ_c p_t(c | s)·h_{t+1}(state after c).
///
/// Everything is in log space: no λ is too large, and no possible sequence loses its probability to underflow.
#[derive(Debug, Clone)]
pub struct LookAhead {
    space: Space,
    /// Automaton state and chain context of each state, `[S]`.
    pub(super) states: Vec<(u32, u32)>,
    /// `[S, V]`.
    next: Vec<u32>,
    /// `[longest + 1, S]`.
    log_h: Vec<f64>,
    /// `[S]`.
    log_end: Vec<f64>,
}

impl LookAhead {
    /// The look-ahead of `chain` towards `log_terminal` (`[automaton.states()]`, −∞ where a sequence is forbidden to
    /// end). A sequence cut at the longest length takes the terminal value of its final state.
    ///
    /// # Errors
    /// Different spaces, another length, NaN or +∞ in `log_terminal`, a table too large, and
    /// [`Error::NoAnswer`] where no sequence of the chain has a finite terminal value.
    pub fn new(chain: &Markov, automaton: &Automaton, log_terminal: &[f64]) -> Result<Self> {
        let space = Scorer::<Cpu>::space(chain);
        if space != automaton.space() {
            let (expected, got) = (format!("{space:?}"), format!("{:?}", automaton.space()));
            return Err(Error::argument("space of the automaton", expected, got));
        }
        expect_len("terminal values", automaton.states(), log_terminal.len())?;
        if let Some(at) = log_terminal.iter().position(|value| value.is_nan() || *value == f64::INFINITY) {
            return Err(Error::argument(format!("terminal value {at}"), "a number or −∞", log_terminal[at]));
        }
        let (vocab, positions) = (space.vocab as usize, space.longest as usize + 1);
        let limit = LARGEST_TABLE / vocab.max(positions);
        let step = |(state, context): (u32, u32), token: usize| {
            let token = token as Token;
            if space.is_content(token) {
                (automaton.next(state, token), chain.next_context(context as usize, token) as u32)
            } else {
                (state, context)
            }
        };
        let (states, next) = explore((0, chain.start_context() as u32), vocab, limit, step).ok_or_else(|| {
            Error::argument("look-ahead", format!("at most {limit} pairs of automaton state and context"), "more")
        })?;
        let log_end: Vec<f64> = states.iter().map(|&(state, _)| log_terminal[state as usize]).collect();
        let mut this = LookAhead { space, log_h: vec![0.0; positions * states.len()], states, next, log_end };
        this.backward(chain);
        if this.log_z() == f64::NEG_INFINITY {
            return Err(Error::no_answer("look-ahead", "no sequence of the chain meets the requirements"));
        }
        Ok(this)
    }

    /// The look-ahead of `chain` towards the part of `potential` that automata can compute: all tilts and
    /// requirements on such features. Other features are left out, which keeps a guided proposal exact, only less
    /// sharp. `limit` bounds the automaton's states.
    ///
    /// # Errors
    /// Roles for another number of features, what [`FeatureSet::automaton`] and [`LookAhead::new`] refuse.
    pub fn towards(chain: &Markov, features: &FeatureSet, potential: &Potential, limit: usize) -> Result<Self> {
        expect_len("roles", features.len(), potential.roles().len())?;
        let matters = |at: &usize| features.is_automaton(*at) && potential.roles()[*at] != Role::Ignore;
        let which: Vec<usize> = (0..features.len()).filter(matters).collect();
        let roles: Vec<Role> = which.iter().map(|&at| potential.roles()[at]).collect();
        let automaton = features.automaton(&which, limit)?;
        LookAhead::new(chain, &automaton, &log_terminal(&automaton, &Potential::new(&Cpu, &roles)?))
    }

    /// Number of states S.
    pub fn states(&self) -> usize {
        self.states.len()
    }

    /// log Z = log h_0(start) = log Σ_x chain(x)·exp terminal(x).
    pub fn log_z(&self) -> f64 {
        self.log_h[0]
    }

    /// log h with `position` tokens consumed, in `state`. Panics where there is no such position or state.
    #[inline]
    pub fn log_h(&self, position: usize, state: u32) -> f64 {
        self.log_h[position * self.states() + state as usize]
    }

    /// The state after `token`.
    #[inline]
    pub fn after(&self, state: u32, token: Token) -> u32 {
        self.next[state as usize * self.space.vocab as usize + token as usize]
    }

    /// The terminal value of a sequence that ends in `state`.
    #[inline]
    pub fn log_end(&self, state: u32) -> f64 {
        self.log_end[state as usize]
    }

    /// log of chain(token)·h(state after it) / h(state): the exact conditional of p(x) ∝ chain(x)·exp terminal(x).
    /// NaN where h(state) is 0.
    #[inline]
    pub(super) fn log_conditional(&self, chain: &Markov, position: usize, state: u32, token: Token) -> f64 {
        self.log_weight(chain, position, state, token) - self.log_h(position, state)
    }

    /// The possible tokens at `position` in `state`, each with its exact log-probability.
    pub(super) fn outcomes<'a>(
        &'a self,
        chain: &'a Markov,
        position: usize,
        state: u32,
    ) -> impl Iterator<Item = (Token, f64)> + use<'a> {
        let log_probs = move |token| (token, self.log_conditional(chain, position, state, token));
        (0..self.space.vocab).map(log_probs).filter(|(_, log_p)| *log_p > f64::NEG_INFINITY)
    }

    /// The tables as a guided proposal reads them.
    pub fn guide(&self) -> Guide {
        let narrow = |values: &[f64]| values.iter().map(|&value| value as f32).collect();
        Guide {
            space: self.space,
            states: self.states(),
            next: self.next.clone(),
            log_h: narrow(&self.log_h),
            log_end: narrow(&self.log_end),
        }
    }

    fn log_weight(&self, chain: &Markov, position: usize, state: u32, token: Token) -> f64 {
        let ahead = if token == self.space.eos {
            self.log_end(state)
        } else {
            self.log_h(position + 1, self.after(state, token))
        };
        let context = self.states[state as usize].1 as usize;
        f64::from(chain.row(position, context)[token as usize]) + ahead
    }

    fn backward(&mut self, chain: &Markov) {
        let states = self.states();
        let longest = self.space.longest as usize;
        self.log_h[longest * states..].copy_from_slice(&self.log_end);
        let mut row = vec![0.0; states];
        for position in (0..longest).rev() {
            let this = &*self;
            row.par_iter_mut().enumerate().for_each(|(state, log_h)| {
                let weight = |token| this.log_weight(chain, position, state as u32, token);
                *log_h = log_sum_exp(this.space.vocab, weight);
            });
            self.log_h[position * states..][..states].copy_from_slice(&row);
        }
    }
}

/// log b + ⟨λ, φ⟩ at each state of an automaton whose outputs are the potential's features, `[states]`.
pub(super) fn log_terminal(automaton: &Automaton, potential: &Potential) -> Vec<f64> {
    (0..automaton.states() as u32).map(|state| potential.log_factor(automaton.values(state))).collect()
}

/// log Σ_token exp(weight(token)), shifted by the largest; −∞ where all are.
fn log_sum_exp(vocab: u32, weight: impl Fn(Token) -> f64) -> f64 {
    let largest = (0..vocab).map(&weight).fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + (0..vocab).map(|token| (weight(token) - largest).exp()).sum::<f64>().ln()
}
