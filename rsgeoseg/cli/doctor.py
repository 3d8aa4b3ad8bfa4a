"""``rsgeoseg doctor``: is everything here that a run needs, and does a run work?"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsgeoseg.cli import common
from rsgeoseg.errors import RsGeoSegError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_FAULTS = (ImportError, OSError, RuntimeError, ValueError, KeyError, AttributeError)
"""What a broken installation raises; a check that ends in one of these failed."""


class UnfitError(Exception):
    """Something is here, but not as a run needs it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"name": self.name, "ok": self.ok, "detail": self.detail}


_SPEED = "Measure this machine instead: disk, decode, copy, model, stitch, vectorise, write; and say which limits."
_SCENE = "With --speed: a raster of yours to read; default one that is drawn."

Speed = Annotated[bool, typer.Option("--speed", help=_SPEED)]
SceneFile = Annotated[str | None, typer.Argument(metavar="[SCENE]", help=_SCENE)]
Model = Annotated[str | None, typer.Option(metavar="NAME", help="With --speed: the model.")]
Weights = Annotated[str | None, typer.Option(metavar="ID|PATH", help="With --speed: its weights.")]
Device = Annotated[str | None, typer.Option(metavar="auto|cpu|cuda[:i]", help="With --speed: where it runs.")]
Seconds = Annotated[float | None, typer.Option(metavar="S", min=0.1, help="With --speed: time to measure in: 15.")]


def doctor(
    scene: SceneFile = None,
    speed: Speed = False,
    model: Model = None,
    weights: Weights = None,
    device: Device = None,
    seconds: Seconds = None,
    as_json: common.Json = False,
    verbose: common.Verbose = False,
) -> int:
    """Check this installation and run a tiny scene; or measure how fast this machine is.

    Exit code 0 when all is well, 1 otherwise.
    """
    common.set_up(verbose=verbose, quiet=not verbose)
    if speed:
        from rsgeoseg.cli.doctor_speed import SpeedOptions, report_speed

        given = {"scene": scene, "model": model, "weights": weights, "device": device, "seconds": seconds}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        report_speed(SpeedOptions(**options), as_json=as_json)
        return 0
    if any(value is not None for value in (scene, model, weights, device, seconds)):
        msg = "a scene, --model, --weights, --device and --seconds are for measuring: add --speed"
        raise UsageError(msg)
    checks = []
    for name, look in CHECKS:
        check = run_check(name, look)
        checks.append(check)
        if not as_json:
            print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name:<14} {check.detail}", flush=True)
    good = all(check.ok for check in checks)
    if as_json:
        common.print_json({"ok": good, "checks": [check.to_dict() for check in checks]})
    return 0 if good else 1


def run_check(name: str, look: Callable[[], str]) -> Check:
    """Look at one thing; what goes wrong becomes the detail of a failed check."""
    try:
        return Check(name, ok=True, detail=look())
    except (UnfitError, RsGeoSegError) as error:
        return Check(name, ok=False, detail=" ".join(str(error).split()))
    except _FAULTS as error:
        return Check(name, ok=False, detail=" ".join(f"{type(error).__name__}: {error}".split()))


def _python() -> str:
    return f"{platform.python_version()} on {platform.platform()}"


def _packages() -> str:
    from rsgeoseg.engine.record import versions

    found = versions()
    names = ("rsgeoseg", "numpy", "rasterio", "geopandas", "shapely", "pyogrio")
    return ", ".join(f"{name} {found[name]}" for name in names)


def _torch() -> str:
    import torch

    if tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < (2, 10):
        msg = f"{torch.__version__} is too old to load weights safely: install torch 2.10 or later"
        raise UnfitError(msg)
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _gdal() -> str:
    import pyogrio
    import rasterio
    from rasterio.drivers import raster_driver_extensions

    readable = set(raster_driver_extensions().values())
    missing = {"GTiff", "PNG", "JPEG"} - readable | {"GPKG", "FlatGeobuf", "GeoJSON"} - set(pyogrio.list_drivers())
    if missing:
        msg = f"GDAL {rasterio.__gdal_version__} lacks {', '.join(sorted(missing))}: reinstall rasterio and pyogrio"
        raise UnfitError(msg)
    jp2 = "with" if "JP2OpenJPEG" in readable else "without"
    return f"{rasterio.__gdal_version__} (rasterio), {pyogrio.__gdal_version_string__} (pyogrio), {jp2} JPEG 2000"


