//! With the feature `cuda`, compiles each `kernels/*.cu` to a fatbin; without it does nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const NO_NVCC: &str = "feature `cuda`: found no nvcc by NVCC, CUDA_HOME, CUDA_PATH or PATH. Without root: pip install \
    nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
    nvidia-cuda-cccl==13.0.85, and set NVCC to site-packages/nvidia/cu13/bin/nvcc";

type Result<T> = std::result::Result<T, String>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "DOCS_RS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    // Documentation needs no kernels.
    let built = if env::var_os("DOCS_RS").is_some() { Ok(table((0, 0), &[])) } else { build(&out) };
    match built {
        Ok(table) => fs::write(out.join("fatbins.rs"), table).expect("OUT_DIR can be written"),
        Err(error) => error.lines().for_each(|line| println!("cargo::error={line}")),
    }
}

/// Compiles all kernels to `out`; returns the Rust source that includes them.
fn build(out: &Path) -> Result<String> {
    let nvcc = find_nvcc().ok_or(NO_NVCC)?;
    println!("cargo::rerun-if-changed={}", nvcc.display());
    let version = release(&run(Command::new(&nvcc).arg("--version"))?)?;
    let known = numbers(&run(Command::new(&nvcc).arg("--list-gpu-code"))?);
    let architectures = architectures(env::var("CUDA_COMPUTE_CAP").ok().as_deref(), &known)?;
    let files = sources(Path::new("kernels"))?;
    compile(&nvcc, &architectures, &files, out)?;
    Ok(table(version, &files))
}

/// `NVCC` as it is, else the first that exists of CUDA_HOME's, CUDA_PATH's and PATH's.
fn find_nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(nvcc.into());
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories = homes.chain(env::split_paths(&path));
    directories.find_map(|directory| {
        Some(directory.join(format!("nvcc{}", env::consts::EXE_SUFFIX))).filter(|nvcc| nvcc.is_file())
    })
}

/// What a command prints.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{name}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
}

/// The CUDA version in what `nvcc --version` prints.
pub fn release(text: &str) -> Result<(u32, u32)> {
    let version = text.split_once("release ").and_then(|(_, rest)| rest.split_once(',')?.0.split_once('.'));
    let parsed = version.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| format!("nvcc --version: expected `release MAJOR.MINOR,`, got {text:?}"))
}

/// The architectures in what `nvcc --list-gpu-code` prints, ascending.
pub fn numbers(text: &str) -> Vec<u32> {
    let mut numbers: Vec<_> =
        text.split_whitespace().filter_map(|word| word.strip_prefix("sm_")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// Those wanted ("80,90a"); by default A100's, H100's with its own instructions, and the newest that nvcc knows.
pub fn architectures(wanted: Option<&str>, known: &[u32]) -> Result<Vec<String>> {
    let default = format!("80,90a,{}", known.last().unwrap_or(&90));
    let mut chosen: Vec<_> = wanted.unwrap_or(&default).split(',').map(|name| name.trim().to_string()).collect();
    for architecture in &chosen {
        if !number(architecture).is_some_and(|number| known.contains(&number)) {
            return Err(format!(
                "CUDA_COMPUTE_CAP: expected those that this nvcc knows ({known:?}, `a` or `f` may follow), got {architecture:?}"
            ));
        }
    }
    // Its kernels use what only the architecture's own instructions have.
    chosen.iter_mut().filter(|architecture| *architecture == "90").for_each(|architecture| architecture.push('a'));
    chosen.sort_by_key(|architecture| number(architecture));
    chosen.dedup();
    Ok(chosen)
}

/// 90 of `90a`.
fn number(architecture: &str) -> Option<u32> {
    architecture.strip_suffix(['a', 'f']).unwrap_or(architecture).parse().ok()
}

/// Machine code for each architecture, and PTX, which the driver compiles for any other device: of the lowest, and of the
/// first with clusters of blocks, so that later devices have the kernels that use them.
pub fn targets(architectures: &[String]) -> Vec<String> {
    let code = architectures.iter().map(|name| format!("-gencode=arch=compute_{name},code=sm_{name}"));
    let numbers: Vec<u32> = architectures.iter().filter_map(|name| number(name)).collect();
    let lowest = numbers.first().copied();
    let clusters = lowest.filter(|&lowest| lowest < 90 && numbers.iter().any(|&number| number >= 90)).map(|_| 90);
    let ptx = lowest.into_iter().chain(clusters);
    code.chain(ptx.map(|number| format!("-gencode=arch=compute_{number},code=compute_{number}"))).collect()
}

fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    Ok(files)
}

/// As many files at a time as cargo has jobs.
fn compile(nvcc: &Path, architectures: &[String], files: &[PathBuf], out: &Path) -> Result<()> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1).max(1);
    let one = |file: &PathBuf| {
        let mut command = Command::new(nvcc);
        command.args(["-fatbin", "-std=c++17", "-O3", "-lineinfo", "-Ikernels"]).args(targets(architectures));
        run(command.arg(file).arg("-o").arg(out.join(fatbin(file)))).map(drop)
    };
    for files in files.chunks(jobs) {
        std::thread::scope(|scope| {
            let running: Vec<_> = files.iter().map(|file| scope.spawn(move || one(file))).collect();
            running.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
        })?;
    }
    Ok(())
}

fn fatbin(file: &Path) -> String {
    format!("{}.fatbin", file.file_stem().unwrap_or_default().to_string_lossy())
}

/// What `src/backend/gpu/cuda.rs` includes.
fn table((major, minor): (u32, u32), files: &[PathBuf]) -> String {
    let rows: String = files.iter().map(|file| format!("    include_bytes!({:?}),\n", fatbin(file))).collect();
    format!(
        "/// The CUDA version that the kernels were compiled with.\nconst BUILT_WITH: (u32, u32) = ({major}, {minor});\n\
         /// The kernels, one image for each source.\nconst FATBINS: &[&[u8]] = &[\n{rows}];\n"
    )
}
