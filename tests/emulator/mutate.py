#!/usr/bin/env python3
"""Leaves out each synchronisation of the kernels in turn, and demands that some test then fails.

    tests/emulator/mutate.py [--sample N] [--seed S]

A site whose absence cannot be seen says why at the end of its line: `// mutation: <why>`.
"""
import argparse
import concurrent.futures
import functools
import json
import os
import pathlib
import random
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = ["-p", "ebm-dpg-emulator", "--tests"]
SYNCHRONISATION = re.compile(
    r"\b(__syncthreads\w*|__syncwarp|cp_async_wait<.*?>|named_barrier_\w+|cluster_(sync|arrive|wait)|mbar_wait\w*|"
    r"fence_async\w*|wgmma_wait<.*?>)\(")
EXEMPT = re.compile(r"// mutation: (.+)")
SECONDS = 120  # a test that runs longer hangs, and so has failed


def sites():
    """(file relative to kernels/, line number, statement, reason to skip it or None), from the sources."""
    kernels = ROOT / "kernels"
    for path in sorted([*kernels.glob("*.cu"), *kernels.glob("common/*.cuh")]):
        if path.name == "device.cuh":  # defines the wrappers
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if found := SYNCHRONISATION.search(line.split("//")[0]):
                exempt = EXEMPT.search(line)
                yield str(path.relative_to(kernels)), number, found[1], exempt and exempt[1]


def tests():
    """(executable, test) of each test of the kernels; builds them first."""
    output = subprocess.run(["cargo", "test", "--no-run", "--message-format=json", *PACKAGE], cwd=ROOT, check=True,
                            stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in output.stdout.splitlines()]
    # Programs that the tests call are built, too.
    built = [message for message in messages if message.get("executable") and message["profile"]["test"]]
    for executable in sorted(message["executable"] for message in built):
        listed = subprocess.run([executable, "--list"], check=True, stdout=subprocess.PIPE, text=True)
        yield from ((executable, line.removesuffix(": test")) for line in listed.stdout.splitlines()
                    if line.endswith(": test"))


@functools.cache
def fails(executable, test, dropped=None):
    """Whether the test fails with this site left out, if any."""
    environment = {**os.environ, "EMULATOR_DROP": dropped} if dropped else os.environ
    try:
        run = subprocess.run([executable, "--exact", test], env=environment, timeout=SECONDS,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return True
    return run.returncode != 0


def words(text):
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def finder(all_tests, name, line):
    """The first test that fails without line `line` of file `name`, and with it does not; or None."""
    # Tests whose program or name shares words with the file's name first: they are the likeliest to fail.
    shared = lambda test: len(words(f"{pathlib.Path(test[0]).name} {test[1]}") & words(pathlib.Path(name).stem))
    likely = sorted(all_tests, key=shared, reverse=True)
    finds = lambda test: fails(*test, f"{name}:{line}") and not fails(*test)
    return next((test for executable, test in likely if finds((executable, test))), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="only so many sites, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    found = list(sites())
    if not found:
        sys.exit("no synchronisation found in kernels/: has its spelling changed?")
    if options.sample is not None and options.sample < len(found):
        found = sorted(random.Random(options.seed).sample(found, options.sample))
    all_tests = list(tests())

    missed = 0
    print(f"{'site':32}{'statement':24}found by")
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        finders = pool.map(lambda site: site[3] and f"(exempt: {site[3]})" or finder(all_tests, *site[:2]), found)
        for (name, line, statement, _), by in zip(found, finders):
            missed += by is None
            print(f"{f'{name}:{line}':32}{statement:24}{by or 'NO TEST'}", flush=True)
    if missed:
        sys.exit(f"{missed} of {len(found)} synchronisations can be left out and no test fails")


if __name__ == "__main__":
    main()
