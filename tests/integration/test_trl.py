"""Tokens, losses and gradients are those of TRL 1.16, from the same rows to the same adapter.

Templates are given to TRL with markers around what an assistant says. Ours are read without them in
two cases out of three, so that masks come from two mechanisms that know nothing of each other.
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from fedlora.adapter import AdapterState
from fedlora.data.batches import collate
from fedlora.data.examples import Example, Preference, Turn
from fedlora.data.preferences import collate_pairs, tokenize_pair
from fedlora.data.tokens import tokenize
from fedlora.training.base_model import BaseModel, resolve
from fedlora.training.objectives import dpo_loss, dpo_margins, sft_loss
from tests.tiny_models import tiny_recipe
from tests.trl_oracles import dpo_trainer, loss_and_gradient, sft_trainer

BETA = 0.3
CLOSE = 1e-5

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}<|eot_id|>"
    "{% endgeneration %}{% else %}{{ m['content'] | trim }}<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}{% generation %} {{ m['content'] }}</s>{% endgeneration %}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
TEMPLATES = {  # template, special tokens, whether ours keeps its markers
    "chatml": (CHATML, {"eos_token": "<|im_end|>", "extra": ["<|im_start|>"]}, False),
    "llama-3": (
        LLAMA_3,
        {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "extra": ["<|start_header_id|>", "<|end_header_id|>"],
        },
        False,
    ),
    "mistral": (MISTRAL, {"bos_token": "<s>", "eos_token": "</s>", "extra": ["[INST]"]}, True),
}
DIALOGUES = [
    [("user", "How are you?"), ("assistant", "Fine, naïve ☂.")],
    [
        ("user", "What is a list?"),
        ("assistant", "A sequence of values."),
        ("user", "And a tuple, if it is not the same? Say it in many words."),
        ("assistant", "One that never changes."),
    ],
    [("user", "Name it."), ("assistant", "x")],
    [("user", "word " * 40), ("assistant", "The answer is short.")],
]
ANSWERS = ["I do not know what you mean by that.", "No.", "It is a dict of lists.", "Yes"]


class Setting:
    """A chat template: a base whose tokenizer has it, and TRL's tokenizer for the same text."""

    def __init__(self, folder: Path, name: str) -> None:
        template, special, marked = TEMPLATES[name]
        tokenizer = AutoTokenizer.from_pretrained(resolve("embedded", None))
        named = {key: value for key, value in special.items() if key != "extra"}
        tokenizer.add_special_tokens({**named, "additional_special_tokens": special["extra"]})
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
        tokenizer.chat_template = template
        self.theirs = tokenizer
        self.folder = folder / "base"
        self._save(vocabulary=len(tokenizer))
        tokenizer.save_pretrained(self.folder)
        if not marked:
            bare = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
            (self.folder / "chat_template.jinja").write_text(bare, encoding="utf-8")
        self.base = BaseModel.load(tiny_recipe(base_model=str(self.folder)))
        self.state = self.adapter(seed=1)
        self.base.load_adapter(self.state)

    def adapter(self, *, seed: int) -> AdapterState:
        generator = torch.Generator().manual_seed(seed)
        values = 0.1 * torch.randn(self.base.spec.size, generator=generator)
        return AdapterState(spec=self.base.spec, values=values)

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        gradients = torch.autograd.grad(loss, self.base.parameters, retain_graph=True)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def _save(self, *, vocabulary: int) -> None:
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(self.folder)


@pytest.fixture(scope="module", params=TEMPLATES)
def setting(request, tmp_path_factory):
    """Return a base with one of three chat templates."""
    return Setting(tmp_path_factory.mktemp(request.param), request.param)


def turns(dialogue):
    return tuple(Turn(role, content) for role, content in dialogue)


def messages(dialogue):
    return [{"role": role, "content": content} for role, content in dialogue]


def close(came, expected):
    return float((came - expected).norm() / expected.norm()) < CLOSE


