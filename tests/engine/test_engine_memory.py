import subprocess
import sys
from pathlib import Path

import numpy as np

from rsgeoseg.engine.memory import peak_memory

ROOT = Path(__file__).parents[2]


def test_the_peak_grows_with_what_is_held_and_stays_after():
    before = peak_memory()
    block = np.ones(max(before, 100_000_000) // 4, np.float32)
    held = peak_memory()
    del block
    assert held >= before
    assert peak_memory() >= 0.99 * held  # the kernel counts threads in lots of pages


def test_a_child_does_not_inherit_its_parents_peak():
    block = np.ones(50_000_000, np.float32)
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    program = f"{start}; from rsgeoseg.engine.memory import peak_memory; print(peak_memory())"
    child = int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)
    assert 1_000_000 < child < block.nbytes
