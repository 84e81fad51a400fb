//! Potentials as formulas: what they mean, their bounds, their files, and bad ones.

use ebm_dpg::Error;
use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::LookAhead;
use ebm_dpg::features::{Feature, FeatureSet};
use ebm_dpg::fit::{FitOptions, Moments, Targets, fit};
use ebm_dpg::models::{Markov, Sampler, Scorer};
use ebm_dpg::potential::*;
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space};
use ebm_dpg::tune::{Draws, Source, Target};
use ebm_dpg::weights::ImportanceWeights;

mod strings;

fn space() -> Space {
    Space::new(2, 6).unwrap()
}

fn features() -> FeatureSet {
    FeatureSet::new(space())
        .with("motif", Feature::Contains(vec![1, 0]))
        .and_then(|set| set.with("length", Feature::Length))
        .and_then(|set| set.with("first", Feature::StartsWith(vec![1])))
        .unwrap()
}

fn chain(ones: f32) -> Markov {
    let none = f32::NEG_INFINITY;
    let end = 0.2_f32;
    Markov::new(space(), 0, 1, vec![((1.0 - end) * (1.0 - ones)).ln(), ((1.0 - end) * ones).ln(), none, end.ln(), none])
        .unwrap()
}

#[test]
fn a_formula_means_what_it_says() {
    let set = features();
    let sequences = strings::all(space());
    let batch = Batch::from_sequences(space(), &sequences).unwrap();
    let ones = |x: &[u32]| x.iter().filter(|&&token| token == 1).count() as f64;
    let (mut r, mut s) = (chain(0.3), chain(0.6));
    let mut rewards = Reward::new(&Cpu, space(), move |batch| batch.iter().map(ones).collect());
    let formula = model("r")
        * model("s").pow(-0.5)
        * require("first")
        * exp(0.7 * phi("length") - 2.0 * phi("motif"))
        * exp(phi("length"))
        * reward("ones", 4.0);
    let (mut log_r, mut log_s) = (vec![0.0; batch.rows], vec![0.0; batch.rows]);
    r.score(&batch, &mut log_r).unwrap();
    s.score(&batch, &mut log_s).unwrap();
    let mut phi = vec![0.0; batch.rows * 3];
    set.compile(&Cpu).unwrap().evaluate(&Cpu, &batch, &mut phi).unwrap();
    let mut product = Product::new(&Cpu, &formula, vec![("s", &mut s), ("ones", &mut rewards), ("r", &mut r)]).unwrap();
    let (mut log_base, mut log_p) = (vec![0.0; batch.rows], vec![0.0; batch.rows]);
    product.score(&batch, &mut log_base).unwrap();
    formula.potential(&Cpu, &set).unwrap().log_potential(&Cpu, &log_base, &phi, &mut log_p).unwrap();
    for (row, x) in sequences.iter().enumerate() {
        let [motif, length, first] = [0, 1, 2].map(|at| f64::from(phi[row * 3 + at]));
        let want = match first {
            1.0 => log_r[row] - 0.5 * log_s[row] + 1.7 * length - 2.0 * motif + ones(x) / 4.0,
            _ => f64::NEG_INFINITY,
        };
        assert!(log_p[row] == want || (log_p[row] - want).abs() < 1e-12, "{x:?}: {} {want}", log_p[row]);
    }
    // Fewer rows, and none, in the same product.
    product.score(&Batch::from_sequences(space(), &sequences[..2]).unwrap(), &mut log_base[..2]).unwrap();
    product.score(&Batch::with_capacity(&Cpu, space(), 3).unwrap(), &mut []).unwrap();
}

