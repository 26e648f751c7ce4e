"""`hub push` and `hub pull`: a run as a repository of a Hugging Face hub ($HF_ENDPOINT, token of `hf auth`)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from antpipe.errors import AntpipeError, DataError
from antpipe.export.folder import ABOUT, FORMAT, Exported, replacing, require_free
from antpipe.store.documents import read_json, refuse_newer
from antpipe.training import checkpoint
from antpipe.training.folder import RunFolder

EXPORT_AGAIN = "antpipe export huggingface --help"
FILES = ("*.json", "*.safetensors", "*.md", "items-*.parquet")  # of a repository that are downloaded


def push(folder: Path, repository: str, *, public: bool = False) -> dict[str, str]:
    """Upload a folder of `export huggingface`. A missing repository is created, private unless `public`.

    Returns repository, url and commit. Raises DataError for another folder, AntpipeError if the hub refuses.
    """
    from huggingface_hub import HfApi

    about = read_about(folder)
    if about.get("kind") != "huggingface":
        raise DataError(f"{folder}: not a folder of `export huggingface`", EXPORT_AGAIN)
    checkpoint.weights_file(folder, checkpoint.describe(folder))
    with said_plainly(f"{repository} cannot be uploaded"):
        api = HfApi()
        url = api.create_repo(repository, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message=f"antpipe run {about['run']['fingerprint'][:12]}",
        )
    return {"repository": repository, "url": str(url), "commit": commit.oid}


def pull(repository: str, out: Path, *, revision: str | None = None, force: bool = False) -> Exported:
    """Download a repository that `push` made; the folder is a run. revision: a branch, tag or commit.

    Raises DataError if it holds no run or `out` exists, IntegrityError if its weights are not those that it
    describes, AntpipeError if the hub refuses.
    """
    from huggingface_hub import HfApi

    require_free(out, force=force, made_by=(ABOUT,))
    with replacing(out, force=force) as scratch:
        with said_plainly(f"{repository} cannot be downloaded"):
            HfApi().snapshot_download(repository, revision=revision, local_dir=scratch, allow_patterns=list(FILES))
        shutil.rmtree(scratch / ".cache", ignore_errors=True)  # the hub client's own files
        if not RunFolder(scratch).is_finished():
            raise DataError(f"{repository}: no run of antpipe there (checkpoint.json is missing)")
        checkpoint.weights_file(scratch, checkpoint.describe(scratch))
        about = read_about(scratch)
    return Exported(out, about)


def read_about(folder: Path) -> dict[str, Any]:
    """The content of export.json. Raises DataError if there is none."""
    path = folder / ABOUT
    try:
        found = read_json(path, dict[str, Any], EXPORT_AGAIN)
    except FileNotFoundError:
        raise DataError(f"{folder}: not an export of antpipe ({ABOUT} is missing)", EXPORT_AGAIN) from None
    refuse_newer(path, found.get("format"), FORMAT)
    return found


@contextmanager
def said_plainly(what: str) -> Iterator[None]:
    """Turn an error of the hub's client into an AntpipeError of one line."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise DataError(f"{what}: {in_one_line(error)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hint = "; log in with `hf auth login`, or check the name" if status in (401, 403, 404) else ""
        raise AntpipeError(f"{what}: {in_one_line(error)}{hint}") from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise AntpipeError(f"{what}: the hub cannot be reached: {in_one_line(error)}") from error


def in_one_line(error: BaseException) -> str:
    """The first two lines of a message: the client's first one is often only a number."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
