"""Captions follow the grammar and tell the truth about the picture."""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from toyland.captions import GROUND_WORDS, PANTS_WORDS, PERSON_WORDS, SHAPE_WORDS, TIME_WORDS, article, caption, relation
from toyland.figure import POSES
from toyland.render import render
from toyland.scene import COLOURS, Scene, Thing, sample


def any_of(words: object) -> str:
    return "(?:" + "|".join(sorted(map(re.escape, words), key=len, reverse=True)) + ")"  # type: ignore[call-overload]


def all_words(synonyms: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [word for words in synonyms.values() for word in words]


THING = f"(?:an?|the) {any_of(COLOURS)} {any_of(all_words(SHAPE_WORDS))}"
RELATION = "(?:(?:to the )?(?:left|right) of|in front of|behind|next to)"
THINGS = f"{THING}(?: {RELATION} {THING}(?: and {THING} {RELATION} {THING})?|, {THING} and {THING})?"
POSE = any_of(phrase for phrase in POSES.values() if phrase)
PERSON = f"a {any_of(PERSON_WORDS)} in an? {any_of(COLOURS)} shirt and {any_of(COLOURS)} {any_of(PANTS_WORDS)}(?: {POSE})?"
SUBJECT, PLACE, TIME = f"(?:{THINGS}|{PERSON})", any_of(all_words(GROUND_WORDS)), any_of(all_words(TIME_WORDS))
GRAMMAR = re.compile(f"(?:{SUBJECT} on {PLACE} {TIME}|{PLACE}, {TIME}: {SUBJECT}|{TIME}, {SUBJECT} on {PLACE})")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample(seed) for seed in range(200)]


def test_every_caption_is_a_sentence_of_the_grammar(scenes: list[Scene]) -> None:
    for scene in scenes:
        for variant in range(4):
            text = caption(scene, variant)
            assert GRAMMAR.fullmatch(text), text


def test_everything_seen_is_said(scenes: list[Scene]) -> None:
    for scene in scenes:
        text = caption(scene)
        assert any(word in text for word in GROUND_WORDS[scene.ground])
        assert any(word in text for word in TIME_WORDS[scene.time])
        for thing in scene.things:
            assert any(f"{article(thing.colour)} {thing.colour} {word}" in text for word in SHAPE_WORDS[thing.shape])
        if scene.figure:
            assert f"{scene.figure.shirt} shirt and {scene.figure.pants} " in text


def test_wordings_vary_and_are_repeatable(scenes: list[Scene]) -> None:
    wordings = [[caption(scene, variant) for variant in range(4)] for scene in scenes]
    assert wordings[:20] == [[caption(sample(seed), variant) for variant in range(4)] for seed in range(20)]
    assert np.mean([len(set(row)) > 1 for row in wordings]) > 0.8


def column(scene: Scene, instance: int) -> float:
    seen = render(scene, 64).instance_HW == instance
    return float(np.nonzero(seen)[1].mean())


def test_left_and_right_are_as_seen(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes:
        said = re.search(f"an? ({any_of(COLOURS)}) ({any_of(all_words(SHAPE_WORDS))}) (?:to the )?(left|right) of an? ", caption(scene))
        if not said or len(scene.things) != 2:
            continue
        first = next(i for i, thing in enumerate(scene.things) if thing.colour == said[1] and said[2] in SHAPE_WORDS[thing.shape])
        places = column(scene, first + 1), column(scene, 2 - first)
        assert (places[0] < places[1]) == (said[3] == "left"), caption(scene)
        checked += 1
    assert checked > 20


def test_a_list_reads_from_left_to_right(scenes: list[Scene]) -> None:
    listed = re.compile(f"an? ({any_of(COLOURS)}) ({any_of(all_words(SHAPE_WORDS))})(?:,| and|$| on)")
    checked = 0
    for scene in scenes:
        text = caption(scene)
        if len(scene.things) != 3 or re.search(RELATION, text):
            continue
        places = []
        for colour, word in listed.findall(text):
            kinds = [(thing.colour, word in SHAPE_WORDS[thing.shape]) for thing in scene.things]
            places.append(column(scene, kinds.index((colour, True)) + 1))
        assert len(places) == 3, text
        assert places == sorted(places), text
        checked += 1
    assert checked > 5


def test_things_of_one_shape_are_told_apart() -> None:
    """Nothing but their places distinguishes them, so a caption has to give those."""
    left, right = Thing("cube", "red", (-1.0, 3.5), 0.4, 0.0), Thing("cube", "blue", (1.0, 3.5), 0.4, 0.0)
    third = Thing("cone", "green", (2.0, 3.5), 0.4, 0.0)
    base = sample(0)
    pair = replace(base, things=(left, right), figure=None)
    assert not any("next to" in caption(pair, variant) for variant in range(100))
    both_left = replace(base, things=(left, right, third), figure=None)
    for variant in range(100):
        said = re.findall(f"(red|blue) {any_of(SHAPE_WORDS['cube'])} (?:to the )?left of [at]\\w* green", caption(both_left, variant))
        assert len(said) < 2, caption(both_left, variant)


def test_relations_of_things_behind_one_another() -> None:
    near, far = Thing("cube", "red", (0.0, 3.4), 0.5, 0.0), Thing("cone", "blue", (0.05, 4.4), 0.5, 0.0)
    assert (relation(near, far), relation(far, near)) == ("in front of", "behind")
    beside = Thing("cone", "blue", (1.0, 3.5), 0.5, 0.0)
    assert (relation(near, beside), relation(beside, near)) == ("left of", "right of")


def test_article() -> None:
    assert [article(colour) for colour in ("orange", "red")] == ["an", "a"]
