"""The table ``mesh_settings``: the MeshConfig that each istiod works with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from meshnb.sources.base import HttpQuestion, Question
from meshnb.tables.base import Column, Facts, Got, Json, Listed, Row, Table, dig

_HELD = Got(15014, "/debug/mesh")
_CONFIG_MAPS = Listed("v1", "configmaps", optional=True)

MESH_SETTINGS = Table(
    name="mesh_settings",
    grain="one row per istiod and mesh setting",
    asks=(_HELD, _CONFIG_MAPS),
    columns={
        "istiod": Column(
            "string",
            "the istiod pod that said it; configmap/namespace/name when none answered, and then "
            "without the settings that have their default",
            key=True,
        ),
        "setting": Column(
            "string", "path into MeshConfig with dots, such as outboundTrafficPolicy.mode", key=True
        ),
        "value": Column("string", "its value; true or false for a switch, JSON for a list"),
    },
)

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as fast as the platform has it

#: No setting of MeshConfig lies deeper; what does is shown as JSON.
_DEEPEST = 6


@MESH_SETTINGS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    found = False
    if any(_HELD.matches(question) for question in facts.source.questions()):
        for question, row in facts.read(_HELD, _from_istiod):
            found = True
            yield question, row
    if not found:
        for question, row in facts.read(_CONFIG_MAPS, _from_config_map):
            found = True
            yield question, row
    if not found:
        facts.gap(str(_HELD), "not asked", "was never asked, and no ConfigMap holds the settings")


def _from_istiod(document: Json, question: Question, facts: Facts) -> Iterator[Row]:
    istiod = question.pod if isinstance(question, HttpQuestion) else None
    for setting, value in flat_settings(document):
        yield {"istiod": istiod, "setting": setting, "value": value}


def _from_config_map(config_map: Json, question: Question, facts: Facts) -> Iterator[Row]:
    namespace, name = dig(config_map, "metadata", "namespace"), dig(config_map, "metadata", "name")
    text = dig(config_map, "data", "mesh")
    if not isinstance(text, str) or not (name == "istio" or str(name).startswith("istio-")):
        return
    for setting, value in flat_settings(parse_yaml(text)):
        yield {"istiod": f"configmap/{namespace}/{name}", "setting": setting, "value": value}


def parse_yaml(text: str) -> Json:
    """Read YAML. Raises ValueError when it is none, or when it has aliases.

    A few aliases of aliases unfold to a document of any size, and no MeshConfig needs them.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _LOADER)):
            raise ValueError("its YAML has aliases")
        return yaml.load(text, _LOADER)  # noqa: S506  the loader is one of the safe ones
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"is not YAML: {error}") from error


def flat_settings(document: Json) -> Iterator[tuple[str, str]]:
    """Yield each setting with its path, joined by dots. Raises ValueError when it is no object."""
    if not isinstance(document, dict | None):
        raise ValueError("it is no object with settings")
    yield from _flat(document, ())


def _flat(value: Json, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and len(path) < _DEEPEST and (value or not path):
        for key, inner in value.items():
            yield from _flat(inner, (*path, str(key)))
    elif path:
        yield ".".join(path), value if isinstance(value, str) else json.dumps(value, default=str)
