"""The states of a store, as Python users get them."""

from pathlib import Path

import pytest

from antpipe.commands.flags import as_data
from antpipe.errors import DataError
from antpipe.features.quantize_price import quantize_price
from antpipe.features.status import status
from antpipe.settings.features import PriceConfig
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.shops import make_domain


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A with a price, B as it was ingested."""
    store = Store(tmp_path)
    for name in ("A", "B"):
        make_domain(store, name, [{"item_id": "a", "price": 2.0}])
    quantize_price(store, ["A"], PriceConfig())
    return store


def test_python_and_the_command_line_give_the_same_states(store: Store) -> None:
    assert as_data(status(store)) == run("status", "--json", "--store", store.root).json()
    [(name, states)] = status(store, ["A"]).items()
    assert name == "A"
    assert {state.artefact: state.status for state in states} == {
        "items": "fresh",
        "text": "missing",
        "image": "missing",
        "price": "fresh",
        "sequences": "missing",
    }


def test_contents_are_read_only_if_they_are_to_be_verified(store: Store) -> None:
    path = store.root / "A" / "price.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    found = {
        verify: next(state.status for state in status(store, ["A"], verify=verify)["A"] if state.artefact == "price")
        for verify in (False, True)
    }
    assert found == {False: "fresh", True: "stale"}


def test_an_unknown_domain_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="no domain 'C'"):
        status(store, ["C"])
