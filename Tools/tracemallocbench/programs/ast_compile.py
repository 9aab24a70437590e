"""ast and compile: parse, rewrite, unparse, compile and run a module."""

import ast

FUNCTION = '''
def function_{0}(first, second={0}, *rest, key="text {0}"):
    """Docstring of {0}."""
    total = [first + i * second for i in range(len(rest)) if i % 2]
    try:
        value = {{"a": first, "b": (second, rest), key: total}}
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"{{error!r}} in {0}") from error
    while first < 3:
        first += 1
    return lambda x: x + first if x else value
'''


class Renamer(ast.NodeTransformer):
    def visit_Name(self, node):
        name = node.id
        if name in ('first', 'second', 'rest', 'total', 'value'):
            name = 'local_' + name
        return ast.copy_location(ast.Name(name, node.ctx), node)

    def visit_arg(self, node):
        if node.arg != 'key':
            node.arg = 'local_' + node.arg
        return node


def main(n):
    source = ''.join(FUNCTION.format(number) for number in range(2 * n))
    tree = ast.parse(source)
    tree = ast.fix_missing_locations(Renamer().visit(tree))
    names = [node.id for node in ast.walk(tree)
             if isinstance(node, ast.Name)]
    again = ast.unparse(tree)
    namespace = {}
    exec(compile(again, '<again>', 'exec'), namespace)
    code = compile(tree, '<tree>', 'exec', optimize=2)
    return names, again, namespace, code
