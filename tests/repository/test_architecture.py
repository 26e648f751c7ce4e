"""The structure of the package: who imports whom and when, how long a file may be, what the README lists."""

import ast
import re
from collections.abc import Iterator
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
# What features/ may import besides itself: everything else belongs to training, ranking or the command line.
GROUND = {
    "antpipe.config",
    "antpipe.settings.base",
    "antpipe.errors",
    "antpipe.store.domain",
    "antpipe.runtime.devices",
    "antpipe.runtime.process",
}
HEAVY = {"torch", "torchvision", "sentence_transformers", "open_clip", "timm", "faiss", "ray"}
LONGEST = 350
# Longer on purpose: the one place of all paths and schemas, and that of all settings.


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
    """Everything a module imports, wherever in it."""
    return {name for node in ast.walk(tree_of(module)) for name in imported_by(node, module)}


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below that are executed when the module is loaded: not bodies of functions, nor what is there for
    type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from run_at_import(child)


def imports_at_load(module: str) -> set[str]:
    return {name for node in run_at_import(tree_of(module)) for name in imported_by(node, module)}


def own_modules(module: str) -> set[str]:
    """The modules and packages right below antpipe that a module imports from, wherever in it."""
    own = (name.split(".") for name in all_imports(module))
    return {".".join(parts[:2]) for parts in own if parts[0] == "antpipe" and len(parts) > 1}


def libraries(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_the_rules_see_imports_wherever_they_are() -> None:
    commands = "antpipe.commands.features"
    assert {"antpipe.features", "antpipe.commands.show", "antpipe.store.domain"} <= own_modules(commands)
    assert "antpipe.features.embed_text" in all_imports(commands)  # in a function
    assert "antpipe.store.domain.StageResult" in all_imports(commands) - imports_at_load(commands)
    assert {"antpipe.training.checkpoint", "antpipe.core.stages"} <= imports_at_load(
        "antpipe.training.run"
    )  # from antpipe import …
    assert "typer" in libraries(imports_at_load("antpipe.cli"))


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("antpipe.features")])
def test_features_import_nothing_of_the_training_side(module: str) -> None:
    assert own_modules(module) - {"antpipe.features"} <= GROUND


@pytest.mark.parametrize("module", ["antpipe.core.model", "antpipe.core.losses"])
def test_model_and_losses_import_nothing_of_antpipe_but_the_settings(module: str) -> None:
    assert own_modules(module) <= {"antpipe.config"}


def test_only_the_command_line_imports_typer() -> None:
    named = {name for name in MODULES if "typer" in libraries(all_imports(name))}
    assert {name for name in named if not name.startswith("antpipe.commands.")} == {"antpipe.cli"}


def test_only_the_command_line_is_started_by_the_module() -> None:
    """Nothing but `python -m antpipe` imports the command line: what it does is to be had from Python without it."""
    assert {name for name in MODULES if "antpipe.cli" in all_imports(name)} == {"antpipe.__main__"}
    users = {name for name in MODULES if "antpipe.commands" in own_modules(name)}
    assert {name for name in users if not name.startswith("antpipe.commands.")} == {"antpipe.cli"}


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_are_imported_where_they_are_needed(module: str) -> None:
    allowed = {"torch"} if module in ("antpipe.core.model", "antpipe.core.losses") else set()
    assert libraries(imports_at_load(module)) & HEAVY <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(tree_of(module))


@pytest.mark.parametrize("module", MODULES)
def test_no_file_is_longer_than_one_can_read(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST


# -- README ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme() -> str:
    return (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(names_of(app)))
def test_every_command_is_in_the_readme(readme: str, command: str) -> None:
    assert f"`antpipe {command}" in readme


def test_every_command_in_a_table_of_the_readme_is_one_of_the_app(readme: str) -> None:
    known = set(names_of(app))
    groups = {name.split()[0] for name in known if " " in name}
    rows = [line for line in readme.splitlines() if line.startswith("|")]
    named = [match for row in rows for match in re.findall(r"`antpipe ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?", row)]
    assert named
    assert {word for word, _ in named} <= known | groups
    assert {f"{word} {second}" for word, second in named if word in groups and second} <= known
