"""Windows, weights, layers and textual inversions against diffusers' own encoding and against the formulas written out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.clip import count_tokens, count_windows, encode_t5, encode_windows, pad_windows
from pipelines.inversion import load_inversions
from pipelines.prompt import EMPTY, Phrase, Wording, parse, plain

WORDS = ["red", "green", "blue", "cube", "sphere", "on", "grass", "style"]
LINES = [" ".join(WORDS), ", ".join(WORDS), "a red cube, a blue sphere, on grass"]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """Every word one token; the comma has its own."""
    trained = CLIPTokenizer().train_new_from_iterator(LINES * 4, vocab_size=600)
    trained.model_max_length = 77
    assert ",</w>" in trained.get_vocab()
    return trained


def build_encoder(kind: Any, tokenizer: Any, width: int = 32, **config: Any) -> Any:
    torch.manual_seed(0)
    encoder = kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=24,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **config,
        )
    ).eval()
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    torch.nn.init.normal_(norm.bias, mean=0.3)  # a trained norm's mean is not 0
    return encoder


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> Any:
    return build_encoder(CLIPTextModel, tokenizer)


@pytest.fixture(scope="module")
def projecting(tokenizer: Any) -> Any:
    return build_encoder(CLIPTextModelWithProjection, tokenizer)


def wording(prompt: str) -> Wording:
    return parse(prompt, 1).parts[0].wordings[0][1]


def padded(tokenizer: Any, prompt: str) -> Tensor:
    ids: Tensor = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return ids


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["a red cube, on grass", "", " ".join(WORDS * 9)])
def test_a_plain_prompt_is_diffusers_encoding_bit_for_bit(prompt: str, tokenizer: Any, encoder: Any, projecting: Any) -> None:
    got = encode_windows(encoder, tokenizer, plain(prompt))
    assert torch.equal(got.tokens_1LD, encoder(padded(tokenizer, prompt))[0])  # StableDiffusionPipeline.encode_prompt
    assert got.windows == 1
    out = projecting(padded(tokenizer, prompt), output_hidden_states=True)  # StableDiffusionXLPipeline.encode_prompt
    got = encode_windows(projecting, tokenizer, plain(prompt), layer="penultimate")
    assert torch.equal(got.tokens_1LD, out.hidden_states[-2])
    assert got.pooled_1D is not None
    assert torch.equal(got.pooled_1D, out[0])


def test_diffusers_own_functions_agree(base: Path) -> None:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(base, safety_checker=None, requires_safety_checker=False)
    with torch.no_grad():
        expected = pipe.encode_prompt("a red cube on grass", "cpu", 1, False)[0]
    assert torch.equal(encode_windows(pipe.text_encoder, pipe.tokenizer, plain("a red cube on grass")).tokens_1LD, expected)


@torch.no_grad()
def test_attention_mask_where_the_encoder_was_trained_with_one(tokenizer: Any) -> None:
    encoder = build_encoder(CLIPTextModel, tokenizer, use_attention_mask=True)
    inputs = tokenizer("a red cube", padding="max_length", max_length=77, return_tensors="pt")
    expected = encoder(inputs.input_ids, attention_mask=inputs.attention_mask)[0]
    assert torch.equal(encode_windows(encoder, tokenizer, plain("a red cube")).tokens_1LD, expected)


def test_an_offloaded_encoder_encodes_alike(tokenizer: Any, encoder: Any) -> None:
    """Its weights are on no device while it waits."""
    import copy

    from accelerate import cpu_offload

    offloaded = cpu_offload(copy.deepcopy(encoder), torch.device("cpu"))
    assert offloaded.get_input_embeddings().weight.device.type == "meta"
    expected = encode_windows(encoder, tokenizer, plain("a red cube")).tokens_1LD
    assert torch.equal(encode_windows(offloaded, tokenizer, plain("a red cube")).tokens_1LD, expected)


@torch.no_grad()
def test_clip_skip(tokenizer: Any, encoder: Any, projecting: Any) -> None:
    prompt = "a red cube"
    states = encoder(padded(tokenizer, prompt), output_hidden_states=True).hidden_states
    for skip in (2, 3):
        got = encode_windows(encoder, tokenizer, plain(prompt), clip_skip=skip).tokens_1LD
        assert torch.equal(got, encoder.final_layer_norm(states[-skip]))
    states = projecting(padded(tokenizer, prompt), output_hidden_states=True).hidden_states
    got = encode_windows(projecting, tokenizer, plain(prompt), clip_skip=2, layer="penultimate").tokens_1LD
    assert torch.equal(got, states[-3])
    with pytest.raises(BadRequest, match=r"clip_skip = 4: .* 1 to 3"):
        encode_windows(encoder, tokenizer, plain(prompt), clip_skip=4)
    with pytest.raises(BadRequest, match=r"clip_skip = 3: .* 1 to 2"):
        encode_windows(projecting, tokenizer, plain(prompt), clip_skip=3, layer="penultimate")


@torch.no_grad()
def test_weights_multiply_and_the_mean_is_restored(tokenizer: Any, encoder: Any) -> None:
    got = encode_windows(encoder, tokenizer, wording("a red (blue sphere:1.4) [grass]"))
    states = encoder(padded(tokenizer, "a red blue sphere grass"))[0]
    weights = torch.ones(1, 77, 1)
    weights[0, 3:5] = 1.4
    weights[0, 5] = 1 / 1.1
    expected = states * weights
    expected = expected * (states.mean() / expected.mean())
    torch.testing.assert_close(got.tokens_1LD, expected, rtol=1e-6, atol=1e-6)  # the same sums, in another order
    assert got.pooled_1D is not None
    assert torch.equal(got.pooled_1D, encoder(padded(tokenizer, "a red blue sphere grass")).pooler_output)  # not weighted


@torch.no_grad()
def test_a_mean_that_is_only_rounding_is_not_restored(tokenizer: Any) -> None:
    encoder = build_encoder(CLIPTextModel, tokenizer)
    torch.nn.init.zeros_(encoder.final_layer_norm.bias)  # the mean of normalised states is 0
    plainly = encode_windows(encoder, tokenizer, plain("a red cube")).tokens_1LD
    weighted = encode_windows(encoder, tokenizer, wording("a red (cube:1.5)")).tokens_1LD
    assert torch.equal(weighted[0, 3], plainly[0, 3] * 1.5)
    assert torch.equal(weighted[0, 2], plainly[0, 2])


@torch.no_grad()
def test_a_long_prompt_is_read_in_windows(tokenizer: Any, encoder: Any) -> None:
    words = WORDS * 20  # 160 tokens: 75, 75 and 10
    got = encode_windows(encoder, tokenizer, plain(" ".join(words)))
    assert got.windows == 3
    for i in range(3):
        part = encoder(padded(tokenizer, " ".join(words[75 * i : 75 * (i + 1)])))[0]
        assert torch.equal(got.tokens_1LD[:, 77 * i : 77 * (i + 1)], part)
    assert got.pooled_1D is not None
    assert torch.equal(got.pooled_1D, encoder(padded(tokenizer, " ".join(words[:75]))).pooler_output)


@pytest.mark.parametrize(
    ("before", "expected"),
    [(74, 75), (70, 71), (56, 57), (55, 56), (54, 75), (0, 75)],  # commas more than 20 tokens back are too far
)
def test_a_window_ends_at_a_comma_that_is_near(before: int, expected: int, tokenizer: Any, encoder: Any) -> None:
    words = ["red"] * before + [","] + ["cube"] * (129 - before)
    got = encode_windows(encoder, tokenizer, plain(" ".join(words)))
    first = encode_windows(encoder, tokenizer, plain(" ".join(words[:expected])))
    second = encode_windows(encoder, tokenizer, plain(" ".join(words[expected:])))
    assert got.windows == 2
    assert torch.equal(got.tokens_1LD, torch.cat([first.tokens_1LD, second.tokens_1LD], dim=1))


def test_break_begins_a_window(tokenizer: Any, encoder: Any) -> None:
    got = encode_windows(encoder, tokenizer, wording("red cube BREAK (blue:1.3) sphere"))
    alone = [encode_windows(encoder, tokenizer, wording(text)).tokens_1LD for text in ("red cube", "(blue:1.3) sphere")]
    assert torch.equal(got.tokens_1LD, torch.cat(alone, dim=1))


def test_two_prompts_get_equally_many_windows(tokenizer: Any, encoder: Any) -> None:
    empty = encode_windows(encoder, tokenizer, EMPTY)
    short = encode_windows(encoder, tokenizer, plain("a red cube"))
    expected = torch.cat([short.tokens_1LD, empty.tokens_1LD, empty.tokens_1LD], dim=1)
    for got in (encode_windows(encoder, tokenizer, plain("a red cube"), windows=3), pad_windows(short, empty, 3)):
        assert got.windows == 3
        assert torch.equal(got.tokens_1LD, expected)
    assert torch.equal(pad_windows(short, empty, 1).tokens_1LD, short.tokens_1LD)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("", (0, 75)), ("a red cube", (3, 75)), (" ".join(WORDS * 10), (80, 150)), ("red BREAK cube", (76, 150)), ("(red:1.2) cube", (2, 75))],
)
def test_counts(prompt: str, expected: tuple[int, int], tokenizer: Any) -> None:
    assert count_tokens(tokenizer, wording(prompt)) == expected
    assert count_windows(tokenizer, wording(prompt)) == expected[1] // 75


# Textual inversion.


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three forms that are published, for encoders 32 wide, one with a second half 48 wide, one of another width."""
    folder = tmp_path_factory.mktemp("embeddings")
    (folder / "more").mkdir()
    draw = torch.Generator().manual_seed(0)
    save_file({"emb_params": torch.randn(2, 32, generator=draw)}, folder / "my-style.safetensors")
    save_file({"<odd>": torch.randn(32, generator=draw)}, folder / "more" / "learned_embeds.safetensors")
    save_file({"clip_l": torch.randn(1, 32, generator=draw), "clip_g": torch.randn(1, 48, generator=draw)}, folder / "both.safetensors")
    save_file({"emb_params": torch.randn(1, 64, generator=draw)}, folder / "wide.safetensors")
    return folder


