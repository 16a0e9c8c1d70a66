"""Runs whose work directory is the address of a bucket, here in memory."""

import json
import os

import chex
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from tensorboardX.proto.event_pb2 import Event

import ancra_jax
from ancra_jax.config import directory_path
from ancra_jax.errors import UsageError
from ancra_jax.ops.files import as_path, read_json_lines
from ancra_jax.run.objects import open_checkpoints
from ancra_jax.run.weights import find_weights
from ancra_jax.run.workdir import read_starts
from ancra_jax.train.loop import train
from tests.support.buckets import Folder
from tests.support.small_runs import arrays, small_config


@pytest.fixture
def bucket(request, tmp_path, monkeypatch):
    """An address below which there is nothing; the working and temporary directory is empty."""
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(Folder, "files", {})
    for name in ("gs", "gcs"):
        monkeypatch.setitem(_registry, name, MemoryFileSystem)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield f"{request.param}://bucket/run"
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    pass


class Killer:
    """A tracker that ends the training where a step's numbers were written."""

    def log(self, metrics, step):
        if step == 6:
            raise Killed

    def close(self):
        pass


@pytest.mark.parametrize("bucket", ["memory"], indirect=True)
def test_a_run_in_a_bucket_is_killed_continued_evaluated_and_reported(finished, bucket, capsys):
    workdir, expected = finished
    config = small_config()
    with pytest.raises(Killed):
        train(config, bucket, [Killer()])
    assert open_checkpoints(bucket).steps() == [4]
    chex.assert_trees_all_equal(arrays(train(config, bucket)), expected)
    assert "cannot be locked" in capsys.readouterr().out
    assert [start["step"] for start in read_starts(bucket)] == [0, 4]
    files = as_path(bucket)
    local, remote = (read_json_lines(path / "metrics.jsonl") for path in (workdir, files))
    for record in local + remote:
        record.pop("images_per_second", None)
    assert remote == local
    assert len(list((files / "tensorboard").iterdir())) == 2
    for events in (files / "tensorboard").iterdir():
        contents = events.read_bytes()
        assert Event.FromString(contents[12 : 12 + contents[0]]).file_version
    with pytest.raises(UsageError, match="another configuration"):
        train(small_config(seed=1), bucket)

    options = {"suite": "quick", "num_examples": 8}
    first = ancra_jax.evaluate.run(bucket, **options)
    created = [one["created"] for one in first.results]
    again = ancra_jax.evaluate.run(bucket, **options).results
    assert [one["created"] for one in again] == created  # nothing was computed twice
    of_local = ancra_jax.evaluate.run(workdir, **options).row
    assert of_local.accuracy == first.row.accuracy
    ancra_jax.report.run([bucket, str(workdir)], f"{bucket}/report")
    assert json.loads((files / "report/report.json").read_bytes())["rows"][0]["workdir"] == bucket
    assert not (files / "evaluation/best").is_file() and not list(files.glob("*.lock"))


@pytest.mark.parametrize("bucket", ["gs", "folder"], indirect=True)
def test_checkpoints_in_a_bucket_are_kept_and_checked_as_on_a_disk(bucket, capsys):
    config = small_config(epochs=4)
    state = train(config, bucket)
    checkpoints = open_checkpoints(bucket)
    best = checkpoints.best_step()
    assert checkpoints.steps() == sorted({12, 16, best})
    assert find_weights(bucket).step == best

    (as_path(bucket) / "checkpoints/20.npz").write_bytes(b"cut off")
    last = as_path(bucket) / "checkpoints/16.npz"
    last.write_bytes(last.read_bytes()[:-200])
    chex.assert_trees_all_equal(arrays(train(config, bucket)), arrays(state))
    assert "moved the damaged checkpoint 16" in capsys.readouterr().out
    assert not (as_path(bucket) / "checkpoints/20.npz").exists()
    aside = as_path(bucket) / "checkpoints_damaged"
    assert {path.name for path in aside.iterdir()} == {"16.0.json", "16.0.npz"}


def test_addresses_that_nothing_reads_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("nothing://bucket/run", "gs:/bucket/run", "simplecache::memory://bucket/run"):
        with pytest.raises(UsageError, match="--workdir"):
            train(small_config(), address)
        with pytest.raises(UsageError, match="--workdir"):
            ancra_jax.evaluate.run(address)
    assert not os.listdir(tmp_path)
    assert directory_path("file:///a/b", "--workdir") == "/a/b"
