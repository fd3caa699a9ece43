"""Checks of what injection needs, as it is written. Codes MNB1150 to MNB1199."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from meshnb.checks.base import Finding, and_list, counted
from meshnb.checks.lint import Say, lint
from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.mesh_settings import parse_yaml
from meshnb.tables.selectors import selects
from meshnb.traces.objects import Object, Objects

_INJECTION, _REVISION, _MODE = "istio-injection", "istio.io/rev", "istio.io/dataplane-mode"
_INJECT = "sidecar.istio.io/inject"
_PROXY = "istio-proxy"
#: The ConfigMap of the injector; one of another revision has its name behind it.
_CONFIG_MAP = "istio-sidecar-injector"


def _values(objects: Objects, revision: str) -> Json:
    """Return the values of the injector of a revision; None where its ConfigMap is not there."""
    name = _CONFIG_MAP if revision in ("", "default") else f"{_CONFIG_MAP}-{revision}"
    for config_map in objects.of("ConfigMap"):
        if config_map.name == name:
            text = dig(config_map.body, "data", "values")
            return _parsed(text) if isinstance(text, str) else None
    return None


@lru_cache(maxsize=8)
def _parsed(text: str) -> Json:
    """Return the values in a ConfigMap, which each namespace of a revision asks for."""
    try:
        return parse_yaml(text)
    except ValueError:
        return None


def _application_namespaces(objects: Objects) -> Iterator[Object]:
    for namespace in objects.of("Namespace"):
        if namespace.name not in objects.control_planes:
            yield namespace


def _by_default(objects: Objects, namespace: Object) -> bool:
    values = _values(objects, str(namespace.labels.get(_REVISION, "")))
    return dig(values, "sidecarInjectorWebhook", "enableNamespacesByDefault") is True


@lint("MNB1151", "IST0102", "IST0148")
def namespace_without_label(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every namespace of applications says whether it is in the mesh.

    Without a label for injection or ambient mode it is not, unless the injector is set to take in
    every namespace. A label that says no makes clear that it is meant so.
    """
    say = Say(objects, facts)
    for namespace in _application_namespaces(objects):
        labels = namespace.labels
        if labels.get(_MODE) == "ambient" or labels.get(_INJECTION) or _REVISION in labels:
            continue
        if _by_default(objects, namespace):
            yield from say(
                namespace,
                f"{namespace} has no label for injection, and its pods get a sidecar because the "
                "injector is set to enableNamespacesByDefault",
                fix=f"Label it {_INJECTION}=enabled to make that clear,",
                path="metadata.labels",
                same_as="IST0148",
            )
        else:
            yield from say(
                namespace,
                f"{namespace} has no label for injection and none for ambient mode: its pods are "
                "not in the mesh",
                fix=f"Label it {_INJECTION}=enabled, or disabled if that is meant,",
                path="metadata.labels",
                same_as="IST0102",
            )


