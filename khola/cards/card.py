"""A card is what is published about a model: who made it, from whom, under which licence, of what size, and where it lies.

File     `NAME.toml` in this folder, one a model; `licences.toml` holds the licences that cards name. No card holds code.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

How = Literal["fine-tuned", "initialised", "distilled", "quantised", "merged", "adapted", "pruned", "same weights"]


class Parent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One edge of the family tree."""

    name: str
    how: How


class CardFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of known content."""

    name: str
    """Its plain file name on this disk."""
    format: str
    """Number format of most weights, as in the file's name: "q4_1", "q4_k_m", "bf16"."""
    bytes: int
    sha256: str
    sources: tuple[str, ...] = ()
    """Tried in order; see `khola.fetch.sources`."""


class Licence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a licence asks, as data. Not legal advice; `url` leads to the text that counts."""

    name: str
    url: str
    commercial: Literal["yes", "no", "conditions"]
    distil_outputs: Literal["yes", "no", "name-rule"]
    """May outputs train other models?"""
    redistribute: bool = True
    name_prefix: str = ""
    """What the name of a derived model must begin with."""
    notice: str = ""
    """Text to show or to ship with derived models."""
    mau_limit: int = 0
    """Monthly active users above which the lab's permission is needed; 0 means no limit."""
    use_policy: str = ""
    """Address of an acceptable-use policy that must be passed on."""
    duties: tuple[str, ...] = ()
    """Everything else it asks, a sentence each."""
    duties_bn: tuple[str, ...] = ()
    """The same in Bengali."""
    verified: bool = True
    """Whether the text was read for this record."""
    outputs_clause: str = ""
    """Where the text says what its outputs may train, for instance "section 1.b.v"."""
    weights_clause: str = ""
    """Where it says what is asked of models that are made from the weights."""
    exempt: tuple[str, ...] = ()
    """Licences whose derived models its outputs may train, although they may train no others."""
    students_derived: bool = False
    """Whether a model that was trained on its outputs counts as derived from it, so that everything it asks passes on."""
    outputs_duties: tuple[str, ...] = ()
    """What it asks of a model that was trained on nothing but its outputs, a sentence each."""
    outputs_duties_bn: tuple[str, ...] = ()
    """The same in Bengali."""
    share_alike: bool = False
    """Whether what is made from it must stand under the same licence."""

    def told_duties(self, language: str = "en") -> tuple[str, ...]:
        """Its duties in one language."""
        return self.duties_bn if language == "bn" and self.duties_bn else self.duties

    def told_outputs_duties(self, language: str = "en") -> tuple[str, ...]:
        """Its duties towards models that were trained on its outputs, in one language."""
        return self.outputs_duties_bn if language == "bn" and self.outputs_duties_bn else self.outputs_duties


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One published model."""

    name: str
    """khola's name: lower case, letters, digits, dots and dashes; equals the file's name."""
    title: str
    """The lab's own name."""
    family: str
    lab: str
    country: str
    """Of the lab, ISO 3166-1 alpha-2."""
    released: str
    """YYYY-MM-DD, or YYYY-MM where the day is not known."""
    architecture: str
    """A module of `khola.models`; empty for models without open weights that khola does not implement."""
    licence: str
    """A key of licences.toml."""
    further_licences: tuple[str, ...] = ()
    """Licences of its parents that apply as well."""
    chat: str = ""
    """A module of `khola.chat.formats`; empty for base models."""
    parameters: str = ""
    """Number of weights as published: "135M", "671B"."""
    active_parameters: str = ""
    """Weights used for one token, where they differ."""
    context: int = 0
    """Trained context in tokens."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that the lab names; empty when it does not say."""
    thinking: Literal["never", "always", "optional"] = "never"
    parents: tuple[Parent, ...] = ()
    sampling: dict[str, float | int] = {}
    """Recommended sampling, in the names of `khola.engine.request.Sampling`."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end a turn, in addition to the tokenizer's own end."""
    config: dict[str, Any] = {}
    """Keys of config.json that shape the forward pass."""
    config_of: str = ""
    """Name of a card whose `config` this one starts from."""
    sources: tuple[str, ...] = ()
    """Whole checkpoints, tried in order."""
    files: tuple[CardFile, ...] = ()
    """Single files of known content; the first is the default."""
    weights: Literal["open", "gated", "none"] = "open"
    about: str = ""
    """One sentence that a reader should know, for instance what the name hides."""
    facts: tuple[str, ...] = ()
    """Sources of these data."""
