//! The choice of a device, on machines without a driver.

use ebm_dpg::backend::{Device, Opened};

/// Whether this build could find a driver here.
fn has_driver() -> bool {
    #[cfg(feature = "cuda")]
    // SAFETY: loads and unloads a library of the system.
    return unsafe { ebm_dpg::cudarc::driver::sys::is_culib_present() };
    #[cfg(not(feature = "cuda"))]
    false
}

#[test]
fn auto_is_the_cpu_without_a_driver() {
    if !has_driver() {
        assert_eq!(Device::auto(), Device::Cpu);
    }
    assert!(matches!(Device::Cpu.open(), Ok(Opened::Cpu(_))));
}

#[test]
fn a_gpu_without_a_driver_is_an_error_of_one_line() {
    if has_driver() {
        return;
    }
    let line = Device::Cuda(0).open().unwrap_err().to_string();
    let expected = if cfg!(feature = "cuda") {
        "cuda:0: no NVIDIA driver on this machine: libcuda was not found"
    } else {
        "device: expected cpu or auto (this build holds no GPU kernels), got cuda:0"
    };
    assert_eq!(line, expected);
}
