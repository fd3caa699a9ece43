"""What istiod's validation refuses of single values: addresses, ports, durations, expressions.

Each function yields the path of a value with what is wrong with it, and nothing for a good one, an
absent one, or one of the wrong type, which the definition of the kind is about.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from meshnb.tables.base import Json, dig

Problem = tuple[str, str]

_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:h|ms|m|s|us|µs|ns))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?)(h|ms|m|s|us|µs|ns)")
_MILLISECONDS = {
    "h": 3.6e6,
    "m": 6e4,
    "s": 1e3,
    "ms": 1.0,
    "us": 1e-3,
    "µs": 1e-3,
    "ns": 1e-6,
}
_LABEL = re.compile(r"[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
#: What Python's expressions have and RE2, which Envoy uses, has not.
_NOT_IN_RE2 = re.compile(r"(?<!\\)(?:\\\\)*(\(\?(?:=|!|<=|<!|>|\(|P=)|\\[1-9])")
_CLASS = re.compile(r"(?<!\\)\[\^?\]?(?:\[:\w+:\]|\\.|[^\]\\])*\]")
#: What neither has. Other complaints of Python's may be about what only RE2 has.
_BROKEN = (
    *("missing )", "unbalanced parenthesis", "unterminated character set"),
    "bad escape (end of pattern)",
)
_NOTHING_BEFORE = ("", "(", "|")
_LONGEST_EXPRESSION = 1024
_MOST_PERCENT = 100
#: The smallest share of requests that Envoy can tell from none, in percent.
_SMALLEST_PERCENT = 0.0001


def port_problem(value: Json, path: str) -> Iterator[Problem]:
    """Yield what is wrong with the number of a port."""
    if isinstance(value, int) and not 0 < value < 65536:
        yield path, f"{value} is no port number"


def duration_problem(value: Json, path: str) -> Iterator[Problem]:
    """Yield what is wrong with a duration that must not be 0."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        return
    if sum(float(n) * _MILLISECONDS[unit] for n, unit in _DURATION_PART.findall(value)) < 1:
        yield path, f"{value} is shorter than 1 ms"


def percent_problem(value: Json, path: str) -> Iterator[Problem]:
    """Yield what is wrong with a whole number of percent."""
    if isinstance(value, int) and not 0 <= value <= _MOST_PERCENT:
        yield path, f"{value} is not between 0 and 100 percent"


def share_problem(
    value: Json, path: str, *, smallest: float = _SMALLEST_PERCENT
) -> Iterator[Problem]:
    """Yield what is wrong with a share of requests, in percent."""
    share = dig(value, "value")
    if isinstance(share, int | float) and share != 0 and not smallest <= share <= _MOST_PERCENT:
        yield f"{path}.value", f"{share} is not between 0 and 100 percent"


def address_problem(value: str, path: str, *, ranges: bool = True) -> Iterator[Problem]:
    """Yield what is wrong with an IP address, or a range of them."""
    try:
        if ranges and "/" in value:
            ip_network(value, strict=False)
        else:
            ip_address(value)
    except ValueError:
        yield path, f"{value!r} is no IP address" + (" and no range of them" if ranges else "")


def is_address(value: str) -> bool:
    """Whether a text is one IP address."""
    return not list(address_problem(value, "", ranges=False))


def domain_problem(value: str, path: str, *, wildcard: bool = True) -> Iterator[Problem]:
    """Yield what is wrong with a DNS name, of which the first label may be a star."""
    name = value.removesuffix(".")
    if wildcard:
        if name == "*":
            return
        name = name.removeprefix("*.")
        if "*" in name:
            yield path, f"{value!r} has a star elsewhere than as its first label"
            return
    labels = name.split(".")
    if not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdecimal():
        yield path, f"{value!r} is no DNS name"


def host_problem(value: str, path: str) -> Iterator[Problem]:
    """Yield what is wrong with a host that may begin with a star, or be an address."""
    if value.startswith("*") and not value.startswith("*.") and "." in value:
        value = f"*.{value.partition('.')[2]}"  # a star may begin a label, too
    if not is_address(value):
        yield from domain_problem(value, path)


def full_host_problem(value: str, path: str) -> Iterator[Problem]:
    """Yield what is wrong with a host that is ``NAMESPACE/NAME``, or a name alone."""
    name = value.partition("/")[2] or value
    if "." not in name and "*" not in name:
        yield path, f"{name!r} is a short name, which is not known there"
    else:
        yield from domain_problem(name, path)


def regex_problem(value: Json, path: str) -> Iterator[Problem]:
    """Yield what RE2 does not take of a regular expression, as far as that is certain."""
    if not isinstance(value, str) or len(value) > _LONGEST_EXPRESSION or r"\Q" in value:
        return
    if unknown := _NOT_IN_RE2.search(_CLASS.sub("", value)):
        yield path, f"{unknown[1]} is not known to RE2, whose expressions Envoy takes"
        return
    try:
        with warnings.catch_warnings(action="ignore"):
            re.compile(value)
    except re.error as error:
        empty = error.msg == "nothing to repeat" and value[: error.pos][-1:] in _NOTHING_BEFORE
        if empty or error.msg.startswith(_BROKEN):
            yield path, f"{value!r} is no regular expression: {error.msg}"
    except (RecursionError, OverflowError):
        return
