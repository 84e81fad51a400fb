//! The columns of a [`Coefficient`] on the host: which sequences are left out, and what a chunk's sequences bring.

use super::LinearKernel;
use crate::backend::Memory;
use crate::error::Result;
use crate::gradient::{Coefficient, Divergence};

/// All sequences' columns; those that the kind lacks are empty.
pub(super) struct Columns {
    kind: Kind,
    pub weights: Vec<f32>,
    pub log_p: Vec<f64>,
    pub log_q: Vec<f64>,
}

enum Kind {
    Given,
    Baseline(f64),
    Divergence(Divergence),
}

impl Columns {
    /// Reads the columns back, where they are on a device.
    pub fn read<B: LinearKernel>(backend: &B, coefficient: &Coefficient<'_, B>) -> Result<Self> {
        let count = coefficient.count();
        let empty = |kind| Columns { kind, weights: Vec::new(), log_p: Vec::new(), log_q: Vec::new() };
        let f32s = |view| {
            let mut values = vec![0.0f32; count];
            backend.read(view, &mut values).map(|()| values)
        };
        let f64s = |view| {
            let mut values = vec![0.0f64; count];
            backend.read(view, &mut values).map(|()| values)
        };
        Ok(match *coefficient {
            Coefficient::Given { weights } => Columns { weights: f32s(weights)?, ..empty(Kind::Given) },
            Coefficient::Baseline { weights, log_q, baseline } => {
                Columns { weights: f32s(weights)?, log_q: f64s(log_q)?, ..empty(Kind::Baseline(baseline)) }
            }
            Coefficient::Divergence { divergence, log_p, log_q } => {
                Columns { log_p: f64s(log_p)?, log_q: f64s(log_q)?, ..empty(Kind::Divergence(divergence)) }
            }
        })
    }

    /// Whether a coefficient is the weight itself, so that a row's gradient needs no other row.
    pub fn are_given(&self) -> bool {
        matches!(self.kind, Kind::Given)
    }

    /// Whether the coefficient of sequence `s` is 0 whatever its log π.
    pub fn is_zero(&self, s: usize) -> bool {
        match self.kind {
            Kind::Given => self.weights[s] == 0.0,
            Kind::Baseline(_) => false,
            Kind::Divergence(divergence) => self.log_p[s] == f64::NEG_INFINITY && divergence.is_bounded(),
        }
    }

    /// The same kind of coefficient over a chunk's columns.
    pub fn of_chunk<'a, B: Memory>(
        &self,
        weights: &'a B::Buffer<f32>,
        log_p: &'a B::Buffer<f64>,
        log_q: &'a B::Buffer<f64>,
        sequences: usize,
    ) -> Coefficient<'a, B> {
        match self.kind {
            Kind::Given => Coefficient::Given { weights: B::view(weights, sequences) },
            Kind::Baseline(baseline) => Coefficient::Baseline {
                weights: B::view(weights, sequences),
                log_q: B::view(log_q, sequences),
                baseline,
            },
            Kind::Divergence(divergence) => Coefficient::Divergence {
                divergence,
                log_p: B::view(log_p, sequences),
                log_q: B::view(log_q, sequences),
            },
        }
    }
}
