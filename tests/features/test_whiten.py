"""`whiten`: the covariance of what comes out is the identity, whatever goes in; and runs that read it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError, UsageError
from antpipe.features.whiten import fit_whitening, read_whitening, whiten
from antpipe.settings.features import WhitenConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.files import Feature
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.opening import open_run
from tests.support.commands import run, states_of
from tests.support.trainable import make_trainable, train_quickly, write_feature

Floats = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    make_trainable(store, "A", seed=1)
    make_trainable(store, "B", seed=2)
    return store


def correlated(rows: int, width: int, seed: int) -> Floats:
    """Rows whose columns are mixtures of each other, of very different size, away from zero."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-1, 1, width)
    return (rng.normal(size=(rows, width)) * sizes) @ rng.normal(size=(width, width)) + rng.normal(size=width)


def feature(values: Floats, present: list[bool] | None = None) -> Feature:
    there = np.ones(len(values), np.bool_) if present is None else np.array(present)
    return Feature(values.astype(np.float16), there)


# -- the mathematics ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 60), st.integers(1, 8), st.integers(0, 2**16))
def test_the_covariance_is_the_identity_and_the_mean_zero(rows: int, width: int, seed: int) -> None:
    values = correlated(rows, width, seed)
    fitted = fit_whitening([feature(values)])
    white = fitted.apply(values.astype(np.float16))
    assert white.mean(axis=0) == pytest.approx(0, abs=1e-6)
    assert np.cov(white.T, bias=True).reshape(white.shape[1], -1) == pytest.approx(np.eye(white.shape[1]), abs=1e-6)
    assert white.shape[1] <= min(rows - 1, width)


def test_it_is_the_map_of_the_paper() -> None:
    values = correlated(200, 5, 3).astype(np.float16)
    fitted = fit_whitening([feature(values)], dims=3)
    left, sizes, _ = scipy.linalg.svd(np.cov(values.astype(np.float64).T, bias=True))  # algorithm 1: U L U^T
    reference = (values - values.mean(axis=0, dtype=np.float64)) @ (left / np.sqrt(sizes))[:, :3]
    ours = fitted.apply(values)
    signs = np.sign((ours * reference).sum(axis=0))
    assert ours == pytest.approx(reference * signs, abs=1e-6)
    assert fitted.eigenvalues == pytest.approx(sizes[:3])
    assert fitted.explained == pytest.approx(sizes[:3].sum() / sizes.sum())


def test_shrinkage_adds_a_share_of_the_mean_variance() -> None:
    values = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])  # variances 2 and 0.5, mean 1.25
    white = fit_whitening([feature(values)], epsilon=0.4).apply(values)
    assert white.var(axis=0) == pytest.approx([2 / 2.5, 0.5 / 1.0])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 4), st.integers(0, 2**16))
def test_directions_that_do_not_vary_give_no_column(rank: int, constants: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    factors = rng.integers(-8, 9, (50, rank)).astype(float)
    factors[: 2 * rank] = np.kron(np.eye(rank), [[1], [-1]])  # so that the rank is full
    values = np.hstack([factors, factors[:, :1] * 2, np.full((50, constants), 700.0)])  # exact in float16
    fitted = fit_whitening([feature(values)])
    assert fitted.projection.shape == (rank + 1 + constants, rank)
    assert np.abs(fitted.apply(values)).max() < 50


def test_differences_by_rounding_do_not_count_as_variance() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(3000, 3))
    values = np.hstack([one, one @ rng.normal(size=(3, 3))])  # of rank 3, before it is rounded to float16
    assert fit_whitening([feature(values)]).projection.shape == (6, 3)


def test_fewer_items_than_columns_give_one_column_less_than_items() -> None:
    assert fit_whitening([feature(correlated(5, 12, 0))]).projection.shape == (12, 4)


@pytest.mark.parametrize("values", [np.ones((4, 3)), np.ones((1, 3)), np.ones((0, 3))])
def test_features_that_do_not_vary_are_refused(values: Floats) -> None:
    with pytest.raises(ValueError, match="do not differ in any direction"):
        fit_whitening([feature(values)])


@given(st.integers(0, 2**16))
def test_neither_pieces_nor_order_of_the_catalogues_matter(seed: int) -> None:
    values = correlated(40, 4, seed)
    whole = fit_whitening([feature(values)])
    parts = fit_whitening([feature(values[30:]), feature(values[:30])])
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.projection == pytest.approx(whole.projection, rel=1e-5, abs=1e-7)


def test_the_largest_entry_of_every_direction_is_positive() -> None:
    projection = fit_whitening([feature(correlated(100, 6, 5))]).projection
    assert (projection[np.abs(projection).argmax(axis=0), np.arange(6)] > 0).all()


