"""The rules in CEL that the definition of a kind has, beside types and limits.

Kubernetes writes them as ``x-kubernetes-validations``
(https://kubernetes.io/docs/reference/using-api/cel/). They are evaluated for manifests only: what
is in a cluster has passed them, and what a cluster says is never evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from meshnb.tables.base import Json, items, mapping

#: How the library begins when a function was called, and did not like what it was given.
_NO_SUCH_VALUE = "Function '"


def broken_rules(schema: Mapping[str, Any], value: Json) -> Iterator[str]:
    """Yield what each rule at one place of a schema says that a value breaks.

    A rule that cannot be evaluated counts as kept: it compares with an earlier state, uses what the
    library does not know, or meets a value of the wrong type, which is said elsewhere.
    """
    rules = items(schema, "x-kubernetes-validations")
    if not rules or _cel() is None:
        return
    filled = _with_defaults(schema, value)
    for rule in rules:
        expression = mapping(rule).get("rule")
        if isinstance(expression, str) and _evaluated(expression, filled) is False:
            yield str(mapping(rule).get("message") or f"it breaks the rule {expression.strip()}")


def _with_defaults(schema: Json, value: Json) -> Json:
    """Return a value with the defaults of its definition, as Kubernetes fills them in first."""
    if isinstance(value, list):
        return [_with_defaults(mapping(schema).get("items"), one) for one in value]
    if not isinstance(value, dict):
        return value
    properties = mapping(schema, "properties")
    filled = {
        name: _with_defaults(properties.get(name), one)
        for name, one in value.items()
        if one is not None
    }
    for name, one in properties.items():
        if name not in filled and "default" in mapping(one):
            filled[name] = one["default"]
    return filled


def _evaluated(expression: str, value: Json) -> Any:
    if "oldSelf" in expression:
        return None
    try:
        return _compiled(expression)(value)
    except RuntimeError as error:
        # Such as a text that is no duration: to Kubernetes such a rule is broken, too.
        return False if str(error).startswith(_NO_SUCH_VALUE) else None
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        return None


@lru_cache(maxsize=1024)
def _compiled(expression: str) -> Callable[[Json], Any]:
    program = _cel().compile(expression)

    def evaluate(value: Json) -> Any:
        return program.execute(_context(value))

    return evaluate


@cache
def _cel() -> Any:
    """Return the library, which few need; None in a browser's Python, where it is not there."""
    return import_module("cel") if find_spec("cel") else None


def _context(value: Json) -> Any:
    context = _cel().Context(variables={"self": value})
    for name, function in _FUNCTIONS.items():
        context.add_function(name, function)
    return context


def _is_url(text: str) -> bool:
    """Whether Kubernetes takes a text for a URL: an absolute path, or a scheme and what follows."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return text.startswith("/") or bool(parts.scheme and (parts.netloc or parts.path))


def _scheme(text: str) -> str:
    return urlsplit(text).scheme if _is_url(text) else ""


#: What Kubernetes adds to CEL and these definitions use. A URL is kept as its text.
_FUNCTIONS: Mapping[str, Callable[[str], Any]] = {
    "isURL": _is_url,
    "url": str,
    "getScheme": _scheme,
}
