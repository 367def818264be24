"""Padded batches of images.

Legend: R rows of the batch, K slots for images in a row, I images that are there, P pixels of a
    patch's side.
"""

import torch
from torch import Tensor


def real_images(pixels: Tensor, keep_one: bool = False) -> Tensor:
    """Which images of all rows [R * K] are there [I]; padding is nothing but zeros.

    Args:
        pixels: images, and zeros in the slots of missing ones [R, K, C, H, W].
        keep_one: whether the first stays where none is there.
    """
    real = (pixels != 0).flatten(0, 1).flatten(1).any(-1)
    if keep_one and not real.any():
        real[0] = True
    return real.nonzero().flatten()


def real_patches(pixels: Tensor, mask: Tensor | None, kept: Tensor, patch_size: int) -> Tensor:
    """Which patches hold a pixel of their image [I, rows, columns].

    Args:
        pixels: images in slots [R, K, C, H, W].
        mask: 1 for pixels of the image, 0 for padding [R, K, H, W]; None if all are of the image.
        kept: which of the slots hold an image [I].
        patch_size: P.
    """
    height, width = pixels.shape[-2:]
    if mask is None:
        return kept.new_ones(len(kept), height // patch_size, width // patch_size).bool()
    mask = mask.flatten(0, 1)[kept].bool()
    cells = mask.unfold(1, patch_size, patch_size).unfold(2, patch_size, patch_size)
    return cells.flatten(-2).any(-1)


def seen_patches(
    pixels: Tensor, mask: Tensor | None, kept: Tensor, patch_size: int
) -> Tensor | None:
    """Which patches may be attended to [I, 1, 1, rows * columns]; None for all. See
    `real_patches`."""
    real = real_patches(pixels, mask, kept, patch_size)
    return None if real.all() else real.flatten(1)[:, None, None]


def spread_positions(
    pixels: Tensor, mask: Tensor | None, kept: Tensor, patch_size: int, side: int
) -> Tensor:
    """Rows of a table of side x side positions [I, rows * columns]; see `real_patches`.

    An image's patches are spread over the table by their place in the image (NaViT, Dehghani et
    al.,
    2023). The places are rounded to float32, as the public implementations do.
    """
    real = real_patches(pixels, mask, kept, patch_size)
    bounds = torch.arange(1 / side, 1.0, 1 / side, dtype=torch.float32, device=real.device)
    axes = []
    for count, length in (
        (real[:, :, 0].sum(1), real.shape[1]),
        (real[:, 0].sum(1), real.shape[2]),
    ):
        step = torch.ones((), dtype=torch.float32, device=real.device) / count
        place = torch.arange(length, dtype=torch.float32, device=real.device) * step[:, None]
        axes.append(torch.bucketize(place.clamp(max=1.0 - 1e-6), bounds, right=True))
    rows, columns = axes
    positions = rows[:, :, None] * side + columns[:, None]
    return torch.where(real, positions, 0).flatten(1)
