"""The papers' table: motif 10001011111000, LSTM 2x200, flags 1001111, over data sizes, methods and seeds.

Each row is one run of the `motif` example in a folder of its own; a row whose report is there is not run again, so
that the table can be made in pieces. The base r of a data size and seed is trained once and shared by its rows.

    python3 benches/published/run.py RESULTS [--workers 2] [--sizes 500 5000] [--seeds 1 2 3] [--only dpg-guided ...]
    python3 benches/published/run.py RESULTS --objectives [--sizes 500 5000] [--only js ...] [--rate 0.001]

`--objectives`: every objective side by side at hidden 64, all from the base's parameters and towards the same P_lambda of
finite coefficients, as some objectives cannot have a requirement. `--rate`: at another learning rate, in folders named
METHOD@RATE beside the others. `benches/published/table.py RESULTS` draws either table.
"""
import argparse
import itertools
import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
MOTIF = ["--motif", "10001011111000", "--features", "1001111", "--layers", "2"]
SETTING = [*MOTIF, "--hidden", "200", "--batch", "64"]
OBJECTIVES_SETTING = [*MOTIF, "--hidden", "64", "--batch", "128"]
RATE, OBJECTIVES_RATE = 0.003, 0.004
METHODS = {
    "dpg-guided": ["--method", "dpg-off", "--proposal", "guided"],
    "dpg-base": ["--method", "dpg-off", "--proposal", "base"],
    "distill": ["--method", "distill", "--proposal", "base"],
    "true": ["--method", "dpg-off", "--target", "true"],
    # With a hard constraint a fresh policy would see no reward at all: the papers' finite λ instead.
    "reinforce": ["--method", "reinforce", "--baseline", "--fit", "sgd"],
}
# A frozen q need not cover π: only divergences whose coefficients are positive weights, without a baseline, can bear that.
OFF_POLICY = ("tv", "js", "chi2", "alpha:0.5")
ON_POLICY = ("reverse-kl", *OFF_POLICY, "reverse-chi2")
OBJECTIVES = {name: [*options, "--fit", "sgd", "--init", "base"] for name, options in {
    "distill": ["--method", "distill"],
    "dpg": ["--method", "dpg-off"],
    "dpg-baseline": ["--method", "dpg-off", "--baseline"],
    "gdc++": ["--method", "dpg-on", "--baseline"],
    **{name: ["--method", "dpg-off", "--divergence", name] for name in OFF_POLICY},
    **{f"{name}-on": ["--method", "dpg-on", "--baseline", "--divergence", name] for name in ON_POLICY},
    "balance": ["--method", "balance"],
    "sub-balance": ["--method", "sub-balance"],
    "kl-control": ["--method", "kl-control", "--baseline=leave-one-out"],
    "reinforce": ["--method", "reinforce", "--baseline=leave-one-out"],
}.items()}
BASE_ONLY = ["--samples", "128"]


def motif(out, setting, options, threads):
    """Runs the example unless its report is there; returns whether the report is there now. cpu.txt gets its user seconds."""
    if not (out / "report.json").exists():
        out.mkdir(parents=True, exist_ok=True)
        command = [os.environ.get("MOTIF", str(ROOT / "target/release/examples/motif")), *setting, *options]
        env = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
        with open(out / "log.txt", "w") as log:
            run = subprocess.Popen([*command, "--out", str(out)], env=env, stdout=log, stderr=subprocess.STDOUT)
            _, run.returncode, used = os.wait4(run.pid, 0)
        (out / "cpu.txt").write_text(f"{used.ru_utime:.2f}\n")
    done = (out / "report.json").exists()
    print("done  " if done else "FAILED", out.relative_to(out.parents[1]), flush=True)
    return done


def row(results, size, seed, method, options_of, setting, samples, usual_rate, rate):
    """One row, the method on the base of (size, seed). `true` needs no base."""
    rate = usual_rate if rate is None else rate
    out = results / f"{size}-{seed}" / (method if rate == usual_rate else f"{method}@{rate:g}")
    options = ["--data-size", str(size), "--seed", str(seed), "--samples", str(samples), "--learning-rate", str(rate),
               *options_of[method]]
    if method != "true":
        options += ["--base", str(results / f"{size}-{seed}" / "base" / "base.safetensors")]
    motif(out, setting, options, 1)


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("results", type=pathlib.Path)
    a.add_argument("--workers", type=int, default=2, help="runs at a time, one thread each")
    a.add_argument("--sizes", type=int, nargs="+", default=[500, 5000, 20000])
    a.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    a.add_argument("--objectives", action="store_true", help="every objective at hidden 64 instead")
    a.add_argument("--only", nargs="+", choices=[*METHODS, *OBJECTIVES])
    a.add_argument("--rate", type=float, help="a learning rate other than the setting's")
    a.add_argument("--samples", type=int, default=32_000, help="draws of every row: equal budgets")
    o = a.parse_args()
    results = o.results.resolve()
    of_objectives, of_methods = (OBJECTIVES, OBJECTIVES_SETTING, OBJECTIVES_RATE), (METHODS, SETTING, RATE)
    methods, setting, rate = of_objectives if o.objectives else of_methods
    only = o.only or (list(OBJECTIVES) if o.objectives else ["dpg-guided", "dpg-base", "distill"])
    if unknown := [name for name in only if name not in methods]:
        a.error(f"--only: expected of {', '.join(methods)}, got {', '.join(unknown)}")
    if not os.environ.get("MOTIF"):
        subprocess.run(["cargo", "build", "--release", "--example", "motif"], cwd=ROOT, check=True)
    cells = list(itertools.product(o.sizes, o.seeds))
    with ThreadPoolExecutor(o.workers) as pool:
        if only != ["true"]:
            list(pool.map(lambda cell: motif(results / f"{cell[0]}-{cell[1]}" / "base", setting, [
                "--data-size", str(cell[0]), "--seed", str(cell[1]), "--learning-rate", str(rate), *BASE_ONLY], 1), cells))
        rows = [(size, seed, method) for method in only for size, seed in cells]
        list(pool.map(lambda r: row(results, *r, methods, setting, o.samples, rate, o.rate), rows))


if __name__ == "__main__":
    sys.exit(main())
