//! An LSTM over tokens on the CPU: layers of one size, the first fed by one-hot tokens, a linear head.
//!
//! Work goes in chunks of 36 to 48 sequences, the longest first; a chunk's step is a few matrix products with the cell
//! update fused behind them. Values do not depend on the chunk around a sequence, nor on the number of threads.
//!
//! Memory, in values of 4 bytes, for N parameters (padding included), L layers, U = hidden padded to 16, T tokens and
//! W threads at work: parameters, transposes, gradient and two Adam moments ≤ 5N; partial gradients ≤ 16N; activations
//! W·48·T·(6·L·U + V). Training holds no more than this beside its batch of tokens.

use std::path::Path;

use rayon::prelude::*;

use self::gradient::Weighted;
use self::layout::Layout;
use self::network::{CHUNK, Network, Samples};
use self::workspace::Pool;
use super::{Coefficients, Policy, Sampler, Scorer, check_batch, check_guided, check_sample};
use super::{OptimizerState, PolicyState};
use crate::adam::{AdamKernel, AdamOptions, AdamState, GradientNorms};
use crate::backend::product::TILE_ROWS;
use crate::backend::{Backend, Cpu};
use crate::checkpoint::Tensor;
use crate::error::{Error, Result, expect_len};
use crate::exact::Guide;
use crate::features::{FeatureOutput, FeatureTable};
use crate::rng::{Draw, Purpose, to_unit};
use crate::tokens::{Batch, Space, TokenRows};

mod cell;
mod gpu;
mod gradient;
mod head;
mod layout;
mod network;
mod steps;
mod workspace;

pub use gpu::{GpuLstm, Precision};
pub use steps::LstmPrefixes;

/// Rows of a chunk for a batch of `rows`: enough chunks to go round, none too small for the products. A function of the
/// batch alone, so that the order of sums does not depend on the machine.
fn chunk_rows(rows: usize) -> usize {
    const SMALLEST: usize = 36;
    rows.div_ceil(PARTIALS).next_multiple_of(TILE_ROWS).clamp(SMALLEST, CHUNK)
}

/// Partial gradients of a step: each adds up one run of chunks, and they are folded in order.
const PARTIALS: usize = 16;

/// The size of an [`Lstm`].
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LstmShape {
    /// Number of layers, 1 or more.
    pub layers: usize,
    /// Units per layer, 1 or more.
    pub hidden: usize,
    /// Share of units dropped behind each layer, in [0, 1); in maximum likelihood only.
    pub dropout: f32,
}

impl LstmShape {
    /// Bytes of one set of parameters over `space`, or `None` beyond all memory.
    fn bytes(&self, space: Space) -> Option<u128> {
        let (hidden, layers, vocab) = (self.hidden as u128, self.layers as u128, u128::from(space.vocab));
        let gates = hidden.checked_mul(4)?;
        let recurrent = layers.checked_mul(2)?.checked_sub(1)?.checked_mul(hidden)?.checked_mul(gates)?;
        recurrent.checked_add((vocab + layers).checked_mul(gates)?)?.checked_add(hidden * vocab)?.checked_mul(4)
    }

    fn check(&self, space: Space) -> Result<()> {
        if self.layers == 0 {
            return Err(Error::argument("LSTM layers", "1 or more", 0));
        }
        if self.hidden == 0 {
            return Err(Error::argument("LSTM hidden units", "1 or more", 0));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::argument("LSTM dropout", "a share in [0, 1)", self.dropout));
        }
        // Parameters, transposes, gradient, moments and partial gradients together must be addressable.
        match self.bytes(space) {
            Some(bytes) if bytes <= isize::MAX as u128 / 64 => Ok(()),
            bytes => Err(Error::OutOfMemory { what: "LSTM parameters".into(), bytes: bytes.unwrap_or(u128::MAX) }),
        }
    }
}

/// A trainable LSTM: scorer, sampler and policy.
pub struct Lstm {
    shape: LstmShape,
    network: Network,
    adam: AdamState<Cpu>,
    gradient: Vec<f32>,
    partials: Vec<Vec<f32>>,
    /// Rows at work, longest first, and their log-probs in that order.
    order: Vec<u32>,
    sorted: Vec<f64>,
    starts: Vec<u32>,
    scoring: Pool,
    training: Pool,
}

