"""How proxies are built and what they write: Istio's own filters, other sidecars, other logs."""

from __future__ import annotations

import json

from meshnb.sources import LogQuestion
from tests.alteration import Line, read_line
from tests.enriching.base import Enriched, Json
from tests.enriching.envoy import proxies
from tests.enriching.metrics import count_requests

_UDPA = "type.googleapis.com/udpa.type.v1.TypedStruct"


def _own(name: str, type_url: str) -> Json:
    return {"name": name, "typed_config": {"@type": _UDPA, "type_url": type_url, "value": {}}}


_METADATA = _own(
    "istio.metadata_exchange",
    "type.googleapis.com/envoy.tcp.metadataexchange.config.MetadataExchange",
)
_PEERS = _own("istio.metadata_exchange", "type.googleapis.com/io.istio.http.peer_metadata.Config")
_ALPN = _own(
    "istio.alpn", "type.googleapis.com/istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig"
)
_STATS = _own("istio.stats", "type.googleapis.com/stats.PluginConfig")
_AUTHENTICATION = _own(
    "istio_authn", "type.googleapis.com/istio.envoy.config.filter.http.authn.v2alpha1.FilterConfig"
)


def istio_filters(mesh: Enriched) -> None:
    """Make the proxies Istio's own build, with its filters and its metrics."""
    for proxy in proxies(mesh):
        for name, manager in proxy.http():
            filters = manager["http_filters"]
            if any(one["name"] == "istio.stats" for one in filters):
                continue
            outbound = name != "virtualInbound"
            filters.insert(0, dict(_PEERS))
            if outbound:
                filters.insert(1, dict(_ALPN))
            else:
                filters.insert(1, dict(_AUTHENTICATION))
            filters.insert(len(filters) - 1, dict(_STATS))
        for entry in proxy.listeners:
            listener = entry.get("active_state", {}).get("listener", {})
            for chain in listener.get("filter_chains", []):
                kinds = [part["name"] for part in chain["filters"]]
                through = "blackhole" not in chain.get("name", "") and "rbac" not in str(kinds)
                if "envoy.filters.network.tcp_proxy" in kinds and through:
                    chain["filters"].insert(0, dict(_METADATA))
                    chain["filters"].insert(1, dict(_STATS))
    count_requests(mesh)


def classic_sidecars(mesh: Enriched) -> None:
    """Make the proxy an ordinary container beside the application, not an init container."""
    for pod in mesh.objects("pods"):
        spec, status = pod["spec"], pod["status"]
        moved = [c for c in spec.get("initContainers") or [] if c["name"] == "istio-proxy"]
        if not moved:
            continue
        spec["initContainers"] = [c for c in spec["initContainers"] if c not in moved]
        for container in moved:
            container.pop("restartPolicy", None)
        spec["containers"] = [*spec["containers"], *moved]
        told = [s for s in status.get("initContainerStatuses") or [] if s["name"] == "istio-proxy"]
        status["initContainerStatuses"] = [
            s for s in status.get("initContainerStatuses") or [] if s not in told
        ]
        status["containerStatuses"] = [*(status.get("containerStatuses") or []), *told]
        text = pod["metadata"].get("annotations", {}).get("sidecar.istio.io/status")
        if text:
            said = {
                **json.loads(text),
                "initContainers": ["istio-init"],
                "containers": ["istio-proxy"],
            }
            pod["metadata"]["annotations"]["sidecar.istio.io/status"] = json.dumps(said)


#: Istio's JSON format: what each field of a line is called.
_JSON: dict[str, str] = {
    "start_time": "time",
    "method": "method",
    "path": "path",
    "protocol": "protocol",
    "response_code": "code",
    "response_flags": "flags",
    "response_code_details": "details",
    "connection_termination_details": "ended",
    "upstream_transport_failure_reason": "failure",
    "bytes_received": "received",
    "bytes_sent": "sent",
    "duration": "duration",
    "upstream_service_time": "service_time",
    "x_forwarded_for": "forwarded",
    "user_agent": "agent",
    "request_id": "id",
    "authority": "authority",
    "upstream_host": "endpoint",
    "upstream_cluster": "cluster",
    "upstream_local_address": "own",
    "downstream_local_address": "local",
    "downstream_remote_address": "remote",
    "requested_server_name": "sni",
    "route_name": "route",
}
_NUMBERS = ("response_code", "bytes_received", "bytes_sent", "duration")


def _as_json(line: Line) -> str:
    values: Json = {}
    for name, field in _JSON.items():
        text = getattr(line, field)
        values[name] = None if text == "-" else int(text) if name in _NUMBERS else text
    return json.dumps(values)


def json_logs(mesh: Enriched) -> None:
    """Write the access logs as JSON."""
    for question in mesh.logs():
        lines = mesh.lines(question)
        for place, text in enumerate(lines):
            line = read_line(text)
            if line is not None:
                lines[place] = _as_json(line)


#: A format as meshes choose their own: it tells neither details nor addresses.
_OWN_FORMAT = (
    "[%START_TIME%] %REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(:PATH)% %RESPONSE_CODE% "
    "%RESPONSE_FLAGS% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %DURATION% %REQ(X-REQUEST-ID)%"
)


def own_format(mesh: Enriched) -> None:
    """Write the access logs in a format of the mesh's own, which tells less."""
    for item in mesh.objects("configmaps"):
        if item["metadata"]["name"] == "istio" and "mesh" in (item.get("data") or {}):
            item["data"]["mesh"] += f'\naccessLogFormat: "{_OWN_FORMAT}\\n"'
    for page in mesh.pages("/debug/mesh"):
        page["accessLogFormat"] = f"{_OWN_FORMAT}\n"
    for question in mesh.logs():
        lines = mesh.lines(question)
        for place, text in enumerate(lines):
            one = read_line(text)
            if one is not None:
                lines[place] = (
                    f"[{one.time}] {one.method} {one.authority} {one.path} {one.code} {one.flags} "
                    f"{one.cluster} {one.endpoint} {one.duration} {one.id}"
                )


def no_logs(mesh: Enriched) -> None:
    """Switch access logs off."""
    for item in mesh.objects("configmaps"):
        settings = (item.get("data") or {}).get("mesh", "")
        if item["metadata"]["name"] == "istio" and "accessLogFile: /dev/stdout" in settings:
            item["data"]["mesh"] = settings.replace("accessLogFile: /dev/stdout\n", "")
    for page in mesh.pages("/debug/mesh"):
        page.pop("accessLogFile", None)
    for proxy in proxies(mesh):
        for _, manager in proxy.http():
            manager.pop("access_log", None)
    for question in mesh.logs():
        lines = mesh.lines(question)
        lines[:] = [text for text in lines if read_line(text) is None]


def short_logs(mesh: Enriched) -> None:
    """Keep only the last lines of each proxy's log."""
    for question in mesh.logs():
        assert isinstance(question, LogQuestion)
        lines = mesh.lines(question)
        lines[:] = lines[-25:]
