"""Checks of Gateways as they are written. Codes MNB1100 to MNB1149."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.checks.base import Finding, and_list
from meshnb.checks.lint import Say, hint, labelled, lint
from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.tables.x509 import read_first_certificate
from meshnb.traces.objects import Object, Objects, texts


def _selector(gateway: Object) -> Mapping[str, Any]:
    return mapping(gateway.spec, "selector")


@lint("MNB1101", "IST0101")
def gateway_without_pods(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every Gateway selects pods, by labels, in any namespace.

    A Gateway configures the proxies of the pods that carry its labels. Without any, nothing listens
    for its hosts. Of a Gateway without servers `istioctl analyze` says the same wherever its pods
    are; here its own fault is named.
    """
    say = Say(objects, facts)
    if not objects.pods_known:
        return
    values = {
        f"{key}={value}"
        for pod in objects.selected({})
        for key, value in pod.labels.items()
        if key == "istio"
    }
    gateways = objects.of("Gateway")
    for gateway in gateways:
        labels = _selector(gateway)
        alike = [one for one in gateways if items(one.spec, "servers")]
        if (
            labels
            and gateway not in alike
            and objects.selected(labels)
            and not any(_meet(objects, gateway, one) for one in alike)
        ):
            yield from say(
                gateway,
                f"{gateway} has no servers: nothing listens for its hosts on the pods with "
                f"{labelled(labels)}",
                fix="Add a server",
                path="spec.servers",
                key=(),
                same_as="IST0101",
            )
        if not objects.selected(labels):
            yield from say(
                gateway,
                f"{gateway} selects pods with {labelled(labels)}, and there is none: nothing "
                f"listens for its hosts.{hint(labelled(labels), values)}",
                fix="Correct the labels",
                path="spec.selector",
                key=(),
                same_as="IST0101",
            )


