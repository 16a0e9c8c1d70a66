"""Knowledge distillation as a wrapper around any method."""

from functools import partial

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods import core
from ancra_jax.methods.core import AttackSettings, BatchStats, Examples, Forward, Method, Terms


def distillation(method: Method, config: Config, attack: AttackSettings) -> Method:
    """Make a method's loss ``L`` to ``(1 - weight) L + weight T^2 KL(teacher(x) || student)``.

    The term is taken over all heads, each of which learns from the teacher's logits for the natural
    images. The student's side is the method's adversarial forward, as in ARD; a method without one
    (natural training) gives its natural forward. ``T`` is ``config.distillation.temperature``. Off
    while ``config.distillation.weight`` is 0.

    References:
      Goldblum et al., Adversarially Robust Distillation, AAAI 2020, for ARD;
      `ancra_jax.losses.distillation` for the term.
    """
    weight, temperature = config.distillation.weight, config.distillation.temperature
    if weight == 0:
        return method

    def loss(forward: Forward, batch_stats: BatchStats, examples: Examples) -> Terms:
        teacher = examples.teacher_logits
        if teacher is None:
            raise UsageError(
                f"--config.distillation.weight={weight}: the step was given no teacher"
            )
        terms = method.loss(forward, batch_stats, examples)
        student = terms.natural if terms.adversarial is None else terms.adversarial
        if student is None:
            raise UsageError(
                f"--config.distillation.weight={weight}: needs a method whose loss says what the "
                "network's outputs were (Terms.natural or Terms.adversarial)"
            )
        learned = partial(losses.distillation, teacher=teacher, temperature=temperature)
        aux_weight = config.method.aux_weight
        term, of_term = core.over_heads(
            "loss_distillation", learned, student, aux_weight=aux_weight
        )
        metrics = terms.metrics | of_term
        return terms._replace(loss=(1 - weight) * terms.loss + weight * term, metrics=metrics)

    return method._replace(loss=loss, needs_teacher=True)