/// A backend that runs the LSTM.
pub trait LstmBackend: Backend {
    /// The LSTM on this backend.
    type Lstm: Policy<Self>;

    /// Brings a network here; on another device its optimiser starts fresh.
    ///
    /// # Errors
    /// Memory that cannot be had.
    fn lstm(&self, lstm: Lstm) -> Result<Self::Lstm>;
}

impl LstmBackend for Cpu {
    type Lstm = Lstm;

    fn lstm(&self, lstm: Lstm) -> Result<Lstm> {
        Ok(lstm)
    }
}

impl Lstm {
    /// A fresh network: all parameters uniform in ±1/√hidden, forget gates 1 higher (Jozefowicz et al. 2015), from
    /// `seed`.
    ///
    /// # Errors
    /// A shape of zero or beyond all memory, a dropout outside [0, 1).
    pub fn new(space: Space, shape: LstmShape, seed: u64) -> Result<Self> {
        let mut lstm = Lstm::zero(space, shape)?;
        let (draw, bound) = (Draw::new(seed, Purpose::Init), (shape.hidden as f32).sqrt().recip());
        let hidden = shape.hidden;
        for (tensor, (name, _, indices)) in lstm.network.layout.tensors().iter().enumerate() {
            for (at, &index) in indices.iter().enumerate() {
                let unit = to_unit(draw.words(at as u64 / 4, tensor as u32, 0)[at % 4]);
                let forget = (name == "lstm.0.input" || name.ends_with("bias")) && name != "head.bias";
                let raise = if forget && (at / hidden) % 4 == 1 { 1.0 } else { 0.0 };
                lstm.network.parameters[index] = (2.0 * unit - 1.0) * bound + raise;
            }
        }
        lstm.refresh();
        Ok(lstm)
    }

    fn zero(space: Space, shape: LstmShape) -> Result<Self> {
        shape.check(space)?;
        let layout = Layout { layers: shape.layers, hidden: shape.hidden, vocab: space.vocab as usize };
        // Asks for the parameters' memory in the way that can fail before the plain vectors are made.
        drop(crate::backend::Memory::zeros::<f32>(&Cpu, layout.len().saturating_mul(5), "LSTM parameters")?);
        Ok(Lstm {
            shape,
            network: Network::new(space, layout, shape.dropout),
            adam: AdamState::new(&Cpu, layout.len())?,
            gradient: vec![0.0; layout.len()],
            partials: Vec::new(),
            order: Vec::new(),
            sorted: Vec::new(),
            starts: Vec::new(),
            scoring: Pool::new(layout, None),
            training: Pool::new(layout, Some(space.longest as usize)),
        })
    }

    /// The network's size.
    pub fn shape(&self) -> LstmShape {
        self.shape
    }

