"""Golden vectors of the authors' code, and a table of how far ours are from them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from antpipe.core.model import Ant
from antpipe.interop.ant_reference import from_reference

TABLES = {"text": "text", "image": "img", "price": "price"}  # our modalities, their names in the arrays
LIMITS = {64: 1e-9, 32: 1e-5}  # largest relative error by precision
DTYPES = {64: torch.float64, 32: torch.float32}


@dataclass
class Report:
    """Relative errors by quantity and precision."""

    errors: dict[str, dict[int, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{'quantity':<44}{'fp64':>10}{'fp32':>10}"]
        for quantity, found in self.errors.items():
            shown = (f"{found[bits]:.1e}" if bits in found else "-" for bits in (64, 32))
            lines.append(f"{quantity:<44}" + "".join(f"{error:>10}" for error in shown))
        return "\n".join(lines)


@dataclass(frozen=True)
class Golden:
    """One golden set in one precision. arrays: those of the file; about: its description."""

    arrays: Mapping[str, Any]
    about: Mapping[str, Any]
    bits: int
    report: Report

    @property
    def settings(self) -> dict[str, Any]:
        config = self.about["_config"]
        return {
            "heads": config["n_heads_rec"],
            "fusion": config["fusion_lam"],
            "temperature": config["temperature"],
        }

    def tensor(self, name: str) -> Tensor:
        """An input in this precision (ids stay whole numbers)."""
        value = torch.from_numpy(self.arrays[name])
        return value.to(DTYPES[self.bits]) if value.is_floating_point() else value

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Arrays below a prefix, by the rest of their names."""
        names = [name for name in self.arrays if name.startswith(f"{prefix}/")]
        return {name.removeprefix(f"{prefix}/"): self.tensor(name) for name in names}

    def model(self, state: Mapping[str, Tensor] | None = None, **options: Any) -> Ant:
        return from_reference(state or self.group("sd"), **self.settings | options)

    def features(self) -> dict[str, Tensor]:
        """Raw features of the padding (row 0) and of all items."""
        return {ours: self.tensor(f"table/{theirs}") for ours, theirs in TABLES.items()}

    def compare(self, quantity: str, ours: Tensor, name: str, scale: Tensor | None = None) -> None:
        """Note and check max |ours - theirs| / max |scale|, where the scale is theirs unless another is given."""
        theirs = torch.from_numpy(np.asarray(self.arrays[f"out{self.bits}/{name}"]))
        assert ours.shape == theirs.shape
        scale = theirs if scale is None else scale.detach()
        error = float((ours.detach().double() - theirs).abs().max() / scale.double().abs().max())
        by_bits = self.report.errors.setdefault(quantity, {})
        by_bits[self.bits] = max(by_bits.get(self.bits, 0.0), error)
        assert error <= LIMITS[self.bits], f"{quantity} ({name}): relative error {error:.1e}"


def read_golden(folder: Path, bits: int, report: Report) -> Golden:
    """The set in a folder: one .npz and the .json that describes it."""
    (path,) = folder.glob("*.npz")
    with np.load(path) as arrays:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return Golden({name: arrays[name] for name in arrays.files}, about, bits, report)
