//! Training-2: an autoregressive policy π towards p = P/Z by distributional policy gradient,
//! θ += α·P(x)/q(x)·∇log π(x) with x from a proposal q, and q ← π whenever π has become superior (Parshakova, Andreoli &
//! Dymetman 2019, "Distributional reinforcement learning for energy-based sequential models"), beside on-policy DPG,
//! distillation and reward maximisation.
//!
//! [`tune`] reads as the pipeline: draw from q, score under r, features, potential, weights, gradient, update, swap.

use crate::adam::AdamOptions;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::exact::Guide;
use crate::features::FeatureTable;
use crate::gradient::Divergence;
use crate::models::{Policy, Sampler};
use crate::potential::Potential;
use crate::rng::{Draw, Purpose};
use crate::tokens::{Batch, Contexts};
use crate::weights::Estimate;

mod checkpoint;
mod draws;
mod evaluate;
mod judge;
mod objective;
mod pool;
mod proposed;
mod rejection;
mod subtrajectory;
mod tuner;

pub use checkpoint::{Checkpoint, Checkpoints};
pub use draws::{Draws, Source};
pub use evaluate::{ContextEvaluation, Evaluation, evaluate};
pub use objective::{KlControl, Method};
pub use pool::{Baseline, Choice, Chosen, ContextBooks, Ledger, NewDraws, Pool, PoolKernel, Unit, Worth};
pub use rejection::Rejection;
pub use subtrajectory::{EndedPrefixes, SubTrajectories, SubTrajectoryKernel};

/// What the policy is trained towards: P = r·b·exp⟨λ, φ⟩, and a look-ahead that guides r towards it.
pub struct Target<'a, B: Backend, R> {
    /// r.
    pub base: &'a mut R,
    /// φ.
    pub features: &'a FeatureTable<B>,
    /// b and λ.
    pub potential: &'a Potential<B>,
    /// The guided proposal's look-ahead, where there is one.
    pub guide: Option<&'a Guide<B>>,
    /// What sequences continue, where they continue something: the policy is then trained towards each context's own
    /// distribution p_c = P/Z_c, all contexts alike (Korbak et al. 2022, "Controlling conditional language models without
    /// catastrophic forgetting"), and P, q and π are those of what follows the context. Each Z_c is estimated from the draws
    /// that continue c, and weights are divided by it.
    pub contexts: Option<&'a Contexts<B>>,
}

/// Data that tuning may use beside its own draws.
pub struct TuneData<'a, B: Backend> {
    /// Judges [`Swap::CrossEntropy`]; never trained on.
    pub held_out: Option<&'a Batch<B>>,
    /// Samples of p that [`Method::Distill`] adds to those it accepts; the other methods do not read them.
    pub extra: Option<&'a Batch<B>>,
}

impl<B: Backend> Default for TuneData<'_, B> {
    /// None.
    fn default() -> Self {
        TuneData { held_out: None, extra: None }
    }
}

/// When q ← π.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub enum Swap {
    /// Lower KL(p‖·) by the paired test: Δ beyond two standard errors, ESS of 100 or more.
    Kl,
    /// Lower TV(p, ·), by the same test.
    Tv,
    /// Lower cross-entropy on held-out data (the paper's), by the same test.
    CrossEntropy,
    /// Every so many batches of draws.
    Every(u64),
    /// Never.
    Never,
}

