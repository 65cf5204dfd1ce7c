# N samples of the pool, D features
"""Scores of a whole file against the reference, on one rank and two, whole and in pieces."""

import json
import re
import shutil
import signal
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline import score
from pipeline.config import DataConfig, from_settings, save
from pipeline.data import sources
from pipeline.data.chat import tokenize_all
from pipeline.datastore import parts
from pipeline.datastore.parts import Parts
from pipeline.datastore.sketch import CountSketch
from pipeline.training.run_folder import LOCK
from tests import reference
from tests.processes import tails
from tests.run_arguments import run_arguments
from tests.training.train_cases import SPOILED_TOKEN

NUM_POOL, NUM_TARGETS, PART, BATCH, EPS, NUM_FEATURES, STEPS = 48, 5, 13, 7, 1e-4, 2048, 3
ROOT, EXAMPLE = Path(__file__).parent.parent, re.compile(r"```python\n(.*?)```", re.DOTALL)
WHOLE = 1000  # a projection larger than any layer, which projects nothing
SCORES = ["squared_norm", "alignment", "cosine"]
FILES = ["target.parquet", *(f"parts/part-{number:05d}.parquet" for number in range(4))]


@pytest.fixture(scope="module")
def build(model_folder, data_folder, tmp_path_factory):
    """Function of the program's own arguments and changes of settings: the command line of a score."""
    root = tmp_path_factory.mktemp("run")

    def build(output, *changes, resume=False) -> list[str]:
        settings = [
            "--deepspeed",
            "ds_configs/zero0.json",
            "--model.lora_rank",
            "0",
            "--training.eps",
            str(EPS),
        ]
        settings += [
            "--training.steps",
            str(STEPS),
            "--training.save_every",
            str(STEPS),
            "--run.save_model",
            "false",
        ]
        arguments = run_arguments(
            model_folder, data_folder, root, *settings, "--training.evaluate_every", "0"
        )
        if output is None:  # the run itself
            return [*arguments, "--data.test", "[]", "--training.micro_batch_size", "4", *changes]
        resumed = ["--resume", str(root)] if resume else []
        return [
            *arguments,
            "--output",
            str(output),
            "--part",
            str(PART),
            "--batch",
            str(BATCH),
            *resumed,
            *changes,
        ]

    build.run = root
    return build


@pytest.fixture(scope="module")
def spoiled_pool(data_folder, tmp_path_factory) -> Path:
    """The pool with a fourth sample whose loss is not finite."""
    lines = (Path(data_folder) / "pool.jsonl").read_text().splitlines()
    spoiled = json.dumps({"id": "spoiled", "prompt": "1+1", "completion": SPOILED_TOKEN})
    file = tmp_path_factory.mktemp("spoiled") / "pool.jsonl"
    file.write_text("\n".join([*lines[:3], spoiled, *lines[3:6]]) + "\n")
    return file


@pytest.fixture(scope="module")
def outputs(run_ranks, launch, build, spoiled_pool, tmp_path_factory):
    """Folders of scores by name, how the programs ended, and the reason of the one that was killed."""
    root = tmp_path_factory.mktemp("scores")
    features = [
        "--features",
        str(NUM_FEATURES),
        "--selection.backend",
        "projected",
        "--selection.projection_size",
        str(WHOLE),
    ]
    (end,) = launch("tests.score_cases:killed", 1, arguments=build(root / "killed"), number=2)
    left = sorted(path.name for path in (root / "killed/parts").iterdir())
    calls = {
        "run": ("train", build(None)),
        "identity": ("score", build(root / "identity")),
        "killed": ("score", build(root / "killed")),
        "adam": ("score", build(root / "adam", resume=True)),
        "features": ("score", build(root / "features", *features, resume=True)),
        "other data": ("score", build(root / "identity", "--data.loss_on", "all")),
        "other model": ("score", build(root / "other", "--model.lora_rank", "2", resume=True)),
        "spoiled": ("spoil", build(root / "spoiled", "--data.pool", f"[{spoiled_pool}]")),
    }
    (ended,) = run_ranks("tests.score_cases:programs", 1, calls=list(calls.values()))
    on_two = {
        "two ranks": ("score", build(root / "two ranks", resume=True)),
        "stopped": ("stop", build(root / "stopped", resume=True)),
        "continued": ("score", build(root / "stopped", resume=True)),
        "two ranks, features": ("score", build(root / "two ranks, features", *features, resume=True)),
    }
    ended_on_two, other = run_ranks("tests.score_cases:programs", 2, calls=list(on_two.values()))
    assert ended_on_two == other
    return root, dict(zip([*calls, *on_two], [*ended, *ended_on_two])), (end, left)


def table(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "parts")


