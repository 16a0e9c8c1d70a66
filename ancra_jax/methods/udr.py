"""Unified distributional robustness (UDR) as a wrapper around any adversarial method."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ancra_jax import attacks
from ancra_jax.attacks.threat_models import Images
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods.attack import AttackSettings, run_requests
from ancra_jax.methods.core import Method, _needs_an_attack
from ancra_jax.ops.pytree import pytree_dataclass


@pytree_dataclass()
class SoftLinf(attacks.Linf):
    """A cube that pulls back what leaves it instead of cutting it off.

    Attributes:
      multiplier: lambda; 1 is the hard projection, less lets perturbations stay outside.
    """

    multiplier: float | Float[Array, ""]

    def project(self, images: Images, natural: Images) -> Images:
        """Takes ``multiplier`` times the excess over epsilon off, then clips to [0, 1]."""
        delta = images - natural
        excess = delta - jnp.clip(delta, -self.epsilon, self.epsilon)
        return jnp.clip(natural + delta - self.multiplier * excess, 0.0, 1.0)


def distributional_robustness(
    method: Method, *, multiplier: float, rate: float, interval: int
) -> Method:
    """Attacks in a soft ball whose stiffness lambda is learned; the loss is the method's own.

    After a step the perturbation ``delta`` is reduced by ``lambda (delta - sign(delta) epsilon)``
    where ``|delta| > epsilon`` (the paper's ``step / tau`` is 1: its temperature tau is the step
    size). Every ``interval`` training steps lambda becomes ``max(0, lambda - rate (epsilon - d))``,
    where ``d`` is the mean over them of ``|delta|`` of the adversarial images.

    Args:
      method: the method to extend; it plans an attack ``'adversarial'`` in an Linf ball. All of its
        attacks move in the soft ball.
      multiplier: lambda at the start.
      rate: of its descent.
      interval: training steps between its updates.

    References:
      Bui et al., A Unified Wasserstein Distributional Robustness Framework for Adversarial
      Training, ICLR 2022.
    """

    def init_state(labels, num_classes):
        udr = {
            "multiplier": jnp.asarray(multiplier, jnp.float32),
            "distance": jnp.zeros((), jnp.float32),  # summed since the last update
            "steps": jnp.zeros((), jnp.int32),
        }
        return method.init_state(labels, num_classes) | {"udr": udr}

    def attack(predict, requests, state):
        if "adversarial" not in requests:
            raise UsageError("config.udr.multiplier: needs a method that attacks natural images")
        request = requests["adversarial"]
        soft = lambda ball: SoftLinf(ball.epsilon, state["udr"]["multiplier"])  # noqa: E731
        attacked = run_requests(predict, requests, soft)
        distance = jnp.mean(jnp.abs(attacked["adversarial"] - request.images))
        epsilon = request.settings.threat_model.epsilon
        return attacked, state | {"udr": _advance(state["udr"], distance, epsilon)}

    def _advance(udr, distance, epsilon):
        steps, total = udr["steps"] + 1, udr["distance"] + distance
        due = steps == interval
        updated = jnp.maximum(0.0, udr["multiplier"] - rate * (epsilon - total / interval))
        return {
            "multiplier": jnp.where(due, updated, udr["multiplier"]),
            "distance": jnp.where(due, 0.0, total),
            "steps": jnp.where(due, 0, steps),
        }

    def loss(forward, batch_stats, examples):
        terms = method.loss(forward, batch_stats, examples)
        metrics = terms.metrics | {"udr_multiplier": examples.state["udr"]["multiplier"]}
        return terms._replace(metrics=metrics)

    return method._replace(init_state=init_state, attack=attack, loss=loss)


def with_distributional_robustness(
    method: Method, config: Config, settings: AttackSettings
) -> Method:
    """UDR for ``config.udr.multiplier`` above 0."""
    del settings
    udr = config.udr
    if udr.multiplier == 0:
        return method
    _needs_an_attack(config, f"config.udr.multiplier={udr.multiplier}")
    if config.attack.norm != "linf":
        raise UsageError(
            f"config.udr.multiplier={udr.multiplier}: needs config.attack.norm='linf', not "
            f"{config.attack.norm!r}"
        )
    return distributional_robustness(
        method, multiplier=udr.multiplier, rate=udr.rate, interval=udr.interval
    )
