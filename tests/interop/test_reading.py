"""Files of weights: formats, checkpoints with other things in them, and files with code in them."""

import argparse
import io
import os
import pathlib
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from ancra_jax.errors import UsageError
from ancra_jax.interop.reading import load_state_dict, read_weights

ARRAYS = {"a.weight": np.arange(6, dtype="f4").reshape(2, 3), "a.bias": np.ones(2, "f4")}


def assert_read(path, expected=ARRAYS, entry=""):
    loaded = load_state_dict(path, entry)
    assert loaded.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(loaded[key], array)
        assert loaded[key].dtype == np.float32


def test_npz_files(tmp_path):
    np.savez(tmp_path / "w.npz", **{key: value.astype("f2") for key, value in ARRAYS.items()})
    assert_read(tmp_path / "w.npz")
    with pytest.raises(UsageError, match=r"no entries.*'model'"):
        load_state_dict(tmp_path / "w.npz", "model")


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request, tmp_path):
    """Writes an object as PyTorch does, or did before version 1.6, and returns the path."""
    torch = pytest.importorskip("torch")

    def write(content, name="w.pth.tar"):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=request.param)
        return tmp_path / name

    return write


@pytest.fixture
def tensors():
    torch = pytest.importorskip("torch")
    return {key: torch.tensor(value) for key, value in ARRAYS.items()}


def test_pytorch_files_of_every_ending(save, tensors):
    for ending in (".pt", ".pth", ".pth.tar", ".ckpt"):
        assert_read(save(tensors, f"w{ending}"))


def test_optimisers_arguments_and_numbers_beside_the_weights(save, tensors):
    torch = pytest.importorskip("torch")
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    parameter.grad = torch.ones(3)
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "epoch": 76,
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/runs"), sizes={1, 2}),
        "best": np.float64(0.5),
        "history": np.ones(3),
        "rng": np.random.RandomState(0).get_state(),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
    }
    for entry in ("state_dict", "model_state_dict", "net", "model", "model_ema", "ema"):
        path = save({**beside, entry: tensors})
        assert_read(path)
        assert read_weights(path).entry == entry
    assert_read(save({"model": {"state_dict": tensors}, "epoch": 3}))


def test_one_of_several_networks_is_chosen(save, tensors):
    other = {key: value + 1 for key, value in tensors.items()}
    path = save({"model": tensors, "model_ema": other, "teacher": {"best": other}})
    weights = read_weights(path)
    assert (weights.entry, weights.others) == ("model", ("model_ema",))
    more = {key: array + 1 for key, array in ARRAYS.items()}
    assert_read(path, more, "model_ema")
    assert_read(path, more, "teacher/best")
    with pytest.raises(
        UsageError, match=r"no entry 'student'; there are model, model_ema, teacher"
    ):
        load_state_dict(path, "student")
    with pytest.raises(UsageError, match=r"'weights' is a dict, not a tensor; .*: weights"):
        load_state_dict(save({"weights": tensors}))


def test_a_dict_that_holds_itself_is_refused(tmp_path):
    path = in_a_zip(tmp_path / "w.pt", b"\x80\x02}q\x00X\x05\x00\x00\x00modelh\x00s.")
    with pytest.raises(UsageError, match=r"'model' is a dict, not a tensor"):
        load_state_dict(path)


def test_half_precision_strides_and_parameters(save, tensors):
    torch = pytest.importorskip("torch")
    whole = {"a.weight": ARRAYS["a.weight"], "a.bias": ARRAYS["a.bias"]}
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert_read(save({key: tensors[key].to(dtype) for key in whole}))
    moved = {"t": tensors["a.weight"].t(), "row": tensors["a.weight"][1], "none": torch.ones(0, 2)}
    assert_read(save(moved), {key: value.numpy() for key, value in moved.items()})
    assert_read(save({"p": torch.nn.Parameter(tensors["a.bias"])}), {"p": ARRAYS["a.bias"]})