def target(folder: Path) -> pd.Series:
    return pd.read_parquet(folder / "target.parquet").iloc[0]


def samples(folder: str, name: str, model_folder: str) -> list:
    from transformers import AutoTokenizer

    records, _ = sources.read([f"{folder}/{name}.jsonl"], "error")
    return tokenize_all(records, AutoTokenizer.from_pretrained(model_folder), DataConfig(max_tokens=60))[0]


@pytest.fixture(scope="module")
def expected(outputs, build, model_folder, data_folder):
    """By geometry: losses (N,), Gram matrix (N + 1, N + 1) and loss of the target, one sample at a time in
    float64."""
    pool, targets = (samples(data_folder, name, model_folder) for name in ("pool", "target"))
    saved = torch.load(
        build.run / f"checkpoints/checkpoint-{STEPS}/mp_rank_00_model_states.pt", weights_only=False
    )
    found = {}
    for name, geometry in (("identity", "identity"), ("adam", "update")):
        model = reference.load(model_folder, "full")
        if name == "adam":
            model.load_state_dict(saved["module"])
        parameters = dict(model.named_parameters())
        adam = reference.AdamW(
            parameters, dict.fromkeys(parameters, reference.Hyper(0, 0.9, 0.999, EPS, 0)), STEPS
        )
        order = [n for n, p in parameters.items() if p.dim() >= 2] + [
            n for n, p in parameters.items() if p.dim() < 2
        ]
        for index, state in saved["optimizer"]["state"].items():
            adam.exp_avg[order[index]], adam.exp_avg_sq[order[index]] = (
                state["exp_avg"].double(),
                state["exp_avg_sq"].double(),
            )
            assert int(state["step"]) == STEPS
        gradients = [reference.gradient(model, [(sample, 1.0)]) for sample in pool]
        goal = reference.gradient(model, [(sample, 1 / len(targets)) for sample in targets])
        gram = adam.gram(gradients, goal, reference.linear_weights(model), geometry)
        with torch.no_grad():
            losses, goals = (
                [reference.sample_loss(model, sample).item() for sample in part] for part in (pool, targets)
            )
        found[name] = np.array(losses), gram.numpy(), np.mean(goals)
    return found


