"""A document as one HTML page that needs nothing but itself."""

import base64

from jinja2 import Environment, PackageLoader, StrictUndefined

from rlmods.reports.document import Block, Document


def to_html(document: Document) -> str:
    """The page; everything is escaped, figures are in it."""
    environment = Environment(
        loader=PackageLoader("rlmods.reports", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["kind"] = _kind
    environment.filters["base64"] = _base64
    return environment.get_template("report.html.jinja").render(document=document)


def _kind(block: Block) -> str:
    return type(block).__name__


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
