//! Samples of the base or of a guided proposal, with everything a fit asks of them: drawn and evaluated once.

use crate::backend::{Backend, Memory};
use crate::error::{Error, Result};
use crate::exact::Guide;
use crate::features::{FeatureOutput, FeatureTable};
use crate::models::Sampler;
use crate::potential::Potential;
use crate::rng::Draw;
use crate::tokens::{Batch, Contexts};

/// Rows drawn from q, on the host.
pub(super) struct Sample {
    /// Number of features F.
    pub features: usize,
    /// φ, `[rows, F]`.
    pub phi: Vec<f32>,
    /// log r, `[rows]`.
    pub log_base: Vec<f64>,
    /// log q, `[rows]`.
    pub log_q: Vec<f64>,
    /// The number of each row's context, `[rows]`; empty where there are none.
    pub context: Vec<u32>,
    /// Standard error that all of log q share: not 0 only where q's normaliser is itself estimated (rejection).
    pub log_q_error: f64,
}

impl Sample {
    pub fn rows(&self) -> usize {
        self.log_q.len()
    }

    /// φ of one row, `[F]`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.phi[row * self.features..][..self.features]
    }

    /// log P of all rows.
    pub fn log_potential(&self, potential: &Potential) -> Vec<f64> {
        (0..self.rows()).map(|row| self.log_base[row] + potential.log_factor(self.row(row))).collect()
    }

    /// The rows with P > 0.
    pub fn survivors(&self, potential: &Potential) -> Vec<usize> {
        let log_p = self.log_potential(potential);
        // NaN stays: the estimators name it.
        (0..self.rows()).filter(|&row| log_p[row] != f64::NEG_INFINITY).collect()
    }

    /// Smallest and largest value of feature `i` over `rows`.
    pub fn range(&self, i: usize, rows: &[usize]) -> (f64, f64) {
        let values = rows.iter().map(|&row| f64::from(self.row(row)[i]));
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    }

    /// The given rows, in that order.
    pub fn take(&self, rows: &[usize]) -> Sample {
        Sample {
            features: self.features,
            phi: rows.iter().flat_map(|&row| self.row(row)).copied().collect(),
            log_base: rows.iter().map(|&row| self.log_base[row]).collect(),
            log_q: rows.iter().map(|&row| self.log_q[row]).collect(),
            context: rows.iter().filter_map(|&row| self.context.get(row)).copied().collect(),
            log_q_error: self.log_q_error,
        }
    }
}

/// Draws samples of one base in batches, so that memory is bounded by the batch; each draw takes fresh sequence
/// numbers.
pub(super) struct Source<'a, B: Backend, S: Sampler<B>> {
    backend: &'a B,
    base: &'a mut S,
    table: FeatureTable<B>,
    contexts: Option<&'a Contexts<B>>,
    batch: usize,
    draw: Draw,
    /// Sequences drawn so far.
    pub drawn: usize,
}

impl<'a, B: Backend, S: Sampler<B>> Source<'a, B, S> {
    pub fn new(backend: &'a B, base: &'a mut S, table: FeatureTable<B>, batch: usize, draw: Draw) -> Self {
        Source { backend, base, table, contexts: None, batch, draw, drawn: 0 }
    }

    /// The same with draws that continue contexts.
    pub fn behind(self, contexts: Option<&'a Contexts<B>>) -> Self {
        Source { contexts, ..self }
    }

