//! What each wrapper and intrinsic of the kernels means, in exact integers (`kernels/conformance.cu`).
//!
//! Every case takes whatever runs kernels by name: the emulator on every schedule here, a GPU's launcher where there is one.

use ebm_dpg::backend::Memory;
use ebm_dpg::backend::gpu::{Argument, Gpu, Grid, Limits};
use ebm_dpg_emulator::{Emulator, RunByName, Schedule};
use half::{bf16, f16};

macro_rules! on_every_backend {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use super::*;

            #[test]
            fn emulated() {
                for schedule in Schedule::all() {
                    let gpu = Emulator::open(schedule).expect("opened");
                    cases::$name(&|name, shape, input, len| run(&gpu, name, shape, input, len));
                }
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda() {
                if let Some(gpu) = ebm_dpg_emulator::driver::first_gpu() {
                    cases::$name(&|name, shape, input, len| run(&gpu, name, shape, input, len));
                }
            }
        })*
    };
}

on_every_backend!(
    indices,
    vectors,
    shared_memory,
    cache_hints,
    bits,
    arithmetic,
    to_half,
    from_half,
    larger_halves,
    highest_of_warps,
    shuffles,
    votes,
    syncwarp,
    named_barriers,
    block_sum,
    atomics,
    first_fault,
    last_block,
    cp_async,
    ldmatrix,
    mma_f16,
    mma_bf16,
    tile_product,
    stmatrix,
    wgmma_f16,
    wgmma_bf16,
    wgmma_trans,
    cluster,
    store_to_block,
    bulk_copy,
);

#[cfg(feature = "cuda")]
#[test]
fn every_case_by_way_of_the_driver() {
    let output = ebm_dpg_emulator::driver::rerun_with_fake("::cuda", &[]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !out.contains(" 0 passed"), "{out}{err}");
}

/// Runs a kernel on `input` and returns its `len` words.
type Run<'a> = &'a dyn Fn(&str, Grid, &[u32], usize) -> Vec<u32>;

/// Whether a device has what the kernel is of.
fn has(limits: Limits, name: &str) -> bool {
    match name {
        "conform_cluster" | "conform_store_to_block" | "conform_bulk_copy" => limits.has_clusters(),
        _ if name.starts_with("conform_wgmma") || name == "conform_stmatrix" => limits.warpgroups,
        _ => true,
    }
}

fn run<L: RunByName>(gpu: &Gpu<L>, name: &str, grid: Grid, input: &[u32], len: usize) -> Vec<u32> {
    if !has(gpu.launcher().limits(), name) {
        return Vec::new();
    }
    let mut from = gpu.zeros::<u32>(input.len(), "input").unwrap();
    let to = gpu.zeros::<u32>(len, "output").unwrap();
    gpu.upload(input, &mut from).unwrap();
    let arguments = [Argument::from(&from), Argument::from(&to)];
    // SAFETY: all conformance kernels take two pointers; each case gives the words that the kernel's header names.
    unsafe { gpu.launcher().run_by_name(name, grid, &arguments) }.unwrap();
    let mut words = vec![0; len];
    gpu.download(&to, &mut words).unwrap();
    words
}

/// `len` numbers from 0 to 100 in no order.
fn numbers(len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * 37 + 11) % 101).collect()
}

/// Compares rows of one word per thread: `rows[k](t)` is what thread `t` puts k-th.
fn expect_rows(got: &[u32], rows: &[&dyn Fn(usize) -> u32]) {
    let threads = got.len() / rows.len();
    for (k, row) in rows.iter().enumerate() {
        for t in 0..threads {
            assert_eq!(got[k * threads + t], row(t), "row {k}, thread {t}");
        }
    }
}

mod cases {
    use super::*;

    pub fn indices(run: Run) {
        let grid = Grid { blocks: [3, 2], ..Grid::new(1, 40) };
        let got = run("conform_indices", grid, &[5], 240);
        expect_rows(&got, &[&|i| ((i / 40) << 16 | 2 << 12 | 5 << 8 | (i % 40)) as u32]);
    }

    pub fn vectors(run: Run) {
        let v = numbers(128);
        let got = run("conform_vectors", Grid::new(1, 32), &v, 128);
        expect_rows(&got, &[&|i| v[i / 4 * 4 + [3, 2, 1, 0][i % 4]]]);
    }

