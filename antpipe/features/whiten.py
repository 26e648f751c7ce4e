"""whiten: features become uncorrelated columns of unit variance, along their principal directions.

y = (x - mean) U (L + s)^(-1/2), where U holds the eigenvectors of the catalogue's covariance, L its eigenvalues in
falling order and s the shrinkage: Su et al. 2021, "Whitening Sentence Representations for Better Semantics and Faster
Retrieval", arXiv 2103.15316, algorithm 1. Only items that are present count. Directions in which the features do not
vary by more than rounding to float16 explains are left out, so a small catalogue or a constant column gives fewer
columns, and nothing is divided by a variance of nearly zero.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from antpipe.errors import DataError, UsageError
from antpipe.features.encoders.identity import silent
from antpipe.settings.base import flags_of
from antpipe.settings.features import WhitenConfig
from antpipe.store.artefacts import StageResult, State, encoder_name
from antpipe.store.domain import Domain
from antpipe.store.files import Feature, content_sha256, digest
from antpipe.store.store import Store

CHUNK = 4096
Floats = NDArray[np.float64]
# Rounding x to float16 moves it by up to 2^-11 |x|, evenly spread: a variance of up to 2^-20 x^2 / 12.
ROUNDING = 2.0**-20 / 12
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Whitening:
    """The map x -> (x - mean) @ projection. mean: (d,), eigenvalues: (k,) falling, projection: (d, k).

    explained: the share of the features' variance that lies in these k directions.
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
    progress: Callable[[int, int], None] = silent,
) -> list[StageResult]:
    """Write MODALITY_white.arrow of each domain: (N, k) float16, present as the raw features are, zeros where not.

    Scope `domain` fits the map on each catalogue, `global` on all named ones together, `like` takes over that of
    another domain. Two catalogues can be compared only where their map is the same. The map itself is kept as
    MODALITY_whitening.parquet (see `read_whitening`). progress: is called with the items done and all items.
    Raises DataError where raw features are missing or stale, do not vary, or come from different encoders, UsageError
    where a domain is to be like itself.
    """
    if config.like in domains:
        raise UsageError(f"--like {config.like}: is one of the domains to whiten")
    artefact = f"{modality}-white"
    places = [store.domain(name) for name in dict.fromkeys(domains)]
    versions = {place.name: _version(place, modality) for place in places}  # before they are mapped
    raw = {place.name: place.feature(modality) for place in places}
    like = store.domain(config.like) if config.like else None
    encoders = _require_same_encoder(
        places, modality, like if like else places[0] if config.scope == "global" else None
    )
    shared: Whitening | None = None
    results = []
    for place in places:
        fitted_on = versions if config.scope == "global" else {place.name: versions[place.name]}
        parameters: dict[str, Any] = {"dims": config.dims, "epsilon": config.epsilon, "scope": config.scope}
        parameters |= {"fitted_on": fitted_on} if config.scope == "global" else {}
        fit = digest([fitted_on, config.dims, config.epsilon])
        if like:
            fit = like.entry(artefact)["encoder"]["whitening"]
            parameters = {"like": like.name, "fit": fit}
        if not force and place.is_fresh(artefact, parameters):
            results.append(StageResult(place.name, artefact, "fresh", place.entry(artefact)["figures"]))
            continue
        if shared is None or (config.scope == "domain" and not like):
            sources = list(raw.values()) if config.scope == "global" else [raw[place.name]]
            shared = read_whitening(like, modality) if like else _fit(sources, config, place, modality)
        details: dict[str, Any] = {"encoder": {**encoders[place.name], "whitening": fit}, "flags": flags_of(config)}
        details |= {"domains": [one.name for one in places]} if config.scope == "global" else {}
        results.append(_write(place, modality, raw[place.name], fitted_on, shared, parameters, details, progress))
    return results


def fit_whitening(features: Sequence[Feature], dims: int = 0, epsilon: float = 0.0) -> Whitening:
    """The whitening of all present rows of some features of equal width d.

    dims: how many directions to keep, those of the largest variance (0: all in which the features vary). epsilon: this
    share of the mean variance is added to each variance. A direction points to where its entry of the largest size is
    positive. Two passes over the mapped rows, in float64; memory grows with d * d, not with the rows.
    Raises ValueError where no direction varies.
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
        raise ValueError(f"{count} rows, but no direction in which they differ")
    kept = varies[: dims or None]
    directions = directions[:, kept] * _signs(directions[:, kept])
    variance = float(np.trace(covariance))
    deviations = np.sqrt(eigenvalues[kept] + epsilon * variance / width)
    return Whitening(mean, eigenvalues[kept], directions / deviations, float(eigenvalues[kept].sum()) / variance)


def read_whitening(domain: Domain, modality: str) -> Whitening:
    """The map that whitened a domain's features, for vectors of the same encoder that come later."""
    domain.feature(f"{modality}-white")  # which refuses one that is stale
    [row] = domain.table(f"{modality}_whitening").to_pylist()
    mean, eigenvalues, projection = (np.array(row[name]) for name in ("mean", "eigenvalues", "projection"))
    return Whitening(mean, eigenvalues, projection, row["explained"])


