//! The command line of both examples: typed options, checked as a whole before any work starts.

use std::error::Error as _;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::{ContextKind, ErrorKind};
use clap::{Args, Parser, ValueEnum};
use ebm_dpg::backend::{Device, Opened};
use ebm_dpg::features::Feature;
use ebm_dpg::gradient::Divergence;
use ebm_dpg::tokens::Vocab;
use ebm_dpg::tune;
use ebm_dpg::{Error, Result};
use serde::{Serialize, Serializer};

use super::{config, experiment};

/// How the data of `motif` are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Every string contains the motif
    M,
    /// Nine in ten strings contain the motif
    Mam,
    /// Binary multiples of `--multiple`
    Mult,
}

/// How the coefficients λ are fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fit {
    /// Damped Newton on cached features
    Newton,
    /// The papers' gradient schedule
    Sgd,
}

/// Where the model's moments come from while λ is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moments {
    /// Rejection sampling from the base
    Rs,
    /// Self-normalised importance sampling from the base
    Snis,
    /// Self-normalised importance sampling from the guided proposal
    Guided,
}

/// How the policy is tuned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Distributional policy gradient, from a frozen proposal
    DpgOff,
    /// Distributional policy gradient, from the policy itself
    DpgOn,
    /// Maximum likelihood on exact samples of the target
    Distill,
    /// Trajectory balance: least squares of log Z + log π − log P
    Balance,
    /// Sub-trajectory balance: least squares of log P − log π between ended prefixes
    SubBalance,
    /// The reward log P/r under a KL penalty
    KlControl,
    /// The papers' foil: the potential as a reward
    Reinforce,
}

/// What draws the first training samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proposal {
    /// The base model
    Base,
    /// The base model guided by the features' automata
    Guided,
}

/// What the policy is tuned towards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The fitted energy-based model
    Ebm,
    /// The distribution that made the data
    True,
}

/// What the policy starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Random parameters
    Fresh,
    /// The base model's parameters
    Base,
}

/// When the policy replaces the proposal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// Lower KL(p‖·), by the paired test.
    Kl,
    /// Lower total variation.
    Tv,
    /// Lower cross-entropy on held-out data.
    Ce,
    /// Never.
    Never,
    /// After every so many updates.
    Every(u64),
}

impl FromStr for Swap {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match (text, text.strip_prefix("every:").map(u64::from_str)) {
            ("kl", _) => Ok(Swap::Kl),
            ("tv", _) => Ok(Swap::Tv),
            ("ce", _) => Ok(Swap::Ce),
            ("never", _) => Ok(Swap::Never),
            (_, Some(Ok(n))) if n > 0 => Ok(Swap::Every(n)),
            _ => Err(expected("kl, tv, ce, never or every:N with N of 1 or more", text)),
        }
    }
}

impl Display for Swap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Swap::Kl => f.write_str("kl"),
            Swap::Tv => f.write_str("tv"),
            Swap::Ce => f.write_str("ce"),
            Swap::Never => f.write_str("never"),
            Swap::Every(n) => write!(f, "every:{n}"),
        }
    }
}

impl Serialize for Swap {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// What is held against the weights of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Baseline {
    /// Nothing.
    None,
    /// What they are in the mean.
    Mean,
    /// The mean of the others.
    LeaveOneOut,
}

impl FromStr for Baseline {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "false" => Ok(Baseline::None),
            "true" => Ok(Baseline::Mean),
            "leave-one-out" => Ok(Baseline::LeaveOneOut),
            _ => Err(expected("true, false or leave-one-out", text)),
        }
    }
}

impl Serialize for Baseline {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Baseline::None => to.serialize_bool(false),
            Baseline::Mean => to.serialize_bool(true),
            Baseline::LeaveOneOut => to.serialize_str("leave-one-out"),
        }
    }
}

/// The divergence that DPG descends, by name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Descent(pub Divergence);

