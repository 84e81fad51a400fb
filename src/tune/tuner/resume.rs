//! What a tuner has to remember, and of which run that is.

use std::path::PathBuf;

use super::{Swap, Tuner};
use crate::backend::{Backend, Memory};
use crate::checkpoint::digest;
use crate::error::{Error, Result};
use crate::models::{Policy, Sampler};
use crate::rng::{Draw, Purpose};
use crate::tokens::Batch;
use crate::tune::checkpoint::{Checkpoints, Counters, Rows, State, front};
use crate::tune::{Draws, Method, Pool, Source};
use crate::weights::LogMean;

/// Sequences drawn to tell one base, guide or feature from another.
const PROBES: usize = 64;

/// Writes a run's checkpoints.
pub(in crate::tune) struct Keeper {
    path: PathBuf,
    every: u64,
    run: Vec<(String, String)>,
}

impl Keeper {
    /// Writes a checkpoint after an evaluation, where one is due: counted from the run's start, so that a resumed run
    /// writes them where the uninterrupted one would.
    pub fn keep<B: Backend, R: Sampler<B>, P: Policy<B>>(&self, tuner: &Tuner<B, R, P>, last: bool) -> Result<()> {
        if last || tuner.evaluations.is_multiple_of(self.every) {
            tuner.state()?.write(&self.path, &self.run)?;
        }
        Ok(())
    }
}

impl<B: Backend, R: Sampler<B>, P: Policy<B>> Tuner<'_, '_, B, R, P> {
    /// What writes the checkpoints of this run, which goes on from one where that is given.
    ///
    /// # Errors
    /// A checkpoint of another run: nothing is changed then. A directory that cannot be read and written.
    pub fn keeper(&mut self, checkpoints: &Checkpoints) -> Result<Keeper> {
        let run = self.identity()?;
        crate::checkpoint::remove_leftovers(&checkpoints.path)?;
        if let Some(checkpoint) = &checkpoints.resume {
            checkpoint.check(&run)?;
            self.restore(&checkpoint.state)?;
        }
        Ok(Keeper { path: checkpoints.path.clone(), every: checkpoints.every, run })
    }

    /// All that the next step depends on, in host memory.
    fn state(&self) -> Result<State> {
        // A field that is added to the tuner is named here: does the next step depend on what the last one left in it?
        let Tuner {
            backend,
            policy,
            proposal,
            source,
            pool,
            judge,
            samples,
            swaps,
            evaluations,
            history,
            // The caller's, and what follows from it.
            target: _,
            options: _,
            objective: _,
            data: _,
            rejection: _,
            // Filled anew by each step or evaluation.
            draws: _,
            log_w: _,
            rate: _,
            chosen: _,
            log_pi: _,
            balancing: _,
            data_judge: _,
            look: _,
            // Made anew by the first steps.
            steps: _,
        } = self;
        let policy = policy.state(true)?;
        let counters = Counters {
            samples: *samples as u64,
            swaps: *swaps as u64,
            evaluations: *evaluations,
            steps: policy.optimizer.as_ref().map_or(0, |optimizer| optimizer.steps),
            source: Counters::code(*source),
            oldest: judge.oldest() as u64,
        };
        // Until the first swap no sequence is drawn from the copy that will propose.
        let proposal = proposal.as_ref().filter(|_| *source == Source::Policy).map(|q| q.state(false)).transpose()?;
        let ledger = pool.ledger(*backend)?;
        let rows = ledger.rows as usize;
        let values = [front(*backend, &pool.log_w, rows)?, front(*backend, &pool.log_q, rows)?];
        Ok(State {
            counters,
            policy,
            proposal,
            pool: Rows::of(*backend, &pool.batch, rows, values)?,
            order: front(*backend, &pool.order, rows)?,
            ledger,
            contexts: pool.context_means(*backend)?,
            judge: judge.state(*backend)?,
            judge_first: judge.log_first().to_vec(),
            history: history.clone(),
        })
    }

