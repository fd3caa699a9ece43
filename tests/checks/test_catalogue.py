"""The catalogue of checks as a catalogue: codes, words, proofs, and what missing evidence does."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from meshnb.checks import (
    CHECKS,
    FAMILIES,
    Cause,
    Check,
    Finding,
    Inputs,
    Outcome,
    Severity,
    Subject,
    Verdict,
    run,
)
from meshnb.checks.base import CATALOGUE, check
from meshnb.diagnosis import SURE, Diagnosis, diagnose
from meshnb.errors import CatalogueError
from meshnb.tables import TABLES
from meshnb.traces import TRACES
from tests.alteration import Altered
from tests.conftest import facts_of, recording_names, truth_of

ALTERED = sorted(
    file for file in Path(__file__).parent.glob("test_*.py") if file.name != Path(__file__).name
)
HEALTHY = [name for name in recording_names() if truth_of(name)["healthy"]]

#: The checks that fire on no recording, each with the test of an altered one where it does.
ON_ALTERED_RECORDINGS = {
    "MNB102": "test_a_closed_port_of_a_ready_istiod_is_found",
    "MNB103": "test_a_certificate_of_istiod_is_judged_at_the_time_of_the_recording",
    "MNB104": "test_an_istiod_that_may_not_list_a_kind_is_not_ready",
    "MNB105": "test_an_istiod_that_is_killed_for_its_memory_is_found",
    "MNB130": "test_a_proxy_of_a_version_that_is_not_supported_is_found",
    "MNB131": "test_a_definition_that_istiod_does_not_read_is_found",
    "MNB132": "test_an_object_for_another_revision_is_not_read",
    "MNB133": "test_settings_that_istiod_does_not_work_with_are_found",
    "MNB134": "test_a_lease_of_an_istiod_that_is_gone_is_found",
    "MNB135": "test_refused_debug_pages_are_told_by_istiods_log",
    "MNB136": "test_a_cluster_that_istio_does_not_support_is_found",
    "MNB137": "test_a_namespace_of_the_mesh_that_istiod_does_not_look_at_is_found",
    "MNB152": "test_a_pod_without_a_sidecar_that_did_not_opt_out_is_older_than_the_injection",
    "MNB153": "test_a_webhook_that_calls_a_service_that_does_not_exist_is_found",
    "MNB154": "test_a_namespace_that_lost_its_label_is_blamed_for_the_pod_that_lost_its_sidecar",
    "MNB155": "test_pods_that_keep_another_revision_beside_two_labels_are_found",
    "MNB156": "test_two_webhooks_for_the_same_pods_are_one_too_many",
    "MNB157": "test_an_injector_that_skips_what_it_injected_before_is_found",
    "MNB170": "test_a_webhook_that_cannot_be_called_is_told_by_the_event",
    "MNB171": "test_a_webhook_that_cannot_be_called_is_told_by_the_event",
    "MNB172": "test_a_refused_pod_is_told_by_who_refused_it",
    "MNB173": "test_a_refused_pod_is_told_by_who_refused_it",
    "MNB174": "test_a_refused_pod_is_told_by_who_refused_it",
    "MNB175": "test_a_refused_pod_is_told_by_who_refused_it",
    "MNB202": "test_a_port_that_the_destination_does_not_have_leads_nowhere",
    "MNB203": "test_routes_for_a_name_that_no_service_has_are_found",
    "MNB212": "test_a_rule_that_shapes_no_cluster_is_found",
    "MNB222": "test_a_gateway_that_names_no_subset_reaches_every_version",
    "MNB223": "test_a_delegate_that_istiod_leaves_out_has_no_routes",
    "MNB224": "test_two_virtual_services_for_a_host_at_a_gateway_may_share_it_by_path",
    "MNB225": "test_two_sidecars_for_the_same_pods_conflict",
    "MNB232": "test_registry_only_blocks_a_host_that_nobody_registered",
    "MNB233": "test_a_request_that_meets_no_route_is_the_virtual_services_fault",
    "MNB234": "test_a_service_entry_that_leads_to_nobody_is_found",
    "MNB235": "test_tls_that_an_external_host_refuses_is_the_destination_rules_fault",
    "MNB236": "test_a_port_that_a_service_entry_does_not_have_is_blocked",
    "MNB237": "test_a_tcp_service_entry_without_addresses_takes_what_is_for_others",
    "MNB238": "test_two_service_entries_for_a_host_must_agree",
    "MNB239": "test_an_address_of_istios_dns_that_the_proxy_does_not_know_leads_nowhere",
    "MNB240": "test_plain_text_to_a_port_for_https_is_the_service_entrys_fault",
    "MNB250": "test_a_fault_of_an_unknown_kind_is_blamed_on_what_changed_right_before",
    "MNB251": "test_a_fault_of_an_unknown_kind_is_blamed_on_what_changed_right_before",
    "MNB260": "test_a_secret_for_another_cluster_needs_its_label",
    "MNB261": "test_endpoints_of_a_network_without_a_gateway_time_out",
    "MNB262": "test_clusters_without_a_common_root_do_not_trust_each_other",
    "MNB263": "test_a_gateway_between_networks_must_pass_on_by_server_name",
    "MNB270": "test_two_services_must_agree_on_the_protocol_of_a_pods_port",
    "MNB280": "test_failover_without_outlier_detection_does_nothing",
    "MNB281": "test_failover_between_regions_that_no_node_names_does_nothing",
    "MNB282": "test_a_destination_whose_weight_was_left_out_gets_nothing",
    "MNB283": "test_a_hash_that_sends_all_to_one_endpoint_is_worth_knowing",
    "MNB305": "test_a_gateway_port_that_no_service_leads_to_is_found",
    "MNB306": "test_a_load_balancer_that_the_cloud_refuses_is_found_in_events",
    "MNB307": "test_a_port_that_a_gateway_does_not_open_is_found",
    "MNB320": "test_a_virtual_service_without_gateways_is_for_sidecars_only",
    "MNB321": "test_a_host_that_is_written_with_a_slip_is_found",
    "MNB323": "test_the_wrong_scheme_at_a_gateway_is_the_clients_matter",
    "MNB324": "test_a_connection_that_is_reused_for_another_gateways_host_gets_404",
    "MNB325": "test_http_and_tls_on_one_port_conflict",
    "MNB326": "test_tls_routes_at_a_server_for_http_are_not_used",
    "MNB327": "test_a_port_below_1024_is_not_opened_by_pods_without_privileges",
    "MNB328": "test_an_ingress_of_no_class_of_istio_is_not_served",
    "MNB329": "test_a_virtual_service_that_the_gateways_pods_do_not_see_is_not_used",
    "MNB353": "test_a_gateway_of_a_class_that_does_not_exist_is_made_by_nobody",
    "MNB354": "test_a_gateway_without_pods_is_found",
    "MNB355": "test_a_path_that_no_rule_of_a_route_matches_is_the_routes_fault",
    "MNB356": "test_of_two_routes_that_match_the_same_the_older_wins",
    "MNB357": "test_a_policy_that_selects_a_waypoint_by_labels_is_not_enforced",
    "MNB430": "test_a_port_level_mode_for_the_port_of_the_service_has_no_effect",
    "MNB431": "test_the_newer_of_two_peer_authentications_for_a_namespace_has_no_effect",
    "MNB432": "test_tls_to_a_port_where_a_policy_turned_it_off_is_the_policys_matter",
    "MNB440": "test_pods_that_are_called_by_address_in_plain_text_are_found",
    "MNB441": "test_a_headless_service_with_another_port_than_its_pods_is_found",
    "MNB442": "test_a_client_that_is_told_to_go_past_its_sidecar_is_found",
    "MNB443": "test_automatic_mutual_tls_that_is_switched_off_meets_a_strict_server",
    "MNB444": "test_tls_to_a_port_that_is_declared_as_http_is_the_service_entrys_matter",
    "MNB445": "test_tls_around_tls_is_the_destination_rules_matter",
    "MNB450": "test_one_proxy_with_another_root_is_refused_and_refuses",
    "MNB451": "test_a_rule_that_expects_another_name_is_blamed",
    "MNB452": "test_a_proxy_without_a_certificate_is_found_by_what_its_agent_says",
    "MNB453": "test_an_incomplete_authority_keeps_istiod_from_starting",
    "MNB454": "test_a_root_that_ends_soon_is_said_in_time",
    "MNB455": "test_a_host_of_mutual_tls_that_is_reached_through_another_one_is_found",
    "MNB503": "test_what_turns_mutual_tls_off_is_blamed_when_identities_are_lost",
    "MNB505": "test_a_policy_for_pods_that_do_not_exist_was_meant_for_others",
    "MNB506": "test_two_rules_that_are_halves_of_one_let_strangers_in",
    "MNB507": "test_a_policy_that_is_only_tried_lets_pass_what_it_would_refuse",
    "MNB508": "test_a_path_that_a_policy_refuses_is_served_in_another_spelling",
    "MNB509": "test_a_principal_that_nobody_has_but_somebody_nearly_is_a_warning",
    "MNB510": "test_an_expired_token_is_the_callers_matter",
    "MNB511": "test_keys_that_istiod_could_not_fetch_are_a_warning_where_nobody_was_refused_yet",
    "MNB512": "test_tokens_that_are_verified_but_not_demanded_protect_nothing",
    "MNB513": "test_a_gateway_that_routes_by_claims_verifies_tokens",
    "MNB530": "test_a_policy_that_asks_a_provider_that_the_mesh_does_not_define_denies_all",
    "MNB531": "test_a_provider_that_cannot_be_asked_is_named_by_what_is_wrong_with_it",
    "MNB532": "test_a_provider_that_refuses_everybody_since_a_moment_ago_is_a_problem",
    "MNB550": "test_a_wasm_module_that_is_missing_refuses_everybody",
    "MNB551": "test_a_caller_of_a_former_trust_domain_is_told_from_a_wrong_name",
    "MNB552": "test_a_policy_that_a_proxy_does_not_hold_has_no_effect",
    "MNB553": "test_rules_of_an_envoy_filter_are_found_behind_a_refusal",
    "MNB603": "test_configuration_that_is_not_acknowledged_is_late",
    "MNB605": "test_a_workload_certificate_that_was_not_renewed_breaks_mutual_tls",
    "MNB610": "test_a_proxy_that_gets_no_configuration_says_why",
    "MNB611": "test_a_proxy_that_gets_no_configuration_says_why",
    "MNB612": "test_a_proxy_that_gets_no_configuration_says_why",
    "MNB613": "test_a_proxy_that_gets_no_configuration_says_why",
    "MNB614": "test_a_proxy_that_gets_no_configuration_says_why",
    "MNB615": "test_a_proxy_that_gets_no_configuration_says_why",
    "MNB616": "test_a_proxy_that_waits_for_a_secret_says_so",
    "MNB617": "test_proxies_that_follow_the_old_revision_are_found",
    "MNB620": "test_a_filter_that_no_proxy_holds_has_no_effect",
    "MNB621": "test_a_filter_chain_without_filters_is_the_envoy_filters_fault",
    "MNB622": "test_a_provider_that_is_no_service_is_the_mesh_settings_fault",
    "MNB623": "test_the_younger_of_two_telemetries_has_no_effect",
    "MNB624": "test_a_mesh_without_an_access_log_says_so",
    "MNB640": "test_a_service_that_is_exported_to_others_is_not_known_to_its_callers",
    "MNB680": "test_an_istiod_that_is_behind_is_named_with_the_proxies_it_serves",
    "MNB681": "test_what_was_made_of_a_deleted_object_is_found_in_the_proxies",
    "MNB714": "test_connections_to_an_address_without_a_pod_time_out",
    "MNB720": "test_an_application_that_fails_is_told_by_its_proxys_counters",
    "MNB721": "test_a_port_declared_as_grpc_that_keeps_no_connection_is_told_by_counters",
    "MNB722": "test_a_policy_that_refuses_more_than_it_admits_is_a_guess",
    "MNB723": "test_bytes_that_a_proxy_passed_on_to_an_http_port_are_told_by_counters",
    "MNB724": "test_a_service_that_a_sidecar_hides_from_all_is_told_by_what_it_served",
    "MNB750": "test_a_job_whose_sidecar_goes_on_never_completes",
    "MNB751": "test_an_init_container_that_cannot_set_the_traffic_rules_is_found",
    "MNB752": "test_a_pod_that_came_before_the_cni_plugin_is_told_by_its_validation",
    "MNB753": "test_a_sandbox_that_the_cni_plugin_blocks_is_its_agents_fault",
    "MNB754": "test_an_init_container_before_the_proxy_has_no_network",
    "MNB755": "test_probes_in_plain_text_meet_mutual_tls",
    "MNB756": "test_a_proxy_that_was_killed_for_its_memory_is_found",
    "MNB757": "test_a_liveness_probe_that_fails_again_and_again_is_found",
    "MNB770": "test_an_application_that_runs_as_the_proxy_is_cut_off",
    "MNB771": "test_ports_that_a_new_version_takes_out_of_the_sidecars_hands_are_found",
    "MNB772": "test_metrics_that_cannot_be_scraped_are_the_servers_own_matter",
    "MNB803": "test_a_client_that_speaks_no_http_is_found",
    "MNB804": "test_some_answers_that_are_no_valid_http_are_the_applications_matter",
    "MNB805": "test_a_request_that_a_proxy_refuses_by_itself_is_its_clients_matter",
    "MNB806": "test_grpc_on_a_port_that_is_declared_as_http_is_the_services_matter",
    "MNB807": "test_http_routes_to_a_port_that_is_declared_as_tcp_have_no_effect",
    "MNB808": "test_bytes_that_a_proxy_passes_on_unread_are_no_http",
    "MNB820": "test_a_port_of_another_protocol_that_is_declared_as_http_lets_nobody_through",
    "MNB830": "test_an_application_outside_the_mesh_that_ends_connections_is_named",
    "MNB831": "test_a_port_of_istio_that_an_application_uses_is_found",
    "MNB832": "test_a_service_that_sends_to_a_port_by_its_name_finds_it",
    "MNB834": "test_clients_that_all_leave_after_the_same_time_have_a_time_out",
    "MNB835": "test_a_server_that_logs_nothing_is_named_as_a_guess",
    "MNB851": "test_a_connection_pool_that_is_full_turns_requests_away",
    "MNB852": "test_outlier_detection_that_ejects_every_endpoint_leaves_none",
    "MNB904": "test_a_stranger_to_a_strict_ambient_server_is_found",
    "MNB905": "test_a_rule_for_http_that_ztunnel_drops_is_found",
    "MNB906": "test_a_denial_by_http_that_denies_nothing_is_found",
    "MNB907": "test_a_network_policy_without_the_tunnels_port_is_found",
    "MNB920": "test_a_pod_that_the_node_agent_forgot_is_found",
    "MNB925": "test_a_ztunnel_that_is_not_ready_is_found",
    "MNB926": "test_an_identity_that_nobody_signs_is_found",
    "MNB930": "test_a_waypoint_that_is_not_ready_is_found",
    "MNB931": "test_a_policy_for_a_service_without_a_waypoint_is_found",
    "MNB932": "test_a_policy_that_selects_a_waypoint_by_labels_is_found",
    "MNB933": "test_a_route_for_an_ambient_service_without_a_waypoint_is_found",
}
#: How a remedy without a command begins.
IMPERATIVES = ("Admit", "Add", "Correct", "Give", "Let", "Make", "Move", "Set", "Take")

Register = Callable[[Callable[..., Iterator[Finding]]], object]


@cache
def diagnosis_of(name: str) -> Diagnosis:
    """Return the diagnosis of a recording, made once."""
    return diagnose(facts_of(name))


def outcomes_of(diagnosis: Diagnosis) -> dict[str, Outcome]:
    """Return the outcome of each check by its code."""
    return {outcome.check.code: outcome for outcome in diagnosis.outcomes}


# --- Codes, words and inputs --------------------------------------------------------------------


def _range(family: Any) -> range:
    named = re.search(r"Codes MNB(\d{3,4}) to MNB(\d{3,4})\.", family.__doc__ or "")
    assert named is not None, f"{family.__name__} names no codes"
    return range(int(named[1]), int(named[2]) + 1)


def test_each_family_has_codes_of_its_own() -> None:
    numbers = [number for family in FAMILIES for number in _range(family)]
    assert len(numbers) == len(set(numbers))
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__.rpartition(".")[2])
def test_the_codes_of_a_family_lie_in_the_range_that_its_module_names(family: Any) -> None:
    name = family.__name__.rpartition(".")[2]
    codes = [one.code for one in CHECKS.values() if one.family == name]
    assert codes
    for code in codes:
        assert re.fullmatch(r"MNB[1-9]\d{2,3}", code)
        assert int(code.removeprefix("MNB")) in _range(family)


def test_the_list_of_families_says_where_the_codes_of_each_begin() -> None:
    import meshnb.checks  # noqa: PLC0415  its docstring is the subject

    begins = re.compile(r"^MNB(\d{3,4}) ", re.MULTILINE)
    listed = begins.findall(meshnb.checks.__doc__ or "")
    assert listed == [str(_range(family).start) for family in FAMILIES]


def test_every_check_of_every_module_is_in_the_catalogue_under_its_own_code_and_name() -> None:
    assert dict(CHECKS) == CATALOGUE
    assert [one.code for one in CHECKS.values()] == list(CHECKS)
    names = [(one.family, one.name) for one in CHECKS.values()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("one", CHECKS.values(), ids=lambda one: one.code)
def test_a_check_has_a_sentence_for_a_title_a_reason_and_known_inputs(one: Check) -> None:
    assert re.fullmatch(r"[A-Z][^.!?\n]*\.", one.title), one.title
    assert len(one.title) <= 100
    assert one.why.endswith((".", "…"))
    assert len(one.why.split()) > 3
    assert "\n" not in one.why
    assert set(one.inputs) <= {*TABLES, *TRACES, "symptoms", "facts"}
    assert set(one.tables) <= set(TABLES)
    assert one.tables


# --- Declarations that are refused --------------------------------------------------------------


@pytest.fixture
def unchanged() -> Iterator[None]:
    """Assert that the catalogue is the same after a test as before."""
    before = dict(CATALOGUE)
    yield
    assert before == CATALOGUE


def _documented(symptoms: Any) -> Iterator[Finding]:
    """All is well.

    It matters.
    """
    yield from ()


def _titled(symptoms: Any) -> Iterator[Finding]:
    """All is well."""
    yield from ()


def _silent(symptoms: Any) -> Iterator[Finding]:
    yield from ()


def _curious(weather: Any) -> Iterator[Finding]:
    """All is well.

    It matters.
    """
    yield from ()


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("code", "function", "complaint"),
    [
        ("MNB210", _documented, "MNB210 is taken by route_to_missing_subset"),
        ("MNB998", _titled, "lacks a title or a reason"),
        ("MNB998", _silent, "lacks a title or a reason"),
        ("MNB998", _curious, "asks for 'weather', which is no table and no trace"),
    ],
)
def test_a_check_that_is_declared_wrongly_cannot_be_imported(
    code: str, function: Callable[..., Iterator[Finding]], complaint: str
) -> None:
    register: Register = check(code, Severity.INFO, cause=Cause.DATA_PLANE)
    with pytest.raises(CatalogueError, match=re.escape(complaint)):
        register(function)


# --- What fires, and what does not --------------------------------------------------------------


def test_every_check_fires_on_a_recording_or_on_an_altered_one() -> None:
    fired = {cause.check.code for name in recording_names() for cause in diagnosis_of(name).causes}
    of_faults = {one.code for one in CHECKS.values() if not one.lint}
    assert of_faults - fired == set(ON_ALTERED_RECORDINGS)


@pytest.mark.parametrize(("code", "name"), ON_ALTERED_RECORDINGS.items())
def test_the_test_of_an_altered_recording_is_about_the_check(code: str, name: str) -> None:
    functions = {
        node.name: node
        for file in ALTERED
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    words = [one.value for one in ast.walk(functions[name]) if isinstance(one, ast.Constant)]
    assert code in words


@pytest.mark.parametrize("name", HEALTHY)
def test_no_check_fires_above_info_on_a_healthy_mesh(name: str) -> None:
    for outcome in diagnosis_of(name).outcomes:
        assert outcome.verdict is not Verdict.BROKEN, outcome.because
        for finding in outcome.findings:
            assert (finding.severity or outcome.check.severity) is Severity.INFO, finding.message


@pytest.mark.parametrize("name", recording_names())
def test_every_finding_says_what_where_why_and_what_next(name: str) -> None:
    diagnosis = diagnosis_of(name)
    known = {symptom.id for symptom in diagnosis.symptoms}
    for outcome in diagnosis.outcomes:
        for finding in outcome.findings:
            where = f"{outcome.check.code}: {finding.message} {finding.remedy}"
            for subject in (finding.subject, *finding.related):
                assert subject.kind, where
                assert subject.name, where
            for text in (finding.message, finding.remedy):
                assert text.isprintable(), where
                assert text.endswith("."), where
                assert "  " not in text, where
                assert not re.search(r"\bNone\b(?! of)", text), where
                assert "nan" not in text.split(), where
            assert finding.remedy.count("`") % 2 == 0, where
            assert "`" in finding.remedy or finding.remedy.startswith(IMPERATIVES), where
            assert set(finding.explains) <= known, where
            assert len(finding.explains) == len(set(finding.explains)), where
            assert 0 < finding.certainty <= 1, where
            assert_proved(diagnosis, finding, where)
            # Of the kinds of objects that checks of what is written are about, some have no table.
            if not outcome.check.lint:
                assert sum(len(evidence.rows) for evidence in finding.evidence) > 0, where


def assert_proved(diagnosis: Diagnosis, finding: Finding, where: str) -> None:
    """Assert that a finding's proof are rows of tables, each with a known question."""
    for evidence in finding.evidence:
        table = diagnosis.facts[evidence.table]
        assert list(evidence.rows.columns) == list(table.columns), where
        assert set(evidence.rows.index) <= set(table.index), where
        for question in evidence.rows["question"]:
            assert str(diagnosis.facts.question(question)) == question, where


