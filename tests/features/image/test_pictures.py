"""Which pictures belong to which item."""

from pathlib import Path

import pytest

from antpipe.features.image.pictures import Picture, first_of_each_item, folder_pictures, hashed, pictures_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    return path


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


def test_a_file_named_after_an_id_with_a_number_belongs_to_that_item_alone(folder: Path) -> None:
    for name in ("A.jpg", "A_2.jpg", "A_3.jpg", "A_2_2.jpg"):
        (folder / name).touch()
    assert names_by_item(folder, ["A", "A_2"]) == {"A": ["A.jpg", "A_3.jpg"], "A_2": ["A_2.jpg", "A_2_2.jpg"]}


def test_odd_ids_reach_no_file_outside_the_folder(folder: Path) -> None:
    (folder.parent / "secret.jpg").touch()
    (folder / "a b.c.jpg").touch()
    ids = ["../secret", "/etc/passwd", "", ".", "a b.c", "*", "x\0y"]
    assert names_by_item(folder, ids) == {"a b.c": ["a b.c.jpg"]}


def test_only_the_first_pictures_of_an_item_are_taken() -> None:
    pictures = [Picture(row, name, name) for row, name in ((1, "a"), (0, "b"), (1, "c"), (1, "d"))]
    assert [one.name for one in first_of_each_item(pictures, 2)] == ["b", "a", "c"]


def test_a_file_that_an_item_names_twice_counts_once(folder: Path) -> None:
    twice = [Picture(0, "a", str(folder / "a.jpg")), Picture(0, "x", f"{folder}/./a.jpg"), Picture(0, "b", "b.jpg")]
    other = Picture(1, "a", str(folder / "a.jpg"))
    assert [(one.row, one.name) for one in first_of_each_item([*twice, other], 2)] == [(0, "a"), (0, "b"), (1, "a")]


def test_the_digest_of_pictures_follows_their_content(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    pictures = [Picture(0, "a.jpg", str(path))]
    digests = [pictures_digest(hashed(pictures))]
    for content in (b"1", b"2", b"1"):
        path.write_bytes(content)
        digests.append(pictures_digest(hashed(pictures)))
    assert digests[1] == digests[3]
    assert len(set(digests)) == 3
