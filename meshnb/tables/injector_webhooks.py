"""The table ``injector_webhooks``: where each configuration of the sidecar injector injects."""

from __future__ import annotations

import json
from collections.abc import Iterator

from meshnb.sources.base import Question
from meshnb.tables.base import Column, Facts, Json, Listed, Row, Table, dig, items, mapping
from meshnb.tables.injector_namespaces import injected_namespaces, injection_hooks
from meshnb.tables.metadata import labels_of
from meshnb.tables.selectors import selects

_CONFIG_MAPS = Listed("v1", "configmaps", optional=True)

INJECTOR_WEBHOOKS = Table(
    name="injector_webhooks",
    grain="one row per configuration of the sidecar injector and namespace that it selects",
    istioctl="istioctl experimental injector list (second table)",
    columns={
        "namespaces": Column(
            "string",
            "a namespace where new pods are injected by default, or DOES NOT AUTOINJECT",
            key=True,
        ),
        "injector_hook": Column("string", "name of the webhook configuration", key=True),
        "istio_revision": Column("string", "revision of Istio that it belongs to"),
        "sidecar_image": Column("string", "image that this revision injects"),
        "namespace": Column("string", "the namespace; NA when there is none"),
        "tag": Column("string", "revision tag that the configuration stands for"),
    },
)

#: The webhooks that select by the namespace; the others want a label on the pod.
_BY_NAMESPACE = ("rev.namespace.sidecar-injector.istio.io", "namespace.sidecar-injector.istio.io")


@INJECTOR_WEBHOOKS.derives
def _rows(facts: Facts) -> Iterator[tuple[Question, Row]]:
    images = _images(facts)
    namespaces = injected_namespaces(facts)
    for question, hook in injection_hooks(facts):
        labels = labels_of(hook)
        revision = labels.get("istio.io/rev", "")
        shared = {
            "injector_hook": dig(hook, "metadata", "name"),
            "istio_revision": revision,
            "sidecar_image": images.get(str(revision)),
            "tag": labels.get("istio.io/tag"),
        }
        chosen = dict.fromkeys(
            str(dig(namespace, "metadata", "name"))
            for webhook in items(hook, "webhooks")
            if dig(webhook, "name") in _BY_NAMESPACE
            for _, namespace in namespaces
            if selects(mapping(webhook, "namespaceSelector"), labels_of(namespace))
        )
        for name in chosen:
            yield question, {**shared, "namespaces": name, "namespace": name}
        if not chosen:
            yield question, {**shared, "namespaces": "DOES NOT AUTOINJECT"}


def _images(facts: Facts) -> dict[str, str]:
    """Return the image of each revision, from the injector's values in its ConfigMap."""
    found: dict[str, str] = {}
    for _, config_map in facts.objects(_CONFIG_MAPS):
        revision = labels_of(config_map).get("istio.io/rev")
        if revision is not None and (image := _image(dig(config_map, "data", "values"))):
            found[str(revision)] = image
    return found


def _image(values: Json) -> str | None:
    try:
        settings = mapping(json.loads(values), "global") if isinstance(values, str) else {}
    except (ValueError, RecursionError):
        return None
    image = dig(settings, "proxy", "image")
    if not isinstance(image, str):
        return None
    return image if "/" in image else f"{settings.get('hub', '')}/{image}:{settings.get('tag', '')}"
