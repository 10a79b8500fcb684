"""How long `engram --help` takes to answer, as a ratio to `import torch`.

    python benchmarks/startup.py [--rounds 5]

Both are processes of their own, measured in turn; medians are compared.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial

from ratios import Ratio, add_option, alternate, medians, publish

PROGRAMS = {
    "import torch": ["-c", "import torch"],
    "engram --help": ["-m", "engram", "--help"],
}


def run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    add_option(parser)
    options = parser.parse_args()
    # The call that is not counted fills the caches of the file system.
    programs = {name: partial(run, arguments) for name, arguments in PROGRAMS.items()}
    found = medians(alternate(programs, options.rounds))
    for name, median in found.items():
        print(f"{name:14} {1000 * median:7.0f} ms")
    value = found["engram --help"] / found["import torch"]
    publish([Ratio("Time of engram --help", "import torch", value, "at most 0.25")], options.ratios)


if __name__ == "__main__":
    main()
