"""The exceptions that a mistake of the user's ends in, and what an import by an old name says."""

import contextlib
import re
from collections.abc import Iterator, Mapping


class UsageError(ValueError):
    """Something that the user typed, or a file they pointed to, cannot be used.

    The message is one line that names the field, its value and what is allowed. The command-line
    programs print it without a traceback and exit with a status other than 0.
    """

    def __init__(self, *messages: str):
        """Make an error of one message, or of several that `Problems` collected."""
        self.messages = messages
        # A message may repeat what another library says in several lines.
        super().__init__(printable("; ".join(messages)))


def printable(text: str) -> str:
    """Return a text as one line that does nothing to a terminal and can be written as UTF-8.

    Colours are left out; other characters that are not seen, as in names of files, are escaped.
    """
    words = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


class NonFiniteLossError(UsageError):
    """The loss or a gradient of the training became infinite or NaN."""


class Problems:
    """Collects errors, so that all of them are reported together."""

    def __init__(self) -> None:
        """Start without any."""
        self._messages: list[str] = []
        self._fields: set[str] = set()

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, message: str) -> None:
        """Add an error, unless there is one about the same field already.

        A wrong setting was replaced by its default, so later checks of it mean nothing.
        """
        names = re.findall(r"--[\w.]+|\bconfig\.[\w.]+", message)
        if not self._fields.intersection(names):
            self._messages.append(message)
            self._fields.update(names[:1])

    @contextlib.contextmanager
    def collect(self) -> Iterator[None]:
        """Take the `UsageError` that the block may raise."""
        try:
            yield
        except UsageError as error:
            for message in error.messages:
                self.add(message)

    def raise_all(self) -> None:
        """Raise one `UsageError` with all of them; do nothing if there are none."""
        if self._messages:
            raise UsageError(*self._messages)


@contextlib.contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Let the errors of a block, or of a function that it decorates, call fields otherwise.

    Args:
      names: by the regular expressions of what they take the place of, one after another.
    """
    try:
        yield
    except UsageError as error:
        messages = error.messages
        for pattern, name in names.items():
            messages = tuple(re.sub(pattern, name, message) for message in messages)
        if messages == error.messages:
            raise
        raise UsageError(*messages) from error


# Names of version 0.1, after the module or object that takes their place; all below ancra_jax.
_HOMES = {
    "attacks.adaptive": "attacks.surrogates attacks.surrogate_searches",
    "attacks.apgd": "attacks.apgd_loop",
    "attacks.autoattack": "attacks.autoattack_attacks attacks.autoattack_result",
    "attacks.autoattack.api": "attacks.autoattack_run",
    "attacks.autoattack.checks": "attacks.autoattack_checks",
    "attacks.autoattack.result": "attacks.autoattack_state",
    "attacks.diagnostics.api": "attacks.diagnostics_rows attacks.diagnostics_state",
    "attacks.diagnostics.measurements": (
        "attacks.diagnostics_measurements attacks.diagnostics_landscape"
    ),
    "attacks.fab": "attacks.projections",
    "attacks.job": "attacks.batches attacks.diagnostics_batches attacks.progress",
    "attacks.model": "attacks.success",
    "attacks.objectives": "attacks.gradients",
    "attacks.square": "attacks.square_proposals",
    "attacks.validation": "attacks.results",
    "cli": "progress compilation_cache cpu_devices",
    "config": "config_fields",
    "data.augmentation": "data.augment",
    "data.pipeline": "data.plan",
    "data.sources": (
        "data.archives data.cifar data.digits data.folder data.tiny_imagenet data.tfds_directory"
    ),
    "data.sources.cifar": "data.jpeg_file",
    "data.sources.prepare_cifar": "data.cifar_builders",
    "data.splits": "data.extra",
    "defences.reverse_attention": "defences.attention_objective defences.branches defences.gate",
    "defences.register": "attacks.register_defence",
    "evaluate": "paper_suite autoattack_suite adaptive_suite diagnostics_suite evaluation_table",
    "losses": (
        "losses.basic losses.distillation losses.heads losses.mart losses.negative_contrast "
        "losses.second_order losses.self_adaptive"
    ),
    "methods.core": "methods.attack methods.keys methods.pairs",
    "methods.negatives": "negatives",
    "methods.registry": "methods.wrappers",
    "methods.standard": "methods.base methods.named",
    "models.network": "models.registry",
    "models.resnet": "models.preact_resnet models.wide_resnet",
    "ops.convolution": "attacks.convolution",
    "ops": "attacks.fast_convolutions attacks.pytree attacks.rows",
    "paper": "reproduce reproduce_claims reproduce_plan reproduce_runner reproduce_tables recipes",
    "report": "report_html report_figures report_diagnosis_figures",
    "results": "report_data report_names report_rows report_rungs report_diagnosis",
    "results.tables": "report_table report_ladder",
    "run": "averaging checkpoint multihost sharding weights workdir",
    "run.build": "components",
    "train": "interruption metrics optim selection teacher train_state training_log",
}
MOVED = {
    f"ancra_jax.{old}": f"ancra_jax.{new}" for new, olds in _HOMES.items() for old in olds.split()
}
_OBJECTIVES = (
    "combine_heads cross_entropy dlr kl_divergence margin "
    "targeted_cross_entropy targeted_dlr targeted_margin"
)
for _name in _OBJECTIVES.split():
    MOVED[f"ancra_jax.attacks.{_name}"] = f"ancra_jax.attacks.objectives.{_name}"
for _name in ("", "_claims", "_comparison", "_groups", "_pages", "_record"):
    MOVED[f"ancra_jax.publish{_name}"] = "tools.publish, in the repository"


class MovedNames:
    """Explains imports by names of version 0.1; asked last, for what no other finder has found."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise a ModuleNotFoundError that says the new name, if there is one."""
        if name in MOVED:
            # Without the attribute `name`, which would make `from ancra_jax import` hide the text.
            raise ModuleNotFoundError(f"{name} is now {MOVED[name]}")
        return None