    /// Puts a state back, which is of this run.
    fn restore(&mut self, state: &State) -> Result<()> {
        let State { counters, policy, proposal, pool: rows, order, ledger, contexts, judge, judge_first, history } =
            state;
        let (backend, space) = (self.backend, self.target.base.space());
        let source = counters.source().unwrap_or(self.source);
        let Pool { batch, log_w, log_q, order: slots, ledger: books, contexts: context_books, .. } = &mut self.pool;
        rows.check("draws kept", space, batch.capacity())?;
        if ledger.rows as usize != rows.len() || order.len() != rows.len() {
            let got = format!("{} and an order of {}", ledger.rows, order.len());
            return Err(Error::argument("draws kept", format!("books of {}", rows.len()), got));
        }
        // The books that the rows' contexts are looked up in.
        let known = context_books.as_ref().map_or(0, |books| B::len(&books.means));
        let numbers = || rows.context.iter().chain(&judge.context);
        if contexts.len() != known || numbers().any(|&number| number as usize >= known.max(1)) {
            let got = format!("{}, the last in use number {}", contexts.len(), numbers().max().copied().unwrap_or(0));
            return Err(Error::argument("books of contexts", known, got));
        }
        // A policy that may propose one day has nothing to restore before the first swap.
        let proposes = self.proposal.is_some() && source == Source::Policy;
        if proposes != proposal.is_some() {
            let names = |there: bool| if there { "a policy's" } else { "none" };
            return Err(Error::argument("state of the proposal", names(proposes), names(proposal.is_some())));
        }
        self.judge.restore(backend, judge, judge_first, counters.oldest as usize)?;
        self.policy.restore(policy)?;
        if let (Some(own), Some(proposal)) = (&mut self.proposal, proposal) {
            own.restore(proposal)?;
        }
        rows.put(backend, batch)?;
        let [given_w, given_q] = &rows.values;
        backend.upload(given_w, log_w)?;
        backend.upload(given_q, log_q)?;
        backend.upload(order, slots)?;
        backend.upload(&[*ledger], books)?;
        if let Some(books) = context_books {
            backend.upload(contexts, &mut books.means)?;
            let log_z: Vec<f64> = contexts.iter().map(LogMean::value).collect();
            backend.upload(&log_z, &mut books.log_z)?;
        }
        self.source = source;
        (self.samples, self.swaps) = (counters.samples as usize, counters.swaps as usize);
        (self.evaluations, self.history) = (counters.evaluations, history.clone());
        Ok(())
    }

    /// What the run is of: name and value of each part that it would go on differently without. Models and closures
    /// cannot be compared, but what they say of a few sequences can, bit for bit.
    fn identity(&mut self) -> Result<Vec<(String, String)>> {
        let mut parts = vec![
            ("version of ebm-dpg".to_string(), env!("CARGO_PKG_VERSION").to_string()),
            ("backend".into(), std::any::type_name::<B>().into()),
            ("policy".into(), self.policy.state(false)?.model),
        ];
        let options = serde_json::to_value(self.options).map_err(|error| Error::no_answer("options", error))?;
        let options = options.as_object().into_iter().flatten();
        parts.extend(options.map(|(name, value)| (format!("option {name}"), value.to_string())));
        let hexadecimal = |number: u64| format!("{number:016x}");
        // Before what is drawn behind them.
        if let Some(contexts) = self.target.contexts {
            let (count, draws) = (contexts.len(), contexts.draws());
            let tokens = front(self.backend, &contexts.tokens, count * contexts.space.longest as usize)?;
            let lengths = front(self.backend, &contexts.lengths, count)?;
            let known = digest(digest(draws as u64, bytemuck::cast_slice(&tokens)), bytemuck::cast_slice(&lengths));
            parts.push(("contexts".into(), hexadecimal(known)));
        }
        let features = self.target.features.digest(self.backend)?;
        let roles = serde_json::to_string(self.target.potential.roles())
            .map_err(|error| Error::no_answer("coefficients", error))?;
        let base = self.probe(Source::Base)?;
        parts.extend([
            ("features".to_string(), hexadecimal(features)),
            ("λ and requirements".into(), hexadecimal(digest(0, roles.as_bytes()))),
            ("base".into(), hexadecimal(base.model)),
            ("values of the features".into(), hexadecimal(base.phi)),
        ]);
        if self.source == Source::Guided {
            parts.push(("guide".into(), hexadecimal(self.probe(Source::Guided)?.model)));
        }
        let (options, data) = (self.options, &self.data);
        let held_out = data.held_out.filter(|_| options.swap == Swap::CrossEntropy);
        let extra = data.extra.filter(|_| options.method == Method::Distill);
        for (name, data) in [("held-out data", held_out), ("extra data", extra)] {
            if let Some(data) = data {
                parts.push((name.into(), hexadecimal(digest_rows(self.backend, data)?)));
            }
        }
        Ok(parts)
    }

    /// A few sequences from `source`, and what is said of them.
    fn probe(&mut self, source: Source) -> Result<Probe> {
        let (backend, space) = (self.backend, self.target.base.space());
        let mut draws = Draws::new(backend, space, PROBES, self.target.features.len())?;
        // Far from those that anything is judged by.
        let draw = Draw::new(self.options.seed, Purpose::Evaluate).skip(1 << 62);
        draws.fill(backend, self.target, source, None::<&mut P>, draw)?;
        let model = digest_rows(backend, &draws.batch)?;
        Ok(Probe {
            model: digest(model, bytemuck::cast_slice(&draws.host_log_q)),
            phi: digest(0, bytemuck::cast_slice(&draws.host_phi)),
        })
    }
}

