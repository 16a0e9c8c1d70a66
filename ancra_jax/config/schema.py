"""The settings of a run, the only place of their defaults, and what they allow.

The defaults are the training of the ANCRA paper, its section on experiments: 120 epochs of SGD at
batch size 128. ``configs/`` states where data sets and methods differ.
"""

import dataclasses
import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ancra_jax.config.fields import Options, build, choice, number, path
from ancra_jax.errors import Problems, UsageError, printable

_MOST_EPOCHS = 100_000  # so that int32 holds the number of every step
WEIGHTS = ("raw", "ema", "swa")
"""Which weights of a run: the optimiser's, or an average of them."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are split and augmented."""

    name: str  # of a registered data set
    data_dir: str = path(remote=True)  # empty: the default place of the source
    # Pixels; for folders; 0: theirs, or chosen by them.
    image_size: int = number(0, at_least=0, at_most=2048)
    train_examples: int = number(0, at_least=0)  # 0: all
    test_examples: int = number(0, at_least=0)  # 0: all
    selection_split: str = choice("holdout", "test")
    selection_examples: int = number(1000, at_least=0)  # 0: chosen by the number of examples
    crop_padding: int = number(4, at_least=0)  # pixels; 0: no random crop
    horizontal_flip: bool = True
    # Takes the place of the random crop; empty: none does.
    augmentation: str = choice("", "crop_shift", "idbh_weak", "idbh_strong", "idbh_svhn")
    random_erasing: float = number(0.0, at_least=0, at_most=1)  # its probability; 0: augmentation's
    options: Options = dataclasses.field(default_factory=dict)  # of a plugged-in data set


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network."""

    name: str = "resnet18"
    width: int = number(0, at_least=0)  # channels of the first stage; 0: the paper's width
    reverse_attention: bool = False
    dtype: str = choice("float32", "bfloat16")  # of the computation, not of parameters
    activation: str = choice("", "relu", "silu")  # empty: the network's own
    # Share of the old running statistics that a forward keeps, 1 - PyTorch's momentum; 0: 0.9.
    batch_norm_momentum: float = number(0.0, at_least=0, below=1)
    # Parts of a training batch with statistics of their own, as PyTorch's devices; 0: the whole.
    batch_norm_parts: int = number(0, at_least=0)
    # The network sees (images - mean) / std, by channel; the images themselves if empty.
    mean: tuple[float, ...] = ()  # on the [0, 1] pixel scale
    std: tuple[float, ...] = ()
    # How reverse attention makes its masks, see ancra_jax.models.create; empty: as in the paper.
    attention: str = choice("", "stopped", "soft")
    temperature: float = number(1.0, above=0)  # of the soft masks
    # What a network without reverse attention has as its last block; empty: the usual one.
    last_block: str = choice("", "dropped", "class_branches")


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The attack inside training; epsilon and step size on the [0, 1] pixel scale."""

    objective: str = choice("cross_entropy", "kl")
    norm: str = choice("linf", "l2", "l1")
    epsilon: float = number(8 / 255, above=0)
    step_size: float = number(0.007, above=0)
    num_steps: int = number(10, at_least=1)
    start: str = choice("gaussian", "uniform")


@dataclass(frozen=True, kw_only=True)
class NegativeContrastConfig:
    """Asymmetric negative contrast (paper eq. 3-5); off while ``zeta`` is 0."""

    zeta: float = number(0.0, at_least=0)  # weight of the term
    alpha: float = number(1.0, at_least=0, at_most=1)  # 1 freezes the natural example
    strategy: str = "random"  # of ancra_jax.methods.negatives
    targeted: bool = True  # attack the chosen negatives toward their anchors' classes
    random_epochs: int = number(10, at_least=0)  # epochs in which every strategy is 'random'
    true_labels: bool = False  # contrast probabilities of the true class, whatever is predicted
    from_batch: bool = False  # negatives are the batch's adversarial images, not attacked again


