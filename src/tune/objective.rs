//! What training ascends: from each objective the same weighted gradient Σ_b a_b ∇log π(x_b), with other coefficients.
//!
//! | objective | a, per row | x from | source |
//! | --- | --- | --- | --- |
//! | distillation | 1 | p, by rejection | |
//! | DPG | P/(q·Ẑ) | q or π | Parshakova, Andreoli & Dymetman 2019 |
//! | with the mean as baseline (GDC++) | (P/Ẑ − π)/q | q or π | Korbak et al. 2022 |
//! | f-DPG | −(π/q)·(f′(πẐ/P) − c) | q or π | Go et al. 2023 |
//! | trajectory balance | log P − log Z_θ − log π | any q | Malkin et al. 2022 |
//! | sub-trajectory balance | Σ_j λ^{\|i−j\|}(A_i − A_j), A_i = log P − log π of the i-th ended prefix | any q | Madan et al. 2023, Hu et al. 2024 |
//! | REINFORCE | R − baseline, R = P | π | Williams 1992 |
//! | KL-control | log P/r − β·log π/r − baseline | π | Ziegler et al. 2019 |

use super::{Baseline, SubTrajectories, TuneOptions, Unit, Worth};
use crate::error::{Error, Result};
use crate::gradient::Divergence;
use crate::models::Weighting;
use crate::potential::Role;

/// How the policy is trained.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub enum Method {
    /// DPG, x ~ q, with the swap; draws are cached with their weights and serve several updates.
    DpgOffPolicy,
    /// DPG, x ~ π, weight P/π.
    DpgOnPolicy,
    /// Maximum likelihood on samples of p, accepted by rejection.
    Distill,
    /// The least squares of log Z_θ + log π − log P, x ~ q, with the swap and the cache of off-policy DPG. Z_θ is Ẑ, or with
    /// a baseline learnt; learnt, it cannot tell a requirement's failure from a smaller Z.
    TrajectoryBalance,
    /// The least squares of log P − log π between prefixes of one sequence, each ended: SubTB(λ) without a learnt flow and
    /// without Z, see [`SubTrajectories`]; x ~ q, with the swap and the cache of off-policy DPG. Every prefix of a sequence
    /// must have P > 0 when it is ended: no requirements, and a base that may end a sequence anywhere.
    SubTrajectoryBalance(SubTrajectories),
    /// REINFORCE on the reward R = P, the foil: it maximises `E_π[P]`, which is not to match p.
    Reinforce,
    /// Reward maximisation under a KL penalty; see [`KlControl`].
    KlControl(KlControl),
}

/// Maximises `E_π[R]` − β·KL(π‖r) with the reward R(x) = max(log P(x)/r(x), floor), which is ⟨λ, φ(x)⟩ where x meets the
/// requirements. Its optimum is ∝ r·exp(R/β): p itself where β is 1 and nothing reaches the floor.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct KlControl {
    /// β, above 0.
    pub beta: f64,
    /// The reward of sequences that fail a requirement, in nats; finite.
    pub floor: f64,
}

impl Default for KlControl {
    /// β of 1, a floor of −10.
    fn default() -> Self {
        KlControl { beta: 1.0, floor: -10.0 }
    }
}

impl KlControl {
    /// The return of a sequence that π drew: R − β·(log π − log r). Not finite where r is 0.
    pub fn value(&self, log_p: f64, log_base: f64, log_pi: f64) -> f64 {
        (log_p - log_base).max(self.floor) - self.beta * (log_pi - log_base)
    }

    fn check(&self) -> Result<()> {
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            return Err(Error::argument("β of KL-control", "a positive number", self.beta));
        }
        if !self.floor.is_finite() {
            return Err(Error::argument("floor of KL-control", "a finite number", self.floor));
        }
        Ok(())
    }
}

impl Method {
    /// Whether π itself proposes, so that draws serve one update only.
    pub(super) fn is_on_policy(self) -> bool {
        matches!(self, Method::DpgOnPolicy | Method::Reinforce | Method::KlControl(_))
    }

    /// Whether a frozen q proposes that π may replace.
    pub(super) fn is_off_policy(self) -> bool {
        matches!(self, Method::DpgOffPolicy | Method::TrajectoryBalance | Method::SubTrajectoryBalance(_))
    }
}

/// How the coefficients of an update come about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Objective {
    pub weighting: Weighting,
    pub worth: Worth,
    /// Whether draws of weight 0 are kept, as they have a gradient too.
    pub all: bool,
    /// Whether the coefficients are shifted by what earlier updates taught.
    pub shifts: bool,
    /// Whether prefixes are ended, each of which needs a finite log P.
    pub ends: bool,
}

