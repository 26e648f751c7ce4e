"""`export onnx`: the item tower and the sequence encoder of a run as ONNX, checked against torch by onnxruntime.

items.onnx turns raw features into item vectors; sequence.onnx turns the item vectors of histories into the vectors
expected next. Both vectors have length 1, and their inner product is the cosine of the run's score.
"""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.core.floor import COSINE
from antpipe.core.scoring import history_vectors, unit_rows
from antpipe.errors import AntpipeError, DataError
from antpipe.evaluation.vectors import OpenRun, as_examples, open_for
from antpipe.export.folder import README, Draft, Exported, exporting, require_free
from antpipe.export.score import left_out_in_words, run_facts, warn_of_left_out
from antpipe.runtime.logs import log
from antpipe.store.files import Sequences
from antpipe.store.manifest import lacking
from antpipe.store.store import Store
from antpipe.training import checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    from antpipe.core.model import Ant

NEEDED = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
TOLERANCE = 1e-4  # largest difference between onnxruntime and torch
CHECKED = 256  # items and histories that the check compares
TEXT = """# {domain}: item tower and sequence encoder as ONNX

{score}

| file | input | output |
|---|---|---|
| `items.onnx` | {inputs} | `encoded` (n, {width}), which the sequence encoder reads; `unit` (n, \
{width}), the same with length 1 |
| `sequence.onnx` | `history` (B, L, {width}): `encoded` of each history's items, \
oldest first, L at most {max_len}, anything as padding at the end; `length` (B,): items of each history \
| `query` (B, {width}) of length 1 |
| `example.npz` | | inputs of the first items, and a history |
| `example.py` | | runs both on them: `python example.py` |

Features are those of the run: {features}. Checked by onnxruntime against torch on {items} items and {histories}
histories: the largest difference is {difference:.1e}.
"""
EXAMPLE = '''"""Items and a history through both networks, with onnxruntime alone."""

from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
example = dict(np.load(here / "example.npz"))
history = example.pop("history")  # rows among the example's items, oldest first
items = onnxruntime.InferenceSession(here / "items.onnx", providers=["CPUExecutionProvider"])
sequence = onnxruntime.InferenceSession(here / "sequence.onnx", providers=["CPUExecutionProvider"])

encoded, unit = items.run(["encoded", "unit"], example)
inputs = {"history": encoded[history][None], "length": np.array([len(history)])}
[query] = sequence.run(["query"], inputs)
scores = unit @ query[0]
for row in np.argsort(-scores)[:10]:
    print(f"{scores[row]:.4f}  item {row}")
'''


def export_onnx(store: Store, run: Path, domain: str, out: Path, *, force: bool = False) -> Exported:
    """Write both networks, the check's outcome and an example. domain: whose items and histories check them.

    Raises DataError if the run cannot read the domain, a library is missing or `out` is there, AntpipeError if
    onnxruntime and torch disagree.
    """
    require_free(out, force=force)
    require_libraries()
    opened = open_for(store, run, domain)
    described = checkpoint.describe(run)
    with exporting("onnx", out, force=force) as draft:
        inputs = tower_inputs(opened)
        write_networks(draft.path, opened.model, inputs)
        histories = some_histories(opened)
        differences = parity(draft.path, opened, inputs, histories)
        draft.facts |= {**run_facts(opened, (COSINE,)), "parity": differences, "tolerance": TOLERANCE, "opset": OPSET}
        draft.facts["inputs"] = {name: list(values.shape[1:]) for name, values in inputs.items()}
        _example(draft, inputs)
        largest = max(differences.values())
        checked = {"items_checked": items_checked(opened), "histories_checked": len(histories)}
        draft.figures |= {**checked, "largest_difference": float(f"{largest:.2g}")}
        text = TEXT.format(
            domain=domain,
            score=score_in_words(draft.facts["score"]),
            inputs=", ".join(f"`{name}` {shape_of(one)}" for name, one in inputs.items()),
            width=opened.encoded.shape[1],
            max_len=opened.max_len,
            features=", ".join(f"{name} by {one['encoder']}" for name, one in described.modalities.items()) or "none",
            items=checked["items_checked"],
            histories=len(histories),
            difference=largest,
        )
        draft.text(README, text)
        about = draft.about("onnx")
    warn_of_left_out(draft.facts["score"]["left_out"], "these networks")
    if not draft.facts["score"]["inner_product"][COSINE]:
        log.warning(f"{run}: the networks count nothing in its score: its vectors add too little to its floor")
    return Exported(out, about)


