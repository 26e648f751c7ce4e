"""Commands that use trained runs."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from antpipe import api
from antpipe.commands import show
from antpipe.commands.flags import INPUT, LIST, OUTPUT, RUN, USING, Call, OneDomain, RunFolder, app, command, flag
from antpipe.errors import SameCommand, UsageError
from antpipe.runtime.terminal import on_stderr
from antpipe.settings.base import parts_of
from antpipe.settings.features import EngineConfig

ENGINE = tuple(field.name for field in fields(EngineConfig))


@command(
    app,
    "recommend",
    USING,
    takes=api.runs.Run.recommend_to_file,
    examples=[
        "antpipe recommend --run runs/shop --domains Shop --user U42",
        "antpipe recommend --run runs/shop --domains Shop --items B01,B07 --k 5 --where 'price < 50'",
        "antpipe recommend --run runs/shop --domains Shop --users all --k 20 --out recs.parquet",
        "antpipe recommend --run runs/shop --domains Shop --user U42 --new-items arrivals.csv",
    ],
)
def recommend(
    call: Call,
    run: RunFolder,
    domains: OneDomain,
    user: Annotated[str | None, flag("--user", "a user of the domain (original id)")] = None,
    items: Annotated[
        str | None,
        flag("--items", "item ids of a history, oldest first; put an id with a comma in double quotes"),
        LIST,
    ] = None,
    users: Annotated[str | None, flag("--users", "all, or a file of user ids, one per line; with --out")] = None,
    items_file: Annotated[
        Path | None, flag("--items-file", "a file of histories, one per line, as for --items; with --out", INPUT)
    ] = None,
    new_items: Annotated[
        Path | None,
        flag("--new-items", "CSV, Parquet or JSON of products that the store does not have, to rank among the others"),
    ] = None,
    out: Annotated[Path | None, flag("--out", "file for many: .parquet, .csv or .jsonl", OUTPUT)] = None,
    force: Annotated[bool, flag("--force", "replace the file of --out", RUN)] = False,
) -> None:
    """Recommend the next items for one user, a history, or many."""
    asked = {"--user": user, "--items": items, "--users": users, "--items-file": items_file}
    named = [name for name, value in asked.items() if value is not None]
    if len(named) != 1:
        raise UsageError(f"name one of {', '.join(asked)}" + (f", not {' and '.join(named)}" if named else ""))
    many = named[0] in ("--users", "--items-file")
    if many and out is None:
        raise UsageError(f"{named[0]} writes a file: name it with --out", SameCommand({"--out": "recommendations.csv"}))
    if out is not None and not many:
        raise UsageError(f"--out is for --users and --items-file; {named[0]} prints", SameCommand(without=("--out",)))
    opened = api.runs.Run.open(run, call.store)
    if out is not None:
        written = opened.recommend_to_file(
            domains,
            out,
            users=users,
            items_file=items_file,
            new_items=new_items,
            force=force,
            progress=on_stderr,
            **call.settings,
        )
        call.show(show.written_as_data(written), show.written(written))
        return
    on_cluster = [f"--{name.replace('_', '-')}" for name in call.settings if name in ENGINE]
    if on_cluster:
        raise UsageError(
            f"{', '.join(on_cluster)}: only with --users or --items-file", SameCommand(without=tuple(on_cluster))
        )
    histories = [[part.strip() for part in parts_of(items) if part.strip()]] if items is not None else []
    who = [user] if user is not None else []
    frame = opened.recommend(domains, users=who, histories=histories, new_items=new_items, **call.settings)
    rows = frame.drop("user_id", "history").to_dicts()
    call.show(rows, show.recommendations(rows))


@command(
    app,
    "similar",
    USING,
    takes=api.runs.Run.similar,
    examples=["antpipe similar --run runs/shop --domains Shop --item B01 --by text"],
)
def similar(
    call: Call,
    run: RunFolder,
    domains: OneDomain,
    item: Annotated[str, flag("--item", "an item of the domain (original id)")],
) -> None:
    """List the items that are most like an item."""
    rows = api.runs.Run.open(run, call.store).similar(domains, item, **call.settings).to_dicts()
    call.show(rows, show.recommendations(rows))


@command(
    app,
    "serve",
    USING,
    takes=api.serving.serve,
    examples=[
        "antpipe serve --run runs/shop --domains Shop",
        "antpipe serve --run runs/shop --domains Shop --port 9000 --token-file token.txt",
    ],
)
def serve(call: Call, run: RunFolder, domains: OneDomain) -> None:
    """Answer requests for recommendations over HTTP."""
    api.serving.serve(call.store, run, domains, **call.settings)
