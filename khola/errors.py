"""The tree of errors: each says what happened, what was expected and found, where, and what to do next.

```
KholaError
├── AskedWrong   exit 2, HTTP 400   the request cannot be meant
├── BadFiles     exit 3, HTTP 422   a model file is damaged, hostile or of another kind
├── NoRoom       exit 4, HTTP 503   memory, disk or queue is full
├── Forbidden    exit 5, HTTP 403   a licence or a setting does not allow it
├── NoSource     exit 6, HTTP 502   what was asked for could not be fetched
└── OurFault     exit 1, HTTP 500   khola is wrong
```

The text of an error is a template in English; `told` says it in another language (see `khola.words`).
"""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from khola.words import say


class KholaError(Exception):
    """Root of all errors that khola raises on purpose.

    Args:
        text: what happened, a template over `facts`.
        hint: what to do next, a template over the same facts; empty when there is nothing to do.
        facts: values named by the templates, kept for machines (`--json`, HTTP bodies).
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    code: ClassVar[str] = "khola_error"

    def __init__(self, text: str, /, *, hint: str = "", **facts: Any) -> None:
        super().__init__(text)
        self.text = text
        self.hint_text = hint
        self.facts = facts

    def told(self, language: str = "en") -> str:
        """What happened, in one language."""
        return say(self.text, language, **self.facts)

    def hint(self, language: str = "en") -> str:
        """What to do next, in one language; empty when there is nothing to do."""
        return say(self.hint_text, language, **self.facts) if self.hint_text else ""

    def with_facts(self, **facts: Any) -> KholaError:
        """The same error with further facts."""
        return type(self)(self.text, hint=self.hint_text, **{**self.facts, **facts})

    def __str__(self) -> str:
        return self.told()


class AskedWrong(KholaError):
    """The request cannot be meant as it stands."""

    exit_code = 2
    http_status = 400
    code = "bad_request"


class UnknownModel(AskedWrong):
    """No card, file or folder has this name."""

    http_status = 404
    code = "model_not_found"


class NotPulled(AskedWrong):
    """The model is known, but its files are not on this disk."""

    http_status = 404
    code = "model_not_pulled"


class UnknownOption(AskedWrong):
    """An option, field or value that khola does not know."""

    code = "unknown_option"


class NotInstalled(AskedWrong):
    """Another program or library that was asked for is not installed here, or cannot run this model."""

    code = "not_installed"


class BadText(AskedWrong):
    """A text that is not Unicode, or a token id that the vocabulary does not have."""

    code = "bad_text"


class ContextOverflow(AskedWrong):
    """The prompt, or prompt and answer together, are longer than the context."""

    code = "context_length_exceeded"


class EmptyPrompt(AskedWrong):
    """There is no token to start from."""

    code = "empty_prompt"


class BadGrammar(AskedWrong):
    """A grammar for the answer is too large, cannot be read, or matches nothing that the model can write."""

    code = "bad_grammar"


class BadSchema(BadGrammar):
    """A JSON Schema that is wrong, or says something that khola cannot hold an answer to."""

    code = "bad_schema"


class NoTemplate(AskedWrong):
    """The model has no chat format that khola may run."""

    code = "no_chat_template"


class WrongModality(AskedWrong):
    """The model cannot read or make this kind of thing."""

    code = "wrong_modality"


class Cancelled(AskedWrong):
    """The request was cancelled by whoever made it."""

    http_status = 499
    code = "cancelled"


class NotFound(AskedWrong):
    """Nothing has this address or id here, or it belongs to somebody else."""

    http_status = 404
    code = "not_found"


class WrongMethod(AskedWrong):
    """The address is there, but cannot be asked in this way."""

    http_status = 405
    code = "method_not_allowed"


class TooSlow(AskedWrong):
    """The request came in more slowly than the server waits."""

    http_status = 408
    code = "request_timeout"


class TooLarge(AskedWrong):
    """The request is larger than the server reads."""

    http_status = 413
    code = "request_too_large"


class WrongType(AskedWrong):
    """The body is of another media type than this address reads."""

    http_status = 415
    code = "unsupported_media_type"


class Misdirected(AskedWrong):
    """The request names a host that this server is not."""

    http_status = 421
    code = "misdirected_request"


class BadFiles(KholaError):
    """A model file is damaged, hostile or of another kind than its place says."""

    exit_code = 3
    http_status = 422
    code = "bad_model_file"


class MissingFile(BadFiles):
    """A file that was named, or that a model cannot do without, is not there."""

    code = "missing_file"


class Truncated(BadFiles):
    """The file ends before what its header promises."""

    code = "truncated_file"


class BadHeader(BadFiles):
    """A count, offset, name or value in a file's header cannot be true."""

    code = "bad_header"