    pub fn shared_memory(run: Run) {
        let v = numbers(64);
        let got = run("conform_shared_memory", Grid::new(1, 64).shared(256), &v, 256);
        expect_rows(&got, &[&|t| v[63 - t], &|t| v[63 - t] * 3, &|t| v[63 - t] * 5, &|_| 0]);
    }

    pub fn cache_hints(run: Run) {
        let v = numbers(32);
        let got = run("conform_cache_hints", Grid::new(1, 32), &v, 160);
        expect_rows(&got, &[&|t| v[t], &|t| v[t], &|t| v[t], &|t| v[t], &|t| v[t]]);
    }

    pub fn bits(run: Run) {
        let mut v: Vec<u32> = numbers(64).iter().map(|v| v * 0x0204_0811).collect();
        v[..4].copy_from_slice(&[0, 1, u32::MAX, 1 << 31]);
        let wide = |t: usize| (v[t] as u64).wrapping_mul(0x1_0000_0001) << 7;
        let first = |zeros: u32, none: bool| if none { 0 } else { zeros + 1 };
        let bytes = |t: usize| [v[t].to_le_bytes(), 0xaabb_ccddu32.to_le_bytes()].concat();
        expect_rows(
            &run("conform_bits", Grid::new(1, 64), &v, 512),
            &[
                &|t| v[t].count_ones() | v[t].leading_zeros() << 8 | first(v[t].trailing_zeros(), v[t] == 0) << 16,
                &|t| {
                    let w = wide(t);
                    w.count_ones() | w.leading_zeros() << 8 | first(w.trailing_zeros(), w == 0) << 16
                },
                &|t| ((v[t] as u64 * 0x9E37_79B9) >> 32) as u32,
                &|t| ((wide(t) as u128 * 0x9E37_79B9_7F4A_7C15) >> 64) as u32,
                &|t| u32::from_le_bytes([2, 5, 1, 7].map(|i| bytes(t)[i])),
                &|t| u32::from_le_bytes([4, 0, 1, 7].map(|i| bytes(t)[i])),
                &|_| 0,
                &|t| (wide(t) >> 32) as u32,
            ],
        );
    }

    pub fn arithmetic(run: Run) {
        let v = numbers(64);
        let of = |t: usize| v[t] as i32 - 50;
        let min_max = |t: usize| (of(t).min(7) * 1000 + of(t).max(-7)) as u32;
        let power = |t: usize| if of(t) * 4 < -126 { 0 } else { 2f32.powi(of(t) * 4).to_bits() };
        expect_rows(
            &run("conform_arithmetic", Grid::new(1, 64), &v, 576),
            &[
                &min_max,
                &min_max,
                &|t| (of(t) * 9) as u32,
                &|_| 1,
                &|t| (of(t) * 4 + 4) as u32,
                &|_| 11,
                &power,
                &|_| 1,
                &|_| 1,
            ],
        );
    }

    /// Bits of floats: a stride through all of them, and each half's neighbourhood, where rounding decides.
    fn floats() -> Vec<u32> {
        let stride = (0..1u32 << 14).map(|i| i.wrapping_mul(262_147));
        let edges = (0..1u32 << 14).flat_map(|i| {
            let between = f16::from_bits(i as u16).to_f32().midpoint(f16::from_bits(i as u16 + 1).to_f32()).to_bits();
            [between - 1, between, between + 1]
        });
        stride.chain(edges).collect()
    }

    pub fn to_half(run: Run) {
        let v = floats();
        let got = run("conform_to_half", Grid::new(v.len() as u32 / 128, 128), &v, v.len() * 3);
        for (i, &bits) in v.iter().enumerate() {
            let f = f32::from_bits(bits);
            // NVIDIA's conversions give one NaN.
            let half = |f: f32| if f.is_nan() { 0x7fff } else { f16::from_f32(f).to_bits() as u32 };
            let brain = |f: f32| if f.is_nan() { 0x7fff } else { bf16::from_f32(f).to_bits() as u32 };
            let expected = [half(f) | brain(f) << 16, half(f) | half(-f) << 16, brain(-f) | brain(f) << 16];
            assert_eq!(got[i * 3..][..3], expected, "{f:e} ({bits:08x})");
        }
    }

