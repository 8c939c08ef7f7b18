"""What the pilot exits with, and the exit codes that it gives tokens."""

# What the pilot exits with: those of sysexits.h where there is one.
EX_OK = 0
EX_USAGE = 64
EX_UNAVAILABLE = 69  # the database did not answer for as long as ``outage`` says
EX_SOFTWARE = 70  # a fault in this program
EX_IOERR = 74  # the scratch folder cannot be written, or no process be started
EX_TEMPFAIL = 75  # results could not be sent; they are in the submission's folder
EX_NOPERM = 77  # the database refuses the credentials, or its certificate does not verify
EX_CONFIG = 78  # pilot.json, picasconfig.py, the database or its views are not as they must be
EXIT_BAD_OUTPUT = (
    65  # exit code of a token whose command ended with 0 and left something in its output file that is no JSON
)
EXIT_TIME_LIMIT = 124  # exit code of a token that exceeded its time limit, as of timeout(1)


class Failed(Exception):
    """The pilot cannot work; the message says why, ``code`` is what it exits with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
