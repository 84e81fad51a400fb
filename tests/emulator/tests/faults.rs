//! The emulator finds what it should (`kernels/faulty.cu`), and says where: the line, the thread and the block.
//!
//! Under a sanitizer some of these mistakes end the process before the emulator speaks.
#![cfg(not(sanitized))]

use ebm_dpg::Result;
use ebm_dpg::backend::Memory;
use ebm_dpg::backend::gpu::{Argument, Grid};
use ebm_dpg_emulator::{Emulator, RunByName, Schedule};

const SOURCE: &str = include_str!("../kernels/faulty.cu");

/// Two blocks of 64 threads with 1 KiB of dynamic shared memory, unless told.
fn grid() -> Grid {
    Grid::new(2, 64).shared(1024)
}

/// What `out` holds after the kernel.
fn run(schedule: Schedule, name: &str, grid: Grid) -> Result<Vec<f32>> {
    let gpu = Emulator::open(schedule)?;
    let out = gpu.zeros::<f32>(1024, "out")?;
    // SAFETY: all faulty kernels take one pointer and write at most one value per thread, and read four, of 1024.
    unsafe { gpu.launcher().run_by_name(name, grid, &[Argument::from(&out)])? };
    let mut values = vec![0.0; 1024];
    gpu.download(&out, &mut values)?;
    Ok(values)
}

/// "faulty.cu:12", where line 12 ends with "// FAULT what".
fn line(what: &str) -> String {
    let marked = SOURCE.lines().position(|line| line.ends_with(&format!("// FAULT {what}"))).expect("marked");
    format!("faulty.cu:{}", marked + 1)
}

/// Under every schedule the kernel fails with all of `parts` in the message.
#[track_caller]
fn expect_error(name: &str, grid: Grid, parts: &[&str]) {
    for schedule in [Schedule::Forward, Schedule::Backward, Schedule::Random(1), Schedule::Random(2)] {
        let text = run(schedule, name, grid).expect_err("a fault").to_string();
        for part in parts {
            assert!(text.contains(part), "{schedule:?}: {part:?} is not in {text:?}");
        }
        assert!(!text.contains('\n'), "{text:?} has more than one line");
    }
}

#[test]
fn barriers_on_two_sides_of_a_branch() {
    let parts = ["kernel faulty_divergent_barriers", "divergent barrier", &line("divergent"), "[thread ", " of block "];
    expect_error("faulty_divergent_barriers", grid(), &parts);
}

#[test]
fn return_before_a_barrier() {
    expect_error(
        "faulty_return_before_barrier",
        grid(),
        &["divergent barrier", &line("return"), "returned", "[thread "],
    );
}

#[test]
fn deadlock() {
    let parts = ["deadlock: 32 thread(s) wait in bar.sync at ", &line("deadlock"), ", 0 have returned", "of block "];
    expect_error("faulty_deadlock", grid(), &parts);
}

#[test]
fn shuffle_from_an_absent_lane() {
    let parts = ["__shfl_xor_sync: lane 0 reads lane 16, which takes no part (mask 0000ffff)", &line("absent")];
    expect_error("faulty_absent_lane", grid(), &parts);
}

#[test]
fn lane_outside_its_own_mask() {
    expect_error("faulty_mask", grid(), &["is not in its own mask 0000ffff", &line("mask"), "[thread "]);
}

#[test]
fn lanes_in_different_operations() {
    expect_error("faulty_mixed_operations", grid(), &["different operations", "__shfl_xor_sync", "__syncwarp"]);
}

#[test]
fn matrix_load_by_half_a_warp() {
    let parts = ["ldmatrix needs the whole warp, but lanes 0000ffff meet", &line("part")];
    expect_error("faulty_part_of_a_warp", Grid::new(1, 32).shared(1024), &parts);
}

#[test]
fn uninitialised_shared_memory_is_not_a_number() {
    for schedule in Schedule::all() {
        let values = run(schedule, "faulty_uninitialised", Grid::new(2, 32).shared(1024)).expect("no error");
        assert!(values[..32].iter().all(|value| value.is_nan()), "{schedule:?}");
    }
}

#[test]
fn shared_memory_overrun() {
    let parts = ["shared memory overrun: next to the 128 bytes of cell", &line("overrun"), "[block "];
    expect_error("faulty_overrun_of_a_variable", Grid::new(2, 32), &parts);
    let parts = ["shared memory overrun: next to the 1024 bytes of dynamic", "[block "];
    expect_error("faulty_overrun_of_dynamic_memory", grid(), &parts);
}

