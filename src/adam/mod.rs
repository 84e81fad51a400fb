//! Adam (Kingma & Ba 2015) with clipping by global norm, as an ascent on Σ a_b log π(x_b).

use crate::backend::{Backend, Cpu, Element, Memory};
use crate::error::{Error, Result};

mod gpu;

/// Step size, decay rates and clipping of one update.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamOptions {
    /// Step size α.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// The gradient is scaled down to this global Euclidean norm; infinite for no clipping.
    pub clip: f32,
}

impl Default for AdamOptions {
    fn default() -> Self {
        AdamOptions { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, clip: f32::INFINITY }
    }
}

impl AdamOptions {
    /// # Errors
    /// A rate, decay or clip outside its range, NaN included.
    pub fn check(&self) -> Result<()> {
        let positive = |what: &str, value: f32| {
            if value > 0.0 { Ok(()) } else { Err(Error::argument(what, "a positive number", value)) }
        };
        let decay = |what: &str, value: f32| {
            if (0.0..1.0).contains(&value) { Ok(()) } else { Err(Error::argument(what, "a number in [0, 1)", value)) }
        };
        positive("learning rate", self.learning_rate)?;
        if !self.learning_rate.is_finite() {
            return Err(Error::argument("learning rate", "a finite number", self.learning_rate));
        }
        decay("Adam beta1", self.beta1)?;
        decay("Adam beta2", self.beta2)?;
        positive("Adam epsilon", self.epsilon)?;
        positive("gradient clip", self.clip)
    }
}

impl AdamOptions {
    /// The two scalars of α·m̂/(√v̂ + ε) that hold both bias corrections of step `steps`: α / (1 − β₁ˢ) and
    /// 1 / √(1 − β₂ˢ).
    fn corrected(&self, steps: u64) -> (f32, f32) {
        let correction1 = 1.0 - f64::from(self.beta1).powf(steps as f64);
        let correction2 = 1.0 - f64::from(self.beta2).powf(steps as f64);
        ((f64::from(self.learning_rate) / correction1) as f32, (1.0 / correction2.sqrt()) as f32)
    }
}

/// First and second moments of one parameter vector, and the number of steps taken.
pub struct AdamState<B: Memory> {
    /// First moments.
    pub first: B::Buffer<f32>,
    /// Second moments.
    pub second: B::Buffer<f32>,
    /// Steps taken, one value.
    pub steps: B::Buffer<u64>,
    /// Of the gradients since they were last read, one value.
    pub norms: B::Buffer<GradientNorms>,
}

/// The Euclidean norms of gradients, before clipping.
#[derive(Debug, Clone, Copy, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct GradientNorms {
    /// Their sum.
    pub sum: f64,
    /// The sum of their squares.
    pub squares: f64,
    /// Their number.
    pub count: u64,
}

impl Element for GradientNorms {}

impl GradientNorms {
    /// The mean norm; NaN where there was no gradient.
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The standard deviation of the norms; NaN where there was no gradient.
    pub fn deviation(&self) -> f64 {
        (self.squares / self.count as f64 - self.mean().powi(2)).max(0.0).sqrt()
    }
}

impl<B: Backend> AdamState<B> {
    /// Zero moments for `len` parameters.
    pub fn new(backend: &B, len: usize) -> Result<Self> {
        Ok(AdamState {
            first: backend.zeros(len, "Adam moments")?,
            second: backend.zeros(len, "Adam moments")?,
            steps: backend.zeros(1, "Adam steps")?,
            norms: backend.zeros(1, "gradient norms")?,
        })
    }

    /// The norms since the last call; waits for the work that makes them.
    ///
    /// # Errors
    /// Those of that work.
    pub fn take_norms(&mut self, backend: &B) -> Result<GradientNorms> {
        let mut norms = [GradientNorms::default()];
        backend.download(&self.norms, &mut norms)?;
        backend.upload(&[GradientNorms::default()], &mut self.norms)?;
        Ok(norms[0])
    }
}

impl Clone for AdamState<Cpu> {
    fn clone(&self) -> Self {
        AdamState {
            first: self.first.clone(),
            second: self.second.clone(),
            steps: self.steps.clone(),
            norms: self.norms.clone(),
        }
    }
}

