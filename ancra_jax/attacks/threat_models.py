"""Threat models: which perturbed images an attacker may use, and how a step moves among them."""

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ancra_jax.attacks.arguments import Number, as_length, shown
from ancra_jax.ops.bisection import Thresholds, Vectors, kth_largest, last_where
from ancra_jax.ops.images import Images, Keys, Values
from ancra_jax.ops.pytree import pytree_dataclass

Image = Float[Array, "height width channels"]

TINY = 1e-12
"""Added to a divisor that can be 0, such as a norm, so that 0 divided by it stays 0."""


_WITHIN = 1 - 1e-6


@runtime_checkable
class ThreatModel(Protocol):
    """A norm ball of radius ``epsilon`` (on the [0, 1] pixel scale) around every natural image."""

    @property
    def epsilon(self) -> Number:
        """Radius of the ball."""

    def norm(self, perturbations: Images) -> Values:
        """Return the size of every perturbation."""

    def direction(self, gradients: Images) -> Images:
        """Return the steepest-ascent direction of norm 1."""

    def project(self, images: Images, natural: Images) -> Images:
        """Move images into the ball around ``natural``, then into [0, 1]."""

    def random_start(self, keys: Keys, natural: Images) -> Images:
        """Draw a point of the ball and of [0, 1] for every image, with one key each."""

    def noise(self, keys: Keys, natural: Images) -> Images:
        """Draw noise of the images' shape, which ``at_distance`` scales, with one key each."""


def norm_of(threat_model: ThreatModel) -> str:
    """Return ``'linf'``, ``'l2'`` or ``'l1'``, for attacks that know only these threat models.

    Raises:
      ValueError: another threat model.
    """
    for name, ball in NORMS.items():
        if isinstance(threat_model, ball):
            return name
    raise ValueError(f"threat model {threat_model!r}: allowed are Linf, L2 and L1")


def at_distance(
    threat_model: ThreatModel, natural: Images, noise: Images, distance: Number | Values
) -> Images:
    """Add noise scaled to a norm of ``distance`` to every image, then clip to [0, 1]."""
    scale = distance / (threat_model.norm(noise) + TINY)
    return jnp.clip(natural + scale[:, None, None, None] * noise, 0.0, 1.0)


def gaussian_noise(keys: Keys, images: Images) -> Images:
    """Draw standard normal noise of the images' shape, for every image with its own key."""
    return jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys, images)


def _euclidean(x: Images) -> Float[Array, "batch 1 1 1"]:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))


def longest(threat_model: Any, shape: tuple[int, ...] | None = None) -> float:
    """Return the largest norm of a difference of two images of a shape, infinite if unknown."""
    pixels = math.inf if shape is None else float(math.prod(shape))
    return {Linf: 1.0, L2: math.sqrt(pixels), L1: pixels}.get(type(threat_model), math.inf)


@pytree_dataclass()
class _Ball:
    epsilon: Number

    def __post_init__(self) -> None:
        radius = as_length(self.epsilon, "epsilon", most=longest(self))
        object.__setattr__(self, "epsilon", radius)


@pytree_dataclass()
class Linf(_Ball):
    """All images whose pixels each differ by at most ``epsilon`` from the natural image's."""

    def norm(self, perturbations: Images) -> Values:
        """Return the largest absolute pixel difference."""
        return jnp.max(jnp.abs(perturbations), axis=(1, 2, 3))

    def direction(self, gradients: Images) -> Images:
        """Return the sign of the gradient."""
        return jnp.sign(gradients)

    def project(self, images: Images, natural: Images) -> Images:
        """Clip to the ball, then to [0, 1]."""
        inside = jnp.clip(images, natural - self.epsilon, natural + self.epsilon)
        return jnp.clip(inside, 0.0, 1.0)

    def random_start(self, keys: Keys, natural: Images) -> Images:
        """Draw uniformly in the cube of half-width ``epsilon``, then clip to [0, 1]."""
        return jnp.clip(natural + self.epsilon * self.noise(keys, natural), 0.0, 1.0)

    def noise(self, keys: Keys, natural: Images) -> Images:
        """Draw uniformly in [-1, 1]."""
        return jax.vmap(
            lambda key, x: jax.random.uniform(key, x.shape, x.dtype, minval=-1.0, maxval=1.0)
        )(keys, natural)


