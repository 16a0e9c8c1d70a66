"""A model's clean and robust accuracy on a benchmark's test images, in one call.

References:
  Croce et al., RobustBench: a standardized adversarial robustness benchmark, NeurIPS 2021 Datasets
  and Benchmarks.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from ancra_jax import attacks, data
from ancra_jax.attacks.autoattack import AttackRecord, AutoAttackResult, autoattack
from ancra_jax.attacks.job import HostImages, Numbers
from ancra_jax.attacks.model import Model, as_pytree, forward
from ancra_jax.attacks.threat_models import norm_of
from ancra_jax.config import local_path
from ancra_jax.errors import UsageError
from ancra_jax.leaderboard.corruptions import CORRUPTIONS, Corrupted, measure, open_corrupted
from ancra_jax.leaderboard.entry import NORMS, entry, footnote_on_data, fraction, percent
from ancra_jax.leaderboard.imagenet import load_validation
from ancra_jax.ops.files import PathLike, check_writable, write_atomically

_CIFAR = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}
_EPSILONS = {"cifar10": _CIFAR, "cifar100": _CIFAR, "imagenet": {"linf": 4 / 255}}
# Settings of AutoAttack that leave it the standard one, whatever their values.
_STANDARD = {"key", "devices", "batch_size", "randomized", "progress", "checks", "log_path"}
_STANDARD |= {"search_precision"}


@dataclass(frozen=True, repr=False)
class BenchmarkResult:
    """What a benchmark found.

    Attributes:
      data: the test images, ``'CIFAR-10'``, or ``'CIFAR-10 (JPEG)'`` if they were recoded.
      examples: how many of them.
      clean_accuracy: without an attack.
      robust_accuracy: what the attacks leave; under corruptions the mean of ``corruptions``.
      corruptions: the accuracies at severities 1 to 5, by the corruption.
      warnings: why the robust accuracy may be too high, or is none that a leaderboard takes.
      info: an entry of the leaderboard.
      attack: all that AutoAttack found; None under corruptions.
    """

    data: str
    examples: int
    clean_accuracy: float
    robust_accuracy: float
    corruptions: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    attack: AutoAttackResult | None = None

    @property
    def records(self) -> tuple[AttackRecord, ...]:
        """What each attack did."""
        return self.attack.records if self.attack else ()

    def save(self, path: PathLike, *, overwrite: bool = False) -> None:
        """Write ``info`` to a JSON file, atomically.

        Raises:
          UsageError: it cannot be written, or is there already and is not to be overwritten.
        """
        text = json.dumps(self.info, indent=2) + "\n"
        write_atomically(_output(path, overwrite), text)

    def __repr__(self) -> str:
        eps = f" {self.info['eps']}" if self.info["eps"] else ""
        head = f"{self.examples} images of {self.data}, {self.info['threat_model']}{eps}"
        lines = [f"BenchmarkResult({head}"]
        rows = {"clean": self.clean_accuracy}
        rows |= {record.name: record.accuracy_after for record in self.records}
        rows |= {name: float(np.mean(row)) for name, row in self.corruptions.items()}
        rows["robust"] = self.robust_accuracy
        lines += [f"  accuracy {left:7.2%}  {name}" for name, left in rows.items()]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines) + ")"


def benchmark(
    model: Model,
    dataset: str = "cifar10",
    threat_model: str = "linf",
    epsilon: float | None = None,
    n_examples: int | None = None,
    *,
    data_dir: PathLike | None = None,
    corruptions_dir: PathLike | None = None,
    preprocessing: str = "Res256Crop224",
    info: Mapping[str, Any] | None = None,
    output: PathLike | None = None,
    overwrite: bool = False,
    state_path: PathLike | None = None,
    **options: Any,
) -> BenchmarkResult:
    """Measure a model's clean and robust accuracy as RobustBench does.

    Args:
      model: images [batch, height, width, channels] in [0, 1] to logits, see ``ancra_jax.attacks``.
      dataset: ``'cifar10'``, ``'cifar100'`` (test images) or ``'imagenet'`` (validation images).
      threat_model: ``'linf'``, ``'l2'`` or ``'l1'``, under AutoAttack (standard), or
        ``'corruptions'``, the mean accuracy over 15 corruptions and 5 severities of CIFAR.
      epsilon: on the [0, 1] pixel scale; None is the usual one: on CIFAR 8/255, 0.5 and 12, on
        ImageNet 4/255 under Linf.
      n_examples: the first so many images, under corruptions of every severity; None is all, of
        ImageNet 5,000.
      data_dir: where the data lie, see `data.load`; of ImageNet a folder with one folder a class,
        called by its WordNet id, and with RobustBench's ``imagenet_test_image_ids.txt``.
      corruptions_dir: has ``CIFAR-10-C.tar`` or its folder; None is ``data_dir``.
      preprocessing: of ImageNet: ``'Res256Crop224'``, ``'BicubicRes256Crop224'``, ``'Crop288'``.
      info: further keys of the leaderboard's entry, such as ``name`` and ``architecture``.
      output: a JSON file that gets the entry.
      overwrite: whether ``output`` may be there already.
      state_path: directory for the state; the same call continues there.
      options: of ``attacks.autoattack``. With those that change its attacks the entry has no
        ``autoattack_acc``; corruptions take those of the model and the devices.

    Raises:
      UsageError: data are missing, or do not fit the model; a setting is not allowed.
      ValueError, TypeError: as ``attacks.autoattack``.
    """
    about = {"threat_model": threat_model} | dict(info or {})
    entry(**about)
    as_pytree(model)  # refuses what is no model before anything is loaded
    if output is not None:
        _output(output, overwrite)
    task: attacks.ThreatModel | Corrupted
    if threat_model != "corruptions":
        task = _ball(dataset, threat_model, epsilon)
    elif epsilon is None:
        task = open_corrupted(dataset, corruptions_dir or data_dir)
    else:
        raise UsageError(f"epsilon={epsilon}: corruptions have none")
    test, num_classes, title, note = _load(dataset, data_dir, n_examples, preprocessing)
    images = np.divide(test.images, np.float32(255), dtype=np.float32)
    if not options.get("randomized"):
        _check_model(model, images.shape[1:], num_classes, title)
    notes = [about.get("footnote"), footnote_on_data(dataset, len(test), title), note]
    given = (model, images, test.labels)
    if isinstance(task, Corrupted):
        found = _corrupted(*given, task, state_path, options)
    else:
        found = _attacked(*given, task, state_path, options)
    notes += [found.info.get("footnote"), *found.warnings]
    known = {"dataset": dataset, "footnote": " ".join(filter(None, notes)) or None}
    found = replace(found, data=title, info=entry(**about | found.info | known))
    if output is not None:
        try:
            found.save(output, overwrite=overwrite)
        except (UsageError, OSError) as error:  # what was found is returned all the same
            logging.warning("%s", error)
    return found


def _output(path: PathLike, overwrite: bool) -> Path:
    """Return a file to write; refuse one that is there already."""
    file = Path(local_path(path, "output", directory=False))
    if file.exists() and not (overwrite and file.is_file()):
        raise UsageError(f"output={file}: is there already; name a new file, or overwrite=True")
    check_writable(file.parent, f"output={file}")
    return file


def _ball(dataset: str, norm: str, epsilon: float | None) -> attacks.ThreatModel:
    if dataset not in _EPSILONS:
        raise UsageError(f"dataset={dataset!r}: allowed are {', '.join(_EPSILONS)}")
    name = norm_of(attacks.threat_model(norm, 1.0))
    if epsilon is None and name not in _EPSILONS[dataset]:
        raise UsageError(f"epsilon is missing: none is usual for {name} on {dataset}")
    return attacks.threat_model(norm, _EPSILONS[dataset][name] if epsilon is None else epsilon)


def _load(
    dataset: str, data_dir: PathLike | None, n_examples: int | None, preprocessing: str
) -> tuple[data.Split, int, str, str]:
    """Return test images, the number of classes, what results call them, and a footnote."""
    if dataset == "imagenet":
        split, num_classes, note = load_validation(data_dir, n_examples, preprocessing)
        return split, num_classes, "ImageNet", note
    loaded = data.load(dataset, data_dir=data_dir, test_examples=n_examples)
    return loaded.test, loaded.num_classes, loaded.title, ""


def _check_model(model: Model, shape: tuple[int, ...], num_classes: int, title: str) -> None:
    """Refuse a model that does not take a data set's images, or has other classes."""
    network = as_pytree(model)
    try:
        logits = jax.eval_shape(forward, network, jax.ShapeDtypeStruct((1, *shape), np.float32))
    except Exception as error:  # a model raises whatever it likes
        raise UsageError(
            f"model: cannot be called with the images of {title}, of shape {shape}: {error}"
        ) from error
    if logits.shape[1] != num_classes:
        raise UsageError(f"model: has {logits.shape[1]} classes, {title} has {num_classes}")


