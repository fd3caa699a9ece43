"""The table ``ztunnel_connections``: the connections that each ztunnel carries at this moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Row, Table, dig, items, mapping
from meshnb.tables.envoy import proxy_of
from meshnb.tables.ztunnel import entries, read_dumps

ZTUNNEL_CONNECTIONS = Table(
    name="ztunnel_connections",
    grain="one row per ztunnel, workload and connection that is open",
    istioctl="istioctl ztunnel-config connections POD.NAMESPACE",
    columns={
        "proxy": Column("string", "the ztunnel as pod.namespace", key=True),
        "workload": Column("string", "the workload at this end, pod.namespace", key=True),
        "direction": Column("string", "Inbound or Outbound, seen from the workload", key=True),
        "local": Column("string", "this end: host and port, by name where ztunnel knows it"),
        "remote": Column("string", "the other end: host and port, by name where ztunnel knows it"),
        "remote_target": Column(
            "string", "what the client asked for: a Service with its port, or empty"
        ),
        "protocol": Column("string", "HBONE (encrypted) or TCP"),
        "source_address": Column(
            "string", "address and port of the client", key=True, passing=True
        ),
        "destination_address": Column("string", "address and port of the server", key=True),
        "original_destination": Column("string", "what the client asked for, unchanged", key=True),
        "workload_uid": Column("string", "identifier of the pod at this end"),
        "state": Column("string", "of the pod at this end: Up or Pending"),
        "service_account": Column("string", "service account of the pod at this end"),
    },
)


@ZTUNNEL_CONNECTIONS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    yield from read_dumps(facts, _read)


def _read(dump: Json, question: Question, facts: Facts) -> Iterator[Row]:
    names = _names(dump)
    states = sorted(mapping(dump, "workloadState").items(), key=lambda entry: _order(entry[1]))
    for uid, state in states:
        namespace, name = _order(state)
        for key, direction in (("inbound", "Inbound"), ("outbound", "Outbound")):
            for connection in items(state, "connections", key):
                source = str(dig(connection, "src", default=""))
                actual = str(dig(connection, "actualDst", default=""))
                original = str(dig(connection, "originalDst", default=""))
                near, far = (actual, source) if direction == "Inbound" else (source, actual)
                yield {
                    "proxy": proxy_of(question),
                    "workload": f"{name}.{namespace}",
                    "direction": direction,
                    "local": _named(near, names),
                    "remote": _named(far, names),
                    # At the server's end ztunnel has the name of the Service already.
                    "remote_target": original
                    if direction == "Inbound"
                    else _named(original, names),
                    "protocol": dig(connection, "protocol", default=""),
                    "source_address": source,
                    "destination_address": actual,
                    "original_destination": original,
                    "workload_uid": uid,
                    "state": dig(state, "state"),
                    "service_account": dig(state, "info", "serviceAccount"),
                }


def _order(state: Json) -> tuple[str, str]:
    return (
        str(dig(state, "info", "namespace", default="")),
        str(dig(state, "info", "name", default="")),
    )


def _names(dump: Json) -> Mapping[str, str]:
    """Return the name behind each address; that of a Service goes before that of a pod."""
    found = {
        str(
            dig(workload, "workloadIps", 0)
        ): f"{dig(workload, 'name')}.{dig(workload, 'namespace')}"
        for workload in entries(dump, "workloads")
        if dig(workload, "workloadIps", 0)
    }
    for service in entries(dump, "services"):
        address = str(dig(service, "vips", 0, default="")).partition("/")[2]
        if address:
            found[address] = str(dig(service, "hostname", default=""))
    return found


def _named(address: str, names: Mapping[str, str]) -> str:
    host, colon, port = address.rpartition(":")
    name = names.get(host.strip("[]")) if colon else None
    return address if name is None else f"{name}:{port}"