    /// The parameters by name: (name, shape, values in row-major order). `lstm.0.input` `[V, 4, H]` is the one-hot
    /// input's table with the bias in it; `lstm.l.input` `[H, 4, H]`, `lstm.l.bias` `[4, H]` (l ≥ 1);
    /// `lstm.l.recurrent` `[H, 4, H]`; `head.weight` `[H, V]`; `head.bias` `[V]`. Gates in the order i, f, g, o.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        self.named(&self.network.parameters)
    }

    /// The stored gradient, named as [`Lstm::tensors`].
    pub fn gradients(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        self.named(&self.gradient)
    }

    fn named(&self, flat: &[f32]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let tensors = self.network.layout.tensors().into_iter();
        tensors.map(|(name, shape, at)| (name, shape, at.iter().map(|&at| flat[at]).collect())).collect()
    }

    /// Reads what [`Policy::save`] wrote. Adam's moments start at zero.
    ///
    /// # Errors
    /// [`Error::File`]: unreadable, truncated, another kind of model, missing tensors, NaN.
    pub fn load(path: &Path) -> Result<Self> {
        let file = crate::checkpoint::load(path)?;
        file.expect_kind("lstm")?;
        let (space, shape): (Space, LstmShape) = (file.field("space")?, file.field("shape")?);
        let mut lstm = Lstm::zero(space, shape).map_err(|error| Error::file(path, error))?;
        for (name, shape, indices) in lstm.network.layout.tensors() {
            let (got, values) = file.tensor(&name)?;
            if got != shape {
                return Err(Error::file(path, format!("tensor {name}: expected shape {shape:?}, got {got:?}")));
            }
            indices.iter().zip(&values).for_each(|(&at, &value)| lstm.network.parameters[at] = value);
        }
        lstm.refresh();
        Ok(lstm)
    }

    /// A network of the given parameters, in the order and with the values of [`Lstm::tensors`].
    fn from_tensors<'a>(
        space: Space,
        shape: LstmShape,
        values: impl Iterator<Item = (&'a str, Vec<f32>)>,
    ) -> Result<Self> {
        let mut lstm = Lstm::zero(space, shape)?;
        for ((name, _, indices), (given, values)) in lstm.network.layout.tensors().into_iter().zip(values) {
            debug_assert_eq!(name, given);
            indices.iter().zip(&values).for_each(|(&at, &value)| lstm.network.parameters[at] = value);
        }
        lstm.refresh();
        Ok(lstm)
    }

    fn refresh(&mut self) {
        let Network { layout, parameters, transposed, .. } = &mut self.network;
        transposed.refresh(*layout, parameters);
    }

    /// [`Sampler::sample`] of checked outputs; `phi` has a table, and the place of its features, for each chunk of rows, or
    /// `None`.
    fn draw_rows<'a>(
        &self,
        draw: Draw,
        guide: Option<&Guide>,
        batch: &mut Batch,
        log_q: &mut [f64],
        log_model: &mut [f64],
        phi: impl IndexedParallelIterator<Item = Option<(&'a FeatureTable, &'a mut [f32])>>,
    ) {
        batch.rows = batch.capacity();
        let (network, pool, space) = (&self.network, &self.scoring, batch.space);
        let size = chunk_rows(batch.rows);
        let rows = batch.tokens.par_chunks_mut(size * space.longest as usize).zip(batch.lengths.par_chunks_mut(size));
        let rows = rows.zip(batch.given.par_chunks(size));
        let log_probs = log_q.par_chunks_mut(size).zip(log_model.par_chunks_mut(size));
        let chunks = rows.zip(log_probs).zip(phi).enumerate();
        chunks.for_each(|(chunk, ((((tokens, lengths), given), (log_q, log_model)), phi))| {
            let first = (chunk * size) as u64;
            let out = Samples { tokens, lengths, given, log_q, log_model };
            pool.with(|workspace| network.sample(workspace, draw, first, guide, out));
            if let Some((table, phi)) = phi {
                table.evaluate_here(TokenRows { space, rows: lengths.len(), tokens, lengths }, phi);
            }
        });
    }

    fn score_rows(&mut self, guide: Option<&Guide>, batch: &Batch, log_probs: &mut [f64]) {
        self.sort(batch, |_| true);
        let (network, pool) = (&self.network, &self.scoring);
        let chunk = chunk_rows(batch.rows);
        self.sorted.par_chunks_mut(chunk).zip(self.order.par_chunks(chunk)).for_each(|(out, rows)| {
            pool.with(|workspace| network.score(workspace, batch, rows, guide, out));
        });
        self.order.iter().zip(&self.sorted).for_each(|(&row, &value)| log_probs[row as usize] = value);
    }

    /// Puts the rows for which `wanted` into `order`, longest first (a stable counting sort), and makes room for their
    /// log-probs.
    fn sort(&mut self, batch: &Batch, wanted: impl Fn(usize) -> bool) {
        let longest = batch.space.longest as usize;
        let rank = |row: usize| longest - batch.lengths[row] as usize;
        self.starts.clear();
        self.starts.resize(longest + 2, 0);
        (0..batch.rows).filter(|&row| wanted(row)).for_each(|row| self.starts[rank(row) + 1] += 1);
        (0..=longest).for_each(|at| self.starts[at + 1] += self.starts[at]);
        let count = self.starts[longest + 1] as usize;
        self.order.resize(count, 0);
        self.sorted.resize(count, 0.0);
        for row in (0..batch.rows).filter(|&row| wanted(row)) {
            let slot = &mut self.starts[rank(row)];
            self.order[*slot as usize] = row as u32;
            *slot += 1;
        }
    }
}

