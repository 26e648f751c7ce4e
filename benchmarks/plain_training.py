"""ANT's training step written the straightforward way, over the weights of an antpipe model.

One prefix per row, padded to the full length; every position of every row is projected by each expert in turn;
attention is two matrix products and a softmax; the loss is the logarithm of a quotient of exponentials. The mathematics
are those of docs/method.md, so without dropout the loss equals antpipe's.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from antpipe.core.batches import Windows
from antpipe.core.model import NOISE_FLOOR, Ant, ModalityExperts, TransformerLayer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Prefixes, one per row. items: (B, L) global rows, padded at the end with -1; length, target, user: (B,)."""

    items: Ints
    length: Ints
    target: Ints
    user: Ints


def rows_of(windows: Windows, chosen: Ints, max_len: int) -> Rows:
    """Every prefix of the chosen windows as a row of its own."""
    items, length, target, user = [], [], [], []
    for window in chosen:
        first, whole = windows.first[window], windows.length[window]
        for n in range(whole - windows.targets[window] + 1, whole + 1):
            row = np.full(max_len, -1)
            row[:n] = windows.items[first : first + n]
            items.append(row)
            length.append(n)
            target.append(windows.items[first + n])
            user.append(windows.user[window])
    return Rows(np.array(items), np.array(length), np.array(target), np.array(user))


def modality(experts: ModalityExperts, x: Tensor, training: bool) -> Tensor:
    """x: (..., d). Returns (..., D)."""
    logits = x @ experts.gate.w_gate
    if training and experts.noisy:
        noise = torch.randn_like(logits)
        logits = logits + noise * (F.softplus(x @ experts.gate.w_noise) + NOISE_FLOOR)
    gates = logits.softmax(-1)  # (..., K)
    outputs = []
    for k, weight in enumerate(experts.weight):
        dropped = F.dropout(x, experts.dropout, training)
        if experts.shift is not None:
            outputs.append((dropped - experts.shift[k]) @ weight.T)
        else:
            assert experts.bias is not None
            outputs.append(dropped @ weight.T + experts.bias[k])
    return (torch.stack(outputs, -2) * gates[..., None]).sum(-2)


def items_of(model: Ant, tables: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """rows: (...) of the tables; -1 is their last row, of zeros. Returns fused vectors (..., D), and the parts."""
    parts = {}
    for name, experts in model.modalities.items():
        assert isinstance(experts, ModalityExperts)
        parts[name] = modality(experts, tables[name][rows], model.training)
    fused = torch.stack(list(parts.values())).sum(0)
    if "text" in parts and "image" in parts:
        fused = fused + model.config.fusion * parts["image"] * parts["text"]
    return fused, parts


def layer_of(layer: TransformerLayer, x: Tensor, mask: Tensor, training: bool) -> Tensor:
    """x: (B, L, D); mask: (B, 1, L, L), zero or -inf."""
    batch, length, width = x.shape
    q, k, v = (part.view(batch, length, layer.heads, -1).transpose(1, 2) for part in layer.qkv(x).split(width, -1))
    scores = q @ k.transpose(-1, -2) / math.sqrt(width / layer.heads) + mask  # (B, heads, L, L)
    weights = F.dropout(scores.softmax(-1), layer.attention_dropout, training)
    context = layer.out((weights @ v).transpose(1, 2).reshape(batch, length, width))
    x = layer.attention_norm(x + F.dropout(context, layer.hidden_dropout, training))
    fed = layer.feed_forward[0]
    out = fed.outer(F.gelu(fed.inner(x)))
    return layer.output_norm(x + F.dropout(out, layer.hidden_dropout, training))


def last_hidden(model: Ant, items: Tensor, length: Tensor) -> Tensor:
    """items: (B, L, D); length: (B,). The vector expected after each row's last item, (B, D)."""
    full = items.shape[1]
    x = model.input_norm(items + model.positions.weight[:full])
    x = F.dropout(x, model.config.hidden_dropout, model.training)
    real = torch.arange(full, device=items.device) < length[:, None]
    allowed = real[:, None, None, :] & torch.ones(full, full, dtype=torch.bool, device=items.device).tril()
    mask = torch.zeros(allowed.shape, device=items.device).masked_fill(~allowed, -1e9)
    for layer in model.encoder:
        assert isinstance(layer, TransformerLayer)
        x = layer_of(layer, x, mask, model.training)
    return x[torch.arange(len(x), device=x.device), length - 1]


def negative_log(scores: Tensor, labels: Tensor, allowed: Tensor | None = None) -> Tensor:
    weights = scores.exp()
    if allowed is not None:
        weights = weights * allowed
    return -(weights[torch.arange(len(labels), device=labels.device), labels] / weights.sum(1)).log().mean()


def plain_target_loss(model: Ant, tables: dict[str, Tensor], rows: Rows) -> Tensor:
    """Full softmax over the catalogue, which is projected again in every step."""
    device = tables["text"].device
    sequence, _ = items_of(model, tables, torch.from_numpy(rows.items).to(device))
    hidden = last_hidden(model, sequence, torch.from_numpy(rows.length).to(device))
    catalogue, _ = items_of(model, tables, torch.arange(len(tables["text"]) - 1, device=device))
    scores = F.normalize(hidden, dim=-1) @ F.normalize(catalogue, dim=-1).T / model.config.temperature
    return negative_log(scores, torch.from_numpy(rows.target).to(device))


def plain_pretraining_loss(
    model: Ant, tables: dict[str, Tensor], has_image: Tensor, rows: Rows, image_text_weight: float
) -> Tensor:
    """In-batch InfoNCE, and image to text of the next items. has_image: (N,) bool."""
    device = tables["text"].device
    target, user = (torch.from_numpy(ids).to(device) for ids in (rows.target, rows.user))
    sequence, _ = items_of(model, tables, torch.from_numpy(rows.items).to(device))
    hidden = last_hidden(model, sequence, torch.from_numpy(rows.length).to(device))
    fused, parts = items_of(model, tables, target)
    own = torch.arange(len(target), device=device)
    others = (target[:, None] != target) & (user[:, None] != user)
    allowed = (others | torch.eye(len(target), dtype=torch.bool, device=device)).float()
    scores = F.normalize(hidden, dim=-1) @ F.normalize(fused, dim=-1).T / model.config.temperature
    loss = negative_log(scores, own, allowed)
    there = has_image[target]
    images, texts = F.normalize(parts["image"], dim=-1), F.normalize(parts["text"], dim=-1)
    pairs = negative_log(images[there] @ texts.T / model.config.temperature, own[there])
    return loss + image_text_weight * pairs
