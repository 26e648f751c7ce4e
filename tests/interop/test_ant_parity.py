"""Our model, losses and training step against golden vectors of the authors' code (`pytest -s` prints the errors)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from antpipe.core import losses, stages
from antpipe.core.batches import Batch, Candidates, Windows, make_batch
from antpipe.core.catalogue import ItemInputs
from antpipe.core.model import Ant
from antpipe.interop.ant_reference import rename
from antpipe.settings.training import TrainConfig
from antpipe.training.step_loss import pretraining_loss, target_loss
from tests.support import ant_quirks
from tests.support.golden_report import TABLES, Golden, Report, read_golden

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    errors = Report()
    yield errors
    print(f"\n{errors}")


@pytest.fixture(scope="module", params=[64, 32], ids=["fp64", "fp32"])
def case(request: pytest.FixtureRequest, golden: Path, report: Report) -> Golden:
    return read_golden(golden, request.param, report)


def hidden_of(case: Golden, model: Ant, items: Tensor) -> Tensor:
    """The vector expected after each sequence of the golden batch; items: rows as in the authors' tables."""
    sequences, last = case.tensor("batch/seq"), case.tensor("batch/lens") - 1
    return model.encode(items[sequences])[torch.arange(len(last)), last]


def full_loss(case: Golden, model: Ant, items: Tensor) -> Tensor:
    labels = case.tensor("batch/label")
    return losses.reference_full_softmax(
        hidden_of(case, model, items), items[1:], items[0], labels - 1, model.config.temperature
    )


def pretraining_parts(case: Golden, model: Ant) -> tuple[Tensor, Tensor]:
    """In-batch and image-text loss of the golden batch."""
    vectors, labels = model.items(case.features()), case.tensor("batch/label")
    hidden, temperature = hidden_of(case, model, vectors.fused), model.config.temperature
    in_batch = losses.reference_in_batch(hidden, vectors.fused[labels], labels, temperature)
    has_image = ~case.tensor(f"out{case.bits}/cat/image_zero")[labels]
    images, texts = vectors.parts["image"][labels], vectors.parts["text"][labels]
    return in_batch, losses.reference_image_text(images, texts, has_image, temperature)


def training_inputs(case: Golden, whole: bool) -> tuple[ItemInputs, Batch]:
    """The golden batch as training builds it: items from 0, sequences of similar length together.

    whole: for the loss over the catalogue, otherwise only the items of the batch are there.
    """
    sequences, lens, labels = (case.arrays[f"batch/{name}"] for name in ("seq", "lens", "label"))
    rows = [np.append(row[:n], label) - 1 for row, n, label in zip(sequences, lens, labels, strict=True)]
    first = np.cumsum([0, *(len(row) for row in rows[:-1])])
    windows = Windows(np.concatenate(rows), first, lens, np.ones_like(lens), np.arange(len(lens)))
    size = len(case.tensor("table/text")) - 1
    candidates = Candidates(size, size if whole else 0)
    batch = make_batch(windows, np.arange(len(lens)), candidates, np.random.default_rng(0))
    features = {name: table[1:][batch.items] for name, table in case.features().items()}
    has_image = ~case.tensor(f"out{case.bits}/cat/image_zero")[1:][batch.items]
    return ItemInputs(features, {"image": has_image}, torch.from_numpy(batch.items)), batch


def test_item_vectors_of_each_modality_and_fused(case: Golden) -> None:
    vectors = case.model().items(case.features())
    case.compare("item vectors, fused", vectors.fused, "cat/item_emb")
    for ours, theirs in TABLES.items():
        case.compare(f"item vectors, {ours}", vectors.parts[ours], f"cat/{theirs}_emb")
    no_image = ~case.features()["image"].any(1)
    assert torch.equal(no_image, case.tensor(f"out{case.bits}/cat/image_zero"))


def test_gates_without_noise(case: Golden) -> None:
    model = case.model()
    for ours, theirs in TABLES.items():
        case.compare("gates", model.modalities[ours].gate(case.features()[ours]), f"cat/gate_{theirs}")


