"""The ANT network (arXiv 2309.10195, section 4): tensors in, tensors out, without files or training.

Shapes: n items, K experts, width D, raw features of width d, B sequences of length L.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from antpipe.core.reranker_network import Reranker
from antpipe.settings.model import FLOOR, MODALITIES, ModelConfig

INIT_STD = 0.02  # for the Transformer, positions and ids, as in BERT (arXiv 1810.04805)
NOISE_FLOOR = 0.01  # minimum scale of the gate noise


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """Dropout: zeroes `share` of the values and scales the others to keep the mean; returns x outside training.

    On a CPU, torch draws one random number per value, which costs as much as a large matrix product; here one 64-bit
    number serves four values. The share is rounded to a multiple of 1 / 65536, and the scale follows the rounded share.
    """
    if not training or not 0 < share < 1 or x.device.type != "cpu":
        return F.dropout(x, share, training)
    cut = round(share * 65536)
    bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    mask = torch.empty(x.shape, dtype=x.dtype)  # not bool: multiplication is many times faster than torch.where
    torch.ge(bits.view(torch.int16)[: x.numel()].view(x.shape), cut - 32768, out=mask)
    return x * mask.mul_(65536 / (65536 - cut))


class _Mix(torch.autograd.Function):
    """Sum over experts of gate times output. Twice as fast as einsum's own gradients, which are n small products."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, outputs: Tensor) -> Tensor:
        """gates: (n, K), outputs: (n, K, D). Returns (n, D)."""
        ctx.save_for_backward(gates, outputs)
        return torch.einsum("nk,nkd->nd", gates, outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gates, outputs = ctx.saved_tensors
        return (outputs * grad[:, None]).sum(-1), gates[..., None] * grad[:, None]


@dataclass(frozen=True)
class ItemVectors:
    """Vectors of n items: `fused` (n, D), and `parts` (n, D) per modality."""

    fused: Tensor
    parts: dict[str, Tensor]


class NoisyGate(nn.Module):
    """Weights of K experts: softmax(x W_g + noise * (softplus(x W_n) + 0.01)); both matrices start at zero."""

    def __init__(self, in_width: int, experts: int) -> None:
        super().__init__()
        self.w_gate = nn.Parameter(torch.empty(in_width, experts))
        self.w_noise = nn.Parameter(torch.empty(in_width, experts))

    def reset(self) -> None:
        nn.init.zeros_(self.w_gate)
        nn.init.zeros_(self.w_noise)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x: (..., d); noise: (..., K) standard normal, or None for no noise. Returns (..., K), rows sum to 1."""
        if noise is None:
            return (x @ self.w_gate).softmax(-1)
        logits, scale = (x @ torch.cat([self.w_gate, self.w_noise], 1)).chunk(2, -1)  # reads x once
        return (logits + noise * (F.softplus(scale) + NOISE_FLOOR)).softmax(-1)


class ModalityExperts(nn.Module):
    """Mixture of K linear experts over one modality's raw features.

    Expert k is W_k (x - b_k) if `shifted` (text and image), else W_k x + c_k (price). All experts share one dropout
    mask per item, so that they are one matrix product (docs/method.md).
    """

    compiled_in_training = True

    def __init__(self, in_width: int, config: ModelConfig, shifted: bool) -> None:
        super().__init__()
        self.dropout, self.noisy = config.item_dropout, config.gate_noise
        self.weight = nn.Parameter(torch.empty(config.experts, config.width, in_width))  # (K, D, d)
        self.shift = nn.Parameter(torch.empty(config.experts, in_width)) if shifted else None  # (K, d)
        self.bias = None if shifted else nn.Parameter(torch.empty(config.experts, config.width))  # (K, D)
        self.gate = NoisyGate(in_width, config.experts)

    def reset(self, init: str) -> None:
        """Reinitialise the experts: `normal` is N(0, .02), `xavier` Xavier-normal per expert. The gate is unchanged."""
        _, width, in_width = self.weight.shape
        nn.init.normal_(self.weight, std=INIT_STD if init == "normal" else math.sqrt(2 / (width + in_width)))
        for constant in (self.shift, self.bias):
            if constant is not None:
                nn.init.zeros_(constant)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x: (n, d); noise: (n, K), drawn here in training if None. Returns (n, D)."""
        if noise is None and self.training and self.noisy:
            noise = torch.randn(len(x), len(self.weight), dtype=self.weight.dtype, device=x.device)
        gates = self.gate(x, noise)  # (n, K)
        x = dropout(x, self.dropout, self.training)
        outputs = F.linear(x, self.weight.flatten(0, 1)).view(x.shape[0], *self.weight.shape[:2])  # (n, K, D)
        if self.shift is not None:
            constant = -torch.einsum("kdi,ki->kd", self.weight, self.shift)  # (K, D)
        else:
            assert self.bias is not None
            constant = self.bias
        mixed: Tensor = _Mix.apply(gates.to(outputs.dtype), outputs) + gates @ constant
        return mixed


class SingleProjection(nn.Module):
    """One linear layer instead of experts and gate (`experts = 0`, the paper's ablation without experts)."""

    compiled_in_training = True

    def __init__(self, in_width: int, config: ModelConfig) -> None:
        super().__init__()
        self.dropout = config.item_dropout
        self.linear = nn.Linear(in_width, config.width)

    def reset(self, init: str) -> None:
        if init == "normal":
            nn.init.normal_(self.linear.weight, std=INIT_STD)
        else:
            nn.init.xavier_normal_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, d). Returns (n, D)."""
        projected: Tensor = self.linear(dropout(x, self.dropout, self.training))
        return projected


class FeedForward(nn.Module):
    """Two linear layers with GELU (erf) in between. The residual is added by TransformerLayer."""

    compiled_in_training = True  # attention is not: it would be compiled again for each number of blocks in a batch

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner = config.inner_width or config.width
        self.inner = nn.Linear(config.width, inner)
        self.outer = nn.Linear(inner, config.width)
        self.dropout = config.hidden_dropout

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D). Returns (..., D)."""
        return dropout(self.outer(F.gelu(self.inner(x))), self.dropout, self.training)


