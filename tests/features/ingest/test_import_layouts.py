"""`import unisrec` and `import recbole`: data sets of other tools, with the split and the numbering they come with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from antpipe.errors import DataError, UsageError
from antpipe.features.build_sequences import build_sequences
from antpipe.features.import_embeddings import import_embeddings
from antpipe.features.import_recbole import find_recbole
from antpipe.features.import_unisrec import import_unisrec
from antpipe.features.ingest.domain import INTERACTIONS, ITEMS, REJECTS, write_domain
from antpipe.settings.features import SequenceConfig
from antpipe.settings.ingest import EmbeddingsConfig, IngestConfig, LayoutConfig, TableConfig
from antpipe.store.domain import Domain
from antpipe.store.next_command import build_command
from antpipe.store.store import Store
from tests.support.commands import run
from tests.support.places import check_refusal
from tests.support.releases import interactions, items, snapshot
from tests.support.shops import NOTHING_ELSE

HEADER = "user_id:token\titem_id_list:token_seq\titem_id:token"
IDS = ["zebra", "apple", "mango", "melon", "grape", "peach"]  # not in alphabetical order: their numbers count
WALKS = {"0": [0, 1, 2, 3, 4], "1": [5, 4, 3, 2], "2": [1, 1, 1, 1, 1, 1]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(
    folder: Path,
    walks: Mapping[str, Sequence[int]] = WALKS,
    cut: int = 50,
    name: str = "Toy",
    latest_first: bool = True,
) -> Path:
    """The three files of sequences: the last item is the test target, the one before the validation target."""
    rows: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for user, walk in walks.items():
        ends = list(range(1, len(walk)))
        parts = ["train"] * (len(ends) - 2) + ["valid", "test"]
        pairs = list(zip(ends, parts, strict=True))
        for end, part in reversed(pairs) if latest_first else pairs:
            history = " ".join(map(str, walk[max(0, end - cut) : end]))
            rows[part].append(f"{user}\t{history}\t{walk[end]}")
    folder.mkdir(exist_ok=True)
    for part, lines in rows.items():
        (folder / f"{name}.{part}.inter").write_text("\n".join([HEADER, *lines]) + "\n")
    return folder


def index(folder: Path, ids: Sequence[str] = IDS, name: str = "Toy") -> None:
    (folder / f"{name}.item2index").write_text("".join(f"{item}\t{n}\n" for n, item in enumerate(ids)))


def take(store: Store, folder: Path, config: LayoutConfig = LayoutConfig(), force: bool = False) -> Domain:  # noqa: B008
    import_unisrec(store, "Toy", folder, config, force=force)
    return store.domain("Toy")


def sequences(domain: Domain) -> dict[str, tuple[list[int], int, int]]:
    """Per user: items, and where validation and test begin."""
    build_sequences(Store(domain.root), [domain.name], SequenceConfig())
    built = domain.sequences()
    names = domain.table("users")["user_id"].to_pylist()
    walks = [built.items[start:end].tolist() for start, end in zip(built.offsets, built.offsets[1:], strict=False)]
    ends = zip(built.train_end.tolist(), built.valid_end.tolist(), strict=True)
    return {names[user]: (walk, *end) for user, walk, end in zip(built.user, walks, ends, strict=True)}


# -- sequences and their split --------------------------------------------------------------------------------


def test_sequences_come_back_whole_with_the_targets_as_given(store: Store, tmp_path: Path) -> None:
    assert sequences(take(store, publish(tmp_path / "toy"))) == {
        user: (walk, len(walk) - 2, len(walk) - 1) for user, walk in WALKS.items()
    }


@pytest.mark.parametrize("latest_first", [True, False])
def test_histories_cut_to_one_length_are_put_together_again(store: Store, tmp_path: Path, latest_first: bool) -> None:
    walk = [n % 4 for n in range(40)]
    domain = take(store, publish(tmp_path / "toy", {"7": walk}, cut=5, latest_first=latest_first))
    assert sequences(domain) == {"7": (walk, 38, 39)}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=14), min_size=1, max_size=4), st.integers(2, 6))
def test_any_sequences_come_back(tmp_path_factory: pytest.TempPathFactory, walks: list[list[int]], cut: int) -> None:
    folder = tmp_path_factory.mktemp("any")
    named = {str(user): walk for user, walk in enumerate(walks)}
    domain = take(Store(folder / "store"), publish(folder / "toy", named, cut=cut))
    assert sequences(domain) == {user: (walk, len(walk) - 2, len(walk) - 1) for user, walk in named.items()}


def test_several_targets_of_validation_and_test_are_kept(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy", {"0": [0, 1, 2, 3]})
    (folder / "Toy.valid.inter").write_text(f"{HEADER}\n0\t0 1\t2\n0\t0 1 2\t3\n")
    (folder / "Toy.test.inter").write_text(f"{HEADER}\n0\t0 1 2 3\t4\n0\t0 1 2 3 4\t0\n")
    assert sequences(take(store, folder)) == {"0": ([0, 1, 2, 3, 4, 0], 2, 4)}


@pytest.mark.parametrize("row", ["0\t0 1 2\t2000000000", "0\t0 2000000000\t1"])
def test_a_number_beyond_any_catalogue_is_refused_with_its_line(store: Store, tmp_path: Path, row: str) -> None:
    folder = publish(tmp_path / "toy", {"0": [0, 1, 2, 3]})
    (folder / "Toy.valid.inter").write_text(f"{HEADER}\n{row}\n")
    with pytest.raises(DataError, match=r"Toy\.valid\.inter:2: user '0': an item has the number 2000000000, but only"):
        take(store, folder)


def test_a_row_without_a_user_is_refused_with_its_line(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy", {"0": [0, 1, 2, 3]})
    (folder / "Toy.test.inter").write_text(f"{HEADER}\n \t0 1 2\t3\n")
    with pytest.raises(DataError, match=r"Toy\.test\.inter:2: no user"):
        take(store, folder)


def test_a_blank_id_in_the_index_is_refused_with_its_line(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy")
    index(folder, [" ", *IDS[1:]])
    with pytest.raises(DataError, match=r"Toy\.item2index:1: "):
        take(store, folder)


def test_positions_that_are_not_targets_in_the_files_are_for_training(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy", {"0": [0, 1, 2, 3, 4]})
    (folder / "Toy.train.inter").write_text(f"{HEADER}\n")
    assert sequences(take(store, folder)) == {"0": ([0, 1, 2, 3, 4], 3, 4)}


def test_users_who_have_no_target_of_a_kind_are_kept(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy", {"0": [0, 1, 2, 3]})
    (folder / "Toy.test.inter").write_text(f"{HEADER}\n5\t1\t2\n")
    assert sequences(take(store, folder)) == {"0": ([0, 1, 2], 2, 3), "5": ([1, 2], 1, 1)}


def test_build_sequences_can_split_otherwise_if_asked(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy", {"0": [0, 1, 2, 3]})
    (folder / "Toy.test.inter").write_text(f"{HEADER}\n")
    domain = take(store, folder)
    assert sequences(domain) == {"0": ([0, 1, 2], 2, 3)}
    build_sequences(store, ["Toy"], SequenceConfig(split="leave-one-out"))
    assert domain.sequences().valid_end.tolist() == [2]


@pytest.mark.parametrize(
    ("part", "lines", "says"),
    [
        ("valid", "0\t0 2\t3", r"valid\.inter:2: user '0': its history is not what the rows before lead to"),
        ("test", "0\t0 1\t4", r"test\.inter:2: user '0': its history is not what"),
        ("test", "0\t0 1 2 3 4 5 1\t4", r"test\.inter:2: user '0': its history is not what"),
        ("train", "0\t0 1\t2\n0\t0 1\t2", r"train\.inter:\d: user '0': its history is not what"),
        ("valid", "9\t\t3", r"valid\.inter:2: user '9': a valid target has no history"),
        ("train", "0\t0-1 0-2\t0-3", r"train\.inter:2: '0-1 0-2', '0-3': items must be numbers"),
        ("train", "0\t0 1", r"train\.inter:2: 2 value\(s\), the header has 3"),
        ("train", "0\t0\t99999999999", r"train\.inter:2: .*items must be numbers"),
        ("train", "0\t0\t-1", r"train\.inter:2: user '0': an item is not one of the numbers 0 to 5"),
        ("train", "8\t0 77\t1", r"train\.inter:2: user '8': an item is not one of the numbers 0 to 5"),
    ],
)
def test_rows_that_contradict_each_other_are_refused_with_user_and_line(
    store: Store, tmp_path: Path, part: str, lines: str, says: str
) -> None:
    folder = publish(tmp_path / "toy", {"0": [0, 1, 2, 3, 4]})
    index(folder)
    (folder / f"Toy.{part}.inter").write_text(f"{HEADER}\n{lines}\n")
    with pytest.raises(DataError, match=says):
        take(store, folder)
    assert not store.root.exists()


def test_a_split_that_goes_back_in_time_is_refused_by_name(store: Store) -> None:
    domain = store.new_domain("Odd")
    rows = [("ann", "x", 0, None, 0), ("ann", "x", 1, None, 1), ("bob", "x", 0, None, 2), ("bob", "x", 1, None, 1)]
    write_domain(
        domain,
        parameters={"format": "table"},
        items=pl.DataFrame([{**NOTHING_ELSE, "item_id": "x"}], schema=ITEMS),
        interactions=pl.DataFrame(rows, schema={**INTERACTIONS, "split": pl.Int8}, orient="row"),
        rejects=REJECTS.to_frame(),
        report={},
        flags=[],
    )
    outcome = run("build-sequences", "--domains", "Odd", "--store", store.root)
    check_refusal(
        outcome, 3, "user 'bob' has a validation interaction after a test one", next_command="--split leave-one-out"
    )


def test_split_given_needs_data_that_came_with_a_split(store: Store, tmp_path: Path) -> None:
    (tmp_path / "Toy.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\na\tx\t1\na\tx\t2\n")
    flags = ("--keep-without-metadata", "--min-user", "1", "--min-item", "1", "--store", store.root)
    assert run("import", "recbole", "--path", tmp_path, "--domain", "Toy", *flags).code == 0
    outcome = run("build-sequences", "--domains", "Toy", "--split", "given", "--store", store.root)
    check_refusal(outcome, 3, "came without a split", next_command="--split leave-one-out")


# -- items, users, texts, features ----------------------------------------------------------------------------


def test_row_i_is_the_item_with_the_number_i(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy")
    index(folder)
    (folder / "Toy.user2index").write_text("zoe\t0\namy\t1\nmia\t2\n")
    (folder / "Toy.text").write_text("item_id:token\ttext:token_seq\nmango\ta &amp; b\nzebra\tstripes\n")
    domain = take(store, folder)
    assert domain.item_ids() == IDS
    assert domain.table("users")["user_id"].to_pylist() == ["zoe", "amy", "mia"]
    assert [items(domain)[item]["text"] for item in ("zebra", "mango", "apple")] == ["stripes", "a & b", ""]
    assert [row[:2] for row in interactions(domain)][:3] == [("zoe", "zebra"), ("zoe", "apple"), ("zoe", "mango")]


def test_without_an_index_the_numbers_are_the_ids(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy", {"0": list(range(12))})
    (folder / "Toy.text").write_text("10\tten\n2\ttwo\n")
    domain = take(store, folder)
    assert domain.item_ids() == [str(number) for number in range(12)]
    assert items(domain)["10"]["text"] == "ten"


def test_text_features_become_the_text_artefact_row_by_row(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy")
    index(folder)
    vectors = np.arange(24, dtype=np.float32).reshape(6, 4)
    vectors[3] = 0
    vectors.tofile(folder / "Toy.feat1CLS")
    domain = take(store, folder, LayoutConfig(feature_width=4))
    feature = domain.feature("text")
    assert feature.values.tolist() == vectors.tolist()
    assert feature.present.tolist() == [True, True, True, False, True, True]
    encoder = domain.entry("text")["encoder"]
    assert (encoder["name"], len(encoder["revision"])) == ("Toy.feat1CLS", 64)
    assert "import unisrec" in build_command(domain, "text")


def test_without_an_index_features_tell_the_number_of_items(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy")
    np.ones((9, 4), np.float32).tofile(folder / "Toy.feat1CLS")
    assert take(store, folder, LayoutConfig(feature_width=4)).rows() == 9


def test_features_of_missrec_and_ant_are_read(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy")
    index(folder)
    np.full((6, 3), 2, np.float32).tofile(folder / "Toy.feat3CLS")
    prices = np.ones((6, 8))
    prices[0] = 0
    prices.tofile(folder / "Toy_price_0.feat")
    domain = take(store, folder)
    assert domain.feature("image").values.tolist() == [[2.0] * 3] * 6
    assert domain.feature("price").present.tolist() == [False] + [True] * 5
    (folder / "Toy.feat3CLS").unlink()
    pictures = np.zeros((6, 4, 3))
    pictures[1, 0], pictures[1, 2] = 1, 3
    pictures.tofile(folder / "Toy_img_0_4.feat")
    feature = take(store, folder).feature("image")
    assert (feature.values[1].tolist(), feature.present.tolist()) == ([2.0] * 3, [False, True, *[False] * 4])


def test_a_named_encoder_identifies_features_instead_of_their_file(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy")
    np.ones((6, 4), np.float32).tofile(folder / "Toy.feat1CLS")
    domain = take(store, folder, LayoutConfig(feature_width=4, encoder="bert-base-uncased"))
    encoder = domain.entry("text")["encoder"]
    assert (encoder["name"], encoder["revision"]) == ("bert-base-uncased", "as told")


@pytest.mark.parametrize(
    ("shape", "value", "says"),
    [
        ((5, 5), 1.0, "was made for another catalogue"),
        ((6, 5), 1.0, "rows of 5 numbers, --feature-width says 4"),
        ((6, 4), np.nan, "row 0 holds a number that is not finite in float16"),
        ((6, 4), 1e5, "row 0 holds a number that is not finite in float16"),
        ((0, 4), 1.0, "was made for another catalogue"),
    ],
)
def test_features_that_do_not_fit_are_refused_and_nothing_is_written(
    store: Store, tmp_path: Path, shape: tuple[int, int], value: float, says: str
) -> None:
    folder = publish(tmp_path / "toy")
    index(folder)
    np.full(shape, value, np.float32).tofile(folder / "Toy.feat1CLS")
    with pytest.raises(DataError, match=says):
        take(store, folder, LayoutConfig(feature_width=4))
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("suffix", "content", "says"),
    [
        ("item2index", "a\t0\nb\t2\n", "2 ids, but none has the number 1"),
        ("item2index", "a\t0\na\t1\n", r"item2index:2: 'a' or its number 1 is there twice"),
        ("item2index", "a\t0\nb 1\n", r"item2index:2: 'b 1' is not an id, a tab and a number"),
        ("item2index", "", "0 ids"),
        ("user2index", "ann\t0\n", "user '1': not a number of Toy.user2index"),
        ("text", "3\tpot\n17\tpan\n", r"Toy\.text:2: '17\\tpan' is not an item of Toy"),
    ],
)
def test_indices_and_texts_that_do_not_fit_are_refused(
    store: Store, tmp_path: Path, suffix: str, content: str, says: str
) -> None:
    folder = publish(tmp_path / "toy")
    (folder / f"Toy.{suffix}").write_text(content)
    with pytest.raises(DataError, match=says):
        take(store, folder)


@pytest.mark.parametrize(
    ("missing", "says"), [("Toy.valid.inter", "Toy.valid.inter: missing"), ("Toy.train.inter", "there: none")]
)
def test_a_folder_without_all_three_files_is_refused(store: Store, tmp_path: Path, missing: str, says: str) -> None:
    folder = publish(tmp_path / "toy")
    (folder / missing).unlink()
    with pytest.raises(DataError, match=says):
        take(store, folder)


def test_the_data_set_may_be_a_folder_in_the_path(store: Store, tmp_path: Path) -> None:
    publish(tmp_path / "Toy")
    assert take(store, tmp_path).rows() == 6


def test_a_second_import_is_fresh_until_a_file_changes(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy")
    np.ones((6, 4), np.float32).tofile(folder / "Toy.feat1CLS")
    words = ("import", "unisrec", "--path", folder, "--domain", "Toy", "--feature-width", "4", "--store", store.root)
    first = run(*words)
    assert [line.split("  ")[1:3] for line in first.out.splitlines() if line[0] != " "] == [
        ["items", "built"],
        ["text", "built"],
    ]
    before = snapshot(store.root)
    assert [line.split("  ")[1:3] for line in run(*words).out.splitlines() if line[0] != " "] == [
        ["items", "fresh"],
        ["text", "fresh"],
    ]
    assert snapshot(store.root) == before
    np.zeros((6, 4), np.float32).tofile(folder / "Toy.feat1CLS")
    assert " 0 described" in run(*words).out
    (store.root / "Toy" / "text.arrow").write_bytes(b"broken")
    status = run("status", "--store", store.root).out.replace("\n   ", "")
    assert (
        f"antpipe import unisrec --domains Toy --store {store.root} --path {folder} --feature-width 4 --force" in status
    )


def test_another_data_set_does_not_replace_a_domain_unless_forced(store: Store, tmp_path: Path) -> None:
    take(store, publish(tmp_path / "one"))
    other = publish(tmp_path / "two", {"0": [0, 1, 2]})
    with pytest.raises(DataError, match="domain Toy holds data from `import unisrec` of"):
        take(store, other)
    assert take(store, other, force=True).rows() == 3


def test_vectors_that_something_else_made_are_not_replaced_unless_forced(store: Store, tmp_path: Path) -> None:
    folder = publish(tmp_path / "toy")
    index(folder)
    np.ones((6, 4), np.float32).tofile(folder / "Toy.feat1CLS")
    config = LayoutConfig(feature_width=4)
    take(store, folder, config)
    np.save(tmp_path / "v.npy", np.full((6, 2), 3, np.float32))
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    mine = EmbeddingsConfig(ids=tmp_path / "ids.txt", encoder="mine")
    with pytest.raises(UsageError, match=r"text holds vectors of Toy\.feat1CLS .* those of mine"):
        import_embeddings(store, "Toy", tmp_path / "v.npy", "text", mine)
    import_embeddings(store, "Toy", tmp_path / "v.npy", "text", mine, force=True)
    before = snapshot(store.root)
    with pytest.raises(UsageError, match=r"text holds vectors of mine .*; those of the data set would") as caught:
        take(store, folder, config)
    assert snapshot(store.root) == before
    assert str(caught.value.next_command) == (
        f"antpipe import unisrec --domains Toy --store {store.root} --path {folder} --feature-width 4 --force"
    )
    assert take(store, folder, config, force=True).entry("text")["encoder"]["name"] == "Toy.feat1CLS"


# -- RecBole --------------------------------------------------------------------------------------------------

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
    f"{user}\t{item}\t5.0\t97830{user}{item}00.0\n" for user in (1, 2) for item in (1, 2)
)
ITEM = "item_id:token\tmovie_title:token_seq\tgenre:token_seq\n1\tToy Story\tAnimation Comedy\n2\tJumanji\tAdventure\n"


def test_atomic_files_of_recbole_become_a_domain(store: Store, tmp_path: Path) -> None:
    (tmp_path / "ml.inter").write_text(INTER)
    (tmp_path / "ml.item").write_text(ITEM)
    words = ("import", "recbole", "--path", tmp_path, "--domain", "ML", "--min-user", "1", "--min-item", "1")
    outcome = run(*words, "--map", "category=genre", "--store", store.root)
    assert outcome.code == 0, outcome.err
    assert "ml.inter: atomic file, user=user_id item=item_id time=timestamp rating=rating" in outcome.err
    assert interactions(store.domain("ML"))[0] == ("1", "1", 978_301_100_000, 5.0)
    assert items(store.domain("ML"))["1"]["text"] == "Toy Story. Animation Comedy"
    assert "  fresh" in run(*words, "--map", "category=genre", "--store", store.root).out


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "expected one file NAME.inter; there: none"),
        (["a.inter", "b.inter"], "there: a, b"),
        (["a.train.inter", "a.valid.inter"], "a is split into"),
        (["a.inter"], "no file a.item"),
    ],
)
def test_a_folder_without_one_data_set_of_recbole_is_refused(tmp_path: Path, names: list[str], says: str) -> None:
    for name in names:
        (tmp_path / name).write_text(INTER)
    with pytest.raises(DataError, match=says) as caught:
        find_recbole(tmp_path, "Shop", tmp_path / "store", keep_without_metadata=False)
    asked = f"--domains Shop --store {tmp_path}/store --path {tmp_path}"
    assert not caught.value.next_command or asked in caught.value.next_command


def test_defaults_of_the_settings_are_those_of_ingest_table() -> None:
    assert (IngestConfig().min_user, TableConfig().time_unit, LayoutConfig().feature_width) == (5, "auto", 768)
