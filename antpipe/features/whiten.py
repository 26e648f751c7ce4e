"""Stage `whiten`: features become uncorrelated columns of unit variance, along their principal directions.

y = (x - mean) U (L + s)^(-1/2), where U holds the eigenvectors of the catalogue's covariance, L its eigenvalues in
descending order and s the shrinkage: Su et al. 2021, "Whitening Sentence Representations for Better Semantics and
Faster Retrieval", arXiv 2103.15316, algorithm 1. Only items that are present count. Directions whose variance rounding
to float16 alone could explain are left out. So a small catalogue or a constant column gives fewer columns, and nothing
is divided by a variance close to zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.runtime.progress import Progress, Update, silent
from antpipe.settings.base import flags_of
from antpipe.settings.features import WhitenConfig
from antpipe.store.artefacts import StageResult
from antpipe.store.domain import Domain
from antpipe.store.files import Feature
from antpipe.store.manifest import content_sha256, digest, encoder_name
from antpipe.store.next_command import build_command, build_command_with
from antpipe.store.store import Store

CHUNK = 4096
Floats = NDArray[np.float64]
# Rounding x to float16 moves it by up to 2^-11 |x|, uniformly: a variance of up to 2^-20 x^2 / 12.
ROUNDING = 2.0**-20 / 12
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Whitening:
    """The map x -> (x - mean) @ projection.

    mean: (d,). eigenvalues: (k,) in descending order. projection: (d, k). explained: the share of the features'
    variance that lies in these k directions.
    """

    mean: Floats
    eigenvalues: Floats
    projection: Floats
    explained: float

    def apply(self, values: NDArray[Any]) -> Floats:
        """(n, d) raw features -> (n, k)."""
        whitened: Floats = (values.astype(np.float64) - self.mean) @ self.projection
        return whitened


def whiten(
    store: Store,
    domains: Sequence[str],
    modality: str,
    config: WhitenConfig,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> list[StageResult]:
    """Write MODALITY_white.arrow of each domain: (N, k) float16, present where the raw features are, zeros elsewhere.

    Scope `domain` fits the map on the core of each catalogue, `global` on those of all named domains together; `like`
    takes the map of another domain. Features of two catalogues are comparable only if their map is the same. The map
    itself is kept as MODALITY_whitening.parquet (see `read_whitening`).
    Raises DataError if raw features are missing or stale, do not vary, or come from different encoders where one is
    needed, UsageError if `like` is one of the domains.
    """
    if config.like in domains:
        raise UsageError(f"--like {config.like}: this is one of the domains to whiten")
    artefact = f"{modality}-white"
    opened = [store.domain(name) for name in dict.fromkeys(domains)]
    versions = {domain.name: _version(domain, modality) for domain in opened}  # before they are mapped
    raw = {domain.name: domain.feature(modality) for domain in opened}
    core = {domain.name: raw[domain.name].first(domain.core_rows()) for domain in opened}
    like = store.domain(config.like) if config.like else None
    encoders = _require_same_encoder(
        opened, modality, like if like else opened[0] if config.scope == "global" else None
    )
    shared: Whitening | None = None
    results = []
    for domain in opened:
        fitted_on = versions if config.scope == "global" else {domain.name: versions[domain.name]}
        parameters: dict[str, Any] = {"dims": config.dims, "epsilon": config.epsilon, "scope": config.scope}
        parameters |= {"fitted_on": fitted_on} if config.scope == "global" else {}
        fit = digest([fitted_on, config.dims, config.epsilon])
        if like:
            fit = like.entry(artefact)["encoder"]["whitening"]
            parameters = {"like": like.name, "fit": fit}
        if not force and domain.is_fresh(artefact, parameters):
            results.append(StageResult(domain.name, artefact, "fresh", domain.entry(artefact)["figures"]))
            continue
        if shared is None or (config.scope == "domain" and not like):
            sources = list(core.values()) if config.scope == "global" else [core[domain.name]]
            shared = read_whitening(like, modality) if like else _fit(sources, config, domain, modality)
        details: dict[str, Any] = {"encoder": {**encoders[domain.name], "whitening": fit}, "flags": flags_of(config)}
        details |= {"domains": [one.name for one in opened]} if config.scope == "global" else {}
        with progress(f"{domain.name} {artefact}") as update:
            results.append(_write(domain, modality, raw[domain.name], fitted_on, shared, parameters, details, update))
    return results


def fit_whitening(features: Sequence[Feature], dims: int = 0, epsilon: float = 0.0) -> Whitening:
    """The whitening of all present rows of some features of equal width d.

    dims: how many directions of the largest variance to keep (0: all in which the features vary). epsilon: this share
    of the mean variance is added to each variance. The sign of a direction makes its largest entry positive. Takes two
    passes over the mapped rows, in float64; memory grows with d * d, not with the rows.
    Raises ValueError if the features vary in no direction.
    """
    width = features[0].values.shape[1]
    count, total = 0, np.zeros(width)
    for block in _blocks(features):
        count += len(block)
        total += block.sum(axis=0)
    mean = total / max(count, 1)
    covariance = np.zeros((width, width))
    for block in _blocks(features):
        centred = block - mean
        covariance += centred.T @ centred
    covariance /= max(count, 1)
    eigenvalues, directions = np.linalg.eigh(covariance)
    eigenvalues, directions = eigenvalues[::-1], directions[:, ::-1]
    noise = ROUNDING * (directions**2).T @ (np.diag(covariance) + mean**2)
    noise = np.maximum(noise, eigenvalues[0] * width * np.finfo(np.float64).eps)
    varies = np.flatnonzero(eigenvalues > noise)
    if not len(varies):
        raise ValueError(f"its {count} rows do not differ in any direction")
    kept = varies[: dims or None]
    directions = directions[:, kept] * _signs(directions[:, kept])
    variance = float(np.trace(covariance))
    deviations = np.sqrt(eigenvalues[kept] + epsilon * variance / width)
    return Whitening(mean, eigenvalues[kept], directions / deviations, float(eigenvalues[kept].sum()) / variance)


def read_whitening(domain: Domain, modality: str) -> Whitening:
    """The map that whitened a domain's features, for later vectors of the same encoder."""
    domain.feature(f"{modality}-white")  # refuses a stale one
    [row] = domain.table(f"{modality}_whitening").to_pylist()
    mean, eigenvalues, projection = (np.array(row[name]) for name in ("mean", "eigenvalues", "projection"))
    return Whitening(mean, eigenvalues, projection, row["explained"])