@pytest.mark.parametrize("name", recording_names())
def test_what_explains_a_symptom_shows_its_rows(name: str) -> None:
    """The rows of each symptom that a finding explains are part of the finding's proof.

    Not those of what callers saw of a server's failure: the server's rows prove both.
    """
    diagnosis = diagnosis_of(name)
    for cause in diagnosis.causes:
        shown = {
            (evidence.table, index)
            for evidence in cause.finding.evidence
            for index in evidence.rows.index
        }
        for symptom in cause.explains:
            if symptom.details != "via_upstream":
                assert {(symptom.table, row) for row in symptom.rows} <= shown, symptom.message


def test_names_that_a_terminal_would_obey_are_spelled_out_in_findings(tmp_path: Path) -> None:
    """Altered: the missing subset's name clears the screen, ends the line and turns it round."""

    def rename(service: dict[str, Any]) -> None:
        for route in service["spec"]["http"]:
            for target in route["route"]:
                target["destination"]["subset"] = "v3\x1b[2J\u202e\r\nAll is well."

    altered = Altered("subset-missing", tmp_path).each("virtualservices", "reviews", rename)
    first = diagnose(altered.facts()).problems[0]

    assert first.check.code == "MNB210"
    assert r"v3\x1b[2J\u202e All is well." in first.finding.message
    assert (first.finding.message + first.finding.remedy + first.mechanism).isprintable()


