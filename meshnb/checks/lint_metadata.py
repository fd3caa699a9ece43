"""Checks of annotations, conditions, and what Istio no longer takes. Codes MNB1500 to MNB1599."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping

from meshnb.checks.base import Finding, and_list
from meshnb.checks.lint import Say, hint, lint
from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items
from meshnb.tables.mesh_settings import parse_yaml
from meshnb.traces.objects import GATEWAY_API, Object, Objects

_ANY = "Any"


def _for(kinds: str, names: str, prefix: str = "") -> dict[str, tuple[str, ...]]:
    return {prefix + name: tuple(kinds.split()) for name in names.split()}


#: Every annotation of Istio, and the kinds it is for (istio.io/api of Istio 1.30).
_ANNOTATIONS: Mapping[str, tuple[str, ...]] = {
    **_for("Service", "canonical-serviceaccounts kubernetes-serviceaccounts", "alpha.istio.io/"),
    **_for(
        "Pod",
        "bypass-inbound-capture dns-capture redirection",
        "ambient.istio.io/",
    ),
    **_for(
        "Gateway GatewayClass",
        "waypoint-inbound-binding xfcc-include-client-identity",
        "ambient.istio.io/",
    ),
    **_for(_ANY, "galley.istio.io/analyze-suppress gateway.istio.io/controller-version"),
    **_for("Gateway", "gateway.istio.io/name-override gateway.istio.io/service-account"),
    **_for("Gateway", "networking.istio.io/service-type networking.istio.io/address-type"),
    **_for("Pod", "inject.istio.io/templates istio.io/rev istio.io/reroute-virtual-interfaces"),
    **_for(
        "WorkloadEntry",
        "autoRegistrationGroup connectedAt disconnectedAt workloadController",
        "istio.io/",
    ),
    **_for("AuthorizationPolicy", "istio.io/dry-run"),
    **_for("Ingress", "kubernetes.io/ingress.class"),
    **_for("Service", "networking.istio.io/exportTo traffic.istio.io/nodeSelector"),
    **_for("Service ServiceEntry Namespace", "networking.istio.io/traffic-distribution"),
    **_for(
        "Pod",
        "prometheus.istio.io/merge-metrics proxy.istio.io/config proxy.istio.io/overrides "
        "status.sidecar.istio.io/port",
    ),
    **_for(
        "Pod",
        "applicationPorts failureThreshold initialDelaySeconds periodSeconds",
        "readiness.status.sidecar.istio.io/",
    ),
    **_for(
        "Pod",
        "agentLogLevel bootstrapOverride componentLogLevel discoveryAddress enableCoreDump "
        "extraStatTags inject interceptionMode logLevel nativeSidecar proxyCPU proxyCPULimit "
        "proxyImage proxyImageType proxyMemory proxyMemoryLimit rewriteAppHTTPProbers "
        "statsCompression statsHistogramBuckets statsInclusionPrefixes statsInclusionRegexps "
        "statsInclusionSuffixes status userVolume userVolumeMount",
        "sidecar.istio.io/",
    ),
    **_for("Namespace", "topology.istio.io/controlPlaneClusters"),
    **_for(
        "Pod",
        "excludeInboundPorts excludeInterfaces excludeOutboundIPRanges excludeOutboundPorts "
        "includeInboundPorts includeOutboundIPRanges includeOutboundPorts kubevirtInterfaces",
        "traffic.sidecar.istio.io/",
    ),
}

_DEPRECATED = {
    "alpha.istio.io/canonical-serviceaccounts": "",
    "alpha.istio.io/kubernetes-serviceaccounts": "",
    "sidecar.istio.io/discoveryAddress": "",
    "sidecar.istio.io/extraStatTags": "",
    "sidecar.istio.io/inject": "; the label of that name takes its place",
    "sidecar.istio.io/statsInclusionPrefixes": "",
    "sidecar.istio.io/statsInclusionRegexps": "",
    "sidecar.istio.io/statsInclusionSuffixes": "",
    "traffic.sidecar.istio.io/kubevirtInterfaces": "; istio.io/reroute-virtual-interfaces takes "
    "its place",
}


def _number(most: int) -> Callable[[str], str]:
    def problem(value: str) -> str:
        good = re.fullmatch(r"\d+", value) and int(value) <= most
        return "" if good else f"{value!r} is no number from 0 to {most}"

    return problem


def _ports(value: str) -> str:
    parts = [part.strip() for part in value.split(",")] if value.strip() else []
    return next((said for part in parts if (said := _number(65535)(part))), "")


def _ranges(value: str) -> str:
    for part in value.split(",") if value else []:
        try:
            ipaddress.ip_network(part, strict=False)
        except ValueError:
            return f"{part!r} is no range of addresses, such as 10.0.0.0/8"
        if "/" not in part:
            return f"{part!r} lacks the length of its prefix, such as /32"
    return ""


def _or_all(check: Callable[[str], str]) -> Callable[[str], str]:
    return lambda value: "" if value == "*" else check(value)


def _one_of(*allowed: str) -> Callable[[str], str]:
    return lambda value: "" if value in allowed else f"{value!r} is none of {and_list(allowed)}"


def _settings(value: str) -> str:
    try:
        document = parse_yaml(value)
    except ValueError as error:
        return str(error)
    return "" if document is None or isinstance(document, dict) else "it has no names and values"


_NUMBER = _number(2**32 - 1)
_TRUTH = _one_of("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False")

#: What the injector wants of values (pkg/kube/inject): each returns what is wrong, or nothing.
_VALUES: Mapping[str, Callable[[str], str]] = {
    "sidecar.istio.io/interceptionMode": _one_of("REDIRECT", "TPROXY", "NONE"),
    "status.sidecar.istio.io/port": lambda value: _number(65535)(value.strip()),
    "readiness.status.sidecar.istio.io/initialDelaySeconds": _NUMBER,
    "readiness.status.sidecar.istio.io/periodSeconds": _NUMBER,
    "readiness.status.sidecar.istio.io/failureThreshold": _NUMBER,
    "traffic.sidecar.istio.io/includeOutboundIPRanges": _or_all(_ranges),
    "traffic.sidecar.istio.io/excludeOutboundIPRanges": _ranges,
    "traffic.sidecar.istio.io/includeInboundPorts": _or_all(_ports),
    "traffic.sidecar.istio.io/excludeInboundPorts": _ports,
    "traffic.sidecar.istio.io/excludeOutboundPorts": _ports,
    "prometheus.istio.io/merge-metrics": _TRUTH,
    "proxy.istio.io/config": _settings,
}


def _annotations(objects: Objects) -> Iterator[tuple[Object, str, str]]:
    """Yield each annotation of Istio: its object, its name, its value."""
    for kind in ("Namespace", "Service", "Pod", "Deployment"):
        for item in objects.of(kind):
            for name, value in item.annotations.items():
                # The one annotation of Kubernetes that Istio documents.
                ours = name.partition("/")[0].endswith("istio.io")
                if ours or name == "kubernetes.io/ingress.class":
                    yield item, name, str(value)


@lint("MNB1501", "IST0108")
def annotation_unknown(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every annotation with a name of Istio's is one that Istio knows.

    Nothing reads any other: often it is misspelt.
    """
    say = Say(objects, facts)
    for item, name, _ in _annotations(objects):
        if name not in _ANNOTATIONS:
            yield from say(
                item,
                f"{item} has annotation {name}, which Istio does not know."
                f"{hint(name, _ANNOTATIONS)}",
                fix="Correct the name, or delete it,",
                path=f'metadata.annotations["{name}"]',
                same_as="IST0108",
            )