def test_absent_rows_are_ignored() -> None:
    values = correlated(30, 3, 1)
    spoilt = np.vstack([values, np.full((10, 3), 999.0)])
    there = [True] * 30 + [False] * 10
    assert fit_whitening([feature(spoilt, there)]).mean.tolist() == fit_whitening([feature(values)]).mean.tolist()


# -- the artefact ---------------------------------------------------------------------------------------------


def test_the_artefact_has_unit_covariance_and_zeros_for_absent_items(store: Store) -> None:
    [result] = whiten(store, ["A"], "text", WhitenConfig())
    white, raw = store.domain("A").feature("text-white"), store.domain("A").feature("text")
    assert (result.artefact, result.status) == ("text-white", "built")
    assert white.values.dtype == np.float16
    assert white.present.tolist() == raw.present.tolist()
    assert not white.values[0].any()  # the item without a text
    covariance = np.cov(white.values[1:].astype(np.float64).T, bias=True)
    assert covariance == pytest.approx(np.eye(12), abs=4e-3)
    assert result.figures["width"] == 12
    assert (store.domain("A").path / "text_white.arrow").is_file()


def test_the_map_is_kept_and_gives_the_same_vectors(store: Store) -> None:
    whiten(store, ["A"], "text", WhitenConfig(dims=5))
    domain = store.domain("A")
    white = read_whitening(domain, "text").apply(domain.feature("text").values)
    assert domain.feature("text-white").values[1:] == pytest.approx(white[1:], abs=2e-3)
    assert white.shape == (24, 5)


