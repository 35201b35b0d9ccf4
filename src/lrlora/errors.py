"""The exception for input that cannot work; its message says what would."""


class InputError(ValueError):
    """Bad input: says in one line what was got, what was needed and what to do. The command line exits with 2 on it."""


def first_lines(error: BaseException) -> str:
    """The first two lines of a library's error, in one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
