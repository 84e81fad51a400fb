//! Compiles `kernels/*.cu` with the host's C++ compiler against the emulation in `host/`.
//!
//! `EMULATOR_SANITIZE=address,undefined` (g++) or `thread` (clang) builds the kernels, but not the emulation, with these
//! sanitizers.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (kernels, own, host) = (root.join("../../kernels"), root.join("kernels"), root.join("host"));
    for dir in [&kernels, &own, &host] {
        println!("cargo::rerun-if-changed={}", dir.display());
    }
    println!("cargo::rerun-if-env-changed=EMULATOR_SANITIZE");
    let sanitizers = env::var("EMULATOR_SANITIZE").unwrap_or_default();

    let files = [files(&kernels, "cu"), files(&own, "cu")].concat();
    let out = PathBuf::from(env::var("OUT_DIR").expect("set by cargo"));
    fs::write(out.join("kernels.rs"), table(&files)).expect("OUT_DIR can be written");
    println!("cargo::rustc-check-cfg=cfg(sanitized)");
    // Clippy builds apart from all others, and reads no kernels.
    println!("cargo::rerun-if-env-changed=CLIPPY_ARGS");
    if env::var_os("CLIPPY_ARGS").is_some() {
        fs::write(out.join("conformance.fatbin"), []).expect("OUT_DIR can be written");
        return;
    }

    // The emulation is never instrumented: it finds the sanitizers by weak symbols.
    let runtime = compiler(2);
    expect_compiler(&runtime.get_compiler());
    runtime.clone().files(self::files(&host, "cpp")).compile("emulator_runtime");
    let mut build = compiler(if sanitizers.is_empty() { 2 } else { 1 });
    // A kernel's product and sum must not fuse on one machine and not on another.
    build.include(&kernels).flag("-xc++").flag("-ffp-contract=off").files(&files);
    if !sanitizers.is_empty() {
        println!("cargo::rustc-cfg=sanitized");
        sanitize(&mut build, &sanitizers);
    }
    build.compile("emulator_kernels");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        build_fake_driver(&root.join("driver/fake_cuda.cpp"), &host, &out);
        build_for_gpu(&own.join("conformance.cu"), &kernels, &out.join("conformance.fatbin"));
    }
    // Again, after the kernels that use it.
    println!("cargo::rustc-link-lib=static=emulator_runtime");
}

/// A libcuda.so in OUT_DIR, on nobody's path until a test puts it there; its names bind to its own kernels, even where
/// the program that loads it has them too.
fn build_fake_driver(source: &Path, host: &Path, out: &Path) {
    println!("cargo::rerun-if-changed={}", source.display());
    let mut compiler = cc::Build::new().cpp(true).std("c++20").get_compiler().to_command();
    compiler.args(["-shared", "-fPIC", "-Wl,-Bsymbolic", "-I"]).arg(host).arg(source).arg("-Wl,--whole-archive");
    compiler.args(["libemulator_kernels.a", "libemulator_runtime.a"].map(|library| out.join(library)));
    let status = compiler.arg("-Wl,--no-whole-archive").arg("-o").arg(out.join("libcuda.so")).status();
    assert!(status.expect("a C++ compiler").success(), "{}", source.display());
}

/// The kernels that test the wrappers, for a GPU; the crate's own build has checked that there is an nvcc.
fn build_for_gpu(source: &Path, kernels: &Path, to: &Path) {
    println!("cargo::rerun-if-env-changed=NVCC");
    let homes = ["CUDA_HOME", "CUDA_PATH"].map(|home| env::var_os(home).map(|home| Path::new(&home).join("bin/nvcc")));
    let nvcc = env::var_os("NVCC").map(PathBuf::from).into_iter().chain(homes.into_iter().flatten()).next();
    let mut command = Command::new(nvcc.unwrap_or_else(|| "nvcc".into()));
    command.args(["-fatbin", "-std=c++17", "-O3", "-gencode=arch=compute_80,code=sm_80"]);
    command.args(["-gencode=arch=compute_90a,code=sm_90a", "-gencode=arch=compute_80,code=compute_80"]);
    command.args(["-gencode=arch=compute_90,code=compute_90", "-I"]);
    let status = command.arg(kernels).arg(source).arg("-o").arg(to).status();
    assert!(status.is_ok_and(|status| status.success()), "{command:?}");
}

fn compiler(optimisation: u32) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(optimisation).debug(true).include("host");
    // Kernels read vectors through pointers to their elements, as CUDA allows.
    for flag in ["-fno-strict-aliasing", "-fno-omit-frame-pointer", "-Wno-unknown-pragmas", "-Wno-psabi"] {
        build.flag(flag);
    }
    build
}

fn expect_compiler(compiler: &cc::Tool) {
    if !Command::new(compiler.path()).arg("--version").output().is_ok_and(|answer| answer.status.success()) {
        println!(
            "cargo::error=the kernels' tests need a C++20 compiler, and {} does not run: `apt install g++`, or set CXX",
            compiler.path().display()
        );
        exit(1);
    }
}

/// Instruments the kernels, and links the sanitizers' runtimes: rustc links with -nodefaultlibs, so the compiler's own
/// choice would be lost; linked whole and statically, their malloc and memcpy are those of the executable.
fn sanitize(build: &mut cc::Build, sanitizers: &str) {
    build.flag(format!("-fsanitize={sanitizers}")).flag("-fno-sanitize-recover=all");
    let compiler = build.get_compiler();
    let machine = env::var("CARGO_CFG_TARGET_ARCH").expect("set by cargo");
    let libraries = match (compiler.is_like_clang(), sanitizers) {
        (false, "address,undefined") => vec!["libasan_preinit.o".to_string(), "libasan.a".into(), "libubsan.a".into()],
        (true, "thread") => vec![format!("libclang_rt.tsan-{machine}.a")],
        _ => {
            println!("cargo::error=EMULATOR_SANITIZE is address,undefined with g++ or thread with clang++");
            exit(1);
        }
    };
    for library in libraries {
        let answer = Command::new(compiler.path()).arg(format!("-print-file-name={library}")).output().expect("runs");
        let path = String::from_utf8_lossy(&answer.stdout).trim().to_string();
        // libubsan shares a part with libasan: of it, only what is missing.
        let whole = library.ends_with(".a") && library != "libubsan.a";
        let argument = if whole { format!("-Wl,--whole-archive,{path},--no-whole-archive") } else { path };
        println!("cargo::rustc-link-arg={argument}");
    }
    for argument in ["-rdynamic", "-lstdc++", "-lm", "-lpthread", "-ldl", "-lrt", "-lresolv"] {
        println!("cargo::rustc-link-arg={argument}");
    }
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
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
    let declarations: String =
        names.iter().map(|name| format!("    safe static emulator_kernel_{name}: ExportedKernel;\n")).collect();
    let rows: String = names.iter().map(|name| format!("    &emulator_kernel_{name},\n")).collect();
    format!(
        "// SAFETY: EXPORT_KERNEL defines each of them as a constant.\nunsafe extern \"C\" {{\n{declarations}}}\n\
         static EXPORTED: &[&ExportedKernel] = &[\n{rows}];\n"
    )
}
