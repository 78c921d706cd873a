"""What the project says about itself is true."""

import itertools
import json
import re
import runpy
import shlex
import subprocess
import tomllib
from functools import cache
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from conftest import ROOT
from docutils.core import publish_doctree

from convopt import cli
from convopt.lab import (
    bench,
    beyond,
    correctness,
    experiments,
    factorial,
    finding,
    report,
    timings,
    valley,
    workspace,
)
from convopt.lab.experiments import beyond_mnist
from convopt.lab.figures import looks
from convopt.lab.study import Results
from convopt.lab.vision import torchvision

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED_PYTHON = PROJECT["requires-python"].removeprefix(">=")
README = (ROOT / "README.md").read_text()
RERUN, QUICKSTART = ((ROOT / "book" / name).read_text() for name in ("rerun.md", "quickstart.md"))
BASH = re.findall(r"```bash\n(.*?)```", RERUN, re.DOTALL)
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)$")


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    matches = [PIN.match(line) for line in lines if line and not line.startswith("#")]
    assert all(matches)
    return {match[1].lower().replace("_", "-"): match[2] for match in matches}


def normal(requirement: str) -> str:
    return re.split(r"[\s<>=!\[;]", requirement)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned():
    needed = [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)]
    missing = {normal(requirement) for requirement in needed} - {"convopt"} - pins().keys()
    assert not missing


def test_torch_is_pinned_to_the_version_with_a_cpu_build():
    assert pins()["torch"] == "2.13.0"
    assert pins()["torchvision"] == "0.28.0"


def test_conda_and_binder_get_the_versions_of_the_constraints_file():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    python = next(entry for entry in conda if entry.startswith("python="))
    assert python.removeprefix("python=") == REQUIRED_PYTHON
    assert sorted(normal(entry) for entry in conda) == ["pip", "python"]  # nothing pinned but by the file
    assert pip == ["--constraint constraints.txt", "--editable .[lab]"]
    assert "--constraint constraints.txt" in (ROOT / "Makefile").read_text()


PUBLISHED = cache(workspace.published)


def published(name: str) -> Results:
    experiment = experiments.find(name)
    return Results(experiment, [PUBLISHED().load(run) for run in experiment.runs()])


