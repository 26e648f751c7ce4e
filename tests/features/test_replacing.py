"""What needs --force: vectors of another encoder in place of those that are there. And what does not."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from antpipe.errors import DataError, UsageError
from antpipe.features.embed_image import embed_image
from antpipe.features.embed_text import embed_text
from antpipe.features.import_embeddings import import_embeddings
from antpipe.settings.ingest import EmbeddingsConfig
from antpipe.store.domain import Domain
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.fake_encoders import tiny_encoder
from tests.support.fake_progress import calling
from tests.support.fake_text_encoder import CONFIG, FakeEncoder
from tests.support.places import check_refusal
from tests.support.releases import snapshot
from tests.support.shops import make_domain, picture, picture_shop

ITEMS = [{"item_id": name, "text": f"text of {name}"} for name in ("apple", "grape", "mango")]
OTHER = replace(CONFIG, encoder="other")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    encoder = FakeEncoder()
    encoder.install(monkeypatch)
    return encoder


@pytest.fixture
def domain(store: Store) -> Domain:
    """Its texts are embedded."""
    domain = make_domain(store, "shop", ITEMS)
    assert embed_text(store, "shop", CONFIG).status == "built"
    return domain


def refusal(domain: Domain, stage: Any, *given: Any, **more: Any) -> UsageError:
    """What a stage says when it refuses; it may not have changed a file."""
    before = snapshot(domain.path)
    with pytest.raises(UsageError) as caught:
        stage(Store(domain.root), domain.name, *given, **more)
    assert snapshot(domain.path) == before
    return caught.value


# -- texts ------------------------------------------------------------------------------------------------------------


def test_another_text_encoder_replaces_nothing_without_force(domain: Domain) -> None:
    error = refusal(domain, embed_text, OTHER)
    assert (
        "text holds vectors of fake (revision 1); those of other (revision 1; different: encoder) would"
        in error.message
    )
    assert str(error.next_command).endswith("--encoder other --device cpu --precision bf16 --shard-size 10 --force")
    assert embed_text(Store(domain.root), "shop", OTHER, force=True).status == "built"
    assert domain.entry("text")["parameters"]["encoder"] == "other"


@pytest.mark.parametrize("change", [{"prompt": "query"}, {"prefix": "item: "}, {"dims": 4}, {"normalize": True}])
def test_an_encoder_with_another_prompt_or_form_is_another_encoder(domain: Domain, change: dict[str, Any]) -> None:
    error = refusal(domain, embed_text, replace(CONFIG, **change))
    [name] = change
    assert f"different: {name})" in error.message
    assert "--force" in str(error.next_command)


@pytest.mark.parametrize("change", [{"precision": "fp32"}, {"min_cosine": 0.5}])
def test_another_precision_is_no_other_encoder(domain: Domain, change: dict[str, Any]) -> None:
    assert embed_text(Store(domain.root), "shop", replace(CONFIG, **change)).status == "built"


def test_sizes_of_steps_are_no_reason_to_build_again(domain: Domain) -> None:
    assert embed_text(Store(domain.root), "shop", replace(CONFIG, shard_size=1, token_budget=64)).status == "fresh"


def test_new_items_are_embedded_without_force(domain: Domain) -> None:
    make_domain(Store(domain.root), "shop", [*ITEMS, {"item_id": "melon", "text": "text of melon"}])
    figures = embed_text(Store(domain.root), "shop", CONFIG).figures
    assert (figures["computed"], figures["reused"]) == (1, 3)


def test_stale_vectors_are_replaced_by_those_of_any_encoder(domain: Domain) -> None:
    """They are of no use for the catalogue that is there now."""
    make_domain(Store(domain.root), "shop", ITEMS[:2])
    assert embed_text(Store(domain.root), "shop", OTHER).status == "built"


def test_damaged_vectors_are_replaced_by_those_of_any_encoder(domain: Domain) -> None:
    (domain.path / "text.arrow").write_bytes(b"")
    assert embed_text(Store(domain.root), "shop", OTHER).status == "built"


def test_new_weights_behind_the_same_name_are_embedded_without_force(domain: Domain, fake: FakeEncoder) -> None:
    fake.revision = "2"
    assert embed_text(Store(domain.root), "shop", CONFIG).status == "built"


def test_interrupted_work_of_another_encoder_is_resumed(domain: Domain, fake: FakeEncoder) -> None:
    store, config = Store(domain.root), replace(OTHER, shard_size=1)

    def stop(done: int, *_: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_text(store, "shop", config, force=True, progress=calling(stop))
    assert str(refusal(domain, embed_text, config).next_command).endswith("--force")
    fake.asked.clear()
    assert embed_text(store, "shop", config, force=True).status == "built"
    assert fake.asked == [["text of grape"], ["text of mango"]]  # the shard before was finished


def test_the_command_line_names_both_encoders_and_the_way_out(domain: Domain) -> None:
    words = ("embed-text", "--domains", "shop", "--store", domain.root, "--encoder", "other", "--device", "cpu")
    outcome = run(*words)
    check_refusal(outcome, 2, "fake (revision 1)", "other (revision 1;", next_command="--force")
    [following] = [line for line in outcome.err.splitlines() if line.startswith("antpipe: next: antpipe ")]
    outcome = run(*following.removeprefix("antpipe: next: antpipe ").split())
    assert (outcome.code, outcome.out.split()[:3]) == (0, ["shop", "text", "built"]), outcome.err


def test_the_way_out_of_an_encoder_that_cannot_be_had_is_not_refused(domain: Domain) -> None:
    """The packaged encoder is offered, in place of the one that is there."""
    seen: list[str] = []

    def absent(name: str, mend: str, _backend: str) -> Any:
        seen.append(mend)
        raise DataError(name, mend)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("antpipe.features.embed_text.locate_text_encoder", absent)
        with pytest.raises(DataError):
            embed_text(Store(domain.root), "shop", OTHER)
    assert seen[0].endswith("--force")


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_another_image_encoder_replaces_nothing_without_force(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    tiny = tiny_encoder(tmp_path, monkeypatch)
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"], "B": []})
    assert embed_image(store, "shop", tiny).status == "built"
    weights = torch.load(tmp_path / "tiny.pt", weights_only=True)
    torch.save({name: tensor * 2 for name, tensor in weights.items()}, tmp_path / "tuned.pt")
    tuned = replace(tiny, encoder=f"tiny/{tmp_path / 'tuned.pt'}")
    error = refusal(domain, embed_image, tuned)
    assert "image holds vectors of tiny/tiny.pt (revision " in error.message
    assert "those of tiny/tuned.pt (revision " in error.message
    assert str(error.next_command).endswith("--force")
    assert "normalize" in refusal(domain, embed_image, replace(tiny, normalize=True)).message
    assert embed_image(store, "shop", replace(tiny, precision="auto")).status == "built"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "B.png").write_bytes(picture(2))
    assert embed_image(store, "shop", replace(tiny, images=tmp_path / "more")).figures["present"] == 2
    assert embed_image(store, "shop", tuned, force=True).status == "built"
    shutil.copy(tmp_path / "tuned.pt", tmp_path / "copy.pt")  # other name, same weights
    assert "tiny/copy.pt" in refusal(domain, embed_image, replace(tiny, encoder=f"tiny/{tmp_path / 'copy.pt'}")).message


# -- vectors made elsewhere -------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Vectors of all items, and their ids beside them."""
    np.save(tmp_path / "v.npy", np.ones((3, 2), np.float32))
    (tmp_path / "ids.txt").write_text("apple\ngrape\nmango\n")
    return tmp_path / "v.npy"


