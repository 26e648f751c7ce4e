"""What planning a catalogue's embedding costs: `python -m benchmarks.planning`. Prints memory and seconds.

The process that plans, and hands out shards, keeps something for each item; the rest of its memory does not grow.
"""

import argparse
import resource
import time

import numpy as np

from antpipe.features.shards import cut, plan_rows


def peak() -> int:
    """Bytes of memory this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=5_000_000)
    parser.add_argument("--shard-size", type=int, default=8192)
    asked = parser.parse_args()
    before, begun = peak(), time.monotonic()
    content = np.random.default_rng(0).integers(0, 256, (asked.items, 16), dtype=np.uint8)
    plan = plan_rows(content)
    shards = cut(plan.compute, asked.shard_size)
    plan.key({})
    seconds = time.monotonic() - begun
    print(f"{asked.items:,} items: {(peak() - before) / asked.items:.0f} bytes an item, {seconds:.1f} s, "
          f"{len(shards):,} shards")  # fmt: skip


if __name__ == "__main__":
    main()
