"""A registered list of modules that knows what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Blocks(nn.ModuleList, Generic[ModuleT]):
    """`torch.nn.ModuleList` whose items have a type; names in checkpoints are the same."""

    def __iter__(self) -> Iterator[ModuleT]:
        return cast("Iterator[ModuleT]", super().__iter__())
