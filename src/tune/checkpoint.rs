//! Checkpoints of a run: all that its next step depends on, in one file.
//!
//! The file is safetensors; what the run is of stands as JSON in its header. That it is *one* file is what makes it atomic:
//! it is written under another name, synced, and renamed over the last one, a single act of the file system, so whenever
//! the process is killed the name stands for a whole checkpoint, the last or the new one. Numbers are tensors of their own
//! types, never decimal text, and so keep every bit, those of NaN too.
//!
//! | tensor | type, shape | what |
//! | --- | --- | --- |
//! | `policy.NAME`, `first.NAME`, `second.NAME`; `norms` | f32; u64 | π and its Adam moments; its gradients' norms, bit by bit |
//! | `proposal.NAME` | f32 | q, where it is a policy |
//! | `pool.tokens`; `.lengths`, `.given`, `.context`, `.order`; `.log_w`, `.log_q` | u32 `[rows, T]`; u32 and f64 `[rows]` | draws kept, and their shuffle |
//! | `contexts` | u64 `[contexts, …]` | the means of the contexts' weights, bit by bit |
//! | `ledger` | u64 | the pool's books, bit by bit |
//! | `judge.tokens`; `.lengths`, `.given`, `.context`; `.log_p`, `.log_q` | as above | draws to judge by |
//! | `judge.log_first` | f64 `[rows]` | their log q under the first proposal, where that stays a part of the mixture |
//! | `history.counts`; `.values`, `.moments` | u64; f64, `[records, …]` | the records |
//! | `counters` | u64 | see [`Counters`] |
//!
//! Random numbers need no state: each is a function of the seed and of these counters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::slice::from_ref;

use bytemuck::cast_slice;

use super::{Ledger, Record, Source};
use crate::adam::GradientNorms;
use crate::backend::{Cpu, Element, Memory};
use crate::checkpoint::{self, Saved, Stored, Tensor};
use crate::error::{Error, Result};
use crate::models::{OptimizerState, PolicyState};
use crate::tokens::{Batch, Space};
use crate::weights::{Estimate, LogMean};

/// What the file says it holds.
const KIND: &str = "tuning";

/// log q under the first proposal.
const JUDGE_FIRST: &str = "judge.log_first";

/// Where and how often a run writes checkpoints, and what it continues from.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    /// The file; its directory must exist.
    pub path: PathBuf,
    /// Written after every so many evaluations, 1 or more, and after the last.
    pub every: u64,
    /// Where the run begins, instead of at its start.
    pub resume: Option<Checkpoint>,
}

impl Checkpoints {
    /// One at each evaluation, of a run from its start.
    pub fn new(path: &Path) -> Self {
        Checkpoints { path: path.into(), every: 1, resume: None }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.every == 0 {
            return Err(Error::argument("evaluations between checkpoints", "1 or more", 0));
        }
        Ok(())
    }
}

/// A run as it stood at one of its evaluations.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    run: BTreeMap<String, String>,
    pub(super) state: State,
}

impl Checkpoint {
    /// Reads the file. Whether it is of the run that is to continue is seen by
    /// [`tune_with_checkpoints`](super::tune_with_checkpoints).
    ///
    /// # Errors
    /// [`Error::File`]: unreadable, truncated, damaged, no checkpoint, a newer format.
    pub fn load(path: &Path) -> Result<Self> {
        let file = checkpoint::load(path)?;
        file.expect_kind(KIND)?;
        Ok(Checkpoint { path: path.into(), run: file.field("run")?, state: State::read(&file)? })
    }

    /// Sequences drawn for training by then.
    pub fn samples(&self) -> usize {
        self.state.counters.samples as usize
    }

    /// The evaluations by then.
    pub fn history(&self) -> &[Record] {
        &self.state.history
    }

    /// `Ok` where this is of the run `run`: name and value of each part, the first that differs named.
    pub(super) fn check(&self, run: &[(String, String)]) -> Result<()> {
        let none = String::from("none");
        let known = |name: &String| run.iter().any(|(own, _)| own == name);
        let of_this = run.iter().map(|(name, value)| (name, value, self.run.get(name).unwrap_or(&none)));
        let of_that = self.run.iter().filter(|(name, _)| !known(name)).map(|(name, value)| (name, &none, value));
        match of_this.chain(of_that).find(|(_, expected, got)| expected != got) {
            Some((name, expected, got)) => {
                Err(Error::file(&self.path, format!("of another run: {name}: expected {expected}, got {got}")))
            }
            None => Ok(()),
        }
    }
}