def test_the_readme_quotes_differences_between_arms_that_were_tuned_alike_as_they_were_measured():
    """All that it quotes, "+1.4 [+1.1, +1.7]" and the like, and nothing else."""
    tuned, sizes = published("15-factorial"), published("07-batch-size-tuned")
    robust = published("10-adversarial").where(model="SimpleNet", adversary="PGD, 0.1")
    many = published("16-beyond-mnist")
    filters = beyond.filters(published("16-beyond-mnist-filters"))
    wieners, default = (beyond.at(filters, which) for which in beyond_mnist.ATTACHED)
    own_cosine = published("16-beyond-mnist-tuned")
    with_own_cosine = beyond.tuned_filters(own_cosine)
    averaging = beyond.added(many, "WeightAveraging")
    worst = beyond.worst_of(averaging)
    over_cosine = beyond.over_cosine(many, "WeightAveraging")
    behind = beyond.worst_of(over_cosine)
    measured = [
        *(
            correctness.headline(tuned, f"{base}, {treatment}", f"{base}, {control}")
            for treatment, control in (
                ("Wiener filter, cosine", "raw gradient, cosine"),
                ("fixed kernel, cosine", "raw gradient, cosine"),
                ("Wiener filter, cosine", "fixed kernel, cosine"),
                ("raw gradient, SNRAnnealing", "raw gradient, cosine"),
                ("Wiener filter, SNRAnnealing", "Wiener filter, cosine"),
                ("fixed kernel, cosine", "shifted inputs, cosine"),
                ("fixed kernel, cosine", "blurred inputs, cosine"),
            )
            for base in ("SGD", "AdamW")
        ),
        *(
            correctness.headline(tuned, f"{base}, {gradient}, cosine", f"{base}, raw gradient, cosine")
            for base in ("Muon", "SAM")
            for gradient in ("Wiener filter", "fixed kernel")
        ),
        correctness.headline(published("15-factorial-related"), "SOAP", "AdamW, raw gradient, cosine"),
        *(
            correctness.headline(
                published("15-factorial-conditions"),
                f"SGD, Wiener filter, cosine, {noise}",
                f"SGD, raw gradient, cosine, {noise}",
            )
            for noise in ("no label noise", "30 % label noise", "45 % label noise")
        ),
        *(
            report.format_interval(of_one[beyond.worst_of(of_one)].interval, 1, signed=True)
            for of_one in (wieners, default)
        ),
        *(
            report.format_interval(each.interval, 1, signed=True)
            for cell, each in default.items()
            if cell.task == "MNIST, 15 % noise"
        ),
        *(
            correctness.headline(own_cosine, pair.treatment, pair.control)
            for task, gradients, bases in (
                (beyond_mnist.MNIST, [factorial.DEFAULT], ("SGD", "AdamW")),
                (beyond_mnist.FASHION, [factorial.DEFAULT, "Wiener filter", "fixed kernel"], ("SGD", "AdamW")),
                (beyond_mnist.FASHION, [factorial.DEFAULT, "Wiener filter", "fixed kernel"], ("Muon",)),
            )
            for gradient, base in itertools.product(gradients, bases)
            for pair in [with_own_cosine[gradient, beyond_mnist.label(task, base)]]
        ),
        correctness.headline(published("11-baselines"), "ConvolutionalSGD", "SGD"),
        *(
            correctness.headline(sizes.where(batch_size=size), "ConvolutionalSGDv2 (uniform)", "SGD")
            for size in (8, 64, 256)
        ),
        correctness.headline(many, *(beyond_mnist.label(*worst, piece) for piece in ("WeightAveraging", "alone"))),
        report.format_interval(over_cosine[behind].interval, 1, signed=True),
        *(
            correctness.headline(
                published("15-factorial-conditions"),
                f"SGD, {gradient}, cosine, permuted pixels",
                "SGD, raw gradient, cosine, permuted pixels",
            )
            for gradient in ("fixed kernel", "Wiener filter")
        ),
        *(
            correctness.headline(tuned, f"{base}, Wiener filter, constant", f"{base}, raw gradient, constant")
            for base in ("SGD", "AdamW")
        ),
        *(
            report.format_interval(each.interval, 1, signed=True)
            for cell, each in default.items()
            if beyond_mnist.TASKS[cell.task].inputs and cell.base == "AdamW"
        ),
        correctness.headline(robust, "WienerSGD", "SGD", "pgd"),
    ]
    quoted = re.findall(r"[+-][\d.]+ \[[+-][\d.]+, [+-][\d.]+\]", README)
    assert quoted == measured
    told = " ".join(README.split())
    assert f"WeightAveraging adds {beyond.median_of(averaging):+.1f} points in the median" in told
    assert f"Against a tuned cosine it is at {beyond.median_of(over_cosine):+.1f} in the median" in told
    assert f"on {behind.task}, with {behind.base}." in told
    (lost_most,) = {(cell.task, cell.base) for cell in map(beyond.worst_of, (wieners, default))}
    assert "both on {}, with {}.".format(*lost_most) in told
    assert ("No loss of the default is certain." in told) == (beyond.certainly_harmed(default) == 0)
    in_the_median, at_worst = beyond.median_of(default), default[beyond.worst_of(default)].interval.mean
    assert f"The default adds {in_the_median:+.1f} in the median." in told
    short = f"adds {in_the_median:+.1f} points to a tuned cosine in the median of nineteen tasks, "
    short += f"at worst {at_worst:+.1f}"
    assert short in told
    assert len({cell.task for cell in default}) == 19
    assert len({cell.task for cell in averaging}) == 25
    at_best = beyond.at(averaging, beyond.TUNED)
    assert f"the optimizer's best rate {beyond.median_of(at_best):+.1f} in the median" in told


