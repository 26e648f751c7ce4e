"""`ingest amazon` and `build-sequences` against a straightforward pipeline: `python -m benchmarks.ingest`.

Both read the same generated reviews (review_lines.py), drop identical lines, take the 5-core, sort and number; antpipe
also writes its store. Each run has its own process, to measure its own peak memory, and the two take turns. Their
results are compared before anything is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.review_lines import review_file

WAYS = {"plain": "straightforward", "antpipe": "antpipe"}
STEPS = {"wall": "wall s", "parsing": "parsing s", "cpu": "CPU s"}
MEMORY = {"parsing_peak": "MB, parsing", "peak": "MB, all"}


def run(way: str, path: Path, scratch: Path) -> dict[str, Any]:
    """One run in its own process: seconds, peak memory in MB, and a summary of the result."""
    words = [sys.executable, "-m", "benchmarks.ingest_worker", way, str(path), str(scratch)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=os.environ, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words[1:])} ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(path: Path, scratch: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Let both ways take turns. Returns the minimum seconds (the least disturbed run) and maximum memory of each."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way, done in runs.items():
            done.append(run(way, path, scratch))
    found = [one["found"] for done in runs.values() for one in done]
    if any(one != found[0] for one in found):
        raise SystemExit(f"{path}: the two ways do not find the same: {found}")
    print(
        f"{path.name}: "
        + ", ".join(f"{value:,} {name}" for name, value in found[0].items() if name != "sha256")
        + f"; both the same, sha256 {found[0]['sha256'][:16]}"
    )
    return {
        way: {name: min(one[name] for one in done) for name in STEPS}
        | {name: max(one[name] for one in done) for name in MEMORY}
        for way, done in runs.items()
    }


def show(table: dict[int, dict[str, dict[str, float]]]) -> None:
    names = STEPS | MEMORY
    print(f"{'way':17}{'lines':>11}{'lines/s':>10}" + "".join(f"{name:>13}" for name in names.values()) + "    times")
    for lines, ways in table.items():
        for way, figures in ways.items():
            values = "".join(f"{figures[name]:13.{2 if name in STEPS else 0}f}" for name in names)
            times = ways["plain"]["wall"] / figures["wall"]
            print(f"{WAYS[way]:17}{lines:11,}{lines / figures['wall']:10,.0f}{values}{times:9.1f}")
    if len(table) > 1:
        few, many = min(table), max(table)
        for way, name in WAYS.items():
            one, other = table[few][way], table[many][way]
            grown = {key: other[key] / one[key] for key in MEMORY}
            byte = (other["peak"] - one["peak"]) * 2**20 / (many - few)
            print(
                f"{name}: memory at {many:,} lines is {grown['parsing_peak']:.2f} times that at {few:,} for parsing, "
                f"{grown['peak']:.2f} times in all: {byte:.0f} bytes per further line"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", default="1000000,5000000", help="sizes, separated by commas")
    parser.add_argument("--folder", type=Path, help="where to keep the generated reviews (1.4 GB; default: nowhere)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    asked = parser.parse_args()
    sizes = [2_000, 6_000] if asked.quick else [int(part) for part in asked.lines.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.folder or Path(scratch)
        show(
            {
                lines: compare(review_file(folder, lines), Path(scratch), 1 if asked.quick else asked.repeats)
                for lines in sizes
            }
        )


if __name__ == "__main__":
    main()
