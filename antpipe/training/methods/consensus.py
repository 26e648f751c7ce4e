"""Negatives of several sources and consensus distillation, after MDCNS (arXiv 2605.19651).

A peer with another seed is trained alongside, from scratch. Self and peer score the same candidates; the mean of their
scores is the teacher. Everything said of self holds for the peer, with the roles swapped. Only self is used afterwards.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from antpipe.core.batches import Batch, Block
from antpipe.core.catalogue import Ints, ItemInputs
from antpipe.core.losses import Bonus
from antpipe.settings.methods import DISTIL
from antpipe.settings.training import TrainConfig
from antpipe.training.methods.method import Method, Pass, pass_of, softmax_of
from antpipe.training.parallel import World
from antpipe.training.step_loss import Flags

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

PEER = 1  # its number among the random streams of a seed
SELF, OTHER, TEACHER = range(3)


def consensus(model: "Ant", pool: Ints, config: TrainConfig, device: "torch.device") -> Method:
    """The method with a fresh peer. pool: (m,) sorted items of the catalogue that may be candidates."""
    import torch

    peer = peer_of(model, config).to(device)
    allowed = torch.from_numpy(pool).to(device)

    def loss(
        model: "Ant", inputs: ItemInputs, batch: Batch, config: TrainConfig, _: World, new: Flags | None
    ) -> "torch.Tensor":
        both, made = (model, peer), [pass_of(one, inputs, batch) for one in (model, peer)]
        targets = torch.from_numpy(batch.targets).to(device)
        read = torch.from_numpy(windows_read(batch.blocks)).to(device)
        drawn = draw(allowed, torch.cat([read, targets[:, None]], 1), config.peer_candidates)
        chosen = torch.cat([targets[:, None], drawn], 1)  # (P, 1 + N)
        with torch.autocast(device.type, enabled=False):
            scores = [scores_of(one, its, chosen) for one, its in zip(both, made, strict=True)]
            teacher = (scores[SELF] + scores[OTHER]).detach() / 2
            each = [config.distil_weight * distillation(one, teacher, config.distil_temperature) for one in scores]
            if config.method != DISTIL:
                negatives = choose(scores[SELF].detach(), scores[OTHER].detach(), config.peer_top)  # (3, P)
                of_peer = negatives[[OTHER, SELF, TEACHER]]
                weights = (1.0, config.peer_weight, config.teacher_weight)
                each[SELF] = each[SELF] + ranked_above(scores[SELF], negatives, weights)
                each[OTHER] = each[OTHER] + ranked_above(scores[OTHER], of_peer, weights)
        if config.method == DISTIL:
            each = [
                one + softmax_of(its, passed, batch, new) for one, its, passed in zip(each, both, made, strict=True)
            ]
        return each[SELF] + (each[OTHER] - each[OTHER].detach())  # the peer's loss counts for its gradient only

    trained = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    return Method(loss, trained, {f"peer/{name}": tensor for name, tensor in peer.state_dict().items()})


def peer_of(model: "Ant", config: TrainConfig) -> "Ant":
    """A model like this one with other initial values, perhaps with another number of layers."""
    import torch

    from antpipe.core.model import Ant

    shape = replace(model.config, layers=config.peer_layers or model.config.layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.default_rng([config.seed, PEER]).integers(2**63)))
        peer = Ant(shape, model.widths, model.max_len, None if model.ids is None else len(model.ids.weight))
    if model.history_score is not None and peer.history_score is not None:
        peer.history_score.detach().copy_(model.history_score)
    return peer


def windows_read(blocks: "tuple[Block, ...]") -> Ints:
    """(P, L): the items of each position's window, later ones included, as indices into the batch's items."""
    longest = max(block.inputs.shape[1] for block in blocks)
    rows = []
    for block in blocks:
        read = block.inputs[block.positions // block.inputs.shape[1]]
        rows.append(np.pad(read, ((0, 0), (0, longest - read.shape[1])), "edge"))
    return np.concatenate(rows)


def draw(pool: "torch.Tensor", seen: "torch.Tensor", count: int) -> "torch.Tensor":
    """(P, count) items drawn uniformly and independently from the pool (m,) without each row's items seen (P, L).

    pool: sorted, seen items included. A number u drawn below the number of unseen items stands for the u-th of them.
    """
    import torch

    m = len(pool)
    beyond = 2 * m + seen.shape[1]  # stands for a repeated item
    places = torch.searchsorted(pool, seen.contiguous()).sort(1).values
    again = places[:, 1:] == places[:, :-1]
    places[:, 1:][again] = beyond
    places = places.sort(1).values  # each once, then `beyond`
    left = m - (places < m).sum(1, keepdim=True)  # (P, 1)
    number = (torch.rand(len(seen), count, dtype=torch.float64, device=pool.device) * left).long()
    number = torch.minimum(number, left - 1)
    before = (places - torch.arange(seen.shape[1], device=pool.device)).contiguous()
    return pool[number + torch.searchsorted(before, number, right=True)]


def scores_of(model: "Ant", made: Pass, chosen: "torch.Tensor") -> "torch.Tensor":
    """(P, N): the scores of each position's chosen items (P, N), in float32, bonus included."""
    import torch
    import torch.nn.functional as F

    table = F.normalize(made.items.float(), dim=-1)
    read = table.index_select(0, chosen.flatten()).view(*chosen.shape, -1)
    scores = torch.einsum("pd,pnd->pn", F.normalize(made.hidden.float(), dim=-1), read)
    if made.bonus is not None:
        scores = scores + made.bonus.score * pairs_at(made.bonus, chosen, len(made.items))
    return scores / model.config.temperature


