//! The table of a GPU's figures finds each of them, its peers, and its floor.

use ebm_dpg_emulator::results::table;
use serde_json::json;

#[test]
fn figures_peers_and_floors_meet_in_one_line() {
    let lstm = json!({ "hidden": 200, "layers": 2, "length": 30, "vocab": 30 });
    let with = |more: serde_json::Value| {
        let mut line = lstm.clone();
        line.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        line
    };
    let results = json!({
        "gpu": "NVIDIA H200", "driver": "580", "commit": "abc", "date": "2026-11-27",
        "median_ns": {
            "log_prob/cuda_bf16/8192x128256": 520e3,
            "log_prob_gradient/cuda_bf16/8192x128256": 1100e3,
            "log_prob/cpu_f32/512x32000": 1.0,
            "features_16/cuda_u16/1000000x128": 85e3,
            "linear/cuda_bf16_gradient/8192x4096x128256": 36e6,
            "sample/cuda": 1.0,
        },
        "programs": [
            with(json!({ "program": "draw", "batch": 1_000_000, "seconds": { "half": 0.084, "half_equals_split": 0.9 } })),
            with(json!({ "batch": 2048, "seconds": { "recorded": 0.004 } })),
            null,
        ],
        "peers": [
            with(json!({ "program": "torch 2", "batch": 1_000_000, "sample_only": true, "graph": true, "seconds": { "total": 0.42 } })),
            with(json!({ "program": "torch 2", "batch": 2048, "sample_only": false, "seconds": { "total": 0.1 } })),
            { "program": "torch 2", "rows": 8192, "vocab": 128_256, "dtype": "bfloat16", "pass": "forward", "form": "lean", "seconds": 0.00104 },
            { "peer": "quack", "operation": "log_prob_gradient", "shape": "8192x128256", "dtype": "bfloat16", "seconds": 0.0022 },
            { "peer": "liger", "operation": "log_prob_gradient", "shape": "8192x128256", "dtype": "bfloat16", "error": "no" },
        ],
    });
    let table = table(&results);
    let lines = [
        "| draw 1000000 sequences, half | 84.000 | 36.911 | 2.28 | torch 2, graph | 420.000 | 5.00 |",
        "| DPG step of 2048 sequences | 4.000 | 1.134 | 3.53 | torch 2 | 100.000 | 25.00 |",
        "| log_prob 8192x128256 bf16 | 0.520 | 0.489 | 1.06 | torch 2, lean | 1.040 | 2.00 |",
        "| log_prob_gradient 8192x128256 bf16 | 1.100 | 0.977 | 1.13 | quack | 2.200 | 2.00 |",
        "| features_16 1000000x128 u16 | 0.085 | 0.075 | 1.13 | – | – | – |",
        "| linear gradient 8192x4096x128256 bf16 | 36.000 | 32.685 | 1.10 | – | – | – |",
    ];
    for line in lines {
        assert!(table.contains(line), "{line} is not in\n{table}");
    }
    assert_eq!(table.lines().count(), 4 + lines.len(), "{table}");
}
