"""The licence check: every row of the table of licences, and the cases that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from khola.api.quantise import quantise
from khola.cards.catalogue import cards, licences
from khola.errors import AskedWrong, LicenceForbids, UnknownLicence, UnknownOption
from khola.lineage.licence import Source, Verdict, begins_with, judge, judge_card
from khola.lineage.record import Role
from khola.lineage.sentences import duty_sentences, recorded_duties
from khola.lineage.terms import Terms, of_card, terms_of
from khola.settings import Settings
from tests.api.small_models import folder_model


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An empty home."""
    return Settings(home=tmp_path / "khola", user_home=tmp_path, offline=True)


def made(
    settings: Settings, name: str, base: str = "", teacher: str = "", data: Mapping[str, str] | None = None, **said: tuple[str, ...]
) -> Verdict:
    """The verdict on a student of a teacher; `said` declares the teacher's licences."""
    sources = [Source(model=teacher, role="teacher-text", licences=said.get("teacher_licences", ()))] if teacher else []
    sources += [Source(model=base, role="weights", licences=said.get("base_licences", ()))] if base else []
    return judge(name, sources, settings, data)


def asked(verdict: Verdict) -> str:
    """All duties of a verdict."""
    return "\n".join(sentence for claim in verdict.binding for sentence in duty_sentences(claim, "en"))


def test_a_distilled_llama_must_be_called_llama(settings: Settings) -> None:
    verdict = judge_card(of_card(cards()["deepseek-r1-distill-llama-8b"]))
    (refusal,) = verdict.refusals
    assert isinstance(refusal, LicenceForbids)
    assert "must begin with 'Llama'" in refusal.told() and "section 1.b.i" in refusal.told()
    assert refusal.facts["suggestion"] == "llama-deepseek-r1-distill-llama-8b"
    assert set(verdict.licences) == {"llama-3.1", "MIT"} and "Built with Llama" in asked(verdict) and verdict.mau_limit == 700_000_000


def test_outputs_of_llama_3_may_not_train_qwen(settings: Settings) -> None:
    verdict = made(settings, "my-qwen", "qwen2.5-7b", "llama-3-8b-instruct")
    with pytest.raises(LicenceForbids, match=r"section 1\.b\.v") as raised:
        verdict.enforce()
    assert raised.value.exit_code == 5 and raised.value.http_status == 403
    assert raised.value.told("bn") != raised.value.told()


def test_a_smollm2_distilled_from_qwen_is_clean(settings: Settings) -> None:
    verdict = made(settings, "avocado", "smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")
    verdict.enforce()
    assert verdict.licences == ("Apache-2.0",) and verdict.commercial == "yes" and not verdict.mau_limit
    assert [claim.model for claim in verdict.binding] == ["smollm2-135m-instruct"]
    assert not (verdict.name_prefixes or verdict.use_policies or verdict.unread)


def test_a_student_of_deepseek_v3_carries_its_restrictions(settings: Settings) -> None:
    verdict = made(settings, "mine", "qwen2.5-7b", "deepseek-v3")
    assert verdict.allowed and verdict.use_policies == (licences()["deepseek"].use_policy,)
    assert "forbidden uses" in asked(verdict)
    assert [duty.licence for duty in recorded_duties(verdict)] == ["deepseek", "Apache-2.0"]
    above = made(settings, "mine", "qwen2.5-7b", "deepseek-v3-0324")
    assert not above.use_policies, "the lab gave the later model out under MIT"


def test_swallow_is_a_derivative_of_llama_2(settings: Settings) -> None:
    verdict = made(settings, "swallow-7b", "llama-2-7b")
    assert verdict.allowed and verdict.commercial == "conditions" and verdict.licences == ("llama-2",)
    assert "ship a copy of the agreement" in asked(verdict) and "use-policy" in verdict.use_policies[0]
    assert made(settings, "swallow-7b", "llama-2-7b", "llama-2-70b-chat").allowed, "outputs may improve derivatives"
    assert not made(settings, "other-7b", "qwen2.5-7b", "llama-2-70b-chat").allowed


