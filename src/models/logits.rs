//! A model that lives elsewhere: a closure that gives logits.

use std::ops::Range;

use rayon::prelude::*;

use super::{Sampler, Scorer};
use crate::backend::{Cpu, Memory};
use crate::error::{Error, Result, expect_len};
use crate::exact::Guide;
use crate::log_prob::{LogSoftmax, check_logits};
use crate::rng::Draw;
use crate::tokens::{Batch, Space, Token};

/// The prefixes whose next tokens are asked for: all of the same length, a dense matrix as a runtime such as ONNX or
/// candle takes it.
#[derive(Debug, Clone, Copy)]
pub struct Prefixes<'a> {
    tokens: &'a [Token],
    width: usize,
    rows: &'a [usize],
}

impl<'a> Prefixes<'a> {
    /// Number of prefixes, at least 1.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Number of tokens of each prefix, at least 1: BOS is the first.
    pub fn width(&self) -> usize {
        self.width
    }

    /// All prefixes, row-major `[rows, width]`.
    pub fn tokens(&self) -> &'a [Token] {
        self.tokens
    }

    /// The prefixes one by one, each `[width]`.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [Token]> + use<'a> {
        self.tokens.chunks_exact(self.width)
    }

    /// Which row of the caller's batch each prefix belongs to, ascending, `[rows]`.
    ///
    /// A model that caches its states finds them by this: calls come in runs of width 1, 2, 3, …, each a subset of the
    /// rows of the call before; width 1 begins a new run with no states.
    pub fn batch_rows(&self) -> &'a [usize] {
        self.rows
    }
}

/// A [`Scorer`] and [`Sampler`] over logits from elsewhere: any autoregressive model that a closure can run.
///
/// The closure receives [`Prefixes`] and fills the logits of their next tokens, `[rows, V]` with V = `space.vocab`,
/// where finite values and −∞ are meaningful. Entries of BOS and PAD are ignored; an entry left unwritten is an error,
/// since all begin as NaN. For results that do not depend on the batch, a row's logits must not depend on the rows
/// around it.
///
/// ```
/// use ebm_dpg::models::{Logits, Prefixes, Sampler, Scorer};
/// use ebm_dpg::rng::{Draw, Purpose};
/// use ebm_dpg::{Result, backend::Cpu, tokens::{Batch, Space}};
///
/// // Two symbols 0 and 1; this "model" likes to repeat the last token twice as much as to change or to stop.
/// let space = Space::new(2, 8)?;
/// let mut model = Logits::new(space, |prefixes: Prefixes, logits: &mut [f32]| -> Result<()> {
///     for (prefix, row) in prefixes.iter().zip(logits.chunks_exact_mut(space.vocab as usize)) {
///         row.fill(0.0);
///         row[prefix[prefixes.width() - 1] as usize] = 2f32.ln();
///     }
///     Ok(())
/// });
///
/// // BOS is never emitted, so the first token is 0, 1 or EOS alike; then 0 again has probability 2/4, EOS 1/4.
/// let batch = Batch::from_sequences(space, &[[0, 0, space.eos]])?;
/// let mut log_probs = [0.0];
/// model.score(&batch, &mut log_probs)?;
/// assert!((log_probs[0] - (1.0f64 / 3.0 * 2.0 / 4.0 * 1.0 / 4.0).ln()).abs() < 1e-6);
///
/// let mut samples = Batch::with_capacity(&Cpu, space, 100)?;
/// let (mut log_q, mut log_model) = (vec![0.0; 100], vec![0.0; 100]);
/// model.sample(Draw::new(7, Purpose::User), None, &mut samples, &mut log_q, &mut log_model)?;
/// assert_eq!(samples.rows, 100);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// Errors of the closure come back as they are; [`Error::no_answer`] makes one from a foreign error.
pub struct Logits<F> {
    space: Space,
    next: F,
    rows_per_call: usize,
    workspace: Workspace,
}

