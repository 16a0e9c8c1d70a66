"""Unified distributional robustness (UDR) as a wrapper around any adversarial method."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from ancra_jax import attacks
from ancra_jax.config.schema import Config, shown
from ancra_jax.errors import UsageError
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, BatchStats, Examples, Forward, Method, Terms
from ancra_jax.ops.images import Images
from ancra_jax.ops.pytree import pytree_dataclass
from ancra_jax.types import Scalar


@pytree_dataclass()
class SoftLinf(attacks.Linf):
    """A cube that pulls back what leaves it instead of cutting it off."""

    multiplier: float | Scalar  # lambda; 1 cuts it off, less lets perturbations stay outside

    def project(self, images: Images, natural: Images) -> Images:
        """Take ``multiplier`` times the excess over epsilon off, then clip to [0, 1]."""
        delta = images - natural
        excess = delta - jnp.clip(delta, -self.epsilon, self.epsilon)
        return jnp.clip(natural + delta - self.multiplier * excess, 0.0, 1.0)


def distributional_robustness(method: Method, config: Config, attack: AttackSettings) -> Method:
    """Attack in a soft ball whose stiffness lambda is learned; the loss is the method's own.

    After a step the perturbation ``delta`` is reduced by ``lambda (delta - sign(delta) epsilon)``
    where ``|delta| > epsilon`` (the paper's ``step / tau`` is 1: its temperature tau is the step
    size). lambda starts at ``config.udr.multiplier``. Every ``interval`` training steps it becomes
    ``max(0, lambda - rate (epsilon - d))``, where ``d`` is the mean over them of ``|delta|`` of the
    adversarial images. All of the method's attacks move in the soft ball. Off while
    ``config.udr.multiplier`` is 0.

    References:
      Bui et al., A Unified Wasserstein Distributional Robustness Framework for Adversarial
      Training, ICLR 2022.
    """
    udr = config.udr
    if udr.multiplier == 0:
        return method
    core.check_adversarial(config, shown(config, "udr.multiplier"))
    if config.attack.norm != "linf":
        multiplier = shown(config, "udr.multiplier")
        raise UsageError(f"{shown(config, 'attack.norm')}: must be 'linf' for {multiplier}")

    def init_state(labels: Int[Array, "examples"], num_classes: int) -> core.MethodState:
        state = {
            "multiplier": jnp.asarray(udr.multiplier, jnp.float32),
            "distance": jnp.zeros((), jnp.float32),  # summed since the last update
            "steps": jnp.zeros((), jnp.int32),
        }
        return method.init_state(labels, num_classes) | {"udr": state}

    def run(
        model: core.Model, requests: dict[str, core.AttackRequest], state: core.MethodState
    ) -> core.Attacked:
        if "adversarial" not in requests:
            raise UsageError("--config.udr.multiplier: needs a method that attacks natural images")
        own = state["udr"]
        multiplier, steps = own["multiplier"], own["steps"]
        attacked, state = core.run_requests(
            model, requests, state, lambda ball: SoftLinf(ball.epsilon, multiplier)
        )
        request = requests["adversarial"]
        total = own["distance"] + jnp.mean(jnp.abs(attacked["adversarial"] - request.images))
        epsilon = request.settings.threat_model.epsilon
        updated = jnp.maximum(0.0, multiplier - udr.rate * (epsilon - total / udr.interval))
        due = steps + 1 == udr.interval
        advanced = {
            "multiplier": jnp.where(due, updated, multiplier),
            "distance": jnp.where(due, 0.0, total),
            "steps": jnp.where(due, 0, steps + 1),
        }
        return attacked, state | {"udr": advanced}

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        terms = method.loss(forward, batch_stats, examples)
        metrics = terms.metrics | {"udr_multiplier": examples.state["udr"]["multiplier"]}
        return terms._replace(metrics=metrics)

    return method._replace(init_state=init_state, attack=run, loss=loss)
