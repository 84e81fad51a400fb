//! The training loop's state and its stages.

use super::judge::{Comparison, DataJudge, Judge, Verdict};
use super::pool::Pool;
use super::rejection::Rejection;
use super::step::{Step, Update};
use super::{Draws, Method, Record, Source, Swap, Target, TuneData, TuneOptions, Tuned};
use crate::adam::AdamOptions;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::{Policy, Sampler, Weighting, check_batch};
use crate::rng::{Draw, Purpose};
use crate::weights::LogMean;

/// Everything the loop works in; made once, so that no step allocates.
pub(super) struct Tuner<'a, 'b, B: Backend, R, P> {
    backend: &'a B,
    target: &'a mut Target<'b, B, R>,
    policy: &'a mut P,
    /// The frozen copy of π that proposes after a swap; `None` for methods that never swap.
    proposal: Option<P>,
    source: Source,
    options: &'a TuneOptions,
    data: TuneData<'a, B>,
    draws: Draws<B>,
    /// The rows of the draws that the pool takes.
    kept: Vec<u32>,
    pool: Pool<B>,
    step: Step<B>,
    rejection: Rejection,
    judge: Judge<B>,
    data_judge: Option<DataJudge<B>>,
    /// Draws from π whose features show its moments.
    look: Draws<B>,
    log_z: LogMean,
    /// The running log of the mean reward, for REINFORCE.
    log_reward: LogMean,
    pub samples: usize,
    updates: usize,
    swaps: usize,
    evaluations: u64,
    pub history: Vec<Record>,
}

impl<'a, 'b, B: Backend, R: Sampler<B>, P: Policy<B>> Tuner<'a, 'b, B, R, P> {
    pub fn new(
        backend: &'a B,
        target: &'a mut Target<'b, B, R>,
        policy: &'a mut P,
        options: &'a TuneOptions,
        data: TuneData<'a, B>,
    ) -> Result<Self> {
        let (space, features, rows) = (target.base.space(), target.features.len(), options.rows());
        check_batch(space, policy.space())?;
        let source = if options.method.is_on_policy() { Source::Policy } else { options.proposal };
        check_needs(options, source, target.guide.is_some(), &data)?;
        let swaps = options.method == Method::DpgOffPolicy && options.swap != Swap::Never;
        // A batch larger than the cache would be cut to its newest part.
        let cache = if options.method.is_on_policy() { rows } else { options.cache.max(rows) };
        let extra = data.extra.filter(|_| options.method == Method::Distill);
        let held_out = data.held_out.filter(|_| options.swap == Swap::CrossEntropy);
        Ok(Tuner {
            backend,
            proposal: swaps.then(|| policy.try_clone()).transpose()?,
            source,
            options,
            draws: Draws::new(backend, space, rows, features)?,
            kept: Vec::with_capacity(rows),
            pool: Pool::new(backend, space, cache, extra)?,
            step: Step::new(
                backend,
                space,
                options.batch.min(cache.saturating_add(extra.map_or(0, |extra| extra.rows))),
            )?,
            rejection: Rejection::new(source, target.potential, options.seed),
            judge: Judge::new(backend, space, options.evaluation_rows, features)?,
            data_judge: held_out.map(|data| DataJudge::new(backend, data.rows)).transpose()?,
            look: Draws::new(backend, space, options.evaluation_rows, features)?,
            data,
            target,
            policy,
            log_z: LogMean::new(),
            log_reward: LogMean::new(),
            samples: 0,
            updates: 0,
            swaps: 0,
            evaluations: 0,
            history: Vec::new(),
        })
    }

