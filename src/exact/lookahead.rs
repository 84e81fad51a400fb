//! The look-ahead h: what is still to be gained from a prefix, by backward dynamic programming.

use rayon::prelude::*;

use super::Guide;
use crate::backend::Cpu;
use crate::error::{Error, Result, expect_len};
use crate::features::{Automaton, Classes, FeatureSet, explore};
use crate::models::{Markov, Scorer};
use crate::potential::{Potential, Role};
use crate::tokens::{Space, Token};

/// The most cells of a table: `[longest + 1, states]` values of 8 bytes, `[states, C]` transitions of 4.
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
    /// Tokens that lead every state to the same one share a class.
    classes: Classes,
    /// `[S, C]`.
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
        // A context of previous tokens tells all of them apart; the automaton alone does not.
        let classes =
            if chain.order() == 0 { automaton.classes().clone() } else { automaton.classes().refined(|token| token) };
        let (width, positions) = (classes.len(), space.longest as usize + 1);
        let limit = LARGEST_TABLE / width.max(positions);
        let step = |(state, context): (u32, u32), class: usize| {
            let token = classes.representatives()[class];
            if space.is_content(token) {
                (automaton.next(state, token), chain.next_context(context as usize, token) as u32)
            } else {
                (state, context)
            }
        };
        let (states, next) = explore((0, chain.start_context() as u32), width, limit, step).ok_or_else(|| {
            Error::argument("look-ahead", format!("at most {limit} pairs of automaton state and context"), "more")
        })?;
        let log_end: Vec<f64> = states.iter().map(|&(state, _)| log_terminal[state as usize]).collect();
        let mut this = LookAhead { space, log_h: vec![0.0; positions * states.len()], states, classes, next, log_end };
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
        self.next[state as usize * self.classes.len() + self.classes.of()[token as usize] as usize]
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
            width: self.classes.len(),
            classes: self.classes.of().to_vec(),
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

    /// h position by position, from the last: h_t(s) sums over classes, whose tokens all lead to the same state.
    fn backward(&mut self, chain: &Markov) {
        let (states, width) = (self.states(), self.classes.len());
        let longest = self.space.longest as usize;
        self.log_h[longest * states..].copy_from_slice(&self.log_end);
        let mut row = vec![0.0; states];
        for position in (0..longest).rev() {
            let this = &*self;
            let masses: Vec<f64> = (0..chain.contexts())
                .into_par_iter()
                .flat_map_iter(|c| this.class_masses(chain.row(position, c)))
                .collect();
            row.par_iter_mut().enumerate().for_each(|(state, log_h)| {
                let context = this.states[state].1 as usize;
                let next = &this.next[state * width..][..width];
                let end = f64::from(chain.row(position, context)[this.space.eos as usize]) + this.log_end[state];
                let weight = |class: usize| match next.get(class) {
                    Some(&to) => masses[context * width + class] + this.log_h(position + 1, to),
                    None => end,
                };
                *log_h = log_sum_exp(width + 1, weight);
            });
            self.log_h[position * states..][..states].copy_from_slice(&row);
        }
    }

    /// log of the probability of each class's content tokens, `[C]`.
    fn class_masses(&self, row: &[f32]) -> Vec<f64> {
        let (width, space) = (self.classes.len(), self.space);
        let content = || row.iter().zip(self.classes.of()).zip(0..).filter(|(_, token)| space.is_content(*token));
        let mut largest = vec![f64::NEG_INFINITY; width];
        content().for_each(|((&p, &class), _)| largest[class as usize] = largest[class as usize].max(f64::from(p)));
        let mut total = vec![0.0; width];
        for ((&p, &class), _) in content().filter(|((p, _), _)| **p > f32::NEG_INFINITY) {
            total[class as usize] += (f64::from(p) - largest[class as usize]).exp();
        }
        // The logarithm of nothing is −∞, and so is `largest` then.
        largest.iter().zip(total).map(|(largest, total): (&f64, f64)| largest + total.ln()).collect()
    }
}

/// log b + ⟨λ, φ⟩ at each state of an automaton whose outputs are the potential's features, `[states]`.
pub(super) fn log_terminal(automaton: &Automaton, potential: &Potential) -> Vec<f64> {
    (0..automaton.states() as u32).map(|state| potential.log_factor(automaton.values(state))).collect()
}

/// log Σ exp(weight(i)) over i below `count`, shifted by the largest; −∞ where all are.
fn log_sum_exp(count: usize, weight: impl Fn(usize) -> f64) -> f64 {
    let largest = (0..count).map(&weight).fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + (0..count).map(|i| (weight(i) - largest).exp()).sum::<f64>().ln()
}
