"""Checks of objects against the definition of their kind, and against what istiod refuses.

Codes MNB1600 to MNB1649. Definitions are those in the source: CustomResourceDefinitions in a
cluster that was asked for them, or among the manifests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meshnb.checks.base import Finding, and_list
from meshnb.checks.expressions import broken_rules
from meshnb.checks.lint import Say, lint
from meshnb.checks.refused import REFUSED
from meshnb.checks.refused_values import Problem
from meshnb.errors import nearest
from meshnb.sources import Manifests
from meshnb.tables import Facts
from meshnb.tables.base import Json, Listed, dig, items, mapping
from meshnb.traces.objects import Object, Objects

# --- The definition of a kind -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Definition:
    """One kind, as a CustomResourceDefinition has it."""

    group: str
    kind: str
    resource: str
    #: schema by version
    schemas: Mapping[str, Json]


def _definitions(objects: Objects) -> Iterator[_Definition]:
    for item in objects.of("CustomResourceDefinition"):
        schemas = {
            str(dig(version, "name")): dig(version, "schema", "openAPIV3Schema")
            for version in items(item.spec, "versions")
            if mapping(version, "schema", "openAPIV3Schema")
        }
        yield _Definition(
            str(dig(item.spec, "group")),
            str(dig(item.spec, "names", "kind")),
            str(dig(item.spec, "names", "plural")),
            schemas,
        )


@lint("MNB1600")
def refused_by_its_definition(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every object has only fields that its kind has, with values that they can have.

    Kubernetes refuses an object that breaks the definition of its kind, and without a word drops
    fields that the definition does not have, such as misspelt ones. Rules in CEL are for manifests
    only: what is in a cluster has passed them.
    """
    say = Say(objects, facts)
    for definition in _definitions(objects):
        for _, body in facts.objects(Listed(definition.group, definition.resource, optional=True)):
            name, namespace = dig(body, "metadata", "name"), dig(body, "metadata", "namespace")
            item = Object(
                definition.kind,
                definition.group,
                namespace if isinstance(namespace, str) else "",
                str(name),
                body,
            )
            version = str(dig(body, "apiVersion", default="")).rpartition("/")[2]
            schema = definition.schemas.get(version)
            if schema is None:
                if not definition.schemas or not version:
                    continue
                known = and_list(sorted(definition.schemas))
                found = [("apiVersion", f"version {version} does not exist; there is {known}")]
            else:
                found = list(_against(schema, body, rules=isinstance(facts.source, Manifests)))
            for path, problem in found:
                place = say.origin(item, path)
                yield from say(
                    item,
                    f"{item} is refused: {path or 'the object'}: {problem}"
                    + (f" ({place})" if place else ""),
                    path=path,
                    level="Error",
                )


#: What every object has, and who writes it is Kubernetes or a controller.
_COMMON = ("apiVersion", "kind", "metadata", "status")


def _against(schema: Json, body: Json, *, rules: bool) -> Iterator[Problem]:
    rest = {name: value for name, value in mapping(body).items() if name not in _COMMON}
    properties = {
        name: one for name, one in mapping(schema, "properties").items() if name not in _COMMON
    }
    yield from _value({**schema, "properties": properties}, rest, "", rules=rules)


def _value(schema: Json, value: Json, path: str, *, rules: bool) -> Iterator[Problem]:
    """Yield what is wrong with a value. An absent one, which null stands for, is never wrong."""
    if value is None or not isinstance(schema, dict):
        return
    wrong = _type_problem(schema, value)
    if wrong:
        yield path, wrong
        return
    yield from ((path, said) for said in _limits(schema, value))
    if isinstance(value, dict):
        yield from _members(schema, value, path, rules=rules)
    elif isinstance(value, list):
        for position, one in enumerate(value):
            yield from _value(schema.get("items"), one, f"{path}[{position}]", rules=rules)
    yield from ((path, said) for said in _alternatives(schema, value))
    if rules:
        yield from ((path, said) for said in broken_rules(schema, value))


_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}
_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


def _type_problem(schema: Mapping[str, Any], value: Json) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        good = isinstance(value, int | str) and not isinstance(value, bool)
        return "" if good else f"{_shown(value)} is neither a number nor a text"
    wanted = schema.get("type")
    types = _TYPES.get(str(wanted))
    if types is None:
        return ""
    whole = wanted == "integer" and isinstance(value, float) and value.is_integer()
    if (isinstance(value, types) or whole) and (wanted == "boolean" or not isinstance(value, bool)):
        return ""
    return f"{_shown(value)} is not {_NAMES.get(types[0], 'a number')}"


def _shown(value: Json) -> str:
    return _NAMES.get(type(value)) if isinstance(value, dict | list) else repr(value)  # type: ignore[return-value]


def _limits(schema: Mapping[str, Any], value: Json) -> Iterator[str]:
    allowed = schema.get("enum")
    if isinstance(allowed, list) and value not in allowed:
        names = [str(one) for one in allowed if one != ""]
        yield f"{value!r} is none of {and_list(names, limit=12)}"
    if isinstance(value, str):
        pattern = schema.get("pattern")
        if isinstance(pattern, str) and not _matches(pattern, value):
            yield f"{value!r} does not match {pattern}"
        yield from _range(schema, "Length", len(value), "characters")
    elif isinstance(value, list):
        yield from _range(schema, "Items", len(value), "entries")
    elif isinstance(value, dict):
        yield from _range(schema, "Properties", len(value), "fields")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least, most = schema.get("minimum"), schema.get("maximum")
        if isinstance(least, int | float) and value < least:
            yield f"{value} is less than {least}"
        if isinstance(most, int | float) and value > most:
            yield f"{value} is more than {most}"


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.search(pattern, value) is not None
    except re.error:
        return True  # RE2 knows what Python does not


