"""Writes docs/splat_kernels.md, the reference of the rasterizer's public names: python tools/splat_kernels_api.py

Signatures and fields are taken as they stand in the source, with their shapes; the rest is the docstrings.
"""

import ast
import importlib
import inspect
import pathlib
import re
import sys
import textwrap

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "splat_kernels.md"
# Of each module the names that are public; None: all of `__all__`, or else all functions and classes without an underscore.
MODULES = {
    "splat_kernels": None,
    "splat_kernels.densification": None,
    "splat_kernels.adam": None,
    "splat_kernels.testing": (),  # `RasterizerContract` is, whose methods are tests.
    "splat_kernels.specs": None,
    "splat_kernels.bench": (),  # The command is.
}
HEAD = """# splat_kernels: public names

Written by `python tools/splat_kernels_api.py` from the docstrings. What is not here may change in any version.
[rasterizer.md](rasterizer.md) has a first picture, conventions and how to size buffers.
"""


def main() -> None:
  PAGE.write_text(make_page())


def make_page() -> str:
  sections = [HEAD]
  for module_name, names in MODULES.items():
    module = importlib.import_module(module_name)
    sections.append(f"## `{module_name}`\n\n{_format_docstring(module.__doc__)}\n")
    sections += [_describe(name, module) for name in (_public_names(module) if names is None else names)]
  return "\n".join(sections)


def _public_names(module) -> list[str]:
  """Functions first, then classes, then constants; of each the order in which the module has them."""
  names = getattr(module, "__all__", None)
  if names is None:
    names = [
        node.name
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
  kind = lambda name: (not inspect.isfunction(getattr(module, name)), not inspect.isclass(getattr(module, name)))
  return sorted(names, key=kind)


def _describe(name: str, module) -> str:
  source, node = _find(name, module)
  if isinstance(node, ast.Assign):
    lines = source.splitlines()
    first = node.lineno - 1
    while lines[first - 1].startswith("#"):
      first -= 1
    return f"### `{name}`\n\n```python\n" + "\n".join(lines[first : node.end_lineno]) + "\n```\n"
  return f"### `{name}`\n\n{_code_and_words(source, node)}"


def _find(name: str, module) -> tuple[str, ast.stmt]:
  """The source of the module that defines a name, and the definition."""
  value = getattr(module, name)
  places = [importlib.import_module(value.__module__)] if hasattr(value, "__qualname__") else _imported_by(module)
  for place in places:
    source = inspect.getsource(place)
    for node in ast.parse(source).body:
      targets = [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []
      if getattr(node, "name", None) == name or name in targets:
        return source, node
  raise LookupError(f"{module.__name__}.{name}: no definition found")


def _imported_by(module) -> list:
  nodes = ast.walk(ast.parse(inspect.getsource(module)))
  return [module] + [importlib.import_module(n.module) for n in nodes if isinstance(n, ast.ImportFrom)]


def _code_and_words(source: str, node: ast.FunctionDef | ast.ClassDef) -> str:
  lines = source.splitlines()
  if isinstance(node, ast.FunctionDef):
    code = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]))
    return f"```python\n{code}\n```\n\n{_format_docstring(ast.get_docstring(node))}\n"
  fields = [lines[n.lineno - 1 : n.end_lineno] for n in node.body if isinstance(n, ast.AnnAssign)]
  head = f"class {node.name}:"
  text = f"```python\n{head}\n" + "\n".join(line for field in fields for line in field) + "\n```\n\n"
  text += _format_docstring(ast.get_docstring(node)) + "\n"
  methods = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
  return text + "".join(f"\n#### `{node.name}.{m.name}`\n\n{_code_and_words(source, m)}" for m in methods)


def _format_docstring(docstring: str | None) -> str:
  """Google's sections as lists."""
  if docstring is None:
    raise ValueError("a public name without a docstring")
  out, listing = [], False
  for line in inspect.cleandoc(docstring).splitlines():
    if re.fullmatch(r"(Args|Returns|Raises|Attributes):", line):
      out += [f"**{line[:-1]}**", ""]
      listing = True
    elif listing and (entry := re.match(r"  (\w[\w, |]*): (.*)", line)):
      out.append(f"- `{entry[1]}`: {entry[2]}")
    elif listing and line.startswith("    "):
      out.append("  " + line.strip())
    else:
      out.append(line.strip() if listing else line)
  return "\n".join(out)


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  main()
