//! Tuning that is interrupted and goes on from a checkpoint: the same bits as tuning that never was, and refusals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ebm_dpg::Result;
use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::Cpu;
use ebm_dpg::exact::{Guide, LookAhead};
use ebm_dpg::features::{Feature, FeatureSet, FeatureTable};
use ebm_dpg::gradient::Divergence;
use ebm_dpg::models::{Coefficients, Lstm, LstmShape, Markov, Policy, Tabular};
use ebm_dpg::potential::{Potential, Role};
use ebm_dpg::tokens::{Batch, Space};
use ebm_dpg::tune::{
    Baseline, Checkpoint, Checkpoints, KlControl, Method, Source, SubTrajectories, Swap, Target, TuneData, TuneOptions,
    Tuned, tune, tune_with_checkpoints,
};

/// Strings of a chain, a motif required, one feature tilted.
struct World {
    base: Markov,
    features: FeatureTable,
    potential: Potential,
    guide: Guide,
    held_out: Batch,
    extra: Batch,
}

fn space() -> Space {
    Space::new(2, 7).unwrap()
}

fn world() -> World {
    World::new(&[1, 1], 0.5, 1.2)
}

impl World {
    /// With the motif, the smoothing of the base, and λ.
    fn new(motif: &[u32], smoothing: f64, lambda: f64) -> Self {
        let seen = [vec![0, 1, 1, 0, 0, 3], vec![1, 0, 1, 1, 0, 1, 0], vec![0, 0, 1, 3], vec![1, 1, 1, 0, 3]];
        let seen = Batch::from_sequences(space(), &seen).unwrap();
        let base = Markov::fit(&seen, 1, false, smoothing).unwrap();
        let set = FeatureSet::new(space()).with("motif", Feature::Contains(motif.to_vec())).unwrap();
        let set = set.with("first", Feature::StartsWith(vec![1])).unwrap();
        let potential = Potential::new(&Cpu, &[Role::Require(1.0), Role::Tilt(lambda)]).unwrap();
        let guide = LookAhead::towards(&base, &set, &potential, 1000).unwrap().guide();
        let features = set.compile(&Cpu).unwrap();
        let extra = Batch::from_sequences(space(), &[vec![1, 1, 3], vec![0, 1, 1, 0, 3]]).unwrap();
        World { base, features, potential, guide, held_out: seen, extra }
    }

    fn run(&mut self, policy: &mut Lstm, options: &TuneOptions, how: Option<&Checkpoints>) -> Result<Tuned> {
        self.watched(policy, options, how, || {})
    }

    /// `watch` is called after each batch of draws.
    fn watched(
        &mut self,
        policy: &mut Lstm,
        options: &TuneOptions,
        how: Option<&Checkpoints>,
        mut watch: impl FnMut(),
    ) -> Result<Tuned> {
        let World { base, features, potential, guide, held_out, extra } = self;
        let target = &mut Target { base, features, potential, guide: Some(guide), contexts: None };
        let data = TuneData { held_out: Some(held_out), extra: Some(extra) };
        match how {
            Some(how) => tune_with_checkpoints(&Cpu, target, policy, options, data, how, |_| watch()),
            None => tune(&Cpu, target, policy, options, data, |_| watch()),
        }
    }
}

/// Of 5 units: neither a vector nor a tile.
fn lstm(seed: u64) -> Lstm {
    Lstm::new(space(), LstmShape { layers: 2, hidden: 5, dropout: 0.0 }, seed).unwrap()
}

/// 24 batches, 8 evaluations, a pool that is full after the twelfth.
fn options(method: Method, proposal: Source) -> TuneOptions {
    let mut options = TuneOptions::default();
    (options.method, options.proposal) = (method, proposal);
    (options.samples, options.batch, options.updates, options.cache) = (32 * 24, 32, 3, 32 * 8);
    (options.evaluations, options.evaluation_rows) = (8, 50);
    options.adam = AdamOptions { learning_rate: 2e-2, clip: 1.0, ..AdamOptions::default() };
    options.seed = 3;
    options
}

