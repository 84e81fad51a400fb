//! Models given by closures, beside Markov chains: normalised over the space, sampled as scored.

mod oracle;

use std::collections::HashMap;

use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::Guide;
use ebm_dpg::models::{Logits, Markov, Prefixes, Sampler, Scorer};
use ebm_dpg::rng::{Draw, Purpose, philox, to_unit};
use ebm_dpg::tokens::{Batch, Space, Token};
use ebm_dpg::{Error, Result};
use oracle::{assert_close, chi_square, enumerate, log_softmax, log_sum_exp};

const DRAW: Draw = Draw { seed: 42, purpose: Purpose::User, first: 0 };

/// Two symbols, at most four tokens: 31 sequences, 16 of them cut.
fn space() -> Space {
    Space::new(2, 4).unwrap()
}

/// A logit in [-2, 2) that depends on the whole prefix (without BOS).
fn logit(prefix: &[Token], token: Token) -> f32 {
    let hash = prefix.iter().fold(1, |hash: u64, &token| hash * 31 + u64::from(token) + 1);
    4.0 * to_unit(philox(9, hash, token, 0)[0]) - 2.0
}

/// log π(· | prefix) of the model of [`logit`], in f64.
fn exact_row(space: Space, prefix: &[Token]) -> Vec<f64> {
    let output = |token: Token| token != space.bos && token != space.pad;
    let row = (0..space.vocab).map(|t| if output(t) { f64::from(logit(prefix, t)) } else { f64::NEG_INFINITY });
    log_softmax(&row.collect::<Vec<_>>())
}

fn exact_log_prob(space: Space, sequence: &[Token]) -> f64 {
    (0..sequence.len()).map(|t| exact_row(space, &sequence[..t])[sequence[t] as usize]).sum()
}

/// The same model as the crate sees it; BOS and PAD hold rubbish, which must not matter.
fn model(space: Space) -> Logits<impl FnMut(Prefixes<'_>, &mut [f32]) -> Result<()> + Send> {
    Logits::new(space, move |prefixes, logits| {
        for (prefix, row) in prefixes.iter().zip(logits.chunks_exact_mut(space.vocab as usize)) {
            (0..space.vocab).for_each(|token| row[token as usize] = logit(&prefix[1..], token));
            row[space.bos as usize] = f32::NAN;
            row[space.pad as usize] = f32::INFINITY;
        }
        Ok(())
    })
}

/// Chains of order 0 to 2, with and without positions, fitted to a few sequences.
fn chains() -> Vec<(String, Markov)> {
    let space = space();
    let eos = space.eos;
    let data = Batch::from_sequences(space, &[&[0, 1, 1, 0][..], &[1, eos], &[1, 1, 0, eos], &[0, 0, 0, 0]]).unwrap();
    let cases = [(0, false), (1, false), (1, true), (2, true)];
    cases.map(|(order, by)| (format!("Markov {order} {by}"), Markov::fit(&data, order, by, 0.3).unwrap())).into()
}

fn scores(model: &mut impl Scorer<Cpu>, sequences: &[Vec<Token>]) -> Vec<f64> {
    let mut log_probs = vec![0.0; sequences.len()];
    model.score(&Batch::from_sequences(model.space(), sequences).unwrap(), &mut log_probs).unwrap();
    log_probs
}

/// `n` samples: (sequences, log q, log π).
fn samples(
    model: &mut impl Sampler<Cpu>,
    draw: Draw,
    guide: Option<&Guide>,
    n: usize,
) -> (Vec<Vec<Token>>, Vec<f64>, Vec<f64>) {
    let mut batch = Batch::with_capacity(&Cpu, model.space(), n).unwrap();
    let (mut log_q, mut log_model) = (vec![7.0; n], vec![7.0; n]);
    model.sample(draw, guide, &mut batch, &mut log_q, &mut log_model).unwrap();
    assert_eq!(batch.rows, n);
    batch.iter().for_each(|x| batch.space.check(x).unwrap());
    for (row, &length) in batch.tokens.chunks(batch.space.longest as usize).zip(&batch.lengths) {
        assert!(row[length as usize..].iter().all(|&token| token == batch.space.pad));
    }
    (batch.iter().map(<[_]>::to_vec).collect(), log_q, log_model)
}

#[test]
fn logits_match_the_oracle() {
    let members = enumerate(space());
    let want: Vec<f64> = members.iter().map(|x| exact_log_prob(space(), x)).collect();
    assert_close("log π", &scores(&mut model(space()), &members), &want, 1e-12);
}

