"""Nine numbers for a camera: translation, quaternion (x, y, z, w), fields of view (height, width) in radians.

The encoding "absT_quaR_FoV" of VGGT and Depth Anything 3. What it is the pose *of* differs: VGGT writes cam_from_world,
Depth Anything 3 world_from_cam. The principal point is the picture's centre.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scenetx.core.rigid import quat_from_rotation, rigid, rotation_from_quat


def encode_pose(
    a_from_b: Float[Tensor, "n 4 4"], K: Float[Tensor, "n 3 3"], height: int, width: int
) -> Float[Tensor, "n 9"]:
    """The nine numbers of a rigid motion and intrinsics (pixels of a ``height`` x ``width`` picture)."""
    w, x, y, z = quat_from_rotation(a_from_b[:, :3, :3]).unbind(-1)
    quaternion = torch.stack([x, y, z, w], -1)
    return torch.cat([a_from_b[:, :3, 3], quaternion, fields_of_view(K, height, width)], -1).float()


def fields_of_view(K: Float[Tensor, "n 3 3"], height: int, width: int) -> Float[Tensor, "n 2"]:
    """Of the height and of the width, radians."""
    return 2 * torch.stack([torch.atan(height / 2 / K[:, 1, 1]), torch.atan(width / 2 / K[:, 0, 0])], -1)


def decode_pose(
    encoding: Float[Tensor, "n 9"], height: int, width: int
) -> tuple[Float[Tensor, "n 4 4"], Float[Tensor, "n 3 3"]]:
    """The rigid motion and the intrinsics."""
    x, y, z, w = encoding[:, 3:7].unbind(-1)
    a_from_b = rigid(rotation_from_quat(torch.stack([w, x, y, z], -1)), encoding[:, :3])
    # A network's field of view may be zero; the focal length stays finite.
    half = torch.tan(encoding[:, 7:9] / 2).clamp(min=1e-6)
    K = encoding.new_zeros(len(encoding), 3, 3)
    K[:, 0, 0], K[:, 0, 2] = width / 2 / half[:, 1], width / 2
    K[:, 1, 1], K[:, 1, 2] = height / 2 / half[:, 0], height / 2
    K[:, 2, 2] = 1
    return a_from_b, K