/// Everything a run leaves, bit for bit, and NaN equal to itself.
type Outcome = (BTreeMap<String, Vec<u32>>, String);

fn outcome(policy: &Lstm, tuned: &Tuned) -> Outcome {
    let state = policy.state(true).unwrap();
    let adam = state.optimizer.unwrap();
    let bits = |part: &'static str, named: Vec<(String, Vec<f32>)>| {
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        named.into_iter().map(move |(name, values)| (format!("{part} {name}"), bits(values)))
    };
    let parameters = bits("parameters", state.parameters);
    let all = parameters.chain(bits("first", adam.first)).chain(bits("second", adam.second)).collect();
    (all, format!("{} {tuned:?}", adam.steps))
}

/// Runs with a checkpoint at each evaluation, keeps a copy of each, and returns them with what came of the run.
fn copies(world: &mut World, options: &TuneOptions, room: &Path) -> (Vec<PathBuf>, Outcome) {
    let how = Checkpoints::new(&room.join("checkpoint.safetensors"));
    let (mut policy, mut copies) = (lstm(5), Vec::<PathBuf>::new());
    let tuned = world.watched(&mut policy, options, Some(&how), || {
        let Ok(bytes) = std::fs::read(&how.path) else { return };
        if copies.last().is_none_or(|last| std::fs::read(last).unwrap() != bytes) {
            copies.push(room.join(format!("{}.safetensors", copies.len())));
            std::fs::write(copies.last().unwrap(), bytes).unwrap();
        }
    });
    copies.push(how.path);
    (copies, outcome(&policy, &tuned.unwrap()))
}

#[test]
fn from_every_checkpoint_the_end_is_the_same_bit_for_bit() {
    let swaps = [Swap::Kl, Swap::Tv, Swap::CrossEntropy, Swap::Every(5), Swap::Never];
    let off = swaps.iter().flat_map(|&swap| {
        [(Source::Guided, Baseline::None), (Source::Base, Baseline::Mean)]
            .map(|(from, baseline)| (Method::DpgOffPolicy, from, baseline, swap))
    });
    let others = [
        (Method::DpgOnPolicy, Source::Base, Baseline::LeaveOneOut, Swap::Never),
        (Method::Distill, Source::Guided, Baseline::None, Swap::Never),
        (Method::Distill, Source::Base, Baseline::None, Swap::Never),
        (Method::Reinforce, Source::Base, Baseline::Mean, Swap::Never),
        (Method::KlControl(KlControl::default()), Source::Base, Baseline::Mean, Swap::Never),
        (Method::TrajectoryBalance, Source::Guided, Baseline::None, Swap::Every(5)),
        (Method::SubTrajectoryBalance(SubTrajectories::default()), Source::Guided, Baseline::None, Swap::Every(5)),
    ];
    let mut swapped = 0;
    for (method, proposal, baseline, swap) in off.chain(others) {
        let (room, mut world) = (tempfile::tempdir().unwrap(), world());
        let mut options = options(method, proposal);
        (options.baseline, options.swap) = (baseline, swap);
        if let Method::SubTrajectoryBalance(_) = method {
            // It cannot have a requirement.
            world.potential = Potential::new(&Cpu, &[Role::Tilt(1.0), Role::Tilt(1.2)]).unwrap();
        }
        if (method, proposal, swap) == (Method::DpgOffPolicy, Source::Base, Swap::Every(5)) {
            // Its coefficients are shifted by what earlier updates taught.
            options.divergence = Divergence::JensenShannon;
        } else if (method, proposal, swap) == (Method::DpgOffPolicy, Source::Guided, Swap::Never) {
            options.clip_weights = 1.1;
        }
        options.defensive = match (method, proposal, swap) {
            (Method::DpgOffPolicy, Source::Base, Swap::Kl | Swap::CrossEntropy) => 0.3,
            (Method::DpgOffPolicy, Source::Guided, Swap::Tv) | (Method::TrajectoryBalance, ..) => 0.1,
            _ => 0.0,
        };
        let case = format!("{method:?} from {proposal:?}, baseline {baseline:?}, swap {swap:?}");
        let mut policy = lstm(5);
        let tuned = world.run(&mut policy, &options, None).unwrap();
        swapped += tuned.swaps;
        let uninterrupted = outcome(&policy, &tuned);
        let (copies, with_checkpoints) = copies(&mut world, &options, room.path());
        assert_eq!(with_checkpoints, uninterrupted, "{case}: writing changes nothing");
        assert_eq!(copies.len(), 8, "{case}");
        for (at, copy) in copies.iter().enumerate() {
            let mut how = Checkpoints::new(&room.path().join("on"));
            // The last alone: to wait for the disk is most of this test's time.
            (how.every, how.resume) = (u64::MAX, Some(Checkpoint::load(copy).unwrap()));
            let resume = how.resume.as_ref().unwrap();
            assert_eq!((resume.history().len(), resume.samples()), (at + 1, 32 * 3 * (at + 1)), "{case}");
            // What the policy was before does not matter.
            let (mut policy, mut batches) = (lstm(6), 0);
            let tuned = world.watched(&mut policy, &options, Some(&how), || batches += 1).unwrap();
            assert_eq!(batches, 24 - 3 * (at + 1), "{case}: only what is left is done");
            assert_eq!(outcome(&policy, &tuned), uninterrupted, "{case}: from checkpoint {at}");
            if at < 7 {
                let (on, last) = (std::fs::read(room.path().join("on")).unwrap(), std::fs::read(&copies[7]).unwrap());
                assert!(on == last, "{case}: the last checkpoint is the same file");
            }
        }
    }
    // Sixteen by the interval, the others by a test.
    assert!(swapped > 16, "the swaps were tried: {swapped}");
}

