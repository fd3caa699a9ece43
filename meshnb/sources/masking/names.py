"""Which words are names in a mesh, and which other words stand for them.

A name is masked word by word: of ``reviews-v1-68bccdd8bb-lh2mn`` only ``reviews`` is somebody's.
So everything that is put together from names keeps its shape: hosts, pods of a ReplicaSet, clusters
of Envoy, objects that a controller names after another one.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from meshnb.sources.masking.vocabulary import (
    RESERVED_TOP_LEVELS,
    TOP_LEVELS,
    is_common,
    is_public,
    masks,
    stays,
)

_WORD = re.compile(r"[A-Za-z0-9]+")
_PARTS = re.compile(r"([A-Za-z0-9]*?)(\d*)")
#: What is no word: a number in hexadecimal digits, a time, an amount.
_NUMBER = re.compile(r"(?=[a-f]*\d)[0-9a-f]{8,}|(?:\d+[a-z]{1,2})+|\d+t\d+")
#: The number of an account at a cloud, in a name.
_ACCOUNT = re.compile(r"\d{10,}")
#: What controllers of Kubernetes append to names: random letters, or a hash (apimachinery's rand).
_APPENDED = re.compile(r"[bcdfghjklmnpqrstvwxz2456789]{5}")
_HASH = re.compile(r"(?=[a-z]*\d)[bcdfghjklmnpqrstvwxz2456789]{8,10}")
#: A label of DNS is not longer.
_LONGEST = 63
_ESCAPE = re.compile(r"(?s:.*)(?:\\[A-Za-z]|\\u[0-9a-f]{4}|%[0-9A-Fa-f]{2})")
#: A name that no object has is compared with so many that some have; a near miss stays one.
_COMPARED, _ALIKE = 400_000, 0.8
_BEFORE = frozenset("/=|@~.-([{,'\"")
_AFTER = frozenset("/|@~.-)]},;'\"?&#")
_QUOTES = ("'", '"')
#: A class of letters in a regular expression, or a character in JSON.
_ESCAPED = re.compile(r"\\u[0-9a-f]{4}|\\[A-Za-z]")
_KEY = re.compile(r"\\*[\"']\s*:")


class Names:
    """The words that are names, and their masks. First all are added, then the masks are chosen."""

    def __init__(self) -> None:
        #: words of names, and whether some object has such a name
        self._words: dict[str, bool] = {}
        #: the same words as they were written
        self._forms: set[str] = set()
        self._random: set[str] = set()
        self._domains: set[tuple[str, str]] = set()
        #: names that objects have, as they are
        self._whole: set[str] = set()
        self._masks: dict[str, str] = {}
        self._loose: frozenset[str] = frozenset()
        self._tops: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None
        #: how often a word was replaced
        self.count = 0

    def add(self, name: str, *, defined: bool = False, whole: bool = True) -> None:
        """Add a name; ``defined`` when an object has it.

        A common word is a name only where it is a ``whole`` one.
        """
        written = _WORD.findall(_ESCAPED.sub(" ", name[:4096]))
        words = [word.lower() for word in written]
        if defined:
            self._whole.add(name.lower())
        for place, word in enumerate(words):
            if len(word) > _LONGEST or (not _ACCOUNT.fullmatch(word) and _is_none(word)):
                continue
            last = place == len(words) - 1
            if place and (_HASH.fullmatch(word) or (last and _APPENDED.fullmatch(word))):
                continue
            if is_common(_base(word)) and (len(words) > 1 or not whole):
                continue
            self._words[word] = self._words.get(word, False) or defined
            self._forms.add(_base(written[place]))

    def add_host(self, host: str, *, defined: bool = False) -> None:
        """Add a name of DNS, whose labels are names each; that of something public is none."""
        labels = [label for label in host.lower().split(":")[0].strip("*.").split(".") if label]
        if not labels or is_public(".".join(labels)):
            return
        public = len(labels) > 1 and labels[-1] in TOP_LEVELS
        for label in labels[: -1 if public else None]:
            self.add(label, defined=defined)
        if public and _WORD.fullmatch(labels[-2]):
            self._domains.add((labels[-2], labels[-1]))

    def add_random(self, *words: str) -> None:
        """Add words that a controller made up, such as the last one of a pod's name."""
        self._random.update(word.lower() for word in words)

    def settle(self) -> None:
        """Choose the masks. Whatever sorted by name before sorts so afterwards."""
        words: dict[str, bool] = {}
        for word, known in self._words.items():
            base = _base(word)
            if word not in self._random and (_ACCOUNT.fullmatch(base) or not stays(base)):
                words[base] = words.get(base, False) or known
        defined = sorted(word for word, known in words.items() if known)
        missed = self._near_misses([word for word in words if not words[word]], defined)
        plain = sorted(set(words) - set(missed))
        chosen = dict(zip(plain, _chosen(len(plain), words), strict=True))
        for word, meant in missed.items():
            mask = chosen[meant]
            while mask in chosen.values():
                mask += "x"
            chosen[word] = mask
        self._masks = chosen
        self._loose = frozenset(word for word in chosen if is_common(word))
        tops = dict.fromkeys(sorted(top for label, top in self._domains if _base(label) in chosen))
        free = (*RESERVED_TOP_LEVELS, *(f"{RESERVED_TOP_LEVELS[0]}{n}" for n in range(2, 99)))
        self._tops = dict(zip(tops, free, strict=False))
        self._pattern = _pattern(chosen, self._forms)

    def _near_misses(self, referenced: list[str], defined: list[str]) -> dict[str, str]:
        if len(referenced) * len(defined) > _COMPARED:
            return {}
        close = {
            word: get_close_matches(word, defined, n=1, cutoff=_ALIKE)
            for word in referenced
            if len(word) > 3
        }
        return {word: found[0] for word, found in close.items() if found}

    @property
    def replaced(self) -> Mapping[str, str]:
        """Which word stands for which other one."""
        return self._masks

    @property
    def common(self) -> list[str]:
        """The names of objects that stay, because they consist of words that are nobody's."""
        return sorted(name for name in self._whole if name and not self.occurs(name))

    def masked(self, text: str) -> str:
        """Return a text in which every word that is a name is another one."""
        return text if self._pattern is None else self._pattern.sub(self._word, text)

    def knows(self, word: str) -> bool:
        """Whether a word, in lower case, has a mask."""
        return _base(word) in self._masks

    def occurs(self, text: str) -> bool:
        """Whether there is a name in a text."""
        return self._pattern is not None and any(map(self._is_name, self._pattern.finditer(text)))

    def _is_name(self, match: re.Match[str]) -> bool:
        loose = match[1].lower() in self._loose
        return _begins(match) and not (loose and not _stands_as_name(match))

    def _word(self, match: re.Match[str]) -> str:
        word, digits, top = match[1], match[2], match[3]
        lower = word.lower()
        if not self._is_name(match):
            return match[0]
        self.count += 1
        mask = _in_case_of(word, self._masks[lower])
        end = match.string[match.end(2) : match.end()]
        if top is not None and (lower + digits, top.lower()) in self._domains:
            end = f".{self._tops.get(top.lower(), top)}"
        return f"{mask}{digits}{end}"


