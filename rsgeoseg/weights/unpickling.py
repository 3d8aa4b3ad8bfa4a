"""Pickled checkpoints read as data: what a file names is never imported, called or built.

``pickle`` reaches code through one door, ``find_class``. Here it hands out classes of this file only: tables, records
of tensors, and stand-ins that take whatever they are given and do nothing. Names outside a short list are refused, so
that a file with code in it is reported instead of being read half.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import IO

    from torch import Tensor

DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error,
    AssertionError, AttributeError, EOFError, IndexError, KeyError, MemoryError, NotImplementedError, OverflowError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What a truncated or malformed checkpoint makes Python and torch raise."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's format before 1.6
_PACKAGES = ("lightning.", "lightning_fabric.", "mmengine.", "omegaconf.", "pytorch_lightning.")
"""Packages whose settings and logs training programs leave beside the tensors."""
_NAMES = {
    "_codecs": "encode",
    "addict.addict": "Dict",
    "argparse": "Namespace",
    "builtins": (
        "bool bytearray complex dict float frozenset getattr int list long object range set slice str tuple unicode "
        "xrange"
    ),
    "collections": "Counter defaultdict deque",
    "copyreg": "__newobj__ __newobj_ex__ _reconstructor",
    "datetime": "date datetime time timedelta timezone",
    "mmcv.utils.config": "Config ConfigDict",
    "numpy": "bool bool_ dtype float16 float32 float64 int8 int16 int32 int64 ndarray str_ uint8 uint16 uint32 uint64",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "torch": "Size bfloat16 bool device float16 float32 float64 int8 int16 int32 int64 uint8",
    "types": "SimpleNamespace",
    "typing": "Any Union",
}
_HARMLESS = {(module, name) for module, names in _NAMES.items() for name in names.split()}
_NEW_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # as torch writes them, for Python 2's sake
_STORAGES = {
    "BFloat16Storage": torch.bfloat16, "BoolStorage": torch.bool, "ByteStorage": torch.uint8,
    "CharStorage": torch.int8, "DoubleStorage": torch.float64, "FloatStorage": torch.float32,
    "HalfStorage": torch.float16, "IntStorage": torch.int32, "LongStorage": torch.int64, "ShortStorage": torch.int16,
}  # fmt: skip


class RefusedName(pickle.UnpicklingError):
    """A pickle names something that is not on the list; ``args[0]`` is the name."""


class _Inert:
    """Stands for an object of a known class: takes everything, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


class _Table(dict[Any, Any]):
    """Stands for an ordered dict; attributes of it are dropped."""

    def __setstate__(self, _: Any) -> None: ...


class _Storage(NamedTuple):
    """Bytes of a file that tensors are cut from."""

    dtype: torch.dtype
    key: str
    first: int
    """Element at which the storage starts, where it is itself a part of another."""


class _StoredTensor:
    """A tensor that has not been read yet."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def __setstate__(self, _: Any) -> None: ...


class _Parameter:
    """A parameter is read as its tensor."""

    def __new__(cls, data: Any, *_: Any) -> Any:
        return data

    def __setstate__(self, _: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.stand_ins: list[str] = []
        self.dtypes: dict[str, torch.dtype] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        """Give a class of this file for a name of the list."""
        module = _NEW_NAMES.get(module, module)
        if module in ("torch", "torch.cuda") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _StoredTensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _Parameter
        if (module, name) == ("collections", "OrderedDict"):
            return _Table
        if (module, name) in _HARMLESS or f"{module}.".startswith(_PACKAGES):
            self.stand_ins.append(f"{module}.{name}")
            return type(name, (_Inert,), {})  # a new class each time: nothing a file does to it outlives the file
        raise RefusedName(f"{module}.{name}")  # noqa: EM102  (the name itself)

    def persistent_load(self, pid: Any, /) -> _Storage:
        """Note a storage; it is read later, if a tensor that is wanted lies in it."""
        kind, dtype, key, _location, _numel, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(str(kind))
        key = str(key)
        self.dtypes[key] = dtype
        return _Storage(dtype, key, int(view[0][1]) if view and view[0] is not None else 0)


class StoredPickle:
    """A checkpoint whose structure is known and whose tensors are read on demand.

    Args:
        path: file of ``torch.save``, of either format.

    Raises:
        RefusedName: the file names a class or function that is not on the list.
        DAMAGE: any of these where the file is no such checkpoint, or is damaged.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._storages: dict[str, Tensor] = {}
        self._read: Callable[[_Storage], bytes | bytearray]
        self.content, self.stand_ins = self._open_zip() if zipfile.is_zipfile(path) else self._open_legacy()

    def tensor(self, value: Any) -> Any:
        """Read a value if it is a stored tensor, on the CPU; give it back unchanged where it is anything else."""
        if not isinstance(value, _StoredTensor):
            return value
        storage = value.storage
        flat = self._storages.get(storage.key)
        if flat is None:
            content = bytearray(self._read(storage))
            flat = torch.frombuffer(content, dtype=storage.dtype) if content else torch.empty(0, dtype=storage.dtype)
            self._storages[storage.key] = flat
        return flat.as_strided(value.size, value.stride, storage.first + value.offset)

    def _open_zip(self) -> tuple[Any, list[str]]:
        with zipfile.ZipFile(self.path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(names) != 1:
                raise pickle.UnpicklingError(str(self.path))
            name = names[0]
            with archive.open(name) as file:
                unpickler = _Unpickler(file)
                content = unpickler.load()
        folder = name.removesuffix("data.pkl")

        def read(storage: _Storage) -> bytes:
            with zipfile.ZipFile(self.path) as archive:
                return archive.read(f"{folder}data/{storage.key}")

        self._read = read
        return content, unpickler.stand_ins

    def _open_legacy(self) -> tuple[Any, list[str]]:
        places: dict[str, tuple[int, int]] = {}
        with self.path.open("rb") as file:
            bare = _Unpickler(file)
            content = bare.load()
            if content != _LEGACY_MAGIC:  # a pickle without torch's frame: it has no tensors that we could read
                return content, bare.stand_ins
            for _ in ("protocol", "system"):
                _Unpickler(file).load()
            unpickler = _Unpickler(file)
            content = unpickler.load()
            for key in map(str, _Unpickler(file).load()):
                (count,) = struct.unpack("<q", file.read(8))
                places[key] = (file.tell(), count * unpickler.dtypes[key].itemsize)
                file.seek(places[key][1], 1)

        def read(storage: _Storage) -> bytes:
            start, size = places[storage.key]
            with self.path.open("rb") as file:
                file.seek(start)
                found = file.read(size)
            if len(found) != size:
                raise EOFError(storage.key)
            return found

        self._read = read
        return content, unpickler.stand_ins
