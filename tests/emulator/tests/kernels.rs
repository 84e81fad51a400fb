//! Every kernel through the crate's own launches, against the CPU backend and the f64 oracle.

use ebm_dpg::adam::{AdamKernel, AdamOptions, AdamState};
use ebm_dpg::backend::gpu::{Gpu, Launcher};
use ebm_dpg::backend::{Cpu, Memory};

mod support;
use support::on_every_backend;

on_every_backend!(adam_follows_the_cpu);

mod cases {
    use super::*;

    pub fn adam_follows_the_cpu<L: Launcher>(gpu: &Gpu<L>) {
        let len = 9001;
        let options = AdamOptions { clip: 0.5, ..Default::default() };
        let gradient: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let mut parameters = vec![1.0f32; len];
        let (mut on_cpu, mut on_gpu) = (AdamState::new(&Cpu, len).unwrap(), AdamState::new(gpu, len).unwrap());
        let (mut device_gradient, mut device) = (gpu.zeros(len, "gradient").unwrap(), gpu.zeros(len, "x").unwrap());
        gpu.upload(&gradient, &mut device_gradient).unwrap();
        gpu.upload(&parameters, &mut device).unwrap();
        for _ in 0..3 {
            Cpu.adam(&options, None, &mut on_cpu, &gradient, &mut parameters).unwrap();
            let view = Gpu::<L>::view(&device_gradient, len);
            gpu.adam(&options, None, &mut on_gpu, view, Gpu::<L>::view_mut(&mut device, len)).unwrap();
        }
        let (got, want) = (on_gpu.take_norms(gpu).unwrap(), on_cpu.take_norms(&Cpu).unwrap());
        assert!(got.count == 3 && (got.mean() - want.mean()).abs() < 1e-12 * want.mean(), "{got:?} and {want:?}");
        assert_eq!(on_gpu.take_norms(gpu).unwrap().count, 0);
        let mut got = vec![0.0f32; len];
        gpu.download(&device, &mut got).unwrap();
        for (at, (a, b)) in got.iter().zip(&parameters).enumerate() {
            assert!((a - b).abs() <= 2e-7, "parameter {at}: {a} and {b}");
        }
    }
}
