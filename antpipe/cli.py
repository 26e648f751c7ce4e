"""The command line: parse, call, print. `main` turns an AntpipeError into a message and an exit code.

A command's parameters are expanded to flags: `Common` to those every command has, a config class to one flag
for each of its fields (so a default, its explanation and its flag live in one place, config.py).
"""

import dataclasses
import inspect
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from antpipe import __version__
from antpipe.config import (
    CONFIGS,
    Config,
    DemoConfig,
    EvaluateConfig,
    ImageConfig,
    IngestConfig,
    ModelConfig,
    PriceConfig,
    SampleConfig,
    SequenceConfig,
    TextConfig,
    TrainConfig,
    base_type,
    check_environment,
    flag_name,
    read_toml,
    resolve,
)
from antpipe.errors import AntpipeError, PartialError, UsageError
from antpipe.memory import keep_freed_memory
from antpipe.progress import progress

if TYPE_CHECKING:
    from antpipe.store import StageResult, Store
    from antpipe.transfer import GroupRow

C = TypeVar("C", bound=Config)

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip
ingest = typer.Typer(help="Turn raw reviews and a catalogue into domains of the store.")
app.add_typer(ingest, name="ingest")

Domains = Annotated[str, typer.Option("--domains", help="domains, separated by commas")]
OneDomain = Annotated[str, typer.Option("--domains", help="the domain")]
Run = Annotated[Path, typer.Option("--run", help="folder of a trained run")]
Force = Annotated[bool, typer.Option("--force", help="build again what is fresh, replace what is there")]


@dataclasses.dataclass(frozen=True)
class Common:
    """Flags of every command."""

    store: "Store"
    json: bool
    toml: dict[str, dict[str, Any]]
    flags: dict[str, Any]  # as given, None where not

    def resolve(self, config: type[C], inherited: C | None = None) -> C:
        return resolve(config, self.flags, self.toml, inherited=inherited)

    def report(self, results: "Sequence[StageResult]") -> None:
        """One line an artefact, or all as JSON."""
        if self.json:
            print_json([dataclasses.asdict(result) for result in results])
            return
        for result in results:
            print(f"{result.domain}  {result.artefact}  {result.status}  {inline(result.figures)}".rstrip())


def inline(figures: dict[str, Any]) -> str:
    """`name=value` of what fits a line; the rest is in the manifest and in --json."""
    plain = {name: value for name, value in figures.items() if isinstance(value, str | int | float)}
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in plain.items()
    )


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def notice(message: str) -> None:
    print(f"antpipe: {message}", file=sys.stderr)


INTERRUPTED = 130  # 128 + SIGINT, as shells count
SHOWN_EPOCH = ("loss", "valid_recall@10", "seconds")  # the rest is in RUN/metrics.jsonl
COMMON_FLAGS = (
    ("store", Path | None, typer.Option("--store", help="folder of the store [$ANTPIPE_STORE or ./antpipe-store]")),
    ("settings", Path | None, typer.Option("--config", help="TOML file with settings")),
    ("as_json", bool, typer.Option("--json", help="print results as JSON")),
)


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command after expanding its `Common` and config parameters to flags."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        declared = inspect.signature(function).parameters
        parameters: list[inspect.Parameter] = []
        configs = {key: value.annotation for key, value in declared.items() if value.annotation in CONFIGS}
        for key, parameter in declared.items():
            if key in configs:
                parameters += [config_flag(field) for field in dataclasses.fields(configs[key])]
            elif parameter.annotation is Common:
                for flag, kind, option in COMMON_FLAGS:
                    parameters.append(keyword(flag, Annotated[kind, option], False if kind is bool else None))
            else:
                parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

        @wraps(function)
        def call(**given: Any) -> None:
            from antpipe.store import Store

            root = given["store"] or os.environ.get("ANTPIPE_STORE") or "antpipe-store"
            toml = read_toml(given["settings"]) if given["settings"] else {}
            common = Common(Store(Path(root)), given["as_json"], toml, given)
            arguments: dict[str, Any] = {key: given[key] for key in declared if key in given and key not in configs}
            arguments |= {key: common.resolve(config) for key, config in configs.items()}
            function(common, **arguments)

        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        group.command(name)(call)
        return function

    return register


def keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def config_flag(field: "dataclasses.Field[Any]") -> inspect.Parameter:
    """The flag of a config field: None where it is not given; its help names choices and default."""
    kind = base_type(field.type)
    kind = kind if kind in (int, float, bool, Path) else str
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    about = field.metadata["about"]
    about += f" ({', '.join(field.metadata['choices'])})" if field.metadata["choices"] else ""
    about += "" if default is None else f" [default: {default}]"
    flag = f"--{flag_name(field.name)}"
    option = typer.Option(f"{flag}/--no-{flag[2:]}" if kind is bool else flag, help=about, show_default=False)
    return keyword(field.name, Annotated[kind | None, option], None)


