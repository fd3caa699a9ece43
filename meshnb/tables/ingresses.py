"""The table ``ingresses``: Kubernetes' own Ingress objects, and who is to serve each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items
from meshnb.tables.metadata import annotations_of, changed

_INGRESSES = Listed("networking.k8s.io", "ingresses", optional=True)
_CLASSES = Listed("networking.k8s.io", "ingressclasses", optional=True)
#: Where the class stood before it had a field.
_ANNOTATION = "kubernetes.io/ingress.class"
#: The mark of the class that counts for an Ingress without one.
_DEFAULT = "ingressclass.kubernetes.io/is-default-class"

INGRESSES = Table(
    name="ingresses",
    grain="one row per Ingress",
    asks=(_INGRESSES, _CLASSES),
    columns={
        "namespace": Column("string", "namespace of the Ingress", key=True),
        "ingress": Column("string", "name of the Ingress", key=True),
        "class": Column("string", "name of its class; absent when it names none"),
        "controller": Column(
            "string", "who serves that class, or the default one; absent when no class is there"
        ),
        "hosts": Column("object", "hosts of its rules, a tuple; * for all"),
        "secrets": Column("object", "Secrets that its certificates come from, a tuple"),
        "addresses": Column("object", "addresses that its controller gave it, a tuple"),
        "changed": Column(
            "datetime64[us, UTC]", "when anything but its status was changed last", passing=True
        ),
    },
)


@INGRESSES.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    controllers: dict[str, Any] = {}
    default = None
    for _, document in facts.objects(_CLASSES):
        name, controller = dig(document, "metadata", "name"), dig(document, "spec", "controller")
        controllers[str(name)] = controller
        if annotations_of(document).get(_DEFAULT) == "true":
            default = controller

    def read(ingress: Json, question: Question, facts: Facts) -> Iterator[Row]:
        named = dig(ingress, "spec", "ingressClassName") or annotations_of(ingress).get(_ANNOTATION)
        yield {
            "namespace": dig(ingress, "metadata", "namespace"),
            "ingress": dig(ingress, "metadata", "name"),
            "class": named,
            "controller": controllers.get(str(named)) if named else default,
            "hosts": tuple(
                str(dig(rule, "host", default="*")) for rule in items(ingress, "spec", "rules")
            ),
            "secrets": tuple(str(dig(one, "secretName")) for one in items(ingress, "spec", "tls")),
            "addresses": tuple(
                str(dig(one, "ip") or dig(one, "hostname"))
                for one in items(ingress, "status", "loadBalancer", "ingress")
            ),
            "changed": changed(ingress),
        }

    yield from facts.read(_INGRESSES, read)
