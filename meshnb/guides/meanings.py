"""What Envoy says about a request, in words: flags, details, and the hop they point to.

From Envoy's documentation of access log operators, ``%RESPONSE_FLAGS%`` and
``%RESPONSE_CODE_DETAILS%``.
"""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.traces.failures import Failure

#: The hops of a request in their order, each with what happens there.
HOPS: Mapping[str, str] = {
    "the caller": "somebody sends a request",
    "the listener": "a proxy takes the connection",
    "the route": "it looks up where the request is to go",
    "the cluster": "it looks up the destination that the route names",
    "the endpoint": "it picks one address of that destination",
    "the connection": "it connects there, with TLS or without",
    "the policies": "policies and filters look at the request",
    "the application": "the application answers",
}

#: Response flags: what they say, and at which hop of the proxy that logged them the request ended.
_FLAGS: Mapping[str, tuple[str, str]] = {
    "NR": ("the proxy has no route for the request", "the route"),
    "NC": ("the route names a cluster that the proxy does not have", "the cluster"),
    "UH": ("the cluster has no healthy endpoint", "the endpoint"),
    "UO": ("a limit on connections or requests was reached", "the endpoint"),
    "NFCF": ("the configuration of a filter never arrived", "the policies"),
    "UF": ("the connection to the endpoint could not be made", "the connection"),
    "UC": ("the other side closed the connection before it answered", "the connection"),
    "UPE": ("what came back is not the HTTP version that was expected", "the connection"),
    "UR": ("the endpoint reset the stream", "the connection"),
    "LR": ("the proxy itself reset the stream", "the connection"),
    "DF": ("the host name could not be resolved", "the endpoint"),
    "FI": ("a fault was injected on purpose", "the route"),
    "DI": ("a delay was injected on purpose", "the route"),
    "RL": ("a rate limit was reached", "the policies"),
    "RLSE": ("the rate limit service failed", "the policies"),
    "UAEX": ("an external authorization service refused it", "the policies"),
    "LH": ("the proxy's own health check failed", "the policies"),
    "UT": ("no answer came within the time that the route allows", "the application"),
    "SI": ("nothing was sent or received for too long", "the application"),
    "UMSDR": ("the request took longer than a stream may", "the application"),
    "DT": ("the connection lasted longer than it may", "the connection"),
    "DC": ("the caller went away before the answer came", "the application"),
    "DR": ("the caller reset the stream before the answer came", "the application"),
    "DPE": ("the caller sent what is not valid HTTP", "the listener"),
    "IH": ("a header was refused", "the listener"),
    "DO": ("requests are dropped because of overload", "the endpoint"),
    "OM": ("the proxy is overloaded", "the listener"),
}
#: The same flags at the server's own proxy, whose endpoint is the application beside it.
_INBOUND: Mapping[str, str] = {
    "UF": "the application does not take its own proxy's connection",
    "UC": "the application closed the connection before it answered",
    "UPE": "the application does not speak the HTTP version that its proxy speaks to it",
    "UR": "the application reset the stream",
    "UH": "the proxy has no application to send to",
    "UT": "the application did not answer in time",
}
#: Details without a flag of their own: what they begin with, what that says, and the hop.
_DETAILS: tuple[tuple[str, str, str], ...] = (
    ("filter_chain_not_found", "no filter chain takes such a connection", "the listener"),
    ("rbac_access_denied", "an AuthorizationPolicy refused it", "the policies"),
    ("jwt_authn_access_denied", "its token was missing or not accepted", "the policies"),
    ("ext_authz", "an external authorization service refused it", "the policies"),
    ("direct_response", "the route answers by itself and sends nothing on", "the route"),
    ("http1.", "the caller sent what is not valid HTTP", "the listener"),
    ("low_version", "the caller's HTTP version is too old", "the listener"),
    ("overload", "the proxy is overloaded", "the listener"),
    ("upgrade_failed", "the kind of upgrade is not admitted", "the listener"),
    ("response_timeout", "no answer came within the time that the route allows", "the application"),
)


def meaning(failure: Failure) -> tuple[str, str]:
    """Return what a failure says in words, and the hop at which it ended, a key of HOPS."""
    if failure.answered_by_application:
        return "proxies only carried its answer", "the application"
    for details in (failure.details, failure.connection_details):
        for beginning, words, hop in _DETAILS:
            if details.startswith(beginning):
                return words, hop
    # Retries used up say nothing about why each try failed; the other flag does.
    for flag in sorted(failure.flags - {"URX"}):
        if flag in _FLAGS:
            words, hop = _FLAGS[flag]
            if failure.direction == "inbound" and flag in _INBOUND:
                return _INBOUND[flag], "the application"
            if "TLS_error" in failure.upstream_failure:
                return "the two sides could not agree on TLS", "the connection"
            return words, hop
    if "via_upstream" in failure.details:
        return "the answer came from further along", "the application"
    return "the proxy gives no reason that is known here", "the application"
