"""How a run is evaluated."""

from dataclasses import dataclass
from typing import ClassVar

from antpipe.settings.base import DEVICES, Config, setting


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """How a run is ranked on a domain."""

    section: ClassVar[str] = "evaluate"
    panel: ClassVar[str] = "Index"
    split: str = setting("test", "positions to predict", ("valid", "test"), panel="Input")
    device: str = setting("auto", "device to compute on", DEVICES, panel="Run")
    block_size: int = setting(
        0, "positions ranked at once (0: as many as fit in about 100 MB); does not change results", least=0, panel="Run"
    )
    beyond_accuracy: bool = setting(
        False,
        "also describe the lists beyond accuracy: coverage, Gini, popularity, novelty, distance within lists",
        panel="Output",
    )
    index: str = setting(
        "exact", "search index; ivf and hnsw are approximate, and so are their figures", ("exact", "ivf", "hnsw")
    )
    nlist: int = setting(0, "ivf: number of inverted lists (0: 4 times the square root of the items)", least=0)
    nprobe: int = setting(16, "ivf: inverted lists searched per query", least=1)
    hnsw_m: int = setting(32, "hnsw: links per item in the graph", least=2)
    ef_construction: int = setting(40, "hnsw: candidates kept while building the graph", least=1)
    ef_search: int = setting(128, "hnsw: candidates kept while searching the graph", least=1)
