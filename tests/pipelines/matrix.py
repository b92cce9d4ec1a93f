"""Features × families: what each cell of docs/features.md has to show, written once for all families.

`python -m tests.pipelines.matrix` writes the table; `test_matrix.py` exercises every cell.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import Cancelled, LimnError, Mismatch
from core.images import decode
from core.request import Hires, Inversion, SkipLayers
from pipelines.family import Family, Hint
from renderer import Step
from tests.pipelines.bench import SIDE, STEPS, Bench, far, near, pixels
from tests.pipelines.matrix_memory import MEMORY
from tests.tinymodels import control_map

ROOT = Path(__file__).parents[2]
FAMILIES = {
    "sd": "SD 1.x/2.x",
    "sdxl": "SDXL",
    "sd3": "SD3/3.5",
    "flux": "FLUX.1",
    "sana": "Sana",
    "qwenimage": "Qwen-Image",
    "zimage": "Z-Image",
}
# What a family refuses, in one sentence, instead of doing nothing.
REFUSED = {("perturbed attention", name) for name in ("flux", "qwenimage", "zimage")}
REFUSED |= {("skip-layer guidance", name) for name in ("sd", "sdxl")}


def text_to_image(bench: Bench) -> None:
    one, same, other, unguided = bench.draw(
        bench.request(), bench.request(), bench.request(prompt="a person on snow at night"), bench.unguided()
    )
    assert np.array_equal(one, same)
    assert far(one, other)
    assert far(one, unguided)


def image_to_image(bench: Bench) -> None:
    photo = bench.pictures / "photo.png"
    kept, half, whole = bench.draw(*(bench.request(init_image=photo, strength=strength) for strength in (0.0, 0.4, 1.0)))
    assert np.array_equal(kept, *bench.draw(bench.request(init_image=photo, strength=0.0, prompt="anything else", seed=8)))
    assert far(kept, half)
    assert far(half, whole)


def inpainting(bench: Bench) -> None:
    values: dict[str, Any] = {"init_image": bench.pictures / "photo.png", "mask": bench.pictures / "left.png"}
    painted, unpasted, kept = bench.draw(
        bench.request(**values, strength=0.7),
        bench.request(**values, strength=0.7, paste_back=False),
        bench.request(init_image=values["init_image"], strength=0.0),
    )
    assert far(painted[:, : SIDE // 2], kept[:, : SIDE // 2])
    assert np.array_equal(painted[:, SIDE // 2 :], decode(bench.pictures / "photo.png")[:, SIDE // 2 :])
    assert np.array_equal(painted[:, : SIDE // 2], unpasted[:, : SIDE // 2])


def one_control(bench: Bench) -> None:
    plain, steered = bench.draw(bench.request(), bench.request(controls=(bench.control(),)))
    assert far(plain, steered)


def several_controls(bench: Bench) -> None:
    one, both, halves = bench.draw(
        bench.request(controls=(bench.control(weight=0.8),)),
        bench.request(controls=(bench.control(weight=0.8), bench.control("depth"))),
        bench.request(controls=(bench.control(weight=0.4), bench.control(weight=0.4))),
    )
    assert far(one, both)
    assert near(one, halves)


def control_weight(bench: Bench) -> None:
    with bench.counted() as calls:
        plain, nothing, full = bench.draw(
            bench.request(), bench.request(controls=(bench.control(weight=0.0),)), bench.request(controls=(bench.control(weight=1.5),))
        )
    assert np.array_equal(plain, nothing)
    assert far(plain, full)
    assert len(calls["control"]) == STEPS  # the last request's alone


def start_and_end(bench: Bench) -> None:
    with bench.counted() as calls:
        bench.draw(bench.request(steps=5, controls=(bench.control(start=0.2, end=0.7),)))
    assert len(calls["control"]) == 2
    assert len(calls["base"]) == 5


def layer_weights(bench: Bench) -> None:
    net = bench.renderer.engine.control(bench.family, Path(bench.renderer.model).parent / "controlnet-canny")
    levels = bench.family.prepare(net, Hint(control_map(0), "canny")).levels
    with bench.counted() as calls:
        plain, silent, full, one = bench.draw(
            bench.request(),
            bench.request(controls=(bench.control(layer_weights=(0.0,) * levels),)),
            bench.request(controls=(bench.control(layer_weights=(0.5,) * levels),)),
            bench.request(controls=(bench.control(weight=0.5),)),
        )
    assert np.array_equal(plain, silent)
    assert near(full, one)
    assert len(calls["control"]) == 2 * STEPS
    with pytest.raises(Mismatch, match="layer_weights"):
        bench.draw(bench.request(controls=(bench.control(layer_weights=(1.0,) * (levels + 1)),)))


def control_modes(bench: Bench) -> None:
    with bench.counted() as calls:
        drawn = bench.draw(
            *(bench.request(controls=(bench.control(mode=mode, weight=2.0),)) for mode in ("balanced", "prompt", "control", "guess"))
        )
    assert far(drawn[0], drawn[2])
    assert far(drawn[0], drawn[3])
    assert calls["control"][-2 * STEPS :] == [1] * 2 * STEPS  # control and guess ask about the prompt's half alone


def region_mask(bench: Bench) -> None:
    full, none, left, white, black = bench.draw(
        bench.request(controls=(bench.control(),)),
        bench.request(),
        *(bench.request(controls=(bench.control(mask=bench.pictures / f"{name}.png"),)) for name in ("left", "white", "black")),
    )
    assert near(white, full)
    assert near(black, none)
    assert far(left, full)
    assert far(left, none)


def guidance_interval(bench: Bench) -> None:
    with bench.counted() as calls:
        never, unguided = bench.draw(bench.request(guidance_end=0.0), bench.request(guidance_start=1.0))
        bench.draw(bench.request(steps=5, guidance_start=0.2, guidance_end=0.7))
    assert np.array_equal(never, unguided)
    assert calls["base"][-5:] == [1, 2, 2, 1, 1]


def guidance_rescale(bench: Bench) -> None:
    none, all_of_it = bench.draw(bench.request(), bench.request(guidance_rescale=1.0))
    assert far(none, all_of_it) or bench.family.after_guidance is not Family.after_guidance


def perturbed_attention(bench: Bench) -> None:
    with bench.counted() as calls:
        plain, perturbed = bench.draw(bench.request(), bench.request(pag_scale=3.0))
    assert far(plain, perturbed)
    assert calls["base"] == [2] * STEPS + [3] * STEPS


def skip_layer_guidance(bench: Bench) -> None:
    skip = SkipLayers(blocks=(1,), scale=3.0, start=0.0, end=1.0)
    with bench.counted() as calls:
        plain, silent, skipped = bench.draw(
            bench.request(), *(bench.request(skip_layers=skip.model_copy(update={"scale": scale})) for scale in (0.0, 3.0))
        )
    assert np.array_equal(plain, silent)
    assert far(plain, skipped)
    assert calls["base"] == [2] * 2 * STEPS + [2] + [3] * (STEPS - 1)  # the first step lies on the window's bound


def prompt_schedules(bench: Bench) -> None:
    one, switched, never = bench.draw(
        bench.request(prompt="a red sphere"),
        bench.request(prompt="[a red sphere:a person on snow at night:1]"),
        bench.request(prompt=f"[a red sphere:a person on snow at night:{STEPS}]"),
    )
    assert not np.array_equal(one, switched)
    assert np.array_equal(one, never)


def composed_prompts(bench: Bench) -> None:
    with bench.counted() as calls:
        one, both, twice = bench.draw(
            bench.request(prompt="a red sphere"),
            bench.request(prompt="a red sphere AND a person on snow at night"),
            bench.request(prompt="a red sphere :0.5 AND a red sphere :0.5"),
        )
    assert far(one, both)
    assert near(one, twice)
    assert calls["base"][-1] == 3


def shifted_steps(bench: Bench) -> None:
    """Given as a number, the model's own shift changes nothing, and another does."""
    request = bench.request(controls=(bench.control(),))
    own = bench.family.shift(request.width, request.height).factor
    plain, same, more = bench.draw(request, *(request.model_copy(update={"shift": shift}) for shift in (own, 3.0 * own)))
    assert np.array_equal(plain, same)
    assert far(plain, more)


