"""May this be made from those, and what does it owe them? A machine check of licences; not legal advice.

```
sources -> descent of each -> claims: every licence above, and whether weights, outputs or data reach the new model -> verdict
```
Rules    Weights of a model carry its licence and those of all models that it was made from. Outputs carry what a licence says of outputs,
         at every distance. Where a licence counts a student as derived, everything it asks passes on.
         A lab may license its own work anew: between two models of one lab the licence of the later one stands for both.
         What khola does not know is refused.
Source   the licence texts that licences.toml names, clause by clause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from khola.cards.card import Licence
from khola.cards.catalogue import licence as licence_named
from khola.cards.catalogue import licences
from khola.errors import Forbidden, LicenceForbids, UnknownLicence
from khola.fetch.places import model_name_from
from khola.lineage.record import TAUGHT, Role
from khola.lineage.terms import OWN, Terms, Way, terms_of, whatever_is_known
from khola.settings import Settings

Reach = Literal["weights", "outputs", "data"]
Commercial = Literal["yes", "no", "conditions"]
_ORDER: tuple[Commercial, ...] = ("yes", "conditions", "no")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that something is to be made from."""

    model: str
    """A path, a name in the library, a card's name, or what an address calls it."""
    role: Role
    coefficient: float | None = None
    """Of a merge's term."""
    licences: tuple[str, ...] = ()
    """What the user says, of a model that khola does not know."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One licence that reaches the new model."""

    key: str
    model: str
    """Which it belongs to; or a data set."""
    way: Reach
    path: tuple[str, ...]
    """From the source down to that model, both included."""

    @property
    def licence(self) -> Licence:
        """Its record."""
        return licence_named(self.key)

    @property
    def clause(self) -> str:
        """Where its text speaks of this way; empty where khola has not noted it."""
        return self.licence.outputs_clause if self.way == "outputs" else self.licence.weights_clause

    @property
    def derived(self) -> bool:
        """Whether the new model counts as derived from that one."""
        return self.way != "outputs" or self.licence.students_derived

    @property
    def binds(self) -> bool:
        """Whether it asks anything of the new model."""
        record = self.licence
        asks = record.distil_outputs != "yes" or record.outputs_duties or record.commercial == "no"
        return self.derived or bool(asks)

    @property
    def name_prefix(self) -> str:
        """What the new model's name must begin with on account of it; empty when nothing is asked."""
        return self.licence.name_prefix if self.derived or self.licence.distil_outputs == "name-rule" else ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the licences say about one new model."""

    name: str
    """Of the new model; empty while it has none."""
    sources: tuple[tuple[Source, Terms], ...]
    claims: tuple[Claim, ...]
    refusals: tuple[Forbidden, ...]
    """Each says what forbids it, where that stands, and what to do."""

    @property
    def allowed(self) -> bool:
        """Whether nothing forbids it."""
        return not self.refusals

    @property
    def binding(self) -> tuple[Claim, ...]:
        """Claims that ask something, one for each licence and way, the nearest."""
        first: dict[tuple[str, bool], Claim] = {}
        for claim in self.claims:
            if claim.binds:
                first.setdefault((claim.key, claim.derived), claim)
        return tuple(claim for (key, derived), claim in first.items() if derived or (key, True) not in first)

    @property
    def licences(self) -> tuple[str, ...]:
        """Keys of the licences that ask something."""
        return tuple(dict.fromkeys(claim.key for claim in self.binding))

    @property
    def commercial(self) -> Commercial:
        """The strictest of what they say about commercial use."""
        said = [claim.licence.commercial for claim in self.binding if claim.derived or claim.licence.commercial == "no"]
        return max(said, key=_ORDER.index, default="yes")

    @property
    def mau_limit(self) -> int:
        """The lowest number of monthly users above which a lab's permission is needed; 0 means no limit."""
        return min((claim.licence.mau_limit for claim in self.binding if claim.derived and claim.licence.mau_limit), default=0)

    @property
    def name_prefixes(self) -> tuple[str, ...]:
        """What the name must begin with; each one must be obeyed."""
        return tuple(dict.fromkeys(claim.name_prefix for claim in self.binding if claim.name_prefix))

    @property
    def use_policies(self) -> tuple[str, ...]:
        """Addresses of restrictions of use that must be passed on."""
        return tuple(dict.fromkeys(claim.licence.use_policy for claim in self.binding if claim.derived and claim.licence.use_policy))

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys of licences whose text was not read for khola's record."""
        return tuple(key for key in self.licences if not licence_named(key).verified)

    def enforce(self) -> None:
        """Go on only if nothing forbids it.

        Raises:
            LicenceForbids, UnknownLicence: the first of its refusals.
        """
        if self.refusals:
            raise self.refusals[0]


