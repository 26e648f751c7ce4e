"""Outcomes of comparisons, written by hand: what comparison.json holds, as far as reports read it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = ("recall@10", "ndcg@10", "mrr@10", "recall@50")


def arm(seeds: Sequence[float], kind: str = "trained", word: str | None = None, **more: Any) -> dict[str, Any]:
    """An arm whose metrics are all the same. word: of its verdict."""
    mean = sum(seeds) / len(seeds)
    spread = {"mean": mean, "std": 0.01 if len(seeds) > 1 else None, "seeds": list(seeds)}
    return {
        "kind": kind,
        "mix": None,
        "seeds": len(seeds),
        "protocols": {protocol: dict.fromkeys(METRICS, spread) for protocol in ("all", "unseen")},
        "differences": {},
        "verdict": {"word": word, "why": f"because of {word}"} if word else None,
        "runs": [
            {"run": f"there/{seed}", "seed": seed, "fingerprint": "f", "chosen": None} for seed in range(len(seeds))
        ],
        **more,
    }


def difference(value: float, control: float, half: float | None = 0.01) -> dict[str, Any]:
    """A difference to the control with an interval of this half width."""
    low, high = (None, None) if half is None else (value - half, value + half)
    tested = {"p": 0.01 if half else None, "p_holm": 0.02 if half else None, "effect": 0.1, "detectable": 0.02}
    return {"difference": value, "control": control, "low": low, "high": high, **tested}


def compared(value: float, control: float, half: float | None = 0.01) -> dict[str, Any]:
    """The same difference in both protocols and tested metrics."""
    one = difference(value, control, half)
    return {protocol: {"recall@10": one, "ndcg@10": one} for protocol in ("all", "unseen")}


def target(arms: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "users": 50,
        "positions": 50,
        "items": 20,
        "target_in_history": 0.0,
        "arms": dict(arms),
        "notes": [],
        **more,
    }


def outcome(targets: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "control": "scratch",
        "protocol": "all",
        "metric": "ndcg@10",
        "split": "test",
        "alpha": 0.05,
        "margin": 0.05,
        "tested": ["recall@10", "ndcg@10"],
        "targets": dict(targets),
        "pooled": {},
        "pooled_by_users": {},
        "curve": {},
        "sources": {},
        **more,
    }


def usual(word: str = "POSITIVE", gain: float = 0.02) -> dict[str, Any]:
    """A target with a control, an arm that transfers and a baseline."""
    return target(
        {
            "scratch": arm([0.09, 0.10, 0.11]),
            "relearn": arm([0.09 + gain, 0.10 + gain, 0.11 + gain], word=word, differences=compared(gain, 0.1)),
            "popularity": arm([0.02], "untrained", differences=compared(-0.08, 0.1)),
        }
    )


def written(folder: Path, found: Mapping[str, Any]) -> Path:
    """The folder of a comparison with this outcome."""
    folder.mkdir(parents=True)
    (folder / "comparison.json").write_text(json.dumps(found), encoding="utf-8")
    return folder
