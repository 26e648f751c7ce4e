"""How a function becomes a command: which flags it has, in which panel of its help, and what it is called with.

A command is a thin layer over a function of antpipe/api: `command(…, takes=api.train)` adds one flag for each setting
that function takes, so that a setting's default, explanation and flag live in one place (antpipe/settings). The flags
that were given come back in `Call.settings`, ready to be passed on.
"""

import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperGroup

from antpipe.api.settings import default_store, settings_of
from antpipe.errors import Interrupted
from antpipe.runtime.logs import log
from antpipe.runtime.terminal import quieter, shown
from antpipe.settings.base import Config, as_word, base_type, flag_name, parts_of
from antpipe.settings.model import EMBEDDED
from antpipe.settings.presets import PRESETS
from antpipe.store.store import Store
from antpipe.training.parallel import world_of

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA, FEATURES, TRAINING, JUDGING, USING = "Data", "Features", "Training", "Judging", "Using"
# The order of the pipeline, which is that of the help.
PIPELINE = (
    "ingest",
    "import",
    "stats",
    "status",
    "doctor",
    "store",
    "fetch-images",
    "embed-text",
    "embed-image",
    "quantize-price",
    "whiten",
    "build-sequences",
    "subset",
    "encoders",
    "train",
    "tune",
    "evaluate",
    "compare",
    "report",
    "plot",
    "recommend",
    "similar",
    "serve",
    "export",
    "hub",
    "demo",
)
# Panels of a command's help. Flags without a panel come first: those that nearly every call needs.
INPUT, OUTPUT, RUN = "Input", "Output", "Run"
PANELS = (None, INPUT, "Model", "Optimisation")  # in this order; others follow, then these:
LAST_PANELS = (RUN, OUTPUT)
# Settings whose flags come first, without a panel.
MOST_USED = (
    "stage",
    "trials",
    "search",
    "epochs",
    "encoder",
    "arms",
    "seeds",
    "min_user",
    "min_item",
    "bins",
    "max_len",
    "split",
    "map",
    "k",
    "by",
    "host",
    "port",
)


class Ordered(TyperGroup):
    """A group that lists its commands in the order of the pipeline, and its own subcommands as they were added."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 -- Typer passes it
        return sorted(self.commands, key=lambda name: PIPELINE.index(name) if name in PIPELINE else len(PIPELINE))


def new_app(help: str | None = None) -> typer.Typer:
    return typer.Typer(
        cls=Ordered,
        help=help,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = new_app()
ingest = new_app("Turn raw reviews and a catalogue into domains of the store.")
app.add_typer(ingest, name="ingest", rich_help_panel=DATA)
imports = new_app("Import what other tools made.")
app.add_typer(imports, name="import", rich_help_panel=DATA)
store = new_app("Maintain the folder of a store.")
app.add_typer(store, name="store", rich_help_panel=DATA)
exports = new_app("Export a run or a domain to other tools.")
app.add_typer(exports, name="export", rich_help_panel=USING)
hub = new_app("Upload runs to a model hub, and download them.")
app.add_typer(hub, name="hub", rich_help_panel=USING)


def plain(text: str) -> str:
    """Text that Rich does not read as markup."""
    return text.replace("[", r"\[")


def flag(name: str, about: str, panel: str | None = None) -> Any:
    """A flag of a command that is not a setting."""
    return typer.Option(name, help=plain(about), rich_help_panel=panel, show_default=False)


LIST = "list"  # marks a flag whose value is a list separated by commas: a repeated one adds to it
Domains = Annotated[str, flag("--domains", "domains, separated by commas"), LIST]
SomeDomains = Annotated[str | None, flag("--domains", "only these domains [default: all]"), LIST]
OneDomain = Annotated[str, flag("--domains", "the domain")]
Name = Annotated[str, typer.Option("--domain", "--domains", help="name of the domain")]
Modality = Annotated[str, flag("--modality", " or ".join(EMBEDDED))]
RunFolder = Annotated[Path, flag("--run", "folder of a trained run")]
Force = Annotated[bool, flag("--force", "rebuild what is fresh, replace what exists", RUN)]
DryRun = Annotated[bool, flag("--dry-run", "show what would be done; write and download nothing", RUN)]


@dataclasses.dataclass(frozen=True)
class Call:
    """What every command is called with. settings: keywords of the function of antpipe/api that it calls."""

    store: Store
    json: bool
    settings: dict[str, Any]

    def show(self, value: Any, text: str) -> None:
        """Print the result on stdout, as text or as JSON. If there are several processes, only the first prints."""
        if world_of().rank:
            return
        if self.json:
            narrow = not (sys.stdout.encoding or "").lower().startswith("utf")
            text = json.dumps(as_data(value), indent=1, ensure_ascii=narrow)
        if text:
            print(shown(text))


def as_data(value: Any) -> Any:
    """Dataclasses inside lists and mappings as mappings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, dict):
        return {key: as_data(part) for key, part in value.items()}
    return [as_data(part) for part in value] if isinstance(value, list | tuple) else value