def with_fit(store: Store, domain: Domain, state: State) -> State:
    """`state` of a whitened artefact, or stale where the features of another domain it was fitted on are others now.

    A domain that is no longer in the store says nothing.
    """
    if state.status != "fresh" or not state.artefact.endswith("-white"):
        return state
    modality, parameters = state.artefact.removesuffix("-white"), domain.entry(state.artefact)["parameters"]
    for name, version in parameters.get("fitted_on", {}).items():
        if name in store.domains() and _version(store.domain(name), modality) != version:
            why = f"{modality} of {name}, on which it was fitted, changed since"
            return State(state.artefact, "stale", why, domain.command(state.artefact))
    like = parameters.get("like")
    if like in store.domains():
        entry = store.domain(like).manifest().get(state.artefact, {})
        if entry.get("encoder", {}).get("whitening") != parameters["fit"]:
            return State(
                state.artefact, "stale", f"the whitening of {like} changed since", domain.command(state.artefact)
            )
    return state


def _blocks(features: Sequence[Feature]) -> Iterator[Floats]:
    """The present rows, (n, d), piece by piece; what was read is given back."""
    for feature in features:
        for start in range(0, len(feature.values), CHUNK):
            present = feature.present[start : start + CHUNK]
            yield feature.values[start : start + CHUNK][present].astype(np.float64)
            feature.release()


def _signs(directions: Floats) -> Floats:
    """(k,) the sign of each column's entry of the largest size, the first of equal ones."""
    largest = np.abs(directions).argmax(axis=0)
    signs: Floats = np.sign(directions[largest, np.arange(directions.shape[1])])
    return signs


def _version(place: Domain, modality: str) -> str:
    """Which raw features these are: what they are made of, and what came out."""
    entry = place.manifest().get(modality, {})
    return digest([entry.get("fingerprint"), content_sha256(entry)])


def _require_same_encoder(
    places: Sequence[Domain], modality: str, first: Domain | None
) -> Mapping[str, Mapping[str, Any]]:
    """The encoder of each domain's raw features; DataError where they must be those of `first` and are not."""
    wanted = encoder_name(first.entry(modality)) if first else None
    for place in places:
        found = encoder_name(place.entry(modality))
        if first is not None and found != wanted:
            raise DataError(
                f"{modality} of {place.name} is made by {found}, that of {first.name} by {wanted}: one whitening does "
                "not serve both",
                place.command(modality, flags=first.manifest()[modality].get("flags", [])),
            )
    return {place.name: place.entry(modality)["encoder"] for place in places}


def _fit(features: Sequence[Feature], config: WhitenConfig, place: Domain, modality: str) -> Whitening:
    try:
        return fit_whitening(features, config.dims, config.epsilon)
    except ValueError as error:
        raise DataError(
            f"domain {place.name}: {modality} cannot be whitened: {error}", place.command(modality)
        ) from None


def _write(
    place: Domain,
    modality: str,
    raw: Feature,
    fitted_on: Mapping[str, str],
    whitening: Whitening,
    parameters: Mapping[str, Any],
    details: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> StageResult:
    artefact, name = f"{modality}-white", f"{modality}_white"
    rows, width = len(raw.values), whitening.projection.shape[1]
    with place.writing(artefact, parameters) as out:
        if _version(place, modality) != fitted_on[place.name]:  # from here on the store notices
            raise DataError(
                f"domain {place.name}: {modality} changed while its whitening was fitted; {artefact} is as before",
                place.command(artefact),
            )
        with out.feature(name, rows, width) as feature:
            for start in range(0, rows, CHUNK):
                part = slice(start, start + CHUNK)
                whitened = whitening.apply(raw.values[part])
                whitened[~raw.present[part]] = 0
                if np.abs(whitened).max(initial=0) > LARGEST:
                    raise DataError(
                        f"domain {place.name}: {modality} has vectors so far from those the whitening was fitted on "
                        "that they do not fit float16",
                        place.command_with(artefact, "--epsilon", "0.01"),
                    )
                feature.values[part] = whitened
                raw.release()
                feature.release()
                progress(min(start + CHUNK, rows), rows)
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
    return StageResult(place.name, artefact, "built", figures)
