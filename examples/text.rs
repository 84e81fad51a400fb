//! Real text with wanted moments: lines → base r → patterns φ and coefficients λ → policy π, with samples of r and π
//! side by side.

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;
use std::{fs, process::ExitCode};

use ebm_dpg::adam::AdamOptions;
use ebm_dpg::backend::{Backend, Cpu};
use ebm_dpg::checkpoint::digest;
use ebm_dpg::data::Splits;
use ebm_dpg::features::{FeatureSet, FeatureTable, Spelling};
use ebm_dpg::fit::Targets;
use ebm_dpg::models::{LikelihoodOptions, LstmBackend, Policy, Sampler};
use ebm_dpg::rng::{Draw, Purpose, permutation};
use ebm_dpg::tokens::{Batch, Contexts, Lines, Unit, Vocab};
use ebm_dpg::tune::{ContextEvaluation, Evaluation, Tuned};
use ebm_dpg::weights::Estimate;
use ebm_dpg::{Error, Result};

mod support;
use support::Experiment;
use support::estimate::Plan;
use support::experiment::{self as phase, Fitted};
use support::options::{Options, Swap, Text, Want};
use support::page;
use support::report::{ContextReport, CrossEntropies, Features, Frequencies, MomentTable, Output, Report, Seconds};

/// What is read where no file is given.
const WORDS: &[u8] = include_bytes!("data/words.txt");

/// A tenth of the lines stops the base's training and another tenth is reported on, but no more than these.
const VALIDATION: usize = 2_000;
const TEST: usize = 5_000;

/// Draws that λ is fitted on: their error adds to that of π's moments.
const FIT_SAMPLES: usize = 60_000;

/// A moment of π further than this from the wanted one is worth a warning.
const NEAR: f64 = 0.03;

/// Draws in a row that continue the same beginning.
const DRAWS: usize = 16;

/// Samples of r and of π to look at.
const SHOWN: usize = 10;

fn main() -> ExitCode {
    support::run::<Text>()
}

impl Experiment for Text {
    fn plan(&self) -> Result<Plan> {
        let lines = Corpus::read(self)?.lines;
        let rows = lines.train.rows;
        let trains = self.common.base.is_none();
        Ok(Plan {
            space: lines.train.space,
            data: rows,
            base: if trains { rows * likelihood(rows).epochs } else { 0 },
            fit: self.common.bounded(FIT_SAMPLES),
            updates: phase::UPDATES,
            test: lines.test.rows,
        })
    }

    fn run<B: LstmBackend>(&self, backend: &B) -> Result<()> {
        let (started, common) = (Instant::now(), &self.common);
        let corpus = Corpus::read(self)?;
        let space = corpus.lines.train.space;
        let features = corpus.features(&self.wants)?;
        let table = features.compile(backend)?;
        let loaded = phase::load_base(common, space)?;
        let mut output = Output::begin(self, &corpus.fingerprint)?;
        corpus.warnings.iter().for_each(|warning| support::say(&format!("warning: {warning}")));
        let data = corpus.lines.upload(backend)?;
        let phase::Base { model: mut base, seconds } =
            phase::base(backend, common, loaded, likelihood(data.train.rows), &data, &mut output)?;
        let targets = Targets::wanted(&self.moments())?;
        let contexts = corpus.contexts.as_ref().map(|contexts| contexts.upload(backend)).transpose()?;
        let fit = phase::fit(backend, common, FIT_SAMPLES, &mut base, &features, &targets, contexts.as_ref())?;
        let policy = phase::initial_policy(backend, common, space, Some(&base))?;
        let mut run = Run { backend, options: self, corpus, contexts, data, table, base, fit, policy };
        let (tuned, tuning) = run.tune(&mut output)?;
        let report = run.report(tuned)?;
        let total = started.elapsed().as_secs_f64();
        let seconds = Seconds { base: seconds, fit: run.fit.seconds, tune: tuning, total };
        let report = Report { seconds, ..report };
        report.write(&mut output)?;
        page::write(&report, features.names(), &mut output)?;
        support::print(&format!("{}{}", run.samples()?, report.table(features.names(), &output)))
    }
}

