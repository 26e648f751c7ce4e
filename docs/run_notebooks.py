"""Check that the notebooks of docs/notebooks/ show what their cells print today.

    python docs/run_notebooks.py            run them and compare (part of make docs-check)
    python docs/run_notebooks.py --update   run them and rewrite their outputs (make docs-check UPDATE=1)

Outputs are compared as docs/check.py compares the words of a page; decimals may differ by TOLERANCE. Pictures must be
there, but are not compared. Of a table only the plain text is kept.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs.check import REPOSITORY, THREADS, difference

FOLDER = REPOSITORY / "docs" / "notebooks"
TOLERANCE = 0.04  # of decimals: a shop of 150 customers, on another machine
SECONDS = 600  # per cell, at most
KEPT = ("text/plain", "image/png")  # kinds of output that a page can show
FRAME = re.compile("[─═┌┬┐╞╪╡└┴┘]+")  # of a table: as wide as its figures are long
Notebook = dict[str, Any]  # as in the file


def notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def rerun(path: Path) -> Notebook:
    """The notebook with the outputs that its cells have now. Raises nbclient's CellExecutionError if one fails."""
    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        notebook = nbformat.read(path, as_version=4)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ANTPIPE_")}
        environment |= {
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": str(THREADS),
            "OMP_WAIT_POLICY": "PASSIVE",  # as the command line sets it: other work on this machine costs little
            "CUDA_VISIBLE_DEVICES": "",
            "IPYTHONDIR": folder,
        }
        # Sockets in a folder: nobody else on this machine can talk to the kernel, and no port is taken.
        config = Config({"KernelManager": {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}})
        client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", config=config)
        client.execute(env=environment, cwd=folder)
    done: Notebook = json.loads(nbformat.writes(notebook))
    for number, cell in enumerate(done["cells"]):
        cell["id"] = f"cell-{number:02}"  # the same in every file
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["outputs"] = [kept(output) for output in joined(cell["outputs"])]
    done["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return done


def joined(outputs: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Outputs, with what was printed in pieces as one, and without stderr, on which libraries talk of this machine."""
    last: dict[str, Any] = {}
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            last["text"] = [*last["text"], *output["text"]]
            continue
        if last:
            yield last
        last = output
    if last:
        yield last


def kept(output: dict[str, Any]) -> dict[str, Any]:
    """An output without the forms of it that no page shows."""
    if "data" not in output:
        return output
    parts = {part: {kind: output[part][kind] for kind in KEPT if kind in output[part]} for part in ("data", "metadata")}
    return output | parts


def text_of(cell: dict[str, Any]) -> str:
    """What a cell printed; a picture counts as a word."""
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        parts.append("(picture)" if "image/png" in data else "".join(output.get("text", data.get("text/plain", ""))))
    return FRAME.sub("", "\n".join(parts))


def differences(shown: Notebook, found: Notebook) -> list[str]:
    """What is not in the file as the cells print it now: one line per cell."""
    lines = []
    for number, (before, now) in enumerate(zip(shown["cells"], found["cells"], strict=True), 1):
        differs = difference(text_of(before).splitlines(), text_of(now), TOLERANCE)
        lines += [f"cell {number}: {differs}"] if differs else []
    return lines


def write(path: Path, notebook: Notebook) -> None:
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--update", action="store_true", help="rewrite the outputs")
    parser.add_argument("names", nargs="*", help="only these files of docs/notebooks")
    given = parser.parse_args()
    failed = 0
    for path in [FOLDER / Path(name).name for name in given.names] or notebooks():
        began = time.monotonic()
        found = rerun(path)
        wrong = differences(read(path), found)
        failed += bool(wrong)
        print(*(f"docs/notebooks/{path.name}: {line}" for line in wrong), sep="\n", end="\n" if wrong else "")
        if given.update:
            write(path, found)
        print(f"docs/notebooks/{path.name}: run in {time.monotonic() - began:.0f} s, {len(wrong)} cells differ")
    return 1 if failed and not given.update else 0


if __name__ == "__main__":
    sys.exit(main())
