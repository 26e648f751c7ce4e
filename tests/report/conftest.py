"""A shop with odd titles and a few pictures, compared runs on it, and the report of all that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.api.judging import compare
from antpipe.api.reporting import write_report
from antpipe.features.build_sequences import build_sequences
from antpipe.features.quantize_price import quantize_price
from antpipe.report.write import WrittenReport
from antpipe.runtime.logs import silenced
from antpipe.settings.features import PriceConfig, SequenceConfig
from antpipe.store.store import Store
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from tests.support.shops import make_domain, picture
from tests.support.trainable import MODEL, TRAINING, write_feature

ITEMS, USERS = 30, 40
EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
TURNED = "abc\u202edef\u200f"
LONG = "Wort" * 1250
WIDTHS = {"text": 12, "image": 10}


def rows_of(name: str) -> list[dict[str, Any]]:
    titles = {0: EVIL, 1: TURNED, 2: LONG, 3: None}
    return [
        {
            "item_id": f"{name}{number:02}",
            "title": titles.get(number, f"{name} thing {number}"),
            "text": f"text {number}",
            "price": number + 1.5 if number % 6 else None,
            "currency": "EUR",
            "category": ["Shop", EVIL if number % 3 == 0 else f"Kind {number % 3}"],
            "image_files": [f"{number}.png"] if number < 8 else [],
        }
        for number in range(ITEMS)
    ]


def make_shop(store: Store, name: str) -> None:
    rng = np.random.default_rng(len(name))
    ring = rng.permutation(ITEMS)
    interactions = [
        (f"u{user:02}", f"{name}{ring[(user * 7 + step) % ITEMS]:02}", 1000 + step)
        for user in range(USERS)
        for step in range(5 + user % 4)
    ]
    pictures = {f"{number}.png": picture(number) for number in range(7)} | {"7.png": b"no picture"}
    domain = make_domain(store, name, rows_of(name), interactions, pictures)
    for modality, width in WIDTHS.items():
        write_feature(domain, modality, rng.normal(size=(ITEMS, width)))
    quantize_price(store, [name], PriceConfig(bins=4))
    build_sequences(store, [name], SequenceConfig(max_len=6))


@pytest.fixture(scope="session")
def compared_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, runs below `runs`, and a comparison of them in `cmp`, with what is beyond accuracy."""
    folder = tmp_path_factory.mktemp("report")
    store = Store(folder / "store")
    with silenced():
        for name in ("Kites", "Lamps"):
            make_shop(store, name)
        training = replace(TRAINING, epochs=2)
        run_stage(RunRequest(store, ["Lamps"], "pretrain", MODEL, training), folder / "runs" / "lamps")
        for stage in ("scratch", "finetune"):
            for seed in (0, 1):
                source = folder / "runs" / "lamps" if stage == "finetune" else None
                request = RunRequest(store, ["Kites"], stage, MODEL, replace(training, seed=seed), source)
                run_stage(request, folder / "runs" / f"{stage}-{seed}")
        runs = {stage: [folder / "runs" / f"{stage}-{seed}" for seed in (0, 1)] for stage in ("scratch", "finetune")}
        compare(store, "Kites", runs=runs, arms=list(runs), out=folder / "cmp", beyond_accuracy=True)
    return folder


@pytest.fixture(scope="session")
def report(compared_shop: Path) -> WrittenReport:
    """The report of that comparison and of the run that the others started from."""
    return write_report(
        compared_shop / "store",
        runs=compared_shop / "runs" / "lamps",
        comparisons=compared_shop / "cmp",
        out=compared_shop / "report.html",
        users=4,
        k=5,
    )