/// How r is trained on so many lines: with smaller batches and larger steps than the papers', and more passes over fewer
/// lines. Pressed further, r gains little, and p becomes too jagged for π to follow.
fn likelihood(rows: usize) -> LikelihoodOptions {
    const BATCH: usize = 256;
    const UPDATES: usize = 1_500;
    let mut options = LikelihoodOptions::default();
    options.adam = AdamOptions { learning_rate: 2e-3, clip: 1.0, ..options.adam };
    options.batch = BATCH;
    options.epochs = UPDATES.div_ceil(rows.div_ceil(BATCH)).max(5);
    options.patience = (options.epochs / 10).max(3);
    options
}

/// The lines of a file, their symbols, and what was wrong with them.
struct Corpus {
    /// Of the bytes they were read from.
    fingerprint: String,
    vocab: Vocab,
    lines: Splits,
    contexts: Option<Contexts>,
    warnings: Vec<String>,
}

impl Corpus {
    fn read(options: &Text) -> Result<Self> {
        let common = &options.common;
        let bytes = match &options.file {
            Some(path) => fs::read(path)
                .map_err(|error| Error::file(path, format!("expected a file that can be read, got: {error}")))?,
            None => WORDS.to_vec(),
        };
        // A line takes the memory of the longest, so ask before they are laid out.
        let rows = bytes.split(|&byte| byte == b'\n').count();
        common.check_memory(5, rows)?;
        let about_file = |error| match &options.file {
            Some(path) => Error::file(path, error),
            None => error,
        };
        let lines = Lines::from_bytes(&bytes, Unit::Characters, None, Some(common.length + 1)).map_err(about_file)?;
        common.check_memory(lines.batch.space.vocab as usize, rows)?;
        // The beginnings are of a file of their own.
        let contexts = options.contexts.as_deref().map(|path| contexts(path, &lines)).transpose()?;
        let corpus = Corpus::split(lines, format!("{:016x}", digest(0, &bytes)), options).map_err(about_file)?;
        Ok(Corpus { contexts, ..corpus })
    }

    /// Splits the lines by the seed.
    fn split(lines: Lines, fingerprint: String, options: &Text) -> Result<Self> {
        let rows = lines.batch.rows;
        if rows < 3 {
            let expected = "3 or more that are not blank: to train, to validate and to test";
            return Err(Error::argument("lines", expected, rows));
        }
        let share = |most| (rows / 10).clamp(1, options.common.bounded(most));
        let (validation, test) = (share(VALIDATION), share(TEST));
        let most = rows - validation - test;
        let train = options.data_size.unwrap_or(most);
        if train > most {
            let expected = format!("at most {most} of {rows} lines, the others being for validation and test");
            return Err(Error::argument("--data-size", expected, train));
        }
        let order = permutation(Draw::new(options.common.seed, Purpose::Data), 0, rows);
        let take = |rows: &[u32]| -> Result<Batch> {
            let mut batch = Batch::with_capacity(&Cpu, lines.batch.space, rows.len())?;
            batch.gather(&Cpu, &lines.batch, rows)?;
            Ok(batch)
        };
        let splits = Splits {
            test: take(&order[..test])?,
            validation: take(&order[test..test + validation])?,
            train: take(&order[test + validation..][..train])?,
        };
        Ok(Corpus {
            fingerprint,
            lines: splits,
            contexts: None,
            warnings: warnings(&lines, options),
            vocab: lines.vocab,
        })
    }

    /// One feature a wanted moment.
    fn features(&self, wants: &[Want]) -> Result<FeatureSet> {
        let features = FeatureSet::new(self.lines.train.space).spelled(Spelling::of(&self.vocab))?;
        wants.iter().try_fold(features, |features, want| {
            let about_pattern = |error| match error {
                Error::Argument { what, expected, got } => {
                    Error::argument(format!("--want {}, {what}", want.text.escape_debug()), expected, got)
                }
                error => error,
            };
            let feature = want.feature(&self.vocab).map_err(about_pattern)?;
            features.with(&want.text, feature).map_err(about_pattern)
        })
    }
}

