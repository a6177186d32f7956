"""What ``torch.compile`` is told of code that it cannot look into."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

_Method = TypeVar("_Method", bound=Callable[..., Any])


def not_traced(function: _Method) -> _Method:
    """Let ``torch.compile`` call a method as it is: what that runs is compiled and cannot be traced.

    As ``torch.compiler.disable`` does, but without importing the compiler, which takes a second.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        # As long as it is not imported nobody compiles; while it is being imported, half of it is missing.
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
        return (function if disable is None else disable(function))(*arguments, **keywords)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]  # what `torch.compiler.disable` sets
    return call  # type: ignore[return-value]
