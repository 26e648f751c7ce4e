"""Training windows, batches and evaluation examples: every target once, with the right history. Catalogues."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antpipe.core.batches import Candidates, batches, block_ends, examples, history_blocks, training_windows
from antpipe.core.catalogue import Catalogue, load_catalogue
from antpipe.errors import DataError
from antpipe.features.quantize_price import quantize_price
from antpipe.settings.features import PriceConfig
from antpipe.store.files import Feature, Sequences
from antpipe.store.manifest import encoder_name
from antpipe.store.store import Store
from tests.support.shops import make_domain

lengths = st.lists(st.integers(1, 14), min_size=1, max_size=8)


def make_sequences(sizes: list[int], max_len: int, first_item: int = 0) -> Sequences:
    """Users with items first_item, first_item + 1, …, all distinct; leave-one-out."""
    n = np.array(sizes)
    return Sequences(
        user=np.arange(len(n), dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(n)]),
        items=np.arange(first_item, first_item + n.sum(), dtype=np.int32),
        train_end=np.maximum(n - 2, 1).astype(np.int32),
        valid_end=np.maximum(n - 1, 1).astype(np.int32),
        max_len=max_len,
    )


def prefixes(part: Sequences, offset: int) -> set[tuple[tuple[int, ...], int]]:
    """Every training target with the items before it, at most the last max_len."""
    found = set()
    for u in range(len(part.user)):
        own = [int(i) + offset for i in part.items[part.offsets[u] : part.offsets[u + 1]]]
        for t in range(1, int(part.train_end[u])):
            found.add((tuple(own[max(0, t - part.max_len) : t]), own[t]))
    return found


def served(batch_list, whole: int | None) -> list[tuple[tuple[int, ...], int]]:
    """The (history, target) pairs that a causal pass over the batches' blocks covers."""
    found = []
    for batch in batch_list:
        rows = np.arange(whole) if whole is not None else batch.items
        at = 0
        for block in batch.blocks:
            width = block.inputs.shape[1]
            for position in block.positions:
                row, column = divmod(int(position), width)
                history = tuple(int(i) for i in rows[block.inputs[row, : column + 1]])
                found.append((history, int(rows[batch.targets[at]])))
                at += 1
        assert at == len(batch.targets)
    return found


@given(lengths, lengths, st.integers(1, 6), st.integers(1, 20), st.booleans())
def test_batches_cover_every_prefix_exactly_once(first, second, max_len, batch_size, own_items_only) -> None:
    parts = [make_sequences(first, max_len), make_sequences(second, max_len)]
    offsets = np.array([0, sum(first), sum(first) + sum(second)])
    whole = None if own_items_only else int(offsets[-1])
    windows = training_windows(parts, offsets)
    expected = prefixes(parts[0], 0) | prefixes(parts[1], sum(first))
    if not expected:
        assert not len(windows.first)
        return
    candidates = Candidates(int(offsets[-1]), whole or 0)
    found = served(batches(windows, batch_size, seed=1, epoch=3, candidates=candidates), whole)
    assert len(found) == len(expected)
    assert set(found) == expected


@given(lengths, st.integers(1, 6), st.integers(1, 9))
def test_a_stride_covers_every_target_once_with_the_items_just_before_it(sizes, max_len, stride) -> None:
    part = make_sequences(sizes, max_len)
    windows = training_windows([part], np.array([0, sum(sizes)]), stride)
    whole = sum(sizes)
    found = served(batches(windows, 4, 0, 1, Candidates(whole, whole)), whole) if len(windows.first) else []
    exact = {target: history for history, target in prefixes(part, 0)}
    assert sorted(target for _, target in found) == sorted(exact)
    for history, target in found:
        assert history == exact[target][-len(history) :]
        assert len(exact[target]) - len(history) < min(stride, max_len)


def test_the_stride_determines_the_number_of_windows_of_a_long_history() -> None:
    part = make_sequences([32], max_len=10)  # 29 targets: 10 of the first window, 19 after it
    counts = {stride: len(training_windows([part], np.array([0, 32]), stride).first) for stride in (1, 5, 10, 25)}
    assert counts == {1: 20, 5: 5, 10: 3, 25: 3}


@given(lengths, lengths, st.integers(1, 4), st.integers(1, 20), st.integers(1, 3))
def test_a_batch_says_whose_each_position_is_in_the_order_of_all_processes(
    first, second, max_len, batch_size, processes
) -> None:
    parts = [make_sequences(first, max_len), make_sequences(second, max_len)]
    offsets = np.array([0, sum(first), sum(first) + sum(second)])
    owner = np.repeat(np.arange(len(first) + len(second)), [*first, *second])  # of each item: all items are distinct
    windows = training_windows(parts, offsets)
    if not len(windows.first):
        return
    shares = [
        list(batches(windows, batch_size, 1, 3, Candidates(int(offsets[-1]), 0), (rank, processes)))
        for rank in range(processes)
    ]
    for step in zip(*shares, strict=True):
        for batch in step:
            assert batch.users.tolist() == owner[batch.items[batch.targets]].tolist()
            own = [batch.items[block.inputs.ravel()[block.positions]] for block in batch.blocks]
            assert owner[np.concatenate([[], *own]).astype(int)].tolist() == batch.users[batch.own_targets()].tolist()


def test_all_windows_of_a_long_history_are_of_one_user() -> None:
    windows = training_windows([make_sequences([2, 9, 5], max_len=3)], np.array([0, 16]))
    assert list(zip(windows.first.tolist(), windows.length.tolist(), windows.user.tolist(), strict=True)) == [
        (2, 3, 1),  # the first three targets of the second user
        (11, 2, 2),
        (3, 3, 1),  # one more each
        (4, 3, 1),
        (5, 3, 1),
    ]


