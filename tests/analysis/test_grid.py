"""Istio's own analyzer tests: each input, and the messages and objects that Istio expects.

The grid is reference material beside this checkout; its README says where it comes from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import CHECKS
from meshnb.checks.messages import MESSAGES
from meshnb.tables import Facts
from tests.analysis.conftest import Written, findings
from tests.conftest import SHARED

#: The checks that say what one analyzer of Istio says.
ANALYZERS: Mapping[str, tuple[str, ...]] = {
    "annotations.K8sAnalyzer": ("MNB1501", "MNB1502", "MNB1503", "MNB1504"),
    "applicationUID.Analyzer": ("MNB1204",),
    "auth.AuthorizationPoliciesAnalyzer": ("MNB1451", "MNB1452"),
    "authn.BlockedCIDRsAnalyzer": ("MNB1454",),
    "conditions.ConditionAnalyzer": ("MNB1551",),
    "deployment.MultiServiceAnalyzer": ("MNB1202", "MNB1203"),
    "deprecation.DeprecationAnalyzer": ("MNB1561",),
    "destinationrule.CaCertificateAnalyzer": ("MNB1053",),
    "destinationrule.SubsetSelectPodAnalyzer": ("MNB1051", "MNB1052"),
    "envoyfilter.EnvoyPatchAnalyzer": ("MNB1351", "MNB1352"),
    "externalcontrolplane.ExternalControlPlaneAnalyzer": ("MNB1411", "MNB1412"),
    "gateway.CertificateAnalyzer": ("MNB1104",),
    "gateway.ConflictingGatewayAnalyzer": ("MNB1103",),
    "gateway.IngressGatewayPortAnalyzer": ("MNB1101", "MNB1102"),
    "gateway.SecretAnalyzer": ("MNB1101", "MNB1105", "MNB1106"),
    "injection.Analyzer": ("MNB1151", "MNB1152", "MNB1153"),
    "injection.ImageAnalyzer": ("MNB1155",),
    "injection.ImageAutoAnalyzer": ("MNB1154",),
    "k8sgateway.CRDVersionAnalyzer": ("MNB1562",),
    "k8sgateway.SelectorAnalyzer": ("MNB1453",),
    "meshnetworks.MeshNetworksAnalyzer": ("MNB1311",),
    "schema.ValidationAnalyzer.VirtualService": ("MNB1012", "MNB1013", "MNB1601"),
    "service.PortNameAnalyzer": ("MNB1201",),
    "serviceentry.Analyzer": ("MNB1301",),
    "sidecar.SelectorAnalyzer": ("MNB1251", "MNB1252", "MNB1253", "MNB1254"),
    "telemetry.DefaultSelectorAnalyzer": ("MNB1263",),
    "telemetry.LightstepAnalyzer": ("MNB1265",),
    "telemetry.ProviderAnalyzer": ("MNB1264",),
    "telemetry.SelectorAnalyzer": ("MNB1261", "MNB1262"),
    "virtualservice.ConflictingMeshGatewayHostsAnalyzer": ("MNB1009",),
    "virtualservice.DestinationHostAnalyzer": ("MNB1001", "MNB1002", "MNB1003", "MNB1010"),
    "virtualservice.DestinationRuleAnalyzer": ("MNB1004",),
    "virtualservice.GatewayAnalyzer": ("MNB1005", "MNB1006", "MNB1007"),
    "virtualservice.JWTClaimRouteAnalyzer": ("MNB1011",),
    "webhook.Analyzer": ("MNB1401", "MNB1402"),
}

#: Messages of Istio that no check says, each with the reason.
UNSAID = {
    "IST0170": "it compares the clusters of a mesh, and a source is one cluster",
}

#: Came with Istio 1.32, and the grid is of 1.30.
NEWER = "IST0177"

GRID = SHARED / "analysis"
CASES: list[dict[str, Any]] = json.loads((GRID / "cases.json").read_text()) if GRID.is_dir() else []
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])


@EACH_CASE
def test_an_analyzer_reports_these_messages_about_these_objects(
    case: dict[str, Any], written: Written
) -> None:
    found = findings(Facts(written(case)), ANALYZERS[case["analyzer"]])

    expected = Counter((one["code"], one["object"]) for one in case["expected"])
    assert Counter((one.same_as, str(one.subject)) for _, one in found) == expected


@EACH_CASE
def test_all_analyzers_together_report_these_messages_about_these_objects(
    case: dict[str, Any], written: Written
) -> None:
    """What one analyzer is tested with, the others look at, too."""
    found = findings(Facts(written(case)))

    engine = json.loads((GRID / "engine" / f"{case['id']}.json").read_text())
    expected = Counter((one["code"], one["origin"]) for one in engine["all"]["messages"])
    said = Counter((one.same_as, str(one.subject)) for _, one in found)
    assert {one: n for one, n in said.items() if one[0] not in ("", NEWER)} == expected


@EACH_CASE
def test_levels_are_those_of_istio(case: dict[str, Any], written: Written) -> None:
    for code, finding in findings(Facts(written(case))):
        if finding.same_as:
            assert finding.level == MESSAGES[finding.same_as].level, code


@EACH_CASE
def test_every_finding_points_into_its_file(
    case: dict[str, Any], written: Written, shared: Path
) -> None:
    """Its path leads to a line of the object, not before its first one."""
    source = written(case)
    for code, finding in findings(Facts(source)):
        subject = finding.subject
        if subject.kind == "MeshNetworks":
            continue
        first = source.origin(subject.kind, subject.namespace, subject.name)
        place = source.origin(subject.kind, subject.namespace, subject.name, finding.path)
        file, _, line = place.rpartition(":")
        assert file == first.rpartition(":")[0], code
        assert int(line) >= int(first.rpartition(":")[2]), code
        assert place in finding.remedy, code


def test_the_table_of_messages_has_istios_codes_names_levels_and_states(shared: Path) -> None:
    for one in json.loads((shared / "analysis" / "messages.json").read_text()):
        ours = MESSAGES[one["code"]]
        if one["status"] == "active":
            assert (ours.name, ours.level) == (one["name"], one["level"])
            assert ours.documentation == one["url"].rstrip("/") + "/"
        else:
            assert (ours.status, ours.documentation) == ("retired", "")


def test_each_message_that_analyze_raises_is_said_by_a_check() -> None:
    said = {code for one in CHECKS.values() for code in one.same_as}
    raised = {code for code, message in MESSAGES.items() if message.status == "active"}
    assert raised - said == set(UNSAID)
    assert said <= raised


def test_each_analyzer_that_has_a_case_has_checks(shared: Path) -> None:
    known = {one["name"] for one in json.loads((shared / "analysis/analyzers.json").read_text())}
    assert set(ANALYZERS) <= known
    schemas = {name for name in known if name.startswith("schema.")}
    assert known - schemas - set(ANALYZERS) == {"services.MultiClusterServiceAnalyzer"}
