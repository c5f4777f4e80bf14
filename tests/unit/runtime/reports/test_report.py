"""The report of a run: complete, self-contained, and safe whatever the sites sent."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fedlora.adapter import AdapterSpec, AdapterState, TensorSpec
from fedlora.recipe import Recipe
from fedlora.runtime.comparison import POOLED
from fedlora.runtime.reports import format as fmt
from fedlora.runtime.reports.report import write_report
from fedlora.runtime.run_folder import Checkpoint, RunFolder

VOID = {"meta"}
HOSTILE = "<script>alert('$\\frac')</script>&\""
TOKENS = {"east": 100, "west": 300}
BASE, FINAL = {"east": 6.0, "west": 5.0}, {"east": 4.0, "west": 3.0}


class Page(HTMLParser):
    """Checks that tags nest, and collects what a test asks about."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text, self.references, self.rows = [], [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")
        named = {"src", "href", "xlink:href", "srcset", "action", "data"}
        self.references += [value for name, value in attrs if name in named]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)
        if {"th", "td"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, first):
        """Return the cells of the table row that begins with ``first``."""
        (found,) = [row for row in self.rows if row[0] == first]
        return found


@pytest.fixture
def spec():
    module = "model.layers.0.mlp.up_proj"
    return AdapterSpec(
        base_model="embedded",
        base_model_revision=None,
        base_digest="ab12" * 16,
        rank=2,
        alpha=8,
        target_modules=("up_proj",),
        tensors=(
            TensorSpec(module=module, factor="A", shape=(2, 5)),
            TensorSpec(module=module, factor="B", shape=(7, 2)),
        ),
    )


@pytest.fixture
def make_run(tmp_path: Path, spec):
    """Return a function that makes a run folder from the records of its rounds."""

    def make(records, *, sites=("east", "west"), rounds=None, baselines=None, **keys):
        datasets = [{"path": "rows.jsonl", "site": site} for site in sites]
        last = max(1, records[-1]["round"]) if records else 1
        recipe = Recipe.model_validate(
            {
                "name": "trial",
                "datasets": datasets,
                "privacy": {"unit": "none"},
                "federation": {"rounds": rounds or last},
                **keys,
            }
        )
        run = RunFolder.create(recipe, spec, data={}, runs=tmp_path)
        adapter = AdapterState.initial(spec, seed=0)
        for record in records:
            run.save(Checkpoint(round=record["round"], adapter=adapter, record=record))
        if baselines:
            run.keep_baselines(baselines)
        return run

    return make


def sums(losses, tokens=TOKENS):
    """Return what a record keeps of mean losses: loss sum and tokens by site."""
    return {site: [loss * tokens[site], float(tokens[site])] for site, loss in losses.items()}


def record(number, losses=None, *, refused=None, cohort=("east", "west"), **facts):
    folded = {
        site: {"train_loss": 4.5, "num_examples": 8, "weight": 8.0, "norm": 1.0, "bytes": 500}
        for site in cohort
        if site not in (refused or {})
    }
    trained = {"cohort": list(cohort), "folded": folded, "refused": refused or {}} if number else {}
    measured = {"evaluation": losses if losses is not None else {}}
    traffic = {"bytes_down": 2_000_000, "bytes_up": 1_000_000}
    return {"round": number, "seconds": 20.0, **trained, **measured, **traffic, **facts}


def read(run):
    write_report(run)
    html = run.report.read_text(encoding="utf-8")
    page = Page(html)
    assert page.open == []
    return html, page


BASELINES = {
    "east": sums({"east": 3.8, "west": 4.6}),
    "west": sums({"east": 5.2, "west": 3.4}),
    POOLED: sums({"east": 3.6, "west": 3.0}),
}


SECURE = {"unit": "none", "secure_aggregation": True}


