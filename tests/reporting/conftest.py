"""Small runs with known contents."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.reporting.records import Recorder

WARMUP_STEPS = 2
SCORED = ("filter_then_weight", "top_k")


def write_run(
    folder: Path,
    method: str = "filter_then_weight",
    num_steps: int = 30,
    evaluations=None,
    damage: bool = True,
    extra_source: str = "",
    seed: int = 0,
    score_every: int = 0,
) -> Path:
    """A run over a pool of 40 % math (the target's kind) and 30 % damaged; filter_then_weight keeps mostly
    clean math.

    With ``score_every`` it scores the first two steps and then so often, and trains on 8 proposed samples in
    the others; without, it is a run of a version that knew neither these fields nor setup.json.
    """
    rng = np.random.default_rng(seed)
    scored = method in SCORED
    sources = ["math", "chat", "code", *([extra_source] if extra_source else [])]
    shares = {"filter_then_weight": [0.7, 0.2, 0.1], "top_k": [0.6, 0.2, 0.2]}.get(method, [0.4, 0.4, 0.2])
    shares = [*np.array(shares) * 0.95, 0.05] if extra_source else shares
    by_source = {"math": 400, "chat": 400, "code": 200, **({extra_source: 50} if extra_source else {})}
    damaged = 0.08 if scored else 0.3
    with Recorder(folder) as recorder:
        for step in range(num_steps):
            is_scored = scored and (not score_every or step < 2 or step % score_every == 0)
            warmup = is_scored and step < WARMUP_STEPS
            match = is_scored and not warmup
            weights = (
                rng.dirichlet(np.full(8, 3.0))
                if method == "filter_then_weight" and match
                else np.full(8, 1 / 8)
            )
            kept = []
            for number, weight in enumerate(weights / weights.sum()):
                kind = str(
                    rng.choice(["none", "shuffled", "wrong"], p=[1 - damaged, damaged / 2, damaged / 2])
                )
                kept.append(
                    {
                        "step": step,
                        "id": f"{step}-{number}",
                        "source": str(rng.choice(sources, p=shares)),
                        "damage": kind if damage else "",
                        "weight": float(weight),
                        "alignment": float(rng.uniform(0, 0.6)) if match else None,
                    }
                )
            recorder.kept(kept)
            passed = [f"{step}-{number}" for number in range(8, 32)]
            alignment = rng.uniform(-0.6, 0.1, 24).tolist() if match else None
            if is_scored or not score_every:
                recorder.passed({"step": step, "ids": passed, "alignment": alignment})
            loss = 2.2 * np.exp(-step / (25 if scored else 40)) + 0.9
            recorder.step(
                {
                    "step": step,
                    "epoch": 0,
                    "warmup": warmup,
                    "method": method,
                    "num_candidates": 32 if is_scored or not score_every else 8,
                    "num_kept": 8,
                    "train_loss": float(loss + rng.normal(0, 0.08)),
                    "candidate_loss": float(loss + 0.3) if match else None,
                    "target_loss": float(loss - 0.1 + rng.normal(0, 0.05)) if match else None,
                    "residual": float(0.7 + rng.normal(0, 0.04)) if match else None,
                    "cosine": float(0.55 + rng.normal(0, 0.05)) if match else None,
                    "fallback": int(match and step == 5),
                    "dropped": ["broken"] if match and step == 7 else [],
                    "learning_rate": 1e-4,
                    "grad_norm": 1.0,
                    "bytes_sent": 1 << 20,
                    "candidate_tokens": 3200,
                    "trained_tokens": 800,
                    "selection_hash": "abcd",
                    "effective_kept": 1 / float(np.square(weights).sum()),
                    "warnings": [f"WARNING after step {step}: raise selection.ridge"]
                    if match and step == 9
                    else [],
                    "memory_mib": {
                        "update": 700.5,
                        **({"target": 640.0, "factors": 655.25} if match else {}),
                    },
                    "seconds": {"update": 1.0, "total": 1.05, "candidates": 0.05}
                    if not match
                    else {
                        "candidates": 0.05,
                        "target": 0.3,
                        "factors": 0.4,
                        "exchange": 0.1,
                        "gram": 0.05,
                        "solve": 0.1,
                        "update": 1.0,
                        "total": 2.0,
                    },
                    **(_of_proposals(rng, is_scored) if score_every else {}),
                }
            )
        if evaluations is None:
            pace = 25 if scored else 40
            evaluations = [
                (step, 2.2 * float(np.exp(-step / pace)) + 1.0) for step in range(0, num_steps + 1, 10)
            ]
        for step, loss in evaluations:
            recorder.evaluation(
                {"step": step, "name": "test", "loss": loss, "num_samples": 64, "num_tokens": 4096}
            )
    if score_every:
        setup = {"what": "features of 1,000 samples", "seconds": 3.0, "cpu_seconds": 2.0}
        more = {"is_reused": True, "pool_share": 0.16}
        (folder / "setup.json").write_text(json.dumps(setup | more))
    config = {"selection": {"method": method, "ridge": 1.0}, "run": {"folder": str(folder), "seed": seed}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "environment.json").write_text(
        json.dumps({"torch": "2.13.0", "deepspeed": "0.19.8", "world_size": 2})
    )
    by_damage = {"none": 700, "shuffled": 150, "wrong": 150} if damage else {"": 1000}
    pool = {"num_samples": 1000, "by_source": by_source, "by_damage": by_damage, "target_sources": ["math"]}
    (folder / "pool.json").write_text(json.dumps(pool))
    return folder


def _of_proposals(rng: np.random.Generator, is_scored: bool) -> dict:
    """Fields of a step record about what was proposed."""
    return {
        "scored": int(is_scored),
        "window": 200 if is_scored else 50,
        "predicted_correlation": float(rng.uniform(0.6, 0.8)) if is_scored else None,
        "cosine_of_proposed": float(rng.uniform(0.4, 0.5)) if is_scored else None,
        "cosine_of_explored": float(rng.uniform(0.0, 0.1)) if is_scored else None,
        "target_mixed": 0,
        "cpu_seconds": 4.0 if is_scored else 2.0,
    }


@pytest.fixture
def make_run(tmp_path):
    """``make_run(name, **settings)`` writes a run under the test's folder and returns its path."""
    return lambda name, **settings: write_run(tmp_path / name, **settings)