def test_the_readme_names_the_rows_that_are_undecided_after_correction():
    judged = correctness.comparisons(published("15-factorial"), factorial.questions(), "judged").frame
    verdicts = judged.set_index(["question", "difference"]).verdict
    rows = {
        "the Wiener filter minus the raw gradient": "cosine: does a filter help?",
        "the fixed kernel minus the raw gradient": "cosine: does a filter help?",
        "the Wiener filter minus the fixed kernel": "cosine: is a learned gain better than a fixed one?",
        "SNRAnnealing minus cosine": "raw gradient: annealing or a cosine?",
        "the fixed kernel minus blurred inputs": "cosine: gradient or inputs?",
        "the fixed kernel minus shifted inputs": "cosine: gradient or inputs?",
    }
    undecided = {
        (base, row)
        for row, question in rows.items()
        for base in ("SGD", "AdamW")
        if verdicts[f"{base}, {question}", row.replace("the ", "")] == "undecided"
    }
    told = " ".join(README.split())
    assert (
        "leaves undecided: with both optimizers, SNRAnnealing minus cosine and fixed kernel minus blurred inputs; with"
        " AdamW, the fixed kernel minus the raw gradient and the Wiener filter minus the fixed kernel." in told
    )
    assert undecided == {
        *itertools.product(("SGD", "AdamW"), ("SNRAnnealing minus cosine", "the fixed kernel minus blurred inputs")),
        ("AdamW", "the fixed kernel minus the raw gradient"),
        ("AdamW", "the Wiener filter minus the fixed kernel"),
    }


def test_the_readme_names_the_method_of_others_that_is_certainly_better():
    related = published("15-factorial-related")
    judged = correctness.comparisons(related, factorial.questions_of_related(), "judged").frame
    alone = (judged.question == "Is it more than a cosine?") & ~judged.difference.str.contains("SNRAnnealing")
    over_cosine = judged[alone].set_index("difference").verdict
    assert len(over_cosine) == 11
    assert [name.split(" minus ")[0] for name in over_cosine.index[over_cosine == "better"]] == ["SOAP"]
    assert "Of eleven methods of others, tuned alike, one is certainly better" in " ".join(README.split())


def test_the_readme_quotes_costs_as_they_were_measured():
    _, costs = timings.read(ROOT / "book" / "records" / "costs.json")
    small, large = (
        bench.figure_of(costs, "WienerSGD", network, "over_sgd", f"training step, batch {size}")
        for network, size in (("SimpleNet", 8), ("ResNet-18", 32))
    )
    _, on_gpu = timings.read(ROOT / "book" / "records" / "costs-cuda.json")
    small_there, large_there = (
        bench.figure_of(on_gpu, "WienerSGD", network, "over_sgd", f"training step, batch {size}")
        for network, size in (("SimpleNet", 8), ("ResNet-18", 256))
    )
    told = " ".join(README.split())
    averaging = bench.figure_of(costs, "SGD + WeightAveraging", "SimpleNet", "over_sgd", "training step, batch 8")
    assert f"a small perceptron takes {small:.1f} times as long with WienerSGD as with SGD" in told
    assert f"and {averaging:.1f} times with the averaging. In ResNet-18 WienerSGD takes as long as SGD." in told
    assert f"takes {small_there:.1f} times as long in the perceptron and {large_there:.1f} times in ResNet-18" in told
    assert f"{large:.1f}" == "1.0"


@pytest.mark.parametrize("theme", looks.GROUNDS)
def test_the_readme_s_figure_shows_what_was_measured(theme):
    figure = (ROOT / "book" / "_static" / f"finding-{theme}.svg").read_text()
    shown = json.loads(re.search("<dc:description>(.*)</dc:description>", figure)[1])
    assert shown == {name: pytest.approx(list(interval), abs=0.006) for name, interval in finding.found().items()}
    assert f"finding-{theme}.svg" in README


@pytest.mark.parametrize("theme", looks.GROUNDS)
def test_the_readme_s_valley_shows_what_its_caption_says(theme):
    figure = (ROOT / "book" / "_static" / f"valley-{theme}.svg").read_text()
    assert f"valley-{theme}.svg" in README
    paths = {name: valley.fall(make) for name, make in valley.OPTIMIZERS.items()}
    wanders = {name: valley.wandering(path) for name, path in paths.items()}
    shown = json.loads(re.search("<dc:description>(.*)</dc:description>", figure)[1])
    assert shown == {name: pytest.approx(values, abs=0.002) for name, values in wanders.items()}
    (sgd, sgd_across), (kernel, kernel_across), annealed = wanders.values()
    assert kernel == pytest.approx(sgd, rel=0.1)
    assert kernel_across < sgd_across / 2
    assert max(annealed) < min(sgd, sgd_across)
    *about, short = (abs(path[-valley.SETTLED :, 0].mean()) for path in paths.values())
    assert max(about) < 0.5 < 1 < short


