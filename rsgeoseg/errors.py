"""The error tree: one class per place of failure, each with the exit code the command line returns for it."""

from __future__ import annotations

from typing import ClassVar


class RsGeoSegError(Exception):
    """Base of every error rsgeoseg raises on purpose. The message says what, where and what to do, in one line."""

    exit_code: ClassVar[int] = 1


class UsageError(RsGeoSegError, ValueError):
    """An option or argument that cannot be used as given."""

    exit_code: ClassVar[int] = 2


class SceneError(RsGeoSegError):
    """A raster that cannot be opened or read."""

    exit_code: ClassVar[int] = 3


class WindowError(SceneError):
    """A window of a raster that cannot be read; the message names the window."""


class PromptError(RsGeoSegError, ValueError):
    """Prompts that a model does not accept."""

    exit_code: ClassVar[int] = 2


class ModelError(RsGeoSegError):
    """A model that is unknown, cannot be built, or cannot do what is asked."""

    exit_code: ClassVar[int] = 4


class WeightsError(ModelError):
    """Weights that are missing, corrupt, or made for another model."""


class OutputError(RsGeoSegError):
    """A result that cannot be written."""

    exit_code: ClassVar[int] = 5


class ClusterError(RsGeoSegError):
    """A Dask cluster that was lost while it worked."""


class JobCancelled(RsGeoSegError):  # noqa: N818  (the user's wish, not a fault)
    """The user stopped the job; nothing was left under the final name."""

    exit_code: ClassVar[int] = 130


FAILED_CHIPS_EXIT_CODE = 6
"""Exit code of a run that finished and wrote its result, but with chips that failed."""
