"""The documents, held to the code: what they name exists, and what they say of docstrings is so.

A page about code is wrong one rename later and nobody notices. So every path, module and function that a document puts
into backticks is looked up here, and so is every link between documents.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tplab"
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
ARCHITECTURE = ROOT / "docs/architecture.md"

CODE = re.compile(r"`([^`\n]+)`")
FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(
    r"(?:[\w.*-]+/)*[\w.*-]+\.(?:py|ipynb|md|toml|txt|yml)|(?:tplab|tests|notebooks|docs|binder)/[\w./*-]*"
)
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
# `name` (`file`), `name` in `file`, `one` and `other` (`file`): the file must define the name.
NAMED_IN = re.compile(r"`([A-Za-z_][\w.]*)`(?:(?:,| and| or) `([A-Za-z_][\w.]*)`)? (?:\(|in )`(tplab/[\w/]+\.py)`")

# Names of others, and words of the shell, that documents mention and our code has no need of.
FOREIGN = {
    *("CommDebugMode", "FigureWidget", "TCPStore", "TorchVersion", "lazy_loader", "multimem", "sock_diag", "chromium"),
    *("multiprocessing.connection", "torch.multiprocessing.spawn", "torch.distributed.rpc", "nbdistributed"),
    *("elastic_launch", "notebook_launcher", "_all_reduce_with_overlap", "f_locals"),
    *("tc", "sbatch", "slurmd", "mpirun", "mpiexec", "srun", "sftp", "ipcluster", "c10d", "PET_"),
    *("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "TrainJob"),
    *("browser", "benchmark", "soak", "assert", "_us", "_GBps"),
}


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its path."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
    }


def definitions(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a module or class body defines: functions, classes with their members, variables."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield node.name
            yield from (f"{node.name}.{name}" for name in definitions(node))
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))


@cache
def words_of_code() -> frozenset[str]:
    """Every name that stands in the code of the package, outside docstrings and comments, or in the container files."""
    words: set[str] = set()
    for tree in trees().values():
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                    words.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    words.add(name)
                case ast.alias(name=name):
                    words.update(name.split("."))
                case ast.Constant(value=str(text)) if id(node) not in docstrings:
                    words.update(re.findall(r"\w+", text))
    for path in (ROOT / "docker").rglob("*"):
        if path.is_file():
            words.update(re.findall(r"\w+", path.read_text("utf-8")))
    return frozenset(words)


def code_in(document: Path) -> list[str]:
    """What stands in backticks in the running text of a document."""
    return CODE.findall(FENCED.sub("", document.read_text("utf-8")))


@pytest.fixture(params=DOCUMENTS)
def document(request: pytest.FixtureRequest) -> Path:
    return ROOT / request.param


def test_there_are_documents() -> None:
    pages = {"architecture", "article", "glossary", "log"}
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"docs/{page}.md" for page in pages)} <= set(DOCUMENTS)


def test_links_between_documents_lead_somewhere(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text("utf-8")) if "://" not in link]
    assert [link for link in links if not (document.parent / link.partition("#")[0]).exists()] == []


def test_files_in_backticks_exist(document: Path) -> None:
    missing = []
    for word in (word for code in code_in(document) for word in code.split()):
        # In NN-name.ipynb and bench_*.py a reader fills something in, or means all; a bare name may be anywhere.
        if FILE.fullmatch(word) and "NN" not in word:
            found = list(ROOT.glob(word)) or ("/" not in word and [*PACKAGE.rglob(word), *(ROOT / "tests").rglob(word)])
            missing += [] if found or word in ("config.json", "claims.yaml") else [word]
    assert missing == []


def test_names_in_backticks_exist(document: Path) -> None:
    missing = []
    for name in code_in(document):
        if not NAME.fullmatch(name) or FILE.fullmatch(name) or name in FOREIGN:
            continue
        if name.startswith("tplab."):
            path = name.replace(".", "/")
            parent, _, last = name.rpartition(".")
            home = parent.replace(".", "/")
            modules = [trees().get(f"{path}.py"), trees().get(f"{path}/__init__.py")]
            owners = [tree for end in (".py", "/__init__.py") if (tree := trees().get(home + end)) is not None]
            known = any(modules) or any(last in ast.unparse(owner) for owner in owners)
        else:
            known = all(part in words_of_code() for part in name.split("."))
        missing += [] if known else [name]
    assert missing == []


def test_names_are_in_the_files_that_the_architecture_says() -> None:
    text = FENCED.sub("", ARCHITECTURE.read_text("utf-8")).replace("\n", " ")
    text = re.sub(r" +", " ", text)
    pairs = [(name, path) for first, second, path in NAMED_IN.findall(text) for name in (first, second) if name]
    assert len(pairs) >= 40
    assert [(name, path) for name, path in pairs if name not in set(definitions(trees()[path]))] == []


def test_every_marker_is_explained_to_contributors() -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]["markers"]
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    assert set(rows) == {re.match(r"\w+", marker)[0] for marker in markers}


def test_the_picture_shows_the_rooms() -> None:
    picture = FENCED.findall(ARCHITECTURE.read_text("utf-8"))[0]
    rooms = re.findall(r"^  (\w+)/ ", picture, re.M)
    inner = re.findall(r"^    (\w+)/ ", picture, re.M)
    assert set(rooms) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(inner) == {path.parent.name for path in (PACKAGE / "topology").glob("*/__init__.py")}


def imports(path: str, tree: ast.AST, owner: str = "") -> Iterator[tuple[str, str]]:
    """The function or method around each import of a module of ours (empty outside of functions), and the module."""
    for node in ast.iter_child_nodes(tree):
        inside = owner
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            inside = f"{owner}.{node.name}".lstrip(".")
        elif isinstance(node, ast.ImportFrom) and not node.level and str(node.module).startswith("tplab"):
            for alias in node.names:
                source = f"{node.module}.{alias.name}".replace(".", "/")
                home = str(node.module).replace(".", "/")
                ends = (f"{source}.py", f"{source}/__init__.py", f"{home}.py", f"{home}/__init__.py")
                yield owner, next(each for each in ends if each in trees())
        yield from imports(path, node, inside)


def test_no_circles_of_modules_but_for_the_constructors_named() -> None:
    text = ARCHITECTURE.read_text("utf-8")
    sentence = re.search(r"There are no circles of modules(.*?)\. ", text, re.S)
    assert sentence
    constructors = set(CODE.findall(sentence[1]))
    used, arrows = set(), {}
    for path, tree in trees().items():
        found = list(imports(path, tree))
        used |= {owner for owner, _ in found if owner in constructors}
        arrows[path] = {module for owner, module in found if owner not in constructors and module != path}
    assert used == constructors
    try:
        tuple(TopologicalSorter(arrows).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_the_codes_of_the_article_are_all_explained() -> None:
    article = (ROOT / "docs/article.md").read_text("utf-8")
    rows = re.findall(r"^\| ([SC]\d+) \|", article, re.M)
    systems = [f"S{number}" for number in range(1, 10)]
    # The systems are described in a table of their own, and have their verdicts in the ledger.
    assert rows == [*systems, *systems, *(f"C{number}" for number in range(1, 23))]


def test_modules_that_use_the_codes_say_where_they_are_explained() -> None:
    code = re.compile(r"\(C\d+\)|\bsystems? S\d|\bclaims? C\d|\(S\d")
    texts = {path: (ROOT / path).read_text("utf-8") for path in trees()}
    using = [path for path, text in texts.items() if code.search(text)]
    assert len(using) > 5
    assert [path for path in using if "docs/article.md" not in texts[path]] == []


def field_docstrings() -> Iterator[tuple[str, str]]:
    """Where each docstring of a field, attribute or constant stands, and its text."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            for before, after in pairwise(body if isinstance(body, list) else []):
                match before, after:
                    case ast.Assign() | ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
                        yield f"{path}:{after.lineno}", text