def variation_seeds(bench: Bench) -> None:
    seed, other, way, all_the_way = bench.draw(
        bench.request(),
        bench.request(seed=40),
        bench.request(variation_seed=40, variation_strength=0.3),
        bench.request(variation_seed=40, variation_strength=1.0),
    )
    assert far(seed, way)
    assert near(all_the_way, other)


def batches(bench: Bench) -> None:
    values: dict[str, Any] = {"sampler": "euler_ancestral", "controls": (bench.control(),)}
    together = bench.renderer.render(bench.request(count=2, **values))
    for i, picture in enumerate(together):
        assert near(pixels(picture), *bench.draw(bench.request(seed=7 + i, **values)))


def mixed_requests(bench: Bench) -> None:
    """Prompts of other lengths, seeds, maps and weights in one batch."""
    requests = [
        bench.request(prompt=prompt, seed=seed, sampler="euler_ancestral", controls=(bench.control(weight=weight),))
        for prompt, seed, weight in (("a red sphere", 7, 1.0), ("a person in a long green coat on snow at night", 2, 0.6), ("", 5, 0.0))
    ]
    moved = requests[1].controls[0].model_copy(update={"image": bench.pictures / "photo.png"})
    requests[1] = requests[1].model_copy(update={"controls": (moved,)})
    alone = bench.draw(*requests)
    with bench.counted() as calls:
        together = [pixels(pictures[0]) for pictures in bench.renderer.render_many(requests)]
    assert len(calls["base"]) == STEPS
    assert all(near(one, other) for one, other in zip(together, alone, strict=True))
    assert far(alone[0], alone[1])


