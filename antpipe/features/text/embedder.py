"""Runs the texts of a shard through a sentence encoder, sorted by length, in batches with a token budget.

The library's `encode` sorts by characters and takes a fixed number of texts per batch. Here a batch has as many texts
as fit the budget, padding included: long texts come in small batches, short ones in large ones, and little is padded.

Several batches are computed at once, in lanes, while the next texts are tokenised. A lane is a thread of this process
with a batch and a few torch threads of its own: a model's small operators do not use many threads well, and each waits
for its slowest thread, but batches do not wait for each other. A batch's result depends on its number of torch threads,
not on its lane or on the other lanes. torch computes outside Python's lock.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from antpipe.errors import DataError
from antpipe.features.encoders.located import first_line, quiet
from antpipe.features.shards.folder import ShardVectors
from antpipe.features.text.encoders import TextSettings, load_model, prompt_of

TOKENISED_AT_ONCE, TOKENISED_FOR_GPU = 256, 4096  # texts; batches on a GPU are large
LANES_ON_GPU = 2  # one launches kernels while the other waits for its vectors
MOST_LANES = 8  # each holds a batch in memory, and only one at a time can run Python code between operators
AHEAD = 2  # batches per lane that are prepared or finished but not yet taken, so that no lane has to wait
# Kinds of rotary positions with which a long batch changes the model itself, and so the batches after it.
CHANGING = ("dynamic", "longrope")


@lru_cache(maxsize=1)
def make_embedder(settings: TextSettings) -> "TextEmbedder":
    """The embedder for these settings; the last one stays loaded, for the next domain.

    Raises what `load_model` raises, and DataError if the model cannot be compiled.
    """
    embedder = TextEmbedder(load_model(settings), settings)
    if settings.compile:
        compile_model(embedder)
    return embedder


def compile_model(embedder: "TextEmbedder") -> None:
    """Compile the transformer for batches of any size, by running a first batch in this thread.

    Lanes must not do it: while one of them compiled, the others would fail (pytorch issue 126024).
    """
    import torch
    from torch._inductor import config

    _, batch = next(embedder._batches(["red leather wallet, with room for eight cards", "six nickel strings"]))
    before = torch.get_num_threads()
    embedder.compiled_for = embedder._lanes().threads
    torch.set_num_threads(embedder.compiled_for)
    embedder.model[0].compile(dynamic=True)
    try:
        # On the CPU, weights become constants that are packed once; as an option of `compile` this has no effect.
        with quiet(), config.patch(freezing=embedder.settings.device == "cpu"):
            embedder._forward(batch)
    except Exception as error:  # the compiler raises nearly anything
        name = embedder.settings.located.asked
        raise DataError(
            f"text encoder {name}: cannot be compiled; leave --compile out: {first_line(error)}",
            "antpipe embed-text --help",
        ) from error
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Tokens:
    """One tokenised text. position: in the shard. features: (length,) arrays by name."""

    position: int
    length: int
    features: Mapping[str, Any]


class TextEmbedder:
    """Embeds the texts of a shard. The same texts give the same bytes, whatever was embedded before."""

    def __init__(self, model: Any, settings: TextSettings) -> None:
        self.model = model
        self.settings = settings
        self.prompt = prompt_of(model, settings)
        self.compiled_for = 0  # torch threads, which compiled code is bound to

    def __call__(self, contents: Sequence[str], advance: Callable[[int], None]) -> ShardVectors:
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
        return ShardVectors(values, np.ones(len(contents), np.bool_))

    def _computed(self, batch: tuple[list[int], Mapping[str, Any]]) -> tuple[list[int], Any]:
        positions, features = batch
        return positions, self._forward(features)[: len(positions)]

    def _lanes(self) -> "Lanes":
        """One lane if another library computes, or if batches would affect each other through the model."""
        import torch

        threads = torch.get_num_threads()
        rotary = (str(getattr(module, "rope_type", "")) for module in self.model.modules())
        alone = any(name in kind for kind in rotary for name in CHANGING)
        if alone or self.settings.backend != "torch":
            return Lanes(1, threads)
        return lanes_of(threads) if self.settings.device == "cpu" else Lanes(LANES_ON_GPU, threads)

    def _batches(self, texts: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Positions and model input of each batch.

        The longest texts come first, roughly, so that running out of memory shows at once. Texts wait until there are
        enough of about the same length.
        """
        at_once = TOKENISED_AT_ONCE if self.settings.device == "cpu" else TOKENISED_FOR_GPU
        order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        waiting: list[Tokens] = []
        common: dict[str, Any] = {}
        for start in range(0, len(order), at_once):
            positions = order[start : start + at_once]
            features = self.model.preprocess([texts[position] for position in positions], prompt=self.prompt)
            names = token_features(features, len(positions))
            if not names:  # no padded tokens (a bag of words, texts joined for a GPU): batch as the library does
                yield positions, features
                continue
            common = {name: value for name, value in features.items() if name not in names}
            waiting += self._unpadded(positions, {name: features[name].numpy() for name in names})
            for batch in self._cut(waiting, keep=at_once):
                yield [text.position for text in batch], {**common, **self._padded(batch)}
        for batch in self._cut(waiting, keep=0):
            yield [text.position for text in batch], {**common, **self._padded(batch)}

    def _cut(self, waiting: list[Tokens], keep: int) -> Iterator[list[Tokens]]:
        """Take out the longest texts, as many as fit a batch, while at least `keep` stay."""
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
        """The batch as the tokenizer itself would pad it, (B, length of the longest text)."""
        import torch

        if self.settings.compile and len(batch) == 1:  # twice: torch compiles again for a batch of one
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
        """The model's own modules, then cut and normalised as the settings ask. Returns (B, d) float32."""
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
    """Names of the features with one value per token of each text, (count, width).

    Empty if the model takes anything else per text.
    """
    import torch

    mask = features.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or len(mask) != count or "input_ids" not in features:
        return []
    tensors = {name: value for name, value in features.items() if isinstance(value, torch.Tensor)}
    return list(tensors) if all(value.shape == mask.shape for value in tensors.values()) else []


# -- lanes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lanes:
    """`count` batches at once, each with `threads` torch threads."""

    count: int
    threads: int


def lanes_of(threads: int) -> Lanes:
    """The lanes that share this many torch threads."""
    each = -(-threads // MOST_LANES)
    return Lanes(threads // each, each)


def side_by_side(compute: Callable[[Any], Any], batches: Iterable[Any], lanes: Lanes) -> Iterator[Any]:
    """Yields compute(batch) for each batch, in order, while this thread draws further batches.

    Raises a batch's error when its turn comes; batches not begun by then are dropped.
    """
    import torch

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(lanes.count, "lane", initializer=torch.set_num_threads, initargs=(lanes.threads,))
    under_way: deque[Future[Any]] = deque()
    try:
        for batch in batches:
            under_way.append(pool.submit(compute, batch))
            if len(under_way) >= AHEAD * lanes.count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:  # a second Ctrl-C ends the wait
            torch.set_num_threads(before)  # lanes change the default for new threads of this process
