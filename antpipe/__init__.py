"""antpipe: sequential recommenders that transfer between shops, and a test whether the transfer helps.

The functions and classes below are the whole public API; the command line calls them. They are loaded when they are
first used, so that `import antpipe` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from antpipe.api.data import (
        import_embeddings,
        import_recbole,
        import_unisrec,
        ingest_amazon,
        ingest_sample,
        ingest_table,
    )
    from antpipe.api.exports import (
        export_faiss,
        export_huggingface,
        export_onnx,
        export_recbole,
        export_unisrec,
        export_vectors,
        hub_pull,
        hub_push,
    )
    from antpipe.api.features import (
        build_sequences,
        embed_image,
        embed_text,
        fetch_images,
        quantize_price,
        subset,
        whiten,
    )
    from antpipe.api.judging import Comparison, compare, plan_comparison
    from antpipe.api.overview import demo, encoders, next_step, runs, stats, status
    from antpipe.api.reporting import plot, write_report
    from antpipe.api.runs import Evaluation, Run, Vectors
    from antpipe.api.serving import serve, service
    from antpipe.api.training import import_ant_checkpoint, plan_race, plan_training, train, tune
    from antpipe.api.upkeep import doctor, store_gc
    from antpipe.errors import (
        AntpipeError,
        DataError,
        DivergedError,
        IntegrityError,
        Interrupted,
        PartialError,
        UsageError,
    )
    from antpipe.export.folder import Exported
    from antpipe.report.write import WrittenReport
    from antpipe.store.artefacts import StageResult, State
    from antpipe.store.domain import Domain
    from antpipe.store.store import Store
    from antpipe.tuning.run import Tuned
    from antpipe.upkeep.findings import Finding
    from antpipe.upkeep.unused import Collected

_HOMES = {
    "antpipe.store.store": ("Store",),
    "antpipe.store.domain": ("Domain",),
    "antpipe.store.artefacts": ("StageResult", "State"),
    "antpipe.api.data": (
        "ingest_amazon",
        "ingest_table",
        "ingest_sample",
        "import_recbole",
        "import_unisrec",
        "import_embeddings",
    ),
    "antpipe.api.features": (
        "fetch_images",
        "embed_text",
        "embed_image",
        "quantize_price",
        "whiten",
        "build_sequences",
        "subset",
    ),
    "antpipe.api.training": ("train", "plan_training", "plan_race", "tune", "import_ant_checkpoint"),
    "antpipe.tuning.run": ("Tuned",),
    "antpipe.api.runs": ("Run", "Evaluation", "Vectors"),
    "antpipe.api.serving": ("serve", "service"),
    "antpipe.api.judging": ("compare", "plan_comparison", "Comparison"),
    "antpipe.api.reporting": ("write_report", "plot"),
    "antpipe.report.write": ("WrittenReport",),
    "antpipe.api.overview": ("status", "stats", "runs", "next_step", "encoders", "demo"),
    "antpipe.api.upkeep": ("doctor", "store_gc"),
    "antpipe.upkeep.findings": ("Finding",),
    "antpipe.upkeep.unused": ("Collected",),
    "antpipe.api.exports": (
        "export_vectors",
        "export_faiss",
        "export_onnx",
        "export_recbole",
        "export_unisrec",
        "export_huggingface",
        "hub_push",
        "hub_pull",
    ),
    "antpipe.export.folder": ("Exported",),
    "antpipe.errors": (
        "AntpipeError",
        "UsageError",
        "DataError",
        "PartialError",
        "IntegrityError",
        "DivergedError",
        "Interrupted",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [*_HOME_OF]  # noqa: PLE0604 -- names, by the module that has them


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'antpipe' has no attribute {name!r}; see dir(antpipe)")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*_HOME_OF, "__version__"])
