"""Answers as DataFrames, one module per table. Each says its grain, its columns and their units."""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.tables.access_log import ACCESS_LOG
from meshnb.tables.base import Column, Facts, Gap, Table
from meshnb.tables.bootstrap import BOOTSTRAP
from meshnb.tables.certificates import CERTIFICATES
from meshnb.tables.check_inject import CHECK_INJECT
from meshnb.tables.clusters import CLUSTERS
from meshnb.tables.containers import CONTAINERS
from meshnb.tables.endpoints import ENDPOINTS
from meshnb.tables.events import EVENTS
from meshnb.tables.extension_configs import EXTENSION_CONFIGS
from meshnb.tables.ingresses import INGRESSES
from meshnb.tables.init_log import INIT_LOG
from meshnb.tables.injection import INJECTION
from meshnb.tables.injector_namespaces import INJECTOR_NAMESPACES
from meshnb.tables.injector_webhooks import INJECTOR_WEBHOOKS
from meshnb.tables.istio_config import ISTIO_CONFIG
from meshnb.tables.istiod_log import ISTIOD_LOG
from meshnb.tables.istiod_metrics import ISTIOD_METRICS
from meshnb.tables.istiod_ports import ISTIOD_PORTS
from meshnb.tables.leases import LEASES
from meshnb.tables.limit_ranges import LIMIT_RANGES
from meshnb.tables.listeners import LISTENERS
from meshnb.tables.mesh_config_maps import MESH_CONFIG_MAPS
from meshnb.tables.mesh_settings import MESH_SETTINGS
from meshnb.tables.namespaces import NAMESPACES
from meshnb.tables.network_policies import NETWORK_POLICIES
from meshnb.tables.nodes import NODES
from meshnb.tables.pods import PODS
from meshnb.tables.proxies import PROXIES
from meshnb.tables.proxy_counters import PROXY_COUNTERS
from meshnb.tables.proxy_log import PROXY_LOG
from meshnb.tables.proxy_status import PROXY_STATUS
from meshnb.tables.proxy_status_summary import PROXY_STATUS_SUMMARY
from meshnb.tables.rbac import RBAC
from meshnb.tables.rbac_rules import RBAC_RULES
from meshnb.tables.remote_clusters import REMOTE_CLUSTERS
from meshnb.tables.request_metrics import REQUEST_METRICS
from meshnb.tables.rollouts import ROLLOUTS
from meshnb.tables.routes import ROUTES
from meshnb.tables.secrets import SECRETS
from meshnb.tables.service_accounts import SERVICE_ACCOUNTS
from meshnb.tables.service_endpoints import SERVICE_ENDPOINTS
from meshnb.tables.services import SERVICES
from meshnb.tables.trust_anchors import TRUST_ANCHORS
from meshnb.tables.versions import VERSIONS
from meshnb.tables.webhooks import WEBHOOKS
from meshnb.tables.workloads import WORKLOADS
from meshnb.tables.ztunnel_access_log import ZTUNNEL_ACCESS_LOG
from meshnb.tables.ztunnel_certificates import ZTUNNEL_CERTIFICATES
from meshnb.tables.ztunnel_connections import ZTUNNEL_CONNECTIONS
from meshnb.tables.ztunnel_policies import ZTUNNEL_POLICIES
from meshnb.tables.ztunnel_services import ZTUNNEL_SERVICES
from meshnb.tables.ztunnel_workloads import ZTUNNEL_WORKLOADS

__all__ = ["TABLES", "Column", "Facts", "Gap", "Table"]

#: Every table, in the order in which one would look at them.
TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        NODES,
        NAMESPACES,
        WORKLOADS,
        ROLLOUTS,
        PODS,
        CONTAINERS,
        SERVICES,
        SERVICE_ENDPOINTS,
        SERVICE_ACCOUNTS,
        SECRETS,
        TRUST_ANCHORS,
        NETWORK_POLICIES,
        LIMIT_RANGES,
        INGRESSES,
        ISTIO_CONFIG,
        MESH_SETTINGS,
        MESH_CONFIG_MAPS,
        LEASES,
        WEBHOOKS,
        INJECTION,
        CHECK_INJECT,
        INJECTOR_NAMESPACES,
        INJECTOR_WEBHOOKS,
        ISTIOD_PORTS,
        ISTIOD_METRICS,
        ISTIOD_LOG,
        REMOTE_CLUSTERS,
        VERSIONS,
        PROXY_STATUS,
        PROXY_STATUS_SUMMARY,
        PROXIES,
        BOOTSTRAP,
        LISTENERS,
        ROUTES,
        CLUSTERS,
        ENDPOINTS,
        REQUEST_METRICS,
        PROXY_COUNTERS,
        CERTIFICATES,
        EXTENSION_CONFIGS,
        RBAC,
        RBAC_RULES,
        ZTUNNEL_WORKLOADS,
        ZTUNNEL_SERVICES,
        ZTUNNEL_POLICIES,
        ZTUNNEL_CERTIFICATES,
        ZTUNNEL_CONNECTIONS,
        ACCESS_LOG,
        ZTUNNEL_ACCESS_LOG,
        PROXY_LOG,
        INIT_LOG,
        EVENTS,
    )
}
