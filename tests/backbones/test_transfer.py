"""Copies to the device. The CUDA side cannot run here: what is shared with it does, and the rest is a test to skip."""

import numpy as np
import pytest
import torch

from rsgeoseg.backbones.chips import images_of, segment_alike
from rsgeoseg.backbones.features import EncoderSpec, Level
from rsgeoseg.backbones.transfer import (
    DeviceChip,
    Uploader,
    copy_and_wait,
    name_device,
    pixels_of,
    release_memory,
    stacked,
    valid_of,
)
from rsgeoseg.contract import Chip, Instances, OutOfMemory

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def chips(count, shape=(3, 20, 24), *, holes=False, dtype=np.uint8):
    rng = np.random.default_rng(count)
    made = []
    for _ in range(count):
        image = rng.integers(0, 255, shape).astype(dtype)
        valid = rng.random(shape[1:]) < 0.7 if holes else np.ones(shape[1:], bool)
        made.append(Chip(image=image, valid=valid, gsd=0.5))
    return made


def on_device(chip, device=CPU):
    return DeviceChip(
        image=chip.image, valid=chip.valid, gsd=chip.gsd, pixels=torch.from_numpy(chip.image).to(device), copied=None
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.bool_])
def test_arrays_arrive_as_they_are(dtype):
    arrays = [np.arange(60).reshape(3, 4, 5).astype(dtype)[:, ::2], np.ones((3, 2, 5), dtype)]
    there = stacked(arrays, CPU)
    assert there.numpy().dtype == dtype
    assert np.array_equal(there.numpy(), np.stack(arrays))
    arrays[1][:] = 0
    assert there.numpy()[1].all()  # a copy: readers reuse their buffers


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_images_are_what_the_definition_says_bit_by_bit(holes, fixed):
    encoder = EncoderSpec(
        name="e",
        image_size=64,
        embedding=Level(8, 16),
        hidden=(),
        mean=(123.7, 116.3, 103.5),
        std=(58.4, 57.1, 57.4),
        fixed_size=fixed,
    )
    given = chips(3, holes=holes)
    images = images_of(given, encoder, CPU)
    assert images.shape == (3, 3, 64, 64)
    mean, std = (torch.tensor(row)[:, None, None] for row in (encoder.mean, encoder.std))
    for image, chip in zip(images, given, strict=True):
        normed = (torch.from_numpy(chip.image).float() - mean) / std
        assert torch.equal(image[:, :20, :24], normed * torch.from_numpy(chip.valid))
        assert image[:, 20:].abs().max() == 0
        assert image[:, :, 24:].abs().max() == 0
    assert torch.equal(images, images_of([on_device(chip) for chip in given], encoder, CPU))


def test_pixels_that_are_there_are_not_copied_again():
    given = [on_device(chip) for chip in chips(2)]
    given[0].pixels[:] = 7  # tells which was taken
    assert (pixels_of(given, CPU)[0] == 7).all()
    mixed = [given[0], *chips(1)]
    assert np.array_equal(pixels_of(mixed, CPU)[0].numpy(), given[0].image)
    elsewhere = [on_device(chip, torch.device("meta")) for chip in chips(2)]
    assert pixels_of(elsewhere, CPU).device == CPU


def test_where_all_is_valid_nothing_is_copied():
    assert valid_of(chips(3), CPU) is None
    given = [*chips(1), *chips(1, holes=True)]
    valid = valid_of(given, CPU)
    assert valid.shape == (2, 1, 20, 24)
    assert valid[0].all()
    assert np.array_equal(valid[1, 0].numpy(), given[1].valid)


def test_a_cpu_leaves_chips_as_they_are():
    chip = chips(1)[0]
    assert Uploader(CPU)(chip) is chip
    assert name_device(CPU) == "cpu"
    release_memory(CPU)
    copy_and_wait(chip.image, CPU)


def test_memory_that_runs_out_is_named_and_what_the_attempt_held_is_freed():
    import gc
    import weakref

    held = []

    def forward(batch):
        work = torch.zeros(1000)
        held.append(weakref.ref(work))
        torch.empty(10**15)  # torch's CPU allocator: a plain RuntimeError
        return [Instances.empty() for _ in batch] if work is not None else []

    gc.disable()
    try:
        with pytest.raises(OutOfMemory, match=r"2 chips of .* do not fit cpu: .*allocate") as caught:
            segment_alike(chips(2), forward, device=CPU)
        assert held[0]() is None  # though the error is still here
        assert caught.value.__suppress_context__
    finally:
        gc.enable()

    def broken(_batch):
        msg = "shapes cannot be multiplied"
        raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="multiplied"):
        segment_alike(chips(2), broken, device=CPU)


@CUDA
def test_uploaded_chips_give_the_same_images():
    device = torch.device("cuda")
    upload = Uploader(device)
    given = chips(4, holes=True)
    there = [upload(chip) for chip in given]
    assert all(isinstance(chip, DeviceChip) for chip in there)
    assert torch.equal(pixels_of(there, device).cpu(), pixels_of(given, CPU))
    assert torch.equal(valid_of(there, device).cpu(), valid_of(given, CPU))