@torch.no_grad()
def reference(encoder: Any, tokenizer: Any, prompt: str, rows: dict[int, Tensor]) -> Tensor:
    """The states when the embeddings at positions are these: the embedding table itself is changed, in a copy."""
    import copy

    ids = padded(tokenizer, prompt)
    changed = copy.deepcopy(encoder)
    table = changed.get_input_embeddings()
    free = [i for i in range(len(tokenizer)) if i not in ids]
    for place, (position, vector) in zip(free, rows.items(), strict=False):
        table.weight[place] = vector
        ids[0, position] = place
    states: Tensor = changed(ids)[0]
    return states


@pytest.mark.parametrize("word", ["my-style", "MY-STYLE"])
def test_inversion_vectors_stand_for_the_word(word: str, embeddings: Path, tokenizer: Any, encoder: Any) -> None:
    inversions = load_inversions(embeddings)
    (style,) = inversions.used(f"a {word}, cube")
    got = encode_windows(encoder, tokenizer, plain(f"a {word}, cube"), inversions=inversions)
    expected = reference(encoder, tokenizer, "a red red, cube", {2: style.tensors[0][0], 3: style.tensors[0][1]})
    torch.testing.assert_close(got.tokens_1LD, expected, rtol=0, atol=1e-6)
    assert count_tokens(tokenizer, plain(f"a {word}, cube"), inversions) == (5, 75)


