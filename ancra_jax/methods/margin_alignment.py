"""Margin alignment as a wrapper: reverse attention as a term of the loss, plain at inference."""

from ancra_jax import losses
from ancra_jax.config.schema import Config, shown
from ancra_jax.errors import UsageError
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, BatchStats, Examples, Forward, Method, Terms


def margin_alignment(method: Method, config: Config, attack: AttackSettings) -> Method:
    """Add ``weight`` times `losses.margin_alignment` to a method's loss.

    The rows of the classifier weigh how far features move, as they do in reverse attention, but no
    mask is put on the network. A method without a natural forward (PGD-AT) gets one. Off while
    ``config.margin_alignment.weight`` is 0.

    Raises:
      UsageError: natural training, or a network whose logits are not its features times the rows.
    """
    weight = config.margin_alignment.weight
    if weight == 0:
        return method
    setting = shown(config, "margin_alignment.weight")
    core.check_adversarial(config, setting)
    if config.model.last_block == "class_branches":
        last_block = shown(config, "model.last_block")
        raise UsageError(f"{setting}: needs a network with one feature a class, not {last_block}")

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        terms = method.loss(forward, batch_stats, examples)
        terms, natural = core.with_natural(terms, forward, examples.batch)
        if terms.adversarial is None or terms.adversarial.class_rows is None:
            raise UsageError(
                f"{setting}: needs a method whose loss says what the outputs for adversarial "
                "images were (Terms.adversarial), and a network that says its Outputs.class_rows"
            )
        labels = examples.batch.labels
        term = losses.margin_alignment(natural, terms.adversarial, labels)
        metrics = terms.metrics | {"loss_margin_alignment": term}
        return terms._replace(loss=terms.loss + weight * term, metrics=metrics)

    return method._replace(loss=loss)
