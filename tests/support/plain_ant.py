"""ANT written out from its formulas over weights in the authors' naming: one item, one position at a time."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]
SIDES = {"text": "text", "image": "img", "price": "meta"}


def count(state: State, prefix: str) -> int:
    """How many consecutive numbers follow the prefix, from 0."""
    n = 0
    while any(name.startswith(f"{prefix}.{n}.") for name in state):
        n += 1
    return n


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return state[f"{name}.weight"] @ x + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-8) * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def modality(state: State, name: str, x: Tensor) -> Tensor:
    """x: (d,). The mixture of its experts, (D,)."""
    side = SIDES[name]
    gates = torch.softmax(state[f"{side}_pooling.pooling.w_gate"].T @ x, 0)
    mixed = torch.zeros_like(state["LayerNorm.bias"])
    for k in range(count(state, f"{side}2rec.proj")):
        expert = f"{side}2rec.proj.{k}"
        weight = state[f"{expert}.lin.weight"]
        out = weight @ x + state[f"{expert}.lin.bias"] if name == "price" else weight @ (x - state[f"{expert}.bias"])
        mixed = mixed + gates[k] * out
    return mixed


def item(state: State, features: Mapping[str, Tensor]) -> Tensor:
    """features: one vector (d,) for each of text, image, price. Returns (D,)."""
    parts = {name: modality(state, name, x) for name, x in features.items()}
    return parts["text"] + parts["image"] + parts["price"] + 0.1 * parts["image"] * parts["text"]


def feed_forward(state: State, layer: str, x: Tensor) -> Tensor:
    experts = count(state, f"{layer}.feed_forward")
    if not experts:
        return linear(state, f"{layer}.feed_forward.dense_2", gelu(linear(state, f"{layer}.feed_forward.dense_1", x)))
    gates = torch.softmax(state[f"{layer}.pooling.w_gate"].T @ x, 0)
    outputs = [
        linear(state, f"{layer}.feed_forward.{j}.dense_2", gelu(linear(state, f"{layer}.feed_forward.{j}.dense_1", x)))
        for j in range(experts)
    ]
    return sum((gate * out for gate, out in zip(gates, outputs, strict=True)), torch.zeros_like(x))


def encode(state: State, items: list[Tensor], heads: int) -> Tensor:
    """items: vectors (D,), the oldest first. Returns what the model expects after the last one, (D,)."""
    xs = [layer_norm(state, "LayerNorm", e + state["position_embedding.weight"][n]) for n, e in enumerate(items)]
    for number in range(count(state, "trm_encoder.layer")):
        layer = f"trm_encoder.layer.{number}"
        attention = f"{layer}.multi_head_attention"
        queries, keys, values = (
            [linear(state, f"{attention}.{part}", x).view(heads, -1) for x in xs] for part in ("query", "key", "value")
        )
        outputs = []
        for here, x in enumerate(xs):
            context = []
            for head in range(heads):
                scores = torch.stack([queries[here][head] @ keys[there][head] for there in range(here + 1)])
                weights = torch.softmax(scores / math.sqrt(queries[here].shape[1]), 0)
                context.append(sum(w * values[there][head] for there, w in enumerate(weights)))
            seen = layer_norm(
                state, f"{attention}.LayerNorm", x + linear(state, f"{attention}.dense", torch.cat(context))
            )
            outputs.append(layer_norm(state, f"{layer}.LayerNorm", seen + feed_forward(state, layer, seen)))
        xs = outputs
    return xs[-1]
