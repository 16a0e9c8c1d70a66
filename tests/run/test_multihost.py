import socket
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from ancra_jax.run.checkpoint import Checkpoints
from ancra_jax.run.files import read_json_lines
from ancra_jax.train.loop import train
from tests.support import ENVIRONMENT
from tests.support.small_runs import TRAIN_COMMAND, small_config, small_flags


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    command = [
        *(sys.executable, "-c", TRAIN_COMMAND),
        "--config=configs/digits.py:trades",
        f"--workdir={tmp_path}/two",
        *small_flags(),
        "--config.max_steps=1",
        "--distributed",
        f"--coordinator_address=localhost:{free_port()}",
        "--num_processes=2",
    ]
    environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "2"}
    processes = [
        subprocess.Popen([*command, f"--process_id={i}"], env=environment) for i in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]

    one = train(small_config("trades", max_steps=1), str(tmp_path / "one"))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), one
    )
    two, _ = Checkpoints(tmp_path / "two/checkpoints", read_only=True).restore(1, abstract)
    chex.assert_trees_all_close(
        jax.tree.map(np.asarray, two.params), jax.tree.map(np.asarray, one.params), atol=1e-5
    )
    steps = [r["step"] for r in read_json_lines(tmp_path / "two/metrics.jsonl")]
    assert steps == sorted(steps)  # written once, by one of the processes
