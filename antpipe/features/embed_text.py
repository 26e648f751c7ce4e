"""embed-text: an item's text becomes a vector of a frozen sentence encoder."""

from collections.abc import Callable
from dataclasses import replace

from antpipe.config import TextConfig
from antpipe.devices import choose_device
from antpipe.errors import DataError
from antpipe.features.encoders import silent
from antpipe.features.text_encoders import PACKAGED_TEXT, TextEncoder, load_text_encoder, locate_text_encoder
from antpipe.settings import flags_of
from antpipe.store import Feature, StageResult, Store


def embed_text(
    store: Store,
    domain: str,
    config: TextConfig,
    *,
    force: bool = False,
    progress: Callable[[int, int], None] = silent,
) -> StageResult:
    """Write text.arrow: (N, d) float16, d the encoder's width; an item without text is zeros and not present.

    progress: is called with the texts done and all texts. Raises DataError where the encoder cannot be had or no
    item has a text, UsageError for an unknown packaged encoder or a device that is not here.
    """
    place = store.domain(domain)
    # Where and in what steps to compute is for this machine, not for a repetition of the command.
    machine = ("device", "batch_size")
    mend = place.command("text", flags=flags_of(replace(config, encoder=PACKAGED_TEXT), machine))
    located = locate_text_encoder(config.encoder, mend)
    # The revision covers weights, pooling, prompt and length limit; device and batch size do not change the result.
    parameters = {"encoder": located.name, "revision": located.revision}
    if not force and place.is_fresh("text", parameters):
        return StageResult(domain, "text", "fresh", place.entry("text")["figures"])
    with place.writing("text", parameters) as out:  # from here on, a change of the items is noticed
        rows_of = rows_by_text(place.table("items", ["text"])["text"].to_pylist())
        if not rows_of:
            raise DataError(f"domain {domain}: no item has a text", place.command("items", force=True))
        encoder = load_text_encoder(located, choose_device(config.device), mend)
        with out.feature("text", place.rows(), encoder.width) as feature:
            _fill(feature, rows_of, encoder, config.batch_size, progress)
            present = int(feature.present.sum())
        figures = {
            "items": place.rows(), "present": present, "coverage": round(present / place.rows(), 4),
            "texts": len(rows_of), "width": encoder.width, "encoder": located.name,
        }  # fmt: skip
        out.details |= {"encoder": encoder.facts, "figures": figures, "flags": flags_of(config, machine)}
    return StageResult(domain, "text", "built", figures)


def rows_by_text(texts: list[str]) -> dict[str, list[int]]:
    """Each text that is not blank, with the rows it stands in; longest first, so that a batch pads little."""
    rows_of: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        if text.strip():
            rows_of.setdefault(text, []).append(row)
    return {text: rows_of[text] for text in sorted(rows_of, key=lambda text: (-len(text), text))}


def _fill(
    feature: Feature,
    rows_of: dict[str, list[int]],
    encoder: TextEncoder,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> None:
    """Embed every text once and copy its vector to all its rows."""
    texts = list(rows_of)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        for text, vector in zip(batch, encoder.encode(batch), strict=True):
            feature.values[rows_of[text]] = vector
            feature.present[rows_of[text]] = True
        progress(start + len(batch), len(texts))
