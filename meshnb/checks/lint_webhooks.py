"""Checks of Istio's webhooks as they are written. Codes MNB1400 to MNB1449."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any
from urllib.parse import urlsplit

from meshnb.checks.base import Finding, and_list
from meshnb.checks.lint import Say, hint, lint
from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.selectors import selects
from meshnb.traces.objects import Object, Objects

_REVISION = "istio.io/rev"


def _webhooks(objects: Objects) -> Iterator[tuple[Object, int, Json]]:
    """Yield the webhooks of the configurations that are Istio's: by name, or by a revision."""
    for configuration in objects.of("MutatingWebhookConfiguration"):
        webhooks = items(configuration.body, "webhooks")
        named = any(str(dig(one, "name")).endswith("istio.io") for one in webhooks)
        if named or _revisions(configuration):
            for position, webhook in enumerate(webhooks):
                yield configuration, position, webhook


def _revisions(configuration: Object) -> set[str]:
    found = {str(configuration.labels.get(_REVISION, ""))}
    for webhook in items(configuration.body, "webhooks"):
        for which in ("namespaceSelector", "objectSelector"):
            found.add(str(dig(webhook, which, "matchLabels", _REVISION, default="")))
            for expression in items(webhook, which, "matchExpressions"):
                if dig(expression, "key") == _REVISION:
                    found.update(map(str, items(expression, "values")))
    return found - {""}


def _combinations(label: str, values: tuple[str, ...], revisions: set[str]) -> list[dict[str, str]]:
    """Return what labels a namespace or pod may have, as far as injection looks at them."""
    base: list[dict[str, str]] = [{}, *({label: value} for value in values)]
    return base + [{**one, _REVISION: name} for name in sorted(revisions) for one in base]


@lint("MNB1401", "IST0139")
def webhooks_overlap(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """For every pod, at most one webhook injects a sidecar.

    Where two of them select it, it is injected twice, or by the control plane that nobody meant.
    """
    say = Say(objects, facts)
    webhooks = list(_webhooks(objects))
    revisions = {name for configuration, _, _ in webhooks for name in _revisions(configuration)}
    namespaces = _combinations("istio-injection", ("enabled", "disabled"), revisions)
    pods = _combinations("sidecar.istio.io/inject", ("true", "false"), revisions)
    for namespace, pod in product(namespaces, pods):
        matched = [
            (configuration, position, webhook)
            for configuration, position, webhook in webhooks
            if selects(dig(webhook, "namespaceSelector"), namespace)
            and selects(dig(webhook, "objectSelector"), pod)
        ]
        if len({_title(one) for one in matched}) < 2:
            continue
        for one in matched:
            configuration, position, webhook = one
            others = sorted({_title(other) for other in matched} - {_title(one)})
            yield from say(
                configuration,
                f"Webhook {dig(webhook, 'name')} of {configuration} selects the same pods as "
                f"{and_list(others)}, such as {_said('pods', pod)} in "
                f"{_said('namespaces', namespace)}",
                fix="Take one of them out",
                path=f"webhooks[{position}]",
                key=tuple(others),
                lines=False,
                same_as="IST0139",
            )


def _title(entry: tuple[Object, int, Json]) -> str:
    return f"{entry[0].name}/{dig(entry[2], 'name')}"


def _said(what: str, labels: Mapping[str, str]) -> str:
    given = and_list(f"{key}={value}" for key, value in labels.items())
    return f"{what} with {given}" if given else f"{what} without labels"


@lint("MNB1402", "IST0139")
def webhook_without_service(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every webhook for injection calls a Service that exists.

    Kubernetes cannot call it otherwise: pods that it selects are refused, or start without sidecar.
    """
    say = Say(objects, facts)
    names = [service.title for service in objects.of("Service")]
    for configuration, position, webhook in _webhooks(objects):
        service = mapping(webhook, "clientConfig", "service")
        called = (str(service.get("namespace", "")), str(service.get("name", "")))
        if not service or objects.find("Service", *called) is not None:
            continue
        title = "/".join(called)
        yield from say(
            configuration,
            f"Webhook {dig(webhook, 'name')} of {configuration} calls Service {title}, which does "
            f"not exist.{hint(title, names)}",
            fix="Correct the Service",
            path=f"webhooks[{position}].clientConfig.service",
            key=(title,),
            lines=False,
            same_as="IST0139",
        )


#: How the names of the configurations begin that Istio's charts make.
_NAMES = {
    "ValidatingWebhookConfiguration": ("istio-validator", "istiod-default-validator"),
    "MutatingWebhookConfiguration": ("istio-sidecar-injector",),
}


def _of_control_plane(objects: Objects) -> Iterator[tuple[Object, int, Mapping[str, Any], str]]:
    """Yield the webhooks that istiod serves, told by the names of their configurations."""
    for kind, begins in _NAMES.items():
        for configuration in objects.of(kind):
            if configuration.name.startswith(begins):
                for position, webhook in enumerate(items(configuration.body, "webhooks")):
                    client = mapping(webhook, "clientConfig")
                    yield configuration, position, client, str(dig(webhook, "name"))


@lint("MNB1411", "IST0163")
def webhook_without_address(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every webhook of Istio has an address: a Service, or the URL of a control plane elsewhere.

    `istioctl analyze` also looks the name in the URL up, from the machine that it runs on. That is
    not where the API server is, and nothing is looked up here.
    """
    say = Say(objects, facts)
    for configuration, position, client, name in _of_control_plane(objects):
        problem = _problem(client)
        if problem:
            yield from say(
                configuration,
                f"Webhook {name} of {configuration} cannot be called: {problem}",
                fix="Set the URL of the control plane",
                path=f"webhooks[{position}].clientConfig",
                key=(name, client.get("url")),
                lines=False,
                same_as="IST0163",
            )


_HOST = re.compile(r"[\w.:%-]+")


def _problem(client: Mapping[str, Any]) -> str:
    url = client.get("url")
    if url is None:
        return "" if client.get("service") is not None else "it has neither Service nor URL"
    try:
        host = urlsplit(str(url)).hostname
    except ValueError as error:
        return f"its URL {url!r} is none: {error}"
    return "" if host and _HOST.fullmatch(host) else f"its URL {url!r} names no host"


@lint("MNB1412", "IST0164")
def webhook_by_address(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every control plane elsewhere is called by name, not by IP address.

    The address may change, and the certificate has to be valid for it.
    """
    say = Say(objects, facts)
    for configuration, position, client, name in _of_control_plane(objects):
        try:
            host = urlsplit(str(client.get("url") or "")).hostname or ""
            ipaddress.ip_address(host)
        except ValueError:
            continue
        yield from say(
            configuration,
            f"Webhook {name} of {configuration} is called at the IP address {host}",
            fix="Use a host name",
            path=f"webhooks[{position}].clientConfig.url",
            key=(name, host),
            lines=False,
            same_as="IST0164",
        )