/// The motif is so rare that the first evaluations have no update to tell a loss of.
#[test]
fn records_without_a_loss_stay_without_one() {
    let (room, mut world) = (tempfile::tempdir().unwrap(), World::new(&[1, 1, 1, 1, 1], 0.5, 1.2));
    let mut options = options(Method::DpgOffPolicy, Source::Base);
    (options.samples, options.batch, options.cache, options.evaluations) = (24 * 4, 4, 32, 24);
    let (copies, uninterrupted) = copies(&mut world, &options, room.path());
    let first = Checkpoint::load(&copies[0]).unwrap();
    assert!(first.history()[0].loss.is_nan() && first.history()[0].log_z == f64::NEG_INFINITY, "{:?}", first.history());
    for copy in &copies[..4] {
        let how =
            Checkpoints { resume: Some(Checkpoint::load(copy).unwrap()), ..Checkpoints::new(&room.path().join("on")) };
        let mut policy = lstm(6);
        let tuned = world.run(&mut policy, &options, Some(&how)).unwrap();
        assert_eq!(outcome(&policy, &tuned), uninterrupted);
    }
}

/// As a run does that was killed while it wrote, several times.
#[test]
fn a_resumed_run_writes_where_the_uninterrupted_one_does_and_clears_what_the_killed_one_left() {
    let (room, mut world) = (tempfile::tempdir().unwrap(), world());
    let options = options(Method::DpgOffPolicy, Source::Guided);
    let path = room.path().join("checkpoint.safetensors");
    let mut how = Checkpoints { every: 3, ..Checkpoints::new(&path) };
    let samples = |how: &Checkpoints, world: &mut World| {
        let mut seen = Vec::new();
        let tuned = world.watched(&mut lstm(5), &options, Some(how), || {
            seen.extend(Checkpoint::load(&path).ok().map(|checkpoint| checkpoint.samples()));
        });
        seen.push(Checkpoint::load(&path).unwrap().samples());
        seen.dedup();
        (seen, tuned.unwrap())
    };
    let (seen, tuned) = samples(&how, &mut world);
    // Evaluations 3 and 6, and the last.
    assert_eq!(seen, [288, 576, 768]);
    // From one at the fourth evaluation, as another interval leaves it.
    let at_fourth = copies(&mut world, &options, room.path()).0[3].clone();
    std::fs::write(room.path().join("checkpoint.safetensors.tmp-4194304"), "half a checkpo").unwrap();
    how.resume = Some(Checkpoint::load(&at_fourth).unwrap());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(samples(&how, &mut world), (vec![576, 768], tuned));
    let left: Vec<_> = std::fs::read_dir(room.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("tmp")), "{left:?}");
}