def test_the_order_of_batches_depends_on_seed_and_epoch_only() -> None:
    windows = training_windows([make_sequences([9, 7, 12, 5, 8], 6)], np.array([0, 41]))
    orders = [
        [batch.targets.tolist() for batch in batches(windows, 4, seed, epoch, Candidates(41, 41))]
        for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1))
    ]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]


def test_long_and_short_sequences_go_to_different_blocks_when_padding_would_cost_more() -> None:
    few, many = np.sort([5] * 2 + [50] * 2), np.sort([5] * 400 + [50] * 4)
    assert block_ends(few) == []
    assert block_ends(many) == [400]


@given(lengths, st.integers(1, 6))
def test_valid_and_test_examples_are_the_last_two_items(sizes: list[int], max_len: int) -> None:
    part = make_sequences(sizes, max_len)
    test, valid = examples(part, "test"), examples(part, "valid")
    assert test.targets().tolist() == [
        int(part.items[stop - 1]) for stop, n in zip(part.offsets[1:], sizes, strict=True) if n > 1
    ]
    assert valid.targets().tolist() == [
        int(part.items[stop - 2]) for stop, n in zip(part.offsets[1:], sizes, strict=True) if n > 2
    ]


@given(lengths, st.integers(1, 6), st.integers(1, 5))
def test_history_blocks_hold_the_last_items_before_each_target(sizes: list[int], max_len: int, size: int) -> None:
    part = examples(make_sequences(sizes, max_len), "test")
    seen = []
    for rows, inputs in history_blocks(part, size):
        assert len(rows) <= size
        for row, history in zip(rows, inputs, strict=True):
            expected = part.items[max(part.start[row], part.end[row] - max_len) : part.end[row]]
            assert history.tolist() == expected.tolist()
            seen.append(row)
    assert sorted(seen) == list(range(len(part)))


def feature(*rows: list[float] | None) -> Feature:
    """Rows of None are missing."""
    values = np.array([row or [0.0, 0.0] for row in rows], np.float16)
    return Feature(values, np.array([row is not None for row in rows]))


def test_features_of_several_domains_are_gathered_by_global_row() -> None:
    catalogue = Catalogue(
        ("a", "b", "c"),
        np.array([0, 2, 5, 7]),
        {"text": (feature([1, 2], None), None, feature([3, 4], [5, 6]))},
        {"text": 2},
        {"text": "test"},
    )
    values, present = catalogue.gather(np.array([5, 1, 3, 0, 6]), "text", 2)
    assert values.tolist() == [[3, 4], [0, 0], [0, 0], [1, 2], [5, 6]]
    assert present.tolist() == [True, False, False, True, True]
    assert catalogue.rows("b").tolist() == [2, 3, 4]
    assert len(catalogue) == 7


def test_a_modality_that_no_domain_has_is_zeros_of_the_requested_width() -> None:
    catalogue = Catalogue(("a",), np.array([0, 2]), {}, {}, {})
    values, present = catalogue.gather(np.array([1, 0]), "image", 3)
    assert values.tolist() == [[0, 0, 0], [0, 0, 0]]
    assert not present.any()


def shops_with_prices(folder: Path) -> Store:
    store = Store(folder / "store")
    for name, factor in (("cheap", 1.0), ("dear", 100.0)):
        make_domain(store, name, [{"item_id": f"i{n}", "price": factor * n} for n in range(1, 5)])
    return store


@pytest.mark.parametrize("second", [PriceConfig(scope="domain"), PriceConfig(scope="category"), PriceConfig(bins=7)])
def test_prices_with_different_encodings_are_not_joined(tmp_path: Path, second: PriceConfig) -> None:
    store = shops_with_prices(tmp_path)
    quantize_price(store, ["cheap"], PriceConfig(scope="global", bins=50))
    quantize_price(store, ["dear"], second)
    with pytest.raises(DataError, match="price of dear is made by sinusoid") as caught:
        load_catalogue(store, ["cheap", "dear"], ["price"])
    assert caught.value.next_command == (
        f"antpipe quantize-price --domains dear --store {store.root} --bins 50 --scope global"
    )


def test_prices_with_bins_of_different_catalogues_are_not_joined(tmp_path: Path) -> None:
    store = shops_with_prices(tmp_path)
    for name in ("cheap", "dear"):
        quantize_price(store, [name], PriceConfig(scope="global"))
    with pytest.raises(DataError, match="price of dear is made by"):
        load_catalogue(store, ["cheap", "dear"], ["price"])
    quantize_price(store, ["cheap", "dear"], PriceConfig(scope="global"))
    assert len(load_catalogue(store, ["cheap", "dear"], ["price"])) == 8


def test_prices_ranked_within_each_catalogue_are_joined(tmp_path: Path) -> None:
    store = shops_with_prices(tmp_path)
    quantize_price(store, ["cheap"], PriceConfig())
    quantize_price(store, ["dear"], PriceConfig())
    assert len(load_catalogue(store, ["cheap", "dear"], ["price"])) == 8


def test_vectors_with_and_without_a_prompt_have_different_encoder_names() -> None:
    encoder = {"name": "e5", "revision": "0123456789abcdef"}
    assert encoder_name({"encoder": encoder}) == "e5 (revision 0123456789ab)"
    variant = encoder | {"variant": "prompt 'query: '"}
    assert encoder_name({"encoder": variant}) == "e5 (revision 0123456789ab, prompt 'query: ')"