@lint("MNB1502", "IST0107")
def annotation_misplaced(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every annotation of Istio is on a kind of object where Istio reads it.

    One for pods belongs into the template of a Deployment, not onto the Deployment.
    """
    say = Say(objects, facts)
    for item, name, _ in _annotations(objects):
        kinds = _ANNOTATIONS.get(name, (_ANY,))
        if _ANY in kinds or item.kind in kinds:
            continue
        template = item.kind == "Deployment" and "Pod" in kinds
        fix = "Move it to spec.template.metadata" if template else "Delete it, or move it,"
        yield from say(
            item,
            f"{item} has annotation {name}, which has an effect on {and_list(kinds)} only",
            fix=fix,
            path=f'metadata.annotations["{name}"]',
            same_as="IST0107",
        )


@lint("MNB1503", "IST0125")
def annotation_invalid(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every annotation of Istio has a value that injection takes.

    With any other, the pod is refused when it is made, or gets no sidecar.
    """
    say = Say(objects, facts)
    for item, name, value in _annotations(objects):
        kinds = _ANNOTATIONS.get(name, ())
        problem = _VALUES[name](value) if name in _VALUES and item.kind in kinds else ""
        if problem:
            yield from say(
                item,
                f"Annotation {name} of {item} has a value that it cannot have: {problem}",
                fix="Correct the value",
                path=f'metadata.annotations["{name}"]',
                same_as="IST0125",
            )


@lint("MNB1504", "IST0135")
def annotation_deprecated(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No object has an annotation that Istio will stop to read.

    Where the label that takes the place of sidecar.istio.io/inject is there too, nothing is said.
    """
    say = Say(objects, facts)
    for item, name, _ in _annotations(objects):
        if name in _DEPRECATED and not (name.endswith("/inject") and name in item.labels):
            yield from say(
                item,
                f"{item} has annotation {name}, which is deprecated{_DEPRECATED[name]}",
                fix="Take it out",
                path=f'metadata.annotations["{name}"]',
                same_as="IST0135",
            )


_BOUND = ("istio.io/WaypointBound",)
_ACCEPTED = ("Accepted", "Programmed", "ResolvedRefs")
#: Of which kinds which conditions are a complaint when they are False.
_CONDITIONS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("Service", ""): _BOUND,
    ("ServiceEntry", ""): _BOUND,
    ("WorkloadEntry", ""): _BOUND,
    ("AuthorizationPolicy", ""): ("ZtunnelAccepted", "WaypointAccepted"),
    ("Gateway", GATEWAY_API): _ACCEPTED,
    ("HTTPRoute", ""): _ACCEPTED,
    ("GRPCRoute", ""): _ACCEPTED,
}
_LISTENING = (*_ACCEPTED, "Conflicted")
#: Reasons that are a complaint although the condition is True: a part of the policy is ignored.
_PARTLY = ("PartiallyInvalid", "UnsupportedValue")


@lint("MNB1551", "IST0171")
def condition_negative(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No object has a status that says that it is not in force.

    `istioctl analyze` overlooks policies that ztunnel has accepted only in part (reason
    UnsupportedValue), because the condition is True then; they are named here.
    """
    say = Say(objects, facts)
    for (kind, group), kinds in _CONDITIONS.items():
        for item in objects.of(kind, group):
            for path, condition in _conditions(item):
                name, reason = str(dig(condition, "type")), str(dig(condition, "reason"))
                partly = kind == "AuthorizationPolicy" and reason in _PARTLY
                if name not in kinds or not (dig(condition, "status") == "False" or partly):
                    continue
                text = str(dig(condition, "message", default="no message"))
                yield from say(
                    item,
                    f"{name} of {item} is {dig(condition, 'status')}: {reason}, {text}",
                    fix="Correct what it complains of, not its status,",
                    path=path,
                    key=(name, reason, text),
                    lines=False,
                    same_as="IST0171",
                )


@lint("MNB1552")
def listener_negative(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No listener of a Gateway has a status that says that it is not in force.

    `istioctl analyze` looks at the conditions of the Gateway as a whole, which can be good while
    one of its listeners lacks its certificate or is at odds with another one.
    """
    say = Say(objects, facts)
    for item in objects.of("Gateway", GATEWAY_API):
        for number, listener in enumerate(items(item.body, "status", "listeners")):
            for position, condition in enumerate(items(listener, "conditions")):
                name = str(dig(condition, "type"))
                complains = "True" if name == "Conflicted" else "False"
                if name in _LISTENING and dig(condition, "status") == complains:
                    text = str(dig(condition, "message", default="no message"))
                    yield from say(
                        item,
                        f"{name} of listener {dig(listener, 'name')} of {item} is {complains}: "
                        f"{dig(condition, 'reason')}, {text}",
                        fix="Correct what it complains of, not its status,",
                        path=f"status.listeners[{number}].conditions[{position}]",
                        lines=False,
                        level="Warning",
                    )


def _conditions(item: Object) -> Iterator[tuple[str, Json]]:
    for position, one in enumerate(items(item.body, "status", "conditions")):
        yield f"status.conditions[{position}]", one
    for number, parent in enumerate(items(item.body, "status", "parents")):
        for position, one in enumerate(items(parent, "conditions")):
            yield f"status.parents[{number}].conditions[{position}]", one


#: Kinds of rbac.istio.io that Istio took out with 1.6.
_REMOVED = ("ClusterRbacConfig", "RbacConfig", "ServiceRole", "ServiceRoleBinding")


@lint("MNB1561", "IST0002")
def field_deprecated(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No object has a field that Istio will stop to read, or no longer reads.

    So have fault.delay.percent of VirtualServices, where percentage takes its place, egressProxy of
    Sidecars, and the kinds of rbac.istio.io, which AuthorizationPolicy replaced.
    """
    say = Say(objects, facts)
    for item in objects.of("VirtualService"):
        for number, route in enumerate(items(item.spec, "http")):
            percent = dig(route, "fault", "delay", "percent", default=0)
            if isinstance(percent, int | float) and percent > 0:
                yield from say(
                    item,
                    f"{item} delays {percent} % of its requests with percent, which is deprecated",
                    fix="Write percentage.value instead",
                    path=f"spec.http[{number}].fault.delay.percent",
                    key=(),
                    lines=False,
                    same_as="IST0002",
                )
    for item in objects.of("Sidecar"):
        if dig(item.spec, "outboundTrafficPolicy", "egressProxy") is not None:
            yield from say(
                item,
                f"{item} names an egressProxy, which is ignored",
                fix="Take it out",
                path="spec.outboundTrafficPolicy.egressProxy",
                same_as="IST0002",
            )
    for item in objects.of("CustomResourceDefinition"):
        kind = dig(item.spec, "names", "kind")
        if dig(item.spec, "group") == "rbac.istio.io" and kind in _REMOVED:
            yield from say(
                item,
                f"{item} defines {kind}, which Istio no longer reads",
                fix="Write AuthorizationPolicies, and delete it",
                path="spec.names.kind",
                same_as="IST0002",
            )


#: Which version of the Gateway API istiod wants at least, by CRD (pkg/config/schema/gatewayapi).
_LEAST = {
    "grpcroutes.gateway.networking.k8s.io": (1, 1, 0),
    "backendtlspolicies.gateway.networking.k8s.io": (1, 4, 0),
    "tlsroutes.gateway.networking.k8s.io": (1, 5, 0),
}


@lint("MNB1562", "IST0176")
def definition_too_old(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every kind of the Gateway API has a version that istiod reads.

    istiod does not watch a kind whose definition is older than what it was built for: objects of
    that kind have no effect, and nobody says so.
    """
    say = Say(objects, facts)
    for item in objects.of("CustomResourceDefinition"):
        least = _LEAST.get(item.name)
        text = str(item.annotations.get(f"{GATEWAY_API}/bundle-version", ""))
        version = re.match(r"v?(\d+)\.(\d+)\.(\d+)", text)
        if least is None or version is None or tuple(map(int, version.groups())) >= least:
            continue
        wanted = ".".join(map(str, least))
        yield from say(
            item,
            f"{item} is of version {text} of the Gateway API, and istiod wants {wanted} at least: "
            "it reads no object of that kind",
            fix="Install newer definitions of the Gateway API, as noted",
            path=f'metadata.annotations["{GATEWAY_API}/bundle-version"]',
            same_as="IST0176",
        )
