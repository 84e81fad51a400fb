//! Synthetic data whose true process is known exactly: binary strings of one length, as in the papers.

use crate::backend::{Backend, Cpu, Memory};
use crate::error::{Error, Result};
use crate::exact::Exact;
use crate::features::{Feature, FeatureSet};
use crate::models::Markov;
use crate::potential::{Potential, Role};
use crate::rng::{Draw, Purpose};
use crate::tokens::{Batch, Space, Token};

/// States that the automaton of a process may have; motifs and moduli stay far below.
const STATES: usize = 1 << 20;

/// The longest strings: the noise has a table per position.
const LONGEST: u32 = 1 << 20;

/// How many sequences each split owns: splits never share a draw, and a larger one begins with a smaller one.
const SPLIT: u64 = 1 << 40;

/// The true process: fair coin flips of one length under one feature, its exact distribution in reach.
pub struct Process {
    length: u32,
    features: FeatureSet,
    potential: Potential,
    exact: Exact,
}

/// Train, validation and test sequences, independent of one another.
pub struct Splits<B: Memory = Cpu> {
    /// To learn from.
    pub train: Batch<B>,
    /// To stop early by.
    pub validation: Batch<B>,
    /// To report on.
    pub test: Batch<B>,
}

impl Splits {
    /// The same sequences in the memory of `backend`.
    ///
    /// # Errors
    /// Memory that cannot be had.
    pub fn upload<B: Backend>(&self, backend: &B) -> Result<Splits<B>> {
        Ok(Splits {
            train: self.train.upload(backend)?,
            validation: self.validation.upload(backend)?,
            test: self.test.upload(backend)?,
        })
    }
}

impl Process {
    /// The space of binary strings of `length` bits and EOS: ids 0 and 1 are the bits.
    ///
    /// # Errors
    /// A length of zero, or one whose tables could not be held.
    pub fn space(length: u32) -> Result<Space> {
        if !(1..=LONGEST).contains(&length) {
            return Err(Error::argument("length", format!("1 to {LONGEST} bits"), length));
        }
        Space::new(2, length + 1)
    }

    /// Mode m: noise conditioned on containing the motif.
    ///
    /// # Errors
    /// A motif that is empty, not binary, or longer than `length`.
    pub fn motif(motif: &[Token], length: u32) -> Result<Self> {
        Self::new(length, "motif", contains(motif, length)?, Role::Require(1.0))
    }

    /// Mode mam: a share of the strings (the papers: 0.9) with the motif, the rest without, each uniform. As an
    /// energy-based model: noise × exp(λ·motif), λ = logit(share) − logit(probability of the motif under noise).
    ///
    /// # Errors
    /// A motif that is empty, not binary, or longer than `length`; a share outside (0, 1).
    pub fn mixture(motif: &[Token], length: u32, share: f64) -> Result<Self> {
        if !(share > 0.0 && share < 1.0) {
            return Err(Error::argument("share of the motif", "a number in (0, 1)", share));
        }
        let noise = Self::new(length, "motif", contains(motif, length)?, Role::Tilt(0.0))?;
        let logit = |p: f64| p.ln() - (-p).ln_1p();
        let lambda = logit(share) - logit(noise.exact.moments()[0]);
        Self::new(length, "motif", contains(motif, length)?, Role::Tilt(lambda))
    }

    /// Mode mult: noise conditioned on being a positive multiple of `modulus` (the papers: 3 or 17), read as a binary
    /// number, most significant bit first.
    ///
    /// # Errors
    /// A modulus of 0 or without a multiple of `length` bits.
    pub fn multiple(modulus: u32, length: u32) -> Result<Self> {
        let feature = Feature::MultipleOf { modulus, zero: 0, one: 1 };
        Self::new(length, "multiple", feature, Role::Require(1.0))
    }

    fn new(length: u32, name: &str, feature: Feature, role: Role) -> Result<Self> {
        let space = Self::space(length)?;
        let features = FeatureSet::new(space).with(name, feature)?;
        let potential = Potential::new(&Cpu, &[role])?;
        let exact = Exact::new(&Markov::noise(space, length)?, &features, &potential, STATES)?;
        Ok(Process { length, features, potential, exact })
    }

    /// The noise that the process is an energy-based model over.
    pub fn chain(&self) -> &Markov {
        self.exact.chain()
    }

    /// The one feature.
    pub fn features(&self) -> &FeatureSet {
        &self.features
    }

    /// The role of the feature: with [`Process::chain`] as base, this is the true energy-based model.
    pub fn potential(&self) -> &Potential {
        &self.potential
    }

    /// The exact distribution.
    pub fn exact(&self) -> &Exact {
        &self.exact
    }

    /// Entropy H in nats.
    pub fn entropy(&self) -> f64 {
        self.exact.entropy()
    }

    /// H in nats per token, EOS included: H / (length + 1).
    pub fn entropy_per_token(&self) -> f64 {
        self.entropy() / f64::from(self.length + 1)
    }

    /// Independent sets of exact samples. A set of n sequences begins any larger set of the same seed, whatever the
    /// sizes of the others.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn splits(&self, seed: u64, train: usize, validation: usize, test: usize) -> Result<Splits> {
        let draw = Draw::new(seed, Purpose::Data);
        Ok(Splits {
            train: self.sample(draw, train)?,
            validation: self.sample(draw.skip(SPLIT), validation)?,
            test: self.sample(draw.skip(2 * SPLIT), test)?,
        })
    }

    /// `count` exact samples.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn sample(&self, draw: Draw, count: usize) -> Result<Batch> {
        let mut batch = Batch::with_capacity(&Cpu, self.exact.space(), count)?;
        let mut log_p = crate::backend::Memory::zeros::<f64>(&Cpu, count, "log-probs of data")?;
        self.exact.sample(draw, &mut batch, &mut log_p)?;
        Ok(batch)
    }
}

fn contains(motif: &[Token], length: u32) -> Result<Feature> {
    if motif.is_empty() || motif.len() > length as usize {
        return Err(Error::argument("motif", format!("1 to {length} bits"), motif.len()));
    }
    Ok(Feature::Contains(motif.to_vec()))
}
