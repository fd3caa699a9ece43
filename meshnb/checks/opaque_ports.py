"""Checks of ports declared as HTTP that are for another protocol. Codes MNB820 to MNB829."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from meshnb.checks.base import (
    Cause,
    Evidence,
    Finding,
    Severity,
    Subject,
    check,
    edit,
    rows_of,
)
from meshnb.checks.protocols import HTTP
from meshnb.symptoms.requests import split_address
from meshnb.traces.mesh import Mesh, ServicePort

#: What is spoken at a port by its number, where that is no HTTP; from IANA's registry and the
#: servers' own documentation.
_BY_NUMBER = {
    22: "SSH",
    25: "SMTP",
    1433: "SQL Server",
    1521: "Oracle",
    1883: "MQTT",
    2181: "ZooKeeper",
    3306: "MySQL",
    4222: "NATS",
    5432: "PostgreSQL",
    5672: "AMQP",
    6379: "Redis",
    9042: "Cassandra",
    11211: "memcached",
    27017: "MongoDB",
}
#: The same by a word of the port's name.
_BY_WORD = {
    "redis": "Redis",
    "mysql": "MySQL",
    "mariadb": "MySQL",
    "postgres": "PostgreSQL",
    "postgresql": "PostgreSQL",
    "mongo": "MongoDB",
    "mongodb": "MongoDB",
    "amqp": "AMQP",
    "smtp": "SMTP",
    "mqtt": "MQTT",
    "memcached": "memcached",
    "zookeeper": "ZooKeeper",
    "ssh": "SSH",
}
#: Words of ports at which servers of such protocols speak HTTP beside them.
_BESIDE = re.compile(r"metric|export|prom|admin|manage|console|ui|api|rest|health|proxy|gateway")


def spoken(port: ServicePort) -> str:
    """Return the protocol that a port is for by its name or number; empty when that is unknown."""
    name = port.port_name.lower()
    if _BESIDE.search(name):
        return ""
    by_word = next((_BY_WORD[word] for word in name.split("-") if word in _BY_WORD), "")
    return by_word or _BY_NUMBER.get(port.port or 0, "")


@check("MNB820", Severity.WARNING, cause=Cause.CONTROL_PLANE_CONFIG)
def declared_as_http(
    mesh: Mesh, services: pd.DataFrame, access_log: pd.DataFrame
) -> Iterator[Finding]:
    """No port of a database or a queue is declared as HTTP.

    Proxies then wait for a request that never comes: where the server speaks first, both sides
    wait until one gives up, and no proxy logs a line; other bytes are answered with 400.
    """
    requests = access_log[access_log["method"].notna() & (access_log["response_code"] < 400)]
    inbound = requests[requests["direction"] == "inbound"]
    served = {
        (str(proxy), split_address(str(address))[1])
        for proxy, address in zip(
            inbound["proxy"], inbound["downstream_local_address"], strict=True
        )
    }
    asked = set(requests["cluster"].dropna().astype(str))
    for port in mesh.services:
        protocol = spoken(port) if port.protocol in HTTP else ""
        if not protocol or port.namespace in mesh.control_plane_namespaces:
            continue
        pods = mesh.selected(port)
        if not pods or any((pod.proxy, mesh.target_port(port)) in served for pod in pods):
            continue
        if any(
            one.endswith(f"|{port.host}") and one.split("|")[1:2] == [str(port.port)]
            for one in asked
        ):
            continue
        subject = Subject("Service", port.namespace, port.service)
        yield Finding(
            subject,
            f"Port {port.port} of {subject} is declared as {port.protocol} (its name is "
            f"{port.port_name or 'empty'}), and {protocol} is spoken at such a port: proxies wait "
            "for HTTP, and clients hang or are refused. No request was ever served there.",
            f"Name the port after what is spoken, such as tcp-{port.port}, or set appProtocol: "
            f"{edit(subject)}.",
            evidence=(
                Evidence.of(rows_of(services, namespace=port.namespace, service=port.service)),
            ),
            shows=f"nobody gets through to port {port.port} of {subject}",
        )