def command(
    group: typer.Typer,
    name: str,
    panel: str | None = None,
    takes: Callable[..., Any] | None = None,
    examples: "Sequence[str]" = (),
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command.

    takes: a function of antpipe/api; its settings become flags, and with a preset and a TOML file they reach the
    command in `Call.settings`. examples: command lines, for the end of the help.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        declared = [one for one in inspect.signature(function).parameters.values() if one.annotation is not Call]
        options = [repeatable(one.replace(kind=inspect.Parameter.KEYWORD_ONLY)) for one in declared]
        configs = settings_of(takes) if takes is not None else ()
        settings = [setting_flag(config, field) for config in configs for field in dataclasses.fields(config)]
        options += sorted(settings, key=lambda one: one.name not in MOST_USED)
        accepted = inspect.signature(takes).parameters if takes is not None else {}
        common = [
            keyword(
                "store", Path | None, flag("--store", "folder of the store [$ANTPIPE_STORE or ./antpipe-store]", INPUT)
            ),
            keyword("as_json", bool, flag("--json", "print results as JSON", OUTPUT), default=False),
            keyword("quiet", bool, flag("--quiet", "only results, warnings and errors", OUTPUT), default=False),
        ]
        if "preset" in accepted:
            about = f"settings that go together, in place of defaults ({', '.join(PRESETS)})"
            common.append(keyword("preset", str | None, flag("--preset", about)))
        if "config" in accepted:
            common.append(keyword("config", Path | None, flag("--config", "TOML file with settings", INPUT)))

        @wraps(function)
        def call(**given: Any) -> None:
            given |= {name: together(given[name]) for name in lists}
            store, as_json, quiet = given.pop("store"), given.pop("as_json"), given.pop("quiet")
            own = {one.name: given.pop(one.name) for one in declared}
            settings = {key: value for key, value in given.items() if value is not None}
            try:
                with quieter() if quiet else nullcontext():
                    function(Call(Store(store) if store else default_store(), as_json, settings), **own)
            except Interrupted as interrupted:  # Typer ends the program with the right code, but prints nothing
                log.error(interrupted.message)
                if interrupted.next_command:
                    log.error(f"next: {interrupted.next_command}")
                raise

        lists = [one.name for one in options if is_list(one)]
        parameters = sorted([*options, *common], key=lambda one: place_of(panel_of(one)))
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        epilog = "\n".join(("Example:" if len(examples) == 1 else "Examples:", *examples)) if examples else None
        group.command(name, epilog=epilog and plain(epilog), rich_help_panel=panel)(call)
        return function

    return register


def panel_of(parameter: inspect.Parameter) -> str | None:
    """The panel of a flag; None for those that come first."""
    option = next((part for part in getattr(parameter.annotation, "__metadata__", ())), None)
    return getattr(option, "rich_help_panel", None)


def place_of(panel: str | None) -> int:
    """Where a panel stands in the help."""
    if panel in LAST_PANELS:
        return len(PANELS) + 1 + LAST_PANELS.index(panel)
    return PANELS.index(panel) if panel in PANELS else len(PANELS)


def keyword(name: str, kind: Any, option: Any, default: Any = None, marks: tuple[str, ...] = ()) -> inspect.Parameter:
    annotation = Annotated[kind, option, *marks]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def setting_flag(config: type[Config], field: "dataclasses.Field[Any]") -> inspect.Parameter:
    """The flag of a setting: None if it is not given; its help names choices and default."""
    kind = base_type(field.type)
    kind = kind if kind in (int, float, bool, Path) else str
    default = as_word(field.default) if isinstance(field.default, tuple) else field.default
    about = field.metadata["about"]
    about += f" ({', '.join(field.metadata['choices'])})" if field.metadata["choices"] else ""
    about += "" if default in (None, "") else f" [default: {default}]"
    name = f"--{flag_name(field.name)}"
    panel = None if field.name in MOST_USED else field.metadata["panel"] or config.panel
    option = flag(f"{name}/--no-{name[2:]}" if kind is bool else name, about, panel)
    if get_origin(base_type(field.type)) is tuple:
        return repeatable(keyword(field.name, kind | None, option, marks=(LIST,)))
    return keyword(field.name, kind | None, option)


def is_list(parameter: inspect.Parameter) -> bool:
    """Whether the flag of a parameter is marked as a LIST."""
    return LIST in getattr(parameter.annotation, "__metadata__", ())


def repeatable(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter, and if its flag is marked as a LIST, with all values that a command line gives it."""
    if not is_list(parameter):
        return parameter
    kind, *about = get_args(parameter.annotation)
    about[0].metavar = "<str>"  # in the help, it is the list as one word
    several = list[str] if kind is str else list[str] | None
    return parameter.replace(annotation=Annotated[several, *about])


def together(words: "Sequence[str] | None") -> str | None:
    """The values of a repeated flag as one list, separated by commas; None if it is not given."""
    if not words or len(words) == 1:
        return words[0] if words else None
    return as_word(tuple(part for word in words for part in parts_of(word)))
