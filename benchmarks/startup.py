"""How long `engram --help` takes to answer, as a ratio to `import torch`.

    python benchmarks/startup.py [--rounds 5]

Both are processes of their own, measured in turn; medians are compared.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from ratios import Ratio, add_option, publish

PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "engram --help": ["-m", "engram", "--help"],
}


def seconds(arguments: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    options = parser.parse_args()
    measured: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(options.rounds + 1):
        for name, arguments in PROGRAMS.items():
            measured[name].append(seconds(arguments))
    # The first round fills the caches of the file system.
    medians = {name: statistics.median(found[1:]) for name, found in measured.items()}
    for name, median in medians.items():
        print(f"{name:14} {1000 * median:7.0f} ms")
    value = medians["engram --help"] / medians["import torch"]
    publish([Ratio("Time of engram --help", "import torch", value, "at most 0.25")], options.ratios)


if __name__ == "__main__":
    main()
