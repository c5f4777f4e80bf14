"""What each engine does with what was found in an adapter, and what to do about it.

Read in the engines' own sources: vLLM 0.33.0 and, for what changed, 0.30 to 0.32; SGLang 0.5.23;
LoRAX and Ollama at their main branches, with llama.cpp's loader behind Ollama. What has been run is
in ``docs/serving.md``.
"""

from collections.abc import Sequence

from fedlora.release.engines import traits
from fedlora.release.engines.rule import Rule, refuses, warns, wrong

_HELPER, _MODEL = "vllm/lora/peft_helper.py", "vllm/lora/lora_model.py"
_RESOLVER = "vllm/plugins/lora_resolvers/filesystem_resolver.py"
_LORAX, _LORAX_LOAD = "lorax_server/adapters/lora.py", "lorax_server/utils/adapter.py"
_LORAX_FILES, _SGMV = "lorax_server/utils/sources/local.py", "lorax_server/utils/sgmv.py"
_SGLANG, _SGLANG_POOL = "sglang/srt/lora/lora.py", "sglang/srt/lora/mem_pool.py"
_SGLANG_CONFIG = "sglang/srt/lora/lora_config.py"
_SGLANG_MANAGER, _SGLANG_UTILS = "sglang/srt/lora/lora_manager.py", "sglang/srt/lora/utils.py"
_OLLAMA, _OLLAMA_NAMES = "ollama: convert/convert.go", "ollama: convert/convert_llama_adapter.go"
_OLLAMA_FILES, _LLAMA = "ollama: convert/reader.go", "llama.cpp: src/llama-adapter.cpp"

_PAD = "fedlora adapters pad FOLDER --out DIR: the same adapter in the form that engines agree on."
_MERGE = "Merge it into the base and serve that, or train plain LoRA."
_ONE_SCALE = "It scales every module by lora_alpha / r of the configuration, whatever others say."
_NOT_READ = "It looks for A and B alone, and says at most in its log that it skips the rest."
_NO_SUFFIX = "llama.cpp knows no such tensor in an adapter."

