"""Checks of Sidecars and Telemetries: which pods they are for, and what they set there.

Codes MNB1250 to MNB1299.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.checks.base import Finding, and_list
from meshnb.checks.lint import Say, labelled, lint
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.objects import Object, Objects, ambient_namespace, ambient_pod


def _labels(item: Object) -> Mapping[str, Any]:
    """Return the labels by which a Sidecar or a Telemetry selects pods; empty for all pods."""
    if item.kind == "Sidecar":
        return mapping(item.spec, "workloadSelector", "labels")
    return mapping(item.spec, "selector", "matchLabels")


_PATHS = {"Sidecar": "spec.workloadSelector.labels", "Telemetry": "spec.selector.matchLabels"}


def _without_pods(kind: str, say: Say) -> Iterator[Finding]:
    objects = say.objects
    for item in objects.of(kind) if objects.pods_known else ():
        labels = _labels(item)
        if not labels or objects.selected(labels, item.namespace):
            continue
        elsewhere = {pod.namespace for pod in objects.selected(labels)}
        where = f"; there are in {and_list(sorted(elsewhere))}" if elsewhere else ""
        yield from say(
            item,
            f"{item} is for pods with {labelled(labels)}, and its namespace has none{where}",
            fix="Correct the labels",
            path=_PATHS[kind],
            key=(),
            same_as="IST0101",
        )


def _selectors_meet(kind: str, code: str, say: Say) -> Iterator[Finding]:
    by_pod: dict[Object, list[Object]] = {}
    for item in say.objects.of(kind):
        labels = _labels(item)
        for pod in say.objects.selected(labels, item.namespace) if labels else ():
            by_pod.setdefault(pod, []).append(item)
    for pod, together in by_pod.items():
        if len(together) < 2 or (kind == "Sidecar" and ambient_pod(pod)):
            continue
        for item in together:
            others = [one for one in together if one is not item]
            yield from say(
                item,
                f"{item} is for {pod}, and so is {and_list(map(str, others))}: only one of them "
                "acts on it",
                fix="Merge them, or let them select other pods,",
                path=_PATHS[kind],
                key=(pod.title,),
                lines=False,
                same_as=code,
                related=[*others, pod],
            )


def _several_for_all(kind: str, code: str, say: Say) -> Iterator[Finding]:
    by_namespace: dict[str, list[Object]] = {}
    for item in say.objects.of(kind):
        # A Telemetry with a selector that names no label is, to Istio, none for all pods.
        chosen = _labels(item) if kind == "Sidecar" else dig(item.spec, "selector") is not None
        if not chosen:
            by_namespace.setdefault(item.namespace, []).append(item)
    for name, together in by_namespace.items():
        namespace = say.objects.find("Namespace", "", name)
        if len(together) < 2 or (kind == "Sidecar" and ambient_namespace(namespace)):
            continue
        for item in together:
            others = [one for one in together if one is not item]
            yield from say(
                item,
                f"{item} is for all pods of namespace {name}, and so is "
                f"{and_list(map(str, others))}: only one of them acts",
                fix="Merge them, or let them select pods,",
                path="spec",
                key=(),
                lines=False,
                same_as=code,
                related=others,
            )


@lint("MNB1251", "IST0101")
def sidecar_without_pods(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every Sidecar that selects pods selects some of its own namespace.

    It acts on no others. Without any, what it limits is not limited.
    """
    yield from _without_pods("Sidecar", Say(objects, facts))


@lint("MNB1252", "IST0110")
def sidecars_meet(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No two Sidecars select the same pod.

    Only one of them, the oldest, acts on it.
    """
    yield from _selectors_meet("Sidecar", "IST0110", Say(objects, facts))


@lint("MNB1253", "IST0111")
def several_default_sidecars(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No namespace has two Sidecars for all its pods.

    Only one of them, the oldest, acts.
    """
    yield from _several_for_all("Sidecar", "IST0111", Say(objects, facts))


@lint("MNB1254", "IST0167")
def sidecar_in_ambient(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No Sidecar is for pods in ambient mode.

    They have no sidecar to configure. What a Sidecar limits is not limited for them.
    """
    say = Say(objects, facts)
    for item in objects.of("Sidecar"):
        labels = _labels(item)
        if labels:
            pods = [pod for pod in objects.selected(labels, item.namespace) if ambient_pod(pod)]
            said = f"selects {and_list(map(str, pods))}, in ambient mode" if pods else ""
        else:
            pods = []
            ambient = ambient_namespace(objects.find("Namespace", "", item.namespace))
            said = f"is for namespace {item.namespace}, in ambient mode" if ambient else ""
        if said:
            yield from say(
                item,
                f"{item} {said}, where there is no sidecar: it has no effect",
                fix="Delete it",
                path=_PATHS["Sidecar"] if labels else "spec",
                key=(),
                lines=False,
                same_as="IST0167",
                related=pods,
            )


@lint("MNB1261", "IST0101")
def telemetry_without_pods(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every Telemetry that selects pods selects some of its own namespace.

    It acts on no others.
    """
    yield from _without_pods("Telemetry", Say(objects, facts))


@lint("MNB1262", "IST0159")
def telemetries_meet(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No two Telemetries select the same pod.

    Only one of them, the oldest, acts on it.
    """
    yield from _selectors_meet("Telemetry", "IST0159", Say(objects, facts))


@lint("MNB1263", "IST0160")
def several_default_telemetries(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No namespace has two Telemetries for all its pods.

    Only one of them, the oldest, acts.
    """
    yield from _several_for_all("Telemetry", "IST0160", Say(objects, facts))


@lint("MNB1264", "IST0157")
def logging_without_provider(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every Telemetry that asks for access logs says where to, or the mesh does.

    Without a provider of its own, and without defaultProviders.accessLogging in MeshConfig, nothing
    is logged.
    """
    say = Say(objects, facts)
    if objects.settings.get("defaultProviders.accessLogging", "[]") not in ("[]", ""):
        return
    for item in objects.of("Telemetry"):
        for position, logging in enumerate(items(item.spec, "accessLogging")):
            if not items(logging, "providers") and dig(logging, "disabled") is not True:
                yield from say(
                    item,
                    f"{item} asks for access logs and names no provider, and MeshConfig has no "
                    "default one: nothing is logged",
                    fix="Name a provider, such as envoy,",
                    path=f"spec.accessLogging[{position}]",
                    key=(),
                    lines=False,
                    same_as="IST0157",
                )


@lint("MNB1265", "IST0002")
def lightstep_provider(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No Telemetry sends traces to a Lightstep provider.

    Envoy no longer has that tracer; Lightstep takes traces by OpenTelemetry.
    """
    say = Say(objects, facts)
    try:
        providers = json.loads(objects.settings.get("extensionProviders", "[]"))
    except ValueError:
        return
    names = {
        dig(one, "name")
        for one in (providers if isinstance(providers, list) else [])
        if dig(one, "lightstep") is not None
    }
    for item in objects.of("Telemetry"):
        for number, tracing in enumerate(items(item.spec, "tracing")):
            for position, provider in enumerate(items(tracing, "providers")):
                if dig(provider, "name") in names:
                    yield from say(
                        item,
                        f"{item} sends traces to {dig(provider, 'name')}, which is a Lightstep "
                        "provider in MeshConfig",
                        fix="Name an OpenTelemetry provider instead",
                        path=f"spec.tracing[{number}].providers[{position}].name",
                        key=(dig(provider, "name"),),
                        lines=False,
                        same_as="IST0002",
                    )
