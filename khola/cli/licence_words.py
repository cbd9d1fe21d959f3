"""Licence records as the labelled lines of a command."""

from __future__ import annotations

from khola.cli.talk import Talk


def licence_pairs(keys: tuple[str, ...], talk: Talk) -> list[tuple[str, str]]:
    """Licences by key, as labelled lines: name and address first, then what they say."""
    from khola.cards.catalogue import licence
    from khola.lineage.sentences import licence_sentences

    pairs: list[tuple[str, str]] = []
    for key in keys:
        record = licence(key)
        pairs.append((talk.words("licence"), f"{record.name}  {record.url}"))
        pairs.extend(("", f"- {sentence}") for sentence in licence_sentences(record, talk.language))
    return pairs
