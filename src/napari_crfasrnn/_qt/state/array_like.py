"""What is shown and used as an array, and computed or looked up when asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import DTypeLike, NDArray


class ArrayLike(NDArrayOperatorsMixin, ABC):
    """Behaves like a NumPy array in indexing, arithmetic and methods that return something new.

    A subclass has `shape`, `dtype`, and ``__getitem__``, of which ``[...]`` gives all of it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    _IN_PLACE = frozenset({"sort", "partition", "put", "resize", "setfield", "setflags", "byteswap", "data"})

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, key: Any) -> Any: ...

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self!r} has no memory of its own: it cannot be had without a copy")
        return np.asarray(self[...], dtype=dtype)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if kwargs.get("out") is not None:
            return NotImplemented
        plain = [x[...] if isinstance(x, ArrayLike) else x for x in inputs]
        return getattr(ufunc, method)(*plain, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Methods of arrays that return something new, so that scripts need not know what it is.
        if name.startswith("_") or name in self._IN_PLACE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self[...], name)

    def __copy__(self) -> NDArray[Any]:
        return np.array(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> NDArray[Any]:
        return np.array(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return np.asarray, (np.array(self),)
