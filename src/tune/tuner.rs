//! The training loop's state and its stages.

use super::judge::{DataJudge, Judge, Verdict};
use super::pool::Pool;
use super::{Draws, Method, Record, Source, Swap, Target, TuneOptions, Tuned};
use crate::adam::AdamOptions;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::{Coefficients, Policy, Sampler, Weighting};
use crate::potential::Role;
use crate::rng::{Draw, Purpose, to_unit};
use crate::tokens::Batch;
use crate::weights::{Estimate, LogMean};

/// Everything the loop works in; made once, so that no step allocates.
pub(super) struct Tuner<'a, 'b, B: Backend, R, P> {
    backend: &'a B,
    target: &'a mut Target<'b, B, R>,
    policy: &'a mut P,
    /// The frozen copy of π that proposes after a swap; `None` for methods that never swap.
    proposal: Option<P>,
    source: Source,
    options: &'a TuneOptions,
    data: Option<&'a Batch<B>>,
    draws: Draws<B>,
    pool: Pool<B>,
    step: Step<B>,
    judge: Judge<B>,
    data_judge: Option<DataJudge<B>>,
    /// Draws from π whose features show its moments.
    look: Draws<B>,
    log_z: LogMean,
    /// The running log of the mean reward, for REINFORCE.
    log_reward: LogMean,
    /// The largest log-weight seen, the bound of rejection from a guided proposal.
    log_bound: f64,
    clipped: usize,
    pub samples: usize,
    updates: usize,
    swaps: usize,
    evaluations: u64,
    losses: (f64, f64),
    pub history: Vec<Record>,
}

/// The memory of one update.
struct Step<B: Backend> {
    batch: Batch<B>,
    weights: B::Buffer<f32>,
    log_q: B::Buffer<f64>,
    log_pi: B::Buffer<f64>,
    host_weights: Vec<f32>,
    host_log_q: Vec<f64>,
    host_log_pi: Vec<f64>,
}

impl<'a, 'b, B: Backend, R: Sampler<B>, P: Policy<B>> Tuner<'a, 'b, B, R, P> {
    pub fn new(
        backend: &'a B,
        target: &'a mut Target<'b, B, R>,
        policy: &'a mut P,
        options: &'a TuneOptions,
        data: Option<&'a Batch<B>>,
    ) -> Result<Self> {
        let (space, features) = (target.base.space(), target.features.len());
        crate::models::check_batch(space, policy.space())?;
        let on_policy = matches!(options.method, Method::DpgOnPolicy | Method::Reinforce);
        let source = if on_policy { Source::Policy } else { options.proposal };
        check_needs(options, source, target.guide.is_some(), data)?;
        let swaps = options.method == Method::DpgOffPolicy && options.swap != Swap::Never;
        let rows = options.batch;
        // A sample larger than the cache would be cut to its newest part.
        let cache = if on_policy { rows } else { options.cache.max(rows) };
        let added = data.filter(|_| options.method == Method::Distill);
        let mut pool = Pool::new(backend, space, cache + added.map_or(0, |data| data.rows))?;
        for (row, batch) in added.iter().flat_map(|batch| (0..batch.rows).map(move |row| (row, batch))) {
            pool.keep(backend, batch, row, 0.0, 0.0)?;
        }
        let mut tuner = Tuner {
            backend,
            proposal: swaps.then(|| policy.clone()),
            source,
            options,
            data,
            draws: Draws::new(backend, space, rows, features)?,
            pool,
            step: Step::new(backend, space, rows)?,
            judge: Judge::new(backend, space, options.evaluation_rows, features)?,
            data_judge: data.map(|data| DataJudge::new(backend, data.rows)).transpose()?,
            look: Draws::new(backend, space, options.evaluation_rows, features)?,
            target,
            policy,
            log_z: LogMean::new(),
            log_reward: LogMean::new(),
            log_bound: f64::NEG_INFINITY,
            clipped: 0,
            samples: 0,
            updates: 0,
            swaps: 0,
            evaluations: 0,
            losses: (0.0, 0.0),
            history: Vec::with_capacity(options.evaluations),
        };
        tuner.bound()?;
        Ok(tuner)
    }

    /// Draws a batch from q and puts it where updates find it.
    pub fn draw(&mut self, draw: Draw) -> Result<()> {
        self.fill(draw)?;
        let draws = &self.draws;
        self.samples += draws.rows();
        for row in 0..draws.rows() {
            self.log_z.push(&[draws.host_log_p[row] - draws.host_log_q[row]])?;
        }
        match self.options.method {
            Method::DpgOffPolicy => self.pool.keep_draws(self.backend, &self.draws, self.options.baseline),
            Method::DpgOnPolicy => {
                self.pool.clear();
                self.pool.keep_draws(self.backend, &self.draws, self.options.baseline)
            }
            Method::Reinforce => self.keep_rewards(),
            Method::Distill => self.accept(draw),
        }
    }

    /// Fills the draws from the current proposal; on-policy methods propose from π itself.
    fn fill(&mut self, draw: Draw) -> Result<()> {
        let policy = match &mut self.proposal {
            Some(proposal) => proposal,
            None => &mut *self.policy,
        };
        self.draws.fill(self.backend, self.target, self.source, Some(policy), draw)
    }

