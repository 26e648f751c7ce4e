"""Each deliberate difference between antpipe and the authors' code (docs/method.md lists them)."""

import io
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from antpipe.core import losses, stages
from antpipe.core.batches import Examples, training_windows
from antpipe.core.catalogue import Catalogue
from antpipe.core.model import Ant
from antpipe.core.ranking import DEPTH, rank_examples
from antpipe.core.scoring import unit_rows
from antpipe.features import embed_image
from antpipe.features.image.encoders import ImageEncoder
from antpipe.features.image.preparation import Preparation
from antpipe.interop.ant_reference import rename
from antpipe.settings.model import ModelConfig
from antpipe.store.files import Feature, Sequences
from antpipe.store.store import Store
from tests.support import ant_quirks
from tests.support.fake_encoders import tiny_encoder
from tests.support.golden_report import Golden, Report, read_golden
from tests.support.shops import picture_shop

TAU = ModelConfig.temperature


@pytest.fixture(scope="module")
def case(golden: Path) -> Golden:
    return read_golden(golden, 64, Report())


def along(cosine: float) -> torch.Tensor:
    """A unit vector with this cosine to (1, 0)."""
    return torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)


def test_the_padding_is_a_candidate_in_their_softmax_but_not_in_ours() -> None:
    hidden, catalogue, target = along(1.0)[None], torch.stack([along(0.9), along(0.2)]), torch.tensor([0])
    rival = along(0.95)
    ours = losses.full_softmax(hidden, catalogue, target, TAU)
    theirs = losses.reference_full_softmax(hidden, catalogue, rival, target, TAU)
    assert math.isclose(ours, math.log(1 + math.exp(-0.7 / TAU)), rel_tol=1e-9)
    assert math.isclose(theirs, math.log(1 + math.exp(-0.7 / TAU) + math.exp(0.05 / TAU)), rel_tol=1e-6)


def test_their_loss_is_bounded_by_minus_log_eps_and_ours_is_not() -> None:
    hidden, items, targets = along(1.0).repeat(2, 1), torch.stack([along(-1.0), along(1.0)]), torch.tensor([0, 1])
    theirs = losses.reference_in_batch(hidden, items, targets, TAU)
    ours = losses.in_batch(hidden, items, targets, TAU)
    assert math.isclose(theirs, -math.log(losses.REFERENCE_EPS) / 2, rel_tol=1e-4)
    assert math.isclose(ours, 2 / TAU / 2, rel_tol=1e-9)


def test_the_users_other_next_items_are_negatives_in_their_batch_but_not_in_ours() -> None:
    hidden, users = along(1.0).repeat(3, 1), torch.tensor([0, 0, 1])
    items, targets = torch.stack([along(0.9), along(0.8), along(0.7)]), torch.arange(3)
    theirs = losses.reference_in_batch(hidden, items, targets, TAU)
    ours = losses.in_batch(hidden, items, targets, TAU, users=users)
    a, b, c = (math.exp(cosine / TAU) for cosine in (0.9, 0.8, 0.7))
    assert math.isclose(theirs, -math.log(a * b * c / (a + b + c) ** 3) / 3, rel_tol=1e-6)
    assert math.isclose(ours, -math.log(a / (a + c) * b / (b + c) * c / (a + b + c)) / 3, rel_tol=1e-9)


def test_a_batch_without_images_has_loss_zero_instead_of_zero_by_zero() -> None:
    vectors = torch.randn(3, 4)
    assert losses.image_text(vectors, vectors, torch.zeros(3, dtype=torch.bool), TAU) == 0.0


def test_a_batch_of_one_works() -> None:
    model = Ant(ModelConfig(width=8, experts=2), {"text": 5, "image": 6}, max_len=4).eval()
    items = model.items({"text": torch.randn(1, 5), "image": torch.randn(1, 6)}).fused
    hidden = model.encode(items[None])[:, -1]
    assert torch.isfinite(losses.full_softmax(hidden, items, torch.tensor([0]), TAU))


