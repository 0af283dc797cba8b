"""What KMTNet's detectors are known to be where a file does not say."""

from __future__ import annotations

from dataclasses import replace

from ks4diff.products.chip import RawChip
from ks4diff.products.ids import Site

# legacy electronics, medians over amplifiers (shared facts: kmtnet.md section 6); one is within 20 %
GAIN_MEDIAN = {
    Site.CTIO: {"M": 1.91, "K": 2.12, "N": 1.80, "T": 1.85},
    Site.SAAO: {"M": 1.67, "K": 1.62, "N": 1.87, "T": 1.62},
    Site.SSO: {"M": 1.64, "K": 1.66, "N": 1.69, "T": 1.71},
}
READ_NOISE_E = {Site.CTIO: 7.1, Site.SAAO: 8.7, Site.SSO: 7.0}


def with_known_gain(raw: RawChip) -> RawChip:
    """Return a KMTNet chip with its site's and chip's gain where the file has none; others as they are.

    The sky's own noise would tell a gain too low by the read noise: 0.4 electrons per count in a dark sky.
    """
    if raw.gain is not None or raw.exposure is None or raw.unit != "adu":
        return raw
    gain = GAIN_MEDIAN[raw.exposure.site].get(raw.chip)
    read_noise = raw.read_noise if raw.read_noise is not None else READ_NOISE_E[raw.exposure.site]
    return replace(raw, gain=gain, read_noise=read_noise)
