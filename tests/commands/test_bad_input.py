"""Bad files as a user meets them: exit code, one line that names the thing, the next command, a store left alone."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from antpipe.store.store import Store
from tests.support.commands import TINY, publish_shops
from tests.support.documents import plain
from tests.support.places import EVALUATE, RECOMMEND, TRAIN, WITH_DOMAINS, Place, check_refusal, make_place
from tests.support.releases import encode, publish, review, snapshot
from tests.support.trainable import make_trainable


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """To be copied; no test writes here."""
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(template: Place, tmp_path: Path) -> Place:
    return template.copy(tmp_path / "place")


# -- published files ------------------------------------------------------------------------------------------

INGEST = "ingest amazon --source {folder}/source --domains Ring --min-user 1 --min-item 1 --store {store} --force"


@pytest.fixture
def published(place: Place) -> Place:
    """With published files of the shop Ring, which the store holds already."""
    publish_shops(place.folder / "source")
    assert place.run(INGEST).code == 0
    return place


def remove_folder(source: Path) -> None:
    shutil.rmtree(source)


def remove_reviews(source: Path) -> None:
    (source / "Ring_5.json.gz").unlink()


def remove_metadata(source: Path) -> None:
    (source / "meta_Ring.json.gz").unlink()


def empty_reviews(source: Path) -> None:
    (source / "Ring_5.json.gz").write_bytes(b"")


def truncate_reviews(source: Path) -> None:
    whole = gzip.compress(encode(*(review(f"U{n}", f"B{n * n}", n, reviewText=str(n**9)) for n in range(500))))
    (source / "Ring_5.json.gz").write_bytes(whole[: len(whole) // 2])


def spoil_a_line(source: Path) -> None:
    publish(source / "Ring_5.json.gz", review("U00", "B000"), b'{"reviewerID": "U01", "asin"')


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (remove_folder, ["{folder}/source", "no such folder"]),
        (remove_reviews, ["no review file of domain Ring", "domains there: Loop"]),
        (remove_metadata, ["no metadata file of domain Ring"]),
        (empty_reviews, ["Ring_5.json.gz", "empty"]),
        (truncate_reviews, ["Ring_5.json.gz", "truncated", "download it again"]),
        (spoil_a_line, ["{folder}/source/Ring_5.json.gz:2: not JSON"]),
    ],
)
def test_published_files_that_are_missing_or_bad_are_refused(
    published: Place, spoil: Callable[[Path], None], names: list[str]
) -> None:
    spoil(published.folder / "source")
    following = {empty_reviews: "gzip -dc ", truncate_reviews: "gzip -t "}.get(spoil, "antpipe ingest ")
    named = [name.format(folder=published.folder) for name in names]
    published.refuses(3, INGEST, *named, next_command=following)


def test_sizes_that_leave_nothing_are_refused(published: Place) -> None:
    line = INGEST.replace("--min-user 1", "--min-user 1000")
    published.refuses(3, line, "domain Ring", "no interaction is left", next_command="antpipe ingest amazon ")


def test_a_good_domain_named_before_a_bad_one_is_kept(published: Place) -> None:
    remove_reviews(published.folder / "source")
    before = snapshot(published.store / "Ring")
    outcome = published.run(INGEST.replace("--domains Ring", "--domains Loop,Ring"))
    check_refusal(outcome, 3, "domain Ring", next_command="antpipe ingest ")
    assert snapshot(published.store / "Ring") == before
    assert "Loop" in Store(published.store).domains()


# -- domains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", WITH_DOMAINS)
def test_a_domain_that_is_not_there_is_refused_with_those_that_are(place: Place, command: str) -> None:
    line = WITH_DOMAINS[command] + " --domains Nowhere"
    place.refuses(3, line, "no domain 'Nowhere'", "there: Source, Target, Wide", next_command="antpipe ingest ")


@pytest.mark.parametrize("domains", ["Source,Source", "Source,,Target", ",", ",Source"])
@pytest.mark.parametrize("command", [name for name in WITH_DOMAINS if name != "recommend"])
def test_empty_and_repeated_domains_are_refused(place: Place, command: str, domains: str) -> None:
    line = WITH_DOMAINS[command] + f" --domains {domains}"
    place.refuses(2, line, f"--domains {domains}", "each domain once", next_command=f"antpipe {command} --help")


def test_a_domain_name_that_is_a_path_is_refused(published: Place) -> None:
    published.refuses(
        2, INGEST.replace("Ring", "../Ring"), "domain name '../Ring'", next_command="antpipe ingest amazon --help"
    )


# -- files of the store ---------------------------------------------------------------------------------------

READERS = [TRAIN, EVALUATE, RECOMMEND]


@pytest.mark.parametrize("line", READERS)
def test_the_feature_file_of_another_catalogue_is_refused(place: Place, line: str) -> None:
    domain = make_trainable(Store(place.store), "Longer", items=30)
    shutil.copy(domain.path / "text.arrow", place.store / "Target" / "text.arrow")
    names = ("Target/text.arrow", "another catalogue")
    place.refuses(5, line, *names, next_command="antpipe embed-text --domains Target")


@pytest.mark.parametrize("line", READERS)
@pytest.mark.parametrize("left", [0, 100, 600])
def test_half_a_feature_file_is_refused(place: Place, line: str, left: int) -> None:
    path = place.store / "Target" / "price.arrow"
    path.write_bytes(path.read_bytes()[:left])
    names = ("Target/price.arrow", "missing or not written by antpipe")
    place.refuses(5, line, *names, next_command="antpipe quantize-price --domains Target")


@pytest.mark.parametrize("line", READERS)
def test_a_lost_feature_file_is_refused(place: Place, line: str) -> None:
    (place.store / "Target" / "image.arrow").unlink()
    place.refuses(5, line, "Target/image.arrow", next_command="antpipe embed-image --domains Target")


def rewrite(path: Path) -> None:
    """As any other program would write the table."""
    pl.read_parquet(path).write_parquet(path)


def rename_an_item(path: Path) -> None:
    """With all that antpipe noted in the file."""
    table = pq.read_table(path)
    ids = ["renamed", *table["item_id"].to_pylist()[1:]]
    column = table.schema.get_field_index("item_id")
    field = table.schema.field(column)
    pq.write_table(table.set_column(column, field, pa.array(ids, field.type)), path)


@pytest.mark.parametrize("line", [WITH_DOMAINS["quantize-price"] + " --domains Target --force", *READERS])
def test_an_items_table_written_by_something_else_is_refused(place: Place, line: str) -> None:
    rewrite(place.store / "Target" / "items.parquet")
    place.refuses(5, line, "Target/items.parquet", next_command="antpipe ingest ")


def test_an_items_table_that_was_edited_is_refused(place: Place) -> None:
    rename_an_item(place.store / "Target" / "items.parquet")
    place.refuses(5, RECOMMEND, "Target/items.parquet", "its size differs", next_command="antpipe ingest ")


def test_an_items_table_with_damaged_pages_is_refused(place: Place) -> None:
    path = place.store / "Target" / "items.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(400) + content[404:])
    line = WITH_DOMAINS["quantize-price"] + " --domains Target --force"
    place.refuses(5, line, "Target/items.parquet", "its content differs", next_command="antpipe ingest ")


@pytest.mark.parametrize(
    ("content", "following"),
    [("{", "rm "), ("[]", "rm "), ('{"format": 99, "artefacts": {}}', "pip install --upgrade antpipe")],
)
def test_a_manifest_that_is_none_is_refused(place: Place, content: str, following: str) -> None:
    (place.store / "Target" / "manifest.json").write_text(content)
    place.refuses(5, EVALUATE, "Target/manifest.json", next_command=following)


def test_status_goes_on_past_a_damaged_feature_and_says_how_to_mend_it(place: Place) -> None:
    (place.store / "Target" / "price.arrow").write_bytes(b"")
    outcome = place.run("status --store {store} --domains Target --json")
    [price] = [row for row in outcome.json()["Target"] if row["artefact"] == "price"]
    assert (outcome.code, price["status"]) == (0, "stale")
    assert "--force" in price["next_command"]


def test_a_store_that_is_a_file_is_refused(place: Place) -> None:
    (place.folder / "plain").write_text("no folder")
    line = WITH_DOMAINS["quantize-price"].replace("{store}", "{folder}/plain") + " --domains Target"
    place.refuses(2, line, "is a file, not a folder", next_command="antpipe quantize-price --help")


# -- runs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        EVALUATE.replace("{runs}/scratch", "{runs}/nowhere"),
        RECOMMEND.replace("{runs}/scratch", "{runs}/nowhere"),
        f"train --stage relearn --domains Target --from {{runs}}/nowhere --out {{runs}}/new {TINY} --store {{store}}",
        EVALUATE.replace("{runs}/scratch", "{runs}/scratch/metrics.jsonl"),
    ],
)
def test_a_run_that_is_not_there_is_refused(place: Place, line: str) -> None:
    place.refuses(3, line, str(place.runs), "no finished run here", next_command="antpipe train --help")


def lose_weights(run_folder: Path) -> None:
    [path] = run_folder.glob("model-*.safetensors")
    path.unlink()


def cut_weights(run_folder: Path) -> None:
    [path] = run_folder.glob("model-*.safetensors")
    path.write_bytes(path.read_bytes()[:-10])


def cut_description(run_folder: Path) -> None:
    path = run_folder / "checkpoint.json"
    path.write_text(path.read_text()[:200])


FROM_SCRATCH = (
    "train --stage relearn --domains Source --from {runs}/scratch --out {runs}/new --epochs 1 --store {store}"
)


@pytest.mark.parametrize("line", [EVALUATE, RECOMMEND, FROM_SCRATCH])
@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lose_weights, "safetensors: missing"),
        (cut_weights, "not the weights"),
        (cut_description, "checkpoint.json: not"),
    ],
)
def test_half_a_checkpoint_is_refused(place: Place, line: str, spoil: Callable[[Path], None], name: str) -> None:
    spoil(place.runs / "scratch")
    place.refuses(5, line, f"{place.runs}/scratch/", name, next_command="antpipe train --help")


def test_a_description_with_an_unknown_entry_is_refused_by_name(place: Place) -> None:
    path = place.runs / "scratch" / "checkpoint.json"
    path.write_text(json.dumps(plain(path) | {"colour": "red"}))
    place.refuses(5, EVALUATE, "checkpoint.json", "colour is of a newer", next_command="pip install --upgrade")


@pytest.mark.parametrize("stage", ["finetune", "relearn"])
def test_a_checkpoint_of_another_width_is_refused(place: Place, stage: str) -> None:
    line = f"train --stage {stage} --domains Target --from {{runs}}/pretrain --width 32 --out {{runs}}/new --epochs 1"
    names = (f"{place.runs}/pretrain", "width 16", "asks for 32")
    place.refuses(3, line + " --store {store}", *names, next_command="--width 16")


@pytest.mark.parametrize(
    "line",
    [
        "train --stage finetune --from {runs}/pretrain --out {runs}/new --epochs 1",
        "evaluate --run {runs}/pretrain",
        "recommend --run {runs}/pretrain --items i001",
    ],
)
def test_features_of_another_width_are_refused(place: Place, line: str) -> None:
    line += " --domains Wide --store {store}"
    names = (f"{place.runs}/pretrain", "text of width 12", "width 20")
    place.refuses(3, line, *names, next_command="antpipe embed-text --domains Wide")


def test_a_folder_that_holds_another_run_is_refused(place: Place) -> None:
    line = TRAIN.replace("{runs}/new", "{runs}/scratch")
    named = (f"--out {place.runs}/scratch", "another run", "--force replaces it")
    place.refuses(2, line, *named, next_command="scratch-2")


def test_a_run_is_not_trained_into_the_one_it_starts_from(place: Place) -> None:
    line = (
        "train --stage finetune --domains Target --from {runs}/pretrain --out {runs}/pretrain --store {store} --force"
    )
    place.refuses(2, line, f"--out {place.runs}/pretrain", next_command="pretrain-2")


@pytest.mark.parametrize(
    ("flags", "named", "following"),
    [
        ("--stage rewind --domains Target --out {runs}/new", "rewind", "antpipe train --help"),
        ("--stage relearn --domains Target --out {runs}/new", "starts from a checkpoint", "antpipe train --help"),
        ("--stage scratch --domains Source,Target --out {runs}/new", "scratch", "--domains"),
        ("--stage scratch --domains Target --from {runs}/pretrain --out {runs}/new", "--from", "antpipe train --help"),
        ("--stage scratch --domains Target", "--out", "antpipe train --help"),
    ],
)
def test_a_request_that_does_not_go_together_is_refused(place: Place, flags: str, named: str, following: str) -> None:
    place.refuses(2, f"train {flags} --epochs 1 --store {{store}}", named, next_command=following)
