"""The cost of planning the embedding of a catalogue: `python -m benchmarks.planning`. Prints memory and seconds.

The memory of the process that plans and hands out shards grows with the number of items and pictures only. Picture
names are as long as those of fetch-images; their files need not exist.
"""

import argparse
import resource
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from antpipe.features.image.pictures import (
    Picture,
    PictureLists,
    first_of_each_item,
    hashed,
    listed_pictures,
    pictures_digest,
)
from antpipe.features.shards.plan import cut, plan_rows


def peak() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kept() -> int:
    """Current memory of this process in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def list_pictures(count: int) -> None:
    """Do what embed-image does before it embeds, with `count` picture names, one per item."""
    before, begun = kept(), time.monotonic()

    def found() -> list[Picture]:
        names = ([f"pictures/{number % 256:02x}/{number:040x}.jpg"] for number in range(count))
        return first_of_each_item(listed_pictures(Path("/store/domain"), list(names)), 4)

    pictures = [replace(one, sha256=f"{one.row:064x}") for one in hashed(found())]
    pictures_digest(pictures)
    assert found() == pictures  # as embed-image compares them with the items, later
    lists = PictureLists.of(pictures, count)
    assert lists.content.any()
    seconds = time.monotonic() - begun
    print(
        f"{count:,} pictures: {(kept() - before) / count:.0f} bytes per picture, at most "
        f"{(peak() - before) / count:.0f}, {seconds:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=5_000_000)
    parser.add_argument("--pictures", type=int, help="list this many pictures instead")
    parser.add_argument("--shard-size", type=int, default=8192)
    asked = parser.parse_args()
    if asked.pictures:
        list_pictures(asked.pictures)
        return
    before, begun = peak(), time.monotonic()
    content = np.random.default_rng(0).integers(0, 256, (asked.items, 16), dtype=np.uint8)
    plan = plan_rows(content)
    shards = cut(plan.compute, asked.shard_size)
    plan.key({})
    seconds = time.monotonic() - begun
    print(
        f"{asked.items:,} items: {(peak() - before) / asked.items:.0f} bytes per item, {seconds:.1f} s, "
        f"{len(shards):,} shards"
    )


if __name__ == "__main__":
    main()