def second_pass(bench: Bench) -> None:
    for upscaler in ("latent", "lanczos"):
        hires = Hires(scale=2.0, upscaler=upscaler, strength=0.7)
        with_control, without = bench.draw(
            bench.request(hires=hires, controls=(bench.control(),)),
            bench.request(hires=hires.model_copy(update={"with_control": False}), controls=(bench.control(),)),
        )
        assert with_control.shape == (2 * SIDE, 2 * SIDE, 3)
        assert far(with_control, without)


def tiles(bench: Bench) -> None:
    """Where the autoencoder can; at this size there is but one tile."""
    (plain,), (tiled,) = bench.draw(bench.request()), bench.draw(bench.request(tile_vae="on"))
    assert plain.shape == tiled.shape


def previews(bench: Bench) -> None:
    shown: list[Any] = []
    exact: list[Any] = []

    def on_step(step: Step) -> None:
        shown.append(step.preview()[0])
        exact.append(step.decode()[0])

    finished = bench.renderer.render(bench.request(), on_step)[0]
    assert [one.shape for one in shown] == [(SIDE, SIDE, 3)] * STEPS
    assert near(exact[-1].astype(int), pixels(finished))


def cancellation(bench: Bench) -> None:
    before = bench.draw(bench.request())
    with bench.counted() as calls, pytest.raises(Cancelled):
        bench.renderer.render(bench.request(), cancelled=lambda: len(calls["base"]) == 1)
    assert len(calls["base"]) == 1
    assert np.array_equal(before, bench.draw(bench.request()))


def texts_once(bench: Bench) -> None:
    """Prompt and negative prompt, however many pictures and requests ask for them."""
    shelf = bench.family._encoded
    bench.family.forget_texts()
    bench.draw(bench.request(prompt="a green capsule", count=2))
    encoded = shelf.cache_info().misses
    bench.draw(bench.request(prompt="a green capsule", seed=9))
    assert shelf.cache_info().misses == encoded
    assert encoded == 2


