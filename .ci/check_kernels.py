"""Compiles every kernel for every architecture, prints what each needs, and fails where one spills or uses the stack, or
has products of warpgroups that ptxas makes wait for each other.

    NVCC=.../bin/nvcc python3 .ci/check_kernels.py [80 90a ...]

Without architectures: those of build.rs. Prints one Markdown table: kernel x architecture.
"""

import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
NVCC = os.environ.get("NVCC", "nvcc")
FLAGS = ["-cubin", "-std=c++17", "-O3", f"-I{ROOT / 'kernels'}", "-Xptxas=-v", "-Werror=all-warnings"]

ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)'")
STACK = re.compile(r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads")
USED = re.compile(r"Used (?P<registers>\d+) registers")
SERIALIZED = re.compile(r"wgmma.mma_async instructions are serialized .* in the function '(?P<name>\w+)'")
SHARED = re.compile(r"(?P<shared>\d+) bytes smem")

CELL = "{registers} / {shared} / {spills} / {stack}"


def architectures():
    """A100, H100, and the newest that nvcc knows; as in build.rs."""
    listed = subprocess.run([NVCC, "--list-gpu-code"], check=True, capture_output=True, text=True).stdout
    return ["80", "90a", str(max(int(number) for number in re.findall(r"sm_(\d+)", listed)))]


def usage(report):
    """What ptxas -v reports: {kernel: {registers, shared, spills, stack, serialized}}."""
    kernels, row = {}, None
    serialized = {match["name"] for match in SERIALIZED.finditer(report)}
    for line in report.splitlines():
        if match := ENTRY.search(line):
            name = match["name"]
            row = {"registers": 0, "shared": 0, "spills": 0, "stack": 0, "serialized": name in serialized}
            kernels[name] = row
        if row is None:
            continue
        if match := STACK.search(line):  # of the kernel, or of a function that it calls
            row["stack"] += int(match["stack"])
            row["spills"] += int(match["stores"]) + int(match["loads"])
        if match := USED.search(line):
            row["registers"] = int(match["registers"])
            row["shared"] = int(match["shared"]) if (match := SHARED.search(line)) else 0
    return kernels


def compiled(source, architecture):
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "kernels.cubin"
        command = [NVCC, *FLAGS, f"-arch=sm_{architecture}", str(source), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{source.name} for sm_{architecture}:\n{done.stdout}{done.stderr}")
    return usage(done.stdout + done.stderr)


def table(names, rows):
    """rows: {(source, kernel): {architecture: usage}}."""
    yield "| source | kernel | " + " | ".join(f"sm_{name}" for name in names) + " |"
    yield "| --- | --- |" + " --- |" * len(names)
    for (source, kernel), cells in sorted(rows.items()):
        texts = (CELL.format(**cells[name]) if name in cells else "" for name in names)
        yield f"| `{source}` | `{kernel}` | " + " | ".join(texts) + " |"


def main(names):
    names = names or architectures()
    sources = sorted((ROOT / "kernels").glob("*.cu"))
    jobs = [(source, name) for source in sources for name in names]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        reports = list(pool.map(lambda job: compiled(*job), jobs))
    rows = {}
    for (source, name), kernels in zip(jobs, reports):
        for kernel, row in kernels.items():
            rows.setdefault((source.name, kernel), {})[name] = row
    print("Registers / static shared memory / spills / stack, the last three in bytes, as ptxas reports them:\n")
    print("\n".join(table(names, rows)))
    bad = [f"{kernel} on sm_{name}" for (_, kernel), cells in rows.items()
           for name, row in cells.items() if row["spills"] or row["stack"] or row["serialized"]]
    if bad:
        sys.exit("spills, stack, or products one by one: " + ", ".join(bad))


if __name__ == "__main__":
    main(sys.argv[1:])
