"""Envoy's matchers, kind by kind, as its reference describes them."""

from __future__ import annotations

from typing import Any

import pytest

from meshnb.traces.envoy.matchers import (
    Headers,
    NormalPath,
    Truth,
    Undecided,
    both,
    either,
    header_words,
    matches_address,
    matches_header,
    matches_parameter,
    matches_path,
    matches_text,
    matches_value,
    normal_path,
    opposite,
    sampled,
    share_of,
    text_words,
    value_words,
)
from meshnb.traces.envoy.re2 import NotFollowed, full_match

_UNKNOWN = Undecided("it is not in the log")


def _told(truth: Truth) -> bool | None:
    return None if isinstance(truth, Undecided) else truth


def test_what_is_not_known_has_no_truth_by_accident() -> None:
    with pytest.raises(TypeError, match="it is not in the log"):
        bool(_UNKNOWN)


def test_one_that_is_false_decides_whatever_is_not_known() -> None:
    assert both([_UNKNOWN, False]) is False
    assert both([True, _UNKNOWN]) is _UNKNOWN
    assert either([_UNKNOWN, True]) is True
    assert either([False, _UNKNOWN]) is _UNKNOWN
    assert both([_UNKNOWN, True, Undecided("nor in another one")]) is _UNKNOWN
    assert either([_UNKNOWN, False, Undecided("nor in another one")]) is _UNKNOWN
    assert opposite(_UNKNOWN) is _UNKNOWN
    assert (both([]), either([]), opposite(True)) == (True, False, False)


@pytest.mark.parametrize(
    ("matcher", "text", "truth"),
    [
        ({"exact": "abc"}, "abc", True),
        ({"exact": "abc"}, "ABC", False),
        ({"exact": "abc", "ignore_case": True}, "ABC", True),
        ({"exact": "straße", "ignore_case": True}, "STRASSE", False),
        ({"exact": "é", "ignore_case": True}, "É", False),
        ({"prefix": "ab"}, "abc", True),
        ({"prefix": "AB", "ignore_case": True}, "abc", True),
        ({"suffix": "bc"}, "abc", True),
        ({"suffix": "ab"}, "abc", False),
        ({"contains": "b"}, "abc", True),
        ({"contains": "B", "ignore_case": True}, "abc", True),
        ({"safe_regex": {"regex": "a.c"}}, "abc", True),
        ({"safe_regex": {"regex": "b"}}, "abc", False),
        ({"safe_regex": {"regex": "A.C"}, "ignore_case": True}, "abc", False),
        ({"safe_regex": {"google_re2": {}, "regex": "a(?=b).*"}}, "abc", None),
        ({"custom": {"name": "mine"}}, "abc", None),
    ],
)
def test_a_text_is_matched_as_envoy_does(
    matcher: dict[str, Any], text: str, truth: bool | None
) -> None:
    assert _told(matches_text(matcher, text)) is truth


@pytest.mark.parametrize(
    ("expression", "text", "truth"),
    [
        ("", "", True),
        ("a|b|", "", True),
        ("(a|ab)(c|bcd)", "abcd", True),
        ("a{2,3}", "aaa", True),
        ("a{2,3}", "aaaa", False),
        ("a{2,}b", "aaaab", True),
        ("(?:ab){2}", "abab", True),
        ("a{,2}", "a{,2}", True),
        ("x*?y", "xxy", True),
        ("[^/]+", "a/b", False),
        ("[a-c\\d]+", "a1c", True),
        ("[]a]+", "]a", True),
        ("[[:digit:]x]+", "1x2", True),
        ("(?i)ABC", "abc", True),
        ("a(?i:B)c", "abc", True),
        ("a(?i:B)c", "abC", False),
        ("^a$", "a", True),
        ("\\bword\\b", "word", True),
        ("\\Qa.b\\E", "a.b", True),
        ("\\Qa.b\\E", "axb", False),
        ("\\x41\\x{42}\\103", "ABC", True),
        ("\\w+\\s\\D", "ab x", True),
        (".", "\n", False),
        ("(?s).", "\n", True),
        ("(?P<name>a)", "a", True),
        ("(a*)*b", "a" * 40, False),
        ("(x+x+)+y", "x" * 200, False),
    ],
)
def test_a_regular_expression_is_matched_whole_and_in_linear_time(
    expression: str, text: str, truth: bool
) -> None:
    assert full_match(expression, text) is truth


