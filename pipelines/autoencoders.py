"""Another autoencoder in the place of a base model's own: a folder, a part of a whole model, or one file.

It has to make the latents that the base was trained on: as many channels, as many pixels to a cell. What a file does not say of them (their
scale) is taken to be as the base's own says.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import BadModel, Mismatch
from pipelines.checkpoint import Checkpoint, Folder, Wrapped
from pipelines.layouts.autoencoder import autoencoder, diffusers_autoencoder
from pipelines.layouts.gguf import is_gguf
from pipelines.layouts.header import Header
from pipelines.layouts.part import Part, assemble, guarded
from pipelines.loading import refuse_pickle
from pipelines.place import Place

# What a configuration says of the latents, and which files cannot.
SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
_SAID = ("norm_num_groups", "force_upcast", "scaling_factor", "shift_factor", "latents_mean", "latents_std")
_CHANNELS = {"AutoencoderKLQwenImage": "z_dim"}
_LEVELS = {"AutoencoderDC": "encoder_block_out_channels", "AutoencoderKLQwenImage": "dim_mult"}


class WithVae(Wrapped):
    """A base model's checkpoint whose autoencoder is another's.

    Raises:
        BadModel: there is no autoencoder at `path`, or it is damaged.
        Mismatch: it makes other latents than the base's own.
    """

    def __init__(self, checkpoint: Checkpoint, path: Path) -> None:
        super().__init__(checkpoint)
        self.donor = _file(path, checkpoint) if path.is_file() else _Donor(Folder(path))
        _check(self.donor, path, checkpoint)

    def has(self, part: str) -> bool:
        """See `Checkpoint.has`."""
        return part == "vae" or self.checkpoint.has(part)

    def config(self, part: str) -> dict[str, Any]:
        """See `Checkpoint.config`."""
        return self.donor.config() if part == "vae" else self.checkpoint.config(part)

    def network(self, kind: Any, part: str, place: Place) -> Any:
        """See `Checkpoint.network`."""
        return self.donor.network(kind, place) if part == "vae" else self.checkpoint.network(kind, part, place)

    def files(self, part: str) -> list[Path]:
        """See `Checkpoint.files`."""
        return self.donor.files() if part == "vae" else self.checkpoint.files(part)


class _Donor:
    """The autoencoder of a checkpoint: of a folder of its own, or of a whole model's."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.part = "vae" if "vae" in checkpoint.classes else ""

    def config(self) -> dict[str, Any]:
        return self.checkpoint.config(self.part)

    def network(self, kind: Any, place: Place) -> Any:
        return self.checkpoint.network(kind, self.part, place)

    def files(self) -> list[Path]:
        return self.checkpoint.files(self.part)


class _File:
    """An autoencoder that is alone in its file."""

    def __init__(self, path: Path, part: Part) -> None:
        self.path, self.part = path, part

    def config(self) -> dict[str, Any]:
        return {"_class_name": self.part.kind, **self.part.config}

    def network(self, kind: Any, place: Place) -> Any:
        return _guarded(lambda: assemble(kind, self.part, place, f"autoencoder {str(self.path)!r}"), self.path)

    def files(self) -> list[Path]:
        return [self.path]


def _file(path: Path, base: Checkpoint) -> _Donor | _File:
    refuse_pickle(path)
    header = None if is_gguf(path) else Header.read(path)
    if header is None or not (header.has("decoder.conv_in.") or header.has("first_stage_model.") or header.has("vae.decoder.")):
        raise BadModel(f"{str(path)!r} holds no autoencoder: give one as a folder, as a .safetensors file, or a whole model that has one")
    own = base.config("vae")
    scales = {name: own[name] for name in (*SCALES, "force_upcast") if own.get(name) is not None}
    said = {name: value for name, value in json.loads(header.metadata.get("limn.vae", "{}")).items() if name in _SAID}
    if header.has("encoder.down_blocks.") and not header.has("down_blocks."):
        part = _guarded(lambda: diffusers_autoencoder(header, scales | said), path)
    else:
        prefix = next((prefix for prefix in ("first_stage_model.", "vae.") if header.has(f"{prefix}decoder.")), "")
        part = _guarded(lambda: autoencoder(header, prefix, scales | said), path)
    return _File(path, part)


def _check(donor: _Donor | _File, path: Path, base: Checkpoint) -> None:
    where, config, own = str(path), donor.config(), base.config("vae")
    kind, wanted = config.get("_class_name"), own.get("_class_name") or base.classes.get("vae")
    if kind != wanted:
        raise Mismatch(
            f"vae {where!r} is {kind or 'no autoencoder'}, the base model {str(base.path)!r} has an {wanted}: use one of that kind"
        )
    made, needed = _latents(config), _latents(own)
    if made != needed:
        raise Mismatch(
            f"vae {where!r} makes latents of {made[0]} channels at 1/{made[1]}, the base model {str(base.path)!r} reads {needed[0]} at "
            f"1/{needed[1]}: use an autoencoder made for this base"
        )


def other_scale(checkpoint: Checkpoint) -> str | None:
    """A sentence where an autoencoder says of its latents' scale what the base's own does not; None where they agree."""
    if not isinstance(checkpoint, WithVae):
        return None
    given, own = checkpoint.config("vae"), checkpoint.checkpoint.config("vae")
    for name in SCALES:
        ours, theirs = _number(given.get(name)), _number(own.get(name))
        if ours != theirs:
            return (
                f"the vae says {name} {ours}, the base model's own {theirs}: it may be made for another family, whose latents mean other "
                "colours; look at the picture"
            )
    return None


def _latents(config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels, and pixels to a cell."""
    kind = str(config.get("_class_name"))
    levels = config.get(_LEVELS.get(kind, "block_out_channels")) or [0]
    return int(config.get(_CHANNELS.get(kind, "latent_channels"), 4)), 2 ** (len(levels) - 1)


def _number(value: Any) -> Any:
    return value or None if not isinstance(value, (list, tuple)) else list(value)


def _guarded(work: Callable[[], Any], path: Path) -> Any:
    return guarded(work, f"autoencoder {str(path)!r}", "fetch the file again")
