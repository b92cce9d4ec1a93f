"""A1111's syntax against its documentation: tables of prompts and what they must come to."""

import time
from random import Random

import pytest

from core.errors import BadRequest
from pipelines.prompt import EMPTY, LoraTag, Part, Phrase, Prompt, Wording, escaped, parse, plain, strip_comments
from pipelines.wildcards import expand

STEPS = 10


def phrases(prompt: str) -> list[tuple[str, float]]:
    """The one passage of a prompt that neither changes nor breaks; weights to nine places."""
    (part,) = parse(prompt, STEPS).parts
    ((end, wording),) = part.wordings
    assert end == STEPS
    (passage,) = wording.passages
    return [(phrase.text, round(phrase.weight, 9)) for phrase in passage]


def schedule(prompt: str, steps: int = STEPS) -> list[tuple[int, str]]:
    """(end, words) of a prompt with one part."""
    (part,) = parse(prompt, steps).parts
    return [(end, wording.text) for end, wording in part.wordings]


@pytest.mark.parametrize(
    "text", ["a red cube", "", "a red cube, on grass; 16:9 or 3|4", "  spaces  kept \n", "日本 ünïcode 🐈", "10% & <b>"]
)
def test_plain_text_is_one_phrase_of_weight_one(text: str) -> None:
    expected = plain(text) if text.strip() else EMPTY
    assert parse(text, STEPS) == Prompt((Part(1.0, ((STEPS, expected),)),))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (big) cube", [("a ", 1), ("big", 1.1), (" cube", 1)]),
        ("((big))", [("big", 1.21)]),
        ("(big:1.5)", [("big", 1.5)]),
        ("(big : 1.5 )", [("big ", 1.5)]),
        ("(big:.5)", [("big", 0.5)]),
        ("(big:-1)", [("big", -1)]),
        ("(big:+2.)", [("big", 2)]),
        ("(big:0)", [("big", 0)]),
        ("[small]", [("small", round(1 / 1.1, 9))]),
        ("[[small]]", [("small", round(1 / 1.21, 9))]),
        ("([level])", [("level", 1)]),
        ("(a (b:2) c:3)", [("a ", 3), ("b", 6), (" c", 3)]),
        ("(one)(two)", [("onetwo", 1.1)]),
        ("the (((tower:1.3)) [roof] (door:0.5), (((sky))).", None),
        (r"a \(round\) \[square\] \\ cube", [("a (round) [square] \\ cube", 1)]),
        (r"(cat \(animal\):1.2)", [("cat (animal)", 1.2)]),
        (r"lone \ backslash", [("lone  backslash", 1)]),
        # Malformed, as A1111 reads it.
        ("(open", [("open", 1.1)]),
        ("a ((b) c", [("a ", 1), ("b", 1.21), (" c", 1.1)]),
        ("[open", [("open", round(1 / 1.1, 9))]),
        ("closed) early", [("closed) early", 1)]),
        ("closed] early", [("closed] early", 1)]),
        ("time 12:30) o'clock", [("time 12:30) o'clock", 1)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("[a:b]", [("a:b", round(1 / 1.1, 9))]),
        ("[a:b:c:3]", [("a:b:c:3", round(1 / 1.1, 9))]),
        ("()", [("", 1)]),
        ("a () b", [("a  b", 1)]),
    ],
)
def test_emphasis(prompt: str, expected: list[tuple[str, float]] | None) -> None:
    if expected is None:  # a bracket left open, holding to the end
        up = 1.1
        expected = [("the ", 1), ("tower", 1.3 * up * up), (" ", up), ("roof", 1), (" ", up), ("door", 0.5 * up), (", ", up)]
        expected += [("sky", up**4), (".", up)]
        expected = [(text, round(weight, 9)) for text, weight in expected]
    assert phrases(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
        ("a [cat:dog:4] b", [(4, "a cat b"), (10, "a dog b")]),
        ("a [cat:dog:.25] b", [(2, "a cat b"), (10, "a dog b")]),
        ("a [cat::0.5] b", [(5, "a cat b"), (10, "a  b")]),
        ("a [cat:dog:1] b", [(1, "a cat b"), (10, "a dog b")]),
        ("a [cat:dog:0] b", [(10, "a dog b")]),
        ("a [cat:dog:-2] b", [(10, "a dog b")]),
        ("a [cat:dog:99] b", [(10, "a cat b")]),
        ("a [cat:dog:1.0] b", [(10, "a cat b")]),
        ("a [cat:dog:1.5] b", [(10, "a cat b")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("[[a:b:2]:c:6]", [(2, "a"), (6, "b"), (10, "c")]),
        ("[a:b:3] [c:d:5]", [(3, "a c"), (5, "b c"), (10, "b d")]),
        ("(([x:y:3]", [(3, "x"), (10, "y")]),
        (r"[a\:b:c:3]", [(3, "a:b"), (10, "c")]),
        ("[a|b]", [(step + 1, "ab"[step % 2]) for step in range(10)]),
        ("[fe|]male", [(step + 1, ("female", "male")[step % 2]) for step in range(10)]),
        ("[a||c]", [(step + 1, ("a", "", "c")[step % 3]) for step in range(10)]),
        ("[[a|b]:c:3]", [(1, "a"), (2, "b"), (3, "a"), (10, "c")]),
        ("[a|[b:c:4]]", [(1, "a"), (2, "b"), (3, "a"), (4, "b"), (5, "a"), (6, "c"), (7, "a"), (8, "c"), (9, "a"), (10, "c")]),
        ("(a|b)", [(10, "a|b")]),
        ("a | [b:c:5]", [(5, "a | b"), (10, "a | c")]),
        ("a [unfinished:b:3", [(10, "a unfinished:b:3")]),
    ],
)
def test_schedules(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert schedule(prompt) == expected


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("0.5", [(10, "b")]),  # changed in the first pass, it stays so
        ("8", [(10, "b")]),
        ("1.0", [(10, "b")]),
        ("1.5", [(5, "a"), (10, "b")]),
        ("2.0", [(10, "a")]),
        ("24", [(4, "a"), (10, "b")]),
        ("99", [(10, "a")]),
    ],
)
def test_a_second_pass_counts_on(when: str, expected: list[tuple[int, str]]) -> None:
    """As the web UI since 1.6: fractions from 1.0 to 2.0 are the second pass's, whole numbers count both passes' steps; here 20 and 10."""
    found = parse(f"[a:b:{when}]", 10, before=20).parts[0].wordings
    assert [(end, wording.text) for end, wording in found] == expected