@pytest.mark.parametrize(
    "expression",
    [
        *("a(?=b)", "(a)\\1", "a**", "*a", "(a", "a)", "[a", "a{2}{3}", "a{1001}", "\\pL", "(?#x)"),
        *("a++", "((a{100}){100}){100}", "(" * 300 + ")" * 300, "[z-a]", "\\", "\\Z", "[[:no:]]"),
        "(?P<a",
    ],
)
def test_what_is_no_re2_or_not_followed_is_not_guessed(expression: str) -> None:
    with pytest.raises(NotFollowed):
        full_match(expression, "aaaa")


_SENT = Headers({"x": "abc", "n": "12", "gone": None, "empty": ""})


@pytest.mark.parametrize(
    ("matcher", "truth"),
    [
        ({"name": "X", "string_match": {"exact": "abc"}}, True),
        ({"name": "x", "exact_match": "abc"}, True),
        ({"name": "x", "prefix_match": "ab"}, True),
        ({"name": "x", "suffix_match": "ab"}, False),
        ({"name": "x", "contains_match": "b"}, True),
        ({"name": "x", "safe_regex_match": {"regex": "a.*"}}, True),
        ({"name": "x", "string_match": {"exact": "abc"}, "invert_match": True}, False),
        ({"name": "n", "range_match": {"start": "10", "end": "12"}}, False),
        ({"name": "n", "range_match": {"start": "12", "end": "13"}}, True),
        ({"name": "x", "range_match": {"end": "13"}}, False),
        ({"name": "x", "present_match": True}, True),
        ({"name": "x"}, True),
        ({"name": "gone"}, False),
        ({"name": "gone", "present_match": False}, True),
        ({"name": "gone", "present_match": True, "invert_match": True}, True),
        ({"name": "gone", "string_match": {"exact": "a"}, "invert_match": True}, False),
        (
            {
                "name": "gone",
                "string_match": {"exact": "a"},
                "invert_match": True,
                "treat_missing_header_as_empty": True,
            },
            True,
        ),
        ({"name": "empty", "string_match": {"exact": ""}}, True),
        ({"name": "other", "string_match": {"exact": "a"}}, None),
        ({"name": "x", "later_match": 1}, None),
    ],
)
def test_headers_are_matched_as_envoy_does(matcher: dict[str, Any], truth: bool | None) -> None:
    assert _told(matches_header(matcher, _SENT)) is truth


def test_a_header_that_nobody_sent_is_known_to_be_absent_only_of_a_whole_request() -> None:
    matcher = {"name": "end-user", "string_match": {"exact": "jason"}}
    assert matches_header(matcher, Headers({}, complete=True)) is False
    assert matches_header(matcher, Headers({})) == Undecided("the header end-user is not known")


@pytest.mark.parametrize(
    ("matcher", "path", "truth"),
    [
        ({"name": "a", "string_match": {"exact": "1"}}, "/?a=1", True),
        ({"name": "a", "string_match": {"exact": "1"}}, "/?a=2&a=1", False),
        ({"name": "a", "string_match": {"exact": "%31"}}, "/?a=%31", True),
        ({"name": "a", "present_match": True}, "/?a", True),
        ({"name": "a", "present_match": False}, "/?b=1", True),
        ({"name": "a"}, "/?b=1", False),
    ],
)
def test_a_parameter_of_the_query_is_compared_as_it_was_sent(
    matcher: dict[str, Any], path: str, truth: bool
) -> None:
    assert matches_parameter(matcher, path) is truth


def test_the_query_is_no_part_of_the_path() -> None:
    assert matches_path({"path": {"exact": "/a"}}, "/a?b=/c#d") is True