/// Σ_x P(x) over the whole space from draws of one factor: the weights are exact whatever the others are.
#[test]
fn a_product_is_drawn_from_one_factor() {
    let set = features();
    let sequences = strings::all(space());
    let formula = model("r").pow(0.5) * model("s") * reward("ones", 2.0) * require("first") * exp(0.7 * phi("motif"));
    let ones = |x: &[u32]| x.iter().filter(|&&token| token == 1).count() as f64;
    let reward = || Reward::new(&Cpu, space(), move |batch: &Batch| batch.iter().map(ones).collect());
    let (table, potential) = (set.compile(&Cpu).unwrap(), formula.potential(&Cpu, &set).unwrap());
    let (mut r, mut s, mut rewards) = (chain(0.3), chain(0.6), reward());
    let scorers: Vec<(&str, &mut dyn Scorer<Cpu>)> = vec![("ones", &mut rewards), ("s", &mut s)];
    let mut product = SampledProduct::new(&Cpu, &formula, ("r", &mut r), scorers).unwrap();
    let all = Batch::from_sequences(space(), &sequences).unwrap();
    let (mut log_r, mut log_p, mut phi) = (vec![0.0; all.rows], vec![0.0; all.rows], vec![0.0; all.rows * 3]);
    product.score(&all, &mut log_r).unwrap();
    table.evaluate(&Cpu, &all, &mut phi).unwrap();
    potential.log_potential(&Cpu, &log_r, &phi, &mut log_p).unwrap();
    let z: f64 = log_p.iter().map(|log_p| log_p.exp()).sum();
    let moment: f64 = log_p.iter().zip(phi.chunks(3)).map(|(p, phi)| p.exp() / z * f64::from(phi[1])).sum();

    let guide = LookAhead::towards(&chain(0.5), &set, &potential, 100).unwrap().guide();
    let mut target =
        Target { base: &mut product, features: &table, potential: &potential, guide: Some(&guide), contexts: None };
    let mut draws = Draws::new(&Cpu, space(), 20_000, 3).unwrap();
    for source in [Source::Base, Source::Guided] {
        draws.fill(&Cpu, &mut target, source, None::<&mut Markov>, Draw::new(3, Purpose::User)).unwrap();
        let (mut log_q, mut again) = (vec![0.0; 20_000], vec![0.0; 20_000]);
        match source {
            Source::Guided => target.base.score_guided(&guide, &draws.batch, &mut log_q).unwrap(),
            _ => chain(0.3).score(&draws.batch, &mut log_q).unwrap(),
        }
        target.base.score(&draws.batch, &mut again).unwrap();
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close(&log_q, &draws.host_log_q) && close(&again, &draws.host_log_base), "{source:?}");
        let weights = ImportanceWeights::new(&draws.host_log_p, &draws.host_log_q).unwrap();
        let (log_z, moments) = (weights.log_z(), weights.moments(&draws.host_phi, 3).unwrap());
        assert!((log_z.value - z.ln()).abs() < 4.0 * log_z.standard_error, "{source:?}: {log_z:?}, {}", z.ln());
        assert!(
            (moments[1].value - moment).abs() < 4.0 * moments[1].standard_error,
            "{source:?}: {moments:?} {moment}"
        );
    }
}

/// Fits with a product for a base: λ is that of the whole product, whatever draws.
#[test]
fn a_product_is_fitted_as_a_base() {
    let set = FeatureSet::new(space()).with("motif", Feature::Contains(vec![1, 0])).unwrap();
    let sequences = strings::all(space());
    let formula = model("r") * model("s").pow(0.5);
    for moments in [Moments::Guided, Moments::Base, Moments::Rejection] {
        let (mut r, mut s) = (chain(0.3), chain(0.7));
        let mut product = SampledProduct::new(&Cpu, &formula, ("r", &mut r), vec![("s", &mut s)]).unwrap();
        let mut options = FitOptions::default();
        options.moments = moments;
        let draw = Draw::new(1, Purpose::Fit);
        let fit = fit(&Cpu, &mut product, &set, &Targets::wanted(&[0.8]).unwrap(), &options, draw).unwrap();
        // E_p φ at the fitted λ, over all sequences.
        let (all, rows) = (Batch::from_sequences(space(), &sequences).unwrap(), sequences.len());
        let (mut log_r, mut phi) = (vec![0.0; rows], vec![0.0; rows]);
        product.score(&all, &mut log_r).unwrap();
        set.compile(&Cpu).unwrap().evaluate(&Cpu, &all, &mut phi).unwrap();
        let p = |row: usize| (log_r[row] + fit.lambda[0] * f64::from(phi[row])).exp();
        let (z, with) = (0..rows).fold((0.0, 0.0), |(z, with), row| (z + p(row), with + p(row) * f64::from(phi[row])));
        assert!((with / z - 0.8).abs() < 0.02, "{moments:?}: {}", with / z);
        assert!((fit.log_z.value - z.ln()).abs() < 5.0 * fit.log_z.standard_error, "{moments:?}: {:?} {z}", fit.log_z);
    }
}