/// How [`tune`] goes about it.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct TuneOptions {
    /// The method.
    pub method: Method,
    /// The proposal that off-policy DPG and distillation start from.
    pub proposal: Source,
    /// What DPG descends; the forward KL(p‖π) is plain DPG.
    pub divergence: Divergence,
    /// When q ← π; read by off-policy methods.
    pub swap: Swap,
    /// The share a of each batch that the first proposal q₁ keeps once q ← π; 0 for none, below 1. The rest comes from the
    /// frozen policy q₂, and all are weighed by q = a·q₁ + (1 − a)·q₂ (a defensive mixture: Hesterberg 1995; Owen & Zhou
    /// 2000; the balance heuristic of Veach & Guibas 1995). No weight then exceeds P/q₁ by more than 1/a, so a policy that
    /// forgets a part of p cannot lose it where q₁ covers p. a is rounded to whole rows, of a batch and of an evaluation, 1 at
    /// least from each of the two, and the densities are mixed by what that comes to; with contexts to whole rounds over all
    /// of them, of which a batch and an evaluation must then consist. π replaces q₂ when the mixture with π beats the
    /// mixture with q₂. For methods and rules that swap.
    ///
    /// It costs passes beside the drawing: π scores what q₁ drew, the a-th part of a batch, and a guided r what q₂ drew, the
    /// rest; r unguided has scored it already. A model that samples in another precision than it scores in
    /// ([`Precision::Half`](crate::models::Precision)) mixes densities that differ by as much.
    pub defensive: f64,
    /// What is held against the weights; distillation has none, and sub-trajectory balance needs none, as nothing but
    /// differences of log-weights is in it.
    pub baseline: Baseline,
    /// Weights (rewards) above so many times their mean are cut to it; infinite for none. The policy is then trained
    /// towards another distribution, whose TV from p is at most [`Record::clipped`].
    pub clip_weights: f64,
    /// Sequences to draw for training: the budget, rounded up to whole batches.
    pub samples: usize,
    /// Sequences per draw and per update; of each, sub-trajectory balance takes several rows.
    pub batch: usize,
    /// Updates per batch of draws, each on sequences of the cache; on-policy methods make 1.
    pub updates: usize,
    /// The most updates that a kept draw takes part in, on average: where a proposal yields few draws of positive weight,
    /// fewer updates are made rather than those few learnt by heart.
    pub uses: usize,
    /// The replay buffer's capacity: draws kept with their weights, one batch at least; the oldest leave first. The weight of
    /// a draw is P over the proposal that drew it, so it stays exact when q ← π and for as long as it is kept. All that are
    /// kept take turns, [`TuneOptions::updates`] batches of them a batch of draws, none more than [`TuneOptions::uses`] times
    /// on average. On-policy methods keep the last batch alone.
    pub cache: usize,
    /// The optimiser at the start; the gradient is per token.
    pub adam: AdamOptions,
    /// Whether the learning rate falls linearly to a twentieth over the budget.
    pub decay: bool,
    /// Evaluations over the run.
    pub evaluations: usize,
    /// Sequences drawn for each evaluation, and as many from π for its moments; none of them is ever trained on.
    pub evaluation_rows: usize,
    /// Evaluations whose draws judge, 1 or more, those of the present proposal at most: the oldest leave. More of them
    /// tell smaller differences apart; π scores all at each evaluation.
    pub kept_evaluations: usize,
    /// Seed of all draws.
    pub seed: u64,
}

impl Default for TuneOptions {
    fn default() -> Self {
        TuneOptions {
            method: Method::DpgOffPolicy,
            proposal: Source::Guided,
            divergence: Divergence::ForwardKl,
            swap: Swap::Kl,
            defensive: 0.0,
            baseline: Baseline::None,
            clip_weights: f64::INFINITY,
            samples: 20_000,
            batch: 500,
            updates: 4,
            uses: 20,
            cache: 65_536,
            adam: AdamOptions { clip: 1.0, ..AdamOptions::default() },
            decay: true,
            evaluations: 20,
            evaluation_rows: 512,
            kept_evaluations: 8,
            seed: 0,
        }
    }
}

impl TuneOptions {
    /// # Errors
    /// A count of zero, a bad optimiser, a swap interval of zero, an objective whose parts do not go together, a defensive
    /// share outside of 0 to 1 or of what never swaps.
    pub fn check(&self) -> Result<()> {
        self.adam.check()?;
        objective::Objective::new(self)?;
        let counts = [
            ("training samples", self.samples),
            ("batch", self.batch),
            ("updates per batch", self.updates),
            ("uses of a draw", self.uses),
            ("cached draws", self.cache),
            ("evaluations", self.evaluations),
            ("evaluation rows", self.evaluation_rows),
            ("evaluations kept", self.kept_evaluations),
        ];
        if let Some((what, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Error::argument(*what, "1 or more", 0));
        }
        if self.swap == Swap::Every(0) {
            return Err(Error::argument("swap interval", "1 batch or more", 0));
        }
        if self.proposal == Source::Policy {
            return Err(Error::argument("first proposal", "the base, guided or not", "the policy"));
        }
        self.check_defensive()
    }

    fn check_defensive(&self) -> Result<()> {
        let refused = |expected: &str, got: String| Err(Error::argument("defensive share", expected, got));
        if !(0.0..1.0).contains(&self.defensive) {
            return refused("0 or more and below 1", self.defensive.to_string());
        }
        if self.defensive == 0.0 {
            return Ok(());
        }
        if !self.method.is_off_policy() || self.swap == Swap::Never {
            let got = format!("{:?} with {:?}", self.method, self.swap);
            return refused("0 for a method or a rule that never swaps", got);
        }
        let least = self.rows().min(self.evaluation_rows);
        if least < 2 {
            return refused("2 sequences or more a batch and an evaluation, one of each component", least.to_string());
        }
        Ok(())
    }

