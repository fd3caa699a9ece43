"""What the tests of the ladder share: how an object is followed, and how recordings are altered."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

from meshnb.checks import CHECKS, Finding, Inputs, run
from meshnb.sources import ListQuestion
from meshnb.tables import Facts
from meshnb.traces.change import follow_change
from meshnb.traces.mesh import MESH, Mesh
from meshnb.traces.rungs.ladder import ChangeTrace
from tests.alteration import Altered
from tests.conftest import facts_of

#: Long before the recording ``healthy`` was made, and right before its logs end.
EARLIER, LATER = "2026-11-23T02:40:00Z", "2026-11-23T02:49:00Z"
DUMP: dict[str, Any] = {"port": 15000, "path": "/config_dump?include_eds"}
HELD: dict[str, Any] = {"port": 15014, "path": "/debug/configz"}
SYNC: dict[str, Any] = {"port": 15014, "path": "/debug/syncz"}
Change = Callable[[Any], None]


@cache
def complaints_of(name: str) -> tuple[Finding, ...]:
    """Return what is wrong with the objects of a recording as they are written."""
    return written(facts_of(name))


def written(facts: Facts) -> tuple[Finding, ...]:
    """Return what is wrong with objects as they are written."""
    lint = [check for check in CHECKS.values() if check.lint]
    return tuple(found for outcome in run(Inputs(facts), lint) for found in outcome.findings)


def mesh_of(facts: Facts) -> Mesh:
    """Return the mesh of a source."""
    mesh = MESH.make(facts)
    assert isinstance(mesh, Mesh)
    return mesh


def follow(altered: Altered, subject: str) -> ChangeTrace:
    """Follow an object of an altered recording, with what is wrong with it as it is written."""
    facts = altered.facts()
    return follow_change(facts, subject, complaints=written(facts))


def stopped(trace: ChangeTrace) -> str:
    """Return the name of the first broken rung; empty when none is."""
    return trace.broken.name if trace.broken is not None else ""


def made(
    kind: str, namespace: str, document: dict[str, Any], changed: str = EARLIER
) -> dict[str, Any]:
    """Return an object called ``added``, made at a time."""
    meta = document.get("metadata", {})
    return {
        "kind": kind,
        **document,
        "metadata": {
            "name": "added",
            "namespace": namespace,
            "generation": 1,
            "creationTimestamp": changed,
            **meta,
        },
    }


def route_to(host: str, **spec: Any) -> dict[str, Any]:
    """Return a VirtualService that sends a host's requests to the host."""
    routes = [{"route": [{"destination": {"host": host}}]}]
    return {"spec": {"hosts": [host], "http": routes, **spec}}


def listed(altered: Altered, resource: str) -> None:
    """Let the list of a resource be there, and empty, where it was never asked for."""
    asked = (q for q in altered.facts().source.questions() if isinstance(q, ListQuestion))
    if any(question.resource == resource for question in asked):
        return
    like = {"kind": "list", "resource": "virtualservices"}
    group = {
        "telemetries": "telemetry.istio.io/v1",
        "authorizationpolicies": "security.istio.io/v1",
        "peerauthentications": "security.istio.io/v1",
    }.get(resource, "networking.istio.io/v1")
    altered.reply(like, {"items": []}, resource=resource, apiVersion=group)


def without(name: str) -> Callable[[list[Any]], None]:
    """Return a change that takes an object out of a list."""

    def change(items: list[Any]) -> None:
        items[:] = [one for one in items if one["metadata"]["name"] != name]

    return change


def without_held(name: str) -> Change:
    """Return a change that takes an object out of what an istiod holds."""

    def change(page: Any) -> None:
        page[:] = [one for one in page if one["metadata"]["name"] != name]

    return change


def replaced_by(other: list[Any]) -> Change:
    """Return a change that puts another list in the place of a page's."""

    def change(page: Any) -> None:
        page[:] = other

    return change


def page_of(altered: Altered, request: dict[str, Any]) -> Any:
    """Return a page as it was recorded."""
    found: list[Any] = []
    altered.pages(found.append, **request)
    return copy.deepcopy(found[0])


def pod_of(altered: Altered, name: str) -> str:
    """Return the pod whose name begins so."""
    pods = altered.facts()["pods"]["pod"]
    return str(next(pod for pod in pods if pod.startswith(name)))


def twin(items: list[Any], istiod: str) -> Any:
    """Return a second istiod."""
    twin = copy.deepcopy(next(one for one in items if one["metadata"]["name"] == istiod))
    twin["metadata"]["name"] = "istiod-twin"
    return twin


def sections(dump: Any, name: str) -> Any:
    """Return the section of a config dump."""
    return next(one for one in dump["configs"] if one["@type"].endswith(f".{name}"))


def to_v1(dump: Any) -> None:
    """Let the routes for reviews lead to v1 only."""
    for entry in sections(dump, "RoutesConfigDump")["dynamic_route_configs"]:
        for host in entry["route_config"]["virtual_hosts"]:
            if host["name"].startswith("reviews."):
                port = host["name"].rpartition(":")[2]
                for route in host["routes"]:
                    route["route"].pop("weighted_clusters", None)
                    cluster = f"outbound|{port}|v1|reviews.bookinfo.svc.cluster.local"
                    route["route"]["cluster"] = cluster


def without_routes(name: str) -> Change:
    """Return a change that lets no route for a host name its VirtualService."""

    def change(dump: Any) -> None:
        for entry in sections(dump, "RoutesConfigDump")["dynamic_route_configs"]:
            for host in entry["route_config"]["virtual_hosts"]:
                if host["name"].startswith(f"{name}."):
                    for route in host["routes"]:
                        route.pop("metadata", None)

    return change


def weights(first: int, second: int, changed: str) -> Change:
    """Return a change of the weights of a VirtualService, made at a time."""

    def change(one: Any) -> None:
        routes = one["spec"]["http"][1]["route"]
        routes[0]["weight"], routes[1]["weight"] = first, second
        for entry in one["metadata"]["managedFields"]:
            entry["time"] = changed

    return change


def sync(kind: str, **fields: str) -> Change:
    """Return a change of what istiod says of one kind of configuration."""

    def change(page: Any) -> None:
        for status in page:
            for url, resource in status["resources"].items():
                if url.endswith(kind):
                    resource.update(fields)

    return change


def set_mesh(text: str) -> Callable[[list[Any]], None]:
    """Return a change of the mesh's settings."""

    def change(items: list[Any]) -> None:
        for one in items:
            if one["metadata"]["name"] == "istio":
                one["data"]["mesh"] = text

    return change