/// Resumes from `checkpoint` as `change` has it; the error is one line with `words`, and the policy is as before.
#[track_caller]
fn refused(checkpoint: &Path, words: &[&str], change: impl FnOnce(&mut World, &mut TuneOptions, &mut Lstm)) {
    let (mut world, mut options, mut policy) = (world(), options(Method::DpgOffPolicy, Source::Guided), lstm(6));
    options.swap = Swap::CrossEntropy;
    change(&mut world, &mut options, &mut policy);
    let before = (policy.state(true).unwrap(), std::fs::read(checkpoint).unwrap());
    let how =
        Checkpoint::load(checkpoint).map(|resume| Checkpoints { resume: Some(resume), ..Checkpoints::new(checkpoint) });
    let error = how.and_then(|how| world.run(&mut policy, &options, Some(&how))).unwrap_err().to_string();
    assert!(words.iter().all(|word| error.contains(word)) && !error.contains('\n'), "{error}");
    assert!(error.contains(&checkpoint.display().to_string()), "{error}");
    assert!(
        (policy.state(true).unwrap(), std::fs::read(checkpoint).unwrap()) == before,
        "{error}: the old state is gone"
    );
}

fn checkpoint(room: &Path) -> PathBuf {
    let mut options = options(Method::DpgOffPolicy, Source::Guided);
    options.swap = Swap::CrossEntropy;
    copies(&mut world(), &options, room).0[3].clone()
}

#[test]
fn checkpoints_of_other_runs_are_refused_by_what_differs() {
    let room = tempfile::tempdir().unwrap();
    let path = checkpoint(room.path());
    let option = |name: &str, values: &[&str], change: fn(&mut TuneOptions)| {
        let name = format!("of another run: option {name}: expected");
        refused(&path, &[&[name.as_str()], values].concat(), |_, options, _| change(options));
    };
    option("method", &["Distill", "got \"DpgOffPolicy\""], |o| o.method = Method::Distill);
    option("proposal", &["Base", "Guided"], |o| o.proposal = Source::Base);
    option("swap", &["{\"Every\":2}", "CrossEntropy"], |o| o.swap = Swap::Every(2));
    option("baseline", &["Mean", "None"], |o| o.baseline = Baseline::Mean);
    option("divergence", &["{\"Alpha\":0.5}", "ForwardKl"], |o| o.divergence = Divergence::Alpha(0.5));
    option("clip_weights", &["2.5", "null"], |o| o.clip_weights = 2.5);
    option("samples", &["800", "768"], |o| o.samples = 800);
    option("batch", &["16", "32"], |o| o.batch = 16);
    option("updates", &["4", "3"], |o| o.updates = 4);
    option("uses", &["21", "20"], |o| o.uses = 21);
    option("cache", &["257", "256"], |o| o.cache = 257);
    option("adam", &["0.019"], |o| o.adam.learning_rate = 0.019);
    option("decay", &["false", "true"], |o| o.decay = false);
    option("evaluations", &["9", "8"], |o| o.evaluations = 9);
    option("evaluation_rows", &["51", "50"], |o| o.evaluation_rows = 51);
    option("kept_evaluations", &["7", "8"], |o| o.kept_evaluations = 7);
    option("defensive", &["0.25", "0.0"], |o| o.defensive = 0.25);
    option("seed", &["4", "3"], |o| o.seed = 4);
    let other = |words: &[&str], change: fn(&mut World, &mut Lstm)| refused(&path, words, |w, _, p| change(w, p));
    other(&["another run: policy: expected", "\"hidden\":6", "\"hidden\":5"], |_, policy| {
        *policy = Lstm::new(space(), LstmShape { layers: 2, hidden: 6, dropout: 0.0 }, 1).unwrap();
    });
    other(&["another run: features: expected"], |world, _| world.features = World::new(&[1, 0], 0.5, 1.2).features);
    other(&["another run: λ and requirements: expected"], |world, _| {
        world.potential = World::new(&[1, 1], 0.5, 1.2 + f64::EPSILON).potential;
    });
    other(&["another run: base: expected"], |world, _| world.base = World::new(&[1, 1], 0.5001, 1.2).base);
    other(&["another run: guide: expected"], |world, _| world.guide = World::new(&[1, 1], 0.51, 1.2).guide);
    other(&["another run: held-out data: expected"], |world, _| {
        world.held_out = Batch::from_sequences(space(), &[vec![0, 0, 1, 3]]).unwrap();
    });
    // What the method does not read may differ.
    let how = Checkpoints { resume: Some(Checkpoint::load(&path).unwrap()), ..Checkpoints::new(&path) };
    let (mut world, mut options) = (world(), options(Method::DpgOffPolicy, Source::Guided));
    options.swap = Swap::CrossEntropy;
    world.extra = Batch::from_sequences(space(), &[vec![0, 0, 1, 3]]).unwrap();
    assert!(world.run(&mut lstm(1), &options, Some(&how)).is_ok());
}