def names(text: str) -> list[str]:
    """`A,B` -> [A, B]; empty and repeated names are refused."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts) or len(set(parts)) != len(parts):
        raise UsageError(f"--domains {text}: give each domain once, separated by commas")
    return parts


@command(ingest, "amazon")
def ingest_amazon(
    common: Common,
    source: Annotated[Path, typer.Option("--source", help="folder with the published review and metadata files")],
    domains: Domains,
    config: IngestConfig,
    force: Force = False,
) -> None:
    """Amazon reviews and metadata, as published, from local files."""
    from antpipe.features.ingest.amazon import ingest_amazon as stage

    common.report([stage(common.store, source, name, config, force=force, announce=notice) for name in names(domains)])


@command(ingest, "sample")
def ingest_sample(common: Common, config: SampleConfig, force: Force = False) -> None:
    """Generated shops, for a first try without data (see docs/sample.md)."""
    from antpipe.features.ingest.sample import ingest_sample as stage

    common.report(stage(common.store, config, force=force))


@command(app, "embed-text")
def embed_text(common: Common, domains: Domains, config: TextConfig, force: Force = False) -> None:
    """Texts to vectors, with sentence-transformers."""
    from antpipe.features.embed_text import embed_text as stage

    embed(common, domains, "text", lambda name, bar: stage(common.store, name, config, force=force, progress=bar))


@command(app, "embed-image")
def embed_image(common: Common, domains: Domains, config: ImageConfig, force: Force = False) -> None:
    """Pictures to vectors, with open_clip."""
    from antpipe.features.embed_image import embed_image as stage

    embed(common, domains, "image", lambda name, bar: stage(common.store, name, config, force=force, progress=bar))


def embed(
    common: Common, domains: str, what: str, stage: "Callable[[str, Callable[[int, int], None]], StageResult]"
) -> None:
    """Embed each domain under a progress bar. One that is covered in part does not keep the others from being built."""
    keep_freed_memory()
    results, partial = [], []
    for name in names(domains):
        try:
            with progress(f"{name} {what}") as bar:
                results.append(stage(name, bar))
        except PartialError as error:
            partial.append(error)
    common.report(results)
    if partial:
        raise PartialError("; ".join(error.message for error in partial), partial[0].next_command)


@command(app, "quantize-price")
def quantize_price(common: Common, domains: Domains, config: PriceConfig, force: Force = False) -> None:
    """Prices to codes of quantile bins."""
    from antpipe.features.quantize_price import quantize_price as stage

    common.report(stage(common.store, names(domains), config, force=force))


@command(app, "build-sequences")
def build_sequences(common: Common, domains: Domains, config: SequenceConfig, force: Force = False) -> None:
    """Interactions to one chronological sequence a user, split into train, valid and test."""
    from antpipe.features.build_sequences import build_sequences as stage

    common.report(stage(common.store, names(domains), config, force=force, warn=notice))


@command(app, "train")
def train(
    common: Common,
    stage: Annotated[str, typer.Option("--stage", help="pretrain, scratch, finetune, relearn, or one of your own")],
    domains: Domains,
    config: TrainConfig,
    model: ModelConfig,
    out: Annotated[Path | None, typer.Option("--out", help="folder of the run")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="run to start from (finetune, relearn)")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what the stage does with each group")] = False,
    force: Force = False,
) -> None:
    """Train one stage: pretrain on sources; scratch, finetune or relearn on a target."""
    from antpipe import checkpoint
    from antpipe.runs import plan_run, run_stage
    from antpipe.transfer import group_table

    if source is not None:
        model = common.resolve(ModelConfig, checkpoint.describe(source).model_config())
    keep_freed_memory()
    request: dict[str, Any] = {
        "model_config": model, "config": config, "source": source, "own_stages": common.toml.get("stage", {}),
    }  # fmt: skip
    if dry_run:
        plan = plan_run(common.store, names(domains), stage, **request, notice=notice)
        print_groups(group_table(plan.actions, plan.model), common.json)
        return
    if out is None:
        raise UsageError("--out is missing: name the folder of the run, or add --dry-run")
    with progress(stage) as update:
        done, was_there = run_stage(
            common.store, names(domains), stage, **request, out=out, force=force, notice=notice,
            progress=lambda row: update(row["epoch"], config.epochs, inline({k: row.get(k, "") for k in SHOWN_EPOCH})),
        )  # fmt: skip
    if common.json:
        print_json(dataclasses.asdict(done))
    else:
        best = {f"valid_{name}": value for name, value in done.metrics.items()}
        status = "fresh" if was_there else "trained"
        print(f"{out}  {stage}  {status}  {inline({'best_epoch': done.best_epoch, 'epochs': done.epochs} | best)}")


def print_groups(rows: "list[GroupRow]", as_json: bool) -> None:
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
        return
    print(f"{'group':<12}{'action':<8}{'tensors':>8}{'parameters':>12}")
    for row in rows:
        print(f"{row.group:<12}{row.action:<8}{row.tensors:>8}{row.parameters:>12,}")


@command(app, "evaluate")
def evaluate(common: Common, run: Run, domains: Domains, config: EvaluateConfig) -> None:
    """Full ranking over the target's catalogue, under both protocols."""
    from antpipe.evaluate import evaluate_run
    from antpipe.ranking import CUTOFFS

    keep_freed_memory()
    results = [evaluate_run(common.store, run, name, config, notice) for name in names(domains)]
    if common.json:
        print_json(results)
        return
    for result in results:
        print(
            f"{result['domain']}  {result['split']}  positions={result['positions']} items={result['items']} "
            f"target_in_history={result['target_in_history']:.4f}"
        )
        measures = [f"{measure}@{k}" for measure in ("recall", "ndcg", "mrr") for k in CUTOFFS]
        print("protocol  " + "  ".join(f"{name:>9}" for name in measures))
        for protocol, values in result["protocols"].items():
            print(f"{protocol:<8}  " + "  ".join(f"{values[name]:9.4f}" for name in measures))


