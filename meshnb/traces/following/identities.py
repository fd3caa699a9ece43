"""Whose certificate a caller shows: the identity that policies are about.

A proxy shows the certificate that istiod gave it, which is read from its own dump. Where that is
not recorded, the identity is what istiod would give: the trust domain of the mesh, and the pod's
namespace and service account (https://istio.io/latest/docs/concepts/security/#istio-identity).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from meshnb.tables import Facts
from meshnb.traces.envoy.matchers import Undecided
from meshnb.traces.mesh import Mesh, Pod

#: The name of a proxy's own certificate among its secrets.
_OWN = "default"
_TRUST_DOMAIN = "cluster.local"


class Identities:
    """The SPIFFE names of the callers of one mesh."""

    def __init__(self, facts: Facts, mesh: Mesh) -> None:
        """Take a source's facts; certificates are read when they are asked for."""
        self._facts = facts
        self._mesh = mesh

    @property
    def trust_domain(self) -> str:
        """The mesh's trust domain, Istio's default where it is not configured."""
        return self._mesh.settings.get("trustDomain") or _TRUST_DOMAIN

    @cached_property
    def _shown(self) -> Mapping[str, tuple[str, ...]]:
        certificates = self._facts["certificates"]
        own = certificates[
            (certificates["resource_name"] == _OWN) & (certificates["status"] == "ACTIVE")
        ]
        return {
            str(proxy): tuple(name for name in names if "://" in name)
            for proxy, names in zip(own["proxy"], own["sans"], strict=True)
        }

    def names(self, pod: Pod | None) -> tuple[str, ...] | Undecided:
        """Return the names that a pod shows when it speaks mTLS; a pod out of the mesh has none."""
        if pod is None:
            return Undecided("the caller is no pod that is known")
        if not pod.in_mesh:
            return ()
        if shown := self._shown.get(pod.proxy):
            return shown
        return (f"spiffe://{self.trust_domain}/{pod.identity}",)