def score_in_words(score: Mapping[str, Any]) -> str:
    """How the inner product of `query` and `unit` enters the run's score."""
    weight = score["inner_product"][COSINE]
    own = "" if weight == 1 else f" It counts {weight:.4g} times."
    return left_out_in_words(score["left_out"]) + own


def shape_of(values: "np.ndarray[Any, Any]") -> str:
    """The shape of an input for n items, in words."""
    return f"(n, {values.shape[1]})" if values.ndim > 1 else "(n,)"


def require_libraries() -> None:
    """Raise DataError, with the command that installs them, unless the libraries of this export are there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise DataError(f"export onnx needs {', '.join(missing)}", "pip install 'antpipe[export]'")


def tower_inputs(opened: OpenRun) -> dict[str, "np.ndarray[Any, Any]"]:
    """The inputs of items.onnx, by name, for the domain's first items: features, their presence if the model asks for
    it, and the row of a learned id."""
    model = opened.model
    read = opened.inputs(np.arange(min(CHECKED, len(opened.items))))
    found = {name: values.numpy() for name, values in read.features.items()}
    if model.config.learned_missing or model.config.modality_dropout:
        found |= {f"{name}_present": values.numpy() for name, values in read.present.items()}
    if model.ids is not None:
        found["row"] = read.ids.numpy()
    return found


def some_histories(opened: OpenRun) -> list["np.ndarray[Any, Any]"]:
    """Histories of the domain's users, cut to what the model reads; without users, made-up ones from the catalogue."""
    if lacking("sequences", opened.domain.manifest()):
        n = min(len(opened.items), CHECKED)
        return [np.arange(n)[-length:] for length in range(1, min(n, opened.max_len) + 1)]
    sequences: Sequences = opened.domain.sequences()
    spans = zip(sequences.offsets[:CHECKED], sequences.offsets[1:][:CHECKED], strict=False)
    return [np.asarray(sequences.items[start:end][-opened.max_len :], np.int64) for start, end in spans]


def write_networks(folder: Path, model: "Ant", inputs: Mapping[str, Any]) -> None:
    """Write items.onnx and sequence.onnx, for any number of items, histories and positions."""
    import torch
    from torch.export import Dim

    tower, encoder = modules(model, list(inputs))
    items, histories = Dim("items"), Dim("histories")
    n = max(2, len(next(iter(inputs.values()))))  # torch.onnx would take a size of 1 for a constant
    given = tuple(torch.from_numpy(np.resize(values, (n, *values.shape[1:]))) for values in inputs.values())
    free: Any = (tuple({0: items} for _ in given),)
    write_network(folder / "items.onnx", tower, given, free, list(inputs), ["encoded", "unit"])
    length = min(3, model.max_len)
    given = (torch.zeros(4, length, model.config.width), torch.full((4,), length))
    positions = {1: Dim("positions", max=model.max_len)} if model.max_len > 1 else {}
    free = ({0: histories, **positions}, {0: histories})
    write_network(folder / "sequence.onnx", encoder, given, free, ["history", "length"], ["query"])


