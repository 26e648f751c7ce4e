import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from antpipe.errors import DataError, PartialError
from antpipe.features.embed_image import embed_image
from antpipe.features.encoders.located import Located
from antpipe.features.image.encoders import PACKAGED_IMAGE, locate_image_encoder
from antpipe.settings.features import ImageConfig
from antpipe.store.store import Store
from tests.support.fake_encoders import tiny_encoder
from tests.support.fake_progress import calling
from tests.support.shops import phone_picture, picture, picture_shop

PACKAGED = ImageConfig(encoder=PACKAGED_IMAGE, device="cpu")


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
    return tiny_encoder(tmp_path, monkeypatch)


def vectors(store: Store) -> Any:
    return store.domain("shop").feature("image").values.astype(float)


def test_vectors_are_those_of_open_clip(store: Store, tiny: ImageConfig) -> None:
    import open_clip
    import torch

    picture_shop(store, {"1.png": picture(1), "2.png": picture(2)}, {"A": ["1.png"], "B": ["2.png"]})
    embed_image(store, "shop", tiny)
    checkpoint = tiny.encoder.removeprefix("tiny/")
    model, _, prepare = open_clip.create_model_and_transforms("tiny", pretrained=checkpoint)
    pixels = torch.stack([prepare(Image.open(io.BytesIO(picture(seed)))) for seed in (1, 2)])
    with torch.inference_mode():
        expected = model.eval().encode_image(pixels).numpy()
    assert vectors(store) == pytest.approx(expected, abs=2e-3)
    assert not np.allclose(expected[0], expected[1], atol=0.05)


def test_an_item_is_the_mean_of_its_readable_pictures(store: Store, tiny: ImageConfig) -> None:
    files = {"1": picture(1), "2": picture(2), "bad": b"", "junk": b"junk"}
    picture_shop(store, files, {"A": ["1"], "B": ["2"], "C": ["1", "bad", "2", "junk"], "D": ["bad"], "E": []})
    result = embed_image(store, "shop", tiny)
    feature = store.domain("shop").feature("image")
    assert feature.present.tolist() == [True, True, True, False, False]
    values = vectors(store)
    assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=2e-3)
    assert not values[3:].any()
    assert result.figures["items_per_second"] > 0
    assert {name: result.figures[name] for name in result.figures if name not in ("cosine", "items_per_second")} == {
        "items": 5,
        "present": 3,
        "coverage": 0.6,
        "pictures": 7,
        "unreadable": 3,
        "computed": 4,
        "reused": 0,
        "shared": 0,
        "width": 16,
        "encoder": "tiny/tiny.pt",
        "precision": "fp32",
        "decode": "scaled",
    }


def test_unreadable_pictures_are_listed_with_their_reasons(store: Store, tiny: ImageConfig) -> None:
    domain = picture_shop(store, {"1": picture(1), "bad": b"", "junk": b"junk"}, {"A": ["1", "bad"], "B": ["junk"]})
    embed_image(store, "shop", tiny)
    entry = domain.entry("image")
    assert entry["unreadable_reasons"] == {"empty file": 1, "not a picture": 1}
    images = domain.entry("items")["images"]
    assert entry["unreadable"] == [
        {"item": "A", "file": f"{images}/bad", "why": "empty file"},
        {
            "item": "B",
            "file": f"{images}/junk",
            "why": "not a picture: formats read: JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF",
        },
    ]