# --- Broken checks ------------------------------------------------------------------------------


def _raises(**_: Any) -> Iterator[Finding]:
    raise KeyError("line one\nline two")


def test_a_check_that_raises_is_broken_and_the_others_go_on() -> None:
    checks = [
        replace(one, function=_raises) if one.code == "MNB101" else one for one in CHECKS.values()
    ]
    diagnosis = diagnose(facts_of("subset-missing"), checks)
    outcomes = outcomes_of(diagnosis)

    assert outcomes["MNB101"].verdict is Verdict.BROKEN
    assert outcomes["MNB101"].because == r"KeyError: 'line one\nline two'"
    assert outcomes["MNB210"].verdict is Verdict.FAIL
    assert len(outcomes) == len(CHECKS)
    assert outcomes["MNB101"] in diagnosis.unknown


def test_a_check_that_raises_halfway_loses_what_it_had_found() -> None:
    def halfway(**_: Any) -> Iterator[Finding]:
        yield Finding(Subject("Pod", "shop", "web"), "Found.", "Look.")
        raise ValueError("no more")

    broken = replace(CHECKS["MNB101"], function=halfway)
    (outcome,) = run(Inputs(facts_of("healthy")), [broken])

    assert (outcome.verdict, outcome.findings) == (Verdict.BROKEN, ())
    assert outcome.because == "ValueError: no more"