def test_the_front_page_quotes_differences_between_arms_that_were_tuned_alike():
    """Each is made by ``headline``, which refuses others."""
    quoted = re.findall(r"executed/([\w-]+)\.ipynb::([\w-]+):s`", (ROOT / "book" / "index.md").read_text())
    assert len(quoted) >= 4
    for page, name in quoted:
        if name == "dataset":
            continue
        notebook = json.loads((ROOT / "notebooks" / f"{page}.ipynb").read_text())
        lines = [line for cell in notebook["cells"] for line in cell["source"] if "glue(" in line]
        made = [line for line in lines if re.fullmatch(re.sub(r"{\w+}", ".+", named(line)), name)]
        assert made, name
        assert all("headline(" in line for line in made)


def test_readme_front_page_and_quickstart_say_how_many_seeds_the_averaging_s_figures_have():
    assert {len(arm) for arm in published("16-beyond-mnist").arms.values()} == {10}
    assert "These are means over ten seeds." in README
    for page in ("index.md", "quickstart.md"):
        assert "{glue:text}`executed/16-beyond-mnist.ipynb::seeds:d` seeds" in (ROOT / "book" / page).read_text()


def named(line: str) -> str:
    """The name that a line glues something to; of an f-string with its braces."""
    return re.search(r'glue\(f?"([^"]+)"', line).group(1)


@pytest.mark.parametrize("address", ["", "https://github.com/somebody/convopt/"])
def test_the_book_links_the_repository_that_it_is_told_of(address, monkeypatch):
    path = ROOT / "book" / "extensions" / "repository.py"
    extensions = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["sphinx"]["local_extensions"]
    assert extensions[path.stem] == path.parent.name
    namespace = runpy.run_path(str(path))
    monkeypatch.setenv("REPOSITORY", address)
    config = SimpleNamespace(html_theme_options={"navbar_end": []})
    namespace["link"](None, config)
    assert address.rstrip("/") in config.myst_substitutions["repository"]
    assert config.html_theme_options.get("repository_url", "") == address.rstrip("/")
    assert config.html_theme_options["navbar_end"] == []
    assert "{{ repository }}" in (ROOT / "book" / "index.md").read_text()


def test_make_watches_whatever_the_tests_and_the_book_read():
    asked = subprocess.run(["make", "-pn", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    watched = next(line for line in asked.splitlines() if line.startswith("SOURCES := ")).split()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(tracked) - set(watched) <= {".gitignore", "LICENSE", "convopt/py.typed"}


def test_a_title_with_signs_is_shown_as_it_is():
    head = runpy.run_path(str(ROOT / "book" / "extensions" / "head.py"))
    context = {"script_files": [], "title": "Signal <em>&amp;</em> noise"}
    head["complete"](None, "a-page", "", context, publish_doctree("A sentence."))
    assert 'property="og:title" content="Signal &amp; noise"' in context["metatags"]


def test_links_to_the_published_book_are_shown_with_its_finding():
    head = runpy.run_path(str(ROOT / "book" / "extensions" / "head.py"))
    assert (ROOT / "book" / head["IMAGE"]).is_file()
    assert head["site"]("https://github.com/Somebody/convopt/") == "https://somebody.github.io/convopt/"
    assert head["site"]("https://example.org/convopt") == head["site"]("") == ""


def test_a_devcontainer_gets_the_same_environment_and_python():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert container["postCreateCommand"] == "make setup"
    assert container["image"].endswith(":" + REQUIRED_PYTHON)


def test_the_workflow_publishes_the_folder_that_was_checked():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "pages.yml").read_text())
    checked, upload = workflow["jobs"]["build"]["steps"][-2:]
    assert checked["run"] == "make publish-check"
    assert checked["env"] == {"REPOSITORY": "${{ github.server_url }}/${{ github.repository }}"}
    assert f"HTML := {upload['with']['path']}/index.html\n" in (ROOT / "Makefile").read_text()


