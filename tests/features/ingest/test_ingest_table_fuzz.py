"""`ingest table` on the published tables after accidents: only what was hit is lost, and the counts add up."""

import gzip
import random
from itertools import islice
from pathlib import Path

import pytest

from antpipe.errors import DataError
from antpipe.features.ingest.advice import SettingsError
from antpipe.features.ingest.rejects import Rejects
from antpipe.features.ingest.table.files import open_table, read_rows
from antpipe.features.ingest_table import ingest_table, table_source
from antpipe.settings.ingest import IngestConfig, TableConfig
from antpipe.store.store import Store
from tests.features.ingest.test_ingest_amazon_fuzz import damaged

FORGIVING = IngestConfig(min_user=1, min_item=1, keep_without_metadata=True, max_rejects=10**6)
ROWS = 1500


@pytest.mark.realdata
@pytest.mark.parametrize("seed", range(3))
def test_published_tables_with_accidents_lose_only_the_rows_that_were_hit(
    real_data: Path, tmp_path: Path, seed: int
) -> None:
    whole, lines = {}, {}
    for part in ("interactions", "items"):
        with gzip.open(real_data / "tables" / f"Games.{part}.csv.gz") as stream:
            header, *rows = (line.rstrip(b"\r\n") for line in islice(stream, ROWS + 1))
        result, whole[part] = damaged(rows, seed)
        lines[part] = [line for line in result if line.strip(b"\r")]  # empty lines are no rows
        (tmp_path / f"{part}.csv").write_bytes(b"\n".join([header, *result]) + b"\n")
    store, source = Store(tmp_path / "store"), table_source(tmp_path / "interactions.csv", tmp_path / "items.csv")
    ingest_table(store, "Games", source, FORGIVING, TableConfig(quotes=False, time_unit="order"))
    entry, rejects = store.domain("Games").entry("items"), store.domain("Games").table("rejects").to_pylist()
    for part, key in (("interactions", "interactions"), ("items", "items")):
        facts = entry["report"][key]
        assert facts["lines"] == facts["kept"] + facts["duplicate_lines"] + facts["malformed"]
        listed = [row for row in rejects if row["file"] == f"{part}.csv"]
        assert len(listed) == facts["malformed"] <= len(lines[part]) - len(whole[part])
        assert all(row["line"] > 1 and row["reason"] for row in listed)
        assert facts["kept"] + facts["duplicate_lines"] >= len(whole[part])
    users = set(store.domain("Games").table("users")["user_id"].to_pylist())
    assert {line.split(b",")[0].decode() for line in whole["interactions"]} <= users


@pytest.mark.realdata
@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_damaged_published_table_is_refused_or_reads_as_it_was(real_data: Path, tmp_path: Path, damage: str) -> None:
    with gzip.open(real_data / "tables" / "Games.items.csv.gz") as stream:
        packed = gzip.compress(b"".join(islice(stream, ROWS)))
    path, chance = tmp_path / "items.csv.gz", random.Random(damage)
    path.write_bytes(packed)
    true = rows_of(path)
    refused = 0
    for _ in range(30):
        at = chance.randrange(11, len(packed))  # after the header of the gzip data
        wrong = bytes([packed[at] ^ 1 << chance.randrange(8)]) + packed[at + 1 :] if damage == "flipped" else b""
        path.write_bytes(packed[:at] + wrong)
        try:
            assert rows_of(path) == true
        except DataError as error:
            refused += 1
            assert str(path) in error.message
            assert error.next_command or isinstance(error, SettingsError)
    assert refused > 25


def rows_of(path: Path) -> list[list[object]]:
    table = open_table(path, True)
    return [row.values for row in read_rows(table, table.columns, Rejects(10**6))]
