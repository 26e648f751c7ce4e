"""embed-image: each item's pictures become the mean of their vectors under a frozen image encoder.

Items with equal pictures are embedded once, in shards (shards/) that survive a kill. Pictures are decoded ahead of the
model, large ones at a fraction of their size, and vectors are computed in bf16 if the processor is made for it; both
only if a sample shows that the vectors are those of fp32 and whole pictures.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from antpipe.errors import DataError, PartialError
from antpipe.features.encoders.located import Located
from antpipe.features.image.decoding import decoder_name
from antpipe.features.image.embedder import make_embedder
from antpipe.features.image.encoders import PACKAGED_IMAGE, ImageSettings, load_image_encoder, locate_image_encoder
from antpipe.features.image.gpu_decoding import require_gpu_decoding
from antpipe.features.image.pictures import (
    UNREADABLE,
    Picture,
    PictureLists,
    all_bad,
    bad_before,
    bad_details,
    bad_table,
    first_of_each_item,
    folder_pictures,
    hashed,
    listed_pictures,
    packed_contents,
    packed_names,
    pictures_digest,
    require_intact,
    unpacked_files,
)
from antpipe.features.image.precision import recipe, settle
from antpipe.features.image.prefetch import choose_workers, when_killed
from antpipe.features.replacing import command_of, require_same_encoder
from antpipe.features.shards.compute import Packing
from antpipe.features.shards.embedding import (
    Embedding,
    building,
    figures_of,
    fresh_result,
    parameters_of,
    settled_before,
)
from antpipe.features.shards.engine import LOCAL, engine_of, worker_cpus, worker_device
from antpipe.features.shards.plan import EmbeddingPlan, Shard
from antpipe.runtime.devices import choose_device, choose_precision
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.base import flags_of
from antpipe.settings.features import EngineConfig, ImageConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command
from antpipe.store.store import Store

# Settings in the fingerprint, in addition to the digest of the pictures, which depends on max_images. The other
# settings change rounding at most.
FINGERPRINTED = ("dims", "normalize", "precision", "decode", "min_cosine")
# Where and in what steps to compute: settings of this machine, left out when the command is repeated.
MACHINE = ("device", "batch_size", "workers", "shard_size")
EXAMPLES = 20  # unreadable pictures named in the manifest
SHARD_BYTES = 1 << 28  # of pictures per shard, at most, if they travel to workers
LIBRARIES = ("torch", "torchvision", "pillow", "open_clip_torch", "timm")
DECODERS = {"exact": (), "scaled": (), "gpu": ("torchcodec",)}  # further ones, by --decode


def embed_image(
    store: Store,
    domain: str,
    config: ImageConfig,
    *,
    engine: EngineConfig = LOCAL,
    force: bool = False,
    progress: Progress = silent,
) -> StageResult:
    """Write image.arrow: (N, d) float16, d the encoder's width. An item without a picture is zeros and not present.

    An item's pictures are those in its column `image_files`, then the fetched ones, then those in `config.images`. The
    readable ones among the first `max_images` are averaged; the others are listed with a reason in unreadable.parquet.
    Finished shards survive a kill. Vectors of items whose pictures did not change are copied. engine: what computes the
    shards. force: recompute everything. progress counts items with different pictures.

    Raises DataError if the encoder is not available, no item has a picture or the fetched ones belong to another
    catalogue; UsageError for an unknown encoder, a missing device, or (unless `force`) an encoder other than the one
    that made the existing vectors; PartialError, with the artefact written, for a coverage below `min_coverage`;
    AntpipeError if the disk fails or another process writes the artefact; Interrupted on Ctrl-C.
    """
    place = store.domain(domain)
    run = engine_of(engine, Packing(packed_contents if engine.shards else packed_names, unpacked_files))
    pictures = hashed(_pictures_of(place, config))
    require_intact(place, pictures)
    packaged = command_of(place, "image", replace(config, encoder=PACKAGED_IMAGE), MACHINE)
    located = locate_image_encoder(config.encoder, packaged)
    parameters = parameters_of(located, config, FINGERPRINTED) | {"pictures": pictures_digest(pictures)}
    if fresh := fresh_result(place, "image", parameters, force):
        _require_coverage(place, fresh.figures, config)
        return fresh
    # MACHINE included: only the same steps make the same shards.
    again = build_command(place, "image", flags=flags_of(config) + flags_of(engine), force=force)
    require_same_encoder(place, "image", config, parameters, again, force)
    here, device = _devices(config, engine)
    with (
        progress(f"{domain} image") as update,
        building(place, "image", parameters, again) as out,
        when_killed(again),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # Pillow's warnings about odd metadata help nobody
        if _pictures_of(place, config) != pictures:  # the store notices a later change of the items
            raise DataError(
                f"domain {domain}: its items changed while their pictures were read; image is as before", again
            )
        lists = PictureLists.of(pictures, place.rows())
        wanted = _wanted(config, located, settled_before(place, "image", parameters, force), here, device)
        most = SHARD_BYTES if engine.shards else 0
        sizes = lists.sizes() if most else None
        reuse = not force and bad_before(place) is not None
        work = Embedding(place, "image", recipe, lists.content, lists, config.shard_size, sizes, most, reuse)
        more = {
            "device": device,
            "batch_size": config.batch_size,
            "asked": [config.precision, config.decode, config.min_cosine],
        }
        folder = work.open_folder(wanted, more, (*LIBRARIES, *DECODERS[wanted.decode]), engine.shards)
        with _saying_what_is_kept(domain, again):
            settings, cosines = settle(work, lists, wanted, folder, config, packaged)
        encoder = load_image_encoder(settings, packaged)
        plan = work.plan(settings)
        workers = _decoding_workers(config, settings, lists, plan, engine)
        ready = replace(settings, device=device, workers=workers, threads=worker_cpus(engine))
        with _saying_what_is_kept(domain, again):
            shards, pace = work.compute(plan, partial(make_embedder, ready), folder, run, update)
        before = bad_before(place) if plan.earlier is not None else None
        present, failures = work.write(plan, shards, folder, encoder.width, out)
        bad = all_bad(lists, plan, failures, before or [])
        if not present:
            path = next(one.path for one in pictures if (one.row, one.name) == (bad[0].row, bad[0].file))
            raise DataError(
                f"domain {domain}: none of {len(pictures)} picture files can be read, for example {path}: {bad[0].why}",
                _with_folder(place, config),
            )
        out.parquet(UNREADABLE, bad_table(bad))
        facts = encoder.facts | {"decode": settings.decode, "decoder": decoder_name(on_gpu=settings.decode == "gpu")}
        facts |= {"variant": "normalised"} if config.normalize else {}
        counts = {"pictures": len(pictures), "unreadable": len(bad)}
        figures = figures_of(plan, present, pace, facts, cosines.cosine, counts)
        out.details |= {
            "encoder": facts,
            "recipe": recipe(settings),
            "fidelity": asdict(cosines),
            "figures": figures,
            "flags": flags_of(config, MACHINE),
            **bad_details(bad, place.item_ids(), EXAMPLES),
        }
    _require_coverage(place, figures, config)
    return StageResult(domain, "image", "built", figures)


@contextmanager
def _saying_what_is_kept(domain: str, again: str) -> Iterator[None]:
    """Adds to errors without a next command that the artefact is unchanged, and the command to repeat."""
    try:
        yield
    except DataError as error:
        if error.next_command is not None:
            raise
        raise DataError(f"domain {domain}: {error.message}; image is as before", again) from error


def _pictures_of(place: Domain, config: ImageConfig) -> list[Picture]:
    """The pictures to embed, by row, at most max_images per item. Raises DataError if there are none."""
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
    """What fetch-images fetched for this catalogue. Raises DataError if the catalogue has changed since."""
    if "pictures" not in place.manifest():
        return []
    state = place.state("pictures")
    if state.status == "stale":
        raise DataError(f"domain {place.name}: pictures is stale: {state.why}", state.next_command)
    rows = place.table("pictures", ["item", "file", "state"]).to_pylist()
    folder = place.path.absolute()
    return [Picture(row["item"], row["file"], str(folder / row["file"])) for row in rows if row["state"] == "ok"]


def _with_folder(place: Domain, config: ImageConfig) -> str:
    """The command that takes pictures from another folder."""
    return build_command(place, "image", flags=flags_of(replace(config, images=Path("DIR")), MACHINE))


def _devices(config: ImageConfig, engine: EngineConfig) -> tuple[str, str]:
    """The device of this process and that of the embedders. Raises UsageError or DataError if they cannot be used."""
    here = str(choose_device(config.device))
    device = worker_device(engine, config.device, here)
    if config.decode == "gpu":
        require_gpu_decoding(device)
    return here, device


def _wanted(config: ImageConfig, located: Located, settled: Mapping[str, Any], here: str, device: str) -> ImageSettings:
    """How to compute, unless a sample objects.

    settled: the recipe settled before, if any. here: the device of this process, which measures the sample; device:
    that of the embedders, for which the precision is chosen.
    """
    import torch

    precision = choose_precision(config.precision, torch.device(device))
    return ImageSettings(
        located=located,
        device=here,
        precision=settled.get("precision", precision),
        decode=settled.get("decode", config.decode),
        dims=config.dims,
        normalize=config.normalize,
        batch_size=config.batch_size,
        workers=0,
    )


def _decoding_workers(
    config: ImageConfig, settings: ImageSettings, lists: PictureLists, plan: EmbeddingPlan, engine: EngineConfig
) -> int:
    """How many decoding processes are worthwhile beside each embedder; threads read files for a GPU that decodes."""
    if settings.decode == "gpu" and config.workers is None:
        return 0
    if engine.engine == "ray":  # Ray workers use the CPUs they are given
        return config.workers if config.workers is not None else max(0, int(engine.ray_cpus) - 1)
    pictures = sum(len(files) for files in lists(Shard(0, plan.compute)))
    return choose_workers(config.workers, pictures, choose_device(config.device))


def _require_coverage(place: Domain, figures: Mapping[str, Any], config: ImageConfig) -> None:
    least = config.min_coverage
    if figures["present"] < least * figures["items"]:
        raise PartialError(
            f"domain {place.name}: image.arrow is written, but only {figures['present']} of {figures['items']} items "
            f"({figures['coverage']:.1%}) have a picture; --min-coverage asks for {least:.1%}",
            _with_folder(place, config),
        )
