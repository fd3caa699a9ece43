"""Answers as DataFrames, one module per table. Each says its grain, its columns and their units."""

from __future__ import annotations

from collections.abc import Mapping

from meshnb.tables.access_log import ACCESS_LOG
from meshnb.tables.base import Column, Facts, Gap, Table
from meshnb.tables.certificates import CERTIFICATES
from meshnb.tables.clusters import CLUSTERS
from meshnb.tables.containers import CONTAINERS
from meshnb.tables.endpoints import ENDPOINTS
from meshnb.tables.events import EVENTS
from meshnb.tables.injection import INJECTION
from meshnb.tables.istio_config import ISTIO_CONFIG
from meshnb.tables.istiod_log import ISTIOD_LOG
from meshnb.tables.istiod_metrics import ISTIOD_METRICS
from meshnb.tables.istiod_ports import ISTIOD_PORTS
from meshnb.tables.listeners import LISTENERS
from meshnb.tables.mesh_settings import MESH_SETTINGS
from meshnb.tables.namespaces import NAMESPACES
from meshnb.tables.network_policies import NETWORK_POLICIES
from meshnb.tables.nodes import NODES
from meshnb.tables.pods import PODS
from meshnb.tables.proxies import PROXIES
from meshnb.tables.proxy_log import PROXY_LOG
from meshnb.tables.proxy_status import PROXY_STATUS
from meshnb.tables.rollouts import ROLLOUTS
from meshnb.tables.routes import ROUTES
from meshnb.tables.secrets import SECRETS
from meshnb.tables.service_accounts import SERVICE_ACCOUNTS
from meshnb.tables.service_endpoints import SERVICE_ENDPOINTS
from meshnb.tables.services import SERVICES
from meshnb.tables.webhooks import WEBHOOKS
from meshnb.tables.workloads import WORKLOADS
from meshnb.tables.ztunnel_access_log import ZTUNNEL_ACCESS_LOG

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
        NETWORK_POLICIES,
        ISTIO_CONFIG,
        MESH_SETTINGS,
        WEBHOOKS,
        INJECTION,
        ISTIOD_PORTS,
        ISTIOD_METRICS,
        ISTIOD_LOG,
        PROXY_STATUS,
        PROXIES,
        LISTENERS,
        ROUTES,
        CLUSTERS,
        ENDPOINTS,
        CERTIFICATES,
        ACCESS_LOG,
        ZTUNNEL_ACCESS_LOG,
        PROXY_LOG,
        EVENTS,
    )
}
