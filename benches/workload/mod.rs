//! One off-policy DPG step, phase by phase: the work of `peers/dpg_torch.py`.
//!
//! Sequences must have full length, as the peer's do, so the space has no end: EOS is PAD, which no model may emit. The
//! models then have exactly `vocab` outputs, and every sequence is cut at the longest length.

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::Cpu;
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::models::{Coefficients, Lstm, LstmShape, Policy, Sampler, Scorer, Weighting};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use ebm_dpg::weights::{log_sum_exp, weights};
use ebm_dpg::{Error, Result};

/// Patterns of five tokens, each a feature with λ = 1.
const PATTERNS: u32 = 4;

/// How much work a step is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Sequences.
    pub batch: usize,
    /// Units per LSTM layer.
    pub hidden: usize,
    /// LSTM layers.
    pub layers: usize,
    /// Tokens of each sequence.
    pub length: u32,
    /// Outputs of the models.
    pub vocab: u32,
}

impl Default for Size {
    /// The papers' networks.
    fn default() -> Self {
        Size { batch: 2048, hidden: 200, layers: 2, length: 30, vocab: 4 }
    }
}

/// Three LSTMs (q, r, π) and the memory of a step.
pub struct Workload {
    proposal: Lstm,
    base: Lstm,
    policy: Lstm,
    features: FeatureTable,
    potential: Potential,
    batch: Batch,
    log_q: Vec<f64>,
    log_model: Vec<f64>,
    log_base: Vec<f64>,
    phi: Vec<f32>,
    log_p: Vec<f64>,
    log_w: Vec<f64>,
    weights: Vec<f32>,
    log_pi: Vec<f64>,
    draws: u64,
}

impl Workload {
    pub fn new(size: Size) -> Result<Self> {
        let Size { batch: rows, hidden, layers, length, vocab } = size;
        let space = Space { vocab: vocab + 1, bos: vocab, eos: vocab, pad: vocab, longest: length };
        let model = |seed| Lstm::new(space, LstmShape { layers, hidden, dropout: 0.0 }, seed);
        let mut features = FeatureSet::new(space);
        for i in 0..PATTERNS {
            let pattern: Vec<Token> = (i..i + 5).map(|token| token % (vocab - 1)).collect();
            features = features.with(format!("pattern {i}"), Feature::Contains(pattern))?;
        }
        Ok(Workload {
            proposal: model(0)?,
            base: model(1)?,
            policy: model(2)?,
            features: features.compile(&Cpu)?,
            potential: Potential::new(&Cpu, &[Role::Tilt(1.0); PATTERNS as usize])?,
            batch: Batch::with_capacity(&Cpu, space, rows)?,
            log_q: vec![0.0; rows],
            log_model: vec![0.0; rows],
            log_base: vec![0.0; rows],
            phi: vec![0.0; rows * PATTERNS as usize],
            log_p: vec![0.0; rows],
            log_w: vec![0.0; rows],
            weights: vec![0.0; rows],
            log_pi: vec![0.0; rows],
            draws: 0,
        })
    }

    /// x ~ q, with log q from the same pass.
    pub fn sample(&mut self) -> Result<()> {
        let draw = Draw::new(0, Purpose::Tune).skip(self.draws);
        self.draws += self.batch.capacity() as u64;
        self.proposal.sample(draw, None, &mut self.batch, &mut self.log_q, &mut self.log_model)
    }

    /// log r(x).
    pub fn score(&mut self) -> Result<()> {
        self.base.score(&self.batch, &mut self.log_base)
    }

    /// φ(x), log P(x), and w = P/q over its sum.
    pub fn features(&mut self) -> Result<()> {
        self.features.evaluate(&Cpu, &self.batch, &mut self.phi)?;
        self.potential.log_potential(&Cpu, &self.log_base, &self.phi, &mut self.log_p)?;
        let log_w = self.log_p.iter().zip(&self.log_q).map(|(log_p, log_q)| log_p - log_q);
        self.log_w.iter_mut().zip(log_w).for_each(|(to, log_w)| *to = log_w);
        let log_total = log_sum_exp(&self.log_w);
        weights(&Cpu, &self.log_p, &self.log_q, log_total, &mut self.log_w, &mut self.weights)
    }

    /// Σ w ∇log π(x), and Adam.
    pub fn gradient(&mut self) -> Result<()> {
        let coefficients = Coefficients {
            weighting: Weighting::Given,
            weights: &self.weights[..],
            log_q: None,
            scale: 0.0,
            dropout: None,
        };
        self.policy.gradient(&self.batch, &coefficients, &mut self.log_pi)?;
        self.policy.update(&AdamOptions::default())
    }

    /// All phases.
    #[allow(dead_code, reason = "the example times the phases one by one")]
    pub fn step(&mut self) -> Result<()> {
        self.sample()?;
        self.score()?;
        self.features()?;
        self.gradient()
    }

    /// # Errors
    /// The last step cannot have been right.
    pub fn check(&self) -> Result<()> {
        let (rows, longest) = (self.batch.capacity(), self.batch.space.longest as usize);
        let sane = |log_prob: &f64| log_prob.is_finite() && *log_prob < 0.0;
        let total: f64 = self.weights.iter().map(|&weight| f64::from(weight)).sum();
        let fault = if self.batch.total_tokens() != rows * longest {
            "not every sequence has full length"
        } else if ![&self.log_q, &self.log_base, &self.log_pi].iter().all(|log_probs| log_probs.iter().all(sane)) {
            "a log-probability is not below 0"
        } else if total.is_nan() || (total - 1.0).abs() > 1e-3 {
            "the weights do not sum to 1"
        } else {
            return Ok(());
        };
        Err(Error::no_answer("step", fault))
    }
}
