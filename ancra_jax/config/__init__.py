"""The configuration of a run: its settings, their defaults, and what they allow.

The dataclass of every group of settings is in ``ancra_jax.config.schema``.
"""

from ancra_jax.config.fields import options_of
from ancra_jax.config.notes import of_no_use, warnings_of
from ancra_jax.config.paths import (
    directory_path,
    listable_path,
    local_path,
    path_list,
    path_text,
)
from ancra_jax.config.schema import (
    WEIGHTS,
    Config,
    extra_examples,
    from_mapping,
    read,
    shown,
    to_mapping,
)

__all__ = [
    "WEIGHTS",
    "Config",
    "directory_path",
    "extra_examples",
    "from_mapping",
    "listable_path",
    "local_path",
    "of_no_use",
    "options_of",
    "path_list",
    "path_text",
    "read",
    "shown",
    "to_mapping",
    "warnings_of",
]
