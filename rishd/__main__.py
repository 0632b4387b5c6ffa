"""``python -m rishd``: the ``rishd`` command."""

from __future__ import annotations

from rishd.cli import main

if __name__ == "__main__":
    main()
