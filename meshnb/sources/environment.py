"""Which variables of the mesh's own containers say how it is set up, and hold no secret.

Names from Istio's documentation of its environment variables (pilot-discovery, pilot-agent,
install-cni) and from ztunnel's configuration. What somebody else put there is not among them.
"""

from __future__ import annotations

import re
from functools import lru_cache

from meshnb.sources.credentials import may_be_credential

#: Containers of Istio itself.
ISTIO_CONTAINERS = frozenset(
    {
        *("istio-proxy", "istio-init", "istio-validation", "discovery", "ztunnel"),
        *("install-cni", "istio-cni", "enable-core-dump"),
    }
)
_KNOWN = re.compile(
    r"(?:ISTIO|PILOT|CITADEL|CA|XDS|PROXY|POD|INSTANCE|ENABLE|INJECTION|INJECT|VALIDATION|AMBIENT|"
    r"REPAIR|CHAINED|CNI|RUST|LABEL|LOG|GATEWAY|PEER|INPOD|DNS|HBONE|MULTICLUSTER|REQUIRE|SHARED|"
    r"TERMINATION|WASM|ECC|FILE|WORKLOAD|UNSAFE|ISTIOD|ENVOY|LOCAL|REMOTE|PREFER|ENFORCE)_\w+|"
    r"SERVICE_ACCOUNT|HOST_IP|NODE_NAME|REVISION|KUBECONFIG|CLUSTER_ID|TRUST_DOMAIN|GOMEMLIMIT|"
    r"GOMAXPROCS|GODEBUG|PLATFORM|CREDENTIAL_FETCHER_TYPE|JWT_POLICY|TOKEN_AUDIENCES|AUDIENCE|"
    r"SECRET_TTL|SECRET_GRACE_PERIOD_RATIO|SECRET_GRACE_PERIOD_RATIO_JITTER|OUTPUT_CERTS|PROV_CERT|"
    r"TRUSTED_GATEWAY_CIDR|ROOT_CA_DIR|SKIP_CNI_BINARIES|ALLOW_SWITCH_TO_HOST_NS|MESH_CONFIG|"
    r"EXIT_ON_ZERO_ACTIVE_CONNECTIONS|MINIMUM_DRAIN_DURATION|NETWORK|ADMIN_ADDR|STATS_ADDR|"
    r"READINESS_ADDR|EXTERNAL_ISTIOD|JWT_RULE|KUBERNETES_SERVICE_(?:HOST|PORT)"
)
#: Named like credentials, but they are settings.
_SETTINGS = re.compile(
    r"JWT_POLICY|TOKEN_AUDIENCES|SECRET_\w+|CREDENTIAL_FETCHER_TYPE|CA_TRUSTED_NODE_ACCOUNTS|\w+_LABEL_KEY|"
    r"(?:PILOT|ENABLE|CITADEL|ISTIO)_\w*(?:ENABLE|VALIDAT|TTL|POLICY|PERIOD|RATIO)\w*"
)


@lru_cache(maxsize=4096)
def is_setting(name: str) -> bool:
    """Whether a variable is one of Istio's own, whose value is evidence and no secret."""
    if _SETTINGS.fullmatch(name):
        return True
    return _KNOWN.fullmatch(name) is not None and not may_be_credential(name)
