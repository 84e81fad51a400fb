//! report.html: the whole run on one page that needs nothing else: tables, curves, times, options, warnings.

use std::fmt::Write;

use ebm_dpg::checkpoint::write_atomically;
use ebm_dpg::{Error, Result};

use super::report::{Output, Report};

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse}\
td,th{padding:.2em .9em .2em 0;text-align:right;font-weight:normal;font-variant-numeric:tabular-nums}\
td:first-child,th:first-child{text-align:left}th{color:#666;border-bottom:1px solid #ccc}\
svg{max-width:100%;height:auto}.bar{display:flex;height:1.6em}.bar div{color:#fff;padding:0 .5em;overflow:hidden;white-space:nowrap}\
.warning{background:#fff4e0;border-left:4px solid #e69f00;padding:.4em .8em;margin:.4em 0}";

/// Okabe and Ito's colours, as in the curves.
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// The SVG files to show, and what is above them.
const CURVES: [(&str, &str); 2] = [("base.svg", "Training the base"), ("tuning.svg", "Tuning the policy")];

/// Writes DIR/report.html; `names` are those of the features.
///
/// # Errors
/// [`Error::File`]; nothing half-written is left.
pub fn write(report: &Report, names: &[String], output: &mut Output) -> Result<()> {
    let title = escape(report.headline().trim());
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style>\n<h1>{title}</h1>\n"
    );
    for warning in &report.warnings {
        // Writing to a String cannot fail.
        let _ = writeln!(page, "<p class=\"warning\">{}</p>", escape(warning));
    }
    for (heading, rows) in report.tables(names) {
        let _ = writeln!(page, "<h2>{heading}</h2>\n{}", table(&rows));
    }
    for (curve, heading) in CURVES {
        let path = output.directory().join(curve);
        // A run with a loaded base has no curve of its training.
        if let Ok(svg) = std::fs::read_to_string(&path) {
            let _ = writeln!(page, "<h2>{}</h2>\n{}", escape(heading), svg[svg.find("<svg").unwrap_or(0)..].trim());
        }
    }
    page.push_str(&times(report));
    page.push_str("<h2>Options</h2>\n");
    page.push_str(&table(&options(&report.options)));
    page.push_str("</html>\n");
    write_atomically(&output.file("report.html"), page.as_bytes())
        .map_err(|error| Error::file(output.directory(), error))
}

/// Rows of cells, the first row as titles.
fn table(rows: &[Vec<String>]) -> String {
    let mut text = String::from("<table>\n");
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    for (at, row) in rows.iter().enumerate() {
        let tag = if at == 0 { "th" } else { "td" };
        let cells = (0..width).map(|column| row.get(column).map_or("", String::as_str));
        let cells: String = cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
        let _ = writeln!(text, "<tr>{cells}</tr>");
    }
    text + "</table>\n"
}

/// A bar of the phases, each as wide as it took; what is left is the judgement's, and reading and writing.
fn times(report: &Report) -> String {
    let seconds = report.seconds;
    let rest = (seconds.total - seconds.base - seconds.fit - seconds.tune).max(0.0);
    let phases = [("base", seconds.base), ("fit", seconds.fit), ("tune", seconds.tune), ("judge", rest)];
    let mut text = format!("<h2>Time, {:.1} s in all</h2>\n<div class=\"bar\">", seconds.total);
    for ((name, seconds), colour) in phases.into_iter().zip(COLOURS) {
        let _ = write!(
            text,
            "<div style=\"flex:{seconds:.3};background:{colour}\" title=\"{name} {seconds:.1} s\">{name} {seconds:.1} s</div>"
        );
    }
    text + "</div>\n"
}

fn options(options: &serde_json::Value) -> Vec<Vec<String>> {
    let shown = |value: &serde_json::Value| match value {
        serde_json::Value::Null => "–".into(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows =
        options.as_object().into_iter().flatten().map(|(name, value)| vec![name.replace('_', "-"), shown(value)]);
    [vec!["option".to_string(), "value".to_string()]].into_iter().chain(rows).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
