"""embed-text: an item's text becomes a vector of a frozen sentence encoder.

The catalogue is read, embedded and written piece by piece (shards.py), each different text once. Vectors are computed
in bf16 where the processor is made for it, if a sample shows that they are those of fp32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.features.encoders.identity import Located, least_cosine, silent, unsaid
from antpipe.features.shards.engines import LOCAL, PLAIN, engine_of, worker_device
from antpipe.features.shards.files import ShardFolder, open_shards, remove_shards, sweep
from antpipe.features.shards.plan import (
    Contents,
    Pace,
    Plan,
    Shard,
    Show,
    assemble,
    compute,
    cut,
    earlier_vectors,
    plan_rows,
    told_of_disk,
)
from antpipe.features.text.batches import make_embedder
from antpipe.features.text.column import TextColumn
from antpipe.features.text.encoders import PACKAGED_TEXT, TextSettings, locate_text_encoder, reference
from antpipe.runtime.devices import choose_device, choose_precision, require_compiler
from antpipe.settings.base import flags_of
from antpipe.settings.features import EngineConfig, TextConfig
from antpipe.store.artefacts import ARTEFACTS, StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import Earlier
from antpipe.store.store import Store

# Where and in what steps to compute is for this machine, not for a repetition of the command.
MACHINE = ("device", "compile", "token_budget", "shard_size")
SAMPLE = 64  # texts whose vectors are compared with those of fp32
SAME = 0.9999  # cosine of vectors in fp32 that differ in rounding alone
SHARD_BYTES = 1 << 25  # of text, at most: a shard is in memory as a whole
BATCHING = 3  # how texts of a shard come together in batches; a higher number where that changes


def embed_text(
    store: Store,
    domain: str,
    config: TextConfig,
    *,
    force: bool = False,
    progress: Show = silent,
    say: Callable[[str], None] = unsaid,
    engine: EngineConfig = LOCAL,
) -> StageResult:
    """Write text.arrow: (N, d) float16, d the encoder's width; an item without text is zeros and not present.

    What is finished survives a kill; vectors of texts that were embedded before in the same way are copied. force:
    compute all anew. progress: is called with the texts done, all texts, and the pace; say: with what a user should
    know; engine: who computes the shards. Raises DataError where the encoder cannot be had or no item has a text,
    UsageError for an unknown packaged encoder, prompt or device; AntpipeError where the disk fails or another process
    writes the artefact.
    """
    place = store.domain(domain)
    run = engine_of(engine, say, PLAIN if engine.shards else None)
    mend = place.command("text", flags=flags_of(replace(config, encoder=PACKAGED_TEXT), MACHINE))
    located = locate_text_encoder(config.encoder, mend, config.backend)
    # The revision covers weights, pooling, prompts and length limit; what is left out changes rounding at most.
    names = ("prompt", "prefix", "dims", "normalize", "backend", "precision", "min_cosine")
    parameters = {"encoder": located.name, "revision": located.revision} | {n: getattr(config, n) for n in names}
    if not force and place.is_fresh("text", parameters):
        sweep(place.path, "text")
        return StageResult(domain, "text", "fresh", place.entry("text")["figures"])
    # With MACHINE: shards are those of these very steps, and other ones would begin anew.
    again = place.command("text", flags=flags_of(config) + flags_of(engine), force=force)
    with told_of_disk(place, "text", again), place.writing("text", parameters) as out:
        here = str(choose_device(config.device))
        device = worker_device(engine, config.device, here)
        wanted = _wanted(place, config, located, {} if force else parameters, here, device)
        work = _look(place, config, wanted, force)
        folder = _open(work, config, device, engine.shards)
        try:
            choice = _settle(work, folder, config.min_cosine, say)
        except DataError as error:
            raise DataError(error.message, error.next_command or mend) from error
        plan, earlier, shards = work.planned(choice.settings)
        if len(plan.copied):
            say(f"{domain}: {len(plan.compute)} new or changed texts to embed, {len(plan.copied)} kept from before")
        pace = Pace(len(plan.compute), progress, "texts")
        make = partial(make_embedder, replace(choice.settings, device=device))
        compute(shards, make, work.column, folder, engine=run, pace=pace, say=say)
        with out.feature("text", place.rows(), choice.facts["dimension"], work.content) as feature:
            assemble(feature, plan, shards, folder, earlier)
            present = int(feature.present.sum())
        figures = _figures(plan, present, choice, pace)
        details = {"encoder": choice.facts, "recipe": recipe(choice.settings), "figures": figures}
        out.details |= details | {"flags": flags_of(config, MACHINE)}
        out.afterwards = partial(remove_shards, folder, say)
    return StageResult(domain, "text", "built", figures)


def recipe(settings: TextSettings) -> dict[str, Any]:
    """All a vector depends on besides its text: what was computed with the same recipe can be copied."""
    return {
        "version": ARTEFACTS["text"].version,
        "source": settings.located.source,
        "revision": settings.located.revision,
        "prompt": settings.prompt,
        "prefix": settings.prefix,
        "dims": settings.dims,
        "normalize": settings.normalize,
        "backend": settings.backend,
        "precision": settings.precision,
    }


def _figures(plan: Plan, present: int, choice: "Choice", pace: Pace) -> dict[str, Any]:
    counts = plan.figures()
    return {
        "items": len(plan.content),
        "present": present,
        "coverage": round(present / len(plan.content), 4),
        "texts": counts["different"],
        **{name: counts[name] for name in ("computed", "reused", "shared")},
        "width": choice.facts["dimension"],
        "encoder": choice.facts["name"],
        "precision": choice.facts["precision"],
        "cosine": round(choice.cosine, 6),
        "items_per_second": round(pace.rate(), 1),
    }


# -- what is to be done ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A catalogue to embed. sizes: (N,) bytes of each text. wanted: how, if the sample does not speak against it."""

    place: Domain
    column: TextColumn
    content: Contents
    sizes: NDArray[np.int64]
    wanted: TextSettings
    shard_size: int
    force: bool
    plans: dict[TextSettings, tuple[Plan, Earlier | None, list[Shard]]] = field(default_factory=dict)

    def planned(self, settings: TextSettings) -> tuple[Plan, Earlier | None, list[Shard]]:
        """What to copy from where and what to compute, in which shards."""
        if settings not in self.plans:
            earlier = None if self.force else earlier_vectors(self.place, "text", recipe(settings))
            plan = plan_rows(self.content, earlier)
            self.plans[settings] = plan, earlier, cut(plan.compute, self.shard_size, self.sizes, SHARD_BYTES)
        return self.plans[settings]


