"""What importing costs, and what the two READMEs say one should type."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.usefixtures("starts_processes")
def test_import_brings_nothing_heavy(tmp_path):
    code = (
        "import sys, accelerate; before = set(sys.modules); import zae_engine, zae_engine.trainer.addons;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "heavy = set(sys.modules) & {'matplotlib', 'wandb', 'neptune', 'sklearn'};"  # nor does anything it needs
        "print(*(new & {'pandas', 'tqdm', 'IPython'}), *heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


def commands(readme):
    """Marked commands of a README: name → command."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    return dict(re.findall(r"<!-- ci: (\w+) -->\s*```bash\n(.*?)```", text, re.DOTALL))


def test_both_readmes_have_the_same_commands():
    english, korean = commands("README.md"), commands("README-ko.md")
    assert english == korean
    assert {"train", "launch", "language", "test"} <= set(english)


@pytest.mark.usefixtures("starts_processes")
def test_ci_runs_the_commands_as_they_stand():
    done = subprocess.run(["bash", ".ci/run", "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name, command in commands("README.md").items():
        assert name in done.stdout
        assert command.strip() in done.stdout


@pytest.mark.parametrize("readme", ["README.md", "README-ko.md"])
def test_the_api_example_runs(nursery, readme, tmp_path):
    text = (ROOT / readme).read_text(encoding="utf-8")
    example = re.search(r"<!-- test: example -->\s*```python\n(.*?)```", text, re.DOTALL)[1]
    done = nursery.run("-c", example, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Epoch 3/3" in done.stderr
