"""Create: prompt, controls, picture; everything else one step away."""

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.errors import LimnError
from core.infotext import SAMPLER_NAMES
from core.request import MAX_CONTROLS, Hires, Inversion, RenderRequest, SkipLayers
from web import held, remembered, units, words
from web.fields import component
from web.handlers import Handlers, Parts
from web.service import Service, Waiting
from web.sizes import ASPECTS, of_aspect
from web.upload import upload
from web.widgets import painter

EXAMPLE = "a red sphere left of a blue cube on grass at sunset"
SYNTAX = "(word:1.3) counts more, (word:0.7) less; <lora:name:0.8> adds a LoRA."
SKIPPED = "Blocks that are left out, with spaces between; SD 3.5 medium's are 7 8 9."
LORAS = "Beside those that the prompt names, with commas between: bold=0.8, other"
GUIDANCE = ("guidance_start", "guidance_end", "guidance_rescale", "true_cfg_scale", "pag_scale", "clip_skip")
# Written down, for the libraries that know them are loaded behind the page.
SAMPLERS = sorted(SAMPLER_NAMES)
SCHEDULES = ["uniform", "leading", "trailing", "sgm_uniform", "simple", "beta", "karras", "exponential", "polyexponential"]
ABOUT = ("result", "download", "chosen", "overlay", "command", "python")

# Without `show_progress_on`, the page would keep the progress of every event on each of its outputs, and renew all of them for each event.
_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
_IDLE = "() => [true, false].map((interactive) => ({__type__: 'update', interactive}))"
_BUSY = f"""() => [
  ...[false, true].map((interactive) => ({{__type__: 'update', interactive}})),
  {json.dumps(words.bar(Waiting(0)))}, '', {{__type__: 'update', visible: false}},
]"""
_DICE = "() => Math.floor(Math.random() * 2 ** 32)"


def build(page: Any, service: Service, state: Any) -> tuple[Parts, Handlers]:
    """The tab's components and their behaviour. state: where the page says how far the model is."""
    parts, made, after = _layout(service, state)
    handlers = Handlers(service, parts)
    _wire(page, parts, made, after, handlers)
    return parts, handlers


def _layout(service: Service, state: Any) -> tuple[Parts, units.Units, dict[str, Any]]:
    """The components, in the order they are read: what is asked on the left, what comes of it on the right."""
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=6, min_width=340, elem_id="asked"):
            inputs = {
                "prompt": component(RenderRequest, "prompt", lines=2, placeholder=EXAMPLE, info=SYNTAX, elem_id="prompt", autofocus=True)
            }
            tokens = gr.HTML(elem_id="tokens")
            inputs["negative_prompt"] = component(RenderRequest, "negative_prompt", info=None, elem_id="negative")
            with gr.Row(elem_id="buttons"):
                render = gr.Button("Render", variant="primary", scale=3, elem_id="render")
                cancel = gr.Button("Cancel", interactive=False, scale=1, min_width=100, elem_id="cancel")
            doctor = gr.HTML(elem_id="doctor")
            made = units.layout()
            inputs |= made.inputs
            model_doctor = gr.HTML(elem_id="model-doctor", render=False)
            sampling, old_seed = _sampling(service, model_doctor)
            start, beginning = _start()
            inputs |= sampling | start | _more()
        with gr.Column(scale=5, min_width=340, elem_id="shown"):
            shown, after = _results()
    after |= {"old_seed": old_seed, "beginning": beginning}
    said = {"state": state, "tokens": tokens, "doctor": doctor, "model_doctor": model_doctor}
    return Parts(inputs=inputs, sent=held.carrier(), columns=made.columns, render=render, cancel=cancel, **said, **shown), made, after