    pub fn from_half(run: Run) {
        let v: Vec<u32> = (0..1 << 16).collect();
        let got = run("conform_from_half", Grid::new(256, 256), &v, v.len() * 2);
        for &bits in &v {
            let (half, brain) = (f16::from_bits(bits as u16), bf16::from_bits(bits as u16));
            let answer = &got[bits as usize * 2..][..2];
            let [from_half, from_brain] = [0, 1].map(|i| f32::from_bits(answer[i]));
            assert!(
                if half.is_nan() { from_half.is_nan() } else { answer[0] == half.to_f32().to_bits() },
                "{bits:04x}"
            );
            assert!(if brain.is_nan() { from_brain.is_nan() } else { answer[1] == bits << 16 }, "{bits:04x}");
        }
    }

    pub fn larger_halves(run: Run) {
        // Both zeros, both infinities, NaNs and the smallest; and what lies between.
        let odd = [0, 0x8000, 0x7C00, 0xFC00, 0x7F80, 0xFF80, 0x7FFF, 1, 0x8001, 0x7E00];
        let value = |i: u32| {
            if i.is_multiple_of(3) { odd[(i / 3) as usize % odd.len()] } else { i.wrapping_mul(40_503) & 0xFFFF }
        };
        let v: Vec<u32> = (0..256).map(|i| value(2 * i) | value(2 * i + 1) << 16).collect();
        // A NaN gives way, two are 0x7FFF, and +0 is above −0.
        let larger = |a: u32, b: u32, number: &dyn Fn(u16) -> f32| match [a, b].map(|bits| number(bits as u16)) {
            [x, y] if x.is_nan() && y.is_nan() => 0x7FFF,
            [x, y] if y.is_nan() || x > y || (x == y && x.is_sign_positive()) => a,
            _ => b,
        };
        let got = run("conform_larger_halves", Grid::new(1, 256), &v, 512);
        for i in 0..256 {
            let (a, b) = (v[i], v[(i * 7 + 3) % 256]);
            let both = |number: &dyn Fn(u16) -> f32| {
                larger(a & 0xFFFF, b & 0xFFFF, number) | larger(a >> 16, b >> 16, number) << 16
            };
            assert_eq!(got[2 * i], both(&|bits| f16::from_bits(bits).to_f32()), "{a:08x} {b:08x}");
            assert_eq!(got[2 * i + 1], both(&|bits| bf16::from_bits(bits).to_f32()), "{a:08x} {b:08x}");
        }
    }

    pub fn highest_of_warps(run: Run) {
        let odd = [f32::NEG_INFINITY, -0.0, 0.0, f32::INFINITY, -1e-40, f32::MIN, f32::MAX, -3.5];
        let mut v: Vec<f32> = (0..32 * 12).map(|i| -1000.0 + ((i * 7919) % 997) as f32).collect();
        for (warp, lanes) in v.chunks_mut(32).enumerate().take(8) {
            lanes.fill(f32::NEG_INFINITY);
            lanes[warp * 5 % 32] = odd[warp];
        }
        // A NaN comes through.
        v[32 * 9 + 11] = f32::NAN;
        let bits: Vec<u32> = v.iter().map(|x| x.to_bits()).collect();
        let got = run("conform_highest_of_warps", Grid::new(1, 384), &bits, 384);
        for (warp, (lanes, got)) in v.chunks(32).zip(got.chunks(32)).enumerate() {
            let want = lanes.iter().copied().max_by(f32::total_cmp).expect("32 lanes");
            assert!(got.iter().all(|&bits| bits == want.to_bits()), "{warp}: {want}");
        }
    }

    pub fn shuffles(run: Run) {
        let v = numbers(64);
        let at = |t: usize, lane: usize| v[t / 32 * 32 + lane];
        expect_rows(
            &run("conform_shuffles", Grid::new(1, 64), &v, 512),
            &[
                &|t| at(t, 5),
                &|t| at(t, t % 32 / 8 * 8 + 5),
                &|t| if t % 16 < 3 { v[t] } else { v[t - 3] },
                &|t| if t % 16 > 12 { v[t] } else { v[t + 3] },
                &|t| v[t ^ 17],
                // Beyond its group of 8 a lane reads only from groups before its own.
                &|t| if t & 8 == 0 { v[t] } else { v[t ^ 9] },
                &|t| v[t ^ 1],
                &|t| at(t, if t % 32 < 12 { 11 } else { 20 }),
            ],
        );
    }

