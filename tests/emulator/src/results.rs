//! What a run of the GPU bundle measured, as one table: ours, the peers on the same GPU, and the floors.

use serde_json::Value;

/// Bytes a second that an H200 copies, and operations a second of bf16 products on random data, both measured; floors of
/// peers that measured their own machine are taken instead where there are some.
const COPY: f64 = 4.3e12;
const PRODUCT: f64 = 790e12;

/// One thing that was measured.
struct Row {
    what: String,
    seconds: f64,
    /// No version of it runs much faster, in seconds.
    floor: f64,
    /// Peers by name, with their seconds.
    peers: Vec<(String, f64)>,
}

/// The table in Markdown, of what `results.json` holds: a line for each peer of each thing that was measured.
pub fn table(results: &Value) -> String {
    let rows = [draws(results), steps(results), logits(results), features(results), linear(results)].concat_rows();
    let mut text = format!(
        "{}, driver {}, commit {}, {}\n\n| what | ours, ms | floor, ms | ours / floor | peer | peer, ms | peer / ours |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
        word(results, "gpu"),
        word(results, "driver"),
        word(results, "commit"),
        word(results, "date"),
    );
    for row in rows {
        let Row { what, seconds, floor, peers } = row;
        let ours = format!("| {what} | {:.3} | {:.3} | {:.2} |", seconds * 1e3, floor * 1e3, seconds / floor);
        if peers.is_empty() {
            text += &format!("{ours} – | – | – |\n");
        }
        for (peer, theirs) in peers {
            text += &format!("{ours} {peer} | {:.3} | {:.2} |\n", theirs * 1e3, theirs / seconds);
        }
    }
    text
}

trait ConcatRows {
    fn concat_rows(self) -> Vec<Row>;
}
impl<const N: usize> ConcatRows for [Vec<Row>; N] {
    fn concat_rows(self) -> Vec<Row> {
        self.into_iter().flatten().collect()
    }
}

fn word<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or("unknown")
}

fn list<'a>(results: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    results[key].as_array().into_iter().flatten()
}

/// A peer's program as a name: PyTorch's version, and the form it was run in.
fn peer_name(line: &Value) -> String {
    let forms = ["graph", "compile"].into_iter().filter(|form| line[*form] == true);
    let name = line["program"].as_str().or(line["peer"].as_str()).unwrap_or("unknown");
    let form = line["form"].as_str().into_iter();
    [name].into_iter().chain(forms).chain(form).collect::<Vec<_>>().join(", ")
}

/// The lines of peers that have what is wanted, and the seconds under `path` of each.
fn peers_where<'a>(results: &'a Value, seconds: &str, wanted: &[(&str, Value)]) -> Vec<(String, f64)> {
    let fits = |line: &&'a Value| wanted.iter().all(|(key, value)| line[*key] == *value);
    let named = |line: &Value| Some((peer_name(line), line.pointer(seconds)?.as_f64()?));
    list(results, "peers").filter(fits).filter_map(named).collect()
}

/// Multiplications and additions of one sequence through an LSTM with a one-hot input.
fn lstm_operations(line: &Value) -> f64 {
    let number = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
    let (hidden, layers, length, vocab) = (number("hidden"), number("layers"), number("length"), number("vocab"));
    2.0 * length * (4.0 * hidden * hidden * (2.0 * layers - 1.0) + hidden * vocab)
}

/// Sequences drawn, by precision, with the weights shared or not.
fn draws(results: &Value) -> Vec<Row> {
    let Some(line) = list(results, "programs").find(|line| line["program"] == "draw") else { return Vec::new() };
    let batch = line["batch"].as_f64().unwrap_or(f64::NAN);
    let wanted = [("sample_only", true.into()), ("batch", line["batch"].clone()), ("vocab", line["vocab"].clone())];
    let row = |(name, seconds): (&String, &Value)| {
        let products = if name.starts_with("split") { 3.0 } else { 1.0 };
        Some(Row {
            what: format!("draw {batch} sequences, {name}"),
            seconds: seconds.as_f64()?,
            floor: products * batch * lstm_operations(line) / PRODUCT,
            peers: peers_where(results, "/seconds/total", &wanted),
        })
    };
    let times = line["seconds"].as_object().into_iter().flatten();
    times.filter(|(name, _)| *name != "half_equals_split").filter_map(row).collect()
}

