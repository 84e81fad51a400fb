//! The build script's reading of what nvcc prints, and of CUDA_COMPUTE_CAP.

#[allow(dead_code)]
#[path = "../build.rs"]
mod build;

#[test]
fn the_release_that_nvcc_prints() {
    let printed = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild x\n";
    assert_eq!(build::release(printed), Ok((13, 0)));
    assert!(build::release("nvcc 13").is_err());
}

#[test]
fn architectures_by_default_and_by_choice() {
    let known = build::numbers("sm_75\nsm_80\nsm_90\nsm_100\nsm_110\nsm_103\ncompute_80\n");
    assert_eq!(known, [75, 80, 90, 100, 103, 110]);
    assert_eq!(build::architectures(None, &known).unwrap(), ["80", "90a", "110"]);
    assert_eq!(build::architectures(Some("90a, 80,80"), &known).unwrap(), ["80", "90a"]);
    assert_eq!(build::architectures(Some("90"), &known).unwrap(), ["90a"]);
    for refused in ["70", "", "80,", "sm_80", "90b"] {
        let error = build::architectures(Some(refused), &known).unwrap_err();
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn machine_code_for_each_and_ptx_of_the_lowest_and_of_the_first_with_clusters() {
    let names: Vec<String> = ["80", "90a"].map(String::from).into();
    let wanted = ["80,code=sm_80", "90a,code=sm_90a", "80,code=compute_80", "90,code=compute_90"];
    assert_eq!(build::targets(&names), wanted.map(|target| format!("-gencode=arch=compute_{target}")));
    assert_eq!(build::targets(&names[1..])[1..], ["-gencode=arch=compute_90,code=compute_90"]);
    assert_eq!(build::targets(&names[..1])[1..], ["-gencode=arch=compute_80,code=compute_80"]);
}
