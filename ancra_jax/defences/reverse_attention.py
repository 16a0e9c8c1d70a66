"""The attacks that see through reverse attention, A1 to A7.

In inference block b = 1, 2 computes auxiliary logits a_b from its pooled features g_b, takes the
class c_b = argmax a_b, and multiplies its map by that class's row of the final linear layer Omega;
the final logits are f = Omega (g_2 * Omega_{c_2}) + bias. Attacks on f alone are misled:

- no gradient passes the argmax that chooses a mask;
- under the mask c = c_2, f_c - bias_c = <Omega_c, Omega_c> is at least f_k - bias_k =
  <Omega_c, Omega_k>, with <u, v> = sum(u v g_2) and rows of one norm (Cauchy-Schwarz), so argmax f
  is almost always c_2, and the margin that decides is that of a_2;
- under a fixed mask y the gradient of f_y - f_k weights a channel by Omega_y (Omega_y - Omega_k)
  where a_2 needs Omega_y - Omega_k: the opposite sign where Omega_y < 0.

So these attacks ascend what decides. Success is judged by the network itself, masks and all. What
an attack forces, relaxes and ascends is data: one compiled program, in which the network occurs
once, serves all that follow gradients.

The masks of the classes i and j make the network a smooth one: its branch (i, j), out of
``classes ** 2``. Inference takes it exactly where i is the largest auxiliary logit of the first
block and j, under the first mask i, that of the second.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from ancra_jax.attacks import objectives
from ancra_jax.attacks.adaptive import Defence, Level, ObjectiveOf, SurrogateAttack
from ancra_jax.attacks.job import HostImages, Numbers, Placement
from ancra_jax.attacks.model import AuxLogits, Model, as_pytree, model_outputs
from ancra_jax.attacks.objectives import Logits, margin_term, value_and_input_gradient
from ancra_jax.ops.images import Images, Labels, Values
from ancra_jax.ops.pytree import pytree_dataclass

Scalar = Any
"""A NumPy scalar or a traced one, of one dtype in all attacks: else they would share no program."""

Rows = Float[Array, "classes features"]
Masks = Float[Array, "batch features"]
Classes = Int[Array, "2 batch"]
"""A class for each block and example."""
Rank = Int[Array, ""]

_AT_ONCE = 10  # first masks that are computed together

FREE, LABEL, TARGET = range(3)


def _targeted_dlr_term(logits: Logits, labels: Labels, targets: Labels) -> Values:
    dlr = logits.shape[-1] >= 4
    term = objectives.targeted_dlr_term if dlr else objectives.targeted_margin_term
    return term(logits, labels, targets)


# What is ascended on every head: a term of (logits, labels, targets).
_TERMS: dict[str, Callable[[Logits, Labels, Labels], Values]] = {
    "cross_entropy": lambda logits, labels, targets: objectives.cross_entropy_term(logits, labels),
    "margin": lambda logits, labels, targets: margin_term(logits, labels),
    "targeted_margin": objectives.targeted_margin_term,
    "targeted_dlr": _targeted_dlr_term,
    "class_margin": lambda logits, labels, targets: -margin_term(logits, targets),
}
LOSSES = (*_TERMS, "branch")


@pytree_dataclass()
class Ascent:
    """What one attack does to the network and ascends; all of it traced. See ``goal``."""

    loss: Scalar  # position in ``LOSSES``
    heads: Float[np.ndarray, "3"] | Float[Array, "3"]  # weight of the loss on a_1, a_2 and f
    branch: Int[np.ndarray, "2"] | Int[Array, "2"]  # per block: FREE mask, LABEL's or TARGET's row
    temperature: Scalar = np.float32(1)  # of the softmax that mixes the rows of a free mask
    hard: Scalar = np.float32(1)  # 1 takes the predicted class's row, as the network does, 0 mixes
    gradient: Scalar = np.float32(0)  # 1 lets the gradient pass through the mixture, 0 through none
    off: Scalar = np.float32(0)  # 1 replaces the masks by ones
    softness: Scalar = np.float32(0)  # of the soft minimum in the loss 'branch'; 0 is the minimum


def _mask(
    what: Ascent, forced: Classes, aux_logits: Logits, class_rows: Rows, labels: Any, block: int
) -> Masks:
    """Force, soften or switch off a block's mask: an attention rule once the first two are bound.

    ``forced`` has the class whose row is the mask; -1 leaves the mask to the ascent.
    """
    classes = len(class_rows)
    chosen = jax.nn.one_hot(jnp.argmax(aux_logits, axis=-1), classes)
    soft = jax.nn.softmax(aux_logits / what.temperature)
    still = jax.lax.stop_gradient(soft)
    free = what.hard * chosen + (1 - what.hard) * still + what.gradient * (soft - still)
    rows = forced[block][:, None]
    weights = jnp.where(rows >= 0, jax.nn.one_hot(rows[:, 0], classes), free)
    return (1 - what.off) * (weights @ class_rows) + what.off


@pytree_dataclass()
class AttentionObjective:
    """An ``Ascent`` on a batch."""

    predict: Model  # a network with reverse attention on two blocks; called with ``attention=``
    ascent: Ascent
    labels: Labels
    targets: Labels  # the labels where the attack has no target

    def __call__(self, images: Images) -> Values:
        """Evaluate the objective."""
        free = jnp.full_like(self.labels, -1)
        forced = jnp.stack([free, self.labels, self.targets])[self.ascent.branch]
        rule = Partial(_mask, self.ascent, forced)
        logits, aux_logits = model_outputs(lambda x: self.predict(x, attention=rule), images)
        heads = jnp.concatenate([aux_logits, logits[None]])

        def weighted(term: Callable[..., Values]) -> Values:
            over_heads = jax.vmap(lambda head: term(head, self.labels, self.targets))
            return jnp.asarray(self.ascent.heads) @ over_heads(heads)

        def smallest() -> Values:
            branch = jnp.where(forced >= 0, forced, self.labels)
            terms = branch_terms(aux_logits, logits, branch, self.labels)
            # The soft minimum -s log sum exp(-t / s) tends to the minimum as s tends to 0.
            s = jnp.maximum(self.ascent.softness, 1e-6)
            return -s * jax.nn.logsumexp(-terms / s, axis=0)

        terms = [partial(weighted, term) for term in _TERMS.values()]
        return jax.lax.switch(self.ascent.loss, [*terms, smallest])


def goal(
    predict: Model,
    loss: str,
    heads: Sequence[float | int] = (0, 0, 1),
    *,
    branch: tuple[int, int] = (FREE, FREE),
    **options: float | bool,
) -> Callable[[Labels, Labels | None], AttentionObjective]:
    """Return the ``objective`` of a ``SurrogateAttack``: an ``Ascent`` on any batch.

    By default on the final logits under the network's own masks; ``options`` are the other
    attributes of the ``Ascent``. Its leaves have the dtypes that all attacks share.
    """
    scalars = {name: np.float32(value) for name, value in options.items()}
    place = np.int32(LOSSES.index(loss))
    what = Ascent(place, np.asarray(heads, np.float32), np.asarray(branch, np.int32), **scalars)

    def objective_of(labels: Labels, targets: Labels | None) -> AttentionObjective:
        return AttentionObjective(predict, what, labels, labels if targets is None else targets)

    return objective_of


def branch_terms(
    aux_logits: AuxLogits, logits: Logits, branch: Classes, labels: Labels
) -> Float[Array, "3 batch"]:
    """Return what is positive where a branch is taken and is wrong; see ``branch_maximum``."""
    taken = -jax.vmap(margin_term)(aux_logits, branch)
    return jnp.concatenate([taken, margin_term(logits, labels)[None]])


def branch_maximum(
    predict: Model, images: Images, labels: Labels, ranks: int | None = None
) -> Values:
    """Return how far the best of all branches is from making the network err: the certificate.

    The maximum over all branches (i, j) of the smallest of ``a_1[i] - max_{q != i} a_1[q]``,
    ``a_2[j] - max_{q != j} a_2[q]`` and ``max_{q != y} f_q - f_y``, the latter two under the masks
    i and (i, j). It is > 0 exactly where the network errs, unless logits are equal: the network
    then follows ``argmax``, which takes the first, and the maximum is 0 if it errs, at most 0 if
    not.

    Args:
      predict: a network with reverse attention on two blocks, variables bound, called with
        ``attention=``.
      images: pixels in [0, 1].
      labels: class numbers.
      ranks: only branches whose classes rank among the first so many; all if None. The sign is the
        same for any number, the time and memory grow with its square.
    """
    if ranks is None:
        ranks = jax.eval_shape(predict, images).logits.shape[-1]
    return _branch_maximum(as_pytree(predict), jnp.asarray(images), jnp.asarray(labels), ranks)


@partial(jax.jit, static_argnames="ranks")
def _branch_maximum(predict: Model, images: Images, labels: Labels, ranks: int) -> Values:
    def value(first: Rank, second: Rank) -> Values:
        rule = Partial(_ranked_row, (first, second))
        logits, aux_logits = model_outputs(lambda x: predict(x, attention=rule), images)
        branch = jnp.stack([_ranked(first, aux_logits[0]), _ranked(second, aux_logits[1])])
        return jnp.min(branch_terms(aux_logits, logits, branch, labels), axis=0)

    # Under vmap all that comes before a mask is computed once.
    numbers = jnp.arange(ranks)
    over_second = jax.vmap(value, in_axes=(None, 0))
    values = jax.lax.map(lambda first: over_second(first, numbers), numbers, batch_size=_AT_ONCE)
    return jnp.max(values, axis=(0, 1))


def _ranked_row(
    ranks: tuple[Rank, Rank], aux_logits: Logits, class_rows: Rows, labels: Any, block: int
) -> Masks:
    return class_rows[_ranked(ranks[block], aux_logits)]


def _ranked(rank: Rank, aux_logits: Logits) -> Labels:
    """Return the classes of a rank; of equal logits the smaller class comes first."""
    return jnp.argsort(-aux_logits, axis=-1, stable=True)[:, rank]


_A_1, _A_2 = (1, 0, 0), (0, 1, 0)  # weights of the heads in an objective
_BRANCHES = {"kk": (TARGET, TARGET), "yk": (LABEL, TARGET), "ky": (TARGET, LABEL)}
_best_of_nine = partial(branch_maximum, ranks=3)  # 9 branches in a query of Square


def reverse_attention(network: Any, predict: Model) -> Defence | None:
    """Declare the attacks on a network with reverse attention; return None for a plain one.

    Args:
      network: a module with an attribute ``reverse_attention``.
      predict: its inference with variables bound, ``predict(images, attention=rule)``.
    """
    if not getattr(network, "reverse_attention", False):
        return None
    if getattr(network, "attention", "") == "soft":
        # Its own gradient passes the masks: it decides, ranks targets, and misleads no statistic.
        own = {"hard": False, "gradient": True, "temperature": network.temperature}
        return Defence("soft_attention", list(_attacks(predict, own)))
    return Defence(
        "reverse_attention",
        list(_attacks(predict)),
        decision=goal(predict, "margin", (1, 1, 0)),
        rank_by=Partial(_last_aux_logits, predict),
        statistics=partial(mask_statistics, predict),
    )


def _attacks(predict: Model, own: Mapping[str, Any] | None = None) -> Iterator[SurrogateAttack]:
    """Yield the attacks of every group; what most of them do is data, see ``Ascent``.

    ``own`` has the attributes of an ``Ascent`` that make the network's own masks, where these are
    not the predicted classes' rows.
    """
    along: Callable[..., ObjectiveOf] = lambda *a, **kw: goal(predict, *a, **{**(own or {}), **kw})  # noqa: E731

    def attack(
        name: str, level: Level, objective: ObjectiveOf, targeted: bool = False
    ) -> SurrogateAttack:
        return SurrogateAttack(name, objective, targeted, group=name[:2].upper(), level=level)

    # A1: the margins that choose the masks. No mask comes before those of a_1.
    for number, head in ((1, _A_1), (2, _A_2)):
        name = f"a1-gate{number}"
        yield attack(f"{name}-cross_entropy", "quick", along("cross_entropy", head))
        yield attack(f"{name}-targeted_margin", "quick", along("targeted_margin", head), True)
        yield attack(f"{name}-targeted_dlr", "standard", along("targeted_dlr", head), True)
    # A2: forced masks and the smallest of the three margins that make the branch real and wrong.
    yield attack("a2-branch-yy-min", "standard", along("branch", branch=(LABEL, LABEL)))
    for name, branch in _BRANCHES.items():
        level: Level = "quick" if name == "kk" else "standard"
        soft = along("branch", branch=branch, softness=1.0)
        yield attack(f"a2-branch-{name}-min", level, along("branch", branch=branch), True)
        yield attack(f"a2-branch-{name}-soft-min", "thorough", soft, True)
    # A3: a gradient through the softmax of a mask's logits, its value kept hard or soft as well.
    for temperature in (1.0, 0.3, 0.1):
        for name, loss, hard in (
            ("through", "cross_entropy", True),
            ("through", "margin", True),
            ("soft", "cross_entropy", False),
        ):
            level = "quick" if temperature == 0.3 and loss == "cross_entropy" else "standard"
            what = along(loss, temperature=temperature, hard=hard, gradient=True)
            yield attack(f"a3-{name}-{temperature:g}-{loss}", level, what)
    # A4: the final loss and, lambda times, the mean of the auxiliary ones.
    for weight in (1, 2, 10):
        for loss in ("cross_entropy", "margin"):
            level = "quick" if weight == 2 and loss == "cross_entropy" else "standard"
            joint = along(loss, (weight / 2, weight / 2, 1))
            yield attack(f"a4-joint-{weight}-{loss}", level, joint)
    # A5: all masks the target's, and the target's margin over all others.
    for weight in (1, 10):
        level = "quick" if weight == 1 else "thorough"
        target = along("class_margin", (weight, weight, 1), branch=(TARGET, TARGET))
        yield attack(f"a5-masks-k-{weight}", level, target, True)
    # A6: Square, which uses values only.
    black_box = partial(SurrogateAttack, search="square", group="A6")
    yield black_box("a6-square-gate2", along("margin", _A_2))
    yield black_box(
        "a6-square-branches",
        lambda labels, _: Partial(_best_of_nine, predict, labels=labels),
        level="standard",
    )
    # A7: from the same network without masks, classified by a_2; and on from there.
    plain = along("cross_entropy", _A_2, off=True)
    masked = along("margin", (1, 1, 0))
    yield SurrogateAttack("a7-trunk", plain, group="A7")
    yield SurrogateAttack("a7-trunk-warm", masked, warm_start=plain, group="A7")


def _last_aux_logits(predict: Model, images: Images) -> Logits:
    return model_outputs(predict, images)[1][-1]


def mask_statistics(
    predict: Model,
    images: HostImages,
    adversarial: HostImages,
    labels: Numbers,
    broken: Bool[np.ndarray, "examples"],
    placement: Placement,
) -> dict[str, float | None]:
    """Measure how often the final prediction is the last mask's class, and how gradients agree.

    Args:
      predict: a network with reverse attention on two blocks.
      images: natural images.
      labels: their class numbers.
      adversarial: adversarial images where ``broken``.
      broken: examples that some attack broke.
      placement: of the batches.

    Returns:
      ``final_is_last_mask`` (argmax f = c_2) and ``masks_agree`` (c_1 = c_2) on the natural images,
      both also with ``_adversarial``; ``last_mask_changes`` (c_2 differs from the natural image's)
      on the adversarial ones; ``gradient_cosine``, the mean of the cosine between the gradients of
      f_y - f_k and a_2[y] - a_2[k] on the natural images, k the largest wrong logit of a_2. None
      where there are no such examples.
    """
    predict = placement.replicate(as_pytree(predict))

    def over(function: Callable[..., Array], chosen: Numbers, *arrays: np.ndarray) -> np.ndarray:
        parts = [
            placement.fetch(function(predict, *placement.place([array[rows] for array in arrays])))
            for rows, _ in placement.batches(chosen)
        ]
        return np.concatenate(parts)[: len(chosen)] if parts else np.zeros((0, 3), np.int32)

    everything = np.arange(len(images))
    attacked = np.flatnonzero(broken)
    first, last, final = over(_classes, everything, images).T
    first_then, last_then, final_then = over(_classes, attacked, adversarial).T
    return {
        "final_is_last_mask": _mean(final == last),
        "masks_agree": _mean(first == last),
        "final_is_last_mask_adversarial": _mean(final_then == last_then),
        "masks_agree_adversarial": _mean(first_then == last_then),
        "last_mask_changes": _mean(last_then != last[attacked]),
        "gradient_cosine": _mean(over(_cosine, everything, images, labels)),
    }


@jax.jit
def _classes(predict: Model, images: Images) -> Int[Array, "batch 3"]:
    """Return c_1, c_2 and argmax f."""
    logits, aux_logits = model_outputs(predict, images)
    return jnp.argmax(jnp.concatenate([aux_logits, logits[None]]), axis=-1).T


def _cosine(predict: Model, images: Images, labels: Labels) -> Values:
    along = partial(goal, predict, "targeted_margin")
    final = _gradient(along()(labels, None), images)
    last_mask = _gradient(along(_A_2)(labels, None), images)
    dot = jnp.sum(final * last_mask, axis=(1, 2, 3))
    norms = jnp.sqrt(jnp.sum(final**2, (1, 2, 3)) * jnp.sum(last_mask**2, (1, 2, 3)))
    return dot / (norms + 1e-30)


@jax.jit
def _gradient(objective: AttentionObjective, images: Images) -> Images:
    """Return the gradient of an objective that aims at the largest wrong logit of a_2."""
    a_2 = model_outputs(objective.predict, images)[1][-1]
    is_label = jax.nn.one_hot(objective.labels, a_2.shape[-1], dtype=bool)
    runner_up = jnp.argmax(jnp.where(is_label, -jnp.inf, a_2), axis=-1)
    return value_and_input_gradient(replace(objective, targets=runner_up), images)[1]


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
