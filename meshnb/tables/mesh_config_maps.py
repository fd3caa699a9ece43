"""The table ``mesh_config_maps``: the ConfigMaps with MeshConfig, as they are written."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig
from meshnb.tables.mesh_settings import flat_settings, parse_yaml
from meshnb.tables.metadata import changed

MESH_CONFIG_MAPS = Table(
    name="mesh_config_maps",
    grain="one row per ConfigMap with the key mesh",
    asks=Listed("v1", "configmaps", optional=True),
    columns={
        "namespace": Column("string", "its namespace", key=True),
        "config_map": Column("string", "its name", key=True),
        "revision": Column("string", "the revision whose istiod reads it, by its name"),
        "changed": Column("datetime64[us, UTC]", "when it was changed last", passing=True),
        "settings": Column("object", "dict: each setting by its path with dots, as a text"),
        "problem": Column("string", "why its text cannot be read"),
    },
)


@MESH_CONFIG_MAPS.reads
def _rows(config_map: Json, question: Question, facts: Facts) -> Iterator[Row]:
    name, text = str(dig(config_map, "metadata", "name")), dig(config_map, "data", "mesh")
    if not isinstance(text, str) or not (name == "istio" or name.startswith("istio-")):
        return
    row: Row = {
        "namespace": dig(config_map, "metadata", "namespace"),
        "config_map": name,
        "revision": name.removeprefix("istio").removeprefix("-") or "default",
        "changed": changed(config_map),
        "settings": {},
    }
    try:
        row["settings"] = dict(flat_settings(parse_yaml(text)))
    except ValueError as error:
        row["problem"] = str(error)
    yield row
