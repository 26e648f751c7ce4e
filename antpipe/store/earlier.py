"""A feature as it was last built, even if its catalogue has changed: a new embedding can copy from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.runtime.logs import log
from antpipe.store.files import damage_to, map_batch, map_feature, rot_in

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Earlier:
    """A modality as it was last built; the catalogue may have changed since.

    values: (M, d) float16, mapped. present: (M,) bool. content: (M, 16) uint8, a hash of what each vector was made of,
    zeros if there was nothing. rotten: the file is damaged, and none of its vectors counts as present.
    """

    values: "NDArray[np.float16]"
    present: "NDArray[np.bool_]"
    content: "NDArray[np.uint8]"
    rotten: bool = False


def earlier_feature(path: Path, entry: Mapping[str, Any]) -> Earlier | None:
    """The vectors of MODALITY.arrow as its manifest entry describes it, whether or not the catalogue changed since.

    None if there is no entry, the file is not its own or not an Arrow file, or it does not say what its vectors were
    made of. Logs a warning if its content is not what was written; only the digests (`content`) are usable then.
    """
    import numpy as np
    import pyarrow as pa

    if not entry or damage_to(path, entry, entry["id_table"]):
        return None
    why = rot_in(path, entry)
    if why:
        log.warning(f"{why}; its vectors are computed again")
    try:
        feature, (batch, _) = map_feature(path), map_batch(path)
        batch.validate()
    except (OSError, ValueError, pa.ArrowException):
        return None
    if "content" not in batch.schema.names or batch.schema.field("content").type != pa.binary(16):
        return None
    content = np.frombuffer(batch.column("content").buffers()[1], np.uint8)[: 16 * len(batch)].reshape(-1, 16)
    present = np.zeros(len(batch), np.bool_) if why else feature.present
    return Earlier(feature.values, present, content, rotten=bool(why))