impl Clone for Lstm {
    /// Parameters and optimiser; a workspace of its own.
    fn clone(&self) -> Self {
        let layout = self.network.layout;
        Lstm {
            shape: self.shape,
            network: self.network.clone(),
            adam: self.adam.clone(),
            gradient: self.gradient.clone(),
            partials: Vec::new(),
            order: Vec::new(),
            sorted: Vec::new(),
            starts: Vec::new(),
            scoring: Pool::new(layout, None),
            training: Pool::new(layout, Some(self.network.space.longest as usize)),
        }
    }
}

impl Scorer<Cpu> for Lstm {
    fn space(&self) -> Space {
        self.network.space
    }

    fn score(&mut self, batch: &Batch, log_probs: &mut [f64]) -> Result<()> {
        check_batch(self.network.space, batch.space)?;
        expect_len("log-probs", batch.rows, log_probs.len())?;
        self.score_rows(None, batch, log_probs);
        Ok(())
    }
}

impl Sampler<Cpu> for Lstm {
    fn sample(
        &mut self,
        draw: Draw,
        guide: Option<&Guide>,
        batch: &mut Batch,
        log_q: &mut [f64],
        log_model: &mut [f64],
    ) -> Result<()> {
        check_sample(self.network.space, guide, batch, log_q.len(), log_model.len())?;
        let none = (0..batch.capacity()).into_par_iter().map(|_| None);
        self.draw_rows(draw, guide, batch, log_q, log_model, none);
        Ok(())
    }

    /// A thread makes φ of the chunk of sequences that it has just drawn, which is still in its cache; closures want the
    /// whole batch, and have a pass of their own.
    fn sample_features(
        &mut self,
        draw: Draw,
        guide: Option<&Guide>,
        batch: &mut Batch,
        log_q: &mut [f64],
        log_model: &mut [f64],
        features: FeatureOutput<'_, Cpu>,
    ) -> Result<()> {
        check_sample(self.network.space, guide, batch, log_q.len(), log_model.len())?;
        features.check(self.network.space, batch.capacity())?;
        let table = features.table;
        if table.is_empty() || table.has_closures() {
            self.sample(draw, guide, batch, log_q, log_model)?;
            return features.evaluate(batch);
        }
        let of_chunk = chunk_rows(batch.capacity()) * table.len();
        let phi = features.phi.par_chunks_mut(of_chunk).map(|phi| Some((table, phi)));
        self.draw_rows(draw, guide, batch, log_q, log_model, phi);
        Ok(())
    }

    fn score_guided(&mut self, guide: &Guide, batch: &Batch, log_q: &mut [f64]) -> Result<()> {
        check_guided(self.network.space, guide, batch, log_q.len())?;
        self.score_rows(Some(guide), batch, log_q);
        Ok(())
    }
}

impl Policy<Cpu> for Lstm {
    fn gradient(&mut self, batch: &Batch, coefficients: &Coefficients<'_, Cpu>, log_probs: &mut [f64]) -> Result<()> {
        check_batch(self.network.space, batch.space)?;
        coefficients.check(batch.rows, log_probs.len())?;
        coefficients.check_weights()?;
        self.sort(batch, |row| !coefficients.skips(row));
        let chunk_rows = chunk_rows(self.order.len());
        let chunks = self.order.len().div_ceil(chunk_rows);
        let partials = chunks.min(PARTIALS);
        self.partials.resize_with(self.partials.len().max(partials), || vec![0.0; self.network.parameters.len()]);
        let (network, pool) = (&self.network, &self.training);
        let dropout = coefficients.dropout.filter(|_| network.dropout > 0.0);
        let coefficient = |row: u32, log_prob: f64| coefficients.of(row as usize, log_prob);
        // Each partial gradient takes one run of whole chunks.
        let run = chunks.div_ceil(partials.max(1)).max(1) * chunk_rows;
        let used = self.order.len().div_ceil(run);
        let runs = self.sorted.par_chunks_mut(run).zip(self.order.par_chunks(run));
        runs.zip(&mut self.partials[..used]).for_each(|((log_probs, rows), partial)| {
            partial.fill(0.0);
            for (log_probs, rows) in log_probs.chunks_mut(chunk_rows).zip(rows.chunks(chunk_rows)) {
                let chunk = Weighted { batch, rows, coefficient: &coefficient, dropout };
                pool.with(|workspace| network.add_gradient(workspace, &chunk, log_probs, partial));
            }
        });
        fold(&self.partials[..used], &mut self.gradient);
        log_probs.fill(f64::NAN);
        self.order.iter().zip(&self.sorted).for_each(|(&row, &value)| log_probs[row as usize] = value);
        Ok(())
    }