class BadJson(BadFiles):
    """A JSON file is no JSON, says something twice, or is larger or deeper than it may be."""

    code = "bad_json"


class UnsupportedFormat(BadFiles):
    """The file is of a kind, version or number format that khola does not read."""

    code = "unsupported_format"


class BadConfig(BadFiles):
    """A model configuration misses a key, or has a value out of its range."""

    code = "bad_config"


class UnknownKey(BadConfig):
    """A model configuration has a key that the architecture neither reads nor may ignore."""

    code = "unknown_config_key"


class BadRow(BadFiles):
    """A row of training data is broken, empty or of another kind than its method reads."""

    code = "bad_row"


class BadTokenizer(BadFiles):
    """A tokenizer's tables contradict themselves."""

    code = "bad_tokenizer"


class BadTemplate(BadFiles):
    """A chat template is too large, does not compile, breaks its bounds or refuses the conversation."""

    code = "bad_chat_template"


class MissingTensor(BadFiles):
    """The architecture needs a tensor that the checkpoint does not have."""

    code = "missing_tensor"


class UnexpectedTensor(BadFiles):
    """The checkpoint has a tensor that the architecture does not know."""

    code = "unexpected_tensor"


class WrongShape(BadFiles):
    """A tensor's shape is not what the configuration says."""

    code = "wrong_shape"


class NonFinite(BadFiles):
    """A weight or a logit is NaN or infinite."""

    code = "non_finite"


class HashMismatch(BadFiles):
    """The bytes are not the ones that the catalogue names."""

    code = "hash_mismatch"


class BadLineage(BadFiles):
    """A record of who was made from whom is damaged, or does not agree with the files or records that it names."""

    code = "bad_lineage"


class BadManifest(BadFiles):
    """The record beside a model's files is damaged, or names files that no record may name."""

    code = "bad_manifest"


class NoRoom(KholaError):
    """Memory, disk or a queue is full."""

    exit_code = 4
    http_status = 503
    code = "no_room"


class NoMemory(NoRoom):
    """The model or its context does not fit into memory."""

    code = "no_memory"


class NoDisk(NoRoom):
    """There is not enough free disk space."""

    code = "no_disk"


class Busy(NoRoom):
    """Another process holds the lock, or the queue is full."""

    code = "busy"


class TooMany(NoRoom):
    """This caller, or all of them together, ask more than the server takes on at once."""

    http_status = 429
    code = "rate_limit_exceeded"


class Late(NoRoom):
    """The answer was not there at its deadline."""

    http_status = 504
    code = "deadline_exceeded"


class Forbidden(KholaError):
    """A licence or a setting does not allow it."""

    exit_code = 5
    http_status = 403
    code = "forbidden"


class LicenceForbids(Forbidden):
    """A licence of what a model is to be made from does not allow it, or not under this name."""

    code = "licence_forbids"


class UnknownLicence(Forbidden):
    """Nothing says under which licence this stands, so nothing is allowed."""

    code = "unknown_licence"


class Offline(Forbidden):
    """The network is switched off (`--offline`, KHOLA_OFFLINE)."""

    code = "offline"


class Gated(Forbidden):
    """The lab asks everyone to accept its licence before it gives out the files."""

    code = "gated_model"


class NoSandbox(Forbidden):
    """Nothing on this machine can hold a program that nobody trusts, so none is run."""

    code = "no_sandbox"


class NoKey(Forbidden):
    """A key is needed, and none that is valid was given."""

    http_status = 401
    code = "invalid_api_key"


class NoSource(KholaError):
    """What was asked for could not be fetched from any of its sources."""

    exit_code = 6
    http_status = 502
    code = "no_source"


class OurFault(KholaError):
    """khola contradicts itself; please report it."""

    code = "internal_error"


class EngineDied(OurFault):
    """The process that computed the answer ended before it; a new one answers the next request."""

    http_status = 503
    code = "engine_died"


class NoKernel(OurFault):
    """No implementation handles this operation, shape or number format here."""

    code = "no_kernel"


@cache
def kinds() -> dict[str, type[KholaError]]:
    """Classes of errors by their codes."""
    found: dict[str, type[KholaError]] = {}
    waiting = [KholaError]
    while waiting:
        kind = waiting.pop()
        found[kind.code] = kind
        waiting += kind.__subclasses__()
    return found


def remade(code: str, text: str, hint: str, facts: dict[str, Any]) -> KholaError:
    """An error that another process raised: the same class, text, hint and facts."""
    return kinds().get(code, OurFault)(text, hint=hint, **{name: value for name, value in facts.items() if name != "hint"})