    pub fn votes(run: Run) {
        let v = numbers(64);
        let warp = |t: usize| &v[t / 32 * 32..][..32];
        let mask = |t: usize, vote: &dyn Fn(u32) -> bool| (0..32).map(|i| (vote(warp(t)[i]) as u32) << i).sum::<u32>();
        let least = |t: usize| *warp(t).iter().min().unwrap();
        let most = |t: usize| *warp(t).iter().max().unwrap();
        expect_rows(
            &run("conform_votes", Grid::new(1, 64), &v, 640),
            &[
                &|t| mask(t, &|v| v & 1 != 0),
                &|t| warp(t).contains(&7) as u32 * 2 + warp(t).iter().all(|&v| v < 90) as u32,
                &|t| mask(t, &|other| other % 3 == v[t] % 3),
                &|t| warp(t).iter().sum(),
                &|t| (least(t) as i32 - 50) as u32,
                &|t| (most(t) as i32 - 90) as u32,
                &|t| least(t) * 256 + most(t),
                &|t| {
                    let (all, any) =
                        (warp(t).iter().fold(!0, |a, v| a & (v | 3)), warp(t).iter().fold(0, |a, v| a | v));
                    any << 16 | all << 8 | warp(t).iter().fold(0, |a, v| a ^ v)
                },
                &|_| v.iter().filter(|&v| v & 4 != 0).count() as u32,
                &|_| 2,
            ],
        );
    }

    pub fn syncwarp(run: Run) {
        let v = numbers(64);
        let got = run("conform_syncwarp", Grid::new(1, 64), &v, 64);
        expect_rows(&got, &[&|t| v[t / 32 * 32 + (t + 6) % 32] * 2]);
    }

    pub fn named_barriers(run: Run) {
        let v = numbers(64);
        expect_rows(&run("conform_named_barriers", Grid::new(1, 128), &v, 64), &[&|t| v[63 - t] * 3]);
    }

    pub fn block_sum(run: Run) {
        for threads in [32, 96, 1024] {
            let v = numbers(threads);
            let sum: u32 = v.iter().sum();
            let got = run("conform_block_sum", Grid::new(1, threads as u32), &v, 6);
            let (most, least) = (v[threads - 1] + 101 * (threads as u32 - 1), v.iter().min().unwrap());
            assert_eq!(got, [sum, sum * 2, sum, sum * 2, most, 100 - least], "{threads} threads");
        }
    }

    pub fn atomics(run: Run) {
        let v = numbers(256);
        let got = run("conform_atomics", Grid::new(4, 64), &v, 12);
        let sum: u32 = v.iter().sum();
        let (or, xor) = (v.iter().fold(0, |a, v| a | v), v.iter().fold(0, |a, v| a ^ v));
        assert_eq!(got[..8], [sum, sum.wrapping_neg(), 100, -100i32 as u32, or, 0, xor, sum]);
        assert_eq!(got[8] + got[9], sum, "what was exchanged out, and the last value in");
        assert_eq!(u64::from(got[10]) | u64::from(got[11]) << 32, u64::from(sum) << 30);
    }

    pub fn first_fault(run: Run) {
        let mut v = vec![0; 256];
        (v[70], v[75], v[200]) = (7, 7, 7);
        assert_eq!(run("conform_first_fault", Grid::new(1, 256), &v, 2), [70 << 8 | 5, 0]);
    }

    pub fn last_block(run: Run) {
        let v = numbers(40 * 32);
        let got = run("conform_last_block", Grid::new(40, 32), &v, 65);
        assert_eq!((got[0], got[64]), (v.iter().sum(), 40));
    }

    pub fn cp_async(run: Run) {
        let v: Vec<u32> = (0..256).map(|i| 0x0101_0101 * (i % 255 + 1)).collect();
        let got = run("conform_cp_async", Grid::new(1, 32).shared(1024), &v, 256);
        for copy in 0..64 {
            let bytes: &[u8] = bytemuck::cast_slice(&v[copy * 4..][..4]);
            let mut expected = [0u8; 16];
            expected[..5 * copy % 17].copy_from_slice(&bytes[..5 * copy % 17]);
            assert_eq!(bytemuck::cast_slice::<_, u8>(&got[copy * 4..][..4]), expected, "copy {copy}");
        }
    }

