"""What an ingress gateway has in front of it: TLS, redirects, and the internet."""

from __future__ import annotations

import base64
import copy
from datetime import datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.alteration import Line
from tests.enriching.base import Enriched, Json, name_of
from tests.enriching.envoy import Proxy, gateways, replaced

_HOST = "shop.example"


@cache
def _certificate(now: datetime) -> bytes:
    """Return a server's certificate for the host, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _HOST)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(4711)
        .not_valid_before(now - timedelta(days=30))
        .not_valid_after(now + timedelta(days=335))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _front(mesh: Enriched) -> Proxy | None:
    """Return the gateway with a listener for plain HTTP whose log has requests that went well."""
    for gateway in gateways(mesh):
        served = any(line.code == "200" for line in gateway.access())
        if gateway.log is not None and served and gateway.active("0.0.0.0_8080") is not None:
            return gateway
    return None


def tls_gateway(mesh: Enriched) -> None:
    """Let the gateway serve another host over TLS; who comes without is redirected."""
    gateway = _front(mesh)
    if gateway is None or gateway.active("0.0.0.0_8443") is not None or gateway.log is None:
        return
    pod = next(p for p in mesh.objects("pods") if name_of(p) == (gateway.namespace, gateway.pod))
    label = pod["metadata"]["labels"].get("istio")
    like = next(line for line in gateway.access() if line.code == "200")
    if label is None:
        return
    namespace = like.cluster.split("|")[3].split(".")[1]
    mesh.add(
        "v1",
        "Secret",
        "shop-tls",
        gateway.namespace,
        type="kubernetes.io/tls",
        data={
            "tls.crt": base64.b64encode(_certificate(mesh.now)).decode(),
            "tls.key": "PHJlZGFjdGVkPg==",
        },
    )
    mesh.add(
        "networking.istio.io/v1",
        "Gateway",
        "shop",
        namespace,
        spec={
            "selector": {"istio": label},
            "servers": [
                {
                    "hosts": [_HOST],
                    "port": {"name": "http", "number": 80, "protocol": "HTTP"},
                    "tls": {"httpsRedirect": True},
                },
                {
                    "hosts": [_HOST],
                    "port": {"name": "https", "number": 443, "protocol": "HTTPS"},
                    "tls": {"mode": "SIMPLE", "credentialName": "shop-tls"},
                },
            ],
        },
    )
    host, port = like.cluster.split("|")[3], int(like.cluster.split("|")[1])
    mesh.add(
        "networking.istio.io/v1",
        "VirtualService",
        "shop",
        namespace,
        spec={
            "hosts": [_HOST],
            "gateways": ["shop"],
            "http": [{"route": [{"destination": {"host": host, "port": {"number": port}}}]}],
        },
    )
    _serve_tls(mesh, gateway, namespace, like.cluster)
    secure = [
        like._replace(
            authority=_HOST,
            local=f"{gateway.address}:8443",
            sni=_HOST,
            id=f"5ec04e00-0000-4000-8000-00000000000{number}",
        )
        for number in range(6)
    ]
    redirected = [
        like._replace(
            authority=_HOST,
            code="301",
            details="direct_response",
            endpoint="-",
            cluster="-",
            own="-",
            service_time="-",
            id=f"4ed14ec7-0000-4000-8000-00000000000{number}",
        )
        for number in range(4)
    ]
    mesh.insert(gateway.log, [*secure, *redirected])


def _serve_tls(mesh: Enriched, gateway: Proxy, namespace: str, cluster: str) -> None:
    updated = mesh.ago(hours=1)
    name = f"https.443.https.shop.{namespace}"
    origin = f"/apis/networking.istio.io/v1/namespaces/{namespace}/virtual-service/shop"
    plain = next(e for e in gateway.listeners if e["name"] == "0.0.0.0_8080")
    entry = replaced(
        {"name": plain["name"], "active_state": plain["active_state"]},
        "0.0.0.0_8080",
        "0.0.0.0_8443",
    )
    entry["active_state"]["last_updated"] = updated
    listener = entry["active_state"]["listener"]
    listener["address"]["socket_address"]["port_value"] = 8443
    listener["listener_filters"] = [{"name": "envoy.filters.listener.tls_inspector"}]
    chain = listener["filter_chains"][0]
    chain["filter_chain_match"] = {"server_names": [_HOST]}
    chain["filters"][0]["typed_config"]["rds"]["route_config_name"] = name
    sds: Json = {"ads": {}, "resource_api_version": "V3"}
    secrets = [{"name": "kubernetes://shop-tls", "sds_config": sds}]
    chain["transport_socket"] = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
            "DownstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_certificate_sds_secret_configs": secrets,
            },
            "require_client_certificate": False,
        },
    }
    gateway.listeners.append(entry)
    for question in mesh.asked("/listeners"):
        if (question.namespace, question.pod) == (gateway.namespace, gateway.pod):
            page = mesh.document(question)
            if isinstance(page, dict) and page.get("listener_statuses"):
                page["listener_statuses"].append(
                    replaced(page["listener_statuses"][0], "8080", "8443")
                )
    served = {
        "name": f"{_HOST}:443",
        "domains": [_HOST],
        "routes": [
            {
                "match": {"prefix": "/"},
                "route": {"cluster": cluster, "timeout": "0s"},
                "metadata": {"filter_metadata": {"istio": {"config": origin}}},
            }
        ],
        "include_request_attempt_count": True,
    }
    config = {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": name,
        "virtual_hosts": [served],
    }
    gateway.routes.append({"route_config": config, "last_updated": updated})
    for entry in gateway.routes:
        if entry["route_config"]["name"] == "http.8080":
            redirect = {**copy.deepcopy(served), "name": f"{_HOST}:80", "require_tls": "ALL"}
            entry["route_config"]["virtual_hosts"].append(redirect)
    chain_bytes = base64.b64encode(_certificate(mesh.now)).decode()
    gateway.secrets.append(
        {
            "name": "kubernetes://shop-tls",
            "version_info": f"{updated}/3",
            "last_updated": updated,
            "secret": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                "name": "kubernetes://shop-tls",
                "tls_certificate": {
                    "certificate_chain": {"inline_bytes": chain_bytes},
                    "private_key": {"inline_string": "[redacted]"},
                },
            },
        }
    )


def internet(mesh: Enriched) -> None:
    """Let scanners ask the gateway for what nobody serves, and clients leave early."""
    gateway = _front(mesh)
    if gateway is None or gateway.log is None:
        return
    like = next(line for line in gateway.access() if line.code == "200")
    nowhere = {
        "code": "404",
        "flags": "NR",
        "details": "route_not_found",
        "endpoint": "-",
        "cluster": "-",
        "own": "-",
        "service_time": "-",
        "route": "-",
    }
    paths = ["/.env", "/", "/wp-login.php", "/.git/config", "/actuator/health", "/"] * 2
    noise: list[Line] = [
        like._replace(
            **nowhere,
            path=path,
            authority="198.51.100.23",
            agent="masscan/1.3",
            remote=f"45.83.64.{number + 1}:40112",
            forwarded=f"45.83.64.{number + 1}",
            id=f"5ca44e40-0000-4000-8000-0000000000{number:02}",
        )
        for number, path in enumerate(paths)
    ]
    noise += [
        like._replace(
            code="0",
            flags="DC",
            details="downstream_remote_disconnect",
            service_time="-",
            id=f"de9a47ed-0000-4000-8000-00000000000{number}",
        )
        for number in range(3)
    ]
    unread = dict.fromkeys(("method", "path", "authority", "agent"), "-")
    noise += [
        like._replace(
            **{**nowhere, **unread, "code": "400", "flags": "DPE", "details": "http1.codec_error"},
            protocol="HTTP/1.1",
            id=f"bad4e9e0-0000-4000-8000-00000000000{number}",
        )
        for number in range(2)
    ]
    if gateway.active("0.0.0.0_8443") is not None:
        unread |= {"protocol": "-", "id": "-", "code": "0", "details": "filter_chain_not_found"}
        noise += [
            like._replace(
                **{**nowhere, **unread},
                local=f"{gateway.address}:8443",
                sni=sni,
                duration="0",
            )
            for sni in ("-", "45.83.64.9", "other.example")
        ]
    mesh.insert(gateway.log, noise)