    /// Sequences of each draw: a batch, or the whole budget where that is smaller.
    fn rows(&self) -> usize {
        self.batch.min(self.samples)
    }

    /// The share of the full learning rate once `samples` sequences have been trained on.
    fn rate(&self, samples: usize) -> f32 {
        if self.decay { 1.0 - 0.95 * (samples as f32 / self.samples as f32).min(1.0) } else { 1.0 }
    }
}

/// How things stand at one evaluation.
///
/// What is said of π and q comes from sequences that neither was trained on: `kl`, `kl_proposal`, `tv` and `ess` from draws of
/// q made to judge alone, those of the last [`TuneOptions::kept_evaluations`] evaluations and none from before q ← π;
/// `moments` from new draws of π. A window and no decay: the weights P/q of all of them are exact, so giving less weight to
/// the older would only cost precision. `log_z` is over the training draws, whose weights were fixed when they were drawn,
/// by a q that had not seen them: they know nothing of what was trained on them, and Ẑ is unbiased; with contexts it is also what
/// the judge's weights are measured by, each context's by its own. `clipped` is what became of those weights; `loss` and the gradient's norm are those of the updates themselves.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
pub struct Record {
    /// Sequences drawn for training so far.
    pub samples: usize,
    /// Updates made so far.
    pub updates: usize,
    /// Mean of −log π per token (of the longest length) over the sequences of the last updates, each with its weight (for
    /// REINFORCE its reward; for sub-trajectory balance over the ended prefixes, all alike); NaN where there was no update.
    pub loss: f64,
    /// Mean norm of the gradients of those updates, before clipping, and its standard deviation; NaN where there was none.
    pub gradient_norm: f64,
    /// See `gradient_norm`.
    pub gradient_norm_deviation: f64,
    /// KL(p‖π) in nats, where an independent sample of the proposal allows an estimate.
    pub kl: Option<Estimate>,
    /// KL(p‖q) likewise.
    pub kl_proposal: Option<Estimate>,
    /// TV(p, π) likewise.
    pub tv: Option<Estimate>,
    /// Effective sample size of the proposal's weights, as a share of the sample.
    pub ess: f64,
    /// E_π φ per feature.
    pub moments: Vec<Estimate>,
    /// log Ẑ over all draws so far, those of all contexts together.
    pub log_z: f64,
    /// Its standard error.
    pub log_z_error: f64,
    /// log Ẑ of the draws that judge, those of the present q alone (with contexts `log_z` plus what they put it off by). Less
    /// than `log_z`, or than it was before, and q has lost a part of p: `kl`, `tv` and `ess`, which know of nothing but q's
    /// draws, are then of what is left. Unknown where none of the draws has a positive weight.
    pub log_z_now: Option<Estimate>,
    /// The share of all weight that clipping takes away: a bound of the TV between p and what is trained towards.
    pub clipped: f64,
    /// Swaps before this evaluation.
    pub swaps: usize,
}

/// How far [`tune`] has come.
#[derive(Debug, Clone, Copy)]
pub struct TuneProgress<'a> {
    /// Sequences drawn for training so far.
    pub samples: usize,
    /// The budget.
    pub of: usize,
    /// The record just made, where this call is an evaluation.
    pub record: Option<&'a Record>,
}

