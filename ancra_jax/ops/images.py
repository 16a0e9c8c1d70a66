"""Types of arrays over a batch of images."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Images = Float[Array, "batch height width channels"]
Labels = Int[Array, "batch"]
Flags = Bool[Array, "batch"]
Values = Float[Array, "batch"]
Keys = Key[Array, "batch"]


@runtime_checkable
class ArrayLike(Protocol):
    """What NumPy reads as an array: its own arrays, PyTorch's tensors on the CPU ..."""

    def __array__(self) -> np.ndarray:
        """Return it as NumPy's array."""


AnyImages = Images | ArrayLike | Sequence[Any]
AnyLabels = Labels | ArrayLike | Sequence[Any]
AnyFlags = Flags | ArrayLike | Sequence[Any]
