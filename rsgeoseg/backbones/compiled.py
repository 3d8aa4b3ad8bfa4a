"""``torch.compile`` for prepared encoders: a switch, and never a reason to fail.

Off by default: on a CPU it gained nothing (`sam2-hiera-t`, fp32: products with prepared weights are fused already), and
on GPUs it has not been measured by this project. ``RSGEOSEG_COMPILE=1`` switches it on for encoders on CUDA, as
``encoder.compiled = True`` does for one. The first chip of every size then takes minutes. Where there is no compiler,
or it fails, the encoder says so once and runs as usual.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

import torch
from torch._dynamo.exc import TorchDynamoException

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

COMPILE = "RSGEOSEG_COMPILE"
"""Environment variable that switches it on."""
_logger = logging.getLogger(__name__)


def wanted() -> bool:
    """Tell whether the environment asks for compiled encoders."""
    return os.environ.get(COMPILE, "").strip().lower() not in {"", "0", "false", "no", "off"}


class Compiled(Generic[P, R]):
    """A function that runs compiled, or as it is once compiling has failed.

    Args:
        fast: compiled on its first call for every shape of arguments.
        plain: does the same and is called in its place after a failure.
    """

    def __init__(self, fast: Callable[P, R], plain: Callable[P, R]) -> None:
        self._fast: Callable[P, R] | None = torch.compile(fast, dynamic=False)
        self._plain = plain

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it.

        Raises:
            OutOfMemoryError: of the function itself.
        """
        if self._fast is not None:
            try:
                return self._fast(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except (TorchDynamoException, RuntimeError, ImportError, OSError) as error:
                self._fast = None
                _logger.warning("torch.compile failed, the encoder runs without it: %s", str(error).partition("\n")[0])
        return self._plain(*args, **kwargs)
