"""A text encoder without a model, replacing sentence-transformers; and a process that embeds a shop with it.

`python -m tests.support.fake_text_encoder STORE LOG SECONDS SIZE` prints `ready`, then embeds the domain `shop` in
shards of SIZE, each in at least SECONDS; the first text of a shard goes to LOG when its computation begins. Prints
figures and its peak memory at the end.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.features import embed_text as stage
from antpipe.features.encoders.located import Located
from antpipe.features.shards.folder import ShardVectors
from antpipe.features.text import precision
from antpipe.features.text.encoders import TextSettings
from antpipe.settings.features import TextConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.store import Store
from tests.support.fake_embedder import vector_of

SHARD = 10
CONFIG = TextConfig(encoder="fake", device="cpu", precision="bf16", shard_size=SHARD)


@dataclass
class FakeEncoder:
    """What embed-text needs from sentence-transformers. asked: every embedded text, by shard.

    noise: how far its bf16 vectors are from its fp32 vectors; noise32: how far the latter are from the library's.
    """

    noise: float = 0.0
    noise32: float = 0.0
    revision: str = "1"
    seconds: float = 0.0
    log: Path | None = None
    asked: list[list[str]] = field(default_factory=list)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(stage, "locate_text_encoder", self.locate)
        patch.setattr(stage, "choose_device", str)
        patch.setattr(precision, "reference", self.reference)
        for module in (stage, precision):
            patch.setattr(module, "make_embedder", self.make)

    def locate(self, name: str, _mend: str, _backend: str) -> Located:
        return Located(name, name, "folder", self.revision, Path(name))

    def reference(self, settings: TextSettings, texts: Sequence[str]) -> tuple[Any, dict[str, Any]]:
        vectors = embedded(settings, texts, 0.0)
        facts = {"name": "fake", "revision": self.revision, "precision": settings.precision}
        return vectors, facts | {"dimension": vectors.shape[1]}

    def make(self, settings: TextSettings) -> Callable[..., ShardVectors]:
        def embedder(contents: Sequence[str], advance: Callable[[int], None]) -> ShardVectors:
            if self.log is None:
                self.asked.append(list(contents))
            else:  # where memory is measured
                with self.log.open("a") as stream:
                    stream.write(f"{contents[0]}\n")
            time.sleep(self.seconds)
            advance(len(contents))
            noise = self.noise if settings.precision == "bf16" else self.noise32
            return ShardVectors(embedded(settings, contents, noise), np.ones(len(contents), np.bool_))

        return embedder

    def texts(self) -> list[str]:
        """All embedded texts, sorted."""
        return sorted(text for part in self.asked for text in part)


def embedded(settings: TextSettings, texts: Sequence[str], noise: float) -> Any:
    """(n, d) float32: a direction of its own per text, turned by the noise."""
    vectors = np.array([vector_of(text) for text in texts], np.float32)[:, : settings.dims]
    return vectors + noise * np.roll(vectors, 1, axis=1) * [1, -1, 1, -1][: vectors.shape[1]]


def embed(store: Store, config: TextConfig = CONFIG, **more: Any) -> StageResult:
    return stage.embed_text(store, "shop", config, **more)


if __name__ == "__main__":
    root, log, seconds, size = sys.argv[1:]
    with pytest.MonkeyPatch.context() as patch:
        FakeEncoder(seconds=float(seconds), log=Path(log)).install(patch)
        print("ready", flush=True)
        result = embed(Store(Path(root)), replace(CONFIG, shard_size=int(size)))
    # Not getrusage: its peak counts what the parent held when it started this process.
    [peak] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(json.dumps({"peak": int(peak.split()[1]) * 1024, **result.figures}))