class TransformerLayer(nn.Module):
    """Post-LayerNorm causal self-attention and feed-forward; several feed-forward experts are mixed by a noisy gate."""

    def __init__(self, config: ModelConfig, feed_forward_experts: int) -> None:
        super().__init__()
        self.heads, self.noisy = config.heads, config.gate_noise
        self.hidden_dropout, self.attention_dropout = config.hidden_dropout, config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.attention_norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.feed_forward = nn.ModuleList(FeedForward(config) for _ in range(feed_forward_experts))
        self.gate = NoisyGate(config.width, feed_forward_experts) if feed_forward_experts > 1 else None
        self.output_norm = nn.LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor | None, shapes: Sequence[tuple[int, int]] = ()) -> Tensor:
        """x: (B, L, D), or (T, D) with concatenated blocks of these shapes (B, L). Returns the shape of x.

        mask: (B, 1, L, L) bool, True where a position may attend; None for plain causal attention.
        """
        qkv = self.qkv(x)
        if shapes:
            blocks = torch.split(qkv, [batch * length for batch, length in shapes])
            seen = (self._attend(block.view(*shape, -1), mask) for block, shape in zip(blocks, shapes, strict=True))
            context = torch.cat([block.flatten(0, 1) for block in seen])
        else:
            context = self._attend(qkv, mask)
        return self._after_attention(x, context)

    def last(self, x: Tensor) -> Tensor:
        """x: (B, L, D). Returns the output of `forward` at the last position, (B, D)."""
        # Attention with one query per row would be faster, but its last digits depend on the number of threads.
        context = self._attend(self.qkv(x), None)
        return self._after_attention(x[:, -1], context[:, -1])

    def _attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """qkv: (B, L, 3 D). Returns the context of each position, (B, L, D)."""
        q, k, v = (part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
        context = F.scaled_dot_product_attention(  # (B, heads, L, D / heads)
            q, k, v, mask, dropout_p=self.attention_dropout if self.training else 0.0, is_causal=mask is None
        )
        return context.transpose(1, 2).flatten(2)

    def _after_attention(self, x: Tensor, context: Tensor) -> Tensor:
        """The rest of the layer after attention, position by position; x and context: (..., D)."""
        x = self.attention_norm(x + dropout(self.out(context), self.hidden_dropout, self.training))
        normed: Tensor = self.output_norm(x + self._feed(x))
        return normed

    def _feed(self, x: Tensor) -> Tensor:
        if self.gate is None:
            fed: Tensor = self.feed_forward[0](x)
            return fed
        noise = None
        if self.training and self.noisy:
            noise = torch.randn(*x.shape[:-1], len(self.feed_forward), dtype=x.dtype, device=x.device)
        outputs = torch.stack([expert(x) for expert in self.feed_forward], -2)  # (..., experts, D)
        return torch.einsum("...k,...kd->...d", self.gate(x, noise), outputs)


class Ant(nn.Module):
    """The whole model: item side and sequence side.

    widths: width d of the raw features per modality; names the modalities of the model. max_len: number of positions.
    items: size of the catalogue, required if the model is transductive. A transductive model without modalities knows
    items by their ids only.
    """

    def __init__(self, config: ModelConfig, widths: Mapping[str, int], max_len: int, items: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.widths = {name: widths[name] for name in MODALITIES if name in widths}
        self.max_len = max_len
        self.modalities = nn.ModuleDict(
            {
                name: ModalityExperts(width, config, shifted=name != "price")
                if config.experts
                else SingleProjection(width, config)
                for name, width in self.widths.items()
            }
        )
        self.missing = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(width)) for name, width in self.widths.items() if config.learned_missing}
        )
        self.positions = nn.Embedding(max_len, config.width)
        self.input_norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        plain_layers = config.layers - config.feed_forward_expert_layers
        self.encoder = nn.ModuleList(
            TransformerLayer(config, config.feed_forward_experts if layer >= plain_layers else 1)
            for layer in range(config.layers)
        )
        self.ids = nn.Embedding(items, config.width) if config.transductive and items else None
        self.history_score = nn.Parameter(torch.zeros(())) if config.history_score or config.floor else None
        terms = [name for name in FLOOR if name != "history" and (name != "text" or "text" in self.widths)]
        self.floor = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in terms}) if config.floor else None
        if self.floor is not None and self.history_score is not None:
            for weight in (*self.floor.values(), self.history_score):  # fitted to validation positions instead
                weight.requires_grad_(False)
        self.reranker = Reranker() if config.floor and config.reranker else None
        self.reset()

    def reset_experts(self, init: str) -> None:
        """Reinitialise the experts of all modalities, `xavier` or `normal`. Gates are unchanged."""
        for module in self.modalities.values():
            assert isinstance(module, ModalityExperts | SingleProjection)
            module.reset(init)

    def reset(self) -> None:
        """Reinitialise everything: linear layers and embeddings N(0, .02), biases and gates 0, experts by `init`."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, NoisyGate):
                module.reset()
        for zero in (*self.missing.values(), self.history_score):
            if zero is not None:
                nn.init.zeros_(zero)
        if self.reranker is not None:
            self.reranker.reset()
        if self.floor is not None and self.history_score is not None:
            for name, parameter in (*self.floor.items(), ("history", self.history_score)):
                unit = 1.0 if name == "cosine" else self.config.temperature
                nn.init.constant_(parameter, FLOOR[name] * unit)
        self.reset_experts("xavier" if self.config.init == "xavier" else "normal")

    def items(
        self, features: Mapping[str, Tensor], ids: Tensor | None = None, present: Mapping[str, Tensor] | None = None
    ) -> ItemVectors:
        """Vectors of n items.

        features: raw features (n, d) by modality, zeros where missing. ids: (n,) rows of the id embedding of a
        transductive model; None for items outside its catalogue. present: (n,) bool by modality, required with
        `learned_missing` or `modality_dropout`.
        """
        if self.config.learned_missing or self.config.modality_dropout:
            assert present is not None
            features = {name: self._hide(name, features[name], present[name]) for name in self.widths}
        parts = {name: module(features[name]) for name, module in self.modalities.items()}
        fused = torch.stack(list(parts.values())).sum(0) if parts else None  # (n, D)
        if self.config.fusion and fused is not None and "text" in parts and "image" in parts:
            fused = fused + self.config.fusion * (parts["image"] * parts["text"])
        if self.ids is not None and ids is not None:
            fused = self.ids(ids) if fused is None else fused + self.ids(ids)
        assert fused is not None, "items have neither features nor ids"
        return ItemVectors(fused, parts)

    def _hide(self, name: str, x: Tensor, present: Tensor) -> Tensor:
        """x: (n, d), present: (n,). Replaces missing rows, and rows hidden by modality dropout."""
        if self.training and self.config.modality_dropout:
            present = present & (torch.rand(len(x), device=x.device) >= self.config.modality_dropout)
        stand_in = self.missing[name] if name in self.missing else torch.zeros_like(x[0])
        return torch.where(present[:, None], x, stand_in)

    def embed_sequence(self, items: Tensor) -> Tensor:
        """items: (B, L, D), oldest first. Returns the input of the first layer, (B, L, D)."""
        return self._embed(items + self.positions.weight[: items.shape[1]])

    def _embed(self, placed: Tensor) -> Tensor:
        return dropout(self.input_norm(placed), self.config.hidden_dropout, self.training)

    def encode(self, items: Tensor) -> Tensor:
        """The sequence encoder as defined; the fast paths `encode_blocks` and `encode_last` are tested against it.

        items: (B, L, D), oldest first; padding, if any, at the end, where no earlier position attends to it. Returns
        (B, L, D): at position l, the vector expected after items 0..l.
        """
        x = self.embed_sequence(items)
        for layer in self.encoder:
            x = layer(x, None)
        return x

    def encode_blocks(self, items: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """`encode` of several blocks of sequences at once; everything but attention is one operation for all blocks.

        items: (T, D), concatenated blocks of these shapes (B, L). Returns (T, D).
        """
        places = [torch.arange(length, device=items.device).repeat(count) for count, length in shapes]
        x = self._embed(items + self.positions(torch.cat(places)))
        for layer in self.encoder:
            x = layer(x, None, shapes)
        return x

    def encode_packed(self, items: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """`encode` of sequences that share rows.

        items: (B, L, D); places: (B, L) of each position in its own sequence; mask: (B, 1, L, L) bool, True where a
        position may attend, and at least one True per position. Returns (B, L, D).
        """
        x = self._embed(items + self.positions.weight.index_select(0, places.flatten()).view(*places.shape, -1))
        for layer in self.encoder:
            x = layer(x, mask)
        return x

    def encode_last(self, items: Tensor) -> Tensor:
        """The last position of `encode`, computing the last layer's feed-forward there only.

        items: (B, L, D), oldest first, without padding. Returns (B, D).
        """
        x = self.embed_sequence(items)
        for layer in self.encoder[:-1]:
            x = layer(x, None)
        last = self.encoder[-1]
        assert isinstance(last, TransformerLayer)
        return last.last(x)