def judge(
    name: str,
    sources: Sequence[Source],
    settings: Settings,
    data: Mapping[str, str] | None = None,
) -> Verdict:
    """Whether a model may be made, and what it owes.

    Args:
        name: of the new model; empty leaves the rules for names as duties.
        sources: everything that reaches it: weights, terms of a merge, tokenizer, teachers.
        data: licences of its data sets by their names: keys of licences.toml, or "own".
    """
    found: list[tuple[Source, Terms]] = []
    refusals: list[Forbidden] = []
    for source in sources:
        try:
            found.append((source, terms_of(source.model, settings, source.licences)))
        except UnknownLicence as unknown:
            refusals.append(unknown)
    reached: list[Claim] = []
    for source, terms in found:
        reached += _claims(terms, "outputs" if source.role in TAUGHT else "weights")
    for data_set, key in (data or {}).items():
        if key in licences():
            reached.append(Claim(key=key, model=data_set, way="data", path=(data_set,)))
        elif key != OWN:
            text = "{data}: khola does not know the licence {key!r}, so nothing may be trained on it"
            hint = "known licences: {known}; data that is nobody else's is called own"
            refusals.append(UnknownLicence(text, hint=hint, data=data_set, key=key, known=", ".join(licences())))
    return _decided(name, tuple(found), reached, refusals)


def _decided(name: str, sources: tuple[tuple[Source, Terms], ...], reached: Sequence[Claim], refusals: Sequence[Forbidden]) -> Verdict:
    """The verdict on claims, the nearest of which counts where a licence arrives twice from one model by one way."""
    unique = tuple({(claim.key, claim.model, claim.way): claim for claim in reversed(reached)}.values())[::-1]
    found = (*refusals, *_forbidden(unique), *_misnamed(name, unique), *_unshareable(unique))
    return Verdict(name=name, sources=sources, claims=unique, refusals=found)


def judge_form(name: str, model: str, settings: Settings) -> Verdict:
    """The same model in another form: whatever is known of it goes along; nothing is refused, and a name is only told.

    Args:
        name: of the new form.
        model: on this disk, as `khola.loader.find.find` takes it.
    """
    source = Source(model=model, role="weights")
    verdict = judge(name, [source], settings)
    if verdict.sources:
        return verdict
    known = whatever_is_known(model, settings)
    return Verdict(name=name, sources=((source, known),), claims=tuple(_claims(known, "weights")), refusals=verdict.refusals)


def judge_card(terms: Terms) -> Verdict:
    """A model that exists, judged as if it were made again from its parents, under its own name and its own licences.

    Its own licences come first; refusals say which of its parents' are broken, its name's rule among them.
    """
    own = [Claim(key=key, model=terms.name, way="weights", path=(terms.name,)) for key in terms.licences]
    above = [claim for claim in _claims(terms, "weights") if claim.model != terms.name]
    return _decided(terms.name, (), [*own, *above], ())


