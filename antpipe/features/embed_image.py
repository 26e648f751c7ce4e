"""embed-image: an item's pictures become the mean of their vectors under a frozen image encoder.

Items with equal pictures are embedded once, in shards (shards.py) that survive a kill. Pictures are decoded ahead of
the model, large ones at a fraction of their size, and vectors are computed in bf16 where the processor is made for it,
if a sample shows that they are those of fp32 and whole pictures.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.errors import DataError, PartialError
from antpipe.features.encoders.identity import Located, silent, unsaid
from antpipe.features.image.decoding import choose_workers, told_of_workers
from antpipe.features.image.embedder import ImageSettings, load_encoder, make_embedder
from antpipe.features.image.encoders import PACKAGED_IMAGE, locate_image_encoder
from antpipe.features.image.fidelity import Fidelity, settle
from antpipe.features.image.lists import (
    UNREADABLE,
    Bad,
    PictureLists,
    all_bad,
    bad_before,
    bad_details,
    bad_table,
    file_contents,
    file_names,
    sources_of,
)
from antpipe.features.image.pictures import (
    Picture,
    decoder_name,
    first_of_each_item,
    folder_pictures,
    hashed,
    listed_pictures,
    pictures_digest,
)
from antpipe.features.shards.engines import LOCAL, Carrying, engine_of, worker_cpus, worker_device
from antpipe.features.shards.files import ShardFolder, open_shards, remove_shards, sweep
from antpipe.features.shards.plan import (
    Embedder,
    Engine,
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
from antpipe.runtime.devices import choose_device, choose_precision
from antpipe.settings.base import flags_of
from antpipe.settings.features import EngineConfig, ImageConfig
from antpipe.store.artefacts import ARTEFACTS, StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import Earlier
from antpipe.store.store import Store

EXAMPLES = 20
SHARD_BYTES = 1 << 28  # of pictures that travel to workers
SAMPLE = 32  # pictures whose vectors are compared with those in fp32 of whole pictures
# Where and in what steps to compute is for this machine, not for a repetition of the command.
MACHINE = ("device", "batch_size", "workers", "shard_size")


def embed_image(
    store: Store,
    domain: str,
    config: ImageConfig,
    *,
    force: bool = False,
    progress: Show = silent,
    say: Callable[[str], None] = unsaid,
    engine: EngineConfig = LOCAL,
) -> StageResult:
    """Write image.arrow: (N, d) float16, d the encoder's width; an item without a picture is zeros and not present.

    Pictures are the column `image_files`, then what fetch-images fetched, then those of `config.images`; the first
    `max_images` of an item are read and those that can be read are averaged; the others are listed, with the reason, in
    unreadable.parquet. What is finished survives a kill; vectors of items whose pictures are as they were are copied.
    force: compute all anew. progress: is called with the items done, all items, and the pace; say: with what a user
    should know; engine: who computes the shards. Raises DataError where the encoder cannot be had, no item has a
    picture or the fetched ones are of another catalogue, UsageError for unknown encoders or a device that is not here;
    PartialError, with the artefact written, for a coverage below `min_coverage`.
    """
    place = store.domain(domain)
    run = engine_of(engine, say, Carrying(file_contents if engine.shards else file_names, sources_of))
    pictures = hashed(_pictures_of(place, config))
    mend = place.command("image", flags=flags_of(replace(config, encoder=PACKAGED_IMAGE), MACHINE))
    located = locate_image_encoder(config.encoder, mend)
    # max_images is in the digest: it decides which pictures are used. What is left out changes rounding at most.
    names = ("dims", "normalize", "precision", "decode", "min_cosine")
    parameters = {"encoder": located.name, "revision": located.revision} | {n: getattr(config, n) for n in names}
    parameters["pictures"] = pictures_digest(pictures)
    if not force and place.is_fresh("image", parameters):
        sweep(place.path, "image")
        result = StageResult(domain, "image", "fresh", place.entry("image")["figures"])
    else:
        # With MACHINE: shards are those of these very steps, and other ones would begin anew.
        again = place.command("image", flags=flags_of(config) + flags_of(engine), force=force)
        with told_of_disk(place, "image", again), told_of_workers(again), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata help nobody
            work = Work(place, config, located, pictures, force, mend, SHARD_BYTES if engine.shards else 0)
            result = StageResult(domain, "image", "built", _build(work, parameters, again, progress, say, engine, run))
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
    folder = place.path.absolute()
    return [Picture(row["item"], row["file"], str(folder / row["file"])) for row in rows if row["state"] == "ok"]


def _with_folder(place: Domain, config: ImageConfig) -> str:
    """The command that takes pictures from another folder."""
    return place.command("image", flags=flags_of(replace(config, images=Path("DIR")), MACHINE))


# -- what is to be done ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A catalogue to embed. pictures: hashed, by row. mend: the command that takes the packaged encoder."""

    place: Domain
    config: ImageConfig
    located: Located
    pictures: list[Picture]
    force: bool
    mend: str
    most: int = 0  # bytes of a shard's pictures, where they travel: it is in memory as a whole; 0: no limit
    plans: dict[ImageSettings, tuple[Plan, Earlier | None, list[Shard]]] = field(default_factory=dict)


