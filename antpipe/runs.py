"""A run: one stage trained on domains of the store, from the request to its checkpoint folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe import checkpoint, transfer
from antpipe.checkpoint import Checkpoint
from antpipe.config import ModelConfig, TrainConfig, to_json
from antpipe.data import Catalogue, examples, load_catalogue
from antpipe.devices import choose_device
from antpipe.errors import DataError, UsageError
from antpipe.store import Store, digest
from antpipe.train import TrainingData, fit

if TYPE_CHECKING:
    from antpipe.model import Ant


def run_stage(
    store: Store,
    domains: Sequence[str],
    stage: str,
    *,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    source: Path | None,
    force: bool,
    notice: Callable[[str], None],
    progress: Callable[[dict[str, Any]], None],
) -> tuple[Checkpoint, bool]:
    """Run a stage and write the checkpoint of its best epoch to `out`.

    source: the run whose checkpoint stages that keep or freeze something start from. notice: told what is
    worth knowing once; progress: told the figures of each epoch. Returns the checkpoint and whether it was
    there already (the same run finished before). Raises DataError where the store lacks something or the
    checkpoint does not fit, UsageError where stage, domains and source do not go together.
    """
    import torch

    start = _check_request(stage, domains, source)
    if source is not None and source.resolve() == out.resolve():
        raise UsageError(f"--out {out}: is the run to start from", "name another folder")
    device = choose_device(config.device)
    data = load_training_data(store, domains, config, notice)
    described = describe_run(store, data.catalogue, stage=stage, model_config=model_config, config=config, start=start)
    if (out / checkpoint.DESCRIPTION).exists() and not force:
        existing = checkpoint.describe(out)
        if existing.fingerprint == described.fingerprint:
            return existing, True
        raise UsageError(
            f"--out {out}: holds another run (stage {existing.stage})", "name another folder, or add --force"
        )
    torch.manual_seed(config.seed)
    model = described.build()
    if start is not None and source is not None:
        check_fit(stage, start, described, source)
        transfer.apply(stage, model, checkpoint.load_weights(source, start))
    out.mkdir(parents=True, exist_ok=True)
    log = out / "metrics.jsonl"
    log.unlink(missing_ok=True)

    def record(row: dict[str, Any]) -> None:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        progress(row)

    best_epoch, best = fit(model.to(device), data, stage, config=config, device=device, record=record)
    done = replace(described, best_epoch=best_epoch, metrics=best, epochs=config.epochs)
    checkpoint.save(out, model, done)
    return done, False


def _check_request(stage: str, domains: Sequence[str], source: Path | None) -> Checkpoint | None:
    """The checkpoint to start from, where the stage needs one."""
    if stage not in transfer.STAGES:
        raise UsageError(f"--stage {stage}: choose from {', '.join(transfer.STAGES)}")
    if stage != "pretrain" and len(domains) != 1:
        raise UsageError(f"--stage {stage} trains on one domain, not on {len(domains)}", "name one with --domains")
    if not transfer.needs_checkpoint(stage):
        if source is not None:
            raise UsageError(f"--stage {stage} starts from nothing: leave --from out")
        return None
    if source is None:
        raise UsageError(f"--stage {stage} starts from a checkpoint", f"antpipe train --stage {stage} --from RUN …")
    return checkpoint.describe(source)


def load_training_data(
    store: Store, domains: Sequence[str], config: TrainConfig, notice: Callable[[str], None]
) -> TrainingData:
    """Everything training reads, mapped from the store."""
    catalogue = load_catalogue(store, domains, config.modalities, notice)
    sequences = tuple(store.domain(name).sequences() for name in domains)
    lengths = {part.max_len for part in sequences}
    if len(lengths) > 1:
        raise DataError(
            f"{', '.join(domains)}: sequences built with different --max-len {sorted(lengths)}",
            f"antpipe build-sequences --domains {','.join(domains)} --store {store.root}",
        )
    validation = {name: examples(part, "valid") for name, part in zip(domains, sequences, strict=True)}
    validation = {name: part for name, part in validation.items() if len(part)}
    if not validation:
        raise DataError(f"{', '.join(domains)}: no user has an item to validate on; 3 items a user are needed")
    return TrainingData(catalogue, sequences, validation)


def describe_run(
    store: Store,
    catalogue: Catalogue,
    *,
    stage: str,
    model_config: ModelConfig,
    config: TrainConfig,
    start: Checkpoint | None,
) -> Checkpoint:
    """The description of a run before it is trained; its fingerprint covers all that determines the result."""
    modalities = {m: {"width": w, "encoder": catalogue.encoders[m]} for m, w in catalogue.widths.items()}
    if start is not None and transfer.keeps(stage, "experts"):
        modalities = start.modalities | {m: v for m, v in modalities.items() if m in start.modalities}
    domains = {
        name: {artefact: store.domain(name).entry(artefact)["fingerprint"] for artefact in artefacts}
        for name, artefacts in (
            (name, [m for m in modalities if m in store.domain(name).manifest()] + ["sequences"])
            for name in catalogue.domains
        )
    }
    settings = {key: value for key, value in to_json(config).items() if key != "device"}
    max_len = store.domain(catalogue.domains[0]).sequences().max_len
    items = len(catalogue) if model_config.transductive else None
    begun = start.fingerprint if start else None
    determined = [stage, to_json(model_config), settings, modalities, max_len, domains, begun]
    return Checkpoint(
        fingerprint=digest(determined), stage=stage, model=to_json(model_config), train=to_json(config),
        modalities=modalities, max_len=max_len, items=items, domains=domains, source=begun,
        best_epoch=0, epochs=0, metrics={},
    )  # fmt: skip


def check_fit(stage: str, start: Checkpoint, wanted: Checkpoint, source: Path) -> None:
    """Refuse a checkpoint whose kept parts do not fit the features or the model, naming both sides."""
    if transfer.keeps(stage, "encoder"):
        for key in ("width", "layers", "heads", "inner_width", "feed_forward_experts"):
            if start.model[key] != wanted.model[key]:
                raise DataError(
                    f"{source} was trained with {key} {start.model[key]}, this run asks for {wanted.model[key]}",
                    f"leave --{key.replace('_', '-')} out to use that of the checkpoint",
                )
    if transfer.keeps(stage, "positions") and start.max_len != wanted.max_len:
        raise DataError(
            f"{source} was trained with --max-len {start.max_len}, the domain's sequences have {wanted.max_len}",
            f"antpipe build-sequences --domains {','.join(wanted.domains)} --max-len {start.max_len}",
        )
    if transfer.keeps(stage, "experts"):
        for name, there in start.modalities.items():
            here = wanted.modalities[name]
            if here != there:
                raise DataError(
                    f"{source} reads {name} of width {there['width']} by {there['encoder']}, "
                    f"the domain has width {here['width']} by {here['encoder']}",
                    f"build {name} with the encoder of the checkpoint, or use --stage relearn",
                )


def open_run(
    store: Store, run: Path, domain: str, notice: Callable[[str], None]
) -> tuple["Ant", Checkpoint, Catalogue]:
    """A run's model and the catalogue of a domain, after checking that the model can read that domain.

    The domain may be one the run has not seen, if its features come from the same encoders. Raises DataError
    where they do not, or where the features of a trained domain changed since.
    """
    model, described = checkpoint.load(run)
    seen = domain in described.domains
    if model.ids is not None and not seen:
        raise DataError(f"{run} has learned ids of {', '.join(described.domains)}; {domain} is another catalogue")
    for artefact, fingerprint in described.domains.get(domain, {}).items():
        if store.domain(domain).entry(artefact)["fingerprint"] != fingerprint:
            raise DataError(
                f"{artefact} of {domain} changed since {run} was trained on it",
                f"antpipe train --stage {described.stage} --domains {domain} --out {run} --force …",
            )
    catalogue = load_catalogue(
        store, tuple(described.domains) if seen else [domain], tuple(described.modalities), notice
    )
    for name, encoder in catalogue.encoders.items():
        trained = described.modalities[name]
        if (trained["encoder"], trained["width"]) != (encoder, catalogue.widths[name]):
            raise DataError(
                f"{run} reads {name} of width {trained['width']} by {trained['encoder']}; "
                f"{domain} has width {catalogue.widths[name]} by {encoder}",
                store.domain(domain).command(name, force=True),
            )
    return model, described, catalogue
