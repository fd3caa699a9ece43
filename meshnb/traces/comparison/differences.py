"""Where resources, or any two documents, differ: place by place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.tables.base import Json, dig
from meshnb.traces.comparison.base import Compared, Difference
from meshnb.traces.comparison.cleaning import encoded_json
from meshnb.traces.comparison.origins import origin_of, origins
from meshnb.traces.comparison.resources import Key, Resource

#: A value that differs is shown up to this many characters.
_SHOWN = 200


def compared(mine: Mapping[Key, Resource], theirs: Mapping[Key, Resource]) -> Iterator[Compared]:
    """Yield each resource of two sides, compared."""
    for key in sorted({*mine, *theirs}):
        here, there = mine.get(key), theirs.get(key)
        if here is not None and there is not None:
            if here.encoded == there.encoded:
                yield Compared(*key, "same")
                continue
            found = tuple(differences(here.document, there.document))
            made_from = dict.fromkeys(d.made_from for d in found if d.made_from)
            yield Compared(*key, "different", found, tuple(made_from) or here.services)
            continue
        one = here or there
        assert one is not None
        objects = tuple(dict.fromkeys(origins(one.document))) or one.services
        yield Compared(*key, "only there" if here is None else "only here", made_from=objects)


def differences(here: Json, there: Json, path: str = "", origin: str = "") -> Iterator[Difference]:
    """Yield each place at which two documents differ, elements of lists by name or by position.

    ``origin`` is the Istio object that the whole was made from, where it does not say so itself.
    """
    if here == there:
        return
    if isinstance(here, dict) and isinstance(there, dict):
        origin = origin_of(here) or origin_of(there) or origin
        for field in sorted({*here, *there}):
            inner = f"{path}.{field}" if path else field
            if field not in here or field not in there:
                yield _differing(here.get(field), there.get(field), inner, origin)
            else:
                yield from differences(here[field], there[field], inner, origin)
    elif isinstance(here, list) and isinstance(there, list):
        yield from _elements(here, there, path, origin)
    else:
        yield _differing(here, there, path, origin)


def _elements(here: list[Any], there: list[Any], path: str, origin: str) -> Iterator[Difference]:
    mine, theirs = _named(here), _named(there)
    if mine is not None and theirs is not None:
        for name in dict.fromkeys([*mine, *theirs]):
            inner = f"{path}[{name}]"
            if name in mine and name in theirs:
                yield from differences(mine[name], theirs[name], inner, origin)
            else:
                yield _differing(mine.get(name), theirs.get(name), inner, origin)
        common = [name for name in mine if name in theirs]
        if common != [name for name in theirs if name in mine]:
            yield Difference(f"{path} (order)", ", ".join(mine), ", ".join(theirs), origin)
        return
    # What both begin and end with is equal; between, elements are compared pair by pair.
    first = 0
    while first < min(len(here), len(there)) and here[first] == there[first]:
        first += 1
    last = 0
    while last < min(len(here), len(there)) - first and here[-1 - last] == there[-1 - last]:
        last += 1
    ends = len(here) - last, len(there) - last
    for position in range(first, max(ends)):
        inner = f"{path}[{position}]"
        if position < min(ends):
            yield from differences(here[position], there[position], inner, origin)
        else:
            mine_there = here[position] if position < ends[0] else None
            theirs_there = there[position] if position < ends[1] else None
            yield _differing(mine_there, theirs_there, inner, origin)


def _named(elements: list[Any]) -> dict[str, Any] | None:
    """Return the elements of a list by name; None when they have none, or not each its own."""
    names = [dig(element, "name") for element in elements]
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return None
    return dict(zip(names, elements, strict=True))


def _differing(here: Json, there: Json, path: str, origin: str) -> Difference:
    inner = next(iter([*origins(here), *origins(there)]), origin)
    return Difference(path, _short(here), _short(there), inner)


def _short(value: Json) -> str:
    if value is None:
        return ""
    text = encoded_json(value).decode()
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