@dataclass(frozen=True, kw_only=True)
class MarginAlignmentConfig:
    """Margin alignment, reverse attention as a term of the loss; off while ``weight`` is 0."""

    weight: float = number(0.0, at_least=0)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How a batch becomes a loss."""

    name: str  # of a registered method
    beta: float = number(6.0, at_least=0)  # weight of the KL term (lambda in MART's paper)
    aux_weight: float = number(2.0, at_least=0)  # lambda_aux: weight of the auxiliary heads
    label_smoothing: float = number(0.0, at_least=0, at_most=1)  # of the loss' cross-entropy
    random_masks: bool = False  # in training reverse attention's masks are of random classes
    options: Options = dataclasses.field(default_factory=dict)  # of a plugged-in method


@dataclass(frozen=True, kw_only=True)
class SelfAdaptiveConfig:
    """The soft labels of the method ``'sat'``."""

    start_epoch: int = number(70, at_least=1)  # 1-based, from which soft labels move
    momentum: float = number(0.9, at_least=0, at_most=1)  # share of the old label that is kept


@dataclass(frozen=True, kw_only=True)
class SecondOrderConfig:
    """The regulariser of the methods ``'pgd_at_s2o'`` and ``'trades_s2o'``."""

    cross_entropy_weight: float = number(1.0, at_least=0)
    weight: float = number(0.0, at_least=0)  # of the regulariser
    diagonal: float = number(0.2, at_least=0, at_most=1)  # target probability of the true class


@dataclass(frozen=True, kw_only=True)
class WeightPerturbationConfig:
    """Adversarial weight perturbation (AWP); off while ``gamma`` is 0."""

    gamma: float = number(0.0, at_least=0)  # length of the move, relative to a kernel's norm
    warmup_epochs: int = number(0, at_least=0)  # epochs at the start without it


@dataclass(frozen=True, kw_only=True)
class DistributionalRobustnessConfig:
    """Unified distributional robustness (UDR); off while ``multiplier`` is 0."""

    multiplier: float = number(0.0, at_least=0)  # lambda at the start; 1 is a hard projection
    rate: float = number(0.02, at_least=0)  # of lambda's descent
    interval: int = number(10, at_least=1)  # training steps between updates of lambda


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights; off while ``decay`` is 0."""

    decay: float = number(0.0, at_least=0, below=1)  # at a step, once it is warm


@dataclass(frozen=True, kw_only=True)
class SwaConfig:
    """Stochastic weight averaging: the mean of the weights at the ends of epochs."""

    start_epoch: int = number(0, at_least=0)  # 1-based, the first that counts; 0: off