def recipe(settings: ImageSettings) -> dict[str, Any]:
    """All a vector depends on besides its pictures: what was computed with the same recipe can be copied."""
    return {
        "version": ARTEFACTS["image"].version,
        "source": settings.located.source,
        "name": settings.located.name,
        "revision": settings.located.revision,
        "dims": settings.dims,
        "normalize": settings.normalize,
        "precision": settings.precision,
        "decode": settings.decode,
    }


def _planned(work: Work, lists: PictureLists, settings: ImageSettings) -> tuple[Plan, Earlier | None, list[Shard]]:
    """What to copy from where and what to compute, in which shards."""
    if settings not in work.plans:
        known = not work.force and bad_before(work.place) is not None
        earlier = earlier_vectors(work.place, "image", recipe(settings)) if known else None
        plan = plan_rows(lists.content, earlier)
        sizes = lists.sizes() if work.most else None
        work.plans[settings] = plan, earlier, cut(plan.compute, work.config.shard_size, sizes, work.most)
    return work.plans[settings]


def _wanted(work: Work, parameters: Mapping[str, Any], here: str, device: str) -> ImageSettings:
    """How to compute. What was decided when the artefact was built with the same parameters stands: a changed
    catalogue is no reason to compute all its vectors anew. here, device: of this process, which measures the sample,
    and of the embedders, for which the precision is chosen."""
    import torch

    config, entry = work.config, work.place.manifest().get("image", {})
    precision, decode = choose_precision(config.precision, torch.device(device)), config.decode
    before = {key: value for key, value in entry.get("parameters", {}).items() if key != "pictures"}
    if "recipe" in entry and not work.force and before == {k: v for k, v in parameters.items() if k != "pictures"}:
        precision, decode = entry["recipe"]["precision"], entry["recipe"]["decode"]
    return ImageSettings(
        located=work.located,
        device=here,
        precision=precision,
        decode=decode,
        dims=config.dims,
        normalize=config.normalize,
        batch_size=config.batch_size,
        workers=0,
    )


def _open(work: Work, wanted: ImageSettings, plan: Plan, at: str | None) -> ShardFolder:
    """The folder of what an interrupted run finished of this very work. at: --shards."""
    config = work.config
    settings = {
        **recipe(wanted),
        "id_table": work.place.entry("items")["id_table"],
        "device": wanted.device,
        "batch_size": config.batch_size,
        "shard": [config.shard_size, work.most],
        "asked": [config.precision, config.decode, config.min_cosine],
        "libraries": {name: version(name) for name in ("torch", "torchvision", "pillow", "open_clip_torch", "timm")},
    }
    return open_shards(work.place.path, "image", plan.key(settings), at)


def _settled(
    work: Work, lists: PictureLists, wanted: ImageSettings, folder: ShardFolder, say: Callable[[str], None]
) -> tuple[ImageSettings, Fidelity]:
    """What an interrupted run settled stands; else a sample of the pictures that are to be embedded decides."""
    notes = folder.notes()
    if notes:
        return replace(wanted, precision=notes["precision"], decode=notes["decode"]), Fidelity(**notes["fidelity"])
    plan, earlier, _ = _planned(work, lists, wanted)
    before = Fidelity(**work.place.manifest()["image"]["fidelity"]) if earlier is not None else None
    if before is not None and not len(plan.compute):
        return wanted, before
    chosen = np.linspace(0, len(plan.compute) - 1, min(SAMPLE, len(plan.compute))).astype(int)
    sample = [sources[0] for sources in lists(Shard(0, plan.compute[chosen]))]
    load_encoder(replace(wanted, precision="fp32"), work.mend)  # a checkpoint that is no good is told with the way out
    name = work.place.name
    settings, fidelity = settle(wanted, sample, work.config.min_cosine, lambda text: say(f"{name}: {text}"))
    if before is not None and settings == wanted:  # copied vectors are as near as they were
        fidelity = fidelity.and_also(before)
    folder.note({"precision": settings.precision, "decode": settings.decode, "fidelity": asdict(fidelity)})
    return settings, fidelity


# -- doing it -------------------------------------------------------------------------------------------------


