"""Reading checkpoints without running them: containers, formats, hostile and damaged files."""

import argparse
import collections
import functools
import os
import pathlib
import pickle
import shutil
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rsgeoseg.errors import WeightsError
from rsgeoseg.weights import unpickling
from rsgeoseg.weights.pickles import read_tensors

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def state():
    """Every kind of tensor that a state dict may hold; several share one storage."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return collections.OrderedDict(
        whole=base,
        turned=base.T,
        part=base[1:3, 2:5],
        spread=torch.tensor([7.0]).expand(3, 5),
        half=torch.tensor([1.5, -2.0], dtype=torch.float16),
        brain=torch.tensor([[0.1]], dtype=torch.bfloat16),
        double=torch.tensor([1e-300], dtype=torch.float64),
        count=torch.tensor(12),
        truth=torch.tensor([True, False]),
        bytes=torch.tensor([0, 255], dtype=torch.uint8),
        nothing=torch.empty(0, 3),
        weight=torch.nn.Parameter(torch.ones(2)),
    )


def same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def save(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def message(call):
    with pytest.raises(WeightsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mmengine():
    """Modules like mmengine's, gone again when a test reads."""

    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.arange(3.0)
            self._count_history = np.array([1, 1, 1])
            self._best = np.float64(0.5)

        def min(self): ...

        def __getstate__(self):  # the real one saves its functions too
            return self.__dict__ | {"statistics_methods": collections.OrderedDict(min=HistoryBuffer.min)}

        def __setstate__(self, state):
            pytest.fail("an object of the file was built")

    class ConfigDict(dict):
        def __reduce_ex__(self, protocol):
            return (self.__class__, (dict(self),), None, None, None)

    modules = {}
    for name, kind in (("mmengine.logging.history_buffer", HistoryBuffer), ("mmengine.config.config", ConfigDict)):
        kind.__module__, kind.__qualname__ = name, kind.__name__
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
        setattr(modules[name], kind.__name__, kind)
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = HistoryBuffer.__module__, "HistoryBuffer.min"

    def write(path, content, zipped=True):
        sys.modules.update(modules)
        try:
            return save(path, content, zipped)
        finally:
            for name in modules:
                del sys.modules[name]

    return write, HistoryBuffer, ConfigDict


# --- containers ----------------------------------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize("wrap", ["flat", "model", "state_dict"])
def test_plain_containers(tmp_path, wrap, zipped):
    content = state() if wrap == "flat" else {wrap: state(), "epoch": 3}
    file = read_tensors(save(tmp_path / "a.pth", content, zipped))
    assert file.container == wrap
    assert file.classes is None
    same(file.tensors, state())


@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_safetensors_whatever_its_name(tmp_path, name):
    tensors = {key: value.contiguous().clone().detach() for key, value in state().items()}
    save_file(tensors, tmp_path / name)
    file = read_tensors(tmp_path / name)
    assert file.container == "safetensors"
    same(dict(sorted(file.tensors.items())), dict(sorted(tensors.items())))


@FORMATS
def test_mmengine(tmp_path, mmengine, zipped):
    write, buffer, _ = mmengine
    meta = {"epoch": 3, "dataset_meta": {"classes": ("ship", "airplane"), "palette": [(1, 2, 3)]}}
    hub = {"log_scalars": {"train/loss": buffer()}, "seed": np.random.default_rng(0).random(2)}
    content = {"meta": meta, "state_dict": state(), "message_hub": hub}
    path = write(tmp_path / "epoch_3.pth", content, zipped)
    refused = message(lambda: read_tensors(path))
    assert "mmengine.logging.history_buffer.HistoryBuffer" in refused
    assert f"rsgeoseg weights convert {path} -o OUT.safetensors" in refused
    file = read_tensors(path, stand_ins=True)
    assert file.container == "mmengine"
    assert file.classes == ("ship", "airplane")
    same(file.tensors, state())
    assert not any(name.startswith("mmengine") for name in sys.modules)


def test_older_spellings_of_class_names(tmp_path):
    for meta, names in (
        ({"CLASSES": ["a", "b"]}, ("a", "b")),
        ({"dataset_meta": {"CLASSES": ("a",)}}, ("a",)),
        ({"dataset_meta": {"classes": "ship"}}, ("ship",)),
        ({"dataset_meta": {"classes": 3}}, None),
        ({"epoch": 1}, None),
    ):
        assert read_tensors(save(tmp_path / "a.pth", {"meta": meta, "state_dict": state()})).classes == names