#[test]
fn probabilities_sum_to_1_over_the_space() {
    let members = enumerate(space());
    assert_close("logits", &[log_sum_exp(&scores(&mut model(space()), &members))], &[0.0], 1e-12);
    for (name, mut chain) in chains() {
        // Tables hold f32: each of at most four factors is off by half an ulp.
        assert_close(&name, &[log_sum_exp(&scores(&mut chain, &members))], &[0.0], 1e-6);
    }
}

/// Frequencies of `n` samples lie within five standard deviations of the χ² they should follow.
fn check_frequencies(name: &str, sequences: &[Vec<Token>], log_p: &HashMap<Vec<Token>, f64>) {
    let members = enumerate(space());
    let mut counts: HashMap<&[Token], u64> = HashMap::new();
    sequences.iter().for_each(|x| *counts.entry(x).or_default() += 1);
    let counts: Vec<u64> = members.iter().map(|x| counts.get(&x[..]).copied().unwrap_or(0)).collect();
    let log_p: Vec<f64> = members.iter().map(|x| log_p[x]).collect();
    let (statistic, degrees) = chi_square(&counts, &log_p);
    let bound = degrees as f64 + 5.0 * (2.0 * degrees as f64).sqrt();
    assert!(statistic <= bound, "{name}: χ² = {statistic:.1} with {degrees} degrees of freedom");
    assert!(degrees >= 10, "{name}: too few cells to tell");
}

#[test]
fn frequencies_are_the_probabilities() {
    let n = 50_000;
    let members = enumerate(space());
    let exact =
        |model: &mut dyn FnMut(&[Vec<Token>]) -> Vec<f64>| members.iter().cloned().zip(model(&members)).collect();
    let mut logits = model(space());
    let log_p = exact(&mut |x| scores(&mut logits, x));
    check_frequencies("logits", &samples(&mut logits, DRAW, None, n).0, &log_p);
    for (name, mut chain) in chains() {
        let log_p = exact(&mut |x| scores(&mut chain, x));
        check_frequencies(&name, &samples(&mut chain, DRAW, None, n).0, &log_p);
    }
}

/// Strings with a 1 in them: state 1 once it has been seen. h is not the true probability, only its support is right.
fn guide() -> Guide {
    let space = space();
    let (longest, vocab) = (space.longest as usize, space.vocab as usize);
    let mut next = vec![0; 2 * vocab];
    next[1] = 1;
    next[vocab..].fill(1);
    let mut log_h: Vec<f32> = (0..=longest).flat_map(|t| [-0.5 * (t as f32), -0.25]).collect();
    log_h[2 * longest] = f32::NEG_INFINITY;
    Guide::new(space, &next, log_h, vec![f32::NEG_INFINITY, -0.125]).unwrap()
}

/// log q(x) of the guided model, in f64; `row` gives log π(· | prefix).
fn exact_guided(guide: &Guide, sequence: &[Token], row: impl Fn(&[Token]) -> Vec<f64>) -> f64 {
    let step = |t: usize| {
        let (seen, vocab) = (sequence[..t].contains(&1), guide.space.vocab);
        let boost = |token: Token| match token {
            0 | 1 if seen || token == 1 => f64::from(guide.log_h[2 * (t + 1) + 1]),
            0 => f64::from(guide.log_h[2 * (t + 1)]),
            _ if token == guide.space.eos && seen => -0.125,
            _ => f64::NEG_INFINITY,
        };
        let boosted: Vec<f64> = (0..vocab).zip(row(&sequence[..t])).map(|(token, l)| l + boost(token)).collect();
        log_softmax(&boosted)[sequence[t] as usize]
    };
    (0..sequence.len()).map(step).sum()
}

#[test]
fn guided_samples_follow_the_guided_distribution() {
    let (guide, space) = (guide(), space());
    let mut model = model(space);
    let (sequences, log_q, log_model) = samples(&mut model, DRAW, Some(&guide), 20_000);
    assert!(sequences.iter().all(|x| x.contains(&1)));
    let row = |prefix: &[Token]| exact_row(space, prefix);
    let exact: HashMap<_, _> = (enumerate(space).into_iter())
        .map(|x| (x.clone(), if x.contains(&1) { exact_guided(&guide, &x, row) } else { f64::NEG_INFINITY }))
        .collect();
    assert_close("log Σ q", &[log_sum_exp(&exact.values().copied().collect::<Vec<_>>())], &[0.0], 1e-12);
    let want: Vec<f64> = sequences.iter().map(|x| exact[x]).collect();
    // Logit and boost are added in f32.
    assert_close("log q", &log_q, &want, 2e-6);
    assert_eq!(log_model, scores(&mut model, &sequences));
    check_frequencies("guided", &sequences, &exact);
}

