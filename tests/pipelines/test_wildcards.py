"""Random words: the same for the same seed, drawn as often as their weights say, and bounded."""

import contextlib
import time
from collections import Counter
from pathlib import Path

import pytest

from core.errors import BadRequest
from pipelines.prompt import parse
from pipelines.wildcards import expand, wildcard_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nature").mkdir()
    (tmp_path / "colour.txt").write_text("\ufeffred\n# a comment\n\n  green  \nblue\n", "utf-8")
    (tmp_path / "nature" / "tree.txt").write_text("{oak|elm} in __colour__\n")
    (tmp_path / "loop.txt").write_text("__loop__\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin.txt").write_bytes("é\n".encode("latin-1"))
    return tmp_path


@pytest.mark.parametrize(
    "prompt",
    ["", "a red cube", "a {plain} brace", "{", "a } b {", "snake_case __ and ____", "{{a}}", "# {x}", "__ init __", "__../secret__"],
)
def test_what_is_no_wildcard_stays(prompt: str, folder: Path) -> None:
    assert expand(prompt, 0, folder) == (prompt if "#" not in prompt else "\n")


def test_words_depend_on_the_seed_alone(folder: Path) -> None:
    prompt = "a __colour__ cube, {by day|at night} __nature/tree__"
    drawn = [expand(prompt, seed, folder) for seed in range(40)]
    assert drawn == [expand(prompt, seed, folder) for seed in range(40)]
    assert len(set(drawn)) > 20
    assert all("__" not in text and "{" not in text for text in drawn)
    # Written down once, so that another machine or version of Python that drew otherwise would be noticed.
    assert [expand("__colour__ {a|b|c|d}", seed, folder) for seed in range(4)] == ["green d", "red b", "green a", "blue a"]


def test_the_negative_prompt_draws_for_itself(folder: Path) -> None:
    both = [(expand("__colour__", seed, folder), expand("__colour__", seed, folder, stream="negative_prompt")) for seed in range(30)]
    assert any(first != second for first, second in both)


def test_each_option_comes_as_often_as_its_weight_says() -> None:
    count = 4000
    equal = Counter(expand("{a|b||c}", seed) for seed in range(count))
    assert set(equal) == {"a", "b", "", "c"}
    for number in equal.values():
        assert abs(number - count / 4) < 5 * (count * 0.25 * 0.75) ** 0.5  # five standard deviations
    weighted = Counter(expand("{3::a|b|0::never}", seed) for seed in range(count))
    assert set(weighted) == {"a", "b"}
    assert abs(weighted["a"] - count * 0.75) < 5 * (count * 0.75 * 0.25) ** 0.5


def test_several_different_options() -> None:
    for seed in range(50):
        pair = expand("{2$$a|b|c}", seed).split(", ")
        assert len(set(pair)) == 2
        some = expand("{1-3$$ and $$a|b|c}", seed).split(" and ")
        assert len(set(some)) == len(some)
        assert 1 <= len(some) <= 3
    assert {len(expand("{0-2$$a|b}", seed)) for seed in range(50)} == {0, 1, 4}


def test_choices_in_choices_and_escapes() -> None:
    assert {expand("{a|{b|c}}", seed) for seed in range(50)} == {"a", "b", "c"}
    assert {expand(r"\{a|{b|\}}", seed) for seed in range(50)} == {"{a|b", "{a|}"}
    assert {expand("{plain {a|b}}", seed) for seed in range(50)} == {"{plain a}", "{plain b}"}


def test_syntax_of_prompts_goes_through(folder: Path) -> None:
    text = expand("(__colour__:1.2) [a:b:3] {<lora:x:0.5>|<lora:y:0.5>} \\(c\\)", 3, folder)
    prompt = parse(text, 10)
    assert len(prompt.loras) == 1
    assert [end for end, _ in prompt.parts[0].wordings] == [3, 10]
    assert prompt.parts[0].wordings[0][1].passages[0][0].weight == 1.2
    assert "(c)" in prompt.parts[0].wordings[0][1].text


def test_comments_draw_nothing(folder: Path) -> None:
    assert expand("{a|a} # __missing__\n b", 0, folder) == "a \n b"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("__color__", "unknown wildcard 'color': did you mean 'colour'"),
        ("__nature/../colour__", "unknown wildcard"),
        ("__loop__", "nested over 20 deep"),
        ("__empty__", "no lines to draw from"),
        ("__latin__", "save it as UTF-8"),
        ("{3$$a|b}", "has 2 options, but 3 to 3"),
        ("{2-1$$a|b}", "2 to 1 are asked for"),
        ("{a|" * 30 + "b" + "}" * 30, None),
        ("{a|b}" * 10_001, "over 10000 random choices"),
    ],
)
def test_refusals(prompt: str, message: str | None, folder: Path) -> None:
    if message is None:  # so deep only where the draw goes down to it
        seeds = [expand(prompt, seed, folder) for seed in range(5)]
        assert set(seeds) <= {"a", "b"}
        return
    with pytest.raises(BadRequest, match=message) as error:
        expand(prompt, 0, folder)
    assert "\n" not in str(error.value)


def test_without_a_folder() -> None:
    with pytest.raises(BadRequest, match="no wildcard folder"):
        expand("__colour__", 0)
    assert wildcard_names() == {}


def test_growth_and_time_are_bounded(folder: Path) -> None:
    for i in range(8):
        (folder / f"g{i}.txt").write_text(" ".join([f"__g{i + 1}__"] * 10) + "\n")
    (folder / "g8.txt").write_text("word\n")
    for prompt in ("__g0__", "{" * 50_000, "{|" * 25_000 + "}" * 25_000, "{a|" * 300 + "}" * 300, "__" * 50_000, "{a}" * 33_000):
        started = time.thread_time()
        with contextlib.suppress(BadRequest):
            expand(prompt, 0, folder)
        assert time.thread_time() - started < 20