def _range(schema: Mapping[str, Any], what: str, number: int, noun: str) -> Iterator[str]:
    least, most = schema.get(f"min{what}"), schema.get(f"max{what}")
    if isinstance(least, int) and number < least:
        yield f"it has {number} {noun}, and needs {least}"
    if isinstance(most, int) and number > most:
        yield f"it has {number} {noun}, and may have {most}"


def _members(
    schema: Mapping[str, Any], value: Mapping[str, Any], path: str, *, rules: bool
) -> Iterator[Problem]:
    properties = mapping(schema, "properties")
    others = schema.get("additionalProperties")
    for name in items(schema, "required"):
        if isinstance(name, str) and value.get(name) is None:
            yield path, f"{name} is missing"
    for name, one in value.items():
        below = _below(path, str(name))
        if name in properties:
            yield from _value(properties[name], one, below, rules=rules)
        elif isinstance(others, dict):
            yield from _value(others, one, below, rules=rules)
        elif (properties or others is False) and not (
            others or schema.get("x-kubernetes-preserve-unknown-fields")
        ):
            yield below, f"there is no such field. {nearest(str(name), properties)}"


def _below(path: str, name: str) -> str:
    if re.fullmatch(r"[\w-]+", name):
        return f"{path}.{name}" if path else name
    return f'{path}["{name}"]'


def _alternatives(schema: Mapping[str, Any], value: Json) -> Iterator[str]:
    for part in items(schema, "allOf"):
        yield from _alternatives(part if isinstance(part, dict) else {}, value)
    choices = items(schema, "oneOf")
    if choices:
        fitting = [one for one in choices if _fits(one, value)]
        if len(fitting) != 1:
            yield _choice(choices, value, many=len(fitting) > 1)
    choices = items(schema, "anyOf")
    if choices and not any(_fits(one, value) for one in choices):
        yield _choice(choices, value, many=False)
    if mapping(schema, "not") and _fits(schema["not"], value):
        names = sorted(_required(schema["not"]))
        yield f"{and_list(names)} may not be there" if names else "it has a value it may not have"


def _fits(schema: Json, value: Json) -> bool:
    """Whether a value fulfils a part of a schema that says nothing about unknown fields."""
    if not isinstance(schema, dict):
        return True
    if _type_problem(schema, value) or next(_limits(schema, value), None) is not None:
        return False
    if isinstance(value, dict):
        if any(value.get(name) is None for name in items(schema, "required")):
            return False
        for name, one in mapping(schema, "properties").items():
            if value.get(name) is not None and not _fits(one, value[name]):
                return False
    return next(_alternatives(schema, value), None) is None


def _required(schema: Json) -> set[str]:
    """Return every field that a schema, or one of its alternatives, asks for."""
    found = {name for name in items(schema, "required") if isinstance(name, str)}
    for how in ("anyOf", "oneOf", "allOf"):
        for part in items(schema, how):
            found |= _required(part)
    return found


def _choice(choices: list[Json], value: Json, *, many: bool) -> str:
    names = sorted({name for one in choices for name in _required(one)})
    given = [name for name in names if isinstance(value, dict) and value.get(name) is not None]
    if len(given) > 1 or many:
        return f"only one of {and_list(given or names, limit=12)} may be there"
    return (
        f"it needs one of {and_list(names, limit=12)}"
        if names
        else "it has none of the forms that it can have"
    )


# --- What istiod refuses ------------------------------------------------------------------------


@lint("MNB1601", "IST0106")
def refused_by_istiod(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every object is one that istiod's validation takes.

    Beyond the definition of its kind, its parts must make sense together. istiod's webhook refuses
    it otherwise, or, where the webhook was not called, istiod ignores it. Of Istio's rules
    (pkg/config/validation) those are here that decide whether an object has any effect.
    """
    say = Say(objects, facts)
    for kind, problems in REFUSED.items():
        for item in objects.of(kind):
            for path, problem in problems(item):
                yield from say(
                    item,
                    f"{item} is refused by istiod: {path}: {problem}",
                    path=path,
                    key=(problem,),
                    lines=False,
                    same_as="IST0106",
                )


#: What a rule can ask of a caller that is known without HTTP.
_OF_CONNECTION = ("principals", "namespaces", "ipBlocks", "remoteIpBlocks", "serviceAccounts")


@lint("MNB1602", "IST0133")
def denies_all_tcp(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every DENY rule asks for something that is known of TCP, too, or names its ports.

    What a rule asks of HTTP requests cannot be known on a TCP port; a DENY rule is then applied
    without it, to be safe, and denies every connection.
    """
    say = Say(objects, facts)
    for policy in objects.of("AuthorizationPolicy"):
        for number, rule in enumerate(items(policy.spec, "rules")):
            sources = [mapping(one, "source") for one in items(rule, "from")]
            operations = [mapping(one, "operation") for one in items(rule, "to")]
            known = any(
                name in source or f"not{name[0].upper()}{name[1:]}" in source
                for source in sources
                for name in _OF_CONNECTION
            )
            named = any("ports" in one or "notPorts" in one for one in operations)
            http_only = not named if operations else bool(sources) and not known
            if policy.spec.get("action") == "DENY" and http_only:
                yield from say(
                    policy,
                    f"{policy} denies by what only HTTP requests have, so on TCP ports it denies "
                    "every connection",
                    fix="Name the ports that it is for",
                    path=f"spec.rules[{number}]",
                    key=(),
                    lines=False,
                    same_as="IST0133",
                )
