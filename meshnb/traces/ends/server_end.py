"""What a server makes of a connection: its filter chains or the bare application, and trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from meshnb.tables import Facts
from meshnb.tables.base import dig, items, mapping
from meshnb.tables.envoy import tls_context
from meshnb.tables.x509 import Certificate
from meshnb.traces.capture import captures_inbound
from meshnb.traces.ends.base import FAILS, UNDECIDED, WORKS, ConnectionTrace, Draft, End, pod_title
from meshnb.traces.ends.cited import Rows, held_row
from meshnb.traces.ends.handshake import CUT_OFF, NOT_SUPPLIED, Handshake, shake_hands
from meshnb.traces.ends.tls_settings import TlsSetting
from meshnb.traces.ends.transport import MUTUAL, PLAIN, SIMPLE, Held, Secrets, Side, side_of
from meshnb.traces.ends.trust import covers, leads_to
from meshnb.traces.envoy.configs import ProxyConfigs, Taken, made_from
from meshnb.traces.envoy.filter_chains import (
    HTTP1,
    HTTP2,
    OTHER,
    TLS,
    ChainMatch,
    Connection,
    listener_at,
    match_chain,
)
from meshnb.traces.mesh import Mesh, Pod, ServicePort
from meshnb.traces.servers import servers

_HTTP_MANAGER = "http_connection_manager"
#: Where a sidecar's listener takes what comes in.
_INBOUND_PORT = 15006
_H2 = ("http2", "grpc", "grpc-web")


_WRONG_VERSION = "TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER"


def tls_failure(text: str) -> str:
    """Return what a client's access log has of a handshake that failed with a text."""
    ended = "" if text == NOT_SUPPLIED else ":TLS_error_end"
    details = "upstream_reset_before_response_started{remote_connection_failure|"
    return f"503 UF {details}{text}{ended}}}"


