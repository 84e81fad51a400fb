//! The CUDA launcher over a fake driver: what opening says where something is missing, and the order of asynchronous work.
#![cfg(feature = "cuda")]

use ebm_dpg::backend::gpu::{Cuda, Grid, Kernel, Launcher};
use ebm_dpg::backend::{Memory, Record};
use ebm_dpg_emulator::driver::rerun_with_fake;

/// What a child prints that runs `what` under the fake driver.
fn child(what: &str, settings: &[(&str, &str)]) -> String {
    let output = rerun_with_fake("the_child", &[&[("CHILD", what)], settings].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().find_map(|line| line.split_once("CHILD: ")).expect("an answer").1.to_string()
}

/// Does nothing unless it is the child.
#[test]
fn the_child() {
    let answer = match std::env::var("CHILD").as_deref() {
        Ok("open 0") => Cuda::open(0).map(|gpu| format!("{gpu:?} {:?}", gpu.launcher().limits())),
        Ok("open 1") => Cuda::open(1).map(|gpu| format!("{gpu:?}")),
        Ok("zeros") => Cuda::open(0).and_then(|gpu| gpu.zeros::<u64>(1000, "much").map(|_| "enough".to_string())),
        Ok("copies") => Cuda::open(0).and_then(|gpu| copies(&gpu)),
        Ok("streams") => Cuda::open(0).and_then(|gpu| streams(&gpu)),
        Ok("graphs") => Cuda::open(0).and_then(|gpu| graphs(&gpu)),
        Ok("no graph") => Cuda::open(0).and_then(|gpu| no_graph(&gpu)),
        Ok("bad launch") => Cuda::open(0).and_then(|gpu| bad_launch(&gpu)),
        _ => return,
    };
    println!("CHILD: {}", answer.unwrap_or_else(|error| error.to_string()));
}

/// Zeros, then values, then the first half over the second; the host's values change as soon as they are uploaded.
fn copies(gpu: &Cuda) -> ebm_dpg::Result<String> {
    let mut buffer = gpu.zeros::<u32>(6, "values")?;
    let mut values = [1u32, 2, 3];
    gpu.upload(&values, &mut buffer)?;
    values = [9, 9, 9];
    let at = Cuda::view(&buffer, 6).address();
    // SAFETY: both halves are in the buffer, which nothing else uses.
    unsafe { gpu.launcher().copy(at, at + 12, 8)? };
    let mut got = [7u32; 6];
    gpu.download(&buffer, &mut got)?;
    let other_thread = std::thread::scope(|scope| scope.spawn(|| gpu.download(&buffer, &mut [0; 6])).join());
    other_thread.expect("no panic")?;
    Ok(format!("{got:?} {values:?}"))
}

/// Another backend on the same stream, and what the per-thread stream is told.
fn streams(gpu: &Cuda) -> ebm_dpg::Result<String> {
    let second = Cuda::on_stream(gpu.stream().clone())?;
    let refused = Cuda::on_stream(gpu.stream().context().per_thread_stream());
    Ok(format!("{} {}", second.stream() == gpu.stream(), refused.expect_err("refused")))
}

/// A launch that is refused at once, and a download after it, which is none the worse.
fn bad_launch(gpu: &Cuda) -> ebm_dpg::Result<String> {
    let buffer = gpu.zeros::<u32>(1, "value")?;
    // SAFETY: the driver refuses a block of 2000 threads.
    let refused = unsafe { gpu.launcher().launch(Kernel::AdamNorm, Grid::new(1, 2000), &[]) };
    let first = gpu.download(&buffer, &mut [0]);
    Ok(format!("{} | {first:?}", refused.expect_err("refused")))
}

/// A copy that is recorded, then run twice, then no longer, as memory was given back; other threads go on meanwhile.
fn graphs(gpu: &Cuda) -> ebm_dpg::Result<String> {
    let (mut from, mut to) = (gpu.zeros::<u32>(1, "value")?, gpu.zeros::<u32>(1, "value")?);
    let read = |buffer: &_| {
        let mut value = [0];
        gpu.download(buffer, &mut value).map(|()| value[0])
    };
    gpu.upload(&[5], &mut from)?;
    let recording = gpu.record(|| {
        let other_thread = std::thread::scope(|scope| scope.spawn(|| gpu.zeros::<u32>(1, "value")).join());
        std::mem::forget(other_thread.expect("no panic")?);
        gpu.copy(&from, &mut to)
    })?;
    let recording = recording.expect("recorded");
    let mut said = vec![read(&to)?];
    for value in [6, 7] {
        gpu.upload(&[value], &mut from)?;
        assert!(gpu.replay(&recording, 0)?);
        said.push(read(&to)?);
    }
    drop(gpu.zeros::<u32>(1, "value")?);
    gpu.upload(&[8], &mut from)?;
    let stale = gpu.replay(&recording, 0)?;
    said.push(read(&to)?);
    Ok(format!("{said:?} {stale}"))
}

/// What may not be recorded, and that all is well afterwards.
fn no_graph(gpu: &Cuda) -> ebm_dpg::Result<String> {
    let mut buffer = gpu.zeros::<u32>(1, "value")?;
    let allocation = gpu.record(|| gpu.zeros::<u32>(1, "value").map(drop)).err().expect("refused");
    let upload = gpu.record(|| gpu.upload(&[1], &mut buffer)).err().expect("refused");
    let download = gpu.record(|| gpu.download(&buffer, &mut [0])).err().expect("refused");
    let within = gpu.record(|| gpu.record(|| Ok(())).map(drop)).err().expect("refused");
    gpu.upload(&[3], &mut buffer)?;
    gpu.check()?;
    Ok([allocation, upload, download, within].map(|error| error.to_string()).join(" | "))
}

#[test]
fn launches_are_recorded_and_repeated() {
    assert_eq!(child("graphs", &[]), "[0, 6, 7, 7] false");
}

#[test]
fn what_needs_the_host_is_not_recorded() {
    let line = child("no graph", &[]);
    assert_eq!(line.matches("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED").count(), 4, "{line}");
}

#[test]
fn a_gpu_opens() {
    let limits = "Limits { shared_bytes: 232448, multiprocessors: 132, capability: 90, warpgroups: true }";
    assert_eq!(child("open 0", &[]), format!("Gpu(CudaLauncher(cuda:0)) {limits}"));
}

/// A device newer than all machine code of the build runs what the driver makes of older PTX, without clusters.
#[test]
fn kernels_compiled_for_less_than_the_device() {
    let limits = "Limits { shared_bytes: 232448, multiprocessors: 132, capability: 80, warpgroups: false }";
    assert!(child("open 0", &[("FAKE_PTX", "80"), ("FAKE_REGISTERS", "4")]).ends_with(limits));
    // PTX of 9.0 has clusters, but no products by warpgroups.
    let limits = "Limits { shared_bytes: 232448, multiprocessors: 132, capability: 90, warpgroups: false }";
    assert!(child("open 0", &[("FAKE_PTX", "90"), ("FAKE_REGISTERS", "4")]).ends_with(limits));
}

#[test]
fn no_device() {
    let line = child("open 0", &[("FAKE_DEVICES", "0")]);
    assert_eq!(line, "cuda:0: CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)");
}

#[test]
fn an_ordinal_beyond_the_last() {
    assert_eq!(child("open 1", &[]), "device: expected cuda:N with N below 1, got cuda:1");
}

#[test]
fn a_driver_too_old() {
    let line = child("open 0", &[("FAKE_VERSION", "10020")]);
    assert!(
        line.starts_with("cuda:0: the driver is one of CUDA 10.2, but this build's kernels need one of CUDA 1"),
        "{line}"
    );
}

#[test]
fn a_kernel_that_the_build_lacks() {
    let line = child("open 0", &[("FAKE_LACKS", "adam_step")]);
    assert_eq!(line, "kernel adam_step: not among the kernels of this build");
}

#[test]
fn too_little_memory() {
    assert_eq!(child("zeros", &[("FAKE_MEMORY", "7999")]), "much: out of memory, 8000 bytes wanted");
    assert_eq!(child("zeros", &[]), "enough");
}

#[test]
fn copies_happen_in_order_on_any_thread() {
    assert_eq!(child("copies", &[]), "[1, 2, 3, 1, 2, 0] [9, 9, 9]");
}

#[test]
fn streams_of_the_caller() {
    assert_eq!(
        child("streams", &[]),
        "true cuda:0: expected a stream that all threads share, got the per-thread stream"
    );
}

#[test]
fn a_launch_that_the_driver_refuses() {
    let line = child("bad launch", &[]);
    assert!(
        line.starts_with("kernel adam_norm, 1 × 1 blocks of 2000 threads, 0 B: CUDA_ERROR_INVALID_VALUE"),
        "{line}"
    );
    assert!(line.ends_with("Ok(())"), "{line}");
}