def write_network(
    path: Path, module: "nn.Module", given: Any, free: Any, inputs: list[str], outputs: list[str]
) -> None:
    """Write a module as ONNX. given: examples of its inputs; free: which of their sizes may be any number."""
    import torch

    with quietly(), torch.no_grad():
        # Exported here: given a module, torch.onnx would fall back on fixed sizes without an error.
        program = torch.export.export(module, given, dynamic_shapes=free)
        torch.onnx.export(
            program,
            f=path,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def modules(model: "Ant", names: Sequence[str]) -> tuple["nn.Module", "nn.Module"]:
    """The item tower, which takes the inputs of these names, and the sequence encoder."""
    import torch.nn.functional as F
    from torch import nn

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: "Tensor") -> tuple["Tensor", "Tensor"]:
            """Inputs (n, …) in the order of `names` -> (n, D) encoded and unit."""
            given = dict(zip(names, values, strict=True))
            present = {name: given[f"{name}_present"] for name in model.widths if f"{name}_present" in given}
            fused = self.model.items({name: given[name] for name in model.widths}, given.get("row"), present).fused
            return fused, F.normalize(fused, dim=-1)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, history: "Tensor", length: "Tensor") -> "Tensor":
            """history: (B, L, D), length: (B,) -> (B, D)."""
            states = self.model.encode(history)
            last = (length - 1)[:, None, None].expand(-1, 1, states.shape[-1])
            return F.normalize(states.gather(1, last)[:, 0], dim=-1)

    return Tower().eval(), Encoder().eval()


@contextmanager
def quietly() -> Iterator[None]:
    """Suppress the exporter's own log lines and warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in loggers:
            one.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for one, level in zip(loggers, before, strict=True):
                one.setLevel(level)


def items_checked(opened: OpenRun) -> int:
    """How many items the check reads: a different number than the export, to show that the size is dynamic."""
    return max(1, min(CHECKED, len(opened.items)) - 1)


def parity(folder: Path, opened: OpenRun, inputs: Mapping[str, Any], histories: Sequence[Any]) -> dict[str, float]:
    """The largest differences of onnxruntime to torch, by output. Raises AntpipeError beyond TOLERANCE."""
    import onnxruntime

    def ran(name: str, given: Mapping[str, Any]) -> list[Any]:
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        found: list[Any] = session.run(None, dict(given))
        return found

    checked = items_checked(opened)
    expected = opened.encoded[:checked].numpy()
    encoded, unit = ran("items.onnx", {name: values[:checked] for name, values in inputs.items()})
    lengths = np.array([len(history) for history in histories])
    padded = np.zeros((len(histories), lengths.max()), np.int64)
    for row, history in enumerate(histories):
        padded[row, : len(history)] = history
    read = opened.encoded.numpy()[padded]
    [query] = ran("sequence.onnx", {"history": read, "length": lengths})
    scale = np.linalg.norm(expected, axis=1).max()  # encoded vectors may be long
    found = {
        "encoded": float(np.abs(encoded - expected).max() / max(1.0, scale)),
        "unit": float(np.abs(unit - opened.items[: len(unit), : unit.shape[1]]).max()),
        "query": float(np.abs(query - queries_of(opened, histories)).max()),
    }
    for name, difference in found.items():
        if not difference <= TOLERANCE:
            raise AntpipeError(f"ONNX: {name} differs from torch by {difference:.2g}, more than {TOLERANCE:g}")
    return found


def queries_of(opened: OpenRun, histories: Sequence[Any]) -> "np.ndarray[Any, Any]":
    """Unit vectors (B, D) that the run itself computes for these histories, without the terms of a floor."""
    part = as_examples([np.asarray(history, np.int32) for history in histories], opened.max_len)
    return unit_rows(history_vectors(opened.model, opened.encoded, part))


def _example(draft: Draft, inputs: Mapping[str, Any]) -> None:
    n = min(32, len(next(iter(inputs.values()))))
    history = np.arange(min(3, n))
    np.savez(draft.path / "example.npz", history=history, **{name: values[:n] for name, values in inputs.items()})
    draft.text("example.py", EXAMPLE)
