"""The structure of the package: the order of its folders, its core, and what is imported when."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import antpipe
from antpipe.cli import app
from tests.conftest import REPOSITORY
from tests.support.commands import names_of

PACKAGE = Path(antpipe.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# Each layer imports only from layers before it. Features and core stand side by side.
LAYERS = (
    {"errors"},
    {"runtime"},
    {"settings"},
    {"store"},
    {"features", "core"},
    {"training"},
    {"evaluation"},
    {"serving"},
    {"export"},
    {"comparison", "tuning"},
    {"interop"},
    {"report"},
    {"upkeep"},
    {"demonstration"},
    {"api"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
# What a person reads who wants to know how a run is trained and judged: all that these two modules reach.
CORE_STARTS = ("antpipe.training.run", "antpipe.evaluation.evaluate")
CORE_FOLDERS = {"errors", "runtime", "settings", "store", "core", "training", "evaluation"}
# Steps and ranks of a GPU are a second reading: what they compute is that of the core, in fixed shapes.
GPU = "antpipe.core.gpu"
# How files are kept whole, and damage noticed, is another: the core writes and reads through it.
WHOLE = {f"antpipe.store.{name}" for name in ("commit", "documents", "entries", "tables")}
WHOLE |= {"antpipe.runtime.files", "antpipe.runtime.words"}
# Methods beyond ANT, with their settings, are a third: no run of another stage needs them.
METHODS = ("antpipe.training.methods", "antpipe.settings.methods")
# What is known without training, and what training is worth beside it, is a fourth: ANT's own score has none of it.
FLOOR = {f"antpipe.{name}" for name in ("core.untrained", "core.words", "core.floor", "training.worth")}
# A fifth is what one shop teaches of ranking another: the network, what it reads, and how it learns.
RERANKER = {f"antpipe.{name}" for name in ("core.reranker", "core.reranker_network", "training.rehearsal")}
CORE_LINES, GPU_LINES, WHOLE_LINES, METHODS_LINES, FLOOR_LINES = 6700, 780, 520, 1490, 800
RERANKER_LINES = 566
TENSORS_ONLY = ("antpipe.core.model", "antpipe.core.reranker_network", "antpipe.core.losses", "antpipe.core.gpu.static")
HEAVY = {"torch", "torchvision", "sentence_transformers", "open_clip", "timm", "faiss", "ray"}


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imported_by(node: ast.AST, module: str) -> Iterator[str]:
    """Full names that one import statement of a module may load; `from a import b` counts as a and a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        package = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)


def all_imports(module: str) -> set[str]:
    """Everything a module imports: at load, inside functions, and for type checkers."""
    return {name for node in ast.walk(tree_of(module)) for name in imported_by(node, module)}


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node` that are executed when the module is loaded: no function bodies, no TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from run_at_import(child)


def imports_at_load(module: str) -> set[str]:
    return {name for node in run_at_import(tree_of(module)) for name in imported_by(node, module)}


def own_imports(module: str) -> set[str]:
    """The modules of antpipe that a module imports, wherever in it."""
    return {name for name in all_imports(module) if name in MODULES and name != "antpipe"} - {module}


def folder_of(module: str) -> str:
    return module.split(".")[1]


def libraries(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def reach(starts: tuple[str, ...]) -> set[str]:
    """These modules, what they import, what that imports, and so on."""
    found: set[str] = set()
    left = list(starts)
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += own_imports(module)
    return found


def test_the_rules_see_imports_wherever_they_are() -> None:
    commands = "antpipe.commands.features"
    assert "antpipe.store.next_command" in own_imports("antpipe.store.domain")
    assert "typer" in libraries(imports_at_load("antpipe.cli"))
    assert "torch" in libraries(all_imports("antpipe.training.loop"))  # in functions
    assert "torch" not in libraries(imports_at_load("antpipe.training.loop"))
    assert "antpipe.commands.flags" in own_imports(commands)


def test_every_folder_has_its_place_in_the_order() -> None:
    assert {folder_of(module) for module in MODULES if "." in module} == set(HEIGHT)


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_a_module_imports_only_from_its_own_folder_and_those_before_it(module: str) -> None:
    own = folder_of(module)
    others = {folder_of(name) for name in own_imports(module)} - {own}
    assert {name for name in others if HEIGHT[name] >= HEIGHT[own]} == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_core_can_be_read_in_an_afternoon() -> None:
    core = reach(CORE_STARTS)
    assert {folder_of(module) for module in core} <= CORE_FOLDERS
    for_gpu = {module for module in core if module.startswith(GPU)}
    methods = {module for module in MODULES if module.startswith(METHODS)}
    assert lines_of(core - for_gpu - methods - WHOLE - FLOOR - RERANKER) <= CORE_LINES
    assert lines_of(methods) <= METHODS_LINES
    assert lines_of(for_gpu) <= GPU_LINES
    assert core >= WHOLE | FLOOR | RERANKER
    assert lines_of(WHOLE) <= WHOLE_LINES
    assert lines_of(FLOOR) <= FLOOR_LINES
    assert lines_of(RERANKER) <= RERANKER_LINES


def lines_of(modules: set[str]) -> int:
    return sum(len(MODULES[module].read_text(encoding="utf-8").splitlines()) for module in modules)


@pytest.mark.parametrize("module", ["antpipe.core.model", "antpipe.core.losses"])
def test_model_and_losses_import_nothing_of_antpipe_but_the_settings(module: str) -> None:
    assert {folder_of(name) for name in own_imports(module)} - {"core"} <= {"settings"}


def test_only_the_command_line_imports_typer() -> None:
    assert {folder_of(name) for name in MODULES if "typer" in libraries(all_imports(name))} == {"cli", "commands"}


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_where_they_are_needed(module: str) -> None:
    allowed = {"torch"} if module in TENSORS_ONLY else set()
    assert libraries(imports_at_load(module)) & HEAVY <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(tree_of(module))


@pytest.mark.parametrize("module", MODULES)
def test_every_document_a_module_points_at_is_in_the_repository(module: str) -> None:
    for name in re.findall(r"\bdocs/[\w/-]+\.md\b", MODULES[module].read_text(encoding="utf-8")):
        assert (REPOSITORY / name).is_file(), name


# -- the page of commands -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands_page() -> str:
    return (REPOSITORY / "docs" / "pipeline.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(names_of(app)))
def test_every_command_is_on_the_page_of_commands(commands_page: str, command: str) -> None:
    assert f"`antpipe {command}" in commands_page


def test_every_command_on_that_page_is_one_of_the_app(commands_page: str) -> None:
    known = set(names_of(app))
    groups = {name.split()[0] for name in known if " " in name}
    rows = [line for line in commands_page.splitlines() if line.startswith("|")]
    named = [match for row in rows for match in re.findall(r"`antpipe ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", row)]
    assert named
    assert {word for word, _ in named} <= known | groups
    assert {f"{word} {second}" for word, second in named if word in groups and second} <= known