def changed_fit(store: Store, domain: Domain, artefact: str) -> str:
    """Why a whitened artefact was fitted on features that another domain no longer has; '' if it still has them.

    A domain that is no longer in the store does not count.
    """
    modality, parameters = artefact.removesuffix("-white"), domain.entry(artefact)["parameters"]
    there = store.domains()
    for name, version in parameters.get("fitted_on", {}).items():
        if name in there and _version(store.domain(name), modality) != version:
            return f"{modality} of {name}, on which it was fitted, changed since"
    like = parameters.get("like")
    if like in there:
        entry = store.domain(like).manifest().get(artefact, {})
        if entry.get("encoder", {}).get("whitening") != parameters["fit"]:
            return f"the whitening of {like} changed since"
    return ""


def _blocks(features: Sequence[Feature]) -> Iterator[Floats]:
    """The present rows in pieces of (n, d); the memory of each piece is given back."""
    for feature in features:
        for start in range(0, len(feature.values), CHUNK):
            present = feature.present[start : start + CHUNK]
            yield feature.values[start : start + CHUNK][present].astype(np.float64)
            feature.release()


def _signs(directions: Floats) -> Floats:
    """(k,) the sign of each column's entry of the largest magnitude, the first one if several are equal."""
    largest = np.abs(directions).argmax(axis=0)
    signs: Floats = np.sign(directions[largest, np.arange(directions.shape[1])])
    return signs


def _version(domain: Domain, modality: str) -> str:
    """A hash of the raw features: of their fingerprint and of the content of their files."""
    entry = domain.manifest().get(modality, {})
    return digest([entry.get("fingerprint"), content_sha256(entry)])


def _require_same_encoder(
    opened: Sequence[Domain], modality: str, first: Domain | None
) -> Mapping[str, Mapping[str, Any]]:
    """The encoder of each domain's raw features. Raises DataError if `first` is given and has a different encoder."""
    wanted = encoder_name(first.entry(modality)) if first else None
    for domain in opened:
        found = encoder_name(domain.entry(modality))
        if first is not None and found != wanted:
            raise DataError(
                f"{modality} of {domain.name} was made by {found}, that of {first.name} by {wanted}; one whitening "
                "cannot serve both",
                build_command(domain, modality, force=True, flags=first.manifest()[modality].get("flags", [])),
            )
    return {domain.name: domain.entry(modality)["encoder"] for domain in opened}


def _fit(features: Sequence[Feature], config: WhitenConfig, domain: Domain, modality: str) -> Whitening:
    try:
        return fit_whitening(features, config.dims, config.epsilon)
    except ValueError as error:
        raise DataError(
            f"domain {domain.name}: {modality} cannot be whitened: {error}", build_command(domain, modality)
        ) from None


def _write(
    domain: Domain,
    modality: str,
    raw: Feature,
    fitted_on: Mapping[str, str],
    whitening: Whitening,
    parameters: Mapping[str, Any],
    details: Mapping[str, Any],
    update: Update,
) -> StageResult:
    artefact, name = f"{modality}-white", f"{modality}_white"
    rows, width = len(raw.values), whitening.projection.shape[1]
    with domain.writing(artefact, parameters) as out:
        if _version(domain, modality) != fitted_on[domain.name]:  # later changes are noticed by the store
            raise DataError(
                f"domain {domain.name}: {modality} changed while its whitening was fitted; {artefact} is as before",
                build_command(domain, artefact),
            )
        with out.feature(name, rows, width) as feature:
            for start in range(0, rows, CHUNK):
                part = slice(start, start + CHUNK)
                whitened = whitening.apply(raw.values[part])
                whitened[~raw.present[part]] = 0
                if np.abs(whitened).max(initial=0) > LARGEST:
                    raise DataError(
                        f"domain {domain.name}: {modality} has vectors so far from those the whitening was fitted on "
                        "that they overflow float16",
                        build_command_with(domain, artefact, "--epsilon", "0.01"),
                    )
                feature.values[part] = whitened
                raw.release()
                feature.release()
                update(min(start + CHUNK, rows), rows)
            feature.present[:] = raw.present
            present = int(raw.present.sum())
        table = {
            "mean": [whitening.mean.tolist()],
            "eigenvalues": [whitening.eigenvalues.tolist()],
            "projection": [whitening.projection.tolist()],
            "explained": [whitening.explained],
        }
        out.parquet(f"{modality}_whitening.parquet", pa.table(table))
        figures = {
            "items": rows,
            "present": present,
            "coverage": round(present / rows, 4),
            "width": width,
            "of_width": raw.values.shape[1],
            "explained": round(whitening.explained, 4),
            "smallest": float(f"{whitening.eigenvalues[-1] / whitening.eigenvalues[0]:.3g}"),
        }
        out.details |= {**details, "figures": figures}
    return StageResult(domain.name, artefact, "built", figures)