/// The names of divergences without a parameter.
const DIVERGENCES: [(&str, Divergence); 6] = [
    ("kl", Divergence::ForwardKl),
    ("reverse-kl", Divergence::ReverseKl),
    ("tv", Divergence::TotalVariation),
    ("js", Divergence::JensenShannon),
    ("chi2", Divergence::ForwardChiSquare),
    ("reverse-chi2", Divergence::ReverseChiSquare),
];

impl FromStr for Descent {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let named = DIVERGENCES.iter().find(|(name, _)| *name == text).map(|&(_, divergence)| divergence);
        let alpha = || text.strip_prefix("alpha:")?.parse().ok().filter(|x: &f64| x.is_finite() && *x != 1.0);
        let names = "kl, reverse-kl, tv, js, chi2, reverse-chi2 or alpha:X with X other than 1";
        named.or_else(|| alpha().map(Divergence::Alpha)).map(Descent).ok_or_else(|| expected(names, text))
    }
}

impl Display for Descent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.0, DIVERGENCES.iter().find(|(_, divergence)| *divergence == self.0)) {
            (_, Some((name, _))) => f.write_str(name),
            (Divergence::Alpha(alpha), _) => write!(f, "alpha:{alpha}"),
            (other, _) => write!(f, "{other:?}"),
        }
    }
}

impl Serialize for Descent {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Where the work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the best device for the job.
    Auto,
    /// On this one, or not at all.
    On(Device),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => Ok(Place::Auto),
            _ => text.parse().map(Place::On).map_err(|_: Error| expected("auto, cpu or cuda:N", text)),
        }
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Place::Auto => to.serialize_str("auto"),
            Place::On(Device::Cpu) => to.serialize_str("cpu"),
            Place::On(Device::Cuda(ordinal)) => to.collect_str(&format_args!("cuda:{ordinal}")),
            Place::On(other) => to.collect_str(&format_args!("{other:?}")),
        }
    }
}

/// The options of both examples. Their defaults differ: see [`Options::DEFAULTS`].
#[derive(Debug, Clone, Args, Serialize)]
pub struct Common {
    /// Longest sequence in symbols, its end not counted
    #[arg(long, value_name = "N", value_parser = length, allow_negative_numbers = true)]
    pub length: u32,
    /// How λ is fitted
    #[arg(long, value_enum, default_value = "newton")]
    pub fit: Fit,
    /// Where moments come from while λ is fitted
    #[arg(long, value_enum, default_value = "guided")]
    pub moments: Moments,
    /// How the policy is tuned
    #[arg(long, value_enum, default_value = "dpg-off")]
    pub method: Method,
    /// What draws the first training samples
    #[arg(long, value_enum, default_value = "guided")]
    pub proposal: Proposal,
    /// What the policy starts from
    #[arg(long, value_enum)]
    pub init: Init,
    /// When the policy replaces the proposal: by lower kl, tv or ce, never, or every:N updates
    #[arg(long, default_value = "kl", value_name = "RULE")]
    pub swap: Swap,
    /// The share of the draws that the first proposal keeps once the policy replaces it: all are weighed by the mixture of
    /// both, so what the policy forgets is not lost
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub defensive: Option<f64>,
    /// What DPG descends: kl, reverse-kl, tv, js, chi2, reverse-chi2 or alpha:X
    #[arg(long, default_value = "kl", value_name = "DIVERGENCE")]
    pub divergence: Descent,
    /// Hold a baseline against the weights, Ẑ·π/q or the mean reward; =leave-one-out (on policy) the other rows' mean,
    /// =false none
    #[arg(long, value_name = "BASELINE", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub baseline: Baseline,
    /// Cut weights to so many times their mean
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    pub clip_weights: Option<f64>,
    /// The penalty of KL-control; 1 where none is given
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    pub beta: Option<f64>,
    /// The λ of SubTB(λ) in sub-trajectory balance; 1 where none is given
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    pub sub_lambda: Option<f64>,
    /// Ended prefixes of a sequence in sub-trajectory balance; 2 where none is given
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub sub_prefixes: Option<usize>,
    /// A base model saved by an earlier run, instead of training one
    #[arg(long, value_name = "FILE")]
    #[serde(serialize_with = "is_given")]
    pub base: Option<PathBuf>,
    /// Hidden units of each LSTM layer
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub hidden: usize,
    /// LSTM layers
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub layers: usize,
    /// Sequences of one update
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub batch: usize,
    /// Adam's step size for the policy
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    pub learning_rate: f64,
    /// Training budget in sequences
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub samples: usize,
    /// auto, cpu or cuda:N
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: Place,
    /// Most sequences that validate, test, fit and judge: for trials on devices that are very slow
    #[arg(long, hide = true, value_name = "N", value_parser = count)]
    pub at_most: Option<usize>,
    /// Same seed, same report
    #[arg(long, value_name = "N", default_value = "1234", value_parser = seed, allow_negative_numbers = true)]
    pub seed: u64,
    /// Directory of the results
    #[arg(long, value_name = "DIR")]
    #[serde(skip)]
    pub out: PathBuf,
    /// Evaluations of the policy, of which there are twenty, from one checkpoint to the next
    #[arg(long, value_name = "N", value_parser = interval, allow_negative_numbers = true, default_value = "1")]
    #[serde(skip)]
    pub checkpoint_every: u64,
    /// Go on with the run that was interrupted in --out, given the same options
    #[arg(long)]
    #[serde(skip)]
    pub resume: bool,
    /// A TOML file of options, named as here without the dashes; the command line beats it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print what memory and time the run would take, and end
    #[arg(long)]
    #[serde(skip)]
    pub dry_run: bool,
}

