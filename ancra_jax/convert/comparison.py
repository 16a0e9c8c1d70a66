"""A network beside its export in PyTorch: logits, and what AutoAttack leaves of both."""

import importlib.util
import pathlib
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ancra_jax import attacks
from ancra_jax.cli.files import import_file
from ancra_jax.config import from_mapping
from ancra_jax.data import Split, check_count
from ancra_jax.errors import UsageError, renamed
from ancra_jax.leaderboard.entry import NORMS
from ancra_jax.run import build
from ancra_jax.run.trained import TrainedModel

TOLERANCE = 1e-5  # of logits, as a share of the largest one
_BATCH = 250


@dataclass(frozen=True)
class Comparison:
    """What both networks make of the same test images; ours first where there are two numbers.

    Attributes:
      examples: how many images, the first ones of the test split.
      difference: the largest of all logits, as a share of the largest logit.
      natural: accuracies without an attack.
      robust: accuracies under AutoAttack (standard); None without the package autoattack.
    """

    examples: int
    difference: float
    natural: tuple[float, float]
    robust: tuple[float, float] | None = None

    @property
    def same(self) -> bool:
        """Whether the logits are the same."""
        return self.difference <= TOLERANCE

    def __str__(self) -> str:
        lines = [
            f"{self.examples} test images: logits differ by {self.difference:.1e} of the largest"
            f"{'' if self.same else f', more than {TOLERANCE:g}'}",
            _side_by_side("natural accuracy", self.natural),
        ]
        if self.robust is None:
            lines.append("AutoAttack is not compared: the package autoattack is not installed")
        else:
            lines.append(_side_by_side("robust accuracy (AutoAttack)", self.robust))
        return "\n".join(lines)


def _side_by_side(what: str, accuracies: tuple[float, float]) -> str:
    ours, theirs = accuracies
    return f"{what}: JAX {ours:.2%}, PyTorch {theirs:.2%}"


@renamed({r"--config\.data\.data_dir": "--data_dir"})
def check_images(model: TrainedModel, examples: int, data_dir: str) -> Split:
    """Return the first test images of the data that a network is for.

    Raises:
      UsageError: it is not known which data these are, they are not there, or there are fewer.
    """
    config = (model.info or {}).get("config")
    if not config:
        raise UsageError(f"--check={examples}: the network does not say which data it is for")
    test = build.load_dataset(build.data_in(from_mapping(config).data, data_dir)).test
    check_count("--check", examples, len(test))
    return Split(test.images[:examples], test.labels[:examples])


def compare(model: TrainedModel, directory: pathlib.Path, test: Split) -> Comparison:
    """Compare a network with its export in a directory, on test images."""
    images, labels, examples = test.images.astype("f4") / 255, test.labels, len(test)
    module = import_file(directory / "network.py", f"network_of_{directory.name}")
    (weights,) = directory.glob("weights.*")
    network = module.load(str(weights))
    with jax.default_matmul_precision("highest"):
        ours = np.concatenate([model(images[i : i + _BATCH]) for i in range(0, examples, _BATCH)])
    theirs = _logits(network, _tensor(images.transpose(0, 3, 1, 2)))
    return Comparison(
        examples,
        float(np.abs(ours - theirs).max() / np.abs(ours).max()),
        (float((ours.argmax(1) == labels).mean()), float((theirs.argmax(1) == labels).mean())),
        _autoattack(model, network, images, labels),
    )


def _autoattack(
    model: TrainedModel,
    network: Any,
    images: Float[np.ndarray, "examples height width channels"],
    labels: Int[np.ndarray, "examples"],
) -> tuple[float, float] | None:
    if importlib.util.find_spec("autoattack") is None:
        return None
    import autoattack

    ours = attacks.autoattack(model, images, labels, model.threat_model, key=0, progress=None)
    attack = autoattack.AutoAttack(
        network,
        norm=NORMS[model.norm],
        eps=model.epsilon,
        version="standard",
        device="cpu",
        verbose=False,
    )
    pixels, classes = _tensor(images.transpose(0, 3, 1, 2)), _tensor(labels.astype("i8"))
    found = attack.run_standard_evaluation(pixels, classes, bs=_BATCH)
    theirs = _logits(network, found).argmax(1) == labels
    return ours.robust_accuracy, float(theirs.mean())


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array))


def _logits(network: Any, images: Any) -> Float[np.ndarray, "examples classes"]:
    import torch

    with torch.no_grad():
        return torch.cat([network(part) for part in images.split(_BATCH)]).numpy()
