"""Whether freed memory is used again."""

import os
import platform
import subprocess
import sys

import pytest

from rsgeoseg import heap

linux = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc handles its memory as it likes")

COUNT = """
import ctypes
import resource
import threading
from rsgeoseg.heap import keep_freed_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: pages of 4 kB whatever the machine is set to
done = keep_freed_memory() if {keep} else None

def work():
    b"1" * (100 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        b"1" * (100 << 20)
    print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if {thread}:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


def count_faults(*, keep, thread=False, **environment):
    clean = {name: value for name, value in os.environ.items() if name not in heap._OWN_SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", COUNT.format(keep=keep, thread=thread)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    said, faults = done.stdout.split()
    return said, int(faults)


@linux
@pytest.mark.parametrize("thread", [False, True])
def test_large_blocks_are_filled_with_zeros_once(thread):
    assert count_faults(keep=True, thread=thread) == ("True", pytest.approx(0, abs=50))
    assert count_faults(keep=False)[1] > 1000  # 5 times 100 MB in pages of 4 kB


@linux
def test_the_users_own_settings_stand():
    assert count_faults(keep=True, MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"


def test_nothing_is_done_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert heap.keep_freed_memory() is False
