"""Peak memory of the whole job with an oracle segmenter on a small and on a huge scene of the same object density.

    python benchmarks/memory.py [--small 4096] [--large 32768]

Scenes are made by this process; each run is a process of its own, whose peak resident memory is read at its end (from
/proc where there is one: there getrusage would start at the parent's size). Reported: the difference.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from engine import make_scene, oracle


def run_child(scene: Path, out: Path, chip_size: int, overlap: int) -> None:
    """Do the job and print the peak, bytes."""
    import rsgeoseg
    from rsgeoseg.engine.memory import peak_memory

    rsgeoseg.run(scene, oracle(chip_size, overlap), output=out, overwrite=True)
    print(peak_memory())


def measure(scene: Path, folder: Path, args: argparse.Namespace) -> float:
    """Peak of a child process, MB."""
    command = [sys.executable, __file__, "--child", str(scene), str(folder / "found.gpkg"),
               "--chip-size", str(args.chip_size), "--overlap", str(args.overlap)]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.split()[-1]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=4096, help="side, pixels")
    parser.add_argument("--large", type=int, default=32_768, help="side, pixels")
    parser.add_argument("--density", type=float, default=20.0, help="objects per Mpx")
    parser.add_argument("--chip-size", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--folder", type=Path, default=None, help="keep the scenes here and use them again")
    parser.add_argument("--child", nargs=2, metavar=("SCENE", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_child(Path(args.child[0]), Path(args.child[1]), args.chip_size, args.overlap)
        return
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for size in (args.small, args.large):
            scene = folder / f"ids_{size}.tif"
            if not scene.exists():
                make_scene(folder, size, args.density)
            peaks.append(measure(scene, Path(scratch), args))
            print(f"  {size} x {size}: peak {peaks[-1]:.0f} MB")
    small, large = peaks
    print(f"memory: {large - small:+.0f} MB from {args.small}^2 ({small:.0f}) to {args.large}^2 ({large:.0f})")


if __name__ == "__main__":
    main()