def test_a_secure_sum_is_told_by_round(make_run):
    """Who was summed, how exact the mean is, who was lost when and why; no site's own numbers."""
    sites, why = ("east", "north", "south", "west"), "lost in the secure sum, stage"
    summed = {"summed": 3, "members": 4, "error_bound": 2.5e-7}
    late = {**summed, "summed": 4, "late": {"west": f"{why} reveal: <b>"}}
    rounds = [
        {"round": 0, "seconds": 1.0, "bytes_down": 0, "bytes_up": 0, "evaluation": {}},
        record(1, cohort=sites, refused={"east": f"{why} mask: no answer"}, secure_sum=summed),
        record(2, cohort=sites, secure_sum=late),
        record(3, cohort=sites, secure_sum={"abandoned": "The secret cannot be opened."}),
    ]
    for each in rounds[1:]:
        each["folded"] = {site: {"bytes": 500} for site in each["folded"]}
    rounds[3]["folded"] = {}
    _, page = read(make_run(rounds, sites=sites, privacy=SECURE))
    assert page.row("1")[1:3] == ["3 of 4", "2.5e-07"]
    assert "east: lost in the secure sum, stage mask: no answer" in page.row("1")[-1]
    assert (
        "west, in the sum all the same: lost in the secure sum, stage reveal: <b>"
        in (page.row("2")[-1])
    )
    assert page.row("3")[1:3] == ["0 of 4", fmt.tiny(math.nan)]
    assert "No sum, and the adapter stays as it was: The secret" in page.row("3")[-1]
    text = "".join(page.text)
    assert "Of 3 rounds, 2 gave a sum, over 3 to 4 sites" in text
    assert "nothing bounds what a sum says about them" in text


def test_the_outcome_weighs_sites_by_their_tokens_and_names_the_gap_that_was_closed(make_run):
    """Base, end, perplexities and share agree with figures computed here by hand."""
    run = make_run([record(0, sums(BASE)), record(1, sums(FINAL))], baselines=BASELINES)
    _, page = read(run)
    text = " ".join(page.text)
    base, final = (6.0 * 100 + 5.0 * 300) / 400, (4.0 * 100 + 3.0 * 300) / 400
    alone = ((3.8 * 100 + 4.6 * 300) / 400 + (5.2 * 100 + 3.4 * 300) / 400) / 2
    pooled = (3.6 * 100 + 3.0 * 300) / 400
    assert f"lowered the held-out loss from {base:.2f} to {final:.2f} nats per token" in text
    assert f"(perplexity {math.exp(base):.0f} → {math.exp(final):.1f}) over 2 sites" in text
    share = round(100 * (alone - final) / (alone - pooled))
    assert f"in 1 round; it closed {share}\N{NO-BREAK SPACE}% of the gap" in text


@pytest.mark.parametrize(
    ("keys", "unit"),
    [
        ({"objective": "dpo"}, "pair"),
        ({"objective": "classification", "labels": ["ham", "spam"]}, "text"),
    ],
)
def test_a_loss_of_no_tokens_has_its_own_unit_and_no_perplexity(make_run, keys, unit):
    """In the outcome, in figures, plots and the comparison."""
    run = make_run([record(0, sums(BASE)), record(1, sums(FINAL))], baselines=BASELINES, **keys)
    html, page = read(run)
    text = " ".join(page.text)
    assert f"from 5.25 to 3.25 nats per {unit} over 2 sites" in text
    assert f"Overall is the mean over the held-out {unit}s of all sites." in text
    assert f"Nats per {unit}, lower is better." in text
    assert "erplexity" not in html
    assert "per token" not in html
    assert len(page.row("federated")) == len(page.row("trained on")) == 4


def test_what_was_counted_is_shown_of_base_and_adapter(make_run):
    """Over the sites that measured both ends; macro F1 is made of the classes' sums."""

    def shares(right, hits):
        return {
            "east": {"token_accuracy": [right, 100], "f1.0": [hits, 10], "f1.1": [2, 4]},
            "south": {"token_accuracy": [0, 100]},
        }

    def text(loss):
        return {"public": {"east": [loss * 7, 7.0]}}

    run = make_run(
        [
            record(0, sums(BASE), shares=shares(20, 2), **text(3.0)),
            record(1, sums(FINAL), shares=shares(37, 8)),
            record(2, sums(FINAL), shares=shares(45, 8), **text(3.25)),
        ]
    )
    _, page = read(run)
    text_of_page = " ".join(page.text)
    for shown in (
        "Token accuracy 45.0\N{NO-BREAK SPACE}% base 20.0\N{NO-BREAK SPACE}%",
        "Macro F1 65.0\N{NO-BREAK SPACE}% base 35.0\N{NO-BREAK SPACE}%",
        "Public text 3.250 base 3.000 nats per token",
    ):
        assert shown in re.sub(r"[^\S\N{NO-BREAK SPACE}]+", " ", text_of_page)