def _sampling(service: Service, model_doctor: Any) -> tuple[dict[str, Any], Any]:
    """What most people change, always in sight; below the model what the doctor says about it. Also the button that takes the last seed."""
    new_seed, old_seed = gr.Button("New", render=False), gr.Button("Last", render=False, elem_id="last-seed")
    inputs: dict[str, Any] = {}
    with gr.Group():
        with gr.Row():
            inputs["model"] = gr.Dropdown(
                [service.model], value=service.model, label="Model", allow_custom_value=True, elem_id="base", min_width=200, scale=2
            )
            inputs["seed"] = component(RenderRequest, "seed", info=None, elem_id="seed", min_width=150, buttons=[new_seed, old_seed])
            inputs["count"] = component(RenderRequest, "count", info=None, elem_id="count", min_width=80)
        model_doctor.render()
        with gr.Row():
            inputs |= {name: component(RenderRequest, name, info=None, elem_id=name, min_width=90) for name in ("width", "height")}
            aspect = gr.Dropdown(["", *ASPECTS], value="", label="Aspect", elem_id="aspect", min_width=90)
        with gr.Row():
            inputs["steps"] = component(RenderRequest, "steps", info=None, elem_id="steps", min_width=90)
            inputs["guidance_scale"] = component(RenderRequest, "guidance_scale", info=None, elem_id="guidance", min_width=200, scale=2)
        with gr.Row():
            inputs |= {name: _choice(name, choices) for name, choices in (("sampler", SAMPLERS), ("schedule", SCHEDULES))}
    new_seed.click(None, None, inputs["seed"], js=_DICE, api_visibility="private")
    size = [inputs["width"], inputs["height"]]
    aspect.input(set_aspect, [aspect, *size], size, **_QUIET)
    return inputs, old_seed


def set_aspect(aspect: str, width: Any, height: Any) -> tuple[Any, Any]:
    """Width and height of that aspect with as many pixels as before."""
    try:
        return of_aspect(aspect, width, height)
    except LimnError:
        return gr.skip(), gr.skip()


def _start() -> tuple[dict[str, Any], Any]:
    """A picture to begin from, and what of it is painted anew; also the part of the page that holds them."""
    inputs: dict[str, Any] = {}
    with gr.Accordion("Begin from a picture", open=False, elem_id="start") as beginning, gr.Group():
        inputs["init_image"] = upload(
            label="Picture", sources=["upload", "clipboard", "webcam"], height=240, elem_id="init-image", elem_classes="source"
        )
        inputs["mask"] = painter("#init-image", "Paint what is drawn anew; without paint, all of it is.", elem_id="init-mask")
        with gr.Row():
            inputs["strength"] = component(RenderRequest, "strength", min_width=180, elem_id="strength")
            inputs["resize"] = component(RenderRequest, "resize", info="How it is brought to the size.", min_width=120)
        inputs["paste_back"] = component(RenderRequest, "paste_back")
        inputs["inversion.on"] = gr.Checkbox(False, label="Its own noise", info="Begin from the noise it would have been drawn from.")
        with gr.Row():
            what = {"prompt": "What it shows", "iterations": "Corrections a step"}
            inputs |= {f"inversion.{name}": component(Inversion, name, label=label, min_width=140) for name, label in what.items()}
    return inputs, beginning


