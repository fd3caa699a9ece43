"""Checks of ServiceEntries and of the networks of a mesh as written. Codes MNB1300 to MNB1349."""

from __future__ import annotations

from collections.abc import Iterator

from meshnb.checks.base import Finding, and_list
from meshnb.checks.lint import Say, hint, lint
from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.traces.objects import EVERYWHERE, Object, Objects, scopes, texts

_METADATA = "defaultConfig.proxyMetadata."


@lint("MNB1301", "IST0134")
def addresses_needed(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every ServiceEntry with a port for TCP has addresses.

    TCP names no host, so proxies tell such ports apart by address only. Without one the listener
    takes all traffic to that port, whatever it is meant for. Addresses that istiod allocates help
    only where the sidecars answer DNS (ISTIO_META_DNS_CAPTURE); Istio's analysis is content with
    them in every case, and so is this.
    """
    say = Say(objects, facts)
    settings = objects.settings
    if settings.get(f"{_METADATA}ISTIO_META_DNS_CAPTURE") == "true" and any(
        settings.get(f"{_METADATA}{name}") == "true"
        for name in ("ISTIO_META_DNS_AUTO_ALLOCATE", "PILOT_ENABLE_IP_AUTOALLOCATE")
    ):
        return
    for entry in objects.of("ServiceEntry"):
        if items(entry.spec, "addresses") or items(entry.body, "status", "addresses"):
            continue
        for position, port in enumerate(items(entry.spec, "ports")):
            protocol = str(dig(port, "protocol", default=""))
            if protocol.upper() in ("", "TCP"):
                yield from say(
                    entry,
                    f"{entry} has port {dig(port, 'number')} of protocol {protocol or 'TCP'} for "
                    f"{and_list(texts(entry.spec, 'hosts'))}, and no addresses: proxies cannot "
                    "tell it from other traffic to that port",
                    fix="Add addresses, or a protocol that names the host,",
                    path=f"spec.ports[{position}]",
                    key=(),
                    same_as="IST0134",
                )


@lint("MNB1302", "IST0177")
def protocols_conflict(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No two ServiceEntries give one host and port different protocols.

    Proxies have one listener or route for both, and so one of the protocols.
    """
    say = Say(objects, facts)
    used: dict[tuple[str, str, object], list[tuple[str, Object]]] = {}
    for entry in objects.of("ServiceEntry"):
        for scope in scopes(texts(entry.spec, "exportTo"), entry.namespace):
            for host in texts(entry.spec, "hosts"):
                for port in items(entry.spec, "ports"):
                    protocol = str(dig(port, "protocol", default="")).upper()
                    key = (scope, host, dig(port, "number"))
                    used.setdefault(key, []).append((protocol, entry))
    for (scope, host, number), own in used.items():
        together = own if scope == EVERYWHERE else own + used.get((EVERYWHERE, host, number), [])
        protocols = sorted({protocol for protocol, _ in together})
        if len(protocols) < 2:
            continue
        for protocol, entry in together:
            others = [one for said, one in together if said != protocol and one is not entry]
            yield from say(
                entry,
                f"{entry} gives port {number} of {host} the protocol {protocol or 'none'}, and "
                f"{and_list(map(str, others)) or 'the same ServiceEntry'} another",
                fix="Agree on one protocol",
                path="spec.ports",
                key=(),
                lines=False,
                same_as="IST0177",
                related=others,
            )


#: Registries that need no cluster: of istiod itself, and of ServiceEntries.
_REGISTRIES = {"Mock", "Kubernetes", "External"}


@lint("MNB1311", "IST0126")
def registry_unknown(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every registry that the networks of the mesh name is a cluster that istiod knows.

    istiod knows a cluster by the Secret that lets it look there. Endpoints of a registry that it
    does not know are in no network, so callers elsewhere do not go through the gateway.
    """
    say = Say(objects, facts)
    known = set(_REGISTRIES)
    for secret in objects.of("Secret"):
        if secret.labels.get("istio/multiCluster") == "true":
            known.update(mapping(secret.body, "data"))
            known.update(mapping(secret.body, "stringData"))
    networks = Object("MeshNetworks", "", objects.root_namespace, "meshnetworks", {})
    for name, network in sorted(objects.networks.items()):
        for position, endpoints in enumerate(items(network, "endpoints")):
            registry = dig(endpoints, "fromRegistry")
            if isinstance(registry, str) and registry not in known:
                yield from say(
                    networks,
                    f"Network {name} has the endpoints of registry {registry}, and there is no "
                    f"such cluster: no Secret labelled istio/multiCluster=true has that name."
                    f"{hint(registry, known)}",
                    fix="Correct the name",
                    whereabouts="in meshNetworks of istiod's ConfigMap, or the file it is from",
                    path=f"networks.{name}.endpoints[{position}].fromRegistry",
                    key=(registry, name),
                    lines=False,
                    same_as="IST0126",
                )
