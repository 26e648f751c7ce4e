"""Stages of training on small shops: what is kept, what moves, what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from antpipe.core import stages
from antpipe.errors import DataError, DivergedError, IntegrityError, UsageError
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.opening import open_run
from antpipe.training.request import RunRequest
from antpipe.training.run import build_model, run_stage
from tests.support.documents import plain
from tests.support.trainable import MODEL, TRAINING, WIDTHS, make_trainable, train_quickly, write_feature


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    make_trainable(store, "Source", seed=1)
    make_trainable(store, "Target", seed=2)
    return store


@pytest.fixture
def source(store: Store, tmp_path: Path) -> Path:
    train_quickly(store, "pretrain", ["Source"], tmp_path / "source")
    return tmp_path / "source"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_weights(run, checkpoint.describe(run))


def test_the_loss_falls_and_the_next_item_is_learned(store: Store, tmp_path: Path) -> None:
    done = train_quickly(store, "scratch", ["Target"], tmp_path / "run", epochs=60, lr=4e-3)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    assert done.metrics["recall@10"] > 0.9  # 10 of 24 items would be .42 by chance


def test_the_checkpoint_is_that_of_the_best_epoch(store: Store, tmp_path: Path) -> None:
    done = train_quickly(store, "scratch", ["Target"], tmp_path / "run", epochs=8)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(rows, key=lambda row: (row["valid_recall@10"], row["valid_ndcg@10"], -row["loss"]))
    assert done.best_epoch == best["epoch"]
    assert done.metrics["recall@10"] == best["valid_recall@10"]


def test_equal_seeds_give_equal_weights_and_other_seeds_others(store: Store, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_quickly(store, "scratch", ["Target"], tmp_path / name, seed=seed)
    first, same, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["positions.weight"], other["positions.weight"])


def test_relearn_leaves_the_encoder_bit_equal_and_trains_the_rest(store: Store, source: Path, tmp_path: Path) -> None:
    train_quickly(store, "relearn", ["Target"], tmp_path / "run", source, epochs=2)
    before, after = weights(source), weights(tmp_path / "run")
    for name in before:
        frozen = stages.group_of(name) == "encoder"
        assert torch.equal(before[name], after[name]) == frozen, name


def test_finetune_trains_every_tensor_that_gets_a_gradient(store: Store, source: Path, tmp_path: Path) -> None:
    train_quickly(store, "finetune", ["Target"], tmp_path / "run", source, epochs=2)
    before, after = weights(source), weights(tmp_path / "run")
    assert [name for name in before if torch.equal(before[name], after[name])] == []


def test_relearn_takes_a_target_with_other_features(store: Store, source: Path, tmp_path: Path) -> None:
    make_trainable(store, "Other", widths={"text": 20})
    done = train_quickly(store, "relearn", ["Other"], tmp_path / "run", source)
    assert done.widths() == {"text": 20}


def test_finetune_refuses_features_of_another_width(store: Store, source: Path, tmp_path: Path) -> None:
    make_trainable(store, "Other", widths={**WIDTHS, "text": 20})
    with pytest.raises(DataError, match=r"text of width 12 .* has width 20"):
        train_quickly(store, "finetune", ["Other"], tmp_path / "run", source)
    assert not (tmp_path / "run").exists()


def test_finetune_refuses_features_of_another_encoder(store: Store, source: Path, tmp_path: Path) -> None:
    target = store.domain("Target")
    write_feature(target, "text", target.feature("text").values.astype(float).copy(), encoder="another")
    with pytest.raises(DataError, match=r"by test .* by another"):
        train_quickly(store, "finetune", ["Target"], tmp_path / "run", source)


def test_a_model_of_another_width_than_the_checkpoint_is_refused(store: Store, source: Path) -> None:
    with pytest.raises(DataError, match="trained with width 16, this run asks for 32"):
        RunRequest(store, ["Target"], "relearn", replace(MODEL, width=32), TRAINING, source).plan()


def test_a_finished_run_is_not_trained_again(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "run")
    stamp = (tmp_path / "run" / "checkpoint.json").stat().st_mtime_ns
    train_quickly(store, "scratch", ["Target"], tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.json").stat().st_mtime_ns == stamp


def test_a_folder_with_another_run_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds another run: --seed 0 \(now 5\); --force replaces it$"):
        train_quickly(store, "scratch", ["Target"], tmp_path / "run", seed=5)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "run").items())


def test_a_finished_run_from_before_a_setting_existed_is_refused_and_the_setting_named(
    store: Store, tmp_path: Path
) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.json"
    document = plain(path)
    del document["train"]["stride"]
    path.write_text(json.dumps(document | {"fingerprint": "of that time"}))
    with pytest.raises(UsageError, match=r"another run: --stride, which it was made without \(now 1\); --force"):
        train_quickly(store, "scratch", ["Target"], tmp_path / "run")


def test_the_order_of_domains_is_named_if_nothing_else_differs(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "pretrain", ["Source", "Target"], tmp_path / "run", epochs=1)
    with pytest.raises(UsageError, match=r"another run: domains Source,Target \(now Target,Source\); --force"):
        train_quickly(store, "pretrain", ["Target", "Source"], tmp_path / "run", epochs=1)


@pytest.mark.parametrize(
    ("stage", "domains", "with_source", "message"),
    [
        ("relearn", ["Target"], False, "starts from a checkpoint"),
        ("scratch", ["Target"], True, "starts from nothing"),
        ("finetune", ["Source", "Target"], True, "trains on one domain"),
        (
            "rewind",
            ["Target"],
            False,
            "choose from pretrain, scratch, floor, rerank-scratch, rerank, finetune, relearn",
        ),
    ],
)
def test_stages_refuse_domains_and_sources_that_do_not_fit_them(
    store: Store, source: Path, tmp_path: Path, stage: str, domains: list[str], with_source: bool, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_quickly(store, stage, domains, tmp_path / "run", source if with_source else None)


def test_pretraining_joins_domains_of_which_one_lacks_a_modality(
    store: Store, tmp_path: Path, messages: list[str]
) -> None:
    make_trainable(store, "Plain", widths={"text": 12})
    messages.clear()
    done = train_quickly(store, "pretrain", ["Source", "Plain"], tmp_path / "run")
    assert set(done.modalities) == {"text", "image", "price"}
    assert [line.split(";")[0] for line in messages] == ["Plain: image is not built", "Plain: price is not built"]


def test_domains_with_features_of_different_encoders_are_not_joined(store: Store, tmp_path: Path) -> None:
    target = store.domain("Target")
    write_feature(target, "text", target.feature("text").values.astype(float).copy(), encoder="another")
    with pytest.raises(DataError, match="text of Target is made by another"):
        train_quickly(store, "pretrain", ["Source", "Target"], tmp_path / "run")


def test_a_run_refuses_a_domain_that_changed_since(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "run")
    target = store.domain("Target")
    write_feature(target, "price", target.feature("price").values.astype(float) + 1, encoder="newer")
    with pytest.raises(DataError, match="price of Target changed since"):
        open_run(store, tmp_path / "run", "Target")


def test_changed_weights_are_noticed(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "run")
    [path] = (tmp_path / "run").glob("model-*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match="not the weights"):
        checkpoint.load(tmp_path / "run")


def test_an_unknown_entry_of_a_checkpoint_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.json"
    path.write_text(json.dumps(plain(path) | {"colour": "red"}))
    with pytest.raises(IntegrityError, match="colour"):
        checkpoint.load(tmp_path / "run")


def test_a_transductive_run_learns_ids_and_refuses_other_catalogues(store: Store, tmp_path: Path) -> None:
    run_stage(RunRequest(store, ["Target"], "scratch", replace(MODEL, transductive=True), TRAINING), tmp_path / "run")
    assert weights(tmp_path / "run")["ids.weight"].shape == (24, 16)
    with pytest.raises(DataError, match="another catalogue"):
        open_run(store, tmp_path / "run", "Source")


@pytest.mark.parametrize(("reference", "kept"), [(True, True), (False, False)])
def test_only_the_reference_switch_keeps_the_price_bias_at_relearning(
    store: Store, source: Path, reference: bool, kept: bool
) -> None:
    training = replace(TRAINING, reference=reference)
    model = build_model(RunRequest(store, ["Target"], "relearn", MODEL, training, source).plan())
    before = weights(source)["modalities.price.bias"]
    assert before.any()
    assert torch.equal(model.state_dict()["modalities.price.bias"], before) == kept
    assert model.state_dict()["modalities.price.bias"].any() == kept


@pytest.mark.parametrize(
    ("init", "stage", "spread"),
    [
        ("xavier", "scratch", math.sqrt(2 / (16 + 12))),
        ("xavier", "relearn", math.sqrt(2 / (16 + 12))),
        ("authors", "scratch", 0.02),
        ("authors", "relearn", math.sqrt(2 / (16 + 12))),
    ],
)
def test_experts_start_from_the_same_distribution_in_every_stage_except_with_init_authors(
    store: Store, source: Path, init: str, stage: str, spread: float
) -> None:
    start = source if stage == "relearn" else None
    model = build_model(RunRequest(store, ["Target"], stage, replace(MODEL, init=init), TRAINING, start).plan())
    assert model.state_dict()["modalities.text.weight"].std().item() == pytest.approx(spread, rel=0.15)


def test_a_custom_stage_trains_and_is_recorded(store: Store, source: Path, tmp_path: Path) -> None:
    own = {"probe": {"like": "finetune", "encoder": "freeze", "experts": "freeze"}}
    done, _ = run_stage(RunRequest(store, ["Target"], "probe", MODEL, TRAINING, source, own), tmp_path / "run")
    before, after = weights(source), weights(tmp_path / "run")
    for name in before:
        assert torch.equal(before[name], after[name]) == (stages.group_of(name) in ("encoder", "experts")), name
    assert done.groups["encoder"] == "freeze"


def test_reference_losses_change_the_result(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "ours")
    train_quickly(store, "scratch", ["Target"], tmp_path / "theirs", reference=True)
    assert not torch.equal(
        weights(tmp_path / "ours")["positions.weight"], weights(tmp_path / "theirs")["positions.weight"]
    )


def test_weights_that_are_not_finite_are_refused_by_name(store: Store, tmp_path: Path) -> None:
    train_quickly(store, "scratch", ["Target"], tmp_path / "run")
    model, described = checkpoint.load(tmp_path / "run")
    with torch.no_grad():
        model.positions.weight[0, 0] = torch.nan
    checkpoint.save(tmp_path / "run", model, described)
    with pytest.raises(IntegrityError, match=r"positions\.weight holds values that are not finite"):
        checkpoint.load(tmp_path / "run")


def test_a_training_that_diverges_is_refused_and_not_judged_perfect(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        train_quickly(store, "scratch", ["Target"], tmp_path / "run", lr=1e38)
    assert not (tmp_path / "run" / "checkpoint.json").exists()


def test_a_modality_built_after_training_is_refused(store: Store, tmp_path: Path) -> None:
    plain = make_trainable(store, "Plain", widths={"text": 12})
    train_quickly(store, "pretrain", ["Source", "Plain"], tmp_path / "run")
    open_run(store, tmp_path / "run", "Plain")
    write_feature(plain, "image", store.domain("Source").feature("image").values.astype(float))
    with pytest.raises(DataError, match="image of Plain was built after"):
        open_run(store, tmp_path / "run", "Plain")


def test_the_order_of_domains_is_part_of_a_run(store: Store) -> None:
    one = RunRequest(store, ["Source", "Target"], "pretrain", MODEL, TRAINING)
    assert one.fingerprint() != replace(one, domains=["Target", "Source"]).fingerprint()


def test_a_stage_that_freezes_everything_is_refused(store: Store, source: Path) -> None:
    own = {"ice": {**dict.fromkeys(stages.GROUPS, "freeze"), "ids": "reset"}}
    with pytest.raises(UsageError, match="nothing to train"):
        RunRequest(store, ["Target"], "ice", MODEL, TRAINING, source, own).plan()


def test_items_can_be_ids_only(store: Store, tmp_path: Path) -> None:
    training = replace(TRAINING, modalities=("none",), epochs=40, lr=4e-3)
    request = RunRequest(store, ["Target"], "scratch", replace(MODEL, transductive=True), training)
    done, _ = run_stage(request, tmp_path / "run")
    assert done.modalities == {}
    assert set(done.domains["Target"]) == {"sequences"}
    assert not [name for name in weights(tmp_path / "run") if name.startswith("modalities")]
    assert done.metrics["recall@10"] > 0.7  # 10 of 24 items would be .42 by chance
    assert open_run(store, tmp_path / "run", "Target")[1] == checkpoint.describe(tmp_path / "run")


@pytest.mark.parametrize(
    ("stage", "transductive", "more", "message"),
    [
        ("scratch", False, {}, "nothing but its id"),
        ("scratch", True, {"reference": True}, "--reference reads features"),
        ("finetune", True, {}, "--stage finetune reads features"),
    ],
)
def test_ids_only_is_refused_if_features_are_needed(
    store: Store, source: Path, stage: str, transductive: bool, more: dict[str, bool], message: str
) -> None:
    model, training = replace(MODEL, transductive=transductive), replace(TRAINING, modalities=("none",), **more)
    with pytest.raises(UsageError, match=message):
        RunRequest(store, ["Target"], stage, model, training, source if stage == "finetune" else None).plan()


def test_unfreezing_keeps_even_the_ids_of_a_run_on_the_same_target(store: Store, source: Path, tmp_path: Path) -> None:
    relearn = RunRequest(store, ["Target"], "relearn", replace(MODEL, transductive=True), TRAINING, source)
    run_stage(relearn, tmp_path / "run")
    model = build_model(replace(relearn, stage="unfreeze", source=tmp_path / "run").plan())
    before = weights(tmp_path / "run")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_unfreezing_refuses_a_run_on_another_domain(store: Store, source: Path) -> None:
    with pytest.raises(DataError, match="was trained on Source; this stage continues a run on Target"):
        RunRequest(store, ["Target"], "unfreeze", MODEL, TRAINING, source).plan()