/// The lines of a file of beginnings.
fn contexts(path: &Path, lines: &Lines) -> Result<Contexts> {
    let beginnings = Lines::read(path, Unit::Characters, Some(&lines.vocab), None)?;
    Contexts::from_lines(lines.batch.space, &beginnings, DRAWS).map_err(|error| Error::file(path, error))
}

/// What a user should know about the lines before they are trained on.
fn warnings(lines: &Lines, options: &Text) -> Vec<String> {
    let mut warnings = Vec::new();
    if !lines.truncated.is_empty() {
        let (length, which) = (options.common.length, numbers(&lines.truncated));
        warnings
            .push(format!("{which} longer than {length} symbols (--length): cut there, and no end learned from them"));
    }
    if !lines.blank.is_empty() {
        warnings.push(format!("{} blank: skipped", numbers(&lines.blank)));
    }
    if options.common.swap == Swap::Ce {
        warnings.push("the lines do not have the wanted moments: judged by them, --swap ce favours r over π".into());
    }
    warnings
}

/// "3 lines (1, 5, 8) are", naming no more than five.
fn numbers(lines: &[usize]) -> String {
    let named: Vec<String> = lines.iter().take(5).map(usize::to_string).collect();
    let more = if lines.len() > named.len() { ", …" } else { "" };
    let (count, plural, are) = if lines.len() == 1 { (1, "", "is") } else { (lines.len(), "s", "are") };
    format!("{count} line{plural} ({}{more}) {are}", named.join(", "))
}

/// The models of one run.
struct Run<'a, B: LstmBackend> {
    backend: &'a B,
    options: &'a Text,
    corpus: Corpus,
    contexts: Option<Contexts<B>>,
    data: Splits<B>,
    table: FeatureTable<B>,
    base: B::Lstm,
    fit: Fitted<B>,
    policy: B::Lstm,
}

