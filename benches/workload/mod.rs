//! One off-policy DPG step, phase by phase: the work of `peers/dpg_torch.py`.
//!
//! Sequences must have full length, as the peer's do, so the space has no end: EOS is PAD, which no model may emit. The
//! models then have exactly `vocab` outputs, and every sequence is cut at the longest length.

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::models::{Coefficients, Lstm, LstmBackend, LstmShape, Policy, Sampler, Scorer};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use ebm_dpg::tune::{Baseline, Choice, Chosen, NewDraws, Pool, Unit, Worth};
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

/// Three LSTMs (q, r, π) and the memory of a step, on a backend. A step is the trainer's, with one update on all its draws.
pub struct Workload<B: LstmBackend> {
    backend: B,
    proposal: B::Lstm,
    base: B::Lstm,
    policy: B::Lstm,
    features: FeatureTable<B>,
    potential: Potential<B>,
    batch: Batch<B>,
    log_q: B::Buffer<f64>,
    log_model: B::Buffer<f64>,
    log_base: B::Buffer<f64>,
    phi: B::Buffer<f32>,
    log_p: B::Buffer<f64>,
    log_w: B::Buffer<f64>,
    pool: Pool<B>,
    chosen: Chosen<B>,
    rate: B::Buffer<f32>,
    log_pi: B::Buffer<f64>,
    draws: u64,
    /// A step, and the number of its first draw.
    recording: Option<(B::Recording, u64)>,
}

impl<B: LstmBackend> Workload<B> {
    pub fn new(backend: &B, size: Size) -> Result<Self> {
        let Size { batch: rows, hidden, layers, length, vocab } = size;
        let space = Space { vocab: vocab + 1, bos: vocab, eos: vocab, pad: vocab, longest: length };
        let model = |seed| backend.lstm(Lstm::new(space, LstmShape { layers, hidden, dropout: 0.0 }, seed)?);
        let mut features = FeatureSet::new(space);
        for i in 0..PATTERNS {
            let pattern: Vec<Token> = (i..i + 5).map(|token| token % (vocab - 1)).collect();
            features = features.with(format!("pattern {i}"), Feature::Contains(pattern))?;
        }
        let column = |what| backend.zeros(rows, what);
        let mut rate = backend.zeros(1, "learning rate")?;
        backend.upload(&[1.0], &mut rate)?;
        Ok(Workload {
            proposal: model(0)?,
            base: model(1)?,
            policy: model(2)?,
            features: features.compile(backend)?,
            potential: Potential::new(backend, &[Role::Tilt(1.0); PATTERNS as usize])?,
            batch: Batch::with_capacity(backend, space, rows)?,
            log_q: column("log q")?,
            log_model: column("log q")?,
            log_base: column("log r")?,
            phi: backend.zeros(rows * PATTERNS as usize, "features")?,
            log_p: column("log P")?,
            log_w: column("log w")?,
            pool: Pool::new(backend, space, rows, rows, 0.0, None)?,
            chosen: Chosen::new(backend, space, rows)?,
            rate,
            log_pi: column("log π")?,
            draws: 0,
            recording: None,
            backend: backend.clone(),
        })
    }

    fn rows(&self) -> usize {
        self.batch.capacity()
    }

    /// x ~ q, with log q from the same pass.
    pub fn sample(&mut self) -> Result<()> {
        let (draw, rows) = (Draw::new(0, Purpose::Tune).skip(self.draws), self.rows());
        self.draws += rows as u64;
        let (log_q, log_model) = (B::view_mut(&mut self.log_q, rows), B::view_mut(&mut self.log_model, rows));
        self.proposal.sample(draw, None, &mut self.batch, log_q, log_model)
    }

    /// log r(x).
    pub fn score(&mut self) -> Result<()> {
        let rows = self.rows();
        self.base.score(&self.batch, B::view_mut(&mut self.log_base, rows))
    }

