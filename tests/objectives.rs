//! Every objective on a space small enough to enumerate, with a policy that contains the target: gradient estimators
//! are unbiased, each reaches its own optimum, and what clipping costs is what it reports.

mod oracle;

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::gradient::Divergence;
use ebm_dpg::models::{Coefficients, Markov, Policy, Sampler, Scorer, Tabular, Weighting};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space, Token};
use ebm_dpg::tune::{
    Baseline, Choice, Chosen, EndedPrefixes, KlControl, Method, NewDraws, Pool, PoolKernel, Source, SubTrajectories,
    SubTrajectoryKernel, Swap, Target, TuneData, TuneOptions, Tuned, Unit, Worth, tune,
};
use oracle::{enumerate, kl, log_softmax, normalise, random, tv};

use Divergence::{Alpha, ForwardChiSquare, ForwardKl, JensenShannon, ReverseChiSquare, ReverseKl, TotalVariation};

/// Binary strings of up to 5 tokens under a chain, with everything known by enumeration.
struct World {
    base: Markov,
    features: FeatureTable,
    potential: Potential,
    guide: Guide,
    all: Vec<Vec<Token>>,
    log_r: Vec<f64>,
    /// log P, not normalised.
    log_potential: Vec<f64>,
    log_p: Vec<f64>,
}

fn space() -> Space {
    Space::new(2, 5).unwrap()
}

/// Two tilted features, or one and strings without the other forbidden.
fn world(requires: bool) -> World {
    let seen = [vec![0, 1, 1, 0, 3], vec![1, 0, 1, 1, 0], vec![0, 0, 1, 3], vec![1, 1, 1, 0, 3]];
    let base = Markov::fit(&Batch::from_sequences(space(), &seen).unwrap(), 1, false, 0.5).unwrap();
    let set = FeatureSet::new(space())
        .with("01", Feature::Contains(vec![0, 1]))
        .and_then(|set| set.with("11", Feature::Contains(vec![1, 1])))
        .unwrap();
    let potential =
        Potential::new(&Cpu, &[Role::Tilt(0.8), if requires { Role::Require(1.0) } else { Role::Tilt(-0.6) }]).unwrap();
    let guide = LookAhead::towards(&base, &set, &potential, 1000).unwrap().guide();
    let (features, all) = (set.compile(&Cpu).unwrap(), enumerate(space()));
    let log_r = score(&mut base.clone(), &all);
    let mut phi = vec![0.0; all.len() * 2];
    features.evaluate(&Cpu, &Batch::from_sequences(space(), &all).unwrap(), &mut phi).unwrap();
    let log_factor = |phi: &[f32]| match requires {
        true if phi[1] == 0.0 => f64::NEG_INFINITY,
        true => 0.8 * f64::from(phi[0]),
        false => 0.8 * f64::from(phi[0]) - 0.6 * f64::from(phi[1]),
    };
    let log_potential: Vec<f64> = log_r.iter().zip(phi.chunks(2)).map(|(log_r, phi)| log_r + log_factor(phi)).collect();
    let (_, log_p) = normalise(&log_potential);
    World { base, features, potential, guide, all, log_r, log_potential, log_p }
}

fn score(model: &mut impl Scorer<Cpu>, sequences: &[Vec<Token>]) -> Vec<f64> {
    let mut log_probs = vec![0.0; sequences.len()];
    model.score(&Batch::from_sequences(space(), sequences).unwrap(), &mut log_probs).unwrap();
    log_probs
}

/// A table with logits in [−1, 1).
fn table(world: &World, seed: u64) -> Tabular {
    let mut table = Tabular::new(&world.guide).unwrap();
    let logits = random(seed, table.logits().len(), 1.0);
    table.set_logits(&logits).unwrap();
    table
}

// The table itself

