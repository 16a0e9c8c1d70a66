"""A run's directory under damage, full disks and two writers: every kind has one outcome."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import types

import jax
import orbax.checkpoint as ocp
import pytest

from ancra_jax import evaluate, report
from ancra_jax.errors import UsageError
from ancra_jax.ops import files
from ancra_jax.results.store import ResultStore
from ancra_jax.run import sharding
from ancra_jax.run import workdir as workdir_lib
from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.train.log import TrainingLog, tell_missing
from ancra_jax.train.loop import train
from tests.support.fake_runs import make_run
from tests.support.processes import run_command
from tests.support.small_runs import small_config

DAMAGES = {
    "zeroed": lambda data: bytes(len(data)),
    "halved": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "garbage": lambda data: b"\xff\xfe{[\n" + data[10:],
    "deleted": None,
}
MENDED, MOVED, MISSING = "written again", "moved the damaged", "records of training up to step"
# Of a run with checkpoints at 4 and 8: what is damaged, from where it goes on, what it says of it.
EVERY_DAMAGE = [
    ("checkpoints/8/metrics/metrics", 8, MENDED),
    ("checkpoints/4/metrics/metrics", 8, MENDED),
    ("checkpoints/8/extra/metadata", 4, MOVED),
    ("checkpoints/8/state/_METADATA", 4, MOVED),
    ("checkpoints/8/state/manifest.ocdbt", 4, MOVED),
    ("checkpoints/8/_CHECKPOINT_METADATA", 8, ""),
    ("checkpoints/4/extra/metadata", 8, ""),
    ("metrics.jsonl", 8, "metrics.jsonl: "),
    ("starts.jsonl", 8, ""),
    ("config.json", None, "config.json"),
]
ROWS = [(path, kind, *expected) for path, *expected in EVERY_DAMAGE for kind in DAMAGES] + [
    ("metrics.jsonl", "deleted", 8, f"{MISSING} 4, 8"),
    ("metrics.jsonl", "halved", 8, f"{MISSING} 8"),
    ("checkpoints/8/metrics", "deleted", 8, MENDED),
    ("checkpoints/8", "deleted", 4, "set aside in metrics.jsonl.set_aside"),
    ("checkpoints", "deleted", 0, "6 of 6 lines"),
    ("tensorboard", "deleted", 8, ""),
    ("evaluation", "deleted", 8, ""),
]


def damage(path, kind):
    if path.is_dir():
        shutil.rmtree(path)
    elif kind == "deleted":
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(DAMAGES[kind](path.read_bytes()))


def reopen(workdir, state):
    """Opens a run as training does; returns the step it goes on from, and its best."""
    abstract = sharding.abstract_on(state, sharding.replicated(sharding.create_mesh()))
    workdir_lib.check_for_training(str(workdir), small_config())
    with workdir_lib.one_writer(str(workdir)):
        checkpoints = Checkpoints(workdir / "checkpoints")
        restored = checkpoints.restore_latest(abstract)
        step = int(restored[0].step) if restored else 0
        tell_missing(str(workdir), range(4, step + 1, 4))
        with TrainingLog(small_config(), str(workdir), step, 8, 4):
            pass
        best = checkpoints.best_step()
        checkpoints.close()
    return step, best


def lines(*paths):
    return {line for path in paths if path.exists() for line in path.read_bytes().splitlines()}


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.mark.parametrize(("path", "kind", "step", "says"), ROWS)
def test_damages(finished, copied, capsys, path, kind, step, says):
    damage(copied / path, kind)
    logs = [copied / "metrics.jsonl", copied / "starts.jsonl"]
    before = lines(*logs)
    if step is None:
        with pytest.raises(UsageError, match=says):
            reopen(copied, finished[1])
        return
    best = Checkpoints(finished[0] / "checkpoints", read_only=True).best_step()
    goes_on, found = reopen(copied, finished[1])
    assert goes_on == step and found == (best if best <= step else step or None)
    assert says in capsys.readouterr().out
    assert lines(*logs, *(log.with_name(f"{log.name}.set_aside") for log in logs)) >= before
    for log in logs:
        assert len(files.read_json_lines(log)) == len(lines(log))
    assert reopen(copied, finished[1]) == (goes_on, found)
    assert not set(capsys.readouterr().out.split()) & {
        "damaged",
        "again",
    }  # mended once and for all


@pytest.mark.parametrize("kind", ["zeroed", "deleted"])
def test_a_best_that_is_not_known_is_never_another_one(finished, copied, capsys, kind):
    damage(copied / "checkpoints/8/metrics/metrics", kind)
    (copied / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match=r"checkpoints/8: its metrics"):
        Checkpoints(copied / "checkpoints", read_only=True).best_step()
    assert reopen(copied, finished[1]) == (4, 4)
    assert MOVED in capsys.readouterr().out
    damage(copied / "checkpoints/4/metrics/metrics", kind)
    with pytest.raises(UsageError, match=r"every checkpoint .*\[4\]"):
        reopen(copied, finished[1])


def test_a_checkpoint_with_other_metrics_than_recorded_is_damaged(finished, copied):
    (copied / "checkpoints/8/metrics/metrics").write_text('{"robust_accuracy": 0.99}')
    assert reopen(copied, finished[1])[0] == 4


def test_one_writer(finished, tmp_path, monkeypatch, capsys):
    workdir = str(shutil.copytree(finished[0], tmp_path / "run"))
    owner = rf"--workdir={workdir}: in use by process {os.getpid()} on \S+ since 20"
    with workdir_lib.one_writer(workdir):
        for write in (lambda: train(small_config(), workdir), lambda: evaluate.run(workdir)):
            with pytest.raises(UsageError, match=owner):
                write()
    (tmp_path / "run/.lock").write_text("process 1 on elsewhere since 2020")  # which has ended
    reopen(tmp_path / "run", finished[1])

    def unsupported(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with workdir_lib.one_writer(workdir):
        assert f"warning: {workdir}: cannot be locked" in capsys.readouterr().out


def test_unfinished_files_of_killed_runs_are_removed(finished, copied):
    names = [".config.json.12.tmp", "evaluation/best/.fgsm.npz.7.tmp"]
    for name in names:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_text("half")
    (copied / "checkpoints/12.orbax-checkpoint-tmp").mkdir()
    (copied / ".mine.tmp").write_text("no file of this library")
    reopen(copied, finished[1])
    assert not any((copied / name).exists() for name in names) and (copied / ".mine.tmp").exists()
    assert not list((copied / "checkpoints").glob("*tmp*"))
    begun = copied.with_name("begun")  # killed before it had a configuration
    begun.mkdir()
    (begun / names[0]).write_text("half")
    workdir_lib.open_for_training(str(begun), small_config())


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_directories_are_tried_before_anything_is_computed(tmp_path, monkeypatch, code):
    def refuse(**_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for path, use in {
        "checkpoints": lambda: Checkpoints(tmp_path / "checkpoints"),
        "evaluation/best": lambda: ResultStore(tmp_path, "best"),
        "tensorboard": lambda: TrainingLog(small_config(), str(tmp_path), 0, 8, 4),
    }.items():
        with pytest.raises(UsageError, match=rf"--workdir.*{path}: {os.strerror(code)}"):
            use()


def test_a_full_disk_is_one_line(finished, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_, **__):
        raise full

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(UsageError, match="checkpoints: cannot write a checkpoint: No space left"):
        checkpoints.save(1, {"step": jax.numpy.zeros(())})
    with TrainingLog(small_config(), str(tmp_path), 0, 8, 4) as log:
        log.selection(4, 1, {"natural_accuracy": 0.5, "robust_accuracy": 0.25})
        log.save()
        (shown,) = (tmp_path / "tensorboard").iterdir()
        assert b"selection/robust_accuracy" in shown.read_bytes()  # whatever ends the run now
    before = (tmp_path / "metrics.jsonl").read_bytes()
    workdir = make_run(tmp_path / "fake")
    monkeypatch.setattr(os, "fsync", fail)
    write = types.SimpleNamespace(
        __name__="write",
        define_flags=lambda: None,
        main=lambda _: files.write_atomically(tmp_path / "metrics.jsonl", "new"),
    )
    for command, arguments in (
        (write, []),
        (report, [f"--workdirs={workdir}", f"--output={tmp_path}/out"]),
    ):
        finished = run_command(command, *arguments)
        assert finished.status == 2 and len(finished.error.splitlines()) == 1
        assert "No space left on device" in finished.error and str(tmp_path) in finished.error
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if files.is_temporary(path)]


def test_a_line_after_an_unfinished_one(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    files.append_json_line(path, {"a": 3})
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()[::2]] == [1, 3]
    for bad in (b"\0\0\n", b"7\n"):
        path.write_bytes(path.read_bytes() + bad)
        files.set_lines_aside(path, lambda record: "a" in record, "damaged")
        assert files.read_json_lines(path) == [{"a": 1}, {"a": 3}]
    assert path.with_name("lines.jsonl.set_aside").read_bytes() == b'{"a": \n\0\0\n7\n'