TABLE = {
    # licence: (allowed for a Qwen student of outputs, its name's prefix, binds by outputs, restrictions pass on)
    "llama-2": (False, "", True, False),
    "llama-3": (False, "", True, False),
    "llama-3.1": (True, "Llama", True, False),
    "llama-3.2": (True, "Llama", True, False),
    "llama-3.3": (True, "Llama", True, False),
    "llama-4": (True, "Llama", True, False),
    "tongyi-qianwen": (False, "", True, False),
    "qwen": (True, "", True, False),
    "qwen-research": (True, "", True, False),
    "Apache-2.0": (True, "", False, False),
    "deepseek": (True, "", True, True),
    "MIT": (True, "", False, False),
    "minimax": (True, "", False, False),
    "kimi-k2": (True, "", False, False),
    "CC-BY-NC-SA-4.0": (True, "", True, False),
    "all-rights-reserved": (False, "", True, False),
    "step-audio": (False, "", True, False),
}


@pytest.mark.parametrize("key", TABLE)
def test_what_a_licence_says_of_outputs(key: str, settings: Settings) -> None:
    allowed, prefix, binds, restricted = TABLE[key]
    verdict = made(settings, "", "qwen2.5-7b", "a-teacher", teacher_licences=(key,))
    assert verdict.allowed == allowed
    assert verdict.name_prefixes == ((prefix,) if prefix else ())
    assert (key in verdict.licences) == (binds or key == "Apache-2.0")  # the student's own
    assert bool(verdict.use_policies) == restricted
    assert made(settings, "plain", "qwen2.5-7b", "a-teacher", teacher_licences=(key,)).allowed == (allowed and not prefix)


@pytest.mark.parametrize("key", TABLE)
def test_weights_carry_everything(key: str, settings: Settings) -> None:
    record = licences()[key]
    verdict = made(settings, "", "a-base", base_licences=(key,))
    said = asked(verdict)
    assert verdict.allowed == record.redistribute and verdict.licences == (key,)
    assert all(duty in said for duty in record.duties) and record.notice in said and record.use_policy in said
    assert verdict.name_prefixes == ((record.name_prefix,) if record.name_prefix else ())
    assert verdict.mau_limit == record.mau_limit and verdict.commercial == record.commercial


def test_names_of_llama_3(settings: Settings) -> None:
    assert made(settings, "llama-3-bangla", "llama-3-8b").allowed
    refused = made(settings, "llama-bangla", "llama-3-8b")
    assert not refused.allowed and refused.refusals[0].facts["suggestion"] == "llama-3-llama-bangla"


@pytest.mark.parametrize(
    ("name", "prefix", "fits"),
    [
        ("Llama 3-x", "Llama 3", True),
        ("llama_3.x", "Llama 3", True),
        ("LLAMA", "Llama", True),
        ("my-llama", "Llama", False),
        ("", "L", False),
    ],
)
def test_what_a_name_begins_with(name: str, prefix: str, fits: bool) -> None:
    assert begins_with(name, prefix) is fits


def test_parents_of_parents_count(settings: Settings) -> None:
    """A model of another lab between changes nothing; a model of the same lab licenses its own work anew."""
    meta = Terms(name="llama-3-8b", lab="Meta", licences=("llama-3",))
    tuned = Terms(name="tuned", lab="Somebody", licences=("MIT",), parents=((meta, "weights"),))
    student = judge_card(Terms(name="student", parents=((tuned, "outputs"),)))
    assert [refusal.facts["path"] for refusal in student.refusals] == ["student > tuned > llama-3-8b"]
    later = Terms(name="later", lab="Meta", licences=("MIT",), parents=((meta, "weights"),))
    assert judge_card(Terms(name="student", parents=((later, "outputs"),))).allowed
    taught = Terms(name="taught", lab="Somebody", licences=("MIT",), parents=((meta, "outputs"),))
    assert not judge_card(Terms(name="grandchild", parents=((taught, "weights"),))).allowed


