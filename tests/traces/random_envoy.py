"""Random routes and filter chains, and random requests for them, to compare with a real Envoy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from ipaddress import ip_network
from random import Random
from typing import Any

Json = dict[str, Any]

_API = "type.googleapis.com/envoy."
_FILTERS = f"{_API}extensions.filters"
_MANAGER = f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"

_DOMAINS = (
    *("a.example.com", "*.example.com", "*.com", "a.*", "*", "b.example.com", "*-x.example.com"),
    *("a.example.com:8080", "A.org", "*.org", "b.*", "a.example.*", "[::1]", "[::1]:8080"),
    "*:8080",
)
_HOSTS = (
    *("a.example.com", "b.example.com", "A.Example.COM", "c.example.com", "x.com", "a.org"),
    *("a.example.com:8080", "a.example.com.", "b.org", "q-x.example.com", "nothing", "a.net"),
    *("[::1]", "[::1]:8080", ".example.com", "example.com", "x:8080", "a.example.com.:8080"),
)
_MATCHED = ("/", "/a", "/a/", "/a/b", "/ab", "/A", "/a/b/c", "/c", "/a.b")
_EXPRESSIONS = ("/a.*", "/[a-c]+", "/a/b", "/(a|c)/?", "/.*b", r"/a\.b")
_ASKED = (
    *("/", "/a", "/a/", "/a/b", "/A", "/ab", "/a/b/c?q=one", "/a?p=two&q=", "/c", "/a.b", "/axb"),
    *("/a//b", "/a/../c", "/%61", "/a%2Fb", "/a/./b", "/A/B?q=onetwo", "/a#x", "/a%5cb", "/x"),
)
_VALUES = ("one", "two", "One", "", "12", "-3", "onetwo")


# --- Routes --------------------------------------------------------------------------------------


def _text(random: Random) -> Json:
    kind = random.choice(("exact", "prefix", "suffix", "contains", "safe_regex"))
    if kind == "safe_regex":
        return {kind: {"regex": random.choice(("one|two", "o.*", "[0-9]+", r"-?\d+", "(?i)ONE"))}}
    found: Json = {kind: random.choice([value for value in _VALUES if value])}
    if random.random() < 0.3:
        found["ignore_case"] = True
    return found


def _header(random: Random) -> Json:
    found: Json = {"name": random.choice(("x-a", "x-b", "X-A"))}
    match random.choice(("text", "present", "range", "nothing")):
        case "text":
            found["string_match"] = _text(random)
        case "present":
            found["present_match"] = random.random() < 0.5
        case "range":
            start, end = random.choice((-5, 0, 12)), random.choice((5, 12, 13))
            found["range_match"] = {"start": str(start), "end": str(end)}
    if random.random() < 0.3:
        found["invert_match"] = True
    if random.random() < 0.2:
        found["treat_missing_header_as_empty"] = True
    return found


def _match(random: Random) -> Json:
    kind = random.choice(("prefix", "prefix", "path", "path_separated_prefix", "safe_regex"))
    found: Json = {kind: random.choice(_MATCHED)}
    if kind == "safe_regex":
        found[kind] = {"regex": random.choice(_EXPRESSIONS)}
    elif kind == "path_separated_prefix":
        found[kind] = random.choice(("/a", "/a/b", "/ab", "/A"))
    if random.random() < 0.3 and kind != "safe_regex":
        found["case_sensitive"] = False
    if random.random() < 0.5:
        found["headers"] = [_header(random) for _ in range(random.choice((1, 1, 2)))]
    if random.random() < 0.2:
        matcher = random.choice(({"string_match": _text(random)}, {"present_match": True}))
        found["query_parameters"] = [{"name": random.choice("qp"), **matcher}]
    if random.random() < 0.1:
        found["runtime_fraction"] = {"default_value": {"numerator": random.choice((0, 100))}}
    if random.random() < 0.07:
        found["grpc"] = {}
    if random.random() < 0.05:
        found["tls_context"] = {"presented": random.random() < 0.5}
    return found


def _own_filters(random: Random) -> Json:
    found: Json = {}
    if random.random() < 0.25:
        share = random.choice((0, 50, 100))
        abort = {"http_status": random.choice((418, 555)), "percentage": {"numerator": share}}
        fault: Json = {"@type": f"{_FILTERS}.http.fault.v3.HTTPFault", "abort": abort}
        if random.random() < 0.4:
            fault["headers"] = [_header(random)]
        if random.random() < 0.2:
            fault["upstream_cluster"] = random.choice(("empty", "gone"))
        found["fault"] = fault
    if random.random() < 0.15:
        limit: Json = {
            "@type": f"{_FILTERS}.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": "test",
            "token_bucket": {"max_tokens": 1, "fill_interval": "1000s"},
        }
        for switch in ("filter_enabled", "filter_enforced"):
            if random.random() < 0.8:
                limit[switch] = {"default_value": {"numerator": random.choice((0, 100))}}
        if random.random() < 0.3:
            limit["status"] = {"code": random.choice(("ServiceUnavailable", "Forbidden"))}
        found["limit"] = limit
    return {"typed_per_filter_config": found} if found else {}


def _route(random: Random, number: int) -> Json:
    found: Json = {"name": f"r{number}", "match": _match(random), **_own_filters(random)}
    kind = random.choice(("direct", "redirect", "route", "route", "route", "weighted"))
    if kind == "direct":
        found["direct_response"] = {"status": random.choice((200, 204, 418))}
    elif kind == "redirect":
        codes = ("FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT")
        code = random.choice((*codes, "MOVED_PERMANENTLY"))
        found["redirect"] = {"path_redirect": "/new", "response_code": code}
    elif kind == "weighted":
        gone = {"name": "gone", "weight": 1, **_own_filters(random)}
        empty = {"name": "empty", "weight": random.choice((0, 2))}
        found["route"] = {"weighted_clusters": {"clusters": [gone, empty]}}
    else:
        action: Json = {"cluster": random.choice(("gone", "empty"))}
        if random.random() < 0.2:
            action = {"cluster_header": "x-a"}
        code = random.choice(("NOT_FOUND", "INTERNAL_SERVER_ERROR", "SERVICE_UNAVAILABLE"))
        found["route"] = {**action, "cluster_not_found_response_code": code}
    return found


def _virtual_hosts(random: Random) -> list[Json]:
    domains = random.sample(_DOMAINS, random.randint(2, 10))
    numbers = itertools.count()
    found: list[Json] = []
    while domains:
        count = random.randint(1, min(3, len(domains)))
        own, domains = domains[:count], domains[count:]
        routes = [_route(random, next(numbers)) for _ in range(random.randint(0, 6))]
        host: Json = {"name": f"v{len(found)}", "domains": own, "routes": routes}
        if random.random() < 0.08:
            host["require_tls"] = "ALL"
        found.append({**host, **_own_filters(random)})
    return found


def _manager(random: Random, log: str) -> Json:
    config: Json = {"name": "test", "virtual_hosts": _virtual_hosts(random), **_own_filters(random)}
    config["validate_clusters"] = False
    config["ignore_port_in_host_matching"] = random.random() < 0.5
    options: Json = {
        "strip_trailing_host_dot": random.random() < 0.3,
        "normalize_path": random.random() < 0.6,
        "merge_slashes": random.random() < 0.4,
        "path_with_escaped_slashes_action": random.choice(
            ("KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD")
        ),
    }
    strip = random.choice(("strip_any_host_port", "strip_matching_host_port", ""))
    if strip:
        options[strip] = True
    line = (
        "%REQ(X-NUMBER)%|%ROUTE_NAME%|%RESPONSE_CODE%|%RESPONSE_FLAGS%|%RESPONSE_CODE_DETAILS%"
        "|%UPSTREAM_CLUSTER_RAW%\n"
    )
    access_log = {
        "@type": f"{_API}extensions.access_loggers.file.v3.FileAccessLog",
        "path": log,
        "log_format": {"text_format_source": {"inline_string": line}},
    }
    return {
        "@type": _MANAGER,
        "stat_prefix": "test",
        "http_filters": [
            _filter("fault", "fault.v3.HTTPFault"),
            _filter("limit", "local_ratelimit.v3.LocalRateLimit", stat_prefix="test"),
            _filter("router", "router.v3.Router"),
        ],
        "route_config": config,
        "access_log": [{"name": "log", "typed_config": access_log}],
        **options,
    }


def _filter(name: str, kind: str, **config: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"{_FILTERS}.http.{kind}", **config}}


def routing_listener(random: Random, port: int, log: str) -> Json:
    """Return a listener with random routes, which logs each request with its header x-number."""
    name = "envoy.filters.network.http_connection_manager"
    chain = {"filters": [{"name": name, "typed_config": _manager(random, log)}]}
    return {
        "name": f"listener-{port}",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }


def request(random: Random, number: int) -> tuple[str, str, str, dict[str, str]]:
    """Return method, host, path and headers of a random request."""
    values = (*_VALUES, "empty", "gone")
    headers = {name: random.choice(values) for name in ("x-a", "x-b") if random.random() < 0.6}
    if random.random() < 0.1:
        headers["content-type"] = random.choice(("application/grpc", "application/grpc+proto"))
    headers["x-number"] = str(number)
    method = random.choice(("GET", "GET", "POST", "HEAD"))
    return method, random.choice(_HOSTS), random.choice(_ASKED), headers


# --- Filter chains -------------------------------------------------------------------------------

_NAMES = ("a.example.com", "*.example.com", "*.com", "b.c.example.com", "*.c.example.com")
_SOURCES = ("source_prefix_ranges", "direct_source_prefix_ranges", "prefix_ranges")


def _range(random: Random, address: str) -> list[Json]:
    length = random.choice((8, 30, 31, 32))
    network = ip_network(f"{address}/{length}", strict=False)
    return [{"address_prefix": str(network.network_address), "prefix_len": length}]


def _chain_match(random: Random, ports: tuple[int, int]) -> Json:
    found: Json = {}
    if random.random() < 0.3:
        found["destination_port"] = random.choice(ports)
    if random.random() < 0.3:
        found["prefix_ranges"] = _range(random, random.choice(("127.0.0.1", "127.0.0.2")))
    if random.random() < 0.3:
        found["server_names"] = random.sample(_NAMES, random.randint(1, 2))
    if random.random() < 0.5:
        found["transport_protocol"] = random.choice(("tls", "raw_buffer"))
    if random.random() < 0.4:
        protocols = ("http/1.1", "h2c", "istio", "foo")
        found["application_protocols"] = random.sample(protocols, random.randint(1, 2))
    if random.random() < 0.15:
        found["direct_source_prefix_ranges"] = _range(random, "127.0.0.1")
    if random.random() < 0.15:
        found["source_type"] = random.choice(("SAME_IP_OR_LOOPBACK", "EXTERNAL"))
    if random.random() < 0.25:
        found["source_prefix_ranges"] = _range(random, random.choice(("127.0.0.1", "127.0.0.4")))
    return found


def _ways(match: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Return what a match stands for, one by one; Envoy takes no two chains that share any."""
    lists = [[str(match.get("destination_port", 0))], [match.get("source_type", "ANY")]]
    lists.append([match.get("transport_protocol", "")])
    fields = ("server_names", "application_protocols", *_SOURCES)
    lists += ([json.dumps(one) for one in match.get(field, [""])] for field in fields)
    return set(itertools.product(*lists))


