"""The GIF shows every policy, to the end of the longest episode, in a file that is small enough to share."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magail.render import END_PAUSE, side_by_side

RED, GREEN, BLUE = (220, 30, 30), (30, 160, 60), (40, 60, 200)


def film(colour: tuple[int, int, int], length: int, size: int = 700) -> list[np.ndarray]:
    """A square that moves to the right by a tenth of the picture per frame, on white."""
    frames = np.full((length, size, size, 3), 255, dtype=np.uint8)
    side = size // 10
    for t, frame in enumerate(frames):
        left = t * side % size
        frame[side : 2 * side, left : left + side] = colour
    return list(frames)


def pictures(path: Path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        return [np.asarray(_seek(gif, i).convert("RGB")).astype(int) for i in range(gif.n_frames)]


def _seek(gif: Image.Image, frame: int) -> Image.Image:
    gif.seek(frame)
    return gif


def has(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture - np.array(colour)).max(-1) < 25).any())


def test_panels_stand_side_by_side_and_a_short_one_holds_its_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "new" / "film.gif"
    side_by_side({"expert": film(RED, 8), "MAGAIL": film(GREEN, 3), "random": film(BLUE, 5)}, path, max_width=300)
    shown = pictures(path)
    assert len(shown) == 8
    for t, picture in enumerate(shown):
        left, middle, right = picture[:, :98], picture[:, 101:199], picture[:, 202:]
        assert has(left, RED)
        assert has(middle, GREEN)
        assert has(right, BLUE)
        assert not has(left, GREEN)
        assert not has(right, GREEN)
        green = np.argwhere(np.abs(middle - np.array(GREEN)).max(-1) < 25)[:, 1].mean()
        assert green == pytest.approx(98 * (min(t, 2) + 0.5) / 10, abs=1.5)


def test_each_panel_has_its_caption_above_it(tmp_path: Path) -> None:
    side_by_side({"expert": film(RED, 2), "": film(RED, 2)}, tmp_path / "film.gif", max_width=400)
    caption = pictures(tmp_path / "film.gif")[0][:30]
    assert (caption[:, :198].max(-1) < 100).any()
    assert not (caption[:, 205:].max(-1) < 100).any()


def test_a_long_caption_shrinks_into_its_panel(tmp_path: Path) -> None:
    text = "a caption of forty characters and some more"
    side_by_side({text: film(RED, 1), "b": film(RED, 1)}, tmp_path / "film.gif", max_width=640)
    picture = pictures(tmp_path / "film.gif")[0]
    dark = np.argwhere(picture[:20, :318].max(-1) < 120)[:, 1]
    assert 0 < dark.min() < 30
    assert 290 < dark.max() < 318


def test_small_frames_are_not_scaled_up(tmp_path: Path) -> None:
    side_by_side({"a": film(RED, 2, size=60), "b": film(RED, 2, size=60)}, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.width == 60 + 3 + 60


def test_frames_follow_each_other_as_fast_as_told_and_repeat_after_a_pause(tmp_path: Path) -> None:
    side_by_side({"a": film(RED, 3)}, tmp_path / "film.gif", fps=20)
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.info["loop"] == 0
        assert [_seek(gif, i).info["duration"] for i in range(3)] == [50, 50, END_PAUSE]


def test_a_long_film_of_large_frames_makes_a_small_file(tmp_path: Path) -> None:
    frames = film(RED, 75)
    side_by_side({"expert": frames, "MAGAIL": frames[::-1], "random": frames}, tmp_path / "film.gif")
    assert (tmp_path / "film.gif").stat().st_size < 1_000_000
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.width <= 960


@pytest.mark.parametrize("films", [{}, {"expert": film(RED, 1, size=20), "random": []}])
def test_a_panel_without_frames_is_refused(films: dict[str, list[np.ndarray]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no frames for (random|any)"):
        side_by_side(films, tmp_path / "film.gif")
