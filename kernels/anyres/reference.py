"""Images as tiles: a grid that suits each one's form, and its tokens in reading order.

Every image comes as a view of the whole and the tiles of a grid, which the image fills but for a
border. Sizes are (height, width). Legend: N visual tokens of all images, D model width.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def best_resolution(
    height: int, width: int, resolutions: tuple[tuple[int, int], ...]
) -> tuple[int, int]:
    """Choose the resolution that keeps most of an image, and of those the one that wastes least."""

    def quality(resolution: tuple[int, int]) -> tuple[int, int]:
        rows, columns = resolution
        scale = min(columns / width, rows / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - rows * columns

    return max(resolutions, key=quality)


def tile_grids(
    image_sizes: Tensor,
    resolutions: tuple[tuple[int, int], ...],
    tile: int,
    images_per_row: Tensor | None = None,
) -> Iterator[tuple[int, int, int, int]]:
    """Height and width of each image, and rows and columns of its tiles; 0 and 0 without any.

    Args:
        image_sizes: heights and widths of the images [images, 2].
        resolutions: heights and widths of the grids that there are.
        tile: height and width of a tile.
        images_per_row: how many images each row of the batch has [rows]; those of a row with
            several are not cut into tiles. All are if not given.
    """
    rows_of_several = [] if images_per_row is None else images_per_row.tolist()
    uncut = [n != 1 for n in rows_of_several for _ in range(n)]
    for i, (height, width) in enumerate(image_sizes.tolist()):
        if uncut and uncut[i]:
            yield height, width, 0, 0
        else:
            rows, columns = best_resolution(height, width, resolutions)
            yield height, width, rows // tile, columns // tile


def present_tiles(
    image_sizes: Tensor,
    resolutions: tuple[tuple[int, int], ...],
    tile: int,
    slots: int,
    images_per_row: Tensor | None = None,
) -> Tensor:
    """Which of the tiles [images * slots] are there, in order; the others are padding.

    Args:
        slots: how many tiles each image has room for; see `tile_grids` for the others.
    """
    index: list[int] = []
    grids = tile_grids(image_sizes, resolutions, tile, images_per_row)
    for i, (_, _, rows, columns) in enumerate(grids):
        index += range(i * slots, i * slots + 1 + rows * columns)
    return torch.tensor(index, device=image_sizes.device)


def take_tiles(pixels: Tensor, index: Tensor) -> Tensor:
    """The tiles at `index` [views, C, H, W] of all images [images, slots, C, H, W]."""
    return pixels.flatten(0, 1)[index]


def tile_tokens(rows: int, columns: int, side: int, start: int) -> Tensor:
    """Numbers of the tokens of a grid of tiles as one map [rows * side, columns * side].

    The tokens of each tile [side, side] follow one another, the first of them being `start`.
    """
    numbers = torch.arange(start, start + rows * columns * side * side)
    tiles = numbers.view(rows, columns, side, side).transpose(1, 2)
    return tiles.reshape(rows * side, columns * side)


def cut_border(tokens: Tensor, height: int, width: int, digits: int | None) -> Tensor:
    """Cut away what an image of this size leaves empty of a map of tokens.

    Args:
        digits: to how many decimals the extent of the image is rounded before its fraction is
            dropped; not at all if not given.
    """
    rows, columns = tokens.shape
    if width / height > columns / rows:
        extent = height * (columns / width)
        border = (rows - int(extent if digits is None else round(extent, digits))) // 2
        return tokens[border : rows - border]
    extent = width * (rows / height)
    border = (columns - int(extent if digits is None else round(extent, digits))) // 2
    return tokens[:, border : columns - border]


def token_maps(
    image_sizes: Tensor,
    resolutions: tuple[tuple[int, int], ...],
    tile: int,
    side: int,
    digits: int | None,
    images_per_row: Tensor | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Number the tokens of each image: of the whole view [n], and of its tiles [rows, columns].

    An image without tiles has a map of one empty row. See `pack_index` for the arguments.
    """
    start, area = 0, side * side
    for height, width, rows, columns in tile_grids(image_sizes, resolutions, tile, images_per_row):
        lines = torch.empty(1, 0, dtype=torch.long)
        if rows:
            lines = tile_tokens(rows, columns, side, start + area)
            lines = cut_border(lines, height, width, digits)
        yield torch.arange(start, start + area), lines
        start += (1 + rows * columns) * area