/// The papers' experiment: binary strings that contain a motif.
#[derive(Debug, Clone, Parser, Serialize)]
#[command(
    name = "motif",
    about = "Strings with a motif: from few data to a tuned policy, with the exact truth beside it"
)]
pub struct Motif {
    /// The motif, a string of 0 and 1
    #[arg(long, value_name = "BITS", default_value = "10001011111000", value_parser = motif)]
    pub motif: String,
    /// How the data are made
    #[arg(long, value_enum, default_value = "m")]
    pub mode: Mode,
    /// Strings of training data
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true, default_value = "1000")]
    pub data_size: usize,
    /// The papers' flags: letters of M, v, s, e, then seven digits 0 or 1
    #[arg(long, value_name = "FLAGS", default_value = "1001111", value_parser = flags)]
    pub features: String,
    /// What the policy is tuned towards
    #[arg(long, value_enum, default_value = "ebm")]
    pub target: Target,
    /// The divisor of mode mult, 3 or 17
    #[arg(long, value_name = "N", default_value = "3", value_parser = multiple, allow_negative_numbers = true)]
    pub multiple: u32,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
}

/// Real text: wanted moments of patterns.
#[derive(Debug, Clone, Parser, Serialize)]
#[command(
    name = "text",
    about = "Tune a character model of a lines file until the wanted share of lines has a pattern"
)]
pub struct Text {
    /// One sequence a line; a list of English words where none is given
    #[serde(serialize_with = "is_given")]
    pub file: Option<PathBuf>,
    /// A literal, `^` and `$` anchoring it, or a /regular expression/, and the share of lines that shall have it; may be
    /// repeated
    #[arg(long = "want", value_name = "PATTERN=MOMENT", default_values = ["ing=.5", "^re=.2"])]
    #[serde(rename = "want")]
    pub wants: Vec<Want>,
    /// Beginnings of lines, one a line of this file: π then continues these, and the wanted shares are means over them
    #[arg(long, value_name = "FILE")]
    #[serde(serialize_with = "is_given")]
    pub contexts: Option<PathBuf>,
    /// Lines of training data; all of the file where none is given
    #[arg(long, value_name = "N", value_parser = count, allow_negative_numbers = true)]
    pub data_size: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
}

impl Text {
    /// The patterns as given, anchors included.
    pub fn patterns(&self) -> Vec<String> {
        self.wants.iter().map(|want| want.text.clone()).collect()
    }

