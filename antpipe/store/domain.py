"""One domain of a store: a folder with its artefacts, and how they are read and written.

An artefact (see ARTEFACTS) is complete or absent: a stage writes into a scratch folder, and commit.py moves its files
and the manifest that names them into place together. Every file carries its fingerprint and the hash of the id table in
its own schema metadata, and the manifest has its content hash; so a file that was copied in, made for another
catalogue, or damaged since is noticed when it is opened.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from antpipe import __version__
from antpipe.errors import DataError, IntegrityError
from antpipe.runtime.files import flush_tree, sweep
from antpipe.store.artefacts import ARTEFACTS, State
from antpipe.store.commit import MANIFEST, PENDING, commit, finish
from antpipe.store.documents import UPGRADE, read_json, require_format, sealed_format
from antpipe.store.entries import read_entry, refuse_unknown, sealed_entry, why_damaged
from antpipe.store.files import (
    Feature,
    Sequences,
    Transaction,
    damage_to,
    file_facts,
    map_feature,
    map_sequences,
    read_parquet,
    rot_in,
)
from antpipe.store.lock import alone, committing
from antpipe.store.manifest import (
    NEWER,
    Entry,
    Manifest,
    Standing,
    changed_input,
    content_sha256,
    fingerprint,
    id_table_sha256,
    inputs_of,
    lacking,
    standing,
)
from antpipe.store.next_command import build_command, shell, supply_command

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
T = TypeVar("T")


class Domain:
    """One catalogue with its interactions and the artefacts made from them.

    >>> toys = ant.Store("shop").domain("Toys")
    >>> toys.table("items", ["item_id", "title"]).num_rows  # an Arrow table
    12
    >>> toys.feature("text").values.shape  # mapped from disk, one row per item
    (12, 384)
    """

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.path = root / name

    # -- what there is ------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """The entries of all artefacts, by name; empty if nothing was written yet.

        An entry that is damaged is a DamagedEntry. Raises IntegrityError if the file as a whole is.
        """
        self._finish_commit()
        path = self.path / MANIFEST
        mend = shell("rm", path)
        try:
            document = read_json(path, dict[str, Any], mend)
        except FileNotFoundError:
            return {}
        except IntegrityError as error:
            raise IntegrityError(f"{error.message}; without it, every stage runs again", mend) from None
        require_format(document, FORMAT, path, mend)
        entries = document.get("artefacts")
        if document.get("format") != FORMAT or not isinstance(entries, dict):
            raise IntegrityError(f"{path}: not a manifest; without it, every stage runs again", mend)
        refuse_unknown(entries, path, mend)
        return {name: read_entry(name, value, path) for name, value in entries.items()}

    def _finish_commit(self) -> None:
        """Complete a commit that was cut short (see commit.py)."""
        pending = self.path / PENDING
        if pending.exists():
            try:
                with committing(self.path):
                    finish(self.path)
            except OSError as error:
                why = f"{pending}: a write was cut short and cannot be finished: {error.strerror}"
                raise IntegrityError(why, shell("ls", "-l", pending)) from None

    def entry(self, artefact: str) -> Entry:
        """The manifest entry of an artefact. Raises DataError if it is missing, IntegrityError if a file is damaged."""
        return self._entry(artefact, self.manifest())

    def is_fresh(self, artefact: str, parameters: Mapping[str, Any]) -> bool:
        """Whether a run of the stage with these parameters would only rebuild what exists.

        Raises as `entry` does for the artefacts it is made from.
        """
        manifest = self.manifest()
        wanted = self._fingerprint(artefact, parameters, manifest)
        return (
            artefact in manifest
            and manifest[artefact]["fingerprint"] == wanted
            and self._standing(artefact, manifest).status == "fresh"
        )

    def state(self, artefact: str) -> State:
        """fresh, stale (an input or the stage changed, a file is damaged), partial or missing."""
        return self._state(artefact, self._standing(artefact, self.manifest()))

    def verify(self, artefact: str) -> State:
        """The same as `state`, after reading the artefact's files completely: stale if a byte has changed since."""
        return self._state(artefact, self._standing(artefact, self.manifest(), content=True))

    # Methods below that take a manifest work on one reading of it.

    def _entry(self, artefact: str, manifest: Manifest) -> Entry:
        if artefact not in manifest:
            if why := lacking(artefact, manifest):
                raise DataError(f"domain {self.name}: no {artefact}: {why}", supply_command(self, artefact))
            raise DataError(f"domain {self.name}: no {artefact}", build_command(self, artefact))
        if why := self.damage(artefact, manifest):
            raise IntegrityError(why, build_command(self, artefact, force=True))
        return manifest[artefact]

    def damage(self, artefact: str, manifest: Manifest, content: bool = False) -> str:
        """Why the files of an artefact are not those that its entry describes; '' if they are. content: read them."""
        for name in ("items", artefact):
            if why := why_damaged(manifest.get(name, {})):
                return why
        entry, id_table = manifest[artefact], manifest.get("items", {}).get("id_table")
        paths = [self.path / name for name in entry["files"]]
        rotten = (rot_in(path, entry, again=True) for path in paths if content)
        found = (damage_to(path, entry, id_table) for path in paths)
        return next(filter(None, found), "") or next(filter(None, rotten), "")

    def _standing(self, artefact: str, manifest: Manifest, content: bool = False) -> Standing:
        return standing(artefact, manifest, lambda name: self.damage(name, manifest, content and name == artefact))

    def _state(self, artefact: str, found: Standing) -> State:
        build = build_command(self, found.build, force=found.force) if found.build else ""
        return State(artefact, found.status, found.why, UPGRADE if found.why == NEWER else build)

    def _fingerprint(self, artefact: str, parameters: Mapping[str, Any], manifest: Manifest) -> str:
        for name in inputs_of(artefact, manifest):
            self._entry(name, manifest)
        return fingerprint(artefact, parameters, manifest)

    # -- writing ------------------------------------------------------------------------------------------

    @contextmanager
    def writing(
        self, artefact: str, parameters: Mapping[str, Any], id_table: str | None = None
    ) -> Iterator[Transaction]:
        """Write one artefact: all its files appear together at the end of the block, or none.

        parameters: what the fingerprint covers. id_table: only for `items`, the hash of the new ids.
        Raises AntpipeError if another process is writing it, DataError if an input changed before the block ended.
        """
        kind = ARTEFACTS[artefact]
        with alone(self.path, artefact):
            sweep(self.path)
            for leftover in self.path.glob(f".new.{artefact}.*"):  # scratch files of a killed run
                shutil.rmtree(leftover)
            manifest = self.manifest()
            stamp = {
                "fingerprint": self._fingerprint(artefact, parameters, manifest),
                "id_table": id_table or self._entry("items", manifest)["id_table"],
            }
            scratch = Path(tempfile.mkdtemp(prefix=f".new.{artefact}.", dir=self.path))
            transaction = Transaction(scratch, stamp)
            try:
                yield transaction
                missing = [name for name in kind.files if not (scratch / name).exists()]
                if missing:
                    raise AssertionError(f"stage {kind.command} did not write {missing}")
                entry = {
                    "fingerprint": stamp["fingerprint"],
                    "stage": kind.command,
                    "stage_version": kind.version,
                    "parameters": dict(parameters),
                    "inputs": inputs_of(artefact, manifest),
                    "input_files": {name: content_sha256(manifest[name]) for name in kind.inputs if name != "items"},
                    "id_table": stamp["id_table"],
                    "antpipe": __version__,
                    "written": datetime.now(UTC).isoformat(timespec="seconds"),
                    "files": {path.name: file_facts(path) for path in sorted(scratch.iterdir()) if path.is_file()},
                    **transaction.details,
                }
                flush_tree(scratch)
                with committing(self.path):
                    self._commit(artefact, scratch, entry)
                transaction.afterwards()
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _commit(self, artefact: str, scratch: Path, entry: Entry) -> None:
        """Move the finished files into place and name them in the manifest, while `committing` is held."""
        finish(self.path)
        manifest = self.manifest()
        if changed := changed_input(entry, manifest):
            raise DataError(
                f"domain {self.name}: {changed} changed while {artefact} was built from it; {artefact} is as before",
                build_command(self, artefact),
            )
        earlier = manifest.get(artefact, {}).get("files", {}).keys() - entry["files"].keys()
        manifest[artefact] = entry
        entries = {name: sealed_entry(name, one) for name, one in manifest.items()}
        commit(self.path, scratch, {**sealed_format(FORMAT), "domain": self.name, "artefacts": entries})
        for name in earlier:
            (self.path / name).unlink(missing_ok=True)
        for leftover in self.path.glob("images-*"):
            if leftover.name != manifest["items"].get("images") and not why_damaged(manifest["items"]):
                shutil.rmtree(leftover)

    # -- reading ------------------------------------------------------------------------------------------

    def table(self, name: str, columns: list[str] | None = None) -> "pa.Table":
        """One of the Parquet files (items, interactions, users, rejects, pictures, text_whitening …) as an Arrow table.

        columns: these, in this order; None for all. Raises IntegrityError if the file is damaged or lacks a column.
        """
        path = self.file(f"{name}.parquet")
        return self._opened(path, lambda: read_parquet(path, columns))

    def file(self, name: str) -> Path:
        """A file of an artefact, after comparing its content with what was written: this reads it once per process.

        Raises DataError if the artefact is missing, IntegrityError if the file is damaged.
        """
        return self._file(name, self.manifest())

    def _file(self, name: str, manifest: Manifest) -> Path:
        path, artefact = self.path / name, _artefact_of(name)
        if why := rot_in(path, self._entry(artefact, manifest)):
            raise IntegrityError(why, build_command(self, artefact, force=True))
        return path

    def _opened(self, path: Path, opening: Callable[[], T]) -> T:
        """What `opening` gives. Raises IntegrityError if it finds the file damaged."""
        import pyarrow as pa

        try:
            return opening()
        except (OSError, ValueError, pa.ArrowException) as error:
            mend = build_command(self, _artefact_of(path.name), force=True)
            raise IntegrityError(f"{path}: damaged: {error}", mend) from None

    def item_ids(self) -> list[str]:
        """Original ids in row order. Raises IntegrityError if they are not those the store was built with."""
        ids: list[str] = self.table("items", ["item_id"])["item_id"].to_pylist()
        if id_table_sha256(ids) != self.entry("items")["id_table"]:
            raise IntegrityError(
                f"{self.path / 'items.parquet'}: its ids were changed", build_command(self, "items", force=True)
            )
        return ids

    def rows(self) -> int:
        """Number N of items, with the cold ones: the rows of items.parquet and of every feature."""
        rows: int = self.entry("items")["rows"]
        return rows

    def core_rows(self) -> int:
        """Number of items of the core, which come first; cold items follow.

        Training, evaluation, statistics and everything fitted on a catalogue use the core alone.
        """
        return _core_rows(self.entry("items"))

    def feature(self, modality: str) -> Feature:
        """A modality's features, or `text-white` …, mapped.

        Raises DataError unless they are fresh, IntegrityError if they are damaged or do not fit the items.
        """
        manifest = self._require_fresh(modality)
        path = self._file(ARTEFACTS[modality].files[0], manifest)
        feature = self._opened(path, lambda: map_feature(path))
        rows = self._entry("items", manifest)["rows"]
        if len(feature.values) != rows:
            raise IntegrityError(
                f"{path}: {len(feature.values)} rows for {rows} items", build_command(self, modality, force=True)
            )
        return feature

    def core_feature(self, modality: str) -> Feature:
        """The same for the core's items. Raises as `feature` does."""
        return self.feature(modality).first(self.core_rows())

    def sequences(self) -> Sequences:
        """The sequences of all users, mapped. Raises as `feature` does."""
        manifest = self._require_fresh("sequences")
        max_len, items = manifest["sequences"]["parameters"]["max_len"], _core_rows(self._entry("items", manifest))
        path = self._file("sequences.arrow", manifest)
        return self._opened(path, lambda: map_sequences(path, max_len, items))

    def _require_fresh(self, artefact: str) -> Manifest:
        manifest = self.manifest()
        self._entry(artefact, manifest)
        found = self._standing(artefact, manifest)
        if found.status != "fresh":
            command = self._state(artefact, found).next_command or supply_command(self, artefact)
            raise DataError(f"domain {self.name}: {artefact} is {found.status}: {found.why}", command)
        return manifest


def _core_rows(items: Entry) -> int:
    rows: int = items["core_rows"] if "core_rows" in items else items["rows"]
    return rows


def _artefact_of(name: str) -> str:
    """The artefact that a file belongs to, by its name."""
    return next((one for one, kind in ARTEFACTS.items() if name in kind.files), "items")
