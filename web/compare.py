"""Compare: Create's request varied along axes, drawn as a grid with fidelity in each cell, and fidelity plotted along axes of numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from core.errors import Cancelled, LimnError
from core.files import publish
from core.images import encode_png, sha256_pixels
from core.provenance import Record, read_record
from web import compare_plot, form, grid, held, remembered, words
from web.handlers import Changes, Handlers
from web.kept import keep
from web.service import Drawing, Finished

NONE = "nothing"
WHAT = "Values between commas; seeds and steps also as 1-4. Prompt words: the first is replaced by the others. A LoRA's weight: name:0.6."

_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}


class _Compare:
    """The tab's behaviour."""

    def __init__(self, create: Handlers, parts: dict[str, Any]) -> None:
        self.create, self.parts = create, parts

    def draw(self, visitor: gr.Request, sent: Any, *given: Any) -> Iterator[Changes]:
        """Every picture of the comparison, one after another; the grid grows with them. given: name and values of each axis."""
        service, parts, asked = self.create.service, self.parts, self.create.opened
        done: list[tuple[grid.Cell, Path, Record]] = []
        yield {
            parts["draw"]: gr.update(interactive=False),
            parts["stop"]: gr.update(interactive=True),
            parts["download"]: gr.update(visible=False),
            parts["plot"]: gr.update(visible=False),
        }
        try:
            with service.asking(str(visitor.session_hash)) as asking:
                asked = self.create.asked(sent)
                base = form.read_request(asked, service.out, service.model)
                axes = [grid.read_axis(str(name), str(text)) for name, text in zip(given[::2], given[1::2], strict=True) if name != NONE]
                todo = grid.cells(base, axes)
                for number, cell in enumerate(todo):
                    for news in asking.submit(cell.request).follow():
                        if isinstance(news, Finished):
                            done.append((cell, news.paths[0], news.pictures[0].record))
                        share = number + (news.done / news.steps if isinstance(news, Drawing) else 0)
                        yield {parts["said"]: words.share(f"Picture {number + 1} of {len(todo)}.", share, len(todo))}
                    yield {parts["grid"]: grid.sheet(done, len(axes[0].values))}
            yield self._finished(done, axes)
        except Cancelled:
            yield {parts["said"]: words.note(f"Cancelled after {len(done)} pictures.")}
        except LimnError as error:
            yield {parts["said"]: words.note(self.create.plain(error, asked), problem=True)}
        yield {parts["draw"]: gr.update(interactive=True), parts["stop"]: gr.update(interactive=False)}

    def _finished(self, done: list[tuple[grid.Cell, Path, Record]], axes: list[grid.Axis]) -> Changes:
        """Grid and plot, and both as one file; its record is its first picture's, and every figure stands in it."""
        sheet_HWC = grid.sheet(done, len(axes[0].values))
        plot_HWC = compare_plot.plot(grid.points(done), [axis.name for axis in axes if grid.is_number(axis)], sheet_HWC.shape[1])
        whole_HWC = compare_plot.below(sheet_HWC, plot_HWC)
        texts = {"limn": read_record(done[0][1]).canonical_json(), "limn-comparison": grid.summary(done, axes)}
        path = self.create.service.out / "comparisons" / f"{sha256_pixels(whole_HWC)[:24]}.png"
        publish(path, encode_png(whole_HWC, texts))
        count = f"{len(done)} pictures are compared." if len(done) > 1 else "One picture is drawn; give an axis more values to compare."
        return {
            self.parts["grid"]: sheet_HWC,
            self.parts["plot"]: gr.update(value=plot_HWC, visible=plot_HWC is not None),
            self.parts["said"]: words.note(count),
            self.parts["download"]: gr.update(value=str(self.create.parts.download.move_resource_to_block_cache(str(path))), visible=True),
        }


def weight_and_window() -> list[str]:
    """The axes that show what a control's weight and window are worth."""
    pairs = [*grid.WEIGHT_AND_WINDOW, (NONE, "")]
    return [text for pair in pairs for text in pair]


def build(tab: Any, create: Handlers) -> None:
    """The tab's components, and which handler answers what."""
    parts: dict[str, Any] = {}
    axes: list[Any] = []
    gr.HTML(words.note(f"Create's settings, varied. {WHAT}"))
    for number, (name, text) in enumerate((("seed", "1-3"), ("guidance", "1, 4"), (NONE, ""))):
        with gr.Row():
            label = f"Axis {number + 1}"
            axes.append(gr.Dropdown([NONE, *grid.AXES], value=name, label=label, scale=1, min_width=160, elem_id=f"axis-{number}"))
            axes.append(gr.Textbox(text, label="Values", scale=3, min_width=200, elem_id=f"values-{number}"))
    with gr.Row():
        both = gr.Button("Fill in weight and window", size="sm", scale=0, min_width=200, elem_id="weight-and-window")
    with gr.Row():
        parts["draw"] = gr.Button("Draw the grid", variant="primary", scale=3, elem_id="draw-grid")
        parts["stop"] = gr.Button("Cancel", interactive=False, scale=1, min_width=100, elem_id="stop-grid")
    parts["said"] = gr.HTML(elem_id="compare-said")
    parts["grid"] = gr.Image(label="Comparison", show_label=False, interactive=False, format="png", buttons=["fullscreen"], elem_id="grid")
    shown: dict[str, Any] = {"interactive": False, "format": "png", "buttons": ["fullscreen"], "visible": False}
    parts["plot"] = gr.Image(label="Fidelity", show_label=False, elem_id="plot", **shown)
    parts["download"] = gr.DownloadButton("Download PNG", visible=False, size="sm", elem_id="grid-download")
    keep("compare", {str(number): axis for number, axis in enumerate(axes)}, tab)
    handlers = _Compare(create, parts)
    given = [create.parts.sent, *axes]
    parts["draw"].click(handlers.draw, given, list(parts.values()), concurrency_limit=None, js=held.all_of(remembered.KEY), **_QUIET)
    both.click(weight_and_window, None, axes, api_visibility="private", show_progress="hidden")
    parts["stop"].click(create.cancel, queue=False, **_QUIET)
