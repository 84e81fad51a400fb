//! Sequential Monte Carlo: particles grow token by token, and the promising ones are doubled on the way.

use super::Resampling;
use crate::backend::{Cpu, Memory};
use crate::error::{Error, Result};
use crate::exact::Guide;
use crate::features::FeatureTable;
use crate::models::Stepper;
use crate::potential::Potential;
use crate::rng::{Draw, Purpose};
use crate::tokens::{Batch, Space, Token};
use crate::weights::{log_mean_exp, log_sum_exp};

/// How particles are grown.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SequentialOptions {
    /// Number of particles, 1 or more.
    pub particles: usize,
    /// Resampling happens where ESS/particles falls below this, in 0..=1; 0 never resamples (importance sampling).
    pub threshold: f64,
    /// How.
    pub resampling: Resampling,
    /// Where the tokens' uniforms come from; resampling uses another stream of the same seed.
    pub draw: Draw,
}

impl SequentialOptions {
    /// `particles` particles, resampled systematically below half of ESS.
    pub fn new(particles: usize, draw: Draw) -> Self {
        SequentialOptions { particles, threshold: 0.5, resampling: Resampling::Systematic, draw }
    }

    fn check(&self) -> Result<()> {
        if self.particles == 0 {
            return Err(Error::argument("particles", "1 or more", 0));
        }
        // NaN fails this comparison too.
        if !(0.0..=1.0).contains(&self.threshold) {
            return Err(Error::argument("threshold of ESS/particles", "a share in 0..=1", self.threshold));
        }
        Ok(())
    }
}

/// Weighted samples of p.
#[derive(Clone)]
pub struct Particles {
    /// The sequences.
    pub batch: Batch,
    /// log of each particle's share of p's mass; they add up to 1. −∞ where P = 0.
    pub log_shares: Vec<f64>,
    /// log P of each, `[particles]`.
    pub log_p: Vec<f64>,
    /// φ of each, `[particles, F]`.
    pub phi: Vec<f32>,
    /// log Ẑ; Ẑ itself is unbiased (Del Moral 2004, proposition 7.4.1), whatever the number of particles.
    pub log_z: f64,
    /// Effective sample size of the final shares.
    pub ess: f64,
    /// How often the particles were resampled.
    pub resamplings: usize,
}

impl Particles {
    /// The rows of `count` unweighted samples, ascending; a particle may come up more than once.
    ///
    /// # Errors
    /// No particle of positive weight.
    pub fn survivors(&self, resampling: Resampling, count: usize, draw: Draw) -> Result<Vec<u32>> {
        resampling.survivors(&self.log_shares, count, Draw { purpose: Purpose::Resample, ..draw }, u32::MAX)
    }

    /// E_p φ per feature, Σ share·φ; biased by order 1/particles.
    pub fn moments(&self) -> Vec<f64> {
        let features = self.phi.len() / self.log_shares.len();
        let mut moments = vec![0.0; features];
        for (log_share, phi) in self.log_shares.iter().zip(self.phi.chunks_exact(features.max(1))) {
            moments.iter_mut().zip(phi).for_each(|(moment, &phi)| *moment += log_share.exp() * f64::from(phi));
        }
        moments
    }
}