def pack_index(
    image_sizes: Tensor,
    resolutions: tuple[tuple[int, int], ...],
    tile: int,
    side: int,
    digits: int | None,
    images_per_row: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Work out the order of visual tokens: the whole image, then its tiles row by row.

    A newline follows each row of tokens; one stands after an image without tiles.

    Args:
        side: tokens of a tile along each side; see `tile_grids` and `cut_border` for the others.

    Returns:
        For each visual token its number among the tokens of all views, -1 being the newline [N];
        and the number of visual tokens of each image [images].
    """
    found = []
    for whole, lines in token_maps(image_sizes, resolutions, tile, side, digits, images_per_row):
        found.append(torch.cat([whole, F.pad(lines, (0, 1), value=-1).flatten()]))
    counts = torch.tensor([len(piece) for piece in found])
    device = image_sizes.device
    return torch.cat(found).to(device), counts.to(device)


def pack_tiles(views: Tensor, newline: Tensor, index: Tensor) -> Tensor:
    """Put visual tokens and newlines in order; see `pack_index`.

    Args:
        views: features of all views [views, tokens, D].
        newline: vector after each row of tokens [D].
        index: which token comes where, -1 being the newline [N].

    Returns:
        Visual tokens of all images [N, D].
    """
    return torch.cat([views.flatten(0, 1), newline[None]])[index]


def resize_weights(size: int, wanted: int) -> tuple[Tensor, Tensor]:
    """Interpolate `wanted` points among `size` ones: two sources of each [wanted, 2], their
    weights.

    Pixel centres are aligned, as in `F.interpolate(..., align_corners=False)`.
    """
    place = ((torch.arange(wanted, dtype=torch.double) + 0.5) * (size / wanted) - 0.5).clamp(min=0)
    first = place.long()
    second = (first + 1).clamp(max=size - 1)
    share = place - first
    return torch.stack([first, second], -1), torch.stack([1 - share, share], -1)


def shrink(tokens: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """Interpolate a map of more than 1.21 `most` tokens down to about `most` of them, bilinearly.

    Args:
        tokens: numbers of the tokens [rows, columns].

    Returns:
        Four sources of each token of the new map, and their weights [rows, columns, 4].
    """
    rows, columns = tokens.shape
    ratio = math.sqrt(rows * columns / most)
    if ratio <= 1.1:
        weights = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.double)
        return tokens[..., None].expand(rows, columns, 4), weights.expand(rows, columns, 4)
    up, up_weights = resize_weights(rows, int(rows // ratio))
    across, across_weights = resize_weights(columns, int(columns // ratio))
    sources = tokens[up[:, None, :, None], across[None, :, None, :]]
    weights = up_weights[:, None, :, None] * across_weights[None, :, None, :]
    return sources.flatten(2), weights.flatten(2)


def pack_weights(
    image_sizes: Tensor,
    resolutions: tuple[tuple[int, int], ...],
    tile: int,
    side: int,
    digits: int | None,
    most: int,
    images_per_row: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Work out the order of visual tokens where large maps of tokens are shrunk; see `pack_index`.

    Args:
        most: about how many tiles' worth of tokens an image may have beside the whole view.

    Returns:
        For each visual token its four sources among the tokens of all views, -1 being the
        newline [N, 4]; their weights [N, 4]; the number of visual tokens of each image [images].
    """
    sources, weights = [], []
    for whole, lines in token_maps(image_sizes, resolutions, tile, side, digits, images_per_row):
        index, shares = shrink(lines, most * side * side)
        index = F.pad(index, (0, 0, 0, 1), value=-1).flatten(0, 1)
        shares = F.pad(shares, (0, 0, 0, 1), value=0.25).flatten(0, 1)
        one = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=shares.dtype).expand(len(whole), 4)
        sources.append(torch.cat([whole[:, None].expand(-1, 4), index]))
        weights.append(torch.cat([one, shares]))
    counts = torch.tensor([len(piece) for piece in sources])
    device = image_sizes.device
    return torch.cat(sources).to(device), torch.cat(weights).to(device), counts.to(device)


def pack_weighted_tiles(views: Tensor, newline: Tensor, sources: Tensor, weights: Tensor) -> Tensor:
    """Put visual tokens and newlines in order, mixing where maps are shrunk; see `pack_weights`.

    Args:
        views: features of all views [views, tokens, D].
        newline: vector after each row of tokens [D].
        sources: which tokens make up each one, -1 being the newline [N, 4].
        weights: their shares [N, 4].

    Returns:
        Visual tokens of all images [N, D].
    """
    table = torch.cat([views.flatten(0, 1), newline[None]])
    sources = sources % len(table)
    return F.embedding_bag(sources, table, mode="sum", per_sample_weights=weights.to(table.dtype))