/// The kernel of this stage.
pub trait AdamKernel: Memory {
    /// One ascent step on `parameters` (`[N]`) along `gradient` (`[N]`), fused over all of them. `rate`, one value on the
    /// backend, multiplies the learning rate; at 0 there is no step, and nothing changes.
    ///
    /// # Errors
    /// A gradient norm that is not finite: nothing is changed then.
    fn adam(
        &self,
        options: &AdamOptions,
        rate: Option<Self::View<'_, f32>>,
        state: &mut AdamState<Self>,
        gradient: Self::View<'_, f32>,
        parameters: Self::ViewMut<'_, f32>,
    ) -> Result<()>;
}

/// Euclidean norm in f64, over fixed blocks folded in order.
pub fn norm(values: &[f32]) -> f64 {
    const BLOCK: usize = 4096;
    let block = |part: &[f32]| part.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
    values.chunks(BLOCK).map(block).sum::<f64>().sqrt()
}

impl AdamKernel for Cpu {
    fn adam(
        &self,
        options: &AdamOptions,
        rate: Option<&[f32]>,
        state: &mut AdamState<Cpu>,
        gradient: &[f32],
        parameters: &mut [f32],
    ) -> Result<()> {
        let rate = rate.map_or(1.0, |rate| rate[0]);
        if rate == 0.0 {
            return Ok(());
        }
        let options = AdamOptions { learning_rate: options.learning_rate * rate, ..*options };
        let norm = norm(gradient);
        if !norm.is_finite() {
            return Err(Error::not_a_number("gradient", format!("global norm {norm}")));
        }
        state.steps[0] += 1;
        let norms = &mut state.norms[0];
        *norms = GradientNorms { sum: norms.sum + norm, squares: norms.squares + norm * norm, count: norms.count + 1 };
        let scale = if norm > f64::from(options.clip) { (f64::from(options.clip) / norm) as f32 } else { 1.0 };
        let (rate, inverse_root2) = options.corrected(state.steps[0]);
        let moments = state.first.iter_mut().zip(&mut state.second);
        for ((parameter, &g), (m, v)) in parameters.iter_mut().zip(gradient).zip(moments) {
            let g = g * scale;
            *m = options.beta1 * *m + (1.0 - options.beta1) * g;
            *v = options.beta2 * *v + (1.0 - options.beta2) * g * g;
            *parameter += rate * *m / (v.sqrt() * inverse_root2 + options.epsilon);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_step_moves_by_the_rate_along_the_sign() {
        let options = AdamOptions { learning_rate: 0.1, ..Default::default() };
        let mut state = AdamState::new(&Cpu, 2).unwrap();
        let mut parameters = vec![1.0, 1.0];
        Cpu.adam(&options, None, &mut state, &[3.0, -0.01], &mut parameters).unwrap();
        assert!((parameters[0] - 1.1).abs() < 1e-5 && (parameters[1] - 0.9).abs() < 1e-4, "{parameters:?}");
    }

    #[test]
    fn clipping_scales_all_alike_and_nan_changes_nothing() {
        let options = AdamOptions { clip: 1.0, ..Default::default() };
        let mut state = AdamState::new(&Cpu, 2).unwrap();
        let mut parameters = vec![0.0, 0.0];
        Cpu.adam(&options, None, &mut state, &[30.0, 40.0], &mut parameters).unwrap();
        assert!((state.first[0] - 0.06).abs() < 1e-6 && (state.first[1] - 0.08).abs() < 1e-6);
        assert_eq!(state.norms[0], GradientNorms { sum: 50.0, squares: 2500.0, count: 1 });
        let before = parameters.clone();
        assert!(Cpu.adam(&options, None, &mut state, &[f32::NAN, 0.0], &mut parameters).is_err());
        assert_eq!((parameters, state.steps), (before, vec![1]));
    }

    #[test]
    fn a_rate_of_zero_is_no_step_and_a_half_is_half_a_step() {
        let options = AdamOptions { learning_rate: 0.1, ..Default::default() };
        let mut state = AdamState::new(&Cpu, 1).unwrap();
        let mut parameters = vec![1.0];
        Cpu.adam(&options, Some(&[0.0]), &mut state, &[f32::NAN], &mut parameters).unwrap();
        assert_eq!((&parameters, &state.first, &state.steps), (&vec![1.0], &vec![0.0], &vec![0]));
        Cpu.adam(&options, Some(&[0.5]), &mut state, &[3.0], &mut parameters).unwrap();
        assert!((parameters[0] - 1.05).abs() < 1e-6, "{parameters:?}");
    }

    #[test]
    fn bad_options_are_errors() {
        for bad in [f32::NAN, 0.0, -1.0, f32::INFINITY] {
            assert!(AdamOptions { learning_rate: bad, ..Default::default() }.check().is_err());
        }
    }
}
