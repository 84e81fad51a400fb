//! Runs each case on every backend that has kernels, and moves values there and back.
#![allow(dead_code, unused_imports, unused_macros, reason = "each test file uses its own part")]

use ebm_dpg::backend::gpu::{Gpu, GpuBuffer, Launcher};
use ebm_dpg::backend::{Element, Memory};

/// Runs `cases::name` on every schedule of the emulator, or the first few, and on a GPU where the machine has one; with
/// `older too` also on emulated devices of compute capability 8.0, for kernels that differ there.
macro_rules! on_every_backend {
    ($($name:ident),* $(,)?) => {
        on_every_backend!(schedules: usize::MAX; $($name),*);
    };
    (older too: $($name:ident),* $(,)?) => {
        on_every_backend!($($name),*);
        mod older {
            use super::*;
            $(#[test]
            fn $name() {
                for schedule in ebm_dpg_emulator::Schedule::all() {
                    let emulator = ebm_dpg_emulator::Emulator::new(schedule).expect("opened").limited(schedule.older());
                    cases::$name(&Gpu::new(emulator).expect("opened"));
                }
            })*
        }
    };
    (schedules: $most:expr; $($name:ident),* $(,)?) => {
        $(mod $name {
            use super::*;

            #[test]
            fn emulated() {
                for schedule in ebm_dpg_emulator::Schedule::all().into_iter().take($most) {
                    cases::$name(&ebm_dpg_emulator::Emulator::open(schedule).expect("opened"));
                }
            }

            #[cfg(feature = "cuda")]
            #[test]
            fn cuda() {
                if let Some(gpu) = ebm_dpg_emulator::driver::first_gpu() {
                    cases::$name(&gpu);
                }
            }
        })*

        #[cfg(feature = "cuda")]
        #[test]
        fn every_case_by_way_of_the_driver() {
            let output = ebm_dpg_emulator::driver::rerun_with_fake("::cuda", &[]);
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{out}{err}");
            assert!(!out.contains(" 0 passed"), "{out}");
        }
    };
}
pub(crate) use on_every_backend;

/// `values` in device memory.
pub fn upload<L: Launcher, T: Element>(gpu: &Gpu<L>, values: &[T]) -> GpuBuffer<L, T> {
    let mut buffer = gpu.zeros(values.len(), "values").unwrap();
    gpu.upload(values, &mut buffer).unwrap();
    buffer
}

/// All of `buffer`, whatever the status word says.
pub fn download<L: Launcher, T: Element>(gpu: &Gpu<L>, buffer: &GpuBuffer<L, T>) -> Vec<T> {
    let mut values = vec![T::default(); Gpu::<L>::len(buffer)];
    // A fault is reported after the copy.
    let _ = gpu.download(buffer, &mut values);
    values
}

/// The bits, so that NaN equals itself; all NaNs are one.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { f32::NAN } else { *value }.to_bits()).collect()
}

/// As [`bits`].
pub fn bits64(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| if value.is_nan() { f64::NAN } else { *value }.to_bits()).collect()
}

/// A reproducible stream of numbers in [−1, 1), exact in f32.
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}
