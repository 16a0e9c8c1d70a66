"""Attacks on any JAX model, and evaluations made of them.

Attacks, called as ``attack(model, images, labels, threat_model, *, key, ...) -> AttackResult``:

- ``fgsm``: one step of length epsilon along the gradient's sign;
- ``pgd``: projected steps of one length; ``ascend`` is its loop alone, as training uses it;
- ``apgd``: Auto-PGD, which adapts its step size;
- ``fab``, ``fmn``: the closest misclassified image, and so the accuracy at every epsilon
  (``accuracy_over_epsilon``);
- ``square``: random search without gradients.

Threat models: ``Linf(epsilon)``, ``L2(epsilon)``, ``L1(epsilon)``, or ``threat_model("linf",
epsilon)``.

Whole evaluations: ``autoattack`` (the standard ensemble), ``individually`` (each attack of it on
all examples), ``adaptive`` (attacks on what a defence declares of itself), ``diagnose`` (whether
attacks fail because a gradient is missing). In place of the threat model they also take
``epsilon=`` and ``norm=``.

Adaptive attacks: ``Defence``, ``Surrogate``, ``SurrogateAttack``, ``AdaptiveBudget``.

Results: ``AttackResult``, ``AutoAttackResult``, ``AttackRecord``, ``Diagnosis``, ``Progress``;
``worst_case`` unites evaluations, ``is_adversarial`` judges images by a fresh forward pass.

Objectives, built in ``attacks.objectives``: ``cross_entropy(model, labels)``, ``margin``, ``dlr``,
``kl_divergence``, ``targeted_cross_entropy``, ``targeted_margin``, ``targeted_dlr``.

Parts for attacks of one's own: ``Attack`` (an entry of ``autoattack``'s list), ``example_keys``,
``gaussian_start``, ``print_progress``.

What the arguments mean everywhere:

- ``model``: a callable pytree (``jax.tree_util.Partial``, an NNX or Equinox module), or a plain
  function, from images to logits [batch, classes], or to an object with ``logits`` and, if the
  model has auxiliary heads, ``aux_logits`` [heads, batch, classes]. Other weights of a pytree do
  not compile again; a pytree's method serves as well. What a plain function closes over, and what
  an object that is no pytree holds, is read when the function is first compiled, and never again:
  give changed weights as a pytree, such as ``jax.tree_util.Partial(function, weights)``, or by a
  new function. The final logits decide whether an image is misclassified.
- ``images``: natural images, floating-point [batch, height, width, channels], pixels in [0, 1].
  Arrays, lists, and what NumPy reads as an array. All are converted to float32 on entry, half
  precision too, and results are float32; pixels outside of [0, 1] by at most 1e-6 are clipped.
- ``labels``: class numbers, integers [batch]. Any other prediction counts as success.
- ``threat_model``: which images the attacker may use; its epsilon, any real scalar, is on the
  [0, 1] pixel scale: at most 1 under Linf, else the norm of a white image.
- ``key``: ``jax.random.key(seed)``, or a seed or an old-style key in its place: the source of all
  randomness; None where nothing is random. Of another kind than threefry2x32 (``'rbg'``), whose
  vectorised draws depend on the batch, a threefry2x32 key is derived.
- ``indices``: data-set indices [batch], 0, 1, 2 ... by default. An example's randomness is derived
  from its index and ``key`` alone, so it depends neither on the batch nor on the order.
- ``active``: which examples to attack, boolean [batch], all by default. The others are returned
  unsuccessful, with their natural image.
- ``loss``: what is ascended: ``'ce'``, ``'dlr'``, ``'margin'``; with targets ``'targeted_ce'``,
  ``'targeted_dlr'``, ``'targeted_margin'``; or an objective, any callable pytree from images to
  one number per example.
- ``targets``: class numbers [batch] for the targeted losses.
- ``loop``: ``'host'`` dispatches steps from Python, ``'compiled'`` runs them in one program,
  ``'auto'`` chooses: compiled inside ``jit`` and on accelerators, host on CPU.

No gradient flows through an attack, in a differentiated loss too: adversarial images are data.

An argument that is not allowed raises a ValueError, or a TypeError, that names it; so does a model
whose logits of the natural images are not finite. Inside ``jit`` there are no values to look at:
shapes and dtypes alone are checked.
"""

import importlib
from typing import Any

from ancra_jax.attacks import objectives
from ancra_jax.attacks.adaptive import AdaptiveBudget, Defence, Surrogate, SurrogateAttack, adaptive
from ancra_jax.attacks.apgd import apgd
from ancra_jax.attacks.autoattack.api import autoattack, individually
from ancra_jax.attacks.autoattack.ensemble import Attack
from ancra_jax.attacks.autoattack.result import AttackRecord, AutoAttackResult, worst_case
from ancra_jax.attacks.diagnostics.api import Diagnosis, diagnose
from ancra_jax.attacks.fab import fab
from ancra_jax.attacks.fmn import fmn
from ancra_jax.attacks.job import Progress, print_progress
from ancra_jax.attacks.loop import ascend
from ancra_jax.attacks.model import example_keys
from ancra_jax.attacks.pgd import fgsm, gaussian_start, pgd
from ancra_jax.attacks.square import square
from ancra_jax.attacks.threat_models import L1, L2, Linf, ThreatModel, threat_model
from ancra_jax.attacks.validation import AttackResult, accuracy_over_epsilon, is_adversarial

__all__ = ["apgd", "ascend", "fab", "fgsm", "fmn", "pgd", "square"]
__all__ += ["L1", "L2", "Linf", "ThreatModel", "threat_model"]
__all__ += ["adaptive", "autoattack", "diagnose", "individually"]
__all__ += ["AdaptiveBudget", "Defence", "Surrogate", "SurrogateAttack"]
__all__ += ["AttackRecord", "AttackResult", "AutoAttackResult", "Diagnosis", "Progress"]
__all__ += ["accuracy_over_epsilon", "is_adversarial", "objectives", "worst_case"]
__all__ += ["Attack", "example_keys", "gaussian_start", "print_progress"]


def __getattr__(name: str) -> Any:
    """Say where a name of version 0.1 is now; its import says so too (``ancra_jax.errors``)."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: {error}") from None
