"""A step in a fixed shape: how windows are packed, and that losses and gradients are those of the exact blocks."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from antpipe.core.batches import Candidates, batches, step_windows, training_windows
from antpipe.core.catalogue import Ints, item_inputs
from antpipe.core.gpu import static
from antpipe.core.gpu.packing import WHOLE, PackedBatch, Shape, pack, packed_batch, plan_shape
from antpipe.core.gpu.static import static_loss, step_of
from antpipe.core.model import Ant
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.training.loop import no_negatives
from antpipe.training.step_loss import Flags, pretraining_loss, target_loss
from benchmarks.synthetic_shops import MAX_LEN, WIDTHS, training_data

CPU = torch.device("cpu")
DATA = training_data((50, 70), 90, 700)
SIZE = len(DATA.catalogue)
WINDOWS = training_windows(DATA.sequences, DATA.catalogue.offsets)
MODEL = ModelConfig(width=32, experts=3)
NEW = no_negatives(DATA, TrainConfig(unsold_negatives=False))
assert NEW is not None
WHOLE_CATALOGUE, OWN, DRAWN = Candidates(SIZE, SIZE), Candidates(SIZE, 0), Candidates(SIZE, 8)


# -- packing ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_packed_sequences_lie_side_by_side_within_their_rows(lengths: list[int]) -> None:
    row, column = pack(np.array(lengths), 56)
    taken = [(r, c) for r, first, n in zip(row, column, lengths, strict=True) for c in range(first, first + n)]
    assert len(set(taken)) == len(taken)
    assert all(0 <= c < 56 for _, c in taken)
    assert set(row) == set(range(row.max() + 1))


def test_short_sequences_fill_the_room_beside_long_ones_first() -> None:
    row, column = pack(np.array([30, 2, 20, 8, 30, 1]), 40)
    assert row.tolist() == [0, 0, 2, 1, 1, 0]
    assert column.tolist() == [0, 31, 0, 30, 0, 30]


def test_rows_are_few_for_many_short_sequences() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 5, 400).clip(1, 50)
    row, _ = pack(lengths, 56)
    assert (row.max() + 1) * 56 < 1.25 * lengths.sum()


def packed(candidates: Candidates, new: Flags | None = None) -> list[PackedBatch]:
    base = plan_shape(WINDOWS, 128, 0, candidates, MAX_LEN)
    steps = step_windows(WINDOWS, 128, 0, 1)
    return [packed_batch(WINDOWS, chosen, candidates, rng, base, new) for chosen, rng in steps]


def prefixes(inputs: Ints, positions: Ints, targets: Ints, starts: Ints) -> list[tuple[int, ...]]:
    """Each target with the items before it. inputs: flat; starts: (P,) of the windows of the positions."""
    rows = zip(positions, targets, starts, strict=True)
    return sorted((*inputs[start : position + 1].tolist(), int(target)) for position, target, start in rows)


@pytest.mark.parametrize("candidates", [WHOLE_CATALOGUE, OWN, DRAWN])
def test_a_packed_batch_serves_the_prefixes_of_the_exact_one(candidates: Candidates) -> None:
    exact = list(batches(WINDOWS, 128, 0, 1, candidates))
    for one, other in zip(packed(candidates), exact, strict=True):
        part = one.shape.split(one.numbers)
        items = np.arange(SIZE) if one.shape.items == WHOLE else part["items"]
        count = part["counts"][0]
        positions = part["positions"][:count]
        inputs, places = items[part["inputs"].ravel()], part["places"].ravel()
        found = prefixes(inputs, positions, items[part["targets"][:count]], positions - places[positions])
        wanted, begin = [], 0
        for block in other.blocks:
            stop, length = begin + len(block.positions), block.inputs.shape[1]
            targets = other.items[other.targets[begin:stop]]
            starts = block.positions // length * length
            wanted += prefixes(other.items[block.inputs.ravel()], block.positions, targets, starts)
            begin = stop
        assert found == sorted(wanted)
        assert np.array_equal(one.items, other.items) or one.shape.items == WHOLE
        assert sorted(one.targets) == sorted(other.items[other.targets])


def test_all_steps_of_an_epoch_have_one_shape() -> None:
    assert len({one.shape for one in packed(OWN)}) == 1


def test_a_step_that_does_not_fit_gets_the_doubled_shape() -> None:
    chosen, rng = next(step_windows(WINDOWS, 128, 0, 1))
    assert 64 < WINDOWS.targets[chosen].sum() <= 128
    large = packed_batch(WINDOWS, chosen, OWN, rng, Shape(50, 56, 64, 120))
    assert large.shape == Shape(100, 56, 128, 240)


def test_new_items_of_a_sample_are_no_candidates() -> None:
    assert NEW.any()
    for one in packed(DRAWN, NEW):
        part = one.shape.split(one.numbers)
        count = len(one.items)
        assert np.array_equal(np.isinf(part["log_inclusion"].view(np.float64)[:count]), NEW[one.items])


def test_a_packed_batch_can_be_made_again_in_exact_blocks() -> None:
    for one, other in zip(packed(DRAWN), batches(WINDOWS, 128, 0, 1, DRAWN), strict=True):
        again = one.exact()
        assert np.array_equal(again.items, other.items)
        assert np.array_equal(again.targets, other.targets)


# -- losses -----------------------------------------------------------------------------------------------------------


VARIANTS = {
    "ant": {},
    "history": {"history_score": True},
    "missing": {"learned_missing": True, "history_score": True},
    "ids": {"transductive": True},
    "one-layer": {"experts": 0},
    "mixture": {"feed_forward_experts": 3},
    "floor": {"floor": True},
    "floor and ids": {"floor": True, "transductive": True, "learned_missing": True},
}


def model_of(variant: str) -> Ant:
    torch.manual_seed(0)
    model = Ant(replace(MODEL, **VARIANTS[variant]), WIDTHS, MAX_LEN, SIZE)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is zero, so that a comparison checks all of them
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("pretraining", "candidates", "config"),
    [
        (False, WHOLE_CATALOGUE, TrainConfig()),
        (False, DRAWN, TrainConfig()),
        (True, OWN, TrainConfig(image_text_weight=0.5)),
        (True, DRAWN, TrainConfig(image_text_weight=0.5, pretrain_drawn=8)),
    ],
    ids=["full softmax", "sampled softmax", "in-batch", "drawn"],
)
@pytest.mark.parametrize("unsold", [True, False])
def test_loss_and_gradients_are_those_of_the_exact_blocks(
    variant: str,
    pretraining: bool,
    candidates: Candidates,
    config: TrainConfig,
    unsold: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, new = model_of(variant), None if unsold else NEW
    exact_loss = pretraining_loss if pretraining else target_loss
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for at_once in (static.SCORES_AT_ONCE, 3000):  # whole, and in blocks of rows
        monkeypatch.setattr(static, "SCORES_AT_ONCE", at_once)
        packs = packed(candidates, new)
        pairs = zip(packs, batches(WINDOWS, 128, 0, 1, candidates), strict=True)
        for one, batch in islice(pairs, 2):
            rows = np.arange(SIZE) if one.shape.items == WHOLE else one.shape.split(one.numbers)["items"]
            step = step_of(torch.from_numpy(one.numbers), one.shape)
            inputs, exact = (item_inputs(DATA.catalogue, model.widths, some, CPU) for some in (rows, batch.items))
            there = None if new is None else torch.from_numpy(new)
            loss = static_loss(model, inputs, step, config, pretraining=pretraining, new=there)
            wanted = exact_loss(model, exact, batch, config, new=new)
            assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
            found, expected = (torch.autograd.grad(value, trained, allow_unused=True) for value in (loss, wanted))
            for parameter, mine, theirs in zip(trained, found, expected, strict=True):
                if mine is None or theirs is None:  # the noise of the gates, which is off
                    assert mine is theirs
                    continue
                # That of a scalar is a difference of sums near 1, and has their rounding.
                size = theirs.norm().clamp(min=1) if parameter.ndim == 0 else theirs.norm()
                assert (mine - theirs).norm() <= 2e-6 * size + 1e-9, tuple(parameter.shape)


def test_padding_has_no_weight() -> None:
    model, config = model_of("history"), TrainConfig(image_text_weight=0.5)
    base = plan_shape(WINDOWS, 128, 0, OWN, MAX_LEN)
    chosen, _ = next(step_windows(WINDOWS, 128, 0, 1))
    losses = []
    for shape in (base, Shape(base.rows + 8, base.length, base.targets + 64, base.items + 64)):
        one = packed_batch(WINDOWS, chosen, OWN, np.random.default_rng(0), shape)
        inputs = item_inputs(DATA.catalogue, WIDTHS, one.shape.split(one.numbers)["items"], CPU)
        step = step_of(torch.from_numpy(one.numbers), one.shape)
        losses.append(static_loss(model, inputs, step, config, pretraining=True).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
