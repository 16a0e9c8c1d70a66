"""Threat models: which perturbed images an attacker may use, and how a step moves among them."""

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ancra_jax.attacks.arguments import Number, as_length, shown
from ancra_jax.ops.images import Images, Keys, Values
from ancra_jax.ops.pytree import pytree_dataclass

Image = Float[Array, "height width channels"]

TINY = 1e-12
"""Added to a divisor that can be 0, such as a norm, so that 0 divided by it stays 0."""


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


def is_linf(threat_model: ThreatModel) -> bool:
    """Tell ``Linf`` from ``L2``, and refuse others, for attacks that know only these two."""
    if isinstance(threat_model, Linf | L2):
        return isinstance(threat_model, Linf)
    raise ValueError(f"threat model {threat_model!r}: allowed are Linf and L2")


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
    pixels = math.inf if shape is None else math.prod(shape)
    return {Linf: 1.0, L2: math.sqrt(pixels)}.get(type(threat_model), math.inf)


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


def threat_model(norm: str | Number, epsilon: Any) -> Linf | L2:
    """Return the threat model of a norm: ``'linf'``, ``'Linf'``, ``'inf'``, ``np.inf``; or of L2.

    Raises:
      ValueError: another norm, or an epsilon that is not finite, above 0 and at most 1 (Linf).
      TypeError: an epsilon that is no number.
    """
    balls: dict[str, type[Linf] | type[L2]] = {"inf": Linf, "2": L2, "2.0": L2}
    name = str(norm).lower().removeprefix("l")
    if name not in balls:
        raise ValueError(f"norm={shown(norm)}: allowed are 'linf' (np.inf) and 'l2' (2)")
    return balls[name](epsilon)


def ball_of(given: Any, norm: str | Number, epsilon: Number | None) -> Linf | L2:
    """Return the threat model of a whole evaluation, which is given, or as norm and epsilon.

    Raises:
      ValueError: as `threat_model`, or another threat model than Linf and L2.
      TypeError: as `threat_model`, or both are given.
    """
    if given is None:
        return threat_model(norm, epsilon)
    if epsilon is not None:
        raise TypeError(f"epsilon={shown(epsilon)}: the threat model {shown(given)} has its own")
    is_linf(given)
    return given
