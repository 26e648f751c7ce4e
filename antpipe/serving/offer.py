"""Which items may be recommended: those that pass a condition, those of a list, or all."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from antpipe.core.catalogue import Ints
from antpipe.core.ranking import Floats
from antpipe.errors import DataError, SameCommand, UsageError
from antpipe.evaluation.vectors import OpenRun
from antpipe.runtime.conditions import columns_named, row_filter

if TYPE_CHECKING:
    import torch

NOT_SHOWN = ("item", "image_files")  # columns of the items table that a condition does not see
EXAMPLES = 3


@dataclass(frozen=True)
class Offer:
    """The items that may be recommended.

    rows: (M,) their rows in the catalogue, ascending. vectors: (M, E) as the run scores them. column: (N,) the place of
    each item of the catalogue in `rows`, -1 for the others. longest: the length of the longest vector.
    """

    rows: Ints
    vectors: Floats
    column: Ints
    longest: float

    def on(self, device: "torch.device") -> "torch.Tensor":
        """The vectors as a tensor; on a GPU they are kept, for the next block of histories."""
        import torch

        if device.type == "cpu":
            return torch.from_numpy(self.vectors)
        if device not in self._kept:
            self._kept[device] = torch.from_numpy(self.vectors).to(device)
        return self._kept[device]

    @cached_property
    def _kept(self) -> "dict[torch.device, torch.Tensor]":
        return {}


def offer_of(
    opened: OpenRun,
    where: str | None = None,
    exclude: Collection[str] = (),
    only: Collection[str] | None = None,
) -> Offer:
    """The items of an opened run for which `where` is true, in `only` and not in `exclude` (original ids).

    Ids in `exclude` that the catalogue does not have are ignored. Raises UsageError for a condition that cannot be
    read or compares unlike things, DataError if `only` names an unknown item or if nothing is left to recommend.
    """
    allowed = np.ones(len(opened.items), np.bool_)
    if where is not None:
        allowed &= passing(opened, where)
    if exclude or only is not None:
        row_of = opened.row_of
        allowed[[row_of[item] for item in exclude if item in row_of]] = False
        if only is not None:
            unknown = [item for item in only if item not in row_of]
            if unknown:
                raise DataError(
                    f"domain {opened.domain.name}: --only names {len(unknown)} unknown item(s), such as "
                    f"{', '.join(map(repr, unknown[:EXAMPLES]))}; the domain has items such as {opened.item_ids[0]!r}",
                    SameCommand(without=("--only",)),
                )
            listed = np.zeros_like(allowed)
            listed[[row_of[item] for item in only]] = True
            allowed &= listed
    if not allowed.any():
        raise DataError(
            f"domain {opened.domain.name}: none of {len(allowed)} items passes the filters",
            SameCommand(without=("--where", "--exclude", "--only")),
        )
    return offered(opened, allowed)


def offered(opened: OpenRun, allowed: NDArray[np.bool_]) -> Offer:
    """The items (N,) that are allowed. If these are all, their vectors are not copied."""
    rows = np.flatnonzero(allowed)
    column = np.full(len(allowed), -1)
    column[rows] = np.arange(len(rows))
    vectors = opened.items if len(rows) == len(allowed) else opened.items[rows]
    return Offer(rows, vectors, column, float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max())))


def passing(opened: OpenRun, where: str) -> NDArray[np.bool_]:
    """(N,) for which items a condition on the columns of the catalogue is true. Raises UsageError as `offer_of`."""
    schema = {name: kind for name, kind in opened.columns.items() if name not in NOT_SHOWN}
    try:
        wanted = row_filter(where, schema)
        table = opened.describing(columns_named(where, list(schema)))
    except UsageError as error:
        raise UsageError(f"--where: {error.message}", error.next_command) from None
    found: NDArray[np.bool_] = table.select(wanted.fill_null(value=False)).to_series().to_numpy()
    return found


def read_ids(path: Path, flag: str) -> list[str]:
    """The ids in a text file, one per line, without blanks around them; empty lines are skipped, repeats dropped.

    flag: names the file in messages. Raises DataError if the file cannot be read, is not UTF-8 or has no ids.
    """
    return list(dict.fromkeys(line.strip() for line in read_lines(path, flag) if line.strip()))


def read_lines(path: Path, flag: str) -> list[str]:
    """The lines of a text file. Raises DataError if it cannot be read, is not UTF-8 or holds no text."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{flag} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{flag} {path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    if not any(line.strip() for line in lines):
        raise DataError(f"{flag} {path}: it is empty")
    return lines
