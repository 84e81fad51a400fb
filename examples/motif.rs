//! The papers' experiment (Parshakova, Andreoli & Dymetman 2019): few strings with a motif → base r → features φ and
//! coefficients λ → policy π, with the exact truth beside it.

use std::process::ExitCode;
use std::time::Instant;

use ebm_dpg::Result;
use ebm_dpg::backend::Cpu;
use ebm_dpg::data::{Process, Splits};
use ebm_dpg::features::FeatureSet;
use ebm_dpg::fit::Targets;
use ebm_dpg::models::{LikelihoodOptions, Lstm, LstmBackend, Policy, Sampler};
use ebm_dpg::tokens::Token;
use ebm_dpg::tune::Target;
use ebm_dpg::weights::Estimate;

mod support;
use support::Experiment;
use support::estimate::Plan;
use support::experiment as phase;
use support::options::{self, Init, Mode, Motif, Options};
use support::page;
use support::report::{CrossEntropies, Features, Frequencies, MomentTable, Output, Report, Seconds};

/// Strings to stop the base's training by, and to report on: the papers'.
const VALIDATION: usize = 2_000;
const TEST: usize = 5_000;

/// Draws that λ is fitted on.
const FIT_SAMPLES: usize = 20_000;

fn main() -> ExitCode {
    support::run::<Motif>()
}

impl Experiment for Motif {
    fn plan(&self) -> Result<Plan> {
        let (common, likelihood) = (&self.common, likelihood(self.data_size));
        let trains = common.base.is_none() && (self.target == options::Target::Ebm || common.init == Init::Base);
        Ok(Plan {
            space: Process::space(common.length)?,
            data: self.data_size,
            base: if trains { self.data_size * likelihood.epochs } else { 0 },
            fit: if self.target == options::Target::Ebm { common.bounded(FIT_SAMPLES) } else { 0 },
            updates: phase::UPDATES,
            test: common.bounded(TEST),
        })
    }

    fn run<B: LstmBackend>(&self, backend: &B) -> Result<()> {
        let (started, common) = (Instant::now(), &self.common);
        let motif: Vec<Token> = self.motif.bytes().map(|bit| Token::from(bit - b'0')).collect();
        let process = match self.mode {
            Mode::M => Process::motif(&motif, common.length)?,
            Mode::Mam => Process::mixture(&motif, common.length, 0.9)?,
            Mode::Mult => Process::multiple(self.multiple, common.length)?,
        };
        // Flags that do not fit the motif are told before any work.
        let modulus = (self.mode == Mode::Mult).then_some(self.multiple);
        let space = Process::space(common.length)?;
        let features = FeatureSet::from_flags(space, &motif, &self.features, modulus)?;
        let splits = process.splits(common.seed, self.data_size, common.bounded(VALIDATION), common.bounded(TEST))?;
        let loaded = phase::load_base(common, space)?;
        let mut output = Output::begin(self, "")?;
        let mut seconds = Seconds::default();
        let job = Job { options: self, process: &process, loaded };
        let (names, report) = match self.target {
            options::Target::Ebm => {
                job.fitted(backend, &splits.upload(backend)?, features, &mut output, &mut seconds)?
            }
            options::Target::True => job.truth(&splits, &mut output, &mut seconds)?,
        };
        seconds.total = started.elapsed().as_secs_f64();
        let report = Report { seconds, ..report };
        report.write(&mut output)?;
        page::write(&report, &names, &mut output)?;
        support::print(&report.table(&names, &output))
    }
}

/// How r is trained: four updates a pass at least, where the data allow, and a bound on updates for any amount of data.
fn likelihood(rows: usize) -> LikelihoodOptions {
    const UPDATES: usize = 1_000;
    let mut options = LikelihoodOptions::default();
    options.batch = (rows / 4).clamp(50, 250);
    options.epochs = (UPDATES * options.batch).div_ceil(rows).clamp(1, options.epochs);
    options
}

/// What there is to do, and the base to do it with where one is given.
struct Job<'a> {
    options: &'a Motif,
    process: &'a Process,
    loaded: Option<Lstm>,
}

type Outcome = (Vec<String>, Report);