impl Objective {
    /// # Errors
    /// Options that do not go together.
    pub fn new(options: &TuneOptions) -> Result<Self> {
        let (baseline, clip) = (options.baseline, options.clip_weights);
        let of = |unit, weighting, all, baseline, shifts| {
            let ends = matches!(options.method, Method::SubTrajectoryBalance(_));
            Ok(Objective { weighting, worth: Worth { unit, clip, baseline }, all, shifts, ends })
        };
        options.divergence.check()?;
        let is_dpg = matches!(options.method, Method::DpgOffPolicy | Method::DpgOnPolicy);
        if options.divergence != Divergence::ForwardKl && !is_dpg {
            let got = format!("{:?} for {:?}", options.divergence, options.method);
            return Err(Error::argument("divergence", "the forward KL for all methods but DPG", got));
        }
        if baseline == Baseline::LeaveOneOut && !options.method.is_on_policy() && options.method != Method::Distill {
            return Err(Error::argument(
                "leave-one-out baseline",
                "an on-policy method",
                format!("{:?}", options.method),
            ));
        }
        let objective = match options.method {
            Method::Distill => of(Unit::MeanWeight, Weighting::Given, false, Baseline::None, false),
            Method::Reinforce => of(Unit::MeanReward, Weighting::Given, true, baseline, false),
            Method::KlControl(control) => {
                control.check()?;
                of(Unit::Return, Weighting::Given, true, baseline, false)
            }
            Method::TrajectoryBalance => {
                let learnt = baseline == Baseline::Mean;
                of(Unit::Partition, Weighting::Balance, learnt, Baseline::None, learnt)
            }
            Method::SubTrajectoryBalance(how) => {
                how.check()?;
                // Coefficients are made of the ended prefixes, whatever the weight of the sequence.
                of(Unit::Partition, Weighting::Given, true, Baseline::None, false)
            }
            Method::DpgOffPolicy | Method::DpgOnPolicy if options.divergence == Divergence::ForwardKl => match baseline
            {
                Baseline::None => of(Unit::MeanWeight, Weighting::Given, false, Baseline::None, false),
                // What it is held against depends on log π: Ẑ·π/q.
                Baseline::Mean => of(Unit::MeanWeight, Weighting::Baseline, true, Baseline::None, false),
                Baseline::LeaveOneOut => of(Unit::MeanWeight, Weighting::Given, true, baseline, false),
            },
            Method::DpgOffPolicy | Method::DpgOnPolicy => {
                if baseline == Baseline::LeaveOneOut {
                    let got = format!("{:?}", options.divergence);
                    return Err(Error::argument("leave-one-out baseline", "rewards or the forward KL", got));
                }
                let (divergence, shifts) = (options.divergence, baseline == Baseline::Mean);
                let all = shifts || !divergence.is_bounded();
                of(Unit::Partition, Weighting::Divergence(divergence), all, Baseline::None, shifts)
            }
        }?;
        objective.check_clip()?;
        Ok(objective)
    }

    fn check_clip(&self) -> Result<()> {
        let Worth { unit, clip, .. } = self.worth;
        if clip.is_nan() || clip <= 0.0 {
            return Err(Error::argument("clip of weights", "a positive number of mean weights", clip));
        }
        if clip < f64::INFINITY && !matches!(unit, Unit::MeanWeight | Unit::MeanReward) {
            return Err(Error::argument("clip of weights", "an objective whose coefficients are weights", clip));
        }
        Ok(())
    }

    /// # Errors
    /// A requirement, where what fails it has no finite coefficient.
    pub fn check_roles(&self, roles: &[Role]) -> Result<()> {
        let requires = roles.iter().any(|role| matches!(role, Role::Require(_)));
        let infinite = match self.weighting {
            Weighting::Divergence(divergence) => !divergence.is_bounded(),
            Weighting::Balance => self.shifts,
            _ => false,
        };
        if requires && self.ends {
            let expected = "no requirement, as prefixes of what meets it fail it";
            return Err(Error::argument("objective", expected, "sub-trajectory balance"));
        }
        if requires && infinite {
            let (expected, got) =
                ("no requirement, or a divergence that is finite outside of p's support", self.weighting);
            return Err(Error::argument("objective", expected, format!("{got:?}")));
        }
        Ok(())
    }

    /// The shift's learning, where there is one.
    pub fn shifted(&self) -> Option<Weighting> {
        self.shifts.then_some(self.weighting)
    }
}
