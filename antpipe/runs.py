"""A run: one stage trained on domains of the store, from the request to its checkpoint folder."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
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

PRETRAIN = "pretrain"  # the only stage on several domains, with the in-batch losses


@dataclass(frozen=True)
class Plan:
    """A run that was checked and is ready to train: what it starts from, reads and does to each group."""

    stage: str
    actions: transfer.Stage
    start: Checkpoint | None
    data: TrainingData
    described: Checkpoint
    model: "Ant"


def plan_run(
    store: Store,
    domains: Sequence[str],
    stage: str,
    *,
    model_config: ModelConfig,
    config: TrainConfig,
    source: Path | None,
    own_stages: Mapping[str, object] = MappingProxyType({}),
    notice: Callable[[str], None],
) -> Plan:
    """Check a request and build its model with the first values of the stage.

    source: the run to start from, for stages that keep or freeze something. own_stages: the user's `[stage.NAME]`
    sections. notice: told what is worth knowing once. Raises DataError where the store lacks something or the
    checkpoint does not fit, UsageError where stage, domains and source do not go together.
    """
    import torch

    actions = transfer.find_stage(stage, own_stages)
    start = _check_request(stage, actions, domains, source)
    data = load_training_data(store, domains, config, notice)
    described = describe_run(
        store, data.catalogue, stage=stage, actions=actions, model_config=model_config, config=config, start=start
    )
    torch.manual_seed(config.seed)
    model = described.build()
    if start is not None and source is not None:
        check_fit(actions, start, described, source, notice)
        if model_config.init == "authors":  # their constructor draws experts N(0, .02), their re-learning Xavier
            model.reset_experts("xavier")
        exceptions = transfer.REFERENCE_EXCEPTIONS.get(stage, {}) if config.reference else {}
        transfer.apply(actions, model, checkpoint.load_weights(source, start), exceptions)
    return Plan(stage, actions, start, data, described, model)


def run_stage(
    store: Store,
    domains: Sequence[str],
    stage: str,
    *,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    source: Path | None,
    own_stages: Mapping[str, object] = MappingProxyType({}),
    force: bool,
    notice: Callable[[str], None],
    progress: Callable[[dict[str, Any]], None],
) -> tuple[Checkpoint, bool]:
    """Plan a run (see plan_run), train it, and write the checkpoint of its best epoch to `out`.

    progress: told the figures of each epoch. Returns the checkpoint and whether it was there already (the same
    run finished before).
    """
    if source is not None and source.resolve() == out.resolve():
        raise UsageError(f"--out {out}: is the run to start from", "name another folder")
    device = choose_device(config.device)
    plan = plan_run(
        store, domains, stage,
        model_config=model_config, config=config, source=source, own_stages=own_stages, notice=notice,
    )  # fmt: skip
    if (out / checkpoint.DESCRIPTION).exists() and not force:
        existing = checkpoint.describe(out)
        if existing.fingerprint == plan.described.fingerprint:
            return existing, True
        raise UsageError(
            f"--out {out}: holds another run (stage {existing.stage})", "name another folder, or add --force"
        )
    out.mkdir(parents=True, exist_ok=True)
    log = out / "metrics.jsonl"
    log.unlink(missing_ok=True)

    def record(row: dict[str, Any]) -> None:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        progress(row)

    model = plan.model.to(device)
    best_epoch, best = fit(model, plan.data, pretraining=stage == PRETRAIN, config=config, device=device, record=record)
    done = replace(plan.described, best_epoch=best_epoch, metrics=best, epochs=config.epochs)
    checkpoint.save(out, model, done)
    return done, False


def _check_request(
    stage: str, actions: transfer.Stage, domains: Sequence[str], source: Path | None
) -> Checkpoint | None:
    """The checkpoint to start from, where the stage needs one."""
    if stage != PRETRAIN and len(domains) != 1:
        raise UsageError(f"--stage {stage} trains on one domain, not on {len(domains)}", "name one with --domains")
    if not transfer.needs_checkpoint(actions):
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
    actions: transfer.Stage,
    model_config: ModelConfig,
    config: TrainConfig,
    start: Checkpoint | None,
) -> Checkpoint:
    """The description of a run before it is trained; its fingerprint covers all that determines the result."""
    modalities = {m: {"width": w, "encoder": catalogue.encoders[m]} for m, w in catalogue.widths.items()}
    if start is not None and _reads_features_of_checkpoint(actions):
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
    begun = [start.fingerprint, start.weights_sha256] if start else None
    determined = [stage, dict(actions), to_json(model_config), settings, modalities, max_len, domains, begun]
    return Checkpoint(
        fingerprint=digest(determined), stage=stage, groups=dict(actions), model=to_json(model_config),
        train=to_json(config), modalities=modalities, max_len=max_len, items=items, domains=domains,
        source=start.fingerprint if start else None, best_epoch=0, epochs=0, metrics={},
    )  # fmt: skip


def _reads_features_of_checkpoint(actions: transfer.Stage) -> bool:
    """Experts or gates that are kept were trained on features of one encoder: others mean nothing to them."""
    return actions["experts"] != transfer.RESET or actions["gates"] != transfer.RESET


def check_fit(
    actions: transfer.Stage, start: Checkpoint, wanted: Checkpoint, source: Path, notice: Callable[[str], None]
) -> None:
    """Refuse a checkpoint whose kept parts do not fit the features or the model, naming both sides."""
    if actions["encoder"] != transfer.RESET:
        for key in ("width", "layers", "heads", "inner_width", "feed_forward_experts", "feed_forward_expert_layers"):
            if start.model[key] != wanted.model[key]:
                raise DataError(
                    f"{source} was trained with {key} {start.model[key]}, this run asks for {wanted.model[key]}",
                    f"leave --{key.replace('_', '-')} out to use that of the checkpoint",
                )
    if actions["positions"] != transfer.RESET and start.max_len != wanted.max_len:
        raise DataError(
            f"{source} was trained with --max-len {start.max_len}, the domain's sequences have {wanted.max_len}",
            f"antpipe build-sequences --domains {','.join(wanted.domains)} --max-len {start.max_len}",
        )
    if _reads_features_of_checkpoint(actions):
        for name, there in start.modalities.items():
            here = wanted.modalities[name]
            if not fits(there, here):
                raise DataError(
                    f"{source} reads {name} of {shown(there)}, the domain has {shown(here)}",
                    f"build {name} with the encoder of the checkpoint, or use --stage relearn",
                )
            if there["encoder"] is None:
                notice(f"{source} does not say what made its {name} features; only their width was compared")


def fits(trained: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether features are of the kind a checkpoint was trained on; an imported one may not know its encoder."""
    return trained["width"] == here["width"] and trained["encoder"] in (None, here["encoder"])


def shown(modality: Mapping[str, Any]) -> str:
    return f"width {modality['width']} by {modality['encoder'] or 'an unknown encoder'}"


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
        known = ", ".join(described.domains) or "items unknown here"
        raise DataError(f"{run} has learned ids of {known}; {domain} is another catalogue")
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
        trained, here = described.modalities[name], {"width": catalogue.widths[name], "encoder": encoder}
        if not fits(trained, here):
            raise DataError(
                f"{run} reads {name} of {shown(trained)}; {domain} has {shown(here)}",
                store.domain(domain).command(name, force=True),
            )
    return model, described, catalogue
