"""What a worker process does: load the model once, then turn blocks of chips into rows and remainders."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rsgeoseg.engine.batches import BatchSegmenter
from rsgeoseg.engine.part_run import PartRun, segment_group
from rsgeoseg.engine.pipeline import Behind, at_threshold, read_groups
from rsgeoseg.engine.tally import Tally
from rsgeoseg.geo.windows import plan_windows

if TYPE_CHECKING:
    from collections.abc import Callable

    from rsgeoseg.contract import Segmenter
    from rsgeoseg.engine.blocks import Group
    from rsgeoseg.engine.collect import Drawing
    from rsgeoseg.engine.events import Event
    from rsgeoseg.engine.options import PipelineOptions
    from rsgeoseg.geo.scene import Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOrder:
    """All that a worker needs to know of a run; it travels to every worker once."""

    token: str
    """Names the run."""
    scene: Scene
    """Travels as how to open it again, with its stretch."""
    load: Callable[[str], Segmenter]
    """Loads the model onto a device; called once per process."""
    options: PipelineOptions
    drawing: Drawing
    weights_id: str
    """Of the model that the run was planned with; a worker's must be the same."""
    devices: tuple[str, ...]
    """Device of worker 0, 1, ... of a local cluster, in turn."""
    cache_bytes: int | None = None
    """Memory for decoded tiles; None = as the scene likes."""


class Bench:
    """A worker's place: its model and its scene, ready for blocks.

    Args:
        order: what run it works on.
        number: of the worker, which chooses its device.

    Raises:
        ModelError: the model, or the same weights of it, cannot be had here.
    """

    def __init__(self, order: WorkOrder, number: int) -> None:
        self.order = order
        self.segmenter = order.load(order.devices[number % len(order.devices)])
        options, grid = order.options, order.scene.grid
        self.plan = plan_windows(grid.height, grid.width, chip_size=options.chip_size, overlap=options.overlap)
        self.batches = BatchSegmenter(at_threshold(self.segmenter, options.score_threshold), options.batch_size)
        if order.cache_bytes is not None:
            order.scene.limit_cache(order.cache_bytes)

    def work(self, groups: list[Group], tell: Callable[[Tally], None]) -> tuple[bytes, bytes]:
        """Segment a block.

        Args:
            groups: its windows, as they reach the model.
            tell: told how far it got.

        Returns:
            The rows of objects that no other block can change, and the end of the part, as bytes.

        Raises:
            WindowError, ModelError: as ``segment_scene``.
        """
        collector = self.order.drawing.collector()
        part = PartRun(self.order.scene, self.plan, self.order.options, collector.take, _ignore)
        waited = Tally()
        with Behind() as behind, closing(read_groups(self.order.scene, groups, self.order.options, waited)) as reading:
            for items in reading:
                behind.put(part.take, segment_group(items, self.batches))
                tell(part.tally)
            behind.wait()
        rows, end = collector.finish(), part.end()
        end.tally.seconds["polygonize"] += collector.seconds
        end.tally.vertices += rows.vertices
        end.tally.add(waited)
        return rows.to_bytes(), end.to_bytes()


class Benches:
    """The benches of this process, one per run; set up when first needed."""

    def __init__(self) -> None:
        self._orders: dict[str, tuple[WorkOrder, int]] = {}
        self._benches: dict[str, Bench] = {}
        self._lock = threading.Lock()

    def accept(self, order: WorkOrder, number: int) -> None:
        """Take the order of a run."""
        self._orders[order.token] = (order, number)

    def bench(self, token: str) -> Bench:
        """Return the bench of a run, with its model loaded."""
        with self._lock:
            if token not in self._benches:
                self._benches = {token: Bench(*self._orders[token])}
            return self._benches[token]

    def clear(self, token: str) -> None:
        """Forget a run."""
        self._orders.pop(token, None)
        self._benches.pop(token, None)


BENCHES = Benches()
"""Of this process."""


def _ignore(_event: Event) -> None:
    """The client tells of failed chips."""
