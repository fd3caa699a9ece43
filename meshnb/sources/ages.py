"""How long ago something was, as kubectl and istioctl write it."""

from __future__ import annotations


def age_text(seconds: float) -> str:
    """Return an age as kubectl and istioctl write it: 75s, 2m26s, 3h5m, 2d4h, 400d.

    The rounding is that of HumanDuration in ``k8s.io/apimachinery/pkg/util/duration``: two units
    at most, and the smaller one only where it matters.
    """
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 120:
        return f"{max(whole, 0)}s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    if days < 2920:
        return _two(days // 365, "y", days % 365, "d")
    return f"{days // 365}y"


def _two(large: int, unit: str, small: int, smaller_unit: str) -> str:
    return f"{large}{unit}" + (f"{small}{smaller_unit}" if small else "")
