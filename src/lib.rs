//! Fit sequence-level energy-based models over autoregressive bases, and train policies to them.
#![deny(missing_docs)]

pub mod adam;
pub mod backend;
pub mod checkpoint;
pub mod data;
mod error;
pub mod exact;
pub mod features;
pub mod fit;
pub mod gradient;
pub mod log_prob;
pub mod models;
pub mod potential;
pub mod rng;
pub mod tokens;
pub mod tune;
pub mod weights;

pub use error::{Error, Result};
