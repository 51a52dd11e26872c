"""Lets a docstring's *Returns* have a colon in its first line.

What stands before the colon would be taken for the type; with the annotated type in
front of it all, the sentence stays whole.
"""

import re

import griffe


class Returns(griffe.Extension):
    """The extension of griffe, which reads the docstrings."""

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        """Put the type before the text."""
        if func.docstring and func.returns:
            lines = f"Returns:\n  {func.returns}: "
            text = re.sub(
                r"(?m)^Returns:\n  (?=\S)", lambda _: lines, func.docstring.value
            )
            func.docstring.value = text