@pytest.mark.parametrize("name", ["identity", "adam", "two ranks"])
def test_scores_equal_a_loop_over_single_samples(outputs, expected, name):
    """float32 in batches against float64: 1e-4 of the norms' product, where sums are near zero too."""
    root, ended, _ = outputs
    assert ended[name] == ""
    losses, gram, target_loss = expected["identity" if name == "identity" else "adam"]
    found, goal = table(root / name), target(root / name)
    norms = np.sqrt(np.diagonal(gram))
    np.testing.assert_allclose(found["loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(found["squared_norm"], np.diagonal(gram)[:-1], rtol=1e-3)
    np.testing.assert_allclose(
        found["alignment"] / (norms[:-1] * norms[-1]), gram[:-1, -1] / (norms[:-1] * norms[-1]), atol=1e-4
    )
    np.testing.assert_allclose(found["cosine"], gram[:-1, -1] / (norms[:-1] * norms[-1]), atol=1e-4)
    assert found["cosine"].std() > 0.05, "all alike, so that this test could not fail"
    assert goal["loss"] == pytest.approx(target_loss, rel=1e-4) and goal["num_samples"] == NUM_TARGETS
    assert goal["squared_norm"] == pytest.approx(gram[-1, -1], rel=1e-3)


@pytest.mark.parametrize("name", ["identity", "adam", "two ranks", "features", "two ranks, features"])
def test_every_sample_has_one_row_in_the_order_of_the_pool(outputs, data_folder, name):
    """In parts of 13, 13, 13 and 9, and batches of 7, 6 and 2: on two ranks a row of the first is blank."""
    found = table(outputs[0] / name)
    rows = [json.loads(line) for line in (Path(data_folder) / "pool.jsonl").read_text().splitlines()]
    assert found["position"].tolist() == list(range(NUM_POOL))
    assert found["id"].tolist() == [row["id"] for row in rows]
    assert found["damage"].tolist() == [row["corruption"] for row in rows] and set(found["source"]) == {
        "sums"
    }
    assert (found["num_supervised"] < found["num_tokens"]).all() and found[[*SCORES, "loss"]].notna().all(
        axis=None
    )
    assert [len(pd.read_parquet(outputs[0] / name / file)) for file in FILES[1:]] == [13, 13, 13, 9]


def test_features_have_the_inner_products_of_the_gradients(outputs, expected):
    """A sketch of D numbers errs by 1 / sqrt(D) of the norms' product: not by much more, and not by much
    less, or it is none."""
    _, gram, _ = expected["adam"]
    found, goal = table(outputs[0] / "features"), target(outputs[0] / "features")
    features = np.stack([*found["features"], goal["features"]]).astype(np.float64)
    assert features.shape == (NUM_POOL + 1, NUM_FEATURES)
    norms = np.sqrt(np.diagonal(gram))
    error = ((features @ features.T - gram) / np.outer(norms, norms))[np.triu_indices(NUM_POOL + 1, 1)]
    assert 0.5 / NUM_FEATURES**0.5 < np.sqrt((error**2).mean()) < 1.5 / NUM_FEATURES**0.5
    np.testing.assert_allclose(found["cosine"], gram[:-1, -1] / (norms[:-1] * norms[-1]), atol=1e-4)


def test_features_do_not_depend_on_the_number_of_ranks(outputs):
    """But for the metric, which is rounded to bfloat16 where it travels."""
    one, two = (
        np.stack(table(outputs[0] / name)["features"]) for name in ("features", "two ranks, features")
    )
    assert np.linalg.norm(one - two, axis=1).max() < 0.01 * np.linalg.norm(one, axis=1).min()


def test_a_sketch_is_unbiased_and_errs_as_it_says():
    """Over 2,000 seeds, on vectors whose large elements stand together."""
    draw, width, size = torch.Generator().manual_seed(0), 203, 16
    x, y = torch.randn(2, width, generator=draw) * torch.linspace(3, 0, width) ** 2
    y += 0.5 * x
    sketches = (CountSketch(width, size, str(seed), torch.device("cpu")) for seed in range(2000))
    products = torch.stack([a @ b for a, b in (sketch(torch.stack([x, y])) for sketch in sketches)]).double()
    bound = ((x @ x) * (y @ y) + (x @ y) ** 2).item() / size
    assert abs(products.mean().item() - (x @ y).item()) < 4 * (bound / 2000) ** 0.5
    assert 0.3 * bound < products.var().item() < 1.2 * bound
    with pytest.raises(ValueError, match="features = 204 is more than the 203 numbers"):
        CountSketch(width, width + 1, "", torch.device("cpu"))


def test_scores_that_were_killed_and_continued_are_those_of_an_undisturbed_program(outputs):
    root, ended, (killed, left) = outputs
    assert killed.code == -signal.SIGKILL, tails([killed])
    assert (
        left == [".part-00002.parquet.tmp", "part-00000.parquet", "part-00001.parquet"]
        and ended["killed"] == ""
    )
    assert [
        (root / "killed" / file).read_bytes() == (root / "identity" / file).read_bytes() for file in FILES
    ] == [True] * 5


def test_scores_that_were_stopped_and_continued_are_those_of_an_undisturbed_program(outputs):
    """The signal comes in the first batch of the second part, to one of two ranks."""
    root, ended, _ = outputs
    assert (ended["stopped"], ended["continued"]) == ("75", "")
    assert [
        (root / "stopped" / file).read_bytes() == (root / "two ranks" / file).read_bytes() for file in FILES
    ] == [True] * 5


def test_scores_of_something_else_are_refused_with_what_differs(outputs):
    _, ended, _ = outputs
    assert "holds scores made of something else" in ended["other data"]
    assert (
        "data.loss_on: assistant -> all" in ended["other data"]
        and "content of data.pool" in ended["other data"]
    )
    assert "its model is another one (model.lora_rank: 0 -> 2)" in ended["other model"]
    assert "config.yaml: give that as --config" in ended["other model"]


def test_a_sample_without_a_finite_gradient_keeps_its_row(outputs):
    root, ended, _ = outputs
    assert ended["spoiled"] == ""
    found = table(root / "spoiled")
    assert found["id"].tolist().index("spoiled") == 3 and len(found) == 7
    assert found[[*SCORES, "loss"]].isna().all(axis=1).tolist() == [False] * 3 + [True] + [False] * 3
    others, undisturbed = found.drop(index=3), table(root / "identity").head(6)
    np.testing.assert_allclose(others["alignment"], undisturbed["alignment"], rtol=1e-3)


def test_datasets_loads_the_parts(outputs, tmp_path):
    parts = str(outputs[0] / "features/parts/part-*.parquet")
    found = datasets.load_dataset("parquet", data_files=parts, split="train", cache_dir=str(tmp_path))
    assert len(found) == NUM_POOL and found.features["features"].length == NUM_FEATURES
    assert found["position"][:] == list(range(NUM_POOL)) and found.features["cosine"].dtype == "float64"


def test_a_part_with_other_rows_is_named(outputs, tmp_path):
    shutil.copytree(outputs[0] / "identity/parts", tmp_path / "parts")
    assert Parts(tmp_path, NUM_POOL, PART).missing() == []
    with pytest.raises(ValueError, match=r"part-00003.parquet has 9 rows instead of 13: delete it"):
        Parts(tmp_path, NUM_POOL + 20, PART).missing()
    (tmp_path / "parts/part-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"part-00001.parquet cannot be read"):
        Parts(tmp_path, NUM_POOL, PART).missing()


def test_what_a_failed_conversion_of_a_checkpoint_has_left_is_no_obstacle(tmp_path):
    """``begin`` comes after it, and a start with as many ranks as the checkpoint's converts nothing."""
    (tmp_path / "checkpoint-3.universal").mkdir()
    for name in ("checkpoint-3.log", "latest_universal", LOCK):
        (tmp_path / name).write_text("")
    assert parts.begin(Parts(tmp_path, NUM_POOL, PART), {}, ()) == []
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "train.log").write_text("")
    with pytest.raises(ValueError, match=r"is not empty and holds no manifest.json \(train.log\)"):
        parts.begin(Parts(tmp_path, NUM_POOL, PART), {}, ())


def test_the_example_of_the_page_keeps_the_best_of_each_source(outputs, data_folder, tmp_path, monkeypatch):
    """Of two sources, one of which has no ids: 5 % of 24 samples is one."""
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in (Path(data_folder) / "pool.jsonl").read_text().splitlines()]
    scores = table(outputs[0] / "identity")
    for number, row in enumerate(rows, 1):
        if number % 2:
            scores.loc[number - 1, ["id", "source"]] = f"pool:{number}", "others"
            del row["id"]
        else:
            row["id"] = number  # the parts hold it as text
            scores.loc[number - 1, "id"] = str(number)
    Path("scores/parts").mkdir(parents=True)
    scores.to_parquet("scores/parts/part-00000.parquet")
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exec(EXAMPLE.search((ROOT / "docs/scoring.md").read_text())[1], {})
    best = [json.loads(line) for line in Path("best.jsonl").read_text().splitlines()]
    assert best == [rows[i] for i in sorted(scores.groupby("source")["cosine"].idxmax())] and len(best) == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        (["--selection.geometry", "update"], "selection.geometry = update measures with Adam's state"),
        (
            ["--selection.momentum", "compensate"],
            "selection.momentum = compensate measures with Adam's state",
        ),
        (["--resume", "auto"], "resume = auto has no meaning here"),
        (["--features", "64"], "features = 64 needs selection.backend = projected or factored"),
        (["--data.target", "[]"], "data.target is empty"),
        (["--batch", "-1"], "batch is -1: the smallest value is 1"),
        (
            ["--selection.contraction", "token_token"],
            "selection.contraction = token_token cannot keep the target",
        ),
    ],
)
def test_contradictions_are_refused_with_the_way_out(build, capsys, tmp_path, changes, message):
    with pytest.raises(SystemExit) as ended:
        score.parse_score(build(tmp_path, *changes))
    assert ended.value.code == 2 and message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "changes",
    [["--run.overwrite", "true"], ["--data.test", "[gone.jsonl]"], ["--training.evaluation_answers", "3"]],
)
def test_settings_that_only_a_run_has_a_use_for_refuse_nothing(build, tmp_path, changes):
    """They stand in the run's config.yaml, from which it is scored."""
    (tmp_path / "run").mkdir()
    config, _ = score.parse_score(
        build(tmp_path, "--data.test", "[]", *changes, "--resume", str(tmp_path / "run"))
    )
    assert config.data.test == [] and not config.run.overwrite


