r"""A1111's prompt syntax: what is encoded at which step, with which weight, and which LoRAs are asked for.

    (word) [word]            1.1 times more, 1.1 times less; brackets nest
    (word:1.3)               that weight
    \( \) \[ \] \\ \#        the character itself
    a BREAK b                b begins a new window of the text encoder
    a :1.2 AND b :0.8        two prompts, each guided by itself with its weight
    [from:to:when]           from, then to; when below 1 is a fraction of the steps, from 1 on a number of steps
    [to:when] [from::when]   nothing before; nothing after
    [a|b|c]                  another one at every step
    <lora:name:0.8>          pulled out; also <lora:name:text:network> and te=, unet=
    # ...                    a comment, to the end of its line

Malformed text is no error, as in A1111: a round or square bracket that is never closed holds to the end, one that was never opened is
text, and so is a schedule whose last field is no number. Four things differ, all deliberately. `[a:b:10]` changes after exactly ten
steps, as A1111's manual says (its code compares a counter from zero with <=, so takes eleven). BREAK inside weighted brackets still
breaks. A weight after the last colon (`ratio 16:9`) is read only where there is an AND. A lone | outside of brackets leaves the schedules
elsewhere alone.

Source: AUTOMATIC1111, stable-diffusion-webui wiki, Features: attention/emphasis, prompt editing, alternating words, composable diffusion.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import BadRequest, shortened

# Hidden states of CLIP reach about 30; times this they still fit into half precision.
MAX_WEIGHT = 1000.0
MAX_NESTING = 100
_STEP_UP = 1.1  # what one pair of round brackets multiplies by; a square pair divides by it

# No two quantifiers here can take the same characters, so that a long prompt takes time in proportion.
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)"
_COMMENT = re.compile(r"(?<!\\)#[^\n]*(?:\n|$)")
_NETWORK = re.compile(r"<(lora|lyco|hypernet):([^<>]*)>")
_AND = re.compile(r"\bAND\b")
_BREAK = re.compile(r"\bBREAK\b")
_SYNTAX = re.compile(r"[\\()\[\]{}|#]|\bAND\b|\bBREAK\b|<(?:lora|lyco|hypernet):|__")  # of wildcards too
_BRACKETS = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\", re.S)
_ALONE = re.compile(rf"\s*({_NUMBER})\s*")
_EMPHASIS = re.compile(rf"\\[()\[\]\\]|\\|\(|\[|:\s*({_NUMBER})\s*\)|\)|\]|[^\\()\[\]:]+|:")


@dataclass(frozen=True)
class Phrase:
    """Words that share a weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Wording:
    """What a family encodes: passages, split at BREAK, of weighted phrases. Equal wordings encode alike."""

    passages: tuple[tuple[Phrase, ...], ...]

    @property
    def text(self) -> str:
        """The words alone."""
        return " ".join("".join(phrase.text for phrase in passage) for passage in self.passages)

    @property
    def weighted(self) -> bool:
        """Whether any phrase has another weight than 1."""
        return any(phrase.weight != 1.0 for passage in self.passages for phrase in passage)


def plain(text: str) -> Wording:
    """Text taken as it is, without any syntax."""
    return Wording(((Phrase(text),),))


EMPTY = plain("")


def escaped(text: str) -> str:
    """A prompt that means this text, whatever syntax it looks like: a backslash before other characters than these leaves no trace."""
    return _SYNTAX.sub(lambda found: f"{found[0][0]}\\{found[0][1:]}" if len(found[0]) > 1 else f"\\{found[0]}", text)


@dataclass(frozen=True)
class Part:
    """One side of an AND. wordings: (the step before which it ends, the wording), in order; the last ends at the last step."""

    weight: float
    wordings: tuple[tuple[int, Wording], ...]

    def at(self, step: int) -> Wording:
        """The wording for a step, counted from 0; past the end the last one holds."""
        return next((wording for end, wording in self.wordings if step < end), self.wordings[-1][1])


@dataclass(frozen=True)
class LoraTag:
    """A LoRA named in a prompt. weight: for the denoising network; text_weight: for the text encoders."""

    name: str
    weight: float = 1.0
    text_weight: float = 1.0


@dataclass(frozen=True)
class Prompt:
    """A parsed prompt: the parts of its ANDs, and the LoRAs it names."""

    parts: tuple[Part, ...]
    loras: tuple[LoraTag, ...] = ()


