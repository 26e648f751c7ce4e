"""Check that README and docs print what the commands print today.

    python docs/check.py            rerun the console blocks and compare (make docs-check)
    python docs/check.py --update   rerun them and rewrite the pages (make docs-check UPDATE=1)
    python docs/check.py --list     only list the blocks and check the flags of every printed antpipe command

A console block is a ```console fence: commands after `$ `, each followed by what it prints on stdout. The line above
the fence says what to do with the block; a block without such a line is an error:

    <!-- docs-check: run -->                     rerun it
    <!-- docs-check: run, needs amazon2018 -->   rerun it with this folder of the published data
    <!-- docs-check: run, tolerance 0.01 -->     rerun it; decimals may differ by so much
    <!-- docs-check: slow -->                    rerun it only with --slow (make docs-check SLOW=1)
    <!-- docs-check: skip, too long -->          never rerun it; the reason is printed

The blocks of a page run in order, in one bash, in an empty folder. Words are compared, so long lines may be wrapped; a
line `…` stands for lines left out. Integers and text must be equal, decimals too unless the block has a tolerance, and
the fields in MACHINE may have any value. Published data are looked for in ANTPIPE_TEST_DATA, else in ../shared/data; if
they are missing, blocks that need them are not run.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
WIDE = 400  # columns
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")))
DATA = Path(os.environ.get("ANTPIPE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
THREADS = 2  # torch threads of every command, as on the machine whose figures are printed
MACHINE = {"items_per_second", "positions_per_second", "seconds"}  # speeds: any value will do
WIDTH = 112  # longer lines of output are wrapped when a page is rewritten
WRAPPED = "    "  # what a wrapped line begins with; no command prints lines that begin so
MARKER = re.compile(r"^<!-- docs-check: (run|slow|skip)(?:, (.*?))? -->$")
GROUPS = (["ingest"], ["import"], ["export"], ["hub"])  # words that a command's own name follows
NUMBER = re.compile(r"((?:(?<![\w.])[+-])?(?:\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?|\.\d+))")  # with its sign
BETWEEN = "\x1e"  # what the shell prints between two commands


@dataclass(frozen=True, eq=False)
class Command:
    """A printed command (as its lines of the page, without `$ `) and the lines printed below it."""

    lines: list[str]
    printed: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True, eq=False)
class Block:
    """A console block of a page. `first` and `last` are the indices of its lines between the fences."""

    page: str
    first: int
    last: int
    kind: str
    commands: list[Command]
    needs: list[str] = field(default_factory=list)
    tolerance: float = 0.0
    reason: str = ""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.first + 1}"


class PageError(Exception):
    """A page is not written as this check expects."""


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The console blocks of a page. Raises PageError if one has no marker, or if a command stands outside a block."""
    lines = text.splitlines()
    end = 0
    for start, line in enumerate(lines):
        if start < end:
            continue
        if re.match(r"\s+\$ ", line):
            raise PageError(f"{page}:{start + 1}: write commands and their output in a ```console block")
        if not line.startswith("```console"):
            continue
        end = lines.index("```", start + 1)
        marker = MARKER.match(lines[start - 1]) if start else None
        if not marker:
            raise PageError(f"{page}:{start + 1}: this console block has no docs-check marker in the line above it")
        kind, words = marker[1], (marker[2] or "").split(", ")
        options = [word for word in words if word.startswith(("needs ", "tolerance "))] if kind != "skip" else []
        rest = ", ".join(word for word in words if word not in options)
        if (kind == "skip") != bool(rest):
            raise PageError(f"{page}:{start}: the marker is none: {lines[start - 1]}")
        needs = [word.removeprefix("needs ") for word in options if word.startswith("needs ")]
        tolerance = max((float(word.split()[1]) for word in options if word.startswith("tolerance ")), default=0.0)
        commands = list(commands_of(lines[start + 1 : end]))
        if not commands:
            raise PageError(f"{page}:{start + 1}: this console block has no command (`$ …`)")
        yield Block(page, start + 1, end, kind, commands, needs, tolerance, rest)


def commands_of(lines: list[str]) -> Iterator[Command]:
    """Commands and the lines below each. A command goes on while a line ends in a backslash or a quote is open."""
    at = 0
    while at < len(lines):
        if not lines[at].startswith("$ "):
            raise PageError(f"a console block begins with a command, not with {lines[at]!r}")
        words = [lines[at].removeprefix("$ ")]
        at += 1
        while at < len(lines) and not whole("\n".join(words)):
            words.append(lines[at])
            at += 1
        printed = []
        while at < len(lines) and not lines[at].startswith("$ "):
            printed.append(lines[at])
            at += 1
        yield Command(words, printed)


