"""The metrics of a service, as text that Prometheus reads (text format 0.0.4)."""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # upper ends of the buckets
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Histogram:
    """How many values are at most as large as each of `ends`, their sum and number."""

    def __init__(self, ends: tuple[float, ...]) -> None:
        self.ends, self.sum = ends, 0.0
        self.counts = [0] * (len(ends) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.ends, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        before = f"{labels}," if labels else ""
        total = 0
        for end, count in zip((*self.ends, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{before}le="{end}"}} {total}'
        label = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{label} {self.sum:.6f}"
        yield f"{name}_count{label} {total}"


class Metrics:
    """Counted on the event loop only, so without locks. Paths are those of routes: a request cannot add new ones."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.seconds: defaultdict[str, Histogram] = defaultdict(lambda: Histogram(SECONDS))
        self.batches = Histogram(BATCHES)
        self.loads: Counter[str] = Counter()
        self.in_progress = 0

    def text(self, items: int, users: int) -> str:
        """All figures. items, users: their numbers in the domain that is served."""
        lines = [*_head("antpipe_requests_total", "counter", "requests by path and status")]
        lines += [
            f'antpipe_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        lines += _head("antpipe_request_seconds", "histogram", "seconds from the first byte to the answer, by path")
        for path, histogram in sorted(self.seconds.items()):
            lines += histogram.lines("antpipe_request_seconds", f'path="{path}"')
        lines += _head("antpipe_batch_size", "histogram", "requests answered together")
        lines += self.batches.lines("antpipe_batch_size")
        lines += _head("antpipe_loads_total", "counter", "times a run was loaded, by outcome")
        lines += [f'antpipe_loads_total{{outcome="{name}"}} {self.loads[name]}' for name in ("loaded", "failed")]
        for name, value, about in (
            ("antpipe_requests_in_progress", self.in_progress, "requests in progress"),
            ("antpipe_items", items, "items of the domain"),
            ("antpipe_users", users, "users with a history"),
        ):
            lines += [*_head(name, "gauge", about), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
