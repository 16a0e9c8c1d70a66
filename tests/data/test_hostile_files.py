"""Files of strangers: each is refused in one line, and without much memory."""


import pytest

from ancra_jax.errors import UsageError
from tests.support import hostile


@pytest.mark.parametrize("name", hostile.CASES)
def test_every_hostile_file_is_refused_in_one_line(tmp_path, name):
    case, said = hostile.CASES[name]
    with pytest.raises(UsageError, match=said) as error:
        case(tmp_path)
    assert str(tmp_path) in str(error.value) or "json" in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) < 1000


def test_there_are_many_of_them():
    assert len(hostile.CASES) >= 100