    /// Draws a batch from q and puts it where updates find it.
    pub fn draw(&mut self, draw: Draw) -> Result<()> {
        self.fill(draw)?;
        self.samples += self.draws.rows();
        self.log_z.push(&self.draws.host_log_w)?;
        if self.options.method.is_on_policy() {
            self.pool.clear();
        }
        match self.options.method {
            Method::DpgOffPolicy | Method::DpgOnPolicy => self.keep_weighted(),
            Method::Reinforce => self.keep_rewards(),
            Method::Distill => self.keep_accepted(draw),
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

    /// The draws of positive weight; with the baseline all of them, as π/q has a gradient where P has none.
    fn keep_weighted(&mut self) -> Result<()> {
        let Draws { batch, host_log_w, host_log_q, .. } = &self.draws;
        let matters = |row: &u32| self.options.baseline || host_log_w[*row as usize] > f64::NEG_INFINITY;
        self.kept.clear();
        self.kept.extend((0..batch.rows as u32).filter(matters));
        self.pool.keep(self.backend, batch, &self.kept, host_log_w, host_log_q)
    }

    /// R = P: the reward stands in the place of the weight. Only its size relative to the mean reward matters to Adam.
    fn keep_rewards(&mut self) -> Result<()> {
        let Draws { batch, host_log_p, host_log_q, .. } = &self.draws;
        self.log_reward.push(host_log_p)?;
        self.kept.clear();
        self.kept.extend(0..batch.rows as u32);
        self.pool.keep(self.backend, batch, &self.kept, host_log_p, host_log_q)
    }

    /// The draws that rejection accepts: samples of p, of weight 1 each.
    fn keep_accepted(&mut self, draw: Draw) -> Result<()> {
        self.rejection.accept(&self.draws, draw, &mut self.pool, &mut self.kept);
        let Draws { batch, host_log_w, host_log_q, .. } = &mut self.draws;
        host_log_w.fill(0.0);
        self.pool.keep(self.backend, batch, &self.kept, host_log_w, host_log_q)
    }

    /// Updates π on sequences of the pool, if there are any of positive weight.
    pub fn train(&mut self) -> Result<()> {
        let options = self.options;
        let log_mean = match options.method {
            Method::Reinforce => self.log_reward.value(),
            _ => self.pool.log_mean_weight()?,
        };
        if log_mean == f64::NEG_INFINITY {
            return Ok(());
        }
        let is_dpg = matches!(options.method, Method::DpgOffPolicy | Method::DpgOnPolicy);
        let is_reinforce = options.method == Method::Reinforce;
        let rate = options.rate(self.samples - self.draws.rows());
        let update = Update {
            weighting: if options.baseline && is_dpg { Weighting::Baseline } else { Weighting::Given },
            log_mean,
            reward_baseline: if options.baseline && is_reinforce { 1.0 } else { 0.0 },
            adam: AdamOptions { learning_rate: options.adam.learning_rate * rate, ..options.adam },
        };
        for _ in 0..if options.method.is_on_policy() { 1 } else { options.updates } {
            if self.pool.uses_after(options.batch) > options.uses as f64 {
                break;
            }
            self.pool.choose(options.batch, Draw::new(options.seed, Purpose::Shuffle));
            self.step.run(self.backend, &self.pool, self.policy, &update)?;
            self.updates += 1;
        }
        Ok(())
    }

    /// Judges π, notes how things stand, and swaps where π has become superior.
    pub fn evaluate(&mut self) -> Result<()> {
        let rows = self.options.evaluation_rows as u64;
        let draw = Draw::new(self.options.seed, Purpose::Evaluate).skip(2 * self.evaluations * rows);
        self.evaluations += 1;
        self.look.fill(self.backend, self.target, Source::Policy, Some(self.policy), draw.skip(rows))?;
        let verdict = self.judge(draw)?;
        self.history.push(Record {
            samples: self.samples,
            updates: self.updates,
            loss: self.step.take_loss(),
            kl: verdict.kl,
            kl_proposal: verdict.kl_proposal,
            ess: verdict.ess,
            moments: self.look.moments()?,
            log_z: self.log_z.value(),
            swaps: self.swaps,
        });
        if self.proposal.is_some() && (verdict.superior || self.is_superior_on_data()?) { self.swap() } else { Ok(()) }
    }

    fn judge(&mut self, draw: Draw) -> Result<Verdict> {
        let (swap, source) = (self.options.swap, self.source);
        let comparison = Comparison { source, swap, outside: self.look.outside(source)? };
        let mut own = None;
        let proposal = match (&mut self.proposal, source) {
            (Some(proposal), _) => Some(proposal),
            // On-policy, π changes with every update: only this moment's draws are its own.
            (None, Source::Policy) => {
                self.judge.forget();
                Some(own.insert(self.policy.try_clone()?))
            }
            (None, _) => None,
        };
        self.judge.judge(self.backend, self.target, proposal, self.policy, comparison, draw)
    }

    fn is_superior_on_data(&mut self) -> Result<bool> {
        let (Some(judge), Some(data)) = (&mut self.data_judge, self.data.held_out) else {
            return Ok(false);
        };
        judge.is_superior(self.backend, self.target, self.source, self.proposal.as_mut(), self.policy, data)
    }

    /// q ← π, where the method swaps at all.
    pub fn swap(&mut self) -> Result<()> {
        let Some(proposal) = &mut self.proposal else { return Ok(()) };
        proposal.copy_from(self.policy)?;
        self.source = Source::Policy;
        self.judge.forget();
        self.swaps += 1;
        Ok(())
    }

    pub fn finish(self) -> Result<Tuned> {
        let nothing = if self.log_z.value() == f64::NEG_INFINITY {
            Some("had a positive weight")
        } else if self.updates == 0 {
            Some("was accepted")
        } else {
            None
        };
        if let Some(nothing) = nothing {
            let reason = format!("not one of {} draws {nothing}: draw more, or from a guided proposal", self.samples);
            return Err(Error::no_answer("tuning", reason));
        }
        let warning = self.rejection.warning().filter(|_| self.options.method == Method::Distill);
        Ok(Tuned {
            samples: self.samples,
            updates: self.updates,
            swaps: self.swaps,
            history: self.history,
            warnings: warning.into_iter().collect(),
        })
    }
}

fn check_needs<B: Backend>(options: &TuneOptions, source: Source, guide: bool, data: &TuneData<'_, B>) -> Result<()> {
    if source == Source::Guided && !guide {
        return Err(Error::argument("guided proposal", "a guide in the target", "none"));
    }
    let by_data = options.method == Method::DpgOffPolicy && options.swap == Swap::CrossEntropy;
    if by_data && data.held_out.is_none_or(|data| data.rows == 0) {
        return Err(Error::argument("swap by cross-entropy", "held-out data", "none"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Cpu;
    use crate::features::{Feature, FeatureSet};
    use crate::models::{Lstm, LstmShape, Markov};
    use crate::potential::{Potential, Role};
    use crate::tokens::Space;

    /// The pool's weights after one batch of 640 draws from noise; some meet the requirement.
    fn kept(method: Method, baseline: bool) -> (Vec<f64>, usize) {
        let space = Space::new(2, 4).unwrap();
        let set = FeatureSet::new(space).with("11", Feature::StartsWith(vec![1, 1])).unwrap();
        let (features, potential) = (set.compile(&Cpu).unwrap(), Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap());
        let mut base = Markov::noise(space, 3).unwrap();
        let mut target = Target { base: &mut base, features: &features, potential: &potential, guide: None };
        let mut policy = Lstm::new(space, LstmShape { layers: 1, hidden: 4, dropout: 0.0 }, 0).unwrap();
        let (batch, samples, proposal) = (640, 640, Source::Base);
        let options = TuneOptions { method, baseline, batch, samples, proposal, ..TuneOptions::default() };
        let mut tuner = Tuner::new(&Cpu, &mut target, &mut policy, &options, TuneData::default()).unwrap();
        tuner.draw(Draw::new(0, Purpose::Tune)).unwrap();
        assert_eq!(tuner.samples, 640);
        let positive = tuner.draws.host_log_p.iter().filter(|log_p| log_p.is_finite()).count();
        (tuner.pool.log_w.clone(), positive)
    }

    #[test]
    fn rows_of_weight_zero_are_kept_for_the_baseline_only() {
        for method in [Method::DpgOffPolicy, Method::DpgOnPolicy] {
            let (weights, positive) = kept(method, false);
            assert!(positive > 0 && positive < 640);
            assert_eq!(weights.len(), positive);
            assert!(weights.iter().all(|log_w| log_w.is_finite()));
            assert_eq!(kept(method, true).0.len(), 640);
        }
        // The weights of distillation are 1, those of REINFORCE the rewards of all rows.
        let (weights, positive) = kept(Method::Distill, false);
        assert_eq!(weights, vec![0.0; positive]);
        assert_eq!(kept(Method::Reinforce, false).0.len(), 640);
    }
}
