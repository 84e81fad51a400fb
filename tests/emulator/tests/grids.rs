//! Kernels that promise the same bits whatever the grid keep the promise.

use ebm_dpg::backend::gpu::{Argument, Grid, Kernel, Launcher};
use ebm_dpg_emulator::{Emulated, Emulator, Schedule};

mod support;
use support::{bits64, download, noise, upload};

/// The outputs of `kernel` for grids of 1, 2 and 7 blocks are the same.
fn same_for_every_grid(kernel: Kernel, threads: u32, len: usize, arguments: impl Fn(Argument) -> Vec<Argument>) {
    let gpu: Emulated = Emulator::open(Schedule::Random(3)).expect("opened");
    let run = |blocks: u32| {
        let out = upload(&gpu, &vec![7.0_f64; len]);
        let arguments = arguments(Argument::from(&out));
        // SAFETY: the callers' arguments are the kernel's, over buffers that outlive the launch.
        unsafe { gpu.launcher().launch(kernel, Grid::new(blocks, threads), &arguments) }.expect("runs");
        bits64(&download(&gpu, &out))
    };
    let one = run(1);
    assert!(one.iter().any(|&value| value != 7.0_f64.to_bits()));
    assert!(run(2) == one && run(7) == one, "{kernel:?}");
}

#[test]
fn weight_sums() {
    let gpu: Emulated = Emulator::open(Schedule::Forward).expect("opened");
    let (rows, features) = (5000, 3);
    let values: Vec<f64> = noise(1, rows).iter().map(|&x| f64::from(x) * 4.0).collect();
    let (log_w, phi) = (upload(&gpu, &values), upload(&gpu, &noise(2, rows * features)));
    let status = upload(&gpu, &[u64::MAX]);
    same_for_every_grid(Kernel::WeightSums, 256, 5 * (5 + features), |out| {
        let (log_w, phi, status) = (Argument::from(&log_w), Argument::from(&phi), Argument::from(&status));
        let (rows, features) = (Argument::U64(rows as u64), Argument::U32(features as u32));
        vec![log_w, log_w, log_w, phi, rows, features, Argument::F64(0.5), out, status]
    });
    assert_eq!(download(&gpu, &status), [u64::MAX]);
}

#[test]
fn log_probs() {
    let gpu: Emulated = Emulator::open(Schedule::Forward).expect("opened");
    let shapes = [
        (Kernel::LogProbPartF32, 256, 2, 700),
        (Kernel::LogProbPartF32, 256, 65, 100),
        (Kernel::LogProbWarpF32, 256, 265, 20),
        (Kernel::LogProbBlockF32, 512, 2051, 20),
    ];
    for (kernel, threads, vocab, rows) in shapes {
        let (logits, tokens) = (upload(&gpu, &noise(1, rows * vocab)), upload(&gpu, &vec![1_u32; rows]));
        let status = upload(&gpu, &[u64::MAX]);
        same_for_every_grid(kernel, threads, rows / 2, |out| {
            let (logits, tokens, status) = (Argument::from(&logits), Argument::from(&tokens), Argument::from(&status));
            let vocab_width = vocab as u64;
            let (rows, vocab) = (Argument::U64(rows as u64), Argument::U32(vocab as u32));
            let (stride, none) = (Argument::U64(vocab_width), Argument::Pointer(0));
            vec![logits, tokens, rows, vocab, stride, Argument::F32(1.5), none, out, none, status]
        });
    }
}
