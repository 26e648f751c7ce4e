"""Texts of a shard through a sentence encoder: sorted by their number of tokens, in batches of so many tokens.

The library's `encode` sorts by characters and takes so many texts a batch. Here a batch has as many texts as fit a
number of tokens, padding included: long texts come in small batches, short ones in large, and little is padded.
Several batches are computed at the same time (lanes.py), while the next texts become tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from antpipe.errors import DataError
from antpipe.features.encoders.identity import first_line, quiet
from antpipe.features.shards.files import Vectors
from antpipe.features.text.encoders import TextSettings, load_model, prompt_of
from antpipe.features.text.lanes import Lanes, lanes_of, side_by_side

TOKENISED_AT_ONCE = 256  # texts
# Rotary positions that a long batch changes in the model itself, for the batches after it.
CHANGING = ("dynamic", "longrope")


@lru_cache(maxsize=1)
def make_embedder(settings: TextSettings) -> "TextEmbedder":
    """The embedder of these settings; the last one stays loaded, for the next domain. Raises what `load_model` does,
    and DataError where the model cannot be compiled."""
    embedder = TextEmbedder(load_model(settings), settings)
    if settings.compile:
        compile_model(embedder)
    return embedder


def compile_model(embedder: "TextEmbedder") -> None:
    """Compile the transformer, for batches of any size, by a first batch in this thread.

    Lanes must not: while one of them compiled, the others would fail (pytorch issue 126024).
    """
    import torch
    from torch._inductor import config

    _, batch = next(embedder._batches(["red leather wallet, with room for eight cards", "six nickel strings"]))
    before = torch.get_num_threads()
    embedder.compiled_for = embedder._lanes().threads
    torch.set_num_threads(embedder.compiled_for)
    embedder.model[0].compile(dynamic=True)
    try:
        # On the CPU weights become constants, packed once; as an option of `compile` it would have no effect.
        with quiet(), config.patch(freezing=embedder.settings.device == "cpu"):
            embedder._forward(batch)
    except Exception as error:  # the compiler raises whatever it meets in the model
        raise DataError(
            f"text encoder {embedder.settings.located.asked}: cannot be compiled: {first_line(error)}",
            "the same command without --compile",
        ) from error
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Tokens:
    """One text. position: in the shard. features: by name, (length,) each, numpy."""

    position: int
    length: int
    features: Mapping[str, Any]


class TextEmbedder:
    """Embeds the texts of a shard; the same texts give the same bytes, whatever was embedded before."""

    def __init__(self, model: Any, settings: TextSettings) -> None:
        self.model = model
        self.settings = settings
        self.prompt = prompt_of(model, settings)
        self.compiled_for = 0  # threads of torch, which compiled code is bound to

    def __call__(self, contents: Sequence[str], advance: Callable[[int], None]) -> Vectors:
        """Vectors (n, d) float32, all present."""
        found: list[tuple[list[int], Any]] = []
        lanes = self._lanes()
        if self.settings.compile and lanes.threads != self.compiled_for:
            compile_model(self)
        for positions, vectors in side_by_side(self._computed, self._batches(contents), lanes):
            found.append((positions, vectors))
            advance(len(positions))
        values = np.empty((len(contents), found[0][1].shape[1]), np.float32)
        for positions, vectors in found:
            values[positions] = vectors
        return Vectors(values, np.ones(len(contents), np.bool_))

    def _computed(self, batch: tuple[list[int], Mapping[str, Any]]) -> tuple[list[int], Any]:
        positions, features = batch
        return positions, self._forward(features)[: len(positions)]

    def _lanes(self) -> Lanes:
        """One where the work is not torch's on the CPU, or where batches would disturb each other in the model."""
        import torch

        threads = torch.get_num_threads()
        rotary = (str(getattr(module, "rope_type", "")) for module in self.model.modules())
        alone = any(name in kind for kind in rotary for name in CHANGING)
        if alone or self.settings.backend != "torch" or self.settings.device != "cpu":
            return Lanes(1, threads)
        return lanes_of(threads)

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Positions and model input of each batch; about the longest texts first, so that a lack of memory shows at
        once. Texts wait until enough are there that have about as many tokens."""
        order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        waiting: list[Tokens] = []
        common: dict[str, Any] = {}
        for start in range(0, len(order), TOKENISED_AT_ONCE):
            positions = order[start : start + TOKENISED_AT_ONCE]
            features = self.model.preprocess([texts[position] for position in positions], prompt=self.prompt)
            names = token_features(features, len(positions))
            if not names:  # no padded tokens (a bag of words, texts joined for a GPU): as the library batches them
                yield positions, features
                continue
            common = {name: value for name, value in features.items() if name not in names}
            waiting += self._unpadded(positions, {name: features[name].numpy() for name in names})
            for batch in self._cut(waiting, keep=TOKENISED_AT_ONCE):
                yield [text.position for text in batch], {**common, **self._padded(batch)}
        for batch in self._cut(waiting, keep=0):
            yield [text.position for text in batch], {**common, **self._padded(batch)}

    def _cut(self, waiting: list[Tokens], keep: int) -> Iterator[list[Tokens]]:
        """Take the longest texts out, as many as fit a batch, while at least `keep` stay."""
        waiting.sort(key=lambda text: -text.length)
        while waiting:
            count = min(len(waiting), max(1, self.settings.token_budget // waiting[0].length))
            if len(waiting) - count < keep:
                return
            yield waiting[:count]
            del waiting[:count]

    def _unpadded(self, positions: Sequence[int], features: Mapping[str, Any]) -> Iterator[Tokens]:
        lengths = features["attention_mask"].sum(1).tolist()
        left = self._pads_left()
        for row, (position, length) in enumerate(zip(positions, lengths, strict=True)):
            part = slice(-length, None) if left else slice(length)
            yield Tokens(position, length, {name: values[row, part] for name, values in features.items()})

    def _padded(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """The texts of a batch as the tokenizer itself would pad them, (B, length of the longest)."""
        import torch

        if self.settings.compile and len(batch) == 1:  # twice: torch compiles anew for a batch of one
            batch = [*batch, *batch]
        tokenizer, left, width = self.model.tokenizer, self._pads_left(), batch[0].length
        fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        found = {}
        for name, values in batch[0].features.items():
            rows = np.full((len(batch), width), fill.get(name, 0), values.dtype)
            for row, text in zip(rows, batch, strict=True):
                row[slice(width - text.length, None) if left else slice(text.length)] = text.features[name]
            found[name] = torch.from_numpy(rows)
        return found

    def _pads_left(self) -> bool:
        return getattr(self.model.tokenizer, "padding_side", "right") == "left"

    def _forward(self, features: Mapping[str, Any]) -> Any:
        """The model's own modules, then what the settings ask for. Returns (B, d) float32."""
        import torch
        import torch.nn.functional as F

        device = self.model.device
        with torch.inference_mode():
            inputs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in features.items()}
            vectors = self.model(inputs)["sentence_embedding"].float()
            if self.settings.dims is not None:
                vectors = vectors[:, : self.settings.dims]
            if self.settings.normalize:
                vectors = F.normalize(vectors, dim=1)
            return vectors.cpu().numpy()


def token_features(features: Mapping[str, Any], count: int) -> list[str]:
    """Names of the features that hold a value for each token of each text, (count, width); none where the model is
    given anything else for each text."""
    import torch

    mask = features.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or len(mask) != count or "input_ids" not in features:
        return []
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    return list(tensors) if all(value.shape == mask.shape for value in tensors.values()) else []
