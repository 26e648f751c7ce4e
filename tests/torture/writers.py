"""Writers of single artefacts, in numbered versions, and the version that is there now.

Whatever happens to the writer of version 2: version 1 or 2 is there, whole; the next writer leaves 3 and no scratch.
"""

from collections.abc import Callable
from pathlib import Path

from antpipe.store.commit import PENDING
from antpipe.store.documents import read_json, write_json
from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from tests.support.shops import make_domain, picture


def price(folder: Path, version: int) -> None:
    """A feature, as stages write it."""
    domain = Store(folder / "s").domain("A")
    with domain.writing("price", {"version": version}) as out, out.feature("price", 3, 4) as feature:
        feature.values[:] = version
        feature.present[:] = True


def price_now(folder: Path) -> int:
    values = Store(folder / "s").domain("A").feature("price").values
    (only,) = set(values.reshape(-1).tolist())
    return int(only)


def items(folder: Path, version: int) -> None:
    """Items with pictures in a folder of their own."""
    rows = [{"item_id": name, "title": f"v{version}", "image_files": ["p.png"]} for name in "abc"]
    make_domain(Store(folder / "s"), "A", rows, pictures={"p.png": picture(version)})


def items_now(folder: Path) -> int:
    domain = Store(folder / "s").domain("A")
    rows = domain.table("items").to_pylist()
    (version,) = {int(row["title"][1:]) for row in rows}
    assert (domain.path / rows[0]["image_files"][0]).read_bytes() == picture(version)
    assert domain.verify("items").status == "fresh"
    return version


def run(folder: Path, version: int) -> None:
    """The weights and the description of a run."""
    described = Checkpoint(
        fingerprint=str(version),
        stage="scratch",
        groups={},
        model={"width": 4, "heads": 1, "experts": 1, "layers": 1},
        train={},
        modalities={"text": {"width": 3, "encoder": None}},
        max_len=5,
        items=None,
        domains={},
        source=None,
        best_epoch=1,
        epochs=1,
        metrics={},
    )
    model = described.build()
    for parameter in model.parameters():
        parameter.detach().fill_(version)
    with RunFolder(folder / "r").lock(force=True):
        checkpoint.save(folder / "r", model, described)


def run_now(folder: Path) -> int:
    model, described = checkpoint.load(folder / "r")
    assert {float(one) for part in model.parameters() for one in part.detach().reshape(-1)} == {
        float(described.fingerprint)
    }
    return int(described.fingerprint)


def document(folder: Path, version: int) -> None:
    write_json(folder / "r" / "x.json", {"version": version})


def document_now(folder: Path) -> int:
    return read_json(folder / "r" / "x.json", dict[str, int], None)["version"]


WRITERS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], int]]] = {
    "price": (price, price_now),
    "items": (items, items_now),
    "run": (run, run_now),
    "document": (document, document_now),
}


def look(folder: Path, now: Callable[[Path], int], write: Callable[[Path, int], None]) -> None:
    """What must hold after any accident: version 1 or 2 is there, and the next writer leaves 3 and no scratch."""
    assert now(folder) in (1, 2)
    write(folder, 3)
    assert now(folder) == 3
    left = [path.name for path in folder.rglob(".*") if not path.name.endswith((".lock", ".holder"))]
    assert left == [], left
    assert not (folder / "s" / "A" / PENDING).exists()
    modes = {oct(path.stat().st_mode & 0o777) for path in folder.rglob("*.*") if path.is_file() and path.name[0] != "."}
    assert modes <= {"0o644"}, modes


def begin(folder: Path) -> None:
    (folder / "r").mkdir(parents=True)
    items(folder, 1)
    price(folder, 1)
    run(folder, 1)
    document(folder, 1)
