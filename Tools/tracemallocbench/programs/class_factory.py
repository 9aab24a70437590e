"""Classes: made in numbers, with slots, descriptors, super() and enums."""

import enum
from collections import namedtuple


class Checked:
    """Descriptor that keeps its value in the instance's dict."""

    def __set_name__(self, owner, name):
        self.name = '_' + name

    def __get__(self, instance, owner=None):
        return self if instance is None else instance.__dict__[self.name]

    def __set__(self, instance, value):
        if value < 0:
            raise ValueError(self.name)
        instance.__dict__[self.name] = value


class Shape:
    registry = {}
    width = Checked()
    height = Checked()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Shape.registry[cls.__name__] = cls

    def __init__(self, width, height):
        self.width = width
        self.height = height

    @property
    def area(self):
        return self.width * self.height


def make_classes(count):
    for number in range(count):
        class Derived(Shape):
            __slots__ = ()

            def __init__(self, size):
                super().__init__(size, size + 1)

        type(f'Shape{number}', (Derived,), {'number': number})
    return list(Shape.registry.values())


def main(n):
    Shape.registry.clear()
    classes = make_classes(30 * n)
    shapes = []
    for size in range(100):
        shapes = [cls(size) for cls in classes[:12 * n]]
        areas = [shape.area for shape in shapes]
    row = namedtuple('Row', 'name area')
    rows = [row(type(shape).__name__, area)
            for shape, area in zip(shapes, areas)]
    color = enum.Enum('Color', [f'c{i}' for i in range(20 * n)])
    return rows, shapes, {member.name: member for member in color}