# --- Missing evidence ---------------------------------------------------------------------------

#: Lists without which something may seem not to be there.
LISTS = (
    "authorizationpolicies",
    "deployments",
    "destinationrules",
    "endpointslices",
    "gateways",
    "mutatingwebhookconfigurations",
    "namespaces",
    "peerauthentications",
    "pods",
    "replicasets",
    "secrets",
    "serviceaccounts",
    "serviceentries",
    "services",
    "sidecars",
    "virtualservices",
)


def assert_nothing_passes_unseen(diagnosis: Diagnosis, question: str) -> None:
    """Assert that each check that wants a missing answer says so, and none is content without."""
    assert any(question in str(gap) for gap in diagnosis.missing)
    for outcome in diagnosis.outcomes:
        if outcome.verdict is Verdict.PASS:
            assert outcome.gaps == (), outcome.check.code
        if outcome.verdict is Verdict.UNKNOWN:
            assert question in outcome.because, outcome.check.code
        assert outcome.verdict is not Verdict.BROKEN, outcome.because


@pytest.mark.parametrize("resource", LISTS)
def test_a_list_that_is_forbidden_makes_no_alarm_and_no_pass(resource: str, tmp_path: Path) -> None:
    """Altered: the API server refuses one list with 403."""
    altered = Altered("healthy", tmp_path)
    altered.silence("forbidden", status=403, kind="list", resource=resource)
    diagnosis = diagnose(altered.facts())

    assert [cause.finding.message for cause in diagnosis.problems] == []
    assert_nothing_passes_unseen(diagnosis, resource)


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        ("authz-allow-nobody", "authorizationpolicies"),
        ("duplicate-virtualservice", "virtualservices"),
        ("gateway-name-wrong", "virtualservices"),
        ("gateway-secret-missing", "secrets"),
        ("mtls-client-disable", "destinationrules"),
        ("mtls-strict-legacy-client", "peerauthentications"),
        ("revision-unknown", "namespaces"),
        ("route-host-unknown", "serviceentries"),
        ("service-selector-wrong", "services"),
        ("sidecar-hides-host", "sidecars"),
    ],
)
def test_no_check_passes_that_would_fail_if_it_saw_all(
    name: str, resource: str, tmp_path: Path
) -> None:
    """Altered: the API server refuses the list that shows the fault, or what shows it to be one."""
    altered = Altered(name, tmp_path)
    altered.silence("forbidden", status=403, kind="list", resource=resource)
    passed = {one.check.code for one in diagnose(altered.facts()).ruled_out}

    assert passed.isdisjoint(cause.check.code for cause in diagnosis_of(name).problems)


