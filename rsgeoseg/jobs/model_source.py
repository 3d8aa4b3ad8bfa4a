"""Where the model of a job comes from, in this process and in others.

Worker processes import this and little else of the jobs before they load their model.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from rsgeoseg import registry
from rsgeoseg.errors import UsageError
from rsgeoseg.network import offline
from rsgeoseg.weights.cache import fetch
from rsgeoseg.weights.cards import find_card
from rsgeoseg.weights.published import public_card

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rsgeoseg.contract import Chip, Instances, Prompts, Segmenter
    from rsgeoseg.engine.block_work import ModelFacts
    from rsgeoseg.engine.order import RunJob


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model by its name and weights, as any process can load it."""

    name: str
    weights: str | None
    offline: bool

    def __call__(self, device: str) -> Segmenter:
        """Load it.

        Raises:
            ModelError, UsageError: as ``load_segmenter``.
        """
        if registry.card(self.name).needs_prompts:
            refuse_prompted(self.name)
        with offline() if self.offline else nullcontext():
            return registry.load_model(self.name, weights=self.weights, device=device)

    def fetch(self) -> None:
        """Bring its weights into the cache, where they are public ones that are not there.

        Raises:
            ModelError: there is no such model.
            WeightsError: they cannot be fetched.
        """
        registry.card(self.name)
        bundled = find_card(self.name, self.weights)
        public = public_card(self.name, self.weights) if bundled is None else None
        if public is not None:
            fetch(public)

    def devices(self, name: str) -> tuple[str, ...]:
        """Return every GPU of this machine for ``auto`` and ``cuda``, where there are any; else the one named."""
        from rsgeoseg.nn.device import all_devices  # noqa: PLC0415  (torch)

        return all_devices(name)


@dataclass(frozen=True, slots=True, eq=False)
class GivenModel:
    """A model that came with a job: it travels as it is, and stays on its device."""

    segmenter: Segmenter

    def __call__(self, device: str) -> Segmenter:  # noqa: ARG002  (as NamedModel)
        """Return it."""
        return self.segmenter

    def devices(self, name: str) -> tuple[str, ...]:
        """Return the name: it has no say."""
        return (name,)


class KeptModel:
    """A model that worker processes keep: known here by its facts, loaded here only where chips must be tried.

    Args:
        facts: that a worker told.
        load: loads it in this process.
    """

    def __init__(self, facts: ModelFacts, load: Callable[[], Segmenter]) -> None:
        self.spec, self.device, self.batch_size = facts.spec, facts.device, facts.batch_size
        self.device_name, self.number_format = facts.device_name, facts.number_format
        self.devices = facts.devices
        self._load = load
        self._here: Segmenter | None = None

    def segment(self, chips: Sequence[Chip], prompts: Sequence[Prompts | None] | None = None) -> list[Instances]:
        """Find objects in this process; see ``contract.Segmenter.segment``."""
        if self._here is None:
            self._here = self._load()
        return self._here.segment(chips, prompts)

    def release_memory(self) -> None:
        """Give memory held in reserve back to the device."""
        release = getattr(self._here, "release_memory", None)
        if release is not None:
            release()


def model_source(job: RunJob) -> NamedModel:
    """Return what loads the model of a job in any process."""
    return NamedModel(job.model, job.weights, job.offline)


def refuse_prompted(model: str) -> NoReturn:
    """Say that a model is not for runs.

    Raises:
        UsageError: always.
    """
    msg = f"{model} answers prompts, and a run gives it none: prompt it from Python, or run another model"
    raise UsageError(msg)
