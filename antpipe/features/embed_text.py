"""embed-text: each item's text becomes a vector of a frozen sentence encoder.

The catalogue is read, embedded and written piece by piece (shards/), each different text once. Vectors are computed in
bf16 if the processor is made for it and a sample shows that they are those of fp32.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from antpipe.errors import DataError
from antpipe.features.encoders.located import Located
from antpipe.features.replacing import command_of, require_same_encoder
from antpipe.features.shards.compute import AS_IT_IS
from antpipe.features.shards.embedding import (
    Embedding,
    building,
    figures_of,
    fresh_result,
    parameters_of,
    settled_before,
)
from antpipe.features.shards.engine import LOCAL, engine_of, worker_device
from antpipe.features.text.column import TextColumn
from antpipe.features.text.embedder import make_embedder
from antpipe.features.text.encoders import PACKAGED_TEXT, TextSettings, locate_text_encoder
from antpipe.features.text.precision import recipe, settle
from antpipe.runtime.devices import choose_device, choose_precision, require_compiler
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.base import flags_of
from antpipe.settings.features import EngineConfig, TextConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command
from antpipe.store.store import Store

# Settings in the fingerprint. The revision covers weights, pooling, prompts and length limit; the settings left out
# change rounding at most.
FINGERPRINTED = ("prompt", "prefix", "dims", "normalize", "backend", "precision", "min_cosine")
# Where and in what steps to compute: settings of this machine, left out when the command is repeated.
# Tokens per batch. CPU: what fits into a processor's cache. GPU: what keeps all of it busy for some milliseconds, and
# takes about 1 GB in an encoder of width 1,024.
TOKENS_ON_CPU, TOKENS_ON_GPU = 2048, 65_536
MACHINE = ("device", "compile", "token_budget", "shard_size")
SHARD_BYTES = 1 << 25  # of text per shard, at most
BATCHING = 3  # version of how a shard's texts are batched; increase it when that changes
LIBRARIES = ("torch", "transformers", "sentence-transformers")


def embed_text(
    store: Store,
    domain: str,
    config: TextConfig,
    *,
    engine: EngineConfig = LOCAL,
    force: bool = False,
    progress: Progress = silent,
) -> StageResult:
    """Write text.arrow: (N, d) float16, d the encoder's width. An item without text is zeros and not present.

    Finished shards survive a kill. Vectors of texts that were embedded in the same way before are copied. engine: what
    computes the shards. force: recompute everything. progress counts different texts.

    Raises DataError if the encoder is not available or no item has a text, UsageError for an unknown packaged encoder,
    prompt or device, AntpipeError if the disk fails or another process writes the artefact, Interrupted on Ctrl-C.
    """
    place = store.domain(domain)
    run = engine_of(engine, AS_IT_IS if engine.shards else None)
    packaged = command_of(place, "text", replace(config, encoder=PACKAGED_TEXT), MACHINE)
    located = locate_text_encoder(config.encoder, packaged, config.backend)
    parameters = parameters_of(located, config, FINGERPRINTED)
    if fresh := fresh_result(place, "text", parameters, force):
        return fresh
    # MACHINE included: only the same steps make the same shards.
    again = build_command(place, "text", flags=flags_of(config) + flags_of(engine), force=force)
    require_same_encoder(place, "text", config, parameters, again, force)
    with progress(f"{domain} text") as update, building(place, "text", parameters, again) as out:
        here = str(choose_device(config.device))
        device = worker_device(engine, config.device, here)
        wanted = _wanted(config, located, settled_before(place, "text", parameters, force), here, device)
        column = _column(place)
        content, sizes = column.scan(place.rows())
        if not content.any():
            raise DataError(f"domain {domain}: no item has a text", build_command(place, "items", force=True))
        work = Embedding(place, "text", recipe, content, column, config.shard_size, sizes, SHARD_BYTES, not force)
        more = {
            "device": device,
            "compile": wanted.compile,
            "token_budget": wanted.token_budget,
            "batching": BATCHING,
            "asked": [config.precision, config.min_cosine],
        }
        folder = work.open_folder(wanted, more, LIBRARIES, engine.shards)
        try:
            settled = settle(work, column, wanted, folder, config)
        except DataError as error:
            raise DataError(error.message, error.next_command or packaged) from error
        plan, facts = work.plan(settled.settings), settled.facts
        make = partial(make_embedder, replace(settled.settings, device=device))
        shards, pace = work.compute(plan, make, folder, run, update)
        present, _ = work.write(plan, shards, folder, facts["dimension"], out)
        figures = figures_of(plan, present, pace, facts, settled.cosine, {"texts": plan.figures()["different"]})
        out.details |= {
            "encoder": facts,
            "recipe": recipe(settled.settings),
            "figures": figures,
            "flags": flags_of(config, MACHINE),
        }
    return StageResult(domain, "text", "built", figures)


def _wanted(config: TextConfig, located: Located, settled: Mapping[str, Any], here: str, device: str) -> TextSettings:
    """How to compute, unless a sample objects.

    settled: the recipe settled before, if any. here: the device of this process, which measures the sample; device:
    that of the embedders, for which the precision is chosen. Raises UsageError if --compile lacks a compiler.
    """
    import torch

    backend = settled.get("backend", config.backend)
    precision = "fp32" if config.backend == "onnx" else choose_precision(config.precision, torch.device(device))
    if config.compile:
        require_compiler(torch.device(here))
    return TextSettings(
        located=located,
        device=here,
        backend=backend,
        precision=settled.get("precision", precision),
        compile=config.compile and backend == "torch",
        prompt=config.prompt,
        prefix=config.prefix,
        dims=config.dims,
        normalize=config.normalize,
        token_budget=config.token_budget or (TOKENS_ON_CPU if device == "cpu" else TOKENS_ON_GPU),
    )


def _column(place: Domain) -> TextColumn:
    items = place.file("items.parquet").absolute()
    ingest = build_command(place, "items", force=True)
    return TextColumn(str(items), ingest, place.entry("items")["fingerprint"], build_command(place, "text"))