@pytest.mark.parametrize(
    ("name", "resource", "code"),
    [
        ("gateway-secret-missing", "secrets", "MNB304"),
        ("gateway-selector-wrong", "pods", "MNB301"),
        ("istiod-down", "pods", "MNB101"),
        ("revision-unknown", "mutatingwebhookconfigurations", "MNB150"),
        ("route-host-unknown", "services", "MNB201"),
        ("service-selector-wrong", "pods", "MNB701"),
    ],
)
def test_what_was_never_asked_for_is_not_said_to_be_missing(
    name: str, resource: str, code: str, tmp_path: Path
) -> None:
    """Altered: the list that would show the missing object was never asked for."""
    diagnosis = diagnose(Altered(name, tmp_path).forget(kind="list", resource=resource).facts())
    outcome = outcomes_of(diagnosis)[code]

    assert (outcome.verdict, outcome.findings) == (Verdict.UNKNOWN, ())
    assert f"list {resource}" in outcome.because
    assert "was never asked" in outcome.because


@pytest.mark.parametrize(
    ("name", "resource", "code"),
    [
        ("gateway-name-wrong", "gateways", "MNB302"),
        ("httproute-parent-wrong", "gateways", "MNB351"),
        ("mtls-strict-legacy-client", "peerauthentications", "MNB404"),
        ("route-host-unknown", "serviceentries", "MNB201"),
        ("waypoint-missing", "gateways", "MNB903"),
    ],
)
def test_what_may_not_be_seen_is_not_said_to_be_missing(
    name: str, resource: str, code: str, tmp_path: Path
) -> None:
    """Altered: the list that would show the missing object is forbidden."""
    altered = Altered(name, tmp_path)
    altered.silence("forbidden", status=403, kind="list", resource=resource)
    outcome = outcomes_of(diagnose(altered.facts()))[code]

    assert (outcome.verdict, outcome.findings) == (Verdict.UNKNOWN, ())
    assert re.search(f"LIST [a-z0-9./]+/{resource}: lacks permission .*forbidden", outcome.because)


