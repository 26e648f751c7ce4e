"""`antpipe demo`: every stage on the generated shops, a comparison of four arms on the small one, then a report.

Nothing is chosen by looking at the outcome: the table shows what came out, averaged over seeds, with intervals.
"""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from antpipe.comparison.plan import UNTRAINED, ComparisonRequest
from antpipe.comparison.run import run_comparison
from antpipe.comparison.table import aligned
from antpipe.comparison.verdict import NONE
from antpipe.errors import SameCommand, UsageError
from antpipe.features.build_sequences import build_sequences
from antpipe.features.embed_image import embed_image
from antpipe.features.embed_text import embed_text
from antpipe.features.ingest_sample import SOURCES, TARGET, ingest_sample
from antpipe.features.quantize_price import quantize_price
from antpipe.report.findings import gather
from antpipe.report.render import INSTALL, missing_libraries
from antpipe.report.verdict import headline
from antpipe.report.write import write_report
from antpipe.runtime.libraries import load_libraries
from antpipe.runtime.logs import log
from antpipe.runtime.process import continued_by
from antpipe.runtime.progress import Progress, silent
from antpipe.settings.base import flags_of
from antpipe.settings.comparison import CompareConfig, RaceConfig
from antpipe.settings.demo import DemoConfig
from antpipe.settings.features import ImageConfig, PriceConfig, SequenceConfig, TextConfig
from antpipe.settings.ingest import SampleConfig
from antpipe.settings.model import ModelConfig
from antpipe.settings.report import ReportConfig
from antpipe.settings.training import TrainConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.next_command import spell
from antpipe.store.store import Store
from antpipe.training.request import FLOOR, RunRequest
from antpipe.training.run import run_stage

ARMS = ("scratch", "finetune", "relearn", "floor")
SHOWN = ("recall@10", "ndcg@10", "recall@50")
LIBRARIES = ("polars", "faiss", "torch", "torchvision", "sentence_transformers")
COLUMNS = 80  # of a terminal