    /// The share wanted of each.
    pub fn moments(&self) -> Vec<f64> {
        self.wants.iter().map(|want| want.moment).collect()
    }
}

/// A command line of an example.
pub trait Options: Parser + Serialize {
    /// The defaults that differ between the examples, by option.
    const DEFAULTS: &[(&str, &str)];

    /// What both examples have.
    fn common(&self) -> &Common;

    /// Refuses what no single option shows to be wrong, then opens the device and notes which it is.
    ///
    /// # Errors
    /// [`Error::Argument`]: options that do not fit together, or this machine.
    fn open(&mut self) -> Result<Opened>;

    /// Options from the words of a command line, the program's name first, and their device.
    fn read<W: Into<OsString> + Clone>(
        words: impl IntoIterator<Item = W>,
    ) -> std::result::Result<(Self, Opened), Stop> {
        let command = Self::DEFAULTS.iter().fold(Self::command(), |command, &(name, value)| {
            command.mut_arg(name, |option| option.required(false).default_value(value))
        });
        let words = config::expand::<Self>(words.into_iter().map(Into::into).collect(), &command)?;
        let mut options = command.try_get_matches_from(words).and_then(|matches| Self::from_arg_matches(&matches))?;
        let device = options.open().map_err(|error| Stop::Bad(error.to_string()))?;
        Ok((options, device))
    }

    /// Every option with its effective value, for the report. Paths are left out or shown as given or not.
    ///
    /// # Errors
    /// None in practice: the options hold plain values.
    fn as_json(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self).map_err(|error| Error::no_answer("options", error))
    }
}

impl Options for Motif {
    const DEFAULTS: &[(&str, &str)] = &[
        ("length", "30"),
        ("init", "fresh"),
        ("baseline", "false"),
        ("hidden", "64"),
        ("layers", "2"),
        ("batch", "128"),
        ("learning_rate", "0.01"),
        ("samples", "60000"),
        ("out", "out/motif"),
    ];

    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&mut self) -> Result<Opened> {
        if self.motif.len() > self.common.length as usize {
            let longest = format!("at most {} bits (--length)", self.common.length);
            return Err(Error::argument("--motif", longest, format!("{} bits", self.motif.len())));
        }
        if self.target == Target::True {
            self.stay_on_cpu()?;
        }
        self.common.open(self.data_size)
    }
}

impl Motif {
    /// The true process is a chain, which scores and samples on the CPU alone.
    fn stay_on_cpu(&mut self) -> Result<()> {
        match self.common.device {
            Place::On(Device::Cuda(ordinal)) => {
                Err(Error::argument("--target true", "--device cpu", format!("--device cuda:{ordinal}")))
            }
            _ => {
                self.common.device = Place::On(Device::Cpu);
                Ok(())
            }
        }
    }
}

impl Options for Text {
    const DEFAULTS: &[(&str, &str)] = &[
        ("length", "14"),
        ("init", "base"),
        ("baseline", "true"),
        ("hidden", "128"),
        ("layers", "1"),
        ("batch", "500"),
        ("learning_rate", "0.003"),
        ("samples", "160000"),
        ("out", "out/text"),
    ];

    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&mut self) -> Result<Opened> {
        let longest = self.common.length as usize;
        for want in &self.wants {
            let symbols = want.literal.chars().count();
            if symbols > longest && !want.is_regex() {
                let expected = format!("at most {longest} symbols (--length)");
                return Err(Error::argument(format!("--want {}", want.text.escape_debug()), expected, symbols));
            }
        }
        let pairs = || self.wants.iter().enumerate().flat_map(|(at, a)| self.wants[..at].iter().map(move |b| (a, b)));
        for (a, b) in pairs() {
            if a.text == b.text {
                return Err(Error::argument("--want", "each pattern once", format!("{} twice", a.text)));
            }
            for (narrow, wide) in [(a, b), (b, a)] {
                if narrow.implies(wide) && narrow.moment > wide.moment {
                    let expected = format!("at most {} for {}, which implies {}", wide.moment, narrow.text, wide.text);
                    return Err(Error::argument("--want", expected, narrow.moment));
                }
            }
        }
        if self.contexts.is_some() && (self.common.fit == Fit::Sgd || self.common.moments == Moments::Rs) {
            let expected = "--fit newton, and --moments snis or guided";
            return Err(Error::argument(
                "--contexts",
                expected,
                format!("{:?} and {:?}", self.common.fit, self.common.moments),
            ));
        }
        self.common.open(self.data_size.unwrap_or(0))
    }
}