    pub fn ldmatrix(run: Run) {
        let rows: Vec<[u16; 8]> =
            (0..32).map(|row| [0, 1, 2, 3, 4, 5, 6, 7].map(|column| row * 256 + column)).collect();
        let got = run("conform_ldmatrix", Grid::new(1, 32).shared(512), bytemuck::cast_slice(&rows), 256);
        // Row r of matrix m is the one that lane 8 m + r names.
        let element = |matrix: usize, row: usize, column: usize| rows[(8 * matrix + row) * 5 % 32][column] as u32;
        let plain = |m: usize, i: usize, j: usize| element(m, i, j) | element(m, i, j + 1) << 16;
        let transposed = |m: usize, i: usize, j: usize| element(m, j, i) | element(m, j + 1, i) << 16;
        for lane in 0..32 {
            for m in 0..4 {
                assert_eq!(got[lane * 4 + m], plain(m, lane / 4, lane % 4 * 2), "lane {lane}, matrix {m}");
                assert_eq!(got[128 + lane * 4 + m], transposed(m, lane / 4, lane % 4 * 2), "lane {lane}, matrix {m}");
            }
        }
    }

    pub fn mma_f16(run: Run) {
        mma(run, "conform_mma_f16", |x| f16::from_f32(x as f32).to_bits());
    }

    pub fn mma_bf16(run: Run) {
        mma(run, "conform_mma_bf16", |x| bf16::from_f32(x as f32).to_bits());
    }

    /// Small integers, which are exact in both formats and in every order of summation.
    fn small(row: usize, column: usize, salt: usize) -> i32 {
        ((row * 31 + column * 17 + salt * 7 + row * column) % 23) as i32 - 11
    }

    fn product(row: usize, column: usize) -> i32 {
        (0..16).map(|k| small(row, k, 1) * small(k, column, 2)).sum()
    }

