"""The checks that are run on several ranks, by name."""

CHECKS = {}


def check(*ranks):
    """Register a check for launches with these numbers of ranks."""

    def register(function):
        CHECKS[function.__name__] = function, ranks
        return function

    return register