def _is_none(word: str) -> bool:
    return stays(word) or _NUMBER.fullmatch(word) is not None


def _base(word: str) -> str:
    """Return a word without the number at its end."""
    match = _PARTS.fullmatch(word)
    return match[1] if match is not None and match[1] else word


def _in_case_of(word: str, mask: str) -> str:
    if word.islower():
        return mask
    if word.isupper():
        return mask.upper()
    return mask.capitalize() if word[0].isupper() else mask


def _stands_as_name(match: re.Match[str]) -> bool:
    """Whether a word that is also a common one is a name here, by what stands around it."""
    text, start, end = match.string, match.start(), match.end(2)
    before = text[start - 1] if start else ""
    after = text[end] if end < len(text) else ""
    if before in ("\\", "_") or after == "_":
        return False
    if not before and not after:
        return True
    if before in _QUOTES and _KEY.match(text, end):
        return False
    if after == ":":
        return text[end + 1 : end + 2].isdigit()
    if after == "." and not text[end + 1 : end + 2].isalnum():
        after = " "
    if before in _BEFORE and (after in _AFTER or not after or after.isspace() or after == "\\"):
        return not (before in ".-" and _is_composed_elsewhere(text, start, end))
    if after in ("/", "|", "@", "~", ".", "-"):
        return not _is_composed_elsewhere(text, start, end)
    return text[start - 2 : start] == ": " and after in ("", "\n", "\r", "\\")


def _is_composed_elsewhere(text: str, start: int, end: int) -> bool:
    """Whether a word is a part of a name that Envoy or Istio gave."""
    run = re.compile(r"[A-Za-z0-9._-]*")
    head = text[max(0, start - 80) : start]
    begin = len(head) - len(re.split(r"[^A-Za-z0-9._-]", head)[-1])
    match = run.match(text, end)
    return is_public(head[begin:] + text[start:end] + (match[0] if match else ""))


def _chosen(number: int, words: Iterable[str]) -> list[str]:
    """Return so many masks, in the order of the alphabet, none of which is a name already."""
    taken = set(words)
    pool = [mask for mask in masks() if mask not in taken]
    first, rounds = list(pool), 1
    while len(pool) < number:
        rounds += 1
        pool += [a + b for a in first for b in first if a != b][: number * 2]
    return sorted(secrets.SystemRandom().sample(pool, number))


def _begins(match: re.Match[str]) -> bool:
    """Whether a word begins where a match does: behind none, or behind an escape as JSON has it."""
    text, start = match.string, match.start()
    before = text[start - 1 : start] if start else ""
    if not (before.isalnum() and before.isascii()):
        return True
    return _ESCAPE.fullmatch(text[max(0, start - 6) : start]) is not None


def _pattern(words: Mapping[str, str], written: Iterable[str]) -> re.Pattern[str] | None:
    """Return a pattern for words; what stands before one, :func:`_begins` says, which is faster."""
    forms = {form for word in words for form in (word, word.upper(), word.capitalize())}
    forms |= {form for form in written if form.lower() in words}
    if not forms:
        return None
    tops = "|".join(sorted(TOP_LEVELS, key=len, reverse=True))
    return re.compile(
        rf"({_alternatives(sorted(forms))})(\d*)(?![A-Za-z0-9])(?:\.({tops})(?![A-Za-z0-9_-]))?"
    )


def _alternatives(words: list[str], at: int = 0) -> str:
    """Return a pattern for any of these sorted words, from a place on, as a tree of letters."""
    branches: list[str] = []
    ends = False
    place = 0
    while place < len(words):
        word = words[place]
        if len(word) == at:
            ends, place = True, place + 1
            continue
        stop = place
        while stop < len(words) and len(words[stop]) > at and words[stop][at] == word[at]:
            stop += 1
        branches.append(word[at] + _alternatives(words[place:stop], at + 1))
        place = stop
    if not branches:
        return ""
    joined = branches[0] if len(branches) == 1 and not ends else f"(?:{'|'.join(branches)})"
    return f"{joined}?" if ends else joined