def test_small_pieces_give_the_same_artefact(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whiten(store, ["A"], "text", WhitenConfig())
    whole = store.domain("A").feature("text-white").values.copy()
    monkeypatch.setattr("antpipe.features.whiten.CHUNK", 5)
    whiten(store, ["A"], "text", WhitenConfig(), force=True)
    assert store.domain("A").feature("text-white").values == pytest.approx(whole, abs=2e-3)


def test_scope_global_is_one_map_for_all_named_domains(store: Store) -> None:
    results = whiten(store, ["A", "B"], "text", WhitenConfig(scope="global"))
    maps = [read_whitening(store.domain(name), "text") for name in "AB"]
    assert maps[0].projection.tolist() == maps[1].projection.tolist()
    both = np.vstack([store.domain(name).feature("text-white").values[1:] for name in "AB"]).astype(np.float64)
    assert np.cov(both.T, bias=True) == pytest.approx(np.eye(12), abs=4e-3)
    assert [result.status for result in results] == ["built", "built"]
    again = whiten(store, ["B", "A"], "text", WhitenConfig(scope="global"))
    assert [result.status for result in again] == ["fresh", "fresh"]


def test_like_uses_the_map_of_another_domain(store: Store) -> None:
    whiten(store, ["A"], "text", WhitenConfig(dims=4))
    whiten(store, ["B"], "text", WhitenConfig(like="A"))
    a, b = store.domain("A"), store.domain("B")
    expected = read_whitening(a, "text").apply(b.feature("text").values)[1:]
    assert b.feature("text-white").values[1:] == pytest.approx(expected, abs=4e-3)
    assert a.entry("text-white")["encoder"] == b.entry("text-white")["encoder"]
    with pytest.raises(UsageError, match="--like A"):
        whiten(store, ["A"], "text", WhitenConfig(like="A"))
    with pytest.raises(UsageError, match="--like A: dimensions, shrinkage and scope come from there"):
        WhitenConfig(like="A", dims=3)


def test_features_of_other_encoders_do_not_share_a_whitening(store: Store) -> None:
    write_feature(store.domain("B"), "text", np.random.default_rng(0).normal(size=(24, 12)), encoder="another")
    with pytest.raises(DataError, match=r"text of B was made by another .*, that of A by test "):
        whiten(store, ["A", "B"], "text", WhitenConfig(scope="global"))
    whiten(store, ["A"], "text", WhitenConfig())
    with pytest.raises(DataError, match="one whitening cannot serve both"):
        whiten(store, ["B"], "text", WhitenConfig(like="A"))


def test_a_second_run_is_fresh_and_other_settings_build(store: Store) -> None:
    def status(**chosen: Any) -> str:
        return whiten(store, ["A"], "image", WhitenConfig(**chosen))[0].status

    assert [status(), status(), status(dims=3), status(epsilon=0.1)] == ["built", "fresh", "built", "built"]


def test_features_that_were_never_embedded_are_refused_with_the_command_to_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    make_trainable(store, "C", widths={"price": 4})
    with pytest.raises(DataError, match=r"no text$") as caught:
        whiten(store, ["C"], "text", WhitenConfig())
    assert caught.value.next_command == f"antpipe embed-text --domains C --store {tmp_path}"
    with pytest.raises(DataError, match="no image: no item has a picture or an image URL") as caught:
        whiten(store, ["C"], "image", WhitenConfig())
    assert caught.value.next_command == f"antpipe embed-image --domains C --store {tmp_path} --images DIR"


# -- staleness ------------------------------------------------------------------------------------------------


def states(store: Store) -> dict[str, Any]:
    outcome = run("status", "--store", store.root, "--json")
    assert outcome.code == 0, outcome.err
    return {f"{name} {state['artefact']}": state for name, row in outcome.json().items() for state in row}


def test_status_leaves_out_a_whitening_that_nobody_asked_for(store: Store) -> None:
    assert not [name for name in states(store) if "white" in name]


def test_new_texts_make_the_whitened_ones_stale(store: Store) -> None:
    whiten(store, ["A"], "text", WhitenConfig(dims=4))
    assert states(store)["A text-white"]["status"] == "fresh"
    write_feature(store.domain("A"), "text", np.random.default_rng(9).normal(size=(24, 12)), encoder="another")
    state = states(store)["A text-white"]
    assert (state["status"], state["why"]) == ("stale", "text changed since")
    command = f"antpipe whiten --modality text --domains A --store {store.root} --dims 4"
    assert state["next_command"] == command
    with pytest.raises(DataError, match="text-white is stale"):
        store.domain("A").feature("text-white")
    assert run(*command.split()[1:]).code == 0
    assert states(store)["A text-white"]["status"] == "fresh"


def test_texts_that_change_while_a_map_is_fitted_are_not_passed_off_as_whitened(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_slowly(*given: Any) -> Any:
        write_feature(store.domain("A"), "text", np.random.default_rng(9).normal(size=(24, 12)), encoder="another")
        return fit_whitening(*given)

    monkeypatch.setattr("antpipe.features.whiten.fit_whitening", fit_slowly)
    with pytest.raises(DataError, match="text changed while its whitening was fitted; text-white is as before"):
        whiten(store, ["A"], "text", WhitenConfig())
    assert "text-white" not in store.domain("A").manifest()


def test_other_vectors_with_the_same_settings_make_the_whitened_ones_stale(store: Store) -> None:
    scope = WhitenConfig(scope="global")
    whiten(store, ["A", "B"], "text", scope)
    before = store.domain("B").entry("text-white")["encoder"]
    values = np.random.default_rng(9).normal(size=(24, 12))
    write_feature(store.domain("A"), "text", values)  # as --force does where precision or decoding settled otherwise
    state = states(store)["A text-white"]
    assert (state["status"], state["why"]) == ("stale", "text was computed again since, with other results")
    assert states(store)["B text-white"]["status"] == "stale"
    assert [result.status for result in whiten(store, ["A", "B"], "text", scope)] == ["built", "built"]
    assert store.domain("B").entry("text-white")["encoder"] != before
    write_feature(store.domain("A"), "text", values)
    assert states(store)["A text-white"]["status"] == "fresh"  # the same results


def test_a_damaged_text_makes_the_whitened_one_stale_too(store: Store) -> None:
    whiten(store, ["A"], "text", WhitenConfig())
    (store.domain("A").path / "text.arrow").unlink()
    state = states(store)["A text-white"]
    assert (state["status"], state["why"]) == ("stale", "text is stale")
    assert "embed-text" in state["next_command"]


def test_status_notices_changes_in_the_other_domains_of_a_shared_fit(store: Store) -> None:
    whiten(store, ["A", "B"], "text", WhitenConfig(scope="global"))
    write_feature(store.domain("B"), "text", np.random.default_rng(9).normal(size=(24, 12)), encoder="another")
    state = states(store)["A text-white"]
    assert (state["status"], state["why"]) == ("stale", "text of B, on which it was fitted, changed since")
    assert "--domains A,B" in state["next_command"]


# -- runs that read it ----------------------------------------------------------------------------------------


def test_a_run_reads_the_whitened_features_and_remembers_it(store: Store, tmp_path: Path) -> None:
    whiten(store, ["A"], "text", WhitenConfig(dims=5))
    done = train_quickly(store, "scratch", ["A"], tmp_path / "run", whitened=("text",))
    assert done.modalities["text"]["width"] == 5
    assert done.modalities["image"]["width"] == 10
    assert "whitened (fit " in done.modalities["text"]["encoder"]
    assert set(done.domains["A"]) == {"text-white", "image", "price", "sequences"}
    assert checkpoint.describe(tmp_path / "run").whitened() == ("text",)
    _, _, catalogue = open_run(store, tmp_path / "run", "A")
    [seen] = catalogue.features["text"]
    assert seen is not None
    assert seen.values.tolist() == store.domain("A").feature("text-white").values.tolist()


def test_evaluate_and_recommend_read_what_the_run_was_trained_on(store: Store, tmp_path: Path) -> None:
    whiten(store, ["A"], "text", WhitenConfig(dims=5))
    train_quickly(store, "scratch", ["A"], tmp_path / "run", whitened=("text",))
    at = ("--run", tmp_path / "run", "--domains", "A", "--store", store.root)
    assert run("evaluate", *at, "--device", "cpu").code == 0
    outcome = run("recommend", *at, "--items", "i001,i002", "--json")
    assert (outcome.code, len(outcome.json())) == (0, 10)
    whiten(store, ["A"], "text", WhitenConfig(dims=4))
    outcome = run("recommend", *at, "--items", "i001")
    assert outcome.code == 3
    assert "text-white of A changed" in outcome.err


def test_features_that_were_not_whitened_are_refused_with_the_command_to_run(store: Store, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="domain A: no text-white") as caught:
        train_quickly(store, "scratch", ["A"], tmp_path / "run", whitened=("text",))
    assert caught.value.next_command == f"antpipe whiten --modality text --domains A --store {store.root}"
    with pytest.raises(UsageError, match="--whitened text"):
        TrainConfig(whitened=("text",), modalities=("image",))


@pytest.mark.parametrize(
    ("before", "after", "told", "mend"),
    [
        (("text",), (), "reads whitened text, this run would read raw text", "with --whitened text"),
        ((), ("text",), "reads raw text, this run would read whitened text", "without --whitened"),
    ],
)
def test_raw_and_whitened_features_do_not_stand_in_for_each_other(
    store: Store, tmp_path: Path, before: tuple[str, ...], after: tuple[str, ...], told: str, mend: str
) -> None:
    whiten(store, ["A", "B"], "text", WhitenConfig(scope="global"))
    train_quickly(store, "pretrain", ["A"], tmp_path / "source", whitened=before)
    with pytest.raises(DataError, match=told) as caught:
        train_quickly(store, "finetune", ["B"], tmp_path / "run", tmp_path / "source", whitened=after)
    assert mend in str(caught.value.next_command)
    # What is learned anew does not mind.
    assert train_quickly(store, "relearn", ["B"], tmp_path / "run", tmp_path / "source", whitened=after).epochs == 3


def test_a_run_reads_another_domain_through_the_same_map_only(store: Store, tmp_path: Path) -> None:
    whiten(store, ["A", "B"], "text", WhitenConfig(scope="global", dims=4))
    whiten(store, ["A"], "text", WhitenConfig())
    train_quickly(store, "pretrain", ["A"], tmp_path / "source", whitened=("text",))
    with pytest.raises(DataError, match="whitened") as caught:
        open_run(store, tmp_path / "source", "B")
    command = str(caught.value.next_command)
    assert command == f"antpipe whiten --domains B --store {store.root} --modality text --like A"
    assert run(*command.split()[1:]).code == 0
    open_run(store, tmp_path / "source", "B")
    assert train_quickly(store, "finetune", ["B"], tmp_path / "t", tmp_path / "source", whitened=("text",)).epochs == 3


def test_domains_whitened_apart_are_not_trained_together(store: Store, tmp_path: Path) -> None:
    whiten(store, ["A", "B"], "text", WhitenConfig())
    with pytest.raises(DataError, match="text of B is made by test") as caught:
        train_quickly(store, "pretrain", ["A", "B"], tmp_path / "run", whitened=("text",))
    command = str(caught.value.next_command)
    assert command == f"antpipe whiten --domains A,B --store {store.root} --modality text --scope global"
    assert run(*command.split()[1:]).code == 0
    assert train_quickly(store, "pretrain", ["A", "B"], tmp_path / "run", whitened=("text",)).epochs == 3


def test_the_command_prints_one_line_per_domain(store: Store) -> None:
    outcome = run("whiten", "--domains", "A,B", "--modality", "image", "--dims", "3", "--store", store.root)
    assert states_of(outcome.out) == [
        ["A", "image-white", "built"],
        ["B", "image-white", "built"],
    ]
    assert (
        json.loads(
            run("whiten", "--domains", "A", "--modality", "image", "--dims", "3", "--store", store.root, "--json").out
        )[0]["status"]
        == "fresh"
    )
    assert run("whiten", "--domains", "A", "--modality", "price", "--store", store.root).code == 2
