//! Exact answers by dynamic programming, where the base is a Markov chain and the features are automata.

use crate::backend::{Cpu, Memory};
use crate::error::Result;

mod distribution;
mod fit;
mod lookahead;

pub use distribution::Exact;
pub use lookahead::LookAhead;

/// The look-ahead table of a guided proposal: q_t(c) ∝ π_t(c)·h(state after c, tokens left).
///
/// A sampler at position t (t tokens consumed) in state s adds to the logit of a content token c
/// `log_h[t + 1, next[s, c]]`, and to that of EOS `log_end[s]`; then it samples from the log-softmax of the sums. Values
/// may be −∞. The start state is 0.
pub struct Guide<B: Memory = Cpu> {
    /// The space of sequences.
    pub space: crate::tokens::Space,
    /// Number of states S.
    pub states: usize,
    /// `[S, V]`: the state after a token.
    pub next: B::Buffer<u32>,
    /// `[longest + 1, S]`: log h with t tokens consumed; at t = `longest` the value of the cut sequence.
    pub log_h: B::Buffer<f32>,
    /// `[S]`: the value of a sequence that ends here by EOS.
    pub log_end: B::Buffer<f32>,
}

impl Guide<Cpu> {
    /// The same tables in the memory of `backend`.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn upload<B: Memory>(&self, backend: &B) -> Result<Guide<B>> {
        let mut guide = Guide {
            space: self.space,
            states: self.states,
            next: backend.zeros(self.next.len(), "guide")?,
            log_h: backend.zeros(self.log_h.len(), "guide")?,
            log_end: backend.zeros(self.log_end.len(), "guide")?,
        };
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

    /// The state after `token`.
    #[inline]
    pub fn after(&self, state: u32, token: crate::tokens::Token) -> u32 {
        self.next[state as usize * self.space.vocab as usize + token as usize]
    }
}