@command(app, "recommend")
def recommend(
    common: Common,
    run: Run,
    domains: OneDomain,
    user: Annotated[str | None, typer.Option("--user", help="a user of the domain (original id)")] = None,
    items: Annotated[str | None, typer.Option("--items", help="item ids seen so far, the oldest first")] = None,
    k: Annotated[int, typer.Option("--k", help="number of items")] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="items of the history may come again")] = False,
) -> None:
    """The next items for a user, or after items named by hand."""
    from antpipe.recommend import recommend as find

    history = [part.strip() for part in items.split(",")] if items else []
    rows = find(common.store, run, domains, user=user, items=history, k=k, include_seen=include_seen, notice=notice)
    if common.json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['rank']:>3}  {row['score']:.4f}  {row['item_id']}  {row['title']}")


@command(app, "status")
def status(
    common: Common, domains: Annotated[str | None, typer.Option("--domains", help="only these domains")] = None
) -> None:
    """What the store holds: fresh, stale (why) or missing (next command)."""
    from antpipe.store import ARTEFACTS

    chosen = names(domains) if domains else common.store.domains()
    states = {name: [common.store.domain(name).state(artefact) for artefact in ARTEFACTS] for name in chosen}
    if common.json:
        print_json({name: [dataclasses.asdict(state) for state in row] for name, row in states.items()})
        return
    if not states:
        print(f"store {common.store.root}: no domain yet; next: antpipe ingest sample --store {common.store.root}")
    for name, row in states.items():
        for state in row:
            hint = "  ".join(part for part in (state.why, state.next_command and f"next: {state.next_command}") if part)
            print(f"{name}  {state.artefact:<9}  {state.status:<7}  {hint}".rstrip())


@command(app, "demo")
def demo(common: Common, config: DemoConfig, force: Force = False) -> None:
    """The whole pipeline on generated shops, ending in a table of scratch, finetune and relearn."""
    from antpipe.demo import run_demo

    keep_freed_memory()
    result = run_demo(common.store, config, force=force, say=notice)
    print_json(result) if common.json else print(result["table"])


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"antpipe {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", help="show the version and exit", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """From raw reviews and a catalogue to a sequential recommender whose transfer is judged."""


def main(arguments: list[str] | None = None) -> None:
    """Run a command line and leave with its exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        check_environment()
        code = app(words or ["--help"], standalone_mode=False) or 0
    except AntpipeError as error:
        code = error.exit_code
        fail(error.message, error.next_command)
    except typer.TyperException as error:
        code = error.exit_code
        fail(error.format_message(), help_command(words))
    except KeyboardInterrupt:  # one that comes before Typer, which turns the others into this code itself
        code = INTERRUPTED
    except OSError as error:
        code = AntpipeError.exit_code
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error), None)
    except Exception as error:  # a bug of antpipe or of a library: one line here, the traceback on demand
        code = AntpipeError.exit_code
        fail(f"unexpected {type(error).__name__}: {error}", f"ANTPIPE_DEBUG=1 {shlex.join(['antpipe', *words])}")
    if code == INTERRUPTED:
        notice("interrupted; what was complete is kept")
    sys.exit(code)


def help_command(words: Sequence[str]) -> str:
    """The help of the command that the first words name, as far as there is one."""
    known, group = ["antpipe"], app
    for word in words:
        groups = {part.name: part.typer_instance for part in group.registered_groups}
        if word not in groups and word not in {part.name for part in group.registered_commands}:
            break
        known.append(word)
        group = groups.get(word) or typer.Typer()
    return " ".join([*known, "--help"])


def fail(message: str, next_command: str | None) -> None:
    """Tell on stderr, in one line, what is wrong, and in another how to go on."""
    if os.environ.get("ANTPIPE_DEBUG") == "1":
        traceback.print_exc()
    notice(f"error: {' '.join(message.splitlines())}")
    if next_command:
        notice(f"next: {next_command}")
