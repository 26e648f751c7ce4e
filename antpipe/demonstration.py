"""`antpipe demo`: every stage on the generated shops, scratch, finetune and relearn on the small one, then a report.

Nothing is chosen by looking at the outcome: the table shows what came out, averaged over seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from antpipe.comparison.plan import ComparisonRequest
from antpipe.comparison.run import run_comparison
from antpipe.evaluation.evaluate import evaluate_run
from antpipe.features.build_sequences import build_sequences
from antpipe.features.embed_image import embed_image
from antpipe.features.embed_text import embed_text
from antpipe.features.ingest_sample import SOURCES, TARGET, ingest_sample
from antpipe.features.quantize_price import quantize_price
from antpipe.report.render import INSTALL, missing_libraries
from antpipe.report.write import write_report
from antpipe.runtime.logs import log
from antpipe.runtime.process import continued_by
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.base import flags_of
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.demo import DemoConfig
from antpipe.settings.evaluation import EvaluateConfig
from antpipe.settings.features import ImageConfig, PriceConfig, SequenceConfig, TextConfig
from antpipe.settings.ingest import SampleConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.report import ReportConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.training.checkpoint import Checkpoint
from antpipe.training.folder import RunFolder
from antpipe.training.request import PRETRAIN, RunRequest
from antpipe.training.run import run_stage

ARMS = ("scratch", "finetune", "relearn")
SHOWN = ("recall@10", "ndcg@10", "mrr@10", "recall@50")


def run_demo(store: Store, config: DemoConfig, *, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Run the pipeline on the sample shops; runs are kept in STORE-runs beside the store.

    Returns {"target", "seeds", "arms": figures by arm, "table": text, "report": its path, None if the libraries of
    reports are missing}. Raises Interrupted after Ctrl-C; what was
    complete is kept.
    """
    with continued_by(spell("demo", store=store.root, flags=flags_of(config))):
        prepare(store, force=force, progress=progress)
        runs = store.root.with_name(f"{store.root.name}-runs")
        figures = train(store, runs, config, force=force, progress=progress)
        page = report(store, runs, config, progress=progress)
    user = store.domain(TARGET).table("users", ["user_id"])["user_id"][0].as_py()
    flags = ["--run", runs / "relearn-0", "--user", user]
    log.info(f"next: {spell('recommend', domains=[TARGET], store=store.root, flags=flags)}")
    table = as_table(figures, config.seeds)
    return {"target": TARGET, "seeds": config.seeds, "arms": figures, "table": table, "report": page}


def prepare(store: Store, *, force: bool, progress: Progress = silent) -> None:
    """Sample shops and all their features, with encoders that need no network."""
    domains = [*SOURCES, TARGET]
    log.info("generating shops, then embedding their texts and pictures")
    text = replace(TextConfig(), encoder="packaged/all-MiniLM-L6-v2")
    image = replace(ImageConfig(), encoder="packaged/efficientnet-lite0")
    results: list[StageResult] = ingest_sample(store, SampleConfig(), force=force)
    results += [embed_text(store, name, text, force=force, progress=progress) for name in domains]
    results += [embed_image(store, name, image, force=force, progress=progress) for name in domains]
    results += quantize_price(store, domains, PriceConfig(), force=force)
    results += build_sequences(store, domains, SequenceConfig(), force=force)
    built = sum(result.status == "built" for result in results)
    log.info(f"{len(results)} artefacts of {len(domains)} shops: {built} built, {len(results) - built} fresh")


def train(
    store: Store, runs: Path, config: DemoConfig, *, force: bool, progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Pre-train on the source shops, then train every arm with every seed; evaluations by arm."""
    model, base = model_of(config), replace(TrainConfig(), eval_every=config.eval_every)

    def finished(request: RunRequest, out: Path) -> Checkpoint:
        resume = not force and RunFolder(out).is_unfinished()  # an earlier demonstration was interrupted
        return run_stage(request, out, force=force, resume=resume, progress=progress)[0]

    training = replace(base, epochs=config.pretrain_epochs, batch_size=config.pretrain_batch)
    done = finished(RunRequest(store, SOURCES, PRETRAIN, model, training), runs / PRETRAIN)
    log.info(f"{PRETRAIN} on {', '.join(SOURCES)}: best epoch {done.best_epoch} of {done.epochs}")
    figures: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for arm in ARMS:
        source = None if arm == "scratch" else runs / PRETRAIN
        for seed in range(config.seeds):
            training = replace(base, epochs=config.epochs, batch_size=config.batch, seed=seed)
            out = runs / f"{arm}-{seed}"
            finished(RunRequest(store, [TARGET], arm, model, training, source), out)
            figures[arm].append(evaluate_run(store, out, TARGET, EvaluateConfig()))
        log.info(f"{arm} on {TARGET}: {config.seeds} seeds done")
    return figures


def model_of(config: DemoConfig) -> ModelConfig:
    return replace(ModelConfig(), width=config.width, experts=config.experts)


def report(store: Store, runs: Path, config: DemoConfig, *, progress: Progress) -> str | None:
    """Compare the runs of all arms and write RUNS/report.html; its path, None if the libraries for it are missing."""
    if missing := missing_libraries():
        log.warning(f"no report: {' and '.join(missing)} missing; {INSTALL}")
        return None
    request = ComparisonRequest(
        store=store,
        out=runs / "compare",
        targets=(TARGET,),
        config=replace(CompareConfig(), arms=ARMS, seeds=config.seeds, beyond_accuracy=True),
        model=model_of(config),
        source_model=model_of(config),
        training=replace(TrainConfig(), epochs=config.epochs, batch_size=config.batch, eval_every=config.eval_every),
        race=RaceConfig(),
        given={arm: [runs / f"{arm}-{seed}" for seed in range(config.seeds)] for arm in ARMS},
    )
    run_comparison(request, progress=progress)
    written = write_report(store, [], [request.out], runs / "report.html", ReportConfig(), force=True)
    return str(written.path)


def as_table(figures: Mapping[str, Sequence[Mapping[str, Any]]], seeds: int) -> str:
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