class RunsCode:
    """Unpickling one of these would create the file it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def in_a_zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",
        b'cbuiltins\neval\n(S\'open("%s", "w")\'\ntR.',
        b"(S'touch %s'\nios\nsystem\n.",
        b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93\x8c\x05touch%.0s\x85R.",
        b'cnumpy.testing._private.utils\nrunstring\n(S\'open("%s", "w")\'\n}tR.',
        b"ctorch.hub\nload\n(S'%s'\ntR.",
        b"cancra_jax.interop.pickles\nNote\n(S'%s'\ntR.",
        b"c__main__\nModel\n)\x81}S'x'\nS'%s'\nsb.",
    ],
)
def test_pickles_that_would_run_code_do_not_and_are_refused(tmp_path, content):
    ran = tmp_path / "ran"
    path = in_a_zip(tmp_path / "evil.pt", content % str(ran).encode())
    with pytest.raises(UsageError, match="could run code; nothing of it was run"):
        load_state_dict(path)
    assert not ran.exists()


def test_code_beside_weights_and_whole_networks_are_refused(tmp_path):
    evil = {"state_dict": {}, "extra": RunsCode(tmp_path / "ran")}
    path = in_a_zip(tmp_path / "evil.pt", pickle.dumps(evil, 2))
    with pytest.raises(UsageError, match=r"more than weights: (_?io)\.open, which could run code"):
        load_state_dict(path)
    assert not (tmp_path / "ran").exists()
    torch = pytest.importorskip("torch")
    for new in (True, False):
        whole = {"net": torch.nn.Conv2d(1, 1, 1)}
        torch.save(whole, tmp_path / "whole.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(UsageError, match=r"torch\.nn\.modules\.conv\.Conv2d.*state_dict\(\)"):
            load_state_dict(tmp_path / "whole.pt")


TENSOR = (
    b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
    b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x02tQ%s\x89}tRs."
)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (b"K\x00K\x02\x85K\x01\x85", None),
        (b"K\x01K\x02\x85K\x01\x85", r"'w' of shape \(2,\) has 1 numbers"),
        (b"K\x00K\x02\x85K\xff\x85", r"'w' of shape \(2,\)"),
        (b"K\x00J\xfe\xff\xff\xff\x85K\x01\x85", r"'w' has the shape \(-2,\)"),
        (b"J\xff\xff\xff\xffK\x02\x85K\x01\x85", r"'w' has the shape"),
        (b"K\x00\x8a\x06\x00\x00\x00\x00\x00\x01\x85K\x00\x85", r"'w' is larger than its file"),
        (b"K\x00N\x85K\x01\x85", r"'w' has a shape or strides that are no"),
        (b"K\x00K\x02K\x01\x85", r"damaged"),
    ],
)
def test_tensors_stay_within_their_numbers(tmp_path, place, message):
    path = in_a_zip(tmp_path / "w.pt", TENSOR % place)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", np.float32([1, 2]).tobytes())
    if message is None:
        assert_read(path, {"w": np.float32([1, 2])})
    else:
        with pytest.raises(UsageError, match=message):
            load_state_dict(path)


LISTS = b"K\x01\x85" + b"2\x86" * 26  # pairs of pairs of pairs ...: 80 bytes, a gigabyte as text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TENSOR % (b"K\x00" + LISTS + b"K\x01\x85"), "'w' has a shape or strides"),
        (TENSOR % (b"K\x00K\x02\x85" + LISTS), "'w' has a shape or strides"),
        (TENSOR.replace(b"X\x01\x00\x00\x000", LISTS) % b"K\x00))", "numbers have no name"),
        (b"\x80\x02}" + LISTS + b"Ns.", "a dict or set in it has keys"),
        (b"\x80\x02}(" + LISTS + b"Nu.", "a dict or set in it has keys"),
        (b"\x80\x02(" + LISTS + b"Nd.", "a dict or set in it has keys"),
        (b"\x80\x04\x8f(" + LISTS + b"\x90.", "a dict or set in it has keys"),
        (b"\x80\x04(" + LISTS + b"\x91.", "a dict or set in it has keys"),
        (b"\x80\x02ccollections\nOrderedDict\n](" + LISTS + b"N\x86e\x85R.", "has keys"),
        (b"\x80\x02ctorch\nSize\n(" + b"N" * 65 + b"tR.", "called with 65 arguments"),
        (b"\x80\x02ctorch\nSize\n(" + b"N" * 65 + b"t\x81.", "called with 65 arguments"),
        (b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_parameter\n)Rs.", "'w' is damaged"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x01\x00\x00\x00.", "is damaged"),
    ],
)
def test_a_few_bytes_do_not_take_minutes(tmp_path, content, message):
    path = in_a_zip(tmp_path / "w.pt", content)
    with pytest.raises(UsageError, match=message) as error:
        load_state_dict(path)
    assert len(str(error.value)) < 400


def test_a_few_bytes_do_not_take_gigabytes(tmp_path):
    path = in_a_zip(tmp_path / "w.pt", b"\x80\x02}r\x00\x00\x00\x01.")  # the 2**24th of a memo
    tracemalloc.start()
    with pytest.raises(UsageError, match="no dict of tensors"):
        load_state_dict(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_dict_as_python_2_wrote_it(tmp_path):
    pairs = b"](X\x01\x00\x00\x00wK\x03\x86X\x01\x00\x00\x00vK\x04\x86e"
    path = in_a_zip(tmp_path / "w.pt", b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R.")
    with pytest.raises(UsageError, match="'w' is a int, not a tensor"):
        load_state_dict(path)


def test_files_cut_anywhere_are_refused(tmp_path, save, tensors):
    path = save(tensors)
    content = path.read_bytes()
    for length in range(0, len(content) - 1, max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        with pytest.raises(UsageError, match=str(path)):
            load_state_dict(path)


def test_other_files_are_told_from_weights(tmp_path):
    for content in (b"", b"hello", pickle.dumps({"a": 1}), os.urandom(200)):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(UsageError, match=r"w\.pth: is damaged, or no file of torch\.save"):
            load_state_dict(tmp_path / "w.pth")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("photo.txt", "hello")
    (tmp_path / "w.pth").write_bytes(archive.getvalue())
    with pytest.raises(UsageError, match=r"without data\.pkl"):
        load_state_dict(tmp_path / "w.pth")