#[test]
fn misaligned_addresses() {
    let parts = ["ldmatrix: the row's address is not a multiple of 16", &line("misaligned"), "[thread "];
    expect_error("faulty_misaligned_row", Grid::new(1, 32).shared(1024), &parts);
    expect_error("faulty_misaligned_copy", grid(), &["is not aligned to 16 bytes", &line("copy"), "[thread "]);
}

#[test]
fn copy_that_is_not_waited_for() {
    let values = run(Schedule::Forward, "faulty_copy_without_wait", grid()).expect("no error");
    assert!(values[..64].iter().all(|value| value.is_nan()));
    let values = run(Schedule::Backward, "faulty_copy_without_wait", grid()).expect("no error");
    assert!(values[..64].iter().all(|value| !value.is_nan()), "here it lands at once");
}

#[test]
fn bulk_copy_to_a_block_that_has_ended() {
    let text = run(Schedule::Forward, "faulty_bulk_copy_without_wait", grid()).expect_err("a fault").to_string();
    let parts = ["a block ends before a bulk copy to it has landed", &line("bulk"), "[block 0,0,0]"];
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    assert!(run(Schedule::Backward, "faulty_bulk_copy_without_wait", grid()).is_ok(), "here it lands at once");
}

#[test]
fn mbarrier_and_cluster_out_of_bounds() {
    expect_error("faulty_mbarrier", grid(), &["mbarrier before its initialisation", &line("mbarrier"), "[thread "]);
    expect_error("faulty_rank", grid(), &["block 1 of a cluster of 1", &line("rank"), "[thread "]);
}

#[test]
fn products_of_warpgroups_out_of_order() {
    let grid = Grid::new(1, 128).shared(1024);
    let parts = ["wgmma.f16 reads what thread ", "has written without a fence for it", &line("product"), "[thread "];
    expect_error("faulty_operand_without_fence", grid, &parts);
    let parts = ["wgmma.f16 reads what thread ", "has written without a fence for it", &line("operand"), "[thread "];
    expect_error("faulty_operand_of_another_block", Grid::new(2, 128).clusters(2).shared(1024), &parts);
    expect_error(
        "faulty_product_without_fence",
        grid,
        &["wgmma.f16 without wgmma_fence", &line("unordered"), "[thread "],
    );
    let text = run(Schedule::Forward, "faulty_product_without_wait", grid).expect_err("a fault").to_string();
    assert!(text.contains("a thread ends before its warp has waited for products"), "{text}");
}

#[test]
fn launches_that_no_device_takes() {
    expect_error("faulty_rank", Grid::new(1, 2048), &["a block of 2048 x 1 x 1 threads"]);
    expect_error("faulty_rank", Grid::new(0, 32), &["a grid of 0 x 1 x 1 blocks"]);
    expect_error("faulty_rank", Grid { blocks: [1, 70_000], ..grid() }, &["a grid of 1 x 70000 x 1 blocks"]);
    expect_error("faulty_rank", Grid::new(1, 32).shared(300 << 10), &["307200 bytes of dynamic shared memory"]);
    expect_error("no_such_kernel", grid(), &["kernel: expected one that the .cu files export, got no_such_kernel"]);
}

#[test]
fn arguments_of_other_types() {
    let launcher = Emulator::new(Schedule::Forward).expect("opened");
    let run = |arguments: &[Argument]| {
        // SAFETY: no argument list here is the kernel's, so that it does not run.
        unsafe { launcher.run_by_name("faulty_rank", grid(), arguments) }.expect_err("refused").to_string()
    };
    let prefix = "arguments of faulty_rank: expected p, got ";
    assert_eq!(run(&[]), prefix);
    assert_eq!(run(&[Argument::U64(1)]), format!("{prefix}L"));
    assert_eq!(run(&[Argument::Pointer(0), Argument::U32(1)]), format!("{prefix}pI"));
    assert_eq!(run(&[Argument::F32(0.0), Argument::F64(0.0)]), format!("{prefix}fd"));
}

#[test]
fn clusters_that_do_not_divide_the_grid() {
    let launcher = Emulator::new(Schedule::Forward).expect("opened");
    // SAFETY: refused before anything runs.
    let result = unsafe { launcher.run_by_name("faulty_rank", Grid::new(3, 32).clusters(2), &[Argument::Pointer(0)]) };
    assert!(result.expect_err("refused").to_string().contains("clusters of 2 blocks in a grid of 3"));
}