def test_the_oldest_torch_is_the_same_wherever_it_stands():
    (requirement,) = PROJECT["dependencies"]
    oldest = requirement.removeprefix("torch>=")
    for page in ("README.md", "book/use.md"):
        assert f"PyTorch {oldest} or later" in (ROOT / page).read_text()
    assert f"\nTORCH ?= {oldest}.0\n" in (ROOT / "Makefile").read_text()
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test-torch"]
    assert job["steps"][-1]["run"] == "make test-torch TORCH=${{ matrix.torch }}"
    first, last = job["strategy"]["matrix"]["torch"]
    assert first == f"{oldest}.0"
    assert numbers(first) < numbers(pins()["torch"]) <= numbers(last)


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def test_other_versions_of_torch_get_the_tests_of_the_optimizers_and_the_theory_alone():
    shown = subprocess.run(
        ["make", "--dry-run", "test-torch"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    tested = set(re.findall(r"tests/test_(\w+)\.py", shown))
    assert {"contract", "wiener", "annealing", "twins", "smoothing", "snr", "torch_training"} <= tested
    assert not {"lightning", "skorch", "training", "report", "cli", "project"} & tested


@pytest.mark.parametrize("page", ["README.md", "book/quickstart.md", "book/use.md", "book/faq.md"])
def test_every_python_block_runs_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torchvision()  # Lightning imports torchvision, which not every pair of wheels can do by itself
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)


@pytest.mark.parametrize(
    "command", re.findall(r"^convopt [^#>\n]*|(?<=nohup )convopt [^>\n]*", RERUN + QUICKSTART, re.MULTILINE)
)
def test_the_program_takes_each_command_that_a_page_shows(command):
    """Some would train for hours."""
    options = cli._make_parser().parse_args(shlex.split(command)[1:])
    if getattr(options, "experiment", None):
        experiments.find(options.experiment)


@pytest.mark.slow
def test_the_workers_for_slurm_work_as_processes_of_this_machine(checkout):
    (block,) = (block for block in BASH if "SLURMCluster" in block)
    script = re.search(r"cat > workers\.py.*?^END\n", block, re.DOTALL | re.MULTILINE)[0]
    for told, here in (
        ("dask_jobqueue import SLURMCluster", "dask_jobqueue.local import LocalCluster as SLURMCluster"),
        ("cores=16, processes=16", "cores=1, processes=1"),
        ("jobs=10", "jobs=2"),
    ):
        assert told in script
        script = script.replace(told, here)
    sweep = "convopt run 06-stress-test --dataset digits --seeds 1 --epochs 1 --store my-runs"
    wait = "until [ -s address ]; do sleep 0.2; done"
    checkout(f"{script} python workers.py > address & trap 'kill %1' EXIT; {wait}; {sweep} --scheduler $(cat address)")
    assert len(list((checkout.folder / "my-runs").glob("*.json"))) == len(experiments.find("06-stress-test").arms)


@pytest.mark.slow
def test_the_commands_to_run_a_notebook_again_work_as_pasted(checkout):
    environment, *reruns = BASH[0].splitlines()
    assert environment.startswith("make setup && source .venv/bin/activate")  # the checkout has it
    for command in reruns:
        checkout(command)
    *_, provenance = nbformat.read(checkout.folder / "out.ipynb", as_version=4).cells
    told = provenance.outputs[0]["data"]["text/markdown"]
    assert told.partition("```bash\n")[2].startswith(f"{reruns[0]}\n```")  # it is the page's own command, too
    assert "records are of digits" in told
    assert (checkout.folder / "executed" / "06-stress-test.ipynb").is_file()


@pytest.mark.slow
def test_the_commands_to_run_an_experiment_again_work_as_pasted(checkout):
    for command in BASH[1].splitlines():
        checkout(command)
    assert len(list((checkout.folder / "my-runs").glob("*.json"))) == 2 * len(experiments.find("06-stress-test").arms)


def test_every_make_target_is_in_the_help_and_the_readme_names_real_ones():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^make (\S+)", shown, re.MULTILINE))
    assert {"setup", "lab", "book", "test", "clean", "help"} <= targets
    named = set(re.findall(r"`make ([a-z-]+)", README))
    assert named <= targets


def test_no_large_file_and_no_path_of_a_machine_is_committed():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    for name in files:
        limit = 15_000_000 if name.startswith("book/records/") else 1_000_000
        assert (ROOT / name).stat().st_size < limit, name
