"""The authors' ANT (github.com/ninglab/ANT): their checkpoints as our models, and our models with their names.

docs/method.md lists where their code and antpipe differ on purpose.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from antpipe.errors import DataError, UsageError
from antpipe.runtime.logs import log
from antpipe.settings.model import MODALITIES, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from antpipe.core.model import Ant

# Their names for a modality's experts, its gate, and the single projection that replaces both in their mode NoMoE.
SIDES = {
    "text": ("text2rec", "text_pooling", "text2proj"),
    "image": ("img2rec", "img_pooling", "img2proj"),
    "price": ("meta2rec", "meta_pooling", "meta2proj"),
}
POSITIONS = "position_embedding.weight"
IDS = "item_embedding.weight"  # row 0 is the padding, row i + 1 is item i
# Fine-tuned checkpoints also hold the raw features and row numbers of one catalogue.
TABLES = ("indices", *(f"EmbeddingTable.{name}_embed.weight" for name in ("text", "img", "price")))
HOLDERS = ("state_dict", "model")  # entries under which training tools store the tensors
WRAPPERS = ("module.", "model.", "_orig_mod.")  # prefixes of DataParallel, Lightning modules and torch.compile


@dataclass(frozen=True)
class Counterpart:
    """One of our tensors and the tensors of theirs that hold its values.

    Theirs are `stacked` along a new first axis (one per expert), or else concatenated along the first axis (query, key
    and value, or just one tensor).
    """

    ours: str
    theirs: tuple[str, ...]
    stacked: bool = False

    def join(self, tensors: Mapping[str, "Tensor"]) -> "Tensor":
        import torch

        parts = [tensors[name] for name in self.theirs]
        return torch.stack(parts) if self.stacked else torch.cat(parts)

    def split(self, tensor: "Tensor") -> Iterator[tuple[str, "Tensor"]]:
        parts = tensor.unbind() if self.stacked else tensor.chunk(len(self.theirs))
        return zip(self.theirs, parts, strict=True)


def counterparts(model: "Ant") -> list[Counterpart]:
    """All tensors of a model with their counterparts; learned vectors for missing modalities have none."""
    found = [Counterpart("positions.weight", (POSITIONS,))]
    if model.ids is not None:
        found.append(Counterpart("ids.weight", (IDS,)))
    for modality in model.widths:
        found += _of_modality(modality, model.config.experts)
    for kind in ("weight", "bias"):
        found.append(Counterpart(f"input_norm.{kind}", (f"LayerNorm.{kind}",)))
    plain_layers = model.config.layers - model.config.feed_forward_expert_layers
    for layer in range(model.config.layers):
        found += _of_layer(layer, model.config.feed_forward_experts if layer >= plain_layers else 1)
    return found


def _of_modality(modality: str, experts: int) -> list[Counterpart]:
    projections, gate, single = SIDES[modality]
    ours = f"modalities.{modality}"
    if not experts:
        return [Counterpart(f"{ours}.linear.{kind}", (f"{single}.{kind}",)) for kind in ("weight", "bias")]
    constant, theirs = ("bias", "lin.bias") if modality == "price" else ("shift", "bias")
    return [
        Counterpart(f"{ours}.{name}", tuple(f"{projections}.proj.{k}.{part}" for k in range(experts)), stacked=True)
        for name, part in (("weight", "lin.weight"), (constant, theirs))
    ] + [Counterpart(f"{ours}.gate.{name}", (f"{gate}.pooling.{name}",)) for name in ("w_gate", "w_noise")]


def _of_layer(layer: int, feed_forward_experts: int) -> list[Counterpart]:
    ours, theirs = f"encoder.{layer}", f"trm_encoder.layer.{layer}"
    attention, several = f"{theirs}.multi_head_attention", feed_forward_experts > 1
    names = [("out", f"{attention}.dense"), ("attention_norm", f"{attention}.LayerNorm")]
    for j in range(feed_forward_experts):
        place = f"{theirs}.feed_forward.{j}" if several else f"{theirs}.feed_forward"
        names += [(f"feed_forward.{j}.inner", f"{place}.dense_1"), (f"feed_forward.{j}.outer", f"{place}.dense_2")]
    names.append(("output_norm", f"{theirs}.LayerNorm"))
    found = []
    for kind in ("weight", "bias"):
        qkv = tuple(f"{attention}.{part}.{kind}" for part in ("query", "key", "value"))
        found.append(Counterpart(f"{ours}.qkv.{kind}", qkv))
        found += [Counterpart(f"{ours}.{a}.{kind}", (f"{b}.{kind}",)) for a, b in names]
    gate = [Counterpart(f"{ours}.gate.{name}", (f"{theirs}.pooling.{name}",)) for name in ("w_gate", "w_noise")]
    return found + gate if several else found


def from_reference(
    mapping: Mapping[str, Any],
    *,
    heads: int = ModelConfig.heads,
    transductive: bool = ModelConfig.transductive,
    modalities: Sequence[str] = MODALITIES,
    fusion: float = ModelConfig.fusion,
    temperature: float = ModelConfig.temperature,
) -> "Ant":
    """Our model with the weights of theirs, in evaluation mode.

    mapping: tensors or arrays by the names of their `state_dict`, directly or under `state_dict` or `model`, with or
    without a wrapper's prefix. Sizes are read from the shapes. Arguments give what shapes cannot: heads, fusion (beta),
    temperature (tau), and `modalities` for their modes NoText, NoImage and NoPrice, whose checkpoints hold the unused
    modality all the same. transductive: load the item ids too, without the row of the padding.

    The weights are float64 if any of theirs is, else float32. Logs known entries that the model does not need. Raises
    DataError naming an entry that is missing, unknown, of the wrong shape or not finite, and UsageError if `heads` does
    not divide the width or a modality is unknown.
    """
    import torch

    from antpipe.core.model import Ant

    if not modalities or not set(modalities) <= set(SIDES):
        raise UsageError(f"modalities {', '.join(modalities) or 'none'}: choose from {', '.join(SIDES)}")
    tensors = unwrap(mapping)
    config = replace(
        _settings(tensors, modalities, heads), transductive=transductive, fusion=fusion, temperature=temperature
    )
    left_out = _left_out(tensors, modalities, config)
    tensors = _parameters({name: tensor for name, tensor in tensors.items() if name not in left_out})
    if transductive:
        _matrix(tensors, IDS)
        tensors[IDS] = tensors[IDS][1:]
    max_len, _ = _matrix(tensors, POSITIONS)
    with torch.device("meta"):  # shapes only: draws no random numbers
        model = Ant(config, _widths(tensors, modalities, config), max_len, len(tensors[IDS]) if transductive else None)
    _check_shapes(tensors, model)
    model.load_state_dict({pair.ours: pair.join(tensors) for pair in counterparts(model)}, assign=True)
    if left_out:
        log.info(f"left out, because the model does not need them: {', '.join(left_out)}")
    return model.eval()


def to_reference(model: "Ant") -> dict[str, "Tensor"]:
    """A model's weights by the authors' names, as from_reference reads them; item ids get a padding row of zeros.

    Raises DataError for a parameter that their model does not have.
    """
    import torch

    tensors = rename(model, model.state_dict())
    if model.ids is not None:
        tensors[IDS] = torch.cat([torch.zeros_like(tensors[IDS][:1]), tensors[IDS]])
    return tensors


def rename(model: "Ant", tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Tensors by our parameter names (weights or gradients, all or some) renamed to the authors' names.

    Raises DataError for a parameter that their model does not have.
    """
    pairs = {pair.ours: pair for pair in counterparts(model)}
    if extra := sorted(set(tensors) - set(pairs)):
        raise DataError(f"{extra[0]}: the authors' model has no such parameter")
    return {name: part for ours, tensor in tensors.items() for name, part in pairs[ours].split(tensor)}


