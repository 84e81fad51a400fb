//! What a run should be stopped for, or at least looked at.

use super::Observer;
use crate::error::Result;
use crate::tune::Record;

/// Plain words about what goes wrong, each kind once, when it first happens: π has left the support of q, the weights
/// of q collapse, numbers that are not numbers.
#[derive(Debug, Default)]
pub struct Alarms {
    raised: Vec<&'static str>,
    /// What has been raised since the last [`Alarms::take`].
    new: Vec<String>,
    /// Whether a KL has been known.
    known: bool,
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
            Some(_) => self.known = true,
            // Before any KL was known this is how a run from a poor proposal begins.
            None if self.known => {
                let reason = format!("the weights of q have collapsed (ESS/N {:.4}): KL is unknown again", record.ess);
                self.raise("collapse", record, reason);
            }
            None => {}
        }
        Ok(())
    }
}
