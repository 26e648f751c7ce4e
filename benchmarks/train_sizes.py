"""How large the shops of the training benchmark are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """A stage's shop: items of each domain, users and prefixes in all, targets a step."""

    items: tuple[int, ...]
    users: int
    prefixes: int
    batch: int


# As large as Amazon Scientific, the paper's target of middle size; and a mix of four sources.
FULL = {
    "relearn": Sizes((5282,), 8442, 44_000, 2048),
    "pretrain": Sizes((5000,) * 4, 19_000, 100_000, 2048),
}
QUICK = {"relearn": Sizes((120,), 60, 240, 64), "pretrain": Sizes((60,) * 4, 80, 320, 64)}
