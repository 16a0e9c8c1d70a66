"""Files of ``torch.save``, read without PyTorch and without running anything that is in them.

A pickle is a program that may call any function by its name. Here every name stands for a class of
its own that does nothing but note what it was called with. Unpickling a file gives such notes;
those that describe tensors become NumPy arrays when they are asked for.
"""

import io
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ancra_jax.errors import UsageError
from ancra_jax.ops.archives import open_zip, read_member, unpacked_limit

_LEGACY = 0x1950A86A20F9469CFC6C  # what files of PyTorch before 1.6 begin with, pickled
_FEW = 64  # axes of a tensor, arguments of a call, parts of a key: more make reading endless
_ENTRIES = 1 << 16  # that dicts are made of at once, as Python 2 wrote them
_DTYPES: dict[str, Any] = {
    "Double": "<f8", "Float": "<f4", "Half": "<f2", "BFloat16": jnp.bfloat16,
    "ComplexDouble": "<c16", "ComplexFloat": "<c8",
    "Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?",
}  # fmt: skip
# Names that checkpoints have beside weights: of settings, optimisers, NumPy's numbers. All others,
# above all of functions, make a file suspicious.
_HARMLESS = re.compile(
    r"torch\.(_utils\._rebuild_\w+|_tensor\.\w+|storage\.\w+|\w+Storage|\w*Tensor|Size|device|dtype"
    r"|serialization\._get_layout|per_\w+|nn\.parameter\.(Buffer|Parameter)|optim\.\w+\.\w+"
    r"|b?float\d+\w*|u?int\d+)"
    r"|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|ndarray|dtype|dtypes\.\w+"
    r"|bool_?|u?int\d+|float\d+|random\._pickle\.\w+)"
    r"|(builtins|__builtin__)\.(bool|bytearray|complex|dict|frozenset|list|object|set|slice|tuple)"
    r"|collections\.(OrderedDict|defaultdict|Counter)|copy_?reg\._reconstructor|_codecs\.encode"
    r"|argparse\.Namespace|types\.SimpleNamespace|easydict\.EasyDict|pathlib\.\w*Path"
    r"|(ml_collections|omegaconf|yacs)\..*|datetime\.\w+"
)


class Note:
    """What a name in a pickle was called with; nothing was done with it."""

    name = ""
    args: tuple[Any, ...]

    def __new__(cls, *args: Any, **others: Any) -> "Note":
        """Note the arguments."""
        note = object.__new__(cls)
        note.args = args
        return note

    def __init__(self, *args: Any, **others: Any) -> None:
        pass

    def _ignored(self, *args: Any) -> None:
        """Take what a pickle tells an object after it was made."""

    append = extend = add = __setitem__ = __setstate__ = _ignored


class Storage(NamedTuple):
    """The numbers of one or several tensors, still in the file."""

    kind: str  # ``'torch.FloatStorage'``
    key: str
    view: int  # position of the first number


class Pickled(NamedTuple):
    """What a file of ``torch.save`` holds: plain Python data, and notes in the place of others."""

    content: Any
    tensor: Callable[[Any, str], np.ndarray]  # the array that a note describes