def test_gates_with_given_noise(case: Golden) -> None:
    noise = case.tensor(f"out{case.bits}/noisy/noise")
    gates = case.model().modalities["text"].gate(case.features()["text"], noise)
    case.compare("gates with given noise", gates, "noisy/text_gate")


def test_sequence_input_every_layer_at_all_positions_and_output(case: Golden) -> None:
    model, sequences = case.model(), case.tensor("batch/seq")
    items = model.items(case.features()).fused
    x = model.embed_sequence(items[sequences])
    case.compare("sequence input", x, "seq/input")
    length = sequences.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril() & (sequences != 0)[:, None, None, :]
    for number, layer in enumerate(model.encoder):
        x = layer(x, mask)
        case.compare(f"layer {number}, all positions", x, f"seq/layer{number}")
    case.compare("sequence output", hidden_of(case, model, items), "seq/output")


def test_encode_equals_the_last_layer_at_all_positions_but_padding(case: Golden) -> None:
    model, sequences = case.model(), case.tensor("batch/seq")
    key = f"seq/layer{model.config.layers - 1}"
    encoded = model.encode(model.items(case.features()).fused[sequences])
    without_padding = torch.where((sequences != 0)[..., None], encoded, case.tensor(f"out{case.bits}/{key}"))
    case.compare("encode(), all positions", without_padding, key)


def test_losses(case: Golden) -> None:
    model = case.model()
    case.compare("loss, full softmax", full_loss(case, model, model.items(case.features()).fused), "loss/full")
    in_batch, image_text = pretraining_parts(case, model)
    case.compare("loss, in-batch", in_batch, "loss/in_batch")
    case.compare("loss, image-text", image_text, "loss/image_text")
    case.compare("loss, pre-training", in_batch + TrainConfig.image_text_weight * image_text, "loss/pretrain")


def test_training_steps_with_the_reference_switch_have_the_same_losses(case: Golden) -> None:
    model, config = case.model(), TrainConfig(reference=True)
    case.compare("training step, full softmax", target_loss(model, *training_inputs(case, True), config), "loss/full")
    step = pretraining_loss(model, *training_inputs(case, False), config)
    case.compare("training step, pre-training", step, "loss/pretrain")


@pytest.mark.parametrize(("loss", "stored"), [("full", "grad_full"), ("pretrain", "grad_pre")])
def test_gradients_of_every_parameter(case: Golden, loss: str, stored: str) -> None:
    model = case.model()
    if loss == "full":
        full_loss(case, model, model.items(case.features()).fused).backward()
    else:
        in_batch, image_text = pretraining_parts(case, model)
        (in_batch + TrainConfig.image_text_weight * image_text).backward()
    ours = rename(model, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    theirs = case.group(f"out{case.bits}/{stored}")
    assert set(ours) == set(theirs)
    for name, gradient in ours.items():
        # A key's bias shifts all attention scores of a query equally, so its gradient is 0 up to rounding errors, which
        # are relative to the gradient of the query's bias.
        other = name.replace("key.bias", "query.bias")
        case.compare(f"gradients, {loss}", gradient, f"{stored}/{name}", theirs[other])


def test_scores_masked_scores_ranking_and_metrics(case: Golden) -> None:
    model, sequences, labels = case.model(), case.tensor("batch/seq"), case.tensor("batch/label")
    items = model.items(case.features()).fused
    scores = losses.cosine_scores(hidden_of(case, model, items), items)
    case.compare("scores", scores, "eval/scores")
    masked = ant_quirks.masked_scores(scores, sequences)
    hidden = masked == ant_quirks.MASKED
    assert torch.equal(hidden, case.tensor(f"out{case.bits}/eval/scores_masked") == ant_quirks.MASKED)
    case.compare("scores, masked", masked, "eval/scores_masked", scale=scores[~hidden])
    ranked = masked.argsort(1)
    stored = case.tensor(f"out{case.bits}/eval/pred")
    for row, candidates in enumerate((~hidden).sum(1)):  # masked items tie: their order is arbitrary
        assert torch.equal(ranked[row, -candidates:], stored[row, -candidates:])
    at_10, at_30 = (ant_quirks.recall_and_ndcg(ranked, labels, k) for k in (10, 30))
    found = torch.tensor([at_10[0], at_30[0], at_10[1], at_30[1]])
    # The authors' metrics have single precision in both runs.
    assert torch.allclose(found, case.tensor(f"out{case.bits}/eval/metrics").float(), rtol=1e-6)


def test_transductive_outputs_loss_and_scores(case: Golden) -> None:
    model = ant_quirks.with_padding(case.model(transductive=True), case.tensor("sd/item_embedding.weight"))
    features = case.features()
    items = model.items(features, torch.arange(len(features["text"]))).fused  # row 0: the padding has a vector too
    hidden = hidden_of(case, model, items)
    case.compare("transductive, sequence output", hidden, "trans/seq_output")
    case.compare("transductive, loss", full_loss(case, model, items), "trans/loss_full")
    case.compare("transductive, scores", losses.cosine_scores(hidden, items), "trans/scores")


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("NoText", {"modalities": ("image", "price")}),
        ("NoImage", {"modalities": ("text", "price")}),
        ("NoPrice", {"modalities": ("text", "image")}),
        ("NoFusion", {"fusion": 0.0}),
    ],
)
def test_ablations(case: Golden, mode: str, options: dict[str, object]) -> None:
    model = case.model(**options)
    items = model.items(case.features()).fused
    case.compare(f"{mode}, item vectors", items, f"abl/{mode}/cat")
    case.compare(f"{mode}, loss", full_loss(case, model, items), f"abl/{mode}/loss")


