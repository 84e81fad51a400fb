//! The LSTM token by token, for prefixes that are dropped or doubled on the way.

use rayon::prelude::*;

use super::Lstm;
use super::network::CHUNK;
use super::workspace::Workspace;
use crate::error::{Result, expect_len};
use crate::models::steps::Stepper;
use crate::tokens::{Space, Token};

/// States of prefixes, 48 in a workspace of its own.
pub struct LstmPrefixes {
    chunks: Vec<Workspace>,
    rows: usize,
    position: usize,
}

impl Lstm {
    /// Feeds each prefix its token and writes the log-probs of the next.
    fn feed(&self, prefixes: &mut LstmPrefixes, token: impl Fn(usize) -> Token + Sync, out: &mut [f32]) {
        let (network, position) = (&self.network, prefixes.position);
        let (vocab, outputs) = (network.layout.vocab, network.layout.outputs());
        let chunks = prefixes.chunks.par_iter_mut().zip(out.par_chunks_mut(CHUNK * vocab)).enumerate();
        chunks.for_each(|(chunk, (workspace, out))| {
            let rows = out.len() / vocab;
            for (row, input) in workspace.inputs[..rows].iter_mut().enumerate() {
                *input = token(chunk * CHUNK + row);
            }
            network.advance(workspace, position, rows, None);
            for (row, out) in out.chunks_exact_mut(vocab).enumerate() {
                let softmax = network.softmax(workspace, row);
                let logits = &workspace.logits[row * outputs..][..vocab];
                out.iter_mut().zip(logits).for_each(|(out, &logit)| *out = softmax.log_prob(logit) as f32);
            }
        });
        prefixes.position += 1;
    }
}

impl Stepper for Lstm {
    type Prefixes = LstmPrefixes;

    fn space(&self) -> Space {
        self.network.space
    }

    fn begin(&self, rows: usize, log_probs: &mut [f32]) -> Result<LstmPrefixes> {
        expect_len("log-probs", rows * self.network.layout.vocab, log_probs.len())?;
        let chunk = || {
            let mut workspace = Workspace::new(self.network.layout, None);
            workspace.begin();
            workspace
        };
        let chunks = (0..rows.div_ceil(CHUNK)).map(|_| chunk()).collect();
        let mut prefixes = LstmPrefixes { chunks, rows, position: 0 };
        let bos = self.network.space.bos;
        self.feed(&mut prefixes, |_| bos, log_probs);
        Ok(prefixes)
    }

    fn step(&self, prefixes: &mut LstmPrefixes, tokens: &[Token], log_probs: &mut [f32]) -> Result<()> {
        expect_len("tokens", prefixes.rows, tokens.len())?;
        expect_len("log-probs", prefixes.rows * self.network.layout.vocab, log_probs.len())?;
        self.feed(prefixes, |row| tokens[row], log_probs);
        Ok(())
    }

    fn select(&self, prefixes: &mut LstmPrefixes, ancestors: &[u32]) -> Result<()> {
        expect_len("ancestors", prefixes.rows, ancestors.len())?;
        let units = self.network.layout.units();
        let mut gathered = vec![0.0; prefixes.rows * units];
        for state in 0..2 * self.network.layout.layers {
            let place = |workspace: &Workspace, row: usize| {
                let begin = workspace.slot(prefixes.position) * workspace.slot_size() + row % CHUNK * units;
                begin..begin + units
            };
            for (to, &row) in gathered.chunks_exact_mut(units).zip(ancestors) {
                let from = &prefixes.chunks[row as usize / CHUNK];
                to.copy_from_slice(&from.states_of(state)[place(from, row as usize)]);
            }
            for (row, from) in gathered.chunks_exact(units).enumerate() {
                let to = &mut prefixes.chunks[row / CHUNK];
                let place = place(to, row);
                to.states_of_mut(state)[place].copy_from_slice(from);
            }
        }
        Ok(())
    }
}

impl Workspace {
    /// h of the layers, then c of the layers.
    fn states_of(&self, state: usize) -> &[f32] {
        let layers = self.hidden.len();
        if state < layers { &self.hidden[state] } else { &self.cell[state - layers] }
    }

    fn states_of_mut(&mut self, state: usize) -> &mut [f32] {
        let layers = self.hidden.len();
        if state < layers { &mut self.hidden[state] } else { &mut self.cell[state - layers] }
    }
}
