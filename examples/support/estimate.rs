//! `--dry-run`: what memory and time a run would take, from bounds and from one small batch on this machine.

use std::fmt::Write;
use std::time::Instant;

use ebm_dpg::Result;
use ebm_dpg::models::{Coefficients, Lstm, LstmBackend, LstmShape, Policy, Sampler, Scorer};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space};
use ebm_dpg::tune::TuneOptions;

use super::experiment::JUDGED;
use super::options::{Common, available_memory, gigabytes};

/// How much work a run is, in sequences.
pub struct Plan {
    pub space: Space,
    /// Sequences of training data.
    pub data: usize,
    /// The most sequences that train r, over all passes; 0 where it is loaded.
    pub base: usize,
    /// Draws that λ is fitted on.
    pub fit: usize,
    /// Updates of π a batch of draws.
    pub updates: usize,
    /// Sequences of data that are scored at the end.
    pub test: usize,
}

/// Seconds a sequence.
struct Rates {
    sample: f64,
    score: f64,
    gradient: f64,
}

/// A table for people.
///
/// # Errors
/// What the models say.
pub fn estimate<B: LstmBackend>(backend: &B, common: &Common, plan: &Plan) -> Result<String> {
    let rates = rates(backend, common, plan.space)?;
    let mut text = String::from("\nmemory, at most\n");
    let bytes = common.bytes(plan.space.vocab as usize, plan.data);
    for (what, bytes) in bytes {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<44} {:>12}", what, gigabytes(bytes));
    }
    let total = bytes.iter().map(|(_, bytes)| bytes).sum();
    let _ = writeln!(text, "{:<44} {:>12} of {} free", "all of them", gigabytes(total), gigabytes(available_memory()));
    let _ = writeln!(text, "{:<44} {:>12}", "on disk, a checkpoint", gigabytes(checkpoint(common, plan.space)));
    let _ = writeln!(text, "\ntime, by a batch timed just now");
    let phases = seconds(common, plan, &rates);
    for (phase, seconds) in phases {
        let _ = writeln!(text, "{phase:<44} {seconds:>10.1} s");
    }
    let total: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
    let _ = writeln!(text, "{:<44} {total:>10.1} s", "all of them");
    Ok(text)
}

/// The most bytes of a checkpoint: π with two moments, q, the draws kept and those to judge by.
fn checkpoint(common: &Common, space: Space) -> u128 {
    let [(_, models), ..] = common.bytes(space.vocab as usize, 0);
    // Three models of four values a parameter; tokens, length, order and two log-weights a draw.
    let draws = common.samples.min(TuneOptions::default().cache) + 8 * TuneOptions::default().evaluation_rows;
    models / 3 + draws as u128 * (4 * u128::from(space.longest) + 24)
}

/// Phases in order.
fn seconds(common: &Common, plan: &Plan, rates: &Rates) -> [(&'static str, f64); 4] {
    let Rates { sample, score, gradient } = rates;
    let times = |count: usize, seconds: f64| count as f64 * seconds;
    // Ended prefixes are scored under r and π first.
    let update = match common.rows_of_a_sequence() {
        1 => *gradient,
        rows => times(rows, 2.0 * score + gradient),
    };
    // Each component of a mixture scores what the other drew.
    let mixed = if common.defensive.is_some() { *score } else { 0.0 };
    let draws = times(common.samples, sample + score + mixed) + times(common.samples * plan.updates, update);
    // Twenty evaluations of at most 8·512 kept draws, and 2·512 fresh ones.
    let evaluations = 20.0 * (times(8 * 512, *score) + times(2 * 512, sample + score));
    let judged = common.bounded(JUDGED);
    [
        ("base r, if it does not stop early", times(plan.base, *gradient)),
        ("fit λ", times(plan.fit, *sample)),
        ("policy π", draws + evaluations),
        ("judgement", times(4 * judged, *sample) + times(2 * judged + 3 * plan.test, *score)),
    ]
}

/// A batch of the run's models, drawn, scored and differentiated once to warm up and once by the clock.
fn rates<B: LstmBackend>(backend: &B, common: &Common, space: Space) -> Result<Rates> {
    let shape = LstmShape { layers: common.layers, hidden: common.hidden, dropout: 0.0 };
    let mut model = backend.lstm(Lstm::new(space, shape, 0)?)?;
    let rows = common.batch.min(1024);
    let mut batch = Batch::with_capacity(backend, space, rows)?;
    let (mut log_q, mut log_model) = (backend.zeros(rows, "log q")?, backend.zeros(rows, "log-probs")?);
    let mut weights = backend.zeros(rows, "weights")?;
    backend.upload(&vec![1.0; rows], &mut weights)?;
    let mut host = vec![0.0; rows];
    let mut last = [0.0; 3];
    for _ in 0..2 {
        let mut clock = Instant::now();
        let mut lap = |host: &mut [f64], log_probs: &B::Buffer<f64>| -> Result<f64> {
            // Reading the result waits for it.
            backend.download(log_probs, host)?;
            let seconds = clock.elapsed().as_secs_f64() / rows as f64;
            clock = Instant::now();
            Ok(seconds)
        };
        let draw = Draw::new(0, Purpose::User);
        model.sample(draw, None, &mut batch, B::view_mut(&mut log_q, rows), B::view_mut(&mut log_model, rows))?;
        last[0] = lap(&mut host, &log_q)?;
        model.score(&batch, B::view_mut(&mut log_model, rows))?;
        last[1] = lap(&mut host, &log_model)?;
        let coefficients = Coefficients::given(B::view(&weights, rows));
        model.gradient(&batch, &coefficients, B::view_mut(&mut log_model, rows))?;
        last[2] = lap(&mut host, &log_model)?;
    }
    let [sample, score, gradient] = last;
    Ok(Rates { sample, score, gradient })
}