def _inspector(random: Random, name: str, kind: str, port: int) -> Json:
    config = {"@type": f"{_API}extensions.filters.listener.{name}.v3.{kind}"}
    found: Json = {"name": f"envoy.filters.listener.{name}", "typed_config": config}
    here = {"destination_port_range": {"start": port, "end": port + 1}}
    nowhere = {"destination_port_range": {"start": 1, "end": 2}}
    elsewhere = {"not_match": {"or_match": {"rules": [here, nowhere]}}}
    disabled: Json = random.choice(({}, {}, here, elsewhere))
    if disabled:
        found["filter_disabled"] = disabled
    return found


def _answering(text: str) -> list[Json]:
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": text}},
    }
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "test",
        "delayed_close_timeout": "0.050s",
        "http_filters": [_filter("router", "router.v3.Router")],
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]},
    }
    return [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]


def choosing_listener(random: Random, ports: tuple[int, int], socket: Json) -> Json:
    """Return a listener with random filter chains, each of which answers with its name.

    Chains for TLS have the transport socket given.
    """
    chains: list[Json] = []
    seen: set[tuple[str, ...]] = set()
    for number in range(random.randint(2, 10)):
        match = _chain_match(random, ports)
        if _ways(match) & seen:
            continue
        seen |= _ways(match)
        name = f"c{number}"
        chain = {"name": name, "filter_chain_match": match, "filters": _answering(name)}
        if match.get("transport_protocol") == "tls":
            chain["transport_socket"] = socket
        chains.append(chain)
    inspectors = []
    if random.random() < 0.8:
        inspectors.append(_inspector(random, "tls_inspector", "TlsInspector", ports[0]))
    if random.random() < 0.7:
        inspectors.append(_inspector(random, "http_inspector", "HttpInspector", ports[0]))
    addresses = [{"socket_address": {"address": "0.0.0.0", "port_value": port}} for port in ports]  # noqa: S104
    listener: Json = {
        "name": f"listener-{ports[0]}",
        "address": addresses[0],
        "additional_addresses": [{"address": addresses[1]}],
        "listener_filters": inspectors,
        "listener_filters_timeout": "1s",
        "continue_on_listener_filters_timeout": True,
        "filter_chains": chains,
    }
    if random.random() < 0.5:
        listener["default_filter_chain"] = {"name": "default", "filters": _answering("default")}
    return listener