@lint("MNB1102", "IST0162")
def port_not_on_service(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every port of a Gateway is one that a Service in front of its pods leads to.

    What leads there is a Service's targetPort, or its port where that is not translated; Istio
    takes either.
    """
    say = Say(objects, facts)
    if not objects.pods_known:
        return
    for gateway in objects.of("Gateway"):
        behind = objects.selected(_selector(gateway))
        services = [
            service
            for service in objects.of("Service")
            for selector in [mapping(service.spec, "selector")]
            if any(
                pod.namespace == service.namespace and selector.items() <= pod.labels.items()
                for pod in behind
            )
        ]
        reached = {
            number
            for service in services
            for port in items(service.spec, "ports")
            for number in (dig(port, "port"), _target(port))
            if dig(port, "protocol") == "TCP" and isinstance(number, int)
        }
        for position, server in enumerate(items(gateway.spec, "servers") if behind else []):
            number = dig(server, "port", "number", default=0)
            if dig(server, "port") is None or number in reached:
                continue
            front = and_list(str(service) for service in services) or "no Service at all"
            ports = f" leads to {and_list(map(str, sorted(reached)))}" if reached else ""
            yield from say(
                gateway,
                f"{gateway} listens on port {number}, and no Service in front of its pods leads "
                f"there: there is {front}, which{ports or ' leads to none'}",
                fix="Correct the port, or add it to the Service,",
                path=f"spec.servers[{position}].port.number",
                key=(number,),
                lines=False,
                same_as="IST0162",
                related=services,
            )


def _target(port: Json) -> Any:
    target = dig(port, "targetPort")
    return int(target) if isinstance(target, str) and target.isdecimal() else target


@lint("MNB1103", "IST0145")
def gateways_conflict(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No two Gateways open the same port of the same pods for the same host.

    istiod takes one of the two servers, the older Gateway's, and leaves the other out.
    """
    say = Say(objects, facts)
    servers = [
        (gateway, number, texts(server, "hosts"), dig(server, "bind", default=""))
        for gateway in objects.of("Gateway")
        for server in items(gateway.spec, "servers")
        for number in [dig(server, "port", "number", default=0)]
    ]
    for gateway in objects.of("Gateway"):
        for position, server in enumerate(items(gateway.spec, "servers")):
            number = dig(server, "port", "number", default=0)
            hosts, bind = texts(server, "hosts"), dig(server, "bind", default="")
            found: dict[str, Object] = {}
            both: list[str] = []
            # Of several servers of one Gateway on one port, Istio compares the last one.
            last = {other.title: (other, *rest) for other, port, *rest in servers if port == number}
            for other, other_hosts, other_bind in last.values():
                same = [host for host in hosts if host in other_hosts]
                twice = other is not gateway and same and bind == other_bind
                if twice and _meet(objects, gateway, other):
                    found[other.title] = other
                    both += same
            if found:
                yield from say(
                    gateway,
                    f"{gateway} opens port {number} for {and_list(dict.fromkeys(both))}, and so "
                    f"does {and_list(map(str, found.values()))} on the same pods: only one of them "
                    "is served",
                    fix="Merge them, or give them different hosts,",
                    path=f"spec.servers[{position}].hosts",
                    key=(tuple(sorted(found)), number, tuple(hosts)),
                    lines=False,
                    same_as="IST0145",
                    related=found.values(),
                )


def _meet(objects: Objects, one: Object, other: Object) -> bool:
    """Whether two Gateways are for the same pods: the same labels, or a pod that has both's."""
    mine, theirs = _selector(one), _selector(other)
    if mine == theirs:
        return True
    first, second = labelled(mine), labelled(theirs)
    return (first in second or second in first) and bool(objects.selected({**mine, **theirs}))


@lint("MNB1104", "IST0138")
def certificate_shared(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No two Gateways of the same pods use the same certificate.

    A browser reuses an HTTP/2 connection for every host that its certificate is valid for; the
    connection belongs to one Gateway's server, which answers 404 for the hosts of the other.
    """
    say = Say(objects, facts)
    gateways = objects.of("Gateway")
    for gateway in gateways:
        for other in gateways:
            if other is gateway or not _selector(gateway).items() <= _selector(other).items():
                continue
            for position, server in enumerate(items(gateway.spec, "servers")):
                for second in items(other.spec, "servers"):
                    name = _shared(mapping(server, "tls"), mapping(second, "tls"))
                    if not name:
                        continue
                    yield from say(
                        gateway,
                        f"{gateway} and {other} both use certificate {name}, for "
                        f"{and_list(texts(server, 'hosts'))} and {and_list(texts(second, 'hosts'))}"
                        ": clients that reuse a connection get 404",
                        fix="Put the hosts into one Gateway, or use two certificates,",
                        path=f"spec.servers[{position}].tls",
                        key=(other.title,),
                        lines=False,
                        same_as="IST0138",
                        related=[other],
                    )


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Return the name of the certificate that both use; empty when they do not."""
    mine, theirs = one.get("credentialName"), other.get("credentialName")
    if mine and theirs:
        return str(mine) if mine == theirs else ""
    certificate, key = one.get("serverCertificate"), one.get("privateKey")
    same = certificate == other.get("serverCertificate") and key == other.get("privateKey")
    return str(certificate) if not mine and not theirs and certificate and key and same else ""


@lint("MNB1105", "IST0101")
def credential_unknown(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every credential that a Gateway names is a Secret in the namespace of its pods.

    It is looked up beside the pods, not beside the Gateway. Without it each handshake fails.
    """
    say = Say(objects, facts)
    if objects.in_files and not objects.of("Secret"):
        return
    for gateway, path, name, namespace, secret in _credentials(objects):
        if secret is None:
            elsewhere = [one.namespace for one in objects.of("Secret") if one.name == name]
            where = f" There is one in {and_list(elsewhere)}." if elsewhere else ""
            names = [one.name for one in objects.of("Secret") if one.namespace == namespace]
            yield from say(
                gateway,
                f"{gateway} takes its certificate from Secret {namespace}/{name}, which does not "
                f"exist.{where or hint(name, names)}",
                fix="Create the Secret, or correct the name",
                path=path,
                key=(name,),
                same_as="IST0101",
            )


@lint("MNB1106", "IST0161")
def credential_unusable(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every credential that a Gateway names holds a certificate that is valid now, and a key.

    The Gateway's server is not ready with any other.
    """
    say = Say(objects, facts)
    for gateway, path, name, namespace, secret in _credentials(objects):
        problem = _problem(secret, facts) if secret is not None else ""
        if secret is not None and problem:
            yield from say(
                gateway,
                f"{gateway} takes its certificate from Secret {namespace}/{name}, {problem}",
                fix=f"Renew Secret {namespace}/{name}, which is named",
                path=path,
                key=(namespace,),
                same_as="IST0161",
                related=[secret],
            )


def _credentials(
    objects: Objects,
) -> Iterator[tuple[Object, str, str, str, Object | None]]:
    """Yield each credential of each Gateway with its path, name, namespace, and Secret."""
    for gateway in objects.of("Gateway"):
        pods = objects.selected(_selector(gateway))
        for position, server in enumerate(items(gateway.spec, "servers") if pods else []):
            name = dig(server, "tls", "credentialName")
            if isinstance(name, str) and name:
                found = objects.find("Secret", pods[0].namespace, name)
                path = f"spec.servers[{position}].tls.credentialName"
                yield gateway, path, name, pods[0].namespace, found


#: Where certificate and key stand: in Istio's own form, and in a Secret of type kubernetes.io/tls.
_FORMS = (("cert", "key"), ("tls.crt", "tls.key"))


def _problem(secret: Object, facts: Facts) -> str:
    """Return why a Secret cannot be used, in words; empty when it can.

    Of a recording it is the certificate only that can be judged: keys are not recorded.
    """
    values = mapping(secret.body, "data")
    form = next((one for one in _FORMS if all(values.get(part) for part in one)), None)
    if form is None:
        return f"which lacks {and_list(part for part in _FORMS[-1] if not values.get(part))}"
    try:
        first = read_first_certificate(base64.b64decode(str(values[form[0]])))
    except ValueError as error:
        return f"whose certificate cannot be read: {error}"
    if first.not_after < facts.now:
        return f"whose certificate ended at {first.not_after:%Y-%m-%d %H:%M}"
    if first.not_before > facts.now:
        return f"whose certificate begins at {first.not_before:%Y-%m-%d %H:%M}"
    return ""
