"""What embed-text and embed-image have in common: the way from a located encoder to a feature artefact.

Each stage finds its encoder, asks `fresh_result` whether there is anything to do, reads a digest of each item's
content, and settles on a precision with a sample. An `Embedding` then plans, computes and writes the vectors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import AntpipeError, Interrupted
from antpipe.features.encoders.located import Located
from antpipe.features.shards.compute import Embedder, Engine, Pace, Read, compute
from antpipe.features.shards.folder import ShardFolder, open_shards, remove_shards, sweep
from antpipe.features.shards.plan import Contents, EmbeddingPlan, Shard, assemble, earlier_vectors, plan_rows, shards_of
from antpipe.runtime.logs import log
from antpipe.runtime.progress import Update
from antpipe.settings.features import ImageConfig, TextConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import Transaction

UNITS = {"text": "texts", "image": "items"}  # what is counted


def parameters_of(located: Located, config: TextConfig | ImageConfig, names: Sequence[str]) -> dict[str, Any]:
    """What the artefact's fingerprint covers: the encoder, its revision, and the settings with these names."""
    return {"encoder": located.name, "revision": located.revision} | {name: getattr(config, name) for name in names}


def fresh_result(place: Domain, artefact: str, parameters: Mapping[str, Any], force: bool) -> StageResult | None:
    """The stage's result if its artefact is fresh; None if it has to be built. force: build it anyway."""
    if force or not place.is_fresh(artefact, parameters):
        return None
    sweep(place.path, artefact)
    return StageResult(place.name, artefact, "fresh", place.entry(artefact)["figures"])


def settled_before(place: Domain, artefact: str, parameters: Mapping[str, Any], force: bool) -> dict[str, Any]:
    """The recipe of the existing artefact if it was built with the same parameters, whatever its pictures; else empty.

    What was settled then is kept: a changed catalogue is no reason to compute all its vectors again.
    """
    entry = place.manifest().get(artefact, {})
    before = entry.get("parameters", {})
    if force or "recipe" not in entry or {**before, "pictures": None} != {**parameters, "pictures": None}:
        return {}
    recipe: dict[str, Any] = entry["recipe"]
    return recipe


@contextmanager
def building(place: Domain, artefact: str, parameters: Mapping[str, Any], again: str) -> Iterator[Transaction]:
    """Write an artefact. If the disk fails or on Ctrl-C, report what is kept and the command that continues.

    again: that command. Raises AntpipeError, or Interrupted on Ctrl-C.
    """
    try:
        with place.writing(artefact, parameters) as out:
            yield out
    except OSError as error:
        why = f"{error.filename or place.path}: {error.strerror or error}"
        raise AntpipeError(f"{why}; {artefact} is as before, and finished shards are kept", again) from error
    except KeyboardInterrupt:
        raise Interrupted(f"domain {place.name}: interrupted; finished shards are kept", again) from None


@dataclass(frozen=True)
class Embedding:
    """The contents of a domain's items, and how they become vectors.

    artefact: `text` or `image`. recipe: gives everything a vector depends on besides its content, for an embedder's
    settings. content: (N, 16). read: the contents of a shard. A shard is in memory as a whole: it has at most
    `shard_size` contents and, if their `sizes` (N,) are given, `shard_bytes` bytes. reuse: copy vectors of the existing
    artefact that were made by the same recipe.
    """

    place: Domain
    artefact: str
    recipe: Callable[[Any], dict[str, Any]]
    content: Contents
    read: Read
    shard_size: int
    sizes: NDArray[np.int64] | None = None
    shard_bytes: int = 0
    reuse: bool = True
    plans: dict[Any, EmbeddingPlan] = field(default_factory=dict, init=False)

    def plan(self, settings: Any) -> EmbeddingPlan:
        """What to copy and what to compute with these settings."""
        if settings not in self.plans:
            earlier = earlier_vectors(self.place, self.artefact, self.recipe(settings)) if self.reuse else None
            self.plans[settings] = plan_rows(self.content, earlier)
        return self.plans[settings]

    def open_folder(
        self, settings: Any, more: Mapping[str, Any], libraries: Sequence[str], at: str | None
    ) -> ShardFolder:
        """The folder of shards, with what an interrupted run of the same work finished.

        settings: as wanted, before a sample decides. more: what else the shards depend on, for their key. libraries:
        those whose versions are part of the key. at: --shards.
        """
        key = self.plan(settings).key(
            {
                **self.recipe(settings),
                **more,
                "id_table": self.place.entry("items")["id_table"],
                "shard": [self.shard_size, self.shard_bytes],
                "libraries": {name: version(name) for name in libraries},
            }
        )
        return open_shards(self.place.path, self.artefact, key, at)

    def compute(
        self, plan: EmbeddingPlan, make: Callable[[], Embedder], folder: ShardFolder, engine: Engine, update: Update
    ) -> tuple[list[Shard], Pace]:
        """Compute the missing shards; returns all shards, and the pace. make: makes an embedder, in any process."""
        new, unit = len(plan.compute), UNITS[self.artefact]
        if len(plan.copied):
            log.info(f"{self.place.name}: {new} new or changed {unit} to embed, {len(plan.copied)} kept from before")
        shards = shards_of(plan, self.shard_size, self.sizes, self.shard_bytes)
        pace = Pace(new, update, unit)
        compute(shards, make, self.read, folder, engine=engine, pace=pace)
        return shards, pace

    def write(
        self, plan: EmbeddingPlan, shards: Sequence[Shard], folder: ShardFolder, width: int, out: Transaction
    ) -> tuple[int, list[tuple[int, str]]]:
        """Write the feature: (N, width) float16. The folder of shards is removed once the artefact is in place.

        Returns how many items are present, and (row, reason) of what could not be embedded.
        """
        with out.feature(self.artefact, len(self.content), width, self.content) as feature:
            failures = assemble(feature, plan, shards, folder)
            present = int(feature.present.sum())
        out.afterwards = partial(remove_shards, folder)
        return present, failures


def least_cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The lowest cosine between corresponding rows of two (n, d) arrays; 1 without rows.

    A zero vector has cosine 1 to another one and 0 to anything else.
    """
    if np.array_equal(one, other):
        return 1.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.where(lengths > 0, (a * b).sum(1) / np.where(lengths > 0, lengths, 1), ~a.any(1) & ~b.any(1))
    return float(cosines.min(initial=1.0))


def figures_of(
    plan: EmbeddingPlan, present: int, pace: Pace, encoder: Mapping[str, Any], cosine: float, counts: Mapping[str, int]
) -> dict[str, Any]:
    """The stage's figures. encoder: its facts. cosine: the lowest on the sample. counts: those of this stage."""
    items, contents = len(plan.content), plan.figures()
    return {
        "items": items,
        "present": present,
        "coverage": round(present / items, 4),
        **counts,
        **{name: contents[name] for name in ("computed", "reused", "shared")},
        "width": encoder["dimension"],
        "encoder": encoder["name"],
        **{name: encoder[name] for name in ("precision", "decode") if name in encoder},
        "cosine": round(cosine, 6),
        "items_per_second": round(pace.rate(), 1),
    }
