"""Videos of policies side by side, as GIFs: they play wherever an image is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK, LINE = (255, 255, 255), (32, 32, 32), (200, 200, 200)
SEPARATOR = 3  # pixels between panels
COLOURS = 64  # of the GIF; drawings need few
END_PAUSE = 1500  # milliseconds on the last frame before the loop begins again


def side_by_side(
    frames_by_name: Mapping[str, Sequence[np.ndarray]], path: Path, fps: float = 10.0, max_width: int = 960
) -> None:
    """Write one GIF with a captioned panel per policy, left to right; a shorter episode holds its last frame.

    75 frames of 3 particle worlds, drawn at 700 x 700, make less than 1 MB.

    Args:
        frames_by_name: caption, e.g. "expert  -10.3", to frames ``[H, W, 3]`` uint8, of one size within a panel.
        path: of the GIF; its folder is created.
        fps: frames per second, at most 50: viewers play what is faster slowly.
        max_width: pixels of the whole picture; frames are scaled down to fit, never up.

    Raises:
        ValueError: a panel has no frames.
    """
    empty = [name for name, frames in frames_by_name.items() if len(frames) == 0]
    if empty or not frames_by_name:
        raise ValueError(f"no frames for {', '.join(empty) or 'any panel'}: render at least one step of each policy")

    panel_width = (max_width - SEPARATOR * (len(frames_by_name) - 1)) // len(frames_by_name)
    panels = [_shrink(frames, panel_width) for frames in frames_by_name.values()]
    captions = _captions(list(frames_by_name), [panel[0].width for panel in panels])
    length = max(len(panel) for panel in panels)
    pictures = [_beside(captions, [panel[min(t, len(panel) - 1)] for panel in panels]) for t in range(length)]

    # One palette for all frames and no dithering: what does not move stays equal from frame to frame and costs nothing
    palette = _montage(pictures[:: max(length // 8, 1)]).quantize(COLOURS)
    first, *rest = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [round(1000 / fps)] * len(rest) + [END_PAUSE]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)


def _shrink(frames: Sequence[np.ndarray], width: int) -> list[Image.Image]:
    images = [Image.fromarray(frame) for frame in frames]
    scale = min(width / images[0].width, 1.0)
    size = round(images[0].width * scale), round(images[0].height * scale)
    return [image.resize(size, Image.Resampling.LANCZOS) for image in images]


def _captions(names: Sequence[str], widths: Sequence[int]) -> list[Image.Image]:
    """All in the largest size, from 22 pixels down, in which each fits its panel."""
    file = font_manager.findfont("DejaVu Sans")  # ships with matplotlib, so that it looks the same everywhere
    for size in range(22, 7, -1):
        font = ImageFont.truetype(file, size)
        if all(font.getlength(name) <= width - 8 for name, width in zip(names, widths, strict=True)):
            break
    captions = [Image.new("RGB", (width, round(1.8 * size)), BACKGROUND) for width in widths]
    for caption, name in zip(captions, names, strict=True):
        ImageDraw.Draw(caption).text((caption.width / 2, caption.height / 2), name, INK, font, anchor="mm")
    return captions


def _beside(captions: Sequence[Image.Image], panels: Sequence[Image.Image]) -> Image.Image:
    """Captions above panels, with a line between neighbours and below the captions."""
    top = captions[0].height + 1
    width = sum(panel.width for panel in panels) + SEPARATOR * (len(panels) - 1)
    picture = Image.new("RGB", (width, top + max(panel.height for panel in panels)), LINE)
    left = 0
    for caption, panel in zip(captions, panels, strict=True):
        picture.paste(BACKGROUND, (left, 0, left + panel.width, picture.height))
        picture.paste(caption, (left, 0))
        picture.paste(LINE, (left, top - 1, left + panel.width, top))
        picture.paste(panel, (left, top))
        left += panel.width + SEPARATOR
    return picture


def _montage(pictures: Sequence[Image.Image]) -> Image.Image:
    """All in one column: a palette for it serves each of them."""
    width, height = pictures[0].size
    montage = Image.new("RGB", (width, height * len(pictures)))
    for row, picture in enumerate(pictures):
        montage.paste(picture, (0, row * height))
    return montage
