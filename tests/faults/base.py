"""What a fault of another mesh is: who is to blame, and all that would show of it.

A fault is put into a recording that was enriched before, so that it stands amid mutual TLS for all,
named callers only, canaries, several ports and errors that are meant. It begins half a minute
before the recording is made. Its label was written from the catalogue of failures and from Istio's
documentation, before anybody looked at what the diagnosis makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any
from zlib import crc32

from tests import policy_filters
from tests.alteration import Line
from tests.enriching import ALL, enriched
from tests.enriching.base import Enriched, Json, name_of, under_other_names
from tests.enriching.envoy import Proxy, proxies

#: What a line has when no endpoint was chosen, and when nobody answered there.
NOWHERE = {"endpoint": "-", "own": "-", "service_time": "-"}
SILENT = {"own": "-", "service_time": "-"}
NO_CLUSTER = {**NOWHERE, "code": "503", "flags": "NC", "details": "cluster_not_found"}
NO_HOST = {**NOWHERE, "code": "503", "flags": "UH", "details": "no_healthy_upstream"}
NO_ROUTE = {
    **NOWHERE,
    "code": "404",
    "flags": "NR",
    "details": "route_not_found",
    "cluster": "-",
    "route": "-",
}
_RESET = "upstream_reset_before_response_started{{{}}}"


def reset(reason: str, flags: str, code: str = "503", failure: str = "-") -> dict[str, str]:
    """Return what a line has when an upstream connection could not be used for a reason."""
    return {
        **SILENT,
        "code": code,
        "flags": flags,
        "details": _RESET.format(reason),
        "failure": failure,
    }


def tls_error(reason: str) -> dict[str, str]:
    """Return what a line has when the handshake with an upstream failed."""
    text = f"TLS_error:|{reason}:TLS_error_end"
    return reset(f"remote_connection_failure|{text}", "URX,UF", failure=text)


_REFUSAL = "delayed_connect_error:_Connection_refused"
REFUSED = reset(f"remote_connection_failure|{_REFUSAL}", "URX,UF", failure=_REFUSAL)
TIMED_OUT = reset("connection_timeout", "URX,UF")
CUT_OFF = reset("connection_termination", "UC")
#: What a line of a connection has that carries no request, to the proxy that reads it.
NO_REQUEST = {
    "method": "-",
    "path": "-",
    "protocol": "-",
    "authority": "-",
    "agent": "-",
    "id": "-",
    "route": "-",
    "service_time": "-",
    "code": "0",
}
NO_CHAIN = {
    **NO_REQUEST,
    "endpoint": "-",
    "own": "-",
    "flags": "NR",
    "details": "filter_chain_not_found",
    "cluster": "-",
    "sni": "-",
}

Fields = dict[str, str]


@dataclass(frozen=True)
class Fault:
    """One fault: the recording that it is put into, and its label."""

    name: str
    base: str
    #: A, B or C, or those that can be argued for
    classes: str
    #: kind, namespace and name of the objects any of which is to blame
    truth: tuple[str, ...]
    apply: Callable[[Enriched], None]

    @property
    def label(self) -> dict[str, Any]:
        """The label as recordings have it."""
        classes = list(self.classes)
        return {
            "healthy": False,
            "class": classes[0],
            "classes": classes,
            "truth": list(self.truth),
        }

    def mesh(
        self, *, renamed: bool = False, long_ago: bool = False, passed_on: bool = False
    ) -> Enriched:
        """Return the enriched recording with the fault, under its own or under other names.

        When it began ``long_ago``, nothing is left of the time before it. Applications that get an
        error may have it ``passed_on``, and answer 500 themselves; they call on without the ids of
        the requests that they work on.
        """
        wanted = [name for name in ALL if name != "json_logs"]
        mesh = enriched(self.base, wanted)
        self.apply(mesh)
        if passed_on:
            _pass_on(mesh)
        if long_ago:
            _forget_what_was(mesh)
        return under_other_names(mesh) if renamed else mesh


def _pass_on(mesh: Enriched) -> None:
    """Let applications answer 500 where a call of theirs failed, and call on with ids of their own.

    The nearest to the users comes last, so that a failure gets through to them.
    """
    begin = since(mesh)
    failing: set[tuple[str, str]] = set()
    while True:
        before = len(failing)
        for proxy in proxies(mesh):
            for line in proxy.access():
                bad = line.code >= "500" or line.code == "0" or line.code in ("401", "403", "404")
                if line.inbound or line.time < begin or line.method == "-" or proxy.is_gateway:
                    continue
                if bad or (line.id, line.endpoint) in failing:
                    failing.add((line.id, f"{proxy.address}:{_served_port(proxy, line.id)}"))
        if len(failing) == before:
            break
    for proxy in proxies(mesh):
        if proxy.log is not None:
            mesh.rewrite(proxy.log, lambda line: [_with_own_id(_answered(line, failing))])


def _served_port(proxy: Proxy, request: str) -> str:
    for line in proxy.access():
        if line.inbound and line.id == request:
            return line.local.rpartition(":")[2]
    return ""


def _answered(line: Line, failing: set[tuple[str, str]]) -> Line:
    end = line.local if line.inbound else line.endpoint
    if (line.id, end) in failing and line.code == "200":
        return line._replace(code="500")
    return line


def _with_own_id(line: Line) -> Line:
    """Return a line with an id that only the two ends of one hop share."""
    end = line.local if line.inbound else line.endpoint
    own = crc32(f"{line.id} {end}".encode())
    return line if line.id == "-" else line._replace(id=f"{line.id[:23]}-0000{own:08x}")


def _forget_what_was(mesh: Enriched) -> None:
    """Begin the logs when the fault was there already, and let no change be recent."""
    begin, changed = since(mesh), begun(mesh)
    for proxy in proxies(mesh):
        if proxy.log is not None:
            mesh.rewrite(proxy.log, lambda line: [line] if line.time >= begin else [])
    objects = [one for resource in _KINDS for one in mesh.objects(resource)]
    objects += mesh.objects("services") + [
        one for page in mesh.pages("/debug/configz") for one in page
    ]
    for one in objects:
        meta = one["metadata"]
        for entry in meta.get("managedFields") or []:
            if entry.get("time") == changed:
                entry["time"] = mesh.ago(hours=1)
        if meta.get("creationTimestamp") == changed:
            meta["creationTimestamp"] = mesh.ago(hours=1)


FAULTS: dict[str, Fault] = {}


def fault(
    classes: str, *truth: str, base: str = "healthy"
) -> Callable[[Callable[[Enriched], None]], Callable[[Enriched], None]]:
    """List a function as a fault, with who is to blame."""

    def register(apply: Callable[[Enriched], None]) -> Callable[[Enriched], None]:
        FAULTS[apply.__name__] = Fault(apply.__name__, base, classes, truth, apply)
        return apply

    return register


def begun(mesh: Enriched) -> str:
    """Return when the objects were changed."""
    return mesh.ago(seconds=31)


def since(mesh: Enriched) -> str:
    """Return from when on requests fail, as logs begin their times."""
    return mesh.ago(seconds=27).removesuffix("Z")


def put(mesh: Enriched, kind: str, name: str, namespace: str, spec: Json, **rest: Any) -> Json:
    """Add an object of Istio's or of Kubernetes' that somebody made as the fault began."""
    versions = {
        "NetworkPolicy": "networking.k8s.io/v1",
        "HTTPRoute": "gateway.networking.k8s.io/v1",
        "AuthorizationPolicy": "security.istio.io/v1",
        "PeerAuthentication": "security.istio.io/v1",
        "RequestAuthentication": "security.istio.io/v1",
    }
    at = begun(mesh)
    meta = {
        "creationTimestamp": at,
        "managedFields": [{"manager": "kubectl", "operation": "Update", "time": at}],
    }
    version = versions.get(kind, "networking.istio.io/v1")
    return mesh.add(version, kind, name, namespace, metadata=meta, spec=spec, **rest)


def change(
    mesh: Enriched, resource: str, name: str, how: Callable[[Json], None], group: str | None = None
) -> None:
    """Change objects whose names begin so, where they are stored and where istiod shows them."""
    chosen = [
        one for one in mesh.objects(resource, group) if one["metadata"]["name"].startswith(name)
    ]
    assert chosen, f"there is no {resource} {name}"
    kinds = {(name_of(one), _kind(resource)) for one in chosen}
    for page in mesh.pages("/debug/configz"):
        chosen += [one for one in page if (name_of(one), one["kind"]) in kinds]
    for one in chosen:
        how(one)
        one["metadata"].setdefault("managedFields", []).append(
            {"manager": "kubectl-edit", "operation": "Update", "time": begun(mesh)}
        )


_KINDS = {
    "virtualservices": "VirtualService",
    "destinationrules": "DestinationRule",
    "gateways": "Gateway",
    "serviceentries": "ServiceEntry",
    "authorizationpolicies": "AuthorizationPolicy",
    "peerauthentications": "PeerAuthentication",
    "httproutes": "HTTPRoute",
}


#: What istiod calls them in the metadata of what it makes of them.
_PATHS = {"virtualservices": "virtual-service", "destinationrules": "destination-rule"}


def _kind(resource: str) -> str:
    return _KINDS.get(resource, "")


def drop(mesh: Enriched, resource: str, name: str) -> None:
    """Delete objects whose names begin so, where they are stored and where istiod shows them."""
    stored = mesh.objects(resource)
    gone = {name_of(one) for one in stored if one["metadata"]["name"].startswith(name)}
    assert gone, f"there is no {resource} {name}"
    stored[:] = [one for one in stored if name_of(one) not in gone]
    for page in mesh.pages("/debug/configz"):
        page[:] = [
            one for one in page if one["kind"] != _kind(resource) or name_of(one) not in gone
        ]
    ends = tuple(f"/{namespace}/{_PATHS.get(resource, '')}/{name}" for namespace, name in gone)
    for proxy in proxies(mesh):
        entries = [entry["cluster"] for entry in proxy.clusters]
        entries += [route for _, host in proxy.virtual_hosts() for route in host.get("routes", [])]
        for entry in entries:
            istio = entry.get("metadata", {}).get("filter_metadata", {}).get("istio", {})
            if str(istio.get("config")).endswith(ends):
                del istio["config"]


def spec(mesh: Enriched, resource: str, name: str, **fields: Json) -> None:
    """Set fields of the specification of objects whose names begin so."""
    change(mesh, resource, name, lambda one: one["spec"].update(fields))


Chosen = Callable[[Line], bool]


def in_turns(times: int) -> Chosen:
    """Return a choice of all lines but one of so many."""
    numbers = count()
    return lambda _: next(numbers) % times > 0


def _all(_: Line) -> bool:
    return True


def at_client(
    mesh: Enriched, host: str, fields: Fields, *, pod: str = "", chosen: Chosen = _all
) -> int:
    """Let requests for a host fail in the proxies of its callers; the server never sees them."""
    lost: set[tuple[str, str]] = set()
    begin = since(mesh)

    def fail(line: Line) -> list[Line]:
        mine = not line.inbound and line.cluster.endswith(f"|{host}") and line.code == "200"
        if not mine or line.time < begin or not chosen(line):
            return [line]
        lost.add((line.id, line.endpoint))
        return [line._replace(**fields)]

    for proxy in proxies(mesh):
        if proxy.log is not None and proxy.pod.startswith(pod):
            mesh.rewrite(proxy.log, fail)
    for proxy in proxies(mesh):
        if proxy.log is not None:
            mesh.rewrite(proxy.log, lambda x: [] if x.inbound and (x.id, x.local) in lost else [x])
    assert lost, f"nobody calls {host}"
    return len(lost)


def at_server(
    mesh: Enriched,
    pod: str,
    fields: Fields,
    *,
    seen: Fields | None = None,
    chosen: Chosen = _all,
) -> int:
    """Let a server's proxy or application fail requests; the callers see its status.

    ``seen`` are what the lines of the callers have instead, when it is more than the status.
    """
    failed: set[tuple[str, str]] = set()
    begin = since(mesh)

    def answer(line: Line) -> list[Line]:
        if not line.inbound or line.code != "200" or line.time < begin or not chosen(line):
            return [line]
        failed.add((line.id, line.local))
        return [line._replace(**fields)]

    seen = seen or {"code": fields["code"]}
    for proxy in proxies(mesh):
        if proxy.log is not None and proxy.pod.startswith(pod):
            mesh.rewrite(proxy.log, answer)
    for proxy in proxies(mesh):
        if proxy.log is not None:
            mesh.rewrite(
                proxy.log,
                lambda x: (
                    [x._replace(**seen)] if not x.inbound and (x.id, x.endpoint) in failed else [x]
                ),
            )
    assert failed, f"nobody is served by {pod}"
    return len(failed)


def routes(mesh: Enriched, host: str, *, gateway: bool = False) -> Iterator[Json]:
    """Yield the virtual hosts of a host in the proxies of its callers, which are newly sent."""
    for proxy in proxies(mesh):
        if proxy.is_gateway is not gateway:
            continue
        for entry in proxy.routes:
            for virtual in entry["route_config"].get("virtual_hosts", []):
                if virtual["name"].startswith(f"{host}:") or host in virtual["domains"]:
                    entry["last_updated"] = begun(mesh)
                    yield virtual


def clusters(mesh: Enriched, host: str) -> Iterator[tuple[Proxy, Json]]:
    """Yield each proxy with each of its clusters for a host, which are newly sent."""
    for proxy in proxies(mesh):
        for entry in proxy.clusters:
            if entry["cluster"]["name"].startswith("outbound|") and entry["cluster"][
                "name"
            ].endswith(f"|{host}"):
                entry["last_updated"] = begun(mesh)
                yield proxy, entry["cluster"]


def no_endpoints(mesh: Enriched, host: str, subset: str | None = None) -> None:
    """Take the endpoints out of the clusters of a host, or of one of its subsets."""
    for proxy in proxies(mesh):
        for entry in proxy.endpoints:
            name = entry["endpoint_config"].get("cluster_name", "")
            if name.endswith(f"|{host}") and subset in (None, name.split("|")[2]):
                entry["endpoint_config"].pop("endpoints", None)
        for entry in proxy.statuses:
            name = entry["name"]
            if name.endswith(f"|{host}") and subset in (None, name.split("|")[2]):
                entry.pop("host_statuses", None)


def no_clusters(mesh: Enriched, host: str, subset: str) -> None:
    """Take the clusters of a subset out of every proxy."""

    def kept(name: str) -> bool:
        return not (name.endswith(f"|{subset}|{host}") and name.startswith("outbound|"))

    for proxy in proxies(mesh):
        proxy.clusters[:] = [e for e in proxy.clusters if kept(e["cluster"]["name"])]
        proxy.endpoints[:] = [
            e for e in proxy.endpoints if kept(e["endpoint_config"].get("cluster_name", ""))
        ]
        proxy.statuses[:] = [e for e in proxy.statuses if kept(e["name"])]


def event(
    mesh: Enriched, kind: str, name: str, namespace: str, reason: str, message: str, count: int = 6
) -> None:
    """Add a warning of Kubernetes about an object, a few seconds old."""
    at = mesh.ago(seconds=8)
    mesh.objects("events").append(
        {
            "metadata": {
                "name": f"{name}.{reason.lower()}",
                "namespace": namespace,
                "creationTimestamp": begun(mesh),
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "involvedObject": {"kind": kind, "namespace": namespace, "name": name},
            "firstTimestamp": begun(mesh),
            "lastTimestamp": at,
            "count": count,
        }
    )


def deliver(mesh: Enriched, app: str) -> None:
    """Let the proxies of an application's pods hold the policies that are stored now."""
    policies = mesh.objects("authorizationpolicies")
    tokens = mesh.objects("requestauthentications")
    for pod in mesh.objects("pods"):
        if (pod["metadata"].get("labels") or {}).get("app") != app:
            continue
        for proxy in proxies(mesh):
            if (proxy.namespace, proxy.pod) != name_of(pod):
                continue
            for entry in proxy.listeners:
                if "active_state" in entry and entry["name"] == "virtualInbound":
                    active = entry["active_state"]
                    policy_filters.hold(
                        active["listener"],
                        [one for one in policies if policy_filters.selects(one, pod)],
                        [one for one in tokens if policy_filters.selects(one, pod)],
                    )
                    active["last_updated"] = begun(mesh)
