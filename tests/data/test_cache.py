import errno
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ancra_jax import data
from ancra_jax.data.cache import cached, source_key
from ancra_jax.errors import UsageError


def small(seed=0):
    rng = np.random.default_rng(seed)

    def split(count):
        images = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        return data.Split(images, np.arange(count, dtype=np.int32) % 2)

    return data.Dataset("small", split(10), split(4), ("a", "b"))


def never():
    raise AssertionError("the cache was not used")


def test_second_load_is_a_read_only_map(cache_dir):
    first = cached("small", "key", small, None)
    second = cached("small", "key", never, None)
    for dataset in (first, second):
        assert isinstance(dataset.train.images, np.memmap)
        assert not dataset.train.images.flags.writeable
        assert dataset.fingerprint == small().fingerprint
        assert dataset.class_names == ("a", "b")
        np.testing.assert_array_equal(dataset.test.images, small().test.images)
        np.testing.assert_array_equal(dataset.test.labels, small().test.labels)
    assert [path.name for path in cache_dir.iterdir()] == ["small-key"]
    assert len(list((cache_dir / "small-key").iterdir())) == 5


@pytest.mark.parametrize("name", ["train_images.npy", "test_labels.npy", "dataset.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "changed"])
def test_damaged_entry_is_rebuilt_with_a_warning(cache_dir, caplog, name, damage):
    cached("small", "key", small, None)
    path = cache_dir / "small-key" / name
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        contents = bytearray(path.read_bytes())
        contents[-3] ^= 1
        path.write_bytes(contents)
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 5)
    with caplog.at_level(logging.WARNING):
        dataset = cached("small", "key", small, None)
    assert "damaged" in caplog.text
    assert dataset.fingerprint == small().fingerprint
    assert cached("small", "key", never, None).fingerprint == dataset.fingerprint
    assert [path.name for path in cache_dir.iterdir()] == ["small-key"]


def test_unwritable_cache_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        dataset = cached("small", "key", small, tmp_path / "file" / "cache")
    assert "cannot keep the decoded small" in caplog.text
    assert dataset.fingerprint == small().fingerprint


def test_a_cache_that_may_not_be_entered_is_a_warning(tmp_path, monkeypatch, caplog):
    def refused(path, *args, **options):
        if str(path).startswith(str(tmp_path / "secret")):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return there(path, *args, **options)

    there = os.stat  # as for another user than the one that runs these tests, who may do all
    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setattr(os, "mkdir", refused)
    with caplog.at_level(logging.WARNING):
        dataset = cached("small", "key", small, tmp_path / "secret" / "cache")
    assert "Permission denied" in caplog.text
    assert dataset.fingerprint == small().fingerprint


@pytest.mark.parametrize("given", ["ANCRA_JAX_CACHE", "cache_dir"])
def test_an_empty_setting_is_none(tmp_path, monkeypatch, given):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ANCRA_JAX_CACHE", "")
    monkeypatch.chdir(tmp_path)
    cached("small", "key", small, "" if given == "cache_dir" else None)
    assert [path.name for path in tmp_path.iterdir()] == ["ancra_jax"]


def test_a_user_that_does_not_exist_has_no_cache(monkeypatch):
    monkeypatch.setenv("ANCRA_JAX_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(UsageError, match="ANCRA_JAX_CACHE='~nobody-of-this-name/cache': there is"):
        cached("small", "key", small, None)


def test_failed_write_leaves_nothing(cache_dir, monkeypatch, caplog):
    def full_disk(path, array):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", full_disk)
    with caplog.at_level(logging.WARNING):
        assert len(cached("small", "key", small, None).train) == 10
    assert "No space left" in caplog.text
    assert list(cache_dir.iterdir()) == []


def test_concurrent_builds(cache_dir):
    barrier = threading.Barrier(4)

    def build():
        barrier.wait()
        return small()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: cached("small", "key", build, None), range(4)))
    assert {dataset.fingerprint for dataset in results} == {small().fingerprint}
    assert cached("small", "key", never, None).fingerprint == small().fingerprint


@pytest.mark.parametrize("variable", ["ANCRA_JAX_CACHE", "XDG_CACHE_HOME", "HOME"])
def test_places(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("ANCRA_JAX_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    cached("small", "key", small, None)
    below = {"ANCRA_JAX_CACHE": ".", "XDG_CACHE_HOME": "ancra_jax", "HOME": ".cache/ancra_jax"}
    assert (tmp_path / below[variable] / "small-key").is_dir()


def test_key_depends_on_path_size_time_and_description(tmp_path):
    path = tmp_path / "a"
    path.write_text("abc")
    keys = [source_key("x", [path]), source_key("y", [path])]
    os.utime(path, (0, 0))
    keys.append(source_key("x", [path]))
    assert source_key("x", [path]) == keys[-1]
    path.write_text("abcd")
    os.utime(path, (0, 0))
    keys.append(source_key("x", [path]))
    path.rename(tmp_path / "b")
    keys.append(source_key("x", [tmp_path / "b"]))
    assert len(set(keys)) == 5