def whole(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return False
    return not command.endswith("\\")


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and how it ended."""

    stdout: str
    code: int
    stderr: str


def run_page(blocks: list[Block], folder: Path, errors: Path) -> list[Outcome]:
    """What each command of each block prints on stdout, and its exit code. Stderr of the nth goes to `errors`/n."""
    for name in {name for block in blocks for name in block.needs}:
        (folder / name).symlink_to(DATA / name)
    texts = [command.text for block in blocks for command in block.commands]
    script = "\n".join(
        f"exec 2> {shlex.quote(f'{errors}/{number}')}\n{text}\nprintf '{BETWEEN}%d{BETWEEN}' $?"
        for number, text in enumerate(texts)
    )
    ours = ("ANTPIPE_", "COLUMNS", "TERMINAL_WIDTH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": str(THREADS),
        "CUDA_VISIBLE_DEVICES": "",
        "ANTPIPE_WORDS": "1",  # as on a terminal
    }
    shell = ["bash", "-c", script]
    done = subprocess.run(
        shell, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    parts = done.stdout.split(BETWEEN)
    pairs = enumerate(zip(parts[::2], parts[1::2], strict=False))  # nothing comes after the last exit code
    return [
        Outcome(output, int(code), (errors / str(number)).read_text("utf-8", "replace"))
        for number, (output, code) in pairs
    ]


def equal(printed: str, found: str, tolerance: float) -> bool:
    """Whether one printed word still holds."""
    name, sign, _ = printed.partition("=")
    if sign and name in MACHINE and found.startswith(f"{name}="):
        return True
    ours, theirs = NUMBER.split(printed), NUMBER.split(found)  # text, number, text, number, …, text
    if ours[::2] != theirs[::2]:
        return False
    return all(
        one == other
        or ("." in one + other and abs(value(one) - value(other)) <= tolerance * (100 if "%" in unit else 1))
        for one, other, unit in zip(ours[1::2], theirs[1::2], ours[2::2], strict=True)
    )


def value(number: str) -> float:
    return float(number.replace(",", ""))


def difference(printed: list[str], found: str, tolerance: float) -> str | None:
    """The first words that differ, or None. A printed line `…` stands for any lines."""
    words = found.split()
    if "…" not in printed:
        parts = [(" ".join(printed).split(), words)]
    else:
        at = printed.index("…")
        head, tail = " ".join(printed[:at]).split(), " ".join(printed[at + 1 :]).split()
        parts = [(head, words[: len(head)]), (tail, words[len(words) - len(tail) :])]
    for ours, theirs in parts:
        for one, other in zip(ours, theirs, strict=False):
            if not equal(one, other, tolerance):
                return f"the page has {one!r}, the command prints {other!r}"
        if len(ours) != len(theirs):
            return f"the page has {len(ours)} words, the command prints {len(theirs)}"
    return None


def rewritten(printed: list[str], found: str) -> list[str]:
    """The lines for the page: the output, with long lines wrapped, and shortened by `…` if the page's are.

    After `…` come the line that begins like the page's and those after it, or else as many lines as the page has there.
    """
    lines = found.rstrip("\n").split("\n") if found.strip() else []
    if "…" in printed:
        at = printed.index("…")
        head, tail = (sum(not line.startswith(WRAPPED) for line in part) for part in (printed[:at], printed[at + 1 :]))
        begins = [line.split()[:2] for line in lines]
        anchor = printed[at + 1].split()[:2] if tail else None
        again = begins.index(anchor, head) if anchor in begins[head:] else len(lines) - tail
        lines = [*lines[:head], "…", *lines[again:]]
    return [part.rstrip() for line in lines for part in wrapped(line)]


def wrapped(line: str) -> Iterator[str]:
    while len(line) > WIDTH and " " in line[len(WRAPPED) : WIDTH].strip():
        cut = line.rindex(" ", 0, WIDTH)
        yield line[:cut]
        line = WRAPPED + line[cut + 1 :].lstrip()
    yield line


def unknown_flags(blocks: Iterable[Block]) -> list[str]:
    """Complaints about flags that an antpipe command of a page has and its help has not."""
    helps: dict[tuple[str, ...], str] = {}
    found = []
    for block in blocks:
        for command in block.commands:
            for names, flags in antpipe_commands(command.text):
                if names not in helps:
                    helps[names] = help_of(names)
                known = set(re.findall(r"--[a-z][\w-]*", helps[names]))
                found += [f"{block.where}: antpipe {' '.join(names)} has no {flag}" for flag in sorted(flags - known)]
    return found


def help_of(names: tuple[str, ...]) -> str:
    """The help of an antpipe command, in lines that are long enough for every flag."""
    from typer import rich_utils
    from typer.testing import CliRunner

    from antpipe.cli import app

    before, rich_utils.MAX_WIDTH = rich_utils.MAX_WIDTH, WIDE
    try:
        found = CliRunner().invoke(app, [*names, "--help"], env={"COLUMNS": str(WIDE)}).output
    finally:
        rich_utils.MAX_WIDTH = before
    return re.sub(r"\x1b\[[0-9;]*m", "", found)  # colours, if forced


def antpipe_commands(text: str) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """The names (such as `ingest amazon`) and flags of each antpipe command in a shell command."""
    lexer = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = [*lexer, ";"]
    for start in [at for at, word in enumerate(words) if word == "antpipe"]:
        end = next(at for at in range(start, len(words)) if words[at] and set(words[at]) <= set(";|&()<>"))
        part = words[start + 1 : end]
        names = part[: 2 if part[:1] in GROUPS else 1]
        yield tuple(names), {word.split("=")[0] for word in part if word.startswith("--")}


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check that README and docs print what the commands print today.")
    parser.add_argument("pages", nargs="*", help="pages, such as docs/data.md (default: all)")
    parser.add_argument("--update", action="store_true", help="rewrite the pages with the new output")
    parser.add_argument("--slow", action="store_true", help="also rerun the blocks marked slow")
    parser.add_argument("--list", action="store_true", help="rerun nothing; list the blocks and check flags")
    return parser.parse_args(words)


def main() -> int:
    given = arguments()
    pages = {page: (REPOSITORY / page).read_text(encoding="utf-8") for page in given.pages or PAGES}
    try:
        blocks = {page: list(blocks_of(page, text)) for page, text in pages.items()}
    except PageError as error:
        print(error)
        return 1
    failed = 0
    for complaint in unknown_flags(block for some in blocks.values() for block in some):
        print(complaint)
        failed += 1
    for page, some in blocks.items():
        chosen = [block for block in some if not why_not(block, given)]
        for block in some:
            if why := why_not(block, given):
                print(f"{block.where}: not rerun: {why}")
        if chosen:
            failed += check_page(page, chosen, update=given.update)
    if failed and not given.update:
        print(f"{failed} to mend; `make docs-check UPDATE=1` rewrites what the commands print")
    return 1 if failed else 0


def why_not(block: Block, given: argparse.Namespace) -> str | None:
    """Why a block is not rerun; None if it is."""
    missing = [name for name in block.needs if not (DATA / name).exists()]
    if block.kind == "skip":
        return block.reason
    if given.list:
        return "only listed"
    if block.kind == "slow" and not given.slow:
        return "slow (--slow, or make docs-check SLOW=1)"
    return f"needs {', '.join(missing)} of the published data (ANTPIPE_TEST_DATA)" if missing else None


def check_page(page: str, blocks: list[Block], *, update: bool) -> int:
    """Rerun the blocks of a page. Returns how many commands print something else, or with `update` how many failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="docs-check-") as folder:
        work, errors = Path(folder, "work"), Path(folder, "errors")
        work.mkdir()
        errors.mkdir()
        outcomes = iter(run_page(blocks, work, errors))
    new: dict[Block, list[str]] = {}
    failed = changed = 0
    for block in blocks:
        lines = []
        for command in block.commands:
            outcome = next(outcomes)
            shown = command.printed
            # An update prints today's figures exactly; only speeds may stay as they are.
            differs = difference(shown, outcome.stdout, 0.0 if update else block.tolerance)
            if outcome.code:
                failed += 1
                report(block, command, f"exit code {outcome.code}", outcome.stderr.splitlines()[-10:])
            elif differs and update:
                changed += 1
                shown = rewritten(shown, outcome.stdout)
                print(f"{block.where}: rewritten: $ {command.text}")
            elif differs:
                failed += 1
                report(block, command, differs, rewritten(shown, outcome.stdout))
            lines += [f"$ {command.lines[0]}", *command.lines[1:], *shown]
        new[block] = lines
    if changed:
        replace_lines(REPOSITORY / page, new)
    seconds = time.monotonic() - began
    total = sum(len(block.commands) for block in blocks)
    print(f"{page}: {total} commands rerun in {seconds:.0f} s, {failed} wrong, {changed} rewritten")
    return failed


def report(block: Block, command: Command, what: str, lines: list[str]) -> None:
    print(f"{block.where}: $ {command.text}", f"  {what}", *(f"  | {line}" for line in lines), sep="\n")


def replace_lines(path: Path, new: Mapping[Block, list[str]]) -> None:
    """Put new lines into the blocks of a page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for block in sorted(new, key=lambda block: -block.first):
        lines[block.first : block.last] = new[block]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