def unwrap(mapping: Mapping[str, Any]) -> dict[str, "Tensor"]:
    """The tensors of a checkpoint on the CPU, without the holder and the prefix of a training tool."""
    import torch

    for holder in HOLDERS:
        if isinstance(mapping.get(holder), Mapping):
            mapping = mapping[holder]
    tensors: dict[str, Tensor] = {}
    for name, value in mapping.items():
        try:
            tensor = value.detach().cpu() if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
        except (TypeError, AttributeError):
            kind = getattr(value, "dtype", type(value).__name__)
            raise DataError(f"{name} holds {kind}, not numbers") from None
        tensors[str(name)] = tensor
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _settings(tensors: Mapping[str, "Tensor"], modalities: Sequence[str], heads: int) -> ModelConfig:
    """Settings of the model as given by the shapes. Raises UsageError if they do not allow this number of heads."""
    _, width = _matrix(tensors, POSITIONS)
    if heads < 1 or width % heads:
        raise UsageError(f"--heads {heads}: does not divide the checkpoint's width {width}")
    layers = _count(tensors, r"trm_encoder\.layer\.(\d+)\.")
    feed_forwards = [_count(tensors, rf"trm_encoder\.layer\.{n}\.feed_forward\.(\d+)\.") for n in range(layers)]
    several = [count for count in feed_forwards if count]
    if 1 in several or len(set(several)) > 1 or feed_forwards != [0] * (layers - len(several)) + several:
        raise DataError(
            f"trm_encoder: the layers have {feed_forwards} feed-forward experts; "
            "there must be none, or the same number (2 or more) in the last layers"
        )
    place = "trm_encoder.layer.0.feed_forward." + ("0." if len(several) == layers > 0 else "")
    inner, _ = _matrix(tensors, f"{place}dense_1.weight")
    return ModelConfig(
        width=width,
        experts=_experts(tensors, modalities),
        layers=layers,
        heads=heads,
        inner_width=None if inner == width else inner,
        feed_forward_experts=several[0] if several else 1,
        feed_forward_expert_layers=len(several) or 1,
    )


