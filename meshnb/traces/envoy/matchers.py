"""Envoy's matchers, as its JSON has them: of texts, headers, paths, addresses, shares, metadata.

Each says True, False, or why that cannot be said (:class:`Undecided`): an access log does not show
all headers, and a part of a matcher may be unknown here. What the fields mean is from Envoy's
reference (``envoy.type.matcher.v3``, ``envoy.config.route.v3``, ``envoy.config.core.v3``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, NoReturn
from urllib.parse import unquote

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.envoy.re2 import NotFollowed, full_match


@dataclass(frozen=True, slots=True)
class Undecided:
    """Neither true nor false, because of what is not known. It has no truth by accident."""

    reason: str

    def __bool__(self) -> NoReturn:
        raise TypeError(f"undecided, because {self.reason}")

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason


Truth = bool | Undecided


@dataclass(frozen=True, slots=True)
class Headers:
    """What is known of the headers of a request; pseudo headers such as ``:path`` are among them.

    Names are in lower case. A value of None says that the header was not sent; several values are
    joined by commas, as Envoy matches them. With ``complete`` what is not named was not sent.
    """

    known: Mapping[str, str | None] = field(default_factory=dict)
    complete: bool = False

    def get(self, name: str) -> str | Undecided | None:
        """Return a header's value, None when it was not sent, or that it is not known."""
        name = name.lower()
        if name in self.known or self.complete:
            return self.known.get(name)
        return Undecided(f"the header {name} is not known")


def both(truths: Iterable[Truth]) -> Truth:
    """Return whether all are true; one that is false decides, whatever is not known."""
    unknown: Undecided | None = None
    for truth in truths:
        if isinstance(truth, Undecided):
            unknown = truth if unknown is None else unknown
        elif not truth:
            return False
    return unknown if unknown is not None else True


def either(truths: Iterable[Truth]) -> Truth:
    """Return whether any is true; one that is true decides, whatever is not known."""
    unknown: Undecided | None = None
    for truth in truths:
        if isinstance(truth, Undecided):
            unknown = truth if unknown is None else unknown
        elif truth:
            return True
    return unknown if unknown is not None else False


def opposite(truth: Truth) -> Truth:
    """Return the contrary of what is decided."""
    return truth if isinstance(truth, Undecided) else not truth


# --- Texts ---------------------------------------------------------------------------------------

