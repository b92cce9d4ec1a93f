"""What will be wrong with a request, found before any weight is moved."""

from functools import partial
from typing import TYPE_CHECKING

import controls
from core.request import RenderRequest
from renderer.job import together
from renderer.sources import check_files, check_unit, control_folder, folders_of

if TYPE_CHECKING:  # torch is heavy: imported when a renderer is opened
    from pipelines.doctor import Finding
    from pipelines.engine import Engine


def examine(request: RenderRequest, engine: "Engine", *, fetch: bool = False) -> "list[Finding]":
    """As `Renderer.examine`, for a request that names its model; the engine need not hold it."""
    from pipelines import doctor

    around = doctor.Surroundings(
        checks=[("files", partial(check_files, request))]
        + [(f"control {i} ({unit.kind})", partial(check_unit, unit, i)) for i, unit in enumerate(request.controls)],
        find_net=lambda unit, family: control_folder(unit, family, fetch=fetch),
        kinds=controls.names(),
        loras=lambda base: folders_of("loras", base),
        wildcards=lambda base: folders_of("wildcards", base),
        fetch=fetch,
        together=lambda asked: min(asked.count, together(asked.width * asked.height, engine.place.device.type)),
    )
    return doctor.examine(request, engine, around)
