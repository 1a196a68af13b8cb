"""Tensor shapes in the reference as they stand in the source: `Float[Tensor, "b *event"]`.

Griffe reads a text inside an annotation as a forward reference, and would print that shape as a product.
"""

import ast
from typing import Any

import griffe


class Shapes(griffe.Extension):
    """Keeps the annotations that contain a text as they were written."""

    def on_function_instance(self, *, node: Any, func: griffe.Function, **kwargs: Any) -> None:
        arguments = node.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in filter(None, named):
            if written := _written(argument.annotation):
                func.parameters[argument.arg].annotation = written
        if written := _written(node.returns):
            func.returns = written

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **kwargs: Any) -> None:
        # A property is an attribute whose type is what its function returns.
        stated = getattr(node, "annotation", None) or getattr(node, "returns", None)
        if written := _written(stated):
            attr.annotation = written


def _written(annotation: ast.expr | None) -> str | None:
    """The source of an annotation that contains a text, else None."""
    if annotation is None:
        return None
    texts = [node for node in ast.walk(annotation) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return ast.unparse(annotation).replace("'", '"') if texts else None
