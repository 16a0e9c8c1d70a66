"""The exceptions that a mistake of the user's ends in, and what an import by an old name says."""

import sys
from importlib.abc import MetaPathFinder


class UsageError(ValueError):
    """Something that the user typed, or a file they pointed to, cannot be used.

    The message is one line that names the field, its value and what is allowed. The command-line
    programs print it without a traceback and exit with a status other than 0.
    """

    def __init__(self, message: str):
        # What another library says, and the message repeats, may be of several lines.
        super().__init__(" ".join(message.split()))


class NonFiniteLossError(UsageError):
    """The loss or a gradient of the training became infinite or NaN."""


# Modules of version 0.1, after the module that now has what they held; all below ancra_jax.
_HOMES = {
    "attacks.adaptive.surrogates": "attacks.surrogates",
    "attacks.apgd": "attacks.apgd_loop",
    "attacks.autoattack": "attacks.autoattack_attacks attacks.autoattack_result",
    "attacks.autoattack.api": "attacks.autoattack_run",
    "attacks.autoattack.state": "attacks.autoattack_state",
    "attacks.diagnostics": "attacks.diagnostics_rows attacks.diagnostics_measurements",
    "attacks.fab": "attacks.projections",
    "attacks.job": "attacks.batches attacks.progress",
    "attacks.model": "attacks.success",
    "attacks.objectives": "attacks.gradients",
    "attacks.square": "attacks.square_proposals",
    "attacks.validation": "attacks.results",
    "cli": "progress interruption compilation_cache cpu_devices",
    "config": "config_fields",
    "data.pipeline": "data.augment data.plan",
    "data.sources": "data.cifar data.digits data.folder data.tiny_imagenet data.tfds_directory",
    "evaluate": "paper_suite autoattack_suite adaptive_suite diagnostics_suite",
    "losses": "losses.basic losses.mart losses.second_order losses.self_adaptive",
    "methods.core": "methods.keys methods.pairs",
    "methods.negatives": "negatives",
    "methods.registry": "methods.wrappers",
    "methods.standard": "methods.base methods.named",
    "models.resnet": "models.preact_resnet models.wide_resnet",
    "ops": "attacks.convolution attacks.fast_convolutions attacks.pytree attacks.rows",
    "paper": "reproduce recipes",
    "report": "report_html report_figures",
    "results": "report_data report_names report_rows report_rungs report_diagnosis",
    "run": "averaging checkpoint multihost sharding weights workdir",
    "run.build": "components",
    "tables": "report_table report_ladder evaluation_table",
    "train": "metrics optim selection teacher train_state training_log",
}
_MOVED = {
    f"ancra_jax.{old}": f"ancra_jax.{new}" for new, olds in _HOMES.items() for old in olds.split()
}
_OBJECTIVES = (
    "combine_heads cross_entropy dlr kl_divergence margin "
    "targeted_cross_entropy targeted_dlr targeted_margin"
)
for _name in _OBJECTIVES.split():
    _MOVED[f"ancra_jax.attacks.{_name}"] = f"ancra_jax.attacks.objectives.{_name}"
_MOVED["ancra_jax.attacks.register_defence"] = "ancra_jax.defences.register"
_MOVED["ancra_jax.publish"] = "tools.publish, in the repository"


class _Moved(MetaPathFinder):
    """Is asked last, for modules that no other finder has found."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in _MOVED:
            # Without the attribute `name`, which would make `from ancra_jax import` hide the text.
            raise ModuleNotFoundError(f"{name} is now {_MOVED[name]}")
        return None


def explain_moved_modules() -> None:
    """Make an import by the name of version 0.1 say the new one."""
    sys.meta_path.append(_Moved())
