"""What was trained by a name of its own: `limn models` lists it as `trained/<run>`, and requests may call it so.

A link in Limn's models folder; the weights stay where they are, and a link whose run is gone goes with the next.
"""

from pathlib import Path

from pipelines.catalogue import installed, renew
from pipelines.engine import models_folder

FOLDER = "trained"


def offer(weights: Path) -> str | None:
    """The name that finished weights can be called by from now on, after their run's folder; None where there can be no link.

    A run of the same name elsewhere loses it; what is no link stays.
    """
    home, target = models_folder() / FOLDER, weights.resolve()
    link = home / target.parent.name
    try:
        home.mkdir(parents=True, exist_ok=True)
        for old in home.iterdir():
            if old.is_symlink() and (old == link or not old.exists()):
                old.unlink()
        link.symlink_to(target)
    except OSError:
        return None
    for one in installed():
        if one.path == link:
            renew(one)
    return f"{FOLDER}/{link.name}"
