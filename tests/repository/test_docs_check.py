"""docs/check.py: what counts as a console block, which words are equal, and what an update writes into a page."""

import re
from pathlib import Path

import pytest

from docs import check
from docs.check import Block, PageError, blocks_of, difference, rewritten, unknown_flags
from tests.conftest import REPOSITORY


def page(*lines: str, marker: str = "<!-- docs-check: run -->") -> str:
    return "\n".join([marker, "```console", *lines, "```", ""])


def only(text: str) -> Block:
    (block,) = blocks_of("page.md", text)
    return block


@pytest.mark.parametrize("name", check.PAGES)
def test_every_console_block_of_the_pages_is_run_or_says_why_not(name: str) -> None:
    for block in blocks_of(name, (REPOSITORY / name).read_text(encoding="utf-8")):
        assert block.kind != "skip" or block.reason


def test_the_pages_name_only_flags_that_exist() -> None:
    blocks = [block for name in check.PAGES for block in blocks_of(name, (REPOSITORY / name).read_text("utf-8"))]
    assert len(blocks) > 10
    assert unknown_flags(blocks) == []


MADE = ("cli.md", "api.md", "settings.md")  # pages of the site that docs/generated.py makes


def test_every_link_from_page_to_page_leads_somewhere() -> None:
    broken = []
    for name in [*check.PAGES, "CONTRIBUTING.md", "CHANGELOG.md"]:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            file, _, heading = target.partition("#")
            path = (REPOSITORY / name).parent / file if file else REPOSITORY / name
            if "://" in target or (name.startswith("docs/") and file in MADE):
                continue
            if not path.exists() or (heading and heading not in anchors(path)):
                broken.append(f"{name}: {target}")
    assert broken == []


def anchors(path: Path) -> set[str]:
    """The names GitHub gives to the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_a_block_without_a_marker_is_an_error() -> None:
    with pytest.raises(PageError, match=r"page\.md:2: this console block has no docs-check marker"):
        only(page("$ true", marker=""))


def test_a_command_outside_a_console_block_is_an_error() -> None:
    with pytest.raises(PageError, match=r"page\.md:3: write commands"):
        list(blocks_of("page.md", "Text\n\n    $ antpipe stats\n"))


@pytest.mark.parametrize("marker", ["run, quickly", "skip", "never"])
def test_a_marker_that_says_something_unknown_is_an_error(marker: str) -> None:
    with pytest.raises(PageError):
        only(page("$ true", marker=f"<!-- docs-check: {marker} -->"))


def test_a_marker_says_what_is_needed_and_tolerated() -> None:
    block = only(page("$ true", marker="<!-- docs-check: slow, needs tables, tolerance 0.02 -->"))
    assert (block.kind, block.needs, block.tolerance) == ("slow", ["tables"], 0.02)


def test_a_command_goes_on_after_a_backslash_and_inside_quotes() -> None:
    block = only(page("$ one \\", "    --more", "its output", "$ two 'a", "b'", "$ three"))
    assert [(command.text, command.printed) for command in block.commands] == [
        ("one \\\n    --more", ["its output"]),
        ("two 'a\nb'", []),
        ("three", []),
    ]


@pytest.mark.parametrize(
    ("printed", "found", "tolerance"),
    [
        ("users=456 items=147", "users=456  items=147\n", 0.0),
        ("recall@10=0.25 items_per_second=66.5", "recall@10=0.25 items_per_second=9.1", 0.0),
        ("all  0.2500  [-0.0294, +0.0527]", "all  0.2522  [-0.0283, +0.0512]", 0.01),
        ("cosine=1", "cosine=0.9999", 0.001),
        ("relearn  -11.2%", "relearn  -10.8%", 0.01),
        ("[-0.004, 0.05] runs/a-1", "[0.003, 0.05] runs/a-1", 0.01),
    ],
)
def test_equal_words_rates_and_close_decimals_hold(printed: str, found: str, tolerance: float) -> None:
    assert difference([printed], found, tolerance) is None


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("users=456", "users=457"),
        ("0.2500", "0.2722"),
        ("-0.2500", "+0.2500"),
        ("-11.2%", "-12.3%"),
        ("runs/a-1.5", "runs/a+1.5"),
        ("NONE", "POSITIVE"),
        ("one", "one two"),
        ("one two", "one"),
        ("best_epoch=3", "best_epoch=3.5"),
    ],
)
def test_other_words_and_figures_do_not_hold(printed: str, found: str) -> None:
    assert difference([printed], found, 0.01) is not None


def test_an_ellipsis_stands_for_lines_left_out() -> None:
    assert difference(["first", "…", "last 2"], "first\nanything\nlast 2\n", 0.0) is None
    assert difference(["first", "…", "last 2"], "first\nanything\nlast 3\n", 0.0) is not None


def test_a_rewritten_output_is_wrapped_and_still_holds() -> None:
    found = f"Shop  items  built  {' '.join(f'figure_{n}={n}' for n in range(20))}\nshort\n"
    lines = rewritten([], found)
    assert max(map(len, lines)) <= check.WIDTH
    assert lines[1].startswith(check.WRAPPED)
    assert difference(lines, found, 0.0) is None


def test_a_rewritten_output_leaves_out_what_the_page_leaves_out() -> None:
    assert rewritten(["a 1", "…", "z 1"], "a 2\nb\nc\nz 2\n") == ["a 2", "…", "z 2"]
    assert rewritten(["a 1", "…", "the end: 1"], "a 2\nb\nthe end: 2\nnew\n") == ["a 2", "…", "the end: 2", "new"]
    assert rewritten(["a 1", "…"], "a 2\nb\nc\n") == ["a 2", "…"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the check takes for the repository."""
    monkeypatch.setattr(check, "REPOSITORY", tmp_path)
    return tmp_path