def test_docstrings_of_fields_say_what_they_are() -> None:
    """'Of weights and activations.' says whose, 'In the order of the block.' says how, and neither says what."""
    found = list(field_docstrings())
    assert len(found) > 500
    assert [
        where
        for where, text in found
        if re.match(r"(Of|By|As|For|From|In|Per|With|Its|Until|Over|Such|Likewise)\b|The same\.", text)
    ] == []


FROM_SO_MANY = 5


def public_functions() -> Iterator[tuple[str, int, str]]:
    """Each public function and method: where it is, how many parameters it has, and its docstring.

    A class is called by its ``__init__``, whose parameters the docstring of the class explains.
    """

    def walk(path: str, node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, int, str]]:
        for each in node.body:
            if isinstance(each, ast.ClassDef) and not each.name.startswith("_"):
                yield from walk(path, each)
            if not isinstance(each, ast.FunctionDef) or (each.name.startswith("_") and each.name != "__init__"):
                continue
            names = [one.arg for one in (*each.args.posonlyargs, *each.args.args, *each.args.kwonlyargs)]
            own = len(names) - (isinstance(node, ast.ClassDef) and names[:1] in (["self"], ["cls"]))
            told = node if each.name == "__init__" else each
            yield f"{path}:{each.lineno} {each.name}", own, ast.get_docstring(told) or ""

    for path, tree in trees().items():
        yield from walk(path, tree)


def test_functions_of_many_parameters_explain_them() -> None:
    many = [(where, docstring) for where, count, docstring in public_functions() if count >= FROM_SO_MANY]
    assert len(many) > 80
    assert [where for where, docstring in many if not re.search(r"^Args:$", docstring, re.M)] == []