@pytest.mark.realdata
def test_relearning_differs_from_theirs_only_in_the_price_bias(case: Golden) -> None:
    model, theirs = case.model(), case.about["_relearn"]
    frozen, kept = set(theirs["frozen"]), set(theirs["kept_from_pretraining_and_trainable"])
    reset = {*theirs["reinit_random"]["names"], *theirs["set_to_zero"]}

    def names(action: str, exceptions: dict[str, str]) -> set[str]:
        """Their names of the parameters to which our stage does this."""
        stage = stages.STAGES["relearn"]
        chosen = {
            name: parameter
            for name, parameter in model.state_dict().items()
            if exceptions.get(name, stage[stages.group_of(name)]) == action
        }
        return set(rename(model, chosen))

    as_theirs = stages.REFERENCE_EXCEPTIONS["relearn"]
    assert names(stages.FREEZE, as_theirs) == frozen
    assert names(stages.KEEP, as_theirs) == kept
    assert names(stages.RESET, as_theirs) == reset
    price_bias = {name for name in kept if name.endswith("lin.bias")}
    assert price_bias
    assert names(stages.FREEZE, {}) == frozen
    assert names(stages.KEEP, {}) == kept - price_bias
    assert names(stages.RESET, {}) == reset | price_bias


@pytest.fixture
def average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[np.ndarray], Feature]:
    """Runs embed-image on items whose pictures have the vectors slots (n, S, d); zeros mean no picture."""
    config = tiny_encoder(tmp_path, monkeypatch)

    def run(slots: np.ndarray) -> Feature:
        def vectors_of(pixels: np.ndarray) -> np.ndarray:
            return np.stack([slots[int(red), int(green)] for red, green in pixels]).astype(np.float32)

        encoder = ImageEncoder(
            preparation=Preparation(lambda image: np.array(image.getpixel((0, 0))[:2]), None, None, None, None),
            encode=vectors_of,
            width=slots.shape[2],
            facts={"name": "given", "revision": "1", "dimension": slots.shape[2]},
        )
        for module in ("embed_image", "image.embedder", "image.precision"):
            monkeypatch.setattr(f"antpipe.features.{module}.load_image_encoder", lambda *_: encoder)
        there = [(int(row), int(slot)) for row, slot in np.argwhere(slots.any(2))]
        pictures = {f"{row}-{slot}.png": one_pixel(row, slot) for row, slot in there}
        files = {f"{row:03}": [f"{r}-{slot}.png" for r, slot in there if r == row] for row in range(len(slots))}
        store = Store(tmp_path / "store")
        picture_shop(store, pictures, files)
        embed_image.embed_image(store, "shop", config)
        return store.domain("shop").feature("image")

    return run


def one_pixel(red: int, green: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1), (red, green, 0)).save(stream, "PNG")
    return stream.getvalue()


def test_a_picture_whose_vector_sums_to_zero_counts(average: Callable[[np.ndarray], Feature]) -> None:
    slots = np.zeros((1, 4, 2))
    slots[0, 0] = [1.0, -1.0]
    assert ant_quirks.image_means(slots)[0, 0] > 1e7
    ours = average(slots)
    assert ours.values.tolist() == [[1.0, -1.0]]
    assert ours.present.all()


@pytest.mark.realdata
def test_our_average_of_pictures_equals_theirs_within_half_precision(
    case: Golden, average: Callable[[np.ndarray], Feature]
) -> None:
    ours, theirs = average(case.arrays["raw/A/img"]), case.arrays["table/img"][1:]
    assert np.abs(ours.values - theirs).max() < 2e-3 * np.abs(theirs).max()
    assert np.array_equal(ours.present, theirs.any(1))


def test_after_a_full_sequence_their_padding_can_be_recommended() -> None:
    scores = torch.zeros(2, 5)
    masked = ant_quirks.masked_scores(scores, torch.tensor([[3, 1, 2], [4, 0, 0]]))
    assert (masked == ant_quirks.MASKED).tolist() == [
        [False, True, True, True, False],
        [True, False, False, False, True],
    ]


