"""vLLM serves LLaVA-STF: with this package installed, `vllm serve FOLDER` and `LLM(FOLDER)` load a saved model.

vLLM calls `register` and `guard` in each of its processes, through the entry point groups `vllm.general_plugins` and
`vllm.platform_plugins`; this package being imported with it, the Auto classes know the config and the processor.
"""

# By model type. What else this package makes, vLLM is not told of.
ARCHITECTURES = {
    "llava_stf": "LlavaStfForConditionalGeneration",
    "llava_next_stf": "LlavaNextStfForConditionalGeneration",
    "llava_onevision_stf": "LlavaOnevisionStfForConditionalGeneration",
}
TOKENIZER_MODE = "llava_stf"


def guard() -> None:
    """Let each process of vLLM end with the one that started it, which vLLM leaves behind if that is killed.

    vLLM asks plugins for a platform, and there is none here, before anything else in every process: an engine that has
    started waits for minutes for who started it.
    """
    from llava_stf.io.signals import end_with_parent

    end_with_parent()


def register() -> None:
    """Make vLLM know the architectures and how their prompts are tokenised. May be called again; initialises no GPU."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    from llava_stf.vllm_plugin.model_config import LlavaStfModelConfig

    if TOKENIZER_MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(TOKENIZER_MODE, f"{__name__}.renderer", "LlavaStfRenderer")
        TokenizerRegistry.register(TOKENIZER_MODE, "vllm.tokenizers.hf", "CachedHfTokenizer")
    for architecture in ARCHITECTURES.values():
        MODELS_CONFIG_MAP[architecture] = LlavaStfModelConfig
        ModelRegistry.register_model(architecture, f"{__name__}.model:{architecture}")
