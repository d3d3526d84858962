"""Cases written from the license texts: a model, a use, the answer, and the clause it has to come from."""
from __future__ import annotations

import pytest

from pellucid.catalog import gate, licenses, uses, verdict
from pellucid.catalog.lineage import Node, Said

NO, UNKNOWN, DUTIES, YES = verdict.ANSWERS
MILLION = 10**6


def judge(model: str, said: str, data: tuple[str, ...] = (), into: str | None = None, **numbers: int | str) -> verdict.Verdict:
    node = gate.tuned(gate.tree(model), data) if data else gate.tree(model)
    more = {"into": gate.weights_of(into)} if into else {}
    return verdict.judge(node, uses.Use(uses=uses.words(said), **numbers, **more))  # type: ignore[arg-type]


CASES = [
    # Falcon-180B: hosting for others needs a license of its own, running it for oneself does not.
    ("falcon-180b", "behind a paid api", {}, NO, "falcon-180b-tii", "introduction; 9, whose text was not at hand"),
    ("falcon-180b", "internal business use", {}, DUTIES, "falcon-180b-tii", "5"),
    ("falcon-llm-1.0", "sell", {}, NO, "falcon-llm-1.0", "8.1"),
    # Llama: users are counted in the month before the version's release.
    ("llama-2-7b", "commercial api", {"users_at_release": 800 * MILLION}, NO, "llama-2", "2"),
    ("llama-2-7b", "commercial api", {"users": 800 * MILLION, "users_at_release": 100 * MILLION}, DUTIES, "llama-2", "1.b.iv"),
    ("llama-2-7b", "commercial api", {"users": 800 * MILLION}, UNKNOWN, "llama-2", "2"),
    ("llama-2-7b", "commercial", {}, UNKNOWN, "llama-2", "2"),
    ("llama-3-8b", "train another model on its outputs", {"users": 5}, NO, "llama-3", "1.b.v"),
    ("llama-3.1-8b", "train another model on its outputs", {"users": 5}, DUTIES, "llama-3.1", "1.b.i"),
    ("llama-3.2-11b-vision", "commercial", {"users": 5, "territory": "EU"}, NO, "llama-3.2", "Acceptable Use Policy, last paragraph"),
    ("llama-3.2-11b-vision", "commercial", {"users": 5, "territory": "US"}, DUTIES, "llama-3.2", "1.b.i"),
    ("llama-3.2-3b", "commercial", {"users": 5, "territory": "EU"}, DUTIES, "llama-3.2", "1.b.i"),
    ("llama-2-7b", "military", {"users": 5}, NO, "llama-2", "Acceptable Use Policy 2.1"),
    ("llama-4-scout", "military", {"users": 5, "territory": "US"}, NO, "llama-4", "Acceptable Use Policy 3.1"),
    ("llama-3.1-8b", "harassment", {"users": 5}, NO, "llama-3.1", "Acceptable Use Policy 1.2, 3.2"),
    ("llama-3-8b", "adult", {"users": 5}, UNKNOWN, "llama-3", "Acceptable Use Policy 1.1"),
    # Research only, through the weights they were made from.
    ("llama-7b", "commercial product", {}, NO, "llama-1", "2(a)(i)"),
    ("vicuna-7b-v1.1", "merge it, sell it in a product", {}, NO, "llama-1", "2(a)(i)"),
    ("opt-6.7b", "surveillance research", {}, NO, "opt-175b", "2(a)(iii)"),
    ("opt-6.7b", "academic research", {}, DUTIES, "opt-175b", "2(a)(iv)"),
    ("galactica-6.7b", "sell", {}, NO, "CC-BY-NC-4.0", "2(a)(1), 1(i)"),
    ("mistral-research", "commercial api", {}, NO, "mistral-research", "3.2, 9"),
    ("mistral-non-production", "hosted service for research", {}, NO, "mistral-non-production", "3.2, 9"),
    ("microsoft-research", "publish the weights", {}, NO, "microsoft-research", "1(c), 2(e)"),
    # What may be done with it, itemised.
    ("bloom-7b1", "medical advice", {}, NO, "bigscience-rail-1.0", "Attachment A, 12"),
    ("bloom-7b1", "commercial api", {}, DUTIES, "bigscience-rail-1.0", "4 (first condition), 5"),
    ("starcoder", "police decisions", {}, NO, "bigcode-openrail-m", "Attachment A, (n)"),
    ("deepseek", "military", {}, NO, "deepseek", "Attachment A, item 2"),
    ("gemma-2b", "commercial api", {}, DUTIES, "gemma", "3.1"),
    ("gemma-2b", "self-harm", {}, NO, "gemma", "Prohibited Use Policy 2(e)(iv)"),
    ("dbrx-instruct", "medical advice", {"users": 5}, NO, "databricks-open-model", "2.3, Acceptable Use Policy 13"),
    ("grok-2", "hacking", {}, NO, "grok-2", "5, Acceptable Use Policy 1.7"),
    # A policy that belongs to a license and was not at hand allows nothing.
    ("nvidia-open-model", "surveillance", {}, UNKNOWN, "nvidia-open-model", "2"),
    ("stability-community", "medical advice", {"revenue": 5}, UNKNOWN, "stability-community", "IV(b)"),
    # Users, revenue, territory.
    ("qwen-7b", "commercial api", {"users": 101 * MILLION}, NO, "qwen", "4"),
    ("qwen-7b", "commercial api", {"users": 99 * MILLION}, DUTIES, "qwen", "3(a)"),
    ("qwen-7b", "train another model", {}, NO, "qwen", "5(b)"),
    ("stability-community", "sell", {"revenue": 1_000_001}, NO, "stability-community", "III"),
    ("stability-community", "sell", {"revenue": 1_000_000}, DUTIES, "stability-community", "III"),
    ("kimi-modified-mit", "commercial", {"users": 5, "monthly_revenue": 21 * MILLION}, DUTIES, "kimi-modified-mit", "last paragraph"),
    ("tencent-hunyuan-a13b", "research", {"users": 5, "territory": "GB"}, NO, "tencent-hunyuan-a13b", "1(l), 5(c)"),
    ("openpangu-1.0", "commercial", {"territory": "EU"}, NO, "openpangu-1.0", "3"),
    # Data that travels, permissive ones, and what they still ask for.
    ("mistral-7b-v0.1", "publish the weights", {}, DUTIES, "Apache-2.0", "4(a)"),
    ("mistral-7b-v0.1", "commercial api", {}, YES, "Apache-2.0", "2"),
    ("mistral-7b-v0.1", "academic research", {}, YES, "Apache-2.0", "2"),
    ("bloom-7b1", "academic research", {}, DUTIES, "bigscience-rail-1.0", "Attachment A, 12"),
    ("dolly-v1-6b", "sell", {}, NO, "CC-BY-NC-4.0", "2(a)(1), 1(i)"),
    ("falcon3-7b", "harassment", {}, NO, "falcon-3", "5.1, Acceptable Use Policy 4"),
    ("qwen2-72b", "commercial api", {"users": 101 * MILLION}, NO, "qwen", "4"),
    ("qwen2-7b", "commercial api", {"users": 101 * MILLION}, YES, "Apache-2.0", "2"),
    ("MIT", "train another model", {}, YES, "MIT", "paragraph 1"),
    ("AGPL-3.0", "api", {}, DUTIES, "AGPL-3.0", "13"),
    # What texts leave open is never allowed.
    ("gpt4all-j", "commercial", {}, UNKNOWN, None, None),
    ("vicuna-7b-v1.5", "commercial api", {"users": 5}, UNKNOWN, "openai-generated", "What you cannot do (2023: 2(c)(iii))"),
]