class ServerEnd:
    """The servers of one source."""

    def __init__(self, facts: Facts, mesh: Mesh, configs: ProxyConfigs, secrets: Secrets) -> None:
        """Take what the clients' half has made already."""
        self.facts = facts
        self.mesh = mesh
        self.configs = configs
        self.secrets = secrets
        self.rows = Rows(facts)

    def meets(
        self,
        draft: Draft,
        side: Side,
        pod: Pod,
        port: int,
        service: ServicePort | None,
        setting: TlsSetting | None = None,
    ) -> ConnectionTrace:
        """Return the verdict at a server's pod."""
        if side.own is not None and side.own.missing:
            return self.no_certificate(draft, side.own)
        edge = pod.mesh in ("gateway", "waypoint")
        if pod.mesh != "sidecar" and not edge:
            return self._bare(draft, side, pod, port, service, setting)
        if pod.mesh == "sidecar" and not captures_inbound(pod, port):
            says = f"port {port} is left out of what the sidecar takes"
            draft.add("server", pod.proxy, "passed", says, **self.rows.pod(pod))
            return self._bare(draft, side, pod, port, service, setting)
        if pod.mesh == "sidecar":
            self._policy_step(draft, pod, port)
        else:
            self._gateway_step(draft, pod, port, side.server_name)
        config = self.configs.of(pod.proxy)
        if config is None:
            why = self.configs.silence(pod.proxy)
            draft.add("server", pod.proxy, "undecided", f"cannot decide, because {why}")
            return draft.done(UNDECIDED, "unknown", why)
        listener = (
            config.by_address.get(("0.0.0.0", _INBOUND_PORT))  # noqa: S104  Envoy's name of it
            or config.by_address.get(("::", _INBOUND_PORT))
            or config.listeners.get("virtualInbound")
            if pod.mesh == "sidecar"
            else listener_at(config, pod.address, port)
        )
        if listener is None:
            why = f"{pod.proxy} has no listener on port {port}"
            if draft.client.proxy:
                log = "503 UF delayed_connect_error:_Connection_refused"
                draft.client = replace(draft.client, log=log, flags="UF")
            draft.add("server", pod.proxy, "stopped", why, **self.rows.pod(pod))
            return draft.done(FAILS, "server", why)
        connection = _as_seen(side, pod, port, service, self.mesh.pod_of(draft.client.proxy))
        match = match_chain(listener.resource, connection)
        cited = self.rows.listener(pod.proxy, listener.name, match.position)
        if match.undecided:
            draft.add("server", pod.proxy, "undecided", f"cannot decide, because {match.undecided}")
            return draft.done(UNDECIDED, "unknown", match.undecided)
        if match.chain is None:
            return self._no_chain(draft, side, pod, listener, match, connection, setting)
        return self._chain(draft, side, pod, match, cited, setting)

    def _policy_step(self, draft: Draft, pod: Pod, port: int) -> None:
        mode, policy = self.mesh.mtls_mode(pod, port)
        said = (
            f"{policy} sets {mode}" if policy is not None else "no PeerAuthentication sets a mode"
        )
        tail = "" if policy is not None else ", so plain text and mutual TLS are both taken"
        cited = self.rows.config(policy.index) if policy is not None else {}
        draft.add(
            "server's settings",
            pod.proxy,
            "passed",
            f"{said} for port {port}{tail}",
            object=str(policy or ""),
            **cited,
        )
        if policy is not None:
            draft.server = replace(draft.server, objects=(str(policy),))

    def _gateway_step(self, draft: Draft, pod: Pod, port: int, name: str) -> None:
        """Say which server of which Gateway is meant."""
        for server in servers(self.mesh):
            if pod in server.pods and server.port == port and (not name or server.covers(name)):
                mode = f", TLS mode {server.mode}" if server.mode else ""
                secrets = f" with the secret {', '.join(server.secrets())}" if server.mode else ""
                says = f"{server.gateway} opens port {port} ({server.path}){mode}{secrets}"
                title = str(server.gateway)
                cited = self.rows.config(server.gateway.index)
                draft.add("server's settings", pod.proxy, "passed", says, object=title, **cited)
                draft.server = replace(draft.server, objects=(*draft.server.objects, title))

    def _no_chain(
        self,
        draft: Draft,
        side: Side,
        pod: Pod,
        listener: Taken,
        match: ChainMatch,
        connection: Connection,
        setting: TlsSetting | None,
    ) -> ConnectionTrace:
        """Return the verdict where no filter chain takes what the client speaks."""
        over = match.passed_over
        says = f"no filter chain of {listener.name} takes {connection}"
        draft.add(
            "server",
            pod.proxy,
            "stopped",
            says,
            resource=listener.name,
            passed_over=over,
            **self.rows.first_listener(pod.proxy, listener.name),
        )
        log = "0 NR filter_chain_not_found"
        draft.server = replace(
            draft.server, speaks=_taken(listener, connection.port), log=log, flags="NR"
        )
        if draft.passed_on:
            draft.client = replace(draft.client, log="0 UR", flags="UR")
        elif draft.client.proxy and side.speaks == PLAIN:
            self._closed(draft)
        elif draft.client.proxy:
            draft.client = replace(draft.client, log=tls_failure(CUT_OFF), flags="UF")
        mode, policy = self.mesh.mtls_mode(pod, connection.port)
        fault = "client"
        if pod.mesh == "sidecar" and side.speaks == PLAIN and mode != "STRICT":
            # What the server holds is not what its policies ask for.
            fault = "server"
        because = f" ({policy})" if policy is not None and pod.mesh == "sidecar" else ""
        by = f", as {setting.rule} says" if setting is not None and setting.mode else ""
        what = f"the client speaks {side.words}{by}, which the server does not take{because}"
        return draft.done(FAILS, fault, what)

    def _chain(
        self,
        draft: Draft,
        side: Side,
        pod: Pod,
        match: ChainMatch,
        cited: Mapping[str, Any],
        setting: TlsSetting | None,
    ) -> ConnectionTrace:
        """Return the verdict at the filter chain that takes the connection."""
        assert match.chain is not None
        taken = side_of(dig(match.chain, "transport_socket"), pod.proxy, self.secrets, server=True)
        draft.server = replace(
            draft.server,
            speaks=taken.speaks,
            own=taken.own,
            roots=taken.roots,
            objects=tuple(dict.fromkeys((*draft.server.objects, made_from(match.chain))))
            if made_from(match.chain)
            else draft.server.objects,
        )
        wants_tls = dig(match.chain, "filter_chain_match", "transport_protocol") == "tls"
        if taken.speaks == PLAIN and side.speaks != PLAIN and wants_tls:
            to = tcp_cluster(match) or "the application"
            says = f"filter chain {match.name} passes TLS on as it is, to {to}"
            draft.add("server", pod.proxy, "passed", says, passed_over=match.passed_over, **cited)
            why = "nobody recorded what the application shows"
            draft.add("application", pod.proxy, "undecided", f"cannot decide, because {why}")
            return draft.done(UNDECIDED, "unknown", why)
        says = f"filter chain {match.name} takes {taken.speaks}"
        if taken.speaks == PLAIN and side.speaks != PLAIN:
            return self._tls_to_plain(draft, side, pod, match, cited, setting)
        if taken.speaks != PLAIN and side.speaks == PLAIN:
            draft.add("server", pod.proxy, "stopped", says, passed_over=match.passed_over, **cited)
            self._closed(draft)
            why = f"the client speaks plain text, and the server takes {taken.speaks} only"
            return draft.done(FAILS, "client", why)
        draft.add("server", pod.proxy, "passed", says, passed_over=match.passed_over, **cited)
        if taken.speaks == PLAIN:
            return draft.done(WORKS, "none", "both ends speak plain text")
        return self._handshake(draft, side, taken, pod, setting)

    def _tls_to_plain(
        self,
        draft: Draft,
        side: Side,
        pod: Pod,
        match: ChainMatch,
        cited: Mapping[str, Any],
        setting: TlsSetting | None,
    ) -> ConnectionTrace:
        says = f"filter chain {match.name} takes plain text only"
        draft.add("server", pod.proxy, "stopped", says, passed_over=match.passed_over, **cited)
        log, flags = ("400 DPE http1.codec_error", "DPE") if is_http(match) else ("", "")
        draft.server = replace(draft.server, log=log, flags=flags)
        self._wrong_version(draft)
        by = f", as {setting.rule} says" if setting is not None and setting.mode else ""
        explicit = bool(by) or not draft.client.proxy or side.own is None
        why = f"the client speaks {side.words}{by}, and the server takes plain text only"
        return draft.done(FAILS, "client" if explicit else "server", why)

    def _closed(self, draft: Draft) -> None:
        if draft.client.proxy and not draft.passed_on:
            text = "503 UC upstream_reset_before_response_started{connection_termination}"
            draft.client = replace(draft.client, log=text, flags="UC")

    def _wrong_version(self, draft: Draft) -> None:
        if draft.client.proxy and not draft.passed_on:
            draft.client = replace(draft.client, log=tls_failure(_WRONG_VERSION), flags="UF")

    def _bare(
        self,
        draft: Draft,
        side: Side,
        pod: Pod,
        port: int,
        service: ServicePort | None,
        setting: TlsSetting | None,
    ) -> ConnectionTrace:
        """Return the verdict at an application in front of which no proxy stands."""
        declared = service.protocol if service is not None else ""
        http = declared in ("http", "http2", "grpc", "grpc-web")
        cited = self.rows.pod(pod)
        said = f" (its Service's port is declared {declared})" if declared else ""
        if side.speaks == PLAIN and declared not in ("https", "tls"):
            says = f"no proxy stands before the pod{said}"
            draft.add("server", pod_title(pod), "passed", says, **cited)
            draft.server = replace(draft.server, speaks=PLAIN if http else "")
            return draft.done(WORKS, "none", "the application gets plain text as it was sent")
        istio = side.own is not None and side.own.name == "default"
        if side.speaks != PLAIN and istio:
            says = (
                f"no proxy stands before the pod, so nobody speaks Istio's mutual TLS there{said}"
            )
            draft.add("server", pod_title(pod), "stopped", says, **cited)
            self._wrong_version(draft)
            explicit = setting is not None and bool(setting.mode)
            by = f", as {setting.rule} says" if setting is not None and explicit else ""
            why = f"the client speaks {side.speaks}{by}, and the server has no proxy to take it"
            return draft.done(FAILS, "client" if explicit else "server", why)
        why = f"what the application takes on port {port} stands in no configuration{said}"
        draft.add("server", pod_title(pod), "undecided", f"cannot decide, because {why}", **cited)
        return draft.done(UNDECIDED, "unknown", why)

    # --- certificates ---

    def _handshake(
        self,
        draft: Draft,
        client: Side,
        server: Side,
        pod: Pod,
        setting: TlsSetting | None,
    ) -> ConnectionTrace:
        """Return the verdict about the certificates of both ends."""
        outside = not draft.client.proxy
        shaken = shake_hands(client, server, self.facts.now, known_client=not outside)
        for step in shaken.steps:
            proxy = pod.proxy if step.of == "server" else draft.client.proxy or draft.client.name
            draft.add(
                f"{step.of}'s certificate", proxy, step.outcome, step.says, **held_row(step.held)
            )
        if shaken.failed is not None:
            return self._refused(draft, shaken, setting)
        name = client.server_name
        own = server.own
        if outside and name and own is not None and own.chain:
            leaf = own.chain[0]
            if not any(covers(san, name) for san in leaf.sans):
                says = f"the certificate is for {', '.join(leaf.sans) or 'no name'}, not for {name}"
                draft.add("server's certificate", pod.proxy, "stopped", says, **held_row(own))
                return draft.done(FAILS, "server", says)
        if shaken.unsure:
            return draft.done(UNDECIDED, "unknown", shaken.unsure)
        if outside and own is not None and own.chain:
            issuer = own.chain[-1].issuer
            extra = (
                " and shows a certificate that the gateway trusts"
                if server.speaks == MUTUAL
                else ""
            )
            return draft.done(WORKS, "none", f"if the client trusts {issuer}{extra}")
        return draft.done(WORKS, "none", f"both ends speak {client.speaks} and accept each other")

    def _refused(
        self, draft: Draft, shaken: Handshake, setting: TlsSetting | None
    ) -> ConnectionTrace:
        failed = shaken.failed
        assert failed is not None
        if draft.client.proxy:
            draft.client = replace(draft.client, log=tls_failure(failed.client_text), flags="UF")
        fault = failed.fault
        named = setting is not None and setting.demands_names
        if failed.names and failed.of == "server" and not named:
            # The names are those that istiod knows of the Service's pods: this one is a stranger.
            fault = "server"
        if failed.roots:
            fault = self._odd_one(draft.client, draft.server)
        return draft.done(FAILS, fault, failed.says)

    def _odd_one(self, client: End, server: End) -> str:
        """Return which of two ends belongs to other roots than most proxies do."""
        frame = self.facts["certificates"]
        roots = frame[(frame["resource_name"] == "ROOTCA") & frame["root_fingerprint"].notna()]
        usual = roots["root_fingerprint"].mode()
        if len(usual) != 1:
            return "unknown"
        known = roots.loc[roots["root_fingerprint"] == usual.iloc[0], "proxy"].iloc[0]
        trusted = self.secrets.roots(str(known)).chain
        odd = [side for side, end in (("client", client), ("server", server)) if _odd(end, trusted)]
        return odd[0] if len(odd) == 1 else "unknown"

    def no_certificate(self, draft: Draft, own: Held) -> ConnectionTrace:
        """Return the verdict about a client that waits for its own certificate."""
        says = f"the client has no certificate to show: {own.missing}"
        draft.add("client's certificate", draft.client.proxy, "stopped", says, **held_row(own))
        draft.client = replace(draft.client, log=tls_failure(NOT_SUPPLIED), flags="UF")
        return draft.done(FAILS, "client", says)


