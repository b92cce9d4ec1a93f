"""Ray-traces a scene: picture, exact depth, instance mask and joints.

Legend: H, W picture size; N rays; vectors are (3, N) float32; colours are linear light until the last step.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toyland import figure as figures
from toyland.geometry import Array, intersect, normals
from toyland.scene import Scene

ALBEDO = {
    "red": (0.72, 0.035, 0.03),
    "orange": (0.85, 0.26, 0.012),
    "yellow": (0.88, 0.70, 0.03),
    "green": (0.03, 0.33, 0.06),
    "blue": (0.025, 0.08, 0.62),
    "purple": (0.27, 0.035, 0.44),
    "white": (0.86, 0.86, 0.86),
    "black": (0.012, 0.012, 0.014),
}
SKIN = {"light": (0.72, 0.42, 0.30), "tan": (0.52, 0.27, 0.16), "brown": (0.23, 0.11, 0.065)}
HAIR = {"dark": (0.02, 0.015, 0.012), "brown": (0.13, 0.06, 0.025), "blond": (0.55, 0.38, 0.12)}
GROUND = {"grass": (0.13, 0.27, 0.045), "sand": (0.66, 0.47, 0.26), "snow": (0.80, 0.84, 0.90), "stone": (0.27, 0.27, 0.28)}

# Light by time of day: direct, ambient from above, sky at the horizon, sky at the zenith.
LIGHT = {
    "day": ((0.78, 0.74, 0.66), (0.36, 0.40, 0.46), (0.66, 0.80, 0.93), (0.14, 0.33, 0.72)),
    "sunset": ((0.74, 0.42, 0.20), (0.30, 0.24, 0.27), (0.95, 0.42, 0.13), (0.20, 0.13, 0.34)),
    "night": ((0.17, 0.20, 0.28), (0.085, 0.095, 0.15), (0.055, 0.075, 0.16), (0.006, 0.010, 0.035)),
}
SUPERSAMPLES = 3  # per axis, where something changes within a pixel
FAR = 60.0


@dataclass(frozen=True)
class Rendered:
    """A scene as pictures.

    picture_HWC: uint8 RGB. depth_HW: float32, metres along the view axis, inf in the sky. instance_HW: uint8, 0 background, i the i-th
    thing or the figure. solid_HW: int16, which of the scene's solids is seen, -1 for none. ground_HW: bool. joints_18x2: float32 pixels
    (x, y), NaN where the figure hides it or there is no figure.
    """

    picture_HWC: NDArray[np.uint8]
    depth_HW: Array
    instance_HW: NDArray[np.uint8]
    solid_HW: NDArray[np.int16]
    ground_HW: NDArray[np.bool_]
    joints_18x2: Array


def render(scene: Scene, size: int = 128) -> Rendered:
    """Draws a scene at size × size pixels."""
    steps = np.arange(size, dtype=np.float32) + 0.5
    x, y = (grid.ravel() for grid in np.meshgrid(steps, steps))
    colour_3N, t, part, shade = _trace(scene, x, y, size)
    edges = _edges(part.reshape(size, size), shade.reshape(size, size)).ravel()
    fine = np.flatnonzero(edges)
    if fine.size:
        offsets = (np.arange(SUPERSAMPLES, dtype=np.float32) + 0.5) / SUPERSAMPLES - 0.5
        dx, dy = (grid.ravel() for grid in np.meshgrid(offsets, offsets))
        sub_3N, *_ = _trace(scene, (x[fine, None] + dx).ravel(), (y[fine, None] + dy).ravel(), size)
        colour_3N[:, fine] = sub_3N.clip(0, 1).reshape(3, fine.size, -1).mean(2)
    picture = (colour_3N.clip(0, 1) ** np.float32(1 / 2.2) * 255 + 0.5).astype(np.uint8).T.reshape(size, size, 3)
    # the rays have unit length along the view axis, so that the ray parameter is the depth
    instances = np.array([0, 0] + [solid.instance for solid in scene.solids], np.uint8)
    return Rendered(
        picture_HWC=np.ascontiguousarray(picture),
        depth_HW=t.reshape(size, size),
        instance_HW=instances[part].reshape(size, size),
        solid_HW=(np.maximum(part, 1) - 2).astype(np.int16).reshape(size, size),
        ground_HW=(part == 1).reshape(size, size),
        joints_18x2=_project_joints(scene, size),
    )


def depth_map(depth_HW: Array) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Depth as ControlNets expect it: inverse depth, near bright, scaled to the picture's own range; sky is 0.

    Returns the RGB map and (nearest, farthest) in metres, so that depth = 1 / (v·(1/nearest - 1/farthest) + 1/farthest) for v = map / 255.
    """
    inverse = np.where(np.isfinite(depth_HW), 1 / depth_HW, 0)
    inverse = np.maximum(inverse, 1 / FAR)
    low, high = float(inverse.min()), float(inverse.max())
    value = ((inverse - low) / max(high - low, 1e-9) * 255 + 0.5).astype(np.uint8)
    return np.repeat(value[..., None], 3, axis=2), (1 / high, 1 / low)


