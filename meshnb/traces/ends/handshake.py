"""The TLS handshake between two ends whose settings are known: who accepts whose certificate.

With TLS 1.3 the client judges the server's certificate before it shows its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from meshnb.traces.ends.transport import MUTUAL, Held, Side, roots_for
from meshnb.traces.ends.trust import name_refusal, refusal
from meshnb.traces.envoy.matchers import Undecided

#: What an end says that waits for a certificate or roots.
NOT_SUPPLIED = "TLS_error:_Secret_is_not_supplied_by_SDS"
#: What a client sees whose handshake is answered by the end of the connection.
CUT_OFF = "TLS_error:|33554536:system_library:OPENSSL_internal:Connection_reset_by_peer"
_NO_CERTIFICATE = "TLS_error:|268436496:SSL_routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE"


@dataclass(frozen=True, slots=True)
class Shown:
    """One certificate, judged by the other end."""

    #: whose it is: client or server
    of: str
    outcome: str
    says: str
    held: Held | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Why the handshake fails. ``client_text`` is what the client's Envoy writes."""

    says: str
    client_text: str
    #: client, server or unknown
    fault: str
    #: whether it is a matter of who knows which roots
    roots: bool = False
    #: whether it is a matter of the names in a certificate
    names: bool = False
    #: whose certificate it is
    of: str = ""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What both ends make of each other's certificates."""

    steps: tuple[Shown, ...]
    failed: Failed | None = None
    #: what is not known; empty when everything is
    unsure: str = ""


def shake_hands(client: Side, server: Side, at: datetime, *, known_client: bool) -> Handshake:
    """Return what becomes of a handshake at a moment.

    Of a client that is not known (``known_client``) nothing is judged but what the server shows.
    """
    steps: list[Shown] = []
    unsure: list[str] = []
    own = server.own
    if own is None or own.missing:
        missing = own.missing if own is not None else "it is given none"
        says = f"the server has no certificate to show: {missing}"
        steps.append(Shown("server", "stopped", says, own))
        text = CUT_OFF
        return Handshake(tuple(steps), Failed(says, text, "server"))
    judging = client if known_client else Side(client.speaks, roots=Held("", own.chain[-1:]))
    step, failed = _judge("server", own, judging, at)
    steps.append(step)
    if failed is not None:
        return Handshake(tuple(steps), failed)
    if step.outcome == "undecided":
        unsure.append(step.says)
    if server.speaks == MUTUAL and known_client:
        if client.own is None:
            says = "the server demands a certificate, and the client shows none"
            steps.append(Shown("client", "stopped", says))
            return Handshake(tuple(steps), Failed(says, _NO_CERTIFICATE, "client"))
        step, failed = _judge("client", client.own, server, at)
        steps.append(step)
        if failed is not None:
            return Handshake(tuple(steps), failed)
        if step.outcome == "undecided":
            unsure.append(step.says)
    return Handshake(tuple(steps), None, "; ".join(unsure))


def _judge(whose: str, shown: Held, other: Side, at: datetime) -> tuple[Shown, Failed | None]:
    """Return what one end makes of the certificate of the other."""
    judge = "client" if whose == "server" else "server"
    if other.roots is None:
        return Shown(whose, "passed", f"the {judge} accepts any certificate", shown), None
    if shown.unseen:
        says = f"cannot decide, because the {whose}'s certificate is not known: {shown.unseen}"
        return Shown(whose, "undecided", says, shown), None
    roots = roots_for(other, shown.chain)
    if roots is not None and roots.missing:
        says = f"the {judge} has no roots to check the {whose}'s certificate with: {roots.missing}"
        failed = Failed(says, NOT_SUPPLIED, judge, of=whose)
        return Shown(whose, "stopped", says, roots), failed
    if roots is None or roots.unseen:
        because = roots.unseen if roots is not None else "it names none"
        says = f"cannot decide, because whom the {judge} trusts is not known: {because}"
        return Shown(whose, "undecided", says, shown), None
    refused = refusal(shown.chain, roots.chain, at)
    names = None if refused is not None else name_refusal(shown.chain[0], other.matchers)
    if isinstance(names, Undecided):
        return Shown(whose, "undecided", f"cannot decide, because {names}", shown), None
    refused = refused or names
    if refused is None:
        leaf = shown.chain[0]
        name = ", ".join(leaf.sans) or leaf.subject
        says = f"the {judge} accepts {name}, in force until {leaf.not_after:%Y-%m-%d %H:%M} UTC"
        return Shown(whose, "passed", says, shown), None
    says = f"the {judge} does not accept the {whose}'s certificate: {refused.says}"
    text = refused.text if judge == "client" else refused.alert
    fault = whose if refused.own_fault or whose == "client" else judge
    unclear = not refused.own_fault and names is None
    failed = Failed(says, text, fault, roots=unclear, names=names is not None, of=whose)
    return Shown(whose, "stopped", says, shown), failed
