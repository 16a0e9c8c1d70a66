"""Batches over several devices: every device works by itself, and the results are those of one."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ancra_jax import attacks
from ancra_jax.attacks import loop
from ancra_jax.attacks.job import Placement
from ancra_jax.ops.per_device import Layout, layout_of
from tests.support.processes import run_on_devices


def logits(weights, x):
    kernel, head = weights
    x = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(x).reshape(len(x), -1) @ head


def run_attacks(devices):
    """Short attacks, in loops of both kinds."""
    keys = jax.random.split(jax.random.key(1), 3)
    weights = jax.random.normal(keys[0], (3, 3, 3, 4)), jax.random.normal(keys[1], (36, 5))
    images = np.asarray(jax.random.uniform(keys[2], (16, 6, 6, 3)))
    clean = np.asarray(logits(weights, images))
    placement = Placement.over(devices, 16, 16)
    labels, targets = clean.argmax(axis=1), clean.argsort(axis=1)[:, -2]
    images, placed_labels, indices = placement.place((images, labels, np.arange(16)))
    model = placement.replicate(jax.tree_util.Partial(logits, weights))
    # Only the images tell how the batch is spread; what else is over it need not be on the devices.
    common = {"key": jax.random.key(0)}
    short = common | {"indices": indices, "num_steps": 4}
    problem = (model, images, labels, attacks.Linf(0.02))
    yield "dlr", attacks.apgd(*problem, loss="dlr", loop="host", **short)
    yield "fab-t", attacks.fab(*problem, targets=targets, loop="host", **short)
    yield "fab", attacks.fab(*problem, num_restarts=2, loop="compiled", **short)
    yield "square", attacks.square(*problem, num_queries=20, **common)
    problem = (model, images, placed_labels, attacks.L2(0.2))
    yield "l2 square", attacks.square(*problem, num_queries=20, **common)
    # One operand is on no mesh, and nobody can tell whether it is over the batch: still equal.
    objective = attacks.objectives.cross_entropy(model, labels)
    yield "unclear", attacks.apgd(*problem, loss=objective, **short)


def on_eight_devices(path):
    """Runs in a process of its own."""
    assert len(jax.devices()) == 8
    programs, found, unclear = {}, {}, set()

    def watched(module, name):
        function = getattr(module, name)

        def call(*args):
            layout = next(a for a in args if a is None or isinstance(a, Layout))
            if layout is None:
                unclear.add(len(found))
            else:
                programs[name, str(args[0])] = function.lower(*args).compile().as_text()
            return function(*args)

        setattr(module, name, call)

    for name in ("_one_step", "_compiled"):
        watched(loop, name)
    watched(sys.modules["ancra_jax.attacks.square"], "_search")
    for name, result in run_attacks(jax.devices()):
        found[name] = result
    assert [list(found)[number] for number in unclear] == ["unclear"]
    assert {name for name, _ in programs} == {"_one_step", "_compiled", "_search"}
    collectives = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    for name, program in programs.items():
        assert not any(collective in program for collective in collectives), name
    assert all(len(result.images.sharding.device_set) == 8 for result in found.values())
    np.savez(path, **{f"{k} {f}": v for k, r in found.items() for f, v in r._asdict().items()})


@pytest.mark.slow
def test_eight_devices_need_no_collectives_and_find_what_one_finds(tmp_path):
    path = str(tmp_path / "eight.npz")
    code = "import sys, tests.ops.test_per_device as t; t.on_eight_devices(sys.argv[1])"
    run_on_devices(8, code, path)
    with np.load(path) as eight:
        for name, one in run_attacks(jax.devices()[:1]):
            assert np.asarray(one.success).any() and not np.all(one.success), name
            for field in ("success", "queries", "best_loss"):
                actual, expected = eight[f"{name} {field}"], getattr(one, field)
                np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_one_device_has_no_layout():
    state, operands = jnp.zeros((4, 3)), (jnp.zeros(4), jnp.zeros((3, 3)), 0.5)
    assert layout_of(state, operands) is None
    mesh = jax.make_mesh((1,), ("data",))
    spread = jax.device_put((state, operands), NamedSharding(mesh, PartitionSpec()))
    assert layout_of(*spread) is None