def _claims(terms: Terms, way: Way) -> Iterator[Claim]:
    """Every licence above, the nearest first, each once for every way in which it arrives."""
    waiting: list[tuple[Terms, Way, tuple[str, ...], frozenset[str]]] = [(terms, way, (), frozenset())]
    seen: set[tuple[int, Way, frozenset[str]]] = set()
    while waiting:
        one, reach, path, granted = waiting.pop(0)
        if (id(one), reach, granted) in seen:
            continue
        seen.add((id(one), reach, granted))
        path = (*path, one.name)
        if one.lab not in granted:
            yield from (Claim(key=key, model=one.name, way=reach, path=path) for key in one.licences)
        yield from (
            Claim(key=key, model=name, way="data" if reach == "weights" else "outputs", path=(*path, name))
            for name, key in one.data
            if key != OWN
        )
        labs = granted | ({one.lab} if one.lab else set())
        waiting += [(parent, "outputs" if "outputs" in (reach, edge) else "weights", path, labs) for parent, edge in one.parents]


def _forbidden(claims: Sequence[Claim]) -> Iterator[Forbidden]:
    """What forbids the new model outright."""
    derived = {claim.key for claim in claims if claim.way == "weights"}
    for claim in claims:
        record = claim.licence
        facts = {"model": claim.model, "licence": record.name, "address": record.url, "path": " > ".join(claim.path)}
        if claim.way == "outputs" and record.distil_outputs == "no" and not derived & set(record.exempt):
            text = "{model}: its licence, the {licence}, does not let its outputs train other models ({clause}); it arrives by {path}"
            if record.exempt:
                allowed = ", ".join(record.exempt)
                hint = "it allows models that are themselves derived from it (licences {exempt}); else choose another teacher: {address}"
                yield LicenceForbids(text, hint=hint, clause=record.outputs_clause, exempt=allowed, **facts)
            else:
                yield LicenceForbids(text, hint="choose another teacher: {address}", clause=record.outputs_clause, **facts)
        elif claim.way != "outputs" and not record.redistribute:
            text = "{model}: its licence, the {licence}, does not let anything be made from it; it arrives by {path}"
            yield LicenceForbids(text, hint="choose another one: {address}", **facts)


def _misnamed(name: str, claims: Sequence[Claim]) -> Iterator[Forbidden]:
    """Rules for names that the new name breaks, or that no name can obey."""
    rules = {claim.name_prefix: claim for claim in claims if claim.name_prefix}
    longest = max(rules, key=len, default="")
    contrary = next((prefix for prefix in rules if not begins_with(longest, prefix)), None)
    if contrary is not None:
        yield LicenceForbids(
            "no name can begin with {first!r}, as {one} asks, and with {second!r}, as {other} asks",
            hint="leave one of the two out",
            first=longest,
            second=contrary,
            one=rules[longest].licence.name,
            other=rules[contrary].licence.name,
        )
    elif name and longest and not begins_with(name, longest):
        claim = rules[longest]
        yield LicenceForbids(
            "{name}: its name must begin with {prefix!r}: the {licence} of {model} asks for it ({clause})",
            hint="call it {suggestion}",
            name=name,
            prefix=longest,
            licence=claim.licence.name,
            model=claim.model,
            clause=claim.licence.outputs_clause or claim.licence.weights_clause,
            suggestion=model_name_from(f"{longest}-{name}"),
        )


def _unshareable(claims: Sequence[Claim]) -> Iterator[Forbidden]:
    """Two licences that both want the whole."""
    shared = {claim.key: claim for claim in claims if claim.derived and claim.licence.share_alike}
    first = next(iter(shared.values()), None)
    strict = [claim for claim in claims if claim.derived and claim.key not in shared and (claim.name_prefix or claim.licence.use_policy)]
    for claim in [*list(shared.values())[1:], *strict[:1]]:
        if first is not None:
            yield LicenceForbids(
                "{model} stands under the {licence}, {other} under the {second}: what is made from both cannot obey the two",
                hint="leave one of the two out",
                model=first.model,
                licence=first.licence.name,
                other=claim.model,
                second=claim.licence.name,
            )


def begins_with(name: str, prefix: str) -> bool:
    """Whether a name begins with a word that a licence asks for; case, and which mark stands between words, do not matter."""
    plain = [re.sub(r"[\s._-]+", "-", text.casefold()) for text in (name, prefix)]
    return plain[0].startswith(plain[1])