impl Common {
    fn open(&mut self, data_size: usize) -> Result<Opened> {
        // Two symbols at least, and the three special tokens.
        self.check_memory(5, data_size)?;
        let of_others = [
            ("--beta", self.beta.is_some(), Method::KlControl),
            ("--sub-lambda", self.sub_lambda.is_some(), Method::SubBalance),
            ("--sub-prefixes", self.sub_prefixes.is_some(), Method::SubBalance),
        ];
        if let Some((name, _, method)) = of_others.into_iter().find(|&(_, given, of)| given && of != self.method) {
            let shown = |method: Method| format!("--method {}", serde_json::json!(method).as_str().unwrap_or_default());
            return Err(Error::argument(name, shown(method), shown(self.method)));
        }
        experiment::tune_options(self).check()?;
        let device = match self.device {
            Place::Auto => Device::auto(),
            Place::On(device) => device,
        };
        self.device = Place::On(device);
        device.open()
    }

    /// So many sequences, or as many as `--at-most` grants.
    pub fn bounded(&self, sequences: usize) -> usize {
        self.at_most.map_or(sequences, |most| sequences.min(most))
    }

    /// Rows that an update has for each of its sequences.
    pub fn rows_of_a_sequence(&self) -> usize {
        match experiment::tune_options(self).method {
            tune::Method::SubTrajectoryBalance(how) => how.prefixes.min(self.length as usize + 2),
            _ => 1,
        }
    }

    /// `Ok` where models, batch and data fit in the machine's memory; `text` asks again once it knows its vocabulary.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the options that want most.
    pub fn check_memory(&self, vocab: usize, data_size: usize) -> Result<()> {
        let (wanted, room) = (self.bytes(vocab, data_size), available_memory());
        if wanted.iter().fold(0u128, |sum, &(_, bytes)| sum.saturating_add(bytes)) <= room {
            return Ok(());
        }
        let (what, bytes) = wanted.into_iter().max_by_key(|&(_, bytes)| bytes).unwrap_or_default();
        let expected = format!("a job that fits in the {} free now", gigabytes(room));
        Err(Error::argument(what, expected, gigabytes(bytes)))
    }

    /// Upper bounds of the bytes of a run, saturating, each with the options that make it.
    pub fn bytes(&self, vocab: usize, data_size: usize) -> [(&'static str, u128); 4] {
        let product = |factors: &[usize]| factors.iter().fold(1u128, |all, &n| all.saturating_mul(n as u128));
        let (layers, hidden, steps) = (self.layers, self.hidden, self.length as usize + 1);
        // Input and recurrent weights of four gates a layer; V rows for the first layer's look-up and for the head.
        let parameters = product(&[8, layers, hidden, hidden]).saturating_add(product(&[5, vocab, hidden]));
        // r, π and q, each with a gradient and two Adam moments.
        let models = parameters.saturating_mul(3 * 4 * 4);
        // Four gates, the cell and the output of each layer, and the logits.
        let units = product(&[6, layers, hidden]).saturating_add(vocab as u128);
        let activations = product(&[4, self.batch, self.rows_of_a_sequence(), steps]).saturating_mul(units);
        // Log-probs, weights and features beside one byte or more a token.
        let cache = product(&[self.samples, 64 + steps]);
        [
            ("--hidden, --layers", models),
            ("--batch, --length, --hidden, --layers", activations),
            ("--data-size, --length", product(&[8, data_size, steps])),
            ("--samples, --length", cache),
        ]
    }
}

pub fn gigabytes(bytes: u128) -> String {
    let gigabytes = bytes as f64 / 1e9;
    if gigabytes < 1e6 { format!("{gigabytes:.1} GB") } else { format!("{gigabytes:.1e} GB") }
}

/// Bytes that can be had now: the kernel's estimate and the container's limit where there are any.
pub fn available_memory() -> u128 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let estimate = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse().ok())
        .map_or(u128::from(u64::MAX >> 16), |kilobytes: u128| kilobytes * 1024);
    let limit = read("/sys/fs/cgroup/memory.max").trim().parse().unwrap_or(u128::MAX);
    estimate.min(limit)
}

