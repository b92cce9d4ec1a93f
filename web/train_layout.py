"""What stands in Train: the few things that matter, the rest folded, and beside them one training to watch."""

import itertools
from typing import Any

import gradio as gr

import controls
from web import train_settings, words
from web.fields import component
from web.upload import upload_file

HELP = "Pairs of pictures and what they are to obey. No dataset yet? limn toyland build --count 2000 --out data/toyland makes one."
UPLOAD = "A ZIP of a dataset's folder, or loose files: pictures (0.png), captions (0.txt), conditions (0.canny.png). Each up to 20 MB."
MORE = "One key=value in a line, as limn train takes them; lists and tables stand only here."
HEADS = {
    "data": "Pairs",
    "": "Network and loss",
    "objective": "Times and weights",
    "reward": "Reward for obeying",
    "train": "Optimiser and checkpoints",
    "monitor": "Measuring",
}
SPELLED: dict[str, dict[str, Any]] = {  # labels that their section does not make clear
    "data.condition": {"label": "Condition", "info": "Column, folder or extension; with the next box ticked, the kind of control."},
    "data.extract": {"label": "Made from the pictures", "info": "The conditions, by the kind's extractor."},
    "train.steps": {"label": "Steps", "info": None},
    "train.batch_size": {"label": "Batch", "info": None},
    "train.learning_rate": {"label": "Rate", "info": None},
    "train.precision": {"label": "Precision", "info": None},
    "data.width": {"label": "Width", "info": None},
    "data.height": {"label": "Height", "info": None},
}
CURVES = {
    "loss": ("Loss", "loss", {"smoothed": "loss_smooth"}),
    "gap": ("Paired gap (teal; another's: amber)", "gap", {"own": "gap", "other": "gap_shuffled"}),
    "fidelity": ("Fidelity of held-out pairs", "fidelity", {"fidelity": "fidelity"}),
    "rate": ("Learning rate", "rate", {"rate": "lr"}),
}
GAPS = {"own": "#14b8a6", "other": "#f59e0b"}


def settings(parts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What a training is made of: the few things that matter, then the rest, folded. The fields by key, and the choice of a preset."""
    values = train_settings.shown(train_settings.preset(train_settings.presets()[0]))
    fields: dict[str, Any] = {}
    gr.HTML(words.note(HELP))
    with gr.Group():
        with gr.Row():
            info = "A folder or file on this machine."
            fields["folder"] = gr.Dropdown(
                [], value="", label="Dataset", info=info, allow_custom_value=True, elem_id="dataset", scale=3, min_width=200
            )
            spelled = SPELLED["data.condition"] | {"elem_id": "condition", "scale": 2, "min_width": 200}
            fields["data.condition"] = gr.Dropdown(controls.names(), value=values["data.condition"], allow_custom_value=True, **spelled)
        fields["data.extract"] = _field("data.extract", values)
    with gr.Accordion("Upload pairs", open=False, elem_id="upload-pairs"):
        gr.HTML(words.note(UPLOAD))
        parts["upload"] = upload_file(label="Files", file_count="multiple", height=140, elem_id="dataset-files")
        parts["remove"] = gr.Button("Remove the chosen upload", size="sm", elem_id="remove-upload")
    parts["check"] = gr.Button("Check the pairs", size="sm", elem_id="check-dataset")
    parts["checked"] = gr.HTML(elem_id="checked", elem_classes="unsaid")
    parts["findings"] = gr.HTML(elem_id="findings", elem_classes="unsaid")
    with gr.Group():
        with gr.Row():
            preset = gr.Dropdown(train_settings.presets(), label="Preset", elem_id="preset", min_width=140)
            fields["base"] = gr.Dropdown([values["base"]], label="Base model", allow_custom_value=True, elem_id="train-base", min_width=180)
            fields["name"] = gr.Textbox("my-controlnet", label="Name", elem_id="train-name", min_width=140)
        for row in (("train.steps", "train.batch_size", "train.learning_rate"), ("train.precision", "data.width", "data.height")):
            with gr.Row():
                fields |= {key: _field(key, values, min_width=90) for key in row}
    parts["start"] = gr.Button("Start training", variant="primary", elem_id="start-training")
    parts["said"] = gr.HTML(elem_id="train-said", elem_classes="unsaid")
    for section, head in HEADS.items():
        rest = [key for key in train_settings.kinds()[section] if key not in train_settings.MAIN]
        with gr.Accordion(head, open=False, elem_id=f"train-{section or 'network'}"), gr.Group():
            for key, other in itertools.zip_longest(rest[::2], rest[1::2]):
                with gr.Row():
                    fields |= {one: _field(one, values, min_width=200) for one in (key, other) if one}
    with gr.Accordion("Further settings", open=False, elem_id="train-more"):
        fields["more"] = gr.Textbox(values["more"], label="Settings", info=MORE, lines=3, elem_id="more-settings")
    return fields, preset


def watching(parts: dict[str, Any]) -> None:
    """One training: how far it is, its curves, its pictures, its words."""
    parts["run"] = gr.Dropdown([], label="Training", visible=False, elem_id="run-choice")
    with gr.Column(visible=False, elem_id="watch") as parts["watch"]:
        parts["state"] = gr.HTML(elem_id="train-state")
        with gr.Row():
            parts["stop"] = gr.Button("Stop", visible=False, size="sm", min_width=90, elem_id="stop-training")
            parts["resume"] = gr.Button("Resume", visible=False, size="sm", min_width=90, elem_id="resume-training")
            parts["use"] = gr.Button("Use it", visible=False, variant="primary", size="sm", min_width=90, elem_id="use-training")
        parts["grid"] = gr.Image(
            label="Held-out pairs", show_label=False, interactive=False, buttons=["fullscreen"], visible=False, elem_id="train-grid"
        )
        for key, (title, y, series) in CURVES.items():
            several: dict[str, Any] = {} if len(series) == 1 else {"color": "curve", "colors_in_legend": [], "color_map": GAPS}
            titles = {"x_title": "Step", "y_title": y.capitalize(), "x_axis_format": "~s", "label": title}
            several |= {"y_lim": [0, 1]} if key == "fidelity" else {}
            parts[key] = gr.LinePlot(x="step", y=y, height=200, visible=False, elem_id=f"curve-{key}", **titles, **several)
        with gr.Accordion("What it says", open=False):
            parts["log"] = gr.Textbox(label="Output", show_label=False, lines=8, max_lines=8, interactive=False, elem_id="train-log")
    parts["sheet"] = gr.Image(
        label="Pairs", show_label=False, interactive=False, format="png", buttons=["fullscreen"], visible=False, elem_id="sheet"
    )


def _field(key: str, values: dict[str, Any], **options: Any) -> Any:
    """The component of a setting, with a preset's value."""
    if key in train_settings.NAMES:
        return gr.Textbox(
            values[key], label="Kind of control", info="Where the condition's name does not say it.", elem_id=key.replace(".", "-")
        )
    model, name = train_settings.owner(key)
    shown: dict[str, Any] = SPELLED.get(key, {}) | {"elem_id": key.replace(".", "-"), "value": values[key]}
    return component(model, name, **(options | shown))
