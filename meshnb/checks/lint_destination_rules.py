"""Checks of DestinationRules as they are written. Codes MNB1050 to MNB1099."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.checks.base import Finding, and_list, counted
from meshnb.checks.lint import Say, hint, labelled, lint
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.objects import Object, Objects, texts

#: What istiod adds to an endpoint's labels from the node that its pod runs on (AugmentLabels).
_OF_NODE = (
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.istio.io/subzone",
)
_HOST_NAME = "kubernetes.io/hostname"


@lint("MNB1051", "IST0174")
def host_unknown(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every DestinationRule is about a Service or a ServiceEntry that it sees.

    One for any other host acts on nothing: what it was meant to set, such as TLS, is not set.
    """
    say = Say(objects, facts)
    names = [host.name for host in objects.hosts]
    for rule in objects.of("DestinationRule"):
        host = str(rule.spec.get("host") or "")
        if objects.lookup(host, rule.namespace, texts(rule.spec, "exportTo")) is None:
            full = objects.fqdn(host, rule.namespace)
            yield from say(
                rule,
                f"{rule} is about host {full}, which is no Service and no ServiceEntry that it "
                f"sees: it acts on nothing.{hint(full, names)}",
                fix="Correct the host",
                path="spec.host",
                key=(host,),
                lines=False,
                same_as="IST0174",
            )


@lint("MNB1052", "IST0173")
def subset_without_pods(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every subset of a DestinationRule has labels that pods of its host carry.

    A subset's cluster has the endpoints with these labels; without any, requests to it end with 503
    and flag UH. `istioctl analyze` takes a matching pod of any namespace for one of the host, even
    where the host is a Service, which has pods of its own namespace only.
    """
    say = Say(objects, facts)
    if not objects.pods_known:
        return
    nodes = {node.name: node.labels for node in objects.of("Node")}
    for rule in objects.of("DestinationRule"):
        host = objects.lookup(
            str(rule.spec.get("host") or ""), rule.namespace, texts(rule.spec, "exportTo")
        )
        if host is None:
            continue
        namespace = host.owner.namespace if host.owner.kind == "Service" else None
        behind = objects.selected(host.selector, namespace)
        labels = [_labels(pod, nodes) for pod in behind]
        for position, subset in enumerate(items(rule.spec, "subsets")):
            wanted = mapping(subset, "labels")
            both = {**host.selector, **wanted}
            if any(both.items() <= have.items() for have in labels):
                continue
            values = sorted(
                {f"{key}={have[key]}" for have in labels for key in wanted if key in have}
            )
            name = dig(subset, "name", default="")
            yield from say(
                rule,
                f"Subset {name} of {rule} selects {labelled(wanted)}, and of the "
                f"{counted(len(behind), 'pod')} of {host.name} none carries that"
                + (f"; they have {and_list(values)}" if values else ""),
                fix="Correct the labels",
                path=f"spec.subsets[{position}].labels",
                key=(name,),
                lines=False,
                same_as="IST0173",
            )


def _labels(pod: Object, nodes: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    node = dig(pod.body, "spec", "nodeName")
    if not isinstance(node, str) or node not in nodes:
        return pod.labels
    added = {key: nodes[node][key] for key in _OF_NODE if nodes[node].get(key)}
    return {**pod.labels, **added, _HOST_NAME: node}


@lint("MNB1053", "IST0128", "IST0129")
def certificates_unset(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every DestinationRule that begins TLS says by which certificates the server is verified.

    `istioctl analyze` says that the server is not verified otherwise. That was so: since Istio 1.20
    or so istiod has the proxies use the certificates of their operating system then, so a server
    with a certificate of a private authority is refused, and any public authority is accepted.
    """
    say = Say(objects, facts)
    for rule in objects.of("DestinationRule"):
        policy = mapping(rule.spec, "trafficPolicy")
        places = [("IST0128", "spec.trafficPolicy.tls", "", mapping(policy, "tls"))]
        for position, level in enumerate(items(policy, "portLevelSettings")):
            path = f"spec.trafficPolicy.portLevelSettings[{position}].tls"
            port = f" port {dig(level, 'port', 'number', default='?')} of"
            places.append(("IST0129", path, port, mapping(level, "tls")))
        for code, path, port, tls in places:
            if tls.get("mode") not in ("SIMPLE", "MUTUAL") or tls.get("caCertificates"):
                continue
            # A workload with its own credential gets the authority with it.
            if tls.get("credentialName") and dig(rule.spec, "workloadSelector") is not None:
                continue
            yield from say(
                rule,
                f"{rule} begins {tls['mode']} TLS to{port} {rule.spec.get('host')} without "
                "caCertificates, so only servers with a certificate of a public authority are "
                "accepted",
                fix="Name the authority in caCertificates",
                path=path,
                key=(tls["mode"], port),
                lines=False,
                same_as=code,
            )
