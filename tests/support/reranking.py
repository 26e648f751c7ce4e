"""Runs with a re-ranker in use: small shops are too few to learn one from, so its values are drawn."""

from dataclasses import replace
from pathlib import Path

import torch

from antpipe.store.store import Store
from antpipe.training import checkpoint
from antpipe.training.request import PRETRAIN, RunRequest
from antpipe.training.run import run_stage
from tests.support.trainable import MODEL, TRAINING

RERANKED = replace(MODEL, floor=True, reranker=True)
SPREAD = 0.5  # standard deviation of what is drawn: enough to change the order, and not to decide it alone


def train_reranked(
    store: Store, domain: str, out: Path, source: Path, stage: str = "finetune", learned: str = "Source"
) -> None:
    """A run of a domain that scores its best items again, and the pre-trained run it starts from, unless that is there.

    learned: the domain of the latter.
    """
    training = replace(TRAINING, epochs=1, modalities=("text",))
    if not source.exists():
        run_stage(RunRequest(store, [learned], PRETRAIN, RERANKED, training), source)
    run_stage(RunRequest(store, [domain], stage, RERANKED, training, source), out)
    draw_reranker(out)


def draw_reranker(run: Path) -> None:
    """Give the re-ranker of a run random values, and use it."""
    model, described = checkpoint.load(run)
    reranker, floor = model.reranker, model.floor
    assert reranker is not None
    assert floor is not None
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in reranker.parameters():
            values.normal_(std=SPREAD / max(1, values.shape[-1] if values.dim() else 1) ** 0.5, generator=generator)
        reranker.weight.fill_(1.0)
        if described.stage != "rerank":
            floor["cosine"].fill_(3.0)  # what one epoch learns may not beat the floor, which is then kept
    checkpoint.save(run, model, described)
