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

from antpipe import __version__, show
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
from antpipe.process import tune_process
from antpipe.progress import progress

if TYPE_CHECKING:
    from antpipe.store import StageResult, Store

C = TypeVar("C", bound=Config)

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip
ingest = typer.Typer(help="Turn raw reviews and a catalogue into domains of the store.")
app.add_typer(ingest, name="ingest")
imports = typer.Typer(help="Take over what other tools made.")
app.add_typer(imports, name="import")

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

    def show(self, value: Any, text: str) -> None:
        """The result on stdout, as text or as JSON."""
        text = json.dumps(plain(value), indent=1, ensure_ascii=False) if self.json else text
        if text:
            print(text)


def plain(value: Any) -> Any:
    """Dataclasses inside lists and mappings as mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


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

    results = [stage(common.store, source, name, config, force=force, announce=notice) for name in names(domains)]
    common.show(results, show.artefacts(results))


@command(ingest, "sample")
def ingest_sample(common: Common, config: SampleConfig, force: Force = False) -> None:
    """Generated shops, for a first try without data (see docs/sample.md)."""
    from antpipe.features.ingest.sample import ingest_sample as stage

    results = stage(common.store, config, force=force)
    common.show(results, show.artefacts(results))


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
    results, partial = [], []
    for name in names(domains):
        try:
            with progress(f"{name} {what}") as bar:
                results.append(stage(name, bar))
        except PartialError as error:
            partial.append(error)
    common.show(results, show.artefacts(results))
    if partial:
        raise PartialError("; ".join(error.message for error in partial), partial[0].next_command)


@command(app, "quantize-price")
def quantize_price(common: Common, domains: Domains, config: PriceConfig, force: Force = False) -> None:
    """Prices to codes of quantile bins."""
    from antpipe.features.quantize_price import quantize_price as stage

    results = stage(common.store, names(domains), config, force=force)
    common.show(results, show.artefacts(results))


@command(app, "build-sequences")
def build_sequences(common: Common, domains: Domains, config: SequenceConfig, force: Force = False) -> None:
    """Interactions to one chronological sequence a user, split into train, valid and test."""
    from antpipe.features.build_sequences import build_sequences as stage

    results = stage(common.store, names(domains), config, force=force, warn=notice)
    common.show(results, show.artefacts(results))


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
    resume: Annotated[bool, typer.Option("--resume", help="go on where an interrupted run in --out stands")] = False,
    force: Force = False,
) -> None:
    """Train one stage: pretrain on sources; scratch, finetune or relearn on a target."""
    from antpipe import checkpoint
    from antpipe.resume import read_cost
    from antpipe.runs import plan_run, run_stage
    from antpipe.transfer import group_table

    if source is not None:
        model = common.resolve(ModelConfig, checkpoint.describe(source).model_config())
    request: dict[str, Any] = {
        "model_config": model, "config": config, "source": source, "own_stages": common.toml.get("stage", {}),
    }  # fmt: skip
    if dry_run:
        plan = plan_run(common.store, names(domains), stage, **request, notice=notice)
        rows = group_table(plan.actions, plan.model)
        common.show(rows, show.groups(rows))
        return
    if out is None:
        raise UsageError("--out is missing: name the folder of the run, or add --dry-run")
    with progress(stage) as update:

        def epoch(row: dict[str, Any]) -> None:
            update(row["epoch"], config.epochs, show.inline({name: row.get(name, "") for name in SHOWN_EPOCH}))

        def step(epochs_done: float, figures: dict[str, float]) -> None:
            update(epochs_done, config.epochs, show.inline(figures))

        done, was_there = run_stage(
            common.store, names(domains), stage, **request, out=out, force=force, resume=resume, notice=notice,
            progress=epoch, stepping=step,
        )  # fmt: skip
    if not was_there:
        notice(f"{out}: {show.inline(read_cost(out))}")
    common.show(done, show.run(out, done, "fresh" if was_there else "trained"))


@command(imports, "ant-checkpoint")
def import_ant_checkpoint(
    common: Common,
    path: Annotated[Path, typer.Argument(help="torch file, .safetensors, or .npz of the authors' arrays")],
    out: Annotated[Path, typer.Option("--out", help="folder of the run")],
    heads: Annotated[int, typer.Option("--heads", help="attention heads, which no shape tells")] = ModelConfig.heads,
    fusion: Annotated[float, typer.Option("--fusion", help="weight of image * text")] = ModelConfig.fusion,
    transductive: Annotated[bool, typer.Option("--transductive", help="with its item ids")] = False,
    force: Force = False,
) -> None:
    """A checkpoint of the authors' code, to evaluate, finetune or relearn from."""
    from antpipe.interop.ant_checkpoint import import_checkpoint

    done, was_there = import_checkpoint(
        path, out, heads=heads, fusion=fusion, transductive=transductive, force=force, notice=notice
    )
    common.show(done, show.run(out, done, "fresh" if was_there else "imported"))


@command(app, "evaluate")
def evaluate(common: Common, run: Run, domains: Domains, config: EvaluateConfig) -> None:
    """Full ranking over the target's catalogue, under both protocols."""
    from antpipe.evaluate import evaluate_run

    results = [evaluate_run(common.store, run, name, config, notice) for name in names(domains)]
    common.show(results, show.evaluations(results))


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
    common.show(rows, show.recommendations(rows))


@command(app, "status")
def status(
    common: Common,
    domains: Annotated[str | None, typer.Option("--domains", help="only these domains")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="read all files and compare their content hashes")] = False,
) -> None:
    """What the store holds: fresh, stale (why) or missing (next command)."""
    from antpipe.store import ARTEFACTS, Domain

    look = Domain.verify if verify else Domain.state
    chosen = names(domains) if domains else common.store.domains()
    states = {name: [look(common.store.domain(name), artefact) for artefact in ARTEFACTS] for name in chosen}
    nothing = f"store {common.store.root}: no domain yet; next: antpipe ingest sample --store {common.store.root}"
    common.show(states, show.states(states) or nothing)


@command(app, "demo")
def demo(common: Common, config: DemoConfig, force: Force = False) -> None:
    """The whole pipeline on generated shops, ending in a table of scratch, finetune and relearn."""
    from antpipe.demo import run_demo

    result = run_demo(common.store, config, force=force, say=notice)
    common.show(result, result["table"])


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
    tune_process()
    try:
        check_environment()
        code = app(words or ["--help"], standalone_mode=False) or 0
    except AntpipeError as error:
        code = error.exit_code
        fail(error.message, error.next_command or (help_command(words) if isinstance(error, UsageError) else None))
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
