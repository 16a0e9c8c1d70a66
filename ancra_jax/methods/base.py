"""Natural training, PGD-AT and TRADES."""

from ancra_jax import losses
from ancra_jax.methods.attack import AttackRequest, AttackSettings
from ancra_jax.methods.core import Examples, Method, Plan, Terms, accuracy
from ancra_jax.methods.keys import ADVERSARIAL, example_keys


def natural(aux_weight: float) -> Method:
    """Cross-entropy on natural images."""

    def prepare(predict, batch, key, epoch):
        del predict, batch, key, epoch
        return Plan({}, {})

    def loss(forward, batch_stats, examples):
        batch = examples.batch
        outputs, batch_stats = forward(batch_stats, batch.images, batch.labels)
        value = _cross_entropy(outputs, batch.labels, aux_weight)
        metrics = {"natural_accuracy": accuracy(outputs, batch.labels)}
        return Terms(value, batch_stats, outputs, metrics, examples.state)

    return Method(prepare, loss)


def pgd_at(settings: AttackSettings, aux_weight: float) -> Method:
    """Cross-entropy on adversarial images.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018.
    """

    def loss(forward, batch_stats, examples):
        labels = examples.batch.labels
        outputs, batch_stats = forward(batch_stats, examples.attacked["adversarial"], labels)
        value = _cross_entropy(outputs, labels, aux_weight)
        metrics = {"adversarial_accuracy": accuracy(outputs, labels)}
        return Terms(value, batch_stats, None, metrics, examples.state)

    return Method(untargeted(settings), loss)


def trades(settings: AttackSettings, beta: float, aux_weight: float) -> Method:
    """``CE(x, y) + beta KL(p(x) || p(x_adv))``, each term over all heads; nothing is detached.

    References:
      Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019;
      ANCRA paper, eq. 7 for the heads.
    """

    def loss(forward, batch_stats, examples: Examples):
        images, labels, _ = examples.batch
        natural, batch_stats = forward(batch_stats, images, labels)
        adversarial, batch_stats = forward(batch_stats, examples.attacked["adversarial"], labels)
        cross_entropy = _cross_entropy(natural, labels, aux_weight)
        kl = losses.combined(losses.kl_divergence, natural, adversarial, aux_weight=aux_weight)
        metrics = {
            "loss_natural": cross_entropy,
            "loss_kl": kl,
            "natural_accuracy": accuracy(natural, labels),
            "adversarial_accuracy": accuracy(adversarial, labels),
        }
        return Terms(cross_entropy + beta * kl, batch_stats, natural, metrics, examples.state)

    return Method(untargeted(settings), loss)


def untargeted(settings: AttackSettings):
    """Plans the untargeted attack on every natural image (paper eq. 2), as ``'adversarial'``."""

    def prepare(predict, batch, key, epoch):
        del predict, epoch
        keys = example_keys(key, ADVERSARIAL, batch.indices)
        request = AttackRequest(settings, batch.images, batch.labels, False, keys)
        return Plan({"adversarial": request}, {})

    return prepare


def _cross_entropy(outputs, labels, aux_weight):
    return losses.combined(
        lambda logits: losses.cross_entropy(logits, labels), outputs, aux_weight=aux_weight
    )
