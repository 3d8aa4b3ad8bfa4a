"""Calling a model on batches: memory that runs out halves the batch, a chip that fails is isolated."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING

from rsgeoseg.contract import is_out_of_memory
from rsgeoseg.engine.tuning import remember_smaller
from rsgeoseg.errors import ModelError, PromptError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rsgeoseg.contract import Chip, Instances, Segmenter

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times a batch is tried before its chips are tried alone."""
_FAULTS = (ModelError, RuntimeError, ArithmeticError, ValueError)  # what a network raises; TypeError and such are bugs


class BatchSegmenter:
    """A model behind a batch size that adapts to the memory there is.

    A model may have a method ``release_memory()``, called before a batch that did not fit is tried again by halves, and
    a method ``prepare(chip)``, called by the thread that read a chip: to copy it to the device beside the model's work.

    Args:
        segmenter: the model.
        batch_size: chips per call at first.
    """

    def __init__(self, segmenter: Segmenter, batch_size: int) -> None:
        self._segmenter = segmenter
        self.batch_size = batch_size
        """Chips per call now; only ever shrinks."""
        self.prepare: Callable[[Chip], Chip] | None = getattr(segmenter, "prepare", None)
        """The model's own, where it has one."""

    def segment(self, chips: Sequence[Chip]) -> list[Instances | ModelError]:
        """Segment chips of one shape.

        Args:
            chips: in fixed order.

        Returns:
            Per chip its objects, or the error that three attempts and one alone ended with.
        """
        results: list[Instances | ModelError] = []
        while len(results) < len(chips):
            batch = chips[len(results) : len(results) + self.batch_size]
            try:
                results.extend(self._attempt(batch))
            except MemoryError as error:
                _let_go(error)
                reason = _line(error)
            else:
                continue
            self._release()
            if len(batch) == 1:
                msg = f"out of memory on a single chip ({reason}): use a smaller chip-size or another device"
                results.append(ModelError(msg))
            else:
                self._halve(batch)
        return results

    def _halve(self, batch: Sequence[Chip]) -> None:
        """Go on with half the chips at a time, in later runs too."""
        self.batch_size = len(batch) // 2
        logger.warning("out of memory with %d chips: going on with %d at a time", len(batch), self.batch_size)
        remember_smaller(self._segmenter, batch[0].image.shape, self.batch_size)

    def _release(self) -> None:
        release = getattr(self._segmenter, "release_memory", None)
        if release is not None:
            release()

    def _attempt(self, batch: Sequence[Chip]) -> list[Instances | ModelError]:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return list(self._call(batch))
            except PromptError:
                raise
            except _FAULTS as error:
                _raise_if_memory(error)
                _let_go(error)
                fault: Exception = error
                logger.debug("batch of %d: attempt %d failed: %s", len(batch), attempt, error)
        if len(batch) == 1:
            return [fault if isinstance(fault, ModelError) else ModelError(f"the model failed: {_line(fault)}")]
        return [self._alone(chip) for chip in batch]

    def _alone(self, chip: Chip) -> Instances | ModelError:
        try:
            return self._call([chip])[0]
        except PromptError:
            raise
        except _FAULTS as error:
            _raise_if_memory(error)
            _let_go(error)
            return error if isinstance(error, ModelError) else ModelError(f"the model failed: {_line(error)}")

    def _call(self, batch: Sequence[Chip]) -> list[Instances]:
        found = self._segmenter.segment(batch)
        if len(found) != len(batch):
            msg = f"{self._segmenter.spec.name} returned {len(found)} results for {len(batch)} chips"
            raise ModelError(msg)
        return found


def _raise_if_memory(error: Exception) -> None:
    """Treat a framework's own out-of-memory error, a RuntimeError by type, as what it is."""
    if is_out_of_memory(error):
        raise MemoryError(_line(error)) from error


def _let_go(error: BaseException) -> None:
    """Free what a failed attempt held: the frames of an error keep its tensors as long as the error is kept."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