RULES: Sequence[Rule] = (
    Rule(
        traits.other_method,
        "Only LoRA is served beside its base. " + _MERGE,
        {
            "vllm": refuses("It reads LoRA's configuration, and tensors named lora_A.", _HELPER),
            "lorax": refuses("It reads the configuration as LoRA's.", _LORAX),
            "sglang": refuses("It asserts that peft_type is LORA.", _SGLANG),
            "ollama": refuses(_NO_SUFFIX, _LLAMA),
        },
    ),
    Rule(
        traits.missing_options,
        "Save the adapter again with PEFT's save_pretrained.",
        {
            "vllm": refuses("It requires r, lora_alpha and target_modules.", _HELPER),
            "lorax": wrong("PEFT's defaults stand in for them: r 8, alpha 8.", _LORAX),
            "sglang": refuses("It requires r, lora_alpha and target_modules.", _SGLANG_CONFIG),
            "ollama": wrong("Without lora_alpha the products are not scaled at all.", _LLAMA),
        },
    ),
    Rule(
        traits.no_weights,
        "Save the adapter again with PEFT's save_pretrained.",
        {
            "vllm": refuses("The folder holds no tensors.", _MODEL),
            "lorax": refuses("The folder holds no weights.", _LORAX_FILES),
            "sglang": refuses("The folder holds no weights.", _SGLANG),
            "ollama": refuses("It says: unknown tensor format.", _OLLAMA_FILES),
        },
    ),
    Rule(
        traits.pickled,
        "A pickle can run code. Save the adapter as safetensors, PEFT's default.",
        {
            "vllm": warns("It reads pickles with weights_only.", _MODEL),
            "lorax": refuses("Of a folder it takes .safetensors alone.", _LORAX_FILES),
            "sglang": warns("It falls back to pickles.", _SGLANG),
            "ollama": refuses("Of an adapter it takes .safetensors alone.", _OLLAMA_FILES),
        },
    ),
    Rule(
        traits.more_weights,
        "Move the other files away.",
        {
            "lorax": wrong("It reads every .safetensors in the folder as one.", _LORAX_LOAD),
            "sglang": wrong("It reads every .safetensors in the folder as one.", _SGLANG),
            "ollama": wrong("It reads every .safetensors in the folder as one.", _OLLAMA_FILES),
        },
    ),
    Rule(
        traits.half_pairs,
        "The file is broken: export the adapter again.",
        {
            "vllm": refuses("It scales B, which may be the one that is missing.", _MODEL),
            "lorax": wrong("It passes over modules without both.", _LORAX),
            "sglang": wrong("It takes zeros for the missing one.", _SGLANG_POOL),
            "ollama": refuses("A pair is missing one component.", _LLAMA),
        },
    ),
    Rule(
        traits.uneven_ranks,
        _PAD,
        {
            "vllm": wrong("Before 0.32 it drops rank_pattern, and scales by alpha / r.", _HELPER),
            "lorax": wrong(
                "It scales by alpha / r, and cannot stack layers of different rank.", _LORAX
            ),
            "sglang": wrong(
                "It scales by alpha / r, and cannot fuse q, k, v of different rank.", _SGLANG
            ),
        },
    ),
    Rule(
        traits.uneven_alphas,
        _PAD,
        {
            "vllm": wrong("Before 0.32 it drops alpha_pattern.", _HELPER),
            "lorax": wrong(_ONE_SCALE, _LORAX),
            "sglang": wrong(_ONE_SCALE, _SGLANG),
            "ollama": wrong("It reads lora_alpha alone.", _OLLAMA),
        },
    ),
    Rule(
        traits.rank_stabilised,
        _PAD,
        {
            "sglang": wrong("It scales by lora_alpha / r: √r times too little.", _SGLANG),
            "ollama": wrong("llama.cpp scales by lora_alpha / r: √r times too little.", _LLAMA),
        },
    ),
    Rule(
        traits.fractional_alpha,
        _PAD,
        {"ollama": refuses("It reads lora_alpha as a whole number or not at all.", _OLLAMA)},
    ),
    Rule(
        traits.above_vllm_rank,
        "Start vLLM with a larger --max-lora-rank. A lower rank is another adapter: fedlora "
        "adapters combine FOLDER --rank R.",
        {"vllm": refuses("It keeps room for adapters up to --max-lora-rank.", _HELPER)},
    ),
    Rule(
        traits.above_sglang_rank,
        "Start SGLang with a larger --max-lora-rank.",
        {"sglang": refuses("It keeps room for adapters up to --max-lora-rank.", _SGLANG_POOL)},
    ),
    Rule(
        traits.odd_lorax_rank,
        "fedlora adapters pad FOLDER --out DIR --rank R: the same adapter with zeros beside it.",
        {
            "lorax": warns(
                "It pads to a multiple of 16 by itself; above 128 it loops over adapters.", _SGMV
            )
        },
    ),
    Rule(
        traits.dora,
        _MERGE,
        {
            "vllm": refuses("It does not support DoRA.", _HELPER),
            "lorax": wrong(_NOT_READ, _LORAX),
            "sglang": refuses("It does not support DoRA.", _SGLANG_MANAGER),
            "ollama": refuses(_NO_SUFFIX, _LLAMA),
        },
    ),
    Rule(
        traits.bias,
        _MERGE,
        {
            "vllm": refuses("It does not support biases of adapters.", _HELPER),
            "lorax": wrong(_NOT_READ, _LORAX),
            "sglang": wrong(_NOT_READ, _SGLANG_POOL),
            "ollama": refuses(_NO_SUFFIX, _LLAMA),
        },
    ),
    Rule(
        traits.whole_modules,
        _MERGE,
        {
            "vllm": refuses("It takes none but a classification head, since 0.31.", _HELPER),
            "lorax": wrong(_NOT_READ, _LORAX),
            "sglang": wrong(_NOT_READ, _SGLANG_POOL),
            "ollama": refuses(_NO_SUFFIX, _LLAMA),
        },
    ),
    Rule(
        traits.embeddings,
        "If they were not trained, save with save_embedding_layers=False. If they were: " + _MERGE,
        {
            "vllm": warns("It leaves them out.", _MODEL),
            "lorax": warns("It leaves them out.", _LORAX),
            "sglang": warns("It leaves them out.", _SGLANG_POOL),
            "ollama": refuses(_NO_SUFFIX, _LLAMA),
        },
    ),
    Rule(
        traits.other_tensors,
        "Find out what wrote them. " + _MERGE,
        {
            "vllm": refuses("It calls them unsupported LoRA weights.", "vllm/lora/utils.py"),
            "lorax": wrong(_NOT_READ, _LORAX),
            "sglang": wrong(_NOT_READ, _SGLANG_POOL),
            "ollama": refuses(_NO_SUFFIX, _LLAMA),
        },
    ),
    Rule(
        traits.altered_base,
        "Convert it where it was trained: save_pretrained(…, "
        "path_initial_model_for_weight_conversion=…).",
        {
            "vllm": refuses("Since 0.32; before, it serves wrong results.", _HELPER),
            "lorax": wrong("It adds the product to the base as it was.", _LORAX),
            "sglang": wrong("It adds the product to the base as it was.", _SGLANG),
            "ollama": wrong("It adds the product to the base as it was.", _OLLAMA),
        },
    ),
    Rule(
        traits.other_mathematics,
        _MERGE,
        {
            "vllm": refuses("Since 0.32; before, it serves wrong results.", _HELPER),
            "lorax": wrong("It adds B·A and nothing else.", _LORAX),
            "sglang": wrong("It adds B·A and nothing else.", _SGLANG),
            "ollama": wrong("It adds B·A and nothing else.", _OLLAMA),
        },
    ),
    Rule(
        traits.module_pattern,
        _PAD,
        {"sglang": refuses("Of patterns it takes all and all-linear alone.", _SGLANG_UTILS)},
    ),
    Rule(
        traits.missing_layers,
        "Train each kind of module in all layers, or take another engine.",
        {"lorax": wrong("A kind of module that a layer lacks is left out in all.", _LORAX)},
    ),
    Rule(
        traits.query_without_value,
        "Train q_proj and v_proj together, or take another engine.",
        {"sglang": refuses("It fuses query, key and value, and requires the value's.", _SGLANG)},
    ),
    Rule(
        traits.orphans,
        "Train the first of the fused modules too, or take another engine.",
        {
            "sglang": wrong(
                "It fuses q, k, v and gate, up from the first on; the rest is skipped.", _SGLANG
            )
        },
    ),
    Rule(
        traits.modules_unknown_to_ollama,
        "Leave out modules but those of attention and MLP, or merge the adapter into the base.",
        {"ollama": refuses("The base has no tensor of the name that comes out.", _OLLAMA_NAMES)},
    ),
    Rule(
        traits.wide_rank,
        "fedlora adapters combine FOLDER --rank R --out DIR with a lower rank.",
        {"ollama": refuses("It takes such a factor for a transposed one.", _OLLAMA_NAMES)},
    ),
    Rule(
        traits.odd_dtypes,
        "Save the adapter in float32, float16 or bfloat16.",
        {"ollama": refuses("It reads F32, F16 and BF16.", "convert/reader_safetensors.go")},
    ),
    Rule(
        traits.added_tokens,
        "If the base has these tokens, remove the file. If the adapter brought them: " + _MERGE,
        {"sglang": refuses("It serves no tokens beyond the base's vocabulary.", _SGLANG_MANAGER)},
    ),
    Rule(
        traits.tokenizer,
        "Remove it: tokens are the base's.",
        {"lorax": warns("It reads prompts with it, not with the base's.", _LORAX_LOAD)},
    ),
    Rule(
        traits.local_base,
        "Write the name that engines serve the base under into base_model_name_or_path.",
        {
            "vllm": warns("Its resolvers find an adapter by the base's name.", _RESOLVER),
            "lorax": warns("It compares bases by this name, and only warns.", _LORAX_LOAD),
        },
    ),
    Rule(
        traits.other_base,
        "Serve the base that the adapter was made for.",
        {
            "vllm": refuses("Its resolvers; named by its path it is loaded unasked.", _RESOLVER),
            "lorax": warns("It refuses another architecture, and warns otherwise.", _LORAX_LOAD),
            "sglang": warns("It does not look at the name.", _SGLANG_CONFIG),
            "ollama": warns("It does not look at the name.", _OLLAMA),
        },
    ),
)