def test_a_number_of_steps_and_a_fraction_of_them() -> None:
    prompt = "a [mountain:lake:0.25] with [an oak:a fir:0.75][ in front::0.6]"
    assert [end for end, _ in schedule(prompt, 100)] == [25, 60, 75, 100]
    assert schedule("[a:b:7]", 20) == [(7, "a"), (20, "b")]
    assert schedule("[a:b:7]", 1) == [(1, "a")]


def test_emphasis_inside_and_around_a_schedule() -> None:
    (part,) = parse("([(a:2):b:5]:3)", STEPS).parts
    assert part.wordings == ((5, Wording(((Phrase("a", 6.0),),))), (10, Wording(((Phrase("b", 3.0),),))))
    assert part.at(0) is part.wordings[0][1]
    assert part.at(4) is part.wordings[0][1]
    assert part.at(5) is part.at(500) is part.wordings[1][1]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a BREAK b", [["a"], ["b"]]),
        ("a\nBREAK\nb", [["a"], ["b"]]),
        ("BREAK b", [[""], ["b"]]),
        ("a BREAK", [["a"]]),
        ("a BREAK BREAK b", [["a"], [""], ["b"]]),
        ("BREAKFAST", [["BREAKFAST"]]),
        ("a (b BREAK c) d", [["a ", "b"], ["c", " d"]]),
        ("BREAK", [[""]]),
    ],
)
def test_break(prompt: str, expected: list[list[str]]) -> None:
    (part,) = parse(prompt, STEPS).parts
    assert [[phrase.text for phrase in passage] for passage in part.wordings[0][1].passages] == expected


def test_and_composes_weighted_parts() -> None:
    prompt = parse("a cat :1.2 AND [a dog:a fox:5] AND a (cow:1.5) : -0.5", STEPS)
    assert [part.weight for part in prompt.parts] == [1.2, 1.0, -0.5]
    assert [[wording.text for _, wording in part.wordings] for part in prompt.parts] == [["a cat"], ["a dog", "a fox"], ["a cow"]]
    assert prompt.parts[2].wordings[0][1].passages[0][1] == Phrase("cow", 1.5)