/// Numbers of a run, as `counters` holds them in this order.
#[derive(Debug, Clone, Copy, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Counters {
    /// Sequences drawn for training.
    pub samples: u64,
    pub swaps: u64,
    pub evaluations: u64,
    /// Steps of Adam.
    pub steps: u64,
    /// What proposes: 0 the base, 1 the guided base, 2 a policy.
    pub source: u64,
    /// The place of the oldest draws to judge by.
    pub oldest: u64,
}

impl Counters {
    pub fn code(source: Source) -> u64 {
        match source {
            Source::Base => 0,
            Source::Guided => 1,
            Source::Policy => 2,
        }
    }

    pub fn source(&self) -> Option<Source> {
        [Source::Base, Source::Guided, Source::Policy].into_iter().find(|&source| Counters::code(source) == self.source)
    }
}

/// All that the next step depends on, but for what the caller brings: options, target, data.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub counters: Counters,
    /// π with its optimiser.
    pub policy: PolicyState,
    /// q, where it is a policy.
    pub proposal: Option<PolicyState>,
    /// The pool's sequences with log w and log q.
    pub pool: Rows,
    pub order: Vec<u32>,
    pub ledger: Ledger,
    /// The books of the contexts.
    pub contexts: Vec<LogMean>,
    /// The judge's sequences with log P and log q.
    pub judge: Rows,
    /// log q of these under the first proposal; empty where no mixture needs it.
    pub judge_first: Vec<f64>,
    pub history: Vec<Record>,
}

/// Sequences in host memory, with two numbers each.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// `[rows, T]`.
    pub tokens: Vec<u32>,
    pub lengths: Vec<u32>,
    /// Of their contexts.
    pub given: Vec<u32>,
    pub context: Vec<u32>,
    pub values: [Vec<f64>; 2],
}

/// The first `len` values of a buffer.
pub(super) fn front<B: Memory, T: Element>(backend: &B, buffer: &B::Buffer<T>, len: usize) -> Result<Vec<T>> {
    let mut values = Cpu.zeros(len, "checkpoint")?;
    backend.download(buffer, &mut values)?;
    Ok(values)
}

impl Rows {
    /// The first `rows` rows of a batch.
    pub fn of<B: Memory>(backend: &B, batch: &Batch<B>, rows: usize, values: [Vec<f64>; 2]) -> Result<Self> {
        Ok(Rows {
            tokens: front(backend, &batch.tokens, rows * batch.space.longest as usize)?,
            lengths: front(backend, &batch.lengths, rows)?,
            given: front(backend, &batch.given, rows)?,
            context: front(backend, &batch.context, rows)?,
            values,
        })
    }

    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// `Ok` where these are at most `most` sequences of `space`.
    pub fn check(&self, what: &str, space: Space, most: usize) -> Result<()> {
        let rows = self.len();
        let each = [self.given.len(), self.context.len(), self.values[0].len(), self.values[1].len()];
        let whole = self.tokens.len() == rows * space.longest as usize && each == [rows; 4];
        let inside = self.lengths.iter().all(|&length| (1..=space.longest).contains(&length))
            && self.given.iter().zip(&self.lengths).all(|(given, length)| given < length)
            && self.tokens.iter().all(|&token| token < space.vocab);
        if rows <= most && whole && inside {
            return Ok(());
        }
        let expected = format!("at most {most} sequences of up to {} tokens below {}", space.longest, space.vocab);
        Err(Error::argument(what, expected, format!("{rows} others")))
    }

    /// Writes the sequences to the front of a batch.
    pub fn put<B: Memory>(&self, backend: &B, batch: &mut Batch<B>) -> Result<()> {
        backend.upload(&self.tokens, &mut batch.tokens)?;
        backend.upload(&self.lengths, &mut batch.lengths)?;
        backend.upload(&self.given, &mut batch.given)?;
        backend.upload(&self.context, &mut batch.context)
    }

    fn tensors<'a>(&'a self, part: &str, values: [&str; 2]) -> Vec<Tensor<'a>> {
        let rows = self.len();
        let [first, second] = &self.values;
        vec![
            Tensor::new(format!("{part}.tokens"), &[rows, self.tokens.len() / rows.max(1)], &self.tokens),
            Tensor::new(format!("{part}.lengths"), &[rows], &self.lengths),
            Tensor::new(format!("{part}.given"), &[rows], &self.given),
            Tensor::new(format!("{part}.context"), &[rows], &self.context),
            Tensor::new(format!("{part}.{}", values[0]), &[rows], first),
            Tensor::new(format!("{part}.{}", values[1]), &[rows], second),
        ]
    }

    fn read(file: &Saved, part: &str, values: [&str; 2]) -> Result<Self> {
        let of = |name: &str| format!("{part}.{name}");
        Ok(Rows {
            tokens: all(file, &of("tokens"))?,
            lengths: all(file, &of("lengths"))?,
            given: all(file, &of("given"))?,
            context: all(file, &of("context"))?,
            values: [all(file, &of(values[0]))?, all(file, &of(values[1]))?],
        })
    }
}

