"""``meshnb describe`` and ``meshnb compare``: traces on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshnb.cli import USAGE, run

POD = "reviews-v1-68bccdd8bb-lh2mn.bookinfo"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that succeeds, and return what it printed."""
    assert run([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_a_pod_is_described_by_what_acts_and_what_does_not(
    capsys: pytest.CaptureFixture[str], recordings_folder: Path
) -> None:
    text = printed(capsys, "describe", "pod", POD, recordings_folder / "healthy")
    acting, _, others = text.partition("These do not:")
    assert "VirtualService bookinfo/reviews: spec.http[1].route[0] leads here" in acting
    assert "Gateway bookinfo/bookinfo-gateway: is for bookinfo.example.com" in others


def test_a_service_is_described_with_its_pods(
    capsys: pytest.CaptureFixture[str], recordings_folder: Path
) -> None:
    folder = recordings_folder / "healthy"
    text = printed(capsys, "describe", "service", "reviews.bookinfo", folder)
    assert f"Pods: {POD.partition('.')[0]} (sidecar) and reviews-v2-" in text
    assert "Its subsets: v1 and v2" in text


def test_a_waypoint_that_is_missing_is_told(
    capsys: pytest.CaptureFixture[str], recordings_folder: Path
) -> None:
    folder = recordings_folder / "waypoint-missing"
    printed_texts = [
        printed(capsys, "describe", "service", f"{name}.garden", folder)
        for name in ("api", "seeds", "web")
    ]
    assert any("it does not exist" in text for text in printed_texts)


@pytest.mark.parametrize("kind", ["pod", "service"])
def test_a_description_as_json_has_each_object_with_its_reason(
    kind: str, capsys: pytest.CaptureFixture[str], recordings_folder: Path
) -> None:
    name = POD if kind == "pod" else "reviews.bookinfo"
    text = printed(capsys, "describe", kind, name, recordings_folder / "healthy", "--json")
    document = json.loads(text)
    assert {"DestinationRule", "VirtualService"} == {
        one["kind"] for one in document["objects"] if one["acts"]
    }
    assert all(one["why"] for one in document["objects"])


def test_a_proxy_is_compared_with_its_like_and_with_istiod(
    capsys: pytest.CaptureFixture[str], recordings_folder: Path
) -> None:
    folder = recordings_folder / "bootstrap-wrong-discovery"
    text = printed(capsys, "compare", "ratings-v1-75cf8d9c59-njqg8.bookinfo", folder)
    assert "cluster outbound|9080||details.bookinfo.svc.cluster.local: only there" in text
    assert "Unknown: istiod was never asked what it holds" in text
    (first, second) = json.loads(printed(capsys, "compare", POD, folder, "--json"))
    assert first["resources"] == []
    assert second["against"] != []


def test_a_proxy_is_compared_with_one_other(
    capsys: pytest.CaptureFixture[str], recordings_folder: Path
) -> None:
    text = printed(
        capsys, "compare", POD, recordings_folder / "healthy", "--with", "client.bookinfo"
    )
    assert text.count("what leaves the pod") == 1
    assert "resources the same, 0 not" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["describe", "pod", "reviews"], "'reviews' has no namespace. Write NAME.NAMESPACE."),
        (["describe", "service", "review.bookinfo"], "Did you mean reviews.bookinfo"),
        (["compare", "clint.bookinfo"], "Did you mean client.bookinfo"),
    ],
)
def test_a_name_that_is_not_there_is_a_wrong_command(
    arguments: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    recordings_folder: Path,
) -> None:
    assert run([*arguments, str(recordings_folder / "healthy")]) == USAGE
    assert complaint in capsys.readouterr().err
