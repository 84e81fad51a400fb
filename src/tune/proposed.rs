//! Draws of what proposes, which from the first swap on may be a mixture of two.
//!
//! The share a of each batch that [`TuneOptions::defensive`](super::TuneOptions::defensive) names comes from the first
//! proposal q₁ for good, the rest from the frozen policy q₂, and every row is weighed by the density of both,
//! q = a·q₁ + (1 − a)·q₂, whichever drew it: a defensive mixture (Hesterberg 1995, "Weighted average importance sampling
//! and defensive mixture distributions"; Owen & Zhou 2000, "Safe and effective importance sampling") under the balance
//! heuristic (Veach & Guibas 1995). As q ≥ a·q₁, no weight P/q exceeds (P/q₁)/a: where q₁ covers p, so does q, whatever the
//! policy has forgotten.
//!
//! The rows are divided, not tossed for, so that a is exactly the part of them that q₁ draws, and
//! E[Σ f/q] over a batch of N rows is Σ_k n_k E_{q_k}[f/q] = N·Σ_x f(x) for any f. Errors computed as if each row were an
//! independent draw of q are then on the safe side: dividing the rows removes the variance between the components.

use super::{Draws, Source, Target};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::models::Sampler;
use crate::rng::Draw;
use crate::tokens::{Batch, Space};
use crate::weights::log_mixture;

/// How the rows of a batch are divided between the first proposal and what takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// The proposal before any swap.
    pub source: Source,
    /// Rows that it draws for good.
    pub first: usize,
    /// All others.
    pub rest: usize,
}

impl Split {
    /// The whole number of rounds nearest to `share` of the rows, but one of each kind at least; none of the first where
    /// the share is 0. A round is a row, or with contexts the draws in which all of them have their turn: of each context
    /// the first proposal then draws the same share.
    ///
    /// # Errors
    /// Rows of a mixture that are not two rounds or more.
    pub fn new(source: Source, share: f64, rows: usize, round: usize) -> Result<Self> {
        if share == 0.0 {
            return Ok(Split { source, first: 0, rest: rows });
        }
        let rounds = rows / round;
        if rounds < 2 || !rows.is_multiple_of(round) {
            let expected = format!("a multiple of {round}, twice that or more, as each component draws whole rounds");
            return Err(Error::argument("sequences of a batch or an evaluation from a mixture", expected, rows));
        }
        let first = ((share * rounds as f64).round() as usize).clamp(1, rounds - 1) * round;
        Ok(Split { source, first, rest: rows - first })
    }

    /// Whether there are two components once a policy proposes.
    pub fn is_mixture(self) -> bool {
        self.first > 0
    }

    /// The first proposal's share and that of the rest.
    pub fn shares(self) -> [f64; 2] {
        [self.first, self.rest].map(|rows| rows as f64 / (self.first + self.rest) as f64)
    }

    /// log q of sequences where a policy proposes: `log_policy`, or that of its mixture with the first proposal.
    pub fn mixed(self, log_first: &[f64], log_policy: &[f64]) -> Vec<f64> {
        if !self.is_mixture() {
            return log_policy.to_vec();
        }
        let log_shares = self.shares().map(f64::ln);
        log_first.iter().zip(log_policy).map(|(first, policy)| log_mixture(*first, *policy, log_shares)).collect()
    }
}

/// Batches of draws of what proposes.
pub(super) struct Proposed<B: Backend> {
    pub split: Split,
    /// Draws of the first proposal until the first swap, of a policy from then on.
    rest: Draws<B>,
    defensive: Option<Defensive<B>>,
}

/// What a mixture has beside the draws of its second component.
struct Defensive<B: Backend> {
    /// Draws of the first proposal.
    draws: Draws<B>,
    /// log q₂ of these.
    log_policy: B::Buffer<f64>,
    /// log q₁ of the others.
    log_first: B::Buffer<f64>,
    /// log q₁ of all, in the order of the parts.
    host_log_first: Vec<f64>,
}

