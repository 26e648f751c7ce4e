"""embed-image and the plain way: `python -m benchmarks.embed_image --pictures DIR`.

The plain way loops over files: PIL, the model's own transform, and `encode_image` in fp32, one picture at a time as in
the README of open_clip, or in batches. Ours is what the stage calls per shard: decoding ahead of the model, scaled or
exact, in threads or processes, and bf16. All ways take turns in one process, so that other load affects them equally;
the best round counts. Wall and CPU time (subprocesses included) are per picture.

open_clip's package comes without weights, so they are random here, which takes the same time. `--image-encoder` takes
any encoder of embed-image, such as packaged/efficientnet-lite0, whose cosines are meaningful.
"""

import argparse
import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.runtime.process import tune_process

Vectors = NDArray[np.float32]
BATCH = 32


@dataclass
class Way:
    """name: in the table. run: embeds all pictures, (n, d). wall, cpu: seconds per round."""

    name: str
    run: Callable[[], Vectors]
    vectors: Vectors | None = None
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def round(self) -> None:
        before, began = cpu_seconds(), time.perf_counter()
        self.vectors = self.run()
        self.wall.append(time.perf_counter() - began)
        self.cpu.append(cpu_seconds() - before)


def cpu_seconds() -> float:
    """CPU seconds of this process and, on Linux, of its decoding processes."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def made_up_pictures(folder: Path, count: int, side: int) -> list[Path]:
    """JPEGs with the coarse shapes and fine grain of photographs, so that decoding takes as long as for those."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 9, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((side, side * 4 // 3), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = random.normal(0, 3, pixels.shape[:2]).astype(np.int16)[:, :, None]
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=88)
    return sorted(folder.glob("*.jpg"))


@contextmanager
def pictures(given: Path | None, count: int, side: int) -> Iterator[list[Path]]:
    """`count` files; those of the folder are repeated if there are fewer."""
    if given is not None:
        found = sorted(path for path in given.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
        if not found:
            raise SystemExit(f"--pictures {given}: no pictures")
        yield (found * (count // len(found) + 1))[:count]
        return
    with tempfile.TemporaryDirectory() as folder:
        different = made_up_pictures(Path(folder), min(count, 24), side)
        yield (different * (count // len(different) + 1))[:count]


def plain_ways(located: Any, paths: Sequence[Path]) -> list[Way]:
    import torch
    from PIL import Image

    from antpipe.features.encoders.located import quiet
    from antpipe.features.image.encoders import library_model

    with quiet():
        transform, network, _ = library_model(located, torch.device("cpu"))
    encode = getattr(network, "encode_image", network)

    def loop(size: int) -> Vectors:
        found = []
        with torch.inference_mode():
            for start in range(0, len(paths), size):
                batch = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + size]]
                found.append(encode(torch.stack(batch)).numpy())
        return np.concatenate(found)

    return [Way("plain, one at a time", lambda: loop(1)), Way(f"plain, batches of {BATCH}", lambda: loop(BATCH))]


def our_ways(located: Any, paths: Sequence[Path], workers: int, quick: bool) -> list[Way]:
    from antpipe.features.image.embedder import make_embedder
    from antpipe.features.image.encoders import ImageSettings
    from antpipe.features.image.pictures import PictureFile
    from antpipe.runtime.devices import cpu_multiplies_bf16

    hashes = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in set(paths)}
    contents = [(PictureFile(str(path), hashes[path]),) for path in paths]
    base = ImageSettings(located, "cpu", "fp32", "exact", None, False, BATCH, 0)

    def way(name: str, settings: ImageSettings) -> Way:
        embedder = make_embedder(settings)
        return Way(name, lambda: np.asarray(embedder(contents, lambda _: None).values))

    scaled = replace(base, decode="scaled")
    ways = [way("antpipe fp32, exact", base), way("antpipe fp32, scaled", scaled)]
    if cpu_multiplies_bf16():
        fast = replace(scaled, precision="bf16")
        ways += [way("antpipe bf16, exact", replace(fast, decode="exact")), way("antpipe bf16, scaled", fast)]
        scaled = fast
    if workers and not quick:
        name = f"{ways[-1].name}, {workers} process{'es' if workers > 1 else ''}"
        ways.append(way(name, replace(scaled, workers=workers)))
    return ways


def random_weights(model: str, folder: Path) -> str:
    """An encoder name: an open_clip model with a checkpoint of random weights."""
    import open_clip
    import torch

    from antpipe.features.encoders.located import quiet

    torch.manual_seed(0)
    path = folder / "random.pt"
    with quiet():
        torch.save(open_clip.create_model(model).state_dict(), path)
    return f"{model}/{path}"


def cosines(one: Vectors, other: Vectors) -> Vectors:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(1) / lengths)


def show(ways: Sequence[Way], count: int) -> None:
    reference = ways[1]
    assert reference.vectors is not None
    print(
        f"{'way':34}{'wall ms':>9}{'CPU ms':>9}{'pictures/s':>12}{'times':>7}{'of batches':>12}"
        f"{'least cosine':>14}{'mean':>10}"
    )
    for way in ways:
        assert way.vectors is not None
        wall, cpu = (min(seconds) / count * 1e3 for seconds in (way.wall, way.cpu))
        near = cosines(way.vectors, reference.vectors)
        print(
            f"{way.name:34}{wall:9.1f}{cpu:9.1f}{1e3 / wall:12.1f}{min(ways[0].wall) / min(way.wall):7.1f}"
            f"{min(reference.wall) / min(way.wall):12.1f}{near.min():14.5f}{near.mean():10.5f}"
        )


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pictures", type=Path, help="folder of pictures (default: generated, 3:4)")
    parser.add_argument("--side", type=int, default=1500, help="width of generated pictures")
    parser.add_argument("--picture-count", type=int, default=192, help="number of pictures; files may be repeated")
    parser.add_argument("--image-model", default="ViT-B-32", help="open_clip model, with random weights")
    parser.add_argument("--image-encoder", help="use this --encoder of embed-image instead")
    parser.add_argument("--workers", type=int, default=1, help="processes of the way with processes (0: skip it)")


def run(given: argparse.Namespace) -> None:
    """Measure and print the table. given: the flags of `add_flags`, repeats and quick."""
    import torch

    from antpipe.features.image.encoders import locate_image_encoder

    torch.manual_seed(0)
    count, side, repeats = (6, 300, 1) if given.quick else (given.picture_count, given.side, given.repeats)
    with tempfile.TemporaryDirectory() as folder, pictures(given.pictures, count, side) as paths:
        name = given.image_encoder or random_weights(given.image_model, Path(folder))
        located = locate_image_encoder(name, "")
        ways = plain_ways(located, paths) + our_ways(located, paths, given.workers, given.quick)
        print(f"{located.name}: {count} pictures, {torch.get_num_threads()} threads")
        for number in range(repeats + (not given.quick)):
            for way in ways:
                way.round()
            if not number and not given.quick:  # the first round warms up
                for way in ways:
                    way.wall.clear()
                    way.cpu.clear()
        show(ways, count)


def main() -> None:
    tune_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small pictures, once, to see that it works")
    parser.add_argument("--repeats", type=int, default=3, help="turns per way")
    add_flags(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