def parse(prompt: str, steps: int, *, composable: bool = True) -> Prompt:
    """A prompt as text, for a number of sampler steps.

    composable: whether AND composes; in a negative prompt it is a word like any other. A prompt of comments alone is the empty prompt.

    Raises:
        BadRequest: a LoRA tag without a name or with a weight that is no number, a hypernetwork, a weight over 1000, brackets over
            100 deep.
    """
    text, loras = _pull_networks(strip_comments(prompt))
    texts = _AND.split(text) if composable else [text]
    if len(texts) == 1:
        return Prompt((Part(1.0, _schedule(texts[0], steps)),), loras)
    parts = []
    for part in texts:
        words, _, last = part.rpartition(":")
        weight = _ALONE.fullmatch(last) if words.strip() else None
        parts.append(Part(_checked(float(weight[1])) if weight else 1.0, _schedule((words if weight else part).strip(), steps)))
    return Prompt(tuple(parts), loras)


def strip_comments(prompt: str) -> str:
    r"""The prompt without its comments: from a # to the end of its line; `\#` is a # that stays."""
    return _COMMENT.sub("\n", prompt)


def _pull_networks(text: str) -> tuple[str, tuple[LoraTag, ...]]:
    """The text without its `<lora:…>` tags, and the tags. `<lyco:…>` is the same thing under an older name."""
    tags = []
    for match in _NETWORK.finditer(text):
        if match[1] == "hypernet":
            raise BadRequest(f"{shortened(match[0])}: hypernetworks are not supported; take the tag out")
        tags.append(_lora_tag(match[0], match[2].split(":")))
    return _NETWORK.sub("", text), tuple(tags)


def _lora_tag(tag: str, fields: Sequence[str]) -> LoraTag:
    """`name`, `name:weight`, `name:text:network`; named `te=`, `unet=` win over the fields' order."""
    named = dict(field.split("=", 1) for field in fields[1:] if "=" in field)
    values = [field for field in fields[1:] if "=" not in field]
    name = fields[0].strip()
    unknown = named.keys() - {"te", "unet"}
    if not name or len(values) > 2 or unknown:
        raise BadRequest(f"{shortened(tag)}: write <lora:name>, <lora:name:0.8>, or <lora:name:te=0.5:unet=0.8>")
    try:
        text_weight = float(named.get("te", values[0] if values else 1.0))
        weight = float(named.get("unet", values[-1] if values else 1.0))
    except ValueError:
        raise BadRequest(f"{shortened(tag)}: the weight is not a number; write <lora:{shortened(name)[1:-1]}:0.8>") from None
    return LoraTag(name, _checked(weight), _checked(text_weight))


def _checked(weight: float) -> float:
    if not abs(weight) <= MAX_WEIGHT:
        raise BadRequest(f"a prompt's weight comes to {weight:g}: at most {MAX_WEIGHT:g}, take brackets away")
    return weight


# Schedules. A tree in which only what changes from step to step is a node, everything else is text, brackets and backslashes included.


@dataclass(frozen=True)
class _Switch:
    """`[before:after:when]`; until: the number of steps that `before` lasts."""

    before: tuple["_Node", ...]
    after: tuple["_Node", ...]
    until: int


@dataclass(frozen=True)
class _Cycle:
    """`[a|b|c]`."""

    options: tuple[tuple["_Node", ...], ...]


@dataclass(frozen=True)
class _Mark:
    """A colon or bar whose bracket has not been closed yet, so that its meaning is open."""

    sign: str


_Node = str | _Switch | _Cycle
_OPENING = {")": "(", "]": "["}


def _schedule(text: str, steps: int) -> tuple[tuple[int, Wording], ...]:
    """The wordings of a text over the steps; equal neighbours are one."""
    tree = _tree(text if text.strip() else "", steps)
    known: dict[str, Wording] = {}
    wordings: list[tuple[int, Wording]] = []
    for step in range(steps if any(not isinstance(node, str) for node in tree) else 1):
        words = _at_step(tree, step)
        wording = known.get(words) or known.setdefault(words, _emphasis(words))
        if wordings and wordings[-1][1] == wording:
            wordings.pop()
        wordings.append((step + 1, wording))
    return (*wordings[:-1], (steps, wordings[-1][1]))


