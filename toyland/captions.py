"""The small language toyland is described in.

    caption   = subject [place] [time] | place "," time ":" subject | time "," subject place
    subject   = thing | thing relation thing | thing relation thing "and" thing relation thing | thing "," thing "and" thing | person
    thing     = "a" [size] colour shape
    relation  = "left of" | "right of" | "in front of" | "behind" | "next to" | "to the left of" | …
    person    = "a person in a" colour "shirt and" colour "pants" [pose]
    place     = "on" ("grass" | "sand" | "snow" | "stone")
    time      = "by day" | "at sunset" | "at night"

Most captions use the first word of each synonym list and the first form; the others teach the text encoder that words can change while
the scene does not. A thing left out of a caption never happens: what is seen is said, apart from skin, hair and exact pose.

A caption says which colour belongs where, so that a model can be held to it: a list without relations reads from left to right, and two
things of one shape are never told apart by "next to", nor by standing in the same relation to a third.
"""

import numpy as np

from toyland.figure import POSES
from toyland.scene import Scene, Thing

SHAPE_WORDS = {"sphere": ("sphere", "ball"), "cube": ("cube", "box", "block"), "capsule": ("capsule", "pill"), "cone": ("cone",)}
GROUND_WORDS = {"grass": ("grass", "a lawn"), "sand": ("sand", "a beach"), "snow": ("snow",), "stone": ("stone", "stone tiles")}
TIME_WORDS = {"day": ("by day", "in daylight"), "sunset": ("at sunset", "in the evening"), "night": ("at night", "in the dark")}
PERSON_WORDS = ("person", "figure", "human")
PANTS_WORDS = ("pants", "trousers")
USUAL = 0.75  # probability of the first word of a list


def caption(scene: Scene, variant: int = 0) -> str:
    """A caption of the scene; `variant` gives other wordings of the same scene, deterministically."""
    rng = np.random.default_rng([7, scene.texture, scene.seed, variant])

    def pick(words: tuple[str, ...]) -> str:
        return words[0] if len(words) == 1 or rng.random() < USUAL else str(rng.choice(words[1:]))

    place, time = pick(GROUND_WORDS[scene.ground]), pick(TIME_WORDS[scene.time])
    if scene.figure is not None:
        person, shirt = pick(PERSON_WORDS), f"{article(scene.figure.shirt)} {scene.figure.shirt} shirt"
        subject = f"a {person} in {shirt} and {scene.figure.pants} {pick(PANTS_WORDS)}"
        phrase = POSES[scene.figure.pose]
        if phrase and rng.random() < 0.7:
            subject = f"{subject} {phrase}"
    else:
        names = [f"{article(t.colour)} {t.colour} {pick(SHAPE_WORDS[t.shape])}" for t in scene.things]
        subject = _arrange(scene.things, names, rng)
    form = rng.random()
    if form < 0.8:
        return f"{subject} on {place} {time}"
    if form < 0.9:
        return f"{place}, {time}: {subject}"
    return f"{time}, {subject} on {place}"


def article(word: str) -> str:
    """The indefinite article for a word."""
    return "an" if word[0] in "aeiou" else "a"


def relation(first: Thing, second: Thing) -> str:
    """Where `first` stands, seen from the camera: beside or in depth, whichever differs more on the picture."""
    across = first.position[0] / first.position[1] - second.position[0] / second.position[1]
    depth = first.position[1] - second.position[1]
    if abs(across) > 0.12 or abs(depth) < 0.3:
        return "left of" if across < 0 else "right of"
    return "in front of" if depth < 0 else "behind"


def _arrange(things: tuple[Thing, ...], names: list[str], rng: np.random.Generator) -> str:
    order = [int(i) for i in rng.permutation(len(things))]

    def said(i: int, j: int) -> str:
        words = relation(things[i], things[j])
        if words in ("left of", "right of") and rng.random() > USUAL:
            return f"to the {words}" if rng.random() < 0.7 or things[i].shape == things[j].shape else "next to"
        return words

    if len(order) == 1:
        return names[0]
    a, b = order[0], order[1]
    subject = f"{names[a]} {said(a, b)} {names[b]}"
    if len(order) == 2:
        return subject
    c = order[2]
    alike = things[a].shape == things[c].shape and relation(things[a], things[b]) == relation(things[c], things[b])
    if rng.random() < 0.7 and not alike:
        return f"{subject} and {names[c]} {relation(things[c], things[b])} the {names[b].split(' ', 1)[1]}"
    first, second, third = sorted(order, key=lambda i: things[i].position[0] / things[i].position[1])
    return f"{names[first]}, {names[second]} and {names[third]}"
