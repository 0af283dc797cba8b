"""Which dithers a template is made of, where, and at which sub-pixel phases: its noise tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ks4diff.numerics.noise_waves import find_frames
from ks4diff.numerics.phase_waves import Frames, PhaseMaps
from ks4diff.numerics.psf_borders import Borders
from ks4diff.products.chip import CalibratedChip
from ks4diff.products.image import MaskedImage
from ks4diff.products.registration import Registration
from ks4diff.stages.psf_waves import dither_phases, likely_borders

SAMPLES = 20_000  # places over an image at which its noise is looked at ...
BLOCK = 4  # ... by so many pixels a side: a wave is 20 px long at least
FAR_SIGMA = 4.0  # of the sky: stars
HIGHEST = 4.0  # times the median power: what stars are left
MOST_TURN = 0.0175  # radians between a dither and its header: the camera is turned by up to 1 degree


@dataclass(frozen=True, kw_only=True)
class Dithers:
    """A stack's dithers over an image: where the camera's put them, and the frames that its noise shows."""

    maps: PhaseMaps
    frames: Frames | None

    def borders(self, shape: tuple[int, int]) -> Borders:
        """Return where the stack's PSF may step: where frames end, or are likely to when none shows."""
        return likely_borders(self.maps, shape) if self.frames is None else frame_borders(self.frames, shape)


def stack_dithers(
    chip: CalibratedChip, template: CalibratedChip, registration: Registration
) -> Dithers | None:
    """Return the dithers of a template over a science chip, None where it is no such stack."""
    maps = dither_phases(chip, template, registration)
    if maps is None:
        return None
    return Dithers(maps=maps, frames=frames_of(template.image, maps, chip.image.shape))


def frames_of(template: MaskedImage, maps: PhaseMaps, shape: tuple[int, int]) -> Frames | None:
    """Return the frames of a stack under an image of ``shape`` (rows, columns), None where none shows.

    ``template`` holds the stack's own pixels, ``maps`` the phases of dithers where the camera's put them.
    """
    rng = np.random.default_rng(1)
    many = int(np.sqrt(SAMPLES))
    square = np.stack(np.meshgrid(np.arange(many), np.arange(many))).reshape(2, -1)
    # at random in squares of equal size: equal steps would show one wave as another
    place = (square + rng.random(square.shape)) / many * np.array(shape[::-1])[:, None]
    there = (maps.design(*place) @ maps.stack.T).T
    corner = np.rint(there - 0.5 * (BLOCK - 1)).astype(np.int64)
    size = np.array(template.shape[::-1])[:, None]
    inside = ((corner >= 1) & (corner + BLOCK < size)).all(axis=0)
    place, there, corner = place[:, inside], there[:, inside], corner[:, inside]
    power, calm = _powers(template, corner)
    if calm.sum() < SAMPLES // 10:
        return None
    power = power[:, calm]
    power = np.minimum(power, HIGHEST * np.median(power, axis=1, keepdims=True))
    # the image's pixels are turned against the stack's by less than 1 degree
    place = (place + corner + 0.5 * (BLOCK - 1) - there)[:, calm]
    return find_frames(maps, place, power, MOST_TURN)


def _powers(template: MaskedImage, corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean squares of second differences along x and y [2, n], bool [n]: no star, no bad pixel)."""
    offset = np.arange(-1, BLOCK + 1)
    rows, columns = (corner[1, :, None] + offset)[:, :, None], (corner[0, :, None] + offset)[:, None, :]
    pixels = template.data[rows, columns]
    far = FAR_SIGMA * np.sqrt(np.median(template.sky_variance.values))
    calm = ((np.abs(pixels) < far) & (template.flags[rows, columns] == 0)).all(axis=(1, 2))
    inner = pixels[:, 1:-1, 1:-1]
    bends = pixels[:, 1:-1, 2:] + pixels[:, 1:-1, :-2], pixels[:, 2:, 1:-1] + pixels[:, :-2, 1:-1]
    return np.stack([((bend - 2 * inner) ** 2).mean(axis=(1, 2), dtype=np.float64) for bend in bends]), calm


def frame_borders(frames: Frames, shape: tuple[int, int]) -> Borders:
    """Return where frames end within an image of ``shape``, as lines across it."""
    upright = np.tile([True, True, False, False], len(frames.boxes))
    at = frames.boxes.ravel()
    inside = (at > 0) & (at < np.where(upright, shape[1], shape[0]) - 1)
    return Borders(upright=upright[inside], at=at[inside], slope=np.zeros(inside.sum()), shape=shape)
