//! Exact answers by dynamic programming, where the base is a Markov chain and the features are automata.

use crate::backend::{Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::features::Classes;
use crate::tokens::Space;

mod distribution;
mod fit;
mod lookahead;

pub use distribution::Exact;
pub use lookahead::LookAhead;

/// The look-ahead table of a guided proposal: q_t(c) ∝ π_t(c)·h(state after c, tokens left).
///
/// A sampler at position t (t tokens consumed) in state s adds to the logit of a content token c
/// `log_h[t + 1, next[s, class of c]]`, and to that of EOS `log_end[s]`; then it samples from the log-softmax of the sums. Values
/// may be −∞. The start state is 0.
pub struct Guide<B: Memory = Cpu> {
    /// The space of sequences.
    pub space: Space,
    /// Number of states S.
    pub states: usize,
    /// Number of token classes C.
    pub width: usize,
    /// `[V]`: the class of each token; tokens of one class lead every state to the same one.
    pub classes: B::Buffer<u32>,
    /// `[S, C]`: the state after a token of a class.
    pub next: B::Buffer<u32>,
    /// `[longest + 1, S]`: log h with t tokens consumed; at t = `longest` the value of the cut sequence.
    pub log_h: B::Buffer<f32>,
    /// `[S]`: the value of a sequence that ends here by EOS.
    pub log_end: B::Buffer<f32>,
}

impl Guide<Cpu> {
    /// A guide of one's own: `next` (`[S, V]`) is the state after each token, `log_h` `[longest + 1, S]` and `log_end` `[S]`.
    ///
    /// # Errors
    /// No states, another length, a state that does not exist, NaN or +∞.
    pub fn new(space: Space, next: &[u32], log_h: Vec<f32>, log_end: Vec<f32>) -> Result<Self> {
        let (states, vocab) = (log_end.len(), space.vocab as usize);
        expect_len("states of the guide", states.max(1), states)?;
        expect_len("transitions of the guide", states * vocab, next.len())?;
        expect_len("look-ahead of the guide", states * (space.longest as usize + 1), log_h.len())?;
        if let Some(state) = next.iter().find(|&&state| state as usize >= states) {
            return Err(Error::argument("state of the guide", format!("below {states}"), state));
        }
        if let Some(value) = log_h.iter().chain(&log_end).find(|value| value.is_nan() || **value == f32::INFINITY) {
            return Err(Error::argument("look-ahead of the guide", "numbers or −∞", value));
        }
        let column = |token: usize| next.iter().skip(token).step_by(vocab).copied().collect::<Vec<_>>();
        let classes = Classes::by(space.vocab, |token| column(token as usize));
        let pick = |row: &[u32]| classes.representatives().iter().map(|&token| row[token as usize]).collect::<Vec<_>>();
        let next = next.chunks_exact(vocab).flat_map(pick).collect();
        Ok(Guide { space, states, width: classes.len(), classes: classes.of().to_vec(), next, log_h, log_end })
    }

    /// The same tables in the memory of `backend`.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn upload<B: Memory>(&self, backend: &B) -> Result<Guide<B>> {
        let mut guide = Guide {
            space: self.space,
            states: self.states,
            width: self.width,
            classes: backend.zeros(self.classes.len(), "guide")?,
            next: backend.zeros(self.next.len(), "guide")?,
            log_h: backend.zeros(self.log_h.len(), "guide")?,
            log_end: backend.zeros(self.log_end.len(), "guide")?,
        };
        backend.upload(&self.classes, &mut guide.classes)?;
        backend.upload(&self.next, &mut guide.next)?;
        backend.upload(&self.log_h, &mut guide.log_h)?;
        backend.upload(&self.log_end, &mut guide.log_end)?;
        Ok(guide)
    }

    /// What a sampler at `position` in `state` adds to the logit of `token`.
    #[inline]
    pub fn boost(&self, position: usize, state: u32, token: crate::tokens::Token) -> f32 {
        if token == self.space.eos {
            self.log_end[state as usize]
        } else if self.space.is_content(token) {
            self.log_h[(position + 1) * self.states + self.after(state, token) as usize]
        } else {
            f32::NEG_INFINITY
        }
    }

    /// The state after `tokens`, from the beginning.
    pub fn state_after(&self, tokens: &[crate::tokens::Token]) -> u32 {
        tokens.iter().fold(0, |state, &token| self.after(state, token))
    }

    /// The state after `token`.
    #[inline]
    pub fn after(&self, state: u32, token: crate::tokens::Token) -> u32 {
        self.next[state as usize * self.width + self.classes[token as usize] as usize]
    }
}
