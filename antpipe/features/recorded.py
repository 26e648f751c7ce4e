"""The features of items that are not in the store, made as those of a domain were: by the encoders of its manifest.

Nothing is written to the domain. A modality that its items lack, or whose vectors were imported, is left out.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl

from antpipe.errors import DataError, PartialError
from antpipe.features.fetch_images import fetch_images
from antpipe.features.image import embedder as image_embedder
from antpipe.features.image.encoders import ImageSettings, locate_image_encoder
from antpipe.features.image.pictures import PictureFile
from antpipe.features.image.precision import recipe as image_recipe
from antpipe.features.ingest.domain import INTERACTIONS, REJECTS, write_domain
from antpipe.features.quantize_price import categories_of, find_bins, onehot, sinusoid
from antpipe.features.subset import drawn_from
from antpipe.features.text import embedder as text_embedder
from antpipe.features.text.encoders import TextSettings, locate_text_encoder
from antpipe.features.text.precision import recipe as text_recipe
from antpipe.features.whiten import read_whitening
from antpipe.runtime.devices import choose_device
from antpipe.runtime.logs import log, silenced
from antpipe.settings.base import Config, flag_name, parse_value
from antpipe.settings.features import FetchConfig, ImageConfig, TextConfig
from antpipe.store.domain import Domain
from antpipe.store.files import Feature, file_sha256
from antpipe.store.next_command import build_command
from antpipe.store.store import Store

C = TypeVar("C", bound=Config)
Describer = Callable[[pl.DataFrame], Feature]  # of items with the columns of ITEMS
TOKENS = 2048  # per batch
STAGES = {"text": "embed-text", "image": "embed-image", "price": "quantize-price"}


def features_like(
    store: Store, name: str, items: pl.DataFrame, modalities: Sequence[str], whitened: Sequence[str] = ()
) -> dict[str, Feature]:
    """The features, by modality, of some items, as those of the domain `name` were made.

    items: columns of ITEMS, whose picture files are absolute paths. whitened: modalities to give in whitened form.
    Pictures at URLs are fetched; an unavailable one counts as missing. Raises DataError if an encoder is not available
    or is not the one that made the features of the domain.
    """
    return describe_with(describers_like(store, name, modalities, whitened), items)


def describe_with(describers: Mapping[str, Describer], items: pl.DataFrame) -> dict[str, Feature]:
    """The features of some items by these describers; see `features_like`."""
    return {modality: describer(items) for modality, describer in describers.items()}


def describers_like(
    store: Store, name: str, modalities: Sequence[str], whitened: Sequence[str] = ()
) -> dict[str, Describer]:
    """What makes the features of `features_like`, by modality, for repeated use: encoders are loaded when first needed,
    and stay loaded. Raises DataError as there."""
    domain = store.domain(name)
    made_by = store.domain(drawn_from(store, name))  # the features of a subset are those of its whole domain
    manifest = made_by.manifest()
    makers = {"text": _texts, "image": _pictures, "price": _prices}
    found: dict[str, Describer] = {}
    for modality in modalities:
        if modality not in domain.manifest() or modality not in manifest:
            continue
        entry = made_by.entry(modality)
        if entry.get("stage") != STAGES[modality] or "came_with_items" in entry:
            log.warning(f"{name}: new items have no {modality}: its vectors were made elsewhere, by {entry['stage']}")
            continue
        raw = makers[modality](made_by, entry)
        found[modality] = _whitened(domain, modality, raw) if modality in whitened else raw
    return found


def _texts(domain: Domain, entry: Mapping[str, Any]) -> Describer:
    config, recipe = settings_in(entry["flags"], TextConfig), entry["recipe"]
    settings = TextSettings(
        located=locate_text_encoder(config.encoder, build_command(domain, "text"), recipe["backend"]),
        device=str(choose_device(config.device)),
        backend=recipe["backend"],
        precision=recipe["precision"],
        compile=False,
        prompt=config.prompt,
        prefix=config.prefix,
        dims=config.dims,
        normalize=config.normalize,
        token_budget=TOKENS,
    )
    _require_same(domain, "text", text_recipe(settings), recipe)
    embedder, width = cache(lambda: text_embedder.make_embedder(settings)), entry["width"]

    def describe(items: pl.DataFrame) -> Feature:
        texts = items["text"].fill_null("").to_list()
        present = np.array([bool(text) for text in texts])
        values = np.zeros((len(texts), width), np.float16)
        if present.any():
            values[present] = embedder()([text for text in texts if text], lambda _: None).values
        return Feature(values, present)

    return describe


def _pictures(domain: Domain, entry: Mapping[str, Any]) -> Describer:
    config, recipe = settings_in(entry["flags"], ImageConfig), entry["recipe"]
    settings = ImageSettings(
        located=locate_image_encoder(config.encoder, build_command(domain, "image")),
        device=str(choose_device(config.device)),
        precision=recipe["precision"],
        decode=recipe["decode"],
        dims=config.dims,
        normalize=config.normalize,
        batch_size=config.batch_size,
        workers=0,
    )
    _require_same(domain, "image", image_recipe(settings), recipe)
    embedder, width = cache(lambda: image_embedder.make_embedder(settings)), entry["width"]

    def describe(items: pl.DataFrame) -> Feature:
        with tempfile.TemporaryDirectory(prefix="antpipe-pictures-") as folder:
            fetched = _fetched(domain, items, Path(folder))
            files = [
                [PictureFile(path, file_sha256(Path(path))) for path in [*(row or []), *more][: config.max_images]]
                for row, more in zip(items["image_files"].to_list(), fetched, strict=True)
            ]
            if not any(files):
                return Feature(np.zeros((len(items), width), np.float16), np.zeros(len(items), np.bool_))
            made = embedder()(files, lambda _: None)
        for item, why in made.failures:
            log.warning(f"new item {items['item_id'][item]!r}: picture {why}")
        return Feature(np.asarray(made.values, np.float16), np.asarray(made.present))

    return describe


def _fetched(domain: Domain, items: pl.DataFrame, folder: Path) -> list[list[str]]:
    """The files of the pictures at the items' URLs, per item, fetched into a store of their own."""
    found: list[list[str]] = [[] for _ in range(len(items))]
    if not items["image_urls"].list.len().sum():
        return found
    flags = domain.manifest().get("pictures", {}).get("flags", [])
    place = Store(folder).new_domain("new")
    with silenced():
        write_domain(
            place,
            parameters={"format": "table"},
            items=items.with_columns(image_files=pl.lit([], pl.List(pl.String))),
            interactions=INTERACTIONS.to_frame(),
            rejects=REJECTS.to_frame(),
            report={},
            flags=[],
            keep_order=True,
        )
    with suppress(PartialError):  # missing pictures are logged below
        fetch_images(Store(folder), "new", settings_in(flags, FetchConfig))
    for row in place.table("pictures", ["item", "url", "file", "state", "reason"]).to_pylist():
        if row["state"] == "ok":
            found[row["item"]].append(str(place.path / row["file"]))
        else:
            log.warning(f"new item {items['item_id'][row['item']]!r}: {row['url']}: {row['reason'] or row['state']}")
    return found


