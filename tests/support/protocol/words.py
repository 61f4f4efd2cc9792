"""The words of a small model's memory (segment_model.py has those of the whole segment)."""


class Words:
    """The words that programs share, in the order of their names; a model's own class makes them.
    without: the steps that a mutant leaves out."""

    def __init__(self, without):
        self.names = []
        self.without = frozenset(without)

    def _word(self, name):
        self.names.append(name)
        return len(self.names) - 1

    def does(self, step):
        """Whether to take this step as designed; a mutant does not."""
        return step not in self.without
