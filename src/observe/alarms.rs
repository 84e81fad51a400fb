//! What a run should be stopped for, or at least looked at.

use super::Observer;
use crate::error::Result;
use crate::tune::Record;
use crate::weights::Estimate;

/// Standard errors beyond which a difference is no noise.
const ERRORS: f64 = 4.0;

/// Plain words about what goes wrong, each kind once, when it first happens: π has left the support of q, the weights
/// of q collapse, q no longer shows a part of p, π moves away from p, numbers that are not numbers.
#[derive(Debug, Default)]
pub struct Alarms {
    raised: Vec<&'static str>,
    /// What has been raised since the last [`Alarms::take`].
    new: Vec<String>,
    /// The least KL(p‖π) so far, and the draws by then.
    least: Option<(Estimate, usize)>,
    /// The surest of the judge's log Ẑ so far: that of the highest lower bound.
    surest: Option<Estimate>,
}

impl Alarms {
    /// None raised yet.
    pub fn new() -> Self {
        Alarms::default()
    }

    /// The alarms since the last call.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.new)
    }

    /// KL(p‖π) more than doubled, by more than noise, is a step too large or a weight too heavy.
    fn compare(&mut self, kl: Estimate, record: &Record) {
        let (least, samples) = *self.least.get_or_insert((kl, record.samples));
        let noise = kl.standard_error.hypot(least.standard_error);
        if kl.value > 2.0 * least.value && kl.value - least.value > ERRORS * noise {
            let reason = format!("KL(p‖π) has risen to {:.3} from {:.3} after {samples}", kl.value, least.value);
            self.raise("away", record, reason);
        }
        if kl.value < least.value {
            self.least = Some((kl, record.samples));
        }
    }

    /// Every q that draws all of p has the same Ẑ in expectation: a smaller one is of a part of p.
    fn cover(&mut self, now: Estimate, record: &Record) {
        let all = Estimate { value: record.log_z, standard_error: record.log_z_error };
        let surest = *self.surest.get_or_insert(now);
        for before in [all, surest] {
            if before.value - now.value > ERRORS * before.standard_error.hypot(now.standard_error) {
                let share = (now.value - before.value).exp();
                let reason = format!(
                    "q shows {share:.1e} of the mass of p that was found before: KL, TV and ESS are of what is left"
                );
                self.raise("lost", record, reason);
            }
        }
        let bound = |estimate: Estimate| estimate.value - ERRORS * estimate.standard_error;
        if bound(now) > bound(surest) {
            self.surest = Some(now);
        }
    }

    fn raise(&mut self, kind: &'static str, record: &Record, reason: String) {
        if !self.raised.contains(&kind) {
            self.raised.push(kind);
            self.new.push(format!("after {} draws: {reason}", record.samples));
        }
    }
}

impl Observer for Alarms {
    fn record(&mut self, _seconds: f64, record: &Record) -> Result<()> {
        if record.updates > 0 && record.loss.is_infinite() {
            self.raise("loss", record, "the loss is infinite: a sequence of positive weight has π = 0".into());
        }
        if record.moments.iter().any(|moment| moment.value.is_nan()) || record.log_z.is_nan() {
            self.raise("NaN", record, "a moment of π or log Ẑ is not a number".into());
        }
        match record.kl {
            Some(kl) if kl.value == f64::INFINITY => {
                self.raise("support", record, "KL(p‖π) is infinite: π no longer draws sequences that p has".into());
            }
            Some(kl) => self.compare(kl, record),
            // Before any KL was known this is how a run from a poor proposal begins.
            None if self.least.is_some() => {
                let reason = format!("the weights of q have collapsed (ESS/N {:.4}): KL is unknown again", record.ess);
                self.raise("collapse", record, reason);
            }
            None => {}
        }
        if let Some(now) = record.log_z_now {
            self.cover(now, record);
        }
        Ok(())
    }
}