def odd_files() -> dict[str, bytes]:
    """What catalogues contain besides plain pictures."""

    def written(image: Image.Image, form: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, form, **options)
        return stream.getvalue()

    plain = Image.open(io.BytesIO(picture(1, (300, 200))))
    turned = Image.Exif()
    turned[274] = 6
    jpeg = written(plain, "JPEG", quality=95)
    return {
        "plain": jpeg,
        "grey": written(plain.convert("L"), "JPEG"),
        "cmyk": written(plain.convert("CMYK"), "JPEG"),
        "turned": written(plain.rotate(90, expand=True), "JPEG", exif=turned, quality=95),
        "animated": written(plain, "GIF", save_all=True, append_images=[plain.rotate(180)]),
        "truncated": jpeg[: len(jpeg) // 2],
        "huge": written(Image.new("1", (20_000, 20_000)), "PNG"),
        "zero": b"",
        "phone": phone_picture(1, (300, 200)),
        "strip": picture(1, (210, 10)),
        "html": b"<html>404</html>",
    }


@pytest.mark.parametrize("decode", ["exact", "scaled"])
def test_odd_files_are_embedded_or_listed_with_a_reason(store: Store, tiny: ImageConfig, decode: str) -> None:
    files = odd_files()
    domain = picture_shop(store, files, {name: [name] for name in files})
    result = embed_image(store, "shop", replace(tiny, decode=decode))
    present = domain.feature("image").present
    names = domain.item_ids()
    assert {name for name, here in zip(names, present, strict=True) if here} == {
        "plain",
        "grey",
        "cmyk",
        "turned",
        "animated",
        "phone",
    }
    assert domain.entry("image")["unreadable_reasons"] == {
        "damaged": 1,
        "too many pixels": 1,
        "empty file": 1,
        "too long and narrow": 1,
        "not a picture": 1,
    }
    assert result.figures["coverage"] == round(6 / 11, 4)
    values = dict(zip(names, vectors(store), strict=True))
    likely = {"turned": 0.999, "phone": 0.999, "animated": 0.98, "cmyk": 0.98}  # GIF has few colours
    for name, likeness in likely.items():
        one, other = values["plain"], values[name]
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > likeness, name


def test_at_most_twenty_examples_are_kept(store: Store, tiny: ImageConfig) -> None:
    domain = picture_shop(
        store, {"1": picture(1), "bad": b""}, {"A": ["1"], **{f"B{i:02}": ["bad"] for i in range(25)}}
    )
    assert embed_image(store, "shop", tiny).figures["unreadable"] == 25
    assert len(domain.entry("image")["unreadable"]) == 20


def test_max_images_limits_the_pictures_per_item(store: Store, tiny: ImageConfig) -> None:
    picture_shop(store, {"1": picture(1), "2": picture(2)}, {"A": ["1", "2"], "B": ["1"]})
    embed_image(store, "shop", replace(tiny, max_images=1))
    assert np.array_equal(vectors(store)[0], vectors(store)[1])


def test_pictures_of_a_folder_join_those_of_the_catalogue(store: Store, tiny: ImageConfig, folder: Path) -> None:
    picture_shop(store, {"1": picture(1)}, {"A": ["1"], "B": [], "C": ["1"]})
    (folder / "A_2.png").write_bytes(picture(2))
    (folder / "B.png").write_bytes(picture(2))
    embed_image(store, "shop", replace(tiny, images=folder))
    values = vectors(store)
    assert values[0] == pytest.approx((values[1] + values[2]) / 2, abs=2e-3)


def test_batches_do_not_change_the_vectors(store: Store, tiny: ImageConfig) -> None:
    files = {str(seed): picture(seed) for seed in range(9)}
    picture_shop(store, files, {"A": ["0", "1", "2"], "B": ["3"], "C": ["4", "5", "6", "7"], "D": ["8"]})
    embed_image(store, "shop", replace(tiny, batch_size=9))
    whole = vectors(store)
    embed_image(store, "shop", replace(tiny, batch_size=2), force=True)
    assert vectors(store) == pytest.approx(whole, abs=2e-3)


def test_a_second_run_is_fresh_until_a_picture_changes(store: Store, tiny: ImageConfig, folder: Path) -> None:
    picture_shop(store, {}, {"A": [], "B": []})
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


def test_other_weights_of_the_same_name_make_the_vectors_stale(store: Store, tiny: ImageConfig) -> None:
    import torch

    picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    embed_image(store, "shop", tiny)
    checkpoint = tiny.encoder.removeprefix("tiny/")
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({name: tensor * 2 for name, tensor in weights.items()}, checkpoint)
    assert embed_image(store, "shop", tiny).status == "built"


def test_pictures_that_change_owner_while_the_encoder_is_located_are_refused(
    store: Store, tiny: ImageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locate_slowly(*given: Any) -> Located:
        picture_shop(store, {"1": picture(1)}, {"0": [], "A": ["1"]})
        return locate_image_encoder(*given)

    picture_shop(store, {"1": picture(1)}, {"A": ["1"]})
    monkeypatch.setattr("antpipe.features.embed_image.locate_image_encoder", locate_slowly)
    with pytest.raises(DataError, match="items changed while their pictures were read"):
        embed_image(store, "shop", tiny)
    assert "image" not in store.domain("shop").manifest()


def test_coverage_below_the_minimum_writes_the_artefact_and_fails(store: Store, tiny: ImageConfig) -> None:
    domain = picture_shop(store, {"1": picture(1)}, {"A": ["1"], "B": [], "C": []})
    config = replace(tiny, min_coverage=0.5)
    for _ in range(2):  # written the first time, fresh the second
        with pytest.raises(PartialError, match="1 of 3 items") as caught:
            embed_image(store, "shop", config)
        assert caught.value.exit_code == 4
        assert domain.feature("image").present.tolist() == [True, False, False]
    assert embed_image(store, "shop", replace(tiny, min_coverage=0.3)).status == "fresh"


def test_a_shop_without_pictures_is_refused_and_unchanged(store: Store, tiny: ImageConfig, folder: Path) -> None:
    domain = picture_shop(store, {}, {"A": [], "B": []})
    with pytest.raises(DataError, match="name no picture files") as caught:
        embed_image(store, "shop", tiny)
    assert str(caught.value.next_command).endswith("--images DIR")
    (folder / "X.png").write_bytes(picture(1))
    with pytest.raises(DataError, match=r"no file in .* is named after an item such as 'A'"):
        embed_image(store, "shop", replace(tiny, images=folder))
    assert "image" not in domain.manifest()


def test_a_missing_folder_of_pictures_is_refused_with_the_same_settings(store: Store, folder: Path) -> None:
    picture_shop(store, {}, {"A": []})
    with pytest.raises(DataError, match="no such folder") as caught:
        embed_image(store, "shop", replace(PACKAGED, images=folder / "absent", max_images=2))
    command = f"antpipe embed-image --domains shop --store {store.root} --encoder {PACKAGED_IMAGE}"
    assert caught.value.next_command == f"{command} --images DIR --max-images 2"


def test_if_no_picture_can_be_read_nothing_changes(store: Store, tiny: ImageConfig, folder: Path) -> None:
    domain = picture_shop(store, {}, {"A": []})
    (folder / "A.png").write_bytes(picture(1))
    embed_image(store, "shop", replace(tiny, images=folder))
    before = domain.entry("image")
    (folder / "A.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 picture files can be read.*empty file"):
        embed_image(store, "shop", replace(tiny, images=folder))
    assert domain.entry("image") == before


def test_progress_counts_items_whose_pictures_are_all_done(store: Store, tiny: ImageConfig) -> None:
    picture_shop(store, {"1": picture(1), "bad": b""}, {"A": ["1", "bad"], "B": ["1"], "C": ["1"]})
    seen: list[tuple[int, int]] = []
    progress = calling(lambda done, total, _: seen.append((done, total)))
    embed_image(store, "shop", replace(tiny, batch_size=1), progress=progress)
    assert seen == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.slow
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
    picture_shop(store, {}, {item_id: [] for item_id in ids})
    result = embed_image(store, "shop", replace(PACKAGED, images=folder))
    assert result.figures["coverage"] == 1
    assert result.figures["unreadable"] == 0
    values = vectors(store)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    likeness = values @ values.T
    np.fill_diagonal(likeness, -1)
    twins = [ids[row].rstrip("s") == ids[nearest].rstrip("s") for row, nearest in enumerate(likeness.argmax(axis=1))]
    assert all(twins)
