"""Configurations of the data sets train, continue and are evaluated on archives made small."""

import chex
import pytest

from ancra_jax import config as config_lib
from ancra_jax import evaluate
from ancra_jax.evaluate.suites import SUITES
from ancra_jax.train.loop import train
from configs import cifar10, tiny_imagenet
from tests.support import archives
from tests.support.small_runs import SMALL, arrays


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "method", "num_classes"),
    [(cifar10, "pgd_at", 10), (tiny_imagenet, "natural", 3)],
    ids=["cifar10", "tiny_imagenet"],
)
def test_two_steps_and_an_evaluation(file, method, num_classes, tmp_path, monkeypatch):
    archives.tar(tmp_path / "cifar-10-binary.tar.gz", archives.cifar10_files())
    archives.zip_file(tmp_path / "tiny-imagenet-200.zip", archives.tiny_imagenet_files())
    values = file.get_config(method)
    small = {name: value for name, value in SMALL.items() if not name.endswith("_examples")}
    settings = {"batch_size": 2, "data.data_dir": str(tmp_path), "data.selection_examples": 2}
    values.update_from_flattened_dict(small | settings | {"max_steps": 1})
    workdir = str(tmp_path / "run")
    train(config_lib.from_mapping(values), workdir)
    values.max_steps = 2
    state = arrays(train(config_lib.from_mapping(values), workdir))
    assert int(state.step) == 2
    assert state.params["fc"]["bias"].shape == (num_classes,)
    chex.assert_tree_all_finite(state.params)
    monkeypatch.setitem(SUITES, "quick", ("natural",))
    (natural,) = evaluate.run(workdir, suite="quick", num_examples=2, checkpoint="last").results
    assert natural["step"] == 2 and natural["num_examples"] == 2
