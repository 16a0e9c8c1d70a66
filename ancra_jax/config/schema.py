"""The configuration of a run: plain data from ``configs/``, checked once, frozen afterwards.

The default values are in ``configs/common.py``; here are the types and what is allowed.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from ancra_jax.config.fields import build, choice, number
from ancra_jax.errors import UsageError

WEIGHTS = ("raw", "ema", "swa")  # of a run: the optimiser's, and averages of them


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split and augmented."""

    name: str
    data_dir: str  # empty: the default place of the source
    image_size: int = number(at_least=0)  # pixels; for folders of images; 0 keeps their size
    train_examples: int = number(at_least=0)  # 0: all
    test_examples: int = number(at_least=0)  # 0: all
    selection_split: str = choice("holdout", "test")
    selection_examples: int = number(at_least=1)
    crop_padding: int = number(at_least=0)  # pixels; 0: no random crop
    horizontal_flip: bool


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network."""

    name: str
    width: int = number(at_least=0)  # channels of the first stage; 0: the paper's width
    reverse_attention: bool
    dtype: str = choice("float32", "bfloat16")  # of the computation, not of parameters


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The attack inside training; epsilon and step size on the [0, 1] pixel scale."""

    objective: str = choice("cross_entropy", "kl")
    norm: str = choice("linf", "l2")
    epsilon: float = number(above=0)
    step_size: float = number(above=0)
    num_steps: int = number(at_least=1)
    start: str = choice("gaussian", "uniform")


@dataclass(frozen=True, kw_only=True)
class NegativeContrastConfig:
    """Asymmetric negative contrast (paper eq. 3-5); off while ``zeta`` is 0."""

    zeta: float = number(at_least=0)
    alpha: float = number(at_least=0, at_most=1)
    strategy: str  # of ancra_jax.negatives
    targeted: bool  # attack the chosen negatives toward their anchors' classes
    random_epochs: int = number(at_least=0)  # epochs in which every strategy is 'random'


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How a batch becomes a loss."""

    name: str  # of a registered method
    beta: float = number(at_least=0)  # weight of the KL term (lambda in MART's paper)
    aux_weight: float = number(at_least=0)  # lambda_aux: weight of the auxiliary heads
    label_smoothing: float = number(at_least=0, at_most=1)  # of the cross-entropy in the loss


@dataclass(frozen=True, kw_only=True)
class SelfAdaptiveConfig:
    """The soft labels of the method ``'sat'``."""

    start_epoch: int = number(at_least=1)  # 1-based, from which soft labels move
    momentum: float = number(at_least=0, at_most=1)


@dataclass(frozen=True, kw_only=True)
class SecondOrderConfig:
    """The regulariser of the methods ``'pgd_at_s2o'`` and ``'trades_s2o'``."""

    cross_entropy_weight: float = number(at_least=0)
    weight: float = number(at_least=0)  # of the regulariser
    diagonal: float = number(at_least=0, at_most=1)  # target probability of an example's class


@dataclass(frozen=True, kw_only=True)
class WeightPerturbationConfig:
    """Adversarial weight perturbation (AWP); off while ``gamma`` is 0."""

    gamma: float = number(at_least=0)  # length of the move, relative to a kernel's norm
    warmup_epochs: int = number(at_least=0)  # epochs at the start without it


@dataclass(frozen=True, kw_only=True)
class DistributionalRobustnessConfig:
    """Unified distributional robustness (UDR); off while ``multiplier`` is 0."""

    multiplier: float = number(at_least=0)  # lambda at the start; 1 is a hard projection
    rate: float = number(at_least=0)  # of lambda's descent
    interval: int = number(at_least=1)  # training steps between updates of lambda


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights; off while ``decay`` is 0."""

    decay: float = number(at_least=0, at_most=1, default=0.0)  # at a step, once it is warm


@dataclass(frozen=True, kw_only=True)
class SwaConfig:
    """Stochastic weight averaging: the mean of the weights at the ends of epochs."""

    start_epoch: int = number(at_least=0, default=0)  # 1-based, the first that counts; 0: off