def checked(repository: Path, text: str, *, update: bool = False) -> int:
    (repository / "page.md").write_text(text, encoding="utf-8")
    return check.check_page("page.md", list(blocks_of("page.md", text)), update=update)


def test_commands_of_a_page_share_one_shell_and_folder(repository: Path) -> None:
    first = page("$ export WORD=here", "$ mkdir folder; cd folder; echo $WORD > file")
    assert checked(repository, first + "\n" + page("$ cat file; pwd | grep -o folder$", "here", "folder")) == 0


def test_what_a_command_does_not_print_any_more_is_counted_and_shown(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page("$ echo users=3", "users=2", "$ echo same", "same")
    assert checked(repository, text) == 1
    assert (
        "page.md:3: $ echo users=3\n  the page has 'users=2', the command prints 'users=3'" in capsys.readouterr().out
    )
    assert (repository / "page.md").read_text(encoding="utf-8") == text


def test_an_update_writes_what_a_command_prints_and_leaves_the_rest(repository: Path) -> None:
    before = page(
        "$ echo 0.25", "0.251", "$ echo same; false || true", "same", marker="<!-- docs-check: run, tolerance 1 -->"
    )
    assert checked(repository, f"Text\n\n{before}More\n", update=True) == 0
    after = (repository / "page.md").read_text(encoding="utf-8")
    assert after == f"Text\n\n{before}More\n".replace("0.251", "0.25")


def test_a_command_that_fails_is_counted_with_what_it_says_and_never_written(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = page("$ echo lost; echo wrong >&2; (exit 3)", "kept")
    assert checked(repository, text, update=True) == 1
    assert "exit code 3\n  | wrong" in capsys.readouterr().out
    assert (repository / "page.md").read_text(encoding="utf-8") == text


def test_data_that_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check, "DATA", tmp_path)
    block = only(page("$ true", marker="<!-- docs-check: run, needs amazon2018 -->"))
    asked = check.arguments([])
    assert check.why_not(block, asked) == "needs amazon2018 of the published data (ANTPIPE_TEST_DATA)"
    (tmp_path / "amazon2018").mkdir()
    assert check.why_not(block, asked) is None