@pytree_dataclass()
class L2(_Ball):
    """All images at a Euclidean distance of at most ``epsilon`` from the natural image."""

    def norm(self, perturbations: Images) -> Values:
        """Return the Euclidean norm over all pixels and channels."""
        return _euclidean(perturbations)[:, 0, 0, 0]

    def direction(self, gradients: Images) -> Images:
        """Return the gradient scaled to norm 1; 0 stays 0."""
        return gradients / (_euclidean(gradients) + TINY)

    def project(self, images: Images, natural: Images) -> Images:
        """Scale the perturbation to norm ``epsilon`` where it is longer, then clip to [0, 1]."""
        delta = images - natural
        scale = jnp.minimum(1.0, self.epsilon / jnp.maximum(_euclidean(delta), TINY))
        return jnp.clip(natural + delta * scale, 0.0, 1.0)

    def random_start(self, keys: Keys, natural: Images) -> Images:
        """Draw uniformly in the ball, then clip to [0, 1]."""
        dimension = math.prod(natural.shape[1:])

        def draw(key: Key[Array, ""], x: Image) -> Image:
            direction_key, radius_key = jax.random.split(key)
            gaussian = jax.random.normal(direction_key, x.shape, x.dtype)
            radius = jax.random.uniform(radius_key, (), x.dtype) ** (1.0 / dimension)
            return radius * gaussian / (jnp.linalg.norm(gaussian) + TINY)

        return jnp.clip(natural + self.epsilon * jax.vmap(draw)(keys, natural), 0.0, 1.0)

    def noise(self, keys: Keys, natural: Images) -> Images:
        """Draw standard normal numbers."""
        return gaussian_noise(keys, natural)


