"""Published cures for negative transfer, as settings of training that are off by default (docs/beyond-ant.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

from antpipe.errors import UsageError
from antpipe.settings.base import Config, setting

NO_METHOD = "none"
CONSENSUS, DISTIL, BALANCE, BEHAVIOUR = "consensus", "distil", "balance", "behaviour"
PEER = ("peer_layers", "peer_candidates")
SOFT_TARGETS = ("distil_weight", "distil_temperature")
# The settings that each method reads. An arm STAGE+METHOD of a comparison is the stage with `method` and these.
METHODS: Mapping[str, tuple[str, ...]] = {
    CONSENSUS: (*PEER, "peer_top", "peer_weight", "teacher_weight", *SOFT_TARGETS),
    DISTIL: (*PEER, *SOFT_TARGETS),
    BALANCE: ("balance_weight", "balance_temperature", "balance_epochs"),
    BEHAVIOUR: ("low_rated_weight", "low_rated_gate", "unverified_weight", "unverified_gate"),
}
M = TypeVar("M", bound="MethodConfig")


def with_method(training: M, method: str) -> M:
    """The same settings with a method, or with NO_METHOD. Settings that it does not read are set to their defaults."""
    unread = {*METHOD_SETTINGS} - {*METHODS.get(method, ())}
    return replace(training, **{name: getattr(MethodConfig, name) for name in unread} | {"method": method})


def way_of(stage: str, method: str) -> str:
    """How a run is trained, as --arms names it: STAGE or STAGE+METHOD."""
    return stage if method == NO_METHOD else f"{stage}+{method}"


@dataclass(frozen=True)
class MethodConfig(Config):
    """Which method is added to a stage on a target, and its constants."""

    panel: ClassVar[str] = "Beyond ANT"
    method: str = setting(
        NO_METHOD,
        "cure for negative transfer to add to a stage on a target; consensus: negatives chosen with a peer, and its "
        "soft targets; distil: the soft targets alone; balance: modalities learn equally fast; behaviour: low-rated "
        "and unverified purchases count less",
        (NO_METHOD, *METHODS),
    )
    peer_layers: int = setting(0, "Transformer layers of the peer in consensus and distil (0: --layers)", least=0)
    peer_candidates: int = setting(
        100, "items drawn per position, among which the model and its peer choose and compare", least=1
    )
    peer_top: int = setting(3, "negatives are among this many of the highest candidates of each ranking", least=1)
    peer_weight: float = setting(1.0, "weight beta of the peer's negatives; those of the model have 1", least=0)
    teacher_weight: float = setting(1.0, "weight gamma of the teacher's negatives", least=0)
    distil_weight: float = setting(1.0, "weight mu of the teacher's soft targets", least=0)
    distil_temperature: float = setting(1.0, "temperature tau of the soft targets", least=1e-3)
    balance_weight: float = setting(1.0, "weight rho of the losses of single modalities", least=0)
    balance_temperature: float = setting(
        0.1, "temperature mu of these losses; the smaller, the more the slowest modality counts", least=1e-3
    )
    balance_epochs: int = setting(10, "epochs over which the weight rho grows to its full value", least=1)
    low_rated_weight: float = setting(0.5, "weight of a low-rated target in the loss", least=0, most=1)
    low_rated_gate: float = setting(0.5, "factor on the vector of a low-rated item that is read", least=0, most=1)
    unverified_weight: float = setting(0.5, "weight of an unverified target in the loss", least=0, most=1)
    unverified_gate: float = setting(0.5, "factor on the vector of an unverified item that is read", least=0, most=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == CONSENSUS and self.peer_top > self.peer_candidates:
            raise UsageError(f"--peer-top {self.peer_top}: at most --peer-candidates {self.peer_candidates}")


METHOD_SETTINGS = tuple(field.name for field in fields(MethodConfig))
