"""Types of arrays over a batch of images."""

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

Images = Float[Array, "batch height width channels"]
Labels = Int[Array, "batch"]
Flags = Bool[Array, "batch"]
Values = Float[Array, "batch"]
Keys = Key[Array, "batch"]

AnyImages = Images | Float[np.ndarray, "batch height width channels"]
AnyLabels = Labels | Int[np.ndarray, "batch"]
AnyFlags = Flags | Bool[np.ndarray, "batch"]