    /// The fragments of the PTX manual (mma.m16n8k16): a lane's group is lane / 4, its place in the group lane % 4.
    fn mma(run: Run, name: &str, bits: impl Fn(i32) -> u16) {
        let pair = |low: i32, high: i32| bits(low) as u32 | (bits(high) as u32) << 16;
        let mut input = vec![0u32; 320];
        for lane in 0..32 {
            let (group, place) = (lane / 4, lane % 4);
            for (i, (row, column)) in [(0, 0), (8, 0), (0, 8), (8, 8)].into_iter().enumerate() {
                let (row, column) = (group + row, place * 2 + column);
                input[lane * 4 + i] = pair(small(row, column, 1), small(row, column + 1, 1));
            }
            for i in 0..2 {
                let row = place * 2 + i * 8;
                input[128 + lane * 2 + i] = pair(small(row, group, 2), small(row + 1, group, 2));
            }
            for i in 0..4 {
                input[192 + lane * 4 + i] = (small(group + i / 2 * 8, place * 2 + i % 2, 3) as f32).to_bits();
            }
        }
        let got = run(name, Grid::new(1, 32), &input, 128);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
                let expected = product(row, column) + small(row, column, 3);
                assert_eq!(f32::from_bits(got[lane * 4 + i]), expected as f32, "row {row}, column {column}");
            }
        }
    }

    pub fn tile_product(run: Run) {
        let tile = |salt| (0..256).map(move |i| f16::from_f32(small(i / 16, i % 16, salt) as f32).to_bits());
        let halves: Vec<u16> = tile(1).chain(tile(2)).collect();
        let got = run("conform_tile_product", Grid::new(1, 32).shared(1024), bytemuck::cast_slice(&halves), 256);
        for i in 0..256 {
            assert_eq!(f32::from_bits(got[i]), product(i / 16, i % 16) as f32, "row {}, column {}", i / 16, i % 16);
        }
    }

    pub fn stmatrix(run: Run) {
        let value = |matrix: usize, row: usize, column: usize| (matrix * 64 + row * 8 + column) as u32;
        let pair =
            |m: usize, lane: usize| value(m, lane / 4, lane % 4 * 2) | value(m, lane / 4, lane % 4 * 2 + 1) << 16;
        let words: Vec<u32> = (0..64).map(|i| pair(i % 2, i / 2)).collect();
        let got = run("conform_stmatrix", Grid::new(1, 32).shared(256), &words, 64);
        if got.is_empty() {
            return;
        }
        for column in 0..16 {
            for word in 0..4 {
                let at = |row: usize| value(column / 8, row, column % 8);
                let expected = at(2 * word) | at(2 * word + 1) << 16;
                assert_eq!(got[column * 5 % 16 * 4 + word], expected, "column {column}, word {word}");
            }
        }
    }

    pub fn wgmma_f16(run: Run) {
        for columns in [16, 32, 64] {
            wgmma(run, &format!("conform_wgmma_{columns}"), columns, 1, |x| f16::from_f32(x as f32).to_bits());
        }
    }

    pub fn wgmma_bf16(run: Run) {
        wgmma(run, "conform_wgmma_bf16", 32, 1, |x| bf16::from_f32(x as f32).to_bits());
    }

    pub fn wgmma_trans(run: Run) {
        for columns in [32, 64, 128, 208] {
            wgmma(run, &format!("conform_wgmma_trans_{columns}"), columns, 8, |x| bf16::from_f32(x as f32).to_bits());
        }
    }

    /// The fragments of the PTX manual (wgmma.mma_async.m64nNk16): those of mma.m16n8k16, 16 rows a warp; and the product again
    /// with B from column `apart` on.
    fn wgmma(run: Run, name: &str, columns: usize, apart: usize, bits: impl Fn(i32) -> u16) {
        let pair = |low: i32, high: i32| bits(low) as u32 | (bits(high) as u32) << 16;
        let row = |thread: usize| thread / 32 * 16 + thread % 32 / 4;
        let mut input = Vec::new();
        for thread in 0..128 {
            for (down, right) in [(0, 0), (8, 0), (0, 8), (8, 8)] {
                let (row, column) = (row(thread) + down, thread % 4 * 2 + right);
                input.push(pair(small(row, column, 1), small(row, column + 1, 1)));
            }
        }
        for column in 0..columns + 8 {
            input.extend((0..8).map(|at| pair(small(2 * at, column, 2), small(2 * at + 1, column, 2))));
        }
        let got = run(name, Grid::new(1, 128).shared(8192), &input, 128 * columns / 2);
        for (at, &got) in got.iter().enumerate() {
            let (thread, i) = (at / (columns / 2), at % (columns / 2));
            let (row, column) = (row(thread) + i / 2 % 2 * 8, i / 4 * 8 + thread % 4 * 2 + i % 2);
            let expected = product(row, column) + product(row, column + apart) + (thread % 7 + i) as i32;
            assert_eq!(got as i32, expected, "{columns} columns: row {row}, column {column}");
        }
    }

    pub fn cluster(run: Run) {
        for size in [1, 2, 4] {
            let v = numbers(8 * 32);
            let shape = Grid::new(8, 32).shared(128).clusters(size as u32);
            let next = |i: usize| v[(i / 32 / size * size + (i / 32 + 1) % size) * 32 + 31 - i % 32];
            let got = run("conform_cluster", shape, &v, 512);
            if !got.is_empty() {
                expect_rows(&got, &[&next, &|i| next(i) * 3 + (size + 16 * (8 / size)) as u32]);
            }
        }
    }

    pub fn store_to_block(run: Run) {
        for size in [2, 4] {
            let v = numbers(4 * 32);
            let got = run("conform_store_to_block", Grid::new(4, 32).clusters(size as u32), &v, 4 * 32);
            let told = |i: usize, round: usize, from: usize| {
                v[(i / 32 / size * size + from) * 32 + (i % 32 + round) % 32].wrapping_mul(round as u32 + 1)
            };
            let all = |i: usize| (0..5).flat_map(move |round| (0..size).map(move |from| told(i, round, from)));
            if !got.is_empty() {
                expect_rows(&got, &[&|i| all(i).fold(0u32, |sum, x| sum.wrapping_mul(31).wrapping_add(x))]);
            }
        }
    }

    pub fn bulk_copy(run: Run) {
        let v = numbers(5 * 64);
        let got = run("conform_bulk_copy", Grid::new(1, 64).shared(512), &v, 64);
        if !got.is_empty() {
            expect_rows(&got, &[&|t| (0..5).map(|s| v[s * 64 + (t + s) % 64] * (s as u32 + 1)).sum()]);
        }
    }
}