@dataclass(frozen=True, kw_only=True)
class ExtraDataConfig:
    """Generated images, mixed into every batch; off while ``fraction`` is 0."""

    path: str = ""  # an .npz file with 'image' and 'label'
    fraction: float = number(at_least=0, at_most=1, default=0.0)  # of every batch


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Knowledge distillation from another run; off while ``weight`` is 0."""

    teacher: str = ""  # the directory of that run
    teacher_checkpoint: str = choice("best", "last", default="best")
    teacher_weights: str = choice(*WEIGHTS, default="raw")
    weight: float = number(at_least=0, at_most=1, default=0.0)  # of the term; the rest is the loss'
    temperature: float = number(above=0, default=4.0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum and coupled weight decay on all parameters, as PyTorch's."""

    learning_rate: float = number(above=0)
    schedule: str = choice("piecewise", "constant", "cosine", "one_cycle")
    milestones: tuple[int, ...]  # 1-based epochs from which the rate is x decay
    decay: float = number(above=0, at_most=1)
    momentum: float = number(at_least=0, at_most=1)
    weight_decay: float = number(at_least=0)


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The evaluation after an epoch: clean and PGD accuracy on the selection split."""

    every_epochs: int = number(at_least=1)
    num_steps: int = number(at_least=1)
    step_size: float = number(above=0)
    batch_size: int = number(at_least=0)  # 0: the training batch size


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The attacks of the paper's evaluation."""

    norm: str = choice("linf", "l2")
    epsilon: float = number(above=0)
    step_size: float = number(above=0)
    num_steps: int = number(at_least=1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a run."""

    name: str
    seed: int = number(at_least=0, at_most=2**32 - 1)
    epochs: int = number(at_least=1)
    max_steps: int = number(at_least=0)  # stop after so many steps; 0: after the last epoch
    batch_size: int = number(at_least=1)
    log_every_steps: int = number(at_least=1)
    checkpoint_every_steps: int = number(at_least=0)  # 0: after every epoch only
    data: DataConfig
    model: ModelConfig
    method: MethodConfig
    negative_contrast: NegativeContrastConfig
    self_adaptive: SelfAdaptiveConfig
    second_order: SecondOrderConfig
    awp: WeightPerturbationConfig
    udr: DistributionalRobustnessConfig
    attack: AttackConfig
    optimizer: OptimizerConfig
    selection: SelectionConfig
    evaluation: EvaluationConfig
    ema: EmaConfig = EmaConfig()
    swa: SwaConfig = SwaConfig()
    extra_data: ExtraDataConfig = ExtraDataConfig()
    distillation: DistillationConfig = DistillationConfig()


def from_mapping(values: Mapping[str, Any] | ConfigDict) -> Config:
    """Checks plain nested data and freezes it.

    Args:
      values: a configuration of ``configs/`` or a nested dictionary (as ``config.json`` holds).

    Raises:
      UsageError: a field that does not exist or is missing, has another type or is out of range.
    """
    config = build(Config, values, "config")
    _check_combinations(config)
    return config


def to_mapping(config: Config) -> dict[str, Any]:
    """The inverse of ``from_mapping``, of JSON types only."""
    values = dataclasses.asdict(config)
    values["optimizer"]["milestones"] = list(config.optimizer.milestones)
    return values


def _check_combinations(config: Config):
    milestones = config.optimizer.milestones
    if list(milestones) != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones):
        raise UsageError(
            f"config.optimizer.milestones={milestones}: must be increasing epochs, from 1"
        )
    for group in ("attack", "evaluation"):
        settings = getattr(config, group)
        if settings.norm == "linf" and settings.epsilon > 1:
            raise UsageError(
                f"config.{group}.epsilon={settings.epsilon}: must be at most 1 for the norm 'linf' "
                "(pixels are on the [0, 1] scale: write 8/255 as 0.03137)"
            )
    if config.swa.start_epoch > config.epochs:
        raise UsageError(
            f"config.swa.start_epoch={config.swa.start_epoch}: must be at most config.epochs="
            f"{config.epochs}, the last epoch; 0 turns the average off"
        )
    extra, distillation = config.extra_data, config.distillation
    _check_both("config.extra_data", "path", extra.path, "fraction", extra.fraction)
    _check_both(
        "config.distillation", "teacher", distillation.teacher, "weight", distillation.weight
    )
    if extra.fraction and not 0 < extra_examples(config) < config.batch_size:
        raise UsageError(
            f"config.extra_data.fraction={extra.fraction}: makes {extra_examples(config)} of the "
            f"{config.batch_size} examples of a batch; must be 1 to {config.batch_size - 1} of them"
        )


def extra_examples(config: Config) -> int:
    """How many examples of every batch are extra data."""
    return round(config.extra_data.fraction * config.batch_size)


def _check_both(group, source, given, share, value):
    """An option that needs a source of data, and is off while its share is 0."""
    if value and not given:
        raise UsageError(f"{group}.{share}={value}: needs {group}.{source}, which is empty")
    if given and not value:
        raise UsageError(
            f"{group}.{source}={given!r}: is of no use while {group}.{share} is 0; must be above 0"
        )