    /// φ(x), log P(x), and w = P/q.
    pub fn features(&mut self) -> Result<()> {
        let (rows, values) = (self.rows(), self.rows() * PATTERNS as usize);
        self.features.evaluate(&self.backend, &self.batch, B::view_mut(&mut self.phi, values))?;
        let (log_base, phi) = (B::view(&self.log_base, rows), B::view(&self.phi, values));
        self.potential.log_potential(&self.backend, log_base, phi, B::view_mut(&mut self.log_p, rows))?;
        let (log_p, log_q) = (B::view(&self.log_p, rows), B::view(&self.log_q, rows));
        self.backend.weigh(&mut self.pool, log_p, log_q, B::view_mut(&mut self.log_w, rows))
    }

    /// Σ w ∇log π(x) over the mean of w, and Adam.
    pub fn gradient(&mut self) -> Result<()> {
        let (backend, rows) = (&self.backend, self.rows());
        let (log_w, log_q) = (B::view(&self.log_w, rows), B::view(&self.log_q, rows));
        let draws = NewDraws { batch: &self.batch, log_w, log_q, all: true, fresh: true };
        backend.keep(&mut self.pool, &draws)?;
        let worth = Worth { unit: Unit::MeanWeight, clip: f64::INFINITY, baseline: Baseline::None };
        backend.measure(&mut self.pool, &worth)?;
        let draw = Draw::new(0, Purpose::Shuffle);
        let choice = Choice { uses: usize::MAX, draw, worth, rate: &self.rate };
        backend.choose(&mut self.pool, &mut self.chosen, &choice)?;
        let coefficients = Coefficients::given(B::view(&self.chosen.weights, rows));
        self.policy.gradient(&self.chosen.batch, &coefficients, B::view_mut(&mut self.log_pi, rows))?;
        self.policy.update_at(&AdamOptions::default(), B::view(&self.chosen.rate, 1))?;
        backend.note_update(&mut self.pool, &self.chosen, B::view(&self.log_pi, rows), &worth, None)
    }

    #[allow(dead_code, reason = "the allocation test has no device")]
    /// Waits for the device, so that a phase's time is its own.
    pub fn wait(&self) -> Result<()> {
        self.backend.download(&self.log_q, &mut [0.0])
    }

    /// All phases.
    pub fn step(&mut self) -> Result<()> {
        self.sample()?;
        self.score()?;
        self.features()?;
        self.gradient()
    }

    /// Records a step, to be replayed; false where the backend does not record. Not before the first step.
    #[allow(dead_code, reason = "the allocation test launches each step")]
    pub fn record(&mut self) -> Result<bool> {
        let (backend, first) = (self.backend.clone(), self.draws);
        let recording = backend.record(|| self.step())?;
        self.draws = first;
        self.recording = recording.map(|recording| (recording, first));
        Ok(self.recording.is_some())
    }

    /// The recorded step, with the next draws.
    #[allow(dead_code, reason = "the allocation test launches each step")]
    pub fn replay(&mut self) -> Result<()> {
        let (recording, first) = self.recording.as_ref().expect("recorded");
        assert!(self.backend.replay(recording, self.draws - first)?, "memory was given back");
        self.draws += self.rows() as u64;
        Ok(())
    }

    /// # Errors
    /// The last step cannot have been right.
    pub fn check(&self) -> Result<()> {
        let (rows, longest) = (self.rows(), self.batch.space.longest as usize);
        let column = |buffer| {
            let mut host = vec![0.0; rows];
            self.backend.download(buffer, &mut host).map(|()| host)
        };
        let sane = |log_prob: &f64| log_prob.is_finite() && *log_prob < 0.0;
        let mut host = vec![0.0f32; rows];
        self.backend.download(&self.chosen.weights, &mut host)?;
        // A weight is per token.
        let total = host.iter().map(|&weight| f64::from(weight)).sum::<f64>() * longest as f64;
        let log_probs = [column(&self.log_q)?, column(&self.log_base)?, column(&self.log_pi)?];
        let fault = if self.batch.download(&self.backend)?.total_tokens() != rows * longest {
            "not every sequence has full length"
        } else if !log_probs.iter().flatten().all(sane) {
            "a log-probability is not below 0"
        } else if total.is_nan() || (total - 1.0).abs() > 1e-3 {
            "the weights do not sum to 1"
        } else {
            return Ok(());
        };
        Err(Error::no_answer("step", fault))
    }
}