#[test]
fn other_spaces_and_extra_data_are_refused() {
    let room = tempfile::tempdir().unwrap();
    let mut distill = options(Method::Distill, Source::Base);
    distill.updates = 1;
    let (copies, _) = copies(&mut world(), &distill, room.path());
    let how = Checkpoints { resume: Some(Checkpoint::load(&copies[0]).unwrap()), ..Checkpoints::new(&copies[0]) };
    let mut world = world();
    world.extra = Batch::from_sequences(space(), &[vec![1, 1, 3], vec![0, 1, 1, 1, 3]]).unwrap();
    let error = world.run(&mut lstm(1), &distill, Some(&how)).unwrap_err().to_string();
    assert!(error.contains("another run: extra data: expected"), "{error}");
    // Of another space: a whole run of its own, whose checkpoint the world above is offered.
    let longer = Space::new(2, 9).unwrap();
    let set = FeatureSet::new(longer).with("motif", Feature::Contains(vec![1, 1])).unwrap();
    let mut base = Markov::noise(longer, 8).unwrap();
    let (features, potential) = (set.compile(&Cpu).unwrap(), Potential::new(&Cpu, &[Role::Require(1.0)]).unwrap());
    let target =
        &mut Target { base: &mut base, features: &features, potential: &potential, guide: None, contexts: None };
    let mut policy = Lstm::new(longer, LstmShape { layers: 2, hidden: 5, dropout: 0.0 }, 1).unwrap();
    let error = tune_with_checkpoints(&Cpu, target, &mut policy, &distill, TuneData::default(), &how, |_| {});
    let error = error.unwrap_err().to_string();
    assert!(error.contains("another run: policy: expected") && error.contains("\"longest\":9"), "{error}");
}

#[test]
fn newer_formats_and_damaged_and_foreign_files_are_refused() {
    let room = tempfile::tempdir().unwrap();
    let path = checkpoint(room.path());
    let whole = std::fs::read(&path).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = room.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let at = whole.windows(12).position(|w| w == b"\"format\":\"1\"").unwrap();
    let mut newer = whole.clone();
    newer[at + 10] = b'2';
    refused(&write("newer", &newer), &["expected format 1 or older, got 2: update ebm-dpg"], |_, _, _| {});
    for length in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        refused(&write("cut", &whole[..length]), &["expected"], |_, _, _| {});
    }
    let mut damaged = whole.clone();
    damaged[whole.len() - 5] ^= 4;
    refused(&write("damaged", &damaged), &["damaged: expected", "got"], |_, _, _| {});
    lstm(3).save(&room.path().join("model")).unwrap();
    refused(&room.path().join("model"), &["expected a model of kind tuning, got lstm"], |_, _, _| {});
    let error = Checkpoint::load(&room.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("none") && error.contains("can be read"), "{error}");
    // A checkpoint is no model either.
    assert!(Lstm::load(&path).err().unwrap().to_string().contains("expected a model of kind lstm, got tuning"));
}

