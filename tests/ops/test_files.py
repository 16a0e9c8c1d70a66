"""Array files: what is written is read, and everything else is refused without unpickling it."""

import os
import pathlib

import numpy as np
import pytest

from ancra_jax.errors import UsageError
from ancra_jax.ops.files import read_arrays, write_arrays, write_atomically

ARRAYS = {"a": np.arange(6).reshape(2, 3), "b": np.ones(1000, bool)}


@pytest.fixture
def file(tmp_path):
    write_arrays(tmp_path / "file.npz", ARRAYS)
    return tmp_path / "file.npz"


def test_what_is_written_is_read(file):
    found = read_arrays(file, ["b"])
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


class Bomb:
    def __reduce__(self):
        return pathlib.Path("exploded").touch, ()


def pickled(file):
    np.savez(file, a=np.array([Bomb()], object))


def one_array(file):
    with file.open("wb") as stream:
        np.save(stream, ARRAYS["a"])


DAMAGES = {
    "missing": os.remove,
    "empty": lambda file: os.truncate(file, 0),
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "text": lambda file: file.write_text("no arrays"),
    "one array": one_array,
    "pickled": pickled,
    "another": lambda file: write_arrays(file, {"c": ARRAYS["a"]}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_such_file_is_refused(file, damage, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    DAMAGES[damage](file)
    with pytest.raises(UsageError, match=rf"^{file}: .*{'a' if damage == 'another' else ''}"):
        read_arrays(file, ["a"])
    with pytest.raises(UsageError, match=r"^--file: "):
        read_arrays(file, ["a"], field="--file")
    assert not (tmp_path / "exploded").exists()


def test_a_write_that_fails_leaves_the_old_content(file, monkeypatch):
    before = file.read_bytes()

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, "new")
    assert file.read_bytes() == before
