//! The training loop's state and its stages.

use super::judge::{Comparison, DataJudge, Judge, Verdict};
use super::objective::Objective;
use super::proposed::{Proposed, Split};
use super::subtrajectory::Balancing;
use super::{
    Choice, Chosen, Draws, Method, NewDraws, Pool, Record, Rejection, Source, Swap, Target, TuneData, TuneOptions,
    Tuned,
};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::{Coefficients, Policy, Sampler, check_batch};
use crate::rng::{Draw, Purpose};
use crate::tokens::{Contexts, Space};
use crate::weights::{Estimate, LogMean};

mod resume;

/// Everything the loop works in; made once, so that no step allocates.
pub(super) struct Tuner<'a, 'b, B: Backend, R, P> {
    backend: &'a B,
    target: &'a mut Target<'b, B, R>,
    policy: &'a mut P,
    /// The frozen copy of π that proposes after a swap; `None` for methods that never swap.
    proposal: Option<P>,
    source: Source,
    options: &'a TuneOptions,
    objective: Objective,
    data: TuneData<'a, B>,
    draws: Proposed<B>,
    /// log w of the draws.
    log_w: B::Buffer<f64>,
    pool: Pool<B>,
    rejection: Rejection,
    /// The share of the full learning rate that this step's updates have, one value.
    rate: B::Buffer<f32>,
    chosen: Chosen<B>,
    log_pi: B::Buffer<f64>,
    /// What sub-trajectory balance works in.
    balancing: Option<Balancing<B>>,
    steps: Steps<B::Recording>,
    judge: Judge<B>,
    data_judge: Option<DataJudge<B>>,
    /// Draws from π whose features show its moments.
    look: Draws<B>,
    pub samples: usize,
    swaps: usize,
    evaluations: u64,
    pub history: Vec<Record>,
}

