import json
import os
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ancra_jax.errors import NonFiniteLossError, UsageError
from ancra_jax.run.files import read_json_lines
from ancra_jax.run.workdir import read_starts
from ancra_jax.train import step as step_lib
from ancra_jax.train.loop import train
from tests.support import ENVIRONMENT
from tests.support.small_runs import TRAIN_COMMAND, small_config, small_flags


def arrays(state):
    return jax.tree.map(np.asarray, state)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of natural training, and its final state."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, arrays(train(small_config(), str(workdir)))


def test_a_run_leaves_what_the_other_commands_need(finished):
    workdir, state = finished
    assert int(state.step) == 8
    assert json.loads((workdir / "config.json").read_text())["name"] == "natural"
    records = read_json_lines(workdir / "metrics.jsonl")
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == [2, 4, 6, 8]
    selections = [record for record in records if record["kind"] == "selection"]
    assert [record["epoch"] for record in selections] == [1, 2]
    assert all(0 <= r["robust_accuracy"] <= r["natural_accuracy"] <= 1 for r in selections)
    assert list((workdir / "tensorboard").iterdir())
    (start,) = read_starts(str(workdir))
    assert start["step"] == 0 and start["device"] and start["versions"]["jax"]


def test_a_finished_run_is_left_as_it_is(finished, capsys):
    workdir, state = finished
    again = train(small_config(), str(workdir))
    assert "finished already" in capsys.readouterr().out
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


def command(workdir, method):
    return [
        *(sys.executable, "-c", TRAIN_COMMAND),
        f"--config=configs/digits.py:{method}",
        f"--workdir={workdir}",
        *small_flags(),
        "--config.checkpoint_every_steps=1",
    ]


def wait_for_checkpoint(process, workdir, step, seconds=240):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if (workdir / "checkpoints" / str(step)).is_dir():
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint {step}; exit status {process.poll()}")


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_parameters(tmp_path):
    expected = train(small_config("trades_ancra", checkpoint_every_steps=1), str(tmp_path / "a"))
    for number, name in ((signal.SIGKILL, "b"), (signal.SIGTERM, "c")):
        workdir = tmp_path / name
        process = subprocess.Popen(
            command(workdir, "trades_ancra"), stdout=subprocess.PIPE, env=ENVIRONMENT
        )
        wait_for_checkpoint(process, workdir, 2)
        process.send_signal(number)
        output = process.communicate(timeout=120)[0].decode()
        if number == signal.SIGTERM:
            assert process.returncode == 128 + number
            assert "the same command continues" in output
        continued = train(small_config("trades_ancra", checkpoint_every_steps=1), str(workdir))
        chex.assert_trees_all_equal(arrays(continued), arrays(expected))


def test_a_truncated_checkpoint_is_set_aside_and_the_one_before_it_taken(tmp_path, capsys):
    workdir = tmp_path / "run"
    expected = train(small_config(), str(workdir))
    step = 8
    files = [f for f in (workdir / f"checkpoints/{step}/state").rglob("*") if f.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    continued = train(small_config(), str(workdir))
    printed = capsys.readouterr().out
    assert "falling back" in printed and "continuing" in printed and "at step 4" in printed
    assert list((workdir / "checkpoints_damaged").iterdir())  # nothing is destroyed
    chex.assert_trees_all_equal(arrays(continued), arrays(expected))


def test_a_changed_bit_in_a_checkpoint_is_noticed(tmp_path, capsys):
    workdir = tmp_path / "run"
    train(small_config(), str(workdir))
    extra = workdir / "checkpoints/8/extra/metadata"
    saved = json.loads(extra.read_text())
    name = next(iter(saved["checksums"]))
    saved["checksums"][name][0] ^= 1
    extra.write_text(json.dumps(saved))
    train(small_config(), str(workdir))
    assert "checksum differs" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_good_checkpoint(tmp_path):
    config = small_config(optimizer__learning_rate=1e30, optimizer__schedule="piecewise")
    with pytest.raises(NonFiniteLossError, match=r"not finite at step \d+"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run/checkpoints/8").exists()


def test_a_workdir_of_another_configuration_is_refused_and_left_alone(finished):
    workdir, _ = finished
    before = (workdir / "config.json").read_text()
    with pytest.raises(UsageError, match=r"another configuration \(seed was 0, is 5"):
        train(small_config(seed=5), str(workdir))
    assert (workdir / "config.json").read_text() == before


def test_directories_that_cannot_be_used(tmp_path):
    (tmp_path / "holiday.jpg").write_text("mine")
    with pytest.raises(UsageError, match="holds no run"):
        train(small_config(), str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        train(small_config(), str(tmp_path / "file" / "run"))


def test_batches_that_do_not_fit(tmp_path):
    with pytest.raises(UsageError, match=r"batch_size=500: larger than the data set of 128"):
        train(small_config(batch_size=500), str(tmp_path / "run"))
    with pytest.raises(UsageError, match="held-out"):
        train(small_config(data__selection_examples=160), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_step_compiles_once_and_moves_nothing_to_or_from_the_host(tmp_path, monkeypatch):
    steps = []
    original = step_lib.make_train_step

    def guarded(*args, **kwargs):
        step = original(*args, **kwargs)
        steps.append(step)

        def call(*operands):
            if step._cache_size() == 0:  # compiling places constants on the device
                return step(*operands)
            with jax.transfer_guard("disallow"):
                return step(*operands)

        return call

    monkeypatch.setattr("ancra_jax.train.loop.make_train_step", guarded)
    state = train(small_config(), str(tmp_path / "run"))
    assert int(state.step) == 8
    assert steps[0]._cache_size() == 1
    assert jnp.isfinite(jax.tree.leaves(state.params)[0]).all()


EIGHT_DEVICES = """
import sys
import chex, jax, numpy as np
from tests.support.small_runs import small_config
from ancra_jax import train as train_lib
from ancra_jax.run import sharding

assert jax.device_count() == 8
states = []
create_mesh = sharding.create_mesh
for devices in (jax.devices(), jax.devices()[:1]):
    sharding.create_mesh = lambda: create_mesh(devices)
    config = small_config(METHOD, max_steps=1, data__crop_padding=1)
    states.append(train_lib.train(config, f"{sys.argv[1]}/{len(devices)}"))
eight, one = (jax.tree.map(np.asarray, state) for state in states)
chex.assert_trees_all_close(eight.params, one.params, rtol=1e-5, atol=1e-5)
chex.assert_trees_all_close(eight.batch_stats, one.batch_stats, rtol=1e-5, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["trades", "trades_ancra"])
def test_eight_devices_make_the_step_of_one(tmp_path, method):
    subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES.replace("METHOD", repr(method)), str(tmp_path)],
        env=ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        check=True,
    )
