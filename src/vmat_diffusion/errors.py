"""What can be wrong with an input, each with a sentence that a physicist can act on.

Every message names the thing, its value, the limit and the remedy; the command line prints it
and ends with exit code 2. Messages never carry a patient's name or record number.
"""


class InputError(ValueError):
    """Base of all errors that the user can mend; anything else is a defect of the program."""


class CaseError(InputError):
    """The images, contours or doses cannot be used as they are."""


class UnreadableError(CaseError):
    """A file cannot be read at the moment (disk, network, permissions): worth another try as it is."""


class GoalError(InputError):
    """The goal sheet cannot be read or does not fit the case."""


class MachineError(InputError):
    """The machine is unknown or its file is wrong."""


class PlanError(InputError):
    """The plan cannot be read, represented or written."""
