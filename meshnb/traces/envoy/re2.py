"""Regular expressions as Envoy means them: RE2's syntax, matched against a whole text.

An expression comes from the cluster and may be hostile, so it is not handed to Python's ``re``,
which can take forever: as RE2 does, all ways through the expression are followed at once. The
syntax is that of https://github.com/google/re2/wiki/Syntax.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

#: An expression that needs more states than this is not followed; RE2 has a limit of its kind.
_LARGEST = 20_000
#: RE2 refuses a count above this.
_MOST_REPEATS = 1000
#: Groups within groups, at most.
_DEEPEST = 100

_Test = Callable[[str], bool]
_CLASSES: dict[str, _Test] = {
    "d": lambda c: "0" <= c <= "9",
    "w": lambda c: c == "_" or (c.isascii() and c.isalnum()),
    "s": lambda c: c in "\t\n\f\r ",
}
_POSIX: dict[str, _Test] = {
    "alnum": lambda c: c.isascii() and c.isalnum(),
    "alpha": lambda c: c.isascii() and c.isalpha(),
    "ascii": str.isascii,
    "blank": lambda c: c in "\t ",
    "cntrl": lambda c: c < " " or c == "\x7f",
    "digit": _CLASSES["d"],
    "graph": lambda c: "!" <= c <= "~",
    "lower": lambda c: "a" <= c <= "z",
    "print": lambda c: " " <= c <= "~",
    "punct": lambda c: "!" <= c <= "~" and not c.isalnum(),
    "space": lambda c: c in "\t\n\v\f\r ",
    "upper": lambda c: "A" <= c <= "Z",
    "word": _CLASSES["w"],
    "xdigit": lambda c: c in "0123456789abcdefABCDEF",
}
_PLAIN_ESCAPES = {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}


class NotFollowed(ValueError):
    """An expression that is no RE2, or that uses a part of it that is not followed here."""


@dataclass(slots=True)
class _State:
    """One state: a test of a character, an assertion, or neither; and where it leads."""

    test: _Test | None = None
    #: looks at the characters before and behind the position, empty at the ends of the text
    holds: Callable[[str, str], bool] | None = None
    next: list[_State] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Part:
    start: _State
    end: _State


class Expression:
    """A regular expression, ready to be matched. Raises :class:`NotFollowed`."""

    def __init__(self, text: str) -> None:
        """Read an expression."""
        reader = _Reader(text)
        self._part = reader.read()

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        current = _closure([self._part.start], "", text[:1])
        for position, character in enumerate(text):
            ahead = [
                state
                for known in current
                if known.test is not None and known.test(character)
                for state in known.next
            ]
            if not ahead:
                return False
            current = _closure(ahead, character, text[position + 1 : position + 2])
        return self._part.end in current


def _closure(states: list[_State], before: str, behind: str) -> list[_State]:
    """Return the states that are reached without a further character, these included."""
    seen: dict[int, _State] = {}
    todo = states
    while todo:
        state = todo.pop()
        if id(state) in seen:
            continue
        seen[id(state)] = state
        if state.test is None and (state.holds is None or state.holds(before, behind)):
            todo += state.next
    return list(seen.values())


class _Reader:
    """Reads an expression from left to right; flags hold until the end of their group."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.states = 0
        self.depth = 0
        self.flags = frozenset[str]()

    def read(self) -> _Part:
        part = self.alternatives()
        if self.at < len(self.text):
            raise NotFollowed("it has a parenthesis too many")
        return part

    def peek(self, count: int = 1) -> str:
        return self.text[self.at : self.at + count]

    def take(self, expected: str) -> bool:
        if self.text.startswith(expected, self.at):
            self.at += len(expected)
            return True
        return False

    def character(self) -> str:
        if self.at >= len(self.text):
            raise NotFollowed("it ends too early")
        self.at += 1
        return self.text[self.at - 1]

    def state(self, **fields: object) -> _State:
        self.states += 1
        if self.states > _LARGEST:
            raise NotFollowed("it is too large")
        return _State(**fields)  # type: ignore[arg-type]

    def single(self, test: _Test) -> _Part:
        end = self.state()
        start = self.state(test=test)
        start.next.append(end)
        return _Part(start, end)

    def assertion(self, holds: Callable[[str, str], bool]) -> _Part:
        end = self.state()
        start = self.state(holds=holds)
        start.next.append(end)
        return _Part(start, end)

    def alternatives(self) -> _Part:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NotFollowed("it is nested too deeply")
        flags = self.flags
        parts = [self.sequence()]
        while self.take("|"):
            parts.append(self.sequence())
        self.flags = flags
        self.depth -= 1
        if len(parts) == 1:
            return parts[0]
        start, end = self.state(), self.state()
        for part in parts:
            start.next.append(part.start)
            part.end.next.append(end)
        return _Part(start, end)

    def sequence(self) -> _Part:
        start = end = self.state()
        while self.peek() not in ("", "|", ")"):
            part = self.repeated()
            end.next.append(part.start)
            end = part.end
        return _Part(start, end)

    def repeated(self) -> _Part:
        begin, flags = self.at, self.flags
        part = self.atom()
        counts = self.counts()
        if counts is None:
            return part
        self.take("?")  # whether it takes few or many makes no difference to a whole match
        after = self.at
        if self.peek() in ("*", "+", "?") or self.counts() is not None:
            raise NotFollowed("it repeats a repetition")
        least, most = counts
        # Each time is a copy of its own, read again from where it stands.
        copies = [part]
        wanted = max(least, 1) if most is None else most
        ahead = self.flags
        while len(copies) < wanted:
            self.at, self.flags = begin, flags
            copies.append(self.atom())
        self.at, self.flags = after, ahead
        return self.chained(copies, least, most)

    def chained(self, copies: list[_Part], least: int, most: int | None) -> _Part:
        start, end = self.state(), self.state()
        if most == 0:
            start.next.append(end)
            return _Part(start, end)
        here = start
        for number, copy in enumerate(copies):
            if number >= least:
                here.next.append(end)
            here.next.append(copy.start)
            here = copy.end
        here.next.append(end)
        if most is None:
            here.next.append(copies[-1].start)
        return _Part(start, end)

    def counts(self) -> tuple[int, int | None] | None:
        """Return how often the last part may stand, None when nothing is said of that."""
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(sign):
                return bounds
        if self.peek() != "{":
            return None
        close = self.text.find("}", self.at)
        least, comma, most = self.text[self.at + 1 : close].partition(",")
        if close < 0 or not _digits(least) or not (most == "" or _digits(most)):
            return None  # then it is a plain brace
        self.at = close + 1
        low = int(least)
        high = low if not comma else int(most) if most else None
        if max(low, high or 0) > _MOST_REPEATS or (high is not None and high < low):
            raise NotFollowed("it has a bad number of repetitions")
        return low, high

    def atom(self) -> _Part:
        character = self.character()
        if character == "(":
            return self.group()
        if character == "[":
            return self.single(self.bracket())
        if character == ".":
            every = "s" in self.flags
            return self.single(lambda c: every or c != "\n")
        if character == "^":
            lines = "m" in self.flags
            return self.assertion(lambda before, _: not before or (lines and before == "\n"))
        if character == "$":
            lines = "m" in self.flags
            return self.assertion(lambda _, behind: not behind or (lines and behind == "\n"))
        if character == "\\":
            return self.escaped()
        if character in "*+?":
            raise NotFollowed("it repeats nothing")
        return self.single(self.literal(character))

    def literal(self, character: str) -> _Test:
        if "i" not in self.flags:
            return lambda c: c == character
        folded = character.lower()
        return lambda c: c.lower() == folded

    def group(self) -> _Part:
        outer = self.flags
        if self.take("?"):
            if self.take("P<") or (self.peek() == "<" and self.peek(2) not in ("<=", "<!")):
                close = self.text.find(">", self.at)
                if close < 0:
                    raise NotFollowed("a group's name does not end")
                self.at = close + 1
            elif self.options():
                return self.sequence_of_nothing()
        part = self.alternatives()
        self.flags = outer
        if not self.take(")"):
            raise NotFollowed("it lacks a closing parenthesis")
        return part

    def sequence_of_nothing(self) -> _Part:
        state = self.state()
        return _Part(state, state)

    def options(self) -> bool:
        """Read flags such as ``i-s``; whether they are for the rest and not for a group."""
        on = True
        flags = set(self.flags)
        while (character := self.character()) not in ":)":
            if character == "-" and on:
                on = False
            elif character in "imsU":
                (flags.add if on else flags.discard)(character)
            else:
                raise NotFollowed(f"RE2 has no (?{character}")
        self.flags = frozenset(flags)
        return character == ")"

    def escaped(self) -> _Part:
        character = self.character()
        if character == "Q":
            end = self.text.find("\\E", self.at)
            quoted = self.text[self.at : end if end >= 0 else len(self.text)]
            self.at = end + 2 if end >= 0 else len(self.text)
            part = self.sequence_of_nothing()
            for one in quoted:
                following = self.single(self.literal(one))
                part.end.next.append(following.start)
                part = _Part(part.start, following.end)
            return part
        if character == "A":
            return self.assertion(lambda before, _: not before)
        if character == "z":
            return self.assertion(lambda _, behind: not behind)
        if character in "bB":
            wanted, word = character == "b", _CLASSES["w"]
            return self.assertion(
                lambda before, behind: (
                    ((bool(before) and word(before)) != (bool(behind) and word(behind))) == wanted
                )
            )
        known = self.shorthand(character)
        return self.single(known if known is not None else self.literal(self.named(character)))

    def shorthand(self, character: str) -> _Test | None:
        if character in _CLASSES:
            return _CLASSES[character]
        if character.lower() in _CLASSES:
            test = _CLASSES[character.lower()]
            return lambda c: not test(c)
        if character in "pPC":
            raise NotFollowed(f"\\{character} is not followed here")
        return None

    def named(self, character: str) -> str:
        """Return the character that an escape stands for."""
        if character in _PLAIN_ESCAPES:
            return _PLAIN_ESCAPES[character]
        if character == "x":
            if self.take("{"):
                close = self.text.find("}", self.at)
                digits = self.text[self.at : max(close, self.at)]
                self.at = close + 1
            else:
                digits = self.peek(2)
                self.at += 2
            return _code(digits, 16)
        if character in "01234567":
            octal = character
            while len(octal) < 3 and self.peek() and self.peek() in "01234567":
                octal += self.character()
            if character != "0" and len(octal) == 1:
                raise NotFollowed("RE2 has no references back")
            return _code(octal, 8)
        if character.isascii() and character.isalnum():
            raise NotFollowed(f"RE2 has no \\{character}")
        return character

    def bracket(self) -> _Test:
        negated = self.take("^")
        tests: list[_Test] = []
        first = True
        while first or self.peek() != "]":
            first = False
            tests.append(self.member())
        self.at += 1
        folding = "i" in self.flags

        def test(character: str) -> bool:
            forms = {character, character.lower(), character.upper()} if folding else {character}
            return any(one(form) for one in tests for form in forms) != negated

        return test

    def member(self) -> _Test:
        if self.take("[:"):
            close = self.text.find(":]", self.at)
            name = self.text[self.at : max(close, self.at)]
            self.at = close + 2
            test = _POSIX.get(name.removeprefix("^"))
            if close < 0 or test is None:
                raise NotFollowed("it has an unknown class of characters")
            return (lambda c: not test(c)) if name.startswith("^") else test
        character = self.character()
        if character == "\\":
            character = self.character()
            known = self.shorthand(character)
            if known is not None:
                return known
            character = self.named(character)
        if self.peek() == "-" and self.peek(2) not in ("-]", "-"):
            self.at += 1
            last = self.character()
            if last == "\\":
                last = self.named(self.character())
            if last < character:
                raise NotFollowed("it has a range that runs backwards")
            return lambda c: character <= c <= last
        return lambda c: c == character


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4


def _code(digits: str, base: int) -> str:
    try:
        return chr(int(digits, base))
    except (ValueError, OverflowError):
        raise NotFollowed("it has a bad escape") from None


@lru_cache(maxsize=1024)
def _expression(text: str) -> Expression | NotFollowed:
    try:
        return Expression(text)
    except NotFollowed as reason:
        return reason


@lru_cache(maxsize=8192)  # the same paths and hosts come again and again
def full_match(expression: str, text: str) -> bool:
    """Whether the whole text matches an expression. Raises :class:`NotFollowed`."""
    found = _expression(expression)
    if isinstance(found, NotFollowed):
        raise NotFollowed(str(found))
    return found.matches(text)
