"""`limn render` draws pictures."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from batch import options as batches
from cli.options import DEFAULT, Json, help_of, open_renderer, option, stream
from core import terminal
from core.request import Hires, RenderRequest, Resize, SkipLayers, Tiles, build_request
from pipelines.opening import OPENING, taking

SAMPLERS = (
    "euler, euler_ancestral, heun, dpm2, dpm2_ancestral, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, unipc, deis, "
    "ddim, ddpm, pndm, lcm or tcd"
)
SCHEDULES = "uniform, leading, trailing, sgm_uniform, simple, beta, karras, exponential or polyexponential"
SAMPLING, GUIDANCE, START, LARGER = "Sampling", "Guidance and text", "From a picture", "Larger pictures"
HIRES_HELP = f"A second, larger pass: its scale, or any of {', '.join(Hires.model_fields)}."
SKIP_HELP = f"Guidance away from what is drawn without these blocks, as 7 8 9; or any of {', '.join(SkipLayers.model_fields)}."
INVERSION_HELP = "Begin from the init_image's own noise instead of noise from the seed; the prompt says what it shows."
CONTROL_HELP = (
    "Repeatable. Keys: ready, model, weight, start, end, mode, resize, mask, layer_weights, and what `limn extract` lists for the kind."
)


@taking(OPENING | batches.OPTIONS)
def render(
    context: typer.Context,
    source: batches.Source = None,
    *,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help=help_of("prompt"))] = DEFAULT.prompt,
    negative: Annotated[str, typer.Option("--negative", help=help_of("negative_prompt"))] = DEFAULT.negative_prompt,
    control: Annotated[list[str] | None, typer.Option("--control", "-c", metavar="KIND=FILE,KEY=VALUE,…", help=CONTROL_HELP)] = None,
    model: Annotated[str, typer.Option("--model", help=help_of("model"))] = DEFAULT.model,
    vae: Annotated[str | None, option("vae", LARGER)] = DEFAULT.vae,
    size: Annotated[str, typer.Option("--size", metavar="WxH", help="Pixels, multiples of 8.")] = f"{DEFAULT.width}x{DEFAULT.height}",
    seed: Annotated[int, typer.Option("--seed", help=help_of("seed"))] = DEFAULT.seed,
    count: Annotated[int, typer.Option("--count", help=help_of("count"))] = DEFAULT.count,
    out: Annotated[str, typer.Option("--out", help="Folder for the pictures; equal requests give equal names.")] = "outputs",
    as_json: Json = False,
    steps: Annotated[int, option("steps", SAMPLING)] = DEFAULT.steps,
    sampler: Annotated[str, option("sampler", SAMPLING, help=f"{SAMPLERS}.")] = DEFAULT.sampler,
    schedule: Annotated[str, option("schedule", SAMPLING, help=f"{SCHEDULES}.")] = DEFAULT.schedule,
    shift: Annotated[float | None, option("shift", SAMPLING)] = DEFAULT.shift,
    eta: Annotated[float | None, option("eta", SAMPLING)] = DEFAULT.eta,
    variation_seed: Annotated[int, option("variation_seed", SAMPLING)] = DEFAULT.variation_seed,
    variation_strength: Annotated[float, option("variation_strength", SAMPLING)] = DEFAULT.variation_strength,
    guidance: Annotated[float, option("guidance_scale", GUIDANCE, "--guidance")] = DEFAULT.guidance_scale,
    true_cfg_scale: Annotated[float, option("true_cfg_scale", GUIDANCE)] = DEFAULT.true_cfg_scale,
    guidance_start: Annotated[float, option("guidance_start", GUIDANCE)] = DEFAULT.guidance_start,
    guidance_end: Annotated[float, option("guidance_end", GUIDANCE)] = DEFAULT.guidance_end,
    guidance_rescale: Annotated[float, option("guidance_rescale", GUIDANCE)] = DEFAULT.guidance_rescale,
    pag_scale: Annotated[float, option("pag_scale", GUIDANCE)] = DEFAULT.pag_scale,
    skip_layers: Annotated[str | None, option("skip_layers", GUIDANCE, metavar="BLOCKS|KEY=VALUE,…", help=SKIP_HELP)] = None,
    clip_skip: Annotated[int, option("clip_skip", GUIDANCE)] = DEFAULT.clip_skip,
    lora: Annotated[list[str] | None, option("loras", GUIDANCE, "--lora", metavar="NAME[=WEIGHT[:TEXT]]", help="Repeatable.")] = None,
    init_image: Annotated[Path | None, option("init_image", START)] = DEFAULT.init_image,
    resize: Annotated[Resize, option("resize", START)] = DEFAULT.resize,
    strength: Annotated[float, option("strength", START)] = DEFAULT.strength,
    inversion: Annotated[str | None, option("inversion", START, metavar="PROMPT", help=INVERSION_HELP)] = None,
    mask: Annotated[Path | None, option("mask", START)] = DEFAULT.mask,
    paste_back: Annotated[bool, option("paste_back", START, "--paste-back/--no-paste-back")] = DEFAULT.paste_back,
    hires: Annotated[str | None, option("hires", LARGER, metavar="SCALE|KEY=VALUE,…", help=HIRES_HELP)] = None,
    tile_vae: Annotated[Tiles, option("tile_vae", LARGER)] = DEFAULT.tile_vae,
    **options: Any,
) -> int | None:
    """Draw pictures from a prompt and control images. What is left out takes the model's own default, where it has one."""
    batches.refuse_misplaced(context, batch=source is not None)
    if source is not None:
        from batch.commands import render_source

        return render_source(source, typed_fields(context), context.params)
    request = build_request({"model": model, **typed_fields(context)})
    if any(options[name] for name in ("min_fidelity", "tries")) or options["best_of"] > 1:
        from batch.job import Gate
        from cli.chosen import render_chosen

        gate = Gate(options["best_of"], options["min_fidelity"])
        renderer = open_renderer(request.model, options)
        return render_chosen(renderer, request, gate, Path(out), tries=options["tries"], as_json=as_json)
    started = time.perf_counter()
    found = [(picture.save(out), picture.record) for picture in stream(open_renderer(request.model, options), request)]
    terminal.report(found, {"seconds": round(time.perf_counter() - started, 3)}, as_json)
    return None


def typed_fields(context: typer.Context) -> dict[str, Any]:
    """The request's fields that were typed, from the options of `render`; what was not is left to the model."""
    from batch.rows import PARTS, parse_lora, parse_part, parse_size
    from controls.grammar import parse_control

    renamed = {"negative": "negative_prompt", "guidance": "guidance_scale"}  # the others are called as the fields are
    typed = {
        name: value for name, value in context.params.items() if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    values = {renamed.get(name, name): value for name, value in typed.items() if renamed.get(name, name) in RenderRequest.model_fields}
    if "control" in typed:
        # With a folder of pictures a control is a kind without a file.
        files = [text for text in typed["control"] if "source" not in typed or "=" in text.partition(",")[0]]
        values["controls"] = [parse_control(text) for text in files]
    if "lora" in typed:
        values["loras"] = [parse_lora(text) for text in typed["lora"]]
    if "size" in typed:
        values["width"], values["height"] = parse_size(typed["size"])
    if "inversion" in typed:
        values["inversion"] = {"prompt": typed["inversion"]}
    return values | {name: parse_part(name, typed[name]) for name in PARTS if name in typed}