def test_a_missing_subset_is_proved_by_the_failures_where_the_rules_may_not_be_read(
    tmp_path: Path,
) -> None:
    """Altered: DestinationRules are forbidden, and requests fail for want of a cluster."""
    altered = Altered("subset-missing", tmp_path)
    altered.silence("forbidden", status=403, kind="list", resource="destinationrules")

    assert diagnose(altered.facts()).problems[0].check.code == "MNB210"


def test_a_refused_list_is_named_with_its_group(tmp_path: Path) -> None:
    """Altered: 403 for DestinationRules."""
    altered = Altered("healthy", tmp_path)
    altered.silence("forbidden", status=403, kind="list", resource="destinationrules")
    outcomes = outcomes_of(diagnose(altered.facts()))

    for code in ("MNB210", "MNB211"):
        assert outcomes[code].verdict is Verdict.UNKNOWN
        assert outcomes[code].because == (
            "LIST networking.istio.io/v1/destinationrules: lacks permission to list "
            "destinationrules.networking.istio.io in all namespaces (forbidden)"
        )


def test_a_proxy_that_does_not_answer_is_named_by_the_checks_that_wanted_it(tmp_path: Path) -> None:
    """Altered: the client's config dump timed out."""
    altered = Altered("healthy", tmp_path)
    altered.silence("timed out", kind="http", pod="client", path="/config_dump?include_eds")
    diagnosis = diagnose(altered.facts())
    question = "GET bookinfo/client:15000/config_dump?include_eds"

    assert_nothing_passes_unseen(diagnosis, f"{question}: timed out")
    unknown = {outcome.check.code for outcome in diagnosis.unknown}
    assert {"MNB210", "MNB304", "MNB401", "MNB605", "MNB802"} <= unknown
    assert outcomes_of(diagnosis)["MNB220"].verdict is Verdict.PASS
    assert diagnosis.problems == ()


