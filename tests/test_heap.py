"""Whether freed memory is used again."""

import gc
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


def test_no_garbage_is_looked_for_while_something_loads():
    collections = []
    gc.callbacks.append(lambda phase, _: collections.append(phase))
    try:
        with heap.no_collection():
            kept = [[] for _ in range(200_000)]
            assert not collections
            with heap.no_collection():  # a model that loads in a command that loads
                pass
            assert not gc.isenabled()
        assert gc.isenabled()
        kept += [[] for _ in range(200_000)]
        assert collections
    finally:
        gc.callbacks.pop()


def test_collection_stays_off_where_it_was():
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError), heap.no_collection():
            1 / 0  # noqa: B018
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(ZeroDivisionError), heap.no_collection():
        1 / 0  # noqa: B018
    assert gc.isenabled()


def test_a_command_ends_without_taking_its_objects_apart():
    code = """
import sys
from rsgeoseg.cli import main

class Ring:
    def __init__(self):
        self.me = self
    def __del__(self):
        print("taken apart", file=sys.stderr)

main.invoke = lambda arguments: Ring() and 3
main.main(["models"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (3, "")
