"""Checks of EnvoyFilters as they are written. Codes MNB1350 to MNB1399."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from meshnb.checks.base import Finding
from meshnb.checks.lint import Say, hint, lint
from meshnb.tables import Facts
from meshnb.tables.base import Json, dig, items, mapping
from meshnb.traces.objects import Object, Objects

#: Operations that need something else to be there already.
_RELATIVE = ("INSERT_BEFORE", "INSERT_AFTER", "REMOVE", "REPLACE")
_REPLACEABLE = ("NETWORK_FILTER", "HTTP_FILTER", "VIRTUAL_HOST")
#: Routes cannot be added or removed, only merged with.
_ROUTES = ("ROUTE_CONFIGURATION", "HTTP_ROUTE")


def _patches(item: Object) -> Iterator[tuple[str, Json, str, str]]:
    """Yield each patch that does something: its path, itself, the operation, what it applies to."""
    for position, patch in enumerate(items(item.spec, "configPatches")):
        if dig(patch, "patch") is None:
            return  # Istio looks no further
        operation = str(dig(patch, "patch", "operation", default=""))
        applies = str(dig(patch, "applyTo", default=""))
        yield f"spec.configPatches[{position}]", patch, operation, applies


def _misplaced(operation: str, applies: str) -> bool:
    """Whether an operation is one that what it applies to does not take."""
    if operation == "REPLACE":
        return applies not in _REPLACEABLE
    return operation in ("ADD", "REMOVE") and applies in _ROUTES


@lint("MNB1351", "IST0151", "IST0155")
def depends_on_order(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every EnvoyFilter with a patch that is placed relative to something has a priority.

    Where another EnvoyFilter adds what it refers to, it has to come later; without a priority the
    age and the names decide. A patch for one proxy version only is missing during an upgrade, and
    with it what a second one of the same filter name refers to.
    """
    say = Say(objects, facts)
    versioned: set[Any] = set()
    for item in objects.of("EnvoyFilter"):
        for path, patch, operation, applies in _patches(item):
            name = _filter_name(patch)
            if (
                operation in _RELATIVE
                and not _misplaced(operation, applies)
                and not dig(item.spec, "priority", default=0)
            ):
                code = "IST0155" if name in versioned else "IST0151"
                more = (
                    ", and another patch of that filter is for one proxy version only"
                    if name in versioned
                    else ""
                )
                yield from say(
                    item,
                    f"{item} has a patch with {operation}{f' of {name}' if name else ''} and no "
                    f"priority: whether it finds what it refers to depends on the order of "
                    f"EnvoyFilters{more}",
                    fix="Set spec.priority",
                    path=path,
                    key=(),
                    lines=False,
                    same_as=code,
                )
            if dig(patch, "match", "proxy", "proxyVersion"):
                versioned.add(name)


def _filter_name(patch: Json) -> str:
    value = dig(patch, "patch", "value")
    if not isinstance(value, dict):
        return ""
    name = value.get("name")
    return str(
        name
        if name is not None
        else dig(patch, "match", "listener", "filterChain", "filter", "name", default="")
    )


@lint("MNB1352", "IST0152", "IST0153", "IST0154")
def operation_without_effect(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every patch has an operation that its place takes.

    REPLACE is for filters and virtual hosts only; routes and route configurations can be merged
    with, not added or removed. istiod ignores the patch otherwise.
    """
    say = Say(objects, facts)
    codes = {"REPLACE": "IST0152", "ADD": "IST0153", "REMOVE": "IST0154"}
    for item in objects.of("EnvoyFilter"):
        for path, _, operation, applies in _patches(item):
            if _misplaced(operation, applies):
                yield from say(
                    item,
                    f"{item} has a patch with {operation} that applies to {applies or 'nothing'}, "
                    "which does not take it: the patch is ignored",
                    fix="Use MERGE, or another place,",
                    path=path,
                    key=(),
                    lines=False,
                    same_as=codes[operation],
                )


@lint("MNB1353", "IST0133")
def touches_internals(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """No EnvoyFilter changes what Istio generates.

    What it refers to is no interface: any version of Istio or Envoy may generate something else,
    and the patch then fails or acts in another way. There is no way without one for some things.
    """
    say = Say(objects, facts)
    for item in objects.of("EnvoyFilter"):
        # One that fails Istio's validation has an error instead.
        if mapping(item.spec):
            yield from say(
                item,
                f"{item} changes the configuration that Istio generates, which may be another one "
                "in any version",
                fix="Look at it before each upgrade",
                path="spec",
                key=(),
                lines=False,
                same_as="IST0133",
            )


#: Fields of the messages of Envoy's API that patches are made to, as far as they are short.
_HEADERS = (
    "request_headers_to_add request_headers_to_remove response_headers_to_add "
    "response_headers_to_remove typed_per_filter_config request_mirror_policies metadata"
)
_FIELDS: Mapping[str, tuple[str, str]] = {
    "NETWORK_FILTER": ("envoy.config.listener.v3.Filter", "name typed_config config_discovery"),
    "HTTP_FILTER": (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        "name typed_config config_discovery is_optional disabled",
    ),
    "ROUTE_CONFIGURATION": (
        "envoy.config.route.v3.RouteConfiguration",
        (
            f"{_HEADERS} name virtual_hosts vhds internal_only_headers validate_clusters "
            "most_specific_header_mutations_wins max_direct_response_body_size_bytes "
            "cluster_specifier_plugins ignore_port_in_host_matching "
            "ignore_path_parameters_in_path_matching"
        ),
    ),
    "VIRTUAL_HOST": (
        "envoy.config.route.v3.VirtualHost",
        (
            f"{_HEADERS} name domains routes matcher require_tls virtual_clusters rate_limits cors "
            "include_request_attempt_count include_attempt_count_in_response retry_policy "
            "retry_policy_typed_config hedge_policy include_is_timeout_retry_header "
            "per_request_buffer_limit_bytes request_body_buffer_limit"
        ),
    ),
    "HTTP_ROUTE": (
        "envoy.config.route.v3.Route",
        (
            f"{_HEADERS} name match route redirect direct_response filter_action "
            "non_forwarding_action decorator tracing per_request_buffer_limit_bytes stat_prefix "
            "request_body_buffer_limit"
        ),
    ),
}


@lint("MNB1354", "IST0133")
def field_unknown_to_envoy(objects: Objects, facts: Facts) -> Iterator[Finding]:
    """Every patch has only fields that Envoy has there.

    istiod drops a patch that it cannot read. Looked at are the outermost fields of filters, routes,
    virtual hosts and route configurations; Istio itself looks into all of them.
    """
    say = Say(objects, facts)
    for item in objects.of("EnvoyFilter"):
        for path, patch, _, applies in _patches(item):
            message, fields = _FIELDS.get(applies, ("", ""))
            known = fields.split()
            given = mapping(patch, "patch", "value")
            unknown = [name for name in given if _snake(name) not in known]
            if message and unknown:
                yield from say(
                    item,
                    f"{item} has a patch with {unknown[0]}, which {message} does not have."
                    f"{hint(_snake(unknown[0]), known)}",
                    fix="Correct the field",
                    path=f"{path}.patch.value.{unknown[0]}",
                    key=(unknown[0], message),
                    lines=False,
                    same_as="IST0133",
                )


def _snake(name: str) -> str:
    """Return a field's name in Envoy's spelling; JSON may have it as typedConfig."""
    return re.sub("([A-Z])", lambda match: f"_{match[1].lower()}", name)