@FORMATS
def test_lightning(tmp_path, mmengine, zipped):
    write, _, config = mmengine
    parameters = config(model=config(type="SegSAM"), root=pathlib.PurePosixPath("/data"), lr=np.float32(1e-4))
    content = {"epoch": 1, "pytorch-lightning_version": "2.0", "state_dict": state(), "hyper_parameters": parameters}
    path = write(tmp_path / "last.ckpt", content, zipped)
    assert "weights convert" in message(lambda: read_tensors(path))
    file = read_tensors(path, stand_ins=True)
    assert file.container == "lightning"
    same(file.tensors, state())


@pytest.mark.slow
def test_settings_of_real_packages(tmp_path):
    omegaconf = pytest.importorskip("omegaconf", reason="NOT RUN: omegaconf is not installed")
    data = pytest.importorskip("lightning.fabric.utilities.data", reason="NOT RUN: lightning is not installed")
    parameters = {
        "attributes": data.AttributeDict(a=1),
        "omega": omegaconf.OmegaConf.create({"a": [1, {"b": "x"}]}),
        "namespace": argparse.Namespace(a=1),
        "counts": collections.Counter("aab"),
        "default": collections.defaultdict(list, a=[1]),
        "set": {1, 2},
        "array": np.zeros((2, 2), np.int64),
        "size": torch.Size([1]),
        "dtype": torch.float16,
    }
    path = save(tmp_path / "a.ckpt", {"state_dict": state(), "hyper_parameters": parameters})
    same(read_tensors(path, stand_ins=True).tensors, state())


@FORMATS
@pytest.mark.parametrize("container", ["flat", "model"])
def test_our_own_reading_is_torch_s(tmp_path, container, zipped):
    """With an object beside the tensors torch refuses, and the bytes are read here."""
    content = {"model": state(), "args": argparse.Namespace()} if container == "model" else state()
    path = save(tmp_path / "a.pth", content, zipped)
    stored = unpickling.StoredPickle(path)
    table = stored.content["model"] if container == "model" else stored.content
    same({name: stored.tensor(value) for name, value in table.items()}, state())


# --- code in files -------------------------------------------------------------------------------------------------


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(kind, marker):
    code = {
        "os.system": Runs(os.system, f"touch {marker}"),
        "builtins.eval": Runs(eval, f"open({str(marker)!r}, 'w')"),
        "functools.partial": Runs(functools.partial, pathlib.Path.touch, marker),
        "shutil.copy": Runs(shutil.copy, __file__, str(marker)),
    }
    return code[kind], f"{os.name}.system" if kind == "os.system" else kind


PLACES = {
    "alone": lambda code: code,
    "beside": lambda code: {"state_dict": state(), "meta": {"time": code}},
    "as a tensor": lambda code: {"state_dict": {**state(), "x": code}},
    "deep": lambda code: {"model": state(), "args": argparse.Namespace(a=[{"b": (1, {"c": code})}])},
}


@FORMATS
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["os.system", "builtins.eval", "functools.partial", "shutil.copy"])
def test_code_is_refused_and_not_run(tmp_path, kind, place, zipped):
    marker = tmp_path / "ran"
    code, name = hostile(kind, marker)
    path = save(tmp_path / "a.pth", PLACES[place](code), zipped)
    for reading in (read_tensors, functools.partial(read_tensors, stand_ins=True)):
        text = message(functools.partial(reading, path))
        assert f"names {name}," in text
        assert "nothing of it was run" in text
        assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickles_with_code(tmp_path, protocol):
    marker, path = tmp_path / "ran", tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"state_dict": Runs(os.system, f"touch {marker}")}, protocol=protocol))
    assert f"{os.name}.system" in message(lambda: read_tensors(path, stand_ins=True))
    assert not marker.exists()


def test_the_hostile_files_are_hostile(tmp_path):
    """Where pickle itself reads them, they do run: the tests above can fail."""
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Runs(os.system, f"touch {marker}")))
    assert marker.exists()


