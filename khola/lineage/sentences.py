"""A licence record, and a verdict over many, as sentences in one language."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from khola.cards.card import Licence
from khola.lineage.record import RecordedDuties
from khola.words import say

if TYPE_CHECKING:
    from khola.lineage.licence import Claim, Verdict

COMMERCIAL = {
    "yes": "commercial use is allowed",
    "no": "commercial use is not allowed",
    "conditions": "commercial use is allowed under conditions",
}
OUTPUTS = {
    "yes": "its answers may train other models",
    "no": "its answers may not train other models, except models derived from it",
    "name-rule": "its answers may train other models, but the names of those must begin with {prefix!r}",
}
REACH = {
    "weights": "made from the weights of {model}",
    "outputs": "trained on the outputs of {model}",
    "data": "trained on the data set {model}",
}


def licence_sentences(licence: Licence, language: str) -> Iterator[str]:
    """What a licence allows and asks, a sentence each, the weightiest first."""
    yield say(COMMERCIAL[licence.commercial], language)
    if licence.mau_limit:
        yield say("above {limit} monthly users the lab's permission is needed", language, limit=f"{licence.mau_limit:,}")
    yield say(OUTPUTS[licence.distil_outputs], language, prefix=licence.name_prefix)
    if not licence.redistribute:
        yield say("the weights may not be passed on", language)
    if licence.name_prefix:
        yield say("names of models made from it must begin with {prefix!r}", language, prefix=licence.name_prefix)
    yield from licence.told_duties(language)
    if licence.notice:
        yield say("ship this notice: {notice}", language, notice=licence.notice)
    if licence.use_policy:
        yield say("what it must not be used for: {address}", language, address=licence.use_policy)
    if not licence.verified:
        yield say("the text itself was not read for this record; read it before you rely on it", language)


def duty_sentences(claim: Claim, language: str) -> Iterator[str]:
    """What one claim asks of the new model, a sentence each."""
    record = claim.licence
    if claim.name_prefix:
        yield say("its name must begin with {prefix!r}", language, prefix=claim.name_prefix)
    if record.commercial == "no":
        yield say(COMMERCIAL["no"], language)
    if claim.derived:
        yield from record.told_duties(language)
        if record.mau_limit:
            yield say("above {limit} monthly users the lab's permission is needed", language, limit=f"{record.mau_limit:,}")
        if record.notice:
            yield say("ship this notice: {notice}", language, notice=record.notice)
        if record.use_policy:
            yield say("pass on what it must not be used for: {address}", language, address=record.use_policy)
        if record.share_alike:
            yield say("publish it under the same licence", language)
    else:
        yield from record.told_outputs_duties(language)
    if not record.verified:
        yield say("the text itself was not read for this record; read it before you rely on it", language)


def commercial_sentence(verdict: Verdict, language: str) -> str:
    """Whether the new model may be used commercially."""
    return say(COMMERCIAL[verdict.commercial], language)


def reach_sentence(claim: Claim, language: str) -> str:
    """How a licence reaches the new model, and by which way."""
    said = say(REACH[claim.way], language, model=claim.model)
    return said if len(claim.path) < 2 else f"{said} ({' > '.join(claim.path)})"


def recorded_duties(verdict: Verdict) -> tuple[RecordedDuties, ...]:
    """The duties of a verdict as a record keeps them, in English."""
    return tuple(
        RecordedDuties(licence=claim.key, model=claim.model, way=claim.way, sentences=tuple(duty_sentences(claim, "en")))
        for claim in verdict.binding
    )
