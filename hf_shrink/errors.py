"""What goes wrong, as few kinds as there are exit codes.

Every error that a user can cause is a ``ShrinkError``. Its message has at most three lines: where, what came, what is
allowed, one thing to do about it.
"""


class ShrinkError(ValueError):
    """A failure that hf_shrink explains; ``code`` is the exit code of the command line."""

    code = 1


class RecipeError(ShrinkError):
    """A recipe, an option or a config that cannot be meant."""

    code = 2


class MismatchError(ShrinkError):
    """Model, teacher, tokenizer and data do not fit together."""

    code = 3


class NonFiniteError(ShrinkError):
    """A NaN or an infinity where a number is needed."""

    code = 3


class ResourceError(ShrinkError):
    """Disk, network, memory, a lock or a missing package."""

    code = 4


class IntegrityError(ShrinkError):
    """A file is not what its manifest says."""

    code = 5


class SecurityError(ShrinkError):
    """Refused because it could run code or reach outside its folder."""

    code = 6


class QualityError(ShrinkError):
    """The model is worse than its recipe's gate allows."""

    code = 7
