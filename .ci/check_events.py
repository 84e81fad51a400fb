"""Reads the event file of a run with TensorBoard's own package, and holds it against the run's records.

    python3 check_events.py DIR
"""

import json
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main(directory):
    directory = pathlib.Path(directory)
    records = [json.loads(line) for line in (directory / "tuning.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(directory))
    events.Reload()
    tags = events.Tags()["scalars"]
    for tag, value in (("ess", lambda r: r["ess"]), ("log_z", lambda r: r["log_z"]),
                       ("kl/policy", lambda r: r["kl"] and r["kl"]["value"])):
        wanted = [(r["samples"], value(r)) for r in records if value(r) is not None]
        got = [(event.step, event.value) for event in events.Scalars(tag)] if wanted else []
        close = len(got) == len(wanted) and all(
            a[0] == b[0] and abs(a[1] - b[1]) <= 1e-5 * max(1, abs(b[1])) for a, b in zip(got, wanted))
        assert close, f"{tag}: expected {wanted}, got {got}"
    moments = len(records[0]["moments"])
    named = [tag for tag in tags if tag.startswith("moments/")]
    assert len(named) == moments, f"expected {moments} moments, got {named}"
    print(f"TensorBoard reads {len(tags)} curves of {len(records)} points")


main(*sys.argv[1:])