def test_sft_is_trls(setting, tmp_path):
    """Example by example, as TRL averages over a batch's tokens and we over examples.

    Untruncated rows have TRL's tokens and labels, but for what follows the last answer, which
    teaches nothing. TRL cuts a long row at one end or the other without regard to its answers or
    its first token, so that a row that we cut is given to it as we cut it.
    """
    rows = [{"messages": messages(dialogue)} for dialogue in DIALOGUES]
    trainer = sft_trainer(setting.folder, setting.state, rows, setting.theirs, tmp_path)
    examples = [
        tokenize(
            Example(turns(dialogue)),
            setting.base.tokenizer,
            sequence_len=length,
            train_on_inputs=False,
        )
        for length in (512, 24)
        for dialogue in DIALOGUES
    ]
    own = collate(examples, pad_token_id=setting.base.pad_token_id)
    alone = [trainer.data_collator([row]) for row in trainer.train_dataset]
    for row, batch in enumerate(alone):
        length = examples[row].length
        assert batch["input_ids"][0, :length].tolist() == list(examples[row].input_ids)
        assert batch["labels"][0, :length].tolist() == own.labels[row, :length].tolist()
        assert (batch["labels"][0, length:] == -100).all()
    cut = examples[len(rows) :]
    assert any(after.length < before.length for before, after in zip(examples, cut, strict=False))
    for example in cut:
        pairs = zip(example.input_ids, example.supervised, strict=True)
        labels = [token if mark else -100 for token, mark in pairs]
        row = {"input_ids": list(example.input_ids), "labels": labels}
        alone.append(trainer.data_collator([row]))
    losses = sft_loss(setting.base, own)
    for loss, batch in zip(losses, alone, strict=True):
        theirs, gradient = loss_and_gradient(trainer, batch, setting.state)
        assert float(loss.detach()) == pytest.approx(theirs, rel=CLOSE)
        assert close(setting.gradient(loss), gradient)


@pytest.mark.parametrize("reference", ["base", "global"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_dpo_is_trls(setting, tmp_path, reference, size):
    """Loss and gradient of batches of any size, for both kinds of reference.

    Prompts and answers are TRL's tokens, but for what a template puts after an answer's end, which
    we do not learn. TRL cuts the two sides of a pair at their own ends, so that a prompt may be
    another for each: pairs are given to it as we cut them.
    """
    received = setting.adapter(seed=2) if reference == "global" else None
    pairs = [
        Preference(turns(dialogue[:-1]), turns(dialogue)[-1], Turn("assistant", answer))
        for dialogue, answer in zip(DIALOGUES, ANSWERS, strict=True)
    ]
    rows = [
        {
            "prompt": messages(dialogue[:-1]),
            "chosen": messages(dialogue[-1:]),
            "rejected": messages([("assistant", answer)]),
        }
        for dialogue, answer in zip(DIALOGUES, ANSWERS, strict=True)
    ]
    trainer = dpo_trainer(
        setting.folder,
        setting.state,
        rows,
        setting.theirs,
        tmp_path,
        reference=received,
        beta=BETA,
    )
    for length in (512, 24):
        tokenized = [
            tokenize_pair(pair, setting.base.tokenizer, sequence_len=length) for pair in pairs
        ]
        split = [answered(pair) for pair in tokenized]
        if length == 512:
            for ours, theirs in zip(split, trainer.train_dataset, strict=True):
                require_same(ours, theirs, setting.theirs)
        for start in range(0, len(pairs), size):
            batch = collate_pairs(
                tokenized[start : start + size], pad_token_id=setting.base.pad_token_id
            )
            margins = dpo_margins(setting.base, batch, reference=received)
            loss = dpo_loss(margins, beta=BETA).mean()
            collator = DataCollatorForPreference(pad_token_id=setting.base.pad_token_id)
            theirs, gradient = loss_and_gradient(
                trainer, collator(split[start : start + size]), setting.state
            )
            assert float(loss.detach()) == pytest.approx(theirs, rel=CLOSE)
            assert close(setting.gradient(loss), gradient)
            assert float(margins.detach().abs().min()) > 1e-3


def answered(pair):
    """Return a pair as TRL has it: a prompt, and two answers."""
    start = pair.chosen.supervised.index(True)
    assert pair.chosen.input_ids[:start] == pair.rejected.input_ids[:start]
    assert pair.rejected.supervised.index(True) == start
    return {
        "prompt_ids": list(pair.chosen.input_ids[:start]),
        "chosen_ids": list(pair.chosen.input_ids[start:]),
        "rejected_ids": list(pair.rejected.input_ids[start:]),
    }


def require_same(ours, theirs, tokenizer):
    """Do nothing if a pair's tokens are TRL's, up to white space after an answer's end."""
    assert ours["prompt_ids"] == theirs["prompt_ids"]
    for side in ("chosen_ids", "rejected_ids"):
        length = len(ours[side])
        assert ours[side] == theirs[side][:length]
        assert ours[side][-1] == tokenizer.eos_token_id
        assert not tokenizer.decode(theirs[side][length:]).strip()
