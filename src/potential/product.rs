//! Products of models and rewards: scorers made of scorers, and bases of which one factor samples.

use super::Formula;
use crate::backend::Backend;
use crate::error::{Error, Result, expect_len};
use crate::exact::Guide;
use crate::features::FeatureOutput;
use crate::models::{Sampler, Scorer, check_batch, check_sample};
use crate::rng::Draw;
use crate::tokens::{Batch, Space};

/// The scorers of a [`Formula`] as one: log of the product of its models' powers and its rewards. As a base it need not be
/// normalised; [`SampledProduct`] is one that can also be drawn from.
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
        let scores: Vec<_> = formula.scores()?.into_iter().map(|(name, factor, _)| (name, factor)).collect();
        Product::of(backend, &scores, scorers)
    }

    /// The product of the scorers that `scores` names, each with a factor of its scores.
    fn of(backend: &B, scores: &[(&str, f64)], scorers: Vec<(&str, &'a mut dyn Scorer<B>)>) -> Result<Self> {
        let mut scorers: Vec<(&str, Option<&'a mut dyn Scorer<B>>)> =
            scorers.into_iter().map(|(name, scorer)| (name, Some(scorer))).collect();
        let mut parts: Vec<Part<'a, B>> = Vec::new();
        for &(name, factor) in scores {
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

/// The product of a [`Formula`]'s models and rewards as a base that samples: one model draws, the others only score.
///
/// A product of models is not normalised token by token, so it cannot be drawn from as it stands. What it can do is all that
/// a [`Target`](crate::tune::Target)'s base is asked for: its draws are those of `sampler`, guided or not, with the log q
/// that they were drawn with, and log r is the product's. So P/q is exact, and with it every weight, estimate and update;
/// only how even the weights are depends on how near the sampler is to the product. Unlike a model's, log q and log r
/// differ without a guide too.
///
/// ```
/// use ebm_dpg::backend::Cpu;
/// use ebm_dpg::features::{Feature, FeatureSet};
/// use ebm_dpg::models::Markov;
/// use ebm_dpg::potential::{Reward, SampledProduct, exp, model, phi, reward};
/// use ebm_dpg::rng::{Draw, Purpose};
/// use ebm_dpg::tokens::Space;
/// use ebm_dpg::tune::{Draws, Source, Target};
/// use ebm_dpg::weights::ImportanceWeights;
///
/// let space = Space::new(2, 4)?;
/// let features = FeatureSet::new(space).with("motif", Feature::Contains(vec![1, 0]))?;
/// let formula = model("base") * reward("ones", 2.0) * exp(phi("motif"));
/// let mut base = Markov::noise(space, 3)?;
/// let mut ones = Reward::new(&Cpu, space, |batch| batch.iter().map(|x| x[0].into()).collect());
/// let mut product = SampledProduct::new(&Cpu, &formula, ("base", &mut base), vec![("ones", &mut ones)])?;
///
/// let (table, potential) = (features.compile(&Cpu)?, formula.potential(&Cpu, &features)?);
/// let mut target = Target { base: &mut product, features: &table, potential: &potential, guide: None, contexts: None };
/// let mut draws = Draws::new(&Cpu, space, 1000, 1)?;
/// draws.fill(&Cpu, &mut target, Source::Base, None::<&mut Markov>, Draw::new(1, Purpose::User))?;
/// let weights = ImportanceWeights::new(&draws.host_log_p, &draws.host_log_q)?;
/// // ½ (1 + √e): the first token; a motif in half of the eight strings, all but one of them beginning with 1.
/// let (e, root) = (1_f64.exp(), 0.5_f64.exp());
/// let z = (3.0 * root * e + root + e + 3.0) / 8.0;
/// assert!((weights.log_z().value - z.ln()).abs() < 4.0 * weights.log_z().standard_error);
/// # Ok::<(), ebm_dpg::Error>(())
/// ```
pub struct SampledProduct<'a, B: Backend, R> {
    sampler: &'a mut R,
    factor: f64,
    /// The other scorers, where there are any.
    others: Option<Product<'a, B>>,
    backend: B,
    /// The sampler's scores, and the others', `[rows]`.
    scratch: [B::Buffer<f64>; 2],
}

impl<'a, B: Backend, R: Sampler<B>> SampledProduct<'a, B, R> {
    /// The product of the formula's models and rewards, each given under its name; `sampler` draws. It must draw all that
    /// the product holds possible.
    ///
    /// # Errors
    /// As [`Product::new`]; a sampler that is not in the formula, or more than once.
    pub fn new(
        backend: &B,
        formula: &Formula,
        sampler: (&str, &'a mut R),
        scorers: Vec<(&str, &'a mut dyn Scorer<B>)>,
    ) -> Result<Self> {
        let (own, others): (Vec<_>, Vec<_>) = formula
            .scores()?
            .into_iter()
            .map(|(name, factor, _)| (name, factor))
            .partition(|(name, _)| *name == sampler.0);
        let [(_, factor)] = own[..] else {
            let expected = format!("'{}' once in the formula", sampler.0);
            return Err(Error::argument("sampler of the potential", expected, format!("{} times", own.len())));
        };
        let others = match (others.is_empty(), scorers.first()) {
            (true, None) => None,
            (true, Some((name, _))) => {
                return Err(Error::argument(
                    "scorers of the potential",
                    "those in the formula",
                    format!("'{name}' too"),
                ));
            }
            (false, _) => Some(Product::of(backend, &others, scorers)?),
        };
        if let Some(others) = &others {
            check_batch(sampler.1.space(), others.space)?;
        }
        let room = || backend.zeros(0, "scores");
        Ok(SampledProduct { sampler: sampler.1, factor, others, backend: backend.clone(), scratch: [room()?, room()?] })
    }

    fn make_room(&mut self, rows: usize) -> Result<()> {
        if B::len(&self.scratch[0]) < rows {
            for buffer in &mut self.scratch {
                *buffer = self.backend.zeros(rows, "scores")?;
            }
        }
        Ok(())
    }

    /// Writes the product's scores, those of the sampler being in the scratch memory already.
    fn combine(&mut self, batch: &Batch<B>, log_probs: B::ViewMut<'_, f64>) -> Result<()> {
        let rows = batch.rows;
        let (backend, [own, scores]) = (&self.backend, &mut self.scratch);
        if let Some(others) = &mut self.others {
            others.score(batch, B::view_mut(scores, rows))?;
        }
        let before = self.others.is_some().then(|| B::view(scores, rows));
        backend.add_scaled(before, self.factor, B::view(own, rows), log_probs)
    }
}

impl<B: Backend, R: Sampler<B>> Scorer<B> for SampledProduct<'_, B, R> {
    fn space(&self) -> Space {
        self.sampler.space()
    }

    fn score(&mut self, batch: &Batch<B>, log_probs: B::ViewMut<'_, f64>) -> Result<()> {
        check_batch(self.space(), batch.space)?;
        expect_len("log-probs", batch.rows, B::view_mut_len(&log_probs))?;
        self.make_room(batch.rows)?;
        self.sampler.score(batch, B::view_mut(&mut self.scratch[0], batch.rows))?;
        self.combine(batch, log_probs)
    }
}

impl<B: Backend, R: Sampler<B>> Sampler<B> for SampledProduct<'_, B, R> {
    /// Draws from the sampler, which also gives log q; `log_model` receives the product's scores, not normalised.
    ///
    /// # Errors
    /// Those of the sampler and, once the batch is drawn, of the other scorers.
    fn sample(
        &mut self,
        draw: Draw,
        guide: Option<&Guide<B>>,
        batch: &mut Batch<B>,
        log_q: B::ViewMut<'_, f64>,
        log_model: B::ViewMut<'_, f64>,
    ) -> Result<()> {
        let (len_q, len_model, rows) = (B::view_mut_len(&log_q), B::view_mut_len(&log_model), batch.capacity());
        check_sample(self.space(), guide, batch, len_q, len_model)?;
        self.make_room(rows)?;
        self.sampler.sample(draw, guide, batch, log_q, B::view_mut(&mut self.scratch[0], rows))?;
        self.combine(batch, log_model)
    }

    /// As [`SampledProduct::sample`]; φ comes from the sampler.
    fn sample_features(
        &mut self,
        draw: Draw,
        guide: Option<&Guide<B>>,
        batch: &mut Batch<B>,
        log_q: B::ViewMut<'_, f64>,
        log_model: B::ViewMut<'_, f64>,
        features: FeatureOutput<'_, B>,
    ) -> Result<()> {
        let (len_q, len_model, rows) = (B::view_mut_len(&log_q), B::view_mut_len(&log_model), batch.capacity());
        check_sample(self.space(), guide, batch, len_q, len_model)?;
        self.make_room(rows)?;
        let own = B::view_mut(&mut self.scratch[0], rows);
        self.sampler.sample_features(draw, guide, batch, log_q, own, features)?;
        self.combine(batch, log_model)
    }

    fn score_guided(&mut self, guide: &Guide<B>, batch: &Batch<B>, log_q: B::ViewMut<'_, f64>) -> Result<()> {
        self.sampler.score_guided(guide, batch, log_q)
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