impl Job<'_> {
    /// r, trained on the data unless it is loaded.
    fn train<B: LstmBackend>(&self, backend: &B, data: &Splits<B>, output: &mut Output) -> Result<phase::Base<B>> {
        let loaded = self.loaded.clone();
        phase::base(backend, &self.options.common, loaded, likelihood(self.options.data_size), data, output)
    }

    /// P_λ = r·b·exp⟨λ, φ⟩ fitted to the data.
    fn fitted<B: LstmBackend>(
        &self,
        backend: &B,
        data: &Splits<B>,
        features: FeatureSet,
        output: &mut Output,
        seconds: &mut Seconds,
    ) -> Result<Outcome> {
        let common = &self.options.common;
        let mut base = self.train(backend, data, output)?;
        seconds.base = base.seconds;
        let table = features.compile(backend)?;
        let targets = Targets::from_data(&phase::evaluate(backend, &table, &data.train)?, features.len())?;
        let fit = phase::fit(backend, common, FIT_SAMPLES, &mut base.model, &features, &targets, None)?;
        seconds.fit = fit.seconds;
        let policy = phase::initial_policy(backend, common, data.train.space, Some(&base.model))?;
        let (data_moments, log_z) = (targets.moments().to_vec(), fit.log_z);
        let run = Run { backend, job: self, data, names: features.names(), data_moments, log_z };
        run.tune(fit.target(&mut base.model, &table), policy, &fit.warnings, output, seconds)
    }

    /// The distribution that made the data as the target: noise times its feature, λ known. All of it is on the CPU.
    fn truth(&self, data: &Splits, output: &mut Output, seconds: &mut Seconds) -> Result<Outcome> {
        let (common, exact) = (&self.options.common, self.process.exact());
        let base = match common.init {
            Init::Base => Some(self.train(&Cpu, data, output)?),
            Init::Fresh => None,
        };
        seconds.base = base.as_ref().map_or(0.0, |base| base.seconds);
        let policy = phase::initial_policy(&Cpu, common, data.train.space, base.as_ref().map(|base| &base.model))?;
        let (mut noise, guide) = (self.process.chain().clone(), exact.look_ahead().guide());
        let features = self.process.features();
        let table = features.compile(&Cpu)?;
        let phi = phase::evaluate(&Cpu, &table, &data.train)?;
        let data_moments = Targets::from_data(&phi, features.len())?.moments().to_vec();
        let log_z = Estimate::exact(exact.log_z());
        let target = Target {
            base: &mut noise,
            features: &table,
            potential: self.process.potential(),
            guide: Some(&guide),
            contexts: None,
        };
        let run = Run { backend: &Cpu, job: self, data, names: features.names(), data_moments, log_z };
        run.tune(target, policy, &[], output, seconds)
    }
}

/// What tuning and judging need to know.
struct Run<'a, B: LstmBackend> {
    backend: &'a B,
    job: &'a Job<'a>,
    data: &'a Splits<B>,
    names: &'a [String],
    data_moments: Vec<f64>,
    log_z: Estimate,
}

impl<B: LstmBackend> Run<'_, B> {
    fn tune<R: Sampler<B>>(
        self,
        mut target: Target<'_, B, R>,
        mut policy: B::Lstm,
        warnings: &[String],
        output: &mut Output,
        seconds: &mut Seconds,
    ) -> Result<Outcome> {
        let Run { backend, job: Job { options, process, .. }, data, .. } = self;
        let common = &options.common;
        let held_out = Some(&data.validation);
        let (tuned, tuning) =
            phase::tune_policy(backend, common, &mut target, &mut policy, held_out, self.names, output)?;
        seconds.tune = tuning;
        policy.save(&output.file("policy.safetensors"))?;
        phase::draw_tuning(output, &tuned, self.names, &self.data_moments)?;
        let found = phase::judge(backend, common, &mut target, &mut policy)?;
        // The fit's own sample may be the better one for log Z.
        let log_z = phase::sharper(self.log_z, found.log_z);
        let ce = CrossEntropies {
            r: phase::cross_entropy(backend, target.base, &data.test)?,
            potential: phase::potential_cross_entropy(backend, &mut target, log_z.value, &data.test)?,
            policy: phase::cross_entropy(backend, &mut policy, &data.test)?,
        };
        let made_by = process.features().compile(backend)?;
        let frequency = Frequencies {
            r: phase::moments(backend, common, target.base, None, &made_by)?[0].value,
            policy: phase::moments(backend, common, &mut policy, None, &made_by)?[0].value,
        };
        let warnings = [warnings, &tuned.warnings, &found.warnings].concat();
        let report = Report {
            motif: Some(options.motif.clone()),
            mode: Some(options.mode),
            length: common.length,
            data_size: options.data_size,
            features: Features::Flags(options.features.clone()),
            method: common.method,
            seed: common.seed,
            options: options.as_json()?,
            warnings,
            entropy_per_token: process.entropy_per_token(),
            ce,
            motif_frequency: frequency,
            lambda: phase::lambda(target.potential),
            moments: MomentTable::Motif { data: self.data_moments, potential: phase::values(&found.moments_target) },
            log_z: phase::reported(log_z),
            kl_target_policy: phase::reported(found.kl_policy),
            tv_target_policy: phase::reported(found.tv_policy),
            kl_policy_base: None,
            ess: found.ess,
            samples_used: tuned.samples as u64,
            proposal_swaps: tuned.swaps as u64,
            contexts: Vec::new(),
            seconds: Seconds::default(),
        };
        Ok((self.names.to_vec(), report))
    }
}
