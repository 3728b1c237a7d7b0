"""What the files around the package say of it: links, versions, and the examples of CONTRIBUTING."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import zae_engine

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / ".github").rglob("*.md")])
BLOCK = re.compile(r"```python\n# (?:(at the end of) |in (\w+) of )?(\S+)\n(.*?)```", re.DOTALL)


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def prose(page):
    """A page without its code."""
    return re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)


def anchors(page):
    """The places in a page that a link can lead to, as GitHub calls them."""
    heads = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head) for head in re.findall(r"(?m)^#+ (.+)$", prose(page))]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        name, _, anchor = target.partition("#")
        if re.match(r"https?://|mailto:", target):
            continue
        found = (page.parent / name).resolve() if name else page
        assert found.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert found.exists(), f"{target} leads nowhere"
        assert not anchor or anchor in anchors(found), f"{target}: there is no such heading"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md", "docs/versioning.md", "docs/versioning-ko.md"])
def test_files_that_are_named_are_there(page):
    named = re.findall(r"`((?:tests|docs|zae_engine|\.ci)/[\w./-]+)`", prose(ROOT / page))
    assert named, "this page names no file any more"
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_ci_runs_on_each_python_that_is_promised():
    (job,) = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"].values()
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text("pyproject.toml"))
    assert job["strategy"]["matrix"]["python"] == promised
    assert promised[0] == re.search(r'requires-python = ">=(\S+)"', text("pyproject.toml"))[1]
    assert job["steps"][-1]["run"] == ".ci/run"
    for step in job["steps"][:-1]:
        assert re.fullmatch(r"\S+@[0-9a-f]{40}", step["uses"]), f"{step['uses']} may become something else"


def test_a_commit_is_checked_by_the_commands_of_ci():
    (repo,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    commands = [hook["entry"].removesuffix(" --force-exclude") for hook in repo["hooks"]]
    assert len(commands) == 3
    for command in commands:
        assert f"\n{command}" in text(".ci/run")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert str(citation["version"]) == zae_engine.__version__
    assert f'license = "{citation["license"]}"' in text("pyproject.toml")
    assert f'description = "{citation["abstract"]}"' in text("pyproject.toml")


def test_the_changelog_has_its_form():
    heads = re.findall(r"(?m)^## (.+)$", text("CHANGELOG.md"))
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|not released)", head) for head in heads[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"(?m)^### (.+)$", text("CHANGELOG.md"))) <= kinds


def test_what_is_packed_is_there():
    packed = re.search(
        r"\[tool\.hatch\.build\.targets\.sdist\]\ninclude = \[(.*?)\]", text("pyproject.toml"), re.DOTALL
    )
    names = re.findall(r'"/(\S+?)"', packed[1])
    assert {"LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_contributors_are_told_of_each_folder_and_of_no_other():
    named = re.findall(r"(?m)^\| `([a-z_/]+)/` \|", text("CONTRIBUTING.md"))
    package = Path(zae_engine.__file__).parent
    there = {path.parent.relative_to(package).as_posix() for path in package.rglob("*/__init__.py")}
    assert sorted(named) == sorted(there)


def write_down(root):
    """Do what the first line of each example of CONTRIBUTING says; return the files of tests."""
    tests = []
    for ending, table, name, code in BLOCK.findall(text("CONTRIBUTING.md")):
        path = root / name
        if ending:
            code = path.read_text(encoding="utf-8") + "\n\n" + code
        elif table:
            code, found = re.subn(
                rf"(?m)^{table}\b.*\{{\n", lambda head, row=code: head[0] + row, path.read_text(encoding="utf-8")
            )
            assert found == 1, f"{name} has no table {table}"
        else:
            assert not path.exists(), f"{name} is there already"
        path.write_text(code, encoding="utf-8")
        tests += [name] if name.startswith("tests/") else []
    return tests


@pytest.mark.usefixtures("starts_processes")
def test_the_examples_for_contributors_work_as_they_stand(tmp_path):
    for name in ("zae_engine", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *write_down(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
