"""The one attention door, and the cache that lets a frame attend to a map without running the map again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scenetx.core import InputError
from scenetx.core.atomic import write_tensors
from scenetx.models.geometry import Geometry

Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes a layer's new keys and values [1 h n d] and gives those to attend to."""

FORMAT = "scenetx-kv-1"


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m e"],
    *,
    mask: Bool[Tensor, "*#b n m"] | None = None,
    query_chunk: int | None = None,
    scale: float | None = None,
) -> Float[Tensor, "b h n e"]:
    """Softmax attention over PyTorch's scaled-dot-product kernels; ``scale`` defaults to 1/sqrt(d).

    mask: True = may look. query_chunk: queries at a time, which bounds memory where the kernel builds the whole score
    matrix. Keys of another dtype (a bf16 cache under an fp32 model) set the dtype of the product; the answer has q's.
    """
    dtype = q.dtype
    if k.dtype != dtype:
        q = q.to(k.dtype)
    size = q.shape[2] if query_chunk is None else query_chunk
    parts = []
    for start in range(0, q.shape[2], max(size, 1)):
        rows = slice(start, start + size)
        seen = None if mask is None else mask[..., rows, :]
        if seen is not None and seen.ndim == 3:
            seen = seen[:, None]
        parts.append(torch.nn.functional.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=seen, scale=scale))
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return out.to(dtype)


def query_mask(tokens: int, views: int, queries: int, *, shared: int = 0) -> Bool[Tensor, "n n"]:
    """Who may look where when the last ``queries`` views are seen by themselves only (True = may look).

    ``shared`` tokens that belong to no view come first; they are part of the map.
    """
    owner = torch.arange(views).repeat_interleave(tokens)
    owner = torch.cat([torch.full((shared,), -1), owner])
    is_map = owner < views - queries
    return is_map[None, :] | (owner[None, :] == owner[:, None])


@dataclass(frozen=True)
class KVShape:
    """What one attention stack stores: ``layers`` x (keys, values) x ``heads`` x tokens x ``head_dim``."""

    layers: int
    heads: int
    head_dim: int
    tokens: int  # per view
    shared: int = 0  # tokens of the map that belong to no view, stored once, first


