"""Networks by name, and what they share: call, classifier, attention on their last blocks."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from ancra_jax.errors import UsageError, renamed
from ancra_jax.models.layers import (
    Activation,
    Classifier,
    FeatureMap,
    NewFeatureMap,
    average_pool,
    relu,
)
from ancra_jax.models.reverse_attention import (
    AttentionRule,
    SoftAttention,
    class_branches,
    flatten_channel_major,
    hard_attention,
    reverse_attention,
)
from ancra_jax.ops.images import Images, Labels
from ancra_jax.registry import Registry, did_you_mean
from ancra_jax.types import Outputs

Factory = Callable[..., nn.Module]
"""``(*, num_classes, width, reverse_attention, dtype, ...) -> network``; see `create`.

``width`` is None for the network's own default; numbers in the name are integer arguments,
``depth`` and ``factor`` for ``'wide_resnet{depth}_{factor}'``. ``activation``, ``mean``, ``std``,
``batch_norm_momentum``, ``batch_norm_parts``, ``attention``, ``temperature`` and ``last_block`` are
arguments only where they are asked for. The network is a Linen module whose ``__call__(images,
labels=None, *, train=False)`` gives ``ancra_jax.types.Outputs``.
"""

ACTIVATIONS: Mapping[str, Activation] = {"relu": relu, "silu": nn.silu}

ATTENTIONS = ("", "stopped", "soft")
"""How reverse attention may differ from the paper's; see `create`."""
LAST_BLOCKS = ("", "dropped", "class_branches")
"""What becomes of the last residual block of a network without reverse attention; see `create`."""

_models: Registry[Factory] = Registry("model")
register = _models.register
"""Decorate a `Factory`, ``@register("mine")``, and its network is known by that name."""
available = _models.names
"""Return the names of all networks."""


def create(
    name: str,
    *,
    num_classes: int,
    width: int | None = None,
    reverse_attention: bool = False,
    dtype: Any = jnp.float32,
    activation: str | None = None,
    mean: Sequence[float | int] = (),
    std: Sequence[float | int] = (),
    batch_norm_momentum: float | None = None,
    batch_norm_parts: int = 1,
    attention: str = "",
    temperature: float = 1.0,
    last_block: str = "",
) -> nn.Module:
    """Create a network.

    Args:
      name: ``'resnet18'``, ``'preact_resnet18'``, ``'wide_resnet28_10'`` (any depth 6n + 4 and any
        factor), another one of `available`, or a name given to `register`.
      num_classes: number of logits, at least 2.
      width: channels of the stem; None is the paper's, 64 for ResNets and 16 for WideResNets (whose
        factor multiplies it further).
      reverse_attention: with attention and auxiliary heads (paper eq. 6) or plain.
      dtype: of the computation, float32 or bfloat16; parameters are float32.
      activation: ``'relu'``, ``'silu'``, or None for the network's own: ReLU, but SiLU for those
        whose names begin with ``dm_``.
      mean: of every channel, or of all channels together, on the [0, 1] pixel scale: the network
        computes with ``(images - mean) / std``; with the images themselves if empty.
      std: likewise.
      batch_norm_momentum: share of the old running statistics that a forward of the training phase
        keeps, in [0, 1), 1 minus PyTorch's momentum; None is the network's own, 0.9.
      batch_norm_parts: of a batch in the training phase, each with batch statistics of its own, as
        on so many devices of PyTorch's ``DataParallel``; the images must be divisible by it.
      attention: of a network with reverse attention: empty is the paper's, ``'stopped'`` the same
        but that in training the gradient of what follows the first mask does not reach what comes
        before it, ``'soft'`` mixes the rows in training and testing alike, `SoftAttention`.
      temperature: of the softmax of ``'soft'``.
      last_block: of a network without reverse attention: empty leaves it as it is, ``'dropped'``
        has none, ``'class_branches'`` applies it once for each class, under the class's row.

    Returns:
      A Linen module: ``network.init(key, images)`` makes its variables,
      ``network.apply(variables, images, labels, train=...)`` gives ``ancra_jax.types.Outputs``.

    Raises:
      UsageError: any of the arguments is not allowed.
    """
    factory, numbers = _models.find(name, "name")
    if type(num_classes) is not int or num_classes < 2:
        raise UsageError(f"{num_classes=}: must be an integer of 2 or more")
    if width is not None and (type(width) is not int or width < 1):
        raise UsageError(f"{width=}: must be an integer of 1 or more, or None")
    if not isinstance(reverse_attention, bool):
        raise UsageError(f"{reverse_attention=}: must be True or False")
    if dtype not in ("float32", "bfloat16", jnp.float32, jnp.bfloat16):
        raise UsageError(f"{dtype=}: must be float32 or bfloat16")
    if activation not in (None, *ACTIVATIONS):
        raise UsageError(f"{activation=}: must be {' or '.join(map(repr, ACTIVATIONS))}, or None")
    mean, std = _normalisation(mean, std)
    asked: dict[str, Any] = {"activation": activation, "mean": mean or None, "std": std or None}
    asked |= _batch_norm(batch_norm_momentum, batch_norm_parts)
    asked |= _last_blocks(reverse_attention, attention, temperature, last_block)
    options = {key: value for key, value in asked.items() if value is not None}
    taken = inspect.signature(factory).parameters
    if not any(one.kind is one.VAR_KEYWORD for one in taken.values()):
        for option in options.keys() - taken.keys():
            raise UsageError(f"{option}={options[option]!r}: {name!r} has no such option")
    # What a network says without the name of a setting is about the numbers in its own.
    with renamed({r"^(?![\w.-]+=)": f"{name=}: "}):
        return factory(
            num_classes=num_classes,
            width=width,
            reverse_attention=reverse_attention,
            dtype=jnp.dtype(dtype),
            **options,
            **numbers,
        )


