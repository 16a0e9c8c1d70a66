"""What an import by a name of version 0.1 says."""

import importlib
import pkgutil

import pytest

from ancra_jax import errors


@pytest.mark.parametrize("old", errors.MOVED)
def test_every_old_name_is_told_a_new_one_that_is_there(old):
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(old)
    new = errors.MOVED[old]
    assert new in str(error.value)
    assert pkgutil.resolve_name(new.removesuffix(", in the repository"))
