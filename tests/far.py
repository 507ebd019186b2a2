"""A device in name alone: its tensors lie on this processor, and refuse those that are said to, as an accelerator's do.

What forgets where the model is fails here, on a machine without an accelerator. Torch knows the device `far` once
`far()` was entered; the seam is torch's own for backends written in Python (`_setup_privateuseone_for_python_backend`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as known

ACROSS = {"_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
"""What may read tensors of both devices: copies, and indices that lie on the processor."""


class Far(Tensor):
    """A tensor of the device, beside the one that holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        found: Far = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.shape, strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device="far:0",
        )  # fmt: skip
        found.near = near
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, *args, **(kwargs or {}))

    def tolist(self) -> Any:
        """As an accelerator's: copied first."""
        return self.near.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        """As an accelerator's: refused."""
        raise TypeError("a tensor of the device has no numpy array: .cpu() first")

    __array__ = numpy


def _run(func: Any, *args: Any, **kwargs: Any) -> Any:
    name, given = func._schema.name.partition("::")[2], tree.tree_leaves((args, kwargs))
    if name == "_fused_sdp_choice":
        return 0  # no fused kernel
    far = any(isinstance(x, Far) for x in given)
    if far and name not in ACROSS and (left := [x for x in given if _left_behind(x)]):
        raise RuntimeError(f"{func}: a tensor of shape {tuple(left[0].shape)} is on the processor, others are on far")
    if far and name.startswith("index") and not isinstance(args[0], Far):
        raise RuntimeError(f"{func}: a tensor on the processor is read by indices on far")
    some, more = tree.tree_map(_near, (args, kwargs))
    result = func(*some, **more)
    if func._schema.is_mutable:
        return kwargs.get("out", args[0])
    to = kwargs.get("device")
    if to is not None and torch.device(to).type != "far":
        return result
    return tree.tree_map_only(Tensor, Far, result)


def _left_behind(x: Any) -> bool:
    return isinstance(x, Tensor) and not isinstance(x, Far) and x.dim() > 0


def _near(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.near if isinstance(x, Far) else x


@cache
def _register() -> torch.library.Library:
    known("far")
    library = torch.library.Library("_", "IMPL")
    library.fallback(_run, "PrivateUse1")  # what makes tensors without being given any
    return library


@contextmanager
def far() -> Iterator[str]:
    """The name of the device, while it can be used."""
    _register()
    made = torch.tensor

    def tensor(data: Any, *, device: Any = None, **more: Any) -> Tensor:
        return made(data.near if isinstance(data, Far) else data, **more).to(device or "cpu")  # made there, it asserts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", tensor)
        yield "far"
