//! Compiles `kernels/*.cu` with the host's C++ compiler against the emulation in `host/`.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kernels = root.join("../../kernels");
    for dir in [&kernels, &root.join("kernels"), &root.join("host")] {
        println!("cargo:rerun-if-changed={}", dir.display());
    }
    let mut files = sources(&kernels);
    files.extend(sources(&root.join("kernels")));
    fs::write(Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("kernels.rs"), table(&files))
        .expect("written");
    build(2).file(root.join("host/cuda_host.cpp")).compile("emulator_runtime");
    build(3).include(&kernels).flag("-xc++").flag("-ffp-contract=off").files(&files).compile("emulator_kernels");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        build_fake_driver(&root.join("driver/fake_cuda.cpp"));
    }
    // Again, after the kernels that use it.
    println!("cargo:rustc-link-lib=static=emulator_runtime");
}

/// A libcuda.so in OUT_DIR, on nobody's path until a test puts it there.
fn build_fake_driver(source: &Path) {
    println!("cargo:rerun-if-changed={}", source.display());
    let library = Path::new(&env::var("OUT_DIR").expect("set by cargo")).join("libcuda.so");
    let mut compiler = cc::Build::new().cpp(true).std("c++17").get_compiler().to_command();
    let status = compiler.args(["-shared", "-fPIC"]).arg(source).arg("-o").arg(library).status();
    assert!(status.expect("a C++ compiler").success(), "{}", source.display());
}

fn build(optimisation: u32) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(optimisation).debug(true).include("host");
    for flag in ["-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-psabi", "-fno-omit-frame-pointer"] {
        build.flag(flag);
    }
    build
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    files.sort();
    files
}

/// The kernels that the sources export, as a Rust table.
fn table(files: &[PathBuf]) -> String {
    let mut names = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let exports = text.lines().filter_map(|line| line.trim().strip_prefix("EXPORT_KERNEL("));
        names.extend(exports.filter_map(|rest| Some(rest.split_once(')')?.0.to_string())));
    }
    let declarations: String = names.iter().map(|name| format!("    static emu_kernel_{name}: EmuKernel;\n")).collect();
    let rows: String = names.iter().map(|name| format!("    unsafe {{ &emu_kernel_{name} }},\n")).collect();
    format!(
        "unsafe extern \"C\" {{\n{declarations}}}\nfn table() -> Vec<&'static EmuKernel> {{\n    vec![\n{rows}    ]\n}}\n"
    )
}
