"""Networks of the real classes at the smallest sizes they take, with random weights, saved as published ones are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t

SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1] * 4,
    "num_heads": [1] * 4,
    "window_size": 4,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
QUERIES = {
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 32,
    "num_queries": 5,
}


def dpt() -> Any:
    config = t.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        reassemble_factors=[4, 2, 1, 0.5],
    )
    return t.DPTForDepthEstimation(config)


def zoedepth() -> Any:
    backbone = t.BeitConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        use_absolute_position_embeddings=True,
    )
    config = t.ZoeDepthConfig(
        backbone_config=backbone,
        backbone_hidden_size=32,
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=4,
        bin_configurations=[{"n_bins": 8, "min_depth": 0.1, "max_depth": 10.0, "name": "room"}],
        bin_embedding_dim=8,
        num_attractors=[2, 2, 2, 2],
    )
    return t.ZoeDepthForDepthEstimation(config)


def segformer() -> Any:
    config = t.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
        num_labels=150,
    )
    return t.SegformerForSemanticSegmentation(config)


def upernet() -> Any:
    backbone = t.ConvNextConfig(num_stages=4, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=SWIN["out_features"])
    config = t.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], auxiliary_channels=8, auxiliary_in_channels=8, num_labels=150
    )
    return t.UperNetForSemanticSegmentation(config)


def mask2former() -> Any:
    config = t.Mask2FormerConfig(backbone_config=t.SwinConfig(**SWIN), feature_size=32, num_labels=133, **QUERIES)
    return t.Mask2FormerForUniversalSegmentation(config)


def oneformer() -> Any:
    config = t.OneFormerConfig(
        backbone_config=t.SwinConfig(**SWIN),
        conv_dim=32,
        mask_dim=32,
        task_seq_len=8,
        max_seq_len=8,
        query_dec_layers=1,
        num_labels=150,
        is_training=False,
        **QUERIES,
    )
    return t.OneFormerForUniversalSegmentation(config)


def sam() -> Any:
    vision = t.SamVisionConfig(
        hidden_size=32,
        output_channels=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_dim=32,
        window_size=0,
        global_attn_indexes=[0],
        num_pos_feats=8,
    )
    prompt = t.SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4)
    decoder = t.SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16)
    return t.SamModel(t.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))


def sam2() -> Any:
    backbone = t.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 4],
        blocks_per_stage=[1, 1, 2, 1],
        window_size_per_stage=[4, 2, 2, 2],
        window_positional_embedding_background_size=[4, 4],
        global_attention_blocks=[3],
    )
    vision = t.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )
    prompt = t.Sam2PromptEncoderConfig(hidden_size=16, image_size=64, patch_size=16, mask_input_channels=4)
    decoder = t.Sam2MaskDecoderConfig(hidden_size=16, mlp_dim=32, num_hidden_layers=1, num_attention_heads=2, iou_head_hidden_dim=16)
    return t.Sam2Model(t.Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))


def rtdetr() -> Any:
    backbone = t.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )
    config = t.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[16] * 3,
        encoder_hidden_dim=16,
        d_model=16,
        encoder_ffn_dim=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_queries=6,
        decoder_in_channels=[16] * 3,
        id2label={0: "person"},
        num_denoising=0,
    )
    return t.RTDetrForObjectDetection(config)


def vitpose() -> Any:
    backbone = t.VitPoseBackboneConfig(
        image_size=[64, 48], patch_size=[16, 16], hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, out_indices=[2]
    )
    return t.VitPoseForPoseEstimation(t.VitPoseConfig(backbone_config=backbone, num_labels=17, use_simple_decoder=True))


NETWORKS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "dpt": (dpt, {"size": {"height": 32, "width": 32}}),
    "zoedepth": (zoedepth, {"size": {"height": 64, "width": 64}, "ensure_multiple_of": 32}),
    "segformer": (segformer, {"size": {"height": 32, "width": 32}}),
    "upernet": (upernet, {"size": {"height": 64, "width": 64}}),
    "mask2former": (mask2former, {"size": {"shortest_edge": 64, "longest_edge": 128}, "size_divisor": 32}),
    "oneformer": (oneformer, {"size": {"shortest_edge": 64, "longest_edge": 128}}),
    "sam2": (sam2, {"size": {"height": 64, "width": 64}}),
    "sam": (sam, {"size": {"longest_edge": 64}, "pad_size": {"height": 64, "width": 64}}),
    "rtdetr": (rtdetr, {"size": {"height": 64, "width": 64}, "do_normalize": False}),
    "vitpose": (vitpose, {"size": {"height": 64, "width": 48}}),
}


def write(name: str, folder: Path) -> Path:
    """One of the networks in a folder of its own, as a hub snapshot has it."""
    make, preprocessing = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # a fresh network's biases are 0, which hides mistakes
    network.save_pretrained(folder / name)
    (folder / name / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    if name == "oneformer":
        tokenizer = t.CLIPTokenizer().train_new_from_iterator(["the task is semantic"], vocab_size=99)
        tokenizer.model_max_length = 8
        tokenizer.save_pretrained(folder / name)
    return folder / name
