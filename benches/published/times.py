"""Draws and seconds until a policy is within 1 % of P_lambda, from the records (tuning.jsonl) of finished runs.

A policy counts as there at the first evaluation with KL(p||pi) <= .01 * 31 * CE(P_lambda): its cross-entropy on samples of p
is then at most 1.01 times that of p itself. Evaluations come 20 a run, so that draws are right to a twentieth of the budget.

    python3 benches/published/times.py RESULTS [FILE.jsonl ...]

Further files, named SIZE-SEED-ANYTHING.jsonl, are the records of `benches/peers/tune_torch.py`.
"""
import json
import pathlib
import statistics
import sys

TOKENS = 31


def reached(records, entropy):
    """(draws, CPU seconds where they are known, else seconds) at the first evaluation within 1 %, or None; and the smallest KL seen."""
    known = [r for r in records if r["kl"] is not None]
    there = next((r for r in known if r["kl"]["value"] <= 0.01 * TOKENS * entropy), None)
    return there and (there["samples"], there.get("cpu_seconds", there["seconds"])), min((r["kl"]["value"] for r in known), default=None)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def main():
    results = pathlib.Path(sys.argv[1])
    rows, entropy = {}, {}
    for report in sorted(results.glob("*-*/*/report.json")):
        size, seed = report.parent.parent.name.split("-")
        records = report.parent / "tuning.jsonl"
        # REINFORCE is judged by its own draws on the way: once it has collapsed, they no longer show what it misses.
        if report.parent.name in ("base", "reinforce") or not records.exists():
            continue
        # Against the true distribution P_lambda is the truth: its cross-entropy is the entropy.
        entropy[size, seed] = json.loads(report.read_text())["ce"]["potential"]
        rows.setdefault((int(size), report.parent.name), []).append(reached(read(records), entropy[size, seed]))
    for path in map(pathlib.Path, sys.argv[2:]):
        size, seed, name = path.stem.split("-", 2)
        rows.setdefault((int(size), name), []).append(reached(read(path), entropy[size, seed]))
    print("| size of D | method | runs | within 1 % | draws, median | seconds, median | smallest KL, median |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (size, method), runs in sorted(rows.items()):
        there = [run for run, _ in runs if run]
        kl = [kl for _, kl in runs if kl is not None]
        draws, seconds = ([f"{statistics.median(run[k] for run in there):.0f}" for k in (0, 1)] if there else ["–", "–"])
        least = f"{statistics.median(kl):.3f}" if kl else "unknown"
        print(f"| {size} | {method} | {len(runs)} | {len(there)} | {draws} | {seconds} | {least} |")


if __name__ == "__main__":
    main()
