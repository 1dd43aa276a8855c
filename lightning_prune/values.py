"""The base of the values that a recipe chooses among."""


class Choice:
    """One of several values for the same place in a recipe, such as ``Element()`` or ``Channel()``.

    It holds nothing. LightningCLI's YAML names such a value by its ``class_path``, and jsonargparse keeps that path
    only for a class with a base that is no dataclass.
    """