def _more() -> dict[str, Any]:
    """What few change."""
    inputs: dict[str, Any] = {}
    with gr.Accordion("Second, larger pass", open=False, elem_id="hires"), gr.Group():
        inputs["hires.on"] = gr.Checkbox(False, label="Draw a second pass", elem_id="hires-on")
        with gr.Row():
            inputs |= {f"hires.{name}": component(Hires, name, info=None, min_width=140) for name in ("scale", "strength")}
        with gr.Row():
            inputs["hires.upscaler"] = component(Hires, "upscaler", info=None, min_width=140)
            inputs["hires.steps"] = component(Hires, "steps", min_width=140)
        inputs["hires.with_control"] = component(Hires, "with_control")
    with gr.Accordion("Skip-layer guidance", open=False, elem_id="skip-layers"), gr.Group():
        inputs["skip_layers.on"] = gr.Checkbox(False, label="Away from what the model draws without some of its blocks", elem_id="skip-on")
        with gr.Row():
            default = " ".join(map(str, SkipLayers().blocks))
            inputs["skip_layers.blocks"] = gr.Textbox(default, label="Blocks", info=SKIPPED, min_width=200, elem_id="skipped-blocks")
            inputs["skip_layers.scale"] = component(SkipLayers, "scale", info=None, min_width=200)
        with gr.Row():
            ends = {"start": "From this fraction of the steps", "end": "To this fraction"}
            inputs |= {
                f"skip_layers.{name}": component(SkipLayers, name, label=label, info=None, min_width=200) for name, label in ends.items()
            }
    with gr.Accordion("More", open=False, elem_id="more"), gr.Group():
        with gr.Row():
            inputs |= {name: component(RenderRequest, name, min_width=240) for name in ("variation_strength", "variation_seed")}
            inputs |= {name: component(RenderRequest, name, min_width=240) for name in ("shift", "eta", "tile_vae")}
        with gr.Row():
            inputs |= {name: component(RenderRequest, name, min_width=240) for name in GUIDANCE}
        with gr.Row():
            inputs["loras"] = gr.Textbox("", label="LoRAs", info=LORAS, min_width=200, elem_id="loras")
            inputs["vae"] = component(RenderRequest, "vae", label="VAE", min_width=200, elem_id="vae")
    return inputs


def _results() -> tuple[dict[str, Any], dict[str, Any]]:
    """The picture, what is said about it, and what can be done with it."""
    shown: dict[str, Any] = {
        "picture": gr.Image(label="Picture", interactive=False, format="jpeg", buttons=["fullscreen"], elem_id="picture"),
        "status": gr.HTML(elem_id="status"),
        "run": gr.Gallery(
            label="This run", visible=False, columns=4, height="auto", allow_preview=False, buttons=[], elem_id="run", interactive=False
        ),
        "result": gr.HTML(elem_id="fidelity"),
        "taken": gr.State([]),
        "chosen": gr.State(""),
    }
    with gr.Column(visible=False, elem_id="after") as shown["after"]:
        shown["download"] = gr.DownloadButton("Download PNG", variant="primary", size="sm", elem_id="download")
        with gr.Row(elem_id="actions"):
            after = {
                name: gr.Button(label, size="sm", min_width=110, elem_id=f"do-{name.replace('_', '-')}")
                for name, label in (
                    ("reuse_seed", "Reuse seed"),
                    ("vary", "Vary"),
                    ("upscale", "Upscale"),
                    ("start_from", "Begin from it"),
                    ("control_from", "Control with it"),
                    ("show_overlay", "Compare with map"),
                )
            }
        shown["overlay"] = gr.Gallery(
            label="Wanted and drawn",
            visible=False,
            columns=2,
            height="auto",
            buttons=[],
            elem_id="overlay",
            interactive=False,
            format="png",
        )
        with gr.Accordion("As a command, as Python", open=False, elem_id="code"):
            shown["command"] = gr.Code(language="shell", label="Command", interactive=False, wrap_lines=True, lines=1, elem_id="command")
            shown["python"] = gr.Code(language="python", label="Python", interactive=False, wrap_lines=True, lines=1, elem_id="python")
    return shown, after


def _choice(name: str, choices: Sequence[str]) -> Any:
    """A dropdown for a field that takes any name."""
    default = RenderRequest.model_fields[name].default
    return gr.Dropdown(list(choices), value=default, label=name.capitalize(), elem_id=name, min_width=140)