def run_demo(store: Store, config: DemoConfig, *, force: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Run the pipeline on the sample shops; the comparison is kept in STORE-runs beside the store.

    Returns {"target", "seeds", "arms": as in comparison.json, "table": text, "comparison": its folder, "report": its
    path, None if the libraries of reports are missing, "next": three commands}. Raises Interrupted after Ctrl-C; what
    was complete is kept. UsageError if the folder holds runs with other settings.
    """
    with continued_by(spell("demo", store=store.root, flags=flags_of(config))):
        load_libraries(LIBRARIES, progress)
        prepare(store, force=force, progress=progress)
        request = request_of(store, config)
        with forced_instead():
            found = run_comparison(request, force=force, progress=progress)
        page = report(request, progress=progress)
        best = best_run(found, RunRequest(store, (TARGET,), FLOOR, request.model, request.training))
    facts = found["targets"][TARGET]
    return {
        "target": TARGET,
        "seeds": config.seeds,
        "arms": facts["arms"],
        "table": as_table(found, headline(gather([], [request.out]))),
        "comparison": str(request.out),
        "report": page,
        "next": next_commands(store, config, best),
    }


def prepare(store: Store, *, force: bool, progress: Progress = silent) -> None:
    """Sample shops and all their features, with encoders that need no network."""
    domains = [*SOURCES, TARGET]
    log.info("generating shops, then embedding their texts and pictures")
    text = replace(TextConfig(), encoder="packaged/all-MiniLM-L6-v2")
    image = replace(ImageConfig(), encoder="packaged/efficientnet-lite0", precision="fp32")  # bf16 is too far off here
    with progress("sample shops"):
        results: list[StageResult] = ingest_sample(store, SampleConfig(), force=force)
    results += [embed_text(store, name, text, force=force, progress=progress) for name in domains]
    results += [embed_image(store, name, image, force=force, progress=progress) for name in domains]
    results += quantize_price(store, domains, PriceConfig(), force=force)
    results += build_sequences(store, domains, SequenceConfig(), force=force)
    built = sum(result.status == "built" for result in results)
    log.info(f"{len(results)} artefacts of {len(domains)} shops: {built} built, {len(results) - built} fresh")


def request_of(store: Store, config: DemoConfig) -> ComparisonRequest:
    """The comparison: pre-train on the source shops, then every arm with every seed on the target."""
    model = replace(ModelConfig(), width=config.width, experts=config.experts)
    return ComparisonRequest(
        store=store,
        out=store.root.with_name(f"{store.root.name}-runs"),
        targets=(TARGET,),
        config=replace(
            CompareConfig(),
            arms=ARMS,
            seeds=config.seeds,
            beyond_accuracy=True,
            pretrain_epochs=config.pretrain_epochs,
            pretrain_batch_size=config.pretrain_batch,
        ),
        model=model,
        source_model=model,
        training=replace(TrainConfig(), epochs=config.epochs, batch_size=config.batch, eval_every=config.eval_every),
        race=RaceConfig(),
        sources=tuple(SOURCES),
    )


@contextmanager
def forced_instead() -> Iterator[None]:
    """Suggest --force where a comparison would suggest another --out: the demonstration has no such flag."""
    try:
        yield
    except UsageError as error:
        if isinstance(error.next_command, SameCommand) and "--out" in error.next_command.flags:
            raise UsageError(error.message, SameCommand({"--force": None})) from error
        raise


def report(request: ComparisonRequest, *, progress: Progress) -> str | None:
    """Write report.html beside the comparison; its path, None if the libraries for it are missing."""
    if missing := missing_libraries():
        log.warning(f"no report: {' and '.join(missing)} missing; {INSTALL}")
        return None
    out = request.out / "report.html"
    return str(write_report(request.store, [], [request.out], out, ReportConfig(), force=True, progress=progress).path)


def best_run(found: Mapping[str, Any], floor: RunRequest) -> Path:
    """The folder of the first run of the arm with the best figure. A comparison keeps no run of the floor, so it is
    made here."""
    arms = found["targets"][TARGET]["arms"]
    best = max(arms, key=lambda name: arms[name]["protocols"][found["protocol"]][found["metric"]]["mean"])
    run = Path(arms[best]["runs"][0]["run"])
    if arms[best]["kind"] == UNTRAINED:
        run_stage(floor, run)
    return run


def next_commands(store: Store, config: DemoConfig, run: Path) -> list[dict[str, str]]:
    """Three commands to continue with: {"about", "command"}. run: the run that recommends."""
    user = store.domain(TARGET).table("users", ["user_id"])["user_id"][0].as_py()
    more = replace(config, seeds=2 * config.seeds)
    recommend = ["--run", str(run), "--user", user]
    return [
        {
            "about": "what to show a customer",
            "command": spell("recommend", domains=[TARGET], store=store.root, flags=recommend),
        },
        {
            "about": "twice as many seeds, for a sharper test",
            "command": spell("demo", store=store.root, flags=flags_of(more)),
        },
        {"about": "your own shop", "command": spell("ingest table", flags=["--help"])},
    ]


def as_table(found: Mapping[str, Any], verdict: str) -> str:
    """Figures by arm, the differences to the control with their intervals, and what follows, within COLUMNS."""
    facts, protocol, metric = found["targets"][TARGET], found["protocol"], found["metric"]
    control = facts["arms"][found["control"]]["protocols"][protocol][metric]["mean"]
    head = ["arm", *SHOWN, f"{metric} to {found['control']}", f"{1 - found['alpha']:.0%} interval"]
    rows = []
    for name, arm in facts["arms"].items():
        cells = [f"{arm['protocols'][protocol][one]['mean']:.4f}" for one in SHOWN]
        change = arm["differences"].get(protocol, {}).get(metric)
        rows.append([name, *cells, *(in_percent(change, control) if change else ["", ""])])
    title = (
        f"{TARGET}: {facts['users']} users, {facts['items']} items; test split, protocol {protocol}, "
        f"mean over {facts['arms'][found['control']]['seeds']} seeds"
    )
    sentences = [verdict]
    for name, arm in facts["arms"].items():
        if arm["verdict"] and arm["verdict"]["word"] in (None, NONE):  # the verdict covers the others
            sentences.append(f"{name}: {arm['verdict']['why']}.")
        elif arm["kind"] == UNTRAINED:
            sentences.append(f"{name}: not trained, and {beside(arm['differences'][protocol][metric], found)}.")
    return "\n".join([title, "", *aligned([head, *rows]), "", *(textwrap.fill(line, COLUMNS) for line in sentences)])


def beside(change: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How a baseline compares with the control; it transfers nothing, so it has no verdict on transfer."""
    if change["p"] is None or change["p"] >= found["alpha"]:
        return f"not shown to differ from {found['control']}"
    return f"{'better' if change['difference'] > 0 else 'worse'} than {found['control']} beyond chance"


def in_percent(change: Mapping[str, Any], control: float) -> list[str]:
    """A difference and its interval (`-` for a single seed) as shares of the control's mean."""
    if not control:
        return ["-", "-"]
    share = f"{change['difference'] / control:+.1%}"
    if change["p"] is None:
        return [share, "-"]
    return [share, f"{change['low'] / control:+.1%} to {change['high'] / control:+.1%}"]