impl<B: LstmBackend> Run<'_, B> {
    /// Tunes π; returns how that went, and the seconds.
    fn tune(&mut self, output: &mut Output) -> Result<(Tuned, f64)> {
        let common = &self.options.common;
        // The lines do not have the wanted moments, so nothing is distilled from them.
        let held_out = (common.swap == Swap::Ce).then_some(&self.data.validation);
        let mut target = self.fit.target(&mut self.base, &self.table);
        target.contexts = self.contexts.as_ref();
        let (names, backend) = (self.options.patterns(), self.backend);
        let (tuned, seconds) =
            phase::tune_policy(backend, common, &mut target, &mut self.policy, held_out, &names, output)?;
        self.policy.save(&output.file("policy.safetensors"))?;
        phase::draw_tuning(output, &tuned, &self.options.patterns(), &self.options.moments())?;
        Ok((tuned, seconds))
    }

    fn report(&mut self, tuned: Tuned) -> Result<Report> {
        let (backend, common) = (self.backend, &self.options.common);
        let mut target = self.fit.target(&mut self.base, &self.table);
        target.contexts = self.contexts.as_ref();
        let found = phase::judge(backend, common, &mut target, &mut self.policy)?;
        let log_z = phase::sharper(self.fit.log_z, found.log_z);
        let moments = MomentTable::Text {
            wanted: self.options.moments(),
            base: phase::values(&phase::moments(backend, common, &mut self.base, self.contexts.as_ref(), &self.table)?),
            potential: phase::values(&found.moments_target),
            policy: phase::values(&found.moments_policy),
        };
        let ce = self.cross_entropies(log_z)?;
        let doubts = self.doubts(&ce, &found.moments_policy);
        let warnings = [&self.corpus.warnings, &self.fit.warnings, &tuned.warnings, &found.warnings, &doubts];
        Ok(Report {
            motif: None,
            mode: None,
            length: common.length,
            data_size: self.data.train.rows,
            features: Features::Patterns(self.options.patterns()),
            method: common.method,
            seed: common.seed,
            options: self.options.as_json()?,
            warnings: warnings.into_iter().flatten().cloned().collect(),
            entropy_per_token: f64::NAN,
            ce,
            motif_frequency: Frequencies { r: f64::NAN, policy: f64::NAN },
            lambda: phase::lambda(&self.fit.potential),
            moments,
            log_z: phase::reported(log_z),
            kl_target_policy: phase::reported(found.kl_policy),
            tv_target_policy: phase::reported(found.tv_policy),
            kl_policy_base: Some(phase::reported(found.kl_policy_base)),
            ess: found.ess,
            samples_used: tuned.samples as u64,
            proposal_swaps: tuned.swaps as u64,
            contexts: self.of_contexts(&found)?,
            seconds: Seconds::default(),
        })
    }

    /// How each beginning came out; none where there are none.
    fn of_contexts(&self, found: &Evaluation) -> Result<Vec<ContextReport>> {
        let Some(contexts) = &self.corpus.contexts else { return Ok(Vec::new()) };
        let report = |context: &ContextEvaluation| {
            Ok(ContextReport {
                text: self.corpus.vocab.decode(contexts.context(context.context))?,
                log_z: phase::reported(context.log_z),
                kl_target_policy: phase::reported(context.kl_policy),
            })
        };
        found.contexts.iter().map(report).collect()
    }

    /// Of lines that nothing was trained on. They do not have the wanted moments: r is the nearest to them.
    fn cross_entropies(&mut self, log_z: Estimate) -> Result<CrossEntropies> {
        let (backend, test) = (self.backend, &self.data.test);
        let mut target = self.fit.target(&mut self.base, &self.table);
        Ok(CrossEntropies {
            r: phase::cross_entropy(backend, target.base, test)?,
            potential: phase::potential_cross_entropy(backend, &mut target, log_z.value, test)?,
            policy: phase::cross_entropy(backend, &mut self.policy, test)?,
        })
    }

    /// What the results give reason to doubt: a base of as many other symbols loads, but knows nothing of these lines;
    /// a budget can be too small.
    fn doubts(&self, ce: &CrossEntropies, moments: &[Estimate]) -> Vec<String> {
        let chance = (self.corpus.vocab.len() as f64 + 1.0).ln();
        let foreign = (ce.r > chance).then(|| {
            format!("r is worse than chance ({:.2} against {chance:.2} nats per token): is it of other symbols?", ce.r)
        });
        let far = self
            .options
            .wants
            .iter()
            .zip(moments)
            .filter(|(want, moment)| (moment.value - want.moment).abs() > NEAR + 2.0 * moment.standard_error);
        let far = far.map(|(Want { text, moment: wanted, .. }, moment)| {
            format!("{text} is in {:.3} of π, not in {wanted} as wanted: tune for longer (--samples)", moment.value)
        });
        foreign.into_iter().chain(far).collect()
    }

    /// Samples of r and of π, for people: a pair is drawn with the same random numbers.
    fn samples(&mut self) -> Result<String> {
        let draw = Draw::new(self.options.common.seed, Purpose::User);
        // One of each beginning, before any comes twice.
        let host = self.corpus.contexts.as_ref();
        let contexts =
            host.map(|host| Contexts::new(host.space, &host.iter().collect::<Vec<_>>(), 1)?.upload(self.backend));
        let contexts = contexts.transpose()?;
        let before = shown(self.backend, &mut self.base, contexts.as_ref(), &self.corpus.vocab, draw)?;
        let after = shown(self.backend, &mut self.policy, contexts.as_ref(), &self.corpus.vocab, draw)?;
        let room = before.iter().map(|line| line.chars().count()).max().unwrap_or(0).max(28);
        let mut text = format!("\nsamples\n{:<room$}  π\n", "r");
        for (before, after) in before.iter().zip(&after) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{before:<room$}  {after}");
        }
        Ok(text)
    }
}

/// A few samples, one line each; "…" marks one that was cut at the longest length.
fn shown<B: Backend>(
    backend: &B,
    model: &mut impl Sampler<B>,
    contexts: Option<&Contexts<B>>,
    vocab: &Vocab,
    draw: Draw,
) -> Result<Vec<String>> {
    let batch = phase::sample(backend, model, contexts, SHOWN, draw)?.download(backend)?;
    let line = |row| -> Result<String> {
        let text = vocab.decode(batch.content(row))?.escape_debug().to_string();
        Ok(match text.as_str() {
            "" => "(empty)".into(),
            text if batch.is_cut(row) => format!("{text}…"),
            text => text.into(),
        })
    };
    (0..batch.rows).map(line).collect()
}
