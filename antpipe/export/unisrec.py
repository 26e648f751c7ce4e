"""`export unisrec`: a domain as UniSRec, MISSRec and ANT lay out processed data sets, with split and features.

`import unisrec` reads it back as the same domain (features/import_unisrec.py describes the layout).
"""

from pathlib import Path

import numpy as np

from antpipe.errors import DataError
from antpipe.export.folder import README, Draft, Exported, exporting, require_free
from antpipe.export.rows import MOST_HISTORY, in_one_line, require_writable, write_parts
from antpipe.features.ingest.layouts.features import CHUNK, KINDS, FeatureKind
from antpipe.runtime.logs import log
from antpipe.settings.model import MODALITIES
from antpipe.store.artefacts import artefact_of
from antpipe.store.domain import Domain
from antpipe.store.files import Feature
from antpipe.store.manifest import encoder_name
from antpipe.store.next_command import spell
from antpipe.store.store import Store

BREAKS = "\n\r"
# The suffixes of feature files by modality. Those of UniSRec are MISSRec's too; neither has prices.
SUFFIXES = {
    "unisrec": {"text": ".feat1CLS", "image": ".feat3CLS", "price": "_price_0.feat"},
    "ant": {"text": "_text_0.feat", "image": "_img_0_4.feat", "price": "_price_0.feat"},
}
TEXT = """# {domain} in the layout of {layout}

| file | content |
|---|---|
| `{domain}.train.inter`, `.valid.inter`, `.test.inter` | one row per target: user, the last \
{longest} items of its history, item (numbers) |
| `{domain}.item2index`, `{domain}.user2index` | original id and number |
| `{domain}.text` | original id and text |
{features}
{lost}Back into a store:

```
{command}
```
"""


def export_unisrec(
    store: Store,
    domain: str,
    out: Path,
    *,
    layout: str = "unisrec",
    run: Path | None = None,
    force: bool = False,
) -> Exported:
    """Write the interaction, index, text and feature files. layout: `unisrec` or `ant`, for the names of features.

    run: features in the form that it reads, whitened or not; default: as the encoders made them. Raises DataError if
    the domain has no sequences, a feature is stale, an id has a line break, or `out` is there.
    """
    require_free(out, force=force)
    here = store.domain(domain)
    sequences = here.sequences()
    items, users = here.item_ids(), here.table("users", ["user_id"])["user_id"].to_pylist()
    require_writable(items, "item", BREAKS)
    require_writable(users, "user", BREAKS)
    whitened, modalities = _read_by(run)
    with exporting("unisrec", out, force=force) as draft:
        numbers = [str(number) for number in range(max(len(items), len(users)))]
        targets = write_parts(draft.path, domain, sequences, numbers, numbers)
        for name, ids in (("item2index", items), ("user2index", users)):
            draft.text(f"{domain}.{name}", "".join(f"{one}\t{number}\n" for number, one in enumerate(ids)))
        texts = here.table("items", ["text"])["text"].to_pylist()
        lines = (f"{item}\t{in_one_line(text)}\n" for item, text in zip(items, texts, strict=True))
        draft.text(f"{domain}.text", "".join(lines))
        written = {}
        for modality in modalities:
            artefact = artefact_of(modality, whitened)
            if artefact in here.manifest() and here.entry(artefact)["present"]:
                feature = here.feature(artefact)
                suffix = SUFFIXES[layout][modality]
                _write_feature(draft.path / f"{domain}{suffix}", kind_of(suffix), feature, artefact)
                written[modality] = {
                    "file": f"{domain}{suffix}",
                    "width": feature.values.shape[1],
                    "artefact": artefact,
                }
        alone = int((np.diff(sequences.offsets) < 2).sum())
        draft.facts |= {"domain": domain, "layout": layout, "most_history": MOST_HISTORY, "features": written}
        draft.figures |= {"items": len(items), "users": len(users), **targets, "users_without_target": alone}
        _describe(draft, here, out)
        about = draft.about("unisrec")
    if alone:
        log.warning(f"{domain}: {alone} user(s) with a single item have no row: this layout has a row per target")
    return Exported(out, about)


def kind_of(suffix: str) -> FeatureKind:
    """What `import unisrec` reads in a file with this suffix."""
    return next(kind for kind in KINDS if kind.suffix == suffix)


def _read_by(run: Path | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The modalities that a run reads whitened, and those that it reads; without a run, none and all."""
    from antpipe.training import checkpoint

    if run is None:
        return (), MODALITIES
    described = checkpoint.describe(run)
    return described.whitened(), tuple(described.modalities)


def _write_feature(path: Path, kind: FeatureKind, feature: Feature, artefact: str) -> None:
    """Write rows with the number type and slots of this kind; the vector is in the first slot, the others are zeros.

    Raises DataError for a vector of zeros that is present: the layout reads it as missing.
    """
    rows, width = feature.values.shape
    with path.open("wb") as stream:
        for start in range(0, rows, CHUNK):
            values = np.asarray(feature.values[start : start + CHUNK], kind.number)
            zero = feature.present[start : start + CHUNK] & ~values.any(axis=1)
            if zero.any():
                raise DataError(
                    f"{artefact}: the vector of item {start + int(np.argmax(zero))} is all zeros, "
                    "which this layout reads as missing"
                )
            slots = np.zeros((len(values), kind.slots, width), kind.number)
            slots[:, 0] = values
            slots.tofile(stream)


def _describe(draft: Draft, domain: Domain, out: Path) -> None:
    features, flags = draft.facts["features"], ["--path", str(out)]
    if "text" in features:
        flags += ["--feature-width", str(features["text"]["width"])]
        if len(features) == 1:  # the flag names the encoder of all features
            flags += ["--encoder", encoder_of(domain, features["text"]["artefact"])]
    alone = draft.figures["users_without_target"]
    text = TEXT.format(
        domain=domain.name,
        layout="ANT" if draft.facts["layout"] == "ant" else "UniSRec and MISSRec",
        longest=MOST_HISTORY,
        features="".join(
            f"| `{one['file']}` | {modality}: {one['width']} numbers ({kind_of_file(one['file'], domain.name)}) |\n"
            for modality, one in features.items()
        ),
        lost=f"{alone} user(s) with a single item have no target, so they are in no row.\n\n" if alone else "",
        command=spell("import unisrec", domains=[domain.name], flags=flags),
    )
    draft.text(README, text)


def encoder_of(domain: Domain, artefact: str) -> str:
    """What made a feature, as `import unisrec --encoder` takes it."""
    entry = domain.entry(artefact)
    name: str = encoder_name(entry) if "whitening" in entry["encoder"] else entry["encoder"]["name"]
    return name


def kind_of_file(file: str, name: str) -> str:
    """The numbers of a feature file, in words."""
    kind = kind_of(file.removeprefix(name))
    return f"{np.dtype(kind.number)}, {kind.slots} vectors per item" if kind.slots > 1 else str(np.dtype(kind.number))