@lint("MNB1152", "IST0123")
def several_injection_labels(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No namespace has two labels that each put it into the mesh.

    With istio-injection, istio.io/rev is ignored; with either, pods are not in ambient mode.
    """
    say = Say(objects, facts)
    for namespace in _application_namespaces(objects):
        labels = namespace.labels
        given = [_INJECTION] if _INJECTION in labels else []
        if labels.get(_INJECTION, "enabled") == "enabled":
            given += [name for name in (_REVISION, _MODE) if name in labels]
        if len(given) > 1:
            said = and_list(f"{name}={labels[name]}" for name in given)
            yield from say(
                namespace,
                f"{namespace} has {said}: only {given[0]} counts",
                fix="Take all but one out",
                path="metadata.labels",
                same_as="IST0123",
            )


@lint("MNB1153", "IST0103")
def pod_without_proxy(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every pod of an injected namespace has a sidecar, unless it says otherwise.

    `istioctl analyze` looks at namespaces with istio-injection=enabled only. One with istio.io/rev
    is injected just as well where a webhook of that revision is there, so it counts here, too.
    """
    say = Say(objects, facts)
    webhooks = list(_webhooks(objects))
    injected = set()
    for namespace in _application_namespaces(objects):
        labels = namespace.labels
        revised = (
            _INJECTION not in labels and _REVISION in labels and _matched(labels, {}, webhooks)
        )
        ambient = labels.get(_MODE) == "ambient"
        if not ambient and (labels.get(_INJECTION) == "enabled" or revised):
            injected.add(namespace.name)
    for pod in objects.of("Pod"):
        wanted = pod.labels.get(_INJECT, pod.annotations.get(_INJECT, ""))
        if (
            pod.namespace in injected
            and str(wanted).lower() != "false"
            and dig(pod.spec, "hostNetwork") is not True
            and not any(dig(one, "image") for one in _proxies(pod.body))
        ):
            yield from say(
                pod,
                f"{pod} has no sidecar, although its namespace is injected: it was made before "
                "that, or while the webhook was not called",
                fix="Replace it, after a look",
                path="spec.containers",
                same_as="IST0103",
            )


def _proxies(pod: Json) -> list[Json]:
    """Return the containers of a pod or pod template that are its proxy."""
    containers = items(pod, "spec", "containers") + items(pod, "spec", "initContainers")
    return [one for one in containers if dig(one, "name") == _PROXY]


def _webhooks(objects: Objects) -> Iterator[Json]:
    for configuration in objects.of("MutatingWebhookConfiguration"):
        for webhook in items(configuration.body, "webhooks"):
            if str(dig(webhook, "name")).endswith("istio.io"):
                yield webhook


def _matched(namespace: Mapping[str, Any], pod: Mapping[str, Any], webhooks: list[Json]) -> bool:
    return any(
        selects(dig(one, "namespaceSelector"), namespace)
        and selects(dig(one, "objectSelector"), pod)
        for one in webhooks
    )


@lint("MNB1154", "IST0146", "IST0147")
def image_never_replaced(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No pod has a proxy whose image is ``auto``.

    Injection replaces that image. In a running Pod it was not replaced, so the container cannot
    start; in a Deployment that no webhook selects, it will not be.
    """
    say = Say(objects, facts)
    for pod in objects.of("Pod"):
        if _automatic(pod.body):
            yield from say(
                pod,
                f"The proxy of {pod} has the image auto, which injection should have replaced",
                fix="Replace it where injection works, after a look",
                path="spec.containers",
                same_as="IST0147",
            )
    webhooks = list(_webhooks(objects))
    for deployment in objects.of("Deployment"):
        template = mapping(deployment.spec, "template")
        namespace = objects.find("Namespace", "", deployment.namespace)
        if _automatic(template) and not _matched(
            namespace.labels if namespace else {}, mapping(template, "metadata", "labels"), webhooks
        ):
            yield from say(
                deployment,
                f"The proxy of {deployment} has the image auto, and no injection webhook selects "
                "its pods: it will not be replaced",
                fix=f"Label the pods {_INJECT}=true, or the namespace,",
                path="spec.template.spec.containers",
                same_as="IST0146",
            )


def _automatic(pod: Json) -> bool:
    return any(dig(one, "image") == "auto" for one in _proxies(pod))


@lint("MNB1155", "IST0158")
def proxy_of_another_version(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every proxy of an injected namespace has the image that its injector gives.

    After an upgrade of the control plane pods keep their old proxy until they are restarted.
    """
    say = Say(objects, facts)
    for namespace in objects.of("Namespace"):
        if namespace.labels.get(_INJECTION) != "enabled" and _REVISION not in namespace.labels:
            continue
        given = _image(_values(objects, str(namespace.labels.get(_REVISION, ""))))
        if not given:
            continue
        other: dict[str, str] = {}
        for pod in objects.of("Pod"):
            if pod.namespace != namespace.name or pod.annotations.get(
                "sidecar.istio.io/proxyImage"
            ):
                continue
            kind = _image_type(objects, pod)
            for proxy in _proxies(pod.body):
                image = str(dig(proxy, "image", default=""))
                if image not in (given, f"{given}-{kind}"):
                    other[pod.name] = image
        if other:
            yield from say(
                namespace,
                f"{counted(len(other), 'pod')} of {namespace} with another proxy than {given}, "
                f"which the injector gives: {and_list(f'{k} ({v})' for k, v in other.items())}",
                fix=f"Restart them with `kubectl -n {namespace.name} rollout restart deployment`, "
                "or look",
                key=(),
                lines=False,
                same_as="IST0158",
            )


def _image(values: Json) -> str:
    """Return the image that an injector gives; empty when its values do not say."""
    image = dig(values, "global", "proxy", "image")
    if not isinstance(image, str):
        return ""
    if "/" in image:
        return image
    return f"{dig(values, 'global', 'hub')}/{image}:{dig(values, 'global', 'tag')}"


def _image_type(objects: Objects, pod: Object) -> str:
    """Return the variant of the image that is set for a pod, such as distroless.

    The pod's own annotation comes before a ProxyConfig for it, that before one of its namespace,
    that before one of the root namespace, and MeshConfig comes last.
    """
    found = objects.settings.get("defaultConfig.image.imageType", "")
    own: list[Object] = []
    for config in objects.of("ProxyConfig"):
        labels = mapping(config.spec, "selector", "matchLabels")
        if config.namespace == objects.root_namespace:
            own.insert(0, config)
        elif config.namespace == pod.namespace and labels.items() <= pod.labels.items():
            own.append(config)
    own.sort(key=lambda config: bool(mapping(config.spec, "selector")))
    written: list[Json] = [config.spec for config in own]
    text = pod.annotations.get("proxy.istio.io/config")
    if isinstance(text, str):
        with contextlib.suppress(ValueError):
            written.append(parse_yaml(text))
    for one in written:
        found = dig(one, "image", "imageType") or found
    return "" if found == "default" else str(found)