@pytest.mark.realdata
def test_our_unseen_ranks_equal_theirs_without_the_padding(case: Golden) -> None:
    model, sequences, labels = case.model(), case.tensor("batch/seq"), case.tensor("batch/label")
    lens = case.tensor("batch/lens")
    items = model.items(case.features()).fused.detach()
    hidden = model.encode(items[sequences])[torch.arange(len(lens)), lens - 1].detach()
    histories = [row[:n].tolist() for row, n in zip(sequences, lens, strict=True)]
    stream = np.array([item - 1 for row, label in zip(histories, labels, strict=True) for item in [*row, int(label)]])
    end = np.cumsum(lens.numpy() + 1) - 1
    part = Examples(
        np.arange(len(lens), dtype=np.int32), stream.astype(np.int32), end - lens.numpy(), end, sequences.shape[1]
    )
    ours = rank_examples(unit_rows(hidden), unit_rows(items[1:]), part).by_protocol["unseen"]
    theirs = case.tensor("out64/eval/pred").flip(1)  # best first, with the padding among the items
    full = sequences[:, -1] != 0
    for row, label in enumerate(labels):
        ranking = theirs[row].tolist()
        place = ranking.index(int(label)) + 1
        if int(label) in histories[row]:
            assert np.isinf(ours[row])
            continue
        padding_before = bool(full[row]) and ranking.index(0) + 1 < place
        assert place <= DEPTH
        assert ours[row] == place - padding_before
    assert (full & (theirs == 0).any(1)).any()


@pytest.mark.realdata
def test_a_domain_whose_last_items_are_unseen_does_not_shift_the_next_one(case: Golden) -> None:
    interns, labels, lens, split = (case.arrays[f"mix/{name}"] for name in ("interns", "label", "len", "split"))
    sizes = [len(case.arrays[f"raw/{name}/text"]) for name in ("A", "Bd", "C")]
    bounds = list(itertools.pairwise(split))
    theirs = [np.concatenate([interns[a:b].ravel(), labels[a:b]]) for a, b in bounds]
    begins = [0, *(int(ids.max()) for ids in theirs[:-1])]  # their id of each domain's first item, minus one
    assert (
        ant_quirks.domain_offsets([int(ids.max()) - 1 - at for ids, at in zip(theirs, begins, strict=True)]) == begins
    )
    features = tuple(
        Feature(case.arrays[f"raw/{name}/text"].astype(np.float16), np.ones(size, np.bool_))
        for name, size in zip(("A", "Bd", "C"), sizes, strict=True)
    )
    width = features[0].values.shape[1]
    catalogue = Catalogue(("A", "Bd", "C"), np.cumsum([0, *sizes]), {"text": features}, {"text": width}, {})
    assert len(catalogue) + 1 == case.arrays["mix/table_rows"][0]
    sequences = [
        from_padded(interns[a:b], labels[a:b], lens[a:b], first=at + 1)
        for (a, b), at in zip(bounds, begins, strict=True)
    ]
    ours = training_windows(sequences, catalogue.offsets).items
    by_domain = np.split(ours, np.cumsum([len(part.items) for part in sequences])[:-1])
    for domain, (rows, part, feature) in enumerate(zip(by_domain, sequences, features, strict=True)):
        assert np.array_equal(catalogue.gather(rows, "text", width)[0], feature.values[part.items])
        shift = int(catalogue.offsets[domain]) - begins[domain]
        assert (shift > 0) == (domain == 2)
    wrong, _ = catalogue.gather(begins[2] + sequences[2].items[:1].astype(np.int64), "text", width)
    assert not np.array_equal(wrong[0], features[2].values[sequences[2].items[0]])


def from_padded(interns: np.ndarray, labels: np.ndarray, lens: np.ndarray, first: int) -> Sequences:
    """Their rows as our sequences. first: their id of the domain's first item."""
    rows = [np.append(row[:n], label) - first for row, n, label in zip(interns, lens, labels, strict=True)]
    ends = np.array([len(row) for row in rows], np.int32)
    items = np.concatenate(rows).astype(np.int32)
    return Sequences(np.arange(len(rows), dtype=np.int32), np.cumsum([0, *ends]), items, ends, ends, interns.shape[1])