def _basis(scene: Scene) -> tuple[Array, Array, Array]:
    pitch = scene.camera.pitch
    return (
        np.array([1, 0, 0], np.float32),
        np.array([0, np.cos(pitch), np.sin(pitch)], np.float32),
        np.array([0, -np.sin(pitch), np.cos(pitch)], np.float32),
    )


def _trace(scene: Scene, x: Array, y: Array, size: int) -> tuple[Array, Array, NDArray[np.intp], Array]:
    """Colour (3, N), ray parameter (N,), part (0 sky, 1 ground, 2 + i solid i) and a shading key for edge search."""
    right, up, ahead = _basis(scene)
    focal = scene.camera.focal * size
    direction = ahead[:, None] + right[:, None] * ((x - size / 2) / focal) - up[:, None] * ((y - size / 2) / focal)
    direction = direction.astype(np.float32)
    eye = np.array([[0], [scene.camera.height], [0]], np.float32)
    with np.errstate(divide="ignore"):
        t_ground = np.where(direction[1] < -1e-3, -eye[1] / direction[1], np.float32(np.inf))
    t = np.where(t_ground < FAR, t_ground, np.float32(np.inf)).astype(np.float32)
    part = np.where(np.isfinite(t), 1, 0)
    for index, solid in enumerate(scene.solids):
        hit = intersect(solid, eye, direction)
        closer = hit < t
        t[closer], part[closer] = hit[closer], index + 2
    direct, ambient, horizon, zenith = (np.array(c, np.float32)[:, None] for c in LIGHT[scene.time])
    sun = _sun(scene)
    unit = direction / np.sqrt((direction * direction).sum(0))
    sky = _sky(scene, unit, horizon, zenith, sun)
    colour, shade = sky.copy(), np.zeros(t.shape, np.float32)
    solid_rays = np.flatnonzero(part > 0)
    points = eye + direction[:, solid_rays] * t[solid_rays]
    normal, albedo, gloss = _surface(scene, part[solid_rays], points, eye)
    facing = (normal * sun[:, None]).sum(0)
    lit = np.maximum(facing, 0) * ~_shadowed(scene, points + normal * np.float32(2e-3), sun, facing > 0)
    half = sun[:, None] - unit[:, solid_rays]
    half /= np.sqrt((half * half).sum(0))
    specular = gloss * np.maximum((normal * half).sum(0), 0) ** 40 * (lit > 0)
    light = ambient * (0.62 + 0.38 * normal[1]) + direct * lit
    # a little light bounces off the ground onto what faces down
    bounce = np.array(GROUND[scene.ground], np.float32)[:, None] * ambient * 0.5 * np.maximum(-normal[1], 0)
    surface = albedo * (light + bounce) + direct * specular * 0.35
    haze = 1 - np.exp(-np.maximum(t[solid_rays] - 6, 0) / 16)
    colour[:, solid_rays] = surface * (1 - haze) + horizon * haze
    shade[solid_rays] = surface.mean(0) ** np.float32(1 / 2.2)
    return colour, t, part, shade


def _sun(scene: Scene) -> Array:
    azimuth, elevation = scene.sun
    return np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)], np.float32)


def _sky(scene: Scene, unit_3N: Array, horizon: Array, zenith: Array, sun: Array) -> Array:
    height = np.clip(unit_3N[1] / 0.42, 0, 1) ** np.float32(0.7)
    colour = horizon * (1 - height) + zenith * height
    if scene.time == "sunset":
        level = np.array([sun[0], 0.1, sun[2]], np.float32)
        towards = np.maximum((unit_3N * (level / np.linalg.norm(level))[:, None]).sum(0), 0)
        colour = colour + np.array([[0.35], [0.16], [0.02]], np.float32) * towards**6
    sky: Array = colour
    return sky


def _surface(scene: Scene, part: NDArray[np.intp], points: Array, eye: Array) -> tuple[Array, Array, Array]:
    """Normals (3, N), albedo (3, N) and gloss (N,) at surface points."""
    normal = np.zeros_like(points)
    normal[1] = 1
    albedo, gloss = np.zeros_like(points), np.zeros(points.shape[1], np.float32)
    ground = part == 1
    albedo[:, ground] = _ground(scene, points[0, ground], points[2, ground])
    for index, solid in enumerate(scene.solids):
        mine = np.flatnonzero(part == index + 2)
        if mine.size == 0:
            continue
        at = points[:, mine]
        outward = normals(solid, at)
        outward *= np.where((outward * (eye - at)).sum(0) < 0, -1, 1)
        normal[:, mine] = outward
        kind, _, rest = solid.material.partition(":")
        if kind == "head":
            albedo[:, mine] = _head(solid.matrix, outward, *rest.split(":"))
        else:
            table = {"colour": ALBEDO, "skin": SKIN}.get(kind)
            albedo[:, mine] = np.array(table[rest] if table else (0.035, 0.022, 0.018), np.float32)[:, None]
        gloss[mine] = 0.6 if scene.figure is None else 0.12
    return normal, albedo, gloss


