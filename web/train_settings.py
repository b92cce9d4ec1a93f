"""What Train's fields hold, made into a training's settings and back; and which folders a visitor may name.

A field is called by its key in the settings, as in `train.steps`. Values are what a browser sent: everything is checked by the models
again. Keys that no field can hold, such as lists, are written in lines of their own, as `limn train` takes them.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from core.errors import BadRequest, LimnError, shortened, unknown_name
from core.request import explain
from renderer import ROOT
from training.config import ControlNetConfig, MonitorConfig, ObjectiveConfig, RewardConfig, TrainConfig
from training.pairs import DataConfig
from web.settings import sort_of

Values = Mapping[str, Any]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
MOST_CHARACTERS = 500  # of a key, and of its value, in the lines for further settings
PRESETS = ROOT / "examples"

MAIN = (
    "data.condition",
    "data.extract",
    "train.steps",
    "train.batch_size",
    "train.learning_rate",
    "train.precision",
    "data.width",
    "data.height",
)
NAMES = ("data.condition", "data.kind")  # one name, or several between commas
_SECTIONS: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "reward": RewardConfig,
    "monitor": MonitorConfig,
    "train": TrainConfig,
}
# Asked for in a way of their own, or decided here: the page writes nowhere else, and reports nothing to anybody.
_APART = {"base", "cache", "data.folder", "train.out", "train.resume", "monitor.wandb", "push", *_SECTIONS}


@dataclass(frozen=True)
class Places:
    """Folders of this machine. runs: one for each training. data: where datasets are offered from; `restricted`, only from there.

    What visitors upload lies in `data/uploads`, a folder for each dataset.
    """

    runs: Path
    data: Path
    restricted: bool = False

    @property
    def uploads(self) -> Path:
        """Where uploaded datasets lie."""
        return self.data / "uploads"

    def datasets(self) -> list[str]:
        """The datasets that are offered: what lies in `data` or was uploaded, in a layout that is known."""
        from training import formats

        found = []
        for path in [one for home in (self.data, self.uploads) if home.is_dir() for one in sorted(home.iterdir())]:
            if path == self.uploads:
                continue
            try:
                formats.recognise(path)
            except (LimnError, OSError):
                continue
            found.append(str(path))
        return found

    def dataset(self, text: str) -> Path:
        """The folder or file that a visitor names.

        Raises:
            BadRequest: none is named, or one that is not allowed.
        """
        if not text.strip():
            raise BadRequest("no dataset is chosen: give the folder that holds the pairs")
        path = Path(text.strip()).expanduser()
        if self.restricted:
            _inside(path, self.data, "dataset")
        return path

    def run(self, name: str) -> Path:
        """The folder of a training.

        Raises:
            BadRequest: the name is none.
        """
        if not NAME.fullmatch(name):
            raise BadRequest(f"name {shortened(name)}: write 1 to 64 letters, digits, dots, dashes and underscores")
        return self.runs / name


def kinds() -> dict[str, list[str]]:
    """The keys that a field holds, by section: "" are those that stand in no section."""
    found = {section: _of_model(model, f"{section}.") for section, model in _SECTIONS.items()}
    return {"": _of_model(ControlNetConfig, "")} | found


def owner(key: str) -> tuple[type[BaseModel], str]:
    """The model that a key belongs to, and its field there."""
    section, _, name = key.rpartition(".")
    return _SECTIONS[section] if section else ControlNetConfig, name


def read_config(values: Values, places: Places) -> ControlNetConfig:
    """The settings that the page asks for: fields by their key, `base`, `name`, `folder`, and `more` with further lines `key=value`.

    Raises:
        BadRequest: a value, a name or a folder is refused.
    """
    out, data = places.run(str(values.get("name") or "").strip()), read_data(values, places)
    asked = _asked(values)
    asked |= {"base": str(values.get("base") or "").strip() or "toyland", "data": data.model_dump(exclude_unset=True)}
    asked["train"] = asked.get("train", {}) | {"out": out}
    if not os.access(data.folder if data.folder.is_dir() else data.folder.parent, os.W_OK):
        asked["cache"] = places.runs / "cache"
    try:
        return ControlNetConfig.model_validate(asked)
    except ValidationError as error:
        raise BadRequest(explain(error)) from None


def read_data(values: Values, places: Places) -> DataConfig:
    """What the page asks for of the dataset alone, to look at it.

    Raises:
        BadRequest: a value or a folder is refused.
    """
    folder = places.dataset(str(values.get("folder") or ""))
    asked = _asked(values).get("data", {}) | {"folder": folder}
    try:
        config = DataConfig.model_validate(asked)
    except ValidationError as error:
        raise BadRequest(f"data.{explain(error)}") from None
    if places.restricted:
        for column in (config.picture, config.caption, config.mask, *_several(config.condition)):
            _inside(folder / column, folder, "column")
    if folder.exists() and _is_inside(folder, places.uploads) and folder.resolve() != places.uploads.resolve():
        _check_rows(config, places)
    return config


def shown(preset: Mapping[str, Any]) -> dict[str, Any]:
    """What the page holds for a preset: every field's value, `base`, and `more` with what no field holds."""
    values: dict[str, Any] = {"base": preset.get("base", "toyland")}
    known = {key for keys in kinds().values() for key in keys}
    for key in known:
        section, _, name = key.rpartition(".")
        given = preset.get(section, {}) if section else preset
        default = owner(key)[0].model_fields[name].get_default(call_default_factory=True)
        value = given.get(name, default)
        empty = value is None or value is PydanticUndefined  # a number field that is given None shows 0
        values[key] = "" if empty else ", ".join(_several(value)) if key in NAMES else value
    more = []
    for key, value in _flat(preset).items():
        if key not in known | _APART:
            more.append(f"{key}={yaml.safe_dump(value, default_flow_style=True, width=1000).splitlines()[0]}")
    values["more"] = "\n".join(more)
    return values


