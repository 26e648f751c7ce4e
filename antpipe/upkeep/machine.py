"""The machine: processor, memory, disks, GPU and driver, and the OpenMP runtimes that libraries bring.

Nothing heavy is imported: a file of torch says what it was built for, and runtimes are recognised by their names.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from antpipe.runtime.devices import NVIDIA_DRIVER, why_no_gpu
from antpipe.store.next_command import shell, spell
from antpipe.upkeep.findings import FINE, REMARK, UNFIT, Finding

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
# Names in /proc/cpuinfo of instructions that torch and FAISS make use of.
INSTRUCTIONS = {"AVX2": ("avx2",), "AVX-512": ("avx512f",), "bf16": ("avx512_bf16", "amx_bf16", "bf16")}
LITTLE_MEMORY, LITTLE_DISK, NO_DISK = 2e9, 2e9, 5e7  # bytes
# The oldest driver for each major version of CUDA, whose minor versions are compatible with each other.
LEAST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
GNU = "libgomp"
OPENMP = re.compile(r"(?P<name>libgomp|libiomp5|libomp)(?:-[0-9a-f]+)?(?:\.so|\.dylib|\.dll|\.\d)")
WITH_OPENMP = {
    "torch": ("torch/lib", "torch/.dylibs"),
    "faiss": ("faiss_cpu.libs", "faiss/.dylibs"),
    "sklearn": ("scikit_learn.libs", "sklearn/.dylibs"),
}


def processor() -> Iterator[Finding]:
    """Cores that this process may use, and instructions."""
    flags = instructions()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    has = [name for name, names in INSTRUCTIONS.items() if flags.intersection(names)]
    text = f"{platform.machine()}, {cores} core{'s' if cores > 1 else ''}{''.join(f', {name}' for name in has)}"
    if flags and platform.machine() in ("x86_64", "AMD64") and "AVX2" not in has:
        yield Finding("processor", REMARK, f"{text}; no AVX2, so training and ranking are slow here")
        return
    precision = "bf16" if "bf16" in has else "fp32"
    yield Finding("processor", FINE, f"{text}; --precision auto is {precision} on the CPU" if flags else text)


def instructions() -> set[str]:
    """What Linux says about the processor; empty on other systems."""
    try:
        text = (PROC / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(line[1].split()) if line else set()


def memory() -> Iterator[Finding]:
    """Free memory, of the machine or within the limit of a container."""
    free = free_memory()
    if free is not None:
        little = free < LITTLE_MEMORY
        more = "; torch and an encoder take about 2 GB" if little else ""
        yield Finding("memory", REMARK if little else FINE, f"{free / 1e9:.1f} GB free{more}")


def free_memory() -> float | None:
    """Bytes; None if this system does not report it."""
    try:
        text = (PROC / "meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    line = re.search(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)
    free = float(line[1]) * 1024 if line else None
    try:
        limit, used = ((CGROUP / name).read_text(encoding="utf-8") for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    if free is None or not limit.strip().isdigit():
        return free
    return min(free, float(limit) - float(used))


def disks(store: Path) -> Iterator[Finding]:
    """Free space where the store is, and for temporary files; whether the store can be written."""
    absolute = store.absolute()
    folder = next(path for path in (absolute, *absolute.parents) if path.is_dir())
    collect = spell("store gc", store=store) if store.is_dir() else shell("df", "-h", folder)
    for about, place, mend in (("disk", folder, collect), ("temporary files", Path(tempfile.gettempdir()), "")):
        free = shutil.disk_usage(place).free
        severity = UNFIT if free < NO_DISK else REMARK if free < LITTLE_DISK else FINE
        command = (mend or shell("df", "-h", place)) if severity != FINE else ""
        yield Finding(about, severity, f"{free / 1e9:.1f} GB free in {place}", command)
    if not os.access(folder, os.W_OK):
        yield Finding("store", REMARK, f"{folder} can be read but not written", shell("ls", "-ld", folder))


def gpu(deep: bool) -> Iterator[Finding]:
    """The driver, and the CUDA that torch was built for. deep: also ask torch, which takes seconds to import."""
    driver, cuda = driver_version(), torch_cuda()
    if driver is None:
        yield Finding("gpu", FINE, "no NVIDIA driver here; torch computes on the CPU")
        return
    name = ".".join(map(str, driver))
    if cuda is None:
        why = f"driver {name} is here, but this torch was built without CUDA, so it computes on the CPU"
        yield Finding("gpu", REMARK, why, "pip install --force-reinstall torch torchvision")
        return
    least = LEAST_DRIVER.get(int(cuda.partition(".")[0]))
    if least is not None and driver[:2] < least:
        needed = ".".join(map(str, least))
        why = f"torch was built for CUDA {cuda}, which needs driver {needed} or newer; here is {name}"
        yield Finding("gpu", UNFIT, f"{why}; update the driver, or install a torch for an older CUDA", "nvidia-smi")
        return
    if why := why_no_gpu() if deep else "":
        yield Finding("gpu", UNFIT, f"torch cannot use the GPU: {why}", "nvidia-smi")
        return
    yield Finding("gpu", FINE, f"driver {name}, torch for CUDA {cuda}")


def driver_version() -> tuple[int, ...] | None:
    """The version of the NVIDIA driver; None without one."""
    try:
        text = NVIDIA_DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\b(\d{3,})\.(\d+)(?:\.(\d+))?\b", text)
    return tuple(int(part) for part in found.groups() if part) if found else None


def torch_cuda() -> str | None:
    """The CUDA version that torch was built for, read from its files; None without torch or CUDA."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\b[^=]*= *['\"](\d+[\d.]*)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def openmp(deep: bool) -> Iterator[Finding]:
    """Whether the OpenMP runtimes of torch and FAISS are compatible in one process. deep: load both to see."""
    if deep:
        for name in ("torch", "faiss"):
            import_module(name)
    loaded = deep or {"torch", "faiss"} <= sys.modules.keys()
    found = (loaded_runtimes() if loaded else {}) or bundled_runtimes()
    names = sorted(found.values())
    kinds, others = set(names), [name for name in names if name != GNU]
    where = ", ".join(f"{name} ({path})" for path, name in sorted(found.items()))
    if len(kinds) > 1 or len(others) > 1:
        why = f"{'loaded' if loaded else 'installed'} runtimes that may hang or stop a process: {where}"
        yield Finding("openmp", REMARK, why, "pip install --force-reinstall torch faiss-cpu scikit-learn")
    else:
        copies = f"{len(names)} × {names[0]}" if names else "that of the system"
        yield Finding("openmp", FINE, f"{copies}; torch and faiss do not clash")


def loaded_runtimes() -> Mapping[str, str]:
    """Files of OpenMP runtimes in this process, and which runtime each is; empty if the system does not report it."""
    try:
        lines = (PROC / "self" / "maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return runtimes([Path(path) for path in paths])


def bundled_runtimes() -> Mapping[str, str]:
    """The same for the runtimes that the wheels of these libraries bundle."""
    files: list[Path] = []
    for module, folders in WITH_OPENMP.items():
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            site = Path(spec.origin).parents[1]
            files += [path for folder in folders for path in (site / folder).glob("lib*omp*")]
    return runtimes(files)


def runtimes(files: list[Path]) -> dict[str, str]:
    """The files that are OpenMP runtimes, without links to each other."""
    real = {path.resolve() for path in files}
    return {str(path): found["name"] for path in real if (found := OPENMP.match(path.name))}
