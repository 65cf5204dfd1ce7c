"""The command line of a short run of pipeline.train on the tiny model."""


def run_arguments(model_folder: str, data_folder: str, folder, *changes: str) -> list[str]:
    settings = {
        "deepspeed": "ds_configs/zero2.json",
        "model.name": model_folder,
        "model.lora_rank": 2,
        "data.pool": f"[{data_folder}/pool.jsonl]",
        "data.target": f"[{data_folder}/target.jsonl]",
        "data.test": f"[{data_folder}/test.jsonl]",
        "data.max_tokens": 60,
        "data.cache_folder": f"{data_folder}/tokens",
        "selection.candidates_per_step": 8,
        "selection.keep_per_step": 4,
        "selection.target_per_step": 3,
        "selection.proposal": "uniform",
        "selection.score_every": 1,
        "selection.warmup_steps": 2,
        "training.steps": 6,
        "training.micro_batch_size": 2,
        "training.learning_rate": 1e-2,
        "training.evaluate_every": 3,
        "run.folder": folder,
        "run.timeout_seconds": 60,
    }
    return [*(part for key, value in settings.items() for part in (f"--{key}", str(value))), *changes]
