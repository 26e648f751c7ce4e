"""The item features of several domains as one catalogue, memory-mapped from the store.

Items of several domains share one numbering: item j of domain i has the global row offsets[i] + j. Offsets add up the
sizes of the catalogues (not the largest ids seen in training, as the authors' code does).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from antpipe.core.words import words_of
from antpipe.errors import DataError
from antpipe.runtime.logs import log
from antpipe.settings.model import EMBEDDED, MODALITIES
from antpipe.store.artefacts import artefact_of
from antpipe.store.domain import Domain
from antpipe.store.files import Feature
from antpipe.store.manifest import encoder_name
from antpipe.store.next_command import build_command, spell
from antpipe.store.store import Store

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]
# Features larger than this many bytes are released after each use. The kernel maps far more than the rows that are
# read, so otherwise the whole file would soon count as this process's memory.
RESIDENT = 1 << 29
COPIED_AT_ONCE = 1 << 16  # items, on their way to a device


@dataclass(frozen=True)
class Catalogue:
    """Memory-mapped features of one or more domains. A modality that a domain lacks is missing for all its items."""

    domains: tuple[str, ...]
    offsets: Ints  # (domains + 1,)
    features: dict[str, tuple[Feature | None, ...]]  # by modality, one entry per domain
    widths: dict[str, int]
    encoders: dict[str, str]
    words: "tuple[csr_array, ...]" = ()  # word neighbours, one per domain, if a floor reads them

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def rows(self, domain: str) -> Ints:
        """Global rows of one domain's items."""
        number = self.domains.index(domain)
        return np.arange(self.offsets[number], self.offsets[number + 1])

    def gather(
        self, rows: Ints, modality: str, width: int, kind: Any = np.float32
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Raw features (n, width) of global item rows (n,), zeros where missing, and which items have one (n,).

        kind: dtype of the features; the store has float16.
        """
        values = np.zeros((len(rows), width), kind)
        present = np.zeros(len(rows), np.bool_)
        for start, stop, feature in zip(self.offsets, self.offsets[1:], self.features.get(modality, ()), strict=False):
            if feature is not None:
                here = np.flatnonzero((rows >= start) & (rows < stop))
                values[here] = feature.values[rows[here] - start]
                present[here] = feature.present[rows[here] - start]
                if self.mapped_bytes() > RESIDENT:
                    feature.release()
        return values, present

    def words_of(self, domain: str) -> "csr_array":
        """The word neighbours (N, N) of one domain's items; empty if words are not read."""
        n = len(self.rows(domain))
        return self.words[self.domains.index(domain)] if self.words else csr_array((n, n))

    def mapped_bytes(self) -> int:
        """Size of all mapped features in bytes."""
        return sum(one.values.nbytes for column in self.features.values() for one in column if one is not None)


@dataclass(frozen=True)
class ItemInputs:
    """n items as input of the model: features (n, d) and present (n,) by modality, ids (n,) global rows."""

    features: dict[str, "torch.Tensor"]
    present: dict[str, "torch.Tensor"]
    ids: "torch.Tensor"


def feature_kind(precision: str) -> "torch.dtype":
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


def item_inputs(
    catalogue: Catalogue, widths: Mapping[str, int], rows: Ints, device: "torch.device", precision: str = "fp32"
) -> ItemInputs:
    """The inputs of items by global row, for the modalities and widths of a model, on its device.

    precision: that of the features; bf16 if all products with them are in bf16 anyway (autocast).
    """
    import torch

    features, present = {}, {}
    for modality, width in widths.items():
        values, there = catalogue.gather(rows, modality, width)
        features[modality] = torch.from_numpy(values).to(device, feature_kind(precision))
        present[modality] = torch.from_numpy(there).to(device)
    return ItemInputs(features, present, torch.from_numpy(rows).to(device))


@dataclass(frozen=True)
class DeviceFeatures:
    """Features of a whole catalogue on a device, as stored: values (N, d) float16 and present (N,) by modality."""

    values: dict[str, "torch.Tensor"]
    present: dict[str, "torch.Tensor"]

    def inputs(self, rows: "torch.Tensor", precision: str = "fp32") -> ItemInputs:
        """The same as `item_inputs`, for global item rows (n,) that are on the device."""
        features = {name: x.index_select(0, rows).to(feature_kind(precision)) for name, x in self.values.items()}
        return ItemInputs(features, {name: x.index_select(0, rows) for name, x in self.present.items()}, rows)


def features_on(catalogue: Catalogue, widths: Mapping[str, int], device: "torch.device") -> DeviceFeatures:
    """Copy the features of a catalogue to a device, for the modalities and widths of a model."""
    import torch

    n, values, present = len(catalogue), {}, {}
    for modality, width in widths.items():
        values[modality] = torch.empty(n, width, dtype=torch.float16, device=device)
        present[modality] = torch.empty(n, dtype=torch.bool, device=device)
        for start in range(0, n, COPIED_AT_ONCE):
            rows = np.arange(start, min(n, start + COPIED_AT_ONCE))
            some, there = catalogue.gather(rows, modality, width, np.float16)
            values[modality][start : start + len(rows)] = torch.from_numpy(some)
            present[modality][start : start + len(rows)] = torch.from_numpy(there)
    return DeviceFeatures(values, present)


def load_catalogue(
    store: Store,
    domains: Sequence[str],
    modalities: Sequence[str],
    whitened: Sequence[str] = (),
    *,
    words: bool = False,
    with_cold: bool = False,
) -> Catalogue:
    """Map the features of the domains' cores, or of all their items. Logs what a domain lacks; a modality that no
    domain has is left out.

    modalities: empty for a model that knows items by their ids only. whitened: modalities to read in whitened form.
    words: find word neighbours too. with_cold: append each domain's cold items to its core. Raises DataError if no
    modality is left, if one is not whitened as requested, or if domains have features of different encoders.
    """
    features: dict[str, tuple[Feature | None, ...]] = {}
    widths: dict[str, int] = {}
    encoders: dict[str, str] = {}
    for modality in (m for m in MODALITIES if m in modalities):
        column: list[Feature | None] = []
        for name in domains:
            domain = store.domain(name)
            entry = domain.manifest().get(modality)
            if entry is None or not domain.entry(modality)["present"]:
                log.warning(f"{name}: {modality} is {_not_there(domain, modality)}")
                column.append(None)
                continue
            artefact = artefact_of(modality, whitened)
            entry = domain.entry(artefact)
            column.append(domain.feature(artefact))
            encoder = encoder_name(entry)
            if encoders.setdefault(modality, encoder) != encoder:
                first = next(one for one, feature in zip(domains, column, strict=False) if feature is not None)
                raise DataError(
                    f"{modality} of {name} is made by {encoder}, that of {first} by {encoders[modality]}",
                    alike(store, domains, first, name, modality, whitened),
                )
            widths[modality] = entry["width"]
        if modality in widths:
            features[modality] = tuple(column)
    if modalities and not widths:
        ways = (store.domain(name).state(modality).next_command for name in domains for modality in modalities)
        raise DataError(f"{', '.join(domains)}: no features to learn from", next(filter(None, ways), None))
    opened = [store.domain(name) for name in domains]
    sizes = [domain.rows() if with_cold else domain.core_rows() for domain in opened]
    neighbours = tuple(words_of(domain, size) for domain, size in zip(opened, sizes, strict=True)) if words else ()
    return Catalogue(tuple(domains), np.cumsum([0, *sizes]), features, widths, encoders, neighbours)


def _not_there(domain: Domain, modality: str) -> str:
    """Why a domain lacks a modality, and the command that builds it, if there is one."""
    if modality in domain.manifest():
        return "missing for all items; the model works without it"
    state = domain.state(modality)
    mend = f" ({state.next_command})" if state.next_command else f": {state.why}"
    return f"not built; the model works without it{mend}"


def alike(store: Store, domains: Sequence[str], first: str, other: str, modality: str, whitened: Sequence[str]) -> str:
    """The command that makes the features of `other` comparable to those of `first`, or whitens all domains alike."""
    raw = [store.domain(name).manifest()[modality] for name in (first, other)]
    if modality in whitened and encoder_name(raw[0]) == encoder_name(raw[1]):
        flags = ["--modality", modality, "--scope", "global"]
        return spell("whiten", domains=domains, store=store.root, flags=flags)
    return build_command(store.domain(other), modality, force=modality in EMBEDDED, flags=raw[0].get("flags", []))
