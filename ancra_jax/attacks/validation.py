"""What attacks take, checked on the host before anything is compiled, and what they return.

Under a transformation (an attack inside a jitted training step) there are no values to look at:
then only shapes and dtypes are checked.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ancra_jax.attacks import arguments
from ancra_jax.attacks.loop import check_loop, frozen, is_traced
from ancra_jax.attacks.model import Logits, Model, WithKeys, as_pytree, example_keys, forward, judge
from ancra_jax.attacks.objectives import LogitsObjective, Objective, objective_of
from ancra_jax.attacks.renamed import explains_old_calls
from ancra_jax.attacks.threat_models import ThreatModel, longest
from ancra_jax.ops.images import AnyImages, AnyLabels, Flags, Images, Keys, Labels, Values
from ancra_jax.ops.per_device import spread_like
from ancra_jax.ops.pytree import has_foldable, select


class AttackResult(NamedTuple):
    """What one attack did to every example.

    Attributes:
      images: an adversarial image where ``success``, the natural image elsewhere.
      success: whether the attack found a misclassified image inside the threat model.
      best_loss: the largest value of the ascended objective (``fgsm`` and ``pgd``: at the last
        iterate; ``fab`` and ``fmn``: minus the smallest norm of a misclassified image, ``-inf``
        without one). ``-inf`` where the example was not attacked.
      queries: forward passes spent on the example; 0 where it was not attacked.
      denied: whether the search believed in a success that the model itself did not confirm; None
        means nowhere.
    """

    images: Images
    success: Flags
    best_loss: Values
    queries: Labels
    denied: Flags | None = None

    @property
    def claimed(self) -> Flags:
        """Which examples the search believed to have broken, confirmed or not."""
        return self.success if self.denied is None else self.success | self.denied

    def __repr__(self) -> str:
        """Return a summary of a few lines, without pixels."""
        text = f"AttackResult:\n  images: {self.images.dtype}{list(self.images.shape)}"
        if isinstance(self.success, jax.core.Tracer | jax.ShapeDtypeStruct):  # no values yet
            return text
        return f"{text}\n  success: {int(np.sum(self.success))} of {len(self.success)}"


class Problem(NamedTuple):
    """What an attack works on, checked, as pytrees and arrays that ``jit`` takes."""

    model: Model  # a pytree, see ``attacks.model.as_pytree``
    images: Images  # natural images
    labels: Labels  # int32, as are the targets
    targets: Labels | None
    active: Flags  # which examples to attack
    threat_model: ThreatModel

    def result(
        self, success: Flags, found: Images, best_loss: Any, queries: Any, *, judged: bool = False
    ) -> AttackResult:
        """Return what the attack found, with the examples that it was not to attack taken out.

        Where the loop attacked a folded model, the model itself judges the successes again.
        """
        found, best_loss = frozen((found, best_loss))  # the model may close over what is traced
        confirmed = success
        if not judged and has_foldable(self.model):
            claimed = select(success, found, self.images)
            verdict = judge(self.model, claimed, self.images, self.labels, self.threat_model)
            confirmed = success & verdict[0]
        return _result(self.images, self.active, success, confirmed, found, best_loss, queries)

    def closest(self, best: Images, norms: Values, queries: int, outside: bool) -> AttackResult:
        """Return the closest misclassified images, of these norms (infinite where there is none).

        Those outside the ball only if ``outside``.
        """
        best = frozen(best)
        result = self.result(norms <= self.threat_model.epsilon, best, -norms, queries)
        if outside:
            found = self.active & jnp.isfinite(norms)
            result = result._replace(images=select(found, best, self.images))
        return result


@jax.jit
def _result(
    natural: Images,
    active: Flags,
    claimed: Flags,
    confirmed: Flags,
    found: Images,
    best_loss: Any,
    queries: Any,
) -> AttackResult:
    success = confirmed & active
    return AttackResult(
        images=select(success, found, natural),
        success=success,
        best_loss=jnp.where(active, best_loss, -jnp.inf),
        queries=jnp.where(active, queries, 0).astype(jnp.int32),
        denied=claimed & ~confirmed & active,
    )


class Inputs(NamedTuple):
    """The arguments that attacks have in common, checked and converted."""

    problem: Problem
    objective: Objective
    key: Key[Array, ""] | None
    indices: Labels
    start: Images | None

    def keys(self) -> Keys:
        """Return one key per example, also where nothing that is random needs it."""
        key = arguments.as_key(0) if self.key is None else self.key
        return example_keys(key, self.indices)


def accuracy_over_epsilon(
    results: Sequence[AttackResult], epsilons: Sequence[float | int] | np.ndarray
) -> Float[np.ndarray, "epsilons"]:
    """Return the robust accuracy at every radius by what minimum-norm attacks found.

    Args:
      results: of ``fab`` and ``fmn`` on the same examples, under one norm; the smallest counts.
      epsilons: radii in that norm, on the [0, 1] pixel scale.

    Returns:
      The share of the examples that are classified correctly and whose smallest norm is larger,
      among those that were attacked (``active``).

    Raises:
      TypeError: ``results`` is no list of results.
      ValueError: it is empty, over different numbers of examples, or of an attack that looks for no
        smallest norm; nothing was attacked; or ``epsilons`` are no numbers of at least 0.
    """
    arguments.check_list(results, "results", AttackResult, "AttackResult")
    radii = arguments.as_array(epsilons, "epsilons")
    if radii.ndim != 1 or not arguments.has_kind(radii, np.number) or not (radii >= 0).all():
        given = arguments.shown(epsilons)
        raise ValueError(f"epsilons={given}: expected a list of numbers of at least 0")
    if len({len(result.best_loss) for result in results}) != 1:
        raise ValueError("results: expected at least one, all of the same examples")
    norms = np.min([-np.asarray(result.best_loss) for result in results], axis=0)
    attacked = np.any([np.asarray(result.queries) > 0 for result in results], axis=0)
    if not (norms >= 0).all():
        raise ValueError("results: their best_loss is no norm, expected results of fab and fmn")
    if not attacked.any():
        raise ValueError("results: no example was attacked")
    return np.mean(norms[attacked, None] > np.asarray(radii), axis=0)


def checked(
    model: Any,
    images: Any,
    labels: Any,
    threat_model: Any,
    *,
    loop: Any,
    loss: Any,
    targets: Any = None,
    active: Any = None,
    indices: Any = None,
    key: Any = None,
    start: Any = None,
    randomized: Any = False,
) -> Inputs:
    """Check the arguments that attacks have in common, as the user gave them, and convert them.

    Every attack calls this first. ``ancra_jax.attacks`` describes the arguments and the errors;
    ``start`` has the images' shape and is taken as it is. The natural images are classified once,
    since an attack cannot tell a model without finite logits from a robust one. No gradient flows
    through what is returned: adversarial images are data.
    """
    check_loop(loop)
    images = jnp.asarray(arguments.as_images(images))
    batch = len(images)
    labels = arguments.as_classes(labels, batch)
    check_threat_model(threat_model, images)
    if active is None:
        active = jnp.ones_like(jnp.asarray(labels), bool)  # on the devices of the labels
    active = arguments.as_flags(active, batch)
    indices = np.arange(batch) if indices is None else indices
    indices = jnp.asarray(arguments.as_classes(indices, batch, name="indices"))
    if start is not None:
        start = jnp.asarray(arguments.as_floats(start, "start", images.shape))
        with jax.ensure_compile_time_eval():
            if not is_traced(start) and not bool(jnp.isfinite(start).all()):
                raise ValueError("start contains NaN or infinite pixels")
    if targets is not None:
        targets = jnp.asarray(arguments.as_classes(targets, batch, name="targets"))
    rows = (jnp.asarray(labels), targets, jnp.asarray(active), indices, start)
    labels, targets, active, indices, start = spread_like(images, rows)
    problem = Problem(as_pytree(model), images, labels, targets, active, threat_model)
    objective = objective_of(loss, problem.model, problem.labels, targets)
    inputs = Inputs(problem, objective, arguments.as_key(key), indices, start)
    looked_at = WithKeys(problem.model, inputs.keys()) if randomized else problem.model
    traced = is_traced((looked_at, images))
    look = partial(jax.eval_shape, forward) if traced else forward
    logits = look(looked_at, images)
    num_classes = logits.shape[1]
    if not (traced or is_traced((logits, active))) and logits.is_fully_addressable:
        check_finite(np.asarray(logits)[np.asarray(active)], np.flatnonzero(active))
    for name, classes in (("labels", labels), ("targets", targets)):
        if classes is not None:
            arguments.as_classes(classes, batch, num_classes, name)
    if not isinstance(loss, str) and not randomized:
        check_objective(objective, problem)
    if isinstance(objective, LogitsObjective):
        check_term(objective, batch, num_classes)
    return frozen(inputs)


def check_threat_model(threat_model: Any, images: Any) -> None:
    """Refuse what is no threat model (TypeError), or is larger than the images (ValueError)."""
    if not isinstance(threat_model, ThreatModel):
        given = arguments.shown(threat_model)
        raise TypeError(f"threat_model={given}: expected Linf(epsilon), L2(epsilon) or L1(epsilon)")
    arguments.as_length(threat_model.epsilon, "epsilon", longest(threat_model, images.shape[1:]))


def check_inside(start: Images, problem: Problem) -> None:
    """Refuse a start outside the threat model: a success there would not count (ValueError)."""
    if is_traced((start, problem)):
        return
    ball = problem.threat_model
    with jax.ensure_compile_time_eval():
        distance = float(jnp.max(ball.norm(start - problem.images)))
        in_range = float(start.min()) >= 0 and float(start.max()) <= 1
    if not (in_range and distance <= ball.epsilon + arguments.ROUNDING):
        raise ValueError(
            f"start lies up to {distance:.9g} from the images, or outside [0, 1]: expected images "
            f"of the threat model, of epsilon={ball.epsilon}"
        )


class NotFiniteError(ValueError):
    """A model whose logits of natural images are NaN or infinite."""


def check_finite(logits: Logits | np.ndarray, examples: np.ndarray) -> None:
    """Refuse a model whose logits of natural images are NaN or infinite.

    ``examples`` are the numbers of the images, for the message.
    """
    bad = examples[~np.isfinite(logits).all(axis=-1)]
    if bad.size:
        raise NotFiniteError(
            f"the model's logits are NaN or infinite on {bad.size} of {len(examples)} natural "
            f"images (first: image {bad[0]}): no attack can judge such a model"
        )


def check_objective(objective: Objective, problem: Problem) -> None:
    """Refuse an objective that does not return one number per image, with a ValueError."""
    values = jax.eval_shape(_evaluated, objective, problem.images)
    shape, batch = getattr(values, "shape", type(values).__name__), len(problem.images)
    if shape != (batch,):
        raise ValueError(f"loss returned {shape} for {batch} images: expected one number per image")


def check_term(objective: LogitsObjective, batch: int, num_classes: int) -> None:
    """Refuse class numbers that the model does not have, or too few classes, with a ValueError.

    Once in the loop nothing can tell: there data choose the term (``in_one_program``).
    """
    for classes in objective.operands:
        arguments.as_classes(classes, batch, num_classes, "class numbers of the loss")
    if not objective.reference:
        logits = jax.ShapeDtypeStruct((batch, num_classes), jnp.float32)
        jax.eval_shape(objective.term, logits, *objective.operands)


@jax.jit
def _evaluated(objective: Objective, images: Images) -> Values:
    return objective(images)


@explains_old_calls
def is_adversarial(
    model: Model,
    candidates: AnyImages,
    images: AnyImages,
    labels: AnyLabels,
    threat_model: ThreatModel,
) -> Flags:
    """Judge candidates by a fresh forward pass, whatever an attack believed of them.

    Returns:
      Whether the candidate is finite, in [0, 1], in the ball around its natural image (tolerance
      1e-6), and misclassified with finite logits.
    """
    natural = jnp.asarray(arguments.as_images(images))
    found = jnp.asarray(arguments.as_floats(candidates, "candidates", natural.shape))
    check_threat_model(threat_model, natural)
    labels = arguments.as_classes(labels, len(natural))
    network = as_pytree(model)
    num_classes = jax.eval_shape(forward, network, found).shape[1]
    classes = jnp.asarray(arguments.as_classes(labels, len(natural), num_classes))
    return judge(network, found, natural, classes, threat_model)[0]