def test_a_log_that_may_not_be_read_leaves_failures_unseen(tmp_path: Path) -> None:
    """Altered: 403 for the log of one sidecar."""
    altered = Altered("healthy", tmp_path)
    altered.silence("forbidden", status=403, kind="log", pod="client", container="istio-proxy")
    diagnosis = diagnose(altered.facts())

    assert_nothing_passes_unseen(diagnosis, "LOG bookinfo/client istio-proxy: lacks permission")
    assert diagnosis.verdict == "unknown"


def test_something_worth_knowing_is_no_answer_while_evidence_is_missing(tmp_path: Path) -> None:
    """Altered: a subset without pods that no route uses, and endpoints that were not recorded."""
    subset = {"name": "v9", "labels": {"version": "v9"}}
    altered = Altered("healthy", tmp_path)
    altered.each("destinationrules", "reviews", lambda one: one["spec"]["subsets"].append(subset))
    assert outcomes_of(diagnose(altered.facts()))["MNB211"].verdict is Verdict.FAIL

    altered.silence("timed out", kind="http", pod="client", path="/clusters?format=json")
    outcome = outcomes_of(diagnose(altered.facts()))["MNB211"]
    assert outcome.verdict is Verdict.UNKNOWN
    assert "GET bookinfo/client:15000/clusters" in outcome.because
    assert [finding.severity for finding in outcome.findings] == [Severity.INFO]


