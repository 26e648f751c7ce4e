"""The way of a small shop: from its files as they are to recommendations for all customers and a running service."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.support.commands import run

GOODS = ("Gitarre", "Flöte", "Trommel", "Geige", "Harfe", "Laute")
MAKERS = ("Hövel", "Brandt", "Sörens", "Kühn")
CUSTOMERS = 60


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Orders and products as a German shop system writes them: in cp1252, with returns, a guest and unsold products."""
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    products = [(f"{good[:2]}-{maker[:2]}", f"{good} von {maker}") for good in GOODS for maker in MAKERS]
    sold = [number for _, number in sorted((title, number) for number, title in products)][:-4]  # by instrument
    orders = ["Kunde;Artikelnummer;Datum;Menge"]
    for customer in range(CUSTOMERS):
        first = int(rng.integers(len(sold)))
        for day in range(6):
            orders.append(
                f"K{customer:03};{sold[(first + day) % len(sold)]};{day + 1:02}.{customer % 12 + 1:02}.2025;1"
            )
        orders.append(f"K{customer:03};{sold[first]};28.12.2025;-1")
        orders.append(f"GAST;{sold[first]};{customer % 28 + 1:02}.05.2025;1")
    rows = ["Artikelnummer;Bezeichnung;Preis", *(f"{number};{title};{len(title)},50" for number, title in products)]
    (folder / "bestellungen.csv").write_text("\n".join(orders), encoding="cp1252")
    (folder / "artikel.csv").write_text("\n".join(rows), encoding="cp1252")
    (folder / "neu.csv").write_text("id,title,price\nneu-1,Trommel von Hövel aus Ahorn,99\n", encoding="utf-8")
    return folder


def test_a_small_shop_gets_from_its_files_to_recommendations_and_a_service(files: Path, tmp_path: Path) -> None:
    store = ("--domains", "Musik", "--store", tmp_path / "store")
    sources = ("--interactions", files / "bestellungen.csv", "--items", files / "artikel.csv")
    cleaning = ("--where", "Menge > 0", "--drop-users", "GAST", "--min-item", "3")
    found = run("ingest", "table", *store, *sources, *cleaning)
    assert found.code == 0, found.err
    assert "cp1252 (detected)" in found.err
    assert "4 cold items" in " ".join(found.out.split())
    assert run("build-sequences", *store).code == 0
    # Words need no encoder: the shop has something good before anything is embedded or trained.
    floor = ("--run", tmp_path / "floor")
    assert run("train", "--stage", "floor", *store, "--out", tmp_path / "floor").code == 0
    out = tmp_path / "empfehlungen.parquet"
    assert run("recommend", *floor, *store, "--users", "all", "--k", "5", "--out", out).code == 0
    written = pl.read_parquet(out)
    assert written["user_id"].n_unique() == CUSTOMERS
    assert written.group_by("user_id").len()["len"].to_list() == [5] * CUSTOMERS
    titles = dict(zip(written["item_id"], written["title"], strict=True))
    assert any("ö" in title for title in titles.values())
    # A product that nobody bought is found by its words, in the service too.
    pytest.importorskip("fastapi", reason="pip install 'antpipe[serve]'")
    from starlette.testclient import TestClient

    import antpipe as ant

    unsold = sorted({f"{good[:2]}-{maker[:2]}" for good in GOODS for maker in MAKERS} - set(_bought(files)))
    with TestClient(
        ant.service(tmp_path / "store", tmp_path / "floor", "Musik"), base_url="http://127.0.0.1"
    ) as client:
        answer = client.post("/recommend", json={"items": [unsold[0]], "k": 5, "explain": True})
        assert answer.status_code == 200, answer.text
        first = answer.json()["items"][0]
        assert first["title"].split()[0] == client.get(f"/items/{unsold[0]}").json()["title"].split()[0]
        worth = {one["modality"]: one["worth"] for one in first["why"]["modalities"]}
        assert worth["words"] > 0 == worth["transitions"]


def test_arrivals_are_offered_before_they_are_in_the_store(files: Path, tmp_path: Path) -> None:
    store = ("--domains", "Musik", "--store", tmp_path / "store")
    sources = ("--interactions", files / "bestellungen.csv", "--items", files / "artikel.csv")
    assert run("ingest", "table", *store, *sources, "--where", "Menge > 0", "--drop-users", "GAST").code == 0
    assert run("build-sequences", *store).code == 0
    assert run("train", "--stage", "floor", *store, "--out", tmp_path / "floor").code == 0
    asked = ("--items", "Tr-Hö", "--k", "3", "--new-items", files / "neu.csv", "--json")
    found = run("recommend", "--run", tmp_path / "floor", *store, *asked)
    assert found.code == 0, found.err
    assert "neu-1" in [row["item_id"] for row in found.json()]  # by its words "Trommel von Hövel"


def _bought(files: Path) -> list[str]:
    lines = (files / "bestellungen.csv").read_text(encoding="cp1252").splitlines()[1:]
    return [line.split(";")[1] for line in lines]