def _head(matrix: Array, normal_3N: Array, skin: str, hair: str) -> Array:
    """Skin in front, hair above and behind, two dark eyes."""
    axes = matrix / np.linalg.norm(matrix[0])
    left, up, forward = axes @ normal_3N
    colour = np.repeat(np.array(SKIN[skin], np.float32)[:, None], normal_3N.shape[1], axis=1)
    hairy = (up > 0.52 + 0.25 * (forward - 0.6)) | (forward < -0.05) & (up > -0.55)
    colour[:, hairy] = np.array(HAIR[hair], np.float32)[:, None]
    eye = (np.abs(np.abs(left) - 0.34) < 0.13) & (np.abs(up - 0.12) < 0.15) & (forward > 0)
    colour[:, eye] = np.float32(0.02)
    return colour


def _ground(scene: Scene, x: Array, z: Array) -> Array:
    """Albedo (3, N) of the ground: a base colour with a soft, world-anchored texture that fades with distance."""
    base = np.array(GROUND[scene.ground], np.float32)[:, None]
    fade = np.exp(-np.maximum(z - 3, 0) / 4)
    shift = scene.texture % 977
    if scene.ground == "stone":
        # square slabs with mortar lines, each slab of its own grey
        u, v = (x + shift) / 0.9, (z + shift) / 0.9
        slab = _hash(np.floor(u), np.floor(v), scene.texture)
        line = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v)))
        tone = 1 + 0.22 * (slab - 0.5) - 0.35 * np.exp(-((line / 0.045) ** 2)) * fade
    elif scene.ground == "sand":
        wave = np.sin(5.5 * z + 1.2 * np.sin(1.1 * x + shift) + shift)
        tone = 1 + 0.07 * wave * fade + 0.10 * (_noise(x * 0.8, z * 0.8, scene.texture) - 0.5)
    elif scene.ground == "grass":
        tone = 1 + (0.35 * (_noise(x * 1.4, z * 1.4, scene.texture) - 0.5) + 0.4 * fade * (_noise(x * 9, z * 4, scene.texture) - 0.5))
    else:
        tone = 1 + 0.10 * (_noise(x * 1.1, z * 1.1, scene.texture) - 0.5)
    albedo: Array = base * tone.astype(np.float32)
    return albedo


def _hash(i: Array, j: Array, key: int) -> Array:
    """A pseudo-random number in [0, 1) for each integer lattice point."""
    mixed = (i.astype(np.int64) * 73856093) ^ (j.astype(np.int64) * 19349663) ^ (key * 83492791)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    fraction: Array = (((mixed ^ (mixed >> 16)) & 0xFFFF) / 65536).astype(np.float32)
    return fraction


def _noise(x: Array, z: Array, key: int) -> Array:
    """Value noise in [0, 1): smooth interpolation between lattice points."""
    i, j = np.floor(x), np.floor(z)
    u, v = x - i, z - j
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    low = _hash(i, j, key) * (1 - u) + _hash(i + 1, j, key) * u
    high = _hash(i, j + 1, key) * (1 - u) + _hash(i + 1, j + 1, key) * u
    value: Array = low * (1 - v) + high * v
    return value


def _shadowed(scene: Scene, points_3N: Array, sun: Array, needed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    dark = np.zeros(points_3N.shape[1], bool)
    index = np.flatnonzero(needed)
    for solid in scene.solids:
        if index.size == 0:
            break
        # only points within the solid's bounding ball, seen along the sun's direction, can lie in its shadow
        offset = points_3N[:, index] - solid.bound_centre[:, None]
        along = sun @ offset
        close = index[(along < solid.bound) & ((offset * offset).sum(0) - along * along < solid.bound**2)]
        if close.size:
            blocked = np.isfinite(intersect(solid, points_3N[:, close], np.repeat(sun[:, None], close.size, axis=1)))
            dark[close[blocked]] = True
            index = index[~dark[index]]
    return dark


def _edges(part_HW: NDArray[np.intp], shade_HW: Array) -> NDArray[np.bool_]:
    """Pixels where the part or the shade changes towards a neighbour."""
    edge = np.zeros(part_HW.shape, bool)
    for axis in (0, 1):
        here, there = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        change = (part_HW[here] != part_HW[there]) | (np.abs(shade_HW[here] - shade_HW[there]) > 0.06)
        edge[here] |= change
        edge[there] |= change
    return edge


def _project_joints(scene: Scene, size: int) -> Array:
    if scene.figure is None:
        return np.full((18, 2), np.nan, np.float32)
    right, up, ahead = _basis(scene)
    eye = np.array([0, scene.camera.height, 0], np.float32)
    offset = figures.joints(scene.figure) - eye
    depth = offset @ ahead
    focal = scene.camera.focal * size
    xy = np.stack([size / 2 + focal * (offset @ right) / depth, size / 2 - focal * (offset @ up) / depth], axis=1)
    head = figures.joints(scene.figure)[1]
    xy[~figures.face_visible(scene.figure, eye - head)] = np.nan
    return xy.astype(np.float32)
