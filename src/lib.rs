//! Fit sequence-level energy-based models over autoregressive bases, and train policies to them.
//!
//! You have an autoregressive model r of sequences, features φ(x) of *whole* sequences (a motif, a prefix, a length), and
//! a wish for their moments. This crate
//!
//! 1. fits the energy-based model P(x) = r(x)·b(x)·exp⟨λ, φ(x)⟩ whose moments match ([`fit`](mod@fit)), and
//! 2. trains an autoregressive policy π towards p = P/Z by distributional policy gradient ([`tune`](mod@tune)):
//!    θ += α·P(x)/q(x)·∇log π(x) with x from a proposal q, and q ← π whenever π has become superior.
//!
//! # The tour
//!
//! Modules are the stages of one pipeline, in this order.
//!
//! **Tokens.** A [`Space`](tokens::Space) says which sequences exist: content ended by EOS, or cut at the longest length.
//! A [`Batch`](tokens::Batch) holds some of them.
//!
//! ```
//! use ebm_dpg::tokens::{Lines, Unit};
//!
//! let lines = Lines::from_text("sing\nring\nrest\n", Unit::Characters, None, Some(6))?;
//! assert_eq!(lines.batch.rows, 3);
//! assert_eq!(lines.vocab.decode(lines.batch.sequence(0))?, "sing");
//! # Ok::<(), ebm_dpg::Error>(())
//! ```
//!
//! **Models and their log-probs.** [`Scorer`](models::Scorer) ⊂ [`Sampler`](models::Sampler) ⊂
//! [`Policy`](models::Policy). There is an [`Lstm`](models::Lstm), a [`Markov`](models::Markov) chain, and
//! [`Logits`](models::Logits) around any model of your own.
//!
//! **Features** are data, compiled once and evaluated for a whole batch in one pass.
//!
//! ```
//! use ebm_dpg::backend::Cpu;
//! use ebm_dpg::features::{Feature, FeatureSet};
//! use ebm_dpg::tokens::{Lines, Unit};
//!
//! let lines = Lines::from_text("sing\nring\nrest\n", Unit::Characters, None, Some(6))?;
//! let features = FeatureSet::new(lines.batch.space)
//!     .with("ing", Feature::Contains(lines.vocab.encode("ing")?))?
//!     .with("^re", Feature::StartsWith(lines.vocab.encode("re")?))?;
//! let mut phi = vec![0.0; 6];
//! features.compile(&Cpu)?.evaluate(&Cpu, &lines.batch, &mut phi)?;
//! assert_eq!(phi, [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
//! # Ok::<(), ebm_dpg::Error>(())
//! ```
//!
//! **Potential, fit, policy.** The whole way, from noise to a policy half of whose strings contain `101`:
//!
//! ```
//! use ebm_dpg::adam::AdamOptions;
//! use ebm_dpg::backend::Cpu;
//! use ebm_dpg::features::{Feature, FeatureSet};
//! use ebm_dpg::fit::{FitOptions, Targets, fit};
//! use ebm_dpg::models::{Lstm, LstmShape, Markov};
//! use ebm_dpg::rng::{Draw, Purpose};
//! use ebm_dpg::tokens::Space;
//! use ebm_dpg::tune::{Source, Target, TuneData, TuneOptions, evaluate, tune};
//!
//! let space = Space::new(2, 9)?;
//! let mut base = Markov::noise(space, 8)?;
//! let features = FeatureSet::new(space).with("101", Feature::Contains(vec![1, 0, 1]))?;
//! let wanted = Targets::wanted(&[0.8])?;
//! let fit = fit(&Cpu, &mut base, &features, &wanted, &FitOptions::default(), Draw::new(0, Purpose::Fit))?;
//!
//! let (table, potential) = (features.compile(&Cpu)?, fit.potential(&Cpu)?);
//! let guide = fit.guide.as_ref();
//! let mut target = Target { base: &mut base, features: &table, potential: &potential, guide, contexts: None };
//! let mut policy = Lstm::new(space, LstmShape { layers: 1, hidden: 16, dropout: 0.0 }, 0)?;
//! let mut options = TuneOptions::default();
//! (options.samples, options.batch) = (30_000, 100);
//! options.adam = AdamOptions { learning_rate: 0.02, ..options.adam };
//! tune(&Cpu, &mut target, &mut policy, &options, TuneData::default(), |_| {})?;
//!
//! let judged = evaluate(&Cpu, &mut target, &mut policy, Source::Guided, 10_000, Draw::new(0, Purpose::Evaluate))?;
//! assert!((judged.moments_policy[0].value - 0.8).abs() < 0.05, "{:?}", judged.moments_policy);
//! assert!(judged.kl_policy.value < 0.1, "{:?}", judged.kl_policy);
//! # Ok::<(), ebm_dpg::Error>(())
//! ```
//!
//! **Weights and estimates.** [`weights`](mod@weights) turns log P and log q into estimates of log Z, KL, TV and moments,
//! each with a standard error, and says when not to trust them. **Exact truth**: [`exact`] answers the same questions by
//! dynamic programming where the base is a Markov chain, which is how all of this is tested. **Samples of p itself**, by
//! rejection, resampling, Metropolis–Hastings or sequential Monte Carlo: [`samplers`].
//!
//! # Contracts
//!
//! * The same seed gives the same bits, for any number of threads: randomness is counter-based ([`rng`]), sums have a
//!   fixed order.
//! * log P may be −∞ and is carried through; a NaN in an input is an error that says where.
//! * Bad input is an [`Error`] of one line: what, what was expected, what was got. Nothing panics on it, and nothing is
//!   half-written.
//!
//! # Where it runs
//!
//! Everything above is generic over a [`Backend`](backend::Backend): [`Cpu`](backend::Cpu), or with feature `cuda` an NVIDIA
//! GPU. Data, features, guide and network are brought there once; the calls stay the same.
//!
//! ```
//! use ebm_dpg::Result;
//! use ebm_dpg::backend::{Device, Opened};
//! use ebm_dpg::models::{Lstm, LstmBackend, LstmShape, Scorer};
//! use ebm_dpg::tokens::{Batch, Space};
//!
//! fn log_prob<B: LstmBackend>(backend: &B, lstm: Lstm, batch: &Batch) -> Result<f64> {
//!     let (mut lstm, batch) = (backend.lstm(lstm)?, batch.upload(backend)?);
//!     let (mut log_probs, mut host) = (backend.zeros(1, "log-probs")?, [0.0]);
//!     lstm.score(&batch, B::view_mut(&mut log_probs, 1))?;
//!     backend.download(&log_probs, &mut host)?;
//!     Ok(host[0])
//! }
//!
//! let space = Space::new(2, 4)?;
//! let lstm = Lstm::new(space, LstmShape { layers: 1, hidden: 8, dropout: 0.0 }, 0)?;
//! let batch = Batch::from_sequences(space, &[[0, 1, space.eos]])?;
//! let log_prob = match Device::auto().open()? {
//!     Opened::Cpu(cpu) => log_prob(&cpu, lstm, &batch)?,
//!     #[cfg(feature = "cuda")]
//!     Opened::Cuda(gpu) => log_prob(&gpu, lstm, &batch)?,
//!     _ => unreachable!("another backend"),
//! };
//! assert!(log_prob < 0.0);
//! # Ok::<(), ebm_dpg::Error>(())
//! ```
//!
//! On a GPU the same seed draws the same sequences, but where rounding decides. A [`Markov`](models::Markov)
//! base and [`Logits`](models::Logits) are on the CPU alone. Every kernel is executed by an
//! emulator in the tests.
#![deny(missing_docs)]

mod error;
pub mod rng;

pub mod backend;
pub mod checkpoint;

pub mod tokens;

pub mod data;
pub mod log_prob;
pub mod models;
pub mod sampling;

pub mod features;

pub mod potential;

pub mod exact;
pub mod fit;

pub mod weights;

pub mod adam;
pub mod gradient;
pub mod linear;
pub mod tune;

pub mod observe;
pub mod samplers;

#[cfg(feature = "cuda")]
pub use cudarc;
pub use error::{Error, Result};
