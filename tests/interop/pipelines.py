"""Tiny pipelines of diffusers, built from configurations with random weights: every part is the real class."""

import functools
import string

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

SIDE = 16  # pixels, twice the latents


def ddpm():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    return DDPMPipeline(unet, DDPMScheduler(clip_sample=False))


def dit():
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=2,
    )  # fmt: skip
    return DiTPipeline(_shaken(transformer), _autoencoder(), DDIMScheduler(clip_sample=False, set_alpha_to_one=True))


def stable_diffusion(prediction="epsilon", zero=False):
    torch.manual_seed(0)
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing",
        prediction_type=prediction, rescale_betas_zero_snr=zero, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=_autoencoder(), text_encoder=_clip(), tokenizer=_clip_tokenizer(), unet=_unet(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl():
    torch.manual_seed(0)
    unet = _unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
        cross_attention_dim=32,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1,
        clip_sample=False, set_alpha_to_one=False,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_autoencoder(), text_encoder=_clip(), text_encoder_2=_clip(projected=True), tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(), unet=unet, scheduler=scheduler, add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3():
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=32,
        pos_embed_max_size=8,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=_shaken(transformer), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_autoencoder(0.1),
        text_encoder=_clip(projected=True), tokenizer=_clip_tokenizer(), text_encoder_2=_clip(projected=True),
        tokenizer_2=_clip_tokenizer(), text_encoder_3=_t5(), tokenizer_3=_t5_tokenizer(),
    )  # fmt: skip


def flux(distilled=True):
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, guidance_embeds=distilled, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FluxPipeline(
        scheduler=scheduler, vae=_autoencoder(0.1), text_encoder=_clip(), tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(), tokenizer_2=_t5_tokenizer(), transformer=_shaken(transformer),
    )  # fmt: skip


def pixart():
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, cross_attention_dim=16, caption_channels=32, norm_num_groups=2, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtAlphaPipeline(
        tokenizer=_t5_tokenizer(), text_encoder=_t5(), vae=_autoencoder(), transformer=_shaken(transformer),
        scheduler=DPMSolverMultistepScheduler(timestep_spacing="trailing"),
    )  # fmt: skip


def _shaken(model):
    # Layers that start at zero would answer zero.
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def _unet(**options):
    return UNet2DConditionModel(**{
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 4,
        **options,
    }).eval()  # fmt: skip


def _autoencoder(shift=None):
    return AutoencoderKL(
        in_channels=3, out_channels=3, block_out_channels=(8, 16), latent_channels=4, norm_num_groups=4, sample_size=SIDE,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        scaling_factor=0.2, shift_factor=shift,
    ).eval()  # fmt: skip


def _clip(projected=False):
    config = CLIPTextConfig(
        vocab_size=len(_vocabulary()), hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _t5():
    return T5EncoderModel(
        T5Config(
            vocab_size=64, d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2, relative_attention_num_buckets=8
        )
    ).eval()


@functools.cache
def _vocabulary():
    letters = string.ascii_lowercase + string.digits + ",.!?"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return {word: i for i, word in enumerate(words)}


def _clip_tokenizer():
    return CLIPTokenizer(vocab=_vocabulary(), merges=[], model_max_length=77)


def _t5_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    vocabulary |= {letter: 3 + i for i, letter in enumerate(string.ascii_lowercase)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=32
    )
