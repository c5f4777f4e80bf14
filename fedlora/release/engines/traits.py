"""What can be found in an adapter's folder that engines treat each in its own way.

Each function returns what it found, in words that stand for themselves, or nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from fedlora.peft_folder import WEIGHTS
from fedlora.release.engines.adapter import AdapterFolder, shown

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``--max-lora-rank`` can be."""
LORAX_RANKS = (8, 16, 32, 64, 128)
"""What LoRAX's kernels are made for."""
OLLAMA_MODULES = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
)
"""What Ollama has a name for when it converts an adapter."""

_HARMLESS_STARTS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Initialisations that leave the base as it is; vLLM 0.33 has the same list."""
_OTHER_MATHEMATICS = ("alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora")
_EMBEDDINGS = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
_SHOWN = 8
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How an engine is started, where that decides a rule."""

    max_lora_rank: int | None = None
    """vLLM's (16 if it is not given) and SGLang's (by default that of its first adapters)."""
    base_model: str | None = None
    """What the engine is told to serve."""


def _some(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    more = f" and {len(rest)} more" if rest else ""
    return f"{shown(first)}{more}"


def other_method(adapter: AdapterFolder, _: Options) -> str | None:
    """IA3, LoHa and others: what PEFT calls adapters too."""
    if adapter.is_lora:
        return None
    return f"peft_type is {adapter.options.get('peft_type')!r:.40}, not LORA"


def missing_options(adapter: AdapterFolder, _: Options) -> str | None:
    """What every engine needs to know."""
    wanted = {
        "r": adapter.rank > 0,
        "lora_alpha": adapter.alpha > 0,
        "target_modules": adapter.options.get("target_modules"),
    }
    missing = [name for name, there in wanted.items() if not there]
    return f"adapter_config.json has no {' and no '.join(missing)}" if missing else None


def no_weights(adapter: AdapterFolder, _: Options) -> str | None:
    """A configuration alone."""
    if adapter.tensors or _pickles(adapter):
        return None
    return f"there is nothing in {WEIGHTS}, or no such file"


def pickled(adapter: AdapterFolder, _: Options) -> str | None:
    """``torch.save``: a file that can run code when it is read."""
    pickles = _pickles(adapter)
    return f"the weights are pickled: {_some(pickles)}" if pickles and not adapter.tensors else None


def _pickles(adapter: AdapterFolder) -> list[str]:
    return [name for name in adapter.files if name.endswith((".bin", ".pt", ".pth"))]


def more_weights(adapter: AdapterFolder, _: Options) -> str | None:
    """Files that a glob for weights takes for parts of the adapter."""
    more = [n for n in adapter.files if n.endswith(".safetensors") and n != WEIGHTS]
    return f"further weights are beside {WEIGHTS}: {_some(more)}" if more else None


def half_pairs(adapter: AdapterFolder, _: Options) -> str | None:
    """A factor without the other changes nothing."""
    halves = [module for module, pair in adapter.factors.items() if len(pair) < 2]
    return f"only one of A and B is there: {_some(halves)}" if halves else None


def uneven_ranks(adapter: AdapterFolder, _: Options) -> str | None:
    """``rank_pattern``, or a file that does not keep to ``r``."""
    ranks = set(adapter.ranks.values())
    if not ranks and adapter.options.get("rank_pattern"):
        return "rank_pattern gives modules ranks of their own"
    if ranks <= {adapter.rank}:
        return None
    each = ", ".join(map(str, sorted(ranks)[:_SHOWN]))
    return f"modules are of rank {each}, and r is {adapter.rank}"


def uneven_alphas(adapter: AdapterFolder, _: Options) -> str | None:
    """``alpha_pattern``."""
    pattern = adapter.options.get("alpha_pattern") or {}
    others = (
        [v for v in pattern.values() if v != adapter.alpha] if isinstance(pattern, dict) else []
    )
    return (
        f"alpha_pattern gives modules alphas of their own, such as {others[0]!r:.40}"
        if others
        else None
    )


def rank_stabilised(adapter: AdapterFolder, _: Options) -> str | None:
    """Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
    return (
        "use_rslora: the scaling is lora_alpha / √r" if adapter.options.get("use_rslora") else None
    )


def fractional_alpha(adapter: AdapterFolder, _: Options) -> str | None:
    """An alpha that is no integer in JSON; 16.0 is none either."""
    alpha = adapter.options.get("lora_alpha")
    return f"lora_alpha is {alpha}, with a decimal point" if isinstance(alpha, float) else None


def above_vllm_rank(adapter: AdapterFolder, options: Options) -> str | None:
    """A rank that vLLM has kept no room for."""
    most, rank = options.max_lora_rank or 16, adapter.largest_rank
    if rank <= most:
        return None
    needed = next((f"{each}" for each in VLLM_RANKS if each >= rank), "more than there is")
    return f"rank {rank} is above --max-lora-rank {most}; it needs {needed}"


def above_sglang_rank(adapter: AdapterFolder, options: Options) -> str | None:
    """A rank that SGLang has kept no room for."""
    most, rank = options.max_lora_rank, adapter.rank
    return f"rank {rank} is above --max-lora-rank {most}" if most and rank > most else None


def odd_lorax_rank(adapter: AdapterFolder, _: Options) -> str | None:
    """A rank that LoRAX has no kernel for."""
    rank = adapter.largest_rank
    if rank <= LORAX_RANKS[0] or rank in LORAX_RANKS:
        return None
    following = next((f"the next is {each}" for each in LORAX_RANKS if each > rank), "none is next")
    return f"rank {rank}, which LoRAX's fast kernels are not made for; {following}"


def dora(adapter: AdapterFolder, _: Options) -> str | None:
    """Magnitudes besides directions (Liu et al. 2024, arXiv:2402.09353)."""
    vectors = any("lora_magnitude_vector" in name for name in adapter.others)
    return "DoRA: magnitudes beside A and B" if vectors or adapter.options.get("use_dora") else None


def bias(adapter: AdapterFolder, _: Options) -> str | None:
    """Biases, of the base or of B."""
    trained, kind = adapter.options.get("lora_bias"), adapter.options.get("bias", "none")
    if trained:
        return "lora_bias: B has a bias"
    return f"bias is {kind!r:.40}: biases of the base were trained" if kind != "none" else None


def whole_modules(adapter: AdapterFolder, _: Options) -> str | None:
    """Weights that replace those of the base."""
    modules = adapter.options.get("modules_to_save")
    if modules:
        return f"modules_to_save is {modules!r:.80}: trained whole"
    tokens = adapter.options.get("trainable_token_indices")
    return "trainable_token_indices: embeddings of tokens were trained" if tokens else None


def embeddings(adapter: AdapterFolder, _: Options) -> str | None:
    """The base's own embeddings, which PEFT writes along when a vocabulary was resized."""
    found = [name for name in adapter.others if name.endswith(_EMBEDDINGS)]
    return f"embeddings of the base are in the file: {_some(found)}" if found else None


def other_tensors(adapter: AdapterFolder, options: Options) -> str | None:
    """What no option explains."""
    explained = (dora, bias, whole_modules, other_method)
    found = [name for name in adapter.others if not name.endswith(_EMBEDDINGS)]
    if not found or any(trait(adapter, options) for trait in explained):
        return None
    return f"the file has tensors that are no LoRA factors: {_some(found)}"


def altered_base(adapter: AdapterFolder, _: Options) -> str | None:
    """PiSSA (arXiv:2404.02948), OLoRA, CorDA, LoftQ: the base is not the base any more."""
    start = adapter.options.get("init_lora_weights")
    if not isinstance(start, str) or start.lower() in _HARMLESS_STARTS:
        return None
    return f"init_lora_weights is {start!r:.40}: PEFT alters the base when it loads this"


def other_mathematics(adapter: AdapterFolder, _: Options) -> str | None:
    """Options of PEFT that change what is computed."""
    found = [name for name in _OTHER_MATHEMATICS if adapter.options.get(name)]
    return f"{_some(found)}: it is more than B·A added" if found else None


def module_pattern(adapter: AdapterFolder, _: Options) -> str | None:
    """A regular expression in place of names."""
    modules = adapter.options.get("target_modules")
    if not isinstance(modules, str) or modules in {"all", "all-linear"}:
        return None
    return f"target_modules is a pattern: {shown(modules)}"


def missing_layers(adapter: AdapterFolder, _: Options) -> str | None:
    """``layers_to_transform``, or a pattern that leaves out layers."""
    layers = frozenset().union(*adapter.kinds.values())
    every = max(layers, default=-1) + 1
    found = [kind for kind, inside in adapter.kinds.items() if inside and len(inside) != every]
    return f"not all layers are adapted: {_some(found)} is missing in some" if found else None


def query_without_value(adapter: AdapterFolder, _: Options) -> str | None:
    """SGLang fuses query, key and value into one, layer by layer."""
    alone = adapter.layers_of("q_proj") - adapter.layers_of("v_proj")
    return f"q_proj is adapted and v_proj is not, {_in_layers(alone)}" if alone else None


def orphans(adapter: AdapterFolder, _: Options) -> str | None:
    """The latter part of what engines fuse, without the first."""
    for first, others in {"q_proj": ("k_proj", "v_proj"), "gate_proj": ("up_proj",)}.items():
        for kind in others:
            if alone := adapter.layers_of(kind) - adapter.layers_of(first):
                return f"{kind} is adapted and {first} is not, {_in_layers(alone)}"
    return None


def _in_layers(layers: frozenset[int]) -> str:
    first, *rest = sorted(layers)
    return f"in layer {first}{f' and {len(rest)} more' if rest else ''}"


def modules_unknown_to_ollama(adapter: AdapterFolder, _: Options) -> str | None:
    """Modules that its conversion has no name for."""
    found = adapter.kinds.keys() - OLLAMA_MODULES
    return f"it adapts {_some(found)}" if found else None


def wide_rank(adapter: AdapterFolder, _: Options) -> str | None:
    """Factors that look as if they were turned round."""
    found = [
        module
        for module, pair in adapter.factors.items()
        if [*map(len, pair.values())] == [2, 2] and _is_wide(pair["A"], pair["B"])
    ]
    return f"the rank is above a side of the weight: {_some(found)}" if found else None


def _is_wide(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a[0] > a[1] or b[1] > b[0]


def odd_dtypes(adapter: AdapterFolder, _: Options) -> str | None:
    """Values in 8 or 64 bits."""
    return f"values are {_some(adapter.odd_dtypes)}" if adapter.odd_dtypes else None


def added_tokens(adapter: AdapterFolder, _: Options) -> str | None:
    """A file that says that the vocabulary has grown."""
    return "added_tokens.json is in the folder" if "added_tokens.json" in adapter.files else None


def tokenizer(adapter: AdapterFolder, _: Options) -> str | None:
    """A tokenizer of its own."""
    found = adapter.files & set(_TOKENIZER)
    return f"a tokenizer is in the folder: {_some(found)}" if found else None


def local_base(adapter: AdapterFolder, options: Options) -> str | None:
    """A base that nobody else can find by this name."""
    if options.base_model:
        return None
    if not adapter.base_model:
        return "it does not say which base model it is for"
    path = adapter.base_model.startswith(("/", ".", "~"))
    return f"its base model is a path: {shown(adapter.base_model)}" if path else None


def other_base(adapter: AdapterFolder, options: Options) -> str | None:
    """Another base than the one that is served."""
    if options.base_model in {None, adapter.base_model}:
        return None
    named = shown(adapter.base_model) or "no base that it names"
    return f"it is for {named}, not {options.base_model}"