_NORMAL = {"normalize_path": True}
_MERGED = {**_NORMAL, "merge_slashes": True}
_UNESCAPED = {**_NORMAL, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD"}


@pytest.mark.parametrize(
    ("path", "manager", "normal"),
    [
        ("/a/../b?c=/../d", _NORMAL, "/b?c=/../d"),
        ("/a/./%2E%2e/b", _NORMAL, "/b"),
        ("/../a", _NORMAL, "/a"),
        ("/a/..", _NORMAL, "/"),
        ("/%61%2Fb", _NORMAL, "/a%2Fb"),
        ("/a\\b", _NORMAL, "/a/b"),
        ("/a//b", _NORMAL, "/a//b"),
        ("/a//b", _MERGED, "/a/b"),
        ("/a%2fb", _UNESCAPED, "/a/b"),
        ("/a/../b", {}, "/a/../b"),
        ("/a{b}%zz", _NORMAL, "/a%7Bb%7D%zz"),
        ("*", _NORMAL, "*"),
    ],
)
def test_a_path_is_normalised_as_its_connection_manager_says(
    path: str, manager: dict[str, Any], normal: str
) -> None:
    assert normal_path(path, manager) == NormalPath(normal)


def test_a_path_that_is_not_accepted_is_answered_at_once() -> None:
    action = "path_with_escaped_slashes_action"
    refused = normal_path("/a%2Fb", {action: "REJECT_REQUEST"})
    moved = normal_path("/a%2Fb", {action: "UNESCAPE_AND_REDIRECT"})
    assert isinstance(refused, NormalPath)
    assert isinstance(moved, NormalPath)
    assert (refused.status, moved.status, moved.path) == (400, 307, "/a/b")
    assert normal_path("/%00", _NORMAL) == NormalPath("/%00", 400, "path_normalization_failed")


def test_a_path_with_odd_characters_is_not_guessed() -> None:
    assert isinstance(normal_path("/caf\u00e9", _NORMAL), Undecided)


_TEN = {"address_prefix": "10.0.0.0", "prefix_len": 8}


@pytest.mark.parametrize(
    ("ranges", "address", "truth"),
    [
        ([_TEN], "10.1.2.3", True),
        ([_TEN], "11.1.2.3", False),
        ([{"address_prefix": "10.0.0.0"}], "11.1.2.3", True),
        ([{"address_prefix": "::", "prefix_len": 0}], "11.1.2.3", False),
        ([{"address_prefix": "fd00::", "prefix_len": 8}], "fd00::1", True),
        ([], "10.1.2.3", False),
        ([_TEN], None, None),
        ([{"address_prefix": "nonsense"}], "10.1.2.3", None),
    ],
)
def test_an_address_lies_in_a_range_or_not(
    ranges: list[Any], address: str | None, truth: bool | None
) -> None:
    assert _told(matches_address(ranges, address)) is truth


def test_a_share_of_requests_is_decided_only_when_it_is_all_or_none() -> None:
    assert sampled({}) is False
    assert sampled({"numerator": 100}) is True
    assert sampled({"numerator": 1_000_000, "denominator": "MILLION"}) is True
    assert isinstance(sampled({"numerator": 5, "denominator": "TEN_THOUSAND"}), Undecided)
    assert share_of({"numerator": 5, "denominator": "TEN_THOUSAND"}) == 0.0005


@pytest.mark.parametrize(
    ("matcher", "value", "truth"),
    [
        ({"string_match": {"prefix": "a"}}, "abc", True),
        ({"string_match": {"prefix": "a"}}, 5, False),
        ({"string_match": {"prefix": "a"}}, None, False),
        ({"bool_match": True}, True, True),
        ({"double_match": {"exact": 5}}, 5.0, True),
        ({"double_match": {"range": {"start": 1, "end": 5}}}, 5, False),
        ({"list_match": {"one_of": {"string_match": {"exact": "b"}}}}, ["a", "b"], True),
        ({"list_match": {"one_of": {"string_match": {"exact": "b"}}}}, "b", False),
        (
            {"or_match": {"value_matchers": [{"bool_match": True}, {"present_match": True}]}},
            1,
            True,
        ),
        ({"present_match": False}, None, True),
        ({"null_match": {}}, None, None),
        ({"later_match": {}}, 1, None),
    ],
)
def test_a_value_of_metadata_is_matched_by_its_kind(
    matcher: dict[str, Any], value: Any, truth: bool | None
) -> None:
    assert _told(matches_value(matcher, value)) is truth


def test_matchers_can_be_said_in_words() -> None:
    assert text_words({"prefix": "/api", "ignore_case": True}) == "begins with /api in any case"
    assert header_words({"name": "a", "exact_match": "b", "invert_match": True}) == (
        "not: header a is b"
    )
    assert header_words({"name": "a", "present_match": False}) == "header a is absent"
    one_of = {"list_match": {"one_of": {"string_match": {"exact": "b"}}}}
    assert value_words(one_of) == "has an entry that is b"