def take(store: Store, made: Path, force: bool = False, encoder: str | None = None) -> str:
    config = EmbeddingsConfig(ids=made.with_name("ids.txt"), encoder=encoder)
    return import_embeddings(store, "shop", made, "text", config, force=force).status


def test_imported_vectors_replace_those_of_an_encoder_only_with_force(store: Store, domain: Domain, made: Path) -> None:
    before = snapshot(domain.path)
    with pytest.raises(UsageError, match=r"text holds vectors of fake \(revision 1\); those of v\.npy") as caught:
        take(store, made)
    assert snapshot(domain.path) == before
    assert str(caught.value.next_command) == (
        f"antpipe import embeddings --modality text --domains shop --store {store.root} --path {made} "
        f"--ids {made.with_name('ids.txt')} --force"
    )
    assert [take(store, made, force=True), take(store, made)] == ["built", "fresh"]


def test_another_import_replaces_vectors_only_with_force(store: Store, made: Path) -> None:
    make_domain(store, "shop", ITEMS)
    assert [take(store, made), take(store, made)] == ["built", "fresh"]
    with pytest.raises(UsageError, match="encoder"):
        take(store, made, encoder="my-bert")
    np.save(made, np.full((3, 2), 2, np.float32))
    with pytest.raises(UsageError, match=r"text holds vectors of v\.npy .* those of v\.npy .* would replace them"):
        take(store, made)
    assert take(store, made, force=True) == "built"
    made.with_name("ids.txt").write_text("mango\ngrape\napple\n")
    with pytest.raises(UsageError, match="ids"):
        take(store, made)
    make_domain(store, "shop", [*ITEMS, {"item_id": "melon"}])  # what is there is of no use any more
    assert take(store, made) == "built"


def test_an_encoder_replaces_imported_vectors_only_with_force(store: Store, made: Path) -> None:
    domain = make_domain(store, "shop", ITEMS)
    take(store, made, encoder="fake")  # as told, which proves nothing
    error = refusal(domain, embed_text, CONFIG)
    assert "text holds vectors of fake (revision as told)" in error.message
    assert str(made) in error.message
    assert embed_text(store, "shop", CONFIG, force=True).status == "built"