def _build(
    work: Work,
    parameters: dict[str, Any],
    again: str,
    progress: Show,
    say: Callable[[str], None],
    engine: EngineConfig,
    run: Engine,
) -> dict[str, Any]:
    place, config = work.place, work.config
    with place.writing("image", parameters) as out:
        if _pictures_of(place, config) != work.pictures:  # a later change of the items is noticed by the store
            raise DataError(
                f"domain {place.name}: its items changed while their pictures were read; image is as before", again
            )
        lists = PictureLists.of(work.pictures, place.rows())
        here = str(choose_device(config.device))
        device = worker_device(engine, config.device, here)
        wanted = _wanted(work, parameters, here, device)
        folder = _open(work, replace(wanted, device=device), _planned(work, lists, wanted)[0], engine.shards)
        settings, fidelity = _settled(work, lists, wanted, folder, say)
        plan, earlier, shards = _planned(work, lists, settings)
        if len(plan.copied):
            say(f"{place.name}: {len(plan.compute)} new or changed items to embed, {len(plan.copied)} kept from before")
        encoder = load_encoder(settings, work.mend)
        pace = Pace(len(plan.compute), progress, "items")
        ready = replace(
            settings, device=device, workers=_decoders(work, lists, plan, engine), threads=worker_cpus(engine)
        )
        _compute(place, lists, shards, partial(make_embedder, ready), folder, again, engine=run, pace=pace, say=say)
        before = bad_before(place) if earlier is not None else None
        with out.feature("image", place.rows(), encoder.width, plan.content) as feature:
            bad = all_bad(lists, plan, assemble(feature, plan, shards, folder, earlier), before or [])
            present = int(feature.present.sum())
        _require_any(work, present, bad)
        out.parquet(UNREADABLE, bad_table(bad))
        figures = _figures(work, plan, present, len(bad)) | {
            "width": encoder.width,
            "encoder": encoder.facts["name"],
            "precision": settings.precision,
            "decode": settings.decode,
            "cosine": round(fidelity.cosine, 6),
            "items_per_second": round(pace.rate(), 1),
        }
        facts = encoder.facts | {"decode": settings.decode, "decoder": decoder_name()}
        facts |= {"variant": "normalised"} if config.normalize else {}
        out.details |= {
            "encoder": facts,
            "recipe": recipe(settings),
            "fidelity": asdict(fidelity),
            "figures": figures,
            "flags": flags_of(config, MACHINE),
            **bad_details(bad, place.item_ids(), EXAMPLES),
        }
        out.afterwards = partial(remove_shards, folder, say)
    return figures


def _decoders(work: Work, lists: PictureLists, plan: Plan, engine: EngineConfig) -> int:
    """How many decoding processes are worth it, beside each embedder."""
    asked = work.config.workers
    if engine.engine == "ray":  # workers of Ray take the CPUs they are given
        return asked if asked is not None else max(0, int(engine.ray_cpus) - 1)
    pictures = sum(len(sources) for sources in lists(Shard(0, plan.compute)))
    return choose_workers(asked, pictures, choose_device(work.config.device))


def _compute(
    place: Domain,
    lists: PictureLists,
    shards: list[Shard],
    make: Callable[[], Embedder],
    folder: ShardFolder,
    again: str,
    *,
    engine: Engine,
    pace: Pace,
    say: Callable[[str], None],
) -> None:
    """Compute what is missing."""
    try:
        compute(shards, make, lists, folder, engine=engine, pace=pace, say=say)
    except DataError as error:
        raise DataError(f"domain {place.name}: {error.message}; image is as before", again) from error


def _figures(work: Work, plan: Plan, present: int, unreadable: int) -> dict[str, Any]:
    counts, items = plan.figures(), len(plan.content)
    return {
        "items": items,
        "present": present,
        "coverage": round(present / items, 4),
        "pictures": len(work.pictures),
        "unreadable": unreadable,
        **{name: counts[name] for name in ("computed", "reused", "shared")},
    }


def _require_any(work: Work, present: int, bad: Sequence[Bad]) -> None:
    if not present:
        path = next(one.path for one in work.pictures if (one.row, one.name) == (bad[0].row, bad[0].file))
        raise DataError(
            f"domain {work.place.name}: none of {len(work.pictures)} picture files can be read, for example {path}: "
            f"{bad[0].why}",
            _with_folder(work.place, work.config),
        )


def _require_coverage(place: Domain, figures: dict[str, Any], config: ImageConfig) -> None:
    least = config.min_coverage
    if figures["present"] < least * figures["items"]:
        raise PartialError(
            f"domain {place.name}: image.arrow is written, but only {figures['present']} of {figures['items']} items "
            f"({figures['coverage']:.1%}) have a picture; --min-coverage asks for {least:.1%}",
            _with_folder(place, config),
        )
