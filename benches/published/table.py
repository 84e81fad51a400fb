"""Draws the papers' table from the reports of run.py, means over seeds with their standard errors, as Markdown.

    python3 benches/published/table.py RESULTS

Where a method was run at several learning rates (folders METHOD@RATE) it has one row, at the rate whose KL(p‖π), as the runs
themselves judged it, is least in the mean over seeds: the test data have no say in it. `behind` is what the row's CE π exceeds
that of the size's best row by, seed by seed, since seeds differ by more than methods do.
"""
import collections
import json
import math
import pathlib
import re
import sys


def mean_and_error(values):
    """Mean and standard error; one value alone has no error."""
    centre = sum(values) / len(values)
    if len(values) == 1:
        return centre, math.nan
    return centre, math.sqrt(sum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values))


def mean(values, digits):
    """Mean ± standard error in text."""
    centre, error = mean_and_error(values)
    text = f"{centre:.{digits}f}"
    if not math.isnan(error):
        text += f" ± {error:.{digits}f}"
    # Of .5 the zero goes, of 10.5 none.
    return re.sub(r"\b0\.", ".", text)


def divergence(reports):
    """Mean KL(p‖π); a run that cannot tell, or is infinitely far, counts as the worst there is."""
    estimates = [r["kl_target_policy"]["estimate"] for r in reports]
    return math.inf if None in estimates else sum(estimates) / len(estimates)


def rates(results):
    """Reports by (size, method), then by learning rate, then by seed."""
    runs = collections.defaultdict(lambda: collections.defaultdict(dict))
    for path in sorted(results.glob("*-*/*/report.json")):
        method = path.parent.name.split("@")[0]
        if method != "base":
            report = json.loads(path.read_text())
            runs[report["data_size"], method][report["options"]["learning_rate"]][report["seed"]] = report
    return runs


def chosen(by_rate):
    """The rate of least divergence among those with the most seeds, and its reports by seed."""
    most = max(map(len, by_rate.values()))
    complete = {rate: reports for rate, reports in by_rate.items() if len(reports) == most}
    return min(complete.items(), key=lambda item: divergence(item[1].values()))


def main():
    runs = rates(pathlib.Path(sys.argv[1]))
    rows = {key: (*chosen(by_rate), sorted(by_rate)) for key, by_rate in runs.items()}
    policies = {key: {seed: r["ce"]["policy"] for seed, r in by_seed.items()} for key, (_, by_seed, _) in rows.items()}
    ranked = sorted(rows, key=lambda key: (key[0], mean_and_error(list(policies[key].values()))[0]))
    best = {}
    print("| size of D | method | rate | of | seeds | CE r | CE P_λ | CE π | CE π / P_λ | behind | KL(p‖π) "
          "| motif frequency r | π | tune s |")
    print("|" + " --- |" * 14)
    for key in ranked:
        size, method = key
        rate, by_seed, tried = rows[key]
        own, first = policies[key], policies[best.setdefault(size, key)]
        reports = list(by_seed.values())
        ce = [r["ce"] for r in reports]
        behind = [own[seed] - first[seed] for seed in own if seed in first]
        cells = [size, method, f"{rate:g}".lstrip("0"), " ".join(f"{r:g}".lstrip("0") for r in tried),
                 " ".join(map(str, by_seed)),
                 mean([c["r"] for c in ce], 4), mean([c["potential"] for c in ce], 4),
                 mean([c["policy"] for c in ce], 4), mean([c["policy"] / c["potential"] for c in ce], 4),
                 "–" if best[size] == key or not behind else mean(behind, 4),
                 "–" if math.isinf(divergence(reports)) else mean([r["kl_target_policy"]["estimate"] for r in reports], 3),
                 mean([r["motif_frequency"]["r"] for r in reports], 3),
                 mean([r["motif_frequency"]["policy"] for r in reports], 3),
                 mean([r["seconds"]["tune"] for r in reports], 0)]
        print("| " + " | ".join(map(str, cells)) + " |")


main()