def test_without_a_checkpoint_samples_are_measured_by_plain_gradients(build, tmp_path):
    config, _ = score.parse_score(build(tmp_path, "--selection.method", "less"))
    assert (config.selection.geometry, config.selection.method) == ("identity", "filter_then_weight")
    config, _ = score.parse_score(build(tmp_path, "--selection.method", "less", resume=True))
    assert config.selection.geometry == "update_to_gradient"
    config, _ = score.parse_score(build(tmp_path, "--selection.method", "random", resume=True))
    assert config.selection.geometry == "update"


def test_a_run_that_emptied_its_folder_can_be_scored_by_its_own_configuration(tmp_path):
    """``--config RUN/config.yaml --resume RUN``, as the page has it, where the run was started with
    run.overwrite."""
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    names = [str(tmp_path / "data.jsonl")]
    settings = {"data.pool": names, "data.target": names, "run.overwrite": True, "run.folder": str(tmp_path)}
    save(from_settings(settings), tmp_path / "config.yaml")
    arguments = [
        "--config",
        str(tmp_path / "config.yaml"),
        "--resume",
        str(tmp_path),
        "--output",
        str(tmp_path / "scores"),
    ]
    config, _ = score.parse_score(arguments)
    assert config.resume == str(tmp_path) and not config.run.overwrite
