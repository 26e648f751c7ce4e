"""`antpipe demo`: every stage on the generated shops, then scratch, finetune and relearn on the small one.

Nothing is chosen by looking at the outcome: the table shows what came out, averaged over seeds.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.build_sequences import build_sequences
from antpipe.features.embed_image import embed_image
from antpipe.features.embed_text import embed_text
from antpipe.features.ingest_sample import SOURCES, TARGET, ingest_sample
from antpipe.features.quantize_price import quantize_price
from antpipe.settings.demo import DemoConfig
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import ImageConfig, PriceConfig, SequenceConfig, TextConfig
from antpipe.settings.ingest import SampleConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.store import Store
from antpipe.training.run import run_stage
from antpipe.training.state import has_state

ARMS = ("scratch", "finetune", "relearn")
SHOWN = ("recall@10", "ndcg@10", "mrr@10", "recall@50")


def run_demo(store: Store, config: DemoConfig, *, force: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Run the pipeline on the sample shops; runs are kept in STORE-runs beside the store.

    Returns {"target", "seeds", "arms": figures by arm, "table": text}. say: gets a line a step.
    """
    prepare(store, force=force, say=say)
    runs = store.root.with_name(f"{store.root.name}-runs")
    model = replace(ModelConfig(), width=config.width, experts=config.experts)
    settings: dict[str, Any] = {"store": store, "model_config": model, "force": force, "notice": say}

    def quiet(row: dict[str, Any]) -> None:
        """Epochs are in RUN/metrics.jsonl."""

    def unfinished(run: Path) -> bool:
        """Whether to go on with a run that an earlier demonstration left."""
        return not force and has_state(run)

    source = runs / "pretrain"
    base = replace(TrainConfig(), eval_every=config.eval_every)
    training = replace(base, epochs=config.pretrain_epochs, batch_size=config.pretrain_batch)
    done, _ = run_stage(
        domains=SOURCES,
        stage="pretrain",
        out=source,
        config=training,
        source=None,
        resume=unfinished(source),
        progress=quiet,
        **settings,
    )
    say(f"pretrain on {', '.join(SOURCES)}: best epoch {done.best_epoch} of {done.epochs}")
    figures: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for arm in ARMS:
        for seed in range(config.seeds):
            out = runs / f"{arm}-{seed}"
            training = replace(base, epochs=config.epochs, batch_size=config.batch, seed=seed)
            start = None if arm == "scratch" else source
            run_stage(
                domains=[TARGET],
                stage=arm,
                out=out,
                config=training,
                source=start,
                resume=unfinished(out),
                progress=quiet,
                **settings,
            )
            figures[arm].append(evaluate_run(store, out, TARGET, EvaluateConfig(), say))
        say(f"{arm} on {TARGET}: {config.seeds} seeds done")
    shown = table(figures, config.seeds)
    user = store.domain(TARGET).table("users", ["user_id"])["user_id"][0].as_py()
    say(f"next: antpipe recommend --store {store.root} --run {runs}/relearn-0 --domains {TARGET} --user {user}")
    return {"target": TARGET, "seeds": config.seeds, "arms": figures, "table": shown}


def prepare(store: Store, *, force: bool, say: Callable[[str], None]) -> None:
    """Sample shops and all their features, with encoders that need no network."""
    domains = [*SOURCES, TARGET]
    say("generating shops, then embedding their texts and pictures")
    text = replace(TextConfig(), encoder="packaged/all-MiniLM-L6-v2")
    image = replace(ImageConfig(), encoder="packaged/efficientnet-lite0")
    results: list[StageResult] = ingest_sample(store, SampleConfig(), force=force)
    results += [embed_text(store, name, text, force=force, say=say) for name in domains]
    results += [embed_image(store, name, image, force=force, say=say) for name in domains]
    results += quantize_price(store, domains, PriceConfig(), force=force)
    results += build_sequences(store, domains, SequenceConfig(), force=force, warn=say)
    built = sum(result.status == "built" for result in results)
    say(f"{len(results)} artefacts of {len(domains)} shops: {built} built, {len(results) - built} fresh")


def table(figures: dict[str, list[dict[str, Any]]], seeds: int) -> str:
    """Mean and standard deviation over seeds, by protocol and arm."""
    lines = [f"{TARGET}, test split, mean ± standard deviation over {seeds} seeds"]
    for protocol in ("all", "unseen"):
        lines.append(f"\nprotocol {protocol:<8}" + "".join(f"{name:>18}" for name in SHOWN))
        for arm, results in figures.items():
            cells = []
            for name in SHOWN:
                values = [result["protocols"][protocol][name] for result in results]
                cells.append(f"{np.mean(values):10.4f} ± {np.std(values, ddof=1) if seeds > 1 else 0:.4f}")
            lines.append(f"  {arm:<14} " + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
