"""Draws the papers' table from the reports of run.py, means over seeds with their standard errors, as Markdown.

    python3 benches/published/table.py RESULTS
"""
import collections
import json
import math
import pathlib
import sys


def mean(values, digits):
    """Mean ± standard error; one value alone has no error."""
    centre = sum(values) / len(values)
    text = f"{centre:.{digits}f}"
    if len(values) > 1:
        variance = sum((v - centre) ** 2 for v in values) / (len(values) - 1)
        text += f" ± {math.sqrt(variance / len(values)):.{digits}f}"
    return text.replace("0.", ".")


def main():
    rows = collections.defaultdict(list)
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*-*/*/report.json")):
        if path.parent.name != "base":
            report = json.loads(path.read_text())
            rows[report["data_size"], path.parent.name].append(report)
    print("| size of D | method | seeds | CE r | CE P_λ | CE π | CE π / P_λ | motif frequency r | π | tune s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (size, method), reports in sorted(rows.items()):
        ce = [r["ce"] for r in reports]
        cells = [size, method, " ".join(str(r["seed"]) for r in reports),
                 mean([c["r"] for c in ce], 4), mean([c["potential"] for c in ce], 4),
                 mean([c["policy"] for c in ce], 4), mean([c["policy"] / c["potential"] for c in ce], 4),
                 mean([r["motif_frequency"]["r"] for r in reports], 3),
                 mean([r["motif_frequency"]["policy"] for r in reports], 3),
                 mean([r["seconds"]["tune"] for r in reports], 0)]
        print("| " + " | ".join(map(str, cells)) + " |")


main()
