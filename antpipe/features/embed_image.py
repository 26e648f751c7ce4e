"""embed-image: an item's pictures become the mean of their vectors under a frozen image encoder."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from antpipe.config import ImageConfig
from antpipe.devices import choose_device
from antpipe.errors import DataError, PartialError
from antpipe.features.encoders import silent
from antpipe.features.image_encoders import PACKAGED_IMAGE, ImageEncoder, load_image_encoder, locate_image_encoder
from antpipe.features.pictures import (
    Picture,
    UnreadableError,
    first_of_each_item,
    folder_pictures,
    listed_pictures,
    pictures_digest,
    read_picture,
)
from antpipe.settings import flags_of
from antpipe.store import Domain, Feature, StageResult, Store

if TYPE_CHECKING:
    import torch

EXAMPLES = 20
# Where and in what steps to compute is for this machine, not for a repetition of the command.
MACHINE = ("device", "batch_size")


@dataclass
class Unreadable:
    """Pictures that were left out: how many for each reason, and the first few of them."""

    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[Picture, str]] = field(default_factory=list)

    def add(self, picture: Picture, error: UnreadableError) -> None:
        self.reasons[error.reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append((picture, str(error)))


def embed_image(
    store: Store,
    domain: str,
    config: ImageConfig,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] = silent,
) -> StageResult:
    """Write image.arrow: (N, d) float16, d the encoder's width; an item without a picture is zeros and not present.

    Pictures are the column `image_files`, then what fetch-images fetched, then those of `config.images`; the first
    `max_images` of an item are read and those that can be read are averaged, the others are counted. progress: is
    called with the pictures done and all pictures. Raises DataError where the encoder cannot be had, no item has a
    picture or the fetched ones are of another catalogue, UsageError for unknown encoders or a device that is not here;
    PartialError, with the artefact written, for a coverage below `min_coverage`.
    """
    place = store.domain(domain)
    pictures = _pictures_of(place, config)
    mend = place.command("image", flags=flags_of(replace(config, encoder=PACKAGED_IMAGE), MACHINE))
    located = locate_image_encoder(config.encoder, mend)
    # max_images is in the digest: it decides which pictures are used. Device and batch size do not change the result.
    parameters = {"encoder": located.name, "revision": located.revision, "pictures": pictures_digest(pictures)}
    if not force and place.is_fresh("image", parameters):
        result = StageResult(domain, "image", "fresh", place.entry("image")["figures"])
    else:
        encoder = load_image_encoder(located, choose_device(config.device), mend)
        figures = _build(place, parameters, pictures, encoder=encoder, config=config, progress=progress)
        result = StageResult(domain, "image", "built", figures)
    _require_coverage(place, result.figures, config)
    return result


def _pictures_of(place: Domain, config: ImageConfig) -> list[Picture]:
    other_folder = _with_folder(place, config)
    table = place.table("items", ["image_files"])
    pictures = listed_pictures(place.path, [files or [] for files in table["image_files"].to_pylist()])
    pictures += _fetched(place)
    where = "its items name no picture files"
    state = place.state("pictures")
    if state.status != "missing" or state.next_command:
        where += " and none of their image URLs was fetched"
    if config.images is not None:
        item_ids = place.item_ids()
        if not config.images.is_dir():
            raise DataError(f"--images {config.images}: no such folder", other_folder)
        pictures += folder_pictures(config.images, item_ids)
        where += f", and no file in {config.images} is named after an item such as {item_ids[0]!r}"
    if not pictures:
        raise DataError(f"domain {place.name}: {where}", state.next_command or other_folder)
    return first_of_each_item(pictures, config.max_images)


def _fetched(place: Domain) -> list[Picture]:
    """What fetch-images fetched for this very catalogue; DataError where the catalogue changed since."""
    if "pictures" not in place.manifest():
        return []
    state = place.state("pictures")
    if state.status == "stale":
        raise DataError(f"domain {place.name}: pictures is stale: {state.why}", state.next_command)
    rows = place.table("pictures", ["item", "file", "state"]).to_pylist()
    return [Picture(row["item"], row["file"], place.path / row["file"]) for row in rows if row["state"] == "ok"]


def _with_folder(place: Domain, config: ImageConfig) -> str:
    """The command that takes pictures from another folder."""
    return place.command("image", flags=flags_of(replace(config, images=Path("DIR")), MACHINE))


def _build(
    place: Domain,
    parameters: dict[str, Any],
    pictures: Sequence[Picture],
    *,
    encoder: ImageEncoder,
    config: ImageConfig,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    unreadable = Unreadable()
    with place.writing("image", parameters) as out:
        if _pictures_of(place, config) != pictures:  # a later change of the items is noticed by the store
            raise DataError(
                f"domain {place.name}: its items changed while their pictures were read; image is as before",
                place.command("image", flags=flags_of(config, MACHINE)),
            )
        with out.feature("image", place.rows(), encoder.width) as feature:
            with warnings.catch_warnings():
                # Pillow's remarks on odd metadata help nobody. Above its limit of pixels it only warns, above twice
                # the limit it raises: both are too many.
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                _fill(feature, _vectors(pictures, encoder, config.batch_size, progress, unreadable))
            present = int(feature.present.sum())
        if not present:
            picture, why = unreadable.examples[0]
            raise DataError(
                f"domain {place.name}: none of {len(pictures)} picture files can be read, for example "
                f"{picture.path}: {why}",
                _with_folder(place, config),
            )
        item_ids = place.item_ids()
        figures = {
            "items": place.rows(), "present": present, "coverage": round(present / place.rows(), 4),
            "pictures": len(pictures), "unreadable": unreadable.reasons.total(), "width": encoder.width,
            "encoder": encoder.facts["name"],
        }  # fmt: skip
        out.details |= {
            "encoder": encoder.facts,
            "unreadable_reasons": dict(unreadable.reasons),
            "unreadable": [
                {"item": item_ids[picture.row], "file": picture.name, "why": why}
                for picture, why in unreadable.examples
            ],
            "figures": figures,
            "flags": flags_of(config, MACHINE),
        }
    return figures


def _fill(feature: Feature, vectors: Iterator[tuple[int, NDArray[np.float32]]]) -> None:
    """Average each item's vectors. vectors: (row, vector) by row."""
    for row, group in groupby(vectors, key=lambda pair: pair[0]):
        feature.values[row] = np.mean([vector for _, vector in group], axis=0)
        feature.present[row] = True


def _vectors(
    pictures: Sequence[Picture],
    encoder: ImageEncoder,
    batch_size: int,
    progress: Callable[[int, int], None],
    unreadable: Unreadable,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """(row, vector (d,)) of every picture that can be read, in order; decoding runs on all cores."""

    def prepare(picture: Picture) -> "torch.Tensor | UnreadableError":
        try:
            return encoder.prepare(read_picture(picture.path))
        except UnreadableError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            rows, tensors = [], []
            for picture, prepared in zip(batch, pool.map(prepare, batch), strict=True):
                if isinstance(prepared, UnreadableError):
                    unreadable.add(picture, prepared)
                else:
                    rows.append(picture.row)
                    tensors.append(prepared)
            if tensors:
                yield from zip(rows, encoder.encode(tensors), strict=True)
            progress(start + len(batch), len(pictures))


def _require_coverage(place: Domain, figures: dict[str, Any], config: ImageConfig) -> None:
    least = config.min_coverage
    if figures["present"] < least * figures["items"]:
        raise PartialError(
            f"domain {place.name}: image.arrow is written, but only {figures['present']} of {figures['items']} items "
            f"({figures['coverage']:.1%}) have a picture; --min-coverage asks for {least:.1%}",
            _with_folder(place, config),
        )