# --- Damaged bundles ----------------------------------------------------------------------------


def _lost(altered: Altered) -> None:
    altered.lose(kind="list", resource="networkpolicies")


def _garbled(altered: Altered) -> None:
    altered.garble(kind="list", resource="networkpolicies")


@pytest.mark.parametrize("damage", [_lost, _garbled])
def test_a_damaged_bundle_serves_the_rest_and_lets_nothing_pass(
    damage: Callable[[Altered], None], tmp_path: Path
) -> None:
    """Altered: one file is missing, or one line of the index is cut off."""
    altered = Altered("healthy", tmp_path)
    damage(altered)
    diagnosis = diagnose(altered.facts())

    assert len(diagnosis.facts["pods"]) == len(facts_of("healthy")["pods"])
    assert diagnosis.problems == ()
    assert diagnosis.verdict == "unknown"
    for outcome in diagnosis.outcomes:
        assert outcome.verdict is Verdict.UNKNOWN, outcome.check.code
        assert outcome.because, outcome.check.code
    assert "networkpolicies" in outcomes_of(diagnosis)["MNB714"].because


@pytest.mark.parametrize("damage", [_lost, _garbled])
def test_a_fault_is_found_in_what_is_left_of_a_damaged_bundle(
    damage: Callable[[Altered], None], tmp_path: Path
) -> None:
    """Altered: as above. Nothing passes; what is ruled out are guesses that the fault replaces."""
    altered = Altered("subset-missing", tmp_path)
    damage(altered)
    diagnosis = diagnose(altered.facts())

    assert [str(cause.subject) for cause in diagnosis.problems] == [
        "VirtualService bookinfo/reviews"
    ]
    assert outcomes_of(diagnosis)["MNB210"].verdict is Verdict.FAIL
    for outcome in diagnosis.ruled_out:
        assert outcome.verdict is Verdict.FAIL, outcome.check.code
        assert all(finding.certainty < SURE for finding in outcome.findings), outcome.check.code
