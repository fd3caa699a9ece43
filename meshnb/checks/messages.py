"""The messages of ``istioctl analyze``: code, name, level, and which of them are still raised.

Facts about Istio 1.30 (pkg/config/analysis/msg/messages.yaml); IST0177 came with 1.32. What a
message is raised for is said by the check that names its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ERROR, WARNING, INFO = "Error", "Warning", "Info"

ACTIVE = "active"
#: defined, but no code of Istio raises it
NEVER_RAISED = "never raised"
#: raised by ``istioctl x precheck`` only, which asks the cluster whether Istio can be installed
PRECHECK = "precheck only"
#: no longer defined; the number is not used for anything else
RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of ``istioctl analyze``."""

    code: str
    name: str
    #: Error, Warning or Info; empty for a retired one
    level: str
    status: str = ACTIVE

    @property
    def documentation(self) -> str:
        """The page of Istio's documentation about it; empty for a retired one."""
        return f"{_PAGES}/{self.code.lower()}/" if self.status != RETIRED else ""


_PAGES = "https://istio.io/latest/docs/reference/config/analysis"

#: Every message by its code.
MESSAGES: Mapping[str, Message] = {
    message.code: message
    for message in (
        Message("IST0001", "InternalError", ERROR, NEVER_RAISED),
        Message("IST0002", "Deprecated", WARNING),
        Message("IST0101", "ReferencedResourceNotFound", ERROR),
        Message("IST0102", "NamespaceNotInjected", INFO),
        Message("IST0103", "PodMissingProxy", WARNING),
        Message("IST0106", "SchemaValidationError", ERROR),
        Message("IST0107", "MisplacedAnnotation", WARNING),
        Message("IST0108", "UnknownAnnotation", WARNING),
        Message("IST0109", "ConflictingMeshGatewayVirtualServiceHosts", ERROR),
        Message("IST0110", "ConflictingSidecarWorkloadSelectors", ERROR),
        Message("IST0111", "MultipleSidecarsWithoutWorkloadSelectors", ERROR),
        Message("IST0112", "VirtualServiceDestinationPortSelectorRequired", ERROR),
        Message("IST0116", "DeploymentAssociatedToMultipleServices", WARNING),
        Message("IST0118", "PortNameIsNotUnderNamingConvention", INFO),
        Message("IST0123", "NamespaceMultipleInjectionLabels", WARNING),
        Message("IST0125", "InvalidAnnotation", WARNING),
        Message("IST0126", "UnknownMeshNetworksServiceRegistry", ERROR),
        Message("IST0127", "NoMatchingWorkloadsFound", WARNING),
        Message("IST0128", "NoServerCertificateVerificationDestinationLevel", WARNING),
        Message("IST0129", "NoServerCertificateVerificationPortLevel", WARNING),
        Message("IST0130", "VirtualServiceUnreachableRule", WARNING),
        Message("IST0131", "VirtualServiceIneffectiveMatch", INFO),
        Message("IST0132", "VirtualServiceHostNotFoundInGateway", WARNING),
        Message("IST0133", "SchemaWarning", WARNING),
        Message("IST0134", "ServiceEntryAddressesRequired", WARNING),
        Message("IST0135", "DeprecatedAnnotation", INFO),
        Message("IST0136", "AlphaAnnotation", INFO, PRECHECK),
        Message("IST0137", "DeploymentConflictingPorts", WARNING),
        Message("IST0138", "GatewayDuplicateCertificate", WARNING),
        Message("IST0139", "InvalidWebhook", ERROR),
        Message("IST0140", "IngressRouteRulesNotAffected", WARNING),
        Message("IST0141", "InsufficientPermissions", ERROR, PRECHECK),
        Message("IST0142", "UnsupportedKubernetesVersion", ERROR, PRECHECK),
        Message("IST0143", "LocalhostListener", ERROR, NEVER_RAISED),
        Message("IST0144", "InvalidApplicationUID", WARNING),
        Message("IST0145", "ConflictingGateways", ERROR),
        Message("IST0146", "ImageAutoWithoutInjectionWarning", WARNING),
        Message("IST0147", "ImageAutoWithoutInjectionError", ERROR),
        Message("IST0148", "NamespaceInjectionEnabledByDefault", INFO),
        Message("IST0149", "JwtClaimBasedRoutingWithoutRequestAuthN", ERROR),
        Message("IST0150", "ExternalNameServiceTypeInvalidPortName", WARNING),
        Message("IST0151", "EnvoyFilterUsesRelativeOperation", WARNING),
        Message("IST0152", "EnvoyFilterUsesReplaceOperationIncorrectly", ERROR),
        Message("IST0153", "EnvoyFilterUsesAddOperationIncorrectly", ERROR),
        Message("IST0154", "EnvoyFilterUsesRemoveOperationIncorrectly", ERROR),
        Message("IST0155", "EnvoyFilterUsesRelativeOperationWithProxyVersion", WARNING),
        Message("IST0156", "UnsupportedGatewayAPIVersion", ERROR, PRECHECK),
        Message("IST0157", "InvalidTelemetryProvider", WARNING),
        Message("IST0158", "PodsIstioProxyImageMismatchInNamespace", WARNING),
        Message("IST0159", "ConflictingTelemetryWorkloadSelectors", ERROR),
        Message("IST0160", "MultipleTelemetriesWithoutWorkloadSelectors", ERROR),
        Message("IST0161", "InvalidGatewayCredential", ERROR),
        Message("IST0162", "GatewayPortNotDefinedOnService", WARNING),
        Message("IST0163", "InvalidExternalControlPlaneConfig", WARNING),
        Message("IST0164", "ExternalControlPlaneAddressIsNotAHostname", INFO),
        Message("IST0165", "ReferencedInternalGateway", WARNING),
        Message("IST0166", "IneffectiveSelector", WARNING),
        Message("IST0167", "IneffectivePolicy", WARNING),
        Message("IST0168", "UnknownUpgradeCompatibility", WARNING, NEVER_RAISED),
        Message("IST0169", "UpdateIncompatibility", WARNING, PRECHECK),
        Message("IST0170", "MultiClusterInconsistentService", WARNING),
        Message("IST0171", "NegativeConditionStatus", WARNING),
        Message("IST0172", "FutureUnsupportedGatewayAPIVersion", WARNING, PRECHECK),
        Message("IST0173", "DestinationRuleSubsetNotSelectPods", ERROR),
        Message("IST0174", "UnknownDestinationRuleHost", WARNING),
        Message("IST0175", "JwksUriFetchUnrestricted", WARNING),
        Message("IST0176", "GatewayAPICRDVersionBelowMinimum", WARNING),
        Message("IST0177", "ConflictingServiceEntryProtocol", WARNING),
        *(
            Message(f"IST{number:04}", "", "", RETIRED)
            for number in (104, 105, 113, 114, 115, 117, 119, 120, 121, 122, 124)
        ),
    )
}