def test_the_table_shows_every_way_of_training_and_marks_the_best_of_each_column(make_run):
    """The row of the mean is the mean over trainers; the smallest number of a column is bold."""
    run = make_run([record(0, sums(BASE)), record(1, sums(FINAL))], baselines=BASELINES)
    html, page = read(run)
    assert page.row("east alone")[1:3] == ["3.800", "4.600"]
    assert page.row("mean of sites alone")[1:4] == ["4.500", "4.000", "4.125"]
    assert page.row("all data pooled")[1:] == ["3.600", "3.000", "3.150", "23.3"]
    assert html.count("<strong>3.600</strong>") == 1
    assert html.count("<strong>3.000</strong>") == 2  # federated and pooled draw level in the west


def test_traffic_time_and_updates_are_summed_over_all_rounds(make_run):
    """The last line of the table of rounds holds the totals."""
    refused = {"west": "it sent <nothing>"}
    run = make_run([record(0, sums(BASE)), record(1, sums(FINAL)), record(2, refused=refused)])
    _, page = read(run)
    assert page.row("all") == ["all", "", "3 of 4", "6.0 MB", "3.0 MB", "60 s", "1 update"]
    assert page.row("2")[-1].strip() == "west: it sent <nothing>"


def test_the_report_needs_nothing_from_outside_and_runs_no_script(make_run):
    """References lead into the page itself; addresses occur only as names of XML namespaces."""
    run = make_run([record(0, sums(BASE)), record(1, sums(FINAL))], baselines=BASELINES)
    html, page = read(run)
    assert page.tags.count("svg") == 3
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def test_equal_runs_give_equal_bytes(make_run):
    """Nothing in the report depends on when it is written."""
    run = make_run([record(0, sums(BASE)), record(1, sums(FINAL))], baselines=BASELINES)
    assert read(run)[0] == read(run)[0]


def test_it_says_that_no_differential_privacy_was_applied(make_run):
    """A reader is not left to guess what the updates may give away."""
    html, _ = read(make_run([record(0, sums(BASE))]))
    assert "No differential privacy was applied; updates can reveal training data." in html


def test_it_describes_the_adapter_and_the_resolved_recipe(make_run, spec):
    """Two tensors of 2x5 and 7x2 float32 values are 24 parameters and 96 bytes."""
    html, _ = read(make_run([record(0, sums(BASE))]))
    assert "24 parameters in 2 tensors, 96 B as float32" in html
    assert spec.base_digest[:12] in html
    assert "learning_rate: 0.0002" in html


def test_names_and_reasons_from_sites_are_escaped(make_run):
    """A site's name or reason that holds markup or a formula is shown as the text it is."""
    name = f"east{HOSTILE}"
    measured = {name: [600.0, 100.0], "west": [1500.0, 300.0]}
    run = make_run(
        [record(0, measured), record(1, measured, cohort=(name, "west"), refused={name: HOSTILE})],
        baselines={name: measured, POOLED: measured},
    )
    html, page = read(run)
    assert "<script" not in html
    assert "script" not in page.tags
    assert name in page.text
    assert f": {HOSTILE}" in page.text


def test_many_sites_are_summed_up_and_all_of_them_can_be_looked_up(make_run):
    """With forty sites the first table has no column a site; a second one, folded, has all."""
    sites = [f"clinic-{number:02}" for number in range(40)]
    tokens = dict.fromkeys(sites, 10)
    start, end = dict.fromkeys(sites, 5.0), dict.fromkeys(sites, 4.0)
    alone = {site: sums(dict.fromkeys(sites, 4.5), tokens) for site in sites}
    run = make_run(
        [record(0, sums(start, tokens)), record(1, sums(end, tokens), cohort=sites)],
        sites=sites,
        baselines=alone | {POOLED: sums(end, tokens)},
    )
    html, page = read(run)
    first, second = html.split("All 40 sites</summary>")
    assert "clinic-07 alone" not in first
    assert all(f"{site} alone" in second for site in sites)
    assert "middle 80 % of the 40 sites" in " ".join(page.text)