def test_only_two_published_models_break_a_rule(settings: Settings) -> None:
    """Of all cards, two were named without the word that their base's licence asks for."""
    refused = {name: judge_card(of_card(card)).refusals for name, card in cards().items() if card.weights != "none"}
    broken = {name: [refusal.facts.get("prefix") for refusal in refusals] for name, refusals in refused.items() if refusals}
    assert broken == {"deepseek-r1-distill-llama-8b": ["Llama"], "deepseek-r1-distill-llama-70b": ["Llama"]}


def test_without_weights_there_is_nothing_to_make(settings: Settings) -> None:
    assert "does not let" in made(settings, "x", "kimi-k1.5").refusals[0].told()
    assert not made(settings, "x", "smollm2-135m", "kimi-k1.5").allowed


def test_no_name_obeys_two_rules(settings: Settings) -> None:
    roles: tuple[tuple[str, Role], ...] = (("glm-4-9b", "teacher-logits"), ("llama-3.1-8b", "weights"))
    verdict = judge("llama-x", [Source(model=model, role=role) for model, role in roles], settings)
    assert not verdict.allowed and {"glm-4", "Llama"} == {verdict.refusals[0].facts[key] for key in ("first", "second")}


@pytest.mark.parametrize("model", ["no-such-model", "smollm2-135m-instrct", "gpt-x"])
def test_an_unknown_licence_is_refused_with_what_to_do(model: str, settings: Settings) -> None:
    verdict = made(settings, "x", "smollm2-135m", model)
    assert [type(refusal) for refusal in verdict.refusals] == [UnknownLicence]
    assert f"--licence {model}=KEY" in verdict.refusals[0].hint()
    assert ("smollm2-135m-instruct" in verdict.refusals[0].hint()) == model.startswith("smol")
    assert made(settings, "x", "smollm2-135m", model, teacher_licences=("MIT",)).allowed


def test_licences_that_are_declared_wrongly(settings: Settings) -> None:
    with pytest.raises(AskedWrong, match="khola knows its licences: llama-3"):
        terms_of("llama-3-8b", settings, ("MIT",))
    with pytest.raises(UnknownOption, match="no licence is called"):
        terms_of("gpt-x", settings, ("free",))


def test_a_file_of_unknown_content_has_no_licence(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "found.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnknownLicence, match=r"found\.gguf"):
        terms_of(str(tmp_path / "found.gguf"), settings)
    assert terms_of(str(tmp_path / "found.gguf"), settings, ("MIT",)).licences == ("MIT",)


def test_data_sets_have_licences_too(settings: Settings) -> None:
    free = made(settings, "x", "smollm2-135m", data={"mine": "own", "texts": "CC0-1.0"})
    assert free.allowed and free.commercial == "yes"
    bound = made(settings, "x", "smollm2-135m", data={"agibot-world": "CC-BY-NC-SA-4.0"})
    assert bound.allowed and bound.commercial == "no" and "publish it under the same licence" in asked(bound)
    unknown = made(settings, "x", "smollm2-135m", data={"scraped": "whatever"})
    assert isinstance(unknown.refusals[0], UnknownLicence) and "own" in unknown.refusals[0].hint()
    both = made(settings, "x", "deepseek-v3", data={"agibot-world": "CC-BY-NC-SA-4.0"})
    assert "cannot obey the two" in both.refusals[0].told()
    assert not made(settings, "x", "smollm2-135m", data={"goku": "all-rights-reserved"}).allowed


def test_another_form_of_what_has_no_licence_has_none(settings: Settings, tmp_path: Path) -> None:
    """Writing a model in another format makes a record of it, and no licence."""
    made = quantise(str(folder_model(tmp_path / "found")), to="q8_0", settings=settings, new_name="smaller")
    assert made.licences == ()
    with pytest.raises(UnknownLicence, match="found: nothing says") as raised:
        terms_of("smaller", settings)
    assert "--licence smaller=KEY" in raised.value.hint()
    assert judge("x", [Source(model="smaller", role="weights", licences=("llama-3",))], settings).name_prefixes == ("Llama 3",)
