r"""Random words in a prompt, drawn from the picture's seed: `__colour__` from a text file, `{red|blue}` from the prompt itself.

    __colour__  __nature/tree__   a line of colour.txt, of nature/tree.txt; in a file, blank lines and lines that begin with # do not count
    {a|b|c}                       one of them; options may hold options and wildcards, and may be empty
    {2::a|b}                      a twice as often
    {2$$a|b|c}                    two different ones, joined by ", "
    {1-2$$ and $$a|b|c}           one or two different ones, joined by " and "
    \{ \} \|                      the character itself

Braces without a bar or $$ are text. The same seed gives the same words, whatever else the request says; the result is an ordinary prompt.
Source: adieyal, sd-dynamic-prompts, SYNTAX.md.
"""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.errors import BadRequest, shortened, unknown_name
from pipelines.prompt import strip_comments

MAX_CHARACTERS = 100_000  # as for a prompt
MAX_NESTING = 20
MAX_DRAWS = 10_000

_NAME = re.compile(r"__([^\W_](?:[\w./ -]*?[^\W_])?)__")
_PIECES = re.compile(r"\\.|[{}|]|[^\\{}|]+|\\", re.S)
_COUNT = re.compile(r"(\d+)(?:-(\d+))?\$\$")
_WEIGHT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)::")
_ESCAPED = re.compile(r"\\([{}|])")


def expand(prompt: str, seed: int, *folders: Path, stream: str = "prompt") -> str:
    """The prompt with every choice made.

    seed: the picture's. folders: of wildcards; the first that has a name is asked. stream: what the prompt is ("negative_prompt"), so that
    two prompts of one picture draw independently. A prompt without wildcards and choices comes back as it is; from others the comments are
    taken out first.

    Raises:
        BadRequest: a wildcard has no file (the nearest is named) or an empty one, refers to itself, or the text grows past any use.
    """
    if "__" not in prompt and not ("{" in prompt and "}" in prompt):
        return prompt
    return _Draw(seed, stream, folders).text(strip_comments(prompt))


def wildcard_names(*folders: Path) -> dict[str, Path]:
    """Every wildcard there is, by the name that a prompt calls it; of equal names the first folder's."""
    found: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.txt")):
            found.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
    return found


class _Draw:
    """One prompt's choices, in the order in which they stand."""

    def __init__(self, seed: int, stream: str, folders: Sequence[Path]) -> None:
        # Seeded by text Python's generator is the same on every machine, and random() is kept the same from version to version.
        self._random = random.Random(f"limn {stream} {seed}")
        self._folders = folders
        self._files: Mapping[str, Path] | None = None
        self._draws = 0

    def text(self, prompt: str) -> str:
        return _ESCAPED.sub(r"\1", self._expanded(prompt, 0))

    def _expanded(self, text: str, depth: int) -> str:
        """Choices first, from the outermost: what was not chosen draws nothing."""
        if depth > MAX_NESTING:
            near = shortened(text)
            raise BadRequest(f"prompt: choices and wildcards nested over {MAX_NESTING} deep, near {near}; does a file name itself?")
        pieces = _split_choices(text)
        whole = "".join(self._chosen(piece, depth) if is_choice else self._filled(piece, depth) for piece, is_choice in pieces)
        if len(whole) > MAX_CHARACTERS:
            raise BadRequest(f"prompt: over {MAX_CHARACTERS} characters once its wildcards are filled in; make it smaller")
        return whole

    def _chosen(self, inside: str, depth: int) -> str:
        """`inside` without its braces."""
        counts = _COUNT.match(inside)
        low, high, joint = 1, 1, ", "
        if counts:
            low, high = int(counts[1][:6]), int((counts[2] or counts[1])[:6])
            inside = inside[counts.end() :]
            head, separator, tail = inside.partition("$$")
            if separator and "|" not in head and "{" not in head:
                joint, inside = head, tail
        options = _options(inside)
        if low > high or high > len(options):
            raise BadRequest(f"prompt: {shortened(inside)} has {len(options)} options, but {low} to {high} are asked for")
        chosen = []
        for _ in range(low + (self._below(high - low + 1) if high > low else 0)):
            chosen.append(options.pop(self._weighted([weight for weight, _ in options]))[1])
        return joint.join(self._expanded(option, depth + 1) for option in chosen)

    def _filled(self, text: str, depth: int) -> str:
        pieces, end = [], 0
        for match in _NAME.finditer(text):
            lines = self._lines(match[1])
            pieces += [text[end : match.start()], self._expanded(lines[self._below(len(lines))], depth + 1)]
            end = match.end()
        return "".join([*pieces, text[end:]])

    def _lines(self, name: str) -> list[str]:
        if self._files is None:
            self._files = wildcard_names(*self._folders)
        if name not in self._files:
            raise unknown_name("wildcard", name, self._files or ["none: no wildcard folder holds a .txt file"])
        try:
            lines = self._files[name].read_text("utf-8-sig").splitlines()
        except (UnicodeDecodeError, OSError) as error:
            raise BadRequest(f"wildcard file {str(self._files[name])!r} cannot be read: {error}; save it as UTF-8") from None
        words = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not words:
            raise BadRequest(f"wildcard file {str(self._files[name])!r} has no lines to draw from: write one option to a line")
        return words

    def _below(self, count: int) -> int:
        return int(self._drawn() * count)

    def _drawn(self) -> float:
        """The next number in [0, 1)."""
        self._draws += 1
        if self._draws > MAX_DRAWS:
            raise BadRequest(f"prompt: over {MAX_DRAWS} random choices; make it smaller")
        return self._random.random()

    def _weighted(self, weights: Sequence[float]) -> int:
        point = self._drawn() * sum(weights)
        for i, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return i
        # All weights are 0, or rounding has left nothing after the last: the last that may come.
        return max((i for i, weight in enumerate(weights) if weight > 0), default=0)


def _split_choices(text: str) -> list[tuple[str, bool]]:
    """The text in pieces: (the inside of an outermost choice, True) or (other text, False)."""
    pieces: list[tuple[str, bool]] = []
    open_at: list[int] = []
    closed: dict[int, int] = {}
    for match in _PIECES.finditer(text):
        if match[0] == "{":
            open_at.append(match.start())
        elif match[0] == "}" and open_at:
            closed[open_at.pop()] = match.start()
    end, at = 0, text.find("{")
    while at != -1:
        close = closed.get(at)
        if close is not None and (len(_bars(text[at + 1 : close])) > 1 or _COUNT.match(text, at + 1)):
            pieces += [(text[end:at], False), (text[at + 1 : close], True)]
            end = close + 1
            at = text.find("{", end)
        else:
            at = text.find("{", at + 1)
    return [*pieces, (text[end:], False)]


def _bars(inside: str) -> list[str]:
    """Text split at its own bars, not at those of choices inside."""
    parts, depth = [""], 0
    for match in _PIECES.finditer(inside):
        depth += (match[0] == "{") - (match[0] == "}")
        if match[0] == "|" and depth <= 0:
            parts.append("")
        else:
            parts[-1] += match[0]
    return parts


def _options(inside: str) -> list[tuple[float, str]]:
    """(weight, words) of each option."""
    options = []
    for option in _bars(inside):
        weight = _WEIGHT.match(option)
        options.append((min(float(weight[1]), 1e9), option[weight.end() :]) if weight else (1.0, option))
    return options