def test_one_projection_instead_of_experts(case: Golden) -> None:
    model = case.model(case.group("sd") | case.group("sd_nomoe"))
    items = model.items(case.features()).fused
    case.compare("NoMoE, item vectors", items, "abl/NoMoE/cat")
    case.compare("NoMoE, loss", full_loss(case, model, items), "abl/NoMoE/loss")


def test_feed_forward_experts_in_the_last_layer(case: Golden) -> None:
    extra = case.group("sd_ffmoe")
    replaced = {name.partition(".feed_forward.")[0] for name in extra}
    kept = {
        name: tensor
        for name, tensor in case.group("sd").items()
        if ".feed_forward." not in name or name.partition(".feed_forward.")[0] not in replaced
    }
    model = case.model(kept | extra)
    output = hidden_of(case, model, model.items(case.features()).fused)
    case.compare("feed-forward experts, sequence output", output, "ffmoe/seq_output")


def test_adam_steps_with_a_frozen_encoder(case: Golden) -> None:
    model, steps = case.model(), []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stages.STAGES["relearn"][stages.group_of(name)] != stages.FREEZE)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=TrainConfig.lr, fused=True)
    for _ in range(len(case.tensor(f"out{case.bits}/adam/loss"))):
        loss = full_loss(case, model, model.items(case.features()).fused)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        steps.append(loss.detach())
    case.compare("Adam, loss of each step", torch.stack(steps), "adam/loss")
    trained = rename(model, model.state_dict())
    for name in case.group(f"out{case.bits}/adam"):
        if name != "loss":
            case.compare("Adam, weights after the steps", trained[name], f"adam/{name}")


def test_image_table_from_raw_slots_is_equal(golden: Path, report: Report) -> None:
    arrays = read_golden(golden, 64, report).arrays
    means = ant_quirks.image_means(arrays["raw/A/img"])
    assert np.array_equal(means.astype(np.float32), arrays["table/img"][1:])
    report.errors["image table from raw slots"] = {64: 0.0}


@pytest.mark.parametrize("modality", ["text", "price"])
def test_their_other_tables_hold_half_precision_as_our_store_does(golden: Path, modality: str) -> None:
    arrays = read_golden(golden, 64, Report()).arrays
    assert np.array_equal(arrays[f"raw/A/{modality}"].astype(np.float16), arrays[f"table/{modality}"][1:])