def _proj() -> str:
    import pyproj

    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:32631", always_xy=True).transform(3.0, 45.0)
    if abs(x - 500_000) > 1 or abs(y - 4_982_950.4) > 1:
        msg = f"PROJ {pyproj.proj_version_str} computes wrong coordinates ({x:.1f}, {y:.1f}): reinstall pyproj"
        raise UnfitError(msg)
    return f"{pyproj.proj_version_str}, data in {pyproj.datadir.get_data_dir()}"


def _processor() -> str:
    import torch

    fast = torch.backends.cpu.get_cpu_capability()
    bf16 = "bf16 in hardware" if _cpu_bf16() else "no bf16"
    return f"{os.cpu_count()} cores, {fast}, {bf16}"


def _cpu_bf16() -> bool:
    """Whether the processor multiplies bf16 itself."""
    flags = Path("/proc/cpuinfo")
    if flags.exists():
        text = flags.read_text(encoding="ascii", errors="replace")
        return any(flag in text for flag in ("amx_bf16", "avx512_bf16", " bf16"))
    return platform.machine() == "arm64"


def _accelerator() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none: models run on the CPU"
    names = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        names.append(f"cuda:{index} {card.name}, {common.human_bytes(card.total_memory)}, {bf16}")
    return "; ".join(names)


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    if not total:
        return "the system does not tell"
    if total < 2_000_000_000:
        msg = f"{common.human_bytes(total)} is little: a run needs about 2 GB"
        raise UnfitError(msg)
    return f"{common.human_bytes(total)} in all"


def _disk() -> str:
    places = {"here": Path.cwd(), "temporary": Path(tempfile.gettempdir())}
    free = {name: shutil.disk_usage(path).free for name, path in places.items()}
    short = [name for name, count in free.items() if count < 100_000_000]
    text = ", ".join(f"{name} {common.human_bytes(count)} free" for name, count in free.items())
    if short:
        msg = f"{text}: make room, a result may not fit"
        raise UnfitError(msg)
    return text


def _weights() -> str:
    from rsgeoseg.weights.cards import bundled_cards
    from rsgeoseg.weights.files import sha256_of

    cards = bundled_cards()
    if not cards:
        msg = "none come with this installation: install rsgeoseg again, or give --weights PATH to every run"
        raise UnfitError(msg)
    for card in cards:
        if sha256_of(card.path) != card.sha256:
            msg = f"{card.path} is damaged (sha256 differs from its card): install rsgeoseg again"
            raise UnfitError(msg)
    return ", ".join(f"{card.id} ({common.human_bytes(card.bytes)}, verified)" for card in cards)


def _tiny_run() -> str:
    import pyogrio

    from rsgeoseg import jobs
    from rsgeoseg.testing.scenes import generate_scene

    with tempfile.TemporaryDirectory() as folder:
        scene, output = Path(folder) / "scene.tif", Path(folder) / "out.gpkg"
        generate_scene(scene, height=384, width=512, seed=1)
        frame = jobs.run(scene, output=output, device="auto", offline=True)
        written = len(pyogrio.read_dataframe(output))
        if written != len(frame):
            msg = f"{len(frame)} objects found, but {written} in the file"
            raise UnfitError(msg)
        record = frame.attrs["rsgeoseg"]
        return f"{written} objects in {record['seconds']:.1f} s, written and read back"


CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("python", _python),
    ("packages", _packages),
    ("torch", _torch),
    ("gdal", _gdal),
    ("proj", _proj),
    ("processor", _processor),
    ("accelerator", _accelerator),
    ("memory", _memory),
    ("disk", _disk),
    ("weights", _weights),
    ("run", _tiny_run),
)
"""What is looked at, in order: a failure often explains those after it."""