/// What [`tune`] did.
#[derive(Debug, Clone, PartialEq)]
pub struct Tuned {
    /// Sequences drawn for training.
    pub samples: usize,
    /// Updates made.
    pub updates: usize,
    /// q ← π so many times.
    pub swaps: usize,
    /// All evaluations.
    pub history: Vec<Record>,
    /// log Ẑ of each context over its draws, none where there are no contexts; −∞ where none had a positive weight.
    pub contexts: Vec<Estimate>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Trains `policy` towards `target`. `progress` is called after each batch of draws.
///
/// The same seed gives the same policy bit for bit, whatever the number of threads.
///
/// # Errors
/// Bad options; a guided proposal without a guide; a cross-entropy swap without held-out data; no draw of positive weight
/// in the whole budget; NaN anywhere.
pub fn tune<B: Backend, R: Sampler<B>, P: Policy<B>>(
    backend: &B,
    target: &mut Target<'_, B, R>,
    policy: &mut P,
    options: &TuneOptions,
    data: TuneData<'_, B>,
    progress: impl FnMut(TuneProgress<'_>),
) -> Result<Tuned> {
    run(backend, target, policy, options, data, None, progress)
}

/// As [`tune`], with a checkpoint now and then, and from one where that is given: policy, history and all else are then
/// bit for bit those of the run that was never interrupted. `progress` is called for what is new alone.
///
/// ```
/// # use ebm_dpg::backend::Cpu;
/// # use ebm_dpg::features::{Feature, FeatureSet};
/// # use ebm_dpg::models::{Lstm, LstmShape, Markov};
/// # use ebm_dpg::potential::{Potential, Role};
/// # use ebm_dpg::tokens::Space;
/// # use ebm_dpg::tune::{Source, Target, TuneData, TuneOptions};
/// use ebm_dpg::tune::{Checkpoint, Checkpoints, tune_with_checkpoints};
/// # let space = Space::new(2, 5)?;
/// # let (mut base, set) = (Markov::noise(space, 4)?, FeatureSet::new(space).with("1", Feature::StartsWith(vec![1]))?);
/// # let (features, potential) = (set.compile(&Cpu)?, Potential::new(&Cpu, &[Role::Tilt(1.0)])?);
/// # let mut target = Target { base: &mut base, features: &features, potential: &potential, guide: None, contexts: None };
/// # let fresh = || Lstm::new(space, LstmShape { layers: 1, hidden: 4, dropout: 0.0 }, 0);
/// # let mut options = TuneOptions::default();
/// # (options.samples, options.batch, options.proposal) = (200, 50, Source::Base);
/// # let directory = tempfile::tempdir().unwrap();
/// let mut checkpoints = Checkpoints::new(&directory.path().join("checkpoint.safetensors"));
/// # let mut policy = fresh()?;
/// let tuned = tune_with_checkpoints(&Cpu, &mut target, &mut policy, &options, TuneData::default(), &checkpoints, |_| {})?;
///
/// // After a power cut: a policy of the same shape, whatever its parameters, goes on from where the file ends.
/// let mut again = fresh()?;
/// checkpoints.resume = Some(Checkpoint::load(&checkpoints.path)?);
/// assert_eq!(tuned, tune_with_checkpoints(&Cpu, &mut target, &mut again, &options, TuneData::default(), &checkpoints, |_| {})?);
/// assert_eq!(again.tensors(), policy.tensors());
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
///
/// # Errors
/// As [`tune`]; a checkpoint of another run, which is one of another backend, policy's shape, option, feature, λ, base,
/// guide or data, and the first of these is named: the policy is as before then. A checkpoint that cannot be written ends
/// the run, and the last one stays.
pub fn tune_with_checkpoints<B: Backend, R: Sampler<B>, P: Policy<B>>(
    backend: &B,
    target: &mut Target<'_, B, R>,
    policy: &mut P,
    options: &TuneOptions,
    data: TuneData<'_, B>,
    checkpoints: &Checkpoints,
    progress: impl FnMut(TuneProgress<'_>),
) -> Result<Tuned> {
    checkpoints.check()?;
    run(backend, target, policy, options, data, Some(checkpoints), progress)
}

fn run<B: Backend, R: Sampler<B>, P: Policy<B>>(
    backend: &B,
    target: &mut Target<'_, B, R>,
    policy: &mut P,
    options: &TuneOptions,
    data: TuneData<'_, B>,
    checkpoints: Option<&Checkpoints>,
    mut progress: impl FnMut(TuneProgress<'_>),
) -> Result<Tuned> {
    options.check()?;
    let mut tuner = tuner::Tuner::new(backend, target, policy, options, data)?;
    let keeper = checkpoints.map(|checkpoints| tuner.keeper(checkpoints)).transpose()?;
    let rows = options.rows();
    let batches = options.samples.div_ceil(rows);
    let evaluations = |batches_done: usize| batches_done as u128 * options.evaluations as u128 / batches as u128;
    for batch in tuner.samples / rows..batches {
        tuner.step(Draw::new(options.seed, Purpose::Tune).skip((batch * rows) as u64))?;
        let due = evaluations(batch + 1) > evaluations(batch);
        if due {
            tuner.evaluate()?;
        }
        if let Swap::Every(interval) = options.swap
            && ((batch + 1) as u64).is_multiple_of(interval)
        {
            tuner.swap()?;
        }
        let record = tuner.history.last().filter(|_| due);
        progress(TuneProgress { samples: tuner.samples, of: options.samples, record });
        if let Some(keeper) = keeper.as_ref().filter(|_| due) {
            keeper.keep(&tuner, batch + 1 == batches)?;
        }
    }
    tuner.finish()
}