def read(path: Path, field: str) -> Pickled:
    """Read a file of ``torch.save``; errors call it ``field``.

    Raises:
      UsageError: it is damaged or of another kind, or names what is no part of a checkpoint of
        weights and could run code.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return _read_zip(path, field)
            file.seek(0)
            return _read_legacy(path, file, field)
    except UsageError:
        raise
    except Exception as error:  # pickle raises whatever a damaged file makes it run into
        raise UsageError(
            f"{field}: is damaged, or no file of torch.save ({type(error).__name__}: "
            f"{str(error)[:200]})"
        ) from error


def _read_zip(path: Path, field: str) -> Pickled:
    with open_zip(path, field) as archive:
        names = archive.namelist()
        main = next((name for name in names if name.endswith("data.pkl")), None)
        if main is None:
            raise ValueError("it is a zip file without data.pkl")
        root = main.removesuffix("data.pkl")
        if f"{root}constants.pkl" in names:
            raise UsageError(f"{field}: is a TorchScript program; {_WHAT_TO_DO}")
        if f"{root}byteorder" in names and read_member(archive, f"{root}byteorder") == b"big":
            raise ValueError("its numbers are big-endian")
        content = _unpickle(io.BytesIO(read_member(archive, main)), field)

    def numbers(key: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return read_member(archive, f"{root}data/{key}", unpacked_limit(path))

    return Pickled(content, _Tensors(numbers, path, field))


def _read_legacy(path: Path, file: io.BufferedIOBase, field: str) -> Pickled:
    """Read the format before PyTorch 1.6: five pickles, then the numbers of all storages."""
    if _unpickle(file, field) != _LEGACY or _unpickle(file, field) != 1001:
        raise ValueError("it does not begin as one")
    _unpickle(file, field)  # facts of the machine
    kinds: dict[str, str] = {}
    content = _unpickle(file, field, kinds)
    places = {}
    for key in _unpickle(file, field):
        if not isinstance(key, str):
            raise ValueError("its numbers have no name")
        count = int.from_bytes(file.read(8), "little")
        size = count * _dtype(kinds[key]).itemsize
        places[key] = file.tell(), size
        file.seek(size, io.SEEK_CUR)
    if file.tell() > path.stat().st_size:
        raise ValueError("it ends early")

    def numbers(key: str) -> bytes:
        start, size = places[key]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    return Pickled(content, _Tensors(numbers, path, field))


class _Tensors:
    """Makes arrays of what a pickle notes of tensors, as many bytes as the file may unpack to."""

    def __init__(self, numbers: Callable[[str], bytes], path: Path, field: str):
        self.numbers, self.field = numbers, field
        self.left = unpacked_limit(path)

    def __call__(self, value: Any, name: str) -> np.ndarray:
        """Return the array, float32 if it holds floats; errors call it ``name``."""
        while isinstance(value, Note) and "_rebuild_parameter" in value.name:
            if not value.args:
                raise UsageError(f"{self.field}: {name!r} is damaged (a parameter of nothing)")
            value = value.args[0]
        kind = value.name if isinstance(value, Note) else type(value).__name__
        if not re.fullmatch(r"torch\._utils\._rebuild_tensor(_v2)?", kind):
            raise UsageError(
                f"{self.field}: {name!r} is a {kind}; dense tensors of floats are allowed"
            )
        try:
            array = self._dense(*value.args[:4])
        except UsageError as error:
            raise UsageError(f"{self.field}: {name!r} {error}") from error
        except Exception as error:  # whatever wrong arguments and missing numbers make it run into
            raise UsageError(
                f"{self.field}: {name!r} is damaged ({type(error).__name__}: {str(error)[:200]})"
            ) from error
        return array.astype("f4") if jnp.issubdtype(array.dtype, jnp.floating) else array.copy()

    def _dense(self, storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
        dtype = _dtype(storage.kind)
        if dtype.kind == "c":
            raise UsageError("holds complex numbers; dense tensors of floats are allowed")
        whole = [offset, *shape, *strides]
        # Without the values: lists in one another, each there twice, have endless texts.
        is_whole = all(type(n) is int and n.bit_length() < 64 for n in whole)
        if not is_whole or max(len(shape), len(strides)) > _FEW:
            raise UsageError("has a shape or strides that are no short lists of whole numbers")
        if min(whole) < 0 or len(shape) != len(strides):
            raise UsageError(f"has the shape {shape} and the strides {strides}")
        self.left -= math.prod(shape) * max(4, dtype.itemsize)
        if self.left < 0:
            raise UsageError("is larger than its file")
        numbers = np.frombuffer(self.numbers(storage.key), dtype)[storage.view + offset :]
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if math.prod(shape) and last >= len(numbers):
            raise UsageError(f"of shape {shape} has {len(numbers)} numbers only")
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        steps = [step * dtype.itemsize for step in strides]
        return np.lib.stride_tricks.as_strided(numbers, shape, steps, writeable=False)


def _checked(load: Callable[[Any], None], check: Callable[[Any], Any]) -> Callable[[Any], None]:
    """Return a step of the unpickler that checks what it is about to take from the stack."""

    def checked(unpickler: Any) -> None:
        check(unpickler.stack)
        load(unpickler)

    return checked


def _check_keys(keys: Iterable[Any]) -> None:
    """Refuse keys of a dict, or members of a set, that may take endless time to be hashed."""
    for key in keys:
        parts = key if type(key) is tuple and len(key) <= _FEW else (key,)
        for part in parts:
            is_short = isinstance(part, int) and part.bit_length() < 61
            if not (is_short or isinstance(part, str | bytes | float | Note | None)):
                raise ValueError("a dict or set in it has keys that are no words or numbers")


def _check_arguments(arguments: Any) -> None:
    """Refuse many arguments: each call would copy them, and a few bytes are one more call."""
    if len(arguments) > _FEW:
        raise ValueError(f"something in it is called with {len(arguments):,} arguments")


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc,unused-ignore]
    """Unpickles names as notes, and numbers as places in the file.

    It is Python's own in Python. The one in C makes room for whatever place a file names in its
    memo, gigabytes for a few bytes, and cannot be told which keys to refuse.
    """

    dispatch = pickle._Unpickler.dispatch.copy()  # type: ignore[attr-defined,unused-ignore]
    for _code, _check in {
        pickle.SETITEM: lambda stack: _check_keys(stack[-2:-1]),
        pickle.SETITEMS: lambda stack: _check_keys(stack[::2]),
        pickle.DICT: lambda stack: _check_keys(stack[::2]),
        pickle.ADDITEMS: _check_keys,
        pickle.FROZENSET: _check_keys,
        pickle.REDUCE: lambda stack: _check_arguments(stack[-1]),
        pickle.NEWOBJ: lambda stack: _check_arguments(stack[-1]),
        pickle.NEWOBJ_EX: lambda stack: [*map(_check_arguments, stack[-2:])],
    }.items():
        dispatch[_code[0]] = _checked(dispatch[_code[0]], _check)
    del dispatch[pickle.BYTEARRAY8[0]]  # makes room for as many bytes as it claims

    def __init__(self, file: io.BufferedIOBase, kinds: dict[str, str]):
        super().__init__(file)
        left = _ENTRIES

        def fill(made: dict[Any, Any], entries: Any = ()) -> None:
            nonlocal left
            left -= len(entries)
            if left < 0:
                raise ValueError("its dicts are made of too many entries at once")
            _check_keys(key for key, _ in entries)
            dict.update(made, entries)

        # Made anew for every file, so that none can change what the next one meets.
        methods = {"__init__": fill, "__setstate__": Note._ignored}
        self.made: dict[str, type] = {"collections.OrderedDict": type("dict", (dict,), methods)}
        self.kinds = kinds

    def find_class(self, module: str, name: str) -> type:
        """Return a class that stands for the name."""
        full = f"{module}.{name}"
        if full not in self.made:
            self.made[full] = type("Note", (Note,), {"name": full})
        return self.made[full]

    def persistent_load(self, place: Any) -> Any:
        """Return where in the file a tensor's numbers are."""
        if place[0] != "storage":  # the code of a whole network, before PyTorch 1.6
            return place[1]
        _, kind, key, _, _, *more = place
        if not isinstance(key, str | int):
            raise ValueError("its numbers have no name")
        self.kinds[str(key)] = kind.name
        view = more[0][1] if more and more[0] else 0
        return Storage(kind.name, str(key), view)


def _unpickle(file: io.BufferedIOBase, field: str, kinds: dict[str, str] | None = None) -> Any:
    unpickler = _Unpickler(file, {} if kinds is None else kinds)
    content = unpickler.load()
    if suspects := [name for name in unpickler.made if not _HARMLESS.fullmatch(name)]:
        more = f" and {len(suspects) - 3} more" if len(suspects) > 3 else ""
        raise UsageError(
            f"{field}: holds more than weights: {', '.join(suspects[:3])}{more}, which could run "
            f"code; nothing of it was run; {_WHAT_TO_DO}"
        )
    return content


_WHAT_TO_DO = "where it was made, torch.save(model.state_dict(), FILE) writes the weights alone"


def _dtype(kind: str) -> np.dtype:
    name = kind.removeprefix("torch.").removesuffix("Storage")
    if name not in _DTYPES:
        raise UsageError(f"is of {kind}; dense tensors of floats are allowed")
    return np.dtype(_DTYPES[name])


def is_tensor(value: Any) -> bool:
    """Return whether a note is of a tensor, of whatever kind."""
    return isinstance(value, Note) and value.name.startswith("torch._utils._rebuild_")
