"""What those who record, transform or compile torch code are told of code that they cannot look into."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Method = TypeVar("_Method", bound=Callable[..., Any])

_REASON = "the CRF computes outside torch, with a lattice built from the values of the image"


def not_traced(function: _Method) -> _Method:
    """Let ``torch.compile`` call a module's method as it is: what that runs is compiled and cannot be traced.

    As ``torch.compiler.disable`` does, but without importing the compiler, which takes a second. What
    has no such way out is refused: a trace would give the answer of its own image for every other.
    """

    def checked(module: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        _refuse_tracing([*arguments, *keywords.values(), *module.parameters()])
        return function(module, *arguments, **keywords)

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        # As long as it is not imported nobody compiles; while it is being imported, half of it is missing.
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
        return (checked if disable is None else disable(checked))(*arguments, **keywords)

    # What `torch.compiler.disable` sets.
    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    call._torchdynamo_disable_msg = _REASON  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def _refuse_tracing(arguments: Iterable[object]) -> None:
    """Raise a RuntimeError where torch does not compute with values, or wants to follow what is computed."""
    if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        raise RuntimeError(
            f"torch.jit.trace cannot record a CRF, it would repeat the answer for this one image: {_REASON}; "
            "trace the network alone and call the CRF on what it gives"
        )
    for tensor in arguments:
        if not isinstance(tensor, Tensor):
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise RuntimeError(
                f"torch.func and torch.vmap cannot transform a CRF: {_REASON}; give a batch [B, ...] instead "
                "of vmap, and take gradients with torch.autograd"
            )
        if tensor.is_meta or type(tensor).__module__.startswith("torch._subclasses"):
            raise RuntimeError(
                f"a CRF takes tensors with values, got one without (meta, fake, torch.export): {_REASON}; "
                "export the network alone and call the CRF on what it gives"
            )
