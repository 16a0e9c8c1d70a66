"""The wheel, as somebody uses it who has no checkout."""

import numpy as np
import pytest
from PIL import Image

from tests.support.environments import build_wheel, make_environment, run

pytestmark = pytest.mark.slow

SMALL = (
    "--config.max_steps=2",
    "--config.epochs=1",
    "--config.model.name=wide_resnet10_1",
    "--config.model.width=2",
    "--config.data.train_examples=160",
    "--config.data.selection_examples=32",
    "--config.selection.num_steps=1",
    "--config.evaluation.num_steps=2",
)
ATTACK = """
import jax, jax.numpy as jnp
import ancra_jax
from ancra_jax import attacks, losses, models
assert models.create("resnet18", num_classes=3)
weights = jax.random.normal(jax.random.key(0), (12, 3))
images = jnp.full((4, 2, 2, 3), 0.5)
model = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
labels = jnp.argmax(model(images), axis=-1)
result = attacks.pgd(model, images, labels, attacks.Linf(0.5), step_size=0.1, num_steps=5, key=0)
assert result.success.all()
assert losses.cross_entropy(model(images), labels) >= 0.0
assert ancra_jax.load("cifar10-trades-w8")(jnp.full((1, 32, 32, 3), 0.5)).shape == (1, 10)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("hatchling", reason="of the extra dev")
    return build_wheel(tmp_path_factory.mktemp("dist"))


def test_attacks_and_networks_need_the_core_alone(wheel, tmp_path):
    commands = make_environment(tmp_path / "core", wheel)
    run([commands / "python", "-c", ATTACK], tmp_path)
    train = [commands / "ancra", "train", "--config=digits.py:trades", "--workdir=run"]
    report = [commands / "python", "-m", "ancra_jax.report", "--workdirs=run", "--output=out"]
    source = [commands / "ancra", "import", "--checkpoint=a.pt", "--arch=resnet18", "--workdir=a"]
    for command, extra in ((train, "train"), (source, "train"), (report, "report")):
        (line,) = run(command, tmp_path, status=2).splitlines()
        assert line.startswith("error: ") and f'pip install "ancra-jax[{extra}]"' in line


def test_digits_are_trained_evaluated_reported_and_predicted(wheel, tmp_path):
    commands = make_environment(tmp_path / "env", wheel, "train", "data", "report")
    ancra = commands / "ancra"
    run([ancra, "train", "--config=digits.py:natural", "--workdir=run", *SMALL], tmp_path)
    run([ancra, "evaluate", "--workdir=run", "--suite=quick", "--num_examples=8"], tmp_path)
    run([ancra, "report", "--workdirs=run", "--output=out"], tmp_path)
    assert "worst case" in (tmp_path / "out/report.md").read_text().lower()
    Image.fromarray(np.arange(0, 256, 4, np.uint8).reshape(8, 8)).save(tmp_path / "digit.png")
    told = run([ancra, "predict", "--workdir=run", "--images=digit.png"], tmp_path)
    assert "digit.png" in told and "%" in told
    (tmp_path / "cifar").mkdir()
    table = ["paper", "table3", "--rows=trades_ancra", "--data_dir=cifar", "--dry_run"]
    assert "--config=configs/cifar10.py:trades_ancra" in run([ancra, *table], tmp_path)
