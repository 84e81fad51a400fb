//! Sequences drawn by an LSTM, from the first token to the last, with their log-probs. Prints one JSON line: the median
//! seconds of the repeats after two unmeasured ones, on a GPU by precision, and the share of sequences that 16-bit and split
//! precision draw alike. The PyTorch side is
//! `benches/peers/dpg_torch.py --sample-only`.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use ebm_dpg::backend::{Backend, Device, Opened};
use ebm_dpg::models::{Lstm, LstmShape, Sampler};
use ebm_dpg::rng::{Draw, Purpose};
use ebm_dpg::tokens::{Batch, Space};
use ebm_dpg::{Error, Result};
use serde_json::{Value, json};

/// The first makes the model's workspaces, the second finds them.
const WARM_UP: usize = 2;

/// Times the drawing of sequences.
#[derive(Parser)]
struct Options {
    /// Sequences.
    #[arg(long, default_value = "65536", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch: usize,
    /// Units per LSTM layer.
    #[arg(long, default_value = "200", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    hidden: usize,
    /// LSTM layers.
    #[arg(long, default_value = "2", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    layers: usize,
    /// Tokens of each sequence.
    #[arg(long, default_value = "30", value_parser = clap::value_parser!(u32).range(1..))]
    length: u32,
    /// Outputs of the model.
    #[arg(long, default_value = "30", value_parser = clap::value_parser!(u32).range(2..1 << 31))]
    vocab: u32,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Measured draws of the batch.
    #[arg(long, default_value = "7", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    repeats: usize,
}

impl Options {
    /// Every sequence has full length: what ends one may not be emitted.
    fn lstm(&self) -> Result<Lstm> {
        let vocab = self.vocab;
        let space = Space { vocab: vocab + 1, bos: vocab, eos: vocab, pad: vocab, longest: self.length };
        Lstm::new(space, LstmShape { layers: self.layers, hidden: self.hidden, dropout: 0.0 }, 0)
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let measured = options.device.open().and_then(|opened| match opened {
        Opened::Cpu(cpu) => {
            Ok(json!({ "f32": options.lstm().and_then(|mut lstm| drawn(&cpu, &mut lstm, &options))?.1 }))
        }
        #[cfg(feature = "cuda")]
        Opened::Cuda(gpu) => by_precision(&gpu, &options),
        _ => Err(Error::argument("--device", "cpu or cuda:N", format!("{:?}", options.device))),
    });
    match measured {
        Ok(seconds) => {
            println!("{}", described(&options, seconds));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn described(options: &Options, seconds: Value) -> Value {
    let Options { batch, hidden, layers, length, vocab, repeats, device } = *options;
    json!({
        "crate": format!("ebm-dpg {}", env!("CARGO_PKG_VERSION")),
        "program": "draw",
        "device": format!("{device:?}"),
        "threads": rayon::current_num_threads(),
        "batch": batch,
        "hidden": hidden,
        "layers": layers,
        "length": length,
        "vocab": vocab,
        "repeats": repeats,
        "seconds": seconds,
    })
}

/// The batch that the model draws, and the median seconds that it takes.
fn drawn<B: Backend>(backend: &B, lstm: &mut impl Sampler<B>, options: &Options) -> Result<(Batch<B>, f64)> {
    let rows = options.batch;
    let mut batch = Batch::with_capacity(backend, lstm.space(), rows)?;
    let (mut log_q, mut log_model) = (backend.zeros(rows, "log q")?, backend.zeros(rows, "log π")?);
    let (one, mut wait) = (backend.zeros::<f32>(1, "a value to wait for")?, [0.0]);
    let mut once = || {
        let started = Instant::now();
        let (q, model) = (B::view_mut(&mut log_q, rows), B::view_mut(&mut log_model, rows));
        lstm.sample(Draw::new(0, Purpose::User), None, &mut batch, q, model)?;
        backend.download(&one, &mut wait)?;
        Ok(started.elapsed().as_secs_f64())
    };
    let seconds: Vec<f64> = (0..WARM_UP + options.repeats).map(|_| once()).collect::<Result<_>>()?;
    Ok((batch, median(seconds[WARM_UP..].to_vec())))
}

/// Seconds by precision; how many sequences are the same in both precisions.
#[cfg(feature = "cuda")]
fn by_precision(gpu: &ebm_dpg::backend::gpu::Cuda, options: &Options) -> Result<Value> {
    use ebm_dpg::models::Precision;

    let lstm = options.lstm()?;
    let mut seconds = serde_json::Map::new();
    let mut batches = Vec::new();
    for (name, precision) in [("split", Precision::Split), ("half", Precision::Half)] {
        let (batch, median) = drawn(gpu, &mut lstm.to_gpu(gpu)?.sampling(precision), options)?;
        seconds.insert(name.into(), median.into());
        batches.push(batch.download(gpu)?);
    }
    let equal = batches[0].iter().zip(batches[1].iter()).filter(|(split, half)| split == half).count();
    seconds.insert("half_equals_split".into(), (equal as f64 / options.batch as f64).into());
    Ok(seconds.into())
}

/// Of an even number, the mean of the middle two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}
