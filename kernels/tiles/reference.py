"""Images cut into tiles.

Legend: I images, K tiles of an image, P tokens of a tile, D model width.
"""

import torch
from torch import Tensor


def add_tile_embedding(x: Tensor, vectors: Tensor, gate: Tensor) -> Tensor:
    """Add a gated vector to each tile, by the arrangement of the image's tiles.

    Args:
        x: tokens [I, K, P, D].
        vectors: the vectors of each image's arrangement, one for each tile [..., K D].
        gate: a learned scalar [1].

    Returns:
        Tokens [I, K, P, D].
    """
    return x + torch.tanh(gate) * vectors.reshape(*x.shape[:2], 1, -1)


def add_tile_positions(x: Tensor, vectors: Tensor, gate: Tensor, shared: Tensor) -> Tensor:
    """Add positions within a tile, blended from a table for all tiles and one by arrangement and
    tile.

    Args:
        x: tokens [I, K, P, D].
        vectors: the vectors of each image's arrangement [..., K P D].
        gate: a learned scalar [1]; its tanh is the share of `vectors`.
        shared: the table for all tiles [P, D].

    Returns:
        Tokens [I, K, P, D].
    """
    share = torch.tanh(gate)
    return x + (1 - share) * shared + share * vectors.reshape(x.shape)


def tile_padding_mask(tiles: Tensor, tokens: int, padded: int) -> Tensor:
    """Let every token of an image see all the others, except padding the padding.

    Args:
        tiles: 1 for tiles of the image, 0 for padding [..., K].
        tokens: real tokens of a tile.
        padded: tokens of a tile with those that fill it up.

    Returns:
        Which keys each query may see [I, 1, K padded, K padded].
    """
    tiles = tiles.flatten(0, -2).bool()
    inner = torch.arange(padded, device=tiles.device) < tokens
    real = (tiles[..., None] & inner).flatten(1)
    return (real[:, :, None] | real[:, None, :])[:, None]