    /// R = P: the reward stands in the place of the weight. Only its size relative to the mean reward matters to Adam.
    fn keep_rewards(&mut self) -> Result<()> {
        self.log_reward.push(&self.draws.host_log_p)?;
        self.pool.clear();
        for row in 0..self.draws.rows() {
            let log_q = self.draws.host_log_q[row];
            self.pool.keep(self.backend, &self.draws.batch, row, self.draws.host_log_p[row], log_q)?;
        }
        Ok(())
    }

    /// The bound of rejection. From r it is exact: w ≤ exp β, β = Σ max(λ min φ, λ max φ) with φ in [0, 1]. From a guided
    /// proposal it is the largest weight of a pilot sample, raised as larger ones come (quasi-rejection).
    fn bound(&mut self) -> Result<()> {
        if self.options.method != Method::Distill {
            return Ok(());
        }
        if self.source == Source::Base {
            let tilt = |role: &Role| if let Role::Tilt(lambda) = role { lambda.max(0.0) } else { 0.0 };
            self.log_bound = self.target.potential.roles().iter().map(tilt).sum();
            return Ok(());
        }
        const PILOT: u64 = 8;
        for batch in 0..PILOT {
            let rows = self.draws.batch.capacity() as u64;
            // Far from the counters of the evaluations.
            self.fill(Draw::new(self.options.seed, Purpose::Evaluate).skip((1 << 40) + batch * rows))?;
            self.raise_bound();
        }
        Ok(())
    }

    /// Raises the bound to the largest weight of the draws; returns whether that was needed.
    fn raise_bound(&mut self) -> bool {
        let log_w = self.draws.host_log_p.iter().zip(&self.draws.host_log_q).map(|(p, q)| p - q);
        let largest = log_w.fold(f64::NEG_INFINITY, f64::max);
        let raise = largest > self.log_bound;
        self.log_bound = self.log_bound.max(largest);
        raise
    }

    /// Keeps each draw with probability w / bound: samples of p.
    fn accept(&mut self, draw: Draw) -> Result<()> {
        if self.source == Source::Guided && self.raise_bound() {
            self.clipped += 1;
        }
        let coin = Draw { purpose: Purpose::Accept, ..draw };
        for row in 0..self.draws.rows() {
            let log_w = self.draws.host_log_p[row] - self.draws.host_log_q[row];
            let uniform = f64::from(to_unit(coin.words(row as u64, 0, 0)[0]));
            if uniform < (log_w - self.log_bound).exp() {
                self.pool.keep(self.backend, &self.draws.batch, row, 0.0, self.draws.host_log_q[row])?;
            }
        }
        Ok(())
    }

    /// Updates π on sequences of the pool, if there are any of positive weight.
    pub fn train(&mut self) -> Result<()> {
        let on_policy = self.source == Source::Policy && self.proposal.is_none();
        let updates = if on_policy { 1 } else { self.options.updates };
        let log_mean = match self.options.method {
            Method::Reinforce => self.log_reward.value(),
            _ => self.pool.log_mean_weight(),
        };
        if self.pool.rows() == 0 || log_mean == f64::NEG_INFINITY {
            return Ok(());
        }
        for _ in 0..updates {
            self.update(log_mean)?;
        }
        Ok(())
    }

    /// One update on up to a batch of sequences of the pool: coefficients w / mean w, per token.
    fn update(&mut self, log_mean: f64) -> Result<()> {
        let (options, step) = (self.options, &mut self.step);
        self.pool.choose(options.batch, Draw::new(options.seed, Purpose::Shuffle));
        let chosen = &self.pool.chosen;
        let rows = chosen.len();
        step.batch.gather(self.backend, &self.pool.batch, chosen)?;
        let scale = 1.0 / (rows as f32 * self.target.base.space().longest as f32);
        let reward_baseline = if options.baseline && options.method == Method::Reinforce { 1.0 } else { 0.0 };
        for (at, &slot) in chosen.iter().enumerate() {
            let weight = (self.pool.log_w[slot as usize] - log_mean).exp() as f32;
            step.host_weights[at] = (weight - reward_baseline) * scale;
            step.host_log_q[at] = self.pool.log_q[slot as usize];
        }
        self.backend.upload(&step.host_weights[..rows], &mut step.weights)?;
        self.backend.upload(&step.host_log_q[..rows], &mut step.log_q)?;
        let baseline = options.baseline && matches!(options.method, Method::DpgOffPolicy | Method::DpgOnPolicy);
        let coefficients = Coefficients {
            weighting: if baseline { Weighting::Baseline } else { Weighting::Given },
            weights: B::view(&step.weights, rows),
            log_q: Some(B::view(&step.log_q, rows)),
            scale,
            dropout: None,
        };
        self.policy.gradient(&step.batch, &coefficients, B::view_mut(&mut step.log_pi, rows))?;
        let rate = options.adam.learning_rate * options.rate(self.samples);
        self.policy.update(&AdamOptions { learning_rate: rate, ..options.adam })?;
        self.updates += 1;
        self.note_loss(rows)
    }

