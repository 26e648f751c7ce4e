"""The store: the only module that knows paths, schemas, dtypes, manifest, atomic writes and memory maps.

A domain is a folder. Its artefacts (see ARTEFACTS) are complete or absent: a stage writes into a scratch
folder, the finished files are moved into place, and the manifest naming them is replaced last. Every file
carries its fingerprint and the hash of the id table in its own schema metadata, so a file that was
copied in, half replaced or made for another catalogue is recognised when it is opened.
"""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from antpipe import __version__
from antpipe.errors import DataError, IntegrityError
from antpipe.store.artefacts import ARTEFACTS, ArtefactKind, State
from antpipe.store.files import (
    Feature,
    Sequences,
    Transaction,
    content_sha256,
    digest,
    file_facts,
    file_sha256,
    id_table_sha256,
    map_batch,
    map_sequences,
    read_parquet,
    read_stamp,
    write_json,
)
from antpipe.store.lock import alone, committing

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
FORMAT = 1
Manifest = dict[str, dict[str, Any]]


class Domain:
    """One catalogue with its interactions and what was made of them."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.name = name
        self.path = root / name

    # -- manifest -----------------------------------------------------------------------------------------

    def manifest(self) -> Manifest:
        """The entries of all artefacts, by name; empty where nothing was written yet."""
        path = self.path / MANIFEST
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise IntegrityError(
                f"{path}: not JSON: {error}; without it, the stages start anew", f"rm {shlex.quote(str(path))}"
            ) from None
        if not isinstance(document, dict) or document.get("format") != FORMAT or "artefacts" not in document:
            raise IntegrityError(f"{path}: not a manifest of format {FORMAT}", "use the antpipe version that wrote it")
        artefacts: Manifest = document["artefacts"]
        return artefacts

    def entry(self, artefact: str) -> dict[str, Any]:
        """The manifest entry of an artefact whose files are there and are its own; DataError otherwise."""
        entry = self.manifest().get(artefact)
        if entry is None:
            raise DataError(f"domain {self.name}: no {artefact}", self.command(artefact))
        for name in entry["files"]:
            self._stamp(artefact, name, entry)
        return entry

    def command(self, artefact: str, force: bool = False, flags: Sequence[str] | None = None) -> str:
        """The command that builds an artefact of this domain, with the domains it was last built together with.

        flags: its settings; None: those of the last time.
        """
        entry, stage = self.manifest().get(artefact, {}), ARTEFACTS[artefact].command
        if flags is None:
            if entry.get("came_with_items"):
                return self.command("items", force=True)
            flags, stage = entry.get("flags", []), entry.get("stage", stage)
        words = ["antpipe", *stage.split()]
        if artefact == "items":
            form = entry.get("parameters", {}).get("format", "amazon")
            words = ["antpipe", *(form.split() if form.startswith("import ") else ["ingest", form])]
            if form == "amazon" and "--source" not in flags:
                words += ["--source", "DIR"]
        if words[-1] != "sample":  # which has its own domains
            words += ["--domains", ",".join(entry.get("domains", [self.name]))]
        return shlex.join([*words, "--store", str(self.root), *flags, *(["--force"] if force else [])])

    def command_with(self, artefact: str, flag: str, value: str) -> str:
        """The command that builds an artefact as it was last built, but for one setting."""
        entry = self.manifest().get(artefact, {})
        flags = list(entry.get("flags", [])) if entry.get("stage") == ARTEFACTS[artefact].command else []
        if flag in flags:
            del flags[flags.index(flag) : flags.index(flag) + 2]
        return self.command(artefact, flags=[*flags, flag, value])

    def fingerprint(self, artefact: str, parameters: Mapping[str, Any]) -> str:
        """sha256 of stage, version, parameters and the fingerprints of its inputs (which must be there)."""
        kind = ARTEFACTS[artefact]
        return digest([kind.command, kind.version, dict(parameters), self._inputs(kind)])

    def _inputs(self, kind: ArtefactKind) -> dict[str, str]:
        """The fingerprints of what an artefact is made from."""
        names = [*kind.inputs, *(name for name in kind.optional if name in self.manifest())]
        return {name: self.entry(name)["fingerprint"] for name in names}

    def is_fresh(self, artefact: str, parameters: Mapping[str, Any]) -> bool:
        """Whether a run of the stage with these parameters would only repeat what is there."""
        entry = self.manifest().get(artefact)
        wanted = self.fingerprint(artefact, parameters)
        return entry is not None and entry["fingerprint"] == wanted and self.state(artefact).status == "fresh"

    def state(self, artefact: str) -> State:
        """fresh, stale (an input or the stage changed, a file is damaged), partial or missing."""
        entry = self.manifest().get(artefact)
        if entry is None:
            why = "built on request" if ARTEFACTS[artefact].on_request else ""
            why = "no image URLs" if artefact == "pictures" and not self.has_image_urls() else why
            return State(artefact, "missing", why, "" if why else self.command(artefact))
        try:
            self.entry(artefact)
        except (DataError, IntegrityError) as error:
            return State(artefact, "stale", error.message, self.command(artefact, force=True))
        why, mend = self._outdated(artefact, entry)
        if why:
            return State(artefact, "stale", why, mend)
        if "incomplete" in entry:
            return State(artefact, "partial", entry["incomplete"], self.command(artefact))
        return State(artefact, "fresh")

    def _outdated(self, artefact: str, entry: Mapping[str, Any]) -> tuple[str, str]:
        """Why an artefact is not what a run of its stage would give now, and the command that mends it; or nothing."""
        manifest, kind = self.manifest(), ARTEFACTS[artefact]
        for name in {**entry["inputs"], **dict.fromkeys(kind.optional)}:
            if manifest.get(name, {}).get("fingerprint") != entry["inputs"].get(name):
                return f"{name} changed since", self.command(artefact)
            # Items are made from nothing in the store; whether they are damaged is told when they are read.
            if name in kind.inputs and name != "items" and self.state(name).status == "stale":
                return f"{name} is stale", self.state(name).next_command
        for name, content in entry.get("input_files", {}).items():
            if content_sha256(manifest[name]) != content:
                return f"{name} was computed anew since, with other results", self.command(artefact)
        older = entry["stage_version"] != kind.version
        return ("made by an older version of the stage", self.command(artefact)) if older else ("", "")

    def _stamp(self, artefact: str, name: str, entry: Mapping[str, Any]) -> None:
        """Refuse a file that is not the one its manifest entry names."""
        path = self.path / name
        stamp = read_stamp(path)
        mend = self.command(artefact, force=True)
        if stamp is None:
            raise IntegrityError(f"{path}: missing or not written by antpipe", mend)
        if stamp["id_table"] != self.manifest().get("items", {}).get("id_table"):
            raise IntegrityError(f"{path}: made for another catalogue (its id table differs from items.parquet)", mend)
        if stamp["fingerprint"] != entry["fingerprint"]:
            raise IntegrityError(f"{path}: not the file its manifest describes", mend)
        if path.stat().st_size != entry["files"][name]["bytes"]:
            raise IntegrityError(f"{path}: has another size than when it was written", mend)

    def verify(self, artefact: str) -> State:
        """`state`, after reading the artefact's files whole: stale where a byte differs from what was written."""
        state = self.state(artefact)
        if state.status in ("fresh", "partial"):
            for name, facts in self.entry(artefact)["files"].items():
                if file_sha256(self.path / name) != facts["sha256"]:
                    why = f"{self.path / name}: its content differs from what was written"
                    return State(artefact, "stale", why, self.command(artefact, force=True))
        return state

    # -- writing ------------------------------------------------------------------------------------------

    @contextmanager
    def writing(
        self, artefact: str, parameters: Mapping[str, Any], id_table: str | None = None
    ) -> Iterator[Transaction]:
        """Write one artefact: all its files appear together at the end of the block, or none.

        AntpipeError where another process is at it.

        parameters: what the fingerprint covers. id_table: only for `items`, the hash of the new ids.
        """
        kind = ARTEFACTS[artefact]
        with alone(self.path, artefact):
            for leftover in self.path.glob(f".new.{artefact}.*"):  # of a run that was killed
                shutil.rmtree(leftover)
            stamp = {
                "fingerprint": self.fingerprint(artefact, parameters),
                "id_table": id_table or self.entry("items")["id_table"],
            }
            inputs = self._inputs(kind)
            files = {name: content_sha256(self.entry(name)) for name in kind.inputs if name != "items"}
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
                    "inputs": inputs,
                    "input_files": files,
                    "id_table": stamp["id_table"],
                    "antpipe": __version__,
                    "written": datetime.now(UTC).isoformat(timespec="seconds"),
                    "files": {path.name: file_facts(path) for path in sorted(scratch.iterdir()) if path.is_file()},
                    **transaction.details,
                }
                with committing(self.path):
                    self._commit(artefact, scratch, entry)
                transaction.afterwards()
            finally:
                shutil.rmtree(scratch, ignore_errors=True)

    def _commit(self, artefact: str, scratch: Path, entry: dict[str, Any]) -> None:
        manifest = self.manifest()
        for name, fingerprint in entry["inputs"].items():
            content = content_sha256(manifest.get(name, {}))
            if (
                manifest.get(name, {}).get("fingerprint") != fingerprint
                or entry["input_files"].get(name, content) != content
            ):
                raise DataError(
                    f"domain {self.name}: {name} changed while {artefact} was built from it; {artefact} is as before",
                    self.command(artefact),
                )
        for path in sorted(scratch.iterdir(), key=lambda path: path.is_file()):  # folders first: tables name them
            target = self.path / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        for name in manifest.get(artefact, {}).get("files", {}).keys() - entry["files"].keys():
            (self.path / name).unlink(missing_ok=True)  # of an earlier form of the artefact
        manifest[artefact] = entry
        write_json(self.path / MANIFEST, {"format": FORMAT, "domain": self.name, "artefacts": manifest})
        for leftover in self.path.glob("images-*"):
            if leftover.name != manifest["items"].get("images"):
                shutil.rmtree(leftover)

    # -- reading ------------------------------------------------------------------------------------------

    def table(self, name: str, columns: list[str] | None = None) -> "pa.Table":
        """items, interactions, users, rejects, pictures, text_whitening … as an Arrow table."""
        import pyarrow as pa

        path = self.path / f"{name}.parquet"
        artefact = next((one for one, kind in ARTEFACTS.items() if path.name in kind.files), "items")
        self.entry(artefact)
        try:
            return read_parquet(path, columns)
        except (OSError, pa.ArrowInvalid) as error:
            raise IntegrityError(f"{path}: damaged: {error}", self.command(artefact, force=True)) from None

    def item_ids(self) -> list[str]:
        """Original ids in row order; IntegrityError where they are not the ones the store was built with."""
        ids: list[str] = self.table("items", ["item_id"])["item_id"].to_pylist()
        if id_table_sha256(ids) != self.entry("items")["id_table"]:
            raise IntegrityError(
                f"{self.path / 'items.parquet'}: its ids were changed", self.command("items", force=True)
            )
        return ids

    def rows(self) -> int:
        """Number N of items."""
        rows: int = self.entry("items")["rows"]
        return rows

    def has_image_urls(self) -> bool:
        """Whether there are pictures to fetch, as far as the manifest knows."""
        statistics: dict[str, Any] = self.manifest().get("items", {}).get("statistics", {})
        return bool(statistics.get("with_image_url", True))

    def feature(self, modality: str) -> Feature:
        """A modality's features, or `text-white` …, mapped (nothing is read before it is used)."""
        self._require_fresh(modality)
        path = self.path / ARTEFACTS[modality].files[0]
        batch, mapping = map_batch(path)
        column = batch.column("values")
        values = column.flatten().to_numpy(zero_copy_only=True).reshape(len(column), column.type.list_size)
        if len(values) != self.rows():
            mend = self.command(modality, force=True)
            raise IntegrityError(f"{path}: {len(values)} rows for {self.rows()} items", mend)
        return Feature(values, batch.column("present").to_numpy(zero_copy_only=False), mapping)

    def sequences(self) -> Sequences:
        """Everybody's sequence, mapped."""
        self._require_fresh("sequences")
        return map_sequences(self.path / "sequences.arrow", int(self.entry("sequences")["parameters"]["max_len"]))

    def _require_fresh(self, artefact: str) -> None:
        self.entry(artefact)
        state = self.state(artefact)
        if state.status != "fresh":
            raise DataError(f"domain {self.name}: {artefact} is {state.status}: {state.why}", state.next_command)
