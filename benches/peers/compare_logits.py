"""ebm-dpg against PyTorch on logits, pass by pass in turn: ours, log_softmax and gather, lean, each also compiled.

    python3 compare_logits.py [--rounds 9] [--compile] [--dtypes float32 bfloat16] [--shapes 512x32000 …]

Needs a Python that has torch. Prints a Markdown table in ms, each cell the median over the rounds and in brackets the
least, after one round that does not count: for each shape and pass ours, PyTorch's forms, what the machine takes for the
memory (the logits read; for a gradient read, then rewritten) and for the exponentials, and the ratios of the fastest form to
ours and of ours to the floor, which is the larger of the two. Exponentials are one for each logit, from the caches, as the
crate computes them: for a gradient too, which needs no more, although ours computes each a second time where it keeps none
from the pass that must find every error before the other one writes.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import time

import torch

from logits_torch import lean_log_prob, log_prob

CRATE = pathlib.Path(__file__).resolve().parent.parent.parent
WARM_UP = 1
# PyTorch's threads spin a while for more work; ours would compete with them.
PAUSE = 0.02
OURS = ("log_prob", "gradient", "read", "rewrite", "exp")
SHAPES = ("4194304x2", "131072x64", "32768x256", "512x32000", "256x50257", "128x128256")


class Ours:
    """The crate's passes over rows of its own: a process that answers each pass with its seconds."""

    def __init__(self, rows, vocab, dtype):
        work = ["--rows", str(rows), "--vocab", str(vocab), "--dtype", dtype]
        command = ["cargo", "run", "--quiet", "--release", "--example", "logits", "--", *work]
        self.process = subprocess.Popen(command, cwd=CRATE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, name):
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"error: example logits ended at pass {name}, exit status {self.process.wait()}")
        return float(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def torch_passes(rows, vocab, dtype, compiled):
    """Name and function of each form's passes."""
    torch.manual_seed(0)
    logits = torch.randn(rows, vocab).to(getattr(torch, dtype))
    tokens, weights = torch.randint(vocab, (rows,)), torch.randn(rows)
    forms = {"log_softmax": log_prob, "lean": lean_log_prob}
    if compiled:
        forms |= {f"{name}, compiled": torch.compile(form) for name, form in forms.items()}

    def forward(form):
        with torch.no_grad():
            return form(logits, tokens)

    def gradient(form):
        leaf = logits.detach().requires_grad_(True)
        (weights * form(leaf, tokens)).sum().backward()
        return leaf.grad

    for name, form in forms.items():
        yield ("log_prob", name), lambda form=form: forward(form)
        yield ("gradient", name), lambda form=form: gradient(form)


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(rows, vocab, dtype, rounds, compiled):
    """Median and least seconds by pass and side."""
    ours = Ours(rows, vocab, dtype)
    sides = {(name, "ebm-dpg"): lambda name=name: ours.seconds(name) for name in OURS}
    theirs = torch_passes(rows, vocab, dtype, compiled)
    sides |= {key: lambda work=work: timed(work) for key, work in theirs}
    found = {key: [] for key in sides}
    for _ in range(WARM_UP + rounds):
        for key, side in sides.items():
            time.sleep(PAUSE)
            found[key].append(side())
    ours.close()
    counted = {key: seconds[WARM_UP:] for key, seconds in found.items()}
    return {key: (statistics.median(seconds), min(seconds)) for key, seconds in counted.items()}


def cell(pair, form="{:.2f}"):
    return "{} ({})".format(*(form.format(value) for value in pair))


def ratio(of, to):
    return cell([a / b for a, b in zip(of, to)], "{:.1f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="PyTorch's forms by torch.compile too")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16"])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="ROWSxVOCAB")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds: expected 1 or more, got {options.rounds}")
    subprocess.run(["cargo", "build", "--quiet", "--release", "--example", "logits"], cwd=CRATE, check=True)

    forms = ["log_softmax", "lean"] + (["log_softmax, compiled", "lean, compiled"] if options.compile else [])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ms\n")
    print("| shape | pass | ebm-dpg | " + " | ".join(forms) + " | memory | exp | fastest / ebm-dpg | ebm-dpg / floor |")
    print("| --- " * (7 + len(forms)) + "|")
    for dtype in options.dtypes:
        for shape in options.shapes:
            rows, vocab = map(int, shape.split("x"))
            found = compare(rows, vocab, dtype, options.rounds, options.compile)
            read, rewrite, exp = (found[name, "ebm-dpg"] for name in ("read", "rewrite", "exp"))
            for name, memory in (("log_prob", read), ("gradient", [sum(pair) for pair in zip(read, rewrite)])):
                mine, others = found[name, "ebm-dpg"], [found[name, form] for form in forms]
                cells = [cell([1e3 * seconds for seconds in pair]) for pair in (mine, *others, memory, exp)]
                fastest = [min(each) for each in zip(*others)]
                cells += [ratio(fastest, mine), ratio(mine, [max(pair) for pair in zip(memory, exp)])]
                print(f"| {shape} {dtype} | {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