/// A wanted moment: the share of sequences that have a pattern.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Want {
    /// The pattern as given, anchors included.
    #[serde(rename = "pattern")]
    pub text: String,
    /// The literal without anchors, or the regular expression without its slashes.
    #[serde(skip)]
    pub literal: String,
    /// The share.
    pub moment: f64,
}

impl Want {
    /// Whether the pattern is a regular expression, written between slashes.
    pub fn is_regex(&self) -> bool {
        self.text.strip_prefix('/').is_some_and(|rest| rest.len() > 1 && rest.ends_with('/'))
    }

    /// Whether a sequence must begin with the literal.
    pub fn at_start(&self) -> bool {
        self.text.starts_with('^')
    }

    /// Whether a sequence must end with the literal.
    pub fn at_end(&self) -> bool {
        self.text.ends_with('$')
    }

    /// The feature of this pattern over the symbols of `vocab`.
    pub fn feature(&self, vocab: &Vocab) -> Result<Feature> {
        if self.is_regex() {
            return Ok(Feature::Regex(self.literal.clone()));
        }
        let tokens = vocab.encode(&self.literal)?;
        Ok(match (self.at_start(), self.at_end()) {
            (false, false) => Feature::Contains(tokens),
            (true, false) => Feature::StartsWith(tokens),
            (false, true) => Feature::EndsWith(tokens),
            (true, true) => Feature::Equals(tokens),
        })
    }

    /// Whether every sequence that has this pattern has the `wide` one.
    fn implies(&self, wide: &Want) -> bool {
        let (literal, part) = (self.literal.as_str(), wide.literal.as_str());
        if self.is_regex() || wide.is_regex() {
            return false;
        }
        match (wide.at_start(), wide.at_end()) {
            (false, false) => literal.contains(part),
            (true, false) => self.at_start() && literal.starts_with(part),
            (false, true) => self.at_end() && literal.ends_with(part),
            (true, true) => self.at_start() && self.at_end() && literal == part,
        }
    }
}

impl FromStr for Want {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let Some((pattern, moment)) = text.rsplit_once('=') else {
            return Err(expected("PATTERN=MOMENT, such as ing=.5", text));
        };
        let regex = pattern.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        let literal = regex.filter(|regex| !regex.is_empty()).unwrap_or_else(|| {
            let literal = pattern.strip_prefix('^').unwrap_or(pattern);
            literal.strip_suffix('$').unwrap_or(literal)
        });
        if literal.is_empty() {
            return Err(expected("a pattern of one symbol or more before =", text));
        }
        match moment.parse() {
            Ok(moment) if (0.0..=1.0).contains(&moment) => {
                Ok(Want { text: pattern.into(), literal: literal.into(), moment })
            }
            _ => Err(expected("a moment in [0, 1] after =", text)),
        }
    }
}

/// Why no options came of a command line.
#[derive(Debug)]
pub enum Stop {
    /// Help or version was asked for.
    Help(String),
    /// What was wrong, in one line.
    Bad(String),
}

