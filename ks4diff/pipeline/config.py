"""One configuration: the stages' own, composed; read from TOML, and its digest."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ks4diff.io.kafka_settings import KafkaConfig
from ks4diff.pipeline.templates import TemplateConfig
from ks4diff.products.errors import ConfigError
from ks4diff.stages.associate import AssociateConfig
from ks4diff.stages.calibrate import CalibrateConfig
from ks4diff.stages.cosmics import CosmicsConfig
from ks4diff.stages.detect import DetectConfig
from ks4diff.stages.ghosts import GhostsConfig
from ks4diff.stages.hits import HitsConfig
from ks4diff.stages.keep import KeepConfig
from ks4diff.stages.match import MatchConfig
from ks4diff.stages.measure import MeasureConfig
from ks4diff.stages.past import HistoryConfig
from ks4diff.stages.quality import QualityConfig
from ks4diff.stages.register import RegisterConfig
from ks4diff.stages.residuals import ResidualsConfig
from ks4diff.stages.score import ScoreConfig
from ks4diff.stages.signature import SignatureConfig
from ks4diff.stages.subtract import SubtractConfig
from ks4diff.stages.trails import TrailsConfig
from ks4diff.stages.visit import VisitConfig


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Everything that may change a result; every field of every stage has a default."""

    signature: SignatureConfig = field(default_factory=SignatureConfig)
    cosmics: CosmicsConfig = field(default_factory=CosmicsConfig)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    calibrate: CalibrateConfig = field(default_factory=CalibrateConfig)
    register: RegisterConfig = field(default_factory=RegisterConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    subtract: SubtractConfig = field(default_factory=SubtractConfig)
    detect: DetectConfig = field(default_factory=DetectConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    hits: HitsConfig = field(default_factory=HitsConfig)
    trails: TrailsConfig = field(default_factory=TrailsConfig)
    ghosts: GhostsConfig = field(default_factory=GhostsConfig)
    residuals: ResidualsConfig = field(default_factory=ResidualsConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    visit: VisitConfig = field(default_factory=VisitConfig)
    associate: AssociateConfig = field(default_factory=AssociateConfig)
    history: HistoryConfig = field(default_factory=HistoryConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    kafka: KafkaConfig = field(default_factory=KafkaConfig)
    min_rb: float | None = None  # alerts need this score; None takes the model's own threshold

    def __post_init__(self) -> None:
        """Refuse a score that does not exist: every candidate would pass NaN."""
        if self.min_rb is not None and not 0 <= self.min_rb <= 1:
            raise ValueError(f"min_rb must be from 0 to 1, got {self.min_rb}")

    def digest(self) -> str:
        """Return the sha256, hex, of all values: equal for equal configurations on every machine.

        Without ``keep`` and ``kafka``: how long files stay and where alerts go changes no candidate, and must
        not give alerts new ids.
        """
        values = asdict(self)
        del values["keep"], values["kafka"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_config(
    path: Path | None, overrides: dict[str, dict[str, Any]] | None = None, *, min_rb: float | None = None
) -> PipelineConfig:
    """Return the configuration of a TOML file, with ``overrides`` {section: {key: value}} on top.

    Raises
    ------
    ConfigError
        When the file cannot be read, or a key is unknown, of the wrong type or out of its range.

    """
    values = read_toml(path)
    for section, items in (overrides or {}).items():
        if section in values and not isinstance(values[section], dict):
            raise ConfigError(f"{path}: [{section}] must be a table")
        values[section] = {**values.get(section, {}), **items}
    if min_rb is not None:
        values["min_rb"] = min_rb
    return build_config(PipelineConfig, values, where=str(path) if path else "options")


def read_part(path: Path | None, kind: type) -> Any:
    """Return a configuration of another ``kind``, whose sections may stand beside those of a pipeline.

    Raises
    ------
    ConfigError
        As `read_config`; sections that neither ``kind`` nor `PipelineConfig` knows are unknown keys.

    """
    others = {item.name for item in fields(PipelineConfig)} - {item.name for item in fields(kind)}
    values = {name: value for name, value in read_toml(path).items() if name not in others}
    return build_config(kind, values, where=str(path) if path else "options")


def read_toml(path: Path | None) -> dict[str, Any]:
    """Return the values of a TOML file, none without a path. Raises ConfigError when it cannot be read."""
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def build_config(kind: type, values: dict[str, Any], where: str) -> Any:
    """Return a ``kind`` with the given values, tables becoming the dataclasses that they configure.

    Raises
    ------
    ConfigError
        When a key is unknown, or a value of the wrong type or out of its range; ``where`` names the source.

    """
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)}
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{where}: unknown key {name!r}; known: {', '.join(sorted(known))}")
        if is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}.{name} must be a table, not {value!r}")
            made[name] = build_config(hints[name], value, f"{where}.{name}")
        else:
            made[name] = _checked(value, hints[name], f"{where}.{name}")
    try:
        return kind(**made)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _checked(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as ``hint`` wants it; integers serve as floats and lists as tuples."""
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if not isinstance(value, list | tuple) or (kinds[-1] is not Ellipsis and len(value) != len(kinds)):
            raise ConfigError(f"{where} must be a list like {hint}, not {value!r}")
        return tuple(_checked(item, kinds[0], where) for item in value)
    kinds = [kind for kind in get_args(hint) if kind is not type(None)] or [hint]
    wanted = (*kinds, int) if float in kinds else tuple(kinds)
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"{where} must be {getattr(hint, '__name__', hint)}, not {value!r}")
    return float(value) if float in kinds else value