/// Sequential Monte Carlo towards p ∝ r·b·exp⟨λ, φ⟩, twisted by the look-ahead h of `guide` (Doucet & Johansen 2011, "A
/// tutorial on particle filtering and smoothing"; Whiteley & Lee 2014, "Twisted particle filters").
///
/// After t tokens the particles stand for γ_t(x) = r(x)·h_t(x): each draws its next token from r(c)·h(c)/N with
/// N = Σ_c r(c)·h(c), and its weight grows by N/h. At its end h is replaced by b·exp⟨λ, φ⟩. Without a guide h is 1, and all
/// weight comes at the end.
///
/// # Errors
/// Options out of range, a guide of another space, NaN in the model, [`Error::NoAnswer`] where no particle is left.
pub fn sequential<M: Stepper>(
    base: &M,
    features: &FeatureTable,
    potential: &Potential,
    guide: Option<&Guide>,
    options: &SequentialOptions,
) -> Result<Particles> {
    options.check()?;
    let space = base.space();
    if let Some(guide) = guide.filter(|guide| guide.space != space) {
        return Err(Error::argument("space of the guide", format!("{space:?}"), format!("{:?}", guide.space)));
    }
    let rows = options.particles;
    let mut log_probs: Vec<f32> = Cpu.zeros(rows.saturating_mul(space.vocab as usize), "log-probs of the particles")?;
    let mut flock = Flock::new(space, rows, guide)?;
    let mut prefixes = base.begin(rows, &mut log_probs)?;
    for position in 0..space.longest as usize {
        flock.extend(position, &log_probs, options.draw)?;
        if flock.alive.iter().all(|alive| !alive) || position + 1 == space.longest as usize {
            break;
        }
        if let Some(ancestors) = flock.resample(position, options)? {
            base.select(&mut prefixes, &ancestors)?;
        }
        base.step(&mut prefixes, &flock.last, &mut log_probs)?;
    }
    flock.finish(features, potential)
}

/// Particles under way.
struct Flock<'a> {
    space: Space,
    guide: Option<&'a Guide>,
    /// `[rows, longest]`.
    tokens: Vec<Token>,
    lengths: Vec<u32>,
    /// The last token of each.
    last: Vec<Token>,
    /// Whether it goes on.
    alive: Vec<bool>,
    /// The guide's state.
    states: Vec<u32>,
    /// log h after the last token.
    log_h: Vec<f64>,
    /// log r of the tokens so far.
    log_base: Vec<f64>,
    /// Weight since the last resampling.
    log_w: Vec<f64>,
    /// log Ẑ of the resamplings so far.
    log_z: f64,
    resamplings: usize,
}

impl<'a> Flock<'a> {
    fn new(space: Space, rows: usize, guide: Option<&'a Guide>) -> Result<Self> {
        let mut tokens: Vec<Token> = Cpu.zeros(rows.saturating_mul(space.longest as usize), "particles")?;
        tokens.fill(space.pad);
        Ok(Flock {
            space,
            guide,
            tokens,
            lengths: vec![0; rows],
            last: vec![space.bos; rows],
            alive: vec![true; rows],
            states: vec![0; rows],
            log_h: vec![0.0; rows],
            log_base: vec![0.0; rows],
            log_w: vec![0.0; rows],
            log_z: 0.0,
            resamplings: 0,
        })
    }

    /// Draws the token at `position` of each particle that goes on, and weighs it.
    fn extend(&mut self, position: usize, log_probs: &[f32], draw: Draw) -> Result<()> {
        let vocab = self.space.vocab as usize;
        let mut boosted = vec![0.0; vocab];
        for (row, log_probs) in log_probs.chunks_exact(vocab).enumerate() {
            if !self.alive[row] {
                continue;
            }
            for (token, boosted) in boosted.iter_mut().enumerate() {
                let boost = |guide: &Guide| f64::from(guide.boost(position, self.states[row], token as Token));
                *boosted = f64::from(log_probs[token]) + self.guide.map_or(0.0, boost);
            }
            let log_norm = log_sum_exp(&boosted);
            if log_norm.is_nan() {
                return Err(Error::not_a_number("log-prob", format!("particle {row}, position {position}")));
            }
            if self.guide.is_some() {
                self.log_w[row] += log_norm - self.log_h[row];
            }
            // No token is left: the particle is dead. It ends here, as a sequence of weight 0.
            let dead = log_norm == f64::NEG_INFINITY;
            let uniform = draw.fine_uniform(row as u64, position as u32, 7);
            let token = if dead { self.space.eos } else { pick(&boosted, log_norm, uniform) };
            self.append(row, position, token, f64::from(log_probs[token as usize]));
            if dead {
                self.log_w[row] = f64::NEG_INFINITY;
            }
        }
        Ok(())
    }