def test_there_are_thirty_cases_and_more() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize(("model", "said", "facts", "answer", "license", "clause"), CASES, ids=lambda each: str(each) if isinstance(each, str) else "")
def test_a_case_has_its_answer_and_its_clause(model: str, said: str, facts: dict[str, int | str], answer: str, license: str | None, clause: str | None) -> None:
    found = judge(model, said, **facts)
    assert found.answer == answer, [reason.shown for reason in found.reasons]
    decisive = {NO: "forbids", DUTIES: "demands", YES: "allows"}.get(answer)
    those = [each for each in (*found.reasons, *found.duties) if each.does == decisive or (answer == UNKNOWN and each.does in ("unclear", "asks"))]
    assert (license, clause) in {(each.license, each.clause) for each in those}


def test_a_tune_of_mistral_on_alpaca_data_is_not_for_sale() -> None:
    found = judge("mistral-7b-v0.1", "sell", ("tatsu-lab/alpaca",))
    assert found.answer == NO
    assert (found.reasons[0].license, found.reasons[0].path) == ("CC-BY-NC-4.0", ("mistral-7b-v0.1", "tatsu-lab/alpaca"))
    assert "Apache-2.0 of mistral-7b-v0.1 allows what CC-BY-NC-4.0 of mistral-7b-v0.1 <- tatsu-lab/alpaca does not: commercial" in found.conflicts
    assert judge("mistral-7b-v0.1", "sell", ("databricks/databricks-dolly-15k",)).answer == YES


