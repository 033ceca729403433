"""A report as one HTML file, Plotly's script included, so that it opens without a network."""

from __future__ import annotations

from html import escape

from sah.errors import missing_extra
from sah.report.story import (
    Block,
    Commands,
    Comparer,
    Figures,
    Heading,
    Items,
    RunTable,
    Scatter,
    Story,
    Table,
    Words,
)

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.9rem; }
td, th { border: 1px solid #bbb; padding: 0.2rem 0.6rem; text-align: left; }
pre { overflow-x: auto; background: #f3f3f3; padding: 0.6rem; }
"""


def story_html(story: Story) -> str:
    """Write a report as HTML.

    Args:
        story: The report.

    Returns:
        The file's text, about 5 MB, most of which is Plotly's script.

    Raises:
        ConfigError: If plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise missing_extra("plotly", "reports", "A report with figures") from error
    body = "\n".join(_block(block, story) for block in story.blocks)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(story.title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n<script>{get_plotlyjs()}</script>\n</head>\n<body>\n"
        f"<h1>{escape(story.title)}</h1>\n<p>{escape(story.description)}</p>\n{body}\n</body>\n</html>\n"
    )


def _block(block: Block, story: Story) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Words(text):
            return f"<p>{escape(text)}</p>"
        case Items(texts):
            return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"
        case Table():
            return _table(block)
        case Figures(names):
            return "\n".join(_figure(name, story) for name in names)
        case Scatter():
            return ""  # the Pareto figures show the same points
        case RunTable(_, _, table):
            answers = "<p>The page that <code>python -m sah.report FOLDER</code> writes shows the answers.</p>"
            return answers if table is None else _table(table)
        case Comparer(table):
            return _table(table)
        case Commands(lines):
            return "<pre>" + "\n".join(map(escape, lines)) + "</pre>"


def _figure(name: str, story: Story) -> str:
    from plotly.graph_objects import Figure
    from plotly.io import to_html

    return str(to_html(Figure(story.figures[name]), full_html=False, include_plotlyjs=False))


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
