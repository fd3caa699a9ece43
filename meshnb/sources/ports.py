"""On which port a part of the mesh really listens, where somebody chose another than the usual one.

Questions name the usual port, because that is what the answer is about: 15000 is Envoy's admin
interface wherever it is. Where a pod says that it listens elsewhere, the connection goes there, and
the answer's detail has the real port. From the ProxyConfig and the pilot-agent, pilot-discovery and
ztunnel references of Istio 1.30.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import yaml

from meshnb.sources.scope import Pod

#: Fields of ProxyConfig; variables of a proxy's container; and arguments of istiod.
_FIELDS = {"proxyAdminPort": 15000, "statusPort": 15020}
_VARIABLES = {
    "ENVOY_STATUS_PORT": 15021,
    "ENVOY_PROMETHEUS_PORT": 15090,
    "ADMIN_ADDR": 15000,
    "STATS_ADDR": 15020,
    "READINESS_ADDR": 15021,
}
_ARGUMENTS = {
    "httpAddr": 8080,
    "ctrlz_port": 9876,
    "grpcAddr": 15010,
    "secureGRPCAddr": 15012,
    "monitoringAddr": 15014,
    "httpsAddr": 15017,
}
_STATUS_PORT = "status.sidecar.istio.io/port"
_PROXY_CONFIG = "proxy.istio.io/config"
_CONTAINERS = frozenset({"istio-proxy", "discovery"})
_ADDRESS = re.compile(r"(?:.*:)?(\d{1,5})")
_ARGUMENT = re.compile(rf"--({'|'.join(_ARGUMENTS)})(?:=(.*))?")


def moved_ports(pod: Pod) -> dict[int, int]:
    """Return the real port for each usual one that a pod does not use."""
    found: dict[int, int] = {}
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    found |= dict(_of_config(annotations.get(_PROXY_CONFIG)))
    if (port := _port(annotations.get(_STATUS_PORT))) is not None:
        found[15020] = port
    spec = pod.get("spec") or {}
    for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
        if isinstance(container, dict) and container.get("name") in _CONTAINERS:
            found |= dict(_of_container(container))
    return {usual: real for usual, real in found.items() if usual != real}


def _of_container(container: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    for variable in container.get("env") or ():
        name, value = variable.get("name"), variable.get("value")
        if name == "PROXY_CONFIG":
            # The injector writes all that applies to the pod here: the mesh's and the pod's own.
            yield from _of_config(value)
        elif name in _VARIABLES and (port := _port(value)) is not None:
            yield _VARIABLES[name], port
    arguments = [*(container.get("command") or ()), *(container.get("args") or ())]
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if match := _ARGUMENT.fullmatch(str(argument)):
            port = _port(following if match[2] is None else match[2])
            if port is not None:
                yield _ARGUMENTS[match[1]], port


def _of_config(text: object) -> Iterator[tuple[int, int]]:
    config = _read(text) if isinstance(text, str) else {}
    for name, usual in _FIELDS.items():
        if (port := _port(config.get(name))) is not None:
            yield usual, port


@lru_cache(maxsize=256)
def _read(text: str) -> Mapping[str, Any]:
    try:
        config = json.loads(text) if text.lstrip().startswith("{") else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def _port(text: object) -> int | None:
    """Return the port of ``15000``, ``:15000`` or ``[::]:15000``; None where there is none."""
    match = _ADDRESS.fullmatch(str(text).strip()) if isinstance(text, str | int) else None
    number = int(match[1]) if match else 0
    return number if 0 < number < 1 << 16 else None
