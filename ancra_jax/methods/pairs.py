"""Methods whose loss compares a natural forward with an adversarial one."""

from collections.abc import Callable

from jaxtyping import Array, Float

from ancra_jax.methods.attack import AttackRequest, AttackSettings
from ancra_jax.methods.core import Examples, Method, MethodState, Metrics, Plan, Terms, accuracy
from ancra_jax.methods.keys import ADVERSARIAL, example_keys
from ancra_jax.types import Outputs

PairLoss = Callable[[Outputs, Outputs, Examples], tuple[Float[Array, ""], Metrics, MethodState]]
"""``(natural, adversarial, examples) -> (loss, metrics, state)``; a method that remembers nothing
returns ``examples.state``."""


def natural_and_adversarial(settings: AttackSettings, pair_loss: PairLoss) -> Method:
    """Attacks every image, then compares the two training-phase forwards, the natural one first.

    Args:
      settings: the untargeted attack.
      pair_loss: of the outputs for the natural and for the adversarial images.
    """

    def loss(forward, batch_stats, examples):
        images, labels, _ = examples.batch
        natural, batch_stats = forward(batch_stats, images, labels)
        adversarial, batch_stats = forward(batch_stats, examples.attacked["adversarial"], labels)
        value, metrics, state = pair_loss(natural, adversarial, examples)
        accuracies = {
            "batch_accuracy_natural": accuracy(natural, labels),
            "batch_accuracy_adversarial": accuracy(adversarial, labels),
        }
        return Terms(value, batch_stats, natural, metrics | accuracies, state, adversarial)

    return Method(untargeted(settings), loss)


def untargeted(settings: AttackSettings):
    """Plans the untargeted attack on every natural image (paper eq. 2), as ``'adversarial'``."""

    def prepare(predict, batch, key, epoch):
        del predict, epoch
        keys = example_keys(key, ADVERSARIAL, batch.indices)
        request = AttackRequest(settings, batch.images, batch.labels, False, keys)
        return Plan({"adversarial": request}, {})

    return prepare