_UPPER = {ord(letter): letter.lower() for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def lower_ascii(text: str) -> str:
    """Return a text in lower case as Envoy makes it, which knows ASCII letters only."""
    return text.translate(_UPPER)


def matches_text(matcher: Json, text: str) -> Truth:
    """Whether a text is matched by a ``StringMatcher``; a regular expression ignores no case."""
    fields = mapping(matcher)
    if "safe_regex" in fields:
        return matches_regex(fields["safe_regex"], text)
    folded = fields.get("ignore_case") is True
    value = lower_ascii(text) if folded else text
    for kind, wanted in fields.items():
        if kind not in ("exact", "prefix", "suffix", "contains"):
            continue
        pattern = lower_ascii(str(wanted)) if folded else str(wanted)
        if kind == "exact":
            return value == pattern
        if kind == "prefix":
            return value.startswith(pattern)
        if kind == "suffix":
            return value.endswith(pattern)
        return pattern in value
    return Undecided(f"a matcher of texts has {_named(fields)}, which is not evaluated offline")


def matches_regex(regex: Json, text: str) -> Truth:
    """Whether a whole text is matched by a ``RegexMatcher``, or by an expression itself."""
    expression = dig(regex, "regex", default="") if isinstance(regex, Mapping) else str(regex)
    try:
        return full_match(str(expression), text)
    except NotFollowed as reason:
        return Undecided(f"the regular expression {expression} cannot be followed: {reason}")


def text_words(matcher: Json) -> str:
    """Return a ``StringMatcher`` in words, such as ``begins with /api``."""
    fields = mapping(matcher)
    words = {
        "exact": "is {}",
        "prefix": "begins with {}",
        "suffix": "ends with {}",
        "contains": "contains {}",
    }
    ignoring = " in any case" if fields.get("ignore_case") is True else ""
    for kind, phrase in words.items():
        if kind in fields:
            return phrase.format(str(fields[kind]) or "empty") + ignoring
    if "safe_regex" in fields:
        return f"matches {dig(fields, 'safe_regex', 'regex', default='')}"
    return f"matches {_named(fields)}"


def _named(fields: Mapping[str, Any]) -> str:
    return ", ".join(map(str, fields)) or "nothing"


# --- Headers and query parameters ----------------------------------------------------------------

#: Kinds of a header matcher that are a string matcher's, under the names they had before 1.20.
_OLD_KINDS = {
    "exact_match": "exact",
    "prefix_match": "prefix",
    "suffix_match": "suffix",
    "contains_match": "contains",
    "safe_regex_match": "safe_regex",
}


def matches_header(matcher: Json, headers: Headers) -> Truth:
    """Whether the headers of a request are matched by a ``HeaderMatcher``.

    One that was not sent is matched by nothing, inverted or not, unless it is to be treated as
    empty; only ``present_match`` asks for that itself.
    """
    fields = mapping(matcher)
    value = headers.get(str(fields.get("name", "")))
    if isinstance(value, Undecided):
        return value
    inverted = fields.get("invert_match") is True
    as_empty = fields.get("treat_missing_header_as_empty") is True
    kinds = _header_kinds(fields)
    if not kinds or "present_match" in kinds:
        wanted = fields.get("present_match") is not False
        return (value is not None or as_empty) == (wanted != inverted)
    if value is None and not as_empty:
        return False
    truth = _header_value(fields, kinds[0], value or "")
    return opposite(truth) if inverted else truth


def _header_kinds(fields: Mapping[str, Any]) -> list[str]:
    # What is neither the name nor a flag says how to match.
    flags = ("name", "invert_match", "treat_missing_header_as_empty")
    return [kind for kind in fields if kind not in flags]


def _header_value(fields: Mapping[str, Any], kind: str, value: str) -> Truth:
    if kind == "string_match":
        return matches_text(fields[kind], value)
    if kind in _OLD_KINDS:
        return matches_text({_OLD_KINDS[kind]: fields[kind]}, value)
    if kind == "range_match":
        return _whole_in_range(fields[kind], value)
    return Undecided(f"a matcher of headers has {kind}, which is not evaluated offline")


def _whole_in_range(bounds: Json, value: str) -> bool:
    """Whether a text is a whole number from the start of an ``Int64Range`` to before its end."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value, re.ASCII):
        return False
    number = int(value)
    fits = -(1 << 63) <= number < 1 << 63
    return fits and _number(bounds, "start") <= number < _number(bounds, "end")


def _number(document: Json, name: str) -> float:
    """Return a number; protobuf's JSON has whole numbers of 64 bits as text, and leaves 0 out."""
    value = mapping(document).get(name, 0)
    try:
        return int(value) if isinstance(value, str) else value if _is_number(value) else 0
    except ValueError:
        return 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def header_words(matcher: Json) -> str:
    """Return a ``HeaderMatcher`` in words, such as ``header end-user is jason``."""
    fields = mapping(matcher)
    name = f"header {fields.get('name', '')}"
    inverted = fields.get("invert_match") is True
    kinds = _header_kinds(fields)
    if not kinds or "present_match" in kinds:
        wanted = (fields.get("present_match") is not False) != inverted
        return f"{name} is {'there' if wanted else 'absent'}"
    kind = kinds[0]
    if kind == "range_match":
        bounds = mapping(fields[kind])
        words = f"is from {bounds.get('start', 0)} to before {bounds.get('end', 0)}"
    elif kind in _OLD_KINDS:
        words = text_words({_OLD_KINDS[kind]: fields[kind]})
    else:
        words = text_words(fields[kind])
    return f"not: {name} {words}" if inverted else f"{name} {words}"


def matches_parameter(matcher: Json, path: str) -> Truth:
    """Whether the query of a path is matched by a ``QueryParameterMatcher``.

    Envoy compares the first value of the name, as it was sent: nothing is decoded.
    """
    fields = mapping(matcher)
    value = query_of(path).get(str(fields.get("name", "")))
    if "present_match" in fields:
        return (value is not None) == (fields["present_match"] is True)
    if value is None:
        return False
    return matches_text(fields["string_match"], value) if "string_match" in fields else True


def query_of(path: str) -> dict[str, str]:
    """Return the first value of each parameter of a path's query, as it was sent."""
    query = path.partition("#")[0].partition("?")[2]
    found: dict[str, str] = {}
    for part in query.split("&"):
        name, _, value = part.partition("=")
        found.setdefault(name, value)
    return found


# --- Paths ---------------------------------------------------------------------------------------


def without_query(path: str) -> str:
    """Return a path without query and fragment, as routes and policies are matched with it."""
    return re.split(r"[?#]", path, maxsplit=1)[0]


def matches_path(matcher: Json, path: str) -> Truth:
    """Whether a path is matched by a ``PathMatcher``, which leaves the query out."""
    return matches_text(mapping(matcher).get("path"), without_query(path))


@dataclass(frozen=True, slots=True)
class NormalPath:
    """A path as Envoy goes on with it; ``status`` is its answer when it does not: 400 or 307."""

    path: str
    status: int | None = None
    details: str = ""


_ESCAPED_SLASH = re.compile(r"%2f|%5c", re.IGNORECASE)
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
#: Of these characters Envoy writes the code, as measured with Envoy 1.40.
_CODED = {ord(character): f"%{ord(character):02X}" for character in '|^`{}"<>'}


def normal_path(path: str, connection: Json) -> NormalPath | Undecided:
    """Return a path as an HTTP connection manager normalises it, before it looks for a route.

    Escaped slashes first, then dots and codes of plain characters, then slashes in a row
    (``path_with_escaped_slashes_action``, ``normalize_path``, ``merge_slashes``).
    """
    fields = mapping(connection)
    if "#" in path:
        return NormalPath(path, 400, "path_normalization_failed")  # no client sends a fragment
    plain, mark, query = path.partition("?")
    if not plain.startswith("/"):
        return NormalPath(path)  # of CONNECT, or of OPTIONS *
    action = str(fields.get("path_with_escaped_slashes_action", "KEEP_UNCHANGED"))
    kept = action in ("KEEP_UNCHANGED", "IMPLEMENTATION_SPECIFIC_DEFAULT")
    if not kept and _ESCAPED_SLASH.search(plain):
        if action == "REJECT_REQUEST":
            return NormalPath(path, 400, "path_normalization_failed")
        plain = _ESCAPED_SLASH.sub(lambda found: unquote(found[0]), plain)
        if action == "UNESCAPE_AND_REDIRECT":
            return NormalPath(plain + mark + query, 307, "path_normalization_failed")
    if fields.get("normalize_path") is True:
        if "%00" in plain:
            return NormalPath(path, 400, "path_normalization_failed")
        if not plain.isascii() or not plain.isprintable() or " " in plain:
            return Undecided(f"how Envoy normalises the path {plain} is not followed here")
        plain = _canonical(plain)
    if fields.get("merge_slashes") is True:
        plain = re.sub(r"/{2,}", "/", plain)
    return NormalPath(plain + mark + query)


def _canonical(path: str) -> str:
    """Return a path without dot segments and without codes of unreserved characters (RFC 3986)."""

    def decoded(found: re.Match[str]) -> str:
        character = chr(int(found[1], 16))
        plain = character.isascii() and (character.isalnum() or character in "-._~")
        return character if plain else found[0]

    text = _ESCAPE.sub(decoded, path.replace("\\", "/").translate(_CODED))
    segments = text.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


# --- Addresses and shares ------------------------------------------------------------------------


def matches_address(ranges: Iterable[Json], address: str | None) -> Truth:
    """Whether an IP address lies in any ``CidrRange``; one without a length holds everything."""
    if not address:
        return Undecided("the address is not known")
    try:
        known = ip_address(address)
    except ValueError:
        return Undecided(f"{address} is no IP address")
    found: list[Truth] = []
    for one in ranges:
        length = mapping(one).get("prefix_len", 0)
        text = f"{mapping(one).get('address_prefix', '')}/{length}"
        try:
            found.append(known in ip_network(text, strict=False))
        except ValueError:
            found.append(Undecided(f"{text} is no range of IP addresses"))
    return either(found)


def range_words(one: Json) -> str:
    """Return a ``CidrRange`` as text, such as ``10.0.0.0/8``."""
    return f"{mapping(one).get('address_prefix', '')}/{mapping(one).get('prefix_len', 0)}"


_DENOMINATORS = {"HUNDRED": 100, "TEN_THOUSAND": 10_000, "MILLION": 1_000_000}


def share_of(percent: Json) -> float:
    """Return a ``FractionalPercent`` as a share from 0 to 1."""
    parts = _DENOMINATORS.get(str(mapping(percent).get("denominator", "HUNDRED")), 100)
    return min(_number(percent, "numerator") / parts, 1.0)


def sampled(percent: Json) -> Truth:
    """Whether a request is among a ``FractionalPercent`` of requests, which all or none may be."""
    share = share_of(percent)
    if 0 < share < 1:
        return Undecided(f"it holds for {share:.4%} of requests".replace(".0000%", "%"))
    return share >= 1


# --- Metadata ------------------------------------------------------------------------------------


def matches_value(matcher: Json, value: Json) -> Truth:
    """Whether a value is matched by a ``ValueMatcher``; None is a value that is not there."""
    fields = mapping(matcher)
    if "present_match" in fields:
        return (value is not None) == (fields["present_match"] is True)
    if "null_match" in fields:
        return Undecided("whether a value is null is not told from whether it is there")
    if "or_match" in fields:
        alternatives = items(fields, "or_match", "value_matchers")
        return either(matches_value(one, value) for one in alternatives)
    if value is None:
        return False
    if "string_match" in fields:
        return isinstance(value, str) and matches_text(fields["string_match"], value)
    if "bool_match" in fields:
        return isinstance(value, bool) and value == fields["bool_match"]
    if "list_match" in fields:
        one_of = mapping(fields, "list_match").get("one_of")
        return isinstance(value, list) and either(matches_value(one_of, one) for one in value)
    if "double_match" in fields:
        return _is_number(value) and _double(fields["double_match"], value)
    return Undecided(f"a matcher of values has {_named(fields)}, which is not evaluated offline")


def _double(matcher: Json, value: float) -> bool:
    bounds = mapping(matcher).get("range")
    if bounds is not None:
        return _number(bounds, "start") <= value < _number(bounds, "end")
    return _number(matcher, "exact") == value


def value_words(matcher: Json) -> str:
    """Return a ``ValueMatcher`` in words."""
    fields = mapping(matcher)
    if "string_match" in fields:
        return text_words(fields["string_match"])
    if "list_match" in fields:
        return f"has an entry that {value_words(dig(fields, 'list_match', 'one_of'))}"
    if "or_match" in fields:
        return " or ".join(value_words(one) for one in items(fields, "or_match", "value_matchers"))
    if "present_match" in fields:
        return "is there" if fields["present_match"] is True else "is absent"
    return f"has {_named(fields)}"
