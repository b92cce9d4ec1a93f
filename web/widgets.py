"""What Gradio has no component for: a slider with two ends, a canvas to paint on. Pieces of HTML whose scripts lie beside them."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

DRAWN = {"region": "where it acts", "picture": "on the picture", "map": "the map, traced"}  # as in web.painting
_HERE = Path(__file__).parent


def window(**options: Any) -> Any:
    """A slider with two ends from 0 to 1; its value is [start, end]."""
    ends = "".join(f'<input type="range" min="0" max="1" step="0.01" aria-label="{end} of the window">' for end in ("Start", "End"))
    html = f'<fieldset class="window"><legend>Acts from <output></output> of the steps</legend><div class="rails">{ends}</div></fieldset>'
    return gr.HTML([0.0, 1.0], html_template=html, js_on_load=(_HERE / "window.js").read_text(encoding="utf-8"), **options)


def painter(source: str, what: str, *, drawing: bool = False, **options: Any) -> Any:
    """A canvas over the picture shown in `source` (a CSS selector); its value is a PNG as `data:` address (see `web.painting`), or "".

    Without a picture it has the size that is drawn. what: said above it. drawing: the strokes may be a region, or the picture itself.
    """
    uses = "".join(f'<option value="{value}">{label}</option>' for value, label in DRAWN.items())
    more = f"""<label class="use">The strokes are <select aria-label="The strokes are">{uses}</select></label>""" if drawing else ""
    pen = '<label class="pen">Colour <input type="color" value="#ffffff" aria-label="Colour"></label>' if drawing else ""
    html = f"""<div class="painter" data-source="{escape(source)}"><p class="note">{escape(what)}</p>
      <div class="easel"><canvas width="256" height="256" role="img" aria-label="{escape(what)}"></canvas></div>
      <div class="brushes">{more}<label>Brush <input type="range" min="1" max="100" value="20" aria-label="Brush"></label>
      <label><input type="checkbox"> Erase</label>{pen}<button type="button">Clear</button></div></div>"""
    return gr.HTML("", html_template=html, js_on_load=(_HERE / "painter.js").read_text(encoding="utf-8"), **options)
