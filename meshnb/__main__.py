"""Makes ``python -m meshnb`` the same as ``meshnb``."""

from __future__ import annotations

from meshnb.cli import main

if __name__ == "__main__":
    main()
