"""The table ``webhooks``: which of Istio's webhooks the API server calls, for what, and where."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping
from meshnb.tables.metadata import labels_of
from meshnb.tables.x509 import Certificate, read_chain

_MUTATING = Listed("admissionregistration.k8s.io", "mutatingwebhookconfigurations")
_VALIDATING = Listed("admissionregistration.k8s.io", "validatingwebhookconfigurations")
_SERVICES = Listed("v1", "services")

WEBHOOKS = Table(
    name="webhooks",
    grain="one row per webhook of Istio",
    asks=(_MUTATING, _VALIDATING, _SERVICES),
    columns={
        "configuration": Column("string", "name of the webhook configuration", key=True),
        "webhook": Column("string", "name of the webhook within it", key=True),
        "kind": Column("string", "mutating or validating"),
        "revision": Column("string", "revision of Istio that it belongs to"),
        "tag": Column("string", "revision tag that it stands for"),
        "purpose": Column("string", "injection, validation or other, by the path that is called"),
        "namespace_selector": Column("object", "which namespaces it applies to, a dict"),
        "object_selector": Column("object", "which objects it applies to, a dict"),
        "failure_policy": Column("string", "Fail or Ignore: what follows when it does not answer"),
        "service_namespace": Column("string", "namespace of the Service that is called"),
        "service": Column("string", "name of the Service that is called"),
        "service_port": Column("Int64", "port of the Service that is called"),
        "service_exists": Column("boolean", "whether that Service is there; absent for a URL"),
        "url": Column("string", "the URL that is called, when it is no Service"),
        "ca_subject": Column("string", "subject of the CA certificate that the caller trusts"),
        "ca_not_after": Column("datetime64[us, UTC]", "when that CA certificate ends"),
        "ca_keys": Column(
            "object", "tuple: the keys of the CA certificates that the caller trusts"
        ),
        "deactivated": Column(
            "boolean", "whether it never applies, by a selector with istio.io/deactivated"
        ),
    },
    istioctl="istioctl x injector list",
)

#: A label that nothing carries: Istio replaces selectors by it when a tag takes a webhook's place.
_DEACTIVATED = "istio.io/deactivated"


@WEBHOOKS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    services = {
        (str(dig(service, "metadata", "namespace")), str(dig(service, "metadata", "name")))
        for _, service in facts.objects(_SERVICES)
    }
    for kind, listed in (("mutating", _MUTATING), ("validating", _VALIDATING)):

        def read(
            configuration: Json, question: Question, facts: Facts, kind: str = kind
        ) -> Iterator[Row]:
            for webhook in items(configuration, "webhooks"):
                if str(dig(webhook, "name")).endswith("istio.io"):
                    yield _row(configuration, webhook, kind, services)

        yield from facts.read(listed, read)


def _row(configuration: Json, webhook: Json, kind: str, services: set[tuple[str, str]]) -> Row:
    labels = labels_of(configuration)
    client = mapping(webhook, "clientConfig")
    service = mapping(client, "service")
    url = client.get("url")
    path = str(service.get("path") or url or "")
    authorities = _authorities(client.get("caBundle"))
    selectors = [mapping(webhook, "namespaceSelector"), mapping(webhook, "objectSelector")]
    called = (str(service.get("namespace")), str(service.get("name")))
    return {
        "configuration": dig(configuration, "metadata", "name"),
        "webhook": dig(webhook, "name"),
        "kind": kind,
        "revision": labels.get("istio.io/rev"),
        "tag": labels.get("istio.io/tag"),
        "purpose": _purpose(path),
        "namespace_selector": dict(selectors[0]),
        "object_selector": dict(selectors[1]),
        "failure_policy": dig(webhook, "failurePolicy"),
        "service_namespace": service.get("namespace"),
        "service": service.get("name"),
        "service_port": service.get("port", 443) if service else None,
        # No cluster is without any Service: none here means that they could not be listed.
        "service_exists": called in services if service and services else None,
        "url": url,
        "ca_subject": authorities[0].subject if authorities else None,
        "ca_not_after": authorities[0].not_after if authorities else None,
        "ca_keys": tuple(one.subject_key for one in authorities if one.subject_key is not None),
        "deactivated": any(_DEACTIVATED in mapping(one, "matchLabels") for one in selectors),
    }


def _purpose(path: str) -> str:
    if "/inject" in path:
        return "injection"
    return "validation" if "/validate" in path else "other"


def _authorities(bundle: Any) -> tuple[Certificate, ...]:
    """Return the certificates of a caBundle; none when it is empty or unreadable."""
    try:
        return read_chain(base64.b64decode(str(bundle or "")))
    except ValueError:
        return ()
