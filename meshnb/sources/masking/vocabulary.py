"""Which words are nobody's name: those of Kubernetes, Istio and Envoy, and those of everybody.

``own.txt`` has the values and names that they give themselves (``ClusterIP``, ``istiod``) and words
that say nothing of who uses them (``api``, ``canary``); they always stay. ``common.txt`` has the
words of their field names and messages; such a word is masked only where it stands as a name.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib import resources


def _listed(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: What of a domain is public: objects, labels and images of these are known to everybody.
PUBLIC_DOMAINS = (
    *("k8s.io", "kubernetes.io", "istio.io", "envoyproxy.io", "helm.sh", "cert-manager.io"),
    *("argoproj.io", "fluxcd.io", "googleapis.com", "gke.io", "cloud.google.com", "github.com"),
    *("docker.io", "docker.com", "ghcr.io", "quay.io", "gcr.io", "amazonaws.com", "azure.com"),
    *("openshift.io", "redhat.com", "coreos.com", "prometheus.io", "grafana.com", "keda.sh"),
    *("knative.dev", "crossplane.io", "kiali.io", "jaegertracing.io", "opentelemetry.io"),
    *("opencontainers.org", "spiffe.io", "cncf.io", "golang.org", "w3.org", "ietf.org"),
    *("gcr.dev", "pkg.dev", "aquasec.com", "hashicorp.com", "cilium.io", "projectcalico.org"),
    *("tetrate.io", "solo.io", "json-schema.org", "apache.org", "mozilla.org", "envoy.com"),
)
#: Last labels of public names, as far as meshes call such.
TOP_LEVELS = _listed(
    "aero ai app asia at au be biz br ca cc ch cloud club cn co com company cz de dev digital dk "
    "edu ee es eu fi fr global gov gr group hk hr hu ie il in info int io is it jp kr lt lu lv me "
    "mil mobi mx net nl no nz online org pl pro pt ro ru se sg shop si site sk solutions store "
    "tech tr tv tw ua uk us xyz za"
)
#: Their place takes one of those that nobody can own (RFC 2606).
RESERVED_TOP_LEVELS = ("example", "test", "invalid")

_ENVOY = ("envoy.", "istio.", "io.istio.", "x-envoy-", "x-forwarded-", "type.googleapis.com")
_COUNTED = re.compile(r"v\d+(?:(?:alpha|beta|rc)\d*)?")


@cache
def _words(name: str) -> frozenset[str]:
    folder = resources.files("meshnb.sources.masking")
    return frozenset((folder / name).read_text(encoding="ascii").split())


def stays(word: str) -> bool:
    """Whether a word, in lower case, is never masked."""
    return (
        len(word) <= 2 or word.isdigit() or word in _words("own.txt") or bool(_COUNTED.match(word))
    )


def is_common(word: str) -> bool:
    """Whether a word, in lower case, is also one of field names and messages."""
    return word in _words("common.txt")


@lru_cache(maxsize=65536)
def is_public(name: str) -> bool:
    """Whether a name with dots belongs to something that everybody has."""
    lower = name.lower()
    return lower.startswith(_ENVOY) or any(
        lower == domain or lower.endswith(f".{domain}") for domain in PUBLIC_DOMAINS
    )


def masks() -> tuple[str, ...]:
    """Return the words that masks are made of, in the order of the alphabet."""
    return tuple(sorted(_words("masks.txt")))
