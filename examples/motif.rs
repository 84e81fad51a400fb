//! The papers' experiment (Parshakova, Andreoli & Dymetman 2019): few strings with a motif → base r → features φ and
//! coefficients λ → policy π, with the exact truth beside it.

use std::process::ExitCode;
use std::time::Instant;

use ebm_dpg::Result;
use ebm_dpg::backend::Cpu;
use ebm_dpg::data::{Process, Splits};
use ebm_dpg::exact::Guide;
use ebm_dpg::features::FeatureSet;
use ebm_dpg::fit::Targets;
use ebm_dpg::models::{LikelihoodOptions, Lstm, Policy, Sampler};
use ebm_dpg::potential::Potential;
use ebm_dpg::tokens::Token;
use ebm_dpg::tune::Target;
use ebm_dpg::weights::Estimate;

mod support;
use support::experiment as phase;
use support::options::{self, Init, Mode, Motif, Options};
use support::report::{CrossEntropies, Features, Frequencies, MomentTable, Output, Report, Seconds};

/// Strings to stop the base's training by, and to report on: the papers'.
const VALIDATION: usize = 2_000;
const TEST: usize = 5_000;

/// Draws that λ is fitted on.
const FIT_SAMPLES: usize = 20_000;

/// Updates of π a batch of draws: each draw serves so many times.
const UPDATES: usize = 4;

fn main() -> ExitCode {
    support::run(experiment)
}

fn experiment(options: &Motif) -> Result<()> {
    let started = Instant::now();
    let motif: Vec<Token> = options.motif.bytes().map(|bit| Token::from(bit - b'0')).collect();
    let process = match options.mode {
        Mode::M => Process::motif(&motif, options.common.length)?,
        Mode::Mam => Process::mixture(&motif, options.common.length, 0.9)?,
        Mode::Mult => Process::multiple(options.multiple, options.common.length)?,
    };
    // Flags that do not fit the motif are told before any work.
    let modulus = (options.mode == Mode::Mult).then_some(options.multiple);
    let space = Process::space(options.common.length)?;
    let features = FeatureSet::from_flags(space, &motif, &options.features, modulus)?;
    let splits = process.splits(options.common.seed, options.data_size, VALIDATION, TEST)?;
    let loaded = phase::load_base(&options.common, space)?;
    let mut output = Output::create(&options.common.out)?;
    let mut seconds = Seconds::default();
    let report = match options.target {
        options::Target::Ebm => fitted(options, features, &process, &splits, loaded, &mut output, &mut seconds)?,
        options::Target::True => truth(options, &process, &splits, loaded, &mut output, &mut seconds)?,
    };
    seconds.total = started.elapsed().as_secs_f64();
    let (names, report) = (report.0, Report { seconds, ..report.1 });
    report.write(&mut output)?;
    support::print(&report.table(&names, &output))
}

/// r, trained on the data unless it is loaded.
fn train(options: &Motif, loaded: Option<Lstm>, splits: &Splits, output: &mut Output) -> Result<phase::Base> {
    let data = (&splits.train, &splits.validation);
    phase::base(&options.common, loaded, likelihood(options.data_size), data, output)
}

type Outcome = (Vec<String>, Report);

/// How r is trained: four updates a pass at least, where the data allow, and a bound on updates for any amount of data.
fn likelihood(rows: usize) -> LikelihoodOptions {
    const UPDATES: usize = 1_000;
    let mut options = LikelihoodOptions::default();
    options.batch = (rows / 4).clamp(50, 250);
    options.epochs = (UPDATES * options.batch).div_ceil(rows).clamp(1, options.epochs);
    options
}

/// P_λ = r·b·exp⟨λ, φ⟩ fitted to the data.
fn fitted(
    options: &Motif,
    features: FeatureSet,
    process: &Process,
    splits: &Splits,
    loaded: Option<Lstm>,
    output: &mut Output,
    seconds: &mut Seconds,
) -> Result<Outcome> {
    let common = &options.common;
    let mut base = train(options, loaded, splits, output)?;
    seconds.base = base.seconds;
    let table = features.compile(&Cpu)?;
    let targets = Targets::from_data(&phase::evaluate(&table, &splits.train)?, features.len())?;
    let fit = phase::fit(common, FIT_SAMPLES, &mut base.model, &features, &targets)?;
    seconds.fit = fit.seconds;
    let policy = phase::initial_policy(common, splits.train.space, Some(&base.model))?;
    let run = Run { options, process, splits, features, data_moments: targets.moments().to_vec(), log_z: fit.log_z };
    run.tune(&mut base.model, &fit.potential, &fit.guide, policy, fit.warnings, output, seconds)
}