def _wire(page: Any, parts: Parts, made: units.Units, after: dict[str, Any], handlers: Handlers) -> None:
    """Which handler answers what. Only `render` is offered to other programs."""
    inputs, said = parts.inputs, [parts.model_doctor, parts.doctor]
    held.hold(remembered.KEY, inputs, units.buttons())  # the first that answers a change, for events answer one after another
    examine: dict[str, Any] = {"fn": handlers.examine, "inputs": parts.sent, "outputs": said, "js": held.sketch_of(remembered.KEY)} | _QUIET
    stored = _remember(page, parts, handlers)
    greeted = stored.then(handlers.greet, outputs=[parts.state, inputs["model"]], **_QUIET)
    counted: dict[str, Any] = {"inputs": [inputs["prompt"], inputs["model"]], "outputs": parts.tokens} | _QUIET
    greeted.then(handlers.count_tokens, **counted).then(**examine)
    # Pressed by page.js when nothing has changed for a moment.
    gr.Button("Examine", visible="hidden", elem_id="examine").click(trigger_mode="always_last", queue=False, **examine)
    units.wire(page, made, {name: inputs[name] for name in ("width", "height")}, parts.sent)
    kinds, networks = ([inputs[f"control.{i}.{name}"] for i in range(MAX_CONTROLS)] for name in ("kind", "model"))
    fitting: dict[str, Any] = {"inputs": [inputs["model"], *kinds], "outputs": networks} | _QUIET
    greeted.then(handlers.offer_networks, **fitting)
    gr.on([one.change for one in (inputs["model"], *kinds)], handlers.offer_networks, trigger_mode="always_last", queue=False, **fitting)
    gr.on([inputs["prompt"].change, inputs["model"].change], handlers.count_tokens, trigger_mode="always_last", **counted)
    _wire_results(parts, made, after, handlers)


def _wire_results(parts: Parts, made: units.Units, after: dict[str, Any], handlers: Handlers) -> None:
    """How a picture comes to be, and what can be done with it."""
    inputs, about, buttons = parts.inputs, [getattr(parts, name) for name in ABOUT], [parts.render, parts.cancel]
    # Every news of a render renews all of its outputs on the server: it has few, and the rest is done before and afterwards.
    news: dict[str, Any] = {"inputs": parts.sent, "outputs": [parts.picture, parts.status, parts.taken], "js": held.all_of(remembered.KEY)}
    parts.render.click(None, None, [*buttons, parts.status, parts.result, parts.after], js=_BUSY, api_visibility="private")
    drawn = parts.render.click(handlers.render, concurrency_limit=None, api_name="render", **(news | _QUIET | {"api_visibility": "public"}))
    drawn.then(handlers.show_run, parts.taken, [*buttons, parts.state, parts.run, parts.after, *about], **_QUIET)
    drawn.failure(None, None, buttons, js=_IDLE, api_visibility="private")
    parts.cancel.click(handlers.cancel, queue=False, **_QUIET)
    parts.run.select(handlers.choose, parts.taken, [parts.picture, *about], **_QUIET)
    for name in ("reuse_seed", "old_seed"):
        after[name].click(handlers.reuse_seed, parts.chosen, [inputs["seed"], inputs["variation_seed"]], **_QUIET)
    after["start_from"].click(handlers.start_from, parts.chosen, [inputs["init_image"], after["beginning"]], **_QUIET)
    for i, button in [(0, after["control_from"]), *enumerate(made.lasts)]:
        taken = [inputs[f"control.{i}.image"], inputs[f"control.{i}.ready"], inputs[f"control.{i}.on"], parts.columns[i]]
        button.click(handlers.control_from, parts.chosen, taken, **_QUIET)
    again = [inputs[name] for name in ("seed", "count", "variation_strength", "variation_seed", "hires.on")]
    for name in ("vary", "upscale"):
        after[name].click(getattr(handlers, name), parts.chosen, again, **_QUIET).success(
            None, None, None, js="() => document.querySelector('#render').click()", api_visibility="private"
        )
    after["show_overlay"].click(handlers.show_overlay, parts.chosen, parts.overlay, **_QUIET)


def _remember(page: Any, parts: Parts, handlers: Handlers) -> Any:
    """Settings are stored in the browser whenever one changes, and read when the page opens; the event that ends the reading."""
    key, names = remembered.KEY, remembered.kept(list(parts.inputs))
    script = held.begin(key, remembered.version(), names, parts.inputs)
    read = page.load(handlers.remember, parts.sent, [*parts.columns, *parts.inputs.values()], js=script, **_QUIET)
    return read.then(None, None, None, js=held.begun(key), api_visibility="private")