def pairs_at(bonus: Bonus, chosen: "torch.Tensor", n: int) -> "torch.Tensor":
    """(P, N): 1 where a row and a chosen item are one of the bonus' pairs, else 0."""
    import torch

    pairs = (bonus.rows * n + bonus.columns).sort().values
    if not len(pairs):
        return torch.zeros(chosen.shape, device=chosen.device)
    wanted = torch.arange(len(chosen), device=chosen.device)[:, None] * n + chosen
    place = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    return (pairs[place] == wanted).float()


def choose(own: "torch.Tensor", other: "torch.Tensor", top: int) -> "torch.Tensor":
    """(3, P): for self, peer and teacher, a random one of the `top` candidates by its score plus the divergence.

    own, other: (P, 1 + N) scores of the target and the candidates. Returns columns of these.
    """
    import torch

    rankings = torch.stack([own, other, (own + other) / 2])[:, :, 1:] + (own - other).abs()[:, 1:]
    highest = rankings.topk(top, dim=-1).indices + 1  # (3, P, top)
    which = torch.randint(top, (*highest.shape[:2], 1), device=own.device)
    return highest.gather(-1, which)[..., 0]


def ranked_above(scores: "torch.Tensor", negatives: "torch.Tensor", weights: tuple[float, ...]) -> "torch.Tensor":
    """The weighted sum of BPR losses, each the mean over positions. scores: (P, 1 + N), the target's first; negatives:
    (3, P) columns of them."""
    import torch.nn.functional as F

    margins = scores[:, 0] - scores.gather(1, negatives.T).T  # (3, P)
    each = F.softplus(-margins).mean(1)
    total: torch.Tensor = (each * each.new_tensor(weights)).sum()
    return total


def distillation(scores: "torch.Tensor", teacher: "torch.Tensor", tau: float) -> "torch.Tensor":
    """tau^2 KL(softmax(teacher / tau) || softmax(scores / tau)), the mean over positions. Both: (P, 1 + N)."""
    import torch.nn.functional as F

    own, wanted = F.log_softmax(scores / tau, dim=-1), F.log_softmax(teacher / tau, dim=-1)
    return tau**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)
