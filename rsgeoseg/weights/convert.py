"""Files of the authors to files of ours, once, so that nothing has to be interpreted when a model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from rsgeoseg.errors import OutputError, WeightsError
from rsgeoseg.weights.files import is_own_file, sha256_of, write_weights
from rsgeoseg.weights.foreign import name_tensors, published_classes
from rsgeoseg.weights.pickles import Container, read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was converted."""

    source: Path
    """The file that was read."""
    target: Path
    """The file that was written."""
    container: Container
    """What the tensors were wrapped in."""
    tensors: int
    """How many were written."""
    description: dict[str, Any]
    """Header of the new file: ``model``, ``backbone``, ``config``, ``layout``, ``ignored``, ``absent``, ``origin``
    (name and sha256 of the source), and ``lora`` where adapters were merged."""
    digest: str
    """sha256 of the new file."""


def convert(
    source: Path,
    target: Path,
    *,
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
    lora_alpha: float | None = None,
) -> ConvertReport:
    """Write a file of the authors as safetensors under our names, in float32: no published digit is lost.

    Files that hold a training program's settings or logs beside their tensors (mmengine, Lightning) are read here and
    only here; nothing in them is run.

    Args:
        source: file in any known layout.
        target: new ``.safetensors``; its folder exists. It appears when it is whole.
        classes: class names in the order of the network's outputs; None = those in the file or on its card, else
            class0, class1, ...
        overwrite: replace ``target`` where it exists.
        lora_alpha: scale of LoRA adapters, which no file holds; None = twice their rank (r = 16, alpha = 32 in the
            authors' configs).

    Raises:
        WeightsError: the source cannot be read, is of no known layout, or is a file of ours already.
        OutputError: the target exists, is the source, has another suffix, or cannot be written.
    """
    source, target = Path(source), Path(target)
    _check_target(source, target, overwrite=overwrite)
    if is_own_file(source):
        msg = f"{source}: is a weights file of rsgeoseg already; use it as it is"
        raise WeightsError(msg)
    file, origin = read_tensors(source, stand_ins=True), sha256_of(source)
    names = classes or published_classes(origin)
    tensors, description = name_tensors(file, source, classes=names, lora_alpha=lora_alpha)
    description["origin"] = {"file": source.name, "sha256": origin}
    try:
        digest = write_weights(target, _apart(tensors), description, dtype=None)
    except (OSError, SafetensorError) as error:
        msg = f"{target}: cannot be written ({error}); check the space and the permissions"
        raise OutputError(msg) from error
    return ConvertReport(source, target, file.container, len(tensors), description, digest)


def _check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    if target.suffix != ".safetensors":
        msg = f"{target}: the new file is safetensors; give a name that ends in .safetensors"
        raise OutputError(msg)
    if target.exists() and source.exists() and target.samefile(source):
        msg = f"{target}: is the source itself; give another name for the new file"
        raise OutputError(msg)
    if target.exists() and not overwrite:
        msg = f"{target}: exists; choose another name, or overwrite it"
        raise OutputError(msg)
    if not target.parent.is_dir():
        msg = f"{target}: its folder does not exist; make it first"
        raise OutputError(msg)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give each tensor memory of its own: safetensors takes no two tensors that share some."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        own = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        apart[name] = tensor if own else tensor.clone()
    return apart
