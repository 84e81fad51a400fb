"""Checks the results of two runs of an example with one seed: every key is there, nothing but the times differs.

    python3 check_reports.py DIR DIR [TOLERANCE]

With a tolerance the runs may be of two devices, whose numbers differ by rounding.
"""

import json
import math
import pathlib
import sys

ESTIMATE = {"estimate", "standard_error"}
KEYS = {
    "motif": None, "mode": None, "length": None, "data_size": None, "features": None, "method": None, "seed": None,
    "options": None, "warnings": None, "entropy_per_token": None, "lambda": None, "ess": None, "samples_used": None,
    "proposal_swaps": None, "ce": {"r", "potential", "policy"}, "motif_frequency": {"r", "policy"},
    "log_z": ESTIMATE, "kl_target_policy": ESTIMATE, "tv_target_policy": ESTIMATE,
    "seconds": {"base", "fit", "tune", "total"},
}
MOTIF = {"moments": {"data", "potential"}}
TEXT = {"moments": {"wanted", "base", "potential", "policy"}, "kl_policy_base": ESTIMATE}


def differences(report, keys):
    """Keys of the report, or of an object in it, that are not those expected."""
    yield from ((key, "top") for key in report.keys() ^ keys.keys())
    for key, inner in keys.items():
        if inner is not None and key in report and set(report[key]) != inner:
            yield key, sorted(report[key])


def close(a, b, tolerance):
    """Whether two values of JSON agree but for rounding."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], tolerance) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= tolerance * max(1, abs(a))
    return a == b


def main(first, second, tolerance=None):
    directories = [pathlib.Path(directory) for directory in (first, second)]
    reports = [json.loads((directory / "report.json").read_text()) for directory in directories]
    for directory, report in zip(directories, reports):
        bad = list(differences(report, {**KEYS, **(MOTIF if report["motif"] is not None else TEXT)}))
        assert not bad, f"{directory}: keys not as expected: {bad}"
        for phase, seconds in report.pop("seconds").items():
            assert math.isfinite(seconds) and seconds >= 0, f"{directory}: seconds of {phase}: {seconds}"
        curves = sorted(directory.glob("*.svg"))
        assert curves, f"{directory}: expected curves as SVG, got none"
        left = list(directory.glob("*.tmp-*")) + list(directory.glob(".probe-*"))
        assert not left, f"{directory}: left behind: {left}"
    if tolerance is not None:
        devices = [report["options"].pop("device") for report in reports]
        assert devices[0] != devices[1], f"expected two devices, got {devices[0]} twice"
    apart = [key for key in reports[0] if not close(reports[0][key], reports[1][key], float(tolerance or 0))]
    assert not apart, f"same seed, different report: {apart}"


if __name__ == "__main__":
    main(*sys.argv[1:])
