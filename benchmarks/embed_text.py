"""Texts to vectors, antpipe and `SentenceTransformer.encode`: `python -m benchmarks.embed_text`.

`encode` is at its defaults, with batches of 256 on a GPU.

All ways embed the same distinct texts in one process and take turns; the best turn of each counts, in wall and in CPU
time. The table also has the minimum cosine of each way's vectors to those of `encode`. The texts are generated from the
words of the sample shops, with lengths like titles with descriptions; `--table FILE --column NAME` reads real ones.
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.runtime.process import tune_process

WAYS = ("fp32", "bf16", "bf16-compiled", "onnx", "openvino")
PLAIN = "encode, defaults"


@dataclass
class Turn:
    """The best times of a way in seconds, and its vectors."""

    wall: float
    cpu: float
    vectors: Any


def made_up(count: int, seed: int = 0) -> list[str]:
    """Distinct texts of 3 to 300 words; half of them have at most 20."""
    from antpipe.features.ingest.sample.words import words

    tables = (words().styles, words().colours, words().materials)
    parts = [word for table in tables for group in table.values() for part in group for word in part.split()]
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(20), 0.9, count)), 3, 300).astype(int)
    return [" ".join([f"No. {n}", *rng.choice(parts, length)]) for n, length in enumerate(lengths)]


def from_table(path: Path, column: str, count: int, seed: int = 0) -> list[str]:
    """Distinct texts of a column of a CSV (also .gz) or Parquet file, drawn at random."""
    import polars as pl

    frame = (
        pl.read_parquet(path, columns=[column]) if path.suffix == ".parquet" else pl.read_csv(path, columns=[column])
    )
    texts = frame[column].cast(pl.String).drop_nulls().unique(maintain_order=True)
    texts = texts.filter(texts.str.strip_chars() != "")
    return texts.sample(min(count, len(texts)), seed=seed, shuffle=True).to_list()


def ways_of(names: list[str], encoder: str, budget: int, device: str) -> dict[str, Callable[[list[str]], Any]]:
    """The plain way first, then antpipe's embedder as embed-text uses it."""
    from sentence_transformers import SentenceTransformer

    from antpipe.features.embed_text import TOKENS_ON_CPU, TOKENS_ON_GPU
    from antpipe.features.encoders.located import quiet
    from antpipe.features.text.embedder import make_embedder
    from antpipe.features.text.encoders import TextSettings, locate_text_encoder

    located = locate_text_encoder(encoder, "another --encoder")
    with quiet():
        plain = SentenceTransformer(str(located.path), device=device)
    size = 32 if device == "cpu" else 256
    settings = TextSettings(
        located=located,
        device=device,
        backend="torch",
        precision="fp32",
        compile=False,
        prompt=None,
        prefix="",
        dims=None,
        normalize=False,
        token_budget=budget or (TOKENS_ON_CPU if device == "cpu" else TOKENS_ON_GPU),
    )
    known = {
        "fp32": settings,
        "bf16": replace(settings, precision="bf16"),
        "onnx": replace(settings, backend="onnx"),
        "bf16-compiled": replace(settings, precision="bf16", compile=True),
        "openvino": replace(settings, backend="openvino", precision="bf16"),
    }
    found: dict[str, Callable[[list[str]], Any]] = {
        PLAIN: lambda texts: plain.encode(texts, batch_size=size, show_progress_bar=False)
    }
    for name in names:
        began = time.perf_counter()
        embedder = make_embedder(known[name])
        if known[name].compile:
            print(f"antpipe {name}: {time.perf_counter() - began:.0f} s to load and compile")
        found[f"antpipe {name}"] = lambda texts, embedder=embedder: embedder(texts, lambda _: None).values
    return found


def compare(texts: list[str], ways: dict[str, Callable[[list[str]], Any]], repeats: int) -> dict[str, Turn]:
    """Let the ways take turns; each warms up on some texts first."""
    for way in ways.values():
        way(texts[:: max(1, len(texts) // 64)])
    best = {name: Turn(float("inf"), float("inf"), None) for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            vectors = way(texts)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            best[name] = Turn(min(best[name].wall, wall), min(best[name].cpu, cpu), vectors)
    return best


def show(texts: list[str], best: dict[str, Turn]) -> None:
    import torch

    plain = best[PLAIN]
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(
        f"{len(texts)} different texts of {words:.0f} words on average; torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, {platform.machine()}"
    )
    print(f"{'way':22}{'items/s':>9}{'wall s':>9}{'CPU s':>9}{'times':>8}{'of CPU':>8}{'least cosine':>14}")
    for name, turn in best.items():
        lengths = np.linalg.norm(plain.vectors, axis=1) * np.linalg.norm(turn.vectors, axis=1)
        cosine = ((plain.vectors * turn.vectors).sum(axis=1) / lengths).min()
        print(
            f"{name:22}{len(texts) / turn.wall:9.0f}{turn.wall:9.2f}{turn.cpu:9.2f}{plain.wall / turn.wall:7.2f}x"
            f"{plain.cpu / turn.cpu:7.2f}x{cosine:14.6f}"
        )


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--texts", type=int, default=2000, help="number of texts")
    parser.add_argument("--text-encoder", default="packaged/all-MiniLM-L6-v2", help="--encoder of embed-text")
    parser.add_argument("--text-ways", default="fp32,bf16", help=f"{', '.join(WAYS)}")
    parser.add_argument("--token-budget", type=int, default=0, help="--token-budget of embed-text")
    parser.add_argument("--table", type=Path, help="CSV or Parquet file to read the texts from")
    parser.add_argument("--column", default="title", help="its column")


def run(given: argparse.Namespace) -> None:
    """Measure and print the table. given: the flags of `add_flags`, repeats, quick and device."""
    names = given.text_ways.split(",")
    if not set(names) <= set(WAYS):
        raise SystemExit(f"--text-ways {given.text_ways}: choose from {', '.join(WAYS)}")
    count, repeats = (48, 1) if given.quick else (given.texts, given.repeats)
    texts = from_table(given.table, given.column, count) if given.table else made_up(count)
    show(texts, compare(texts, ways_of(names, given.text_encoder, given.token_budget, given.device), repeats))


def main() -> None:
    tune_process()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few texts, once, to see that it works")
    parser.add_argument("--repeats", type=int, default=5, help="turns per way")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    add_flags(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
