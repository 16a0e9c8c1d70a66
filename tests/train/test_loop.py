"""What a run leaves, and how it ends, stops and continues."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from ancra_jax.errors import NonFiniteLossError, UsageError
from ancra_jax.ops.files import as_path, read_json_lines
from ancra_jax.ops.target import compiler_options
from ancra_jax.run.objects import open_checkpoints
from ancra_jax.run.workdir import check_for_training, open_for_training, read_starts
from ancra_jax.train import loop
from ancra_jax.train.loop import train
from tests.support import ENVIRONMENT, ROOT
from tests.support.buckets import Folder
from tests.support.processes import FORKS, ends_of, start_several
from tests.support.small_runs import SMALL, TRAIN_COMMAND, arrays, small_config, small_flags


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "run")


def test_a_run_leaves_what_the_other_commands_need(finished):
    workdir, state = finished
    assert int(state.step) == 8
    assert json.loads((workdir / "config.json").read_text())["name"] == "natural"
    records = read_json_lines(workdir / "metrics.jsonl")
    trained = [record for record in records if record["kind"] == "train"]
    assert [record["step"] for record in trained] == [2, 4, 6, 8]
    assert [record["epoch"] for record in trained] == [0.5, 1, 1.5, 2]
    selections = [record for record in records if record["kind"] == "selection"]
    assert [record["epoch"] for record in selections] == [1, 2]
    assert all(0 <= r["robust_accuracy"] <= r["natural_accuracy"] <= 1 for r in selections)
    assert list((workdir / "tensorboard").iterdir())
    (start,) = read_starts(str(workdir))
    assert start["step"] == 0 and start["device"] and start["versions"]["jax"]


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    workdir, state = finished
    again = train(small_config(), str(workdir))
    assert str(workdir) in capsys.readouterr().out
    assert len(read_starts(str(workdir))) == 1
    chex.assert_trees_all_equal(arrays(again), state)


@pytest.mark.parametrize("stop_at", [3, 4])
def test_a_run_stopped_and_continued_equals_an_uninterrupted_one(finished, tmp_path, stop_at):
    _, expected = finished
    train(small_config(max_steps=stop_at), str(tmp_path / "run"))
    continued = train(small_config(), str(tmp_path / "run"))
    chex.assert_trees_all_equal(arrays(continued), expected)
    steps = [r["step"] for r in read_json_lines(tmp_path / "run/metrics.jsonl")]
    assert steps == sorted(steps)
    assert [start["step"] for start in read_starts(str(tmp_path / "run"))] == [0, stop_at]


def numbers(workdir):
    """A run's records and what TensorBoard shows, without the speed."""
    records = read_json_lines(workdir / "metrics.jsonl")
    for record in records:
        record.pop("images_per_second", None)
    shown = {}
    for file in sorted((workdir / "tensorboard").iterdir(), key=os.path.getctime):
        data = file.read_bytes()
        while data:
            end = 12 + struct.unpack("<Q", data[:8])[0]
            event = Event.FromString(data[12:end])
            data = data[end + 4 :]
            if event.HasField("session_log"):  # what was shown from this step on is purged
                shown = {key: value for key, value in shown.items() if key[0] < event.step}
            for value in event.summary.value:
                shown[event.step, value.tag] = value.simple_value
    return records, {key: shown[key] for key in shown if "images_per_second" not in key[1]}


def start_process(workdir, method, *flags, **environment):
    run = [f"--config=configs/digits.py:{method}", f"--workdir={workdir}", *small_flags()]
    command = [sys.executable, "-c", TRAIN_COMMAND, *run, *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT | environment
    )


LONG = {"epochs": 10, "checkpoint_every_steps": 1}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run of more steps, its directory and final state."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    return workdir, arrays(train(small_config(epochs=LONG["epochs"]), str(workdir)))


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_parameters(tmp_path, uninterrupted):
    flags = [f"--config.{name}={value}" for name, value in LONG.items()]
    process = start_process(tmp_path / "run", "natural", *flags)
    deadline = time.monotonic() + 240
    while not (tmp_path / "run/checkpoints/2").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.02)
    process.kill()
    output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == -signal.SIGKILL and "the same command continues" not in output
    continued = train(small_config(**LONG), str(tmp_path / "run"))
    assert [start["step"] > 1 for start in read_starts(str(tmp_path / "run"))] == [False, True]
    workdir, expected = uninterrupted
    chex.assert_trees_all_equal(arrays(continued), expected)
    assert numbers(tmp_path / "run") == numbers(workdir)