@dataclass(frozen=True, kw_only=True)
class ExtraDataConfig:
    """Generated images, mixed into every batch; off while ``fraction`` is 0."""

    path: str = path()  # an .npz file with 'image' and 'label'
    fraction: float = number(0.0, at_least=0, at_most=1)  # of every batch
    same_steps: bool = False  # an epoch has as many steps as without extra data
    on_host: bool = False  # a step's draws go to the devices with it; the images need not fit there


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """Knowledge distillation from a trained network; off while ``weight`` is 0."""

    teacher: str = path(remote=True)  # of a run, or a saved network
    teacher_checkpoint: str = choice("best", "last")
    teacher_weights: str = choice(*WEIGHTS)
    weight: float = number(0.0, at_least=0, at_most=1)  # the method's own loss has the rest
    temperature: float = number(4.0, above=0)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum and coupled weight decay, as PyTorch's."""

    learning_rate: float = number(0.01, above=0)
    schedule: str = choice("piecewise", "constant", "cosine", "one_cycle", "one_cycle_cosine")
    warmup_epochs: float = number(0.0, at_least=0)  # in which the rate rises to learning_rate
    # 1-based epochs from which the rate is x decay
    milestones: tuple[int, ...] = number((75, 90, 100), at_least=1, at_most=_MOST_EPOCHS)
    decay: float = number(0.1, above=0, at_most=1)
    momentum: float = number(0.9, at_least=0, below=1)
    nesterov: bool = False
    weight_decay: float = number(2e-4, at_least=0)
    no_weight_decay_on: str = choice("", "batch_norm", "batch_norm_and_biases")
    # The batch size that learning_rate is for; at another one the rate is scaled with it. 0: it is
    # the rate at any batch size.
    base_batch_size: int = number(0, at_least=0)
    accumulation_steps: int = number(0, at_least=0)  # parts of a batch; 0: the whole at once


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """The evaluation after an epoch: natural and PGD accuracy on the selection split."""

    every_epochs: int = number(0, at_least=0)  # 0: chosen by what it costs beside the training
    num_steps: int = number(20, at_least=1)
    step_size: float = number(2 / 255, above=0)
    batch_size: int = number(0, at_least=0)  # 0: the training batch size
    # Whose cross-entropy PGD ascends. Empty: chosen by the network; in a run's own config.json it
    # is that of the final logits.
    heads: str = choice("", "final", "final_and_first")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The attacks of the paper's evaluation."""

    norm: str = choice("linf", "l2", "l1")
    epsilon: float = number(8 / 255, above=0)
    step_size: float = number(0.007, above=0)
    num_steps: int = number(40, at_least=1)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a run."""

    name: str
    seed: int = number(0, at_least=0, at_most=2**32 - 1)
    epochs: int = number(120, at_least=1, at_most=_MOST_EPOCHS)
    max_steps: int = number(0, at_least=0)  # stop after so many steps; 0: after the last epoch
    batch_size: int = number(128, at_least=0)  # 0: chosen by the number of examples
    # Where to start from: a work directory, a file of `TrainedModel.save` or of weights by
    # PyTorch's names, or the name of one of the package's networks; empty: random weights.
    init_from: str = path(remote=True)
    log_every_steps: int = number(50, at_least=1)
    checkpoint_every_steps: int = number(0, at_least=0)  # 0: after every epoch only
    data: DataConfig
    model: ModelConfig = ModelConfig()
    method: MethodConfig
    negative_contrast: NegativeContrastConfig = NegativeContrastConfig()
    margin_alignment: MarginAlignmentConfig = MarginAlignmentConfig()
    self_adaptive: SelfAdaptiveConfig = SelfAdaptiveConfig()
    second_order: SecondOrderConfig = SecondOrderConfig()
    awp: WeightPerturbationConfig = WeightPerturbationConfig()
    udr: DistributionalRobustnessConfig = DistributionalRobustnessConfig()
    attack: AttackConfig = AttackConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    selection: SelectionConfig = SelectionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    ema: EmaConfig = EmaConfig()
    swa: SwaConfig = SwaConfig()
    extra_data: ExtraDataConfig = ExtraDataConfig()
    distillation: DistillationConfig = DistillationConfig()


_LATER = (
    "init_from", "data.options", "data.augmentation", "data.random_erasing", "method.options",
    "model.activation", "model.mean", "model.std", "model.batch_norm_momentum", "selection.heads",
    "optimizer.warmup_epochs", "optimizer.nesterov", "optimizer.no_weight_decay_on",
    "extra_data.same_steps", "extra_data.on_host", "model.attention", "model.last_block",
    "method.random_masks", "negative_contrast.true_labels", "negative_contrast.from_batch",
    "margin_alignment.weight", "optimizer.base_batch_size", "optimizer.accumulation_steps",
    "model.batch_norm_parts",
)  # fmt: skip


def from_mapping(values: Any, name: str = "--config") -> Config:
    """Check plain nested data and freeze it.

    Args:
      values: a ConfigDict, as of ``configs/``, or a nested dictionary (as ``config.json`` holds).
        Every setting has a default but ``name``, ``data.name`` and ``method.name``.
      name: what errors call it.

    Raises:
      UsageError: settings that do not exist or are missing, have another type or are out of range;
        all of them in one message.
    """
    problems = Problems()
    config = read(values, name, problems)
    problems.raise_all()
    assert config is not None
    return config


def read(values: Any, name: str, problems: Problems) -> Config | None:
    """Read plain nested data as `from_mapping` does, wrong settings with their defaults.

    Errors are added to the problems. None if a setting is missing that has no default.
    """
    config = build(Config, values, name, problems)
    if config is not None:
        _check_combinations(config, name, problems)
    return config


def to_mapping(config: Config) -> dict[str, Any]:
    """Return the settings as a nested dictionary of JSON types, which `from_mapping` reads.

    Settings that are off and were not there in the first versions are left out, so that the file of
    a run without them is the one that it was.
    """
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    for name in _LATER:
        group = values
        *groups, last = name.split(".")
        for one in groups:
            group = group[one]
        if not group[last]:
            del group[last]
    if "attention" not in values["model"]:
        del values["model"]["temperature"]
    if not values["margin_alignment"]:
        del values["margin_alignment"]
    return values


def shown(config: Config, name: str) -> str:
    """Return a setting as an error shows it, ``--config.epochs=120``."""
    return f"--config.{name}={operator.attrgetter(name)(config)!r}"


def lengths(config: Config) -> Iterator[tuple[str, float, str]]:
    """Yield all radii and step sizes: what the setting is called, its value, and the norm."""
    for setting, norm in (
        ("attack.epsilon", config.attack.norm),
        ("attack.step_size", config.attack.norm),
        ("selection.step_size", config.attack.norm),
        ("evaluation.epsilon", config.evaluation.norm),
        ("evaluation.step_size", config.evaluation.norm),
    ):
        yield setting, operator.attrgetter(setting)(config), norm


def extra_examples(config: Config) -> int:
    """Return how many examples of every batch are extra data."""
    return round(config.extra_data.fraction * config.batch_size)


def check_extra_examples(config: Config, name: str = "--config") -> None:
    """Refuse a share of extra data that leaves a batch of a known size without either kind."""
    extra, size = extra_examples(config), config.batch_size
    if config.extra_data.fraction and size and not 0 < extra < size:
        raise UsageError(
            f"{name}.extra_data.fraction={config.extra_data.fraction}: makes {extra} of the {size} "
            f"examples of a batch; must be 1 to {size - 1} of them"
        )


def _check_optimizer(config: Config, name: str, problems: Problems) -> None:
    optimizer = config.optimizer
    milestones, warmup_epochs = optimizer.milestones, optimizer.warmup_epochs
    if list(milestones) != sorted(set(milestones)):
        problems.add(f"{name}.optimizer.{milestones=}: must be increasing epochs")
    if warmup_epochs >= config.epochs:
        problems.add(
            f"{name}.optimizer.{warmup_epochs=}: must be less than {name}.epochs={config.epochs}"
        )
    if optimizer.schedule == "one_cycle" and warmup_epochs:
        problems.add(
            f"{name}.optimizer.{warmup_epochs=}: must be 0 for {name}.optimizer.schedule="
            "'one_cycle', which rises by itself"
        )
    if optimizer.schedule == "one_cycle_cosine" and not warmup_epochs:
        problems.add(
            f"{name}.optimizer.schedule='one_cycle_cosine': needs {name}.optimizer.warmup_epochs"
        )
    if optimizer.nesterov and not optimizer.momentum:
        problems.add(f"{name}.optimizer.nesterov=True: needs {name}.optimizer.momentum")


def _check_combinations(config: Config, name: str, problems: Problems) -> None:
    _check_optimizer(config, name, problems)
    if not config.name or config.name != printable(config.name):
        problems.add(f"{name}.name={config.name!r}: must be one line of text, for reports")
    for setting, value, norm in lengths(config):
        if norm == "linf" and value > 1:
            problems.add(
                f"{name}.{setting}={value}: must be at most 1 for the norm 'linf' "
                f"(pixels are on the [0, 1] scale: {value:g}/255?)"
            )
    if config.swa.start_epoch > config.epochs:
        problems.add(
            f"{name}.swa.start_epoch={config.swa.start_epoch}: must be at most {name}.epochs="
            f"{config.epochs}; 0 turns the average off"
        )
    if len(config.model.mean) != len(config.model.std) or min(config.model.std, default=1) <= 0:
        problems.add(
            f"{name}.model.mean={config.model.mean}, {name}.model.std={config.model.std}: must be "
            "as many numbers each, those of std greater than 0"
        )
    if config.selection.heads == "final_and_first" and not config.model.reverse_attention:
        problems.add(
            f"{name}.selection.heads='final_and_first': needs {name}.model.reverse_attention=True"
        )
    # An option that lacks its source of data, and a source that no option uses.
    for group, source, share in (
        ("extra_data", "path", "fraction"),
        ("distillation", "teacher", "weight"),
    ):
        settings = getattr(config, group)
        given, value = getattr(settings, source), getattr(settings, share)
        if value and not given:
            problems.add(f"{name}.{group}.{share}={value}: needs {name}.{group}.{source}")
        if given and not value and group != "distillation":  # whose teacher a method may need
            problems.add(
                f"{name}.{group}.{source}={given!r}: is of no use while {name}.{group}.{share} is 0"
            )
    if config.extra_data.on_host and config.swa.start_epoch:
        problems.add(
            f"{name}.extra_data.on_host=True: must be False for {name}.swa.start_epoch="
            f"{config.swa.start_epoch}, whose statistics take an epoch's batches at once"
        )
    with problems.collect():
        check_extra_examples(config, name)