impl From<clap::Error> for Stop {
    /// The parser's errors, with all they say in one line.
    fn from(error: clap::Error) -> Self {
        let context = |kind| error.get(kind).map(|value| value.to_string()).unwrap_or_default();
        // "--batch <N>" names the option and its value.
        let option = context(ContextKind::InvalidArg);
        let option = option.split(' ').next().unwrap_or_default();
        let got = match context(ContextKind::InvalidValue) {
            value if value.is_empty() => "nothing".to_string(),
            value => value.escape_debug().to_string(),
        };
        Stop::Bad(match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return Stop::Help(error.to_string()),
            ErrorKind::UnknownArgument => match context(ContextKind::SuggestedArg) {
                similar if similar.is_empty() => format!("{option}: expected an option of --help, got an unknown one"),
                similar => format!("{option}: expected an option of --help such as {similar}, got an unknown one"),
            },
            ErrorKind::InvalidUtf8 => "options: expected UTF-8, got other bytes".into(),
            ErrorKind::TooManyValues => format!("{option}: expected no value, got {got}"),
            ErrorKind::ArgumentConflict => format!("{option}: expected once, got twice"),
            ErrorKind::InvalidValue => match context(ContextKind::ValidValue) {
                values if values.is_empty() => format!("{option}: expected a value, got {got}"),
                values => format!("{option}: expected one of {values}, got {got}"),
            },
            ErrorKind::ValueValidation => match error.source() {
                Some(reason) => format!("{option}: {reason}"),
                None => format!("{option}: expected another value, got {got}"),
            },
            _ => {
                let text = error.to_string();
                text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string()
            }
        })
    }
}

/// "expected …, got …", in one line whatever was got.
fn expected(what: impl Display, got: &str) -> String {
    format!("expected {what}, got {}", escaped(got))
}

/// A value in one line, whatever it is.
pub fn escaped(value: &str) -> String {
    if value.is_empty() { "nothing".into() } else { value.escape_debug().to_string() }
}

fn count(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| expected("a count of 1 or more", text))
}

fn interval(text: &str) -> std::result::Result<u64, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| expected("a count of 1 or more", text))
}

/// A length leaves room for EOS in the 32 bits of a position.
fn length(text: &str) -> std::result::Result<u32, String> {
    let fits = |n: &u32| (1..u32::MAX).contains(n);
    text.parse().ok().filter(fits).ok_or_else(|| expected(format!("a length of 1 to {}", u32::MAX - 1), text))
}

fn seed(text: &str) -> std::result::Result<u64, String> {
    text.parse().map_err(|_| expected("a whole number of 0 or more", text))
}

/// Positive, finite, and still so in the f32 that the optimiser computes with.
fn positive(text: &str) -> std::result::Result<f64, String> {
    let fits = |&x: &f64| x as f32 > 0.0 && (x as f32).is_finite();
    text.parse().ok().filter(fits).ok_or_else(|| expected("a positive finite number", text))
}

fn share(text: &str) -> std::result::Result<f64, String> {
    text.parse().ok().filter(|x| (0.0..1.0).contains(x)).ok_or_else(|| expected("0 or more and below 1", text))
}

fn multiple(text: &str) -> std::result::Result<u32, String> {
    text.parse().ok().filter(|n| [3, 17].contains(n)).ok_or_else(|| expected("3 or 17", text))
}

fn motif(text: &str) -> std::result::Result<String, String> {
    let bits = !text.is_empty() && text.bytes().all(|b| b == b'0' || b == b'1');
    if bits { Ok(text.into()) } else { Err(expected("one or more symbols of 0 and 1", text)) }
}

fn flags(text: &str) -> std::result::Result<String, String> {
    let digits = text.trim_start_matches(['M', 'v', 's', 'e']);
    let fits = digits.len() == 7 && digits.bytes().all(|b| b == b'0' || b == b'1');
    if fits && text != "0000000" {
        Ok(text.into())
    } else {
        Err(expected("letters of M, v, s, e, then seven digits 0 or 1, not all of them 0", text))
    }
}

/// A report names no path, only whether one was given.
fn is_given<S: Serializer>(path: &Option<PathBuf>, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_bool(path.is_some())
}