def _experts(tensors: Mapping[str, "Tensor"], modalities: Sequence[str]) -> int:
    """The number of experts per modality; 0 if there is a single projection instead (their mode NoMoE)."""
    singles = tuple(f"{SIDES[modality][2]}." for modality in modalities)
    if any(name.startswith(singles) for name in tensors):
        return 0
    counts = {SIDES[name][0]: _count(tensors, rf"{SIDES[name][0]}\.proj\.(\d+)\.") for name in modalities}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise DataError(f"all modalities must have the same number of experts, but they have: {shown}")
    experts = next(iter(counts.values()))
    if not experts:
        raise DataError(f"no experts: entries such as {next(iter(counts))}.proj.0.lin.weight are missing")
    return experts


def _widths(tensors: Mapping[str, "Tensor"], modalities: Sequence[str], config: ModelConfig) -> dict[str, int]:
    """Width of each modality's raw features."""
    names = {
        modality: f"{SIDES[modality][0]}.proj.0.lin.weight" if config.experts else f"{SIDES[modality][2]}.weight"
        for modality in modalities
    }
    return {modality: _matrix(tensors, name)[1] for modality, name in names.items()}


def _count(tensors: Mapping[str, "Tensor"], pattern: str) -> int:
    """The number of distinct values of the pattern's group."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def _matrix(tensors: Mapping[str, "Tensor"], name: str) -> tuple[int, int]:
    """The shape of a required entry with two axes. Raises DataError if it is missing or no matrix."""
    if name not in tensors:
        raise DataError(f"{name} is missing: not a checkpoint of ANT, or an incomplete one")
    shape = tuple(tensors[name].shape)
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"{name} has shape {shape}; it must be a matrix")
    return shape


def _left_out(tensors: Mapping[str, "Tensor"], modalities: Sequence[str], config: ModelConfig) -> list[str]:
    """Known entries of their checkpoints that this model does not need."""
    whole = {*TABLES} if config.transductive else {*TABLES, IDS}
    parts: set[str] = set()
    for modality, (projections, gate, single) in SIDES.items():
        if modality not in modalities:
            parts |= {projections, gate, single}
        elif not config.experts:  # NoMoE also builds experts and gates, but never uses them
            parts |= {projections, gate}
    return sorted(name for name in tensors if name in whole or name.partition(".")[0] in parts)


def _parameters(tensors: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """All tensors in one precision. Raises DataError for values that are not finite floating-point numbers."""
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise DataError(f"{name} holds {tensor.dtype}, not floating-point numbers")
        if wrong := int((~torch.isfinite(tensor)).sum()):
            raise DataError(f"{name}: {wrong} of {tensor.numel()} values are not finite")
    double = any(tensor.dtype == torch.float64 for tensor in tensors.values())
    return {name: tensor.to(torch.float64 if double else torch.float32) for name, tensor in tensors.items()}


def _check_shapes(tensors: Mapping[str, "Tensor"], model: "Ant") -> None:
    """Raises DataError for a missing or unknown entry, or one whose shape contradicts the sizes read from others."""
    ours = model.state_dict()
    wanted = {name: part.shape for pair in counterparts(model) for name, part in pair.split(ours[pair.ours])}
    odd = [f"{name} is missing" for name in sorted(set(wanted) - set(tensors))]
    odd += [f"{name} is unknown" for name in sorted(set(tensors) - set(wanted))]
    if odd:
        more = f" (and {len(odd) - 10} more)" if len(odd) > 10 else ""
        raise DataError(f"not the entries of an ANT checkpoint: {'; '.join(odd[:10])}{more}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise DataError(f"{name} has shape {tuple(tensors[name].shape)}; the other entries require {tuple(shape)}")