def _prices(domain: Domain, entry: Mapping[str, Any]) -> Describer:
    core, width, own = domain.core_rows(), entry["width"], entry.get("category_edges")
    paths = [path or [] for path in domain.table("items", ["category"])["category"][:core].to_pylist()] if own else []
    code = sinusoid if entry["parameters"]["encoding"] == "sinusoid" else onehot

    def describe(items: pl.DataFrame) -> Feature:
        logs = np.log1p(items["price"].cast(pl.Float64).fill_null(np.nan).to_numpy())
        present = ~np.isnan(logs)
        bins = np.zeros(len(logs), np.int64)
        bins[present] = find_bins(logs[present], np.array(entry["edges"]))
        if own:
            names = categories_of([*paths, *(path or [] for path in items["category"].to_list())], core)[core:]
            for row in np.flatnonzero(present):
                if names[row] in own:
                    bins[row] = find_bins(logs[[row]], np.array(own[names[row]]))[0]
        return Feature(np.where(present[:, None], code(bins, width), 0).astype(np.float16), present)

    return describe


def _whitened(domain: Domain, modality: str, raw: Describer) -> Describer:
    whitening = read_whitening(domain, modality)

    def describe(items: pl.DataFrame) -> Feature:
        found = raw(items)
        values = np.where(found.present[:, None], whitening.apply(found.values), 0)
        return Feature(values.astype(np.float16), found.present)

    return describe


def _require_same(domain: Domain, modality: str, now: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Refuse an encoder that has changed: its vectors would mean something else."""
    different = [name for name, value in recorded.items() if now.get(name) != value]
    if different:
        raise DataError(
            f"domain {domain.name}: the encoder of its {modality} is not what it was ({', '.join(different)} changed), "
            "so new items cannot be described like the others",
            build_command(domain, modality),
        )


def settings_in(flags: Sequence[str], config: type[C]) -> C:
    """The settings that the flags of a recorded command give: the inverse of `flags_of`."""
    by_flag = {f"--{flag_name(field.name)}": field for field in fields(config)}
    values: dict[str, Any] = {}
    left = list(flags)
    while left:
        flag = left.pop(0)
        if flag in by_flag and by_flag[flag].type is bool:
            values[by_flag[flag].name] = True
        elif flag.startswith("--no-") and f"--{flag.removeprefix('--no-')}" in by_flag:
            values[by_flag[f"--{flag.removeprefix('--no-')}"].name] = False
        else:
            value = left.pop(0)
            if flag in by_flag:  # other flags belong to the engine
                values[by_flag[flag].name] = parse_value(by_flag[flag].type, value, flag)
    return config(**values)