#[test]
fn minus_infinity_survives_products() {
    let mut never = Reward::new(&Cpu, space(), |batch| vec![f64::NEG_INFINITY; batch.rows]);
    let mut r = chain(0.5);
    let formula = model("r") * reward("never", 0.1);
    let mut product = Product::new(&Cpu, &formula, vec![("r", &mut r), ("never", &mut never)]).unwrap();
    let mut log_p = [0.0];
    product.score(&Batch::from_sequences(space(), &[[1, space().eos]]).unwrap(), &mut log_p).unwrap();
    assert_eq!(log_p, [f64::NEG_INFINITY]);
}

#[test]
fn no_log_potential_exceeds_the_bound() {
    let set = features();
    let formula =
        model("r") * exp(1.5 * phi("motif") - phi("length")) * reward("ones", 2.0).at_most(6.0) * forbid("first");
    assert_eq!(formula.log_bound(&set).unwrap(), Some(4.5));
    let mut r = chain(0.5);
    let mut batch = Batch::with_capacity(&Cpu, space(), 500).unwrap();
    let (mut log_q, mut log_r) = (vec![0.0; 500], vec![0.0; 500]);
    r.sample(Draw::new(1, Purpose::User), None, &mut batch, &mut log_q, &mut log_r).unwrap();
    let ones = |x: &[u32]| x.iter().filter(|&&token| token == 1).count() as f64;
    let mut rewards = Reward::new(&Cpu, space(), move |batch| batch.iter().map(ones).collect()).at_most(6.0);
    let mut product = Product::new(&Cpu, &formula, vec![("r", &mut r), ("ones", &mut rewards)]).unwrap();
    let (mut log_base, mut log_p, mut phi) = (vec![0.0; 500], vec![0.0; 500], vec![0.0; 1500]);
    product.score(&batch, &mut log_base).unwrap();
    set.compile(&Cpu).unwrap().evaluate(&Cpu, &batch, &mut phi).unwrap();
    formula.potential(&Cpu, &set).unwrap().log_potential(&Cpu, &log_base, &phi, &mut log_p).unwrap();
    assert!(log_p.iter().zip(&log_q).all(|(p, q)| p - q <= 4.5) && log_p.iter().any(|p| *p > f64::NEG_INFINITY));
    assert_eq!((model("r") * reward("ones", 2.0)).log_bound(&set).unwrap(), None);
    assert_eq!((model("r") * model("s").pow(-1.0)).log_bound(&set).unwrap(), None);
}

#[test]
fn formulas_are_written_read_and_edited() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ebm.json");
    let formula = model("base") * require("motif") * exp(0.5 * phi("length")) * reward("kind", 0.5).at_most(1.0);
    formula.save(&path, &features()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"require\": \"motif\"") && text.contains("\"length\": 0.5"), "{text}");
    let (read, set) = Formula::load(&path, FeatureSet::new(space())).unwrap();
    assert_eq!((&read, &set), (&formula, &features()));
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Formula::load(&path, FeatureSet::new(space()))
    };
    let (edited, _) = load(&text.replace("\"length\": 0.5", "\"length\": -0.25")).unwrap();
    assert_eq!(edited.roles(&set).unwrap(), [Role::Require(1.0), Role::Tilt(-0.25), Role::Ignore]);
    let bad = [
        (text.replace("\"require\"", "\"demand\""), "unknown variant `demand`"),
        (text.replace("0.5", "half"), "line"),
        (text.replace("\"motif\"\n", "\"moitf\"\n"), "'moitf'"),
        (text.replace("\"contains\": [", "\"contains\": [7,"), "'motif'"),
        (text.replace("\"temperature\"", "\"heat\""), "unknown field `heat`"),
        (text[..text.len() / 2].to_string(), "EOF"),
    ];
    for (text, part) in bad {
        let error = load(&text).map(drop).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error}");
        assert!(error.to_string().contains(part) && !error.to_string().contains('\n'), "{error}");
    }
}

