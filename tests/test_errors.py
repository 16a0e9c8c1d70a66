"""What a wrong argument of a function says, and an import by a name of version 0.1."""

import importlib
import pkgutil

import numpy as np
import pytest

from ancra_jax import attacks, errors
from tests.support.fake_runs import make_run
from tests.support.processes import run_python


@pytest.mark.parametrize("old", errors.MOVED)
def test_every_old_name_is_told_a_new_one_that_is_there(old):
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(old)
    new = errors.MOVED[old]
    assert new in str(error.value)
    assert pkgutil.resolve_name(new.removesuffix(", in the repository"))


# Not in the tests' process, where annotations are checked.
CALLS = """
import sys
import ancra_jax
from ml_collections import ConfigDict
from ancra_jax import data, models
run, digits = sys.argv[1], data.load("digits").train
network = ancra_jax.load("cifar10-trades-w8")
def call(function, *arguments, **options):
    try:
        function(*arguments, **options)
        print("nothing was said")
    except ancra_jax.errors.UsageError as error:
        print(error)
call(ancra_jax.load, None)
call(ancra_jax.report.run, [3])
call(ancra_jax.report.run, 3)
call(ancra_jax.train.run, "digits.py:trades", run, "epochs=3")
call(ancra_jax.train.run, "digits.py:trades", run, ConfigDict({"epochs": 0}))
call(ancra_jax.train.run, "digits.py:trades", run, trackers=3)
call(ancra_jax.evaluate.run, run, num_examples=None)
call(ancra_jax.evaluate.run, run, seed="1")
call(ancra_jax.evaluate.run, run, force=1)
call(ancra_jax.evaluate.run, run, max_minutes=None)
call(ancra_jax.evaluate.run, run, epsilon="8/255")
call(ancra_jax.evaluate.run, run, profile_steps=(1, 2))
call(ancra_jax.evaluate.run, run, transfer_from=3)
call(data.load, "digits", train_examples=1e3)
call(data.load, "digits", options="a")
call(data.load, "digits", options=ConfigDict())
call(data.hold_out, digits, 1.5, 0)
call(data.hold_out, digits, 3, -1)
call(models.create, "resnet18", num_classes=10, mean=0.5, std=1)
call(network, "image.png")
call(network.export, platforms=3)
"""
NAMED = (
    *("path=None", "--workdirs=3", "--workdirs=3", "settings='epochs=3'", "--config.epochs=0"),
    *("trackers=3", "--num_examples=None", "--seed='1'", "--force=1", "--max_minutes=None"),
    *("--epsilon='8/255'", "--profile_steps=(1, 2)", "--transfer_from=3", "train_examples=1000.0"),
    *("options='a'", "nothing was said", "num_examples=1.5", "seed=-1", "mean=0.5", "images"),
    "platforms=3",
)


def test_arguments_of_a_wrong_type_are_named(tmp_path):
    lines = run_python(CALLS, make_run(tmp_path / "run")).splitlines()
    for line, named in zip(lines, NAMED, strict=True):
        assert line.startswith(named)


def test_a_norm_beside_a_threat_model_of_another_is_refused():
    images = np.zeros((2, 8, 8, 1), np.float32)
    arguments = lambda x: x[:, 0, 0], images, np.zeros(2, int), attacks.Linf(0.1)
    with pytest.raises(TypeError, match=r"norm='l2': .*Linf"):
        attacks.autoattack(*arguments, norm="l2", key=0)
