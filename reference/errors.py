"""Errors that a user can act on: each says what was wrong, what was expected and what to do.

They are raised where the bad input enters and caught once, in `reference.command.run`. An `assert`
is only for what our own bug could break.
"""


class KimiError(Exception):
    """Bad input of any kind. The text is one line, complete without a traceback."""


class ConfigError(KimiError):
    """`config.json` and its neighbours: missing, contradictory or unsupported values."""


class CheckpointError(KimiError):
    """Weight files: absent, truncated, or with tensors that do not fit the configuration."""


class TokenizerError(KimiError):
    """`tiktoken.model` or `tokenizer_config.json` cannot be used."""


class TemplateError(KimiError):
    """Messages or tool declarations that cannot become a prompt."""


class ContextError(TemplateError):
    """A conversation that has outgrown the model's context."""


class MediaError(KimiError):
    """An image, video or document that cannot be read, or that is too large for the context."""


class UsageError(KimiError):
    """Command-line options or files that contradict each other."""