# Of the process itself: getrusage in a child begins with what its parent had when it forked.
PEAK = "import atexit; atexit.register(lambda: print(open('/proc/self/status').read()))\n"


@pytest.mark.skipif(sys.platform != "linux", reason="has no /proc/self/status")
def test_a_run_from_another_directory_takes_little_memory(tmp_path):
    """It took 228 MiB beside the pages of files; without ``ops.target.compiler_options`` 376.

    XLA of jax 0.12 does not have the option that saves most of it any more: 348.
    How many pages of libraries count as its own depends on what the machine has read before.
    The other tests' way of compiling would hide what the options are for.
    """
    command = [sys.executable, "-c", PEAK + TRAIN_COMMAND, *small_flags(), "--workdir=run"]
    command += [f"--config={ROOT}/configs/digits.py:trades", "--config.max_steps=1"]
    environment = ENVIRONMENT | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    del environment["XLA_FLAGS"], environment["JAX_DISABLE_MOST_OPTIMIZATIONS"]
    completed = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert completed.returncode == 0 and (tmp_path / "run/checkpoints/1").is_dir()
    peak, of_files = (
        int(re.search(rf"{name}:\s+(\d+) kB", completed.stdout)[1]) for name in ("VmHWM", "RssFile")
    )
    has_option = "xla_cpu_use_fusion_emitters" in compiler_options()
    assert peak - of_files < (270 if has_option else 400) * 1024


