"""Draws and seconds until a policy is within 1 % of P_lambda, from the records (tuning.jsonl) of finished runs.

A policy counts as there at the first evaluation with KL(p||pi) <= .01 * 31 * CE(P_lambda): its cross-entropy on samples of p
is then at most 1.01 times that of p itself. Evaluations come 20 a run, so that draws are right to a twentieth of the budget.

    python3 benches/published/times.py RESULTS [FILE.jsonl ...]

CPU seconds are those of tuning by then: a draw has its share of the run's user seconds (cpu.txt) as far as the run's wall time
was tuning. Further files, named SIZE-SEED-ANYTHING.jsonl, are the records of `benches/peers/tune_torch.py`.
"""
import json
import pathlib
import statistics
import sys

TOKENS = 31


def reached(records, entropy, cpu_seconds):
    """(draws, CPU seconds or None) at the first evaluation within 1 %, or None; and the smallest KL seen."""
    known = [r for r in records if r["kl"] is not None]
    there = next((r for r in known if r["kl"]["value"] <= 0.01 * TOKENS * entropy), None)
    return there and (there["samples"], cpu_seconds(there)), min((r["kl"]["value"] for r in known), default=None)


def seconds_by(folder, report, records):
    """What tells the CPU seconds of tuning at a record; None where the run's were not noted."""
    file = folder / "cpu.txt"
    if not file.exists():
        return lambda record: None
    seconds = report["seconds"]
    a_draw = float(file.read_text().split()[-1]) * seconds["tune"] / seconds["total"] / records[-1]["samples"]
    return lambda record: record["samples"] * a_draw


def median(values):
    return f"{statistics.median(values):.0f}" if values and None not in values else "–"


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
        said, records = json.loads(report.read_text()), read(records)
        entropy[size, seed] = said["ce"]["potential"]
        cpu_seconds = seconds_by(report.parent, said, records)
        row = reached(records, entropy[size, seed], cpu_seconds)
        rows.setdefault((int(size), report.parent.name), []).append(row)
    for path in map(pathlib.Path, sys.argv[2:]):
        size, seed, name = path.stem.split("-", 2)
        rows.setdefault((int(size), name), []).append(reached(read(path), entropy[size, seed], lambda record: record["cpu_seconds"]))
    print("| size of D | method | runs | within 1 % | draws, median | CPU seconds, median | smallest KL, median |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (size, method), runs in sorted(rows.items()):
        there = [run for run, _ in runs if run]
        kl = [kl for _, kl in runs if kl is not None]
        draws, seconds = (median([run[k] for run in there]) for k in (0, 1))
        least = f"{statistics.median(kl):.3f}" if kl else "unknown"
        print(f"| {size} | {method} | {len(runs)} | {len(there)} | {draws} | {seconds} | {least} |")


if __name__ == "__main__":
    main()
