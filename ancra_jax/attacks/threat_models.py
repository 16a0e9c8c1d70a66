"""Threat models: which perturbed images an attacker may use, and how a step moves among them."""

import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ancra_jax.ops.pytree import pytree_dataclass

Images = Float[Array, "batch height width channels"]

_TINY = 1e-12


@runtime_checkable
class ThreatModel(Protocol):
    """A norm ball of radius ``epsilon`` (on the [0, 1] pixel scale) around every natural image."""

    @property
    def epsilon(self) -> float | int | Float[Array, ""]:
        """Radius of the ball."""

    def norm(self, perturbations: Images) -> Float[Array, "batch"]:
        """Size of every perturbation."""

    def direction(self, gradients: Images) -> Images:
        """Steepest-ascent direction of norm 1."""

    def project(self, images: Images, natural: Images) -> Images:
        """Moves images into the ball around ``natural``, then into [0, 1]."""

    def random_start(self, keys: Key[Array, "batch"], natural: Images) -> Images:
        """A random point of the ball and of [0, 1] for every image, one key each."""

    def noise(self, keys: Key[Array, "batch"], natural: Images) -> Images:
        """Noise of the images' shape, which ``at_distance`` scales; one key each."""


def _check_epsilon(epsilon):
    if isinstance(epsilon, (int, float)) and not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(
            f"epsilon={epsilon}: epsilon must be finite and > 0, on the [0, 1] pixel scale"
        )


def at_distance(
    threat_model: ThreatModel,
    natural: Images,
    noise: Images,
    distance: float | Float[Array, ""] | Float[Array, "batch"],
) -> Images:
    """Adds noise scaled to a norm of ``distance`` to every image, then clips to [0, 1]."""
    size = threat_model.norm(noise) + _TINY
    return jnp.clip(natural + (distance / size)[:, None, None, None] * noise, 0.0, 1.0)


def per_example_norm(x: Images) -> Float[Array, "batch 1 1 1"]:
    """Euclidean norm of every example, kept broadcastable."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True))


@pytree_dataclass()
class Linf:
    """All images whose pixels each differ by at most ``epsilon`` from the natural image's."""

    epsilon: float | int | Float[Array, ""]

    def __post_init__(self):
        _check_epsilon(self.epsilon)

    def norm(self, perturbations: Images) -> Float[Array, "batch"]:
        """Largest absolute pixel difference."""
        return jnp.max(jnp.abs(perturbations), axis=(1, 2, 3))

    def direction(self, gradients: Images) -> Images:
        """Sign of the gradient."""
        return jnp.sign(gradients)

    def project(self, images: Images, natural: Images) -> Images:
        """Clips to the ball, then to [0, 1]."""
        inside = jnp.clip(images, natural - self.epsilon, natural + self.epsilon)
        return jnp.clip(inside, 0.0, 1.0)

    def random_start(self, keys: Key[Array, "batch"], natural: Images) -> Images:
        """Uniform in the cube of half-width ``epsilon``, clipped to [0, 1]."""
        return jnp.clip(natural + self.epsilon * self.noise(keys, natural), 0.0, 1.0)

    def noise(self, keys: Key[Array, "batch"], natural: Images) -> Images:
        """Uniform in [-1, 1]."""
        return jax.vmap(
            lambda key, x: jax.random.uniform(key, x.shape, x.dtype, minval=-1.0, maxval=1.0)
        )(keys, natural)


@pytree_dataclass()
class L2:
    """All images at a Euclidean distance of at most ``epsilon`` from the natural image."""

    epsilon: float | int | Float[Array, ""]

    def __post_init__(self):
        _check_epsilon(self.epsilon)

    def norm(self, perturbations: Images) -> Float[Array, "batch"]:
        """Euclidean norm over all pixels and channels."""
        return per_example_norm(perturbations)[:, 0, 0, 0]

    def direction(self, gradients: Images) -> Images:
        """Gradient scaled to norm 1; 0 stays 0."""
        return gradients / (per_example_norm(gradients) + _TINY)

    def project(self, images: Images, natural: Images) -> Images:
        """Scales the perturbation to norm ``epsilon`` where it is longer, then clips to [0, 1]."""
        delta = images - natural
        norm = per_example_norm(delta)
        scale = jnp.minimum(1.0, self.epsilon / jnp.maximum(norm, _TINY))
        return jnp.clip(natural + delta * scale, 0.0, 1.0)

    def random_start(self, keys: Key[Array, "batch"], natural: Images) -> Images:
        """Uniform in the ball, clipped to [0, 1]."""
        dimension = math.prod(natural.shape[1:])

        def draw(key, x):
            direction_key, radius_key = jax.random.split(key)
            gaussian = jax.random.normal(direction_key, x.shape, x.dtype)
            radius = jax.random.uniform(radius_key, (), x.dtype) ** (1.0 / dimension)
            return radius * gaussian / (jnp.linalg.norm(gaussian) + _TINY)

        noise = jax.vmap(draw)(keys, natural)
        return jnp.clip(natural + self.epsilon * noise, 0.0, 1.0)

    def noise(self, keys: Key[Array, "batch"], natural: Images) -> Images:
        """Standard normal."""
        return jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys, natural)


THREAT_MODELS: dict[str, type[Linf] | type[L2]] = {"linf": Linf, "l2": L2}


def threat_model(norm: str, epsilon: float) -> Linf | L2:
    """The threat model of a norm's name, ``'linf'`` or ``'l2'`` (also ``'Linf'``, ``'L2'``).

    Raises:
      ValueError: another name, or an epsilon that is not finite and > 0.
    """
    if norm.lower() not in THREAT_MODELS:
        raise ValueError(f"norm={norm!r}: allowed are {', '.join(map(repr, THREAT_MODELS))}")
    return THREAT_MODELS[norm.lower()](epsilon)
