"""Tiny language models and their tokenizers, as Qwen-Image and Z-Image read prompts with; see `tests.tinymodels`."""

from typing import Any

from tests.tinymodels import CAPTIONS

TEXT_WIDTH = 32
_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_chat_tokenizer(vocabulary: int = 400) -> Any:
    """A Qwen2 tokenizer with a vocabulary of its own, trained on the captions, and a chat template."""
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer().train_new_from_iterator([*CAPTIONS, "user assistant system"], vocab_size=vocabulary)
    tokenizer.add_special_tokens({"additional_special_tokens": _SPECIAL[1:], "pad_token": _SPECIAL[0], "eos_token": _SPECIAL[2]})
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def build_qwen3(vocabulary: int) -> Any:
    """Z-Image's text encoder: two layers, of which the last but one is read."""
    from transformers import Qwen3Config, Qwen3Model

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return Qwen3Model(config).eval()


def build_qwen_vl(vocabulary: int) -> Any:
    """Qwen-Image's text encoder, with the eyes that it does not use."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": TEXT_WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT_WIDTH},
        vocab_size=vocabulary,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()