def test_diffusers_form_and_weights(embeddings: Path, tokenizer: Any, encoder: Any) -> None:
    inversions = load_inversions(embeddings)
    assert inversions.words == ["<odd>", "both", "learned_embeds", "my-style", "wide"]
    by_token = encode_windows(encoder, tokenizer, plain("a <odd>, cube"), inversions=inversions)
    by_file = encode_windows(encoder, tokenizer, plain("a learned_embeds, cube"), inversions=inversions)
    assert torch.equal(by_token.tokens_1LD, by_file.tokens_1LD)
    weighted = encode_windows(encoder, tokenizer, wording("a (<odd>:1.5), cube"), inversions=inversions).tokens_1LD
    expected = by_token.tokens_1LD.clone()
    expected[0, 2] *= 1.5
    torch.testing.assert_close(weighted, expected * (by_token.tokens_1LD.mean() / expected.mean()), rtol=1e-5, atol=1e-6)


def test_each_encoder_of_sdxl_gets_its_own(embeddings: Path, tokenizer: Any, encoder: Any) -> None:
    inversions = load_inversions(embeddings)
    wide = build_encoder(CLIPTextModelWithProjection, tokenizer, width=48)
    for one in (encoder, wide):
        with_word = encode_windows(one, tokenizer, plain("both cube"), inversions=inversions).tokens_1LD
        assert not torch.allclose(with_word, encode_windows(one, tokenizer, plain("both cube")).tokens_1LD)


