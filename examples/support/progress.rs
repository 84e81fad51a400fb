//! Progress bars with rate and time left, one style for all phases; plain lines where no terminal shows a bar.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::say;

/// How often a log gets a line where there is no terminal.
const PERIOD: Duration = Duration::from_secs(10);
const BAR: &str = "{prefix:<18} {bar:30} {pos}/{len} {unit} {rate}, {eta} left  {msg}";

/// One phase: a bar on a terminal, else a line every ten seconds; one last line either way.
pub struct Progress {
    phase: String,
    unit: String,
    total: u64,
    bar: ProgressBar,
    plain: bool,
    started: Instant,
    said: Instant,
}

impl Progress {
    /// A phase of `total` units, such as "epochs" or "sequences".
    pub fn start(phase: &str, total: u64, unit: &str) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let target = if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_prefix(phase.to_string());
        if let Ok(style) = ProgressStyle::with_template(&BAR.replace("{unit}", unit)) {
            let rate = |state: &indicatif::ProgressState, to: &mut dyn std::fmt::Write| {
                // A full line buffer is no reason to stop the work.
                let _ = write!(to, "{}/s", short(state.per_sec()));
            };
            bar.set_style(style.with_key("rate", rate).progress_chars("━╸─"));
        }
        let now = Instant::now();
        Progress { phase: phase.into(), unit: unit.into(), total, bar, plain, started: now, said: now }
    }

    /// `done` units are done; `note` is a short state of things, such as "loss 0.512".
    pub fn set(&mut self, done: u64, note: &str) {
        self.bar.set_message(note.to_string());
        self.bar.set_position(done);
        if self.plain && self.said.elapsed() >= PERIOD {
            self.said = Instant::now();
            let rate = done as f64 / self.started.elapsed().as_secs_f64();
            let left = self.total.saturating_sub(done) as f64 / rate;
            let left = if left.is_finite() { format!("{left:.0} s left") } else { "time left unknown".into() };
            let (phase, total, unit) = (&self.phase, self.total, &self.unit);
            say(&format!("{phase:<18} {done}/{total} {unit} {}/s, {left}  {note}", short(rate)));
        }
    }

    /// Says something beside the bar.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| say(line));
    }

    /// Ends the phase, wherever it stands, and returns its seconds.
    pub fn finish(self, note: &str) -> f64 {
        let seconds = self.started.elapsed().as_secs_f64();
        let (done, unit) = (self.bar.position(), &self.unit);
        self.bar.finish_and_clear();
        let rate = short(done as f64 / seconds);
        say(&format!("{:<18} {done} {unit} in {seconds:.1} s, {rate}/s  {note}", self.phase));
        seconds
    }
}

/// Three digits that matter.
fn short(rate: f64) -> String {
    match rate {
        rate if !rate.is_finite() => "?".into(),
        rate if rate >= 1e6 => format!("{:.2} M", rate / 1e6),
        rate if rate >= 1e4 => format!("{:.1} k", rate / 1e3),
        rate if rate >= 100.0 => format!("{rate:.0}"),
        rate if rate >= 1.0 => format!("{rate:.1}"),
        rate => format!("{rate:.3}"),
    }
}
