"""Sizes of the shops of the training benchmark."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """A stage's shop: items per domain, users and prefixes in total, targets per step."""

    items: tuple[int, ...]
    users: int
    prefixes: int
    batch: int


# relearn: as large as Amazon Scientific, the paper's medium-sized target. pretrain: a mix of four sources.
FULL = {
    "relearn": Sizes((5282,), 8442, 44_000, 2048),
    "pretrain": Sizes((5000,) * 4, 19_000, 100_000, 2048),
}
QUICK = {"relearn": Sizes((120,), 60, 240, 64), "pretrain": Sizes((60,) * 4, 80, 320, 64)}