/// Fingerprints of a few draws.
struct Probe {
    /// Of the sequences and their log q.
    model: u64,
    /// Of their features.
    phi: u64,
}

/// A fingerprint of the sequences of a batch.
fn digest_rows<B: Memory>(backend: &B, batch: &Batch<B>) -> Result<u64> {
    let Rows { tokens, lengths, given, .. } = Rows::of(backend, batch, batch.rows, Default::default())?;
    let parts = [lengths, given, tokens];
    Ok(parts.iter().fold(0, |before, part| digest(before, bytemuck::cast_slice(part))))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use super::*;
    use crate::backend::Cpu;
    use crate::features::{Feature, FeatureSet};
    use crate::models::{Lstm, LstmShape, Markov};
    use crate::potential::{Potential, Role};
    use crate::tokens::Space;
    use crate::tune::{Checkpoint, Target, TuneData, TuneOptions};

    /// What this thread has run, by the kernel's books; 0 where there are none.
    fn cpu_seconds() -> f64 {
        let books = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        books.split(' ').next().and_then(|nanoseconds| nanoseconds.parse::<f64>().ok()).unwrap_or(0.0) * 1e-9
    }

    /// The measurement that README.md quotes: a 2×200 LSTM, 32,000 kept draws of 31 tokens, the judge's room full.
    #[test]
    #[ignore = "a measurement: some seconds"]
    fn a_checkpoint_of_a_large_run() {
        let space = Space::new(2, 31).unwrap();
        let set = FeatureSet::new(space).with("1", Feature::StartsWith(vec![1])).unwrap();
        let (features, potential) = (set.compile(&Cpu).unwrap(), Potential::new(&Cpu, &[Role::Tilt(1.0)]).unwrap());
        let mut base = Markov::noise(space, 30).unwrap();
        let mut target =
            Target { base: &mut base, features: &features, potential: &potential, guide: None, contexts: None };
        let mut policy = Lstm::new(space, LstmShape { layers: 2, hidden: 200, dropout: 0.0 }, 1).unwrap();
        let options = TuneOptions { samples: 32_000, batch: 2_000, proposal: Source::Base, ..TuneOptions::default() };
        let mut tuner = Tuner::new(&Cpu, &mut target, &mut policy, &options, TuneData::default()).unwrap();
        for batch in 0..16 {
            let draw = Draw::new(0, Purpose::Tune).skip(2_000 * batch);
            tuner.draw(draw).unwrap();
            tuner.keep(draw).unwrap();
            tuner.samples += 2_000;
        }
        tuner.train().unwrap();
        (0..8).for_each(|_| tuner.evaluate().unwrap());
        // q proposes from here on, and is in the checkpoint too.
        tuner.swap().unwrap();
        tuner
            .judge
            .restore(
                &Cpu,
                &Rows::of(&Cpu, &tuner.pool.batch, 4096, [vec![0.0; 4096], vec![0.0; 4096]]).unwrap(),
                &[],
                0,
            )
            .unwrap();
        let run = tuner.identity().unwrap();
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("checkpoint.safetensors");
        for _ in 0..5 {
            let (mut clock, began) = (Instant::now(), cpu_seconds());
            let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed().as_secs_f64() * 1e3;
            let state = tuner.state().unwrap();
            let gathered = lap();
            state.write(&path, &run).unwrap();
            let (written, cpu) = (lap(), (cpu_seconds() - began) * 1e3);
            let bytes = std::fs::read(&path).unwrap();
            lap();
            let mut file = std::fs::File::create(room.path().join("plain")).unwrap();
            file.write_all(&bytes).unwrap();
            let plain = lap();
            file.sync_all().unwrap();
            let synced = lap();
            let loaded = Checkpoint::load(&path).unwrap();
            let read = lap();
            assert_eq!((loaded.samples(), loaded.state.pool.len(), loaded.state.judge.len()), (32_000, 32_000, 4_096));
            assert!(loaded.state.proposal.is_some());
            println!(
                "{:.1} MB: {:.1} ms = state {gathered:.1} + file {written:.1} ({cpu:.1} of this thread's own), a plain write of as many bytes takes \
                 {plain:.1} and its sync {synced:.1}; loading {read:.1}",
                bytes.len() as f64 / 1e6,
                gathered + written
            );
        }
    }
}
