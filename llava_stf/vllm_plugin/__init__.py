"""vLLM serves LLaVA-STF: with this package installed, `vllm serve FOLDER` and `LLM(FOLDER)` load a saved model.

vLLM calls `register` in each of its processes, through the entry point group `vllm.general_plugins`; this package being
imported with it, the Auto classes know the config and the processor.
"""

# By model type. What else this package makes, vLLM is not told of.
ARCHITECTURES = {
    "llava_stf": "LlavaStfForConditionalGeneration",
    "llava_next_stf": "LlavaNextStfForConditionalGeneration",
    "llava_onevision_stf": "LlavaOnevisionStfForConditionalGeneration",
}
TOKENIZER_MODE = "llava_stf"


def register() -> None:
    """Make vLLM know the architectures and how their prompts are tokenised. May be called again; initialises no GPU.

    An engine's process ends with the one that started it: one that is killed while the engine starts would leave it.
    """
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from llava_stf.io.signals import end_with_parent
    from llava_stf.vllm_plugin.model_config import LlavaStfModelConfig

    if TOKENIZER_MODE not in RENDERER_REGISTRY.renderers:
        end_with_parent()
        RENDERER_REGISTRY.register(TOKENIZER_MODE, f"{__name__}.renderer", "LlavaStfRenderer")
        TokenizerRegistry.register(TOKENIZER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    for architecture in ARCHITECTURES.values():
        MODELS_CONFIG_MAP[architecture] = LlavaStfModelConfig
        ModelRegistry.register_model(architecture, f"{__name__}.model:{architecture}")
