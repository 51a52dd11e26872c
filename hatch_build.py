"""What the package's page shows as README: its links and pictures with full addresses.

In the repository they are relative, and right in every branch and checkout. Shown
elsewhere, a page of `docs` is one of the site, a picture is the file itself, and all
else is shown by the repository.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


def with_full_links(text: str, urls: dict[str, str]) -> str:
    """Return README's text for a page that is not beside the repository's files."""

    def full(found: re.Match[str]) -> str:
        mark, target = found[1], found[2]
        if target.startswith("docs/") and ".md" in target:
            page, _, anchor = target.removeprefix("docs/").partition(".md")
            page = page.removesuffix("index").strip("/")
            return f"{mark}{urls['Documentation']}{page}{'/' * bool(page)}{anchor}"
        kind = "raw" if target.endswith((".png", ".svg")) else "blob"
        return f"{mark}{urls['Repository']}/{kind}/HEAD/{target}"

    return re.sub(r"(\]\()(?!https?:|#|mailto:)([^)\s]+)", full, text)


class FullLinks(MetadataHookInterface):
    """The hook that hatchling runs for every build and install."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in `readme`."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_full_links(text, metadata["urls"]),
        }