class KVCache:
    """Keys (after norm and rotation) and values of a map's views, in memory that is taken once.

    One buffer a stack, [layers 2 heads shared+(capacity+1)*tokens head_dim]. The slot after the last view is scratch: a
    step writes its frame there, so that map and frame are one contiguous slice and nothing is copied; `keep` makes that
    frame a view. ``notes`` are small facts of the map that a step needs; ``geometry`` is what the model said of it.
    """

    def __init__(
        self,
        shapes: Mapping[str, KVShape],
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity < 1:
            raise InputError("cache capacity", capacity, "give the number of keyframes to hold, 1 or more")
        self.shapes = dict(shapes)
        self.capacity = capacity
        self.views = 0
        self.notes: dict[str, Tensor] = {}
        self.geometry: Geometry | None = None
        self._buffers = {
            name: torch.zeros(
                s.layers, 2, s.heads, s.shared + (capacity + 1) * s.tokens, s.head_dim, dtype=dtype, device=device
            )
            for name, s in self.shapes.items()
        }

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self._buffers.values())).dtype

    @property
    def bytes_per_view(self) -> int:
        """Bytes one keyframe takes."""
        size = sum(2 * s.layers * s.heads * s.tokens * s.head_dim for s in self.shapes.values())
        return size * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes taken, whether filled or not."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def filling(self, name: str, layer: int, views: int) -> Remember:
        """Stores the keys and values of a whole map of ``views`` views; what is attended to is what came."""
        if views > self.capacity:
            raise InputError("cache", f"{views} views, room for {self.capacity}", "give a larger capacity")
        shape, buffer = self.shapes[name], self._buffers[name]

        def remember(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            expected = shape.shared + views * shape.tokens
            if k.shape[2] < expected:
                raise ValueError(f"cache {name!r}: {k.shape[2]} tokens came for {views} views of {shape.tokens}")
            # Tokens after the map's are queries that ride along in a full forward: they are not part of the map.
            buffer[layer, 0, :, :expected] = k[0, :, :expected]
            buffer[layer, 1, :, :expected] = v[0, :, :expected]
            return k, v

        return remember

    def stepping(self, name: str, layer: int) -> Remember:
        """Writes one frame into the scratch slot and gives keys and values of map and frame."""
        shape, buffer = self.shapes[name], self._buffers[name]
        start = shape.shared + self.views * shape.tokens
        end = start + shape.tokens

        def remember(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            buffer[layer, 0, :, start:end] = k[0]
            buffer[layer, 1, :, start:end] = v[0]
            return buffer[None, layer, 0, :, :end], buffer[None, layer, 1, :, :end]

        return remember

    def keep(self) -> None:
        """The frame of the last step becomes a keyframe. Raises InputError when the cache is full."""
        if self.views >= self.capacity:
            raise InputError("cache", f"full at {self.capacity} keyframes", "drop one first")
        self.views += 1

    def drop(self, index: int) -> None:
        """Forget one keyframe; the later ones move up. Raises IndexError when there is no such keyframe."""
        if not 0 <= index < self.views:
            raise IndexError(f"keyframe {index} of {self.views}")
        for name, shape in self.shapes.items():
            start = shape.shared + index * shape.tokens
            end = shape.shared + self.views * shape.tokens
            tail = self._buffers[name][:, :, :, start + shape.tokens : end].clone()
            self._buffers[name][:, :, :, start : end - shape.tokens] = tail
        self.views -= 1

    def keys_values(self, name: str, layer: int) -> tuple[Tensor, Tensor]:
        """What is stored, [1 heads tokens head_dim] each."""
        shape = self.shapes[name]
        end = shape.shared + self.views * shape.tokens
        buffer = self._buffers[name]
        return buffer[None, layer, 0, :, :end], buffer[None, layer, 1, :, :end]

    def save(self, path: str | Path) -> None:
        """One safetensors file with the filled part; written whole or not at all."""
        tensors = {f"note.{name}": note for name, note in self.notes.items()}
        for name, shape in self.shapes.items():
            end = shape.shared + self.views * shape.tokens
            tensors[f"kv.{name}"] = self._buffers[name][:, :, :, :end]
        about = {name: asdict(shape) for name, shape in self.shapes.items()}
        write_tensors(path, tensors, {"format": FORMAT, "views": str(self.views), "shapes": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path, *, capacity: int | None = None, device: torch.device | str = "cpu") -> KVCache:
        """Read what `save` wrote; room for ``capacity`` keyframes (default: those in the file)."""
        try:
            with safe_open(str(path), framework="pt", device=str(device)) as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise InputError(str(path), "not a cache file", f"give a file that holds {FORMAT}")
                views, shapes = _read_header(about, str(path))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(str(path), error, "give a file that KVCache.save wrote") from error
        first = tensors.get(f"kv.{next(iter(shapes))}")
        dtype = torch.float32 if first is None else first.dtype
        cache = cls(shapes, max(capacity or views, views, 1), dtype=dtype, device=device)
        for name, shape in shapes.items():
            end = shape.shared + views * shape.tokens
            stored, buffer = tensors.get(f"kv.{name}"), cache._buffers[name]
            if stored is None or stored.shape != buffer[:, :, :, :end].shape:
                raise InputError(str(path), f"keys and values of {name!r} do not fit the header", "map again")
            buffer[:, :, :, :end] = stored
        cache.views = views
        cache.notes = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("note.")}
        return cache


def _read_header(about: Mapping[str, Any], path: str) -> tuple[int, dict[str, KVShape]]:
    try:
        shapes = {name: KVShape(**fields) for name, fields in json.loads(about["shapes"]).items()}
        views = int(about["views"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, f"broken cache header ({error})", "map again") from error
    sizes = [size for shape in shapes.values() for size in asdict(shape).values()]
    if not shapes or views < 0 or not all(isinstance(size, int) and size >= 0 for size in sizes):
        raise InputError(path, "broken cache header (sizes)", "map again")
    return views, shapes