    fn update(&mut self, adam: &AdamOptions) -> Result<()> {
        self.update_at(adam, &[1.0])
    }

    fn update_at(&mut self, adam: &AdamOptions, rate: &[f32]) -> Result<()> {
        Cpu.adam(adam, Some(rate), &mut self.adam, &self.gradient, &mut self.network.parameters)?;
        self.refresh();
        Ok(())
    }

    fn copy_from(&mut self, from: &Self) -> Result<()> {
        check_batch(self.network.space, from.network.space)?;
        if self.network.layout != from.network.layout {
            return Err(Error::argument(
                "LSTM to copy",
                format!("{:?}", self.network.layout),
                format!("{:?}", from.network.layout),
            ));
        }
        self.network.parameters.copy_from_slice(&from.network.parameters);
        self.refresh();
        Ok(())
    }

    fn try_clone(&self) -> Result<Self> {
        Ok(self.clone())
    }

    fn reset_optimizer(&mut self) -> Result<()> {
        self.adam.first.fill(0.0);
        self.adam.second.fill(0.0);
        self.adam.steps.fill(0);
        self.adam.norms.fill(GradientNorms::default());
        Ok(())
    }

    fn take_norms(&mut self) -> Result<GradientNorms> {
        self.adam.take_norms(&Cpu)
    }

    fn save(&self, path: &Path) -> Result<()> {
        let tensors = self.tensors();
        let tensors = tensors.iter().map(|(name, shape, values)| Tensor::new(name, shape, values)).collect();
        crate::checkpoint::save(path, &description(self.network.space, self.shape), tensors)
    }

    fn state(&self, optimizer: bool) -> Result<PolicyState> {
        let tensors = self.network.layout.tensors();
        let named = |flat: &[f32]| -> Vec<(String, Vec<f32>)> {
            tensors.par_iter().map(|(name, _, at)| (name.clone(), at.iter().map(|&at| flat[at]).collect())).collect()
        };
        let AdamState { first, second, steps, norms } = &self.adam;
        let optimizer = optimizer.then(|| OptimizerState {
            first: named(first),
            second: named(second),
            steps: steps[0],
            norms: norms[0],
        });
        Ok(PolicyState {
            model: description(self.network.space, self.shape).to_string(),
            parameters: named(&self.network.parameters),
            optimizer,
        })
    }

    fn restore(&mut self, state: &PolicyState) -> Result<()> {
        let tensors = self.network.layout.tensors();
        let named = || tensors.iter().map(|(name, _, at)| (&**name, at.as_slice()));
        state.check(&description(self.network.space, self.shape), || named().map(|(name, at)| (name, at.len())))?;
        let scatter = |from: &[(String, Vec<f32>)], flat: &mut [f32]| {
            for ((_, at), (_, values)) in named().zip(from) {
                at.iter().zip(values).for_each(|(&at, &value)| flat[at] = value);
            }
        };
        scatter(&state.parameters, &mut self.network.parameters);
        if let Some(OptimizerState { first, second, steps, norms }) = &state.optimizer {
            scatter(first, &mut self.adam.first);
            scatter(second, &mut self.adam.second);
            (self.adam.steps[0], self.adam.norms[0]) = (*steps, *norms);
        }
        self.refresh();
        Ok(())
    }
}

/// What a file or a state says of the model it is of.
fn description(space: Space, shape: LstmShape) -> serde_json::Value {
    serde_json::json!({ "kind": "lstm", "space": space, "shape": shape })
}

/// `total = Σ parts`, each element added in the order of the parts.
fn fold(parts: &[Vec<f32>], total: &mut [f32]) {
    const BLOCK: usize = 8192;
    total.par_chunks_mut(BLOCK).enumerate().for_each(|(block, total)| {
        total.fill(0.0);
        for part in parts {
            let part = &part[block * BLOCK..][..total.len()];
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
    });
}