def _normalisation(
    mean: Sequence[float | int], std: Sequence[float | int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        mean, std = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{mean=}, {std=}: must be sequences of numbers") from error
    if (
        len(mean) != len(std)
        or not all(map(math.isfinite, (*mean, *std)))
        or min(std, default=1) <= 0
    ):
        raise UsageError(
            f"{mean=}, {std=}: must be as many finite numbers each, those of std greater than 0"
        )
    return mean, std


def _batch_norm(batch_norm_momentum: float | None, batch_norm_parts: int) -> dict[str, Any]:
    momentum = batch_norm_momentum
    if momentum is not None and not (isinstance(momentum, int | float) and 0 <= momentum < 1):
        raise UsageError(f"{batch_norm_momentum=}: must be 0 to less than 1, or None")
    if type(batch_norm_parts) is not int or batch_norm_parts < 1:
        raise UsageError(f"{batch_norm_parts=}: must be an integer of 1 or more")
    parts = batch_norm_parts if batch_norm_parts > 1 else None
    return {"batch_norm_momentum": batch_norm_momentum, "batch_norm_parts": parts}


def _last_blocks(
    reverse_attention: bool, attention: str, temperature: float, last_block: str
) -> dict[str, Any]:
    """Return the options of the last two blocks; those that do not go together are refused."""
    for name, value, known in (
        ("attention", attention, ATTENTIONS),
        ("last_block", last_block, LAST_BLOCKS),
    ):
        if value not in known:
            hint = did_you_mean(value, known)
            raise UsageError(f"{name}={value!r}: {hint}allowed are {', '.join(map(repr, known))}")
    if attention and not reverse_attention:
        raise UsageError(f"{attention=}: needs reverse_attention=True")
    if last_block and reverse_attention:
        raise UsageError(f"{last_block=}: needs reverse_attention=False")
    number = isinstance(temperature, int | float) and math.isfinite(temperature)
    if not (number and temperature > 0):
        raise UsageError(f"{temperature=}: must be a finite number greater than 0")
    if temperature != 1 and attention != "soft":
        raise UsageError(f"{temperature=}: is of no use without attention='soft'")
    asked: dict[str, Any] = {"attention": attention, "last_block": last_block}
    asked["temperature"] = float(temperature) if attention == "soft" else None
    return {name: value for name, value in asked.items() if value}


Block = Callable[[FeatureMap], NewFeatureMap]


class Trunk(NamedTuple):
    """What a network consists of before its classifier.

    The final activation comes between the last residual sum and pooling: pre-activation networks
    have their final batch normalisation and ReLU there. Under reverse attention it comes after each
    of the last two blocks.
    """

    feature_map: FeatureMap  # output of the stem
    blocks: Sequence[Block]  # at least two; reverse attention weights the last two
    final_activation: Callable[[FeatureMap], FeatureMap] = lambda x: x


def residual_blocks(
    block: Callable[..., nn.Module], width: int, sizes: Sequence[int], *, prefix: str, train: bool
) -> list[Block]:
    """Make the blocks of all stages; each after the first halves the map and doubles the channels.

    Args:
      block: called as ``block(features, stride=..., name=...)``, then with ``train``.
      width: output channels of the first stage.
      sizes: number of blocks of each stage.
      prefix: block ``i`` of stage ``s`` is named ``<prefix><s>_<i>``, with ``s`` from 1.
    """
    blocks: list[Block] = []
    for stage, size in enumerate(sizes, start=1):
        for i in range(size):
            stride = 2 if stage > 1 and i == 0 else 1
            name = f"{prefix}{stage}_{i}"
            made = block(width * 2 ** (stage - 1), stride=stride, name=name)
            blocks.append(partial(made, train=train))
    return blocks


class Network(nn.Module):
    """An image classifier, plain or with reverse attention on its last two residual blocks.

    A subclass implements `trunk`. Parameters, batch statistics, pooling and logits are float32
    whatever the ``dtype``.
    """

    num_classes: int
    width: int  # channels of the stem, from which all others follow
    reverse_attention: bool = False
    dtype: Any = jnp.float32  # of convolutions and feature maps
    activation: str = "relu"  # a name of ``ACTIVATIONS``
    mean: tuple[float, ...] = ()  # of the normalisation of the images; none if empty
    std: tuple[float, ...] = ()
    batch_norm_momentum: float = 0.9  # kept of the old running statistics
    batch_norm_parts: int = 1  # of a training batch, each with statistics of its own
    attention: str = ""  # one of ``ATTENTIONS``
    temperature: float = 1.0  # of ``SoftAttention``
    last_block: str = ""  # one of ``LAST_BLOCKS``

    total_stride: ClassVar[int]
    pool_window: ClassVar[int]
    zero_classifier_bias: ClassVar[bool] = False

    def trunk(self, images: FeatureMap, *, train: bool) -> Trunk:
        """Compute the stem, and make all that follows it before the classifier."""
        raise NotImplementedError

    @classmethod
    def of_width(cls, *, width: int | None, **options: Any) -> nn.Module:
        """Create the network, with the paper's width if there is none."""
        return cls(width=width or cls.width, **options)

    @nn.compact
    def __call__(
        self,
        images: Images,
        labels: Labels | None = None,
        *,
        train: bool = False,
        attention: AttentionRule | None = None,
    ) -> Outputs:
        """Compute logits, auxiliary logits, features and the rows of the classifier.

        The pooled unweighted features of the blocks with attention are sown as
        ``intermediates['pooled']``.

        Args:
          images: pixels on the [0, 1] scale.
          labels: they choose the masks in the training phase (``train=True`` with reverse
            attention), and are not looked at otherwise.
          train: normalise with the batch's statistics and update the running ones (apply with
            ``mutable=['batch_stats']``).
          attention: choice of the masks; None is the network's own.

        Returns:
          ``Outputs``, float32; ``aux_logits`` has one entry per block with attention, none without.

        Raises:
          UsageError: images that are not floating-point NHWC, smaller than the network's total
            stride, or of another number of channels than its normalisation; labels that are
            missing or not one per image.
        """
        check_images(images, type(self))
        if train and self.reverse_attention:
            check_labels(labels, images)
        else:
            labels = None
        if self.mean:
            check_normalisation(self.mean, images)
            images = (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        trunk = self.trunk(images.astype(self.dtype), train=train)
        window = self.pool_window
        classifier = Classifier(self.num_classes, window, self.zero_classifier_bias, name="fc")
        x, aux_logits = trunk.feature_map, []
        branches = self.last_block == "class_branches"
        blocks = trunk.blocks[:-1] if self.last_block == "dropped" else trunk.blocks
        for block in blocks[:-2]:
            x = block(x)
        if self.reverse_attention:
            rule = attention or self.own_attention()
            for k, block in enumerate(blocks[-2:]):
                x = trunk.final_activation(block(x))
                # In testing attacks differentiate the network itself.
                stopped = self.attention == "stopped" and train and k == 0
                x, logits, pooled = reverse_attention(
                    x,
                    classifier(x),
                    labels,
                    window=window,
                    block=k,
                    attention=rule,
                    stopped=stopped,
                )
                self.sow("intermediates", "pooled", pooled)
                aux_logits.append(logits)
        else:
            for block in blocks[-2 : -1 if branches else None]:
                x = block(x)
            x = trunk.final_activation(x)
        linear = classifier(x)
        if branches:
            last = lambda x: trunk.final_activation(blocks[-1](x))  # noqa: E731
            logits, features = class_branches(x, last, linear, window)
        else:
            features = flatten_channel_major(average_pool(x, window))
            logits = linear(features)
        no_heads = jnp.zeros((0, *logits.shape), logits.dtype)
        heads = jnp.stack(aux_logits) if aux_logits else no_heads
        return Outputs(logits, heads, features, linear.kernel.T)

    def own_attention(self) -> AttentionRule:
        """Return how the network chooses its masks."""
        if self.attention == "soft":
            return SoftAttention(self.temperature)
        return hard_attention


def check_images(images: Array, network: type[Network]) -> None:
    """Raise ``UsageError`` for images that a network cannot take."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UsageError(
            f"images of dtype {images.dtype}: floating-point pixels on the [0, 1] scale are needed "
            "(uint8 images: divide by 255)"
        )
    if images.ndim != 4:
        raise UsageError(f"{images.shape=}: must be (batch, height, width, channels)")
    height, width = images.shape[1:3]
    if min(height, width) < network.total_stride:
        raise UsageError(
            f"images of {height}x{width} pixels: {network.__name__} halves them down, so each side "
            f"needs at least {network.total_stride}"
        )


def check_normalisation(mean: Sequence[float], images: Array) -> None:
    """Raise ``UsageError`` for images of other channels than those that are normalised."""
    if len(mean) not in (1, images.shape[-1]):
        raise UsageError(
            f"mean={tuple(mean)}: has {len(mean)} numbers for images of {images.shape[-1]} channels"
        )


def check_labels(labels: Array | None, images: Array) -> None:
    """Raise ``UsageError`` for labels that cannot choose the masks of the images."""
    if labels is None:
        raise UsageError(
            "labels=None: a network with reverse attention needs the labels in training "
            "(train=True), where they choose the masks"
        )
    if labels.shape != images.shape[:1]:
        raise UsageError(f"labels of shape {labels.shape}: must be one per image, {len(images)}")