def hints_once(bench: Bench) -> None:
    calls: list[str] = []
    prepare = bench.family.prepare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.family, "prepare", lambda net, hint: (calls.append(hint.kind), prepare(net, hint))[1])
        bench.draw(bench.request(count=2, controls=(bench.control(end=0.5), bench.control(start=0.5), bench.control("depth"))))
    assert calls == ["canny", "depth"]


def inversion(bench: Bench) -> None:
    """A picture's own noise brings it back better than other words' noise, and far better than a seed's, which has no part in it.

    Networks without training wind their ways so that little comes back; how much does from a trained one: tests/test_renderer_features.py.
    """
    photo = bench.pictures / "photo.png"
    values: dict[str, Any] = {"init_image": photo, "strength": 1.0, "prompt": "a red sphere", "steps": 12}
    back, elsewhere = (Inversion(prompt=words, iterations=10) for words in ("a red sphere", "a person on snow at night"))
    kept, again, other_seed, otherwise, from_seed = bench.draw(
        bench.unguided(init_image=photo, strength=0.0),
        bench.unguided(**values, inversion=back),
        bench.unguided(**values, inversion=back, seed=40),
        bench.unguided(**values, inversion=elsewhere),
        bench.unguided(**values),
    )
    distances = [np.abs(one - kept).mean() for one in (again, otherwise, from_seed)]
    assert distances == sorted(distances)
    assert distances[0] < 0.8 * distances[2]
    assert np.array_equal(again, other_seed)


FEATURES: dict[str, Callable[[Bench], None]] = {
    "text to image": text_to_image,
    "image to image": image_to_image,
    "inpainting": inpainting,
    "a control": one_control,
    "several controls": several_controls,
    "control weight": control_weight,
    "control start and end": start_and_end,
    "weights for each level": layer_weights,
    "control modes": control_modes,
    "region mask for a control": region_mask,
    "guidance interval": guidance_interval,
    "guidance rescale": guidance_rescale,
    "perturbed attention": perturbed_attention,
    "skip-layer guidance": skip_layer_guidance,
    "prompts that change from step to step": prompt_schedules,
    "prompts joined by AND": composed_prompts,
    "another shift of the noise levels": shifted_steps,
    "variation seeds": variation_seeds,
    "a picture of a batch is the picture alone": batches,
    "requests mixed in one batch": mixed_requests,
    "second, larger pass": second_pass,
    "decoding in tiles": tiles,
    "previews": previews,
    "cancelled before the next network": cancellation,
    "texts encoded once": texts_once,
    "control maps prepared once": hints_once,
    "from a picture's own noise (inversion)": inversion,
    **MEMORY,
}


def exercise(bench: Bench, feature: str) -> None:
    """One cell: the feature works, or is refused by an error of ours."""
    if (feature, bench.name) not in REFUSED:
        FEATURES[feature](bench)
        return
    with pytest.raises(LimnError) as caught:
        FEATURES[feature](bench)
    assert "\n" not in str(caught.value)


def grid() -> str:
    """The table, in Markdown."""
    rows = ["| | " + " | ".join(FAMILIES.values()) + " |", "|---|" + "---|" * len(FAMILIES)]
    for feature in FEATURES:
        marks = ["refused" if (feature, name) in REFUSED else "yes" for name in FAMILIES]
        rows.append(f"| {feature} | " + " | ".join(marks) + " |")
    return "\n".join(rows)


def document() -> str:
    """docs/features.md."""
    return f"""# Features and families

Each feature is written once, in the loop, and so holds for every family. Every cell of this table is exercised by
`tests/pipelines/test_matrix.py` on a small model of the family's real classes with random weights; `refused` means that the request is
turned down in one sentence. Where a cell needs a package that is not installed, what is exercised is the sentence that names it. The table
is written by `python -m tests.pipelines.matrix`.

{grid()}
"""


if __name__ == "__main__":
    (ROOT / "docs" / "features.md").write_text(document(), encoding="utf-8")
