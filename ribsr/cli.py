"""Where the command `ribsr` starts: in the one package whose name is ours, so that it can tell if others are not."""

from __future__ import annotations

import pkgutil

from ribsr.base.installation import check_folders


def main() -> None:
    try:
        check_folders("engines", "export", "plugins", "tools")
    except ImportError as error:
        raise SystemExit(f"Error: {error}") from None
    pkgutil.resolve_name("tools.cli:main")(prog_name="ribsr")
