"""Files that a run reads: none of them may be replaced by its output, whatever was said of overwriting."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rsgeoseg.errors import OutputError, SceneError
from rsgeoseg.geo.vrt import vrt_sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def input_files(scene: str, *others: str | None) -> Iterator[Path]:
    """Yield paths of the files behind a scene, and of others that a run reads; some may be none of this machine.

    Args:
        scene: path or URL of a raster; with a VRT go the files that it reads, nested or not.
        others: paths, or names that are none.
    """
    yield from (Path(name) for name in (scene, *others) if name is not None)
    if Path(scene).suffix.lower() == ".vrt":
        with suppress(SceneError, OSError):  # opening the scene says what is wrong with it
            yield from (source.path for source in vrt_sources(Path(scene).absolute()))


def refuse_replacing(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse outputs that are inputs, also by way of links and other spellings of the name.

    Raises:
        OutputError: the message names both.
    """
    there = {_identity(output): output for output in outputs if output.exists()}
    if not there:
        return
    for each in inputs:
        output = there.get(_identity(each)) if each.exists() else None
        if output is not None:
            msg = f"cannot write {output}: this run reads it, as {each}; choose another name"
            raise OutputError(msg)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