#[test]
fn intervals_of_zero_and_places_that_cannot_be_written_are_errors() {
    let (room, mut world) = (tempfile::tempdir().unwrap(), world());
    let options = options(Method::DpgOffPolicy, Source::Guided);
    let mut error = |how: &Checkpoints| world.run(&mut lstm(1), &options, Some(how)).unwrap_err().to_string();
    let never = error(&Checkpoints { every: 0, ..Checkpoints::new(&room.path().join("a")) });
    assert!(never.contains("evaluations between checkpoints: expected 1 or more, got 0"), "{never}");
    let nowhere = error(&Checkpoints::new(&room.path().join("no directory/a")));
    assert!(nowhere.contains("no directory") && nowhere.contains("expected") && nowhere.contains("got"), "{nowhere}");
    let taken = room.path().join("taken");
    std::fs::create_dir_all(taken.join("inside")).unwrap();
    let taken = error(&Checkpoints::new(&taken));
    assert!(taken.contains("taken: cannot be written"), "{taken}");
    assert_eq!(std::fs::read_dir(room.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn states_of_other_models_change_nothing() {
    let (mut policy, before) = (lstm(1), lstm(1).state(true).unwrap());
    let mut other = lstm(2).state(true).unwrap();
    other.parameters[0].1.pop();
    assert!(policy.restore(&other).unwrap_err().to_string().contains("lstm.0.input of"));
    let shape = LstmShape { layers: 1, hidden: 5, dropout: 0.0 };
    assert!(policy.restore(&Lstm::new(space(), shape, 1).unwrap().state(true).unwrap()).is_err());
    assert!(policy.state(true).unwrap() == before);
    // One that starts anew has no memory of what it was trained by.
    let batch = Batch::from_sequences(space(), &[vec![1, 1, 3]]).unwrap();
    policy.gradient(&batch, &Coefficients::given(&[1.0][..]), &mut [0.0]).unwrap();
    policy.update(&AdamOptions::default()).unwrap();
    assert!(policy.state(true).unwrap().optimizer != before.optimizer);
    policy.reset_optimizer().unwrap();
    assert!(policy.state(true).unwrap().optimizer == before.optimizer);
    // Without the optimiser, that of the model stays.
    let given = lstm(2).state(false).unwrap();
    policy.restore(&given).unwrap();
    let now = policy.state(true).unwrap();
    assert!(now.parameters == given.parameters && now.optimizer == before.optimizer);
}

/// The other kind of policy: a table of logits, −∞ among them.
#[test]
fn tables_resume_too() {
    let (room, world) = (tempfile::tempdir().unwrap(), &mut world());
    let (fresh, options) = (Tabular::new(&world.guide).unwrap(), options(Method::DpgOffPolicy, Source::Guided));
    let World { base, features, potential, guide, .. } = world;
    let mut run = |policy: &mut Tabular, how: &Checkpoints, mut watch: Box<dyn FnMut() + '_>| {
        let target = &mut Target { base, features, potential, guide: Some(guide), contexts: None };
        tune_with_checkpoints(&Cpu, target, policy, &options, TuneData::default(), how, |_| watch()).unwrap()
    };
    let (mut policy, mut third) = (fresh.clone(), None);
    let how = Checkpoints::new(&room.path().join("checkpoint"));
    let mut tuned = Vec::new();
    let watch = || {
        let checkpoint = Checkpoint::load(&how.path).ok().filter(|checkpoint| checkpoint.history().len() == 3);
        third = third.take().or(checkpoint);
    };
    tuned.push(run(&mut policy, &how, Box::new(watch)));
    let mut again = fresh;
    let on = Checkpoints { resume: third, ..Checkpoints::new(&room.path().join("on")) };
    assert!(on.resume.is_some());
    tuned.push(run(&mut again, &on, Box::new(|| {})));
    assert_eq!(tuned[0], tuned[1]);
    assert_eq!(again.state(true).unwrap(), policy.state(true).unwrap());
    assert!(again.logits().contains(&f32::NEG_INFINITY));
}