/// The values of a tensor of any shape.
fn all<T: Stored>(file: &Saved, name: &str) -> Result<Vec<T>> {
    Ok(file.values(name)?.1)
}

/// The one value of a tensor.
fn one<T: Stored, V: bytemuck::Pod>(file: &Saved, name: &str) -> Result<V> {
    let values: Vec<T> = all(file, name)?;
    bytemuck::try_pod_read_unaligned(cast_slice::<T, u8>(&values)).map_err(|_| {
        let expected = size_of::<V>() / size_of::<T>();
        Error::file(file.path(), format!("tensor {name}: expected {expected} values, got {}", values.len()))
    })
}

/// The books of the contexts.
fn means(file: &Saved) -> Result<Vec<LogMean>> {
    let bits: Vec<u64> = all(file, "contexts")?;
    let (means, rest) = bits.as_chunks();
    if !rest.is_empty() {
        return Err(Error::file(file.path(), format!("expected contexts of 4 numbers each, got {}", bits.len())));
    }
    Ok(means.iter().map(|&mean| LogMean::from_bits(mean)).collect())
}

impl State {
    /// Writes all of it, and what run it is of, in place of what is at `path`.
    pub fn write(&self, path: &Path, run: &[(String, String)]) -> Result<()> {
        let State { counters, policy, proposal, pool, order, ledger, contexts, judge, judge_first, history } = self;
        let (counts, values, moments) = columns(history);
        let (records, features) = (history.len(), history.first().map_or(0, |record| record.moments.len()));
        let mut tensors = vec![
            Tensor::new::<u64>("counters", &[size_of::<Counters>() / 8], cast_slice(from_ref(counters))),
            Tensor::new::<u64>("ledger", &[size_of::<Ledger>() / 8], cast_slice(from_ref(ledger))),
            Tensor::new::<u64>("contexts", &[contexts.len(), size_of::<LogMean>() / 8], cast_slice(contexts)),
            Tensor::new("pool.order", &[order.len()], order),
            Tensor::new("history.counts", &[records, COUNTS], &counts),
            Tensor::new("history.values", &[records, VALUES], &values),
            Tensor::new("history.moments", &[records, features, 2], &moments),
        ];
        tensors.extend(pool.tensors("pool", ["log_w", "log_q"]));
        tensors.extend(judge.tensors("judge", ["log_p", "log_q"]));
        if !judge_first.is_empty() {
            tensors.push(Tensor::new(JUDGE_FIRST, &[judge_first.len()], judge_first));
        }
        tensors.extend(model_tensors("policy", &policy.parameters));
        if let Some(OptimizerState { first, second, norms, .. }) = &policy.optimizer {
            tensors.push(Tensor::new::<u64>("norms", &[size_of::<GradientNorms>() / 8], cast_slice(from_ref(norms))));
            tensors.extend(model_tensors("first", first));
            tensors.extend(model_tensors("second", second));
        }
        if let Some(proposal) = proposal {
            tensors.extend(model_tensors("proposal", &proposal.parameters));
        }
        let names: Vec<_> = policy.parameters.iter().map(|(name, _)| name).collect();
        let run: BTreeMap<_, _> = run.iter().map(|(name, value)| (name, value)).collect();
        let metadata = serde_json::json!({ "kind": KIND, "run": run, "model": policy.model, "parameters": names });
        checkpoint::save(path, &metadata, tensors)
    }

