"""The examples in the docstrings of the public API run as they are printed."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import antpipe as ant
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.usefixtures("here")
FUNCTIONS = [name for name in ant.__all__ if inspect.isfunction(getattr(ant, name))]
WITHOUT_EXAMPLE = {
    "demo",  # minutes
    "export_onnx",  # slow, and needs a library that is not always there
    "hub_push",  # needs a hub
    "hub_pull",
    "serve",  # runs until Ctrl-C
    "import_ant_checkpoint",  # needs a file that only the authors' code writes
}
METHODS = ("open", "evaluate", "ranks", "item_vectors", "user_vectors", "recommend", "recommend_to_file", "similar")
EXAMPLES = ["Store", "Domain", *FUNCTIONS, *(f"Run.{name}" for name in METHODS)]


def public(name: str) -> object:
    found: object = ant
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - WITHOUT_EXAMPLE))
def test_the_example_of_a_public_function_runs(
    name: str,
) -> None:
    tests = doctest.DocTestFinder(recurse=False).find(public(name), name, globs={"ant": ant})
    examples = [test for test in tests if test.examples]
    assert examples, f"{name} has no example"
    if name == "service":
        pytest.importorskip("fastapi", reason="pip install 'antpipe[serve]'")
    for test in examples:
        printed: list[str] = []
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=printed.append)
        assert result.failed == 0, "".join(printed)


@pytest.mark.parametrize("name", ant.__all__)
def test_every_public_name_is_explained(name: str) -> None:
    assert inspect.getdoc(getattr(ant, name))


def test_names_for_type_checkers_are_those_that_are_loaded() -> None:
    source = Path(ant.__file__).read_text(encoding="utf-8")
    block = source.partition("if TYPE_CHECKING:")[2].partition("_HOMES")[0]
    declared = {word.strip(" ,()") for line in block.splitlines() for word in line.rpartition(" import ")[2].split(",")}
    assert declared - {""} == set(ant.__all__)


def test_a_public_name_comes_from_the_module_that_defines_it() -> None:
    for home, names in ant._HOMES.items():
        module = importlib.import_module(home)
        assert {name for name in names if getattr(module, name) is not getattr(ant, name)} == set()


def test_no_public_name_is_hidden_by_a_module_of_that_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(ant.__path__)}
    assert modules & set(ant.__all__) == set()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'learn'"):
        ant.learn  # noqa: B018


def test_the_python_of_the_readme_uses_names_and_keywords_that_exist() -> None:
    """The keywords of each call of a public function are in its signature, and the attributes of a run exist."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    assert len(calls) > 8
    for call in calls:
        owner, _, name = ast.unparse(call.func).rpartition(".")
        signature = inspect.signature(getattr({"ant": ant, "run": ant.Run}[owner], name))
        assert {keyword.arg for keyword in call.keywords} <= set(signature.parameters), name
