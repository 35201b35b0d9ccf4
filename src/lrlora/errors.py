"""The one exception that means: what the user gave cannot work, and here is what would."""


class InputError(ValueError):
    """Bad input: says in one line what was got, what was needed and what to do. The command line exits with 2 on it."""
