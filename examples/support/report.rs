//! What a run leaves behind: report.json, and a table for people.

use std::fmt::Write;
use std::fs::File;
use std::path::{Path, PathBuf};

use ebm_dpg::checkpoint::write_atomically;
use ebm_dpg::{Error, Result};
use serde::Serialize;

use super::options::{Method, Mode};
use super::resume::Run;

/// report.json. A number that is undefined is NaN here and null there. No path, date or rate outside `seconds`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `motif` only.
    pub motif: Option<String>,
    /// `motif` only.
    pub mode: Option<Mode>,
    pub length: u32,
    pub data_size: usize,
    pub features: Features,
    pub method: Method,
    pub seed: u64,
    pub options: serde_json::Value,
    pub warnings: Vec<String>,
    /// Of the distribution that made the data, in nats over length + 1 tokens.
    pub entropy_per_token: f64,
    pub ce: CrossEntropies,
    pub motif_frequency: Frequencies,
    /// One coefficient a feature; NaN where the feature is a hard constraint or was dropped.
    pub lambda: Vec<f64>,
    pub moments: MomentTable,
    pub log_z: Estimate,
    pub kl_target_policy: Estimate,
    pub tv_target_policy: Estimate,
    /// `text` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_policy_base: Option<Estimate>,
    pub ess: f64,
    pub samples_used: u64,
    pub proposal_swaps: u64,
    /// `text --contexts` only: each beginning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contexts: Vec<ContextReport>,
    pub seconds: Seconds,
}

/// One beginning that π continues.
#[derive(Debug, Clone, Serialize)]
pub struct ContextReport {
    pub text: String,
    pub log_z: Estimate,
    pub kl_target_policy: Estimate,
}

/// What the features are.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Features {
    /// The papers' flag string.
    Flags(String),
    /// Patterns in the order of the options.
    Patterns(Vec<String>),
}

/// Nats per token on test data.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CrossEntropies {
    pub r: f64,
    pub potential: f64,
    pub policy: f64,
}

/// Share of samples that contain the motif.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Frequencies {
    pub r: f64,
    pub policy: f64,
}

/// One moment a feature, in the order of the features.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum MomentTable {
    Motif { data: Vec<f64>, potential: Vec<f64> },
    Text { wanted: Vec<f64>, base: Vec<f64>, potential: Vec<f64>, policy: Vec<f64> },
}

/// A number and how far to trust it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Estimate {
    pub estimate: f64,
    pub standard_error: f64,
}

/// Wall-clock time of each phase.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Seconds {
    pub base: f64,
    pub fit: f64,
    pub tune: f64,
    pub total: f64,
}

/// The directory of a run's results.
#[derive(Debug)]
pub struct Output {
    directory: PathBuf,
    files: Vec<PathBuf>,
    /// What run they are of, once it has begun.
    pub(super) run: Option<Run>,
    /// Open as long as the directory is this process's.
    pub(super) lock: Option<File>,
}

impl Output {
    /// Creates the directory and makes sure, before any work starts, that files can be written there.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn create(directory: &Path) -> Result<Self> {
        let bad = |error: std::io::Error| {
            Error::file(directory, format!("expected an output directory that can be written, got: {error}"))
        };
        std::fs::create_dir_all(directory).map_err(bad)?;
        // One name for all processes: what is left of one that was killed here, the next one removes.
        let probe = directory.join(".probe-0");
        std::fs::write(&probe, b"probe").and_then(|()| std::fs::remove_file(&probe)).map_err(bad)?;
        Ok(Output { directory: directory.into(), files: Vec::new(), run: None, lock: None })
    }

    /// Where the files go.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path of a file to write, which the table will list.
    pub fn file(&mut self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        if !self.files.contains(&path) {
            self.files.push(path.clone());
        }
        path
    }
}

impl Report {
    /// Writes DIR/report.json.
    ///
    /// # Errors
    /// [`Error::File`]; nothing half-written is left.
    pub fn write(&self, output: &mut Output) -> Result<()> {
        let path = output.file("report.json");
        let mut json = serde_json::to_vec_pretty(self).map_err(|error| Error::file(&path, error))?;
        json.push(b'\n');
        write_atomically(&path, &json)
    }

    /// The report for people; `names` are those of the features.
    pub fn table(&self, names: &[String], output: &Output) -> String {
        let mut text = self.headline();
        for (_, rows) in &self.tables(names) {
            text.push_str(&align(rows));
        }
        let Seconds { base, fit, tune, total } = self.seconds;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\nseconds   base {base:.1}   fit {fit:.1}   tune {tune:.1}   total {total:.1}");
        for (at, file) in output.files.iter().enumerate() {
            let _ = writeln!(text, "{:<10}{}", if at == 0 { "files" } else { "" }, file.display());
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {warning}");
        }
        text
    }