/// How a step is run: the launches of one are those of the next, but for where its draws begin.
enum Steps<R> {
    /// One by one, as workspaces are yet to be made.
    First,
    /// The next is recorded.
    Second,
    /// As it was recorded with this draw.
    Recorded(R, Draw),
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
        check_contexts(target.contexts, space, &data)?;
        let objective = Objective::new(options)?;
        objective.check_roles(target.potential.roles())?;
        let swaps = options.method.is_off_policy() && options.swap != Swap::Never;
        // A batch larger than the cache would be cut to its newest part.
        let cache = if options.method.is_on_policy() { rows } else { options.cache.max(rows) };
        let extra = data.extra.filter(|_| options.method == Method::Distill);
        let round = target.contexts.map_or(1, |contexts| contexts.len().saturating_mul(contexts.draws()));
        let split = |rows| Split::new(source, options.defensive, rows, round);
        let held_out = data.held_out.filter(|_| options.swap == Swap::CrossEntropy);
        let rejection = Rejection::new(source, target.potential, options.seed);
        let mut pool = Pool::new(backend, space, cache, rows, rejection.log_bound, extra)?;
        if let Some(contexts) = target.contexts {
            pool = pool.with_contexts(backend, contexts.len())?;
        }
        // Of one batch in all, no update has more than its rows.
        let most = cache.min(options.samples.div_ceil(rows).saturating_mul(rows)).saturating_add(pool.pinned);
        let chosen = Chosen::new(backend, space, options.batch.min(most))?;
        let balancing = |how| Balancing::new(backend, space, chosen.rows(), features, how, options.seed);
        let balancing = match &options.method {
            Method::SubTrajectoryBalance(how) => Some(balancing(how)?),
            _ => None,
        };
        Ok(Tuner {
            backend,
            proposal: swaps.then(|| policy.try_clone()).transpose()?,
            source,
            options,
            objective,
            draws: Proposed::new(backend, space, split(rows)?, features)?,
            log_w: backend.zeros(rows, "log-weights")?,
            pool,
            rejection,
            rate: backend.zeros(1, "learning rate")?,
            log_pi: backend.zeros(chosen.rows(), "step log-probs")?,
            chosen,
            balancing,
            steps: Steps::First,
            judge: Judge::new(backend, space, split(options.evaluation_rows)?, options.kept_evaluations, features)?,
            data_judge: held_out.map(|data| DataJudge::new(backend, split(rows)?, data.rows)).transpose()?,
            look: Draws::new(backend, space, options.evaluation_rows, features)?,
            data,
            target,
            policy,
            samples: 0,
            swaps: 0,
            evaluations: 0,
            history: Vec::new(),
        })
    }

    /// One batch of draws and the updates that follow it. Nothing in it waits for a device: what depends on the draws is
    /// decided there.
    pub fn step(&mut self, draw: Draw) -> Result<()> {
        let backend = self.backend;
        backend.upload(&[self.options.rate(self.samples)], &mut self.rate)?;
        self.samples += self.draws.rows();
        if let Steps::Recorded(recording, first) = &self.steps {
            if backend.replay(recording, draw.first - first.first)? {
                return Ok(());
            }
            self.steps = Steps::First;
        }
        if let Steps::Second = self.steps
            && let Some(recording) = backend.record(|| self.run(draw))?
        {
            backend.replay(&recording, 0)?;
            self.steps = Steps::Recorded(recording, draw);
            return Ok(());
        }
        self.steps = Steps::Second;
        self.run(draw)
    }

    fn run(&mut self, draw: Draw) -> Result<()> {
        self.draw(draw)?;
        self.keep(draw)?;
        self.train()
    }

    /// Draws a batch from the current proposal, which may be a mixture; on-policy methods propose from π itself.
    fn draw(&mut self, draw: Draw) -> Result<()> {
        let policy = match &mut self.proposal {
            Some(proposal) => proposal,
            None => &mut *self.policy,
        };
        self.draws.draw(self.backend, self.target, self.source, Some(policy), draw)
    }

    /// Weighs the draws and puts them where updates find them: those of positive weight, or all where the others have a
    /// gradient too; for REINFORCE with their rewards, for KL-control with their returns; for distillation those that
    /// rejection accepts.
    fn keep(&mut self, mut draw: Draw) -> Result<()> {
        let (backend, method) = (self.backend, self.options.method);
        for draws in self.draws.parts() {
            let (rows, log_p, log_q) = (draws.rows(), draws.log_p(), draws.log_q());
            backend.weigh(&mut self.pool, log_p, log_q, B::view_mut(&mut self.log_w, rows))?;
            if let Some(contexts) = self.target.contexts {
                backend.weigh_contexts(&mut self.pool, contexts, draw, B::view(&self.log_w, rows))?;
            }
            match &method {
                Method::Reinforce => backend.reward(&mut self.pool, log_p)?,
                Method::Distill => {
                    backend.accept(&mut self.pool, &self.rejection, draw, B::view_mut(&mut self.log_w, rows))?;
                }
                Method::KlControl(control) => {
                    let returns = B::view_mut(&mut self.log_w, rows);
                    backend.returns(control, log_p, draws.log_base(), log_q, returns)?;
                }
                _ => {}
            }
            // R = P: the reward stands in the place of the weight. Only its size relative to the mean reward matters to Adam.
            let log_w = if method == Method::Reinforce { log_p } else { B::view(&self.log_w, rows) };
            let (all, fresh) = (self.objective.all, method.is_on_policy());
            backend.keep(&mut self.pool, &NewDraws { batch: &draws.batch, log_w, log_q, all, fresh })?;
            draw = draw.skip(rows as u64);
        }
        Ok(())
    }

    /// Updates π on sequences of the pool, if there are any of positive weight.
    fn train(&mut self) -> Result<()> {
        let (backend, options, rows) = (self.backend, self.options, self.chosen.rows());
        let Objective { worth, weighting, .. } = self.objective;
        let shifted = self.objective.shifted();
        backend.measure(&mut self.pool, &worth)?;
        for _ in 0..if options.method.is_on_policy() { 1 } else { options.updates } {
            let draw = Draw::new(options.seed, Purpose::Shuffle);
            let choice = Choice { uses: options.uses, draw, worth, rate: &self.rate };
            backend.choose(&mut self.pool, &mut self.chosen, &choice)?;
            if let Some(balancing) = &mut self.balancing {
                balancing.gradient(backend, self.target, self.policy, &mut self.pool, &self.chosen)?;
                self.policy.update_at(&options.adam, B::view(&self.chosen.rate, 1))?;
                continue;
            }
            let coefficients = Coefficients {
                weighting,
                weights: B::view(&self.chosen.weights, rows),
                log_q: Some(B::view(&self.chosen.log_q, rows)),
                log_p: Some(B::view(&self.chosen.log_p, rows)),
                shift: shifted.map(|_| B::view(&self.chosen.shift, 1)),
                // Where all draws are kept, every update has all its rows.
                scale: 1.0 / (rows as f32 * self.chosen.batch.space.longest as f32),
                dropout: None,
            };
            self.policy.gradient(&self.chosen.batch, &coefficients, B::view_mut(&mut self.log_pi, rows))?;
            self.policy.update_at(&options.adam, B::view(&self.chosen.rate, 1))?;
            backend.note_update(&mut self.pool, &self.chosen, B::view(&self.log_pi, rows), &worth, shifted)?;
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
        let ledger = self.pool.take_loss(self.backend)?;
        let norms = self.policy.take_norms()?;
        let all = ledger.log_z.estimate();
        // With contexts the judge's weights are divided by Ẑ already.
        let divided = if self.target.contexts.is_some() { all.value } else { 0.0 };
        self.history.push(Record {
            samples: self.samples,
            updates: ledger.updates as usize,
            loss: ledger.mean_loss(),
            gradient_norm: norms.mean(),
            gradient_norm_deviation: norms.deviation(),
            kl: verdict.kl,
            kl_proposal: verdict.kl_proposal,
            tv: verdict.tv,
            ess: verdict.ess,
            moments: self.look.moments()?,
            log_z: all.value,
            log_z_error: all.standard_error,
            log_z_now: verdict.log_z.map(|now| Estimate { value: now.value + divided, ..now }),
            clipped: ledger.cut,
            swaps: self.swaps,
        });
        if self.proposal.is_some() && (verdict.superior || self.is_superior_on_data()?) { self.swap() } else { Ok(()) }
    }

    fn judge(&mut self, draw: Draw) -> Result<Verdict> {
        let (swap, source) = (self.options.swap, self.source);
        let log_z = self.context_log_z()?;
        let comparison = Comparison { source, swap, outside: self.look.outside(source)?, log_z: &log_z };
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

    /// log Ẑ of each context.
    fn context_log_z(&self) -> Result<Vec<f64>> {
        Ok(self.pool.context_means(self.backend)?.iter().map(LogMean::value).collect())
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
        if self.source != Source::Policy {
            self.source = Source::Policy;
            self.steps = Steps::First;
        }
        self.judge.forget();
        self.swaps += 1;
        Ok(())
    }

    pub fn finish(self) -> Result<Tuned> {
        let ledger = self.pool.ledger(self.backend)?;
        let nothing = if ledger.log_z.value() == f64::NEG_INFINITY {
            Some("had a positive weight")
        } else if ledger.updates == 0 {
            Some("was accepted")
        } else {
            None
        };
        if let Some(nothing) = nothing {
            let reason = format!("not one of {} draws {nothing}: draw more, or from a guided proposal", self.samples);
            return Err(Error::no_answer("tuning", reason));
        }
        let contexts = self.pool.context_means(self.backend)?;
        let warning = self.rejection.warning(ledger.raises).filter(|_| self.options.method == Method::Distill);
        Ok(Tuned {
            samples: self.samples,
            updates: ledger.updates as usize,
            swaps: self.swaps,
            history: self.history,
            warnings: warning.into_iter().chain(unknown_contexts(&contexts)).collect(),
            contexts: contexts.iter().map(LogMean::estimate).collect(),
        })
    }
}

fn check_needs<B: Backend>(options: &TuneOptions, source: Source, guide: bool, data: &TuneData<'_, B>) -> Result<()> {
    if source == Source::Guided && !guide {
        return Err(Error::argument("guided proposal", "a guide in the target", "none"));
    }
    let by_data = options.method.is_off_policy() && options.swap == Swap::CrossEntropy;
    if by_data && data.held_out.is_none_or(|data| data.rows == 0) {
        return Err(Error::argument("swap by cross-entropy", "held-out data", "none"));
    }
    Ok(())
}

fn check_contexts<B: Backend>(contexts: Option<&Contexts<B>>, space: Space, data: &TuneData<'_, B>) -> Result<()> {
    let Some(contexts) = contexts else { return Ok(()) };
    if contexts.space != space {
        return Err(Error::argument("space of the contexts", format!("{space:?}"), format!("{:?}", contexts.space)));
    }
    if data.extra.is_some() {
        return Err(Error::argument("extra data", "none beside contexts", "some"));
    }
    Ok(())
}

/// What the user should know of contexts that taught the policy nothing.
fn unknown_contexts(contexts: &[LogMean]) -> Option<String> {
    let mut unknown = (0..contexts.len()).filter(|&context| contexts[context].value() == f64::NEG_INFINITY);
    let first = unknown.next()?;
    Some(format!(
        "{} of {} contexts, the first of them number {first}, had no draw of positive weight: nothing was learnt for them",
        1 + unknown.count(),
        contexts.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Cpu;
    use crate::features::{Feature, FeatureSet};
    use crate::models::{Lstm, LstmShape, Markov};
    use crate::potential::{Potential, Role};
    use crate::tokens::Batch;
    use crate::tune::Baseline;

    /// The pool's weights after one batch of 640 draws from noise; some meet the requirement.
    fn kept(method: Method, baseline: Baseline) -> (Vec<f64>, usize) {
        let space = Space::new(2, 4).unwrap();
        let set = FeatureSet::new(space).with("11", Feature::StartsWith(vec![1, 1])).unwrap();
        let (features, potential) = (set.compile(&Cpu).unwrap(), Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap());
        let mut base = Markov::noise(space, 3).unwrap();
        let mut target =
            Target { base: &mut base, features: &features, potential: &potential, guide: None, contexts: None };
        let mut policy = Lstm::new(space, LstmShape { layers: 1, hidden: 4, dropout: 0.0 }, 0).unwrap();
        let (batch, samples, proposal) = (640, 640, Source::Base);
        let options = TuneOptions { method, baseline, batch, samples, proposal, ..TuneOptions::default() };
        let mut tuner = Tuner::new(&Cpu, &mut target, &mut policy, &options, TuneData::default()).unwrap();
        tuner.step(Draw::new(0, Purpose::Tune)).unwrap();
        assert_eq!(tuner.samples, 640);
        let positive = tuner.draws.parts().flat_map(|draws| &draws.log_p).filter(|log_p| log_p.is_finite()).count();
        (tuner.pool.log_w[..tuner.pool.ledger[0].rows as usize].to_vec(), positive)
    }

    /// log w + log q = log P(x) and log q is of what drew x, before q ← π and after it.
    #[test]
    fn draws_that_are_kept_keep_their_weights_when_q_becomes_pi() {
        let space = Space::new(2, 4).unwrap();
        let set = FeatureSet::new(space).with("11", Feature::StartsWith(vec![1, 1])).unwrap();
        let (features, potential) = (set.compile(&Cpu).unwrap(), Potential::new(&Cpu, &[Role::Tilt(1.5)]).unwrap());
        let seen = Batch::from_sequences(space, &[vec![0, 1, 3], vec![1, 1, 0, 3], vec![0, 3]]).unwrap();
        // Smoothed, so that no draw has P = 0.
        let mut base = Markov::fit(&seen, 1, false, 0.5).unwrap();
        let (mut scorer, mut frozen) = (base.clone(), Vec::new());
        let mut target =
            Target { base: &mut base, features: &features, potential: &potential, guide: None, contexts: None };
        let mut policy = Lstm::new(space, LstmShape { layers: 1, hidden: 4, dropout: 0.0 }, 0).unwrap();
        let mut options = TuneOptions::default();
        (options.batch, options.samples, options.cache, options.proposal) = (40, 400, 100, Source::Base);
        let mut tuner = Tuner::new(&Cpu, &mut target, &mut policy, &options, TuneData::default()).unwrap();
        for batch in 0..5 {
            tuner.step(Draw::new(0, Purpose::Tune).skip(40 * batch)).unwrap();
            if batch == 2 || batch == 3 {
                tuner.swap().unwrap();
                frozen.push(tuner.proposal.clone().unwrap());
            }
        }
        // Of 200 draws the last 100: 20 of r's, 40 of the first frozen policy's, 40 of the second's.
        let Pool { batch, log_w, log_q, .. } = &tuner.pool;
        let mut rows = batch.download(&Cpu).unwrap();
        rows.rows = 100;
        let mut by = [vec![0.0; 100], vec![0.0; 100], vec![0.0; 100]];
        crate::models::Scorer::score(&mut scorer, &rows, &mut by[0]).unwrap();
        crate::models::Scorer::score(&mut frozen[0], &rows, &mut by[1]).unwrap();
        crate::models::Scorer::score(&mut frozen[1], &rows, &mut by[2]).unwrap();
        for draw in 100..200_usize {
            let (slot, drawn_by) = (draw % 100, draw / 40 - 2);
            let tilt = if rows.sequence(slot).starts_with(&[1, 1]) { 1.5 } else { 0.0 };
            let (got, want) = (log_q[slot], by[drawn_by][slot]);
            assert!((got - want).abs() < 1e-9, "draw {draw}, by {drawn_by}: {got} and {want}");
            assert!((log_w[slot] + log_q[slot] - by[0][slot] - tilt).abs() < 1e-9, "draw {draw}");
        }
    }

    #[test]
    fn rows_of_weight_zero_are_kept_for_the_baseline_only() {
        for method in [Method::DpgOffPolicy, Method::DpgOnPolicy] {
            let (weights, positive) = kept(method, Baseline::None);
            assert!(positive > 0 && positive < 640);
            assert_eq!(weights.len(), positive);
            assert!(weights.iter().all(|log_w| log_w.is_finite()));
            assert_eq!(kept(method, Baseline::Mean).0.len(), 640);
        }
        // The weights of distillation are 1, those of REINFORCE the rewards of all rows.
        let (weights, positive) = kept(Method::Distill, Baseline::None);
        assert_eq!(weights, vec![0.0; positive]);
        assert_eq!(kept(Method::Reinforce, Baseline::None).0.len(), 640);
    }
}
