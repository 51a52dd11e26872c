"""Formulas as MathML, tables and names as links: what docstrings have for a terminal.

Docstrings are written to be read as they stand, with `.. math::`, `:math:` and tables
ruled by `===`. Browsers draw MathML by themselves, so a page needs no script and no
font for it.
"""

import ast
import re
from pathlib import Path

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

ROOT = Path(__file__).parents[2]
# After the fences of code have been put aside, before anything else.
_PRIORITY = 24
_BLOCK = re.compile(r"(?m)^( *)\.\. math::(.*(?:\n(?:\1 +\S.*))*)")
_INLINE = re.compile(r":math:`([^`]+)`|(?<![\\$`\w])\$([^$\n`]+)\$")
_RULE = r" *=+(?: +=+)+ *"
_TABLE = re.compile(rf"(?m)^{_RULE}(?:\n.*\S.*)*\n{_RULE}$")
# What the converter does not know, or writes letter by letter.
_SPELLINGS = [
    (re.compile(r"\\(?:mathrm|operatorname)\{([^{}]+)\}"), r"\\text{\1}"),
    (re.compile(r"\\mathrm(\\?\w+)"), r"\\text{\1}"),
    (re.compile(r"\\arg\s*\\max"), r"\\text{argmax}\\,"),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\_"), "_"),
]


def on_config(config):
    """Add the extension to those of the pages and of the docstrings."""
    config.markdown_extensions.append(FromDocstrings(public_names()))
    return config


def public_names() -> list[str]:
    """Return the names that `normopt` exports, without importing it."""
    tree = ast.parse((ROOT / "normopt" / "__init__.py").read_text(encoding="utf-8"))
    return [
        alias.asname
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("normopt")
        for alias in node.names
        if alias.asname
    ]


class FromDocstrings(Extension):
    """The extension of Markdown."""

    def __init__(self, names: list[str]) -> None:
        """Keep the names that become links."""
        super().__init__()
        self.names = names

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Put the one step in its place."""
        step = _Rewriting(md, self.names)
        md.preprocessors.register(step, "from_docstrings", _PRIORITY)


class _Rewriting(Preprocessor):
    def __init__(self, md: Markdown, names: list[str]) -> None:
        super().__init__(md)
        words = "|".join(sorted(names, key=len, reverse=True))
        self.name = re.compile(
            rf"(?<![`\[\w])`((?:normopt\.)?({words})(?:\([^`]*\))?)`(?!`)"
        )

    def run(self, lines: list[str]) -> list[str]:
        text = _TABLE.sub(_as_pipes, "\n".join(lines))
        text = _BLOCK.sub(lambda found: self._block(found[2]), text)
        text = _INLINE.sub(lambda found: self._stored(found[1] or found[2]), text)
        text = self.name.sub(r"[`\1`][normopt.\2]", text)
        return text.split("\n")

    def _block(self, latex: str) -> str:
        drawn = f'<div class="formula">{mathml(latex, "block")}</div>'
        return f"\n{self.md.htmlStash.store(drawn)}\n"

    def _stored(self, latex: str) -> str:
        return self.md.htmlStash.store(mathml(latex, "inline"))


def mathml(latex: str, display: str) -> str:
    """Return a formula as MathML; its lines, cut at `&`, become rows of a table."""
    for pattern, spelling in _SPELLINGS:
        latex = pattern.sub(spelling, latex)
    latex = " ".join(latex.split())
    rows = _outside_environments(latex, r"\\\\")
    if len(rows) == 1 and "&" not in re.sub(r"\\begin.*?\\end", "", latex):
        return convert(latex, display=display)
    cells = [[_inner(cell) for cell in _outside_environments(r, "&")] for r in rows]
    body = "".join(
        "<mtr>" + "".join(f"<mtd>{cell}</mtd>" for cell in row) + "</mtr>"
        for row in cells
    )
    return (
        '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">'
        f'<mtable displaystyle="true" class="aligned">{body}</mtable></math>'
    )


def _inner(latex: str) -> str:
    return re.sub(r"^<math[^>]*>|</math>$", "", convert(latex)) if latex.strip() else ""


def _outside_environments(latex: str, mark: str) -> list[str]:
    parts, depth = [""], 0
    for piece in re.split(rf"(\\begin|\\end|{mark})", latex):
        depth += (piece == r"\begin") - (piece == r"\end")
        if re.fullmatch(mark, piece) and not depth:
            parts.append("")
        else:
            parts[-1] += piece
    return parts


def _as_pipes(found: re.Match[str]) -> str:
    """Return a ruled table as one of pipes; an empty first cell goes on with a row."""
    lines = found[0].split("\n")
    spans = [(m.start(), m.end()) for m in re.finditer("=+", lines[0])]
    spans[-1] = (spans[-1][0], None)
    rows: list[list[str]] = []
    for line in lines:
        cells = [line[start:end].strip() for start, end in spans]
        if re.fullmatch(_RULE, line):
            continue
        elif cells[0] or not rows:
            rows.append(cells)
        else:
            rows[-1] = [
                f"{a} {b}".strip() for a, b in zip(rows[-1], cells, strict=True)
            ]
    if sum(bool(re.fullmatch(_RULE, line)) for line in lines) == 2:  # without a head
        rows.insert(0, [""] * len(spans))
    rows.insert(1, ["---"] * len(spans))
    return "\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
