//! What training has made of a policy, apart from the memory that it works in.

use crate::adam::GradientNorms;
use crate::error::{Error, Result};

/// Parameters, and what the optimiser remembers, in host memory. Values are those of the model bit for bit, on whatever
/// backend it is; each tensor is in row-major order under its public name.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyState {
    /// Kind and size of the model as JSON: a state fits the models that say the same.
    pub model: String,
    /// The parameters: (name, values).
    pub parameters: Vec<(String, Vec<f32>)>,
    /// The optimiser, where it was asked for.
    pub optimizer: Option<OptimizerState>,
}

/// What Adam remembers.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerState {
    /// First moments of each parameter, named as these.
    pub first: Vec<(String, Vec<f32>)>,
    /// Second moments likewise.
    pub second: Vec<(String, Vec<f32>)>,
    /// Steps taken.
    pub steps: u64,
    /// The norms of gradients since they were last read.
    pub norms: GradientNorms,
}

impl PolicyState {
    /// `Ok` where all of this fits a model that says `model` of itself and has `tensors`, (name, number of elements).
    pub(crate) fn check<'a, I: Iterator<Item = (&'a str, usize)>>(
        &self,
        model: &serde_json::Value,
        tensors: impl Fn() -> I,
    ) -> Result<()> {
        let model = model.to_string();
        if self.model != model {
            return Err(Error::argument("state of a policy", model, &self.model));
        }
        let moments = self.optimizer.iter().flat_map(|optimizer| [&optimizer.first, &optimizer.second]);
        for given in std::iter::once(&self.parameters).chain(moments) {
            let sizes = |name: &str, len: usize| format!("{name} of {len} values");
            let expected: Vec<_> = tensors().map(|(name, len)| sizes(name, len)).collect();
            let got: Vec<_> = given.iter().map(|(name, values)| sizes(name, values.len())).collect();
            if expected != got {
                return Err(Error::argument("state of a policy", expected.join(", "), got.join(", ")));
            }
        }
        Ok(())
    }
}

/// The error of a model that does not tell its state.
pub(super) fn missing<P>() -> Error {
    Error::argument("policy to checkpoint", "one that implements Policy::state and restore", std::any::type_name::<P>())
}
