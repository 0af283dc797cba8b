"""Which real/bogus model a run uses: the one asked for, the one that comes with ks4diff, or rules."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ks4diff.io.models import load_model, shipped_model
from ks4diff.pipeline.config import PipelineConfig, read_config
from ks4diff.products.alert import Scoring
from ks4diff.products.candidates import Candidates
from ks4diff.products.model import RB_FLAGS, RbModel
from ks4diff.stages.features import Scene
from ks4diff.stages.score import RULES_THRESHOLD, RULES_VERSION, ScoreConfig, score, score_by_model

RULES = "rules"


def scoring_config(path: Path | None, *, threshold: float | None, min_rb: float | None) -> PipelineConfig:
    """Return the configuration of a command that scores, its options on top of the TOML file.

    The model is read, too: one that is no good stops the command before the work.

    Raises
    ------
    ConfigError
        As `read_config`.
    InputError
        As `model_for`.

    """
    overrides = {} if threshold is None else {"detect": {"threshold": threshold}}
    config = read_config(path, overrides, min_rb=min_rb)
    model_for(config.score.model)
    return config


@cache
def model_for(name: str) -> RbModel | None:
    """Return the model of a folder, read once; of "" the one that comes with ks4diff; None for rules.

    Raises
    ------
    InputError
        When the folder holds no sound model.

    """
    if name == RULES:
        return None
    folder = Path(name) if name else shipped_model()
    return None if folder is None else load_model(folder)


def scored(
    candidates: Candidates, scene: Scene, config: ScoreConfig
) -> tuple[Candidates, tuple[tuple[str, ...], ...]]:
    """Return the candidates with their scores, and of each what moved it most, nothing when by rules."""
    model = model_for(config.model)
    if model is None:
        return score(candidates, scene.difference.psf.fwhm_pix, config), ()
    return score_by_model(candidates, scene, model, config)


def model_id(config: ScoreConfig) -> str:
    """Return the name that alerts give as ``rbversion``."""
    model = model_for(config.model)
    return RULES_VERSION if model is None else model.version


def features_id(config: ScoreConfig) -> str | None:
    """Return the version of the features that the model sees, None by rules."""
    model = model_for(config.model)
    return None if model is None else model.vector


def scoring(reasons: tuple[tuple[str, ...], ...]) -> Scoring:
    """Return what alerts tell of a score beside its value; ``reasons`` are those of `scored`."""
    return Scoring(flag_names={flag.bit: flag.name for flag in RB_FLAGS}, reasons=reasons)


def threshold(config: ScoreConfig, min_rb: float | None) -> float:
    """Return the score that alerts need: the one asked for, else the model's own."""
    if min_rb is not None:
        return min_rb
    model = model_for(config.model)
    return RULES_THRESHOLD if model is None else model.threshold
