"""Any number of generated review lines in the format of the 2018 release, for the benchmark of ingest.

They are like real ones: ordered by item, as published; most users and items have a few rows, some have very many; texts
have lognormal lengths (330 characters on average) and word frequencies that fall as in natural language; 3% of the
lines repeat the line before, byte for byte. The same number and seed give the same lines.
"""

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LINES_PER_USER, LINES_PER_ITEM = 3.3, 17.5  # on average; Home_and_Kitchen of 2023: 2.9 and 18.2
SPREAD = 1.5  # standard deviation of the log of their shares: two thirds of the lines are in the 5-core
REPEATED = 0.03  # share of lines that repeat the line before
TEXTS, WORDS = 20_000, 30_000
FIRST_DAY, DAYS = datetime(2000, 1, 1, tzinfo=UTC), 6_800  # up to summer 2018
AT_ONCE = 50_000
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def review_file(folder: Path, lines: int, seed: int = 0) -> Path:
    """FOLDER/DOMAIN_5.json.gz with this many lines; generated if it does not exist, and then complete."""
    path = folder / f"{domain_of(lines)}_5.json.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with gzip.open(part, "wb", compresslevel=1) as stream:
            for block in review_blocks(lines, seed):
                stream.write(block)
        part.replace(path)
    return path


def domain_of(lines: int) -> str:
    return f"Made_{lines}"


def review_blocks(lines: int, seed: int) -> Iterator[bytes]:
    """The lines, in blocks of AT_ONCE."""
    rng = np.random.default_rng(seed)
    user, item = _numbers(rng, lines, LINES_PER_USER), np.sort(_numbers(rng, lines, LINES_PER_ITEM))
    day = rng.integers(0, DAYS, lines)
    users, items = _ids("A2", 12, int(user.max()) + 1, rng), _ids("B00", 7, int(item.max()) + 1, rng)
    texts, summaries, names = _texts(rng, TEXTS, 3.5), _texts(rng, TEXTS // 4, 1.2), _texts(rng, TEXTS, 0.6)
    days = [_day(number) for number in range(DAYS)]
    for first in range(0, lines, AT_ONCE):
        part = slice(first, first + AT_ONCE)
        count = len(user[part])
        stars = rng.choice([1, 2, 3, 4, 5], count, p=[0.08, 0.05, 0.09, 0.2, 0.58]).tolist()
        text, summary, name = (rng.integers(0, len(pool), count).tolist() for pool in (texts, summaries, names))
        written = [
            f'{{"overall": {stars[n]}.0, "verified": {"true" if day_ > 2000 else "false"}, "reviewTime": '
            f'"{days[day_][0]}", "reviewerID": "{users[user_]}", "asin": "{items[item_]}", "reviewerName": '
            f'{names[name[n]]}, "reviewText": {texts[text[n]]}, "summary": {summaries[summary[n]]}, '
            f'"unixReviewTime": {days[day_][1]}}}'
            for n, (user_, item_, day_) in enumerate(
                zip(user[part].tolist(), item[part].tolist(), day[part].tolist(), strict=True)
            )
        ]
        for again in np.flatnonzero(rng.random(count - 1) < REPEATED).tolist():
            written[again + 1] = written[again]
        yield ("\n".join(written) + "\n").encode()


def _numbers(rng: np.random.Generator, lines: int, average: float) -> NDArray[np.int64]:
    """(lines,) numbers of lines / average users or items, with lognormal shares: most are rare, some very frequent."""
    share = rng.lognormal(0, SPREAD, max(1, round(lines / average)))
    found: NDArray[np.int64] = np.searchsorted(np.cumsum(share) / share.sum(), rng.random(lines))
    return found


def _ids(start: str, length: int, count: int, rng: np.random.Generator) -> list[str]:
    """Distinct ids in scrambled order: multiples of a step that is coprime to the number of possible ids."""
    space = len(LETTERS) ** length
    step = 2 * int(rng.integers(space // 4, space // 2)) + 1
    step += 2 if step % 3 == 0 else 0  # 36 has the factors 2 and 3
    ids = []
    for n in range(count):
        rest, word = n * step % space, ""
        for _ in range(length):
            rest, digit = divmod(rest, len(LETTERS))
            word += LETTERS[digit]
        ids.append(start + word)
    return ids


def _texts(rng: np.random.Generator, count: int, size: float) -> list[str]:
    """Texts as JSON strings; the number of words is lognormal with median exp(size)."""
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    lengths = rng.integers(1, 10, WORDS)
    spelt = "".join(rng.choice(letters, lengths.sum()))
    ends = np.cumsum(lengths)
    words = [spelt[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
    share = 1 / np.arange(1, WORDS + 1)
    many = np.clip(rng.lognormal(size, 1.0, count), 1, 2000).astype(int)
    drawn = np.searchsorted(np.cumsum(share) / share.sum(), rng.random(many.sum())).tolist()
    texts, at = [], 0
    for number in many.tolist():
        texts.append(json.dumps(" ".join(words[place] for place in drawn[at : at + number]).capitalize() + ".\n"))
        at += number
    return texts


def _day(number: int) -> tuple[str, int]:
    """A day as the release writes it (`06 7, 2018`), and the time of its first second."""
    day = FIRST_DAY + timedelta(days=number)
    return f"{day.month:02} {day.day}, {day.year}", int(day.timestamp())
