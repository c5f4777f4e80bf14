"""Several adapters on one base in memory: in a batch, each answers as it would alone."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedlora.adapter import AdapterState
from fedlora.errors import AdapterError
from fedlora.peft_folder import write_peft_folder
from fedlora.training.base_model import Panel, describe, resolve
from tests.strategies import HEADS, make_spec

QUESTION = "asyncio.sleep(delay)"


@pytest.fixture(scope="module")
def adapters(recipe_of) -> list[AdapterState]:
    """Return three adapters of different ranks, alphas and modules."""
    return [
        adapter(recipe_of(lora_r=2, lora_alpha=8), seed=0),
        adapter(recipe_of(lora_r=8, lora_target_modules=["q_proj", "down_proj"]), seed=1),
        adapter(recipe_of(lora_r=5, lora_target_modules=["v_proj"]), seed=2),
    ]


def adapter(recipe, *, seed: int) -> AdapterState:
    """Return an adapter of random A and B."""
    spec = describe(recipe).spec
    generator = torch.Generator().manual_seed(seed)
    return AdapterState(spec=spec, values=0.1 * torch.randn(spec.size, generator=generator))


def alone(state: AdapterState | None, folder: Path) -> str:
    """Return what PEFT and transformers by themselves answer, with one adapter or none."""
    base = resolve("embedded", None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if state:
        write_peft_folder(state, folder)
        network = PeftModel.from_pretrained(network, folder)
    encoded = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    output = network.eval().generate(**encoded, max_new_tokens=24, do_sample=False)
    text = tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def test_in_a_batch_each_answers_as_it_would_alone(recipe_of, adapters, tmp_path):
    """Greedy answers of base and adapters are those of PEFT with one adapter at a time."""
    answers = Panel.load(recipe_of(), adapters).answers(QUESTION, max_new_tokens=24)
    expected = [alone(s, tmp_path / str(k)) for k, s in enumerate([None, *adapters])]
    assert answers == expected
    assert len(set(answers)) == 4


def test_on_a_quantised_base_each_answers_as_it_would_alone(recipe_of, adapters):
    """In NF4 too, the batch does not change an answer."""
    recipe = recipe_of(adapter="qlora")
    together = Panel.load(recipe, adapters).answers(QUESTION, max_new_tokens=12)
    single = [Panel.load(recipe, [s]).answers(QUESTION, max_new_tokens=12) for s in adapters]
    assert together == [single[0][0], *(answers[1] for answers in single)]


def test_an_adapter_can_be_replaced_by_any_other(recipe_of, adapters):
    """Of other rank and modules; the others' answers stay, and the one before has gone."""
    first, second, third = adapters
    panel = Panel.load(recipe_of(), [first, second])
    before = panel.answers(QUESTION, max_new_tokens=12)
    panel.replace(0, third)
    after = panel.answers(QUESTION, max_new_tokens=12)
    expected = Panel.load(recipe_of(), [third]).answers(QUESTION, max_new_tokens=12)[1]
    assert after == [before[0], expected, before[2]]
    panel.replace(0, first)
    assert panel.answers(QUESTION, max_new_tokens=12) == before
    kept = {n.split(".")[-2] for n, _ in panel._model.named_parameters() if ".lora_A." in n}
    assert len(kept) == 2


def test_an_adapter_that_does_not_fit_is_refused(recipe_of, adapters):
    """Its module and both shapes are named; who was there goes on answering."""
    panel = Panel.load(recipe_of(), adapters[:1])
    before = panel.answers(QUESTION, max_new_tokens=8)
    spec = adapters[1].spec.part(rank=1)
    other = type(spec).from_json(spec.to_json().replace("[192,1]", "[64,1]"))
    stranger = AdapterState(spec=other, values=torch.ones(other.size))
    with pytest.raises(AdapterError, match=r"q_proj.*\(64, 192\) does not fit.*\(192, 192\)"):
        panel.replace(0, stranger)
    with pytest.raises(AdapterError, match="does not fit"):
        Panel.load(recipe_of(), [stranger])
    assert panel.answers(QUESTION, max_new_tokens=8) == before


def test_the_draws_of_others_are_left_alone(recipe_of, adapters):
    """PEFT draws initial values that are replaced; torch's own generator does not move."""
    state = torch.random.get_rng_state()
    Panel.load(recipe_of(), adapters).replace(1, adapters[0])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_classifier_does_not_answer(recipe_of):
    """It is refused before the base is loaded."""
    spec = make_spec(heads=HEADS)
    with pytest.raises(AdapterError, match=r"a head \(classifier\.dense\.weight\) tells labels"):
        Panel.load(recipe_of(), [AdapterState.initial(spec, seed=0)])
