//! Products of models and rewards: scorers made of scorers.

use super::Formula;
use crate::backend::Backend;
use crate::error::{Error, Result, expect_len};
use crate::models::{Scorer, check_batch};
use crate::tokens::{Batch, Space};

/// The scorers of a [`Formula`] as one: log of the product of its models' powers and its rewards. As a base it need not be
/// normalised.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::models::{Markov, Scorer};
/// use ebm_dpg::potential::{Product, Reward, model, reward};
/// use ebm_dpg::tokens::{Batch, Space};
///
/// let space = Space::new(2, 4)?;
/// let (mut one, mut other) = (Markov::noise(space, 3)?, Markov::noise(space, 3)?);
/// let mut ones = Reward::new(&Cpu, space, |batch| batch.iter().map(|x| x[0].into()).collect());
/// let formula = model("one").pow(0.5) * model("other") * reward("ones", 2.0);
/// let mut product =
///     Product::new(&Cpu, &formula, vec![("one", &mut one), ("other", &mut other), ("ones", &mut ones)])?;
/// let mut log_p = [0.0];
/// product.score(&Batch::from_sequences(space, &[[1, 0, 1, space.eos]])?, &mut log_p)?;
/// assert!((log_p[0] - (1.5 * 0.125_f64.ln() + 1.0 / 2.0)).abs() < 1e-6);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
pub struct Product<'a, B: Backend> {
    backend: B,
    space: Space,
    parts: Vec<Part<'a, B>>,
    /// One part's scores, and the sums so far by turns, `[rows]`.
    scratch: [B::Buffer<f64>; 3],
}

struct Part<'a, B: Backend> {
    factor: f64,
    scorer: &'a mut dyn Scorer<B>,
}

impl<'a, B: Backend> Product<'a, B> {
    /// The product of the formula's models and rewards, each given under its name.
    ///
    /// # Errors
    /// A name that is missing, twice there, or not in the formula; scorers of different spaces; a formula without scorers,
    /// with an exponent or a temperature out of range; memory that cannot be had.
    pub fn new(backend: &B, formula: &Formula, scorers: Vec<(&str, &'a mut dyn Scorer<B>)>) -> Result<Self> {
        let mut scorers: Vec<(&str, Option<&'a mut dyn Scorer<B>>)> =
            scorers.into_iter().map(|(name, scorer)| (name, Some(scorer))).collect();
        let mut parts: Vec<Part<'a, B>> = Vec::new();
        for (name, factor, _) in formula.scores()? {
            let found = scorers.iter_mut().find(|(other, scorer)| *other == name && scorer.is_some());
            let scorer = found.and_then(|(_, scorer)| scorer.take()).ok_or_else(|| {
                Error::argument("scorers of the potential", format!("one for each '{name}' in the formula"), "none")
            })?;
            if let Some(first) = parts.first() {
                check_batch(first.scorer.space(), scorer.space())?;
            }
            parts.push(Part { factor, scorer });
        }
        if let Some((name, _)) = scorers.iter().find(|(_, scorer)| scorer.is_some()) {
            return Err(Error::argument("scorers of the potential", "those in the formula", format!("'{name}' too")));
        }
        let Some(first) = parts.first() else {
            return Err(Error::argument("scorers of the potential", "one or more", 0));
        };
        let space = first.scorer.space();
        let room = || backend.zeros(0, "scores");
        Ok(Product { backend: backend.clone(), space, parts, scratch: [room()?, room()?, room()?] })
    }
}

impl<B: Backend> Scorer<B> for Product<'_, B> {
    fn space(&self) -> Space {
        self.space
    }

    fn score(&mut self, batch: &Batch<B>, log_probs: B::ViewMut<'_, f64>) -> Result<()> {
        check_batch(self.space, batch.space)?;
        let rows = batch.rows;
        expect_len("log-probs", rows, B::view_mut_len(&log_probs))?;
        if B::len(&self.scratch[0]) < rows {
            for buffer in &mut self.scratch {
                *buffer = self.backend.zeros(rows, "scores")?;
            }
        }
        let (backend, [scores, sum, next]) = (&self.backend, &mut self.scratch);
        let last = self.parts.len() - 1;
        for (at, Part { factor, scorer }) in self.parts.iter_mut().enumerate() {
            scorer.score(batch, B::view_mut(scores, rows))?;
            let before = (at > 0).then(|| B::view(sum, rows));
            if at == last {
                return backend.add_scaled(before, *factor, B::view(scores, rows), log_probs);
            }
            backend.add_scaled(before, *factor, B::view(scores, rows), B::view_mut(next, rows))?;
            std::mem::swap(sum, next);
        }
        unreachable!("there is a last part")
    }
}

type Closure = dyn FnMut(&Batch) -> Vec<f64> + Send;

/// A scorer from a closure on the host: one value per row, −∞ being meaningful. On a GPU the batch is brought to the host
/// for it.
pub struct Reward<B: Backend> {
    backend: B,
    space: Space,
    closure: Box<Closure>,
    at_most: f64,
}

impl<B: Backend> Reward<B> {
    /// The scorer of a closure over sequences of `space`.
    pub fn new(backend: &B, space: Space, closure: impl FnMut(&Batch) -> Vec<f64> + Send + 'static) -> Self {
        Reward { backend: backend.clone(), space, closure: Box::new(closure), at_most: f64::MAX }
    }

    /// The same, a value above `bound` being an error: what a [`Formula::at_most`] relies on.
    pub fn at_most(self, bound: f64) -> Self {
        Reward { at_most: bound, ..self }
    }

    fn values(&mut self, batch: &Batch) -> Result<Vec<f64>> {
        let values = (self.closure)(batch);
        expect_len("rewards", batch.rows, values.len())?;
        for (row, &value) in values.iter().enumerate() {
            if value.is_nan() {
                return Err(Error::not_a_number("reward", format!("row {row}")));
            }
            if value > self.at_most {
                return Err(Error::argument(
                    format!("reward of row {row}"),
                    format!("at most {}", self.at_most),
                    value,
                ));
            }
        }
        Ok(values)
    }
}

impl<B: Backend> Scorer<B> for Reward<B> {
    fn space(&self) -> Space {
        self.space
    }

    /// Writes the closure's values.
    ///
    /// # Errors
    /// Another space or number of rows; another number of values than rows, NaN, +∞, a value above the bound. Nothing is
    /// written then.
    fn score(&mut self, batch: &Batch<B>, log_probs: B::ViewMut<'_, f64>) -> Result<()> {
        check_batch(self.space, batch.space)?;
        expect_len("log-probs", batch.rows, B::view_mut_len(&log_probs))?;
        if batch.rows == 0 {
            return Ok(());
        }
        let host = batch.download(&self.backend)?;
        let values = self.values(&host)?;
        let mut buffer = self.backend.zeros(values.len(), "rewards")?;
        self.backend.upload(&values, &mut buffer)?;
        self.backend.add_scaled(None, 1.0, B::view(&buffer, values.len()), log_probs)
    }
}