def test_a_single_site_has_one_line_under_its_own_name(make_run):
    """Its loss is the overall loss, so no line is drawn twice."""
    measured = [{"east": [600.0, 100.0]}, {"east": [400.0, 100.0]}]
    records = [record(n, losses, cohort=("east",)) for n, losses in enumerate(measured)]
    html, _ = read(make_run(records, sites=("east",)))
    assert "east 4.00</text>" in html
    assert "overall 4.00</text>" not in html


def test_rounds_without_an_evaluation_are_shown_as_not_measured(make_run):
    """The outcome speaks of the last round that was measured, and the notice of those complete."""
    run = make_run([record(0, sums(BASE)), record(1), record(2, sums(FINAL)), record(3)], rounds=8)
    _, page = read(run)
    text = " ".join(page.text)
    assert "over 2 sites in 2 rounds." in text
    assert "3 of 8 rounds are complete" in text
    assert page.row("3")[1] == "\N{EN DASH}"


def test_a_run_without_evaluations_has_no_column_of_losses(make_run):
    """``federation.evaluate_every: 0``: said once, instead of a dash in each row."""
    html, page = read(make_run([record(0), record(1)]))
    assert "No held-out loss was measured." in html
    assert "held-out loss</th>" not in html
    assert "measures the base" not in html
    assert page.row("1")[1] == "2 of 2"


def test_the_ends_are_compared_on_the_sites_that_answered_at_both(make_run):
    """A site that is silent at the end does not make the federation look better or worse."""
    run = make_run([record(0, sums(BASE)), record(1, sums({"east": 4.0}))])
    assert "from 6.00 to 4.00 nats per token" in read(run)[0]


def test_a_loss_that_rose_is_reported_as_raised(make_run):
    """The sentence follows the numbers."""
    run = make_run([record(0, sums(FINAL)), record(1, sums(BASE))])
    assert "Federated training raised the held-out loss from 3.25 to 5.25" in read(run)[0]


@pytest.mark.parametrize(
    ("pooled", "federated", "words"),
    [
        (4.5, 4.0, "gained nothing over sites training alone (4.50 against 4.00)"),
        (3.0, 4.2, "it stayed behind sites training alone (4.20 against 4.00)"),
        (3.5, 3.2, "it did even better than training on all data pooled (3.50)"),
    ],
)
def test_a_gap_that_cannot_be_a_share_is_put_into_words(make_run, pooled, federated, words):
    """With sites alone at 4.00, no percentage is claimed where it would mislead."""
    both = ("east", "west")
    alone = sums(dict.fromkeys(both, 4.0))
    run = make_run(
        [record(0, sums(BASE)), record(1, sums(dict.fromkeys(both, federated)))],
        baselines={"east": alone, "west": alone, POOLED: sums(dict.fromkeys(both, pooled))},
    )
    html, _ = read(run)
    assert words in html
    assert "of the gap" not in html


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([], id="no round at all"),
        pytest.param([record(0, sums(BASE))], id="the base alone"),
        pytest.param([record(0)], id="no site answered"),
        pytest.param([record(0, sums(BASE)), record(1, {"east": [0.0, 0.0]})], id="no tokens"),
        pytest.param([record(0, sums({"east": math.nan, "west": math.inf}))], id="not finite"),
        pytest.param([record(0, sums({"east": 900.0}))], id="perplexity overflows"),
        pytest.param(
            [record(0, sums(BASE)), record(1, refused=dict.fromkeys(TOKENS, "too late"))],
            id="all refused",
        ),
        pytest.param(
            [
                record(0, sums(BASE)),
                record(1, folded={"east": {}}, seconds=None, bytes_up=math.nan),
            ],
            id="missing metrics",
        ),
    ],
)
def test_missing_and_broken_values_never_break_the_report(make_run, records):
    """Whatever is not there or not a number is left out of the plots and a dash in the tables."""
    html, _ = read(make_run(records, rounds=4))
    assert "This run is not finished" in html
    assert not re.search(r">\s*(nan|inf|None)\b", html)
