"""`doctor`: each damaged file is a finding by name, the rest goes on, and the exit code says how bad it is."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

import antpipe as ant
from antpipe.errors import DataError, UsageError
from antpipe.upkeep import libraries, machine
from antpipe.upkeep.findings import DAMAGED, FINE, REMARK, UNFIT, Finding, guarded, worst
from tests.conftest import REPOSITORY
from tests.support.next_commands import fault_of
from tests.support.places import Place, make_place
from tests.support.shops import make_domain

OF_STORES = ("Source", "Target", "Wide", "run ")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("doctor"))
    assert place.run("evaluate --run {runs}/scratch --domains Target --device cpu --store {store}").code == 0
    return place


@pytest.fixture
def place(whole: Place, tmp_path: Path) -> Place:
    return whole.copy(tmp_path / "copy")


def findings(place: Place, *, deep: bool = False) -> list[Finding]:
    """What is said of the store and of its runs."""
    return [one for one in ant.doctor(place.store, runs=place.runs, deep=deep) if one.about.startswith(OF_STORES)]


def damaged(place: Place, *, deep: bool = False) -> list[Finding]:
    return [one for one in findings(place, deep=deep) if one.severity == DAMAGED]


def flip(path: Path) -> None:
    """Other bytes where the values of a small table are; single bits of a Parquet header need not change any row."""
    content = bytearray(path.read_bytes())
    content[40:140] = (byte ^ 1 for byte in content[40:140])
    path.write_bytes(content)


@pytest.mark.parametrize("deep", [False, True])
def test_all_is_well_with_a_whole_store_and_its_runs(whole: Place, deep: bool) -> None:
    found = findings(whole, deep=deep)
    assert {one.severity for one in found} == {FINE}
    assert [one.about for one in found] == [
        "Source",
        "Target",
        "Wide",
        f"run {whole.runs / 'pretrain'}",
        f"run {whole.runs / 'scratch'}",
    ]


def test_every_file_with_other_bytes_is_found_by_name_and_the_rest_goes_on(place: Place) -> None:
    files = [*(place.store / "Target").glob("[!.]*"), *(place.runs / "scratch").glob("[!.]*")]
    files = [path for path in files if path.stat().st_size]
    assert len(files) > 12
    for path in files:
        before = path.read_bytes()
        flip(path)
        found = findings(place, deep=True)
        path.write_bytes(before)
        wrong = [one for one in found if one.severity == DAMAGED]
        assert [one for one in wrong if path.name in one.message], path.name
        where = "Target" if path.parent.name == "Target" else "run"
        assert {one.about.split()[0] for one in wrong} == {where}
        assert {"Source", "Wide", f"run {place.runs / 'pretrain'}"} <= {one.about for one in found}


@pytest.mark.parametrize("name", ["Target/text.arrow", "Target/items.parquet", "Target/manifest.json"])
def test_a_file_that_was_cut_short_is_found_without_reading_all(place: Place, name: str) -> None:
    path = place.store / name
    path.write_bytes(path.read_bytes()[:-20])
    [found] = [one for one in damaged(place) if path.name in one.message]
    assert fault_of(found.next_command) is None


def test_weights_that_were_cut_short_are_found_without_reading_all(place: Place) -> None:
    [path] = (place.runs / "scratch").glob("model-*")
    path.write_bytes(path.read_bytes()[:-20])
    [found] = damaged(place)
    assert found.about == f"run {place.runs / 'scratch'}"
    assert path.name in found.message


def test_an_empty_folder_and_nonsense_in_all_files_end_in_findings(place: Place) -> None:
    for number, path in enumerate(sorted(place.folder.rglob("*"))):
        if path.is_file():
            path.write_bytes((b"", b"\0" * 50, b"[]", b'{"format": "x"}')[number % 4])
    (place.store / "Empty").mkdir()
    assert len(damaged(place, deep=True)) >= 5


def test_a_stale_artefact_is_a_remark_with_the_command_that_builds_it(place: Place) -> None:
    manifest = place.store / "Target" / "manifest.json"
    document = json.loads(manifest.read_text())
    entry = document["artefacts"]["price"]
    entry["stage_version"] = 0
    del entry["checksum"]
    manifest.write_text(json.dumps(document))
    [found] = [one for one in findings(place) if one.severity != FINE]
    assert (found.about, found.severity) == ("Target price", REMARK)
    assert found.next_command.startswith("antpipe quantize-price --domains Target")


def test_texts_that_hold_words_for_missing_values_are_a_remark_if_everything_is_read(tmp_path: Path) -> None:
    store = ant.Store(tmp_path / "store")
    texts = [("Nan bread", "Nan bread. Food"), ("NULL", None), ("Scarf", "Scarf. nan. Wool"), (None, None)]
    make_domain(store, "shop", [{"item_id": str(n), "title": a, "text": b} for n, (a, b) in enumerate(texts)])
    assert [one.severity for one in ant.doctor(store) if one.about.startswith("shop")] == [FINE]
    [found] = [one for one in ant.doctor(store, deep=True) if one.about.startswith("shop")]
    assert found.severity == REMARK
    assert "2 titles or texts hold a word such as nan or NULL" in found.message


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_exit_code_is_5_if_a_file_is_damaged_and_the_mend_comes_next(place: Place) -> None:
    (place.store / "Target" / "price.arrow").write_bytes(b"")
    outcome = place.run("doctor --store {store} --runs {runs}")
    assert outcome.code == 5
    assert "damaged: Target price" in outcome.err
    assert "antpipe: next: antpipe quantize-price --domains Target" in outcome.err


def test_remarks_leave_the_exit_code_at_0(whole: Place) -> None:
    outcome = whole.run("doctor --store {store} --runs {runs} --json")
    assert (outcome.code, outcome.err) == (0, "")
    assert set(outcome.json()[0]) == {"about", "severity", "message", "next_command"}


def test_a_store_of_a_newer_antpipe_is_unfit_for_this_one_and_not_damaged(place: Place) -> None:
    (place.store / "Target" / "manifest.json").write_text('{"format": 99, "artefacts": {}}')
    outcome = place.run("doctor --store {store} --runs {runs}")
    assert outcome.code == 1
    assert "antpipe: next: pip install --upgrade antpipe" in outcome.err


def test_a_store_that_is_not_there_is_a_remark(tmp_path: Path) -> None:
    [found] = [one for one in ant.doctor(tmp_path / "nowhere") if one.about == "store"]
    assert found.severity == REMARK
    assert fault_of(found.next_command) is None


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        ant.doctor(tmp_path / "plain")


@pytest.mark.slow
def test_torch_and_faiss_are_not_imported_unless_everything_is_to_be_read(whole: Place) -> None:
    code = (
        "import sys; from antpipe.cli import run; "
        f"assert run(['doctor', '--store', {str(whole.store)!r}]) == 0; "
        "assert not {'torch', 'faiss', 'sklearn', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_worst_finding_counts() -> None:
    assert worst([]) == FINE
    assert worst([Finding("a", REMARK, ""), Finding("b", DAMAGED, ""), Finding("c", UNFIT, "")]) == DAMAGED


def test_whatever_stops_a_look_is_a_finding() -> None:
    def looks() -> Iterator[Finding]:
        yield Finding("first", FINE, "")
        raise ZeroDivisionError("odd")

    assert [one.severity for one in guarded("second", looks)] == [FINE, DAMAGED]

    def lacks() -> Iterator[Finding]:
        raise ModuleNotFoundError("No module named 'polars'")
        yield

    assert [one.severity for one in guarded("other", lacks)] == [UNFIT]

    def refuses() -> Iterator[Finding]:
        raise DataError("no such thing", "antpipe status")
        yield

    assert list(guarded("third", refuses)) == [Finding("third", UNFIT, "no such thing", "antpipe status")]


# -- the environment --------------------------------------------------------------------------------------------------


def test_a_library_outside_its_range_is_unfit_and_the_install_line_names_the_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = libraries.version
    monkeypatch.setattr(libraries, "version", lambda name: "0.1" if name == "polars" else real(name))
    [found] = [one for one in libraries.examine_libraries() if one.severity == UNFIT]
    assert found.about == "polars"
    assert found.next_command.startswith("pip install 'polars>=")


def test_a_missing_optional_library_is_a_remark_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = libraries.version

    def without(name: str) -> str:
        if name == "jinja2":
            raise PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(libraries, "DISTRIBUTION", "not-installed-anywhere")  # so pyproject.toml is read
    monkeypatch.setattr(libraries, "version", without)
    [found] = [one for one in libraries.examine_libraries() if one.about == "antpipe[report]"]
    assert (found.severity, found.next_command) == (REMARK, "pip install 'antpipe[report]'")
    assert "jinja2 is not installed" in found.message


def test_a_checkout_that_is_not_installed_names_the_same_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "DISTRIBUTION", "not-installed-anywhere")
    here = libraries.declared()
    assert {"polars", "torch", "httpx2", "packaging"} <= {one.name for one in here.libraries}
    assert set(here.extras) == set(libraries.EXTRAS)


@pytest.mark.parametrize(
    ("driver", "cuda", "severity", "words"),
    [
        (None, "12.6", FINE, "no NVIDIA driver"),
        ("535.161.08", "12.6", FINE, "driver 535.161.8, torch for CUDA 12.6"),
        ("470.82.01", "12.6", UNFIT, "needs driver 525.60 or newer"),
        ("535.161.08", "13.0", UNFIT, "needs driver 580.65 or newer"),
        ("535.161.08", None, REMARK, "built without CUDA"),
    ],
)
def test_driver_and_cuda_are_compared(
    driver: str | None, cuda: str | None, severity: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, module = (
        tmp_path / "version",
        "Open Kernel Module for x86_64" if driver == "535.161.08" else "x86_64 Kernel",
    )
    if driver:
        version.write_text(f"NVRM version: NVIDIA UNIX {module}  {driver}  Release Build  (a@b)\n")
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", version)
    monkeypatch.setattr(machine, "torch_cuda", lambda: cuda)
    [found] = machine.gpu(deep=False)
    assert found.severity == severity
    assert words in found.message


@pytest.mark.parametrize(
    ("names", "severity"),
    [
        (["libgomp.so.1", "libgomp-e985bcbb.so.1.0.0"], FINE),
        (["libomp.dylib"], FINE),
        (["libgomp-e985bcbb.so.1.0.0", "libiomp5.so"], REMARK),
        (["a/libomp.dylib", "b/libomp.dylib"], REMARK),
        (["libompitrace.so.40", "libgfortran-83c28eba.so.5.0.0"], FINE),
    ],
)
def test_runtimes_of_openmp_that_clash_are_told(
    names: list[str], severity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "loaded_runtimes", dict)
    found = machine.runtimes([Path("/lib", name) for name in names])
    monkeypatch.setattr(machine, "bundled_runtimes", lambda: found)
    [told] = machine.openmp(deep=False)
    assert told.severity == severity


@pytest.mark.parametrize(("free", "severity"), [(1e6, UNFIT), (1e9, REMARK), (1e11, FINE)])
def test_little_space_on_the_disk_leads_to_what_can_be_removed(
    free: float, severity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        def __init__(self, _: Path) -> None:
            self.free = free

    monkeypatch.setattr(machine.shutil, "disk_usage", Usage)
    found = next(machine.disks(tmp_path))
    assert found.severity == severity
    assert found.next_command == ("" if severity == FINE else f"antpipe store gc --store {tmp_path}")


def test_the_limit_of_a_container_counts_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   8000000 kB\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.free_memory() == 8_192_000_000
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("2000000000\n")
    assert machine.free_memory() == 1_000_000_000
    assert next(machine.memory()).severity == REMARK


def test_instructions_are_those_that_the_kernel_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert next(machine.processor()).severity == FINE  # not Linux
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n")
    assert "AVX2, AVX-512, bf16" in next(machine.processor()).message