def _corrupted(
    model: Model,
    images: HostImages,
    labels: Numbers,
    archive: Corrupted,
    state_path: PathLike | None,
    options: Mapping[str, Any],
) -> BenchmarkResult:
    clean, rows = measure(model, images, labels, archive, state_path, **options)
    robust, info = float(rows.mean()), {"threat_model": "corruptions"}
    info |= {"clean_acc": percent(clean), "corruptions_acc": percent(robust)}
    corruptions = dict(zip(CORRUPTIONS, rows.tolist(), strict=True))
    return BenchmarkResult("", len(images), clean, robust, corruptions, info=info)


def _attacked(
    model: Model,
    images: HostImages,
    labels: Numbers,
    ball: attacks.ThreatModel,
    state_path: PathLike | None,
    options: Mapping[str, Any],
) -> BenchmarkResult:
    warnings = _undone(model)
    found = autoattack(model, images, labels, ball, state_path=state_path, **options)
    clean, robust = found.clean_accuracy, percent(found.robust_accuracy)
    warnings = found.warnings + warnings
    info: dict[str, Any] = {"clean_acc": percent(clean), "unreliable": bool(warnings)}
    info |= {"threat_model": NORMS[norm_of(ball)], "eps": fraction(float(ball.epsilon))}
    if _changes(options):
        info["footnote"] = f"{robust} is left by other attacks than the standard ones."
    else:
        info["autoattack_acc"] = robust
    robust_accuracy = found.robust_accuracy
    return BenchmarkResult("", len(images), clean, robust_accuracy, {}, warnings, info, found)


def _changes(options: Mapping[str, Any]) -> list[str]:
    """Return the options that make AutoAttack another one than the standard."""
    usual = inspect.signature(autoattack).parameters
    return [key for key in options if key not in _STANDARD and options[key] != usual[key].default]


def _undone(model: Model) -> list[str]:
    """Return a warning if a model declares defences, which AutoAttack does not attack."""
    given = getattr(model, "defences", ())
    declared = given if isinstance(given, list | tuple) else ()
    names = ", ".join(one.name for one in declared if isinstance(one, attacks.Defence))
    warning = f"the model declares {names}: this is an upper bound, run attacks.adaptive as well"
    return [warning] if names else []