impl<B: Backend> Proposed<B> {
    /// Room for the rows of `split`, with `features` features.
    pub fn new(backend: &B, space: Space, split: Split, features: usize) -> Result<Self> {
        let draws = |rows: usize| Draws::new(backend, space, rows, features);
        let defensive = || -> Result<_> {
            Ok(Defensive {
                draws: draws(split.first)?,
                log_policy: backend.zeros(split.first, "log q of the policy")?,
                log_first: backend.zeros(split.rest, "log q of the first proposal")?,
                host_log_first: vec![0.0; split.first + split.rest],
            })
        };
        let defensive = if split.is_mixture() { Some(defensive()?) } else { None };
        Ok(Proposed { split, rest: draws(split.rest)?, defensive })
    }

    /// Rows of a batch.
    pub fn rows(&self) -> usize {
        self.split.first + self.split.rest
    }

    /// The draws of each component, in the order of their numbers.
    pub fn parts(&self) -> impl Iterator<Item = &Draws<B>> {
        self.defensive.iter().map(|defensive| &defensive.draws).chain([&self.rest])
    }

    /// log q₁ of the rows of the last [`Proposed::fill`]; empty where there is no mixture.
    pub fn host_log_first(&self) -> &[f64] {
        self.defensive.as_ref().map_or(&[], |defensive| &defensive.host_log_first)
    }

    /// Fills all rows on the backend, as [`Draws::draw`] does; `source` is the first proposal's or a policy's.
    ///
    /// # Errors
    /// As there.
    pub fn draw<R: Sampler<B>, P: Sampler<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        source: Source,
        policy: Option<&mut P>,
        draw: Draw,
    ) -> Result<()> {
        self.draw_parts(backend, target, source, policy, draw)?;
        self.mix(backend, source)
    }

    /// As [`Proposed::draw`], and brings all but the tokens to the host.
    ///
    /// # Errors
    /// As [`Draws::fill`].
    pub fn fill<R: Sampler<B>, P: Sampler<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        source: Source,
        policy: Option<&mut P>,
        draw: Draw,
    ) -> Result<()> {
        self.draw_parts(backend, target, source, policy, draw)?;
        if let Some(Defensive { draws, log_first, host_log_first, .. }) = &mut self.defensive {
            let log_first = match (source, self.split.source) {
                (Source::Policy, Source::Base) => &self.rest.log_base,
                (Source::Policy, _) => &*log_first,
                // The first proposal still draws all rows.
                _ => &self.rest.log_q,
            };
            let (own, others) = host_log_first.split_at_mut(self.split.first);
            backend.download(&draws.log_q, own)?;
            backend.download(log_first, others)?;
        }
        self.mix(backend, source)?;
        if let Some(defensive) = &mut self.defensive {
            defensive.draws.fetch(backend)?;
        }
        self.rest.fetch(backend)
    }

    /// Draws each component's rows, and scores them under the other.
    fn draw_parts<R: Sampler<B>, P: Sampler<B>>(
        &mut self,
        backend: &B,
        target: &mut Target<'_, B, R>,
        source: Source,
        mut policy: Option<&mut P>,
        draw: Draw,
    ) -> Result<()> {
        let Split { source: before, first, rest } = self.split;
        self.rest.draw(backend, target, source, policy.as_deref_mut(), draw.skip(first as u64))?;
        let Some(Defensive { draws, log_policy, log_first, .. }) = &mut self.defensive else { return Ok(()) };
        draws.draw(backend, target, before, None::<&mut P>, draw)?;
        if source != Source::Policy {
            return Ok(());
        }
        let policy = policy.ok_or_else(|| Error::argument("proposal", "a policy", "none"))?;
        policy.score(&draws.batch, B::view_mut(log_policy, first))?;
        // r has scored them already.
        if before == Source::Base {
            Ok(())
        } else {
            score(target, before, &self.rest.batch, B::view_mut(log_first, rest))
        }
    }

    /// log q of each row becomes that of the mixture, once there is one.
    fn mix(&mut self, backend: &B, source: Source) -> Result<()> {
        let Some(Defensive { draws, log_policy, log_first, .. }) = &mut self.defensive else { return Ok(()) };
        if source != Source::Policy {
            return Ok(());
        }
        let Split { source: before, first, rest } = self.split;
        let [log_share, log_rest] = self.split.shares().map(f64::ln);
        let log_first = if before == Source::Base { &self.rest.log_base } else { &*log_first };
        let own = B::view_mut(&mut draws.log_q, first);
        crate::weights::mix(backend, own, B::view(log_policy, first), [log_share, log_rest])?;
        let own = B::view_mut(&mut self.rest.log_q, rest);
        crate::weights::mix(backend, own, B::view(log_first, rest), [log_rest, log_share])
    }
}