@pytree_dataclass()
class L1(_Ball):
    """All images whose pixel differences from the natural image sum up to at most ``epsilon``."""

    def norm(self, perturbations: Images) -> Values:
        """Return the sum of the absolute pixel differences."""
        return jnp.sum(jnp.abs(perturbations), axis=(1, 2, 3))

    def direction(self, gradients: Images) -> Images:
        """Return the sign of the largest hundredth of the gradient's entries, scaled to norm 1.

        The steepest direction, the largest entry alone, soon has no room left in [0, 1].

        References:
          Tramer & Boneh, Adversarial training and robustness for multiple perturbations, NeurIPS
          2019, section 4.
        """
        return sparse_direction(gradients, max(math.prod(gradients.shape[1:]) // 100, 1))

    def project(self, images: Images, natural: Images) -> Images:
        """Move to the nearest point of both the ball and [0, 1], see `project_l1`.

        The radius is smaller than epsilon by a millionth of it: rounding of the pixels adds up.
        """
        x, center = (a.reshape(len(natural), -1) for a in (images, natural))
        radius = jnp.full((len(natural), 1), _WITHIN * self.epsilon)
        return project_l1(x, center, radius).reshape(natural.shape)

    def farthest(self, gradients: Images, natural: Images) -> Images:
        """Return the points of the ball and of [0, 1] farthest along the gradients.

        Entries move in the order of their gradients' sizes, each to the border of [0, 1], until the
        radius, that of `project`, is spent: the optimum if the objective is linear.
        """
        flat, center = (a.reshape(len(natural), -1) for a in (gradients, natural))
        room = jnp.where(flat > 0, 1.0 - center, center)
        spent = jnp.full((len(natural), 1), _WITHIN * self.epsilon)
        moves = largest_first(jnp.abs(flat), jnp.ones_like(flat), room, spent)
        return (center + jnp.sign(flat) * moves).reshape(natural.shape)

    def random_start(self, keys: Keys, natural: Images) -> Images:
        """Draw uniformly in the ball, then clip to [0, 1]."""

        def draw(key: Key[Array, ""], x: Image) -> Image:
            sign_key, size_key = jax.random.split(key)
            sizes = jax.random.exponential(size_key, (x.size + 1,), x.dtype)
            signs = jax.random.rademacher(sign_key, x.shape, x.dtype)
            return signs * (sizes[1:] / jnp.sum(sizes)).reshape(x.shape)

        start = natural + _WITHIN * self.epsilon * jax.vmap(draw)(keys, natural)
        return jnp.clip(start, 0.0, 1.0)

    def noise(self, keys: Keys, natural: Images) -> Images:
        """Draw standard normal numbers."""
        return gaussian_noise(keys, natural)


NORMS: dict[str, type[Linf] | type[L2] | type[L1]] = {"linf": Linf, "l2": L2, "l1": L1}
"""The threat models by the names of their norms."""


def sparse_direction(gradients: Images, count: int | Int[Array, "batch 1"]) -> Images:
    """Return the sign of the ``count`` largest entries of every gradient, scaled to L1 norm 1.

    Entries as large as the smallest of them count as well; a gradient of 0 stays 0.
    """
    flat = gradients.reshape(len(gradients), -1)
    sizes = jnp.abs(flat)
    signs = jnp.where(sizes >= kth_largest(sizes, count), jnp.sign(flat), 0.0)
    scaled = signs / jnp.maximum(jnp.sum(jnp.abs(signs), axis=-1, keepdims=True), 1.0)
    return scaled.reshape(gradients.shape)


def largest_first(weights: Vectors, rates: Vectors, room: Vectors, target: Thresholds) -> Vectors:
    """Move the entries of largest weight first: s in 0 .. room with ``sum_i rates_i s_i = target``.

    Entries heavier than a threshold move by all of their room, those as heavy by one part of it;
    those of weight 0 stay, and without enough room all others move by all of theirs.
    """

    def gain(mask: Array) -> Thresholds:
        return jnp.sum(jnp.where(mask, rates * room, 0.0), axis=-1, keepdims=True)

    least = last_where(lambda w: gain(weights >= w) >= target, len(weights))
    heavier, as_heavy = weights > least, (weights == least) & (weights > 0)
    part = (target - gain(heavier)) / jnp.maximum(gain(as_heavy), TINY)
    return room * jnp.where(heavier, 1.0, jnp.where(as_heavy, jnp.clip(part, 0.0, 1.0), 0.0))


def project_l1(points: Vectors, centers: Vectors, radii: Thresholds) -> Vectors:
    """Return the nearest points of the L1 balls around ``centers`` that lie in [0, 1].

    The differences' sizes a become ``clip(a - s, 0, room)``, where ``room`` is the way from the
    center to the border of [0, 1], and s, the same for all entries, is 0 or makes the norm equal to
    the radius. Exact to rounding; memory and time are proportional to the dimension.

    References:
      Croce & Hein, Mind the box: l1-APGD for sparse adversarial attacks on image classifiers,
      ICML 2021, section 3.1.
    """
    delta = points - centers
    room = jnp.where(delta > 0, 1.0 - centers, centers)
    sizes = jnp.abs(delta)

    def norm(shrinkage: Thresholds) -> Thresholds:
        return jnp.sum(jnp.clip(sizes - shrinkage, 0.0, room), axis=-1, keepdims=True)

    low = last_where(lambda s: norm(s) >= radii, len(points))
    free = (sizes > low) & (sizes - low < room)
    count = jnp.sum(free, axis=-1, keepdims=True)
    rest = jnp.maximum(norm(low) - radii, 0.0) / jnp.maximum(count, 1)
    return centers + jnp.sign(delta) * jnp.clip(sizes - low - rest, 0.0, room)


def threat_model(norm: str | Number, epsilon: Any) -> Linf | L2 | L1:
    """Return the threat model of a norm: ``'linf'``, ``'Linf'``, ``'inf'``, ``np.inf``; L2; L1.

    Raises:
      ValueError: another norm, or an epsilon that is not finite, above 0 and at most 1 (Linf).
      TypeError: an epsilon that is no number.
    """
    name = f"l{str(norm).lower().removeprefix('l').removesuffix('.0')}"
    if name not in NORMS:
        raise ValueError(f"norm={shown(norm)}: allowed are 'linf' (np.inf), 'l2' (2) and 'l1' (1)")
    return NORMS[name](epsilon)


def ball_of(given: Any, norm: str | Number, epsilon: Number | None) -> Linf | L2 | L1:
    """Return the threat model of a whole evaluation, which is given, or as norm and epsilon.

    Raises:
      ValueError: as `threat_model`, or another threat model than Linf, L2 and L1.
      TypeError: as `threat_model`, or both are given.
    """
    if given is None:
        return threat_model(norm, epsilon)
    if epsilon is not None:
        raise TypeError(f"epsilon={shown(epsilon)}: the threat model {shown(given)} has its own")
    own = norm_of(given)
    # The default may stand beside any threat model.
    if str(norm) != "linf" and norm_of(threat_model(norm, 1.0)) != own:
        raise TypeError(f"norm={shown(norm)}: the threat model {shown(given)} has its own")
    return given
