"""Frames of videos as visual tokens. Legend: D model width."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_tokens(x: Tensor, side: int, wanted: int) -> Tensor:
    """Resize square maps of tokens bilinearly.

    Args:
        x: maps of side * side tokens [images, tokens, D].
        side: tokens along each side.
        wanted: how many there shall be.

    Returns:
        Maps of wanted * wanted tokens [images, tokens, D].
    """
    maps = x.transpose(1, 2).unflatten(2, (side, side))
    return F.interpolate(maps, (wanted, wanted), mode="bilinear").flatten(2).transpose(1, 2)


def pack_frames(frames: Tensor, newline: Tensor, videos: int) -> Tensor:
    """Put the tokens of each video's frames one after another, with a newline at the end.

    Args:
        frames: features of all frames [videos * frames, tokens, D].
        newline: vector after each video [D].
        videos: how many videos there are.

    Returns:
        Visual tokens of each video [videos, tokens, D].
    """
    tokens = frames.reshape(videos, -1, frames.shape[-1])
    return torch.cat([tokens, newline.expand(videos, 1, -1)], dim=1)
