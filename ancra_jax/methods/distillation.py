"""Knowledge distillation as a wrapper around any method."""

from ancra_jax import losses
from ancra_jax.config.schema import Config
from ancra_jax.errors import UsageError
from ancra_jax.methods.attack import AttackSettings
from ancra_jax.methods.core import Method


def distillation(method: Method, *, weight: float, temperature: float, aux_weight: float) -> Method:
    """``(1 - weight) L + weight T^2 KL(teacher(x) || student)``, the term over all heads.

    The teacher looks at the natural images. The student's side is the method's adversarial forward,
    as in ARD; a method without one (natural training) gives its natural forward.

    Args:
      method: the method to extend, with the loss ``L``.
      weight: of the term.
      temperature: ``T``.
      aux_weight: weight of the auxiliary heads, each of which learns from the teacher's logits.

    References:
      Goldblum et al., Adversarially Robust Distillation, AAAI 2020, for ARD;
      ``ancra_jax.losses.distillation`` for the term.
    """

    def loss(forward, batch_stats, examples):
        if examples.teacher_logits is None:
            raise UsageError(f"config.distillation.weight={weight}: the step was given no teacher")
        terms = method.loss(forward, batch_stats, examples)
        student = terms.natural if terms.adversarial is None else terms.adversarial
        if student is None:
            raise UsageError(
                f"config.distillation.weight={weight}: needs a method whose loss says what the "
                "network's outputs were (Terms.natural or Terms.adversarial)"
            )
        term = losses.combined(
            lambda logits: losses.distillation(logits, examples.teacher_logits, temperature),
            student,
            aux_weight=aux_weight,
        )
        metrics = terms.metrics | {"loss_distillation": term}
        return terms._replace(loss=(1 - weight) * terms.loss + weight * term, metrics=metrics)

    return method._replace(loss=loss)


def with_distillation(method: Method, config: Config, settings: AttackSettings) -> Method:
    """Distillation from a teacher for ``config.distillation.weight`` above 0."""
    del settings
    if config.distillation.weight == 0:
        return method
    return distillation(
        method,
        weight=config.distillation.weight,
        temperature=config.distillation.temperature,
        aux_weight=config.method.aux_weight,
    )