    /// Tables with their headings; the first row of each has the titles.
    pub fn tables(&self, names: &[String]) -> Vec<(&'static str, Vec<Vec<String>>)> {
        let mut tables =
            vec![("Quality", self.quality()), ("Moments", self.moment_rows(names)), ("Estimates", self.estimates())];
        if !self.contexts.is_empty() {
            tables.push(("Contexts", self.context_rows()));
        }
        tables
    }

    /// What was done, in a line.
    pub fn headline(&self) -> String {
        let method = serde_json::to_value(self.method).unwrap_or_default();
        let method = method.as_str().unwrap_or_default();
        let what = match &self.motif {
            Some(motif) => format!("motif {motif}"),
            None => "text".into(),
        };
        let (length, size, seed) = (self.length, self.data_size, self.seed);
        format!("\n{what}, length {length}, {size} training sequences, method {method}, seed {seed}\n")
    }

    fn quality(&self) -> Vec<Vec<String>> {
        let CrossEntropies { r, potential, policy } = self.ce;
        let (mut titles, mut values) = (vec!["r", "P_λ", "π"], vec![r, potential, policy]);
        // Nobody knows the entropy of real text.
        if !self.entropy_per_token.is_nan() {
            titles.push("entropy");
            values.push(self.entropy_per_token);
        }
        let values = values.into_iter().map(number);
        let mut rows = vec![row("", titles), row("cross-entropy, nats per token", values)];
        if self.motif.is_some() {
            let Frequencies { r, policy } = self.motif_frequency;
            rows.push(row("motif frequency", [number(r), String::new(), number(policy), String::new()]));
        }
        rows
    }

    fn moment_rows(&self, names: &[String]) -> Vec<Vec<String>> {
        let (titles, columns): (&[&str], Vec<&Vec<f64>>) = match &self.moments {
            MomentTable::Motif { data, potential } => (&["data", "P_λ", "λ"], vec![data, potential, &self.lambda]),
            MomentTable::Text { wanted, base, potential, policy } => {
                (&["wanted", "r", "P_λ", "π", "λ"], vec![wanted, base, potential, policy, &self.lambda])
            }
        };
        let mut rows = vec![row("moments", titles.iter().copied())];
        for (at, name) in names.iter().enumerate() {
            rows.push(row(name, columns.iter().map(|column| column.get(at).copied().map_or(String::new(), number))));
        }
        rows
    }

    fn context_rows(&self) -> Vec<Vec<String>> {
        let mut rows = vec![row("contexts", ["log Z", "±", "KL(p‖π)", "±"])];
        for ContextReport { text, log_z, kl_target_policy: kl } in &self.contexts {
            let cells = [log_z.estimate, log_z.standard_error, kl.estimate, kl.standard_error];
            rows.push(row(&text.escape_debug().to_string(), cells.map(number)));
        }
        rows
    }

    fn estimates(&self) -> Vec<Vec<String>> {
        let mut rows = vec![row("estimates", ["", "±"])];
        let named = [
            ("log Z", Some(self.log_z)),
            ("KL(p‖π)", Some(self.kl_target_policy)),
            ("TV(p, π)", Some(self.tv_target_policy)),
            ("KL(π‖r)", self.kl_policy_base),
        ];
        for (name, estimate) in named.into_iter().filter_map(|(name, estimate)| Some((name, estimate?))) {
            rows.push(row(name, [number(estimate.estimate), number(estimate.standard_error)]));
        }
        rows.push(row("effective sample size", [format!("{:.0}", self.ess)]));
        rows.push(row("sequences used", [self.samples_used.to_string()]));
        rows.push(row("proposal swaps", [self.proposal_swaps.to_string()]));
        rows
    }
}

fn row<S: Into<String>>(name: &str, cells: impl IntoIterator<Item = S>) -> Vec<String> {
    std::iter::once(name.to_string()).chain(cells.into_iter().map(Into::into)).collect()
}

/// Four decimals, or four digits where those say nothing.
fn number(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "–".into(),
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.1e}"),
        _ => format!("{value:.4}"),
    }
}

/// Names to the left, numbers to the right.
fn align(rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let mut text = String::from("\n");
    for row in rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            // All tables share a width of names and a least width of numbers, so that their columns line up.
            let least = if at == 0 { 30 } else { 10 };
            let room = width(at).unwrap_or(0).max(least);
            line.push_str(&if at == 0 { format!("{cell:<room$}") } else { format!(" {cell:>room$}") });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
