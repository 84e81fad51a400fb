//! Maximum likelihood: how the base r is trained, with Adam, clipping and an early stop on validation data.

use super::{Coefficients, Policy};
use crate::adam::AdamOptions;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::rng::{Draw, Purpose, permutation};
use crate::tokens::Batch;

/// How a model is trained on data.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct LikelihoodOptions {
    /// The optimiser; the gradient is that of the mean log-likelihood per token.
    pub adam: AdamOptions,
    /// Sequences per update.
    pub batch: usize,
    /// Passes over the data at most.
    pub epochs: usize,
    /// Passes without a better validation cross-entropy after which training stops.
    pub patience: usize,
    /// Orders the data and draws the dropout masks.
    pub seed: u64,
}

impl Default for LikelihoodOptions {
    /// The papers': Adam at 1e-3, clipped at norm .25, batches of 500, at most 100 passes.
    fn default() -> Self {
        let adam = AdamOptions { clip: 0.25, ..AdamOptions::default() };
        LikelihoodOptions { adam, batch: 500, epochs: 100, patience: 10, seed: 0 }
    }
}

/// One pass over the data, as told to the caller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LikelihoodProgress {
    /// Passes made.
    pub epoch: usize,
    /// Cross-entropy of the training data in this pass (dropout on), nats per token.
    pub train: f64,
    /// Cross-entropy of the validation data after it, nats per token.
    pub validation: f64,
}

/// What training on data came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Likelihood {
    /// All passes made.
    pub history: Vec<LikelihoodProgress>,
    /// The pass whose parameters were kept (0: the initial ones), and their validation cross-entropy, nats per token.
    pub best: (usize, f64),
}

/// Trains `model` on `train` and leaves it with the parameters that were best on `validation`. `progress` is called
/// after each pass. The same seed gives the same parameters.
///
/// # Errors
/// Empty data, a batch or number of passes of zero, a bad optimiser, a cross-entropy that is not a number.
pub fn fit_likelihood<B: Backend, P: Policy<B>>(
    backend: &B,
    model: &mut P,
    train: &Batch<B>,
    validation: &Batch<B>,
    options: &LikelihoodOptions,
    mut progress: impl FnMut(&LikelihoodProgress),
) -> Result<Likelihood> {
    options.adam.check()?;
    for (what, count) in [("training data", train.rows), ("validation data", validation.rows)] {
        if count == 0 {
            return Err(Error::argument(what, "1 sequence or more", 0));
        }
    }
    if options.batch == 0 || options.epochs == 0 {
        return Err(Error::argument("batch and epochs", "1 or more", format!("{}, {}", options.batch, options.epochs)));
    }
    let mut pass = Pass::new(backend, train, options.batch.min(train.rows))?;
    let mut judge = HeldOut::new(backend, validation)?;
    let mut best = model.try_clone()?;
    let mut result = Likelihood { history: Vec::new(), best: (0, judge.cross_entropy(backend, model)?) };
    for epoch in 1..=options.epochs {
        let train = pass.run(backend, model, train, options, epoch)?;
        let validation = judge.cross_entropy(backend, model)?;
        let now = LikelihoodProgress { epoch, train, validation };
        result.history.push(now);
        progress(&now);
        // A NaN is no improvement.
        if validation < result.best.1 {
            result.best = (epoch, validation);
            best.copy_from(model)?;
        } else if epoch - result.best.0 >= options.patience {
            break;
        }
    }
    model.copy_from(&best)?;
    Ok(result)
}

/// The memory of passes over the training data.
struct Pass<B: Backend> {
    lengths: Vec<u32>,
    batch: Batch<B>,
    weights: B::Buffer<f32>,
    host_weights: Vec<f32>,
    log_probs: B::Buffer<f64>,
    host: Vec<f64>,
}

impl<B: Backend> Pass<B> {
    fn new(backend: &B, train: &Batch<B>, rows: usize) -> Result<Self> {
        let mut lengths = vec![0; train.rows];
        backend.download(&train.lengths, &mut lengths)?;
        Ok(Pass {
            lengths,
            batch: Batch::with_capacity(backend, train.space, rows)?,
            weights: backend.zeros(rows, "training weights")?,
            host_weights: vec![0.0; rows],
            log_probs: backend.zeros(rows, "training log-probs")?,
            host: vec![0.0; rows],
        })
    }

    /// One pass in a fresh order; returns the cross-entropy per token.
    fn run<P: Policy<B>>(
        &mut self,
        backend: &B,
        model: &mut P,
        train: &Batch<B>,
        options: &LikelihoodOptions,
        epoch: usize,
    ) -> Result<f64> {
        let order = permutation(Draw::new(options.seed, Purpose::Shuffle), epoch as u32, train.rows);
        let first = (epoch * train.rows) as u64;
        let (mut total, mut tokens) = (0.0, 0);
        for (at, rows) in order.chunks(self.batch.capacity()).enumerate() {
            let count: u32 = rows.iter().map(|&row| self.lengths[row as usize]).sum();
            self.batch.gather(backend, train, rows)?;
            self.host_weights.fill(1.0 / count as f32);
            backend.upload(&self.host_weights[..rows.len()], &mut self.weights)?;
            let draw = Draw::new(options.seed, Purpose::Dropout).skip(first + (at * self.batch.capacity()) as u64);
            let weights = B::view(&self.weights, rows.len());
            let coefficients = Coefficients { dropout: Some(draw), ..Coefficients::given(weights) };
            model.gradient(&self.batch, &coefficients, B::view_mut(&mut self.log_probs, rows.len()))?;
            model.update(&options.adam)?;
            let host = &mut self.host[..rows.len()];
            backend.download(&self.log_probs, host)?;
            total += host.iter().sum::<f64>();
            tokens += count as usize;
        }
        Ok(-total / tokens as f64)
    }
}

/// Data that only judges.
struct HeldOut<'a, B: Backend> {
    data: &'a Batch<B>,
    tokens: usize,
    log_probs: B::Buffer<f64>,
    host: Vec<f64>,
}

impl<'a, B: Backend> HeldOut<'a, B> {
    fn new(backend: &B, data: &'a Batch<B>) -> Result<Self> {
        let mut lengths = vec![0u32; data.rows];
        backend.download(&data.lengths, &mut lengths)?;
        Ok(HeldOut {
            data,
            tokens: lengths.iter().map(|&n| n as usize).sum(),
            log_probs: backend.zeros(data.rows, "validation log-probs")?,
            host: vec![0.0; data.rows],
        })
    }

    fn cross_entropy<P: Policy<B>>(&mut self, backend: &B, model: &mut P) -> Result<f64> {
        model.score(self.data, B::view_mut(&mut self.log_probs, self.data.rows))?;
        backend.download(&self.log_probs, &mut self.host)?;
        let value = -self.host.iter().sum::<f64>() / self.tokens as f64;
        if value.is_nan() { Err(Error::not_a_number("validation cross-entropy", "the data")) } else { Ok(value) }
    }
}