#[test]
fn bad_formulas_are_errors() {
    let set = features();
    let roles = |formula: Formula| formula.roles(&set).unwrap_err().to_string();
    assert!(roles(require("moitf")).contains("'moitf'"));
    assert!(roles(require("motif") * forbid("motif")).contains("'motif'"));
    assert!(roles(require("motif") * exp(phi("motif"))).contains("'motif'"));
    assert!(roles(exp(f64::NAN * phi("motif"))).contains("'motif'"));
    assert!(reward("r", 0.0).log_bound(&set).is_err() && reward("r", f64::NAN).log_bound(&set).is_err());
    assert!(model("r").pow(0.0).log_bound(&set).is_err() && model("r").pow(f64::INFINITY).log_bound(&set).is_err());
    let (mut r, mut s) = (chain(0.5), chain(0.6));
    let mut other = Markov::noise(Space::new(2, 7).unwrap(), 3).unwrap();
    fn product(formula: Formula, scorers: Vec<(&str, &mut dyn Scorer<Cpu>)>) -> String {
        Product::new(&Cpu, &formula, scorers).map(drop).unwrap_err().to_string()
    }
    assert!(product(model("r") * model("s"), vec![("r", &mut r)]).contains("'s'"));
    assert!(product(model("r"), vec![("r", &mut r), ("s", &mut s)]).contains("'s' too"));
    assert!(product(model("r") * model("r"), vec![("r", &mut r)]).contains("'r'"));
    assert!(product(model("r") * model("s"), vec![("r", &mut r), ("s", &mut other)]).contains("space"));
    assert!(product(require("motif"), vec![]).contains("one or more"));
    fn drawn<'a>(
        formula: Formula,
        sampler: (&str, &'a mut Markov),
        scorers: Vec<(&str, &'a mut dyn Scorer<Cpu>)>,
    ) -> String {
        SampledProduct::new(&Cpu, &formula, sampler, scorers).map(drop).unwrap_err().to_string()
    }
    assert!(drawn(model("r"), ("s", &mut s), vec![]).contains("0 times"));
    assert!(drawn(model("r") * model("r"), ("r", &mut r), vec![]).contains("2 times"));
    assert!(drawn(model("r") * model("s"), ("r", &mut r), vec![]).contains("'s'"));
    assert!(drawn(model("r"), ("r", &mut r), vec![("s", &mut s)]).contains("'s' too"));
    assert!(drawn(model("r") * model("s"), ("r", &mut r), vec![("s", &mut other)]).contains("space"));
}

#[test]
fn bad_rewards_are_errors_and_write_nothing() {
    let batch = Batch::from_sequences(space(), &[[1, 3], [0, 3]]).unwrap();
    let returning = |values: Vec<f64>| {
        let mut out = [7.0; 2];
        let mut reward = Reward::new(&Cpu, space(), move |_| values.clone()).at_most(5.0);
        let error = reward.score(&batch, &mut out).unwrap_err();
        assert_eq!(out, [7.0; 2]);
        error
    };
    assert_eq!(returning(vec![0.0, f64::NAN]), Error::not_a_number("reward", "row 1"));
    assert_eq!(returning(vec![0.0]), Error::argument("rewards", "2 values", 1));
    assert_eq!(returning(vec![6.0, 0.0]), Error::argument("reward of row 0", "at most 5", 6));
    assert!(returning(vec![f64::INFINITY, 0.0]).to_string().contains("row 0"));
}