def _tree(text: str, steps: int) -> tuple[_Node, ...]:
    brackets, frames = [""], [list[_Node | _Mark]()]

    def close(after: Sequence[_Node]) -> None:
        """The innermost bracket becomes part of what is around it."""
        brackets.pop()
        frames.pop()
        frames[-1].extend(after)

    for match in _BRACKETS.finditer(text):
        token = match[0]
        if token in ("(", "["):
            if len(brackets) > MAX_NESTING:
                raise BadRequest(f"prompt: brackets nested over {MAX_NESTING} deep; take brackets away")
            brackets.append(token)
            frames.append([])
        elif token in _OPENING and _OPENING[token] in brackets:
            while brackets[-1] != _OPENING[token]:  # never closed: text
                close([brackets[-1], *_literal(frames[-1])])
            close(_closed(brackets[-1], frames[-1], token, steps))
        else:
            frames[-1].append(_Mark(token) if token in (":", "|") else token)
    while len(brackets) > 1:
        close([brackets[-1], *_literal(frames[-1])])
    return tuple(_literal(frames[0]))


def _literal(items: Sequence[_Node | _Mark]) -> list[_Node]:
    return [item.sign if isinstance(item, _Mark) else item for item in items]


def _closed(opening: str, items: list[_Node | _Mark], closing: str, steps: int) -> list[_Node]:
    """What a finished pair of brackets is: a switch, a cycle, or text (emphasis is read later)."""
    if opening == "[" and _Mark("|") in items:
        return [_Cycle(tuple(tuple(_literal(option)) for option in _split(items, "|")))]
    fields = _split(items, ":")
    when = _ALONE.fullmatch(fields[-1][0]) if len(fields[-1]) == 1 and isinstance(fields[-1][0], str) else None
    if opening == "[" and len(fields) in (2, 3) and when:
        value = float(when[1])
        until = int(min(max(value * steps if value < 1 else value, 0), steps))
        before = tuple(_literal(fields[0])) if len(fields) == 3 else ()
        return [_Switch(before, tuple(_literal(fields[-2])), until)]
    return [opening, *_literal(items), closing]


def _split(items: Sequence[_Node | _Mark], sign: str) -> list[list[_Node | _Mark]]:
    pieces: list[list[_Node | _Mark]] = [[]]
    for item in items:
        if item == _Mark(sign):
            pieces.append([])
        else:
            pieces[-1].append(item)
    return pieces


def _at_step(nodes: Sequence[_Node], step: int) -> str:
    words = []
    for node in nodes:
        if isinstance(node, _Switch):
            words.append(_at_step(node.before if step < node.until else node.after, step))
        elif isinstance(node, _Cycle):
            words.append(_at_step(node.options[step % len(node.options)], step))
        else:
            words.append(node)
    return "".join(words)


# Emphasis.


def _emphasis(text: str) -> Wording:
    """Brackets become weights, BREAK splits, escapes are resolved."""
    pieces: list[tuple[str | None, float]] = []  # None: BREAK
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(start: int, factor: float) -> None:
        pieces[start:] = [(words, weight * factor) for words, weight in pieces[start:]]

    for match in _EMPHASIS.finditer(text):
        token, weight = match[0], match[1]
        if token in opened:
            opened[token].append(len(pieces))
        elif weight is not None and opened["("]:
            weigh(opened["("].pop(), float(weight))
        elif token == ")" and opened["("]:
            weigh(opened["("].pop(), _STEP_UP)
        elif token == "]" and opened["["]:
            weigh(opened["["].pop(), 1 / _STEP_UP)
        elif token.startswith("\\"):
            pieces.append((token[1:], 1.0))
        else:
            first, *others = _BREAK.split(token)
            pieces.append((first.rstrip() if others else first, 1.0))
            for i, words in enumerate(others, start=1):
                pieces += [(None, 1.0), (words.strip() if i < len(others) else words.lstrip(), 1.0)]
    for start in opened["("]:
        weigh(start, _STEP_UP)
    for start in opened["["]:
        weigh(start, 1 / _STEP_UP)
    return _wording(pieces)


def _wording(pieces: Sequence[tuple[str | None, float]]) -> Wording:
    """Pieces to passages: neighbours of one weight are joined, empty pieces and an empty end fall away."""
    passages: list[list[Phrase]] = [[]]
    for words, weight in pieces:
        if words is None:
            passages.append([])
        elif words and passages[-1] and passages[-1][-1].weight == weight:
            passages[-1][-1] = Phrase(passages[-1][-1].text + words, weight)
        elif words:
            passages[-1].append(Phrase(words, _checked(weight)))
    while len(passages) > 1 and not passages[-1]:
        passages.pop()
    return Wording(tuple(tuple(passage) or EMPTY.passages[0] for passage in passages))
