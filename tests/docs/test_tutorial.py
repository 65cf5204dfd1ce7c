"""The commands of docs/tutorial.md, run as they stand there, print what the page says they print, but for the
numbers."""

import shlex
import subprocess

import pytest

from benchmarks import tutorial
from pipeline import compare
from pipeline.comparison import running
from pipeline.config import parse
from pipeline.training import small_model
from tests.tutorial_cases import Program

pytestmark = pytest.mark.distributed  # programs are processes
PAGE = tutorial.PAGE.read_text()
COMMANDS = [body for kind, body in tutorial.BLOCK.findall(PAGE) if kind == "bash"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As the project's, with a model called demo that is made in a second."""
    folder = tmp_path_factory.mktemp("tutorial")
    tutorial.prepare(folder)
    small_model.make(
        small_model.demo_records()[::4],
        folder / ".cache" / "demo_model",
        hidden_size=32,
        num_layers=2,
        vocabulary=520,
        max_tokens=64,
        batch_tokens=512,
        epochs=1,
    )
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Function of a bash block: what it prints. Programs are forked, a grid forks its cells; all other lines
    are bash's."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(running, "spawn", lambda command, log, environment: Program(command, log, folder))
    running.digest.cache_clear()

    def program(line: str) -> str:
        command = shlex.split(line)
        if command[2] == "pipeline.compare":
            capsys.readouterr()
            assert compare.main(command[3:]) == 0, capsys.readouterr().err
            return capsys.readouterr().out
        log = folder / "log.txt"
        started = Program(command, log, folder)
        started.wait()
        assert started.returncode == 0, f"{line}\n{log.read_text()}"
        return log.read_text()

    def run(block: str) -> str:
        is_program = [line.startswith("python -m ") for line in block.splitlines()]
        first = is_program.index(True) if any(is_program) else len(is_program)
        lines = block.splitlines(keepends=True)
        printed = bash("".join(lines[:first]))
        for number in range(first, len(lines)):
            printed += program(lines[number]) if is_program[number] else bash(lines[number])
        return printed

    def bash(script: str) -> str:
        return subprocess.run(
            ["bash", "-euc", script], cwd=folder, check=True, capture_output=True, text=True
        ).stdout

    return run


def test_all_commands_run_and_print_what_the_page_says(run, folder):
    page = tutorial.renewed(PAGE, run)
    assert list(map(tutorial.form, page.splitlines())) == list(map(tutorial.form, PAGE.splitlines()))
    for result in ("runs/first/report.html", "runs/first/final/config.json", "runs/compare/comparison.html"):
        assert (folder / result).is_file(), result


@pytest.mark.parametrize("command", [c for c in COMMANDS if not tutorial.is_run(c)])
def test_commands_for_a_cluster_have_a_script_and_settings_that_fit(command, run, folder):
    run(COMMANDS[0])  # the files that they name
    words = shlex.split(command)
    script = next(word for word in words if word.startswith("launch/"))
    assert (folder / script).is_file()
    assert parse("", words[words.index(script) + 1 :]).model.name == "MODEL"


def test_a_line_that_was_not_printed_is_found():
    page = "```bash\nls\n```\n\n```text\nstep 1: loss 2.5\ndone\n```\n"
    assert tutorial.renewed(page, lambda command: "step 3:  loss 1.25\nx\ndone\n") == page.replace(
        "step 1: loss 2.5", "step 3:  loss 1.25"
    )
    with pytest.raises(ValueError, match="no such line was printed, or not in this order: 'done'"):
        tutorial.renewed(page, lambda command: "done\nstep 3: loss 1.25\n")