    fn note_loss(&mut self, rows: usize) -> Result<()> {
        let step = &mut self.step;
        self.backend.download(&step.log_pi, &mut step.host_log_pi[..rows])?;
        for (weight, log_pi) in step.host_weights.iter().zip(&step.host_log_pi[..rows]) {
            // Skipped rows have no log π.
            if *weight != 0.0 && !log_pi.is_nan() {
                self.losses.0 -= f64::from(*weight) * log_pi;
            }
        }
        self.losses.1 += 1.0;
        Ok(())
    }

    /// Judges π, notes how things stand, and swaps where π has become superior.
    pub fn evaluate(&mut self) -> Result<()> {
        let draw = Draw::new(self.options.seed, Purpose::Evaluate)
            .skip(2 * self.evaluations * self.options.evaluation_rows as u64);
        self.evaluations += 1;
        let moments = self.policy_moments(draw.skip(self.options.evaluation_rows as u64))?;
        let verdict = self.judge(draw)?;
        let (loss, updates) = std::mem::take(&mut self.losses);
        self.history.push(Record {
            samples: self.samples,
            updates: self.updates,
            loss: loss / updates,
            kl: verdict.kl,
            kl_proposal: verdict.kl_proposal,
            ess: verdict.ess,
            moments,
            log_z: self.log_z.value(),
            swaps: self.swaps,
        });
        if self.proposal.is_some() && (verdict.superior || self.is_superior_on_data()?) { self.swap() } else { Ok(()) }
    }

    fn policy_moments(&mut self, draw: Draw) -> Result<Vec<Estimate>> {
        self.look.fill(self.backend, self.target, Source::Policy, Some(self.policy), draw)?;
        let features = self.target.features.len();
        let column = |i: usize| self.look.host_phi.iter().skip(i).step_by(features).map(|&v| f64::from(v)).collect();
        (0..features).map(|i| Estimate::mean(&Vec::<f64>::from_iter::<Vec<f64>>(column(i)))).collect()
    }

    fn judge(&mut self, draw: Draw) -> Result<Verdict> {
        let (options, source) = (self.options, self.source);
        let mut own = None;
        let proposal = match (&mut self.proposal, source) {
            (Some(proposal), _) => Some(proposal),
            // On-policy, π changes with every update: only this moment's draws are its own.
            (None, Source::Policy) => {
                self.judge.forget();
                Some(own.insert(self.policy.clone()))
            }
            (None, _) => None,
        };
        self.judge.judge(self.backend, self.target, source, proposal, self.policy, options.swap, draw)
    }

    fn is_superior_on_data(&mut self) -> Result<bool> {
        let (Swap::CrossEntropy, Some(judge), Some(data)) = (self.options.swap, &mut self.data_judge, self.data) else {
            return Ok(false);
        };
        let proposal = self.proposal.as_mut().filter(|_| self.source == Source::Policy);
        judge.is_superior(self.backend, self.target.base, proposal, self.policy, data)
    }

    /// q ← π.
    pub fn swap(&mut self) -> Result<()> {
        let Some(proposal) = &mut self.proposal else { return Ok(()) };
        proposal.copy_from(self.policy)?;
        self.source = Source::Policy;
        self.judge.forget();
        self.swaps += 1;
        Ok(())
    }

    pub fn finish(self) -> Result<Tuned> {
        let mut warnings = Vec::new();
        if self.updates == 0 {
            return Err(Error::no_answer(
                "tuning",
                format!(
                    "not one of {} draws had a positive weight: draw more, or from a guided proposal",
                    self.samples
                ),
            ));
        }
        if self.clipped > 0 {
            warnings.push(format!(
                "distillation from the guided proposal is quasi-rejection: its bound was raised in {} batches",
                self.clipped
            ));
        }
        Ok(Tuned { samples: self.samples, updates: self.updates, swaps: self.swaps, history: self.history, warnings })
    }
}

impl<B: Backend> Step<B> {
    fn new(backend: &B, space: crate::tokens::Space, rows: usize) -> Result<Self> {
        Ok(Step {
            batch: Batch::with_capacity(backend, space, rows)?,
            weights: backend.zeros(rows, "step weights")?,
            log_q: backend.zeros(rows, "step log q")?,
            log_pi: backend.zeros(rows, "step log-probs")?,
            host_weights: vec![0.0; rows],
            host_log_q: vec![0.0; rows],
            host_log_pi: vec![0.0; rows],
        })
    }
}

fn check_needs<B: Backend>(options: &TuneOptions, source: Source, guide: bool, data: Option<&Batch<B>>) -> Result<()> {
    if source == Source::Guided && !guide {
        return Err(Error::argument("guided proposal", "a guide in the target", "none"));
    }
    if options.method == Method::DpgOffPolicy && options.swap == Swap::CrossEntropy {
        if data.is_none_or(|data| data.rows == 0) {
            return Err(Error::argument("swap by cross-entropy", "held-out data", "none"));
        }
        if source == Source::Guided {
            return Err(Error::argument("swap by cross-entropy", "the base as first proposal", "the guided proposal"));
        }
    }
    Ok(())
}