def test_and_is_a_word_where_nothing_is_composed() -> None:
    assert parse("cat AND dog", STEPS, composable=False).parts == (Part(1.0, ((STEPS, plain("cat AND dog")),)),)
    assert len(parse("BAND ANDES and", STEPS).parts) == 1
    assert parse("ratio 16:9", STEPS).parts[0].weight == 1.0


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:fine>", LoraTag("fine", 1.0, 1.0)),
        ("<lora:fine:0.8>", LoraTag("fine", 0.8, 0.8)),
        ("<lyco:fine:0.8>", LoraTag("fine", 0.8, 0.8)),
        ("<lora:fine:0.5:0.8>", LoraTag("fine", 0.8, 0.5)),
        ("<lora:folder/fine v2:-1>", LoraTag("folder/fine v2", -1.0, -1.0)),
        ("<lora:fine:te=0.5:unet=0.8>", LoraTag("fine", 0.8, 0.5)),
        ("<lora:fine:0.7:unet=0.2>", LoraTag("fine", 0.2, 0.7)),
    ],
)
def test_lora_tags_are_pulled_out(tag: str, expected: LoraTag) -> None:
    prompt = parse(f"a {tag}cat", STEPS)
    assert prompt.loras == (expected,)
    assert prompt.parts[0].wordings == ((STEPS, plain("a cat")),)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<lora:>", "write <lora:name>"),
        ("<lora:a:b>", "not a number"),
        ("<lora:a:1:2:3>", "write <lora:name>"),
        ("<lora:a:dyn=4>", "write <lora:name>"),
        ("<lora:a:nan>", "at most 1000"),
        ("<hypernet:a:1>", "hypernetworks are not supported"),
        ("(a:1001)", "comes to 1001: at most 1000"),
        ("(a:" + "9" * 400 + ")", "comes to inf"),
        ("(" * 80 + "a", "at most 1000"),
        ("(" * 100_000, "nested over 100 deep"),
        ("a :9999 AND b", "at most 1000"),
    ],
)
def test_refusals(prompt: str, message: str) -> None:
    with pytest.raises(BadRequest, match=message) as error:
        parse(prompt, STEPS)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("prompt", ["", "   ", "# nothing else", "# one\n# two\n", "\n\n", "<lora:a:1>", " # c"])
def test_nothing_but_comments_is_the_empty_prompt(prompt: str) -> None:
    assert parse(prompt, STEPS).parts == (Part(1.0, ((STEPS, EMPTY),)),)


def test_comments_end_with_their_line() -> None:
    assert parse("a cat # no dog (\non grass", STEPS).parts[0].wordings[0][1] == plain("a cat \non grass")
    assert parse(r"the colour \#ff0000", STEPS).parts[0].wordings[0][1] == plain("the colour #ff0000")
    assert parse("# <lora:a:1>\ncat", STEPS).loras == ()
    assert strip_comments("no comment") == "no comment"


def test_values_can_be_cached_by() -> None:
    first, second = parse("a [b|(c:1.2)] BREAK d AND e", STEPS), parse("a [b|(c:1.2)] BREAK d AND e", STEPS)
    assert first == second
    assert hash(first) == hash(second)
    assert len({wording for part in first.parts for _, wording in part.wordings}) == 3


def test_long_prompts_take_no_more_than_a_moment() -> None:
    """Linear in the length: the longest request there may be, in the worst shapes, at the most steps."""
    for text in (
        "(a)" * 33_000,
        "[a:b:3]" * 14_000,
        ")]" * 50_000,
        "a:b|" * 25_000,
        ("(" * 60 + "a" + ")" * 60) * 80,
        "a " + " " * 99_000 + "b",
        " " * 90_000 + " AND b :" + "0" * 9_000,
    ):
        started = time.thread_time()
        parse(text, 20)
        assert time.thread_time() - started < 20  # a second or two here; a machine may be ten times slower


def test_escaped_text_means_itself() -> None:
    random = Random(0)
    pieces = [*"\\()[]{}|#:_ <>ab1.", "AND", "BREAK", "__", "<lora:", "$$", ":1.2)", "\n"]
    texts = ["".join(random.choice(pieces) for _ in range(random.randrange(12))) + "x" for _ in range(2000)]
    for text in ["a (red) __colour__ {red|blue} sphere", "<lora:x:1>", "[a:b:0.5]", "red AND blue BREAK x # y", r"\( \\ \# \{ \|", *texts]:
        found = parse(expand(escaped(text), 0), 4)
        assert not found.loras
        ((_, wording),) = found.parts[0].wordings
        assert (len(found.parts), wording) == (1, plain(text)), text
