"""Reviews to sequences the straightforward way: gzip, json, sets and dictionaries. The baseline for `ingest amazon`.

The rules are antpipe's, so both give the same result: the first of identical lines is kept (compared by the fields used
later, since whole lines would take several GB), the k-core drops rows until nothing changes, users and items are
numbered by their sorted ids, and histories are ordered by time, then by line.
"""

import gzip
import json
from collections import Counter
from pathlib import Path

Row = tuple[str, str, int, float]  # user, item, seconds, rating


def parse(path: Path) -> list[Row]:
    """The distinct lines in the order of the file."""
    rows, seen = [], set()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            review = json.loads(line)
            row = (review["reviewerID"], review["asin"], review["unixReviewTime"], review["overall"])
            if row not in seen:
                seen.add(row)
                rows.append(row)
    return rows


def k_core(rows: list[Row], least: int) -> list[Row]:
    while True:
        users = Counter(row[0] for row in rows)
        items = Counter(row[1] for row in rows)
        left = [row for row in rows if users[row[0]] >= least and items[row[1]] >= least]
        if len(left) == len(rows):
            return rows
        rows = left


def sequences(rows: list[Row]) -> tuple[list[str], list[str], list[list[tuple[int, int]]]]:
    """Sorted ids of users and items, and each user's (item, milliseconds) in order of time."""
    users, items = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    user_number = {name: number for number, name in enumerate(users)}
    item_number = {name: number for number, name in enumerate(items)}
    histories: list[list[tuple[int, int]]] = [[] for _ in users]
    for user, item, seconds, _ in rows:
        histories[user_number[user]].append((item_number[item], seconds * 1000))
    for history in histories:
        history.sort(key=lambda visit: visit[1])
    return users, items, histories