/// log q of given sequences, where r proposes, guided or not.
pub(super) fn score<B: Backend, R: Sampler<B>>(
    target: &mut Target<'_, B, R>,
    source: Source,
    batch: &Batch<B>,
    log_q: B::ViewMut<'_, f64>,
) -> Result<()> {
    match (source, target.guide) {
        (Source::Guided, Some(guide)) => target.base.score_guided(guide, batch, log_q),
        _ => target.base.score(batch, log_q),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Cpu;
    use crate::exact::{Guide, LookAhead};
    use crate::features::{Feature, FeatureSet, FeatureTable};
    use crate::models::{Lstm, LstmShape, Markov, Scorer};
    use crate::potential::{Potential, Role};
    use crate::rng::Purpose;

    #[test]
    fn rows_are_divided_by_the_nearest_whole_number_and_none_goes_without() {
        let cases =
            [(0.1, 500, 50), (0.1, 512, 51), (0.5, 3, 2), (0.49, 3, 1), (1e-9, 10, 1), (0.999, 10, 9), (0.9, 2, 1)];
        for (share, rows, first) in cases {
            let split = Split::new(Source::Base, share, rows, 1).unwrap();
            assert_eq!((split.first, split.rest), (first, rows - first), "{share} of {rows}");
            let [a, b] = split.shares();
            assert!((a - first as f64 / rows as f64).abs() < 1e-15 && (a + b - 1.0).abs() < 1e-15);
        }
        // Three contexts, two draws in a row of each.
        let of_contexts = |rows| Split::new(Source::Base, 0.1, rows, 6);
        assert_eq!(of_contexts(60).unwrap().first, 6);
        assert_eq!(of_contexts(12).unwrap().first, 6);
        for rows in [6, 61] {
            let error = of_contexts(rows).unwrap_err().to_string();
            assert!(error.contains("expected a multiple of 6") && error.contains(&format!("got {rows}")), "{error}");
        }
        let none = Split::new(Source::Base, 0.0, 7, 6).unwrap();
        assert_eq!((none.first, none.rest, none.mixed(&[], &[-1.0, -2.0])), (0, 7, vec![-1.0, -2.0]));
    }

    struct World {
        base: Markov,
        features: FeatureTable,
        potential: Potential,
        guide: Guide,
        policy: Lstm,
    }

    fn world() -> World {
        let space = Space::new(2, 6).unwrap();
        let seen = Batch::from_sequences(space, &[vec![0, 1, 1, 0, 0, 3], vec![1, 0, 1, 3], vec![0, 0, 3]]).unwrap();
        let base = Markov::fit(&seen, 1, false, 0.5).unwrap();
        let set = FeatureSet::new(space).with("11", Feature::Contains(vec![1, 1])).unwrap();
        let set = set.with("1", Feature::StartsWith(vec![1])).unwrap();
        let potential = Potential::new(&Cpu, &[Role::Require(1.0), Role::Tilt(0.8)]).unwrap();
        let guide = LookAhead::towards(&base, &set, &potential, 1000).unwrap().guide();
        let policy = Lstm::new(space, LstmShape { layers: 1, hidden: 6, dropout: 0.0 }, 3).unwrap();
        World { base, features: set.compile(&Cpu).unwrap(), potential, guide, policy }
    }

    fn draw() -> Draw {
        Draw::new(4, Purpose::Tune).skip(1000)
    }

    /// Of 70 rows, filled from `source` where `before` is the first proposal.
    fn filled(world: &mut World, before: Source, share: f64, source: Source) -> Proposed<Cpu> {
        let World { base, features, potential, guide, policy } = world;
        let space = base.space();
        let mut target = Target { base, features, potential, guide: Some(guide), contexts: None };
        let mut proposed =
            Proposed::new(&Cpu, space, Split::new(before, share, 70, 1).unwrap(), features.len()).unwrap();
        proposed.fill(&Cpu, &mut target, source, Some(policy), draw()).unwrap();
        proposed
    }

    fn joined<T: Clone>(proposed: &Proposed<Cpu>, of: impl Fn(&Draws<Cpu>) -> &[T]) -> Vec<T> {
        proposed.parts().flat_map(|draws| of(draws).to_vec()).collect()
    }

    fn sequences(proposed: &Proposed<Cpu>) -> Vec<Vec<u32>> {
        proposed.parts().flat_map(|draws| draws.batch.iter().map(<[u32]>::to_vec).collect::<Vec<_>>()).collect()
    }

    /// As the mixture has it, by plain exponentials of each row's two log-probs, scored apart and all at once.
    #[test]
    fn every_row_is_weighed_by_both_components_whichever_drew_it() {
        for before in [Source::Base, Source::Guided] {
            let mut world = world();
            let proposed = filled(&mut world, before, 0.3, Source::Policy);
            assert_eq!(proposed.parts().map(Draws::rows).collect::<Vec<_>>(), [21, 49]);
            let rows = Batch::from_sequences(world.base.space(), &sequences(&proposed)).unwrap();
            let (mut log_first, mut log_policy) = (vec![0.0; 70], vec![0.0; 70]);
            match before {
                Source::Guided => world.base.score_guided(&world.guide, &rows, &mut log_first).unwrap(),
                _ => world.base.score(&rows, &mut log_first).unwrap(),
            }
            world.policy.score(&rows, &mut log_policy).unwrap();
            let (log_q, log_w) = (joined(&proposed, |d| &d.host_log_q), joined(&proposed, |d| &d.host_log_w));
            let log_p = joined(&proposed, |d| &d.host_log_p);
            for row in 0..70 {
                let want = (0.3 * log_first[row].exp() + 0.7 * log_policy[row].exp()).ln();
                assert!((log_q[row] - want).abs() < 1e-12, "{before:?} {row}: {} and {want}", log_q[row]);
                assert!((log_q[row] - proposed.split.mixed(&log_first, &log_policy)[row]).abs() < 1e-12);
                // The bound that a defensive mixture is made for: w ≤ (P/q₁)/a.
                assert!(log_w[row] + log_first[row] <= log_p[row] - 0.3_f64.ln() + 1e-12, "{before:?} {row}");
                let first = proposed.host_log_first()[row];
                assert!((first - log_first[row]).abs() < 1e-12 || first == log_first[row], "{before:?} {row}");
            }
            // A guide forbids what the policy draws now and then: the policy's share alone is left of q there.
            let forbidden = log_first.iter().filter(|log_first| **log_first == f64::NEG_INFINITY).count();
            assert_eq!(forbidden > 0, before == Source::Guided);
            // On the backend stands what came to the host.
            for draws in proposed.parts() {
                assert_eq!((&draws.log_q, &draws.log_p), (&draws.host_log_q, &draws.host_log_p));
            }
        }
    }

    /// Each row has the uniforms of its number, so a batch in two parts is the batch.
    #[test]
    fn until_the_first_swap_all_rows_are_the_first_proposals() {
        for before in [Source::Base, Source::Guided] {
            let mut world = world();
            let whole = filled(&mut world, before, 0.0, before);
            let parts = filled(&mut world, before, 0.3, before);
            assert_eq!((whole.parts().count(), parts.parts().count()), (1, 2));
            assert_eq!(sequences(&whole), sequences(&parts));
            assert_eq!(joined(&whole, |d| &d.host_log_q), joined(&parts, |d| &d.host_log_q));
            assert_eq!(joined(&whole, |d| &d.host_log_w), joined(&parts, |d| &d.host_log_w));
            assert_eq!(parts.host_log_first(), joined(&whole, |d| &d.host_log_q));
            assert!(whole.host_log_first().is_empty());
        }
    }
}