#[test]
fn guided_chains_follow_the_guided_distribution() {
    let guide = guide();
    for (name, mut chain) in chains() {
        let (sequences, log_q, log_model) = samples(&mut chain, DRAW, Some(&guide), 1000);
        let row = |prefix: &[Token]| {
            let context = prefix.iter().fold(chain.start_context(), |context, &t| chain.next_context(context, t));
            chain.row(prefix.len(), context).iter().map(|&l| f64::from(l)).collect()
        };
        let want: Vec<f64> = sequences.iter().map(|x| exact_guided(&guide, x, row)).collect();
        assert_close(&name, &log_q, &want, 2e-6);
        assert_eq!(log_model, scores(&mut chain, &sequences), "{name}");
    }
}

fn check_score_is_log_model(name: &str, model: &mut impl Sampler<Cpu>) {
    let (sequences, log_q, log_model) = samples(model, DRAW, None, 500);
    assert_eq!(scores(model, &sequences), log_model, "{name}: the same bits");
    // A chain draws from the log-softmax of f32 rows that sum to 1 within rounding.
    assert_close(name, &log_q, &log_model, 1e-6);
}

#[test]
fn score_of_a_sample_is_its_log_model() {
    check_score_is_log_model("logits", &mut model(space()));
    chains().iter_mut().for_each(|(name, chain)| check_score_is_log_model(name, chain));
}

fn check_split(name: &str, model: &mut (impl Sampler<Cpu> + Send), guide: Option<&Guide>) {
    let whole = samples(model, DRAW, guide, 100);
    let (first, rest) = (samples(model, DRAW, guide, 37), samples(model, DRAW.skip(37), guide, 63));
    assert_eq!(whole.0, [first.0, rest.0].concat(), "{name}: sequences");
    assert_eq!(whole.1, [first.1, rest.1].concat(), "{name}: log q");
    assert_eq!(whole.2, [first.2, rest.2].concat(), "{name}: log π");
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let mut batch = Batch::with_capacity(&Cpu, model.space(), 100).unwrap();
    let (mut log_q, mut log_model) = (vec![0.0; 100], vec![0.0; 100]);
    one_thread.install(|| model.sample(DRAW, guide, &mut batch, &mut log_q, &mut log_model)).unwrap();
    assert_eq!(whole.0, batch.iter().map(<[_]>::to_vec).collect::<Vec<_>>(), "{name}: one thread");
    assert_eq!((whole.1, whole.2), (log_q, log_model), "{name}: one thread");
}

#[test]
fn samples_do_not_depend_on_the_batch_split() {
    let guide = guide();
    for guide in [None, Some(&guide)] {
        check_split("logits", &mut model(space()), guide);
        check_split("logits, 7 rows a call", &mut model(space()).with_rows_per_call(7).unwrap(), guide);
        chains().iter_mut().for_each(|(name, chain)| check_split(name, chain, guide));
    }
    let whole = samples(&mut model(space()), DRAW, None, 100);
    assert_eq!(whole, samples(&mut model(space()).with_rows_per_call(7).unwrap(), DRAW, None, 100));
}

#[test]
fn calls_come_in_runs_that_a_cache_can_follow() {
    let space = space();
    let mut calls: Vec<(usize, Vec<usize>)> = Vec::new();
    let record = |prefixes: Prefixes<'_>, logits: &mut [f32]| {
        assert_eq!(prefixes.tokens().len(), prefixes.rows() * prefixes.width());
        assert_eq!(logits.len(), prefixes.rows() * space.vocab as usize);
        assert!(prefixes.iter().all(|prefix| prefix[0] == space.bos && prefix.len() == prefixes.width()));
        calls.push((prefixes.width(), prefixes.batch_rows().to_vec()));
        logits.fill(0.0);
        Ok(())
    };
    let mut model = Logits::new(space, record).with_rows_per_call(3).unwrap();
    let eos = space.eos;
    scores(&mut model, &[vec![0, eos], vec![eos], vec![1, 1, 1, 1], vec![0, 0, eos]]);
    drop(model);
    let want =
        [(1, vec![0, 1, 2]), (2, vec![0, 2]), (3, vec![2]), (4, vec![2]), (1, vec![3]), (2, vec![3]), (3, vec![3])];
    assert_eq!(calls, want);
}

