"""The item features of several domains as one catalogue, mapped from the store.

Items of several domains share one numbering: domain i's item j is offsets[i] + j, where the offsets are
sums of the catalogues' sizes (never of the largest id seen).
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antpipe.errors import DataError
from antpipe.settings.features import MODALITIES
from antpipe.store.artefacts import artefact_of, encoder_name
from antpipe.store.files import Feature
from antpipe.store.store import Store

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]
# Features of more bytes than this are given back after each use. The kernel maps far more than the rows one reads, so
# that soon all of them would count as this process's memory.
RESIDENT = 1 << 29


@dataclass(frozen=True)
class Catalogue:
    """Features of one or more domains, mapped. A modality a domain lacks counts as missing for all its items."""

    domains: tuple[str, ...]
    offsets: Ints  # (domains + 1,)
    features: dict[str, tuple[Feature | None, ...]]  # by modality, one entry a domain
    widths: dict[str, int]
    encoders: dict[str, str]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def rows(self, domain: str) -> Ints:
        """Global rows of one domain's items."""
        place = self.domains.index(domain)
        return np.arange(self.offsets[place], self.offsets[place + 1])

    def gather(self, rows: Ints, modality: str, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Raw features (n, width) of global item rows (n,), zeros where missing, and who has one (n,)."""
        values = np.zeros((len(rows), width), np.float32)
        present = np.zeros(len(rows), np.bool_)
        for start, stop, feature in zip(self.offsets, self.offsets[1:], self.features.get(modality, ()), strict=False):
            if feature is not None:
                here = np.flatnonzero((rows >= start) & (rows < stop))
                values[here] = feature.values[rows[here] - start]
                present[here] = feature.present[rows[here] - start]
                if self.mapped_bytes() > RESIDENT:
                    feature.release()
        return values, present

    def mapped_bytes(self) -> int:
        """Size of all mapped features."""
        return sum(one.values.nbytes for column in self.features.values() for one in column if one is not None)


@dataclass(frozen=True)
class ItemInputs:
    """n items as the model takes them: features (n, d) and present (n,) by modality, ids (n,) global rows."""

    features: dict[str, "torch.Tensor"]
    present: dict[str, "torch.Tensor"]
    ids: "torch.Tensor"


def item_inputs(
    catalogue: Catalogue, widths: Mapping[str, int], rows: Ints, device: "torch.device", precision: str = "fp32"
) -> ItemInputs:
    """Items by global row, with the modalities (and widths) a model reads, on its device.

    precision: of the features; bf16 where all products with them are made in bf16 anyway (autocast).
    """
    import torch

    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    features, present = {}, {}
    for modality, width in widths.items():
        values, there = catalogue.gather(rows, modality, width)
        features[modality] = torch.from_numpy(values).to(device, kind)
        present[modality] = torch.from_numpy(there).to(device)
    return ItemInputs(features, present, torch.from_numpy(rows).to(device))


def load_catalogue(
    store: Store,
    domains: Sequence[str],
    modalities: Sequence[str],
    notice: Callable[[str], None],
    whitened: Sequence[str] = (),
) -> Catalogue:
    """Map the features of the domains. A modality no domain has is left out; `notice` says what is missing.

    modalities: none at all for a model that knows items by their ids. whitened: those to read in their whitened form.
    Raises DataError where no modality is left, where one is there but not whitened as asked for, or where domains have
    features of different encoders.
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
                lack = "not built" if entry is None else "present for no item"
                notice(f"{name}: {modality} is {lack}; the model does without ({domain.command(modality)})")
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
        raise DataError(f"{', '.join(domains)}: no feature to learn from", store.domain(domains[0]).command("text"))
    sizes = [store.domain(name).rows() for name in domains]
    return Catalogue(tuple(domains), np.cumsum([0, *sizes]), features, widths, encoders)


def alike(store: Store, domains: Sequence[str], first: str, other: str, modality: str, whitened: Sequence[str]) -> str:
    """The command that gives two domains features of one kind: those of `first`, or one whitening for all."""
    raw = [store.domain(name).manifest()[modality] for name in (first, other)]
    if modality in whitened and encoder_name(raw[0]) == encoder_name(raw[1]):
        words = ["antpipe", "whiten", "--modality", modality, "--domains", ",".join(domains), "--scope", "global"]
        return shlex.join([*words, "--store", str(store.root)])
    return store.domain(other).command(modality, flags=raw[0].get("flags", []))