# --- Hosts ---------------------------------------------------------------------------------------

_HEALTH = ("HEALTHY", "HEALTHY", "UNKNOWN", "UNHEALTHY", "DRAINING", "TIMEOUT", "DEGRADED")


def cluster(random: Random, name: str, port: int) -> Json:
    """Return a cluster with random hosts, priorities and health, which listen on a port."""
    groups = []
    for priority in range(random.choice((1, 1, 2, 3))):
        for zone in range(random.choice((1, 2))):
            hosts = []
            for _ in range(random.randint(0, 4)):
                address = {"address": f"127.0.0.{random.randint(2, 60)}", "port_value": port}
                endpoint = {"address": {"socket_address": address}}
                hosts.append({"endpoint": endpoint, "health_status": random.choice(_HEALTH)})
            group: Json = {"priority": priority, "lb_endpoints": hosts}
            groups.append({**group, "locality": {"zone": str(zone)}, "load_balancing_weight": 1})
    balancing: Json = {}
    if random.random() < 0.5:
        balancing["healthy_panic_threshold"] = {"value": random.choice((0, 0, 20, 80))}
    if random.random() < 0.3:
        balancing["locality_weighted_lb_config"] = {}
    return {
        "name": name,
        "connect_timeout": "1s",
        "lb_policy": "RANDOM",
        "common_lb_config": balancing,
        "load_assignment": {"cluster_name": name, "endpoints": groups},
    }


def balancing_listener(port: int, clusters: list[str], log: str) -> Json:
    """Return a listener that sends /NAME/ to the cluster of that name, and logs to which host."""
    routes = [{"match": {"prefix": f"/{name}/"}, "route": {"cluster": name}} for name in clusters]
    line = "%REQ(:PATH)%|%UPSTREAM_HOST%\n"
    access_log = {
        "@type": f"{_API}extensions.access_loggers.file.v3.FileAccessLog",
        "path": log,
        "log_format": {"text_format_source": {"inline_string": line}},
    }
    manager = {
        "@type": _MANAGER,
        "stat_prefix": "test",
        "http_filters": [_filter("router", "router.v3.Router")],
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
        "access_log": [{"name": "log", "typed_config": access_log}],
    }
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "front",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }


def answering_listener(port: int) -> Json:
    """Return a listener that answers everything, on all addresses."""
    return {
        "name": "back",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},  # noqa: S104
        "filter_chains": [{"filters": _answering("back")}],
    }
