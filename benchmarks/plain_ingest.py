"""Reviews to sequences as one writes it down: gzip, json, sets and dictionaries. The measure for `ingest amazon`.

The rules are antpipe's, so that both give the same: of identical lines the first stays (told by what the line says
that is used later: keeping all lines would take some GB), 5-core by dropping until nothing changes, users and items
numbered by their sorted ids, histories by time and then by place in the file.
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
    """Sorted ids of users and items, and each user's (item, milliseconds) in time."""
    users, items = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    user_number = {name: number for number, name in enumerate(users)}
    item_number = {name: number for number, name in enumerate(items)}
    histories: list[list[tuple[int, int]]] = [[] for _ in users]
    for user, item, seconds, _ in rows:
        histories[user_number[user]].append((item_number[item], seconds * 1000))
    for history in histories:
        history.sort(key=lambda visit: visit[1])
    return users, items, histories
