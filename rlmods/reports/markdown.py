"""A document as Markdown."""

from rlmods.reports.document import Document, Facts, Figure, Grid, Items, Section


def to_markdown(document: Document) -> str:
    """The text; figures are left out."""
    return "\n".join([f"# {document.title}", "", *_sections(document.sections, 2)])


def _sections(sections: list[Section], level: int) -> list[str]:
    lines = []
    for section in sections:
        lines += [f"{'#' * level} {_line(section.title)}"]
        for block in section.blocks:
            if not isinstance(block, Figure):
                lines += [*_block(block), ""]
        if not section.blocks and not section.sections:
            lines += ["- none", ""]
        lines += _sections(section.sections, level + 1)
    return lines


def _block(block: Facts | Items | Grid) -> list[str]:
    if isinstance(block, Facts):
        return [f"- {_line(name)}: {_line(value)}" for name, value in block.pairs]
    if isinstance(block, Items):
        return [f"- {_line(line)}" for line in block.lines]
    return [_row(block.header), _row(["---"] * len(block.header)), *map(_row, block.rows)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(_line(cell).replace('|', '&#124;') for cell in cells)} |"


def _line(text: str) -> str:
    return " ".join(text.split())
