"""What this distribution offers."""

from __future__ import annotations

from stackwise import Component, Starter, hookimpl

_PACKAGE = "stackwise_providers_transformer"
_TINY = {
    "model_type": "starcoder2",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""A model of the library transformers."""


@hookimpl
def stackwise_embeddings() -> list[Component]:
    """Of tokens, of images, of tables."""
    return [
        Component(
            name="token",
            options=f"{_PACKAGE}.options:TokenOptions",
            factory=f"{_PACKAGE}.embedding:build_token",
            summary="one learned vector for every token id",
            example={"vocab": 256, "width": 16},
        ),
        Component(
            name="patch",
            options=f"{_PACKAGE}.classification_options:PatchOptions",
            factory=f"{_PACKAGE}.patch:build_patch",
            summary="square pieces of an image, each by one linear map",
            example={"patch": 2, "rows": 8, "columns": 8, "channels": 1, "width": 16},
        ),
        Component(
            name="features",
            options=f"{_PACKAGE}.table_options:FeaturesOptions",
            factory=f"{_PACKAGE}.features:build_features",
            summary="a vector for each number of a row, times that number, and one for each category",
            example={"features": 3, "columns": 2, "vectors": 5, "width": 16},
        ),
    ]


@hookimpl
def stackwise_racks() -> list[Component]:
    """The pre-norm decoder, one with an encoder beside it, one of convolutions, and one of MLPs."""
    return [
        Component(
            name="decoder",
            options=f"{_PACKAGE}.options:DecoderOptions",
            factory=f"{_PACKAGE}.decoder:build_decoder",
            summary="pre-norm transformer blocks: RMSNorm or LayerNorm, rotary or learned positions, grouped queries, SwiGLU or GELU",
            example={"width": 16, "heads": 2, "stacks": [{"base": 2}]},
        ),
        Component(
            name="encoder-decoder",
            options=f"{_PACKAGE}.rack_options:EncoderDecoderOptions",
            factory=f"{_PACKAGE}.encoder_decoder:build_encoder_decoder",
            summary="the decoder's blocks twice: stacks that read a source from both sides, and stacks that attend to what they made of it",
            example={"width": 16, "heads": 2, "stacks": [{"source": 2}, {"target": 2}], "encoder": ["source"]},
        ),
        Component(
            name="conv",
            options=f"{_PACKAGE}.rack_options:ConvOptions",
            factory=f"{_PACKAGE}.conv:build_conv",
            summary="pre-norm blocks of a depthwise convolution over time and an MLP, without attention",
            example={"width": 16, "stacks": [{"base": 2}]},
        ),
        Component(
            name="mlp",
            options=f"{_PACKAGE}.table_options:MLPOptions",
            factory=f"{_PACKAGE}.mlp_rack:build_mlp",
            summary="pre-norm residual blocks of an MLP, every position by itself: for tables",
            example={"width": 16, "stacks": [{"base": 2}]},
        ),
        Component(
            name="hf",
            options=f"{_PACKAGE}.wrapped_options:WrappedRackOptions",
            factory=f"{_PACKAGE}.hugging_face.wrapped:build_wrapped_rack",
            summary="the blocks of any model of the library transformers, computed by it (extra: hf)",
            example={
                "config": _TINY,
                "width": 16,
                "stacks": [{"base": 2}],
                "blocks": "layers",
                "residual_outputs": ["self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"],
            },
        ),
    ]


@hookimpl
def stackwise_heads() -> list[Component]:
    """Logits over the vocabulary or over classes, and numbers."""
    return [
        Component(
            name="lm",
            options=f"{_PACKAGE}.options:LMOptions",
            factory=f"{_PACKAGE}.head:build_lm",
            summary="logits over the vocabulary, by default with the embedding's own matrix",
            example={"vocab": 256, "width": 16},
        ),
        Component(
            name="classifier",
            options=f"{_PACKAGE}.classification_options:ClassifierOptions",
            factory=f"{_PACKAGE}.row_heads:build_classifier",
            summary="logits over classes of a whole row: its mean, its first or its last position",
            example={"classes": 2, "width": 16},
        ),
        Component(
            name="regression",
            options=f"{_PACKAGE}.table_options:RegressionHeadOptions",
            factory=f"{_PACKAGE}.row_heads:build_regression",
            summary="numbers of a whole row: of its mean, its first or its last position",
            example={"targets": 1, "width": 16},
        ),
        Component(
            name="vector",
            options=f"{_PACKAGE}.contrastive_options:VectorOptions",
            factory=f"{_PACKAGE}.row_heads:build_vector",
            summary="a vector of a whole row: of its mean, its first or its last position",
            example={"vector": 8, "width": 16},
        ),
        Component(
            name="hf",
            options=f"{_PACKAGE}.wrapped_options:WrappedHeadOptions",
            factory=f"{_PACKAGE}.hugging_face.wrapped_heads:build_wrapped_head",
            summary="what a model of the library transformers makes of its last hidden state, computed by it (extra: hf)",
            example={"config": _TINY, "vocab": 32, "width": 16},
        ),
        Component(
            name="hf-classifier",
            options=f"{_PACKAGE}.wrapped_options:WrappedClassifierOptions",
            factory=f"{_PACKAGE}.hugging_face.wrapped_heads:build_wrapped_classifier",
            summary="what a classifier of the library transformers makes of its last hidden state, computed by it (extra: hf)",
            example={"config": _TINY, "classes": 2, "width": 16},
        ),
    ]


@hookimpl
def stackwise_tasks() -> list[Component]:
    """Language tasks, classification, regression."""
    return [
        Component(
            name="causal-lm",
            options=f"{_PACKAGE}.options:CausalLMOptions",
            factory=f"{_PACKAGE}.causal_lm:build_causal_lm",
            summary="predict every token from those before it",
        ),
        Component(
            name="masked-lm",
            options=f"{_PACKAGE}.masking_options:MaskedLMOptions",
            factory=f"{_PACKAGE}.masked_lm:build_masked_lm",
            summary="predict chosen tokens of a corrupted row from both sides",
            example={"symbols": 256},
        ),
        Component(
            name="mask-diffusion",
            options=f"{_PACKAGE}.masking_options:MaskDiffusionOptions",
            factory=f"{_PACKAGE}.mask_diffusion:build_mask_diffusion",
            summary="predict all masked tokens at every share of masking, a bound of the likelihood",
            example={"symbols": 256},
        ),
        Component(
            name="classification",
            options=f"{_PACKAGE}.classification_options:ClassificationOptions",
            factory=f"{_PACKAGE}.classification:build_classification",
            summary="the class of a sequence of tokens or of an image",
        ),
        Component(
            name="seq2seq",
            options=f"{_PACKAGE}.pair_options:Seq2SeqOptions",
            factory=f"{_PACKAGE}.seq2seq:build_seq2seq",
            summary="predict a target from a source, given as pairs or cut out of rows, in one row or from a memory",
            example={"pairs": "spans", "symbols": 256},
        ),
        Component(
            name="preference",
            options=f"{_PACKAGE}.pair_options:PreferenceOptions",
            factory=f"{_PACKAGE}.preference:build_preference",
            summary="prefer the chosen of two responses: DPO, SimPO or ORPO",
        ),
        Component(
            name="regression",
            options=f"{_PACKAGE}.table_options:RegressionOptions",
            factory=f"{_PACKAGE}.regression:build_regression",
            summary="numbers of a row of a table, of a sequence of tokens or of an image",
        ),
        Component(
            name="distill",
            options=f"{_PACKAGE}.distill_options:DistillOptions",
            factory=f"{_PACKAGE}.distill:build_distill",
            summary="predict every token as a teacher does, and as it is",
        ),
        Component(
            name="contrastive",
            options=f"{_PACKAGE}.contrastive_options:ContrastiveOptions",
            factory=f"{_PACKAGE}.contrastive:build_contrastive",
            summary="two views of one row find each other among those of the batch (InfoNCE)",
        ),
    ]


def _growth(name: str, options: str, factory: str, summary: str, **example: object) -> Component:
    return Component(
        name=name,
        options=f"{_PACKAGE}.growth_options:{options}",
        factory=f"{_PACKAGE}.{factory}",
        summary=summary,
        example=example,
    )


@hookimpl
def stackwise_growth_operators() -> list[Component]:
    """Deeper, wider, with more tokens."""
    return [
        _growth("stack", "StackOptions", "depth_growth:build_stack", "block i copies block i mod L; changes the function"),
        _growth(
            "interleave",
            "InterleaveOptions",
            "depth_growth:build_interleave",
            "every block is followed by its copies; changes the function",
        ),
        _growth("middle", "MiddleOptions", "depth_growth:build_middle", "the middle blocks are repeated in place; changes the function"),
        _growth("identity", "IdentityOptions", "depth_growth:build_identity", "a new block starts as the identity; keeps the function"),
        _growth(
            "blocks",
            "BlocksOptions",
            "depth_growth:build_blocks",
            "where every block comes from, written out; keeps the function where all new ones are identities",
            map={"base": ["0-1", "identity"]},
        ),
        _growth(
            "gated",
            "GatedOptions",
            "depth_growth:build_gated",
            "what new blocks add is multiplied by a gate that rises from 0 to 1; keeps the function at first",
            gate={"linear": {"from": 0, "to": 1, "over": "phase"}},
        ),
        _growth("widen-ff", "WidenFFOptions", "ff_growth:build_widen_ff", "more hidden features in every MLP; keeps the function"),
        _growth("widen", "WidenOptions", "width_growth:build_widen", "the width and the heads times a whole number; keeps the function"),
        _growth(
            "upcycle", "UpcycleOptions", "expert_growth:build_upcycle", "every MLP becomes the experts of its block; keeps the function"
        ),
        _growth("add-experts", "AddExpertsOptions", "expert_growth:build_add_experts", "more experts after the old ones"),
        _growth("vocabulary", "VocabularyOptions", "vocabulary_growth:build_vocabulary", "more token ids; keeps the old rows"),
    ]


@hookimpl
def stackwise_weight_adapters() -> list[Component]:
    """Low rank beside frozen matrices."""
    return [
        Component(
            name="lora",
            options=f"{_PACKAGE}.lora_options:LoRAOptions",
            factory=f"{_PACKAGE}.lora:build_lora",
            summary="a trainable matrix of low rank beside a frozen one",
            example={"rank": 2},
        )
    ]


@hookimpl
def stackwise_formats() -> list[Component]:
    """Folders of other tools."""
    return [
        Component(
            name="hf",
            options=f"{_PACKAGE}.format_options:HuggingFaceOptions",
            factory=f"{_PACKAGE}.hugging_face.format:build_hugging_face",
            summary="folders that transformers reads and writes: GPT-2, NeoX, Llama, Mistral, Qwen, Gemma, SmolLM, OLMo, BERT, ModernBERT",
        ),
        Component(
            name="stack-wise",
            options=f"{_PACKAGE}.format_options:StackWiseOptions",
            factory=f"{_PACKAGE}.predecessor.format:build_stack_wise",
            summary="state dicts of stack-wise (2025); `stackwise migrate` translates its configs",
        ),
    ]


@hookimpl
def stackwise_starters() -> list[Starter]:
    """Texts, conversations, images, tables, a trained folder, and code."""
    texts = f"{_PACKAGE}.starters"
    chat = {"chat.jsonl": f"{texts}:CHAT_LINES"}
    return [
        Starter(name="text", text=f"{texts}:TEXT", summary="a language model on text, that grows on the way"),
        Starter(name="chat", text=f"{texts}:CHAT", summary="a small model on conversations, one a line", files=chat),
        Starter(
            name="finetune", text=f"{texts}:FINETUNE", summary="low-rank adapters beside a trained folder (--from)", files=chat, folder=True
        ),
        Starter(name="images", text=f"{texts}:IMAGES", summary="classes of images", files={"images.npz": f"{texts}:IMAGE_ARRAYS"}),
        Starter(
            name="table", text=f"{texts}:TABLE", summary="a number of each row of a CSV file", files={"table.csv": f"{texts}:TABLE_ROWS"}
        ),
        Starter(name="code", text=f"{texts}:CODE", summary="your own module, loader and loss, in Python", language="python"),
    ]
