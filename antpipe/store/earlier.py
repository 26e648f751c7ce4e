"""A feature as it was last built, whatever became of its catalogue: what a new embedding can copy from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe.errors import IntegrityError
from antpipe.store.files import damage_to, map_batch, map_feature, rot_in

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Earlier:
    """A modality as it was last built; the catalogue may have changed since.

    values: (M, d) float16, mapped. present: (M,) bool. content: (M, 16) uint8, a hash of what each vector was made of,
    zeros if there was nothing.
    """

    values: "NDArray[np.float16]"
    present: "NDArray[np.bool_]"
    content: "NDArray[np.uint8]"


def earlier_feature(path: Path, entry: Mapping[str, Any], next_command: str | None = None) -> Earlier | None:
    """The vectors of MODALITY.arrow as its manifest entry describes it, whether or not the catalogue changed since.

    None if there is no entry, the file is not its own, or the file does not say what its vectors were made of. Raises
    IntegrityError, with the next command, if its content is not what was written.
    """
    import numpy as np
    import pyarrow as pa

    if not entry or damage_to(path, entry, entry["id_table"]):
        return None
    if why := rot_in(path, entry):
        raise IntegrityError(why, next_command)
    try:
        feature, (batch, _) = map_feature(path), map_batch(path)
    except (ValueError, pa.ArrowException) as error:
        raise IntegrityError(f"{path}: damaged: {error}", next_command) from None
    if "content" not in batch.schema.names or batch.schema.field("content").type != pa.binary(16):
        return None
    content = np.frombuffer(batch.column("content").buffers()[1], np.uint8)[: 16 * len(batch)].reshape(-1, 16)
    return Earlier(feature.values, feature.present, content)