/// The errors of scoring and of sampling with a model that fills row 2 at width 3 by `spoil`.
fn spoiled(spoil: impl Fn(&mut [f32]) -> Result<()>) -> [Error; 2] {
    let space = space();
    let mut model = Logits::new(space, |prefixes, logits| {
        logits.fill(0.0);
        // Nothing ends before its time, so that rows 0 to 2 are all there.
        logits.chunks_mut(space.vocab as usize).for_each(|row| row[space.eos as usize] = f32::NEG_INFINITY);
        let at = 2 * space.vocab as usize;
        if prefixes.width() == 3 { spoil(&mut logits[at..]) } else { Ok(()) }
    });
    let batch = Batch::from_sequences(space, &[[0, 1, 1, 0]; 3]).unwrap();
    let mut log_probs = vec![0.0; 3];
    let score = model.score(&batch, &mut log_probs).unwrap_err();
    assert!(log_probs.iter().all(|l| l.is_nan()), "no half-made result");
    let mut samples = batch.clone();
    let sample = model.sample(DRAW, None, &mut samples, &mut [0.0; 3], &mut [0.0; 3]).unwrap_err();
    assert_eq!(samples.rows, 0, "no half-made batch");
    [score, sample]
}

fn spoil_with(spoil: impl Fn(&mut [f32])) -> [Error; 2] {
    spoiled(|row| {
        spoil(row);
        Ok(())
    })
}

#[test]
fn logits_without_a_softmax_name_row_and_position() {
    for bad in [f32::NAN, f32::INFINITY] {
        for error in spoil_with(|row| row[1] = bad) {
            assert_eq!(error, Error::not_a_number("logits", format!("row 2, position 2, token 1 ({bad})")));
        }
    }
    for error in spoil_with(|row| row.fill(f32::NEG_INFINITY)) {
        assert!(error.to_string().starts_with("logits of row 2, position 2: expected one above −∞"), "{error}");
    }
}

#[test]
fn unwritten_logits_are_errors_and_errors_of_the_closure_come_back() {
    let mut lazy = Logits::new(space(), |_, _| Ok(()));
    let batch = Batch::from_sequences(space(), &[[space().eos]]).unwrap();
    assert!(matches!(lazy.score(&batch, &mut [0.0]), Err(Error::NotANumber { .. })));
    for error in spoiled(|_| Err(Error::no_answer("model", "the server is gone"))) {
        assert_eq!(error, Error::no_answer("model", "the server is gone"));
    }
}

#[test]
fn a_guide_that_leaves_nothing_is_an_error() {
    let mut guide = guide();
    guide.log_h.fill(f32::NEG_INFINITY);
    let mut batch = Batch::with_capacity(&Cpu, space(), 2).unwrap();
    let error = model(space()).sample(DRAW, Some(&guide), &mut batch, &mut [0.0; 2], &mut [0.0; 2]).unwrap_err();
    assert!(error.to_string().starts_with("guided sample, row 0, position 0: no token"), "{error}");
}

#[test]
fn misfits_are_errors_and_write_nothing() {
    let mut model = model(space());
    let other = Batch::from_sequences(Space::new(2, 5).unwrap(), &[[0, 1, 3]]).unwrap();
    let mut out = [7.0; 1];
    assert!(model.score(&other, &mut out).is_err());
    let batch = Batch::from_sequences(space(), &[[1, space().eos]; 2]).unwrap();
    assert!(model.score(&batch, &mut out).is_err());
    let mut batch = batch.clone();
    assert!(model.sample(DRAW, None, &mut batch, &mut out, &mut [0.0; 2]).is_err());
    assert_eq!((out, batch.rows), ([7.0], 2));
    assert!(model.with_rows_per_call(0).is_err());
}

#[test]
fn empty_batches_are_no_ops() {
    let mut model = Logits::new(space(), |_, _| panic!("nothing to ask"));
    let mut none = Batch::with_capacity(&Cpu, space(), 0).unwrap();
    model.score(&none, &mut []).unwrap();
    model.sample(DRAW, None, &mut none, &mut [], &mut []).unwrap();
    assert_eq!(none.rows, 0);
}
