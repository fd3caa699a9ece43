"""The table ``extension_configs``: filters whose configuration a proxy gets by itself, by ECDS."""

from __future__ import annotations

import re
from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import CONFIG_DUMP, proxy_of, sections

EXTENSION_CONFIGS = Table(
    name="extension_configs",
    grain="one row per proxy and ECDS resource",
    asks=CONFIG_DUMP,
    istioctl="istioctl proxy-config ecds POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the proxy as pod.namespace", key=True),
        "ecds_name": Column("string", "name of the resource", key=True),
        "type": Column(
            "string",
            "protobuf type of the configuration: envoy.extensions.filters.http.wasm.v3.Wasm, …;"
            " empty while the proxy has none",
        ),
        "state": Column(
            "string", "active, waiting (no configuration has come yet) or refused (never used)"
        ),
        "protocol": Column("string", "http or network: the kind of filter, by its type's package"),
        "last_updated": Column("datetime64[us, UTC]", "when the proxy took it over", passing=True),
        "version": Column("string", "version that istiod gave it", passing=True),
        "istio_config": Column(
            "string", "API path of the WasmPlugin that it was made from, by its name; else NA"
        ),
        "config": Column("object", "dict: the configuration itself; NA while the proxy has none"),
        "error": Column("string", "why the proxy refused the last update of it"),
    },
)

_TYPE_PREFIX = "type.googleapis.com/"
#: istiod names them so, with its own spelling (``pilot/pkg/model/extensions.go``); older ones
#: have no prefix.
_WASM_PLUGIN = re.compile(r"(?:exten[st]+ions\.istio\.io/wasmplugin/)?([^./]+)\.([^/]+)")


@EXTENSION_CONFIGS.reads
def _rows(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    # Envoy gives a part of its own to each kind of filter, and none when there is no filter.
    rows = [
        _row(entry)
        for part in sections(dump, "EcdsConfigDump")
        for entry in items(part, "ecds_filters")
    ]
    rows.sort(key=lambda row: (row["type"], row["ecds_name"]))
    for row in rows:
        yield {"proxy": proxy_of(question), **row}


def _row(entry: Json) -> Row:
    held = mapping(entry, "ecds_filter")
    refused = not held and dig(entry, "error_state") is not None
    resource = mapping(entry, "error_state", "failed_configuration") if refused else held
    name = str(dig(resource, "name", default=""))
    config = dig(resource, "typed_config")
    kind = str(dig(config, "@type", default="")).removeprefix(_TYPE_PREFIX)
    # A configuration whose type the sender does not know is wrapped, with the type within.
    inner = str(dig(config, "type_url", default="")).removeprefix(_TYPE_PREFIX) or kind
    return {
        "ecds_name": name,
        "type": kind,
        "state": "refused" if refused else "waiting" if config is None else "active",
        "protocol": next((p for p in ("http", "network") if f".filters.{p}." in inner), None),
        "last_updated": dig(entry, "last_updated"),
        "version": dig(entry, "version_info"),
        "istio_config": _wasm_plugin(name) if inner.endswith(".Wasm") else None,
        "config": config,
        "error": dig(entry, "error_state", "details"),
    }


def _wasm_plugin(name: str) -> str | None:
    found = _WASM_PLUGIN.fullmatch(name)
    if found is None:
        return None
    return f"/apis/extensions.istio.io/v1alpha1/namespaces/{found[1]}/wasm-plugin/{found[2]}"