/// log π over the space in f64, by the definition.
fn exact_log_probs(world: &World, logits: &[f64]) -> Vec<f64> {
    let (vocab, guide) = (space().vocab as usize, &world.guide);
    let log_prob = |sequence: &Vec<Token>| {
        let (mut state, mut total) = (0, 0.0);
        for (position, &token) in sequence.iter().enumerate() {
            let row = &logits[(position * guide.states + state as usize) * vocab..][..vocab];
            total += log_softmax(row)[token as usize];
            state = guide.after(state, token);
        }
        total
    };
    world.all.iter().map(log_prob).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

#[test]
fn the_table_is_a_policy_that_contains_p() {
    let world = world(true);
    let mut table = table(&world, 3);
    let want = exact_log_probs(&world, &wide(table.logits()));
    let got = score(&mut table, &world.all);
    assert!(got.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-12), "{got:?} {want:?}");
    assert!((want.iter().map(|log_p| log_p.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
    let mut batch = Batch::with_capacity(&Cpu, space(), 20_000).unwrap();
    let (mut log_q, mut log_model) = (vec![0.0; 20_000], vec![0.0; 20_000]);
    for guide in [None, Some(&world.guide)] {
        table.sample(Draw::new(1, Purpose::User), guide, &mut batch, &mut log_q, &mut log_model).unwrap();
        let mut scores = vec![0.0; 20_000];
        table.score(&batch, &mut scores).unwrap();
        assert_eq!(log_model, scores);
        if let Some(guide) = guide {
            table.score_guided(guide, &batch, &mut scores).unwrap();
        }
        assert_eq!(log_q, scores);
        let mut counts = vec![0u64; world.all.len()];
        batch.iter().for_each(|x| counts[world.all.iter().position(|y| y == x).unwrap()] += 1);
        let log_q = match guide {
            None => want.clone(),
            Some(guide) => {
                let mut log_q = vec![0.0; world.all.len()];
                let all = Batch::from_sequences(space(), &world.all).unwrap();
                table.score_guided(guide, &all, &mut log_q).unwrap();
                log_q
            }
        };
        let (chi_square, freedom) = oracle::chi_square(&counts, &log_q);
        assert!(chi_square < freedom as f64 + 4.0 * (2.0 * freedom as f64).sqrt(), "{chi_square} of {freedom}");
    }
    let path = std::env::temp_dir().join(format!("ebm-dpg-table-{}.safetensors", std::process::id()));
    table.save(&path).unwrap();
    assert_eq!(Tabular::load(&path).unwrap().logits(), table.logits());
    std::fs::remove_file(path).unwrap();
    // With p's own conditionals, from the mass of p that passes through each state, it is p.
    let (vocab, guide) = (space().vocab as usize, &world.guide);
    let mut mass = vec![0.0; table.logits().len()];
    for (sequence, log_p) in world.all.iter().zip(&world.log_p) {
        let mut state = 0;
        for (position, &token) in sequence.iter().enumerate() {
            mass[(position * guide.states + state as usize) * vocab + token as usize] += log_p.exp();
            state = guide.after(state, token);
        }
    }
    // States that p never reaches may say anything.
    let reached = |at: usize| mass[at / vocab * vocab..][..vocab].iter().any(|&mass| mass > 0.0);
    let logit = |at: usize| if reached(at) { mass[at].ln() as f32 } else { 0.0 };
    table.set_logits(&(0..mass.len()).map(logit).collect::<Vec<_>>()).unwrap();
    for (got, want) in score(&mut table, &world.all).iter().zip(&world.log_p) {
        assert!(got == want || (got - want).abs() < 1e-5, "{got} and {want}");
    }
}

// Gradients

/// f of D_f = Σ p f(π/p).
fn generator(divergence: Divergence, t: f64) -> f64 {
    match divergence {
        ForwardKl => -t.ln(),
        ReverseKl => t * t.ln(),
        TotalVariation => 0.5 * (t - 1.0).abs(),
        JensenShannon => 0.5 * (t * t.ln() - (t + 1.0) * ((t + 1.0) / 2.0).ln()),
        ForwardChiSquare => 1.0 / t,
        ReverseChiSquare => t * t,
        Alpha(a) => (t.powf(a) - a * t) / (a * (a - 1.0)),
        other => panic!("{other:?}"),
    }
}

/// f′(∞), as far as it is finite.
fn slope_at_infinity(divergence: Divergence) -> f64 {
    match divergence {
        ForwardKl | ForwardChiSquare => 0.0,
        TotalVariation => 0.5,
        JensenShannon => 0.5 * 2f64.ln(),
        Alpha(a) => 1.0 / (1.0 - a),
        other => panic!("{other:?} outside of p's support"),
    }
}

fn divergence_of(divergence: Divergence, log_p: &[f64], log_pi: &[f64]) -> f64 {
    let term = |(log_p, log_pi): (&f64, &f64)| match *log_p {
        f64::NEG_INFINITY => log_pi.exp() * slope_at_infinity(divergence),
        _ => log_p.exp() * generator(divergence, (log_pi - log_p).exp()),
    };
    log_p.iter().zip(log_pi).map(term).sum()
}

/// The difference quotient of a function of log π over the space, by each logit; 0 for what is no output.
fn slopes(world: &World, logits: &[f32], of: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut logits = wide(logits);
    (0..logits.len())
        .map(|at| {
            let before = logits[at];
            if before == f64::NEG_INFINITY {
                return 0.0;
            }
            let mut moved = |by: f64| {
                logits[at] = before + by;
                of(&exact_log_probs(world, &logits))
            };
            let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
            logits[at] = before;
            slope
        })
        .collect()
}

/// Means of batches with their standard errors, per parameter.
#[derive(Default)]
struct Mean {
    count: f64,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Mean {
    fn push(&mut self, values: &[f32]) {
        self.sums.resize(values.len(), 0.0);
        self.squares.resize(values.len(), 0.0);
        self.count += 1.0;
        for ((sum, square), &value) in self.sums.iter_mut().zip(&mut self.squares).zip(values) {
            *sum += f64::from(value);
            *square += f64::from(value).powi(2);
        }
    }

    /// Each parameter within four standard errors.
    #[track_caller]
    fn assert_is(&self, what: &str, want: &[f64]) {
        let largest = want.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let (mut worst, mut seen) = (0.0f64, 0);
        for (at, want) in want.iter().enumerate() {
            let mean = self.sums[at] / self.count;
            let variance = (self.squares[at] / self.count - mean * mean) / (self.count - 1.0);
            if variance <= 0.0 {
                assert!((mean - want).abs() < 1e-6 * largest, "{what} {at}: {mean} for {want}");
                continue;
            }
            seen += 1;
            // A difference quotient and single precision have errors of their own.
            worst = worst.max((mean - want).abs() / (variance.sqrt() + 1e-6 * largest));
        }
        assert!(seen > 20 && worst < 4.0, "{what}: {worst} standard errors, {seen} parameters");
    }
}

/// 500 batches of draws from q, each with the gradient that `coefficients` make of it.
fn estimate(world: &World, q: &mut Tabular, policy: &mut Tabular, weighting: Weighting, shift: Option<f64>) -> Mean {
    const ROWS: usize = 64;
    let mut mean = Mean::default();
    let mut batch = Batch::with_capacity(&Cpu, space(), ROWS).unwrap();
    let (mut log_q, mut log_pi) = (vec![0.0; ROWS], vec![0.0; ROWS]);
    for at in 0..500 {
        let draw = Draw::new(11, Purpose::User).skip(at * ROWS as u64);
        q.sample(draw, None, &mut batch, &mut log_q, &mut log_pi).unwrap();
        let log_p: Vec<f64> =
            batch.iter().map(|x| world.log_p[world.all.iter().position(|y| y == x).unwrap()]).collect();
        let weight = |(log_p, log_q): (&f64, &f64)| ((log_p - log_q).exp() / ROWS as f64) as f32;
        let weights: Vec<f32> = log_p.iter().zip(&log_q).map(weight).collect();
        let shift = shift.map(|shift| [shift]);
        let coefficients = Coefficients {
            weighting,
            log_q: Some(&log_q[..]),
            log_p: Some(&log_p[..]),
            shift: shift.as_ref().map(|shift| &shift[..]),
            scale: 1.0 / ROWS as f32,
            ..Coefficients::<Cpu>::given(&weights[..])
        };
        policy.gradient(&batch, &coefficients, &mut log_pi).unwrap();
        mean.push(policy.gradients());
    }
    mean
}

#[test]
fn gradients_of_divergences_are_unbiased_with_and_without_a_shift() {
    for requires in [false, true] {
        let world = world(requires);
        let (mut q, mut policy) = (table(&world, 1), table(&world, 2));
        let bounded = [ForwardKl, TotalVariation, JensenShannon, ForwardChiSquare, Alpha(0.5), Alpha(-0.5)];
        let unbounded = [ReverseKl, ReverseChiSquare, Alpha(1.5)];
        for divergence in bounded.into_iter().chain(unbounded.into_iter().filter(|_| !requires)) {
            let of = |log_pi: &[f64]| -divergence_of(divergence, &world.log_p, log_pi);
            let want = slopes(&world, policy.logits(), of);
            for shift in [None, Some(-0.7)] {
                let weighting = Weighting::Divergence(divergence);
                let got = estimate(&world, &mut q, &mut policy, weighting, shift);
                got.assert_is(&format!("{divergence:?}, shift {shift:?}, requirement {requires}"), &want);
            }
        }
        let want = slopes(&world, policy.logits(), |log_pi| -kl(&world.log_p, log_pi));
        for weighting in [Weighting::Given, Weighting::Baseline] {
            estimate(&world, &mut q, &mut policy, weighting, None).assert_is(&format!("DPG, {weighting:?}"), &want);
        }
    }
}

#[test]
fn the_gradient_of_balance_is_that_of_the_squares() {
    let world = world(false);
    let (mut q, mut policy) = (table(&world, 1), table(&world, 2));
    let log_q = score(&mut q, &world.all);
    for shift in [0.0, 0.4] {
        let loss = |log_pi: &[f64]| {
            let term = |at: usize| log_q[at].exp() * 0.5 * (log_pi[at] - world.log_p[at] - shift).powi(2);
            -(0..log_q.len()).map(term).sum::<f64>()
        };
        let want = slopes(&world, policy.logits(), loss);
        let got = estimate(&world, &mut q, &mut policy, Weighting::Balance, Some(shift));
        got.assert_is(&format!("balance, shift {shift}"), &want);
    }
}

/// SubTB(λ) of a sequence by its definition, with a factor of ½: flows F(s) = P(s⊤)/π(⊤|s) of states, and the probability of
/// each token, from π's mass on what begins with a state.
fn sub_balance(world: &World, log_pi: &[f64], sequence: &[Token], lambda: f64) -> f64 {
    let content = sequence.strip_suffix(&[space().eos]).unwrap_or(sequence);
    let index = |sequence: &[Token]| world.all.iter().position(|other| other == sequence).unwrap();
    let mass = |state: &[Token]| {
        let begins = |at: &usize| world.all[*at].starts_with(state);
        (0..world.all.len()).filter(begins).map(|at| log_pi[at].exp()).sum::<f64>().ln()
    };
    let log_flow = |state: &[Token]| {
        if state.len() == space().longest as usize {
            return world.log_potential[index(state)];
        }
        let ended = index(&[state, &[space().eos]].concat());
        world.log_potential[ended] - (log_pi[ended] - mass(state))
    };
    let states = || (0..=content.len()).map(|t| &content[..t]);
    let (flows, masses): (Vec<f64>, Vec<f64>) = states().map(|state| (log_flow(state), mass(state))).unzip();
    let (mut loss, mut total) = (0.0, 0.0);
    for (i, j) in (0..flows.len()).flat_map(|j| (0..j).map(move |i| (i, j))) {
        let tokens: f64 = (i..j).map(|k| masses[k + 1] - masses[k]).sum();
        let weight = lambda.powi((j - i) as i32);
        loss += weight * 0.5 * (flows[i] + tokens - flows[j]).powi(2);
        total += weight;
    }
    if total == 0.0 { 0.0 } else { loss / total }
}

/// 500 updates of 64 sequences drawn from q, chosen by the pool, each ended at a few prefixes.
fn estimate_by_pieces(world: &World, q: &mut Tabular, policy: &mut Tabular, how: &SubTrajectories) -> Mean {
    const ROWS: usize = 64;
    let mut mean = Mean::default();
    let mut batch = Batch::with_capacity(&Cpu, space(), ROWS).unwrap();
    let (mut log_q, mut log_model, log_w) = (vec![0.0; ROWS], vec![0.0; ROWS], vec![0.0; ROWS]);
    let mut pool = Pool::new(&Cpu, space(), ROWS, ROWS, 0.0, None).unwrap();
    let mut chosen = Chosen::new(&Cpu, space(), ROWS).unwrap();
    let mut ended = EndedPrefixes::new(&Cpu, space(), ROWS, how).unwrap();
    let worth = Worth { unit: Unit::Return, clip: f64::INFINITY, baseline: Baseline::None };
    let mut log_pi = vec![0.0; ended.batch.rows];
    for at in 0..500 {
        let draw = Draw::new(11, Purpose::User).skip(at * ROWS as u64);
        q.sample(draw, None, &mut batch, &mut log_q, &mut log_model).unwrap();
        let draws = NewDraws { batch: &batch, log_w: &log_w[..], log_q: &log_q[..], all: true, fresh: true };
        Cpu.keep(&mut pool, &draws).unwrap();
        Cpu.measure(&mut pool, &worth).unwrap();
        let choice = Choice { uses: usize::MAX, draw: Draw::new(13, Purpose::Shuffle), worth, rate: &vec![1.0] };
        Cpu.choose(&mut pool, &mut chosen, &choice).unwrap();
        Cpu.end_prefixes(&pool, &chosen, &mut ended, Draw::new(13, Purpose::Prefix)).unwrap();
        let index = |x: &[Token]| world.all.iter().position(|y| y == x).unwrap();
        let log_p: Vec<f64> = ended.batch.iter().map(|x| world.log_potential[index(x)]).collect();
        policy.score(&ended.batch, &mut log_pi).unwrap();
        Cpu.balance_prefixes(&mut pool, &mut ended, &log_p, &log_pi).unwrap();
        policy.gradient(&ended.batch, &Coefficients::given(&ended.weights[..]), &mut log_pi).unwrap();
        mean.push(policy.gradients());
    }
    mean
}

/// Whatever is drawn of the prefixes, the mean is the sum over all pieces.
#[test]
fn the_gradient_of_sub_trajectory_balance_is_that_of_the_flows_of_all_pieces() {
    let world = world(false);
    let (mut q, mut policy) = (table(&world, 1), table(&world, 2));
    let log_q = score(&mut q, &world.all);
    for (lambda, prefixes) in [(1.0, 2), (0.4, 2), (0.4, 3), (1.6, 4), (0.9, 99)] {
        let loss = |log_pi: &[f64]| {
            let term = |at: usize| log_q[at].exp() * sub_balance(&world, log_pi, &world.all[at], lambda);
            -(0..log_q.len()).map(term).sum::<f64>() / f64::from(space().longest)
        };
        let want = slopes(&world, policy.logits(), loss);
        let got = estimate_by_pieces(&world, &mut q, &mut policy, &SubTrajectories { lambda, prefixes });
        got.assert_is(&format!("sub-trajectory balance, λ {lambda}, K {prefixes}"), &want);
    }
}

/// Updates of eight rows drawn by π, weighed by the pool; π stays what it is.
fn on_policy(world: &World, worth: Worth, kept: impl Fn(&[f64], &[f64], &[f64], &mut [f64])) -> (Mean, Tabular) {
    const ROWS: usize = 8;
    let (mut policy, mut mean) = (table(world, 2), Mean::default());
    let mut pool = Pool::new(&Cpu, space(), ROWS, ROWS, 0.0, None).unwrap();
    let mut chosen = Chosen::new(&Cpu, space(), ROWS).unwrap();
    let mut batch = Batch::with_capacity(&Cpu, space(), ROWS).unwrap();
    let (mut log_pi, mut log_model, mut values) = (vec![0.0; ROWS], vec![0.0; ROWS], vec![0.0; ROWS]);
    for at in 0..6000 {
        let draw = Draw::new(12, Purpose::User).skip(at * ROWS as u64);
        policy.sample(draw, None, &mut batch, &mut log_pi, &mut log_model).unwrap();
        let index: Vec<usize> = batch.iter().map(|x| world.all.iter().position(|y| y == x).unwrap()).collect();
        let column = |of: &[f64]| index.iter().map(|&at| of[at]).collect::<Vec<_>>();
        let (log_p, log_base) = (column(&world.log_potential), column(&world.log_r));
        kept(&log_p, &log_base, &log_pi, &mut values);
        let draws = NewDraws { batch: &batch, log_w: &values[..], log_q: &log_pi[..], all: true, fresh: true };
        Cpu.keep(&mut pool, &draws).unwrap();
        Cpu.measure(&mut pool, &worth).unwrap();
        let draw = Draw::new(13, Purpose::Shuffle);
        let choice = Choice { uses: usize::MAX, draw, worth, rate: &vec![1.0] };
        Cpu.choose(&mut pool, &mut chosen, &choice).unwrap();
        policy.gradient(&chosen.batch, &Coefficients::given(&chosen.weights[..]), &mut log_model).unwrap();
        mean.push(policy.gradients());
    }
    (mean, policy)
}

/// Leaving a row out of the mean it is held against biases nothing; the mean of all takes an eighth away.
#[test]
fn the_gradient_of_kl_control_is_unbiased_and_its_baselines_do_what_they_say() {
    for requires in [false, true] {
        let world = world(requires);
        let control = KlControl { beta: 0.7, floor: -3.0 };
        for (baseline, share) in [(Baseline::None, 1.0), (Baseline::Mean, 7.0 / 8.0), (Baseline::LeaveOneOut, 1.0)] {
            let worth = Worth { unit: Unit::Return, clip: f64::INFINITY, baseline };
            let (got, policy) = on_policy(&world, worth, |log_p, log_base, log_pi, values| {
                Cpu.returns(&control, log_p, log_base, log_pi, values).unwrap();
            });
            let objective = |log_pi: &[f64]| {
                let value = |at: usize| control.value(world.log_potential[at], world.log_r[at], log_pi[at]);
                (0..log_pi.len()).map(|at| log_pi[at].exp() * value(at)).sum::<f64>()
            };
            let scale = share / f64::from(space().longest);
            let want: Vec<f64> =
                slopes(&world, policy.logits(), objective).into_iter().map(|slope| slope * scale).collect();
            got.assert_is(&format!("KL-control, {baseline:?}, requirement {requires}"), &want);
        }
    }
}

// Convergence

fn options(method: Method, proposal: Source, baseline: Baseline) -> TuneOptions {
    let mut options = TuneOptions::default();
    (options.method, options.proposal, options.baseline, options.swap) = (method, proposal, baseline, Swap::Every(50));
    // Without a baseline the gradient's noise does not vanish at the optimum: it takes larger batches.
    let is_noisy = baseline == Baseline::None && method != Method::Distill;
    options.batch = if is_noisy { 2048 } else { 256 };
    options.samples = options.batch * 400;
    // On policy there is one update a batch.
    options.updates = 2;
    (options.uses, options.evaluations, options.evaluation_rows) = (1000, 4, 512);
    options.adam = AdamOptions { learning_rate: 0.05, clip: 1.0, ..AdamOptions::default() };
    options.seed = 5;
    options
}

/// Tunes a fresh table; returns log π over the space.
fn tuned(world: &mut World, options: &TuneOptions) -> (Vec<f64>, Tuned) {
    let World { base, features, potential, guide, .. } = world;
    let mut policy = Tabular::new(guide).unwrap();
    let mut target = Target { base, features, potential, guide: Some(guide), contexts: None };
    let tuned = tune(&Cpu, &mut target, &mut policy, options, TuneData::default(), |_| {}).unwrap();
    (score(&mut policy, &world.all), tuned)
}

#[track_caller]
fn assert_reaches(log_want: &[f64], log_pi: &[f64], what: &str) {
    let kl = kl(log_want, log_pi);
    println!("{what}: KL {kl:.2e}");
    assert!(kl < 1e-3, "{what}: KL {kl}");
}

#[test]
fn every_divergence_leads_to_p() {
    let mut world = world(false);
    let all = [ForwardKl, TotalVariation, JensenShannon, ForwardChiSquare, Alpha(0.5), ReverseKl, ReverseChiSquare];
    for divergence in all.into_iter().chain([Alpha(1.5)]) {
        let (on, off) = (Method::DpgOnPolicy, Method::DpgOffPolicy);
        for (method, baseline) in [(on, Baseline::Mean), (off, Baseline::Mean), (off, Baseline::None)] {
            let mut options = options(method, Source::Base, baseline);
            options.divergence = divergence;
            let (log_pi, _) = tuned(&mut world, &options);
            assert_reaches(&world.log_p, &log_pi, &format!("{method:?}, {divergence:?}, {baseline:?}"));
        }
    }
}

#[test]
fn every_divergence_that_allows_it_leads_to_a_p_with_a_requirement() {
    let mut world = world(true);
    for divergence in [ForwardKl, TotalVariation, JensenShannon] {
        for (method, baseline) in [(Method::DpgOnPolicy, Baseline::Mean), (Method::DpgOffPolicy, Baseline::None)] {
            let mut options = hard(options(method, Source::Guided, baseline));
            options.divergence = divergence;
            let (log_pi, _) = tuned(&mut world, &options);
            assert_reaches(&world.log_p, &log_pi, &format!("{method:?}, {divergence:?}, {baseline:?}"));
        }
    }
}

/// What fails a requirement must lose all its probability, which takes more steps.
fn hard(mut options: TuneOptions) -> TuneOptions {
    options.adam.learning_rate = 0.2;
    options.samples *= 2;
    options
}

#[test]
fn the_other_objectives_that_match_a_distribution_reach_p() {
    let cases = [
        (Method::DpgOnPolicy, Source::Base, Baseline::LeaveOneOut),
        (Method::TrajectoryBalance, Source::Base, Baseline::None),
        (Method::TrajectoryBalance, Source::Guided, Baseline::None),
        (Method::SubTrajectoryBalance(SubTrajectories::default()), Source::Base, Baseline::None),
        (Method::SubTrajectoryBalance(SubTrajectories { lambda: 0.7, prefixes: 4 }), Source::Guided, Baseline::Mean),
        (Method::Distill, Source::Base, Baseline::None),
        (Method::Distill, Source::Guided, Baseline::None),
    ];
    // With a requirement distillation is slower (`tests/tune.rs`), and so is balance, which only what normalises drives off.
    for (requires, cases) in [(false, &cases[..]), (true, &cases[..1])] {
        let mut world = world(requires);
        for &(method, proposal, baseline) in cases {
            let options = options(method, proposal, baseline);
            let (log_pi, _) = tuned(&mut world, &if requires { hard(options) } else { options });
            assert_reaches(&world.log_p, &log_pi, &format!("{method:?}, {proposal:?}, {baseline:?}"));
        }
    }
    let mut world = world(false);
    let learnt = options(Method::TrajectoryBalance, Source::Base, Baseline::Mean);
    assert_reaches(&world.log_p.clone(), &tuned(&mut world, &learnt).0, "trajectory balance, Z learnt");
}

#[test]
fn kl_control_reaches_its_own_optimum() {
    for requires in [false, true] {
        let mut world = world(requires);
        for control in [KlControl { beta: 1.0, floor: -4.0 }, KlControl { beta: 0.5, floor: -2.0 }] {
            let reward = |at: usize| (world.log_potential[at] - world.log_r[at]).max(control.floor);
            let tilted: Vec<f64> = (0..world.all.len()).map(|at| world.log_r[at] + reward(at) / control.beta).collect();
            let (_, log_optimum) = normalise(&tilted);
            for baseline in [Baseline::Mean, Baseline::LeaveOneOut] {
                let mut options = options(Method::KlControl(control), Source::Base, baseline);
                options.samples *= 2;
                let (log_pi, _) = tuned(&mut world, &options);
                assert_reaches(&log_optimum, &log_pi, &format!("{control:?}, {baseline:?}, requirement {requires}"));
            }
            if control.beta == 1.0 && !requires {
                assert!(kl(&world.log_p, &log_optimum) < 1e-12, "with β of 1 it is p");
            }
        }
    }
}

#[test]
fn reinforce_reaches_its_own_optimum() {
    let mut world = world(false);
    let most = world.log_p.iter().copied().fold(f64::NEG_INFINITY, f64::max).exp();
    for baseline in [Baseline::Mean, Baseline::LeaveOneOut] {
        let (log_pi, _) = tuned(&mut world, &options(Method::Reinforce, Source::Base, baseline));
        let reward: f64 = log_pi.iter().zip(&world.log_p).map(|(log_pi, log_p)| (log_pi + log_p).exp()).sum();
        assert!(reward > 0.98 * most, "{baseline:?}: E[p] {reward} of {most}");
    }
}

// Clipping

#[test]
fn clipping_reports_its_bias() {
    let mut world = world(true);
    let mut options = hard(options(Method::DpgOffPolicy, Source::Base, Baseline::None));
    options.samples *= 2;
    (options.clip_weights, options.swap) = (1.1, Swap::Never);
    let (log_pi, tuned) = tuned(&mut world, &options);
    // The mean weight of the draws that are kept, those with P > 0, under q = r.
    let support: f64 =
        world.log_r.iter().zip(&world.log_p).filter(|(_, p)| p.is_finite()).map(|(log_r, _)| log_r.exp()).sum();
    let mean = 1.0 / support;
    let clipped = |at: usize| {
        let weight = (world.log_p[at] - world.log_r[at]).exp();
        world.log_r[at] + weight.min(1.1 * mean).ln()
    };
    let (log_kept, log_clipped) = normalise(&(0..world.all.len()).map(clipped).collect::<Vec<_>>());
    let cut = 1.0 - log_kept.exp();
    let reported = tuned.history.last().unwrap().clipped;
    assert!(cut > 0.02 && (reported - cut).abs() < 0.01, "cut {cut}, reported {reported}");
    assert_reaches(&log_clipped, &log_pi, "clipped");
    let distance = tv(&world.log_p, &log_clipped);
    assert!(distance > 0.01 && distance <= cut + 1e-12, "TV {distance} of at most {cut}");
}

// Bad input

#[test]
fn what_does_not_go_together_is_refused() {
    let refused = |requires: bool, change: &dyn Fn(&mut TuneOptions), words: &str| {
        let mut options = options(Method::DpgOffPolicy, Source::Base, Baseline::None);
        change(&mut options);
        let mut world = world(requires);
        let World { base, features, potential, guide, .. } = &mut world;
        let mut policy = Tabular::new(guide).unwrap();
        let mut target = Target { base, features, potential, guide: Some(guide), contexts: None };
        let error =
            tune(&Cpu, &mut target, &mut policy, &options, TuneData::default(), |_| {}).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("expected") && !error.contains('\n'), "{error}");
    };
    refused(false, &|o| o.baseline = Baseline::LeaveOneOut, "leave-one-out");
    refused(false, &|o| (o.divergence, o.method) = (ReverseKl, Method::Reinforce), "divergence");
    refused(false, &|o| (o.divergence, o.method) = (ReverseKl, Method::Distill), "divergence");
    refused(false, &|o| o.divergence = Alpha(1.0), "α");
    refused(false, &|o| o.divergence = Alpha(f64::NAN), "α");
    refused(false, &|o| o.clip_weights = 0.0, "clip");
    refused(false, &|o| o.clip_weights = f64::NAN, "clip");
    refused(false, &|o| (o.clip_weights, o.divergence) = (2.0, JensenShannon), "clip");
    refused(true, &|o| o.divergence = ReverseKl, "objective");
    refused(true, &|o| o.divergence = Alpha(2.0), "objective");
    refused(true, &|o| (o.method, o.baseline) = (Method::TrajectoryBalance, Baseline::Mean), "objective");
    refused(true, &|o| o.method = Method::SubTrajectoryBalance(SubTrajectories::default()), "objective");
    let pieces = |lambda, prefixes| Method::SubTrajectoryBalance(SubTrajectories { lambda, prefixes });
    for lambda in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e200] {
        refused(false, &|o| o.method = pieces(lambda, 2), "λ of sub-trajectory balance");
    }
    refused(false, &|o| o.method = pieces(1.0, 1), "prefixes of sub-trajectory balance");
    refused(false, &|o| (o.method, o.clip_weights) = (pieces(1.0, 2), 2.0), "clip");
    refused(false, &|o| (o.method, o.divergence) = (pieces(1.0, 2), ReverseKl), "divergence");
    refused(false, &|o| (o.method, o.baseline) = (pieces(1.0, 2), Baseline::LeaveOneOut), "leave-one-out");
    for (beta, floor) in
        [(0.0, -1.0), (f64::NAN, -1.0), (f64::INFINITY, -1.0), (1.0, f64::NEG_INFINITY), (1.0, f64::NAN)]
    {
        refused(false, &|o| o.method = Method::KlControl(KlControl { beta, floor }), "KL-control");
    }
    refused(
        false,
        &|o| (o.method, o.divergence, o.baseline) = (Method::DpgOnPolicy, JensenShannon, Baseline::LeaveOneOut),
        "leave-one-out",
    );
}

/// Noise ends a sequence at its full length alone: all other prefixes have P = 0 when they are ended.
#[test]
fn a_base_that_cannot_end_a_prefix_is_refused_by_its_row_and_the_policy_stays() {
    let world = world(false);
    let mut base = Markov::noise(space(), 4).unwrap();
    let (features, potential) = (&world.features, &world.potential);
    let mut target = Target { base: &mut base, features, potential, guide: None, contexts: None };
    let mut options = options(Method::SubTrajectoryBalance(SubTrajectories::default()), Source::Base, Baseline::None);
    options.batch = 3;
    let (before, mut policy) = (table(&world, 2), table(&world, 2));
    let error = tune(&Cpu, &mut target, &mut policy, &options, TuneData::default(), |_| {}).unwrap_err().to_string();
    assert!(
        error.contains("ended prefix in row ") && error.contains("got log P -inf") && !error.contains('\n'),
        "{error}"
    );
    assert_eq!(policy.logits(), before.logits());
}