    /// `rows` sequences from the base, or from the guided base; their tokens are appended to `tokens` where wanted.
    pub fn sample(&mut self, rows: usize, guide: Option<&Guide>, mut tokens: Option<&mut Batch>) -> Result<Sample> {
        let guide = guide.map(|guide| guide.upload(self.backend)).transpose()?;
        let features = self.table.len();
        let host = crate::backend::Cpu;
        let mut sample = Sample {
            features,
            phi: host.zeros(rows.saturating_mul(features), "features of the fit")?,
            log_base: host.zeros(rows, "log-probs of the fit")?,
            log_q: host.zeros(rows, "log-probs of the fit")?,
            context: host.zeros(if self.contexts.is_some() { rows } else { 0 }, "contexts of the fit")?,
            log_q_error: 0.0,
        };
        let mut done = 0;
        while done < rows {
            let count = self.batch.min(rows - done);
            let draw = self.draw.skip(self.drawn as u64);
            let batch = self.batch_into(count, draw, guide.as_ref(), &mut sample, done)?;
            if let Some(tokens) = tokens.as_deref_mut() {
                append(self.backend, &batch, tokens)?;
            }
            done += count;
            self.drawn += count;
        }
        // A sampler that returns what it cannot have drawn would poison every sum below.
        match (0..rows).find(|&row| !(sample.log_q[row].is_finite() && sample.log_base[row].is_finite())) {
            None => Ok(sample),
            Some(row) => {
                let at = format!("row {row} (log q = {}, log r = {})", sample.log_q[row], sample.log_base[row]);
                Err(Error::not_a_number("log-prob of a sample of the base", at))
            }
        }
    }

    /// log q of rows on the host under the base guided by `guide`, `[rows]`.
    pub fn guided_log_q(&mut self, guide: &Guide, tokens: &Batch) -> Result<Vec<f64>> {
        let (backend, guide) = (self.backend, guide.upload(self.backend)?);
        let mut log_q = crate::backend::Cpu.zeros(tokens.rows, "log-probs of the fit")?;
        for (at, out) in log_q.chunks_mut(self.batch).enumerate() {
            let first = (at * self.batch) as u32;
            let rows: Vec<u32> = (first..first + out.len() as u32).collect();
            let mut host = Batch::with_capacity(&crate::backend::Cpu, tokens.space, rows.len())?;
            host.gather(&crate::backend::Cpu, tokens, &rows)?;
            let mut values = backend.zeros::<f64>(out.len(), "log q")?;
            self.base.score_guided(&guide, &host.upload(backend)?, B::view_mut(&mut values, out.len()))?;
            backend.download(&values, out)?;
        }
        Ok(log_q)
    }

    /// Draws `count` rows and writes their columns from row `at` on.
    fn batch_into(
        &mut self,
        count: usize,
        draw: Draw,
        guide: Option<&Guide<B>>,
        sample: &mut Sample,
        at: usize,
    ) -> Result<Batch<B>> {
        let (backend, features) = (self.backend, sample.features);
        let mut batch = Batch::with_capacity(backend, self.base.space(), count)?;
        let mut log_q = backend.zeros::<f64>(count, "log q")?;
        let mut log_base = backend.zeros::<f64>(count, "log-probs of the base")?;
        let mut phi = backend.zeros::<f32>(count * features, "features")?;
        if let Some(contexts) = self.contexts {
            batch.begin(backend, contexts, draw)?;
            backend.download(&batch.context, &mut sample.context[at..at + count])?;
        }
        let (view_q, view_base) = (B::view_mut(&mut log_q, count), B::view_mut(&mut log_base, count));
        let output = FeatureOutput { backend, table: &self.table, phi: B::view_mut(&mut phi, count * features) };
        self.base.sample_features(draw, guide, &mut batch, view_q, view_base, output)?;
        backend.download(&log_q, &mut sample.log_q[at..at + count])?;
        backend.download(&log_base, &mut sample.log_base[at..at + count])?;
        backend.download(&phi, &mut sample.phi[at * features..(at + count) * features])?;
        Ok(batch)
    }
}

/// Appends the rows of `from`, in any backend's memory, to a host batch with room for them.
fn append<B: Backend>(backend: &B, from: &Batch<B>, to: &mut Batch) -> Result<()> {
    let (stride, rows) = (from.space.longest as usize, to.rows..to.rows + from.rows);
    backend.download(&from.tokens, &mut to.tokens[rows.start * stride..rows.end * stride])?;
    backend.download(&from.lengths, &mut to.lengths[rows.clone()])?;
    backend.download(&from.given, &mut to.given[rows.clone()])?;
    backend.download(&from.context, &mut to.context[rows.clone()])?;
    to.rows = rows.end;
    Ok(())
}