def is_http(match: ChainMatch) -> bool:
    """Whether a filter chain reads HTTP."""
    return any(_HTTP_MANAGER in str(dig(one, "name")) for one in items(match.chain, "filters"))


def tcp_cluster(match: ChainMatch) -> str:
    """Return the cluster that a filter chain of TCP sends to; empty without one."""
    for one in items(match.chain, "filters"):
        config = mapping(one, "typed_config")
        if "tcp_proxy" in str(dig(one, "name")):
            return str(config.get("cluster", ""))
    return ""


def _as_seen(
    side: Side, pod: Pod, port: int, service: ServicePort | None, client: Pod | None
) -> Connection:
    """Return the connection as the server's listener sees it."""
    declared = service.protocol if service is not None else "http"
    speaks = TLS
    if side.speaks == PLAIN:
        http = declared in ("http", "auto", "")
        speaks = HTTP2 if declared in _H2 else HTTP1 if http else OTHER
    source = client.address if client is not None else ""
    return Connection(pod.address, port, source, 0, speaks, side.server_name, side.alpn)


def _taken(listener: Taken, port: int) -> str:
    """Say what a listener's chains for a port take; the others where it has none for it."""
    ports = [
        (dig(chain, "filter_chain_match", "destination_port"), chain)
        for chain in items(listener.resource, "filter_chains")
    ]
    own = [chain for number, chain in ports if number == port]
    own = own or [chain for number, chain in ports if number is None]
    contexts = [tls_context(dig(chain, "transport_socket")) for chain in own]
    kinds = {
        PLAIN
        if context is None
        else MUTUAL
        if context.get("require_client_certificate") is True
        else SIMPLE
        for context in contexts
    }
    return " or ".join(sorted(kinds))


def _odd(end: End, usual: Sequence[Certificate]) -> bool:
    """Whether an end does not know the usual roots, or was not issued by them."""
    known = {root.fingerprint for root in end.roots.chain} if end.roots is not None else set()
    issued = end.own is None or not end.own.chain or leads_to(end.own.chain, usual)
    return not issued or known.isdisjoint(root.fingerprint for root in usual)
