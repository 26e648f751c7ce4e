"""Treat stores, runs and files badly, and count what became of them.

    python -m tests.torture FOLDER --minutes 30 --seed 0           trials of all kinds, drawn by the seed
    python -m tests.torture FOLDER --table docs/reliability.md     write the table of FOLDER's ledger into a page

Each trial adds a line to FOLDER/ledger.jsonl; only those that failed are repeated. What a failed trial left is kept in
FOLDER/trials. Exit code 1 if a trial failed, and not when it was repeated.
"""

import argparse
import sys
import time
from pathlib import Path

from antpipe.runtime.process import tune_process


def main(arguments: list[str]) -> int:
    given = parser().parse_args(arguments)
    tune_process()
    from tests.torture.ledger import Ledger, latest, rewrite, table
    from tests.torture.run import prepare, schedule, torture

    given.folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(given.folder.resolve() / "ledger.jsonl")
    if given.table is None:
        prepare(given.folder.resolve())
        until = time.monotonic() + 60 * given.minutes
        numbers = schedule(given.seed, given.kinds.split(",") if given.kinds else [], given.trials)
        torture(given.folder.resolve(), ledger, given.seed, numbers, until)
        print("\n".join(table(ledger.lines())))
    else:
        rewrite(given.table, ledger.lines())
    failed = [line for line in latest(ledger.lines()) if line.failed]
    for line in failed:
        print(f"{line.kind} {line.number}: {line.outcome}: {line.command}\n{line.told}", file=sys.stderr)
    return min(1, len(failed))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.partition("\n")[0])
    found.add_argument("folder", type=Path, help="ledger, templates and scratch folders; on a RAM disk it is faster")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--minutes", type=float, default=30.0)
    found.add_argument("--trials", type=int, default=0, help="end after so many (0: when the time is over)")
    found.add_argument("--kinds", default="", help="only these, separated by commas, in turns")
    found.add_argument("--table", type=Path, help="no trials; write the counts between the markers of this page")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