/// What a pass needs; kept between passes, so that a later one allocates nothing.
#[derive(Default)]
struct Workspace {
    /// Rows of the batch whose sequence goes on, ascending.
    live: Vec<usize>,
    /// `[live, width]`.
    prefixes: Vec<Token>,
    /// `[live, V]`; BOS and PAD are −∞ once asked.
    logits: Vec<f32>,
    /// `[live]`.
    log_probs: Vec<f64>,
    /// `[live]`; `None` where the guide left no token.
    drawn: Vec<Option<Drawn>>,
    /// States of the guide, by row from the start of the run.
    states: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Drawn {
    token: Token,
    log_q: f64,
    log_model: f64,
}

impl<F: FnMut(Prefixes<'_>, &mut [f32]) -> Result<()>> Logits<F> {
    /// A model of `space` whose logits `next` fills. A call holds at most 2²² logits, or one row.
    pub fn new(space: Space, next: F) -> Self {
        let rows_per_call = ((1 << 22) / space.vocab.max(1) as usize).max(1);
        Logits { space, next, rows_per_call, workspace: Workspace::default() }
    }

    /// The same with at most `rows` prefixes a call, such as the batch size of an exported graph.
    ///
    /// # Errors
    /// No rows.
    pub fn with_rows_per_call(self, rows: usize) -> Result<Self> {
        if rows == 0 {
            Err(Error::argument("rows per call", "1 or more", rows))
        } else {
            Ok(Logits { rows_per_call: rows, ..self })
        }
    }

    /// Runs of rows of a batch, each as many as a call may hold.
    fn runs(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<F> {
        let step = self.rows_per_call;
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    /// Fills the workspace's logits for the next tokens of its live rows; `tokens` are the batch's.
    fn ask(&mut self, tokens: &[Token], position: usize) -> Result<()> {
        let Space { vocab, bos, pad, longest, .. } = self.space;
        let (vocab, work) = (vocab as usize, &mut self.workspace);
        work.prefixes.clear();
        for row in &work.live {
            work.prefixes.push(bos);
            work.prefixes.extend_from_slice(&tokens[row * longest as usize..][..position]);
        }
        let len = work.live.len() * vocab;
        if work.logits.len() < len {
            work.logits = Cpu.zeros(len, "logits")?;
        }
        let logits = &mut work.logits[..len];
        logits.fill(f32::NAN);
        (self.next)(Prefixes { tokens: &work.prefixes, width: position + 1, rows: &work.live }, logits)?;
        let fault = |(row, batch_row): (&mut [f32], &usize)| {
            for masked in [bos, pad].map(|token| token as usize).into_iter().filter(|&token| token < vocab) {
                row[masked] = f32::NEG_INFINITY;
            }
            check_logits("logits", row, format_args!("row {batch_row}, position {position}")).err()
        };
        logits.par_chunks_exact_mut(vocab).zip(&work.live).find_map_first(fault).map_or(Ok(()), Err)
    }

    /// Adds the log-probs of a run of rows, guided or not, teacher-forced position by position.
    fn score_run(
        &mut self,
        batch: &Batch,
        run: Range<usize>,
        guide: Option<&Guide>,
        log_probs: &mut [f64],
    ) -> Result<()> {
        let (vocab, longest, start) = (self.space.vocab as usize, self.space.longest as usize, run.start);
        self.workspace.states.clear();
        self.workspace.states.resize(run.len(), 0);
        self.workspace.live.clear();
        self.workspace.live.extend(run);
        for position in 0..longest {
            self.workspace.live.retain(|&row| batch.lengths[row] as usize > position);
            if self.workspace.live.is_empty() {
                break;
            }
            self.ask(&batch.tokens, position)?;
            let work = &mut self.workspace;
            let states = &work.states;
            let log_prob = |(logits, &row): (&[f32], &usize)| {
                let token = batch.token(row, position);
                let Some(guide) = guide else { return LogSoftmax::of(logits).at(logits[token as usize]) };
                let boosted = |token: usize| logits[token] + guide.boost(position, states[row - start], token as Token);
                super::token_log_prob(vocab, boosted, token)
            };
            work.logits.par_chunks_exact(vocab).zip(&work.live).map(log_prob).collect_into_vec(&mut work.log_probs);
            for (&row, log_prob) in work.live.iter().zip(&work.log_probs) {
                log_probs[row] += if position < batch.given[row] as usize { 0.0 } else { *log_prob };
                if let Some(guide) = guide {
                    work.states[row - start] = guide.after(work.states[row - start], batch.token(row, position));
                }
            }
        }
        Ok(())
    }

    /// Draws the tokens of a run of rows behind their contexts, the rest of which are PADs. Contexts are asked for as all else,
    /// so that a model that caches its states sees every width.
    fn sample_run(
        &mut self,
        draw: Draw,
        guide: Option<&Guide>,
        run: Range<usize>,
        batch: &mut Batch,
        log_q: &mut [f64],
        log_model: &mut [f64],
    ) -> Result<()> {
        let (vocab, longest, start) = (self.space.vocab as usize, self.space.longest as usize, run.start);
        self.workspace.states.clear();
        self.workspace.states.resize(run.len(), 0);
        self.workspace.live.clear();
        self.workspace.live.extend(run);
        for position in 0..longest {
            if self.workspace.live.is_empty() {
                break;
            }
            self.ask(&batch.tokens, position)?;
            let work = &mut self.workspace;
            let states = &work.states;
            let pick = |(logits, &row): (&[f32], &usize)| {
                if position < batch.given[row] as usize {
                    return Some(Drawn { token: batch.token(row, position), log_q: 0.0, log_model: 0.0 });
                }
                let uniform = draw.uniform(row as u64, position as u32);
                pick(logits, uniform, guide.map(|guide| (guide, states[row - start])), position)
            };
            work.logits.par_chunks_exact(vocab).zip(&work.live).map(pick).collect_into_vec(&mut work.drawn);
            for (&row, drawn) in work.live.iter().zip(&work.drawn) {
                let Drawn { token, log_q: q, log_model: model } = drawn.ok_or_else(|| {
                    let reason = "no token is left by both model and guide: the guide's support must meet the model's";
                    Error::no_answer(format!("guided sample, row {row}, position {position}"), reason)
                })?;
                batch.tokens[row * longest + position] = token;
                batch.lengths[row] = position as u32 + 1;
                log_q[row] += q;
                log_model[row] += model;
                if let Some(guide) = guide.filter(|guide| token != guide.space.eos) {
                    work.states[row - start] = guide.after(work.states[row - start], token);
                }
            }
            work.live.retain(|&row| batch.tokens[row * longest + position] != self.space.eos);
        }
        Ok(())
    }
}

/// Draws one token; `None` where the guide, here in the given state, leaves none.
fn pick(logits: &[f32], uniform: f32, guided: Option<(&Guide, u32)>, position: usize) -> Option<Drawn> {
    let log_prob = |token: Token| LogSoftmax::of(logits).at(logits[token as usize]);
    let Some((guide, state)) = guided else {
        let (token, _) = super::draw_token(uniform, logits.len(), |token| logits[token]);
        let log_prob = log_prob(token);
        return Some(Drawn { token, log_q: log_prob, log_model: log_prob });
    };
    let boosted = |token: usize| logits[token] + guide.boost(position, state, token as Token);
    if !(0..logits.len()).any(|token| boosted(token) > f32::NEG_INFINITY) {
        return None;
    }
    let (token, log_q) = super::draw_token(uniform, logits.len(), boosted);
    Some(Drawn { token, log_q, log_model: log_prob(token) })
}

impl<F: FnMut(Prefixes<'_>, &mut [f32]) -> Result<()>> Scorer<Cpu> for Logits<F> {
    fn space(&self) -> Space {
        self.space
    }

    /// As the trait says; where the closure fails or its logits have no softmax, all `log_probs` are NaN.
    fn score(&mut self, batch: &Batch, log_probs: &mut [f64]) -> Result<()> {
        super::check_batch(self.space, batch.space)?;
        expect_len("log-probs", batch.rows, log_probs.len())?;
        log_probs.fill(0.0);
        let scored = self.runs(batch.rows).try_for_each(|run| self.score_run(batch, run, None, log_probs));
        scored.inspect_err(|_| log_probs.fill(f64::NAN))
    }
}

impl<F: FnMut(Prefixes<'_>, &mut [f32]) -> Result<()>> Sampler<Cpu> for Logits<F> {
    /// As the trait says; where the closure fails, its logits have no softmax or the guide leaves no token, the batch
    /// is empty.
    fn sample(
        &mut self,
        draw: Draw,
        guide: Option<&Guide>,
        batch: &mut Batch,
        log_q: &mut [f64],
        log_model: &mut [f64],
    ) -> Result<()> {
        super::check_sample(self.space, guide, batch, log_q.len(), log_model.len())?;
        for (tokens, &given) in batch.tokens.chunks_exact_mut(self.space.longest as usize).zip(&batch.given) {
            tokens[given as usize..].fill(self.space.pad);
        }
        log_q.fill(0.0);
        log_model.fill(0.0);
        batch.rows = 0;
        for run in self.runs(batch.capacity()) {
            self.sample_run(draw, guide, run, batch, log_q, log_model)?;
        }
        batch.rows = batch.capacity();
        Ok(())
    }

    fn score_guided(&mut self, guide: &Guide, batch: &Batch, log_q: &mut [f64]) -> Result<()> {
        super::check_guided(self.space, guide, batch, log_q.len())?;
        log_q.fill(0.0);
        let scored = self.runs(batch.rows).try_for_each(|run| self.score_run(batch, run, Some(guide), log_q));
        scored.inspect_err(|_| log_q.fill(f64::NAN))
    }
}