def test_outputs_of_llama_3_may_teach_a_llama_3() -> None:
    assert judge("llama-3-8b", "train", into="llama-3-70b", users=5).answer != NO
    assert judge("llama-3-8b", "train", into="mistral-7b-v0.1", users=5).answer == NO


def test_what_learned_from_outputs_inherits_what_they_were_not_for() -> None:
    teacher = Node(name="teacher", said=(Said(license="llama-3", by="x"),), kinds=())
    other = Node(name="pupil", said=(Said(license="MIT", by="x"),), kinds=(), parents=(("outputs", teacher),))
    found = verdict.judge(other, uses.Use(uses=frozenset({"commercial"}), users=5))
    assert (found.answer, found.reasons[0].clause, found.reasons[0].path) == (NO, "1.b.v", ("pupil", "teacher"))
    own = Node(name="pupil", said=(Said(license="llama-3", by="x"),), kinds=(), parents=(("outputs", teacher),))
    assert verdict.judge(own, uses.Use(uses=frozenset({"commercial"}), users=5)).answer != NO


def test_share_alike_beside_non_commercial_is_a_conflict_with_both_paths() -> None:
    parts = [Node(name=name, said=(Said(license=license, by="x"),)) for name, license in (("a", "CC-BY-SA-4.0"), ("b", "CC-BY-NC-4.0"))]
    merged = Node(name="merged", said=(Said(license=None, by="x"),), parents=tuple(("weights", part) for part in parts))
    assert verdict.conflicts(merged) == ("CC-BY-SA-4.0 of merged <- a has derivatives stay under it alone, "
                                         "and CC-BY-NC-4.0 of merged <- b adds limits of its own",)
    assert verdict.result_license(merged) is None


def test_the_license_of_a_result_is_that_of_all_it_was_made_from() -> None:
    assert verdict.result_license(gate.tree("dolly-v2-3b")) == "Apache-2.0 AND CC-BY-SA-3.0 AND MIT"
    assert verdict.result_license(gate.tree("gpt4all-j")) is None


def test_a_policy_that_belongs_to_a_license_is_itemised_or_leaves_the_rest_open() -> None:
    for license in licenses.table().values():
        named = {use for term in license.terms if term.does in ("forbids", "unclear") for use in term.uses if use in licenses.AREAS}
        if any("policy" in term.says or "AI terms" in term.says for term in license.terms if term.does == "demands"):
            assert len(named) >= 4, license.id


def test_whoever_may_earn_with_a_model_may_also_study_it() -> None:
    for license in licenses.table().values():
        uses = {use for term in license.terms if term.does == "allows" for use in term.uses}
        assert "commercial" not in uses or "research" in uses, license.id


@pytest.mark.parametrize("license", sorted(licenses.table()))
def test_no_license_says_yes_to_what_it_is_not_told(license: str) -> None:
    """A use that nobody allows by name is unknown, whoever asks."""
    node = Node(name="it", said=(Said(license=license, by="x"),), kinds=())
    bare = licenses.known(license)
    for use in licenses.BASE:
        if not any(use in term.uses for term in bare.terms if term.does == "allows"):
            assert verdict.judge(node, uses.Use(uses=frozenset({use}), users=0, revenue=0, monthly_revenue=0, territory="US")).answer in (NO, UNKNOWN), use


def test_a_license_nobody_knows_makes_the_answer_unknown() -> None:
    for said in (None, "acme-secret"):
        node = Node(name="it", said=(Said(license=said, by="README.md"),), kinds=())
        assert verdict.judge(node, uses.Use(uses=frozenset({"research"}))).answer == UNKNOWN
