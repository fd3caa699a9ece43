"""What a policy, an extension or a Sidecar made of itself in a proxy.

AuthorizationPolicies are named in RBAC rules and WasmPlugins in extension configurations. Of other
kinds the fields that they set are looked for: modes of filter chains, issuers of tokens, values of
patches, the hosts that are left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.comparison import origin_at
from meshnb.traces.mesh import ConfigObject, Mesh, Pod, plain
from meshnb.traces.rules import sidecar_of
from meshnb.traces.rungs.holdings import ABSENT, AGREES, DIFFERS, UNKNOWN, Effect, Holdings, newest
from meshnb.traces.rungs.ladder import Cited, where
from meshnb.traces.rungs.patches import found_in, place_of, removes
from meshnb.traces.rungs.reach import Reach
from meshnb.traces.rungs.visibility import imports, listed

#: Port of the listener itself: a chain for it only stops loops.
_OWN_PORT = 15006
_CONTEXTS: Mapping[str, tuple[str, ...]] = {
    "sidecar": ("ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND"),
    "gateway": ("ANY", "GATEWAY"),
    "waypoint": ("ANY", "WAYPOINT"),
}
#: Name of the policy that istiod makes of a PeerAuthentication without ports.
_STATIC_STRICT = "istio_converted_static_strict"


class Enforcement:
    """What the proxies of one source have of one policy."""

    def __init__(self, held: Holdings, mesh: Mesh, item: ConfigObject) -> None:
        """Choose how an object of this kind is looked for."""
        self._held = held
        self.facts = held.facts
        self.mesh = mesh
        self.item = item
        kinds: Mapping[str, Callable[[Pod], Effect]] = {
            "AuthorizationPolicy": self._authorization_policy,
            "PeerAuthentication": self._peer_authentication,
            "RequestAuthentication": self._request_authentication,
            "EnvoyFilter": self._envoy_filter,
            "WasmPlugin": self._plugin,
            "TrafficExtension": self._plugin,
            "Sidecar": self._sidecar,
            "ProxyConfig": self._proxy_config,
        }
        self._look = kinds.get(item.kind, self._traceless)

    def at(self, pod: Pod) -> Effect:
        """Return what an Envoy has of the object."""
        return self._look(pod)

    def _peer_authentication(self, pod: Pod) -> Effect:
        rows = self._held.rows("listeners", pod.proxy)
        rows = rows[(rows["listener"] == "virtualInbound") & (rows["state"] == "active")]
        if not len(rows):
            return Effect(UNKNOWN, "it has no listener for what comes in")
        odd: list[str] = []
        agreed: list[str] = []
        for port in [None, *sorted({int(p) for p in rows["destination_port"].dropna()})]:
            mode, policy = self.mesh.mtls_mode(pod, port)
            chains = rows[rows["destination_port"].isna() if port is None
                          else rows["destination_port"] == port]  # fmt: skip
            held = _accepts(chains)
            if policy is not self.item or port == _OWN_PORT or not held:
                continue
            where = "other ports" if port is None else f"port {port}"
            if held == mode:
                agreed.append(f"{mode} on {where}")
            else:
                odd.append(f"{where} is {held} and not {mode}")
        return Effect(
            DIFFERS if odd else AGREES if agreed else UNKNOWN,
            "; ".join(odd or agreed) or "no port there is decided by it alone",
            Cited.of("listeners", rows),
            newest(rows),
        )

    def _authorization_policy(self, pod: Pod) -> Effect:
        rows = self._held.rows("rbac_rules", pod.proxy)
        rows = rows[rows["state"] == "active"]
        action = str(dig(self.item.spec, "action", default="ALLOW"))
        rules = len(items(self.item.spec, "rules"))
        mine = rows[
            (rows["namespace"] == self.item.namespace).fillna(value=False).astype(bool)
            & (rows["policy"] == self.item.name).fillna(value=False).astype(bool)
        ]
        if not rules and action != "ALLOW":
            return Effect(AGREES, "it has no rules", idle=f"{action} without rules matches nothing")
        if not rules:
            # Such a policy has no name in Envoy: it is the filter that lets nothing through.
            closed = rows[
                (rows["action"] == "ALLOW")
                & (rows["authorization_policy"] == "_anonymous_match_nothing_")
            ]
            others = rows[(rows["action"] == "ALLOW") & rows["policy"].notna()]
            if len(closed) or len(others):
                return Effect(
                    AGREES, "it lets nothing through that no other policy allows",
                    Cited.of("rbac_rules", closed if len(closed) else others),
                )  # fmt: skip
            return Effect(ABSENT, "it lets everything through")
        since = self._held.listening_since(pod.proxy)
        if not len(mine):
            return Effect(ABSENT, "no rule of it is there", since=since)
        held = {int(number) for number in mine["rule"].dropna()}
        odd: list[str] = []
        if lost := [str(number) for number in range(rules) if number not in held]:
            odd.append(f"rule {listed(lost)} is not there")
        if held - set(range(rules)):
            odd.append(f"it has {len(held)} rules there")
        wanted = {"AUDIT": "LOG"}.get(action, action)
        if wanted not in set(mine["action"]):
            odd.append(f"it is {listed(dict.fromkeys(mine['action']))} there and not {wanted}")
        dry = self.item.annotations.get("istio.io/dry-run") == "true"
        idle = "it only counts what it would do: the annotation istio.io/dry-run is true"
        return Effect(
            DIFFERS if odd else AGREES,
            "; ".join(odd) or f"its {len(held)} rules are there",
            Cited.of("rbac_rules", mine),
            since,
            idle=idle if dry else "",
        )

    def _request_authentication(self, pod: Pod) -> Effect:
        issuers = [str(dig(rule, "issuer")) for rule in items(self.item.spec, "jwtRules")]
        if not issuers:
            return Effect(AGREES, "it has no rules", idle="it names no issuer of tokens")
        listeners = list(self._held.listeners(pod.proxy))
        missing = [
            issuer
            for issuer in issuers
            if not any(found_in(one, {"issuer": issuer}) for one in listeners)
        ]
        if len(missing) == len(issuers):
            return Effect(ABSENT, f"no filter there knows the issuer {listed(missing)}")
        return Effect(
            DIFFERS if missing else AGREES,
            f"no filter there knows the issuer {listed(missing)}"
            if missing
            else f"its filters know the issuer {listed(issuers)}",
            since=self._held.listening_since(pod.proxy),
        )

    def _envoy_filter(self, pod: Pod) -> Effect:
        found: list[str] = []
        missing: list[str] = []
        untold: list[str] = []
        for number, patch in enumerate(items(self.item.spec, "configPatches")):
            name = f"configPatches[{number}]"
            context = dig(patch, "match", "context", default="ANY")
            place = place_of(patch)
            if removes(patch) or place is None:
                untold.append(name)
            elif context in _CONTEXTS[pod.mesh]:
                value = mapping(patch, "patch", "value")
                held = any(
                    found_in(_current(e), value) for e in self._held.listed(pod.proxy, *place)
                )
                (found if held else missing).append(name)
        if found and not missing:
            return Effect(AGREES, f"what {listed(found)} adds is there",
                          since=self._held.listening_since(pod.proxy))  # fmt: skip
        if missing and found:
            return Effect(DIFFERS, f"what {listed(missing)} adds is not there")
        if missing:
            return Effect(ABSENT, f"nothing of what {listed(missing)} adds is there")
        why = f"what {listed(untold)} takes away or sets at the start leaves nothing to look for"
        return Effect(UNKNOWN, why if untold else "none of its patches is for such a proxy")

    def _plugin(self, pod: Pod) -> Effect:
        rows = self._held.rows("extension_configs", pod.proxy)
        stem = f"{self.item.namespace}.{self.item.name}"
        mine = where(
            rows,
            (
                origin_at(plain(path)) == str(self.item) or str(name).endswith(stem)
                for path, name in zip(rows["istio_config"], rows["ecds_name"], strict=True)
            ),
        )
        active = mine[mine["state"] == "active"]
        if not len(mine):
            return Effect(ABSENT, "it has no extension of that name")
        if not len(active):
            return Effect(
                ABSENT, f"its extension is {listed(mine['state'])}",
                Cited.of("extension_configs", mine),
            )  # fmt: skip
        return Effect(
            AGREES, "its extension is active", Cited.of("extension_configs", active),
            newest(active),
        )  # fmt: skip

    # --- what the proxy sees at all ---

    def _sidecar(self, pod: Pod) -> Effect:
        if sidecar_of(pod, self.mesh) is not self.item:
            return Effect(ABSENT, "another Sidecar is in force")
        rows = self._held.rows("clusters", pod.proxy)
        outbound = rows[rows["direction"] == "outbound"]
        home = {port.host: port.namespace for port in self.mesh.services}
        home |= {
            str(host): entry.namespace
            for entry in self.mesh.of("ServiceEntry")
            for host in items(entry.spec, "hosts")
        }
        odd = [
            host
            for host in dict.fromkeys(outbound["service_fqdn"])
            if host in home
            and not imports(self.item, home[host], str(host))
            # The servers of telemetry and authorization are always sent along.
            and not any(str(host) in value for value in self.mesh.settings.values())
        ]
        # What routes of imported VirtualServices lead to comes along.
        routes = self._held.rows("routes", pod.proxy)
        led = {
            cluster.rpartition("|")[2]
            for clusters in routes.loc[routes["istio_config"].notna(), "clusters"]
            for cluster in clusters
        }
        odd = [host for host in odd if host not in led]
        if odd:
            extra = outbound[outbound["service_fqdn"].isin(odd)]
            return Effect(
                DIFFERS, f"it still has clusters for {listed(odd)}", Cited.of("clusters", extra)
            )
        return Effect(
            AGREES, "it has clusters only for hosts that egress lists",
            Cited.of("clusters", outbound), newest(rows[rows["state"] == "active"]),
        )  # fmt: skip

    def _proxy_config(self, pod: Pod) -> Effect:
        if pod.created is not None and pod.created < self.item.changed:
            return Effect(ABSENT, "its pod is older, and takes it when it is made anew")
        return Effect(UNKNOWN, "what a proxy was started with is not compared")

    def _traceless(self, pod: Pod) -> Effect:
        return Effect(
            UNKNOWN, f"a {self.item.kind} leaves no name in Envoy's configuration of {pod.proxy}"
        )

    # --- ambient ---

    def at_ztunnel(self, reach: Reach) -> Effect:
        """Return what a ztunnel has of the object."""
        kind = self.item.kind
        if kind not in ("AuthorizationPolicy", "PeerAuthentication"):
            return Effect(UNKNOWN, f"ztunnel does not show what it has of a {kind}")
        rows = self._held.rows("ztunnel_policies", reach.proxy)
        if not len(rows) and self.facts.gaps("ztunnel_policies"):
            return Effect(UNKNOWN, "ztunnel did not say which policies it has")
        if kind == "PeerAuthentication":
            return self._strict_at_ztunnel(rows, reach)
        mine = rows[
            (rows["namespace"] == self.item.namespace) & (rows["policy_name"] == self.item.name)
        ]
        if not len(mine):
            return Effect(ABSENT, "ztunnel does not have it")
        action = str(dig(self.item.spec, "action", default="ALLOW")).capitalize()
        odd = action not in set(mine["action"])
        return Effect(
            DIFFERS if odd else AGREES,
            f"it is {listed(mine['action'])} there and not {action}"
            if odd
            else "ztunnel has it" + (", as a dry run" if mine["dry_run"].any() else ""),
            Cited.of("ztunnel_policies", mine),
        )

    def _strict_at_ztunnel(self, rows: pd.DataFrame, reach: Reach) -> Effect:
        mode, policy = self.mesh.mtls_mode(reach.pod, None)
        if policy is not self.item or mode != "STRICT":
            return Effect(UNKNOWN, "ztunnel has a policy of it only where it demands mutual TLS")
        mine = where(
            rows,
            (
                str(name).startswith(_STATIC_STRICT) or str(name).endswith(self.item.name)
                for name in rows["policy_name"]
            ),
        )
        if not len(mine):
            return Effect(ABSENT, "ztunnel has no policy that demands mutual TLS")
        return Effect(AGREES, "ztunnel demands mutual TLS", Cited.of("ztunnel_policies", mine))


def _current(entry: Json) -> Json:
    """Return what an entry of a dump has in use, without what was refused."""
    if not isinstance(entry, dict):
        return entry
    return {name: value for name, value in entry.items() if name != "error_state"}


def _accepts(chains: pd.DataFrame) -> str:
    """Return the mTLS mode of filter chains: STRICT, PERMISSIVE or DISABLE; empty without any."""
    mutual = bool((chains["tls"] == "mutual").any())
    clear = bool(((chains["tls"] == "none") & (chains["transport_protocol"] != "tls")
                  .fillna(value=True)).any())  # fmt: skip
    if mutual:
        return "PERMISSIVE" if clear else "STRICT"
    return "DISABLE" if clear else ""
