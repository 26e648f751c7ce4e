"""Small files in the shape of the published reviews, and what became of them in the store."""

import gzip
import json
from pathlib import Path
from typing import Any

from antpipe.features.ingest.amazon.files import Release
from antpipe.features.ingest_amazon import ingest_amazon
from antpipe.settings.ingest import AmazonConfig, IngestConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.store import Store

EVERYTHING = IngestConfig(min_user=1, min_item=1)
UNDESCRIBED = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True)

Line = dict[str, Any]


def review(user: str, item: str, seconds: int = 100, **more: Any) -> Line:
    return {"reviewerID": user, "asin": item, "unixReviewTime": seconds, "overall": 5.0, **more}


def review_2023(user: str, item: str, milliseconds: int = 100_000, **more: Any) -> Line:
    return {"user_id": user, "parent_asin": item, "timestamp": milliseconds, "rating": 5.0, **more}


def product(item: str, **more: Any) -> Line:
    return {"asin": item, "title": f"Title {item}", "category": ["Shop"], "imageURL": [], **more}


def encode(*lines: Line | bytes) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


def publish(path: Path, *lines: Line | bytes) -> Path:
    content = encode(*lines)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def small_shop(folder: Path) -> Path:
    """A folder with one small domain, Shop: users a, b; items x, y."""
    publish(folder / "Shop_5.json.gz", review("a", "x", 1), review("a", "y", 2), review("b", "x", 3))
    publish(folder / "meta_Shop.json.gz", product("x"), product("y"), product("unsold"))
    return folder


def ingest_release(
    store: Store,
    source: Path,
    domain: str,
    config: IngestConfig,
    *,
    options: AmazonConfig | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> StageResult:
    """`ingest amazon` of one domain."""
    release = Release(store, source, domain, config, options or AmazonConfig())
    return ingest_amazon(release, force=force, dry_run=dry_run)


def report(store: Store, domain: str = "Shop") -> dict[str, Any]:
    kept: dict[str, Any] = store.domain(domain).entry("items")["report"]
    return kept


def interactions(domain: Domain) -> list[tuple[str, str, int, float | None]]:
    """Rows with their original ids."""
    users = domain.table("users")["user_id"].to_pylist()
    items = domain.item_ids()
    rows = domain.table("interactions").to_pylist()
    return [(users[row["user"]], items[row["item"]], row["timestamp"], row["rating"]) for row in rows]


def items(domain: Domain) -> dict[str, dict[str, Any]]:
    return {row["item_id"]: row for row in domain.table("items").to_pylist()}


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