def test_prompts_without_the_word_are_untouched(embeddings: Path, tokenizer: Any, encoder: Any) -> None:
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    inversions = load_inversions(embeddings)
    for prompt in ("a red cube", "my-styled cube", "not-my-style", ""):
        plainly = encode_windows(encoder, tokenizer, plain(prompt)).tokens_1LD
        encode_windows(encoder, tokenizer, plain("my-style"), inversions=inversions)
        assert torch.equal(encode_windows(encoder, tokenizer, plain(prompt), inversions=inversions).tokens_1LD, plainly)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_vectors_are_not_torn_apart_between_windows(embeddings: Path, tokenizer: Any, encoder: Any) -> None:
    inversions = load_inversions(embeddings)
    text = " ".join(["red"] * 74)
    got = encode_windows(encoder, tokenizer, plain(f"{text} my-style"), inversions=inversions)
    alone = encode_windows(encoder, tokenizer, plain("my-style"), inversions=inversions)
    assert torch.equal(got.tokens_1LD[:, 77:], alone.tokens_1LD)


def test_inversion_refusals(embeddings: Path, tmp_path: Path, tokenizer: Any, encoder: Any) -> None:
    with pytest.raises(Mismatch, match=r"'wide.safetensors' is for text encoders of width 64, this model has one of width 32"):
        encode_windows(encoder, tokenizer, plain("a wide cube"), inversions=load_inversions(embeddings))
    (tmp_path / "old.pt").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(BadModel, match=r"'old.pt' is a pickle.*safetensors.torch.save_file"):
        load_inversions(tmp_path / "old.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(BadModel, match="cannot be read"):
        load_inversions(tmp_path / "bad.safetensors")
    save_file({"unet.conv.weight": torch.zeros(2, 2, 3, 3)}, tmp_path / "net.safetensors")
    with pytest.raises(BadModel, match=r"no textual inversion: it holds unet.conv.weight \(2, 2, 3, 3\)"):
        load_inversions(tmp_path / "net.safetensors")
    with pytest.raises(BadModel, match="no textual inversion at"):
        load_inversions(tmp_path / "missing")


# T5.


@pytest.fixture(scope="module")
def t5() -> tuple[Any, Any]:
    tokenizer = T5Tokenizer().train_new_from_iterator(LINES * 4, vocab_size=400)
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    return T5EncoderModel(config).eval(), tokenizer


@torch.no_grad()
def test_t5_is_diffusers_encoding(t5: tuple[Any, Any]) -> None:
    encoder, tokenizer = t5
    for prompt in ("a red cube, on grass", ""):
        inputs = tokenizer(prompt, padding="max_length", max_length=40, truncation=True, return_tensors="pt")
        states, mask, dropped = encode_t5(encoder, tokenizer, plain(prompt), max_length=40)
        assert torch.equal(states, encoder(inputs.input_ids)[0])  # StableDiffusion3Pipeline, FluxPipeline
        assert torch.equal(mask, inputs.attention_mask)
        assert dropped == ""


@torch.no_grad()
def test_t5_weights_and_limit(t5: tuple[Any, Any]) -> None:
    encoder, tokenizer = t5
    plainly, _, _ = encode_t5(encoder, tokenizer, plain("red cube"), max_length=12)
    halves = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in ("red", "cube")]
    states, mask, _ = encode_t5(encoder, tokenizer, Wording(((Phrase("red "), Phrase("cube", 2.0)),)), max_length=12)
    expected = plainly.clone()
    expected[0, halves[0] : sum(halves)] *= 2
    assert torch.equal(states, expected)
    assert int(mask.sum()) == sum(halves) + 1
    states, mask, dropped = encode_t5(encoder, tokenizer, plain(" ".join(WORDS)), max_length=4)
    assert states.shape == (1, 4, 32)
    assert int(mask.sum()) == 4
    assert dropped.endswith("style")
