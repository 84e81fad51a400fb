"""ebm-dpg against PyTorch on one DPG step, interleaved: ours, theirs, ours, theirs …; prints medians and their ratio.

    python3 compare.py [--rounds 5] [--torch-python PYTHON] [--batch 2048 …]

Interleaving lets both sides see the same heat, neighbours and clock. Further options go to both programs.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
CRATE = HERE.parent.parent
PHASES = ("sample", "score", "features", "gradient", "total")


def seconds_of(command):
    """Runs a program and returns the seconds of the JSON line it ends with."""
    result = subprocess.run(command, cwd=CRATE, stdout=subprocess.PIPE, text=True)
    lines = result.stdout.strip().splitlines()
    if result.returncode != 0 or not lines:
        sys.exit(f"error: {' '.join(map(str, command))}: expected a JSON line, got exit status {result.returncode}")
    return json.loads(lines[-1])["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has torch")
    for name, default in dict(batch=2048, hidden=200, layers=2, length=30, vocab=4, repeats=5).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args())
    rounds, python = options.pop("rounds"), options.pop("torch_python")
    if rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {rounds}")
    work = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    ours = ["cargo", "run", "--quiet", "--release", "--example", "step", "--", *work]
    theirs = [python, HERE / "dpg_torch.py", *work]
    subprocess.run(["cargo", "build", "--quiet", "--release", "--example", "step"], cwd=CRATE, check=True)

    pairs = []
    for done in range(rounds):
        pairs.append((seconds_of(ours), seconds_of(theirs)))
        print(f"round {done + 1}/{rounds}: " + ", ".join(
            f"{side} {options['batch'] / seconds['total']:.0f} sequences/s" for side, seconds in
            zip(("ebm-dpg", "torch"), pairs[-1])), file=sys.stderr)

    print(f"{'seconds':<10}{'ebm-dpg':>12}{'torch':>12}{'torch / ebm-dpg':>18}")
    for phase in PHASES:
        mine, other = (statistics.median(pair[side][phase] for pair in pairs) for side in (0, 1))
        print(f"{phase:<10}{mine:>12.5f}{other:>12.5f}{other / mine:>18.2f}")


if __name__ == "__main__":
    main()