    fn read(file: &Saved) -> Result<Self> {
        let (model, names): (String, Vec<String>) = (file.field("model")?, file.field("parameters")?);
        let counters: Counters = one::<u64, _>(file, "counters")?;
        let bad = || Error::file(file.path(), format!("expected a proposal of 0, 1 or 2, got {}", counters.source));
        counters.source().ok_or_else(bad)?;
        let named = |part: &str| -> Result<Vec<(String, Vec<f32>)>> {
            names.iter().map(|name| Ok((name.clone(), all(file, &format!("{part}.{name}"))?))).collect()
        };
        let (first, second, norms) = (named("first")?, named("second")?, one::<u64, _>(file, "norms")?);
        let optimizer = OptimizerState { first, second, steps: counters.steps, norms };
        let proposal = || -> Result<_> {
            Ok(PolicyState { model: model.clone(), parameters: named("proposal")?, optimizer: None })
        };
        // On-policy methods propose from π itself, which is there once.
        let has_proposal = names.first().is_some_and(|name| file.has(&format!("proposal.{name}")));
        Ok(State {
            counters,
            proposal: if has_proposal { Some(proposal()?) } else { None },
            policy: PolicyState { model: model.clone(), parameters: named("policy")?, optimizer: Some(optimizer) },
            pool: Rows::read(file, "pool", ["log_w", "log_q"])?,
            order: all(file, "pool.order")?,
            ledger: one::<u64, _>(file, "ledger")?,
            contexts: means(file)?,
            judge: Rows::read(file, "judge", ["log_p", "log_q"])?,
            judge_first: if file.has(JUDGE_FIRST) { all(file, JUDGE_FIRST)? } else { Vec::new() },
            history: records(file)?,
        })
    }
}

fn model_tensors<'a>(part: &str, named: &'a [(String, Vec<f32>)]) -> Vec<Tensor<'a>> {
    named.iter().map(|(name, values)| Tensor::new(format!("{part}.{name}"), &[values.len()], values)).collect()
}

/// Whole numbers of a record: samples, updates, swaps, whether each of what may be unknown is known.
const COUNTS: usize = 7;
/// Its other numbers but for the moments: loss, the gradient's norm and its deviation, ESS, log Ẑ and its error, the share
/// clipped; what may be unknown, which is the three divergences and the judge's log Ẑ, with their errors.
const VALUES: usize = 15;

/// The history by columns: `[records, COUNTS]`, `[records, VALUES]`, `[records, F, 2]`.
fn columns(history: &[Record]) -> (Vec<u64>, Vec<f64>, Vec<f64>) {
    let (mut counts, mut values, mut all_moments) = (Vec::new(), Vec::new(), Vec::new());
    for record in history {
        let Record {
            samples,
            updates,
            loss,
            gradient_norm,
            gradient_norm_deviation,
            kl,
            kl_proposal,
            tv,
            ess,
            moments,
            log_z,
            log_z_error,
            log_z_now,
            clipped,
            swaps,
        } = record;
        let pair = |estimate: &Estimate| [estimate.value, estimate.standard_error];
        let unsure = [kl, kl_proposal, tv, log_z_now];
        counts.extend([samples, updates, swaps].map(|&count| count as u64));
        counts.extend(unsure.map(|estimate| u64::from(estimate.is_some())));
        values.extend([loss, gradient_norm, gradient_norm_deviation, ess, log_z, log_z_error, clipped]);
        values.extend(unsure.iter().flat_map(|estimate| estimate.as_ref().map_or([0.0; 2], pair)));
        all_moments.extend(moments.iter().flat_map(pair));
    }
    (counts, values, all_moments)
}

/// The history that [`columns`] laid out.
fn records(file: &Saved) -> Result<Vec<Record>> {
    let (shape, counts) = file.values::<u64>("history.counts")?;
    let values: Vec<f64> = all(file, "history.values")?;
    let (moments_shape, moments) = file.values::<f64>("history.moments")?;
    let (records, features) = (shape.first().copied().unwrap_or(0), moments_shape.get(1).copied().unwrap_or(0));
    let fits = [(counts.len(), COUNTS), (values.len(), VALUES), (moments.len(), 2 * features)];
    if fits.iter().any(|&(len, each)| len != records * each) {
        let got = format!("{}, {} and {}", counts.len(), values.len(), moments.len());
        return Err(Error::file(file.path(), format!("expected a history of {records} records, got {got} numbers")));
    }
    let estimate = |pair: &[f64]| Estimate { value: pair[0], standard_error: pair[1] };
    let record = |at: usize| {
        let (counts, values) = (&counts[at * COUNTS..], &values[at * VALUES..]);
        let unsure = |which: usize| (counts[3 + which] == 1).then(|| estimate(&values[7 + 2 * which..]));
        Record {
            samples: counts[0] as usize,
            updates: counts[1] as usize,
            loss: values[0],
            gradient_norm: values[1],
            gradient_norm_deviation: values[2],
            kl: unsure(0),
            kl_proposal: unsure(1),
            tv: unsure(2),
            ess: values[3],
            moments: moments[at * 2 * features..(at + 1) * 2 * features].chunks_exact(2).map(estimate).collect(),
            log_z: values[4],
            log_z_error: values[5],
            log_z_now: unsure(3),
            clipped: values[6],
            swaps: counts[2] as usize,
        }
    };
    Ok((0..records).map(record).collect())
}