    fn append(&mut self, row: usize, position: usize, token: Token, log_prob: f64) {
        self.tokens[row * self.space.longest as usize + position] = token;
        self.lengths[row] = position as u32 + 1;
        self.last[row] = token;
        self.alive[row] = token != self.space.eos;
        self.log_base[row] += log_prob;
        if let Some(guide) = self.guide {
            self.log_h[row] = f64::from(guide.boost(position, self.states[row], token));
            if self.alive[row] {
                self.states[row] = guide.after(self.states[row], token);
            }
        }
    }

    /// Resamples where too few particles carry the weight; returns the ancestors.
    fn resample(&mut self, position: usize, options: &SequentialOptions) -> Result<Option<Vec<u32>>> {
        if self.ess() >= options.threshold * self.log_w.len() as f64 {
            return Ok(None);
        }
        let draw = Draw { purpose: Purpose::Resample, ..options.draw };
        let ancestors = options.resampling.survivors(&self.log_w, self.log_w.len(), draw, position as u32)?;
        self.log_z += log_mean_exp(&self.log_w);
        self.resamplings += 1;
        let longest = self.space.longest as usize;
        self.tokens =
            ancestors.iter().flat_map(|&row| &self.tokens[row as usize * longest..][..longest]).copied().collect();
        select(&mut self.lengths, &ancestors);
        select(&mut self.last, &ancestors);
        select(&mut self.alive, &ancestors);
        select(&mut self.states, &ancestors);
        select(&mut self.log_h, &ancestors);
        select(&mut self.log_base, &ancestors);
        self.log_w.fill(0.0);
        Ok(Some(ancestors))
    }

    /// (Σw)²/Σw²; NaN where no particle is left, which never counts as enough.
    fn ess(&self) -> f64 {
        let doubled: Vec<f64> = self.log_w.iter().map(|log_w| 2.0 * log_w).collect();
        (2.0 * log_sum_exp(&self.log_w) - log_sum_exp(&doubled)).exp()
    }

    /// Puts b·exp⟨λ, φ⟩ in the place of h.
    fn finish(mut self, features: &FeatureTable, potential: &Potential) -> Result<Particles> {
        let (rows, width) = (self.lengths.len(), features.len());
        let batch = Batch {
            space: self.space,
            rows,
            tokens: std::mem::take(&mut self.tokens),
            lengths: self.lengths.clone(),
            given: vec![0; rows],
            context: vec![0; rows],
        };
        let (mut phi, mut log_p) = (vec![0.0; rows * width], vec![0.0; rows]);
        features.evaluate(&Cpu, &batch, &mut phi)?;
        potential.log_potential(&Cpu, &self.log_base, &phi, &mut log_p)?;
        for row in 0..rows {
            if self.log_w[row] > f64::NEG_INFINITY {
                self.log_w[row] += log_p[row] - self.log_base[row] - self.log_h[row];
            }
        }
        let log_mean = log_mean_exp(&self.log_w);
        if log_mean == f64::NEG_INFINITY {
            let reason = format!("not one of {rows} particles has P > 0: use more, or a guide");
            return Err(Error::no_answer("sequential Monte Carlo", reason));
        }
        let ess = self.ess();
        let log_total = log_sum_exp(&self.log_w);
        self.log_w.iter_mut().for_each(|log_w| *log_w -= log_total);
        Ok(Particles {
            batch,
            log_shares: self.log_w,
            log_p,
            phi,
            log_z: self.log_z + log_mean,
            ess,
            resamplings: self.resamplings,
        })
    }
}

fn select<T: Copy>(values: &mut Vec<T>, rows: &[u32]) {
    *values = rows.iter().map(|&row| values[row as usize]).collect();
}

/// The first token whose cumulated probability exceeds `uniform`; one of probability 0 is never picked.
fn pick(log_weights: &[f64], log_norm: f64, uniform: f64) -> Token {
    let (mut cumulated, mut picked) = (0.0, 0);
    for (token, log_weight) in log_weights.iter().enumerate().filter(|(_, weight)| **weight > f64::NEG_INFINITY) {
        picked = token;
        cumulated += (log_weight - log_norm).exp();
        if cumulated > uniform {
            break;
        }
    }
    picked as Token
}