def presets() -> list[str]:
    """Their names."""
    first = ("toyland", "train")  # the embedded model's
    return sorted((path.stem for path in PRESETS.glob("*.yaml")), key=lambda name: (name not in first, name))


def preset(name: str) -> dict[str, Any]:
    """A preset's own keys.

    Raises:
        BadRequest: there is none of the name.
    """
    if name not in presets():
        raise unknown_name("preset", name, presets())
    values: dict[str, Any] = yaml.safe_load((PRESETS / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def _asked(values: Values) -> dict[str, Any]:
    """The keys of the page's fields and lines, nested as the settings are."""
    asked: dict[str, Any] = {}
    for line in str(values.get("more") or "").splitlines():
        key, equals, text = line.partition("=")
        if not line.strip():
            continue
        if equals and key.strip() in _APART:
            raise BadRequest(f"further setting {shortened(key.strip())} cannot be given here: this page decides it, or has a field for it")
        if not equals or not key.strip() or len(key) > MOST_CHARACTERS:
            raise BadRequest(f"further setting {shortened(line)}: write key=value, as in train.betas=[0.9, 0.99], one in a line")
        if key.strip() in values:
            raise BadRequest(f"further setting {shortened(key.strip())} has a field of its own: change it there")
        _put(asked, key.strip(), _parsed(line, text))
    for keys in kinds().values():
        for key in keys:
            if key in values:
                value, (model, name) = values[key], owner(key)
                if key in NAMES:
                    several = [one.strip() for one in str(value or "").split(",")]
                    value = several[0] if len(several) == 1 else several
                empty = value == "" and model.model_fields[name].default is None
                _put(asked, key, None if empty else value)
    return asked


def _parsed(line: str, text: str) -> Any:
    """A value as YAML writes it; aliases are refused, which could make much of little."""
    try:
        if len(text) <= MOST_CHARACTERS and not any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
            return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        pass
    raise BadRequest(f"further setting {shortened(line)}: what follows the = is not YAML of {MOST_CHARACTERS} characters without aliases")


def _of_model(model: type[BaseModel], prefix: str) -> list[str]:
    found = []
    for name in model.model_fields:
        try:
            if prefix + name not in NAMES:
                sort_of(model, name)
        except TypeError:  # a list or a table: no field holds it
            continue
        found.append(prefix + name)
    return [key for key in found if key not in _APART]


def _several(value: Any) -> tuple[str, ...]:
    """One name or several, as several."""
    return (value,) if isinstance(value, str) else tuple(value or ())


def _put(asked: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    if not name:
        asked[section] = value
        return
    inner = asked.setdefault(section, {})
    if not isinstance(inner, dict):
        raise BadRequest(f"further setting {shortened(key)}: {section} holds no keys")
    _put(inner, name, value)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every key with its section before it."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not prefix and name in _SECTIONS and isinstance(value, dict):
            found |= _flat(value, f"{name}.")
        else:
            found[prefix + name] = value
    return found


def _check_rows(config: DataConfig, places: Places) -> None:
    """Raises BadRequest where an uploaded dataset names a file outside of its own folder, whether or not it is there."""
    from training import formats

    uploads = places.uploads.resolve()
    home = uploads / config.folder.resolve().relative_to(uploads).parts[0]
    layout = formats.recognise(config.folder) if config.format == "auto" else formats.get(config.format)
    for pair in layout.read(config, lambda error: None):  # what else is wrong is said by the check
        for source in pair.sources:
            if isinstance(source, Path):
                _inside(source, home, "the dataset's file")


def _is_inside(path: Path, home: Path) -> bool:
    """Whether a path lies in `home`, links followed."""
    try:
        return path.resolve().is_relative_to(home.resolve())
    except (OSError, ValueError):
        return False


def _inside(path: Path, home: Path, what: str) -> None:
    """Raises BadRequest for a path that does not lie in `home`, links followed."""
    if not _is_inside(path, home):
        raise BadRequest(f"{what} {shortened(path.name)} does not lie in {home.name!r}, the only folder this page may read: put it there")