@pytest.mark.slow
def test_processes_on_a_bucket_stop_together_and_others_continue(tmp_path, monkeypatch):
    """One of two gets a signal, one of four is killed; the end is that of a run in one process."""
    workdir, alone = "folder://bucket/run", tmp_path / "alone"
    config = small_config("pgd_at", **{**LONG, "epochs": 5, "optimizer__accumulation_steps": 2})
    settings = {**SMALL, **LONG, "epochs": 5, "optimizer.accumulation_steps": 2}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    flags += ["--config=digits.py:pgd_at", f"--workdir={workdir}", "--deterministic"]
    with FORKS.Manager() as manager:
        monkeypatch.setattr(Folder, "files", manager.dict())

        def started(count, last):
            outputs = tmp_path / str(count)
            options = {"devices": 4 // count, "files": Folder.files}
            processes = start_several(outputs, "train", count, *flags, **options)
            deadline = time.monotonic() + 240
            while max(open_checkpoints(workdir, read_only=True).steps(), default=0) < last:
                assert time.monotonic() < deadline, "no checkpoint"
                time.sleep(0.01)
            return processes

        processes = started(2, 2)
        processes[1].terminate()
        statuses, lines = ends_of(processes)
        assert statuses == [128 + signal.SIGTERM] * 2
        assert lines[0] == lines[1] and "the same command continues" in lines[0]
        processes = started(4, 8)
        processes[3].kill()
        statuses, lines = ends_of(processes)
        assert statuses == [1, 1, 1, -signal.SIGKILL]
        assert all(line.startswith("error: process") for line in lines[:3])
        assert not any(os.listdir(tmp_path / count / "here") for count in "24")

        continued, expected = train(config, workdir), train(config, str(alone))
        chex.assert_trees_all_close(arrays(continued).params, arrays(expected).params, atol=1e-5)
        steps = [start["step"] for start in read_starts(workdir)]
        assert 0 < steps[1] < steps[2] < int(continued.step) == 20
        ours, theirs = (
            [(record["kind"], record["step"]) for record in read_json_lines(path / "metrics.jsonl")]
            for path in (as_path(workdir), alone)
        )
        assert ours == theirs  # written once, by one of the processes


@pytest.mark.slow
def test_processes_that_do_not_share_the_directory_end_together(tmp_path):
    """Here each has a bucket of its own."""
    plugin = tmp_path / "impatient.py"
    plugin.write_text("from ancra_jax.run import multihost\nmultihost.shown_within = 0.1\n")
    flags = ["--config=digits.py:natural", "--workdir=folder://bucket/run", *small_flags()]
    processes = start_several(tmp_path, "train", 2, *flags, f"--plugin={plugin}", files={})
    statuses, lines = ends_of(processes)
    assert all(statuses)
    message = r"error: --workdir=folder://bucket/run: process 1 on \S+ cannot see "
    assert any(re.match(message, line) for line in lines), lines


def test_a_truncated_checkpoint_is_set_aside_and_the_one_before_it_taken(finished, copied, capsys):
    files = [f for f in (copied / "checkpoints/8/state").rglob("*") if f.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    continued = train(small_config(), str(copied))
    assert "warning" in capsys.readouterr().out
    assert read_starts(str(copied))[-1]["step"] == 4
    assert list((copied / "checkpoints_damaged").iterdir())  # nothing is destroyed
    chex.assert_trees_all_equal(arrays(continued), finished[1])


def test_a_changed_bit_in_a_checkpoint_is_noticed(copied):
    for step in (4, 8):
        extra = copied / f"checkpoints/{step}/extra/metadata"
        saved = json.loads(extra.read_text())
        name = next(iter(saved["checksums"]))
        saved["checksums"][name][0] ^= 1
        extra.write_text(json.dumps(saved))
    with pytest.raises(UsageError, match=r"--workdir: .*checkpoints .*\[8, 4\]"):
        train(small_config(), str(copied))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(tmp_path):
    config = small_config(optimizer__learning_rate=1e30, optimizer__schedule="piecewise")
    with pytest.raises(NonFiniteLossError, match=r"not finite at step \d+"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run/checkpoints/8").exists()


def test_a_workdir_of_another_configuration_is_refused_and_left_alone(finished):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    with pytest.raises(UsageError, match=r"--workdir=.*\(seed was 0, is 5"):
        train(small_config(seed=5), str(workdir))
    assert (workdir / "config.json").read_text() == before


def test_a_run_that_saved_nothing_may_be_deleted_for_another(finished, tmp_path):
    open_for_training(str(tmp_path), small_config())
    for workdir, said in ((tmp_path, True), (finished[0], False)):
        with pytest.raises(UsageError, match="give this run another --workdir") as error:
            check_for_training(str(workdir), small_config(seed=5))
        assert ("delete" in str(error.value)) == said


def test_a_run_does_not_lie_among_the_classes(tmp_path):
    config = small_config(data__name="folder", data__data_dir=str(tmp_path))
    with pytest.raises(UsageError, match=rf"--workdir={tmp_path}/run: .*data_dir"):
        check_for_training(str(tmp_path / "run"), config)
    (tmp_path / "train").mkdir()
    check_for_training(str(tmp_path / "run"), config)


def test_directories_that_cannot_be_used(tmp_path):
    (tmp_path / "holiday.jpg").write_text("mine")
    with pytest.raises(UsageError, match=rf"--workdir={tmp_path}: .*config\.json"):
        train(small_config(), str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=rf"--workdir={tmp_path}/file/run: "):
        train(small_config(), str(tmp_path / "file" / "run"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 500}, r"batch_size=500: .* 128,"),
        ({"data__selection_examples": 160}, r"selection_examples=160: .* 159"),
        ({"model__batch_norm_parts": 5}, r"batch_norm_parts=5: the 32 examples"),
        ({"distillation__teacher": "/nowhere"}, r"config\.distillation\.teacher='/nowhere'"),
    ],
)
def test_settings_that_do_not_fit_the_data_leave_no_directory(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        train(small_config(**settings), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_step_compiles_once_and_moves_nothing_to_or_from_the_host(tmp_path, monkeypatch):
    steps = []

    class Guarded(loop.StoppableStep):
        def __init__(self, *args):
            super().__init__(*args)
            step = self._step
            steps.append(step)

            def call(*operands):
                if step._cache_size() == 0:  # compiling places constants on the device
                    return step(*operands)
                with jax.transfer_guard("disallow"):
                    return step(*operands)

            self._step = call

    monkeypatch.setattr(loop, "StoppableStep", Guarded)
    state = train(small_config(), str(tmp_path / "run"))
    assert int(state.step) == 8
    assert steps[0]._cache_size() == 1
    assert jnp.isfinite(jax.tree.leaves(state.params)[0]).all()
