"""Training steps on a GPU: prepared in the background, recorded once as a CUDA graph, replayed, and read one step late.

A step is a thousand small kernels. Launched one by one they keep a GPU busy for a quarter of the time; as a graph, they
are launched at once. On a CPU the same steps run without a graph (the tests compare them with the exact blocks).
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from antpipe.core.batches import Candidates, Windows, step_windows
from antpipe.core.catalogue import Catalogue, DeviceFeatures, ItemInputs, feature_kind, features_on, item_inputs
from antpipe.core.gpu.packing import WHOLE, PackedBatch, Shape, packed_batch, plan_shape
from antpipe.core.gpu.static import static_loss, step_of
from antpipe.runtime.logs import log
from antpipe.settings.methods import NO_METHOD
from antpipe.settings.training import TrainConfig
from antpipe.training.methods.method import PLAIN, Method
from antpipe.training.parallel import ALONE, World
from antpipe.training.step_loss import Flags

if TYPE_CHECKING:
    import torch

    from antpipe.core.model import Ant

T = TypeVar("T")
AHEAD = 3  # steps prepared in the background
SLOTS = AHEAD + 3  # pinned memory for steps: those prepared, one being prepared, the one begun and the one before it
WARM_UP = 2  # steps of a shape that are computed as usual before one is recorded, so that libraries initialise
FEATURE_SHARE = 0.5  # of the free memory that features may take


def replays(device: "torch.device", world: World, config: TrainConfig) -> bool:
    """Whether training on this device takes steps of fixed shapes: on one GPU, unless they cannot be recorded."""
    exact = config.reference or config.compile or config.method != NO_METHOD
    return device.type == "cuda" and world.size == 1 and not exact


def adam(parameters: "list[torch.nn.Parameter]", lr: float, device: "torch.device", *, recorded: bool) -> Any:
    """Adam. recorded: it will be part of a CUDA graph, so its numbers are kept on the GPU."""
    import torch

    if recorded and device.type == "cuda":
        optimiser = torch.optim.Adam(parameters, lr=torch.tensor(lr, device=device), fused=True, capturable=True)
        optimiser._warned_capturable_if_run_uncaptured = True  # as its first steps are
        return optimiser
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def keep_features(
    catalogue: Catalogue, widths: dict[str, int], config: TrainConfig, device: "torch.device"
) -> DeviceFeatures | None:
    """The features of the catalogue, copied to the device; None if they are not to be kept there."""
    import torch

    size = len(catalogue) * sum(2 * width + 1 for width in widths.values())
    if config.gpu_features == "off":
        return None
    if config.gpu_features == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if size > FEATURE_SHARE * free:
            log.info(
                f"the features take {size / 1e6:,.0f} MB and the GPU has {free / 1e6:,.0f} MB free: each step copies "
                "its own (--gpu-features on keeps them on the GPU)"
            )
            return None
    return features_on(catalogue, widths, device)


@dataclass(frozen=True)
class Arrays:
    """What the steps of one shape read, at a fixed place in memory."""

    numbers: "torch.Tensor"
    features: dict[str, "torch.Tensor"]
    present: dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Setup:
    """What the steps of a run need, in either layout.

    candidates: the negatives of each step. passes: number of passes over the data per epoch. new: (N,) True for items
    that are not negatives; None if all may be. method: what else the steps do.
    """

    model: "Ant"
    catalogue: Catalogue
    windows: Windows
    candidates: Candidates
    config: TrainConfig
    optimiser: Any
    device: "torch.device"
    pretraining: bool
    world: World = ALONE
    passes: int = 1
    new: Flags | None = None
    method: Method = PLAIN

    def trained(self) -> "list[torch.nn.Parameter]":
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]


class StaticSteps:
    """Takes training steps in fixed shapes. features: those kept on the device; None: each step brings its own."""

    late = 1  # steps in progress when another is begun

    def __init__(self, setup: Setup) -> None:
        import torch

        self.setup, self.model, self.config, self.device = setup, setup.model, setup.config, setup.device
        self.catalogue, self.optimiser = setup.catalogue, setup.optimiser
        config, candidates = self.config, setup.candidates
        self.base = plan_shape(setup.windows, config.batch_size, config.seed, candidates, self.model.max_len)
        self.new = None if setup.new is None else torch.from_numpy(setup.new).to(self.device)
        self.features = keep_features(self.catalogue, self.model.widths, config, self.device)
        self.whole: ItemInputs | None = None  # of a step that reads the whole catalogue
        if self.base.items == WHOLE:
            rows = np.arange(len(self.catalogue))
            self.whole = item_inputs(self.catalogue, self.model.widths, rows, self.device, config.precision)
        self.loss = torch.zeros((), device=self.device)
        self.results = [self._pinned((), torch.float32) for _ in range(self.late + 1)]  # used in turn
        self.slots = [self._arrays(self.base, self._pinned) for _ in range(SLOTS)]
        self.begun, self.arrays, self.taken = 0, dict[Shape, Arrays](), dict[Shape, int]()
        self.graphs: dict[Shape, Any] = {}
        self.stream: Any = None
        if self.device.type == "cuda":
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    # -- prepared in the background -----------------------------------------------------------------------------------

    def batches(self, epoch: int, start: int, stop: int | None) -> Iterator[PackedBatch]:
        """The steps of an epoch, from number `start` on, prepared ahead by another thread."""
        passes = range((epoch - 1) * self.setup.passes + 1, epoch * self.setup.passes + 1)
        order = (step_windows(self.setup.windows, self.config.batch_size, self.config.seed, one) for one in passes)
        steps = islice(chain.from_iterable(order), start, stop)
        return ahead((self._prepared(number, *step) for number, step in enumerate(steps)), AHEAD)

    def _prepared(self, number: int, chosen: Any, rng: np.random.Generator) -> PackedBatch:
        """A step in pinned memory, from where it can be copied to a GPU while that computes. Must not call CUDA: the
        other thread may be recording."""
        import torch

        setup = self.setup
        batch = packed_batch(setup.windows, chosen, setup.candidates, rng, self.base, setup.new)
        batch = self._with_features(batch)
        slot = self.slots[number % SLOTS]
        if batch.shape != self.base or batch.features.keys() != slot.features.keys():  # rare: not worth pinned memory
            return replace(batch, numbers=torch.from_numpy(batch.numbers))
        slot.numbers.numpy()[:] = batch.numbers
        for name, values in batch.features.items():
            slot.features[name].numpy()[:] = values.numpy()
            slot.present[name].numpy()[:] = batch.present[name].numpy()
        here = {name: slot.features[name] for name in batch.features}
        return replace(batch, numbers=slot.numbers, features=here, present=slot.present)

    def _with_features(self, batch: PackedBatch) -> PackedBatch:
        """The batch with the features of its items, unless these are on the device."""
        import torch

        if self.whole is not None or self.features is not None or batch.features:
            return batch
        rows = np.resize(batch.items, batch.shape.items)
        rows[len(batch.items) :] = batch.items[0]
        found = {
            name: self.catalogue.gather(rows, name, width, np.float16) for name, width in self.model.widths.items()
        }
        features, present = ({name: torch.from_numpy(pair[which]) for name, pair in found.items()} for which in (0, 1))
        return replace(batch, features=features, present=present)

    # -- taken --------------------------------------------------------------------------------------------------------

    def take(self, batch: PackedBatch, check: Callable[[float], None]) -> Callable[[], float]:
        """Begin a step. Returns a function that waits for its loss, and calls `check` with it.

        Features are removed from the GPU if they leave too little memory for the step and --gpu-features is auto.
        """
        try:
            return self._begin(batch, check)
        except RuntimeError as error:
            if not out_of_memory(error) or self.features is None or self.config.gpu_features != "auto":
                raise
        log.warning("too little GPU memory for the features as well: from now on each step copies its own")
        self._forget()
        return self._begin(batch, check)

    def _begin(self, batch: PackedBatch, check: Callable[[float], None]) -> Callable[[], float]:
        import torch

        with self._on_stream():
            there = self.arrays.get(batch.shape)
            if there is None:
                there = self.arrays[batch.shape] = self._arrays(batch.shape, self._on_device)
            there.numbers.copy_(batch.numbers, non_blocking=True)
            brought = self._with_features(batch)
            for name in brought.features if self.features is None else ():
                there.features[name].copy_(brought.features[name], non_blocking=True)
                there.present[name].copy_(brought.present[name], non_blocking=True)
            self._run(batch.shape)
            result = self.results[self.begun % len(self.results)]
            result.copy_(self.loss, non_blocking=True)
            done = None
            if self.stream is not None:
                done = torch.cuda.Event()  # type: ignore[no-untyped-call]
                done.record(self.stream)
        self.begun += 1

        def read() -> float:
            if done is not None:
                done.synchronize()
            value = float(result)
            check(value)
            return value

        return read

    def _on_stream(self) -> AbstractContextManager[Any]:
        import torch

        if self.stream is None:
            return nullcontext()
        self.stream.wait_stream(torch.cuda.current_stream(self.device))  # validation reads the weights there
        return torch.cuda.stream(self.stream)

    def _run(self, shape: Shape) -> None:
        """Compute a step: as usual at first, then by recording it, then by replaying that."""
        import torch

        taken = self.taken[shape] = self.taken.get(shape, 0) + 1
        if self.stream is None or taken <= WARM_UP:
            self._compute(shape)
            return
        if shape not in self.graphs:
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self.graphs.values())).pool() if self.graphs else None  # never replayed at the same time
            with torch.cuda.graph(graph, pool=pool, stream=self.stream, capture_error_mode="thread_local"):
                self._compute(shape)
            self.graphs[shape] = graph
        self.graphs[shape].replay()

    def _compute(self, shape: Shape) -> None:
        """One step on the contents of the shape's arrays: the loss, its gradients, and Adam."""
        import torch

        step = step_of(self.arrays[shape].numbers, shape)
        inputs = self._inputs(shape, step.items)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = static_loss(self.model, inputs, step, self.config, pretraining=self.setup.pretraining, new=self.new)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip:
            torch.nn.utils.clip_grad_norm_(self.setup.trained(), self.config.clip)
        self.optimiser.step()
        self.loss.copy_(loss.detach())

    def _inputs(self, shape: Shape, items: "torch.Tensor | None") -> ItemInputs:
        if self.whole is not None or items is None:
            assert self.whole is not None
            return self.whole
        if self.features is not None:
            return self.features.inputs(items, self.config.precision)
        kind, there = feature_kind(self.config.precision), self.arrays[shape]
        return ItemInputs({name: x.to(kind) for name, x in there.features.items()}, there.present, items)

    # -- memory -------------------------------------------------------------------------------------------------------

    def _arrays(self, shape: Shape, make: Callable[[tuple[int, ...], "torch.dtype"], "torch.Tensor"]) -> Arrays:
        import torch

        brought = {} if self.whole is not None or self.features is not None else self.model.widths
        return Arrays(
            make((shape.numbers(),), torch.int64),
            {name: make((shape.items, width), torch.float16) for name, width in brought.items()},
            {name: make((shape.items,), torch.bool) for name in brought},
        )

    def _pinned(self, shape: tuple[int, ...], kind: "torch.dtype") -> "torch.Tensor":
        import torch

        return torch.empty(shape, dtype=kind, pin_memory=self.device.type == "cuda")

    def _on_device(self, shape: tuple[int, ...], kind: "torch.dtype") -> "torch.Tensor":
        import torch

        return torch.empty(shape, dtype=kind, device=self.device)

    def _forget(self) -> None:
        """Free the memory of the features, and of what was recorded with them."""
        import torch

        self.features = None
        self.graphs, self.arrays, self.taken = {}, {}, {}
        self.slots = [self._arrays(self.base, self._pinned) for _ in range(SLOTS)]
        self.optimiser.zero_grad(set_to_none=True)
        if self.stream is not None:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()

    def features_mb(self) -> float:
        if self.features is None:
            return 0.0
        tensors = [*self.features.values.values(), *self.features.present.values()]
        return sum(x.numel() * x.element_size() for x in tensors) / 1e6


def ahead(made: Iterator[T], depth: int) -> Iterator[T]:
    """The same things, `depth` of them made in advance by another thread. Errors are raised where things would be."""
    nothing: Any = object()
    with ThreadPoolExecutor(1, "antpipe-ahead") as pool:
        ask = partial(pool.submit, next, made, nothing)
        waiting = deque(ask() for _ in range(depth))
        while (one := waiting.popleft().result()) is not nothing:
            waiting.append(ask())
            yield one


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is, or came from, a lack of GPU memory: during recording, it may surface as another error."""
    import torch

    while error is not None:
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
