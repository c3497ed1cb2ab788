"""Sentences below a cell, which a page wraps between words. JupyterLab breaks what ``print`` writes anywhere."""

from html import escape

_STYLE = "font-size:14px;line-height:1.5;max-width:60em;margin:2px 0;color:var(--jp-content-font-color1,inherit)"


def say(*sentences: object) -> None:
    """Show each of ``sentences`` as a paragraph of its own."""
    from IPython.display import display

    lines = [str(each) for each in sentences]
    paragraphs = "".join(f'<p style="{_STYLE}">{escape(line)}</p>' for text in lines for line in text.splitlines())
    display({"text/plain": "\n".join(lines), "text/html": paragraphs}, raw=True)
