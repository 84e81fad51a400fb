//! Passes over rows of logits on the CPU, on demand: the crate's side of `benches/peers/compare_logits.py`. Each line of the
//! standard input names a pass, `log_prob`, `gradient`, `read`, `rewrite` or `exp`; its answer is one line, the seconds it
//! took. The last three read and rewrite as many bytes as the logits have, and compute as many exponentials as there are
//! logits: what bounds the others.

use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::builder::RangedU64ValueParser;
use clap::{Parser, ValueEnum};
use ebm_dpg::backend::Cpu;
use ebm_dpg::log_prob::Logit;
use ebm_dpg::{Error, Result};

#[path = "../benches/workload/logits.rs"]
mod workload;
use workload::{Rows, exponentials, read, rewrite};

/// Times passes over rows of logits.
#[derive(Parser)]
struct Options {
    /// Rows.
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    rows: usize,
    /// Logits of a row.
    #[arg(long, value_parser = RangedU64ValueParser::<usize>::new().range(1..1 << 31))]
    vocab: usize,
    /// Type of a logit.
    #[arg(long, default_value = "float32")]
    dtype: Dtype,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Float32,
    Bfloat16,
}

fn serve<T: Logit>(options: &Options, narrow: impl Fn(f32) -> T) -> Result<()> {
    let mut rows = Rows::new(&Cpu, options.rows, options.vocab, &narrow)?;
    let mut words = vec![0u64; options.rows * options.vocab * size_of::<T>() / size_of::<u64>()];
    for line in std::io::stdin().lock().lines().map_while(std::result::Result::ok) {
        let started = Instant::now();
        match line.as_str() {
            "log_prob" => rows.forward(&Cpu),
            "gradient" => rows.gradient(&Cpu),
            "read" => read(&words),
            "rewrite" => rewrite(&mut words),
            "exp" => exponentials(options.rows * options.vocab, &narrow),
            other => return Err(Error::argument("pass", "log_prob, gradient, read, rewrite or exp", other)),
        }
        println!("{}", started.elapsed().as_secs_f64());
        // Without a listener the next line does not come either.
        std::io::stdout().flush().ok();
    }
    Ok(())
}

fn main() -> ExitCode {
    let options = Options::parse();
    let served = match options.dtype {
        Dtype::Float32 => serve(&options, |x| x),
        Dtype::Bfloat16 => serve(&options, half::bf16::from_f32),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
