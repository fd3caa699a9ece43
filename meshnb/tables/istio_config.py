"""The table ``istio_config``: every object of Istio's and the Gateway API's configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshnb.sources.base import ListQuestion, Question
from meshnb.tables.base import (
    Column,
    Facts,
    Gap,
    Got,
    Json,
    Listed,
    Row,
    Table,
    dig,
    items,
    mapping,
)
from meshnb.tables.metadata import annotations_of, changed, labels_of

_NETWORKING = "networking.istio.io"
_SECURITY = "security.istio.io"
_EXTENSIONS = "extensions.istio.io"
_GATEWAY_API = "gateway.networking.k8s.io"

_KINDS: dict[Listed, str] = {
    Listed(_NETWORKING, "virtualservices"): "VirtualService",
    Listed(_NETWORKING, "destinationrules"): "DestinationRule",
    Listed(_NETWORKING, "gateways"): "Gateway",
    Listed(_NETWORKING, "serviceentries"): "ServiceEntry",
    Listed(_NETWORKING, "sidecars"): "Sidecar",
    Listed(_NETWORKING, "workloadentries"): "WorkloadEntry",
    Listed(_NETWORKING, "workloadgroups", optional=True): "WorkloadGroup",
    Listed(_NETWORKING, "envoyfilters", optional=True): "EnvoyFilter",
    Listed(_NETWORKING, "proxyconfigs", optional=True): "ProxyConfig",
    Listed(_SECURITY, "authorizationpolicies"): "AuthorizationPolicy",
    Listed(_SECURITY, "peerauthentications"): "PeerAuthentication",
    Listed(_SECURITY, "requestauthentications"): "RequestAuthentication",
    Listed("telemetry.istio.io", "telemetries"): "Telemetry",
    Listed(_EXTENSIONS, "wasmplugins"): "WasmPlugin",
    Listed(_EXTENSIONS, "trafficextensions", optional=True): "TrafficExtension",
    Listed(_GATEWAY_API, "gatewayclasses", optional=True): "GatewayClass",
    Listed(_GATEWAY_API, "gateways", optional=True): "Gateway",
    Listed(_GATEWAY_API, "httproutes", optional=True): "HTTPRoute",
    Listed(_GATEWAY_API, "grpcroutes", optional=True): "GRPCRoute",
    Listed(_GATEWAY_API, "tlsroutes", optional=True): "TLSRoute",
    Listed(_GATEWAY_API, "tcproutes", optional=True): "TCPRoute",
    Listed(_GATEWAY_API, "referencegrants", optional=True): "ReferenceGrant",
    Listed(_GATEWAY_API, "backendtlspolicies", optional=True): "BackendTLSPolicy",
    Listed(_GATEWAY_API, "listenersets", optional=True): "ListenerSet",
}

#: What istiod itself holds of all kinds.
_HELD = Got(15014, "/debug/configz")

ISTIO_CONFIG = Table(
    name="istio_config",
    grain="one row per Istio or Gateway API object",
    asks=(*_KINDS, _HELD),
    columns={
        "kind": Column("string", "kind of the object, such as VirtualService", key=True),
        "group": Column("string", "its API group, such as networking.istio.io", key=True),
        "namespace": Column("string", "its namespace; absent for a GatewayClass", key=True),
        "name": Column("string", "its name", key=True),
        "api_version": Column("string", "API group and version that it was read with"),
        "created": Column("datetime64[us, UTC]", "when it was created", passing=True),
        "changed": Column(
            "datetime64[us, UTC]", "when anything but its status was changed last", passing=True
        ),
        "generation": Column(
            "Int64", "how often its spec was written, counted by Kubernetes", passing=True
        ),
        "observed_generation": Column(
            "Int64", "the generation that its status speaks of", passing=True
        ),
        "conditions": Column(
            "object",
            "conditions of its status and of the listeners, parents and ancestors in it, a tuple "
            "of dicts; about names the listener, parent or ancestor",
        ),
        "messages": Column("string", "what its status complains of, in words"),
        "labels": Column("object", "its labels, a dict"),
        "annotations": Column("object", "its annotations, a dict"),
        "spec": Column("object", "its spec, a dict"),
    },
    istioctl="istioctl analyze -A",
)

#: Conditions that are a complaint when they are True; all others are one when they are False.
_BAD_WHEN_TRUE = (
    "Conflicted",
    "Detached",
    "InsecureFrontendValidationMode",
    "OverlappingTLSConfig",
    "PartiallyInvalid",
)


@ISTIO_CONFIG.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    """Read what was listed; for kinds that never were, what istiod holds of them."""
    questions = list(facts.source.questions())
    unlisted = {
        (listed.api, kind)
        for listed, kind in _KINDS.items()
        if not any(listed.matches(question) for question in questions)
    }
    held: set[tuple[str, str]] = set()
    # One object can be listed in two versions, and each istiod holds the same objects.
    seen: set[tuple[str, ...]] = set()

    def read_held(document: Json, question: Question, facts: Facts) -> Iterator[Row]:
        if not isinstance(document, list):
            raise ValueError("it is no list of objects")
        held.update(unlisted)
        for item in document:
            kind, group = str(dig(item, "kind")), str(dig(item, "apiVersion")).rpartition("/")[0]
            # istiod also holds what it derived from other objects, with a ~ in the name.
            derived = "~" in str(dig(item, "metadata", "name"))
            if (group, kind) in unlisted and not derived and _new(item, group, kind, seen):
                yield _row(item, kind, group)

    if unlisted and any(_HELD.matches(question) for question in questions):
        yield from facts.read(_HELD, read_held)
    for listed, kind in _KINDS.items():
        if (listed.api, kind) in held:
            continue

        def read(
            item: Json, question: Question, facts: Facts, kind: str = kind, api: str = listed.api
        ) -> Iterator[Row]:
            if _new(item, api, kind, seen):
                yield _row(item, kind, api, question)

        yield from facts.read(listed, read)


def gaps_of(facts: Facts, kind: str, group: str) -> Iterator[Gap]:
    """Yield what is missing of the table for one kind; ``group`` is the end of its API group."""
    missing = facts.gaps("istio_config")
    if not missing:
        return
    questions = list(facts.source.questions())
    wanted = [one for one, name in _KINDS.items() if name == kind and one.api.endswith(group)]
    listed = {
        str(question): question
        for question in questions
        if any(one.matches(question) for one in _KINDS)
    }
    for gap in missing:
        question = listed.get(gap.question)
        of_kind = any(
            one.matches(question) if question is not None else str(one) == gap.question
            for one in wanted
        )
        # What istiod holds stands in for the kinds that were never listed.
        held = question is None and not any(str(one) == gap.question for one in _KINDS)
        unlisted = any(not any(map(one.matches, questions)) for one in wanted)
        if of_kind or (held and unlisted):
            yield gap


def _new(item: Json, group: str, kind: str, seen: set[tuple[str, ...]]) -> bool:
    """Whether an object is seen for the first time; notes that it was seen."""
    namespace, name = dig(item, "metadata", "namespace"), dig(item, "metadata", "name")
    key = (group, kind, str(namespace), str(name))
    new = key not in seen
    seen.add(key)
    return new


def _row(item: Json, kind: str, group: str, question: Question | None = None) -> Row:
    listed_as = question.api_version if isinstance(question, ListQuestion) else None
    conditions = tuple(_conditions(item))
    return {
        "kind": dig(item, "kind", default=kind),
        "group": group,
        "namespace": dig(item, "metadata", "namespace"),
        "name": dig(item, "metadata", "name"),
        "api_version": dig(item, "apiVersion", default=listed_as),
        "created": dig(item, "metadata", "creationTimestamp"),
        "changed": changed(item),
        "generation": dig(item, "metadata", "generation"),
        "observed_generation": _observed(item, conditions),
        "conditions": conditions,
        "messages": "; ".join(_complaints(item, conditions)) or None,
        "labels": labels_of(item),
        "annotations": annotations_of(item),
        "spec": dict(mapping(item, "spec")),
    }


def _conditions(item: Json) -> Iterator[dict[str, Any]]:
    for one in items(item, "status", "conditions"):
        yield dict(mapping(one))
    for part, name in (("listeners", "listener"), ("parents", "parent"), ("ancestors", "ancestor")):
        for entry in items(item, "status", part):
            reference = mapping(entry, f"{name}Ref")
            titles = [
                reference.get("namespace"),
                reference.get("name"),
                reference.get("sectionName"),
            ]
            title = "/".join(str(one) for one in titles if one) or dig(entry, "name", default="")
            for one in items(entry, "conditions"):
                yield {**mapping(one), "about": f"{name} {title}".strip()}


def _observed(item: Json, conditions: tuple[dict[str, Any], ...]) -> Any:
    """Return Istio's field; of a Gateway API object the oldest generation of its conditions."""
    own = dig(item, "status", "observedGeneration")
    numbers = [
        number for one in conditions if isinstance(number := one.get("observedGeneration"), int)
    ]
    return own if own is not None or not numbers else min(numbers)


def _complaints(item: Json, conditions: tuple[dict[str, Any], ...]) -> Iterator[str]:
    for message in items(item, "status", "validationMessages"):
        words = [dig(message, "type", "code"), dig(message, "type", "name"), dig(message, "level")]
        said = " ".join(str(word) for word in words if word)
        yield f"{said} ({url})" if (url := dig(message, "documentationUrl")) else said
    for one in conditions:
        kind, status = one.get("type"), one.get("status")
        if status == ("True" if kind in _BAD_WHEN_TRUE else "False"):
            about = f" of {one['about']}" if one.get("about") else ""
            why = one.get("message") or one.get("reason") or "no reason given"
            yield f"{kind} is {status}{about}: {why}"