def _wanted(
    place: Domain, config: TextConfig, located: Located, parameters: Mapping[str, Any], here: str, device: str
) -> TextSettings:
    """How to compute. What was decided when the artefact was built with the same parameters stands: a changed
    catalogue is no reason to compute all its vectors anew. here, device: of this process, which measures the sample,
    and of the embedders, for which the precision is chosen. UsageError where --compile lacks a compiler."""
    import torch

    entry = place.manifest().get("text", {})
    backend, precision = config.backend, choose_precision(config.precision, torch.device(device))
    if backend == "onnx":
        precision = "fp32"
    if "recipe" in entry and entry["parameters"] == parameters:
        backend, precision = entry["recipe"]["backend"], entry["recipe"]["precision"]
    if config.compile:
        require_compiler(torch.device(here))
    return TextSettings(
        located=located,
        device=here,
        backend=backend,
        precision=precision,
        compile=config.compile and backend == "torch",
        prompt=config.prompt,
        prefix=config.prefix,
        dims=config.dims,
        normalize=config.normalize,
        token_budget=config.token_budget,
    )


def _look(place: Domain, config: TextConfig, wanted: TextSettings, force: bool) -> Work:
    """Read all texts once, keeping what stands for them."""
    mend = place.command("items", force=True)
    path, fingerprint = (place.path / "items.parquet").absolute(), place.entry("items")["fingerprint"]
    column = TextColumn(str(path), mend, fingerprint, place.command("text"))
    content, sizes = column.scan(place.rows())
    if not content.any():
        raise DataError(f"domain {place.name}: no item has a text", mend)
    return Work(place, column, content, sizes, wanted, config.shard_size, force)


def _open(work: Work, config: TextConfig, device: str, at: str | None) -> ShardFolder:
    """The folder of what an interrupted run finished of this very work. device: of the embedders; at: --shards."""
    settings = {
        **recipe(work.wanted),
        "id_table": work.place.entry("items")["id_table"],
        "device": device,
        "compile": work.wanted.compile,
        "token_budget": work.wanted.token_budget,
        "batching": BATCHING,
        "shard": [work.shard_size, SHARD_BYTES],
        "asked": [config.precision, config.min_cosine],
        "libraries": {name: version(name) for name in ("torch", "transformers", "sentence-transformers")},
    }
    plan, _, _ = work.planned(work.wanted)
    return open_shards(work.place.path, "text", plan.key(settings), at)


# -- precision ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """How it is done. cosine: the least one to the vectors of the library in fp32, over a sample of the texts."""

    settings: TextSettings
    cosine: float
    facts: dict[str, Any]


def _settle(work: Work, folder: ShardFolder, least: float, say: Callable[[str], None]) -> Choice:
    """The settings that are wanted, or fp32 where a sample shows a cosine below `least`; what an interrupted run
    settled stands. DataError where not even fp32 gives the vectors of the library."""
    notes = folder.notes()
    plain = replace(work.wanted, backend="torch", precision="fp32", compile=False)
    if notes:
        there = next(one for one in (work.wanted, plain) if recipe(one) == notes["recipe"])
        return Choice(there, notes["cosine"], notes["facts"])
    for settings in dict.fromkeys((work.wanted, plain)):
        choice = _measured(work, settings)
        if choice.cosine >= (SAME if settings == plain else least):
            folder.note({"recipe": recipe(settings), "cosine": choice.cosine, "facts": choice.facts})
            return choice
        if settings != plain:
            how = f"{settings.backend} {settings.precision}{' compiled' if settings.compile else ''}"
            say(
                f"{work.place.name}: the cosine of {how} to fp32 vectors is only {choice.cosine:.5f} (--min-cosine "
                f"{least}): computing in fp32 instead"
            )
    raise DataError(
        f"text encoder {plain.located.asked}: in batches its vectors are not those of the library's encode: cosine "
        f"{choice.cosine:.5f}"
    )


def _measured(work: Work, settings: TextSettings) -> Choice:
    """The least cosine of these settings: measured on texts that are to be computed, and as it was for copied ones."""
    plan, earlier, _ = work.planned(settings)
    cosines, facts = [], {}
    if earlier is not None:
        entry = work.place.manifest()["text"]
        cosines, facts = [float(entry["figures"]["cosine"])], entry["encoder"] | {"name": settings.located.name}
    if len(plan.compute):
        by_size = plan.compute[np.argsort(work.sizes[plan.compute], kind="stable")]
        chosen = np.unique(np.linspace(0, len(by_size) - 1, min(SAMPLE, len(by_size))).astype(int))
        sample = work.column.at(np.sort(by_size[chosen]))
        expected, facts = reference(settings, sample)
        vectors = make_embedder(settings)(sample, lambda _: None)
        cosines.append(least_cosine(expected, np.asarray(vectors.values, np.float32)))
    return Choice(settings, min(cosines), facts)
