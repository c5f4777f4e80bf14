"""What fine-tuners know from elsewhere and find refused here, each with the reason.

A federated adapter must add up over sites, have gradients of single examples where privacy is
promised, and be served by engines that load plain LoRA. What does not is refused by name, so that
nobody takes a silent difference for the method that was asked for.
"""

from collections.abc import Mapping

_VIRTUAL_TOKENS = (
    "it learns virtual tokens, not a change of weights: those of different sites have nothing in "
    "common that could be averaged, and no engine serves them beside LoRA"
)
_BASE_ALTERED = (
    "it begins by taking the adapter out of the base's own weights, so that the base is another "
    "one from then on: PEFT rebuilds it, serving engines do not and would answer wrongly"
)
_NO_SUM = (
    "what it learns is no sum of B·A: the mean over sites would be another function than any of "
    "theirs, and serving engines load plain LoRA alone"
)
_OWN_RANKS = (
    "each site would prune to ranks of its own by its own data, so that the sites' adapters no "
    "longer add up; federation.method: product takes the best adapter of one rank of their sum"
)
_WHOLE_BASE = (
    "it trains weights of the base itself: a release would be another base model, and adapters "
    "are all that may leave a site"
)
_MAGNITUDE = (
    "it divides by the norm of W + B·A, so that what sites learn does not add up, an example's own "
    "gradient is not known, and vLLM, LoRAX and SGLang refuse or ignore its magnitudes"
)

KINDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("prompt-tuning", "prefix-tuning", "p-tuning", "multitask-prompt-tuning", "llama-adapter"),
        _VIRTUAL_TOKENS,
    ),
    **dict.fromkeys(("pissa", "olora", "corda", "loftq", "eva", "milora"), _BASE_ALTERED),
    **dict.fromkeys(
        ("ia3", "vera", "vblora", "randlora", "fourierft", "lokr", "loha", "xlora"), _NO_SUM
    ),
    **dict.fromkeys(
        ("oft", "boft", "hra"),
        "it rotates weights, and the mean of rotations is no rotation; engines load plain LoRA "
        "alone",
    ),
    **dict.fromkeys(("bitfit", "full", "lisa", "ln-tuning", "lntuning"), _WHOLE_BASE),
    "adalora": _OWN_RANKS,
    "relora": "it merges the adapter into the base every so often, and the base is the one thing "
    "that all sites share",
    "dora": _MAGNITUDE,
    "qdora": _MAGNITUDE,
}
"""Other kinds of adapters, spelled as PEFT and Axolotl spell them, with dashes."""

KEYS: Mapping[str, str] = {
    "peft_use_dora": f"{_MAGNITUDE}: remove it",
    "peft_init_lora_weights": "A is drawn from the recipe's seed as PEFT draws it and B is zero, "
    f"so that all sites begin alike; of pissa, olora, corda, eva and loftq, {_BASE_ALTERED}: "
    "remove it",
    "peft": f"loftq is what it configures, and {_BASE_ALTERED}: remove it",
    "lora_modules_to_save": f"{_WHOLE_BASE}: remove it",
    "lora_target_linear": "write lora_target_modules: all-linear",
    "lora_target_parameters": "the experts of a mixture are not adapted: whose tokens an expert "
    "sees is not known, and few engines serve such adapters; remove it",
    **dict.fromkeys(
        ("lora_layers_to_transform", "peft_layers_to_transform"),
        "write a regular expression for the modules of these layers, such as "
        r"lora_target_modules: '.*\.layers\.(2|3)\..*'",
    ),
    "lora_fan_in_fan_out": "it follows from the base model: remove it",
    "lora_bias": f"{_WHOLE_BASE}: remove it",
    "load_in_4bit": "adapter: qlora says it already: remove it",
    "trust_remote_code": "code that comes with a base model is never run here: remove it, and take "
    "a base that transformers knows by itself",
}
"""Keys that fine-tuners know and recipes do not have."""