/// The distribution that made the data as the target: noise times its feature, λ known.
fn truth(
    options: &Motif,
    process: &Process,
    splits: &Splits,
    loaded: Option<Lstm>,
    output: &mut Output,
    seconds: &mut Seconds,
) -> Result<Outcome> {
    let common = &options.common;
    let mut noise = process.chain().clone();
    let base = match common.init {
        Init::Base => Some(train(options, loaded, splits, output)?),
        Init::Fresh => None,
    };
    seconds.base = base.as_ref().map_or(0.0, |base| base.seconds);
    let policy = phase::initial_policy(common, splits.train.space, base.as_ref().map(|base| &base.model))?;
    let guide = process.exact().look_ahead().guide();
    let features = process.features().clone();
    let phi = phase::evaluate(&features.compile(&Cpu)?, &splits.train)?;
    let log_z = Estimate::exact(process.exact().log_z());
    let data_moments = Targets::from_data(&phi, features.len())?.moments().to_vec();
    let run = Run { options, process, splits, features, data_moments, log_z };
    run.tune(&mut noise, process.potential(), &guide, policy, Vec::new(), output, seconds)
}

/// What tuning and judging need to know.
struct Run<'a> {
    options: &'a Motif,
    process: &'a Process,
    splits: &'a Splits,
    features: FeatureSet,
    data_moments: Vec<f64>,
    log_z: Estimate,
}

impl Run<'_> {
    #[expect(clippy::too_many_arguments, reason = "one run's inputs, each once")]
    fn tune<R: Sampler<Cpu>>(
        self,
        base: &mut R,
        potential: &Potential,
        guide: &Guide,
        mut policy: Lstm,
        mut warnings: Vec<String>,
        output: &mut Output,
        seconds: &mut Seconds,
    ) -> Result<Outcome> {
        let (common, test) = (&self.options.common, &self.splits.test);
        let table = self.features.compile(&Cpu)?;
        let mut target = Target { base, features: &table, potential, guide: Some(guide) };
        let (tuned, tuning) =
            phase::tune_policy(common, UPDATES, &mut target, &mut policy, Some(&self.splits.validation))?;
        seconds.tune = tuning;
        policy.save(&output.file("policy.safetensors"))?;
        phase::draw_tuning(output, &tuned, self.features.names(), &self.data_moments)?;
        let found = phase::judge(common.seed, &mut target, &mut policy)?;
        // The fit's own sample may be the better one for log Z.
        let log_z = phase::sharper(self.log_z, found.log_z);
        let ce = CrossEntropies {
            r: phase::cross_entropy(target.base, test)?,
            potential: phase::potential_cross_entropy(target.base, &table, potential, log_z.value, test)?,
            policy: phase::cross_entropy(&mut policy, test)?,
        };
        let made_by = self.process.features().compile(&Cpu)?;
        let frequency = Frequencies {
            r: phase::moments(target.base, &made_by, common.seed)?[0].value,
            policy: phase::moments(&mut policy, &made_by, common.seed)?[0].value,
        };
        warnings.extend(tuned.warnings);
        warnings.extend(found.warnings);
        let report = Report {
            motif: Some(self.options.motif.clone()),
            mode: Some(self.options.mode),
            length: common.length,
            data_size: self.options.data_size,
            features: Features::Flags(self.options.features.clone()),
            method: common.method,
            seed: common.seed,
            options: self.options.as_json()?,
            warnings,
            entropy_per_token: self.process.entropy_per_token(),
            ce,
            motif_frequency: frequency,
            lambda: phase::lambda(potential),
            moments: MomentTable::Motif { data: self.data_moments, potential: phase::values(&found.moments_target) },
            log_z: phase::reported(log_z),
            kl_target_policy: phase::reported(found.kl_policy),
            tv_target_policy: phase::reported(found.tv_policy),
            kl_policy_base: None,
            ess: found.ess,
            samples_used: tuned.samples as u64,
            proposal_swaps: tuned.swaps as u64,
            seconds: Seconds::default(),
        };
        Ok((self.features.names().to_vec(), report))
    }
}
