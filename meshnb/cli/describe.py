"""`meshnb describe`: which objects act on a pod or a Service."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click

from meshnb.cli.base import Page, facts_of, few, note_damage, of_source, say
from meshnb.errors import UsageError


@click.command()
@click.argument("kind", type=click.Choice(["pod", "service"]))
@click.argument("name", metavar="NAME.NAMESPACE")
@of_source
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
def describe(kind: str, name: str, source: str, *, as_json: bool) -> None:
    """Say which objects act on a pod or a Service.

    Those that do not, but could be thought to, are listed with the reason.
    """
    from meshnb.traces.describe import describe_pod, describe_service  # noqa: PLC0415  brings pandas
    from meshnb.traces.mesh import MESH  # noqa: PLC0415

    subject, dot, namespace = name.rpartition(".")
    if not dot:
        raise UsageError(f"{name!r} has no namespace.", next_step="Write NAME.NAMESPACE.")
    facts = facts_of(source)
    said = (describe_pod if kind == "pod" else describe_service)(
        facts, MESH.make(facts), namespace, subject
    )
    document = said.to_json()
    if as_json:
        say(json.dumps(document, indent=1) + "\n")
    else:
        page = Page()
        _description(page, document)
        page.show()
    note_damage(facts.source, source)


def _description(page: Page, said: Mapping[str, Any]) -> None:
    page.add(f"{said['namespace']}/{said['name']}", label=said["kind"], strong=True)
    if said["kind"] == "Pod":
        _described_pod(page, said)
    else:
        pods = [f"{pod['pod']} ({pod['mesh']})" for pod in said["pods"]]
        page.add(few(pods) or "selects no running pod", label="Pods:", indent=1)
        _ports(page, said["ports"])
        _waypoint(page, said["waypoint"])
    modes: dict[str, list[str]] = {}
    for secured in said["mtls"]:
        source = secured["policy"] or "the default, as no PeerAuthentication says otherwise"
        port = "every other port" if secured["port"] is None else f"port {secured['port']}"
        modes.setdefault(f"{secured['mode']}, by {source}", []).append(port)
    for mode, ports in modes.items():
        page.add(f"{mode} ({few(ports)})", label="Mutual TLS:", indent=1)
    for acts, title in ((True, "These act:"), (False, "These do not:")):
        page.gap()
        page.add(label=title)
        chosen = [one for one in said["objects"] if one["acts"] is acts]
        if not chosen:
            page.add("none", indent=1)
        for one in chosen:
            label = f"{one['kind']} {one['namespace']}/{one['name']}:"
            page.add(one["why"], label=label, indent=1)
            _details(page, one)


def _described_pod(page: Page, said: Mapping[str, Any]) -> None:
    injection = said["injection"]
    part = f"{said['mesh']}, {said['phase']}"
    revision = f", revision {injection['revision']}" if injection["revision"] else ""
    page.add(f"{part}{revision}. {injection['reason']}", label="Part in the mesh:", indent=1)
    if injection["ambient_by"] or injection["ztunnel_protocol"]:
        reached = injection["ztunnel_protocol"] or "nothing, as no ztunnel knows it"
        page.add(
            f"{injection['ambient_by'] or 'not asked for'}; ztunnel reaches it by {reached}",
            label="Ambient mode:",
            indent=1,
        )
    _waypoint(page, injection["waypoint"])
    ports = [f"{port['port']} ({port['container']})" for port in said["ports"]]
    page.add(few(ports) or "it declares none", label="Ports:", indent=1)
    for problem, names in (
        ("Not ready:", said["not_ready"]),
        ("Without a label for:", said["missing_labels"]),
        ("As the proxy's user 1337, so around the mesh:", said["as_proxy_user"]),
    ):
        if names:
            page.add(few(names), label=problem, indent=1)
    for service in said["services"]:
        label = f"Service {service['namespace']}/{service['service']}:"
        page.add("selects it", label=label, indent=1)
        _ports(page, service["ports"], indent=2)
    if not said["services"]:
        page.add("no Service selects it", label="Services:", indent=1)


def _ports(page: Page, ports: Iterable[Mapping[str, Any]], indent: int = 1) -> None:
    for port in ports:
        target = port["pod_port"] or f"{port['target_port']}, which the pod does not have"
        page.add(
            f"{port['port']} ({port['name'] or 'unnamed'}, {port['protocol']}) to {target}",
            label="Port:",
            indent=indent,
        )


def _waypoint(page: Page, waypoint: Mapping[str, Any] | None) -> None:
    if waypoint is not None:
        there = few(waypoint["pods"]) if waypoint["exists"] else "it does not exist"
        name = f"{waypoint['namespace']}/{waypoint['name']}"
        page.add(
            f"{name}, by {waypoint['label']}: {there or 'it has no running pod'}",
            label="Waypoint:",
            indent=1,
        )


def _details(page: Page, one: Mapping[str, Any]) -> None:
    if "traffic_policy" in one:
        if one["matching_subsets"] or one["other_subsets"]:
            page.add(few(one["matching_subsets"]) or "none", label="Its subsets:", indent=2)
            if one["other_subsets"]:
                page.add(few(one["other_subsets"]), label="Other subsets:", indent=2)
        page.add(few(one["traffic_policy"]) or "none", label="Traffic policy:", indent=2)
    for route in one.get("routes", ()) if one["acts"] else ():
        share = f", {route['weight']} %" if route["weight"] is not None else ""
        subset = f" subset {route['subset']}" if route["subset"] else ""
        why = f": {route['why']}" if route["why"] else ""
        page.add(
            f"{route['match'] or 'all requests'} to {route['host']}{subset}{share}{why}",
            label=f"{route['path']} {'leads here' if route['reaches'] else 'does not'}:",
            indent=2,
        )