/// Whole steps, recorded; five passes of the network in three products each.
fn steps(results: &Value) -> Vec<Row> {
    let row = |line: &Value| {
        let wanted =
            [("sample_only", false.into()), ("batch", line["batch"].clone()), ("vocab", line["vocab"].clone())];
        Some(Row {
            what: format!("DPG step of {} sequences", line["batch"]),
            seconds: line.pointer("/seconds/recorded")?.as_f64()?,
            floor: 15.0 * line["batch"].as_f64()? * lstm_operations(line) / PRODUCT,
            peers: peers_where(results, "/seconds/total", &wanted),
        })
    };
    list(results, "programs").filter_map(row).collect()
}

/// What criterion measured: `group/function/parameter` in nanoseconds.
fn measured<'a>(results: &'a Value, group: &str, device: &str) -> Vec<(String, &'a str, f64)> {
    let prefix = format!("{group}/{device}");
    let named = |(name, nanoseconds): (&'a String, &Value)| {
        let (function, parameter) = name.strip_prefix(&prefix)?.split_once('/')?;
        Some((function.trim_start_matches('_').to_string(), parameter, nanoseconds.as_f64()? * 1e-9))
    };
    results["median_ns"].as_object().into_iter().flatten().filter_map(named).collect()
}

/// Log-probs of logits, and their gradient in place: read once, and for the gradient written once.
fn logits(results: &Value) -> Vec<Row> {
    let mut rows = Vec::new();
    for (group, pass, moved) in [("log_prob", "forward", 1.0), ("log_prob_gradient", "gradient", 2.0)] {
        for (scalar, shape, seconds) in measured(results, group, "cuda") {
            let Some((count, vocab)) = shape.split_once('x') else { continue };
            let (Ok(count), Ok(vocab)) = (count.parse::<u64>(), vocab.parse::<u64>()) else { continue };
            let (dtype, bytes) = if scalar == "f32" { ("float32", 4.0) } else { ("bfloat16", 2.0) };
            let torch =
                [("rows", count.into()), ("vocab", vocab.into()), ("dtype", dtype.into()), ("pass", pass.into())];
            let others = [("operation", group.into()), ("shape", shape.into()), ("dtype", dtype.into())];
            let peers = [peers_where(results, "/seconds", &torch), peers_where(results, "/seconds", &others)].concat();
            let floor = moved * bytes * count as f64 * vocab as f64 / COPY;
            rows.push(Row { what: format!("{group} {shape} {scalar}"), seconds, floor, peers });
        }
    }
    rows
}

/// Sixteen patterns: tokens of 4 or 2 bytes read once, a value of 4 bytes written for each.
fn features(results: &Value) -> Vec<Row> {
    let row = |(kind, shape, seconds): (String, &str, f64)| {
        let (count, length) = shape.split_once('x')?;
        let (count, length) = (count.parse::<f64>().ok()?, length.parse::<f64>().ok()?);
        let token = if kind == "u16" { 2.0 } else { 4.0 };
        let peers =
            peers_where(results, "/seconds", &[("rows", (count as u64).into()), ("length", (length as u64).into())]);
        let floor = count * (token * length + 4.0 * 16.0 + 4.0) / COPY;
        Some(Row { what: format!("features_16 {shape} {kind}"), seconds, floor, peers })
    };
    measured(results, "features_16", "cuda").into_iter().filter_map(row).collect()
}

/// The linear head: one product for log-probs, three for gradients.
fn linear(results: &Value) -> Vec<Row> {
    let row = |(what, shape, seconds): (String, &str, f64)| {
        let sizes: Vec<f64> = shape.split('x').filter_map(|size| size.parse().ok()).collect();
        let what = what.strip_prefix("bf16_")?.to_string();
        let products = if what == "log_prob" { 1.0 } else { 3.0 };
        let operation = format!("linear_{what}");
        let peers = peers_where(results, "/seconds", &[("operation", operation.into()), ("shape", shape.into())]);
        let floor = products * 2.0 * sizes.iter().product::<f64>() / PRODUCT;
        Some(Row { what: format!("linear {what} {shape} bf16"), seconds, floor, peers })
    };
    measured(results, "linear", "cuda").into_iter().filter_map(row).collect()
}
