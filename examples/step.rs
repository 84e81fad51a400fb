//! One off-policy DPG step, timed by phase: the crate's side of `benches/peers/dpg_torch.py`. Prints one JSON line: the
//! median seconds of each phase over the repeats, after two unmeasured steps. On a GPU also those of the whole step as a
//! recorded graph.

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use ebm_dpg::backend::{Device, Opened};
use ebm_dpg::models::LstmBackend;
use ebm_dpg::{Error, Result};

#[path = "../benches/workload/mod.rs"]
mod workload;
use workload::{Size, Workload};

/// The first makes the models' workspaces, the second finds them.
const WARM_UP: usize = 2;

/// Times one off-policy DPG step by phase.
#[derive(Parser)]
struct Options {
    /// Sequences.
    #[arg(long, default_value = "2048", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    batch: usize,
    /// Units per LSTM layer.
    #[arg(long, default_value = "200", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    hidden: usize,
    /// LSTM layers.
    #[arg(long, default_value = "2", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    layers: usize,
    /// Tokens of each sequence; the patterns have five.
    #[arg(long, default_value = "30", value_parser = clap::value_parser!(u32).range(5..))]
    length: u32,
    /// Outputs of the models.
    #[arg(long, default_value = "4", value_parser = clap::value_parser!(u32).range(2..1 << 31))]
    vocab: u32,
    /// auto, cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: Device,
    /// Measured steps.
    #[arg(long, default_value = "7", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    repeats: usize,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let measured = options.device.open().and_then(|opened| match opened {
        Opened::Cpu(cpu) => measure(&cpu, &options),
        #[cfg(feature = "cuda")]
        Opened::Cuda(gpu) => measure(&gpu, &options),
        _ => Err(Error::argument("--device", "cpu or cuda:N", format!("{:?}", options.device))),
    });
    match measured {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Seconds of the four phases of one step, and their sum.
fn step<B: LstmBackend>(workload: &mut Workload<B>) -> Result<[f64; 5]> {
    let mut time = |phase: fn(&mut Workload<B>) -> Result<()>| {
        let started = Instant::now();
        phase(workload)?;
        workload.wait().map(|()| started.elapsed().as_secs_f64())
    };
    let phases =
        [time(Workload::sample)?, time(Workload::score)?, time(Workload::features)?, time(Workload::gradient)?];
    Ok([phases[0], phases[1], phases[2], phases[3], phases.iter().sum()])
}

/// Median seconds of a step that is recorded and replayed; `None` where the backend does not record.
fn recorded<B: LstmBackend>(workload: &mut Workload<B>, repeats: usize) -> Result<Option<f64>> {
    if !workload.record()? {
        return Ok(None);
    }
    let mut replay = || {
        let started = Instant::now();
        workload.replay()?;
        workload.wait().map(|()| started.elapsed().as_secs_f64())
    };
    replay()?;
    (0..repeats).map(|_| replay()).collect::<Result<_>>().map(median).map(Some)
}

fn measure<B: LstmBackend>(backend: &B, options: &Options) -> Result<serde_json::Value> {
    let Options { batch, hidden, layers, length, vocab, repeats, device } = *options;
    let mut workload = Workload::new(backend, Size { batch, hidden, layers, length, vocab })?;
    for _ in 0..WARM_UP {
        step(&mut workload)?;
    }
    let steps = (0..repeats).map(|_| step(&mut workload)).collect::<Result<Vec<_>>>()?;
    let recorded = recorded(&mut workload, repeats)?;
    workload.check()?;
    let median = |phase: usize| median(steps.iter().map(|seconds| seconds[phase]).collect());
    Ok(serde_json::json!({
        "crate": format!("ebm-dpg {}", env!("CARGO_PKG_VERSION")),
        "device": format!("{device:?}"),
        "threads": rayon::current_num_threads(),
        "batch": batch,
        "hidden": hidden,
        "layers": layers,
        "length": length,
        "vocab": vocab,
        "repeats": repeats,
        "seconds": {
            "sample": median(0),
            "score": median(1),
            "features": median(2),
            "gradient": median(3),
            "total": median(4),
            "recorded": recorded,
        },
        "sequences_per_s": batch as f64 / recorded.unwrap_or(median(4)),
    }))
}

/// Of an even number, the mean of the middle two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 }
}