def test_allowed_names_lead_nowhere(tmp_path):
    """``getattr`` is on the list, since logs hold functions by it; here it gets nothing."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02cbuiltins\ngetattr\n(cargparse\nNamespace\nX\x08\x00\x00\x00__init__tR.")
    content = unpickling.StoredPickle(path).content
    assert isinstance(content, unpickling._Inert)
    path.write_bytes(b"\x80\x02cbuiltins\ngetattr\n(cargparse\nNamespace\nX\x08\x00\x00\x00__init__tR)R.")
    assert "not a weights file" in message(lambda: read_tensors(path, stand_ins=True))  # nor can it be called


@pytest.mark.parametrize(
    "name", ["collections\nOrderedDict", "torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter"]
)
def test_a_file_cannot_change_our_classes(tmp_path, name):
    """BUILD sets attributes of whatever is on the stack, a class too."""
    before = {kind: dict(vars(kind)) for kind in (unpickling._Table, unpickling._StoredTensor, unpickling._Parameter)}
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n(N}X\x08\x00\x00\x00__init__K\x01stb.")
    assert "not a weights file" in message(lambda: read_tensors(path, stand_ins=True))
    assert before == {kind: dict(vars(kind)) for kind in before}


@FORMATS
def test_a_tensor_cannot_reach_past_its_bytes(tmp_path, zipped):
    path = save(tmp_path / "a.pth", {"model": {"x": torch.ones(1)}, "args": argparse.Namespace()}, zipped)
    stored = unpickling.StoredPickle(path)
    tensor = stored.content["model"]["x"]
    for offset, size, stride in ((0, (2,), (1,)), (1, (1,), (1,)), (0, (2,), (9,)), (-1, (1,), (1,))):
        tensor.offset, tensor.size, tensor.stride = offset, size, stride
        with pytest.raises(RuntimeError):
            stored.tensor(tensor)


# --- files that are no checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"<!DOCTYPE html><title>Not found</title>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"", "truncated or not a weights file"),
        (b"PK\x03\x04 the rest is missing", "truncated or not a weights file"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{", "truncated or not a weights file"),
        (b"just text", "truncated or not a weights file"),
        (pickle.dumps([1, 2]), "something other than a table of tensors"),
        (pickle.dumps({}), "something other than a table of tensors"),
        (pickle.dumps({"state_dict": {"a": 1}}), "something other than a table of tensors"),
    ],
    ids=["html", "html after spaces", "lfs", "empty", "zip", "safetensors", "text", "list", "nothing", "numbers"],
)
def test_other_files_are_named(tmp_path, content, expected):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    for reading in (read_tensors, functools.partial(read_tensors, stand_ins=True)):
        text = message(functools.partial(reading, path))
        assert str(path) in text
        assert expected in text


def test_a_zip_without_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not a weights file" in message(lambda: read_tensors(tmp_path / "a.zip"))


def test_missing_and_folder(tmp_path):
    assert "no such weights file" in message(lambda: read_tensors(tmp_path / "none.pth"))
    text = message(lambda: read_tensors(tmp_path))
    assert "cannot be read" in text
    assert "zero_to_fp32.py" in text


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Small files of every format, the pickled ones with an object beside the tensors and without."""
    folder = tmp_path_factory.mktemp("whole")
    tensors = {"a": torch.arange(40.0), "b.c": torch.ones(3, 3)}
    beside = {"model": tensors, "args": argparse.Namespace(a=1)}
    save(folder / "zip", tensors)
    save(folder / "legacy", tensors, zipped=False)
    save(folder / "zip beside", beside)
    save(folder / "legacy beside", beside, zipped=False)
    save_file(tensors, folder / "safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


KINDS = ["zip", "legacy", "zip beside", "legacy beside", "safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_truncation_is_one_sentence(tmp_path, whole, kind):
    path = tmp_path / "a.pth"
    for size in range(1, len(whole[kind]), 7):
        path.write_bytes(whole[kind][:size])
        text = message(lambda: read_tensors(path, stand_ins=True))
        assert "truncated or not a weights file" in text or "something other" in text, (size, text)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(KINDS),
    places=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_any_damage_is_one_sentence_or_harmless(tmp_path, whole, kind, places):
    content = bytearray(whole[kind])
    for place, value in places:
        content[place % len(content)] = value
    path = tmp_path / "a.pth"
    path.unlink(missing_ok=True)  # an earlier example may still be mapped
    path.write_bytes(content)
    try:
        tensors = read_tensors(path, stand_ins=True).tensors
    except WeightsError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
