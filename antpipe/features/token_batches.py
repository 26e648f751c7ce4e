"""Texts of a shard through a sentence encoder: sorted by their number of tokens, in batches of so many tokens.

The library's `encode` sorts by characters and takes so many texts a batch. Here a batch has as many texts as fit a
number of tokens, padding included: long texts come in small batches, short ones in large, and little is padded.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from antpipe.features.shard_files import Vectors
from antpipe.features.text_encoders import TextSettings, load_model, prompt_of

TOKENISED_AT_ONCE = 256  # texts


@lru_cache(maxsize=1)
def make_embedder(settings: TextSettings) -> "TextEmbedder":
    """The embedder of these settings; the last one stays loaded, for the next domain. Raises what `load_model` does."""
    model = load_model(settings)
    if settings.compile:
        model[0].compile(dynamic=True)
    return TextEmbedder(model, settings)


@dataclass(frozen=True)
class Tokens:
    """One text. position: in the shard. features: by name, (length,) each."""

    position: int
    length: int
    features: Mapping[str, Any]


class TextEmbedder:
    """Embeds the texts of a shard; the same texts give the same bytes, whatever was embedded before."""

    def __init__(self, model: Any, settings: TextSettings) -> None:
        self.model = model
        self.settings = settings
        self.prompt = prompt_of(model, settings)

    def __call__(self, contents: Sequence[str], advance: Callable[[int], None]) -> Vectors:
        """Vectors (n, d) float32, all present."""
        found: list[tuple[list[int], Any]] = []
        for positions, features in self._batches(contents):
            found.append((positions, self._forward(features)))
            advance(len(positions))
        values = np.empty((len(contents), found[0][1].shape[1]), np.float32)
        for positions, vectors in found:
            values[positions] = vectors
        return Vectors(values, np.ones(len(contents), np.bool_))

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Positions and model input of each batch; the longest texts first, so that a lack of memory shows at once."""
        order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        tokens: list[Tokens] = []
        common: dict[str, Any] = {}
        for start in range(0, len(order), TOKENISED_AT_ONCE):
            positions = order[start : start + TOKENISED_AT_ONCE]
            features = self.model.preprocess([texts[position] for position in positions], prompt=self.prompt)
            names = token_features(features, len(positions))
            if not names:  # no padded tokens (a bag of words, texts joined for a GPU): as the library batches them
                yield positions, features
                continue
            common = {name: value for name, value in features.items() if name not in names}
            tokens += self._unpadded(positions, {name: features[name] for name in names})
        tokens.sort(key=lambda text: -text.length)
        while tokens:
            width = tokens[0].length
            count = max(1, self.settings.token_budget // width)
            batch, tokens = tokens[:count], tokens[count:]
            yield [text.position for text in batch], {**common, **self._padded(batch, width)}

    def _unpadded(self, positions: Sequence[int], features: Mapping[str, Any]) -> Iterator[Tokens]:
        lengths = features["attention_mask"].sum(1).tolist()
        for row, (position, length) in enumerate(zip(positions, lengths, strict=True)):
            part = slice(-length, None) if self._pads_left() else slice(length)
            yield Tokens(position, length, {name: values[row, part] for name, values in features.items()})

    def _padded(self, batch: Sequence[Tokens], width: int) -> dict[str, Any]:
        """The texts of a batch as the tokenizer itself would pad them, (B, width)."""
        import torch

        tokenizer = self.model.tokenizer
        fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        found = {}
        for name, values in batch[0].features.items():
            found[name] = torch.full((len(batch), width), fill.get(name, 0), dtype=values.dtype)
            for row, text in enumerate(batch):
                part = slice(width - text.length, None) if self._pads_left() else slice(text.length)
                found[name][row, part] = text.features[name]
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
